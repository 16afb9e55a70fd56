"""On a GPU: Triton's masks equal Numba's, nothing waits for the device, a graph captures it."""

import pytest
import torch
from cases import V, batch, cases, edges, rates_of, unit_tensor, weighted

from maskkernels import MaskingPolicy, hash_rows, mask_tokens, random_words

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("no GPU on this machine", allow_module_level=True)


def to_gpu(arguments):
    return {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}


@pytest.mark.parametrize("case", [*cases(), *weighted(), *edges()], ids=lambda c: c[0])
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


def test_new_numbers_compile_nothing():
    from maskkernels.mask import _triton

    def run(rows, seed, **policy):
        ids = torch.randint(0, V, (rows, 64)).cuda()
        mask_tokens(ids, MaskingPolicy(3, V, **policy), seed=seed, epoch=seed % 3, capacity=rows)
        return len(_triton._mask_tokens.device_caches[torch.cuda.current_device()][0])

    before = run(5, 3)
    for rows, seed in ((1, 0), (16, 1), (17, 16), (160, 1 << 63)):
        assert run(rows, seed, rate=0.3, mask_share=0.5, ignore_index=-16) == before


def left(ids):
    """An attention mask with padding on the left, of every length modulo four."""
    return (
        torch.arange(ids.shape[1], device=ids.device) >= torch.arange(ids.shape[0]).cuda()[:, None]
    )


GRAPHS = {
    "full": lambda ids: {},
    "left": lambda ids: {"attention_mask": left(ids)},
    "packed": lambda ids: {"cu_seqlens": torch.tensor([0, 3, 3, 40, ids.numel()]).cuda()},
    "units": lambda ids: {"units": unit_tensor("scattered", ids.cpu()).cuda()},
    "rates": lambda ids: {"rates": rates_of("some", ids.cpu()).cuda()},
}


@pytest.mark.parametrize("selection", ["bernoulli", "budget"])
@pytest.mark.parametrize("kind", GRAPHS)
def test_a_graph_captures_masks_and_positions(kind, selection):
    shape = (512,) if kind == "packed" else (8, 64)
    ids = torch.randint(0, V, shape).cuda()
    policy = MaskingPolicy(3, V, selection=selection)
    arguments = {"seed": 1, "capacity": 100, **GRAPHS[kind](ids)}
    run = lambda: mask_tokens(ids, policy, **arguments)  # noqa: E731
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    ids.copy_(torch.randint(0, V, shape))
    graph.replay()
    on_cpu = {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    expected = mask_tokens(ids.cpu(), policy, **on_cpu)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.cpu(), b)


def test_two_runs_give_the_same_bits():
    ids, arguments = batch("left", 64, 1000)
    ids, arguments = ids.cuda(), to_gpu(arguments)
    for selection in ("bernoulli", "budget"):
        policy = MaskingPolicy(3, V, selection=selection)
        one, two = (mask_tokens(ids, policy, seed=1, capacity=99, **arguments) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("bounds", [[5, 9, 30], [-3, 10, 60], [0, 30, 10, 40], [7], [90, 95]])
def test_broken_samples_stay_inside_the_tokens(bounds):
    ids = torch.randint(0, V, (40,)).cuda()
    on_gpu = torch.tensor(bounds).cuda()
    for backend in ("triton", "reference"):
        found = mask_tokens(
            ids, MaskingPolicy(3, V, rate=1.0), seed=0, cu_seqlens=on_gpu, capacity=40,
            backend=backend,
        )  # fmt: skip
        held = on_gpu.clamp(0, 40)
        assert int(found.count) == int(held.max() - held[0])


def test_a_whole_graph_compiles_on_the_device():
    ids = torch.randint(0, V, (8, 64)).cuda()
    policy = MaskingPolicy(3, V)
    compiled = torch.compile(lambda x: mask_tokens(x, policy, seed=5).labels, fullgraph=True)
    assert torch.equal(compiled(ids), mask_tokens(ids, policy, seed=5).labels)


def test_offsets_past_2_to_the_31_are_right():
    rows, length = 1 << 16, (1 << 15) + 1  # 8 GiB of int32 ids, and as much for each result
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GiB of free GPU memory")
    ids = torch.full((rows, length), 5, dtype=torch.int32, device="cuda")
    ids[-1] = torch.randint(0, V, (length,), dtype=torch.int32, device="cuda")
    names = torch.arange(rows, device="cuda")
    policy = MaskingPolicy(3, V)
    found = mask_tokens(ids, policy, seed=1, sample_ids=names)
    last = mask_tokens(ids[-1:].cpu(), policy, seed=1, sample_ids=names[-1:].cpu())
    assert torch.equal(found.input_ids[-1:].cpu(), last.input_ids)
    assert torch.equal(found.labels[-1:].cpu(), last.labels)
