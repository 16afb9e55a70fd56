"""The losses against F.cross_entropy in float64, for every option and on every CPU backend."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from maskkernels import linear_cross_entropy

V = 11


def inputs(dtype=torch.float64, shape=(2, 7), width=5, vocab_size=V, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(size, generator=g, dtype=torch.float64)  # noqa: E731
    hidden, weight, bias = draw(*shape, width), draw(vocab_size, width), draw(vocab_size)
    labels = torch.randint(0, vocab_size, shape, generator=g)
    labels[torch.rand(shape, generator=g) < 0.5] = -100
    return [t.to(dtype).requires_grad_() for t in (hidden, weight, bias)], labels


OPTIONS = list(itertools.product([False, True], [0.0, 0.1, 1.0], ["mean", "sum", "none"]))


@pytest.mark.parametrize(("weighted", "smoothing", "reduction"), OPTIONS)
def test_the_reference_is_cross_entropy_of_the_linear_layer(weighted, smoothing, reduction):
    (hidden, weight, bias), labels = inputs()
    class_weights = torch.rand(V, dtype=torch.float64) if weighted else None
    options = {"label_smoothing": smoothing, "reduction": reduction}
    found = linear_cross_entropy(
        hidden, weight, labels, bias, class_weights=class_weights, **options, backend="reference"
    )
    logits = F.linear(hidden, weight, bias).view(-1, V)
    expected = F.cross_entropy(logits, labels.view(-1), weight=class_weights, **options)
    assert torch.allclose(found.loss.view(expected.shape), expected)
    assert found.count == (labels != -100).sum()
    for a, b in zip(
        torch.autograd.grad(found.loss.sum(), (hidden, weight, bias)),
        torch.autograd.grad(expected.sum(), (hidden, weight, bias)),
        strict=True,
    ):
        assert torch.allclose(a, b)
