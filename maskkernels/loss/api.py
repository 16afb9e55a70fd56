"""The losses: check the inputs, choose a backend, compute."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskkernels.backend import resolve
from maskkernels.loss.checks import (
    check_float,
    check_labels,
    check_numbers,
    check_token_weights,
    check_transforms,
    check_values,
    items_tensor,
)
from maskkernels.loss.job import LossJob, is_autocast_on
from maskkernels.loss.op import cross_entropy
from maskkernels.tokens import IGNORE_INDEX
from maskkernels.tokens.checks import check_int64

REDUCTIONS = ("mean", "sum", "none")


class LossOutput(NamedTuple):
    """A loss and what was counted on the way.

    Attributes:
        loss: float32 (float64 for a float64 input): a scalar for "mean" and "sum"; for "none" the
            loss of each row in the shape of the labels (of ``positions`` where they are given), 0
            where the row is ignored.
        count: int64 [], the number of labelled rows, on the device of the input.
        accuracy: float32 [], the share of labelled rows in which no logit is greater than the
            label's; 0 where nothing is labelled; None unless requested. Without gradient.
        entropy: float32 [], the mean entropy of the predicted distributions of labelled rows, in
            nats; as accuracy.
        top_k: float32 [], the share of labelled rows in which fewer than k logits are greater than
            the label's; as accuracy.

    Examples:
        >>> import torch
        >>> from maskkernels import masked_cross_entropy
        >>> output = masked_cross_entropy(torch.eye(3), torch.tensor([0, 1, 0]), accuracy=True)
        >>> output.count.item(), round(output.accuracy.item(), 2), output.entropy
        (3, 0.67, None)
    """

    loss: Tensor
    count: Tensor  # type: ignore[assignment]  # in place of tuple.count
    accuracy: Tensor | None = None
    entropy: Tensor | None = None
    top_k: Tensor | None = None


def masked_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    positions: Tensor | None = None,
    class_weights: Tensor | None = None,
    token_weights: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    reduction: str = "mean",
    num_items: int | float | Tensor | None = None,
    accuracy: bool = False,
    entropy: bool = False,
    top_k: int | None = None,
    backend: str = "auto",
) -> LossOutput:
    """Cross-entropy of the labelled rows of ``logits``; the others are never read.

    In place of ``F.cross_entropy(logits.view(-1, V), labels.view(-1))``. The plain formula, for one
    row with logits x, label y, weight t of the token, class weights w (1 where not given):
    z = logit_scale * x, then z = softcap * tanh(z / softcap) if there is a softcap;
    lse = log(sum_v exp(z_v));
    row = t * (w_y * (1 - label_smoothing) * (lse - z_y)
    + label_smoothing / V * sum_v w_v * (lse - z_v) + z_loss * lse^2).
    "sum" adds the labelled rows; "mean" divides that by ``num_items`` or, without it, by the sum
    of their t * w_y, which is their count without weights. Without labelled rows, or with token
    weights of 0 alone, the divisor is 1, so that the loss is 0 and so are the gradients. Sums are
    taken in float32 whatever the dtype (float64 for float64).

    Args:
        logits: [..., V], float16, bfloat16 or float32; float64 on the reference alone.
        labels: [...], int64 or int32: the class of each row, or ``ignore_index``.
        positions: int64 [C], rows of the flattened logits that are predicted, ascending, then -1,
            as ``mask_tokens(..., capacity=C)`` returns them: only these rows are looked at.
            ``labels`` may then be [C] as well, one for each position.
        class_weights: float [V]. Gets no gradient.
        token_weights: float [...] as ``labels``, or [C] as ``positions`` where there are some (a
            shape that is both is that of the rows): the weight of each row's loss, in float32. Any
            finite number. Gets no gradient. Those of unlabelled rows are not looked at. A row of
            weight 0 counts as labelled: 0 times a loss that is not finite is NaN. Accuracy,
            entropy, top_k and count are unweighted.
        ignore_index: the label of rows that are not predicted.
        label_smoothing: in [0, 1].
        z_loss: factor of lse^2, at least 0.
        softcap: positive, or None.
        logit_scale: finite.
        reduction: "mean", "sum" or "none".
        num_items: what "mean" divides by: a number, or a 0-d tensor, which is never read on the
            host. 0 says that nothing is labelled in all the batches of an update: the loss of one
            without labelled rows is 0, and of another infinite (or NaN, where its sum is 0).
        accuracy, entropy, top_k: what else to compute in the same pass; top_k is k.
        backend: "auto", "reference", "numba" (CPU) or "triton" (GPU).

    Returns:
        LossOutput(loss, count, accuracy, entropy, top_k).

    Raises:
        TypeError, ValueError: an argument that does not fit, by name; a label outside [0, V) and
            the weight of a labelled token that is not finite are found on the CPU only. On a GPU,
            where looking would wait for the device, the loss of such a row is NaN, and so are its
            gradients.
        RuntimeError: a gradient of the gradient is requested; only the reference has one. A call
            within a transform of torch.func (grad, vmap...), where only the reference runs.

    Examples:
        >>> import torch
        >>> from maskkernels import masked_cross_entropy
        >>> logits = torch.zeros(3, 4, requires_grad=True)
        >>> output = masked_cross_entropy(logits, torch.tensor([1, -100, 2]))
        >>> round(output.loss.item(), 4), output.count.item()  # log(4), of two labelled rows
        (1.3863, 2)
    """
    return _cross_entropy(
        "logits", logits, None, None, labels, positions, class_weights, token_weights,
        ignore_index, label_smoothing, z_loss, softcap, logit_scale, reduction, num_items, accuracy,
        entropy, top_k, None, None, backend,
    )  # fmt: skip


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    positions: Tensor | None = None,
    class_weights: Tensor | None = None,
    token_weights: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    reduction: str = "mean",
    num_items: int | float | Tensor | None = None,
    accuracy: bool = False,
    entropy: bool = False,
    top_k: int | None = None,
    capacity: int | None = None,
    chunk_bytes: int | None = None,
    backend: str = "auto",
) -> LossOutput:
    """Cross-entropy of ``F.linear(hidden, weight, bias)``, computed for labelled rows only.

    In place of ``F.cross_entropy(F.linear(hidden, weight, bias).view(-1, V), labels.view(-1))``.
    The formula is that of ``masked_cross_entropy`` with x = hidden @ weight.T + bias. Logits exist
    for a chunk of labelled rows at a time, and become their own gradient in place. Gradients are
    computed in the forward pass (in the backward pass for "none") and those of the weight are
    summed in float32. Under autocast hidden, weight and bias are cast as ``F.linear`` casts them.

    A GPU does not tell the host how many rows are labelled unless the host waits, and no loss
    waits. So without ``positions`` and ``capacity`` a GPU multiplies every row, those without a
    label as zeros: with 15% of the rows labelled, some 6.7 times the products that are needed.
    ``positions``, as ``mask_tokens(..., capacity=C)`` returns them, or ``capacity`` avoid this.

    Args:
        hidden: [..., H], float16, bfloat16 or float32; float64 on the reference alone.
        weight: [V, H], of the dtype of hidden.
        labels: [...], as in ``masked_cross_entropy``.
        bias: [V], of the dtype of hidden, or None.
        positions: as in ``masked_cross_entropy``, rows of the flattened hidden states.
        class_weights, token_weights, ignore_index, label_smoothing, z_loss, softcap, logit_scale,
            reduction, num_items, accuracy, entropy, top_k: as in ``masked_cross_entropy``.
        capacity: without positions, at most so many rows are labelled. A GPU then computes this
            many rows whatever the labels, without waiting to count them, and the loss and its
            gradients are NaN where there are more; the CPU counts, and raises.
        chunk_bytes: how many bytes of logits may exist at a time; at least one row does. None: 64
            MiB or 256 rows on the CPU, whichever is more; on a GPU half a GiB, or 1024 rows.
        backend: "auto", "reference" (all logits at once), "numba" (CPU) or "triton" (GPU).

    Returns:
        LossOutput(loss, count, accuracy, entropy, top_k).

    Raises:
        TypeError, ValueError, RuntimeError: as ``masked_cross_entropy``.

    Examples:
        >>> import torch
        >>> from maskkernels import linear_cross_entropy
        >>> hidden, weight = torch.zeros(2, 3, 8), torch.ones(4, 8)
        >>> labels = torch.tensor([[1, -100, 2], [-100, -100, 0]])
        >>> output = linear_cross_entropy(hidden, weight, labels)
        >>> round(output.loss.item(), 4), output.count.item()
        (1.3863, 3)
    """
    check_float("hidden", hidden)
    check_float("weight", weight, hidden)
    shapes_fit = weight.dim() == 2 and hidden.dim() > 0 and weight.shape[1] == hidden.shape[-1]
    if not shapes_fit or not weight.shape[1]:
        raise ValueError(
            "weight must be [V, H] and hidden [..., H] with H above 0, "
            f"got {tuple(weight.shape)} and {tuple(hidden.shape)}"
        )
    if bias is not None:
        check_float("bias", bias, hidden)
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias must be [{weight.shape[0]}], got {tuple(bias.shape)}")
    if capacity is not None:
        check_int64("capacity", capacity, 0)
        if positions is not None:
            raise ValueError("capacity goes without positions: their number is the capacity")
    if chunk_bytes is not None:
        check_int64("chunk_bytes", chunk_bytes, 1)
    kind = hidden.device.type
    if is_autocast_on(kind):
        hidden, weight, bias = _autocast(torch.get_autocast_dtype(kind), hidden, weight, bias)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != hidden.dtype:
            raise TypeError(f"{name} is {tensor.dtype}, hidden {hidden.dtype}: cast one of them")
    return _cross_entropy(
        "hidden", hidden, weight, bias, labels, positions, class_weights, token_weights,
        ignore_index, label_smoothing, z_loss, softcap, logit_scale, reduction, num_items, accuracy,
        entropy, top_k, capacity, chunk_bytes, backend,
    )  # fmt: skip


def _autocast(dtype: torch.dtype, *tensors: Any) -> list[Any]:
    """Cast as autocast does: float64 stays."""
    return [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors]


def _cross_entropy(
    name: str,
    rows: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    labels: Tensor,
    positions: Tensor | None,
    class_weights: Tensor | None,
    token_weights: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    logit_scale: float,
    reduction: str,
    num_items: int | float | Tensor | None,
    accuracy: bool,
    entropy: bool,
    top_k: int | None,
    capacity: int | None,
    chunk_bytes: int | None,
    backend: str,
) -> LossOutput:
    """Check what both losses share; ``name`` is what the caller calls ``rows``."""
    check_float(name, rows)
    vocab_size = rows.shape[-1] if weight is None and rows.dim() else 0
    vocab_size = vocab_size if weight is None else weight.shape[0]
    if (weight is None and rows.dim() < 2) or vocab_size < 1:
        raise ValueError(
            f"{name if weight is None else 'weight'} must have at least one class and two "
            f"dimensions, got {tuple(rows.shape if weight is None else weight.shape)}"
        )
    aligned = check_labels(name, rows, labels, positions)
    dtype = torch.promote_types(rows.dtype, torch.float32)
    if class_weights is not None:
        check_float("class_weights", class_weights, rows)
        if class_weights.shape != (vocab_size,):
            raise ValueError(
                f"class_weights must be [{vocab_size}], got {tuple(class_weights.shape)}"
            )
        class_weights = class_weights.detach().to(dtype)
    weights_aligned = False
    if token_weights is not None:
        weights_aligned = check_token_weights(name, rows, positions, token_weights)
        token_weights = token_weights.detach().reshape(-1).to(dtype)
    check_numbers(label_smoothing, z_loss, softcap, logit_scale)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction={reduction!r}: expected one of {REDUCTIONS}")
    if num_items is not None and reduction != "mean":
        raise ValueError(f"num_items goes with reduction='mean', not {reduction!r}")
    check_int64("ignore_index", ignore_index)
    if top_k is not None:
        check_int64("top_k", top_k, 1)
    needs = [
        torch.is_grad_enabled() and t is not None and t.requires_grad for t in (rows, weight, bias)
    ]
    job = LossJob(
        rows.reshape(-1, rows.shape[-1]), weight, bias, labels.reshape(-1).long(), positions,
        class_weights, token_weights, items_tensor(num_items, rows.device, dtype), aligned,
        weights_aligned, int(ignore_index), float(label_smoothing), float(z_loss),
        float(softcap or 0.0), float(logit_scale), reduction, bool(accuracy), bool(entropy),
        int(top_k or 0), -1 if capacity is None else int(capacity), int(chunk_bytes or 0), *needs,
    )  # fmt: skip
    name = _backend(backend, rows)
    is_traced = check_transforms(name) or torch.compiler.is_compiling()
    if name == "reference" and rows.device.type == "cpu" and not is_traced:
        check_values(job)  # the kernels look as they go
    loss, count, *statistics = cross_entropy.run(name, rows.device, job)[:5]
    if reduction == "none" and positions is None:
        loss = loss.view(labels.shape)
    if capacity is not None:  # a NaN that a kernel wrote has no gradient; this has
        over = count > capacity
        over = over & (labels != ignore_index) if reduction == "none" else over
        loss = loss * torch.where(over, torch.nan, 1.0)
    asked = (accuracy, entropy, top_k)
    return LossOutput(
        loss, count, *(s if a else None for s, a in zip(statistics, asked, strict=True))
    )


def _backend(backend: str, rows: Tensor) -> str:
    name = resolve(backend, rows.device)
    if name != "reference" and rows.dtype == torch.float64:
        if backend == "auto":
            return "reference"
        raise ValueError(f"backend={backend!r}: float64 is computed by the reference alone")
    return name
