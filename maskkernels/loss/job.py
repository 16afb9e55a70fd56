"""What every loss backend is handed."""

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor


class LossJob(NamedTuple):
    """The checked arguments of both losses.

    ``input`` is the hidden states [N, H] where there is a ``weight``, and the logits [N, V] where
    there is none. ``labels`` belong to the rows of ``input`` or, where ``aligned``, to
    ``positions``; so do ``token_weights`` where ``weights_aligned``. Numbers that are not given:
    ``softcap``, ``top_k`` and ``chunk_bytes`` are 0, ``capacity`` is -1. The three ``*_grad`` say
    which gradients the backward will ask for.
    """

    input: Tensor
    weight: Tensor | None
    bias: Tensor | None
    labels: Tensor  # int64 [N], or [C] where aligned
    positions: Tensor | None  # int64 [C]
    class_weights: Tensor | None  # float32 (float64 with a float64 input) [V]
    token_weights: Tensor | None  # like class_weights, [N], or [C] where weights_aligned
    num_items: Tensor | None  # 0-d, like class_weights
    aligned: bool
    weights_aligned: bool
    ignore_index: int
    label_smoothing: float
    z_loss: float
    softcap: float
    logit_scale: float
    reduction: str
    accuracy: bool
    entropy: bool
    top_k: int
    capacity: int
    chunk_bytes: int
    input_grad: bool
    weight_grad: bool
    bias_grad: bool

    def detached(self) -> "LossJob":
        """The same with tensors that autograd does not follow."""
        tensors: dict[str, Any] = {
            name: value.detach()
            for name, value in self._asdict().items()
            if isinstance(value, Tensor)
        }
        return self._replace(**tensors)

    @property
    def vocab_size(self) -> int:
        return self.input.shape[1] if self.weight is None else self.weight.shape[0]

    @property
    def stored_dtype(self) -> torch.dtype:
        """Of gradients that wait for the backward: a loss scale may still lift them."""
        return torch.float32 if self.input.dtype == torch.float16 else self.input.dtype

    @property
    def rows(self) -> int:
        """How many losses reduction="none" gives."""
        return self.input.shape[0] if self.positions is None else self.positions.shape[0]


# Found at import: torch 2.11 cannot trace the question.
_AUTOCAST_KINDS = tuple(
    kind
    for kind in ("cpu", "cuda", "hpu", "mps", "mtia", "xla", "xpu")
    if torch.amp.is_autocast_available(kind)
)


def is_autocast_on(kind: str) -> bool:
    """Whether autocast is enabled on a kind of device that may know none ("meta")."""
    return kind in _AUTOCAST_KINDS and torch.is_autocast_enabled(kind)


def no_autocast(kind: str) -> contextlib.AbstractContextManager[Any]:
    """Disable autocast, on a kind of device that may know none ("meta")."""
    if kind in _AUTOCAST_KINDS:
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


def check_positions(job: LossJob) -> None:
    """Raise unless positions are rows of the input, ascending, then -1."""
    if job.positions is None or not job.positions.numel():
        return
    positions, n = job.positions, job.input.shape[0]
    ascending = (positions[1:] > positions[:-1]) | (positions[1:] == -1)
    padded = (positions[:-1] >= 0) | (positions[1:] == -1)
    if not (ascending & padded).all() or positions.min() < -1 or positions.max() >= n:
        raise ValueError(f"positions must be rows in [0, {n}), ascending, then -1 to the end")


def outside_classes(job: LossJob, place: int, label: int) -> ValueError:
    """The error for a label that is no class; ``place`` counts rows of the result."""
    if job.positions is not None and not job.aligned:
        place = int(job.positions[place])
    return ValueError(
        f"flattened labels[{place}] is {label}, outside the classes [0, {job.vocab_size}) "
        f"and not ignore_index={job.ignore_index}"
    )


def not_finite(job: LossJob, place: int, weight: float) -> ValueError:
    """The error for the weight of a labelled row; ``place`` counts rows of the result."""
    if job.positions is not None and not job.weights_aligned:
        place = int(job.positions[place])
    return ValueError(
        f"flattened token_weights[{place}] is {weight} as float32: weights of labelled rows must "
        "be finite"
    )


def check_capacity(job: LossJob, count: int) -> None:
    """Raise if more than ``capacity`` rows are labelled."""
    if 0 <= job.capacity < count:
        raise ValueError(f"{count} rows are labelled, more than capacity={job.capacity}")
