"""The options of the command line, as dataclasses that HfArgumentParser reads."""

import sys
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from transformers import HfArgumentParser, TrainingArguments

from maskft.cli import UsageError
from maskft.collator import RNGS, STRATEGIES


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
            )
        except ValueError as error:
            raise UsageError(str(error)) from None


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
