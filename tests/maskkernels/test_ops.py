"""The ops as PyTorch sees them: opcheck, fullgraph compilation, fake tensors, light import."""

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import maskkernels  # noqa: F401  (registers the ops)
from maskkernels import (
    MaskingPolicy,
    corrupt_spans,
    hash_rows,
    infill_text,
    mask_tokens,
    pad_corrupted,
    random_words,
    word_units,
)
from maskkernels.denoise import op as denoising
from tests.support.denoise_cases import CORRUPTIONS, INFILLINGS, problem
from tests.support.mask_cases import SHAPES, V, batch, cases

IDS, ARGUMENTS = batch("right")
POLICY = MaskingPolicy(3, V, rate=0.4)
TAIL = (7, 1, 3, V, 0.4, 0.8, 0.1)


@pytest.mark.parametrize("budget", [False, True])
@pytest.mark.parametrize("capacity", [-1, 0, 6])
def test_mask_tokens_passes_opcheck(budget, capacity):
    units = (torch.arange(IDS.numel()) % 13 // 2).view(IDS.shape)
    rates = torch.rand(IDS.shape)
    for unit, rate in ((None, None), (units, None), (units, rates)):
        arguments = (
            IDS, None, None, ARGUMENTS["attention_mask"], None, None, None, unit, rate, *TAIL,
            budget, True, False, -100, capacity,
        )  # fmt: skip
        torch.library.opcheck(torch.ops.maskkernels.mask_tokens.default, arguments)


def test_the_random_ops_pass_opcheck():
    torch.library.opcheck(
        torch.ops.maskkernels.hash_rows.default, (IDS, None, ARGUMENTS["attention_mask"])
    )
    words = (torch.arange(5), torch.arange(5), 7, 1, 0)
    torch.library.opcheck(torch.ops.maskkernels.random_words.default, words)


def test_the_unit_ops_pass_opcheck():
    ops = torch.ops.maskkernels
    where = (None, ARGUMENTS["attention_mask"], None, None, None)
    table = torch.randint(0, 4, (V,), dtype=torch.uint8)
    torch.library.opcheck(ops.word_units.default, (IDS, table, *where))
    offsets = torch.randint(0, 3, (*IDS.shape, 2))
    torch.library.opcheck(ops.units_from_offsets.default, (IDS, offsets, *where))
    torch.library.opcheck(ops.units_from_word_ids.default, (IDS, IDS // 7, *where))
    units, samples = word_units(IDS, table), torch.arange(IDS.shape[0])
    spans = (units, [1 << 30, 1 << 31], [1 << 29, 1 << 31], samples, None, -3, 2)
    torch.library.opcheck(ops.span_units.default, spans)
    torch.library.opcheck(ops.rates_from_weights.default, (torch.rand(IDS.shape), units, 0.2, None))


def denoising_arguments(shape):
    ids, arguments, _ = problem(shape, 40, 1)
    names = ("sample_ids", "cu_seqlens", "attention_mask")
    return (ids, *(arguments.get(name) for name in names), 7, 3)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_denoising_ops_pass_opcheck(shape):
    rows = denoising_arguments(shape)
    options = denoising.spell_spans(CORRUPTIONS["ul2"])
    torch.library.opcheck(torch.ops.maskkernels.corrupt_spans.default, (*rows, *options))
    options = denoising.spell_infilling(INFILLINGS["sentences"])
    torch.library.opcheck(torch.ops.maskkernels.infill_text.default, (*rows, *options))


@pytest.mark.parametrize("shape", ["left", "packed_gaps"])
@pytest.mark.parametrize(
    ("run", "options"),
    [(corrupt_spans, CORRUPTIONS["ul2"]), (infill_text, INFILLINGS["sentences"])],
)
def test_a_whole_graph_compiles_to_the_same_rows(run, options, shape):
    """Their number of tokens is known only when it runs."""
    ids, arguments, _ = problem(shape, 40, 1)
    arguments["seed"] = 7

    def batch(ids):
        rows = run(ids, options, **arguments)
        static = pad_corrupted(rows, input_length=150, target_length=150)
        return *rows, rows.input_ids + 1, *static.values()

    compiled = torch.compile(batch, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):  # torch 2.8 needs it
        found = compiled(ids)
    for a, b in zip(found, batch(ids), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("symbolic", [False, True])
def test_sizes_on_other_devices_depend_on_shapes_alone(symbolic):
    """On "meta", as on a GPU: 4096 tokens in 8 rows, T5's noise and one span in three of it."""
    mode = FakeTensorMode(shape_env=ShapeEnv() if symbolic else None)
    ids = mode.from_tensor(torch.empty(8, 512, dtype=torch.int32, device="meta"))
    rest = (None, None, None, 7, 3)
    with mode:
        spans = torch.ops.maskkernels.corrupt_spans(
            ids, *rest, *denoising.spell_spans(CORRUPTIONS["t5"])
        )
        text = torch.ops.maskkernels.infill_text(
            ids, *rest, *denoising.spell_infilling(INFILLINGS["bart"])
        )
    assert [len(t) for t in spans] == [4096, 9, 819 + 1 + 16 + 16, 9]
    assert [len(t) for t in text] == [8192, 9, 4096, 9]
    assert {t.dtype for t in (spans[0], spans[2], text[0], text[2])} == {torch.int32}


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_whole_graph_compiles_to_the_same_masks(backend):
    def masked(ids, keep):
        found = mask_tokens(ids, POLICY, seed=5, attention_mask=keep, capacity=8, backend=backend)
        return found.input_ids + 0, found.labels, found.count, found.positions

    compiled = torch.compile(masked, fullgraph=True, backend="aot_eager")
    keep = ARGUMENTS["attention_mask"]
    for a, b in zip(compiled(IDS, keep), masked(IDS, keep), strict=True):
        assert torch.equal(a, b)


def test_varied_lengths_do_not_recompile():
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda ids: mask_tokens(ids, POLICY, seed=5).labels, fullgraph=True, backend="aot_eager",
        dynamic=True,
    )  # fmt: skip
    with torch._dynamo.config.patch(error_on_recompile=True):
        for length in (5, 9, 17):
            ids = torch.randint(0, V, (4, length))
            assert torch.equal(compiled(ids), mask_tokens(ids, POLICY, seed=5).labels)


def test_a_random_op_compiles():
    compiled = torch.compile(
        lambda s, i: random_words(s, i, seed=3), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(torch.arange(5), torch.arange(5)), random_words(
        torch.arange(5), torch.arange(5), seed=3
    ))  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("capacity", [None, 0, 9])
def test_fake_tensors_have_the_shapes_of_real_ones(dtype, capacity):
    typed = IDS.to(dtype)
    real = mask_tokens(typed, POLICY, seed=5, capacity=capacity)
    with FakeTensorMode() as mode:
        ids = mode.from_tensor(typed)
        found = torch.ops.maskkernels.mask_tokens(
            ids, None, None, None, None, None, None, None, None, *TAIL, False, False, False, -100,
            -1 if capacity is None else capacity,
        )  # fmt: skip
        hashes = torch.ops.maskkernels.hash_rows(ids, None, None)
    for a, b in zip(found, real, strict=True):
        if b is not None:
            assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
    assert hashes.shape == hash_rows(IDS).shape


def test_the_cases_of_the_other_tests_run_under_the_dispatcher():
    """backend="auto" on the CPU is Numba: no case falls back in silence."""
    for _, ids, policy, arguments in list(cases())[::40]:
        a = mask_tokens(ids, policy, **arguments)
        b = mask_tokens(ids, policy, **arguments, backend="numba")
        assert torch.equal(a.labels, b.labels)


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("maskkernels", ("triton", "numba", "transformers", "maskft")),
        ("maskft", ("torch", "transformers", "numba", "triton")),
        ("maskft.cli", ("torch", "transformers", "numba", "triton", "rich")),
    ],
)
def test_import_stays_light(module, absent):
    code = f"import {module}, sys; print([m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
