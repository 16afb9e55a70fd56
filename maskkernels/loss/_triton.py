"""The losses on the GPU: matrix products by torch, what is around them by Triton's kernels.

Nothing waits for the host, sums have one order, and no address depends on an unchecked label: a
row whose label is no class gets NaN.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from maskkernels.loss._triton_rows import _cross_entropy, _gather, _scale, _select
from maskkernels.loss.job import LossJob, no_autocast

BLOCK = 4096  # numbers that a program of a simple kernel looks at
_CHUNK = 1 << 29  # bytes of logits at a time
_ROWS = 1024, 4096  # of a chunk, unless its bytes are given
_ALIGNMENT = 64  # elements; products with rows of other lengths take cuBLAS's slow kernels
_RESIDENT = (25 << 20) // 132  # bytes of the second-level cache for each processor of an H100
_ADDS_FLOAT32 = (  # whether torch adds a product of 16-bit matrices to a float32 one
    torch.version.cuda is not None
    and tuple(map(int, torch.__version__.split("+")[0].split(".")[:2])) >= (2, 11)
)


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


class _Selected(NamedTuple):
    """The rows to compute: all of them, or those that positions or the capacity name."""

    at: Tensor  # int64 [R], rows of the input, -1 for padding; ascending
    labels: Tensor  # int64 [R], IGNORED or NO_CLASS where there is no class
    weights: Tensor | None  # float32 [R], of tokens: 0 where ignored, NaN where not finite
    count: Tensor  # type: ignore[assignment]  # int64 0-d, labelled rows; in place of tuple.count
    divisor: Tensor  # float32 0-d
    factor: Tensor  # float32 [1], 1 / divisor
    compact: bool  # whether ``at`` is not simply every row


def _rows_of(job: LossJob) -> _Selected:
    """Select rows by one kernel of one program; nothing is read on the host."""
    n, positions = job.input.shape[0], job.positions
    compact = positions is None and job.capacity >= 0
    capacity = job.capacity if compact else 0
    read = job.labels.shape[0] if positions is None else positions.shape[0]
    new = job.labels.new_empty
    at, labels = new(capacity if compact else read), new(capacity if compact else read)
    count, numbers = new(()), new(2, dtype=torch.float32)
    class_weights, items, weights = job.class_weights, job.num_items, job.token_weights
    scales = None if weights is None else torch.empty_like(at, dtype=torch.float32)
    _select[(1,)](
        job.labels.contiguous(), job.labels if positions is None else positions.contiguous(),
        numbers if class_weights is None else class_weights.contiguous(),
        numbers if weights is None else weights.contiguous(),
        numbers if items is None else items, at, labels, numbers if scales is None else scales,
        count, numbers,
        n, read, capacity, job.vocab_size, job.ignore_index,
        HAS_POSITIONS=positions is not None, ALIGNED=job.aligned or positions is None,
        COMPACT=compact, HAS_WEIGHTS=class_weights is not None, HAS_SCALES=weights is not None,
        SCALES_ALIGNED=job.weights_aligned or positions is None, HAS_ITEMS=items is not None,
        MEAN=job.reduction == "mean", BLOCK=min(BLOCK, 1024), num_warps=8,
    )  # fmt: skip
    is_some = compact or positions is not None
    return _Selected(at, labels, scales, count, numbers[0], numbers[1:], is_some)


def cross_entropy(job: LossJob) -> tuple[Tensor, ...]:
    """(loss, count, accuracy, entropy, top_k, and the three gradients or empty tensors)."""
    job = job.detached()
    rows = _rows_of(job)
    with no_autocast(job.input.device.type):
        found, gradients = _compute(
            job, rows, rows.factor, job.reduction != "none", job.stored_dtype
        )
    loss = found.loss if rows.weights is None else found.loss * rows.weights
    if job.reduction != "none":
        loss = loss.sum() / rows.divisor
    elif job.capacity >= 0:
        loss = _scatter(loss, rows.at, job.input.shape[0])
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
    job = job.detached()
    rows = _rows_of(job)
    grad = grad.float()
    if job.reduction != "none":
        factors = (grad / rows.divisor).reshape(1)
    elif job.capacity < 0:
        factors = grad
    else:
        factors = _take(grad[:, None], rows)[:, 0]
    job = job._replace(accuracy=False, entropy=False, top_k=0)
    with no_autocast(job.input.device.type):
        return tuple(_compute(job, rows, factors, True, job.input.dtype)[1])


def _scatter(values: Tensor, slots: Tensor, size: int) -> Tensor:
    """[size, ...] with ``values`` at ``slots``, zeros elsewhere; slots of -1 are dropped."""
    out = values.new_zeros(size + 1, *values.shape[1:])
    return out.index_copy_(0, torch.where(slots < 0, size, slots), values)[:size]


def _compute(
    job: LossJob, rows: _Selected, factors: Tensor, gradient: bool, dtype: torch.dtype
) -> tuple[_Found, list[Tensor]]:
    """What is found in each row, and gradients of ``dtype``, empty where not requested.

    ``factors`` are what a row's gradient is multiplied with besides its token weight.
    """
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
    logits = out = job.input if job.input.stride(1) == 1 else job.input.contiguous()
    if gradient:
        make = logits.new_zeros if rows.compact else logits.new_empty
        gradients[0] = out = make(logits.shape, dtype=dtype)
    scales = factors if rows.weights is None else factors * rows.weights
    _launch(job, logits, out, rows.at, rows.labels, scales, found, gradient)
    return found, gradients


def _linear(
    job: LossJob,
    weight: Tensor,
    rows: _Selected,
    factors: Tensor,
    found: _Found,
    gradient: bool,
    dtype: torch.dtype,
) -> list[Tensor]:
    """A chunk of logits at a time; the gradients that are requested."""
    # a loss scale lifts float16 out of its smallest numbers only if they are not divided first
    late = dtype == torch.float32 and weight.dtype == torch.float16
    inner = torch.ones_like(factors) if late else factors
    if rows.weights is not None:
        if late:  # and weights are around 1
            mean = rows.weights.abs().sum() / rows.count
            mean = torch.where(mean > 0, mean, 1.0)
            inner, factors = 1.0 / mean, factors * mean
        inner = inner * rows.weights
    n, size = rows.at.numel(), _chunk_rows(job, gradient)
    x = _take(job.input, rows)
    d_x = torch.empty_like(x) if gradient and job.input_grad else x
    wide = weight.dtype if n <= size else torch.float32
    d_weight = weight
    if gradient and job.weight_grad:
        d_weight = torch.empty_like(weight, dtype=wide) if n else torch.zeros_like(weight)
    d_bias = torch.zeros(job.vocab_size, device=x.device)
    padded = _round_up(job.vocab_size)
    buffer = x.new_empty(min(size, n), padded)
    for begin in range(0, n, size):
        chunk = slice(begin, min(begin + size, n))
        logits = buffer[: chunk.stop - begin, : job.vocab_size]
        torch.mm(x[chunk], weight.t(), out=logits)
        here = _Found(*(field[chunk] for field in found))
        scales = inner if inner.numel() != n else inner[chunk]
        _launch(job, logits, logits, None, rows.labels[chunk], scales, here, gradient)
        if gradient and job.input_grad:
            torch.mm(logits, weight, out=d_x[chunk])
        if gradient and job.weight_grad:
            _add_product(d_weight, logits.t(), x[chunk], begin > 0)
        if gradient and job.bias_grad:
            d_bias += logits.sum(0, dtype=torch.float32)
    d_input = _scatter(d_x, rows.at, job.input.shape[0]) if rows.compact else d_x
    results = [d_input, d_weight, d_bias]
    if late and n:
        return [r.float() * factors[0] for r in results]
    return [r.to(dtype) for r in results]


def _add_product(total: Tensor, a: Tensor, b: Tensor, is_begun: bool) -> None:
    """total = a @ b, added to what is there if it ``is_begun``; in float32 if ``total`` is."""
    if total.dtype == a.dtype:
        torch.addmm(total, a, b, beta=1, out=total) if is_begun else torch.mm(a, b, out=total)
    elif _ADDS_FLOAT32 and total.is_cuda and is_begun:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    elif _ADDS_FLOAT32 and total.is_cuda:
        torch.mm(a, b, out_dtype=torch.float32, out=total)
    elif is_begun:
        total += torch.mm(a, b)
    else:
        total.copy_(torch.mm(a, b))


def _take(matrix: Tensor, rows: _Selected) -> Tensor:
    """[R, H], a copy of the labelled rows with zeros in place of the others."""
    n, width = rows.at.numel(), matrix.shape[1]
    out = matrix.new_empty(n, width)
    if n:
        matrix = matrix if matrix.stride(1) == 1 else matrix.contiguous()
        block = min(triton.next_power_of_2(width), BLOCK)
        _gather[(n, triton.cdiv(width, block))](
            matrix, rows.at, rows.labels, out, width, matrix.stride(0), BLOCK=block
        )
    return out


def _chunk_rows(job: LossJob, gradient: bool) -> int:
    """How many rows of logits exist at a time: chunks of one size, or all rows.

    One chunk where its logits take no more bytes than what chunks add: a weight gradient in
    float32 and its copy in the dtype of the weight. Each chunk more reads and writes that gradient.
    """
    size, n = job.input.dtype.itemsize, _computed(job)
    row = job.vocab_size * size
    if job.chunk_bytes:
        most = max(1, job.chunk_bytes // row)
    else:
        most = min(max(_CHUNK // row, _ROWS[0]), _ROWS[1])
        added = job.input.shape[1] * (4 + size) if gradient and job.weight_grad and size < 4 else 0
        most = n if n * size <= added else most
    chunks = -(-n // max(most, 1))
    return max(1, min(most, _round_up(-(-n // max(chunks, 1)))))


def _computed(job: LossJob) -> int:
    """How many rows are computed."""
    return job.capacity if job.positions is None and job.capacity >= 0 else job.rows


def _round_up(size: int) -> int:
    """The next multiple of the alignment: rows and columns that matrix products like."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _launch(
    job: LossJob,
    logits: Tensor,
    out: Tensor,
    at: Tensor | None,
    labels: Tensor,
    factors: Tensor,
    found: _Found,
    gradient: bool,
) -> None:
    """Compute the rows ``at`` of the logits, or all of them in order."""
    if not labels.numel():
        return
    weights, bias = job.class_weights, job.bias
    block, warps = _launch_shape(job.vocab_size * logits.element_size())
    _cross_entropy[(labels.numel(),)](
        logits, out, labels if at is None else at, labels, factors.contiguous(),
        logits if bias is None else bias.contiguous(),
        logits if weights is None else weights.contiguous(), *found,
        job.vocab_size, _readable(logits, job), _readable(out, job),
        logits.stride(0), out.stride(0), job.label_smoothing, job.z_loss, job.softcap,
        job.logit_scale, IN_ORDER=at is None, ONE_FACTOR=factors.numel() != labels.numel(),
        HAS_BIAS=bias is not None, HAS_WEIGHTS=weights is not None, HAS_CAP=job.softcap > 0,
        SMOOTH=job.label_smoothing > 0, GRADIENT=gradient, ENTROPY=job.entropy,
        RANK=job.accuracy or job.top_k > 0, WIDTH=16 // logits.element_size(), BLOCK=block,
        num_warps=warps,
    )  # fmt: skip


def _readable(matrix: Tensor, job: LossJob) -> int:
    """How far a row may be read and written: to the end of its padding where that is ours."""
    return matrix.shape[1] if job.weight is None else matrix.stride(0)


def _launch_shape(row_bytes: int) -> tuple[int, int]:
    """(elements of a block, warps): long rows get more warps, so that fewer are read at a time.

    A processor runs about 32 warps of this kernel. The rows that they work on should be in the
    second-level cache when they are read for the second time.
    """
    for warps in (8, 16):
        if row_bytes * (32 // warps) <= _RESIDENT:
            return 512 * warps, warps
    return 512 * 16, 32
