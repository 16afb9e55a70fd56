"""``maskft score``: score texts, pairs of texts or variants of a sequence with a masked model."""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from hashlib import blake2b
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NoReturn

import torch

from maskft.cli.formats import LONGEST_TEXT, Rows, endings, one_line, reader_of, too_long
from maskft.cli.messages import UsageError, say
from maskft.cli.models import load
from maskft.cli.results import Results
from maskft.insight.copies import BATCH_TOKENS
from maskft.insight.encode import METHODS
from maskft.insight.pairs import check_level, wilson
from maskft.insight.score import AT_ONCE, Scorer, TextScore, perplexity
from maskft.insight.variants import score_variants

DTYPES = ("float32", "bfloat16", "float16")
_EVERY = 10.0  # seconds from a line of progress to the next

Numbered = tuple[int, str, dict[str, str | None]]  # row, place in the file, columns


class _Parser(argparse.ArgumentParser):
    """Report an error in one sentence, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} ({self.prog} --help lists the options)")


def parser() -> argparse.ArgumentParser:
    made = _Parser("maskft score", description=__doc__)
    made.add_argument("file", metavar="FILE", help=f"rows of text: {endings()}")
    made.add_argument("--model", required=True, help="name or folder of a masked language model")
    made.add_argument(
        "--output", required=True, help="results: .jsonl, .csv or .parquet; a killed run goes on"
    )
    made.add_argument("--text-column", default="text", help="the column to score (text)")
    made.add_argument("--keep", nargs="+", default=[], metavar="COLUMN", help="columns to copy")
    made.add_argument(
        "--method", choices=METHODS, default="original",
        help="what is hidden at a time: a token (original), a token and the rest of its word "
        "(within_word_l2r), a word, an entity",
    )  # fmt: skip
    made.add_argument(
        "--entities", help="with --method entity: a file with a name a line, or spacy:PIPELINE"
    )
    made.add_argument("--entity-labels", nargs="+", default=[], help="labels of spaCy to take")
    made.add_argument("--tokens", action="store_true", help="write the score of each token too")
    made.add_argument("--good-column", help="pairs: the column of the text that should win")
    made.add_argument("--bad-column", help="pairs: the column of the other text")
    made.add_argument(
        "--variant-column", help="variants such as A24G of the sequence in --text-column"
    )
    made.add_argument("--sequence", help="variants: the sequence of every row")
    made.add_argument("--first-position", type=int, default=1, help="of the sequences (1)")
    made.add_argument("--max-length", type=int, help="tokens in a window (what the model takes)")
    made.add_argument("--stride", type=int, help="tokens from a window to the next (half of one)")
    made.add_argument(
        "--batch-tokens", type=int, default=BATCH_TOKENS, help=f"in a batch ({BATCH_TOKENS})"
    )
    made.add_argument("--device", help="cpu, cuda, ... (a GPU if there is one)")
    made.add_argument("--dtype", choices=DTYPES, default="float32", help="of the model (float32)")
    made.add_argument("--level", type=float, default=0.95, help="of the interval of pairs (0.95)")
    made.add_argument("--trust-remote-code", action="store_true", help="run the model's own code")
    return made


class Task:
    """What is done with the rows of a file.

    Attributes:
        columns: of text, that it reads.
        made: names of the columns that it writes.
    """

    columns: list[str]
    made: tuple[str, ...]

    def __call__(self, rows: list[Numbered]) -> list[dict[str, Any]]:
        """Return the columns of results of each row."""
        raise NotImplementedError

    def count(self, row: dict[str, Any]) -> None:
        """Take a row of results into the summary."""
        raise NotImplementedError

    def summary(self) -> str:
        raise NotImplementedError


class Texts(Task):
    """Score the texts of a column."""

    def __init__(
        self, scorer: Scorer, column: str, tokens: bool,
        spans: Callable[[list[str]], Any] | None,
    ) -> None:  # fmt: skip
        self.scorer, self.columns, self.tokens, self.spans = scorer, [column], tokens, spans
        self.made = ("logprob", "token_count", "perplexity")
        self.made += ("tokens", "token_logprobs") if tokens else ()
        self.texts, self.total, self.scored = 0, 0.0, 0

    def __call__(self, rows: list[Numbered]) -> list[dict[str, Any]]:
        texts = [str(row[self.columns[0]]) for _, _, row in rows]
        spans = None if self.spans is None else [list(of) for of in self.spans(texts)]
        return [self._row(found) for found in self.scorer(texts, spans, "row ", rows[0][0])]

    def _row(self, found: TextScore) -> dict[str, Any]:
        row: dict[str, Any] = {
            "logprob": found.logprob, "token_count": found.count, "perplexity": found.perplexity,
        }  # fmt: skip
        if self.tokens:
            row |= {"tokens": found.tokens, "token_logprobs": found.logprobs}
        return row

    def count(self, row: dict[str, Any]) -> None:
        self.texts += 1
        self.total += row["logprob"]
        self.scored += row["token_count"]

    def summary(self) -> str:
        mean = self.total / self.scored if self.scored else math.nan
        return (
            f"{self.texts:,} texts, {self.scored:,} tokens: log-probability per token {mean:.4f}, "
            f"pseudo-perplexity {perplexity(self.total, self.scored):.4g}"
        )


class Pairs(Task):
    """Score pairs of texts."""

    def __init__(self, scorer: Scorer, good: str, bad: str, level: float) -> None:
        self.scorer, self.columns, self.level = scorer, [good, bad], level
        self.made = ("good_logprob", "bad_logprob", "correct")
        self.pairs = self.correct = 0

    def __call__(self, rows: list[Numbered]) -> list[dict[str, Any]]:
        texts = [str(row[column]) for _, _, row in rows for column in self.columns]
        found = [text.logprob for text in self.scorer(texts, None, "text ", 2 * rows[0][0])]
        return [
            {"good_logprob": good, "bad_logprob": bad, "correct": good > bad}
            for good, bad in zip(found[::2], found[1::2], strict=True)
        ]

    def count(self, row: dict[str, Any]) -> None:
        self.pairs += 1
        self.correct += row["correct"]

    def summary(self) -> str:
        low, high = wilson(self.correct, self.pairs, self.level)
        return (
            f"{self.pairs:,} pairs: accuracy {self.correct / self.pairs:.2%}, "
            f"{self.level:.0%} interval {low:.2%} to {high:.2%}"
        )


class Variants(Task):
    """Score variants of sequences."""

    def __init__(
        self, model: Any, tokenizer: Any, column: str, text_column: str, sequence: str | None,
        **options: Any,
    ) -> None:  # fmt: skip
        self.model, self.tokenizer, self.options = model, tokenizer, options
        self.sequence, self.made = sequence, ("score",)
        self.columns = [column] if sequence else [text_column, column]
        self.variants, self.total = 0, 0.0

    def __call__(self, rows: list[Numbered]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for sequence, group in groupby(rows, lambda row: self._sequence_of(row[2])):
            variants = [str(row[self.columns[-1]]) for _, _, row in group]
            made = score_variants(
                self.model, self.tokenizer, sequence, variants,
                name=f"row {rows[0][0] + len(found)} and after: variants", **self.options,
            )  # fmt: skip
            found += [{"score": one.score} for one in made]
        return found

    def _sequence_of(self, row: dict[str, str | None]) -> str:
        return self.sequence or str(row[self.columns[0]]).strip()

    def count(self, row: dict[str, Any]) -> None:
        self.variants += 1
        self.total += row["score"]

    def summary(self) -> str:
        return f"{self.variants:,} variants: mean score {self.total / self.variants:+.4f}"


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    path = Path(args.file)
    _check(args, path)
    model, tokenizer = load(args.model, args.trust_remote_code)
    try:
        device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        model.to(device, getattr(torch, args.dtype))
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {args.device}: {one_line(error)[:200]}") from None
    try:
        task = _task(args, model, tokenizer)
        columns = [*dict.fromkeys([*task.columns, *args.keep])]
        if clash := sorted({*columns} & {"row", *task.made}):
            raise UsageError(
                f"the results have columns {clash} of their own: rename those of {path}"
            )
        rows, digest = _look_through(path, columns, task.columns)
        results = Results(args.output, _settings(args, digest), AT_ONCE)
        for row in results.written():
            task.count(row)
        _run(task, results, _numbered(path, columns), rows)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from None
    print(task.summary())
    return 0


def _run(task: Task, results: Results, rows: Iterator[Numbered], total: int) -> None:
    """Score the rows that are not done, in parts, and write each part."""
    done, began = results.done, time.perf_counter()
    last = began
    for _ in islice(rows, done):
        pass
    try:
        while part := list(islice(rows, AT_ONCE)):
            made = [
                {"row": number, **columns, **found}
                for (number, _, columns), found in zip(part, task(part), strict=True)
            ]
            results.add(made)
            for row in made:
                task.count(row)
            done += len(part)
            now = time.perf_counter()
            if now - last > _EVERY and done < total:
                left = (now - began) / (done - results.done) * (total - done)
                say(f"{done:,} of {total:,} rows  {int(left // 60)}:{int(left % 60):02d} left")
                last = now
    except KeyboardInterrupt:
        say(f"{done:,} of {total:,} rows are in {results.part}; run the same command to go on")
        raise
    results.finish()


def _check(args: argparse.Namespace, path: Path) -> None:
    pairs, variants = args.good_column or args.bad_column, args.variant_column
    if bool(args.good_column) != bool(args.bad_column):
        raise UsageError("--good-column and --bad-column go together")
    if args.good_column and args.good_column == args.bad_column:
        raise UsageError(f"--good-column and --bad-column are both {args.good_column!r}")
    if pairs and variants:
        raise UsageError("--variant-column does not go with --good-column and --bad-column")
    if args.sequence and not variants:
        raise UsageError("--sequence goes with --variant-column")
    if variants and args.method != "original":
        raise UsageError(f"--variant-column does not go with --method {args.method}")
    if (args.entities is not None) != (args.method == "entity"):
        raise UsageError("--entities and --method entity go together")
    if pairs and args.method == "entity":
        raise UsageError("--method entity does not go with pairs")
    if args.tokens and (pairs or variants):
        raise UsageError("--tokens goes with texts, not with pairs or variants")
    try:
        check_level(args.level)
    except ValueError as error:
        raise UsageError(f"--{error}") from None
    if not path.is_file():
        raise UsageError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
    reader_of(path)  # refuses what it does not read, before the model is loaded


def _task(args: argparse.Namespace, model: Any, tokenizer: Any) -> Task:
    if args.variant_column:
        return Variants(
            model, tokenizer, args.variant_column, args.text_column, args.sequence,
            first_position=args.first_position, max_length=args.max_length,
            batch_tokens=args.batch_tokens,
        )  # fmt: skip
    scorer = Scorer(
        model, tokenizer, method=args.method, max_length=args.max_length, stride=args.stride,
        batch_tokens=args.batch_tokens,
    )  # fmt: skip
    if args.good_column:
        return Pairs(scorer, args.good_column, args.bad_column, args.level)
    spans = None
    if args.entities:
        from maskft.cli.annotators import entities

        try:
            spans = entities(args.entities, args.entity_labels).find
        except ModuleNotFoundError as error:
            raise UsageError(str(error)) from None
    return Texts(scorer, args.text_column, args.tokens, spans)


def _settings(args: argparse.Namespace, digest: str) -> dict[str, Any]:
    """Return what results depend on; not the device nor the size of batches."""
    without = ("file", "output", "device", "batch_tokens", "level", "trust_remote_code")
    kept = {name: value for name, value in vars(args).items() if name not in without}
    return {**kept, "input": digest}


def _rows(path: Path, columns: list[str]) -> Rows:
    try:
        yield from reader_of(path)(path, columns)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or one_line(error)}") from None


def _numbered(path: Path, columns: list[str]) -> Iterator[Numbered]:
    for number, (place, texts) in enumerate(_rows(path, columns)):
        yield number, place, dict(zip(columns, texts, strict=True))


def _look_through(path: Path, columns: list[str], needed: list[str]) -> tuple[int, str]:
    """Return (rows, digest) of a file; refuse rows without text before any is scored."""
    rows, digest = 0, blake2b(digest_size=16)
    for _, place, row in _numbered(path, columns):
        rows += 1
        for column in needed:
            text = row[column]
            if text is None or not text.strip():
                raise UsageError(f"{path}: {place}: {column!r} is empty; leave the row out")
            if len(text) > LONGEST_TEXT:
                raise too_long(f"{path}: {place}", len(text))
        digest.update(repr(sorted(row.items())).encode("utf-8", "surrogatepass"))
    if not rows:
        raise UsageError(f"{path}: the file is empty")
    return rows, digest.hexdigest()
