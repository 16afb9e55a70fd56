"""maskft train --task: fine-tune for a task, scored on held-out examples.

    maskft train --task classify --model bert-base-uncased --train-file reviews.csv
    maskft train --task prompt --model bert-base-uncased --train-file reviews.csv --shots 16 \\
        --template "{text} It was [MASK]." --label-words 1=good 0=bad
"""

import json
import platform
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, PrinterCallback, ProgressCallback, set_seed

from maskft.cli.checkpoints import check_fits, how_to_resume, to_resume
from maskft.cli.config import TrainArguments, parse
from maskft.cli.data import row_length
from maskft.cli.evaluate import Rows
from maskft.cli.interrupt import Interrupted, StopOnInterrupt
from maskft.cli.messages import UsageError, say, shown
from maskft.cli.models import load, load_classifier, load_tokenizer
from maskft.cli.progress import Progress
from maskft.cli.saving import SteadyTrainer, disk_errors, run_folder, writable, write_text
from maskft.cli.task_config import TaskArguments, TaskDataArguments, stop_early
from maskft.cli.task_data import load_examples
from maskft.collate.inputs import MaskInputs
from maskft.extras import require
from maskft.fuse import fuse_loss
from maskft.prompt import Template
from maskft.tasks.classify import Classify
from maskft.tasks.prompt import Prompt
from maskft.tasks.scores import majority, scores
from maskft.trainer.attach import attach

HELD_OUT = ("validation", "test")


class TaskTrainer(SteadyTrainer):
    """Score the validation examples at every evaluation, so that training can stop by a score."""

    score: Any = None  # from the name of a split to its scores

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        found = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        if metric_key_prefix == "eval" and self.score is not None:
            reached = self.score("validation")
            found.metrics.update({f"eval_{name}": value for name, value in reached.items()})
        return found


def train_task(
    task_args: TaskArguments,
    data_args: TaskDataArguments,
    args: TrainArguments,
    output: Path,
    resume: Path | None,
) -> dict[str, Any]:
    """Fine-tune for a task and return what is also written to metrics.json.

    Raises:
        UsageError: a mistake of the user's, found before training where that is possible.
        Interrupted: SIGINT or SIGTERM arrived; a checkpoint was saved.
    """
    examples, labels = load_examples(data_args)
    every = len(examples["train"])
    if data_args.shots is not None:
        try:
            examples["train"] = examples["train"].few(data_args.shots, args.seed)
        except ValueError as error:
            raise UsageError(f"--shots {data_args.shots}: {error}; labels are {labels}") from None
    callbacks: list[Any] = [progress := Progress()]
    if task_args.early_stopping is not None:
        callbacks.append(stop_early(args, task_args.early_stopping, "validation" in examples))
    set_seed(args.seed)  # a fresh head is the same every time
    model, task = _model_and_task(task_args, data_args, args, labels)
    if resume is not None:
        check_fits(resume, model)
    rows = {name: task.rows(split) for name, split in examples.items()}
    say("  ".join(f"{name}: {len(split):,} examples" for name, split in examples.items()))
    stop = StopOnInterrupt()
    args.disable_tqdm = True
    args.dataloader_pin_memory = args.dataloader_pin_memory and torch.accelerator.is_available()
    trainer = TaskTrainer(
        model=model,
        args=args,
        train_dataset=_dataset(rows["train"]),
        eval_dataset=_dataset(rows["validation"]) if "validation" in rows else None,
        data_collator=_collator(task, task_args, args.seed),
        processing_class=load_tokenizer(task_args.model, task_args.trust_remote_code),
        callbacks=callbacks,
        stop=stop,
    )
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    if isinstance(trainer.data_collator, MaskInputs):
        attach(trainer)

    def score(name: str) -> dict[str, Any]:
        size = args.per_device_eval_batch_size
        predicted = task.predict(trainer.model, examples[name], size)
        return scores(examples[name].labels, predicted, len(labels))

    trainer.score = score
    held_out = [name for name in HELD_OUT if name in examples]
    before = {name: score(name) for name in held_out}
    with disk_errors(output):
        result = trainer.train_and_save(resume)
        metrics = {
            "before": before,
            "after": {name: score(name) for name in held_out},
            "majority": {
                name: majority(examples["train"].labels, examples[name].labels, len(labels))
                for name in held_out
            },
            "train": {
                "loss": result.training_loss,
                "steps": trainer.state.global_step,
                "examples": len(examples["train"]),
                "of": every,
                "tokens_per_second": progress.tokens_per_second,
                "seconds": result.metrics["train_runtime"],
            },
            "labels": labels,
            "seed": args.seed,
            "task": asdict(task_args),
            "data": asdict(data_args),
            "learning_rate": args.learning_rate,
            "batch_size": args.per_device_train_batch_size,
            "versions": {"python": platform.python_version()}
            | {n: version(n) for n in ("maskkernels", "torch", "transformers", "scikit-learn")},
        }
        if trainer.is_world_process_zero():
            write_text(output / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    return metrics


def _model_and_task(
    task_args: TaskArguments, data_args: TaskDataArguments, args: TrainArguments, labels: list[str]
) -> tuple[Any, Classify | Prompt]:
    """Load the model, and make the task for it."""
    trust = task_args.trust_remote_code
    tokenizer = load_tokenizer(task_args.model, trust)
    weights = task_args.init_from or task_args.model
    if task_args.init_from is not None:
        _check_adapted(task_args.init_from, tokenizer, trust)
    if task_args.task == "classify":
        model = load_classifier(weights, labels, trust)
        return model, Classify(tokenizer, row_length(tokenizer, model, data_args.max_length))
    model, _ = load(weights, trust)
    words = task_args.words()
    if set(words.values()) != set(labels):
        raise UsageError(
            f"--label-words has words for {sorted(set(words.values()))}, and the training labels "
            f"are {labels}"
        )
    try:
        length = row_length(tokenizer, model, data_args.max_length)
        template = Template(task_args.template or "", words, tokenizer, length)
        known = {"text"} | ({"pair"} if data_args.pair_column else set())
        if set(template.fields) - known:
            raise ValueError(f"the fields are {sorted(known)}, got {template.fields}")
    except (TypeError, ValueError) as error:
        raise UsageError(f"--template: {error}") from None
    if args.fused_loss == "on":
        try:
            fuse_loss(model, label_smoothing=args.label_smoothing_factor)
        except TypeError as error:
            raise UsageError(f"{error}; --fused-loss off trains it as it is") from None
        args.label_smoothing_factor = 0.0  # not Trainer's any more
    return model, Prompt(template, labels)


def _check_adapted(folder: str, tokenizer: Any, trust_remote_code: bool) -> None:
    """Refuse weights that are not a masked language model's, or of another vocabulary."""
    own = load_tokenizer(folder, trust_remote_code)
    kinds = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code).architectures
    if not any("MaskedLM" in kind for kind in kinds or []):
        raise UsageError(f"--init-from {folder} is {kinds}, not a masked language model")
    if own.get_vocab() != tokenizer.get_vocab():
        raise UsageError(
            f"--init-from {folder} has another vocabulary than --model: {len(own)} tokens and "
            f"{len(tokenizer)}"
        )


def _collator(task: Classify | Prompt, task_args: TaskArguments, seed: int) -> Any:
    rate = task_args.rate()
    if rate is None:
        return task.collator()
    return MaskInputs(task.collator(), rate, rng="sample", seed=seed, mask_only=task.mask_only)


def _dataset(rows: list[dict[str, Any]]) -> Rows:
    return Rows(rows, range(len(rows)))


def score_table(metrics: dict[str, Any]) -> Table:
    """Lay out the held-out scores: always the most frequent label, before and after training."""
    table = Table(title="held-out examples")
    for heading in ("split", "", "accuracy", "macro-F1", "rows"):
        table.add_column(heading, justify="left" if heading in ("split", "") else "right")
    kinds = {"majority": "most frequent label", "before": "before", "after": "after"}
    for name in metrics["after"]:
        for i, (kind, words) in enumerate(kinds.items()):
            score = metrics[kind][name]
            table.add_row(
                "" if i else name,
                words,
                f"{score['accuracy']:.2%}",
                f"{score['macro_f1']:.2%}",
                f"{score['rows']:,}",
            )
    return table


def main(argv: list[str]) -> int:
    kinds = (TaskArguments, TaskDataArguments, TrainArguments)
    description = "fine-tune for a task; without --task, masked language modelling"
    task_args, data_args, args = parse("train", description, kinds, argv)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    task_args.check()
    data_args.check()
    if args.packing != "off":
        raise UsageError(f"--packing goes with --task mlm, not {task_args.task}")
    try:
        require(["sklearn"], "tasks")
    except ModuleNotFoundError as error:
        raise UsageError(str(error)) from None
    output = writable(args.output_dir)
    try:
        with ExitStack() as stack:
            with args.main_process_first(local=False):
                if args.process_index == 0:
                    stack.enter_context(run_folder(output))
                resume = to_resume(args.resume_from_checkpoint, output)
            metrics = train_task(task_args, data_args, args, output, resume)
    except Interrupted as error:
        how_to_resume(error.checkpoint, args.output_dir)
        return error.status
    if metrics["after"]:
        Console(width=None).print(score_table(metrics))
    print(f"model and metrics.json are in {shown(args.output_dir)}")
    return 0
