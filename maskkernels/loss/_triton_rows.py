"""The Triton kernels of the losses: which rows are labelled, and what each of them costs.

A program of ``_cross_entropy`` reads a row of logits twice: for the sum of its exponentials, and
for its gradient, which it writes. The main loops have no bounds to check; the end of a row that is
no multiple of BLOCK goes through the same code with bounds. A block is [BLOCK // WIDTH, WIDTH]:
WIDTH elements are one load of a thread, which keeps a maximum and sums of its own to the row's end.
"""

import triton
import triton.language as tl

IGNORED, NO_CLASS = -1, -2  # in place of a label
_IGNORED, _NO_CLASS = tl.constexpr(IGNORED), tl.constexpr(NO_CLASS)
_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _select(
    labels_ptr, positions_ptr, class_weights_ptr, token_weights_ptr, items_ptr,
    at_ptr, out_ptr, scales_ptr, count_ptr, numbers_ptr,
    n: tl.int64, rows: tl.int64, capacity: tl.int64, vocab_size: tl.int64, ignore_index: tl.int64,
    HAS_POSITIONS: tl.constexpr, ALIGNED: tl.constexpr, COMPACT: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr, HAS_SCALES: tl.constexpr, SCALES_ALIGNED: tl.constexpr,
    HAS_ITEMS: tl.constexpr, MEAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows to compute, their labels and token weights, their count, the divisor and 1 / divisor.

    One program, so that the order of every sum is fixed and slots follow from a running count.
    """
    count = tl.zeros([], tl.int64)
    weights = tl.zeros([], tl.float32)
    some = tl.zeros([], tl.int32)  # rows with a weight that is not 0
    for begin in range(0, rows, BLOCK):
        offs = begin + tl.arange(0, BLOCK)
        ok = offs < rows
        at = offs
        if HAS_POSITIONS:
            at = tl.load(positions_ptr + offs, mask=ok, other=-1)
        ok = ok & (at >= 0) & (at < n)  # never past the input
        where = offs if ALIGNED else at
        label = tl.load(labels_ptr + where, mask=ok, other=0)
        counted = ok & (label != ignore_index)
        inside = counted & (label >= 0) & (label < vocab_size)
        label = tl.where(inside, label, tl.where(counted, _NO_CLASS, _IGNORED))
        slot, kept = offs, offs < rows
        if COMPACT:
            slot = count + tl.cumsum(counted.to(tl.int32), 0).to(tl.int64) - 1
            kept = counted & (slot < capacity)
        tl.store(at_ptr + slot, tl.where(ok, at, -1), mask=kept)
        tl.store(out_ptr + slot, label, mask=kept)
        count += tl.sum(counted.to(tl.int32), 0).to(tl.int64)
        weight = tl.where(counted & kept, 1.0, 0.0)
        if HAS_SCALES:
            where = offs if SCALES_ALIGNED else at
            weight = tl.load(token_weights_ptr + where, mask=counted & kept, other=0.0)
            weight = tl.where((weight - weight) == 0.0, weight, float("nan"))
            tl.store(scales_ptr + slot, weight, mask=kept)
            some += tl.sum((weight != 0.0).to(tl.int32), 0)
        if HAS_WEIGHTS:
            weight *= tl.load(class_weights_ptr + label, mask=inside & kept, other=0.0)
        if HAS_WEIGHTS or HAS_SCALES:
            weights += tl.sum(weight, 0)
    if COMPACT:  # padding after the last labelled row
        for begin in range(tl.minimum(count, capacity), capacity, BLOCK):
            offs = begin + tl.arange(0, BLOCK)
            empty = tl.zeros([BLOCK], tl.int64)
            tl.store(at_ptr + offs, empty - 1, mask=offs < capacity)
            tl.store(out_ptr + offs, empty + _IGNORED, mask=offs < capacity)
            if HAS_SCALES:
                tl.store(scales_ptr + offs, empty.to(tl.float32), mask=offs < capacity)
    tl.store(count_ptr, count)
    divisor = 1.0
    if MEAN:
        divisor = count.to(tl.float32)
        if HAS_ITEMS:
            divisor = tl.load(items_ptr)
        elif HAS_WEIGHTS or HAS_SCALES:
            divisor = weights
        divisor = tl.where(some > 0 if HAS_SCALES else count > 0, divisor, 1.0)
    tl.store(numbers_ptr, divisor)
    tl.store(numbers_ptr + 1, 1.0 / divisor)


@triton.jit
def _gather(
    input_ptr, at_ptr, labels_ptr, out_ptr, width: tl.int32, stride: tl.int64, BLOCK: tl.constexpr
):
    """One row of the input that is labelled, or zeros: 0 times an infinity would be NaN."""
    i = tl.program_id(0).to(tl.int64)
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    end = tl.where(tl.load(labels_ptr + i) == _IGNORED, 0, width)
    input_ptr += tl.load(at_ptr + i) * stride  # of padding, -1, nothing is read
    x = tl.load(input_ptr + offs, mask=offs < end, other=0.0)
    tl.store(out_ptr + i * width + offs, x, mask=offs < width)


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
def _adjust(x, logit_scale, softcap, HAS_CAP: tl.constexpr):
    """Raw products to logits."""
    if HAS_CAP:
        z = softcap * _tanh(x * (logit_scale / softcap))
    else:
        z = x * logit_scale
    return z


@triton.jit
def _offsets(begin, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    return begin + tl.arange(0, BLOCK // WIDTH)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]


@triton.jit
def _raw(row_ptr, bias_ptr, offs, vocab_size, padded, HAS_BIAS: tl.constexpr, TAIL: tl.constexpr):
    """A block of raw products in float32; what is past ``padded`` is not read.

    Bounds that are multiples of 16 keep the loads wide, so the row is read up to its padding.
    """
    if TAIL:
        x = tl.load(row_ptr + offs, mask=offs < padded, other=0.0).to(tl.float32)
    else:
        x = tl.load(row_ptr + offs).to(tl.float32)
    if HAS_BIAS:
        if TAIL:
            x += tl.load(bias_ptr + offs, mask=offs < vocab_size, other=0.0).to(tl.float32)
        else:
            x += tl.load(bias_ptr + offs).to(tl.float32)
    return x


@triton.jit
def _class_weights(class_weights_ptr, offs, ok, HAS_WEIGHTS: tl.constexpr, TAIL: tl.constexpr):
    if HAS_WEIGHTS and TAIL:
        w = tl.load(class_weights_ptr + offs, mask=ok, other=0.0)
    elif HAS_WEIGHTS:
        w = tl.load(class_weights_ptr + offs)
    elif TAIL:
        w = tl.where(ok, 1.0, 0.0)
    else:
        w = tl.full(offs.shape, 1.0, tl.float32)
    return w


@triton.jit
def _add_block(
    top, others, rank, smooth, all_weights,
    row_ptr, bias_ptr, class_weights_ptr, begin, label, z_label,
    vocab_size, padded, logit_scale, softcap,
    HAS_BIAS: tl.constexpr, HAS_WEIGHTS: tl.constexpr, HAS_CAP: tl.constexpr,
    SMOOTH: tl.constexpr, RANK: tl.constexpr, TAIL: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add a block to each thread's maximum and sums of the row.

    Sums of negatives are subtracted: Triton 3.6 does not compile a loop that adds a reduction to
    a value that is used more than once after it.
    """
    offs = _offsets(begin, WIDTH, BLOCK)
    ok = offs < vocab_size
    z = _adjust(
        _raw(row_ptr, bias_ptr, offs, vocab_size, padded, HAS_BIAS, TAIL),
        logit_scale, softcap, HAS_CAP,
    )  # fmt: skip
    if TAIL:
        z = tl.where(ok, z, float("-inf"))
    highest = tl.maximum(top, tl.max(z, 1))
    shift = tl.where(highest == float("-inf"), 0.0, highest) * _LOG2E
    e = tl.exp2(z * _LOG2E - shift[:, None])
    if (label >= begin) & (label < begin + BLOCK):
        # the label's own exponential stays out of the sum: no difference of equal numbers later
        e = tl.where(offs == label, 0.0, e)
    others = others * tl.exp2(top * _LOG2E - shift) + tl.sum(e, 1)
    if RANK:
        rank -= tl.sum(-(z > z_label).to(tl.int32), 1)
    if SMOOTH:
        w = _class_weights(class_weights_ptr, offs, ok, HAS_WEIGHTS, TAIL)
        distance = w * (z_label - z)
        if TAIL:
            distance = tl.where(ok, distance, 0.0)
        smooth -= tl.sum(-distance, 1)
        all_weights -= tl.sum(-w, 1)
    return highest, others, rank, smooth, all_weights


@triton.jit
def _distance(
    row_ptr, bias_ptr, begin, top, vocab_size, padded, logit_scale, softcap,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, TAIL: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Minus a block's sum of d * exp(d), d how far a logit is below the top; see _add_block."""
    offs = _offsets(begin, WIDTH, BLOCK)
    x = _raw(row_ptr, bias_ptr, offs, vocab_size, padded, HAS_BIAS, TAIL)
    z = _adjust(x, logit_scale, softcap, HAS_CAP)
    d = tl.where(z == float("-inf"), -200.0, z - top)
    d *= tl.exp2(d * _LOG2E)
    if TAIL:
        d = tl.where(offs < vocab_size, d, 0.0)
    return tl.sum(-d, 1)


@triton.jit
def _gradient(
    row_ptr, bias_ptr, class_weights_ptr, begin, top, factor, share,
    vocab_size, padded, logit_scale, softcap,
    HAS_BIAS: tl.constexpr, HAS_WEIGHTS: tl.constexpr, HAS_CAP: tl.constexpr,
    SMOOTH: tl.constexpr, TAIL: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block's gradient, as if none of its classes were the label's."""
    offs = _offsets(begin, WIDTH, BLOCK)
    x = _raw(row_ptr, bias_ptr, offs, vocab_size, padded, HAS_BIAS, TAIL)
    if HAS_CAP:
        z = _adjust(x, logit_scale, softcap, HAS_CAP)
        g = factor * tl.exp2(z * _LOG2E - top * _LOG2E)
    else:  # one multiplication for the scale and the base
        g = factor * tl.exp2(x * (logit_scale * _LOG2E) - top * _LOG2E)
    if SMOOTH:
        g -= share * _class_weights(class_weights_ptr, offs, offs < vocab_size, HAS_WEIGHTS, TAIL)
    if HAS_CAP:
        q = z / softcap
        g *= 1.0 - q * q
    return g


@triton.jit
def _cross_entropy(
    logits_ptr, out_ptr, rows_ptr, labels_ptr, factors_ptr, bias_ptr, class_weights_ptr,
    loss_ptr, entropy_ptr, rank_ptr,
    vocab_size: tl.int32, padded: tl.int32, out_padded: tl.int32,
    stride: tl.int64, out_stride: tl.int64,
    label_smoothing: tl.float32, z_loss: tl.float32, softcap: tl.float32, logit_scale: tl.float32,
    IN_ORDER: tl.constexpr, ONE_FACTOR: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_WEIGHTS: tl.constexpr, HAS_CAP: tl.constexpr,
    SMOOTH: tl.constexpr, GRADIENT: tl.constexpr, ENTROPY: tl.constexpr, RANK: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: loss, entropy, rank of the label, and the gradient with respect to the logits.

    ``padded`` and ``out_padded`` are how far a row may be read and written.
    """
    i = tl.program_id(0).to(tl.int64)
    at = i
    if not IN_ORDER:
        at = tl.load(rows_ptr + i)
    label = tl.load(labels_ptr + i)
    logits_ptr += at * stride
    out_ptr += at * out_stride
    if label < 0:
        value = tl.where(label == _IGNORED, 0.0, float("nan"))
        tl.store(loss_ptr + i, value)
        if ENTROPY:
            tl.store(entropy_ptr + i, 0.0)
        if RANK:
            tl.store(rank_ptr + i, vocab_size)
        if GRADIENT:
            end = tl.where(at >= 0, out_padded, 0)
            for begin in range(0, end, BLOCK):
                offs = begin + tl.arange(0, BLOCK)
                empty = tl.zeros([BLOCK], tl.float32) + value
                tl.store(out_ptr + offs, empty.to(out_ptr.dtype.element_ty), mask=offs < end)
        return

    label = label.to(tl.int32)
    x_label = tl.load(logits_ptr + label).to(tl.float32)
    if HAS_BIAS:
        x_label += tl.load(bias_ptr + label).to(tl.float32)
    z_label = _adjust(x_label, logit_scale, softcap, HAS_CAP)
    weight = 1.0
    if HAS_WEIGHTS:
        weight = tl.load(class_weights_ptr + label)
    whole = vocab_size // BLOCK * BLOCK
    top = tl.full([BLOCK // WIDTH], float("-inf"), tl.float32)
    others = tl.zeros([BLOCK // WIDTH], tl.float32)
    rank = tl.zeros([BLOCK // WIDTH], tl.int32)
    smooth, all_weights = others, others
    for begin in range(0, whole, BLOCK):
        top, others, rank, smooth, all_weights = _add_block(
            top, others, rank, smooth, all_weights,
            logits_ptr, bias_ptr, class_weights_ptr, begin, label, z_label,
            vocab_size, padded, logit_scale, softcap,
            HAS_BIAS, HAS_WEIGHTS, HAS_CAP, SMOOTH, RANK, False, WIDTH, BLOCK,
        )  # fmt: skip
    if whole < vocab_size:
        top, others, rank, smooth, all_weights = _add_block(
            top, others, rank, smooth, all_weights,
            logits_ptr, bias_ptr, class_weights_ptr, whole, label, z_label,
            vocab_size, padded, logit_scale, softcap,
            HAS_BIAS, HAS_WEIGHTS, HAS_CAP, SMOOTH, RANK, True, WIDTH, BLOCK,
        )  # fmt: skip
    highest = tl.max(top, 0)
    shift = tl.where(highest == float("-inf"), 0.0, highest)
    others = tl.sum(others * tl.exp2((top - shift) * _LOG2E), 0)
    top = highest
    own = tl.exp2((z_label - top) * _LOG2E)
    total = others + own
    x = others / own
    log_total = tl.where(
        x < 0.03, x * (1.0 - x * (0.5 - x * (1.0 / 3 - x * 0.25))), tl.log(total) + top - z_label
    )
    lse = z_label + log_total
    all_weights = tl.sum(all_weights, 0)
    hit = weight * (1.0 - label_smoothing)
    share = label_smoothing / vocab_size
    loss = hit * log_total + z_loss * lse * lse
    if SMOOTH:
        loss += share * (all_weights * log_total + tl.sum(smooth, 0))
    tl.store(loss_ptr + i, loss)
    if RANK:
        finite = (lse - lse) == 0.0
        tl.store(rank_ptr + i, tl.where(finite, tl.sum(rank, 0), vocab_size))
    if ENTROPY:
        distance = tl.zeros([BLOCK // WIDTH], tl.float32)
        for begin in range(0, whole, BLOCK):
            distance -= _distance(
                logits_ptr, bias_ptr, begin, top, vocab_size, padded, logit_scale, softcap,
                HAS_BIAS, HAS_CAP, False, WIDTH, BLOCK,
            )  # fmt: skip
        if whole < vocab_size:
            distance -= _distance(
                logits_ptr, bias_ptr, whole, top, vocab_size, padded, logit_scale, softcap,
                HAS_BIAS, HAS_CAP, True, WIDTH, BLOCK,
            )  # fmt: skip
        tl.store(entropy_ptr + i, tl.log(total) - tl.sum(distance, 0) / total)
    if GRADIENT:
        outer = tl.load(factors_ptr + (0 if ONE_FACTOR else i)) * logit_scale
        rest = 2.0 * z_loss * lse
        if SMOOTH:
            rest += share * all_weights
        factor = outer * (hit + rest) / total
        at_label = outer * ((rest * own - hit * others) / total)
        if SMOOTH:
            at_label -= outer * share * weight
        if HAS_CAP:
            q = z_label / softcap
            at_label *= 1.0 - q * q
        for begin in range(0, whole, BLOCK):
            g = _gradient(
                logits_ptr, bias_ptr, class_weights_ptr, begin, top, factor, outer * share,
                vocab_size, padded, logit_scale, softcap,
                HAS_BIAS, HAS_WEIGHTS, HAS_CAP, SMOOTH, False, WIDTH, BLOCK,
            )  # fmt: skip
            offs = _offsets(begin, WIDTH, BLOCK)
            tl.store(out_ptr + offs, g.to(out_ptr.dtype.element_ty))
        if whole < vocab_size:
            g = _gradient(
                logits_ptr, bias_ptr, class_weights_ptr, whole, top, factor, outer * share,
                vocab_size, padded, logit_scale, softcap,
                HAS_BIAS, HAS_WEIGHTS, HAS_CAP, SMOOTH, True, WIDTH, BLOCK,
            )  # fmt: skip
            offs = _offsets(whole, WIDTH, BLOCK)
            tl.store(out_ptr + offs, g.to(out_ptr.dtype.element_ty), mask=offs < out_padded)
        tl.debug_barrier()  # the label's element has been written by another thread
        tl.store(out_ptr + label, at_label.to(out_ptr.dtype.element_ty))


@triton.jit
def _scale(out_ptr, factors_ptr, n: tl.int64, BLOCK: tl.constexpr):
    """Multiply by a number on the device; by 1, which is usual, without a look at the rest."""
    factor = tl.load(factors_ptr)
    if factor != 1.0:
        offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(out_ptr + offs, mask=offs < n, other=0.0).to(tl.float32)
        tl.store(out_ptr + offs, (x * factor).to(out_ptr.dtype.element_ty), mask=offs < n)
