"""The losses against F.cross_entropy in float64, for every option and on every CPU backend."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskkernels import linear_cross_entropy, masked_cross_entropy
from tests.support.losses import (
    assert_as_exact_as,
    copies,
    eager,
    eager_from_logits,
    inputs,
    with_gradients,
)

V = 11
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPTIONS = [  # every value of every option meets every value of every other
    {
        "class_weights": weights, "label_smoothing": smoothing, "z_loss": z_loss,
        "softcap": softcap, "logit_scale": scale, "reduction": reduction,
    }
    for weights, smoothing, z_loss, softcap, scale, reduction in itertools.product(
        [False, True], [0.0, 0.1, 1.0], [0.0, 1e-2], [None, 3.0], [1.0, 0.37],
        ["mean", "sum", "none"],
    )
]  # fmt: skip


def filled(options, vocab_size, dtype=torch.float32):
    """Options with class weights in place of True."""
    g = torch.Generator().manual_seed(3)
    weights = torch.rand(vocab_size, generator=g).to(dtype) if options["class_weights"] else None
    return options | {"class_weights": weights}


def cotangent(loss):
    """A gradient of the loss that is not all ones."""
    return torch.linspace(0.25, 1.5, max(loss.numel(), 1))[: loss.numel()].view(loss.shape)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_reference_is_the_formula(options):
    options = filled(options, V, torch.float64)
    leaves, labels = inputs(torch.float64)
    hidden, weight, bias = leaves
    found = linear_cross_entropy(hidden, weight, labels, bias, **options, backend="reference")
    expected = eager(hidden, weight, labels, bias, **options)
    assert found.loss.shape == (labels.shape if options["reduction"] == "none" else ())
    assert found.loss.dtype == torch.float64
    assert found.count == (labels != -100).sum()
    by = cotangent(expected).double()
    for a, b in zip(
        with_gradients(found.loss, leaves, by), with_gradients(expected, leaves, by), strict=True
    ):
        assert torch.allclose(a.flatten(), b.flatten(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab_size", [11, 1003])
def test_linear_is_at_least_as_exact_as_torch(dtype, vocab_size):
    """For every combination of options: loss and gradients, per element, against float64."""
    leaves, labels = inputs(dtype, vocab_size=vocab_size)
    for options in OPTIONS:
        options = filled(options, vocab_size)
        hidden, weight, bias = leaves
        ours = linear_cross_entropy(hidden, weight, labels, bias, **options, backend="numba").loss
        by = cotangent(ours)
        found = with_gradients(ours, leaves, by)
        theirs = eager(hidden, weight, labels, bias, **options)
        other = with_gradients(theirs, leaves, by.to(theirs.dtype))
        wide = copies(leaves, torch.float64)
        loss = eager(wide[0], wide[1], labels, wide[2], **options)
        assert_as_exact_as(found, other, with_gradients(loss, wide, by.double()), dtype)
        assert [g.dtype for g in found] == [torch.float32, dtype, dtype, dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strided", [False, True])
def test_masked_is_at_least_as_exact_as_torch(dtype, strided):
    g = torch.Generator().manual_seed(1)
    logits = (torch.randn(2, 23, 1003, generator=g) * 3).to(dtype)
    if strided:
        logits = logits.transpose(0, 1).contiguous().transpose(0, 1)
    leaf = logits.requires_grad_()
    _, labels = inputs(dtype, vocab_size=1003)
    for options in OPTIONS:
        options = filled(options, 1003)
        cap, scale = options.pop("softcap"), options.pop("logit_scale")

        def plain(x, cap=cap, scale=scale, options=options):
            x = x * scale
            x = x if cap is None else cap * torch.tanh(x / cap)
            return eager_from_logits(x, labels, **options)

        ours = masked_cross_entropy(leaf, labels, softcap=cap, logit_scale=scale, **options).loss
        by = cotangent(ours)
        found, theirs = with_gradients(ours, [leaf], by), plain(leaf)
        other = with_gradients(theirs, [leaf], by.to(theirs.dtype))
        wide = copies([leaf], torch.float64)
        exact = with_gradients(plain(wide[0]), wide, by.double())
        assert_as_exact_as(found, other, exact, dtype)
        assert not found[1][labels == -100].any()


# 2: the least; 3, 31: below a vector; 257: past one; 30522, 50257: real ones, no multiple of
# anything; 300,000: the largest that is promised
@pytest.mark.parametrize("vocab_size", [2, 3, 31, 257, 30522, 50257, 300_000])
def test_any_vocabulary(vocab_size):
    """The matrix products, torch's in both, err with the square root of V."""
    leaves, labels = inputs(torch.float32, (5,), 65, vocab_size, share=1.0)
    wide = copies(leaves, torch.float64)
    ours = linear_cross_entropy(leaves[0], leaves[1], labels, leaves[2], backend="numba").loss
    theirs = eager(leaves[0], leaves[1], labels, leaves[2])
    exact = eager(wide[0], wide[1], labels, wide[2])
    assert_as_exact_as(
        with_gradients(ours, leaves), with_gradients(theirs, leaves), with_gradients(exact, wide),
        torch.float32, max(32.0, 0.3 * vocab_size**0.5),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 40), width=st.integers(1, 9), vocab_size=st.integers(1, 70),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]), chunk_rows=st.integers(0, 50),
    dtype=st.sampled_from(DTYPES), with_bias=st.booleans(), option=st.sampled_from(OPTIONS),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape_in_any_chunks_equals_the_reference(
    rows, width, vocab_size, share, chunk_rows, dtype, with_bias, option, seed
):
    leaves, labels = inputs(dtype, (rows,), width, vocab_size, seed, share)
    options = filled(option, vocab_size) | {"accuracy": True, "entropy": True, "top_k": 3}
    leaves = leaves if with_bias else [*leaves[:2], None]
    wide = copies(leaves, torch.float32)
    chunk_bytes = max(1, chunk_rows * vocab_size * 4)
    found = linear_cross_entropy(
        leaves[0], leaves[1], labels, leaves[2], **options, chunk_bytes=chunk_bytes, backend="numba"
    )
    expected = linear_cross_entropy(
        wide[0], wide[1], labels, wide[2], **options, backend="reference"
    )
    assert found.count == expected.count == (labels != -100).sum()
    tolerance = max(3e-5, 2 * torch.finfo(dtype).eps)
    for a, b in zip(
        [*with_gradients(found.loss, leaves, cotangent(found.loss)), *found[2:]],
        [*with_gradients(expected.loss, wide, cotangent(found.loss)), *expected[2:]],
        strict=True,
    ):
        assert torch.allclose(a.float(), b, rtol=tolerance, atol=tolerance * float(b.abs().max()) if
                              b.numel() else 0.0)  # fmt: skip


def test_statistics_are_what_they_say():
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, 5.0], [0.0, 0.0, 9.0], [7.0, 7.0, 7.0]])
    labels = torch.tensor([2, 0, 1, -100])  # second, tied for first, tied for second; ignored
    for backend in ("reference", "numba"):
        found = masked_cross_entropy(
            logits, labels, accuracy=True, entropy=True, top_k=2, backend=backend
        )
        assert found.accuracy == torch.tensor(1 / 3)
        assert found.top_k == 1
        p = logits[:3].double().softmax(1)
        assert torch.allclose(found.entropy, -(p * p.log()).sum(1).mean().float())
        assert not any(t.requires_grad for t in found[1:])
        top = masked_cross_entropy(logits, labels, top_k=99, backend=backend)
        assert top.top_k == 1
        assert top.accuracy is None


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("rows", [0, 1, 8])
def test_nothing_labelled_is_zero_with_zero_gradients(backend, reduction, rows):
    leaves, labels = inputs(torch.float32, (rows,), share=0.0)
    leaves[0].data.fill_(torch.nan)  # rows that nobody predicts are never looked at
    for loss, of in (
        (
            linear_cross_entropy(
                leaves[0], leaves[1], labels, leaves[2], label_smoothing=0.1, z_loss=0.1,
                reduction=reduction, accuracy=True, backend=backend,
            ),
            leaves,
        ),
        (masked_cross_entropy(leaves[0], labels, reduction=reduction, backend=backend), leaves[:1]),
    ):  # fmt: skip
        assert loss.count == 0
        assert torch.equal(loss.loss, torch.zeros(rows if reduction == "none" else ()))
        assert loss.accuracy is None or loss.accuracy == 0
        for gradient in torch.autograd.grad(loss.loss.sum(), of):
            assert not gradient.any()


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_reaches_the_loss(backend, bad):
    for place in (0, 3):  # at the label, elsewhere
        logits = torch.randn(3, 5)
        logits[1, place] = bad
        labels = torch.tensor([0, 0, -100])
        found = masked_cross_entropy(
            logits, labels, reduction="none", accuracy=True, top_k=5, backend=backend
        )
        assert found.loss.isfinite().tolist() == [True, False, True]
        assert found.top_k == 0.5
        assert not masked_cross_entropy(logits, labels, backend=backend).loss.isfinite()
        elsewhere = torch.tensor([0, -100, 0])
        assert masked_cross_entropy(logits, elsewhere, backend=backend).loss.isfinite()
    impossible = torch.tensor([[0.0, -torch.inf, 1.0]])
    found = masked_cross_entropy(impossible, torch.tensor([2]), entropy=True, backend=backend)
    exact = torch.tensor([0.0, 1.0]).log_softmax(0)
    assert torch.allclose(found.loss, -exact[1])
    assert torch.allclose(found.entropy, -(exact * exact.exp()).sum())
    assert masked_cross_entropy(impossible, torch.tensor([1]), backend=backend).loss == torch.inf


def test_a_well_predicted_row_keeps_its_loss_and_gradient():
    """1 - p is 2e-9 here: float32 arithmetic with p has nothing left of it."""
    logits = torch.tensor([[20.0, 0.0]], requires_grad=True)
    loss = masked_cross_entropy(logits, torch.tensor([0]), backend="numba").loss
    loss.backward()
    rest = torch.tensor(-20.0, dtype=torch.float64).exp()
    assert torch.allclose(loss.double(), rest.log1p(), rtol=1e-6)
    assert torch.allclose(logits.grad[0, 0].double(), -rest / (1 + rest), rtol=1e-6)


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_positions_stand_for_labels(backend, aligned, reduction):
    leaves, labels = inputs(torch.float32, (2, 30))
    at = (labels.flatten() != -100).nonzero()[:, 0]
    positions = torch.cat([at, torch.full((5,), -1)])
    given = labels
    if aligned:
        given = torch.cat([labels.flatten()[at], torch.full((5,), 3)])  # padding is never read
    found = linear_cross_entropy(
        leaves[0], leaves[1], given, leaves[2], positions=positions, reduction=reduction,
        backend=backend,
    )  # fmt: skip
    expected = linear_cross_entropy(
        leaves[0], leaves[1], labels, leaves[2], reduction=reduction, backend=backend
    )
    assert found.count == expected.count
    by = torch.linspace(0.5, 2, 60).view(2, 30)
    if reduction == "none":
        loss = found.loss[: at.numel()]
        assert not found.loss[at.numel() :].any()
        a = with_gradients(loss, leaves, by.flatten()[at])
        b = with_gradients(expected.loss.flatten()[at], leaves, by.flatten()[at])
    else:
        a, b = with_gradients(found.loss, leaves), with_gradients(expected.loss, leaves)
    for x, y in zip(a, b, strict=True):
        assert torch.allclose(x, y, atol=1e-6)
    logits = torch.randn(2, 30, 11, requires_grad=True)
    one = masked_cross_entropy(logits, given, positions=positions, backend=backend).loss
    two = masked_cross_entropy(logits, labels, backend=backend).loss
    for x, y in zip(with_gradients(one, [logits]), with_gradients(two, [logits]), strict=True):
        assert torch.allclose(x, y)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_num_items_is_what_a_mean_divides_by(backend):
    leaves, labels = inputs(torch.float32)
    hidden, weight, bias = leaves

    def found(**options):
        loss = linear_cross_entropy(hidden, weight, labels, bias, backend=backend, **options).loss
        return with_gradients(loss, leaves)

    total = found(reduction="sum")
    for items in (37, 37.0, torch.tensor(37), torch.tensor(37.0, dtype=torch.float64)):
        for a, b in zip(found(num_items=items), total, strict=True):
            assert torch.allclose(a, b / 37, atol=1e-7)


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_division_by_zero_is_torchs(backend):
    (hidden, weight, bias), labels = inputs(torch.float32)
    for options, expected in (
        ({"num_items": torch.tensor(0)}, torch.inf),
        ({"class_weights": torch.zeros(len(weight))}, torch.nan),
    ):
        loss = linear_cross_entropy(hidden, weight, labels, bias, backend=backend, **options).loss
        assert torch.allclose(loss, torch.tensor(expected), equal_nan=True)
        loss.backward(retain_graph=True)
        loss.backward()


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("aligned", [False, True])
def test_positions_of_no_rows_are_ignored(backend, aligned):
    logits = torch.zeros(0, 5, requires_grad=True)
    positions, labels = torch.tensor([-1, -1]), torch.full((2 * aligned,), -100)
    options = {"positions": positions, "backend": backend}
    output = masked_cross_entropy(logits, labels, reduction="none", **options)
    output.loss.sum().backward()
    assert (output.loss.tolist(), output.count.item(), logits.grad.shape) == ([0, 0], 0, (0, 5))
