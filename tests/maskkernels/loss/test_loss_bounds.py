"""The bound that 16-bit losses keep on a GPU: right arithmetic keeps it, wrong kernels break it."""

import pytest
import torch

from tests.support.losses import copies, eager, inputs, norm_excess, with_gradients

ALL = {"label_smoothing": 0.1, "z_loss": 0.05, "softcap": 5.0}
ITEMS = 150


def product(a, b, dtype):
    return (a.float() @ b.float()).to(dtype)


def kernel(leaves, labels, wrong="", label_smoothing=0.0, z_loss=0.0, softcap=None):
    """[loss, gradients] with the arithmetic of the GPU's kernels, or what one mistake makes of it.

    Logits are rounded to the dtype, so are their gradients; everything between is float32.
    """
    hidden, weight, bias = (t.detach() for t in leaves)
    dtype, y = hidden.dtype, labels.flatten()
    labelled = y != -100
    x = torch.where(labelled[:, None], hidden.flatten(0, 1), 0)
    raw = product(x, weight.t(), dtype).float() + bias.float()
    if wrong == "bias left out":
        raw = raw - bias.float()
    z = softcap * torch.tanh(raw / softcap) if softcap else raw
    seen = z[:, :960] if wrong == "tail of a row not summed" else z
    lse, label = seen.logsumexp(1), torch.where(labelled, y, 0)[:, None]
    at_label = z.gather(1, label).squeeze(1)
    smooth = label_smoothing / z.shape[1]
    rows = (1 - label_smoothing) * (lse - at_label) + smooth * (lse[:, None] - z).sum(1)
    rows = torch.where(labelled, rows + z_loss * lse**2, 0)
    factor = 1 + 2 * z_loss * lse
    if wrong == "z-loss without its gradient":
        factor = torch.ones_like(lse)
    p = (z - lse[:, None]).exp()
    g = factor[:, None] * p - smooth
    if wrong != "label's element overwritten":
        g.scatter_add_(1, label, torch.full_like(at_label, label_smoothing - 1)[:, None])
    if softcap and wrong != "softcap without its gradient":
        g = g * (1 - (z / softcap) ** 2)
    g = torch.where(labelled[:, None], g / ITEMS, 0)
    if wrong == "one row in 32 not written":
        g[::32] = 0
    g = g.to(dtype)
    d_weight = product(g.t(), x, dtype)
    if wrong == "chunks of dW summed in the 16-bit dtype":
        d_weight = sum(
            (product(a.t(), b, dtype) for a, b in zip(g.split(2), x.split(2), strict=True)),
            torch.zeros_like(weight),
        )
    d_hidden = product(g, weight, dtype).view_as(hidden)
    if wrong == "gradient of another row":
        d_hidden = d_hidden.roll(1, 1)
    return [rows.sum() / ITEMS, d_hidden, d_weight, g.float().sum(0).to(dtype)]


def excess(dtype, wrong, options, seed=0):
    leaves, labels = inputs(dtype, (4, 75), 64, 1003, seed=seed)
    wide = copies(leaves, torch.float64)
    theirs = eager(*leaves[:2], labels, leaves[2], num_items=ITEMS, **options)
    exact = eager(*wide[:2], labels, wide[2], num_items=ITEMS, **options)
    found = kernel(leaves, labels, wrong, **options)
    return norm_excess(found, with_gradients(theirs, leaves), with_gradients(exact, wide))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{}, ALL], ids=["plain", "all"])
def test_right_arithmetic_keeps_the_bound(dtype, options):
    for seed in range(3):
        found = excess(dtype, "", options, seed)
        assert max(found.values()) <= 0, (seed, found)


@pytest.mark.parametrize(
    "wrong",
    [
        "bias left out", "tail of a row not summed", "z-loss without its gradient",
        "label's element overwritten", "softcap without its gradient",
        "one row in 32 not written", "chunks of dW summed in the 16-bit dtype",
        "gradient of another row",
    ],
)  # fmt: skip
def test_a_wrong_kernel_breaks_the_bound(wrong):
    found = excess(torch.bfloat16, wrong, ALL)
    assert max(found.values()) > 0, found
