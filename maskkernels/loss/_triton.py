"""The losses on the GPU: matrix products by torch, what is between them by one kernel.

A program reads a row of logits twice: for its maximum and the sum of its exponentials, and for its
gradient, which it writes. Nothing waits for the host, sums have one order, and no address depends
on an unchecked label: a row whose label is no class gets NaN.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from maskkernels.loss.job import LossJob, no_autocast
from maskkernels.loss.reference import divisor_of

BLOCK = 4096  # classes looked at together
_CHUNK = 1 << 29  # bytes of logits at a time
_ROWS = 1024, 4096  # of a chunk, unless its bytes are given
IGNORED, NO_CLASS = -1, -2  # in place of a label


@triton.jit
def _tanh(x):
    e = tl.exp(-2.0 * tl.abs(x))
    large = (1.0 - e) / (1.0 + e)
    square = x * x
    p = -5.70498872745e-3 * square + 2.06390887954e-2
    p = p * square - 5.37397155531e-2
    p = p * square + 1.33314422036e-1
    p = p * square - 3.33332819422e-1
    return tl.where(tl.abs(x) < 0.625, p * square * x + x, tl.where(x < 0.0, 0.0 - large, large))


@triton.jit
def _adjust(x, bias, logit_scale, softcap, HAS_CAP: tl.constexpr):
    """Raw products to logits, in float32."""
    x = (x.to(tl.float32) + bias) * logit_scale
    if HAS_CAP:
        x = softcap * _tanh(x / softcap)
    return x


@triton.jit
def _logits(
    row_ptr, bias_ptr, offs, ok, logit_scale, softcap,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr,
):  # fmt: skip
    """A block of logits, -inf past the end."""
    x = tl.load(row_ptr + offs, mask=ok, other=0.0)
    bias = 0.0
    if HAS_BIAS:
        bias = tl.load(bias_ptr + offs, mask=ok, other=0.0).to(tl.float32)
    return tl.where(ok, _adjust(x, bias, logit_scale, softcap, HAS_CAP), float("-inf"))


@triton.jit
def _cross_entropy(
    logits_ptr, out_ptr, rows_ptr, labels_ptr, factors_ptr, bias_ptr, class_weights_ptr,
    loss_ptr, entropy_ptr, rank_ptr,
    vocab_size: tl.int32, stride: tl.int64, out_stride: tl.int64,
    label_smoothing: tl.float32, z_loss: tl.float32, softcap: tl.float32, logit_scale: tl.float32,
    HAS_BIAS: tl.constexpr, HAS_WEIGHTS: tl.constexpr, HAS_CAP: tl.constexpr,
    SMOOTH: tl.constexpr, GRADIENT: tl.constexpr, ENTROPY: tl.constexpr, RANK: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: loss, entropy, rank of the label, and the gradient with respect to the logits."""
    i = tl.program_id(0).to(tl.int64)
    at = tl.load(rows_ptr + i)
    label = tl.load(labels_ptr + i)
    logits_ptr += at * stride
    out_ptr += at * out_stride
    if label < 0:
        value = tl.where(label == -1, 0.0, float("nan"))
        tl.store(loss_ptr + i, value)
        if ENTROPY:
            tl.store(entropy_ptr + i, 0.0)
        if RANK:
            tl.store(rank_ptr + i, vocab_size)
        if GRADIENT:
            end = tl.where(at >= 0, vocab_size, 0)
            for begin in range(0, end, BLOCK):
                offs = begin + tl.arange(0, BLOCK)
                empty = tl.zeros([BLOCK], tl.float32) + value
                tl.store(out_ptr + offs, empty.to(out_ptr.dtype.element_ty), mask=offs < end)
        return

    label = label.to(tl.int32)
    bias = 0.0
    if HAS_BIAS:
        bias = tl.load(bias_ptr + label).to(tl.float32)
    at_label = _adjust(tl.load(logits_ptr + label), bias, logit_scale, softcap, HAS_CAP)
    weight = 1.0
    if HAS_WEIGHTS:
        weight = tl.load(class_weights_ptr + label).to(tl.float32)
    top, others, rank = float("-inf"), 0.0, 0
    smooth, all_weights = 0.0, 0.0
    for begin in range(0, vocab_size, BLOCK):
        offs = begin + tl.arange(0, BLOCK)
        ok = offs < vocab_size
        z = _logits(logits_ptr, bias_ptr, offs, ok, logit_scale, softcap, HAS_BIAS, HAS_CAP)
        new_top = tl.maximum(top, tl.max(z, 0))
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)
        # the label's own exponential stays out of the sum: no difference of equal numbers later
        e = tl.where(offs == label, 0.0, tl.exp(z - shift))
        others = others * tl.exp(top - shift) + tl.sum(e, 0)
        top = new_top
        if RANK:
            rank += tl.sum((z > at_label).to(tl.int32), 0)
        if SMOOTH:
            w = tl.where(ok, 1.0, 0.0)
            if HAS_WEIGHTS:
                w = tl.load(class_weights_ptr + offs, mask=ok, other=0.0).to(tl.float32)
            smooth += tl.sum(tl.where(ok, w * (at_label - z), 0.0), 0)
            all_weights += tl.sum(w, 0)
    own = tl.exp(at_label - top)
    total = others + own
    x = others / own
    log_total = tl.where(
        x < 0.03, x * (1.0 - x * (0.5 - x * (1.0 / 3 - x * 0.25))), tl.log(total) + top - at_label
    )
    lse = at_label + log_total
    hit = weight * (1.0 - label_smoothing)
    share = label_smoothing / vocab_size
    loss = hit * log_total + z_loss * lse * lse
    if SMOOTH:
        loss += share * (all_weights * log_total + smooth)
    tl.store(loss_ptr + i, loss)
    if RANK:
        finite = (lse - lse) == 0.0
        tl.store(rank_ptr + i, tl.where(finite, rank, vocab_size))
    if ENTROPY:
        distance = 0.0
        for begin in range(0, vocab_size, BLOCK):
            offs = begin + tl.arange(0, BLOCK)
            ok = offs < vocab_size
            z = _logits(logits_ptr, bias_ptr, offs, ok, logit_scale, softcap, HAS_BIAS, HAS_CAP)
            d = tl.where(z == float("-inf"), -200.0, z - top)
            distance += tl.sum(tl.where(ok, d * tl.exp(d), 0.0), 0)
        tl.store(entropy_ptr + i, tl.log(total) - distance / total)
    if GRADIENT:
        outer = tl.load(factors_ptr + i).to(tl.float32) * logit_scale
        rest = 2.0 * z_loss * lse
        if SMOOTH:
            rest += share * all_weights
        factor = outer * (hit + rest) / total
        at_hit = outer * ((rest * own - hit * others) / total)
        for begin in range(0, vocab_size, BLOCK):
            offs = begin + tl.arange(0, BLOCK)
            ok = offs < vocab_size
            z = _logits(logits_ptr, bias_ptr, offs, ok, logit_scale, softcap, HAS_BIAS, HAS_CAP)
            g = tl.where(offs == label, at_hit, factor * tl.exp(z - top))
            if SMOOTH:
                w = 1.0
                if HAS_WEIGHTS:
                    w = tl.load(class_weights_ptr + offs, mask=ok, other=0.0).to(tl.float32)
                g -= outer * share * w
            if HAS_CAP:
                q = z / softcap
                g *= 1.0 - q * q
            tl.store(out_ptr + offs, g.to(out_ptr.dtype.element_ty), mask=ok)


@triton.jit
def _scale(out_ptr, factors_ptr, n: tl.int64, BLOCK: tl.constexpr):
    """Multiply by a number on the device; by 1, which is usual, without a look at the rest."""
    factor = tl.load(factors_ptr)
    if factor != 1.0:
        offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(out_ptr + offs, mask=offs < n, other=0.0).to(tl.float32)
        tl.store(out_ptr + offs, (x * factor).to(out_ptr.dtype.element_ty), mask=offs < n)


def scale(gradients: list[Tensor], factor: Tensor) -> None:
    """Multiply gradients by ``factor`` in place."""
    factor = factor.float()
    for gradient in gradients:
        n = gradient.numel()
        if n:
            _scale[(triton.cdiv(n, BLOCK),)](gradient, factor, n, BLOCK=BLOCK)


def scale_rows(gradient: Tensor, factor: Tensor, job: LossJob) -> None:
    """Multiply the gradient of the logits by ``factor``, in place."""
    scale([gradient], factor)


class _Found(NamedTuple):
    """What is found out about each row."""

    loss: Tensor  # float32 [R]
    entropy: Tensor  # float32 [R], or empty
    rank: Tensor  # int32 [R]: how many logits are greater than the label's


class _Rows:
    """The rows to compute: all of them, or those that positions or the capacity name.

    Attributes:
        at: int64 [R], rows of the input, -1 for padding; ascending.
        labels: int64 [R], IGNORED or NO_CLASS where there is no class.
        count: int64 0-d, the number of labelled rows.
        slots: int64 [R], rows of the result, or None where they are these rows.
        compact: whether ``at`` is not simply every row.
    """

    def __init__(self, job: LossJob):
        n = job.input.shape[0]
        labels, positions = job.labels, job.positions
        self.slots = None
        if positions is None and job.capacity >= 0:
            positions = self.slots = _first(labels != job.ignore_index, job.capacity)
        if positions is None:
            self.at = torch.arange(n, device=labels.device)
            counted = labels != job.ignore_index
        else:
            self.at = torch.where(positions < n, positions, -1)  # never past the input
            if not job.aligned:
                labels = labels[self.at.clamp(0)] if n else torch.zeros_like(self.at)
            counted = (self.at >= 0) & (labels != job.ignore_index)
        self.compact = positions is not None
        inside = (labels >= 0) & (labels < job.vocab_size)
        self.labels = torch.where(counted, torch.where(inside, labels, NO_CLASS), IGNORED)
        self.count = counted.sum()
        if self.slots is not None:
            self.count = (job.labels != job.ignore_index).sum()


def _first(selected: Tensor, capacity: int) -> Tensor:
    """int64 [capacity]: the indices of what is selected, ascending, then -1."""
    before = selected.long().cumsum(0)
    slot = torch.where(selected & (before <= capacity), before - 1, capacity)
    positions = torch.full((capacity + 1,), -1, dtype=torch.int64, device=selected.device)
    flat = torch.arange(selected.numel(), device=selected.device)
    return positions.scatter_(0, slot, torch.where(slot < capacity, flat, -1))[:capacity]


def cross_entropy(job: LossJob) -> tuple[Tensor, ...]:
    """(loss, count, accuracy, entropy, top_k, and the three gradients or empty tensors)."""
    job, rows = job.detached(), _Rows(job)
    divisor = divisor_of(job, rows.count, _weights(job, rows))
    factors = torch.ones_like(rows.labels, dtype=torch.float32) / divisor
    with no_autocast(job.input.device.type):
        found, gradients = _compute(job, rows, factors, job.reduction != "none", job.stored_dtype)
    loss = found.loss
    if job.reduction != "none":
        loss = loss.sum() / divisor
    elif rows.slots is not None:
        loss = _scatter(loss, rows.slots, job.input.shape[0])
    if job.capacity >= 0:
        over = rows.count > job.capacity
        if job.reduction == "none":
            over = over & (job.labels != job.ignore_index)
        loss = torch.where(over, torch.nan, loss)
    several = rows.count.clamp(min=1)
    none = loss.new_empty(0)
    statistics = (
        (found.rank < 1).sum() / several if job.accuracy else none,
        found.entropy.sum() / several if job.entropy else none.clone(),
        (found.rank < min(job.top_k, job.vocab_size)).sum() / several
        if job.top_k
        else none.clone(),
    )
    return loss, rows.count, *statistics, *gradients


def cross_entropy_backward(grad: Tensor, job: LossJob) -> tuple[Tensor, ...]:
    """The gradients, computed from the inputs once more."""
    job, rows = job.detached(), _Rows(job)
    grad = grad.float()
    if job.reduction != "none":
        factors = (grad / divisor_of(job, rows.count, _weights(job, rows))).expand(rows.at.numel())
    else:
        factors = grad if rows.slots is None else _take(grad[:, None], rows)[:, 0]
    job = job._replace(accuracy=False, entropy=False, top_k=0)
    with no_autocast(job.input.device.type):
        return tuple(_compute(job, rows, factors, True, job.input.dtype)[1])


def _weights(job: LossJob, rows: _Rows) -> Tensor:
    """The class weight of each row's label, 0 where it is ignored."""
    weights = (rows.labels != IGNORED).float()
    if job.class_weights is None:
        return weights
    return weights * job.class_weights[rows.labels.clamp(0)]


def _scatter(values: Tensor, slots: Tensor, size: int) -> Tensor:
    """[size, ...] with ``values`` at ``slots``, zeros elsewhere; slots of -1 are dropped."""
    out = values.new_zeros(size + 1, *values.shape[1:])
    return out.index_copy_(0, torch.where(slots < 0, size, slots), values)[:size]


def _compute(
    job: LossJob, rows: _Rows, factors: Tensor, gradient: bool, dtype: torch.dtype
) -> tuple[_Found, list[Tensor]]:
    """What is found in each row, and gradients of ``dtype``, empty where not asked for."""
    n = rows.at.numel()
    new = factors.new_empty
    found = _Found(new(n), new(n if job.entropy else 0), new(n, dtype=torch.int32))
    gradients = [new(0, dtype=dtype) for _ in range(3)]
    asked = (job.input_grad, job.weight_grad, job.bias_grad)
    gradient = gradient and any(asked)
    if job.weight is not None:
        results = _linear(job, job.weight, rows, factors, found, gradient, dtype)
        return found, [
            r if gradient and ask else g
            for r, g, ask in zip(results, gradients, asked, strict=True)
        ]
    logits = out = job.input.contiguous()
    if gradient:
        make = torch.zeros_like if rows.compact else torch.empty_like
        gradients[0] = out = make(logits, dtype=dtype)
    _launch(job, logits, out, rows.at, rows.labels, factors, found, gradient)
    return found, gradients


def _linear(
    job: LossJob,
    weight: Tensor,
    rows: _Rows,
    factors: Tensor,
    found: _Found,
    gradient: bool,
    dtype: torch.dtype,
) -> list[Tensor]:
    """A chunk of logits at a time; the gradients that are asked for."""
    # a loss scale lifts float16 out of its smallest numbers only if they are not divided first
    late = dtype == torch.float32 and weight.dtype == torch.float16
    inner = torch.ones_like(factors) if late else factors
    n, size = rows.at.numel(), _chunk_rows(job)
    x = torch.where((rows.labels != IGNORED)[:, None], _take(job.input, rows), 0)
    d_x = torch.empty_like(x) if gradient and job.input_grad else x
    is_one = n <= size
    wide = weight.dtype if is_one else torch.float32
    d_weight = torch.zeros_like(weight, dtype=wide) if gradient and job.weight_grad else weight
    d_bias = torch.zeros(job.vocab_size, device=x.device)
    buffer = x.new_empty(min(size, n), job.vocab_size)
    every = torch.arange(buffer.shape[0], device=x.device)
    for begin in range(0, n, size):
        chunk = slice(begin, min(begin + size, n))
        logits = buffer[: chunk.stop - begin]
        torch.mm(x[chunk], weight.t(), out=logits)
        here = _Found(*(field[chunk] for field in found))
        _launch(job, logits, logits, every, rows.labels[chunk], inner[chunk], here, gradient)
        if gradient and job.input_grad:
            torch.mm(logits, weight, out=d_x[chunk])
        if gradient and job.weight_grad and is_one:
            torch.mm(logits.t(), x, out=d_weight)
        elif gradient and job.weight_grad:
            d_weight += torch.mm(logits.t(), x[chunk])
        if gradient and job.bias_grad:
            d_bias += logits.sum(0, dtype=torch.float32)
    d_input = _scatter(d_x, rows.at, job.input.shape[0]) if rows.compact else d_x
    results = [d_input, d_weight, d_bias]
    if late and n:
        return [r.float() * factors[0] for r in results]
    return [r.to(dtype) for r in results]


def _take(matrix: Tensor, rows: _Rows) -> Tensor:
    if not rows.compact or not matrix.shape[0]:
        return matrix if not rows.compact else matrix.new_zeros(rows.at.numel(), matrix.shape[1])
    return matrix.index_select(0, rows.at.clamp(0))


def _chunk_rows(job: LossJob) -> int:
    row = job.vocab_size * job.input.dtype.itemsize
    if job.chunk_bytes:
        return max(1, job.chunk_bytes // row)
    return min(max(_CHUNK // row, _ROWS[0]), _ROWS[1])


def _launch(
    job: LossJob,
    logits: Tensor,
    out: Tensor,
    at: Tensor,
    labels: Tensor,
    factors: Tensor,
    found: _Found,
    gradient: bool,
) -> None:
    if not labels.numel():
        return
    weights, bias = job.class_weights, job.bias
    _cross_entropy[(labels.numel(),)](
        logits, out, at, labels.contiguous(), factors.contiguous(),
        logits if bias is None else bias.contiguous(),
        logits if weights is None else weights.contiguous(), *found,
        job.vocab_size, logits.stride(0), out.stride(0), job.label_smoothing, job.z_loss,
        job.softcap, job.logit_scale, HAS_BIAS=bias is not None, HAS_WEIGHTS=weights is not None,
        HAS_CAP=job.softcap > 0, SMOOTH=job.label_smoothing > 0, GRADIENT=gradient,
        ENTROPY=job.entropy, RANK=job.accuracy or job.top_k > 0, BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip
