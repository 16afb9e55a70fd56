"""Compiled for the CPU: what the eager call refuses is refused when the graph runs."""

import math

import pytest
import torch

from maskkernels import (
    MaskingPolicy,
    SpanCorruption,
    TextInfilling,
    corrupt_spans,
    hash_rows,
    infill_text,
    mask_tokens,
    masked_cross_entropy,
    random_words,
    rates_from_weights,
    replace_tokens,
    span_units,
    units_from_offsets,
    units_from_word_ids,
    word_units,
)

V, N = 97, 400
POLICIES = [
    MaskingPolicy(3, V, rate=0.4),
    MaskingPolicy(3, V, rate=0.4, selection="budget"),
    MaskingPolicy(3, V, rate=0.4, selection="budget", replacement="unit"),
]
CORRUPTION, INFILLING = SpanCorruption(range(1000, 1400)), TextInfilling(4)
IDS, TABLE = torch.arange(N) % 90, torch.ones(V, dtype=torch.uint8)
OFFSETS, ONE = torch.arange(N)[:, None].expand(N, 2), torch.tensor([0])
OPS = {
    "hash_rows": lambda ids, b: hash_rows(ids, cu_seqlens=b),
    "mask_tokens": lambda ids, b: mask_tokens(ids, POLICIES[0], seed=1, cu_seqlens=b).labels,
    "word_units": lambda ids, b: word_units(ids, TABLE, cu_seqlens=b),
    "units_from_offsets": lambda ids, b: units_from_offsets(ids, OFFSETS, cu_seqlens=b),
    "units_from_word_ids": lambda ids, b: units_from_word_ids(ids, ids, cu_seqlens=b),
    "span_units": lambda ids, b: span_units(ids, [1], sample_ids=b[1:], seed=1, cu_seqlens=b),
    "rates_from_weights": lambda ids, b: rates_from_weights(ids * 1.0, ids, 0.1, cu_seqlens=b),
    "corrupt_spans": lambda ids, b: tuple(corrupt_spans(ids, CORRUPTION, seed=1, cu_seqlens=b)),
    "infill_text": lambda ids, b: tuple(infill_text(ids, INFILLING, seed=1, cu_seqlens=b)),
}


def compiled(function, *args):
    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):  # torch 2.8 needs it
        return torch.compile(function, fullgraph=True, backend="aot_eager")(*args)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize(
    "bounds", [[0, 10**7], [0, N // 2], [0, 300, 200, N], [-5, N], [0, 1 << 60, N], [7, N]]
)
def test_broken_bounds_are_refused_where_the_kernel_runs(name, bounds):
    with pytest.raises(ValueError, match=f"cu_seqlens must rise from 0 to {N}"):
        compiled(OPS[name], IDS, torch.tensor(bounds))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("rate", [10.0, math.nan, math.inf, -1.0])
def test_rates_that_are_none_are_refused_where_the_kernel_runs(policy, rate):
    rates, units = torch.full((2, N // 2), rate), IDS.view(2, -1)
    with pytest.raises(ValueError, match="rates must be between 0 and 1"):
        compiled(
            lambda ids, rates: mask_tokens(ids, policy, seed=1, units=units, rates=rates).labels,
            IDS.view(2, -1),
            rates,
        )


@pytest.mark.parametrize("value", [-1, V, 10**6, (1 << 63) - 1, -(1 << 63)])
def test_ids_outside_are_refused_where_the_kernel_runs(value):
    ids = IDS.view(2, -1)
    with pytest.raises(ValueError, match="replacement_ids go from"):
        compiled(
            lambda ids, new: mask_tokens(ids, POLICIES[0], seed=1, replacement_ids=new).labels,
            ids,
            torch.tensor([5, value]),
        )
    bad = ids.clone()
    bad[1, 3] = value
    with pytest.raises(ValueError, match=r"input_ids\[1, 3\] is"):
        compiled(lambda ids: mask_tokens(ids, POLICIES[0], seed=1).labels, bad)


def test_labels_and_positions_are_refused_where_the_kernel_runs():
    logits, labels = torch.zeros(4, 5), torch.tensor([1, 2, 3, 40])
    with pytest.raises(ValueError, match=r"labels\[3\] is 40"):
        compiled(lambda labels: masked_cross_entropy(logits, labels).loss, labels)
    for positions in ([1, 9], [2, 1], [-2, 0], [1 << 60, -1]):
        with pytest.raises(ValueError, match="positions must be rows"):
            compiled(
                lambda labels, at: masked_cross_entropy(logits, labels, positions=at).loss,
                labels.clamp(max=4),
                torch.tensor(positions),
            )


def test_an_index_past_the_counter_is_refused_where_the_kernel_runs():
    with pytest.raises(ValueError, match="index must be in"):
        compiled(lambda at: random_words(ONE, at, seed=1), torch.tensor([1 << 34]))


def test_units_without_a_column_have_rate_0_in_a_graph():
    ids, unit_rates = IDS.view(2, -1), torch.ones(2, 3)
    units = torch.full_like(ids, 7)
    units[:, 0] = 2

    def labels(units):
        found = mask_tokens(ids, POLICIES[0], seed=1, units=units, unit_rates=unit_rates)
        return found.labels + 0

    found = compiled(labels, units)
    assert (found != -100).sum(1).tolist() == [1, 1]
    with pytest.raises(ValueError, match="units go up to 7"):
        labels(units)


def test_replaced_positions_outside_are_left_out_in_a_graph():
    ids, labels = torch.tensor([[11, 103, 12]]), torch.tensor([[-100, 13, -100]])
    at = torch.tensor([1, 3, 1 << 60, -1])
    found = compiled(
        lambda at: replace_tokens(ids, labels, at * 0 + 77, positions=at).input_ids, at
    )
    assert found.tolist() == [[11, 77, 12]]


def test_kernels_keep_no_bounds_that_another_thread_could_change():
    from maskkernels.tokens._numba import row_bounds

    for dtype in (torch.int64, torch.int32):
        bounds = torch.tensor([0, 7, N], dtype=dtype)
        kept = row_bounds(IDS, bounds)
        bounds.fill_(1 << 30)
        assert kept.tolist() == [0, 7, N]


def test_rates_of_units_without_rows_are_an_error_that_names_the_bounds():
    units, none = torch.full_like(IDS, -1), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"cu_seqlens must rise from 0 to \d+"):
        compiled(
            lambda bounds: (
                mask_tokens(
                    IDS,
                    POLICIES[0],
                    seed=1,
                    units=units,
                    unit_rates=torch.ones(0, 3),
                    cu_seqlens=bounds,
                ).labels
            ),
            none,
        )
