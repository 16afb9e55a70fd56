"""``maskft train``: masked fine-tuning, scored on held-out text before and after."""

import json
import platform
from argparse import ArgumentError, ArgumentParser
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import PrinterCallback, ProgressCallback, set_seed

from maskft.cli.checkpoints import check_fits, how_to_resume, to_resume
from maskft.cli.config import (
    DataArguments,
    MaskingArguments,
    ModelArguments,
    TrainArguments,
    parse,
)
from maskft.cli.data import load_texts, row_length, tokenize
from maskft.cli.evaluate import bound_scores, masked_scores
from maskft.cli.interrupt import Interrupted, StopOnInterrupt
from maskft.cli.messages import UsageError, say, shown
from maskft.cli.models import load
from maskft.cli.progress import Progress
from maskft.cli.saving import SteadyTrainer, disk_errors, run_folder, writable, write_text
from maskft.fuse import fuse_loss
from maskft.trainer.attach import attach

HELD_OUT = ("validation", "test")


def train(
    model_args: ModelArguments,
    data_args: DataArguments,
    masking_args: MaskingArguments,
    args: TrainArguments,
) -> dict[str, Any]:
    """Fine-tune a masked language model and return what is also written to metrics.json.

    The model, its tokenizer and metrics.json go to ``args.output_dir``, checkpoints below it. One
    run at a time trains in a folder, and a new one in a folder without checkpoints. A checkpoint is
    whole or not there, whenever a run is killed or the disk is full.

    Raises:
        UsageError: a mistake of the user's, found before training where that is possible: also a
            checkpoint to resume from that is damaged, or of another model.
        Interrupted: SIGINT or SIGTERM arrived; a checkpoint was saved.
    """
    data_args.check()
    masking_args.sides(data_args)
    masking_args.passes()
    if masking_args.strategy == "diffusion" and args.fused_loss != "on":
        raise UsageError("--strategy diffusion weights the loss, which needs --fused-loss on")
    args.block()
    output = writable(args.output_dir)  # after what can be refused without it
    with ExitStack() as stack:
        with args.main_process_first(local=False):
            if args.process_index == 0:
                stack.enter_context(run_folder(output))
            resume = to_resume(args.resume_from_checkpoint, output)
        return _train(model_args, data_args, masking_args, args, output, resume)


def _train(
    model_args: ModelArguments,
    data_args: DataArguments,
    masking_args: MaskingArguments,
    args: TrainArguments,
    output: Path,
    resume: Path | None,
) -> dict[str, Any]:
    sides = masking_args.sides(data_args)
    block = args.block()
    set_seed(args.seed)  # a fresh head is the same every time
    model, tokenizer = load(model_args.model, model_args.trust_remote_code)
    if resume is not None:
        check_fits(resume, model)
    if args.fused_loss == "on":
        try:
            fuse_loss(model, label_smoothing=args.label_smoothing_factor)
        except TypeError as error:
            raise UsageError(f"{error}; --fused-loss off trains it as it is") from None
        args.label_smoothing_factor = 0.0  # not Trainer's any more
    collator = masking_args.collator(tokenizer, args.seed)
    diffusion = masking_args.strategy == "diffusion"
    texts = load_texts(data_args)
    length = row_length(tokenizer, model, data_args.max_length)
    annotator = masking_args.annotator(texts["train"])
    rows = {
        name: tokenize(
            split, tokenizer, length, annotator, sides, data_args.stride, data_args.num_proc
        )
        for name, split in texts.items()
    }
    say(
        "  ".join(f"{name}: {len(texts[name]):,} texts, {len(rows[name]):,} rows" for name in texts)
        + f"  of at most {length} tokens"
    )
    try:
        collator([rows["train"][0]])
    except ValueError as error:
        raise UsageError(str(error)) from None
    progress, stop = Progress(), StopOnInterrupt()
    args.disable_tqdm = True
    args.dataloader_pin_memory = args.dataloader_pin_memory and torch.accelerator.is_available()
    trainer = SteadyTrainer(
        model=model,
        args=args,
        train_dataset=rows["train"],
        eval_dataset=rows.get("validation"),
        data_collator=collator,
        processing_class=tokenizer,
        callbacks=[progress],
        stop=stop,
    )
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    try:
        attach(trainer, packing=block)
    except ValueError as error:
        raise UsageError(f"--packing {args.packing}: {error}") from None
    held_out = [name for name in HELD_OUT if name in rows]

    def scores() -> dict[str, dict[str, float]]:
        size, passes = args.per_device_eval_batch_size, masking_args.passes()
        if diffusion:
            return {
                name: bound_scores(trainer.model, rows[name], collator, size, passes)
                for name in held_out
            }
        return {name: masked_scores(trainer.model, rows[name], collator, size) for name in held_out}

    before = scores()
    for name, score in before.items():
        kind = "bound" if diffusion else "loss"
        say(f"before training: {name} {kind} {score[kind]:.4f}, accuracy {score['accuracy']:.2%}")
    with disk_errors(output):
        result = trainer.train_and_save(resume)  # before the scores, which take a while
        after = scores()
        metrics = {
            "before": before,
            "after": after,
            "train": {
                "loss": result.training_loss,
                "steps": trainer.state.global_step,
                "tokens_per_second": progress.tokens_per_second,
                "seconds": result.metrics["train_runtime"],
            },
            "texts": {name: len(split) for name, split in texts.items()},
            "rows": {name: len(split) for name, split in rows.items()},
            "max_length": length,
            "seed": args.seed,
            "model": asdict(model_args),
            "data": asdict(data_args),
            "masking": asdict(masking_args),
            "learning_rate": args.learning_rate,
            "batch_size": args.per_device_train_batch_size,
            "fused_loss": args.fused_loss,
            "packing": args.packing,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("maskkernels", "torch", "transformers", "numba")},
        }
        if trainer.is_world_process_zero():
            write_text(output / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    return metrics


def score_table(metrics: dict[str, Any]) -> Table:
    """Lay out the held-out scores before and after training."""
    bound = metrics["masking"]["strategy"] == "diffusion"
    names = ("bound", "perplexity_bound") if bound else ("loss", "perplexity")
    what = "bound on the negative log-likelihood" if bound else "masked tokens"
    table = Table(title=f"{what} of held-out text")
    both = ("bound", "perplexity bound") if bound else ("cross-entropy", "perplexity")
    for heading in ("split", "", *both, "accuracy", "tokens"):
        table.add_column(heading, justify="left" if heading in ("split", "") else "right")
    for name in metrics["before"]:
        for when in ("before", "after"):
            score = metrics[when][name]
            table.add_row(
                name if when == "before" else "",
                when,
                f"{score[names[0]]:.4f}",
                f"{score[names[1]]:,.1f}",
                f"{score['accuracy']:.2%}",
                f"{score['tokens']:,}",
            )
    return table


def main(argv: list[str]) -> int:
    reader = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    reader.add_argument("--task", default="mlm")
    try:
        chosen, rest = reader.parse_known_args(argv)
    except ArgumentError as error:
        raise UsageError(str(error)) from None
    if chosen.task != "mlm":
        from maskft.cli.task import main as train_for_task  # other commands need none of it

        return train_for_task(argv)
    kinds = (ModelArguments, DataArguments, MaskingArguments, TrainArguments)
    parsed = parse("train", f"{__doc__} --task classify or prompt: for a task.", kinds, rest)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        metrics = train(*parsed)
    except Interrupted as error:
        how_to_resume(error.checkpoint, parsed[-1].output_dir)
        return error.status
    console = Console(width=None)
    if metrics["before"]:
        console.print(score_table(metrics))
    output = parsed[-1].output_dir
    print(f"model and metrics.json are in {shown(output)}")
    return 0
