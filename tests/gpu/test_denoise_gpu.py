"""Denoising on a GPU: the bits of the CPU, without a wait, in a CUDA graph, compiled once."""

import pytest
import torch

from maskkernels import (
    Denoiser,
    SpanCorruption,
    TextInfilling,
    corrupt_spans,
    corrupted_lengths,
    infill_text,
    pad_batch,
    pad_corrupted,
    pad_rows,
)
from tests.support.denoise_cases import CORRUPTIONS, EOS, INFILLINGS, MASK, SENTINELS, problem
from tests.support.mask_cases import SHAPES

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("no GPU on this machine", allow_module_level=True)

OPTIONS = CORRUPTIONS | INFILLINGS


def run(name, ids, **arguments):
    call = corrupt_spans if name in CORRUPTIONS else infill_text
    return call(ids, OPTIONS[name], **arguments)


def to_gpu(arguments):
    return {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}


def without_a_wait(call):
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        return call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def assert_rows_equal(found, expected):
    for a, b in ((found.inputs, expected.inputs), (found.targets, expected.targets)):
        assert torch.equal(a.cu_seqlens.cpu(), b.cu_seqlens)
        end = int(b.cu_seqlens[-1])
        assert torch.equal(a.values[:end].cpu(), b.values)
    assert not found.input_ids[int(expected.cu_seqlens[-1]) :].any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_rows_equal_those_of_the_cpu(name, shape):
    for n, length in enumerate((13, 40, 90, 198)):  # packed rows of 594: at most 298 sentinels
        ids, arguments, _ = problem(shape, length, n)
        expected = run(name, ids, **arguments, backend="numba")
        gpu_ids, on_gpu = ids.cuda(), to_gpu(arguments)
        run(name, gpu_ids, **on_gpu)  # uploads the options
        found = without_a_wait(lambda ids=gpu_ids, on_gpu=on_gpu: run(name, ids, **on_gpu))
        assert_rows_equal(found, expected)
        assert_rows_equal(run(name, gpu_ids, **on_gpu, backend="reference"), expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_long_rows_equal_those_of_the_cpu(dtype):
    """More tokens, draws and sentences than a block or a step holds."""
    ids = torch.randint(10, 900, (4, 3001), dtype=dtype)
    dense = SpanCorruption(range(9000, 7000, -1), (Denoiser(0.5, 2.0),))
    assert_rows_equal(corrupt_spans(ids.cuda(), dense, seed=3), corrupt_spans(ids, dense, seed=3))
    text = TextInfilling(MASK, 0.6, 2.0, True, range(10, 200), (EOS,))
    assert_rows_equal(infill_text(ids.cuda(), text, seed=3), infill_text(ids, text, seed=3))


@pytest.mark.parametrize("name", ["t5", "ul2", "sentences"])
def test_two_runs_give_the_same_bits(name):
    ids = torch.randint(0, 900, (64, 500)).cuda()
    one, two = (run(name, ids, seed=1) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.long
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ["t5", "ul2", "bart", "sentences"])
def test_a_graph_captures_rows_and_batches(name, padded):
    ids = torch.randint(0, 900, (8, 200)).cuda()
    keep = (torch.arange(200) < torch.randint(1, 200, (8, 1))).cuda() if padded else None

    def step():
        rows = run(name, ids, seed=1, attention_mask=keep)
        return rows, pad_corrupted(rows, input_length=400, target_length=300)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rows, batch = step()
    ids.copy_(torch.randint(0, 900, (8, 200)))
    graph.replay()
    expected = run(name, ids.cpu(), seed=1, attention_mask=None if keep is None else keep.cpu())
    assert_rows_equal(rows, expected)
    on_cpu = pad_corrupted(expected, input_length=400, target_length=300)
    assert all(torch.equal(batch[column].cpu(), on_cpu[column]) for column in on_cpu)


def test_static_batches_are_those_of_the_cpu():
    ids = torch.randint(10, 900, (16, 512))
    ids[:, -1] = EOS
    expected = corrupt_spans(ids, CORRUPTIONS["t5"], seed=5)
    batch = pad_batch({"input_ids": expected.inputs}, padding_values={"input_ids": 0})
    batch["labels"] = pad_rows(expected.targets, padding_value=-100)
    lengths = dict(zip(("input_length", "target_length"), corrupted_lengths(512), strict=True))
    gpu_ids = ids.cuda()
    found = corrupt_spans(gpu_ids, CORRUPTIONS["t5"], seed=5)
    static = without_a_wait(lambda: pad_corrupted(found, **lengths))
    assert all(torch.equal(static[name].cpu(), batch[name]) for name in batch)


def test_rows_that_are_too_long_are_cut():
    ids = torch.randint(10, 900, (4, 64)).cuda()
    found = corrupt_spans(ids, CORRUPTIONS["t5"], seed=5)
    whole = pad_corrupted(found, input_length=70, target_length=70)
    short = pad_corrupted(found, input_length=11, target_length=5)
    assert torch.equal(short["input_ids"], whole["input_ids"][:, :11])
    assert torch.equal(short["labels"], whole["labels"][:, :5])


@pytest.mark.unchecked
def test_too_few_sentinels_make_longer_spans():
    ids = torch.randint(10, 90, (3, 61))
    few = SpanCorruption(SENTINELS[:3], eos_token_id=EOS)
    fewer = SpanCorruption(SENTINELS[:3], (Denoiser(0.15, 4.5),), eos_token_id=EOS)
    found = corrupt_spans(ids.cuda(), few, seed=5)
    assert_rows_equal(found, corrupt_spans(ids, fewer, seed=5))


@pytest.mark.unchecked
@pytest.mark.parametrize("bounds", [[5, 9, 30], [-3, 10, 60], [0, 30, 10, 40], [7], [90, 95]])
@pytest.mark.parametrize("name", ["t5", "sentences"])
def test_broken_bounds_stay_inside_the_tokens(name, bounds):
    ids = torch.randint(10, 90, (40,)).cuda()
    held = torch.tensor(bounds).clamp(0, 40).cummax(0).values
    rows = run(name, ids, seed=0, cu_seqlens=torch.tensor(bounds).cuda())
    first, last = int(held[0]), int(held[-1])
    expected = run(name, ids.cpu()[first:last], seed=0, cu_seqlens=held - first, backend="numba")
    assert torch.equal(rows.cu_seqlens.cpu(), expected.cu_seqlens)
    end = int(expected.cu_seqlens[-1])
    assert torch.equal(rows.input_ids[:end].cpu(), expected.input_ids)


@pytest.mark.long
@pytest.mark.parametrize("name", ["t5", "sentences"])
def test_a_whole_graph_compiles_on_the_device(name):
    ids = torch.randint(0, 900, (8, 64)).cuda()

    def step(ids):
        rows = run(name, ids, seed=5)
        return pad_corrupted(rows, input_length=128, target_length=128)

    compiled = torch.compile(step, fullgraph=True)
    expected = step(ids)
    found = compiled(ids)
    assert all(torch.equal(found[column], expected[column]) for column in expected)


@pytest.mark.long
def test_new_numbers_compile_nothing():
    from maskkernels.denoise import _triton

    def call(rows, seed, corruption):
        corrupt_spans(torch.randint(0, 900, (rows, 64)).cuda(), corruption, seed=seed)
        return len(_triton.plan_spans.device_caches[torch.cuda.current_device()][0])

    before = call(5, 3, CORRUPTIONS["t5"])
    for rows, seed, name in ((1, 0, "ul2"), (16, 1, "open targets"), (17, 1 << 63, "prefix")):
        assert call(rows, seed, CORRUPTIONS[name]) == before
