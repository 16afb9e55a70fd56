"""The checks of the losses' arguments."""

import math
from typing import Any

import torch
from torch import Tensor

from maskkernels.loss.job import (
    LossJob,
    check_capacity,
    check_positions,
    not_finite,
    outside_classes,
)
from maskkernels.loss.reference import select, weights_of
from maskkernels.tokens.checks import INTEGERS, check_dense, check_number


def check_transforms(backend: str) -> bool:
    """Say whether a transform of torch.func is active; only the reference runs within one."""
    if torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is None:
        return False
    if backend != "reference":
        raise RuntimeError(
            "the fused losses do not run within the transforms of torch.func (grad, vmap...): "
            "backend='reference' does"
        )
    return True


def check_numbers(
    label_smoothing: float, z_loss: float, softcap: float | None, logit_scale: float
) -> None:
    """Check the numbers of the formula."""
    for name, value in (
        ("label_smoothing", label_smoothing),
        ("z_loss", z_loss),
        ("softcap", 1.0 if softcap is None else softcap),
        ("logit_scale", logit_scale),
    ):
        check_number(name, value)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be between 0 and 1, got {label_smoothing}")
    if not 0 <= z_loss < math.inf:
        raise ValueError(f"z_loss must be finite and not negative, got {z_loss}")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap must be finite and positive, or None, got {softcap}")
    if not -math.inf < logit_scale < math.inf:
        raise ValueError(f"logit_scale must be finite, got {logit_scale}")


def check_float(name: str, tensor: Any, like: Tensor | None = None) -> None:
    """Check the dtype of a tensor of floats, and that it is where ``like`` is."""
    floats = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    if not isinstance(tensor, Tensor) or tensor.dtype not in floats:
        got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a tensor of floats, 16 to 64 bits, got {got}")
    check_dense(name, tensor)
    if like is not None and tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}, the rows are on {like.device}")


def check_labels(name: str, rows: Tensor, labels: Tensor, positions: Tensor | None) -> bool:
    """Check labels and positions; returns whether labels belong to positions."""
    for what, tensor, dtypes in (
        ("labels", labels, INTEGERS),
        ("positions", positions, (torch.int64,)),
    ):
        if tensor is None and what == "positions":
            continue
        if not isinstance(tensor, Tensor) or tensor.dtype not in dtypes:
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            wanted = " or ".join(map(str, dtypes))
            raise TypeError(f"{what} must be a tensor of {wanted}, got {got}")
        check_dense(what, tensor)
        if tensor.device != rows.device:
            raise ValueError(f"{what} is on {tensor.device}, {name} on {rows.device}")
    if positions is not None and positions.dim() != 1:
        raise ValueError(f"positions must be [C], got {tuple(positions.shape)}")
    return _of_positions("labels", labels, name, rows, positions)


def _of_positions(
    what: str, tensor: Tensor, name: str, rows: Tensor, positions: Tensor | None
) -> bool:
    """Return whether a tensor has an entry for each position, not for each row; refuse others."""
    if tensor.shape == rows.shape[:-1]:
        return False
    if positions is not None and tensor.shape == positions.shape:
        return True
    also = "" if positions is None else f" or that of positions, {tuple(positions.shape)}"
    raise ValueError(
        f"{what} must have the shape of {name} without its last dimension, "
        f"{tuple(rows.shape[:-1])}{also}; got {tuple(tensor.shape)}"
    )


def check_token_weights(name: str, rows: Tensor, positions: Tensor | None, weights: Any) -> bool:
    """Check the weights of rows; returns whether they belong to positions."""
    check_float("token_weights", weights, rows)
    if weights.requires_grad and torch.is_grad_enabled():
        raise ValueError("token_weights get no gradient: pass token_weights.detach()")
    return _of_positions("token_weights", weights, name, rows, positions)


def items_tensor(
    num_items: int | float | Tensor | None, device: torch.device, dtype: torch.dtype
) -> Tensor | None:
    """``num_items`` as a 0-d tensor on ``device``."""
    if num_items is None:
        return None
    if isinstance(num_items, Tensor):
        check_dense("num_items", num_items)
        if num_items.dim() or num_items.dtype == torch.bool or num_items.dtype.is_complex:
            raise ValueError(
                "num_items must be a number or a 0-d tensor of one, "
                f"got {num_items.dtype} {tuple(num_items.shape)}"
            )
        if device.type == "cpu" and num_items.device.type not in ("cpu", "meta"):
            raise ValueError(f"num_items is on {num_items.device}, the rows are on the CPU")
        return num_items.detach().to(device=device, dtype=dtype, non_blocking=True)
    if isinstance(num_items, bool) or not isinstance(num_items, (int, float)):
        raise TypeError(f"num_items must be a number or a tensor, got {type(num_items).__name__}")
    check_number("num_items", num_items)
    if not 0 <= num_items < math.inf:
        raise ValueError(f"num_items must be finite and not negative, got {num_items}")
    return torch.full((), float(num_items), device=device, dtype=dtype)


def check_values(job: LossJob) -> None:
    """Look at the values of labels and positions on the CPU, and count for ``capacity``."""
    check_positions(job)
    _, labels, labelled = select(job)
    outside = labelled & ((labels < 0) | (labels >= job.vocab_size))
    if outside.any():
        place = int(outside.long().argmax())
        raise outside_classes(job, place, int(labels[place]))
    weights = weights_of(job, labelled)
    if weights is not None and not weights.isfinite().all():
        place = int(weights.isfinite().long().argmin())
        raise not_finite(job, place, float(weights[place]))
    check_capacity(job, int(labelled.sum()))
