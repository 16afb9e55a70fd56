"""Weights of tokens in the losses: the plain formula, what is stated, and what is refused."""

import itertools

import pytest
import torch

from maskkernels import linear_cross_entropy, masked_cross_entropy
from tests.support.losses import (
    assert_as_exact_as,
    copies,
    eager,
    eager_from_logits,
    inputs,
    with_gradients,
)

BACKENDS = ["reference", "numba"]
V = 11
ALONE = [
    {}, {"label_smoothing": 0.1}, {"z_loss": 1e-2}, {"softcap": 3.0}, {"logit_scale": 0.37},
    {"class_weights": torch.rand(V, generator=torch.Generator().manual_seed(3))},
]  # fmt: skip
TOGETHER = {name: value for options in ALONE for name, value in options.items()}
ENDS = [{"reduction": r} for r in ("mean", "sum", "none")] + [{"num_items": 37}]
OPTIONS = [a | b for a, b in itertools.product([*ALONE, TOGETHER], ENDS)]


def weights_for(labels, seed=5):
    """Some above 1, some negative, some 0; NaN where nothing is labelled."""
    weights = torch.randn(labels.shape, generator=torch.Generator().manual_seed(seed)) + 0.7
    weights = torch.where(weights.abs() < 0.2, 0.0, weights)
    return torch.where(labels == -100, torch.nan, weights)


def named(options):
    return "-".join(f"{k}={'w' if torch.is_tensor(v) else v}" for k, v in options.items())


@pytest.mark.parametrize("options", OPTIONS, ids=named)
def test_the_reference_is_the_formula(options):
    leaves, labels = inputs(torch.float64)
    hidden, weight, bias = leaves
    options = options | {"token_weights": weights_for(labels).double()}
    found = linear_cross_entropy(hidden, weight, labels, bias, **options, backend="reference")
    expected = eager(hidden, weight, labels, bias, **options)
    by = torch.linspace(0.25, 1.5, expected.numel(), dtype=torch.float64)
    for a, b in zip(
        with_gradients(found.loss, leaves, by), with_gradients(expected, leaves, by), strict=True
    ):
        assert torch.allclose(a.flatten(), b.flatten(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_kernels_are_at_least_as_exact_as_torch(dtype):
    leaves, labels = inputs(dtype)
    logits = (torch.randn(2, 23, V, generator=torch.Generator().manual_seed(1)) * 3).to(dtype)
    logits.requires_grad_()
    for options in OPTIONS:
        options = options | {"token_weights": weights_for(labels)}
        plain = {k: v for k, v in options.items() if k not in ("softcap", "logit_scale")}

        def linear(hidden, weight, bias, loss, options=options):
            return loss(hidden, weight, labels, bias, **options)

        def masked(x, loss, plain=plain):
            return loss(x, labels, **plain)

        for call, fused, theirs, of in (
            (linear, linear_cross_entropy, eager, leaves),
            (masked, masked_cross_entropy, eager_from_logits, [logits]),
        ):
            ours = call(*of, fused).loss
            by = torch.linspace(0.25, 1.5, ours.numel()).view(ours.shape)
            found = with_gradients(ours, of, by)
            wide = copies(of, torch.float64)
            exact = with_gradients(call(*wide, theirs), wide, by.double())
            plainly = call(*of, theirs)
            other = with_gradients(plainly, of, by.to(plainly.dtype))
            assert_as_exact_as(found, other, exact, dtype)
            assert not found[1][labels == -100].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mean_divides_by_the_weights_of_labelled_tokens(backend):
    """Two rows of equal logits: each costs log(2), whatever the label."""
    logits, labels = torch.zeros(3, 2), torch.tensor([0, 1, -100])
    weights, of_classes = torch.tensor([3.0, 0.5, 100.0]), torch.tensor([1.0, 4.0])
    log2 = torch.tensor(2.0).log()

    def loss(**options):
        return masked_cross_entropy(
            logits, labels, token_weights=weights, backend=backend, **options
        ).loss

    torch.testing.assert_close(loss(reduction="none"), log2 * torch.tensor([3.0, 0.5, 0.0]))
    torch.testing.assert_close(loss(reduction="sum"), log2 * 3.5)
    torch.testing.assert_close(loss(), log2)
    torch.testing.assert_close(loss(num_items=7), log2 * 0.5)
    # of class weights too: (3 * 1 + 0.5 * 4) log 2, over 3 * 1 + 0.5 * 4
    torch.testing.assert_close(loss(class_weights=of_classes), log2)
    torch.testing.assert_close(loss(class_weights=of_classes, num_items=1), log2 * 5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_of_one_change_nothing(backend):
    leaves, labels = inputs(torch.float32)

    def found(**options):
        output = linear_cross_entropy(
            *leaves[:2], labels, leaves[2], backend=backend, accuracy=True, entropy=True, top_k=2,
            class_weights=torch.rand(V, generator=torch.Generator().manual_seed(0)), **options,
        )  # fmt: skip
        return [*with_gradients(output.loss, leaves), *output[1:]]

    for a, b in zip(found(token_weights=torch.ones(labels.shape)), found(), strict=True):
        assert torch.allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_metrics_are_unweighted(backend):
    leaves, labels = inputs(torch.float32)

    def metrics(**options):
        return linear_cross_entropy(
            *leaves[:2], labels, accuracy=True, entropy=True, top_k=2, backend=backend, **options
        )[1:]

    assert metrics(token_weights=weights_for(labels)) == metrics()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("weights_aligned", [False, True])
def test_weights_of_positions_are_those_of_labels(backend, reduction, aligned, weights_aligned):
    leaves, labels = inputs(torch.float32, (2, 30))
    weights = weights_for(labels)
    at = (labels.flatten() != -100).nonzero()[:, 0]
    positions = torch.cat([at, torch.full((5,), -1)])
    y, w = labels, weights
    if aligned:
        y = torch.cat([labels.flatten()[at], torch.full((5,), 3)])
    if weights_aligned:  # those of no row are not looked at
        w = torch.cat([weights.flatten()[at], torch.full((5,), torch.nan)])

    def loss(y, w, **options):
        return linear_cross_entropy(
            *leaves[:2], y, leaves[2], token_weights=w, reduction=reduction, backend=backend,
            **options,
        ).loss  # fmt: skip

    found, expected = loss(y, w, positions=positions), loss(labels, weights)
    if reduction == "none":
        assert not found[at.numel() :].any()
        found, expected = found[: at.numel()], expected.flatten()[at]
    by = torch.linspace(0.5, 2, found.numel())
    for a, b in zip(
        with_gradients(found, leaves, by), with_gradients(expected, leaves, by), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [*ENDS, {"num_items": torch.tensor(0)}], ids=named)
def test_weights_of_zero_alone_are_as_nothing_labelled(backend, options):
    leaves, labels = inputs(torch.float32)
    weights = torch.where(labels == -100, 2.0, 0.0)
    output = linear_cross_entropy(
        *leaves[:2], labels, leaves[2], token_weights=weights, backend=backend, **options
    )
    assert not output.loss.any()
    assert output.count == (labels != -100).sum()
    for gradient in with_gradients(output.loss, leaves)[1:]:
        assert not gradient.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_weights_that_cancel_divide_by_zero_as_torch_does(backend):
    logits = torch.tensor([[0.0, 1.0], [0.0, 2.0]], requires_grad=True)
    loss = masked_cross_entropy(
        logits, torch.tensor([0, 0]), token_weights=torch.tensor([-1.0, 1.0]), backend=backend
    ).loss
    assert loss.isposinf()
    loss.backward()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_zero_times_what_is_not_finite_is_nan(backend):
    """As the plain formula has it: a weight of 0 does not hide a loss of infinity."""
    for bad, gradient in ((-torch.inf, 0.0), (torch.nan, torch.nan)):
        logits = torch.tensor([[bad, 1.0], [0.0, 0.0]], requires_grad=True)
        loss = masked_cross_entropy(
            logits, torch.tensor([0, 1]), token_weights=torch.tensor([0.0, 1.0]),
            reduction="none", backend=backend,
        ).loss  # fmt: skip
        assert loss.isnan().tolist() == [True, False]
        loss.sum().backward()
        expected = torch.tensor([[gradient, gradient], [0.5, -0.5]])
        torch.testing.assert_close(logits.grad, expected, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_of_any_float_dtype_count_in_float32(dtype, backend):
    leaves, labels = inputs(torch.float16)
    weights = weights_for(labels).to(dtype)
    found, expected = (
        linear_cross_entropy(*leaves[:2], labels, token_weights=w, backend=backend).loss
        for w in (weights, weights.float())
    )
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e39])
def test_a_weight_that_is_not_finite_is_named(backend, bad):
    leaves, labels = inputs(torch.float32)
    at = int((labels.flatten() != -100).nonzero()[2])
    weights = torch.ones(labels.shape, dtype=torch.float64)
    weights.view(-1)[at] = bad
    message = rf"token_weights\[{at}\] is {torch.tensor(bad).item()!s} as float32: .* finite"
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(*leaves[:2], labels, token_weights=weights, backend=backend)
    positions = torch.tensor([at, -1])
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(
            *leaves[:2], labels, token_weights=weights, positions=positions, backend=backend
        )
    with pytest.raises(ValueError, match=r"token_weights\[0\] is"):
        linear_cross_entropy(
            *leaves[:2], labels, token_weights=weights.view(-1)[[at, at]], positions=positions,
            backend=backend,
        )  # fmt: skip


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_weight_that_is_not_finite_poisons_compiled_code(reduction):
    leaves, labels = inputs(torch.float32)
    labelled = labels != -100
    weights = torch.where(labelled, torch.inf, 1.0)

    def step(hidden, weight):
        return linear_cross_entropy(
            hidden, weight, labels, token_weights=weights, reduction=reduction, backend="reference"
        ).loss

    loss = torch.compile(step, backend="eager", fullgraph=True)(*leaves[:2])
    gradients = torch.autograd.grad(loss.sum(), leaves[:2])
    assert loss.isnan().all() if reduction == "mean" else torch.equal(loss.isnan(), labelled)
    assert torch.equal(gradients[0].isnan().all(-1), labelled)
    assert gradients[1].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (torch.ones(2, 22), ValueError, r"token_weights must have .* \(2, 23\); got \(2, 22\)"),
        (torch.ones(46), ValueError, r"\(2, 23\); got \(46,\)"),
        (torch.ones(2, 23, dtype=torch.int64), TypeError, "token_weights must be a tensor of fl"),
        ([1.0], TypeError, "token_weights must be a tensor of floats, .* got list"),
        (torch.ones(2, 23, device="meta"), ValueError, "token_weights is on meta, the rows are on"),
        (torch.ones(2, 23).to_sparse(), TypeError, "token_weights must be a dense tensor"),
        (torch.ones(2, 23, requires_grad=True), ValueError, r"pass token_weights\.detach\(\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(weights, error, message, backend):
    leaves, labels = inputs(torch.float32)
    with pytest.raises(error, match=message):
        linear_cross_entropy(*leaves[:2], labels, token_weights=weights, backend=backend)
    if not isinstance(weights, list) and weights.shape != labels.shape:
        positions = torch.tensor([1, 2])
        with pytest.raises(error, match=r"or that of positions, \(2,\); got"):
            linear_cross_entropy(
                *leaves[:2], labels, token_weights=weights, positions=positions, backend=backend
            )


def test_learned_weights_are_accepted_where_no_gradient_is_recorded():
    leaves, labels = inputs(torch.float32)
    weights = torch.full(labels.shape, 2.0, requires_grad=True)
    with torch.no_grad():
        found = linear_cross_entropy(
            *leaves[:2], labels, token_weights=weights, reduction="sum"
        ).loss
        expected = linear_cross_entropy(*leaves[:2], labels, reduction="sum").loss
    torch.testing.assert_close(found, 2 * expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_backward_is_like_the_first(reduction):
    leaves, labels = inputs(torch.float32)
    loss = linear_cross_entropy(
        *leaves[:2], labels, leaves[2], token_weights=weights_for(labels), reduction=reduction
    ).loss
    by = torch.full_like(loss, 0.3)
    first = torch.autograd.grad(loss, leaves, by, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(loss, leaves, by), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_weighted_loss_compiles_in_one_graph_for_all_lengths(reduction):
    def losses(hidden, weight, bias, labels, weights):
        one = linear_cross_entropy(
            hidden, weight, labels, bias, token_weights=weights, reduction=reduction
        )
        other = masked_cross_entropy(
            hidden @ weight.t(), labels, token_weights=weights, reduction=reduction
        )
        return one.loss.sum() + other.loss.sum()

    torch._dynamo.reset()
    compiled = torch.compile(losses, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for length in (5, 9, 17):
            leaves, labels = inputs(torch.float32, (4, length))
            arguments = (*leaves, labels, weights_for(labels))
            for a, b in zip(
                with_gradients(compiled(*arguments), leaves),
                with_gradients(losses(*arguments), leaves),
                strict=True,
            ):
                assert torch.allclose(a, b, atol=1e-6)
