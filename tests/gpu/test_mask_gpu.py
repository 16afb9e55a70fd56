"""On a GPU: Triton's masks equal Numba's, nothing waits for the device, a graph captures it."""

from contextlib import contextmanager

import pytest
import torch

import maskkernels
from maskkernels import (
    MaskingPolicy,
    hash_rows,
    mask_tokens,
    random_words,
    rates_from_weights,
    span_units,
    word_units,
)
from tests.support.cover import pairwise
from tests.support.mask_cases import V, batch, cases, edges, rates_of, unit_tensor, weighted
from tests.support.unit_cases import LENGTHS, TABLE, unchecked, unit_rows, weight_cases, word_cases

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("no GPU on this machine", allow_module_level=True)


@contextmanager
def no_sync():
    """What waits for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def to_gpu(arguments):
    return {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}


def options_of(case):
    """What selects a kernel's code, or its path through it."""
    _, ids, policy, arguments = case
    masks = [arguments.get(name) for name in ("attention_mask", "special_tokens_mask", "rates")]
    given = ("maskable", "units", "replacement_ids", "sample_ids", "cu_seqlens")
    return (
        ids.dtype, *(None if mask is None else mask.dtype for mask in masks),
        *(name in arguments for name in given), arguments.get("capacity") is None,
        policy.selection, policy.at_least_one, policy.replacement, policy.random_share > 0,
    )  # fmt: skip


@pytest.mark.parametrize("case", pairwise([*cases(), *weighted()], options_of), ids=lambda c: c[0])
def test_masks_equal_those_of_the_cpu(case):
    assert_masks_equal(case)


@pytest.mark.parametrize("case", edges(), ids=lambda c: c[0])
def test_masks_equal_those_of_the_cpu_where_blocks_begin_and_end(case):
    assert_masks_equal(case)


@pytest.mark.long
@pytest.mark.parametrize("case", [*cases(), *weighted()], ids=lambda c: c[0])
def test_masks_of_every_case_equal_those_of_the_cpu(case):
    assert_masks_equal(case)


def assert_masks_equal(case):
    _, ids, policy, arguments = case
    expected = mask_tokens(ids, policy, **arguments, backend="numba")
    on_gpu = to_gpu(arguments)
    gpu_ids = ids.cuda()
    with no_sync():
        found = mask_tokens(gpu_ids, policy, **on_gpu)
    for a, b in zip(found, expected, strict=True):
        if b is None:
            assert a is None
        else:
            assert torch.equal(a.cpu(), b)


def samples_of(units, bounds):
    return torch.arange(units.shape[0] if bounds is None else bounds.numel() - 1) - 2


def few_words():
    """Some of ``word_cases``: every layout, function and limit with each of the others."""
    return pairwise(word_cases(), lambda c: (c[0].split("-")[0], c[1], *map(c[4].__contains__, (
        "maskable", "special_tokens_mask", "groups", "attention_mask"))))  # fmt: skip


@pytest.mark.parametrize("words", [few_words, pytest.param(word_cases, marks=pytest.mark.long)])
def test_units_equal_those_of_the_cpu(words):
    for name, function, which, ids, arguments in words():
        run = getattr(maskkernels, function)
        expected = run(ids, which, **arguments)
        on_gpu = (ids.cuda(), which.cuda(), to_gpu(arguments))
        with no_sync():
            found = run(*on_gpu[:2], **on_gpu[2])
        assert torch.equal(found.cpu(), expected), (name, function)


def test_spans_equal_those_of_the_cpu():
    for name, units, bounds in unit_rows():
        for kind, lengths in LENGTHS.items():
            options = {"sample_ids": samples_of(units, bounds), "cu_seqlens": bounds}
            run = lambda units, options, by=lengths: span_units(  # noqa: E731
                units, by, seed=(1 << 64) - 5, epoch=9, **options
            )
            expected, on_gpu = run(units, options), (units.cuda(), to_gpu(options))
            run(*on_gpu)  # the table of the lengths is on the GPU from here on
            with no_sync():
                found = run(*on_gpu)
            assert torch.equal(found.cpu(), expected), (name, kind)


def few_weights():
    """Some of ``weight_cases``: every layout, kind and rate with each of the others."""
    return pairwise(weight_cases(), lambda c: (*c[0].rsplit("-", 3)[:3], c[3], c[2].dtype))


@pytest.mark.parametrize("rated", [few_weights, pytest.param(weight_cases, marks=pytest.mark.long)])
def test_rates_equal_those_of_the_cpu(rated):
    for name, weights, units, rate, bounds in rated():
        expected = rates_from_weights(weights, units, rate, cu_seqlens=bounds)
        on_gpu = [None if t is None else t.cuda() for t in (weights, units, bounds)]
        with no_sync():
            found = rates_from_weights(*on_gpu[:2], rate, cu_seqlens=on_gpu[2])
        assert torch.equal(found.cpu(), expected), name
        narrow = weights.bfloat16()
        expected = rates_from_weights(narrow, units, rate, cu_seqlens=bounds)
        found = rates_from_weights(narrow.cuda(), on_gpu[1], rate, cu_seqlens=on_gpu[2])
        assert torch.equal(found.cpu(), expected), name


@pytest.mark.unchecked
def test_units_that_nobody_looked_at_have_the_defined_result():
    for name, weights, units, rate, bounds in unchecked():
        on_gpu = {"cu_seqlens": None if bounds is None else bounds.cuda()}
        units, weights = units.cuda(), weights.cuda()
        rates = [
            rates_from_weights(weights, units, rate, **on_gpu, backend=backend)
            for backend in ("triton", "reference")
        ]
        assert torch.equal(*rates), name
        assert (rates[0] <= 1).all()
        options = {"sample_ids": samples_of(units, bounds).cuda(), "seed": 3, **on_gpu}
        spans = [
            span_units(units, LENGTHS["spanbert"], **options, backend=backend)
            for backend in ("triton", "reference")
        ]
        assert torch.equal(*spans), name


def plan(ids, weights):
    """Words, spans of them and rates of the words: what strategies ask for."""
    words = word_units(ids, TABLE.to(ids.device))
    samples = torch.arange(ids.shape[0], device=ids.device)
    spans = span_units(words, LENGTHS["spanbert"], sample_ids=samples, seed=1)
    return words, spans, rates_from_weights(weights, words, 0.2)


@pytest.mark.long
def test_a_graph_captures_units_and_rates():
    ids, weights = torch.randint(0, V, (8, 300)).cuda(), torch.rand(8, 300).cuda()
    table, samples = TABLE.cuda(), torch.arange(8).cuda()

    def run():
        words = word_units(ids, table)
        spans = span_units(words, LENGTHS["spanbert"], sample_ids=samples, seed=1)
        return words, spans, rates_from_weights(weights, words, 0.2)

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    ids.copy_(torch.randint(0, V, (8, 300)))
    weights.copy_(torch.rand(8, 300))
    graph.replay()
    for a, b in zip(found, plan(ids.cpu(), weights.cpu()), strict=True):
        assert torch.equal(a.cpu(), b)


@pytest.mark.long
def test_units_and_rates_compile_as_one_graph_on_the_device():
    ids, weights = torch.randint(0, V, (8, 300)).cuda(), torch.rand(8, 300).cuda()
    for a, b in zip(
        torch.compile(plan, fullgraph=True)(ids, weights), plan(ids, weights), strict=True
    ):
        assert torch.equal(a, b)


def test_words_and_hashes_equal_those_of_the_cpu():
    samples = torch.randint(-(1 << 63), (1 << 63) - 1, (5000,))
    index = torch.randint(0, 1 << 34, (5000,))
    expected = random_words(samples, index, seed=1 << 63, epoch=9, stream=1)
    found = random_words(samples.cuda(), index.cuda(), seed=1 << 63, epoch=9, stream=1)
    assert torch.equal(found.cpu(), expected)
    ids = torch.randint(0, V, (300, 1000))
    assert torch.equal(hash_rows(ids.cuda()).cpu(), hash_rows(ids))


@pytest.mark.unchecked
def test_ids_outside_the_table_are_never_masked():
    ids = torch.tensor([[V, -1, 1 << 40, 5]]).cuda()
    table = torch.ones(V, dtype=torch.bool).cuda()
    found = mask_tokens(ids, MaskingPolicy(3, V, rate=1.0), seed=0, maskable=table)
    assert found.labels.tolist() == [[-100, -100, -100, 5]]
    assert found.input_ids.tolist()[0][:3] == ids.tolist()[0][:3]


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.unchecked
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


@pytest.mark.long
def test_a_whole_graph_compiles_on_the_device():
    ids = torch.randint(0, V, (8, 64)).cuda()
    policy = MaskingPolicy(3, V)
    compiled = torch.compile(lambda x: mask_tokens(x, policy, seed=5).labels, fullgraph=True)
    assert torch.equal(compiled(ids), mask_tokens(ids, policy, seed=5).labels)


@pytest.mark.long
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
