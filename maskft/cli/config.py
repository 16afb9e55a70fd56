"""Define the options of the command line, as dataclasses that HfArgumentParser reads."""

from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from transformers import HfArgumentParser, TrainingArguments

from maskft.cli.diffusion import OWN as _DIFFUSION
from maskft.cli.diffusion import DiffusionArguments
from maskft.cli.messages import UsageError
from maskft.collate.collator import RNGS, STRATEGIES
from maskft.strategy import Entity, NGram, Span, Strategy
from maskft.strategy.schedule import parse_schedule

MASK_ONLY_COLUMN = "mask_only"  # not 0 where a token may be masked
WORDS = ("vocabulary", "jieba")
REPLACEMENT_IDS = ("all", "ordinary")
_KINDS: dict[str, type[Strategy]] = {"ngram": NGram, "span": Span, "entity": Entity}
# Options of some strategies: the option, the strategies, what it gives them
_OWN = {
    "ngram": (("ngram",), "n"),
    "span_p": (("span",), "p"),
    "span_longest": (("span",), "longest"),
    "span_words": (("span", "ngram"), "words"),
    "entity_rest": (("entity",), "rest"),
    "entity_rate": (("entity",), "rate"),
    **{name: (("diffusion",), name) for name in _DIFFUSION},
}
# Where the columns of one strategy come from
_SOURCES = {"entities": "entity", "entity_labels": "entity", "keywords": "keyword"}


@dataclass
class ModelArguments:
    """Which model."""

    model: str = field(metadata={"help": "name or folder of a masked language model"})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "run code that comes with the model (off by default)"}
    )


@dataclass
class DataArguments:
    """Which text, and how it is split."""

    train_file: list[str] = field(
        default_factory=list,
        metadata={
            "help": "files or folders of text: .txt (a row a line), .jsonl, .json, .csv, .tsv, "
            ".parquet, .fasta, or one of them but .parquet compressed, .gz"
        },
    )
    dataset: str | None = field(
        default=None, metadata={"help": "folder written by datasets' save_to_disk"}
    )
    text_column: str = field(default="text", metadata={"help": "the column that holds the text"})
    pair_column: str | None = field(
        default=None,
        metadata={
            "help": "a second column of text: the two are tokenized as a pair, such as question "
            "and context, or source and target"
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": "tokens in a row, at most; longer texts go on in rows of their own"},
    )
    stride: int = field(
        default=0, metadata={"help": "tokens that such a further row repeats of the row before"}
    )
    num_proc: int | None = field(
        default=None, metadata={"help": "processes that tokenize; one is usually fast enough"}
    )
    validation_fraction: float = field(
        default=0.05,
        metadata={
            "help": "share of texts held out, chosen by hash, so that identical texts fall in the "
            "same split"
        },
    )
    test_fraction: float = field(default=0.05, metadata={"help": "likewise, for the test split"})

    def check(self) -> None:
        if bool(self.train_file) == bool(self.dataset):
            raise UsageError("give the text with --train-file or with --dataset, one of the two")
        for name in ("validation_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(
                    f"--{name.replace('_', '-')} must be in [0, 1), got {getattr(self, name)}"
                )
        if self.validation_fraction + self.test_fraction >= 1:
            raise UsageError("--validation-fraction and --test-fraction leave nothing to train on")
        if self.max_length is not None and self.max_length < 3:
            raise UsageError(f"--max-length must be at least 3, got {self.max_length}")
        if self.num_proc is not None and self.num_proc < 1:
            raise UsageError(f"--num-proc must be at least 1, got {self.num_proc}")
        if self.pair_column == self.text_column:
            raise UsageError(f"--text-column and --pair-column are both {self.text_column!r}")

    def columns(self) -> list[str]:
        """List the columns of text, in the order of the pair."""
        return [self.text_column, *([] if self.pair_column is None else [self.pair_column])]


@dataclass
class MaskingArguments(DiffusionArguments):
    """What is masked."""

    strategy: str = field(default="random", metadata={"help": " or ".join(STRATEGIES)})
    ngram: int | None = field(
        default=None, metadata={"help": "with --strategy ngram: words in a run (3)"}
    )
    span_p: float | None = field(
        default=None,
        metadata={"help": "with --strategy span: lengths are geometric with this p (0.2)"},
    )
    span_longest: int | None = field(
        default=None, metadata={"help": "with --strategy span: the most words in a span (10)"}
    )
    span_words: str | None = field(
        default=None,
        metadata={
            "help": "with --strategy span or ngram: on: lengths count words (the default); off: "
            "they count tokens, as for proteins, whose rows are one word"
        },
    )
    mlm_probability: float = field(default=0.15, metadata={"help": "share of tokens to predict"})
    mask_replace_prob: float = field(
        default=0.8, metadata={"help": "share of those that become the mask token"}
    )
    random_replace_prob: float = field(
        default=0.1, metadata={"help": "share of those that become a random token"}
    )
    replacement_ids: str = field(
        default="all",
        metadata={
            "help": "random tokens are drawn from: all of the vocabulary, special tokens too, or "
            "ordinary, without them"
        },
    )
    entities: str | None = field(
        default=None,
        metadata={
            "help": "with --strategy entity: a file with a name a line, or spacy:PIPELINE (such as "
            "spacy:en_core_web_sm)"
        },
    )
    entity_labels: list[str] = field(
        default_factory=list,
        metadata={
            "help": "with --entities spacy: the kinds to keep, such as PERSON ORG (all but dates, "
            "times and numbers)"
        },
    )
    entity_rest: str | None = field(
        default=None,
        metadata={
            "help": "with --strategy entity: words masks other words too (the default), none never"
        },
    )
    entity_rate: float | None = field(
        default=None,
        metadata={"help": "with --strategy entity: share of entities to mask (mlm_probability)"},
    )
    keywords: str | None = field(
        default=None,
        metadata={
            "help": "with --strategy keyword: tfidf (of the training texts; the default), yake, or "
            "a file with word, tab, weight a line"
        },
    )
    words: str = field(
        default="vocabulary",
        metadata={
            "help": "what words are, for all strategies but random: vocabulary (the tokenizer's "
            "marks), or jieba for Chinese"
        },
    )
    mask_only: str | None = field(
        default=None,
        metadata={
            "help": "with --pair-column: mask nothing but this text of the pair: the name of its "
            "column, or 0 for the first, 1 for the second, 0,1 for both"
        },
    )
    selection: str = field(
        default="bernoulli",
        metadata={"help": "bernoulli, or budget: exactly mlm_probability of every row"},
    )
    rate_schedule: str | None = field(
        default=None,
        metadata={
            "help": "in place of one rate: linear:0.3:0.05, cosine:0.3:0.05 or steps:0.3,0.5:0.15 "
            "(0.15 from half of training on)"
        },
    )
    rng: str = field(
        default="sample",
        metadata={"help": f"where masks come from: {' or '.join(RNGS)} (see the README)"},
    )

    def collator(self, tokenizer: Any, seed: int) -> Any:
        """Make the collator that these options describe.

        Raises:
            UsageError: an option or the tokenizer does not fit.
        """
        from maskft.collate.collator import DataCollatorForLanguageModeling

        if self.replacement_ids not in REPLACEMENT_IDS:
            raise UsageError(
                f"--replacement-ids must be one of {REPLACEMENT_IDS}, got {self.replacement_ids!r}"
            )
        try:
            return DataCollatorForLanguageModeling(
                tokenizer,
                mlm_probability=self.mlm_probability,
                mask_replace_prob=self.mask_replace_prob,
                random_replace_prob=self.random_replace_prob,
                seed=seed,
                rng=self.rng,
                strategy=self._chosen(),
                replacement_ids=None if self.replacement_ids == "all" else self.replacement_ids,
                selection=self.selection,
                mask_only=None if self.mask_only is None else MASK_ONLY_COLUMN,
                schedule=parse_schedule(self.rate_schedule) if self.rate_schedule else None,
            )
        except (TypeError, ValueError) as error:
            notes = getattr(error, "__notes__", [])
            raise UsageError(" ".join([str(error), *(f"({note})" for note in notes)])) from None

    def _chosen(self) -> str | Strategy:
        """Make the strategy with the options that were given for it."""
        given: dict[str, Any] = {}
        for name, (strategies, _) in _OWN.items():
            if (value := getattr(self, name)) is None:
                continue
            if self.strategy not in strategies:
                raise ValueError(_goes_with(name, " or ".join(strategies), self.strategy))
            given[name] = value
        if self.strategy == "diffusion":
            return self.diffusion((self.mask_replace_prob, self.random_replace_prob))
        if not given:
            return self.strategy
        words = given.get("span_words", "on")
        if words not in ("on", "off"):
            raise ValueError(f"--span-words must be on or off, got {words!r}")
        options = {_OWN[name][1]: value for name, value in given.items()}
        if "words" in options:
            options["words"] = words == "on"
        try:
            return _KINDS[self.strategy](**options)
        except ValueError as error:
            raise ValueError(f"{', '.join(map(_option, given))}: {error}") from None

    def sides(self, data: DataArguments) -> tuple[int, ...] | None:
        """List the texts of a pair that ``mask_only`` names, 0 for the first; None if not given.

        Raises:
            UsageError: it names none, or there are no pairs.
        """
        if self.mask_only is None:
            return None
        columns = data.columns()
        if len(columns) < 2:
            raise UsageError("--mask-only needs a second text: --pair-column names its column")
        named = {"0": (0,), "1": (1,), "0,1": (0, 1), columns[0]: (0,), columns[1]: (1,)}
        if self.mask_only not in named:
            raise UsageError(f"--mask-only must be one of {tuple(named)}, got {self.mask_only!r}")
        return named[self.mask_only]

    def annotator(self, train: Any) -> Any:
        """Make what adds the strategy's columns to tokenized texts; None where it needs none.

        Args:
            train: the dataset of training texts, for the weights of words.

        Raises:
            UsageError: something is missing: an option, a file, a package.
        """
        from maskft.annotate import Together, WordIds
        from maskft.cli.annotators import entities, jieba_words, keywords

        found: list[Any] = []
        words = None
        try:
            if self.words == "jieba":
                if self.strategy == "random":
                    raise UsageError("--words goes with strategies of words, not random")
                words = jieba_words()
                found.append(WordIds(words))
            elif self.words not in WORDS:
                raise UsageError(f"--words must be one of {WORDS}, got {self.words!r}")
            for name, strategy in _SOURCES.items():
                if getattr(self, name) and strategy != self.strategy:
                    raise UsageError(_goes_with(name, strategy, self.strategy))
            if self.strategy == "entity":
                found.append(entities(self.entities, self.entity_labels))
            elif self.strategy == "keyword":
                found.append(keywords(self.keywords or "tfidf", train, words))
        except ModuleNotFoundError as error:
            raise UsageError(str(error)) from None
        return Together(tuple(found)) if found else None


def _goes_with(name: str, strategy: str, chosen: str) -> str:
    return f"{_option(name)} goes with --strategy {strategy}, not {chosen}"


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@dataclass
class TrainArguments(TrainingArguments):
    """Trainer's own arguments, with some other defaults."""

    output_dir: str = field(
        default="maskft-output", metadata={"help": "folder for checkpoints, model and metrics"}
    )
    report_to: str = field(default="none", metadata={"help": "Trainer's integrations, or none"})
    logging_steps: float = field(default=20, metadata={"help": "report every so many steps"})
    include_num_input_tokens_seen: str = field(
        default="non_padding", metadata={"help": "what tokens/s counts"}
    )
    fused_loss: Literal["on", "off"] = field(
        default="on",
        metadata={"help": "head and loss on the predicted tokens only; off: as Transformers does"},
    )
    packing: str = field(
        default="off",
        metadata={
            "help": "on: batches are rows end to end, as many tokens as the padded batch may have; "
            "or the number of tokens (docs/packing.md)"
        },
    )

    def block(self) -> bool | int:
        """Convert to what ``attach`` takes for ``packing``.

        Raises:
            UsageError: neither on nor off nor a positive number.
        """
        if self.packing in ("on", "off"):
            return self.packing == "on"
        if self.packing.isdecimal() and int(self.packing) > 0:
            return int(self.packing)
        raise UsageError(f"--packing must be on, off or a number of tokens, got {self.packing!r}")


class _Parser(HfArgumentParser):
    """Report an error in one sentence, without 200 lines of usage before it."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} ({self.prog} --help lists the options)")


def parse(
    prog: str,
    description: str,
    kinds: tuple[type, ...],
    argv: list[str],
    models: str = "--model MODEL",
) -> tuple[Any, ...]:
    """Make instances of ``kinds`` from the command line ``argv``; ``models`` is for the usage.

    Raises:
        UsageError: an option that is unknown or does not fit.
        SystemExit: --help.
    """
    usage = f"maskft {prog} {models} --train-file FILE [FILE ...] [options]"
    parser = _Parser(kinds, prog=f"maskft {prog}", usage=usage, description=description)
    try:
        *made, unknown = parser.parse_args_into_dataclasses(
            args=argv, return_remaining_strings=True
        )
    except (ValueError, ImportError) as error:
        raise UsageError(" ".join(str(error).split())) from None
    if unknown:
        parser.error(f"unknown options: {' '.join(unknown)}")
    return tuple(made)
