"""Inputs for the tests of the losses, and the same losses in eager torch."""

import torch
from torch import Tensor
from torch.nn import functional as F

NAMES = ("hidden", "weight", "bias")


def inputs(dtype, shape=(2, 23), width=7, vocab_size=11, seed=0, share=0.5):
    """([hidden, weight, bias], labels), of which a ``share`` is not ignored."""
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*shape, width, generator=g)
    weight = torch.randn(vocab_size, width, generator=g) * (4 / width**0.5)
    bias = torch.randn(vocab_size, generator=g)
    labels = torch.randint(0, vocab_size, shape, generator=g)
    labels[torch.rand(shape, generator=g) >= share] = -100
    return [t.to(dtype).requires_grad_() for t in (hidden, weight, bias)], labels


def copies(tensors, dtype):
    """Leaves of another dtype with the same values."""
    return [None if t is None else t.detach().to(dtype).requires_grad_() for t in tensors]


def eager(hidden, weight, labels, bias=None, *, softcap=None, logit_scale=1.0, **options) -> Tensor:
    """The loss as a user of torch writes it, in the dtype of its inputs."""
    logits = F.linear(hidden, weight, bias) * logit_scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return eager_from_logits(logits, labels, **options)


def eager_from_logits(
    logits,
    labels,
    *,
    z_loss=0.0,
    num_items=None,
    reduction="mean",
    class_weights=None,
    token_weights=None,
    **options,
) -> Tensor:
    logits, labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    if class_weights is not None:
        class_weights = class_weights.to(logits.dtype)
    rows = F.cross_entropy(logits, labels, weight=class_weights, reduction="none", **options)
    if z_loss:
        rows = rows + z_loss * logits.logsumexp(1).square() * (labels != -100)
    labelled = labels != -100
    kept = labels[labelled]
    shares = torch.ones_like(rows)[labelled] if class_weights is None else class_weights[kept]
    if token_weights is not None:
        token_weights = token_weights.reshape(-1).to(rows.dtype)
        rows = rows * torch.where(labelled, token_weights, 0)
        shares = shares * token_weights[labelled]
    if reduction == "none":
        return rows
    total = shares.sum()
    divisor = 1.0 if reduction == "sum" else num_items or total
    return rows.sum() / divisor


def with_gradients(loss, leaves, cotangent=None) -> list[Tensor]:
    """[loss, gradients of the leaves]."""
    if cotangent is None:
        cotangent = torch.ones_like(loss)
    leaves = [t for t in leaves if t is not None]
    return [loss.detach(), *torch.autograd.grad(loss, leaves, cotangent.view_as(loss))]


def assert_as_exact_as(found, other, exact, dtype, slack=32.0):
    """Each |found - exact| is at most |other - exact| plus the rounding of the result itself.

    That rounding is one unit in the last place of ``dtype`` for the element, and ``slack`` units of
    float32 for the largest element: for sums in another order, of logits that were rounded.
    """
    for name, a, b, e in zip(("loss", *NAMES), found, other, exact, strict=False):
        a, b, e = a.double().flatten(), b.double().flatten(), e.double().flatten()
        assert a.shape == e.shape, name
        unit = torch.finfo(torch.float32 if name == "loss" else dtype).eps
        largest = e.abs().max() if e.numel() else 0.0
        tolerance = unit * e.abs() + slack * torch.finfo(torch.float32).eps * largest
        if dtype == torch.float16:  # below its normal numbers the unit is absolute
            tolerance = tolerance + 2.0**-24
        worse = (a - e).abs() - (b - e).abs() - tolerance
        assert not (worse > 0).any(), f"{name}: {worse.max():.3g} beyond, largest {largest:.3g}"
        assert torch.equal(a.isnan(), e.isnan()), name


# Of torch's own error, and of the gradient's norm, that a right 16-bit kernel may be off. Both
# round logits and their gradients to 16 bits, in another order: a quarter covers it over 20 seeds.
NORM_FACTOR, NORM_SLACK = 1.25, 1e-4


def norm_excess(found, other, exact) -> dict[str, float]:
    """{name: how far |found - exact| is beyond its bound, relative to |exact|}, in norms.

    The bound is NORM_FACTOR * |other - exact| + NORM_SLACK * |exact|. Element by element no bound
    near the unit of a 16-bit dtype holds: two right orders of summation differ by more in some.
    """
    excess = {}
    for name, a, b, e in zip(("loss", *NAMES), found, other, exact, strict=False):
        a, b, e = a.double().flatten(), b.double().flatten(), e.double().flatten()
        assert a.shape == e.shape, name
        assert torch.equal(a.isnan(), e.isnan()), name
        whole = max(float(e.nan_to_num().norm()), 1e-30)
        ours, theirs = (float((t - e).nan_to_num().norm()) for t in (a, b))
        excess[name] = (ours - NORM_FACTOR * theirs) / whole - NORM_SLACK
    return excess


def assert_norms_as_exact_as(found, other, exact) -> None:
    """Each norm of an error is within ``norm_excess``'s bound."""
    beyond = {name: e for name, e in norm_excess(found, other, exact).items() if e > 0}
    assert not beyond, f"relative norms beyond the bound: {beyond}"
