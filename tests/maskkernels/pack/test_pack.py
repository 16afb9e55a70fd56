"""Packing: the rule in plain Python, the kernel against it, and how full blocks become."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskkernels import pack_rows

BACKENDS = ["reference", "numba"]


@st.composite
def _jobs(draw):
    capacity = draw(st.sampled_from([1, 2, 7, 63, 64, 65, 200, 4096, 5000]))
    few = draw(st.lists(st.integers(0, capacity), min_size=1, max_size=4))
    lengths = draw(st.lists(st.sampled_from(few) | st.integers(0, capacity), max_size=150))
    return lengths, capacity, draw(st.sampled_from([None, 1, 2, 63, 64, 70]))


@settings(max_examples=200, deadline=None)
@given(_jobs())
def test_the_kernel_packs_as_the_reference(job):
    lengths, capacity, window = job
    one, two = (pack_rows(lengths, capacity, window=window, backend=b) for b in BACKENDS)
    assert torch.equal(one.rows, two.rows)
    assert torch.equal(one.bounds, two.bounds)
    assert one.fill == two.fill


@settings(max_examples=200, deadline=None)
@given(_jobs())
def test_every_row_has_one_place_and_no_block_overflows(job):
    lengths, capacity, window = job
    packed = pack_rows(lengths, capacity, window=window)
    assert sorted(packed.rows.tolist()) == list(range(len(lengths)))
    assert packed.rows.dtype == packed.bounds.dtype == torch.int64
    for block in packed.blocks():
        assert block
        assert block == sorted(block)
        assert sum(lengths[row] for row in block) <= capacity
    if lengths:
        assert packed.fill == sum(lengths) / (len(packed.blocks()) * capacity)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("window", "blocks"),
    [
        (None, [[1, 3], [0, 2, 4, 5]]),  # 7 | 4 opens a block | 3 fills the first | 3, 2, 1
        (1, [[0, 3, 4], [1, 2, 5]]),  # 4 | 7 opens a block | 2 to the fuller | 3, 3 | 1
    ],
)
def test_the_rule_on_an_example(backend, window, blocks):
    """Worked out by hand from the docstring."""
    lengths = [4, 7, 2, 3, 3, 1]  # capacity 10
    assert pack_rows(lengths, 10, window=window, backend=backend).blocks() == blocks


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_equally_full_blocks_the_one_touched_last_takes_the_row(backend):
    packed = pack_rows([6, 6, 4], 10, window=1, backend=backend)
    assert packed.blocks() == [[0], [1, 2]]
    packed = pack_rows([4, 8, 4, 2], 10, window=1, backend=backend)  # the older one this time
    assert packed.blocks() == [[0, 2, 3], [1]]


@pytest.mark.parametrize("capacity", [512, 1024, 2048, 8192])
@pytest.mark.parametrize("sigma", [0.5, 0.8])
@pytest.mark.parametrize("window", [None, 1024])
def test_blocks_of_realistic_rows_are_full(capacity, sigma, window):
    """Lognormal lengths around 128: over 98%."""
    lengths = np.exp(np.random.default_rng(0).normal(np.log(128), sigma, 20_000))
    lengths = np.clip(lengths, 8, capacity).astype(int)
    assert pack_rows(lengths, capacity, window=window).fill > 0.98


@pytest.mark.parametrize("backend", BACKENDS)
def test_longer_rows_are_refused_or_counted_as_a_block(backend):
    with pytest.raises(ValueError, match=r"row 1 has 11 tokens, a block holds 10.*truncate"):
        pack_rows([3, 11, 12], 10, backend=backend)
    packed = pack_rows([3, 11, 12], 10, overlong="truncate", backend=backend)
    assert sorted(packed.blocks()) == [[0], [1], [2]]
    assert packed.fill == 23 / 30


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows_make_no_blocks(backend):
    packed = pack_rows([], 10, backend=backend)
    assert packed.blocks() == []
    assert packed.bounds.tolist() == [0]
    assert packed.fill == 1.0


def test_lengths_come_in_any_form():
    expected = pack_rows([3, 9, 4], 10).blocks()
    for form in (
        np.array([3, 9, 4], np.int16),
        torch.tensor([3, 9, 4], dtype=torch.int32),
        torch.tensor([3, 0, 9, 0, 4])[::2],
        (3, 9, 4),
    ):
        assert pack_rows(form, 10).blocks() == expected


@pytest.mark.parametrize(
    ("lengths", "capacity", "options", "error", "message"),
    [
        ([1.5], 10, {}, TypeError, "lengths must hold integers, got float64"),
        ([True], 10, {}, TypeError, "lengths must hold integers, got bool"),
        ([[1], [2, 3]], 10, {}, TypeError, "lengths must be a sequence of integers"),
        ([[1]], 10, {}, ValueError, r"shape \[B\], got \(1, 1\)"),
        ([1, -1], 10, {}, ValueError, r"lengths\[1\] is -1"),
        ([1], 0, {}, ValueError, r"capacity must be in \[1, 16777216\], got 0"),
        ([1], (1 << 24) + 1, {}, ValueError, "capacity must be in"),
        ([1], 2.0, {}, TypeError, "capacity must be an int, got float"),
        ([1], True, {}, TypeError, "capacity must be an int, got bool"),
        ([1], 10, {"window": 0}, ValueError, "window must be positive, got 0"),
        ([1], 10, {"overlong": "drop"}, ValueError, r"overlong must be one of .*got 'drop'"),
        ([1], 10, {"backend": "triton"}, ValueError, "backend='triton': tensors are on cpu"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused_by_name(lengths, capacity, options, error, message):
    with pytest.raises(error, match=message):
        pack_rows(lengths, capacity, **options)
