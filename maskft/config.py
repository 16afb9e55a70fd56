"""The options of the command line, as dataclasses that HfArgumentParser reads."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NoReturn

from transformers import HfArgumentParser, TrainingArguments

from maskft.cli import UsageError
from maskft.collator import RNGS, STRATEGIES
from maskft.schedule import parse_schedule


@dataclass
class ModelArguments:
    """Which model."""

    model: str = field(metadata={"help": "name or folder of a masked language model"})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "run code that comes with the model; off unless asked"}
    )


@dataclass
class DataArguments:
    """Which text, and how it is split."""

    train_file: list[str] = field(
        default_factory=list,
        metadata={"help": "files of text: .txt (a row a line), .jsonl or .json, .parquet"},
    )
    dataset: str | None = field(
        default=None, metadata={"help": "folder written by datasets' save_to_disk"}
    )
    text_column: str = field(default="text", metadata={"help": "the column that holds the text"})
    max_length: int | None = field(
        default=None,
        metadata={"help": "tokens in a row, at most; longer texts go on in rows of their own"},
    )
    validation_fraction: float = field(
        default=0.05,
        metadata={"help": "share of texts held out; which ones, a hash of each text decides"},
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


@dataclass
class MaskingArguments:
    """What is masked."""

    strategy: str = field(default="random", metadata={"help": " or ".join(STRATEGIES)})
    mlm_probability: float = field(default=0.15, metadata={"help": "share of tokens to predict"})
    mask_replace_prob: float = field(
        default=0.8, metadata={"help": "share of those that become the mask token"}
    )
    random_replace_prob: float = field(
        default=0.1, metadata={"help": "share of those that become a random token"}
    )
    entities: str | None = field(
        default=None,
        metadata={
            "help": "with --strategy entity: a file with a name a line, or spacy:PIPELINE (such as "
            "spacy:en_core_web_sm)"
        },
    )
    keywords: str = field(
        default="tfidf",
        metadata={
            "help": "with --strategy keyword: tfidf (of the training texts), yake, or a file with "
            "word, tab, weight a line"
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
        """The collator these options describe.

        Raises:
            UsageError: an option or the tokenizer does not fit.
        """
        from maskft.collator import DataCollatorForLanguageModeling

        try:
            return DataCollatorForLanguageModeling(
                tokenizer,
                mlm_probability=self.mlm_probability,
                mask_replace_prob=self.mask_replace_prob,
                random_replace_prob=self.random_replace_prob,
                seed=seed,
                rng=self.rng,
                strategy=self.strategy,
                selection=self.selection,
                schedule=parse_schedule(self.rate_schedule) if self.rate_schedule else None,
            )
        except ValueError as error:
            raise UsageError(str(error)) from None

    def annotator(self, texts: Sequence[str]) -> Any:
        """What adds the strategy's columns to tokenized texts; None where it needs none.

        Args:
            texts: the training texts, for the weights of words.

        Raises:
            UsageError: something is missing: an option, a file, a package.
        """
        if self.strategy == "entity":
            return _entities(self.entities)
        return _keywords(self.keywords, texts) if self.strategy == "keyword" else None


def _entities(source: str | None) -> Any:
    from maskft.annotate import Entities, Gazetteer, SpacyEntities

    if source is None:
        raise UsageError(
            "--strategy entity needs --entities: a file with a name a line, or spacy:PIPELINE"
        )
    if source.startswith("spacy:"):
        spacy, name = _extra("spacy", "spacy"), source.partition(":")[2]
        unneeded = ["parser", "tagger", "lemmatizer", "attribute_ruler"]
        try:
            return Entities(SpacyEntities(spacy.load(name, exclude=unneeded)))
        except OSError as error:
            raise UsageError(f"--entities {source}: {' '.join(str(error).split())}") from None
    try:
        return Entities(Gazetteer(_lines("--entities", source)))
    except ValueError as error:
        raise UsageError(f"--entities {source}: {error}") from None


def _keywords(source: str, texts: Sequence[str]) -> Any:
    from maskft.annotate import Keywords, WordWeights, YakeWeights, tfidf_weights

    if source == "tfidf":
        _extra("sklearn", "keywords")
        return Keywords(tfidf_weights(texts))
    if source == "yake":
        return Keywords(YakeWeights(_extra("yake", "keywords").KeywordExtractor(n=1, top=1000)))
    weights = {}
    for number, line in enumerate(_lines("--keywords", source), 1):
        word, _, weight = line.rpartition("\t")
        try:
            weights[word.strip().lower()] = float(weight)
        except ValueError:
            weights[""] = -1.0
        if not word.strip() or not 0 <= weights[word.strip().lower()] < float("inf"):
            raise UsageError(f"--keywords {source}: line {number} is not word, tab, weight")
    return Keywords(WordWeights(weights))


def _extra(module: str, extra: str) -> Any:
    """An optional package."""
    try:
        return import_module(module)
    except ImportError:
        raise UsageError(
            f"this needs {module}, which is not installed: pip install 'maskkernels[{extra}]'"
        ) from None


def _lines(option: str, name: str) -> list[str]:
    try:
        return [line for line in Path(name).read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{option} {name}: {error}") from None


@dataclass
class TrainArguments(TrainingArguments):
    """Trainer's own arguments, with a few defaults of ours."""

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
        """What ``attach`` takes for ``packing``.

        Raises:
            UsageError: neither on nor off nor a positive number.
        """
        if self.packing in ("on", "off"):
            return self.packing == "on"
        if self.packing.isdecimal() and int(self.packing) > 0:
            return int(self.packing)
        raise UsageError(f"--packing must be on, off or a number of tokens, got {self.packing!r}")


class _Parser(HfArgumentParser):
    """Says what is wrong in one sentence, without the 200 lines of usage before it."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} ({self.prog} --help lists the options)")


def parse(prog: str, description: str, kinds: tuple[type, ...], argv: list[str]) -> tuple[Any, ...]:
    """Instances of ``kinds`` from the command line ``argv``.

    Raises:
        UsageError: an option that is unknown or does not fit.
        SystemExit: --help.
    """
    usage = f"maskft {prog} --model MODEL --train-file FILE [FILE ...] [options]"
    parser = _Parser(kinds, prog=f"maskft {prog}", usage=usage, description=description)
    try:
        return parser.parse_args_into_dataclasses(args=argv)
    except (ValueError, ImportError) as error:
        raise UsageError(" ".join(str(error).split())) from None


def say(text: str) -> None:
    """A line for the person who waits, on standard error; standard output is for results."""
    print(text, file=sys.stderr, flush=True)
