"""Find the checkpoint to resume from: one that is whole, and of this model.

A folder is taken for a checkpoint only if everything in it can be read to its end: a run that was
killed, or ran out of disk, may have left half of one (``maskft.cli.saving`` itself does not).
"""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from maskft.cli.messages import UsageError, say

STATE = "trainer_state.json"  # Trainer writes it last
_NAME = re.compile(r"checkpoint-(\d+)")
_SINGLE = ("model.safetensors", "pytorch_model.bin")  # in the order in which Trainer looks
_SHARDED = tuple(f"{name}.index.json" for name in _SINGLE)
_OTHERS = ("pytorch_model_fsdp*", "global_step*")  # how FSDP and DeepSpeed save weights
_ARCHIVES = ("optimizer*.pt", "scheduler.pt", "rng_state*.pth")  # torch.save writes zip archives
# What may differ between the config of a model and that of its checkpoint
_FREE = re.compile(
    r"_.*|transformers_version|name_or_path|architectures|dtype|torch_dtype|use_cache|output_.*|"
    r"return_dict|problem_type|id2label|label2id|.*_token_id|.*init.*|.*drop.*|.*checkpointing.*"
)

Shapes = dict[str, tuple[int, ...]]


class Damaged(Exception):
    """A checkpoint is not whole, or not of this model; the message says what is wrong with it."""


def checkpoints(output: Path) -> list[Path]:
    """List the folders of ``output`` that are named as checkpoints, in the order of their steps."""
    steps = {
        path: int(found[1])
        for path in output.iterdir()
        if (found := _NAME.fullmatch(path.name)) and path.is_dir()
    }
    return sorted(steps, key=lambda path: steps[path])


def to_resume(given: Any, output: Path) -> Path | None:
    """Find the checkpoint to resume from.

    Args:
        given: a folder; True: the last whole checkpoint in ``output``, where those after it are
            named in a warning; None or False: a new run.

    Raises:
        UsageError: there is none, the given one is not whole, or a new run would mix its
            checkpoints with those of an earlier one.
    """
    found = checkpoints(output)
    if given is None or str(given).lower() in ("false", "none"):
        if found:
            raise UsageError(
                f"{output} holds checkpoints of an earlier run (the last is {found[-1].name}): "
                "--resume_from_checkpoint True goes on with it; a new run needs an --output_dir "
                "without checkpoints"
            )
        return None
    if str(given).lower() != "true":
        folder = Path(given)
        if not folder.is_dir():
            raise UsageError(f"--resume_from_checkpoint {given}: no checkpoint there")
        if (problem := damage(folder)) is not None:
            raise UsageError(f"--resume_from_checkpoint {given}: {problem}")
        return folder
    for folder in reversed(found):
        if (problem := damage(folder)) is None:
            return folder
        say(f"warning: {folder} is not a whole checkpoint and is left out: {problem}")
    which = "whole checkpoint" if found else "checkpoint"
    raise UsageError(f"--resume_from_checkpoint: there is no {which} in {output}")


def damage(folder: Path) -> str | None:
    """Say which file of a checkpoint was not saved to its end; None if all were.

    Reads the names and shapes of tensors, not the tensors.
    """
    try:
        state = _json(folder / STATE)
        if not isinstance(state.get("global_step"), int):
            return f"{STATE} does not say which step it is of"
        tensor_shapes(folder)
    except Damaged as error:
        return str(error)
    for path in (path for pattern in _ARCHIVES for path in folder.glob(pattern)):
        if path.is_file() and not zipfile.is_zipfile(path):
            return f"{path.name} is truncated or damaged"
    return None


def check_fits(folder: Path, model: Any) -> None:
    """Check that a checkpoint is of this model: its config, and the tensors' names and shapes.

    Trainer loads whatever tensors have the model's names and leaves out the others without an
    error, then hands the optimizer the state of other parameters.

    Raises:
        UsageError: saying what differs.
    """
    try:
        if (folder / "config.json").is_file():
            _check_config(_json(folder / "config.json"), model.config)
        _check_shapes(tensor_shapes(folder), model)
    except Damaged as error:
        raise UsageError(
            f"the checkpoint {folder} is not of the model that --model names: {error}"
        ) from None


def tensor_shapes(folder: Path) -> Shapes | None:
    """Read the shapes of a checkpoint's tensors; None for weights in pieces that ranks wrote.

    Raises:
        Damaged: there are no weights, or a file of them is missing, truncated or damaged.
    """
    for name in _SINGLE:
        if (folder / name).is_file():
            return _shapes_in(folder / name)
    for name in _SHARDED:
        if (folder / name).is_file():
            files = _json(folder / name).get("weight_map")
            if not isinstance(files, dict):
                raise Damaged(f"{name} has no weight_map")
            shapes: Shapes = {}
            for file in sorted(set(files.values())):
                shapes |= _shapes_in(folder / file)
            return shapes
    if any(path for pattern in _OTHERS for path in folder.glob(pattern)):
        return None
    raise Damaged("it has no weights")


def _shapes_in(path: Path) -> Shapes:
    if not path.is_file():
        raise Damaged(f"{path.name} is missing")
    try:
        if path.suffix != ".safetensors":
            tensors = torch.load(path, map_location="meta", weights_only=True)
            return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())[:120]
        raise Damaged(f"{path.name} is truncated or damaged ({reason})") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Damaged(f"it has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise Damaged(f"{path.name} cannot be read ({error})") from None
    if not isinstance(found, dict):
        raise Damaged(f"{path.name} does not hold a JSON object")
    return found


def _check_config(saved: dict[str, Any], config: Any) -> None:
    kind = saved.get("model_type")
    if kind != config.model_type:
        raise Damaged(f"its config.json says model_type {kind!r}, not {config.model_type!r}")
    try:
        # What config.json leaves out has the default of its class
        there = json.loads(type(config).from_dict(saved).to_json_string(use_diff=False))
    except (TypeError, ValueError) as error:
        raise Damaged(f"its config.json does not fit ({error})") from None
    here = json.loads(config.to_json_string(use_diff=False))
    for name in sorted(there.keys() & here.keys()):
        if there[name] != here[name] and not _FREE.fullmatch(name):
            raise Damaged(f"{name} is {there[name]!r} in its config.json, not {here[name]!r}")


def _check_shapes(saved: Shapes | None, model: Any) -> None:
    if saved is None:
        return
    own = model.state_dict()
    for name, shape in saved.items():
        if name in own and tuple(own[name].shape) != shape:
            raise Damaged(f"{name} has shape {list(shape)} there, not {list(own[name].shape)}")
    if strange := sorted(saved.keys() - own.keys()):
        raise Damaged(
            f"{len(strange)} of its {len(saved)} tensors are not the model's ({strange[0]}...)"
        )
    stored = {own[name].data_ptr() for name in saved}  # tied weights are saved once
    ignored = getattr(model, "_keys_to_ignore_on_save", None) or ()
    missing = [
        name
        for name, tensor in own.items()
        if name not in saved
        and tensor.data_ptr() not in stored
        and not any(re.search(pattern, name) for pattern in ignored)
    ]
    if missing:
        raise Damaged(
            f"{len(missing)} of the model's {len(own)} tensors are missing ({missing[0]}...)"
        )


def how_to_resume(checkpoint: str, output_dir: str) -> None:
    """Say how to continue a run that was interrupted after it saved ``checkpoint``."""
    last = checkpoints(Path(output_dir))[-1:] == [Path(checkpoint)]
    say(
        f"maskft train: interrupted; its state is in {checkpoint}. The same command with "
        f"--resume_from_checkpoint {True if last else checkpoint} goes on from there."
    )
