"""The losses as PyTorch and users handle them: errors, backward passes, compilation, threads."""

import itertools
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from maskkernels import MaskingPolicy, linear_cross_entropy, mask_tokens, masked_cross_entropy
from maskkernels.loss import op
from tests.support.losses import eager, inputs, with_gradients

LEAVES, LABELS = inputs(torch.float32)
HIDDEN, WEIGHT, BIAS = LEAVES
LOGITS = torch.randn(2, 23, 11)
BACKENDS = ["reference", "numba"]


def test_labels_outside_the_classes_are_named():
    for backend, bad in itertools.product(BACKENDS, (-1, 11, 1 << 40)):
        labels = LABELS.clone()
        labels[1, 4] = bad
        for call in (
            lambda y, b=backend: linear_cross_entropy(HIDDEN, WEIGHT, y, backend=b),
            lambda y, b=backend: masked_cross_entropy(LOGITS, y, backend=b),
        ):
            with pytest.raises(ValueError, match=rf"labels\[27\] is {bad}, .*\[0, 11\)"):
                call(labels)
        positions = torch.tensor([3, 27, -1])
        with pytest.raises(ValueError, match=rf"labels\[27\] is {bad}"):
            linear_cross_entropy(HIDDEN, WEIGHT, labels, positions=positions, backend=backend)
        with pytest.raises(ValueError, match=rf"labels\[1\] is {bad}"):
            linear_cross_entropy(
                HIDDEN, WEIGHT, torch.tensor([3, bad, bad]), positions=positions, backend=backend
            )
    assert masked_cross_entropy(LOGITS, torch.where(LABELS < 0, -1, LABELS), ignore_index=-1).count


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": HIDDEN[..., :6]}, ValueError, r"weight must be \[V, H\].*\(11, 7\).*23, 6\)"),
        ({"hidden": HIDDEN[..., :0], "weight": WEIGHT[:, :0]}, ValueError, "with H above 0"),
        ({"hidden": [1.0]}, TypeError, "hidden must be a tensor of floats"),
        ({"hidden": LABELS}, TypeError, "hidden must be a tensor of floats"),
        ({"hidden": HIDDEN.bfloat16()}, TypeError, "weight is torch.float32, hidden torch.bfl"),
        ({"hidden": HIDDEN.to("meta")}, ValueError, "weight is on cpu, the rows are on meta"),
        ({"weight": WEIGHT[:0], "bias": None}, ValueError, "at least one class"),
        ({"weight": WEIGHT[0]}, ValueError, r"weight must be \[V, H\]"),
        ({"bias": BIAS[:3]}, ValueError, r"bias must be \[11\], got \(3,\)"),
        ({"bias": BIAS.half()}, TypeError, "bias is torch.float16"),
        ({"labels": LABELS[:, 1:]}, ValueError, r"\(2, 23\); got \(2, 22\)"),
        ({"labels": LABELS.float()}, TypeError, "labels must be a tensor of torch.int32 or"),
        ({"labels": LABELS.to("meta")}, ValueError, "labels is on meta, hidden on cpu"),
        ({"positions": LABELS}, ValueError, r"positions must be \[C\]"),
        ({"positions": torch.tensor([2, 1])}, ValueError, "ascending, then -1"),
        ({"positions": torch.tensor([-1, 1])}, ValueError, "ascending, then -1"),
        ({"positions": torch.tensor([1, 1])}, ValueError, "ascending, then -1"),
        ({"positions": torch.tensor([1, 46])}, ValueError, r"rows in \[0, 46\)"),
        ({"positions": torch.tensor([1, 2]), "capacity": 3}, ValueError, "capacity goes without"),
        ({"capacity": 3}, ValueError, r"\d+ rows are labelled, more than capacity=3"),
        ({"capacity": -1}, ValueError, "capacity must not be negative"),
        ({"chunk_bytes": 0}, ValueError, "chunk_bytes must be at least 1"),
        ({"class_weights": torch.ones(3)}, ValueError, r"class_weights must be \[11\]"),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing must be between 0 and 1"),
        ({"label_smoothing": "x"}, TypeError, "label_smoothing must be a number, got str"),
        ({"label_smoothing": float("nan")}, ValueError, "label_smoothing must be between 0 and 1"),
        ({"z_loss": -1.0}, ValueError, "z_loss must be finite"),
        ({"z_loss": None}, TypeError, "z_loss must be a number, got NoneType"),
        ({"softcap": torch.ones(2)}, TypeError, "softcap must be a number, got Tensor"),
        ({"logit_scale": True}, TypeError, "logit_scale must be a number, got bool"),
        ({"softcap": 0.0}, ValueError, "softcap must be finite and positive"),
        ({"logit_scale": float("nan")}, ValueError, "logit_scale must be finite"),
        ({"reduction": "avg"}, ValueError, "reduction='avg'"),
        ({"reduction": "sum", "num_items": 3}, ValueError, "num_items goes with reduction='mean'"),
        ({"num_items": -1}, ValueError, "num_items must be finite and not negative"),
        ({"num_items": torch.ones(2)}, ValueError, "num_items must be a number or a 0-d tensor"),
        ({"num_items": "3"}, TypeError, "num_items must be a number"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1"),
        ({"top_k": 1.0}, TypeError, "top_k must be an int"),
        ({"ignore_index": None}, TypeError, "ignore_index must be an int"),
        ({"backend": "triton"}, ValueError, "backend='triton': tensors are on cpu"),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_does_not_fit_is_refused_by_name(change, error, message, backend):
    arguments = {"hidden": HIDDEN, "weight": WEIGHT, "labels": LABELS, "bias": BIAS}
    arguments |= {"backend": backend} | change
    with pytest.raises(error, match=message):
        linear_cross_entropy(**arguments)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("items", [0, 0.0, torch.tensor(0)])
def test_no_items_in_the_whole_update(backend, items):
    """One answer for a number and a tensor: no labels, no loss; labels nonetheless, infinity."""
    hidden = HIDDEN.detach().clone().requires_grad_()
    nothing = torch.full_like(LABELS, -100)
    loss = linear_cross_entropy(hidden, WEIGHT, nothing, num_items=items, backend=backend).loss
    loss.backward()
    assert loss == 0
    assert not hidden.grad.any()
    loss = linear_cross_entropy(hidden, WEIGHT, LABELS, num_items=items, backend=backend).loss
    assert loss.isposinf()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("wrong", ["capacity", "label"])
def test_a_poisoned_loss_has_poisoned_gradients(reduction, wrong):
    """In compiled code the reference cannot raise."""
    labels, capacity = LABELS.clone(), 3
    if wrong == "label":
        capacity = None
        labels[0, 0] = 11

    def step(hidden, weight):
        return linear_cross_entropy(
            hidden, weight, labels, capacity=capacity, reduction=reduction, backend="reference"
        ).loss.sum()

    leaves = [x.detach().clone().requires_grad_() for x in (HIDDEN, WEIGHT)]
    loss = torch.compile(step, backend="eager", fullgraph=True)(*leaves)
    loss.backward()
    assert loss.isnan()
    assert leaves[1].grad.isnan().any()
    labelled = labels != -100
    assert leaves[0].grad[labelled].isnan().any()
    assert not leaves[0].grad[~labelled].isnan().any()


def test_transforms_run_with_the_reference_alone():
    def loss(hidden, labels, backend="auto"):
        return linear_cross_entropy(hidden, WEIGHT.detach(), labels, backend=backend).loss

    hidden = HIDDEN.detach().requires_grad_()
    for transform in (torch.func.grad, lambda f: torch.func.vmap(torch.func.grad(f))):
        with pytest.raises(RuntimeError, match=r"torch\.func .*: backend='reference' does"):
            transform(loss)(hidden.detach(), LABELS)
    found = torch.func.vmap(torch.func.grad(partial(loss, backend="reference")))(
        hidden.detach(), LABELS
    )
    for row, (h, labels) in enumerate(zip(hidden, LABELS, strict=True)):
        (expected,) = torch.autograd.grad(loss(h, labels), hidden)
        torch.testing.assert_close(found[row], expected[row])


def test_float64_is_for_the_reference():
    leaves, labels = inputs(torch.float64)
    with pytest.raises(ValueError, match="backend='numba': float64 is computed by the reference"):
        linear_cross_entropy(leaves[0], leaves[1], labels, backend="numba")
    assert linear_cross_entropy(leaves[0], leaves[1], labels).loss.dtype == torch.float64
    with pytest.raises(ValueError, match="logits must have at least one class and two dim"):
        masked_cross_entropy(LOGITS[0, 0], LABELS[0, 0])


def test_int32_labels_and_strided_inputs():
    expected = linear_cross_entropy(HIDDEN, WEIGHT, LABELS, BIAS).loss
    found = linear_cross_entropy(
        HIDDEN.detach().transpose(0, 1).contiguous().transpose(0, 1),
        WEIGHT.detach().t().contiguous().t(), LABELS.int().t().contiguous().t(),
        torch.stack([BIAS, BIAS], 1)[:, 0],
    )  # fmt: skip
    assert torch.allclose(found.loss, expected)


@pytest.mark.parametrize("asked", [a for a in itertools.product([0, 1], repeat=3) if any(a)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("chunk_bytes", [None, 100])
def test_only_what_is_asked_for_gets_a_gradient(asked, reduction, chunk_bytes):
    expected = linear_cross_entropy(
        HIDDEN, WEIGHT, LABELS, BIAS, reduction=reduction, backend="reference"
    )
    wanted = torch.autograd.grad(expected.loss.sum(), LEAVES)
    leaves = [t.detach().requires_grad_(bool(ask)) for t, ask in zip(LEAVES, asked, strict=True)]
    found = linear_cross_entropy(
        leaves[0], leaves[1], LABELS, leaves[2], reduction=reduction, chunk_bytes=chunk_bytes
    )
    found.loss.sum().backward()
    for leaf, ask, gradient in zip(leaves, asked, wanted, strict=True):
        assert (leaf.grad is not None) == bool(ask)
        assert leaf.grad is None or torch.allclose(leaf.grad, gradient, atol=1e-6)
    with torch.no_grad():
        plain = linear_cross_entropy(
            leaves[0], leaves[1], LABELS, leaves[2], reduction=reduction, chunk_bytes=chunk_bytes
        )
    assert torch.equal(plain.loss, found.loss)
    assert not plain.loss.requires_grad


def test_tied_weights_get_both_gradients():
    def tied(loss):
        table = WEIGHT.detach().requires_grad_()
        hidden = torch.tanh(table[LABELS.clamp(0)] * 2)
        return torch.autograd.grad(loss(hidden, table), table)[0]

    found = tied(lambda h, w: linear_cross_entropy(h, w, LABELS).loss)
    expected = tied(lambda h, w: eager(h, w, LABELS))
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_second_backward_is_like_the_first(reduction, dtype):
    leaves, labels = inputs(dtype)
    logits = LOGITS.to(dtype).requires_grad_()
    for loss, of in (
        (linear_cross_entropy(*leaves[:2], labels, leaves[2], reduction=reduction).loss, leaves),
        (masked_cross_entropy(logits, labels, reduction=reduction).loss, [logits]),
    ):
        by = torch.full_like(loss, 0.3)
        first = torch.autograd.grad(loss, of, by, retain_graph=True)
        second = torch.autograd.grad(loss, of, by, retain_graph=True)
        third = torch.autograd.grad(loss, of, by)
        for a, b, c in zip(first, second, third, strict=True):
            assert torch.allclose(a, b, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)
            assert torch.equal(b, c)
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            torch.autograd.grad(loss, of, by)


def test_gradients_can_be_accumulated_without_harm():
    """The gradients are handed over: adding to them must not reach another backward."""
    leaves = [t.detach().requires_grad_() for t in LEAVES]
    loss = linear_cross_entropy(leaves[0], leaves[1], LABELS, leaves[2]).loss
    loss.backward(retain_graph=True)
    once = [t.grad.clone() for t in leaves]
    loss.backward()
    for leaf, gradient in zip(leaves, once, strict=True):
        assert torch.allclose(leaf.grad, 2 * gradient, atol=1e-7)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_gradient_of_the_gradient_is_refused(reduction):
    loss = linear_cross_entropy(HIDDEN, WEIGHT, LABELS, BIAS, reduction=reduction).loss.sum()
    gradients = torch.autograd.grad(loss, LEAVES, create_graph=True)
    plain = torch.autograd.grad(
        linear_cross_entropy(HIDDEN, WEIGHT, LABELS, BIAS, reduction=reduction).loss.sum(), LEAVES
    )
    for a, b in zip(gradients, plain, strict=True):
        assert torch.allclose(a, b, atol=1e-7)
    with pytest.raises(RuntimeError, match="no gradient of their gradient"):
        gradients[0].sum().backward()


def test_a_loss_scale_saves_what_float16_would_lose():
    leaves, labels = inputs(torch.float16, share=1.0)
    scale = torch.tensor(2.0**14)
    loss = linear_cross_entropy(*leaves[:2], labels, leaves[2], num_items=10**6).loss
    found = torch.autograd.grad(loss, leaves, scale)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    exact = linear_cross_entropy(*wide[:2], labels, wide[2], num_items=10**6).loss
    for a, b in zip(found, torch.autograd.grad(exact, wide, scale.double()), strict=True):
        assert torch.allclose(a.double(), b, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_a_loss_of_cast_inputs(dtype):
    with torch.autocast("cpu", dtype):
        found = linear_cross_entropy(HIDDEN, WEIGHT, LABELS, BIAS).loss
        logits = masked_cross_entropy(LOGITS, LABELS).loss
        reference = linear_cross_entropy(HIDDEN, WEIGHT, LABELS, BIAS, backend="reference").loss
    cast = [t.detach().to(dtype).requires_grad_() for t in LEAVES]
    expected = linear_cross_entropy(cast[0], cast[1], LABELS, cast[2]).loss
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert torch.allclose(found, reference)
    assert torch.equal(logits, masked_cross_entropy(LOGITS, LABELS).loss)
    pairs = zip(with_gradients(found, LEAVES), with_gradients(expected, cast), strict=True)
    for a, b in pairs:
        assert a.dtype == torch.float32
        assert torch.equal(a, b.float())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_activation_checkpointing(reentrant, reduction):
    def loss(hidden):
        return linear_cross_entropy(hidden * 2, WEIGHT, LABELS, BIAS, reduction=reduction).loss

    found = checkpoint(loss, HIDDEN, use_reentrant=reentrant).sum()
    expected = loss(HIDDEN).sum()
    found.backward()
    gradients = [t.grad for t in LEAVES]
    for t in LEAVES:
        t.grad = None
    for a, b in zip(gradients, torch.autograd.grad(expected, LEAVES), strict=True):
        assert torch.allclose(a, b, atol=1e-7)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_whole_graph_compiles(backend, reduction, autocast):
    def losses(hidden, weight, bias, labels, items):
        found = linear_cross_entropy(
            hidden, weight, labels, bias, reduction=reduction, accuracy=True, entropy=True, top_k=2,
            num_items=items if reduction == "mean" else None, capacity=46, backend=backend,
        )  # fmt: skip
        other = masked_cross_entropy(
            hidden @ weight.t() + bias, labels, label_smoothing=0.1, reduction=reduction,
            backend=backend,
        )  # fmt: skip
        measures = found.accuracy, found.entropy, found.top_k
        return found.loss.sum() + other.loss.sum(), found.count, *measures

    torch._dynamo.reset()
    compiled = torch.compile(losses, fullgraph=True, backend="aot_eager")
    arguments = (*LEAVES, LABELS, torch.tensor(31))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, expected = compiled(*arguments), losses(*arguments)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b)
    pairs = zip(with_gradients(found[0], LEAVES), with_gradients(expected[0], LEAVES), strict=True)
    for a, b in pairs:
        assert torch.allclose(a, b, atol=5e-2 if autocast else 1e-6)


def test_varied_lengths_do_not_recompile():
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda h, w, y: linear_cross_entropy(h, w, y).loss, fullgraph=True, backend="aot_eager",
        dynamic=True,
    )  # fmt: skip
    with torch._dynamo.config.patch(error_on_recompile=True):
        for length in (5, 9, 17):
            leaves, labels = inputs(torch.float32, (4, length))
            found = compiled(leaves[0], leaves[1], labels)
            assert torch.equal(found, linear_cross_entropy(leaves[0], leaves[1], labels).loss)


def jobs(monkeypatch):
    """The arguments with which varied calls reach the op."""
    seen, run = [], op.cross_entropy.registered
    monkeypatch.setattr(op.cross_entropy, "registered", lambda *job: seen.append(job) or run(*job))
    leaf, low = LOGITS.clone().requires_grad_(), [t.detach().half() for t in LEAVES]
    positions = torch.tensor([1, 4, -1])
    for reduction in ("mean", "none"):
        linear_cross_entropy(HIDDEN, WEIGHT, LABELS, BIAS, reduction=reduction, accuracy=True)
        masked_cross_entropy(leaf, LABELS, reduction=reduction, entropy=True, top_k=2)
        linear_cross_entropy(
            low[0], low[1].requires_grad_(), torch.tensor([1, 2, 3]), positions=positions,
            reduction=reduction, class_weights=torch.ones(11),
        )  # fmt: skip
    linear_cross_entropy(HIDDEN.detach(), WEIGHT, LABELS, num_items=7)
    for reduction in ("mean", "none"):
        weights = torch.ones(LABELS.shape)
        linear_cross_entropy(HIDDEN, WEIGHT, LABELS, token_weights=weights, reduction=reduction)
    monkeypatch.undo()
    return run, seen


def test_the_ops_pass_opcheck(monkeypatch):
    run, seen = jobs(monkeypatch)
    assert len(seen) == 9
    for job in seen:
        torch.library.opcheck(run, job)
        detached = [t.detach() if isinstance(t, torch.Tensor) else t for t in job]
        size = op.LossJob(*job).rows if "none" in job else ()
        torch.library.opcheck(op._cross_entropy_backward.registered, (torch.ones(size), *detached))


def test_fake_tensors_have_the_shapes_of_real_ones(monkeypatch):
    run, seen = jobs(monkeypatch)
    for job in seen:
        with FakeTensorMode() as mode:
            fake = run(*(mode.from_tensor(t) if isinstance(t, torch.Tensor) else t for t in job))
        for a, b in zip(fake, run(*job), strict=True):
            assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("linear", [False, True])
def test_one_and_two_threads_give_the_same_bits(dtype, linear):
    leaves, labels = inputs(dtype, (150,), 33, 5003)
    logits = torch.randn(150, 5003).to(dtype).requires_grad_()

    def found():
        if linear:
            loss = linear_cross_entropy(
                leaves[0], leaves[1], labels, leaves[2], z_loss=0.1, chunk_bytes=1 << 20
            ).loss
            return with_gradients(loss, leaves)
        return with_gradients(masked_cross_entropy(logits, labels).loss, [logits])

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = found()
        torch.set_num_threads(2)
        two = found()
    finally:
        torch.set_num_threads(before)
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)


def test_positions_come_from_mask_tokens():
    ids = torch.randint(5, 11, (2, 23))
    masked = mask_tokens(ids, MaskingPolicy(3, 11, rate=0.3), seed=1, capacity=30)
    found = linear_cross_entropy(HIDDEN, WEIGHT, masked.labels, positions=masked.positions)
    expected = linear_cross_entropy(HIDDEN, WEIGHT, masked.labels)
    assert found.count == expected.count == masked.count
    assert torch.equal(found.loss, expected.loss)
