"""The losses on a GPU: against float64, without a wait, the same bits twice, in a CUDA graph."""

import pytest
import torch

from maskkernels import linear_cross_entropy, masked_cross_entropy
from tests.support.losses import (
    assert_as_exact_as,
    assert_norms_as_exact_as,
    copies,
    eager,
    inputs,
    with_gradients,
)

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("no GPU on this machine", allow_module_level=True)


@pytest.fixture
def no_sync():
    """Waiting for the device is an error between the two calls of what this gives."""

    def watch(on):
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if on else "default")

    yield watch
    torch.cuda.set_sync_debug_mode("default")


def on_gpu(dtype, shape=(4, 300), width=64, vocab_size=5003, share=0.5):
    leaves, labels = inputs(dtype, shape, width, vocab_size, share=share)
    return [t.detach().cuda().requires_grad_() for t in leaves], labels.cuda()


def first_labelled(labels, capacity):
    at = (labels.flatten() != -100).nonzero()[:, 0][:capacity]
    return torch.cat([at, at.new_full((capacity - at.numel(),), -1)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["labels", "capacity", "positions"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 5.0},
        {"reduction": "none"},
        {"token_weights": True, "z_loss": 1e-3},
        {"token_weights": True, "reduction": "none"},
    ],
    ids=str,
)
def test_it_is_as_exact_as_torch_and_never_waits(dtype, way, options, no_sync):
    (hidden, weight, bias), labels = leaves, labels = on_gpu(dtype)
    if "token_weights" in options:
        options = options | {"token_weights": torch.rand(labels.shape, device="cuda") * 3}
    where = {"capacity": {"capacity": 700}, "positions": {"positions": first_labelled(labels, 700)}}
    call = {**options, **where.get(way, {}), "num_items": torch.tensor(600, device="cuda")}
    if "reduction" in options:
        call.pop("num_items")
    no_sync(True)
    loss = linear_cross_entropy(hidden, weight, labels, bias, **call).loss
    by = torch.ones_like(loss)
    found = with_gradients(loss, leaves, by)
    no_sync(False)
    items = {} if "reduction" in options else {"num_items": 600}
    theirs = eager(hidden, weight, labels, bias, **options, **items)
    wide = copies(leaves, torch.float64)
    exact = eager(wide[0], wide[1], labels, wide[2], **options, **items)
    other, best = with_gradients(theirs, leaves), with_gradients(exact, wide)
    if way == "positions" and "reduction" in options:
        at = call["positions"].clamp(0)
        other[0], best[0] = (t[at] * (call["positions"] >= 0) for t in (other[0], best[0]))
    if dtype == torch.float32:
        assert_as_exact_as(found, other, best, dtype)
    else:
        assert_norms_as_exact_as(found, other, best)


@pytest.mark.parametrize("linear", [False, True])
def test_two_runs_give_the_same_bits(linear):
    leaves, labels = on_gpu(torch.bfloat16)
    logits = torch.randn(4, 300, 5003, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    def run():
        if linear:
            loss = linear_cross_entropy(*leaves[:2], labels, leaves[2], capacity=900).loss
            return with_gradients(loss, leaves)
        return with_gradients(masked_cross_entropy(logits, labels).loss, [logits])

    for a, b in zip(run(), run(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.unchecked
def test_labels_outside_the_classes_and_too_many_of_them_are_nan():
    leaves, labels = on_gpu(torch.bfloat16)
    labels[0, :3] = torch.tensor([5003, -1, 1 << 40])
    rows = linear_cross_entropy(*leaves[:2], labels, reduction="none").loss
    assert rows[0, :3].isnan().all()
    assert rows.isnan().sum() == 3
    assert linear_cross_entropy(*leaves[:2], labels.clamp(-100, 5002), capacity=5).loss.isnan()


@pytest.mark.long
def test_offsets_pass_31_bits():
    """The last row of 2^31 logits: an int32 offset would be elsewhere."""
    if torch.cuda.mem_get_info()[0] < 20 << 30:
        pytest.skip("needs 20 GiB of free GPU memory")
    rows, vocab_size = 43_000, 50_000
    logits = torch.zeros(rows, vocab_size, dtype=torch.bfloat16, device="cuda")
    logits[-1, 7] = 9.0
    labels = torch.full((rows,), -100, device="cuda")
    labels[-1] = 7
    leaf = logits.requires_grad_()
    loss, gradient = with_gradients(masked_cross_entropy(leaf, labels).loss, [leaf])
    expected = torch.nn.functional.cross_entropy(logits[-1:].detach().double(), labels[-1:])
    assert torch.allclose(loss.double(), expected)
    assert gradient[-1, 7] < 0
    assert not gradient[:-1].any()


@pytest.mark.long
def test_a_graph_captures_a_step():
    leaves, labels = on_gpu(torch.bfloat16)

    def step():
        loss = linear_cross_entropy(*leaves[:2], labels, leaves[2], capacity=900).loss
        return with_gradients(loss, leaves)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    labels.copy_(on_gpu(torch.bfloat16, share=0.3)[1])
    graph.replay()
    for a, b in zip(found, step(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.long
def test_a_whole_graph_compiles_on_the_device():
    leaves, labels = on_gpu(torch.bfloat16)
    loss = lambda h, w, b: linear_cross_entropy(h, w, labels, b, capacity=900).loss  # noqa: E731
    found = torch.compile(loss, fullgraph=True)(*leaves)
    expected = loss(*leaves)
    for a, b in zip(with_gradients(found, leaves), with_gradients(expected, leaves), strict=True):
        assert torch.allclose(a.float(), b.float(), rtol=1e-2, atol=1e-3)
