"""``maskft doctor``: report what fuse_loss does to a model, which backend runs, and why."""

import argparse
import inspect
from typing import Any

import torch
import transformers

from maskft.cli.messages import shown
from maskft.cli.models import outline
from maskft.fuse import fuse_loss
from maskft.fuse.check import compare
from maskft.fuse.head import Head, read
from maskkernels.backend import BACKENDS, resolve, why_not


def examine(model: Any, device: torch.device) -> list[tuple[str, str]]:
    """List (heading, finding) about a model that is on ``device`` or would be."""
    lines = []
    try:
        head = read(model)
    except TypeError as error:
        return [("fused", f"no: {error}")]
    lines += [
        ("fused", _where(model, head)),
        ("rows", _rows(model, head)),
        ("logits", _logits(head)),
        ("accumulation", _accumulation(model, head)),
    ]
    chosen = resolve("auto", device)
    lines.append(("backend", f"{chosen}, for tensors on {device.type}"))
    for name in BACKENDS:
        if reason := why_not(name, device):
            lines.append(("", f"not {name}: {reason}"))
    return lines


def _where(model: Any, head: Head) -> str:
    if head.rows_because:
        return (
            f"yes, on logits: {head.rows_because}; the model decodes the predicted rows, and "
            "masked_cross_entropy follows"
        )
    size = " x ".join(map(str, model.get_output_embeddings().weight.shape))
    return f"yes, in the decoder: linear_cross_entropy with its weight, {size}"


def _rows(model: Any, head: Head) -> str:
    part = "decoder" if model.base_model is model else "head"
    what = "the next label" if head.shift else "its own label"
    return f"the {part} and the loss see the predicted ones only; each predicts {what}"


def _accumulation(model: Any, head: Head) -> str:
    fused = "num_items_in_batch divides the loss"
    takes = inspect.signature(type(model).forward).parameters.values()
    accepts = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes)
    if not getattr(type(model), "accepts_loss_kwargs", accepts):  # Trainer asks the same
        return f"{fused}; in the stock model every step counts the same, however few its labels"
    if head.calls_loss_function:
        return f"{fused}, as in the stock model"
    return (
        f"{fused}; the stock model ignores it, and Trainer multiplies its loss and gradients by "
        "the accumulation steps"
    )


def _logits(head: Head) -> str:
    parts = []
    if head.scale != 1:
        parts.append(f"scaled by {head.scale:g}")
    if head.softcap:
        parts.append(f"capped at {head.softcap:g}")
    if head.bias:
        parts.append(f"with {head.bias} added")
    return ", ".join(parts) or "as the decoder gives them"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("maskft doctor", description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="name or folder of a model")
    parser.add_argument(
        "--check", action="store_true",
        help="load the weights, and compare loss and gradients with stock on random tokens",
    )  # fmt: skip
    parser.add_argument("--trust-remote-code", action="store_true", help="run the model's own code")
    args = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    status = 0
    for name in args.models:
        model = outline(name, args.trust_remote_code, args.check)
        lines = examine(model, device)
        covered = len(lines) > 1
        if args.check and covered:
            difference = compare(fuse_loss(model.to(device)))
            lines.append(("check", f"{'agrees' if difference.agrees else 'DIFFERS'}: {difference}"))
            status = status or int(not difference.agrees)
        status = status or int(not covered)
        print(f"{type(model).__name__} ({shown(name)})")
        for heading, text in lines:
            print(f"  {heading:<13}{text}")
    return status
