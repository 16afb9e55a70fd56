"""``maskft compare A B``: compare two models on the same text under the same masks."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from maskft.cli.config import DataArguments, MaskingArguments, parse
from maskft.cli.data import load_texts, row_length, tokenize
from maskft.cli.messages import UsageError
from maskft.cli.models import load
from maskft.cli.saving import write_text
from maskft.insight.compare import Comparison, compare_models
from maskft.insight.copies import BATCH_TOKENS

_USAGE = "give the two models first: maskft compare A B --train-file FILE"


@dataclass
class CompareArguments:
    """How two models are compared."""

    split: str = field(
        default="train", metadata={"help": "with --dataset: the split to compare on"}
    )
    resamples: int = field(default=2000, metadata={"help": "of the bootstrap"})
    level: float = field(default=0.95, metadata={"help": "of the intervals"})
    seed: int = field(default=42, metadata={"help": "of the masks and the bootstrap"})
    batch_tokens: int = field(default=BATCH_TOKENS, metadata={"help": "tokens in a batch, at most"})
    output: str | None = field(default=None, metadata={"help": "a JSON file for the table"})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "run code that comes with the models (off by default)"}
    )


def main(argv: list[str]) -> int:
    names, rest = _models(argv)
    kinds = (DataArguments, MaskingArguments, CompareArguments)
    data, masking, options = parse("compare", __doc__ or "", kinds, rest, "A B")
    if len(names) != 2:
        raise UsageError(_USAGE)
    data.check()
    sides = masking.sides(data)
    data.validation_fraction = data.test_fraction = 0.0  # all of the text
    (model_a, tokenizer), (model_b, other) = (
        load(name, options.trust_remote_code) for name in names
    )
    if tokenizer.get_vocab() != other.get_vocab():
        raise UsageError(
            f"{names[0]} and {names[1]} have different vocabularies, so they cannot predict the "
            "same tokens; compare scores of texts instead (maskft score)"
        )
    texts = load_texts(data)
    if options.split not in texts:
        raise UsageError(f"--split must be one of {sorted(texts)}, got {options.split!r}")
    texts = texts[options.split]
    length = min(row_length(tokenizer, model, data.max_length) for model in (model_a, model_b))
    try:
        collator = masking.collator(tokenizer, options.seed)
        rows = tokenize(
            texts, tokenizer, length, masking.annotator(texts), sides, data.stride, data.num_proc
        )
        if torch.cuda.is_available():
            model_a, model_b = model_a.cuda(), model_b.cuda()
        found = compare_models(
            model_a, model_b, tokenizer, rows, collator=collator, resamples=options.resamples,
            level=options.level, seed=options.seed, batch_tokens=options.batch_tokens,
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from None
    _print(found, names, len(rows))
    if options.output:
        _write(Path(options.output), found, names)
    return 0


def _models(argv: list[str]) -> tuple[list[str], list[str]]:
    """Divide the command line into the names in front of the first option, and the rest."""
    first = next((i for i, part in enumerate(argv) if part.startswith("-")), len(argv))
    return argv[:first], argv[first:]


def _print(found: Comparison, names: list[str], rows: int) -> None:
    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    console.print(f"A: {names[0]}\nB: {names[1]}")
    table = Table(title=f"cross-entropy of masked tokens, {rows:,} rows")
    for heading in ("class", "", "tokens", "A", "B", "B - A", f"{found.level:.0%} interval"):
        table.add_column(heading, justify="left" if heading in ("class", "") else "right")
    kind = found.classes[0].kind
    for one in found.classes:
        if one.kind != kind:
            table.add_section()
            kind = one.kind
        table.add_row(*map(Text, found.cells(one)))
    console.print(table)
    for name, of in (("A", found.a), ("B", found.b)):
        console.print(
            f"{name}: accuracy {of.top_k(1):.2%}, in the first 5 {of.top_k(5):.2%}, in the first "
            f"10 {of.top_k(10):.2%}, calibration error {of.calibration_error():.4f}"
        )


def _write(path: Path, found: Comparison, names: list[str]) -> None:
    models: dict[str, Any] = {
        key: {
            "name": name, "loss": of.loss, "accuracy": of.top_k(1), "top_5": of.top_k(5),
            "top_10": of.top_k(10), "calibration_error": of.calibration_error(),
        }
        for key, name, of in (("a", names[0], found.a), ("b", names[1], found.b))
    }  # fmt: skip
    classes = [{**asdict(one), "difference": one.difference} for one in found.classes]
    text = json.dumps({**models, "level": found.level, "classes": classes}, indent=1)
    try:
        write_text(path, text + "\n")
    except OSError as error:
        raise UsageError(f"--output {path}: {error.strerror}") from None
