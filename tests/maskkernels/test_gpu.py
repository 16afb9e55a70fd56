"""On a GPU: Triton's masks equal Numba's, nothing waits for the device, a graph captures it."""

import pytest
import torch
from cases import V, cases

from maskkernels import MaskingPolicy, hash_rows, mask_tokens, random_words

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("no GPU on this machine", allow_module_level=True)


def to_gpu(arguments):
    return {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}


@pytest.mark.parametrize("case", list(cases()), ids=lambda c: c[0])
def test_masks_equal_those_of_the_cpu(case):
    _, ids, policy, arguments = case
    expected = mask_tokens(ids, policy, **arguments, backend="numba")
    torch.cuda.set_sync_debug_mode("default")
    on_gpu = to_gpu(arguments)
    gpu_ids = ids.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = mask_tokens(gpu_ids, policy, **on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(found, expected, strict=True):
        if b is None:
            assert a is None
        else:
            assert torch.equal(a.cpu(), b)


def test_words_and_hashes_equal_those_of_the_cpu():
    samples = torch.randint(-(1 << 63), (1 << 63) - 1, (5000,))
    index = torch.randint(0, 1 << 34, (5000,))
    expected = random_words(samples, index, seed=1 << 63, epoch=9, stream=1)
    found = random_words(samples.cuda(), index.cuda(), seed=1 << 63, epoch=9, stream=1)
    assert torch.equal(found.cpu(), expected)
    ids = torch.randint(0, V, (300, 1000))
    assert torch.equal(hash_rows(ids.cuda()).cpu(), hash_rows(ids))


def test_ids_outside_the_table_are_never_masked():
    ids = torch.tensor([[V, -1, 1 << 40, 5]]).cuda()
    table = torch.ones(V, dtype=torch.bool).cuda()
    found = mask_tokens(ids, MaskingPolicy(3, V, rate=1.0), seed=0, maskable=table)
    assert found.labels.tolist() == [[-100, -100, -100, 5]]
    assert found.input_ids.tolist()[0][:3] == ids.tolist()[0][:3]


def test_a_graph_captures_a_budget_with_positions():
    ids = torch.randint(0, V, (8, 64)).cuda()
    policy = MaskingPolicy(3, V, selection="budget")
    names = torch.arange(8).cuda()
    run = lambda: mask_tokens(ids, policy, seed=1, sample_ids=names, capacity=100)  # noqa: E731
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    ids.copy_(torch.randint(0, V, (8, 64)))
    graph.replay()
    expected = mask_tokens(ids.cpu(), policy, seed=1, sample_ids=names.cpu(), capacity=100)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.cpu(), b)


def test_a_whole_graph_compiles_on_the_device():
    ids = torch.randint(0, V, (8, 64)).cuda()
    policy = MaskingPolicy(3, V)
    compiled = torch.compile(lambda x: mask_tokens(x, policy, seed=5).labels, fullgraph=True)
    assert torch.equal(compiled(ids), mask_tokens(ids, policy, seed=5).labels)
