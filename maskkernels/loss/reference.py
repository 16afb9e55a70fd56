"""Masked cross-entropy in plain torch. This file is the specification of every loss kernel."""

import torch
from torch import Tensor
from torch.nn import functional as F

from maskkernels.loss.job import LossJob, no_autocast

Result = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def cross_entropy(job: LossJob) -> Result:
    """(loss, count, accuracy, entropy, top_k); see ``api`` for what each field means.

    Computes every row and drops the ignored ones, so that shapes do not depend on data. Autograd
    differentiates it.
    """
    x, labels, labelled = select(job)
    logits = logits_of(x, labelled, job)
    vocab_size = logits.shape[1]
    inside = (labels >= 0) & (labels < vocab_size)
    label = torch.where(labelled & inside, labels, 0)
    lse = logits.logsumexp(1)
    at_label = logits.gather(1, label[:, None]).squeeze(1)
    class_weights = job.class_weights
    weight = torch.ones_like(lse) if class_weights is None else class_weights[label]
    rows = weight * (1 - job.label_smoothing) * (lse - at_label)
    if job.label_smoothing:
        to_all = lse[:, None] - logits
        if class_weights is not None:
            to_all = to_all * class_weights
        rows = rows + job.label_smoothing / vocab_size * to_all.sum(1)
    if job.z_loss:
        rows = rows + job.z_loss * lse.square()
    # A product, so that the gradients of what is NaN are NaN too.
    rows = rows * torch.where(labelled & ~inside, torch.nan, 1.0)
    count = labelled.sum()
    if job.capacity >= 0:
        rows = rows * torch.where(labelled & (count > job.capacity), torch.nan, 1.0)
    token_weights = weights_of(job, labelled)
    if token_weights is not None:
        rows = rows * torch.where(token_weights.isfinite(), token_weights, torch.nan)
    rows = torch.where(labelled, rows, 0.0)
    with torch.no_grad():
        divisor = divisor_of(job, count, torch.where(labelled, weight, 0.0), token_weights)
        stats = _statistics(job, logits.detach(), lse, at_label, labelled & inside, count)
    if job.reduction != "none":
        rows = rows.sum() / divisor
    return rows, count, *stats


def select(job: LossJob) -> tuple[Tensor, Tensor, Tensor]:
    """(input, label and whether it counts) of each row of the result."""
    positions, rows, labels = job.positions, job.input, job.labels
    if positions is None:
        return rows, labels, labels != job.ignore_index
    at = positions.clamp(0)
    if not rows.shape[0]:  # no position names a row; they all get one that is ignored
        rows = torch.cat([rows, rows.new_zeros((1, rows.shape[1]))])
        labels = labels if job.aligned else labels.new_full((1,), job.ignore_index)
    labels = labels if job.aligned else labels[at]
    return rows[at], labels, (positions >= 0) & (labels != job.ignore_index)


def logits_of(x: Tensor, labelled: Tensor, job: LossJob) -> Tensor:
    """Scaled and capped logits, float32 or float64; those of rows without a label are finite."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    x = torch.where(labelled[:, None], x, 0).to(dtype)
    if job.weight is not None:
        with no_autocast(x.device.type):
            bias = None if job.bias is None else job.bias.to(dtype)
            x = F.linear(x, job.weight.to(dtype), bias)
    x = x * job.logit_scale
    return job.softcap * torch.tanh(x / job.softcap) if job.softcap else x


def weights_of(job: LossJob, labelled: Tensor) -> Tensor | None:
    """The token weight of each row of the result, 0 where it is not ``labelled``; None: all 1."""
    weights = job.token_weights
    if weights is None:
        return None
    if job.positions is not None and not job.weights_aligned:
        some = weights if weights.numel() else weights.new_zeros(1)
        weights = some[job.positions.clamp(0)]
    return torch.where(labelled, weights, 0.0)


def divisor_of(
    job: LossJob, count: Tensor, class_weights: Tensor, token_weights: Tensor | None
) -> Tensor | float:
    """What the sum of the rows is divided by; 1 where no labelled row has any weight.

    Args:
        job: the job.
        count: int64 0-d, the number of labelled rows.
        class_weights: the class weight of each row's label, 0 where the row is ignored.
        token_weights: the token weight of each row, 0 where it is ignored; None: all 1.
    """
    if job.reduction != "mean":
        return 1.0
    is_some, weights = count > 0, class_weights
    if token_weights is not None:
        is_some, weights = (token_weights != 0).any(), class_weights * token_weights
    divisor = weights.sum() if job.num_items is None else job.num_items
    return torch.where(is_some, divisor, 1.0)


def _statistics(
    job: LossJob, logits: Tensor, lse: Tensor, at_label: Tensor, counted: Tensor, count: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(accuracy, entropy, share of labels among the top k); empty where not requested."""
    none = logits.new_empty(0, dtype=torch.float32)
    accuracy, entropy, top_k = none, none.clone(), none.clone()
    divisor = count.clamp(min=1)
    if job.accuracy or job.top_k:
        rank = (logits > at_label[:, None]).sum(1)
        rank = torch.where(counted & lse.isfinite(), rank, logits.shape[1])
        if job.accuracy:
            accuracy = (rank < 1).sum() / divisor
        if job.top_k:
            top_k = ((rank < job.top_k) & (rank < logits.shape[1])).sum() / divisor
    if job.entropy:
        rows = torch.special.entr(logits.softmax(1)).sum(1)
        entropy = (torch.where(counted, rows, 0.0).sum() / divisor).float()
    return accuracy, entropy, top_k
