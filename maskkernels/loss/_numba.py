"""The losses on the CPU: matrix products by torch, what is between them by Numba.

Labelled rows are gathered first; then a chunk of their logits at a time is computed, turned into
its own gradient in place, and multiplied into the gradients of its sources.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskkernels.loss._numba_rows import Chunk, Found, Law, add_rows
from maskkernels.loss._numba_rows import cross_entropy as cross_entropy_rows
from maskkernels.loss.job import (
    LossJob,
    check_capacity,
    check_positions,
    not_finite,
    outside_classes,
)
from maskkernels.runtime.threads import over_rows

_BLOCK = 1 << 22  # bytes of a 16-bit matrix, as float32, that are converted at a time
_CHUNK = 1 << 26  # bytes of logits at a time, and
_ROWS = 256  # the fewest rows for which products with a large weight keep their speed
_BITS = {2: np.int16, 4: np.int32}
_NO_LOGITS = np.empty((0, 0), np.float32)


class Selected(NamedTuple):
    """The labelled rows of a job."""

    slots: np.ndarray  # int64 [R]: which rows of the result they are
    rows: np.ndarray  # int64 [R]: which rows of the input
    labels: np.ndarray  # int64 [R]
    weights: np.ndarray | float  # float64 [R], of tokens; 1.0 where none are given


def _select(job: LossJob) -> Selected:
    labels = job.labels.numpy()
    if job.positions is not None:  # a copy: another thread may write to them after the look
        job = job._replace(positions=job.positions.clone())
    if job.positions is None:
        rows = slots = np.flatnonzero(labels != job.ignore_index)
    else:
        check_positions(job)
        positions = job.positions.numpy()
        if not job.aligned:
            labels = labels[positions] if labels.size else np.empty(positions.size, np.int64)
        slots = np.flatnonzero((positions >= 0) & (labels != job.ignore_index))
        rows = positions[slots]
    labels = labels[slots]
    outside = (labels < 0) | (labels >= job.vocab_size)
    if outside.any():
        place = int(outside.argmax())
        raise outside_classes(job, int(slots[place]), int(labels[place]))
    weights: np.ndarray | float = 1.0
    if job.token_weights is not None:
        weights = job.token_weights.numpy()[slots if job.weights_aligned else rows].astype(float)
        finite = np.isfinite(weights)
        if not finite.all():
            place = int(finite.argmin())
            raise not_finite(job, int(slots[place]), float(weights[place]))
    check_capacity(job, slots.size)
    return Selected(slots, rows, labels, weights)


# Dividing by 0 gives infinity or NaN in torch, and no warning.
@np.errstate(divide="ignore", invalid="ignore")
def cross_entropy(job: LossJob) -> tuple[Tensor, ...]:
    """(loss, count, accuracy, entropy, top_k, and the three gradients or empty tensors)."""
    job = job.detached()
    selected = _select(job)
    count = selected.slots.size
    divisor = _divisor(job, selected)
    asked = Asked(job.input_grad, job.weight_grad, job.bias_grad, job.stored_dtype)
    if job.reduction == "none":
        asked = Asked(False, False, False, job.stored_dtype)
    factors = np.full(count, selected.weights / divisor) if any(asked[:3]) else np.empty(0)
    with torch.autocast("cpu", enabled=False):
        found, gradients = _over_chunks(job, selected, factors, asked)
    if job.reduction == "none":
        loss = torch.zeros(job.rows)
        loss.numpy()[selected.slots] = found.loss * selected.weights
    else:
        loss = _scalar((found.loss * selected.weights).sum() / divisor)
    several = max(count, 1)
    statistics = (
        _scalar((found.rank < 1).sum() / several) if job.accuracy else torch.empty(0),
        _scalar(found.entropy.sum() / several) if job.entropy else torch.empty(0),
        _scalar((found.rank < min(job.top_k, job.vocab_size)).sum() / several)
        if job.top_k
        else torch.empty(0),
    )
    return loss, torch.tensor(count), *statistics, *gradients


@np.errstate(divide="ignore", invalid="ignore")
def cross_entropy_backward(grad: Tensor, job: LossJob) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients, computed from the inputs once more."""
    job = job.detached()
    selected = _select(job)
    grads = grad.detach().double().numpy()
    factors = grads[selected.slots] if job.reduction == "none" else grads / _divisor(job, selected)
    factors = np.full(selected.slots.size, factors * selected.weights)
    asked = Asked(job.input_grad, job.weight_grad, job.bias_grad, job.input.dtype)
    job = job._replace(accuracy=False, entropy=False, top_k=0)
    with torch.autocast("cpu", enabled=False):
        return _over_chunks(job, selected, factors, asked)[1]


def scale(gradients: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply gradients by ``factor`` in place."""
    if factor.item() != 1.0:
        for gradient in gradients:
            gradient.mul_(factor)


def scale_rows(gradient: Tensor, factor: Tensor, job: LossJob) -> None:
    """Multiply the labelled rows of the logits' gradient by ``factor``; the others are zero."""
    if factor.item() != 1.0:
        for row in _select(job.detached()).rows.tolist():
            gradient[row].mul_(factor)


def _scalar(value: Any) -> Tensor:
    return torch.tensor(float(value), dtype=torch.float32)


def _divisor(job: LossJob, selected: Selected) -> float:
    """What the sum of the rows is divided by; as the reference's."""
    weights = np.broadcast_to(selected.weights, selected.slots.shape)
    if job.reduction != "mean" or not weights.any():
        return 1.0
    if job.num_items is not None:
        return np.float64(job.num_items.item())
    if job.class_weights is not None:
        weights = weights * job.class_weights.numpy()[selected.labels]
    return weights.sum(dtype=np.float64)


class Asked(NamedTuple):
    """The gradients to compute, and their dtype."""

    input: bool
    weight: bool
    bias: bool
    dtype: torch.dtype


def _over_chunks(
    job: LossJob, selected: Selected, factors: np.ndarray, asked: Asked
) -> tuple[Found, tuple[Tensor, Tensor, Tensor]]:
    """Compute all labelled rows, a chunk at a time."""
    gradient = asked.input or asked.weight or asked.bias
    count, vocab_size = selected.slots.size, job.vocab_size
    nothing = np.empty(0, np.float32)
    class_weights = nothing
    if job.class_weights is not None:
        class_weights = job.class_weights.contiguous().numpy()
    law = Law(
        job.label_smoothing, job.z_loss, np.float32(job.softcap), np.float32(job.logit_scale),
        float(class_weights.sum(dtype=np.float64)) if class_weights.size else float(vocab_size),
        gradient, job.entropy, job.accuracy or job.top_k > 0,
    )  # fmt: skip
    found = Found(np.zeros(count), np.zeros(count), np.zeros(count, np.int64))
    # A copy: FSDP frees a parameter's storage, and numpy() would pin it.
    bias = nothing if job.bias is None else job.bias.float().clone().numpy()
    work: _Linear | _InPlace | _Logits
    if job.weight is not None:
        work = _Linear(job, job.weight, selected, asked)
    elif job.input.dtype == torch.float32 and job.input.is_contiguous():
        work = _InPlace(job, selected, asked)
    else:
        work = _Logits(job, selected, asked)
    chunks = -(-count // work.rows_at_once)
    size = -(-count // max(chunks, 1))
    for begin in range(0, count, max(size, 1)):
        chunk = slice(begin, min(begin + size, count))
        logits, buffer = work.begin(chunk)
        rows = Chunk(
            logits, buffer, selected.rows[chunk], selected.labels[chunk], factors[chunk], bias,
            class_weights,
        )  # fmt: skip
        here = Found(*(field[chunk] for field in found))
        bounds = np.arange(chunk.stop - begin + 1) * vocab_size
        over_rows(lambda *part, r=rows, f=here: cross_entropy_rows(r, law, f, *part), bounds)
        if gradient:
            work.end(chunk)
    return found, work.gradients()


def _allocate(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory from NumPy, which asks for huge pages: few page faults."""
    return torch.from_numpy(np.empty(shape, _BITS[dtype.itemsize])).view(dtype)


def _zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros that take no memory before something is written among them."""
    return torch.from_numpy(np.zeros(shape, _BITS[dtype.itemsize])).view(dtype)


class _InPlace:
    """Logits whose rows a kernel can read where they are."""

    def __init__(self, job: LossJob, selected: Selected, asked: Asked):
        self.rows_at_once = max(1, selected.slots.size)
        self.logits = job.input.numpy()
        rows, width = job.input.shape
        self.d_input = _zeros((rows if asked.input else 0, width), asked.dtype)
        self.asked = asked

    def begin(self, chunk: slice) -> tuple[np.ndarray, np.ndarray]:
        return self.logits, self.d_input.numpy()

    def end(self, chunk: slice) -> None:
        pass

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        d_input = self.d_input if self.asked.input else torch.empty(0)
        return d_input, torch.empty(0), torch.empty(0)


class _Logits:
    """Logits that are copied to float32, a chunk of labelled rows at a time."""

    def __init__(self, job: LossJob, selected: Selected, asked: Asked):
        self.rows_at_once = max(1, _BLOCK // (4 * job.vocab_size))
        self.input = job.input
        self.rows = torch.from_numpy(selected.rows)
        self.buffer = torch.empty(0)
        self.d_input = job.input.new_empty(0)
        if asked.input:
            self.d_input = _zeros(job.input.shape, asked.dtype)

    def begin(self, chunk: slice) -> tuple[np.ndarray, np.ndarray]:
        self.buffer = self.input.index_select(0, self.rows[chunk]).float()
        return _NO_LOGITS, self.buffer.numpy()

    def end(self, chunk: slice) -> None:
        self.d_input.index_copy_(0, self.rows[chunk], self.buffer.to(self.d_input.dtype))

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.d_input, self.input.new_empty(0), self.input.new_empty(0)


class _Linear:
    """Logits that a matrix product makes of hidden states, a chunk of rows at a time.

    A weight of 16 bits is converted to float32 a block of classes at a time.
    """

    def __init__(self, job: LossJob, weight: Tensor, selected: Selected, asked: Asked):
        self.weight, self.asked = weight, asked
        self.shape = job.input.shape
        self.rows = torch.from_numpy(selected.rows)
        self.x = job.input.index_select(0, self.rows).float()
        self.buffer = torch.empty(0)
        vocab_size, width = weight.shape
        self.rows_at_once = max(1, job.chunk_bytes // (4 * vocab_size))
        if not job.chunk_bytes:
            self.rows_at_once = max(_CHUNK // (4 * vocab_size), _ROWS)
        size = vocab_size if weight.dtype == torch.float32 else max(1, _BLOCK // max(4 * width, 1))
        self.blocks = [slice(v, v + size) for v in range(0, vocab_size, size)]
        self.d_x = _allocate(self.x.shape if asked.input else (0, width))
        self.d_bias = np.zeros(vocab_size if asked.bias else 0)
        kept = asked.weight and self.rows.numel() > 0
        self.d_weight = _allocate(weight.shape if kept else (0, width), asked.dtype)
        self.sums = self.d_weight  # in float32, over chunks

    def begin(self, chunk: slice) -> tuple[np.ndarray, np.ndarray]:
        n = chunk.stop - chunk.start
        if not self.buffer.numel():
            self.buffer = _allocate((n, self.weight.shape[0]))
            if self.d_weight.dtype != torch.float32 and n < self.x.shape[0]:
                self.sums = _allocate(self.d_weight.shape)
        logits = self.buffer[:n]
        for block in self.blocks:
            torch.mm(self.x[chunk], self.weight[block].float().t(), out=logits[:, block])
        return _NO_LOGITS, logits.numpy()

    def end(self, chunk: slice) -> None:
        gradient, x = self.buffer[: chunk.stop - chunk.start], self.x[chunk]
        if self.asked.input:
            for block in self.blocks:
                _add_product(
                    self.d_x[chunk], gradient[:, block], self.weight[block].float(), block.start > 0
                )
        if self.asked.weight:
            for block in self.blocks:
                self._add_to_weight(block, gradient[:, block].t(), x, chunk)
        if self.asked.bias:
            bounds = np.arange(gradient.shape[1] + 1) * gradient.shape[0]
            matrix, total = gradient.numpy(), self.d_bias
            over_rows(lambda *part: add_rows(matrix, total, *part), bounds)

    def _add_to_weight(self, block: slice, gradient: Tensor, x: Tensor, chunk: slice) -> None:
        if self.sums.dtype == torch.float32:
            _add_product(self.sums[block], gradient, x, chunk.start > 0)
            if self.sums is not self.d_weight and chunk.stop == self.x.shape[0]:
                self.d_weight[block] = self.sums[block]
        else:  # one chunk: nothing to add to
            self.d_weight[block] = torch.mm(gradient, x)

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        dtype, asked = self.asked.dtype, self.asked
        d_input, d_weight, d_bias = (torch.empty(0, dtype=dtype) for _ in range(3))
        if asked.input:
            d_input = _zeros(self.shape, dtype).index_copy_(0, self.rows, self.d_x.to(dtype))
        if asked.weight:
            d_weight = self.d_weight if self.rows.numel() else _zeros(self.weight.shape, dtype)
        if asked.bias:
            d_bias = torch.from_numpy(self.d_bias).to(dtype)
        return d_input, d_weight, d_bias


def _add_product(total: Tensor, a: Tensor, b: Tensor, is_begun: bool) -> None:
    """total = a @ b, added to what is there if it ``is_begun``."""
    if is_begun:
        total.addmm_(a, b)
    else:
        torch.mm(a, b, out=total)
