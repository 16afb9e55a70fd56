"""Define the options of the command line that tasks add."""

from dataclasses import dataclass, field
from typing import Any

from maskft.cli.config import DataArguments, TrainArguments
from maskft.cli.messages import UsageError

TASKS = ("mlm", "classify", "prompt")


@dataclass
class TaskArguments:
    """Which task, and how its inputs are masked."""

    model: str = field(metadata={"help": "name or folder of a masked language model"})
    task: str = field(default="classify", metadata={"help": " or ".join(TASKS)})
    init_from: str | None = field(
        default=None,
        metadata={
            "help": "folder of a masked language model of the same vocabulary, such as maskft "
            "train writes, whose weights training starts from"
        },
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "run code that comes with the model (off by default)"}
    )
    input_mask_rate: str | None = field(
        default=None,
        metadata={
            "help": "mask this share of the input tokens in training; uniform: a rate for each row"
        },
    )
    template: str | None = field(
        default=None,
        metadata={"help": 'with --task prompt: such as "{text} It was [MASK]."; {pair} for a pair'},
    )
    label_words: list[str] = field(
        default_factory=list,
        metadata={"help": "with --task prompt: label=word for each label, such as 1=good 0=bad"},
    )
    early_stopping: int | None = field(
        default=None,
        metadata={
            "help": "stop when so many evaluations in a row bring nothing better, and keep the best"
        },
    )

    def rate(self) -> float | str | None:
        """Convert ``input_mask_rate`` to what ``MaskInputs`` takes; None: no masks."""
        if self.input_mask_rate in (None, "uniform"):
            return self.input_mask_rate
        try:
            rate = float(str(self.input_mask_rate))
        except ValueError:
            rate = -1.0
        if not 0 <= rate <= 1:
            raise UsageError(
                "--input-mask-rate must be a number in [0, 1] or uniform, got "
                f"{self.input_mask_rate!r}"
            )
        return rate

    def words(self) -> dict[str, str]:
        """Return the label of each word."""
        found = {}
        for pair in self.label_words:
            label, equals, word = pair.rpartition("=")
            if not equals or not label or not word:
                raise UsageError(f"--label-words must be label=word, got {pair!r}")
            if word in found:
                raise UsageError(f"--label-words names the word {word!r} twice")
            found[word] = label
        return found

    def check(self) -> None:
        """Refuse options that do not go together."""
        self.rate()
        if self.task not in TASKS:
            raise UsageError(f"--task must be one of {TASKS}, got {self.task!r}")
        if self.task == "prompt" and not (self.template and self.label_words):
            raise UsageError("--task prompt needs --template and --label-words")
        if self.task != "prompt" and (self.template or self.label_words):
            raise UsageError("--template and --label-words go with --task prompt")
        if self.early_stopping is not None and self.early_stopping < 1:
            raise UsageError(f"--early-stopping must be positive, got {self.early_stopping}")


@dataclass
class TaskDataArguments(DataArguments):
    """Which labelled texts, and how they are split."""

    train_file: list[str] = field(
        default_factory=list, metadata={"help": "files of examples: .jsonl, .csv, .tsv, .parquet"}
    )
    validation_file: list[str] = field(
        default_factory=list, metadata={"help": "likewise; else a share of the training examples"}
    )
    test_file: list[str] = field(default_factory=list, metadata={"help": "likewise"})
    label_column: str = field(default="label", metadata={"help": "the column that holds the label"})
    max_length: int | None = field(
        default=None, metadata={"help": "tokens in a row, at most; longer texts are cut"}
    )
    shots: int | None = field(
        default=None,
        metadata={"help": "train on so many examples of each label, chosen by --seed"},
    )

    def check(self) -> None:
        super().check()
        if self.dataset and (self.validation_file or self.test_file):
            raise UsageError("--validation-file and --test-file go with --train-file")
        if self.shots is not None and self.shots < 1:
            raise UsageError(f"--shots must be positive, got {self.shots}")


def stop_early(args: TrainArguments, patience: int, has_validation: bool) -> Any:
    """Have Trainer keep the best model, and return the callback that stops it.

    Raises:
        UsageError: nothing to evaluate on.
    """
    from transformers import EarlyStoppingCallback, IntervalStrategy
    from transformers.trainer_utils import SaveStrategy

    if not has_validation:
        raise UsageError("--early-stopping needs a validation split (--validation-fraction)")
    if args.eval_strategy == IntervalStrategy.NO:
        args.eval_strategy = IntervalStrategy.EPOCH
    args.save_strategy = SaveStrategy(args.eval_strategy.value)
    args.save_steps = args.eval_steps or args.save_steps
    args.load_best_model_at_end = True
    args.metric_for_best_model = args.metric_for_best_model or "loss"
    if args.greater_is_better is None:
        args.greater_is_better = not args.metric_for_best_model.endswith("loss")
    return EarlyStoppingCallback(patience)
