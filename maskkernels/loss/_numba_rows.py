"""The kernels of the losses on the CPU: logits to their own gradients, in place.

A row of logits goes through the second-level cache once:
its maximum, its exponentials and their sum, its gradient. The label's own exponential is kept out
of the sum, so that neither the loss nor the gradient of a well predicted row is a difference of
nearly equal numbers.
"""

import math
from typing import Any, NamedTuple

import numba as nb
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from maskkernels.runtime.jit import inlined, kernel

_f32 = np.float32
_COLUMNS = 2048  # whose sums stay in the first-level cache
# Sums that may be taken in any order become vector sums; products and sums may be fused.
_summing = nb.njit(forceinline=True, fastmath={"contract", "reassoc"}, error_model="numpy")
_fused = nb.njit(forceinline=True, fastmath={"contract"}, error_model="numpy")


@intrinsic
def _as_float(context, x):
    """The float32 of the bits of an int32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return nb.types.float32(nb.types.int32), generate


@intrinsic
def _as_int(context, x):
    """The bits of a float32 as an int32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return nb.types.int32(nb.types.float32), generate


_ROUND = _f32(12582912.0)  # 1.5 * 2^23: adding it leaves an integer in the lowest bits
_LOG2_E = _f32(1.4426950408889634)
_LN2_HIGH = _f32(0.693359375)  # few bits, so that its product with an integer is exact
_LN2_LOW = _f32(0.6931471805599453 - 0.693359375)
# (e^f - 1 - f) / f^2 on [-ln(2)/2, ln(2)/2], fitted: relative error of e^f below 4e-9
_E0, _E1, _E2, _E3, _E4 = (
    _f32(c)
    for c in (
        0.4999999403953552, 0.1666652113199234, 0.04166838899254799, 0.00836874544620514,
        0.0013814539415761828,
    )
)  # fmt: skip


@_fused
def _exp(x):
    """e^x for x <= 0 and NaN; 0 below -87, where float32 has no normal number left."""
    shifted = x * _LOG2_E + _ROUND
    k = shifted - _ROUND
    f = x - k * _LN2_HIGH
    f = f - k * _LN2_LOW
    p = _E4 * f + _E3
    p = p * f + _E2
    p = p * f + _E1
    p = p * f + _E0
    p = p * (f * f) + f
    p = p + _f32(1.0)
    power = _as_float(np.int32((_as_int(shifted) + np.int32(127)) << np.int32(23)))
    return _f32(0.0) if x < _f32(-87.0) else p * power


# tanh(x) = x + x^3 * P(x^2) below 0.625, the classical fit of the Cephes library
_T0, _T1, _T2, _T3, _T4 = (
    _f32(c)
    for c in (
        -3.33332819422e-1, 1.33314422036e-1, -5.37397155531e-2, 2.06390887954e-2,
        -5.70498872745e-3,
    )
)  # fmt: skip


@_fused
def _tanh(x):
    size = abs(x)
    square = x * x
    p = _T4 * square + _T3
    p = p * square + _T2
    p = p * square + _T1
    p = p * square + _T0
    small = p * square * x + x
    e = _exp(_f32(-2.0) * size)
    large = (_f32(1.0) - e) / (_f32(1.0) + e)
    large = -large if x < _f32(0.0) else large
    return small if size < _f32(0.625) else large


@inlined
def _ordered(bits):
    """Maps the bits of floats to integers of the same order, and back."""
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@inlined
def _largest(row):
    """The maximum, compared as integers, which vectorises; a NaN may win or lose."""
    best = np.int32(-(1 << 31))
    for v in range(row.size):
        best = max(best, _ordered(_as_int(row[v])))
    return _as_float(_ordered(best))


@_fused
def _adjust(row, bias, scale, softcap):
    """Raw products to logits."""
    if bias.size:
        for v in range(row.size):
            row[v] = (row[v] + bias[v]) * scale
    elif scale != _f32(1.0):
        for v in range(row.size):
            row[v] *= scale
    if softcap != _f32(0.0):
        inverse = _f32(1.0) / softcap
        for v in range(row.size):
            row[v] = softcap * _tanh(row[v] * inverse)


@inlined
def _greater(row, than):
    n = np.int32(0)
    for v in range(row.size):
        n += np.int32(row[v] > than)
    return n


@_summing
def _exponentials(row, top):
    """Replace each x of the row by e^(x - top); their sum."""
    total = _f32(0.0)
    for v in range(row.size):
        e = _exp(row[v] - top)
        row[v] = e
        total += e
    return total


@_summing
def _sum_of_exponentials(row, top):
    total = _f32(0.0)
    for v in range(row.size):
        total += _exp(row[v] - top)
    return total


@_summing
def _weighted_distances(row, top):
    """The sum of (x - top) * e^(x - top)."""
    total = _f32(0.0)
    for v in range(row.size):
        d = row[v] - top
        d = _f32(-100.0) if d < _f32(-100.0) else d
        total += d * _exp(d)
    return total


@_summing
def _distances(row, top, class_weights):
    """The sum of w * (top - x) over all classes."""
    total = 0.0
    if class_weights.size:
        for v in range(row.size):
            total += np.float64(class_weights[v] * (top - row[v]))
    else:
        for v in range(row.size):
            total += np.float64(top - row[v])
    return total


@_fused
def _multiply(row, factor):
    for v in range(row.size):
        row[v] *= factor


@_fused
def _gradients(row, top, factor, share, class_weights, softcap):
    """Logits to gradients with respect to them before the cap, but for the label's own part."""
    weighted, capped = class_weights.size > 0, softcap != _f32(0.0)
    inverse = _f32(1.0) / softcap if capped else _f32(0.0)
    if weighted:
        for v in range(row.size):
            q = row[v] * inverse
            g = factor * _exp(row[v] - top) - share * class_weights[v]
            row[v] = g * (_f32(1.0) - q * q)
    else:
        for v in range(row.size):
            q = row[v] * inverse
            g = factor * _exp(row[v] - top) - share
            row[v] = g * (_f32(1.0) - q * q)


class Chunk(NamedTuple):
    """A chunk of labelled rows, and where their logits are."""

    logits: Any  # float32 [N, V] to copy from, or empty: the buffer holds them
    buffer: Any  # float32 [n, V], or [N, V] where there is something to copy
    places: Any  # int64 [n]: where in logits (and, for gradients, in the buffer) a row is
    labels: Any  # int64 [n]
    factors: Any  # float64 [n]: the gradient of the result with respect to the row's loss
    bias: Any  # float32 [V], or empty
    class_weights: Any  # float32 [V], or empty


class Law(NamedTuple):
    """The numbers of a job."""

    label_smoothing: float
    z_loss: float
    softcap: Any  # float32, 0 for none
    logit_scale: Any  # float32
    sum_of_weights: float
    gradient: bool
    entropy: bool
    rank: bool


class Found(NamedTuple):
    """What is found out about each row of a chunk."""

    loss: Any  # float64 [n]
    entropy: Any  # float64 [n]
    rank: Any  # int64 [n]: how many logits are greater than the label's


@kernel
def cross_entropy(chunk, law, found, first, last):
    """Loss and statistics of rows first..last, and their gradients in place of the logits."""
    bias, class_weights, softcap = chunk.bias, chunk.class_weights, law.softcap
    vocab_size = chunk.buffer.shape[1]
    eps, scale = law.label_smoothing, np.float64(law.logit_scale)
    copied = chunk.logits.size > 0
    scratch = np.empty(vocab_size if copied and not law.gradient else 0, np.float32)
    for i in range(first, last):
        row = scratch
        if not copied:
            row = chunk.buffer[i]
        elif law.gradient:
            row = chunk.buffer[chunk.places[i]]
        if copied:
            row[:] = chunk.logits[chunk.places[i]]
        _adjust(row, bias, law.logit_scale, softcap)
        y = chunk.labels[i]
        top, at_label = _largest(row), row[y]
        if law.rank:
            found.rank[i] = _greater(row, at_label) if at_label < top else 0
        to_top = np.float64(top) - np.float64(at_label)
        smooth = _distances(row, top, class_weights) if eps > 0.0 else 0.0

        row[y] = -np.inf
        entropy = _weighted_distances(row, top) if law.entropy else _f32(0.0)
        if eps > 0.0 or softcap != _f32(0.0):  # the logits are needed once more
            others = np.float64(_sum_of_exponentials(row, top))
        else:
            others = np.float64(_exponentials(row, top))
        own = math.exp(-to_top)
        total = others + own
        log_total = math.log1p(others) if to_top == 0.0 else math.log(total)
        lse = np.float64(top) + log_total
        weight = np.float64(class_weights[y]) if class_weights.size else 1.0
        found.loss[i] = weight * (1.0 - eps) * (log_total + to_top) + law.z_loss * lse * lse
        if eps > 0.0:
            found.loss[i] += eps / vocab_size * (law.sum_of_weights * log_total + smooth)
        if law.rank and not math.isfinite(total + top):
            found.rank[i] = vocab_size
        if law.entropy:
            own_part = own * -to_top if own > 0.0 else 0.0
            found.entropy[i] = log_total - (np.float64(entropy) + own_part) / total
        if not law.gradient:
            continue

        # p_v * (hit + rest) - share * w_v, and at the label hit less than that
        hit = weight * (1.0 - eps)
        rest = eps / vocab_size * law.sum_of_weights + 2.0 * law.z_loss * lse
        share = eps / vocab_size
        outer = chunk.factors[i] * scale
        factor = _f32(outer * (hit + rest) / total)
        label = outer * ((rest * own - hit * others) / total - share * weight)
        if eps > 0.0 or softcap != _f32(0.0):
            _gradients(row, top, factor, _f32(outer * share), class_weights, softcap)
            if softcap != _f32(0.0):
                q = np.float64(at_label) / np.float64(softcap)
                label *= 1.0 - q * q
        else:
            _multiply(row, factor)
        row[y] = label


@kernel
def add_rows(matrix, total, first, last):
    """Add the rows of a matrix to ``total``, in columns first..last, in order."""
    for begin in range(first, last, _COLUMNS):
        sums = total[begin : min(begin + _COLUMNS, last)]
        for i in range(matrix.shape[0]):
            row = matrix[i, begin : begin + sums.size]
            for v in range(sums.size):
                sums[v] += row[v]
