"""Spans and weighted rates: against plain Python, the kernel against the reference, statistics."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from maskkernels import (
    MaskingPolicy,
    geometric_lengths,
    mask_tokens,
    random_words,
    rates_from_weights,
    span_units,
    threshold,
    units_from_word_ids,
    word_units,
)
from tests.support.mask_cases import SHAPES, V, batch

BACKENDS = ("reference", "numba")
TABLE = torch.randint(0, 4, (V,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
SPANBERT = geometric_lengths()
LIMIT = 0.001
B, T = 2000, 500


def words_of(ids, arguments):
    g = torch.Generator().manual_seed(4)
    special = torch.rand(ids.shape, generator=g) < 0.1
    return word_units(ids, TABLE, special_tokens_mask=special, **arguments)


def plain_spans(units, words, lengths):
    """One sample: the rule of ``span_units``, word by word of stream 9."""
    mean = sum(n * p for n, p in enumerate(lengths, 1))
    remaining = [sum(lengths[n:]) / mean for n in range(len(lengths))]

    def draw(shares, word):
        n, below = 1, 0.0
        for share in shares[:-1]:
            below += share
            n += word >= threshold(min(below, 1.0))
        return n

    spans, number, left, before = [], -1, 0, -1
    for unit in units:
        if unit >= 0 and unit != before:
            left -= 1
            if before < 0 or left == 0:
                number += 1
                left = draw(remaining if before < 0 else lengths, words[unit])
        spans.append(number if unit >= 0 else -1)
        before = unit
    return spans


@settings(max_examples=150, deadline=None)
@given(
    begins=st.lists(st.sampled_from("wc-"), max_size=40),
    lengths=st.sampled_from([[1.0], [0.0, 0.0, 1.0], [0.5, 0.25, 0.25], SPANBERT]),
    seed=st.integers(0, (1 << 64) - 1),
)
def test_spans_follow_the_plain_rule(begins, lengths, seed):
    """w: a word begins, c: it goes on, -: no word."""
    word_ids = [-1 if c == "-" else 0 for c in begins]
    for t in range(1, len(begins)):
        if begins[t] != "-":
            word_ids[t] = max(word_ids[t - 1], 0) + (begins[t] == "w")
    ids = torch.tensor([word_ids], dtype=torch.int64)
    units = units_from_word_ids(ids, ids)
    sample = torch.tensor([77])
    words = random_words(sample, torch.arange(41), seed=seed, epoch=3, stream=9).tolist()
    expected = plain_spans(units[0].tolist(), words, lengths)
    for backend in BACKENDS:
        spans = span_units(units, lengths, sample_ids=sample, seed=seed, epoch=3, backend=backend)
        assert spans.tolist() == [expected]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("lengths", [SPANBERT, [0, 0, 1], [1]])
def test_the_kernels_equal_the_reference(shape, dtype, lengths):
    ids, arguments = batch(shape, 7, 300, seed=3)
    if "cu_seqlens" in arguments:
        arguments["cu_seqlens"] = torch.tensor([0, 3, 3, 300, 7 * 300])
    units = words_of(ids, arguments).to(dtype)
    packed = {k: v for k, v in arguments.items() if k == "cu_seqlens"}
    samples = 7 if ids.dim() == 2 else 4
    options = {"sample_ids": torch.arange(samples) - 2, "seed": (1 << 64) - 5, "epoch": 9}
    one, two = (span_units(units, lengths, **options, **packed, backend=b) for b in BACKENDS)
    assert torch.equal(one, two)
    assert torch.equal(one >= 0, units >= 0)
    g = torch.Generator().manual_seed(6)
    weights = torch.rand(ids.shape, generator=g, dtype=torch.float64) ** 4 + 1e-12
    for rate in (0.0, 0.15, 0.7, 1.0):
        one, two = (rates_from_weights(weights, units, rate, **packed, backend=b) for b in BACKENDS)
        assert torch.equal(one, two), rate


def test_threads_do_not_change_the_bits():
    ids = torch.randint(0, V, (600, 512), generator=torch.Generator().manual_seed(2))
    units = word_units(ids, TABLE)
    weights = torch.rand(ids.shape)
    threads, found = torch.get_num_threads(), []
    for n in (1, 2):
        torch.set_num_threads(n)
        spans = span_units(units, SPANBERT, sample_ids=torch.arange(600), seed=1)
        found.append((spans, rates_from_weights(weights, units, 0.15)))
    torch.set_num_threads(threads)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_spans_do_not_depend_on_padding_or_packing(backend):
    g = torch.Generator().manual_seed(8)
    rows = [torch.randint(0, V, (n,), generator=g) for n in (1, 7, 40, 23)]
    samples = torch.arange(4) + 100
    options = {"seed": 5, "epoch": 2, "backend": backend}
    alone = [
        span_units(word_units(row[None], TABLE), SPANBERT, sample_ids=samples[i : i + 1], **options)
        for i, row in enumerate(rows)
    ]
    bounds = torch.tensor([0, 1, 8, 48, 71])
    packed = span_units(
        word_units(torch.cat(rows), TABLE, cu_seqlens=bounds),
        SPANBERT, sample_ids=samples, cu_seqlens=bounds, **options,
    )  # fmt: skip
    assert packed.tolist() == torch.cat([row[0] for row in alone]).tolist()
    left = torch.full((4, 44), -1)
    for i, row in enumerate(rows):
        left[i, 44 - len(row) :] = word_units(row[None], TABLE)[0]
    padded = span_units(left, SPANBERT, sample_ids=samples, **options)
    for i, row in enumerate(rows):
        assert padded[i, 44 - len(row) :].tolist() == alone[i][0].tolist()
        assert (padded[i, : 44 - len(row)] == -1).all()


# --- what spans look like -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def spans():
    units = torch.arange(T).expand(B, T)
    return span_units(units, SPANBERT, sample_ids=torch.arange(B), seed=20262)


def inner_lengths(spans):
    """The lengths of all spans but the first and the last of each row, which its ends cut."""
    return torch.cat([torch.bincount(row)[1:-1] for row in spans])


def test_lengths_are_spanberts(spans):
    """263,000 spans: chi-square over ten lengths; would catch 20.5% for the 22.4% of length 1."""
    sizes = inner_lengths(spans)
    counts = torch.bincount(sizes, minlength=11)[1:]
    assert counts.numel() == 10
    expected = torch.tensor(SPANBERT, dtype=torch.float64) * counts.sum()
    assert chisquare(counts.numpy(), expected.numpy()).pvalue > LIMIT
    assert math.isclose(sum(n * p for n, p in enumerate(SPANBERT, 1)), 3.797, abs_tol=1e-3)


def test_masked_spans_have_the_same_lengths_at_the_asked_rate(spans):
    ids = torch.randint(10, V, (B, T), generator=torch.Generator().manual_seed(0))
    policy = MaskingPolicy(3, V, replacement="unit")
    masked = mask_tokens(
        ids, policy, seed=20262, sample_ids=torch.arange(B), units=spans,
        replacement_ids=torch.arange(10, V),
    )  # fmt: skip
    chosen = masked.labels != -100
    lengths = []
    for row, hit in zip(spans, chosen, strict=True):
        count, size = torch.bincount(row, hit.double()).long(), torch.bincount(row)
        assert ((count == 0) | (count == size)).all()  # whole spans
        lengths.append(size[1:-1][count[1:-1] > 0])
    counts = torch.bincount(torch.cat(lengths), minlength=11)[1:]
    expected = torch.tensor(SPANBERT, dtype=torch.float64) * counts.sum()
    assert chisquare(counts.numpy(), expected.numpy()).pvalue > LIMIT
    total = sum(int(row.max()) + 1 for row in spans)
    hits = sum(int(row[hit].unique().numel()) for row, hit in zip(spans, chosen, strict=True))
    assert chisquare([hits, total - hits], [0.15 * total, 0.85 * total]).pvalue > LIMIT
    share = chosen.double().mean().item()  # its spread: sqrt(sum of squared sizes) / tokens
    spread = math.sqrt(0.15 * 0.85 * sum(n * n * p for n, p in enumerate(SPANBERT, 1)) / 3.797)
    assert abs(share - 0.15) < 4 * spread / math.sqrt(B * T)
    seen = masked.input_ids == 3  # one action a span
    for row, hit, mask in zip(spans[:100], chosen[:100], seen[:100], strict=True):
        for span in row[hit].unique():
            assert mask[row == span].all() or not mask[row == span].any()


def test_every_place_begins_a_span_alike(spans):
    """At the beginning of a row too; 2000 draws a place: would catch 0.33 for 1/3.797."""
    begins = spans[:, 1:] != spans[:, :-1]
    counts = begins.sum(0)
    table = [[int(counts[t]), B - int(counts[t])] for t in (0, 1, 2, 5, 50, 250, T - 2)]
    assert chi2_contingency(table).pvalue > LIMIT
    share = counts.sum().item() / begins.numel()
    assert abs(share - 1 / 3.7969) < 0.002


def test_ngrams_have_one_length_and_every_phase():
    units = torch.arange(T).expand(B, T)
    spans = span_units(units, [0, 0, 1], sample_ids=torch.arange(B), seed=3)
    assert set(inner_lengths(spans).tolist()) == {3}
    first = torch.tensor([int((row == 0).sum()) for row in spans])
    counts = torch.bincount(first, minlength=4)[1:]
    assert chisquare(counts.numpy()).pvalue > LIMIT


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_shorter_than_a_span_are_one_span_or_several(backend):
    """Spans of five in rows of one to four units: cut at most once, where a span would begin."""
    for size in range(1, 5):
        units = torch.arange(size).expand(400, size).contiguous()
        found = span_units(
            units, [0, 0, 0, 0, 1], sample_ids=torch.arange(400), seed=2, backend=backend
        )
        assert (found[:, 0] == 0).all()
        assert int(found.max()) == min(size - 1, 1)
        whole = float((found[:, -1] == 0).double().mean())
        assert abs(whole - (6 - size) / 5) < 0.1  # four standard deviations of 400 rows


def test_epochs_cut_anew(spans):
    units = torch.arange(T).expand(B, T)
    other = span_units(units, SPANBERT, sample_ids=torch.arange(B), seed=20262, epoch=1)
    a, b = (s[:, 1:] != s[:, :-1] for s in (spans, other))
    table = [[int((x & y).sum()) for y in (b, ~b)] for x in (a, ~a)]
    assert chi2_contingency(table, correction=False).pvalue > LIMIT


# --- rates that follow weights ------------------------------------------------------------------


def plain_rates(weights, rate):
    """Water-filling by sorting, in floating point."""
    order = sorted(range(len(weights)), key=lambda i: -weights[i])
    left, total, rates = rate * len(weights), sum(weights), [0.0] * len(weights)
    for i in order:
        if total > 0 and weights[i] * left / total >= 1:
            rates[i] = 1.0
            left, total = left - 1, total - weights[i]
        elif total > 0:
            rates[i] = weights[i] * left / total
    return rates


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30), st.floats(0, 1))
def test_rates_follow_weights_up_to_one(weights, rate):
    units = torch.arange(len(weights))[None]
    given_weights = torch.tensor([weights], dtype=torch.float64)
    parts = [max(math.floor(w / max(weights) * (1 << 24)), 1) for w in weights]
    expected = torch.tensor([plain_rates(parts, rate)], dtype=torch.float64)
    for backend in BACKENDS:
        rates = rates_from_weights(given_weights, units, rate, backend=backend)
        assert torch.allclose(rates, expected, atol=1e-9)
        assert math.isclose(rates.sum().item(), rate * len(weights), abs_tol=1e-9)
        assert rates.max() <= 1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 1 << 24), min_size=1, max_size=40),
    st.sampled_from([1, 3, 1 << 23]),
    st.one_of(st.floats(0, 1), st.fractions(0, 1, max_denominator=40).map(float)),
)
def test_tokens_between_certain_and_not_go_the_same_way(weights, spread, rate):
    """Equal weights, weights one part apart, budgets that the certain use up."""
    weights = torch.tensor([[w % spread + 1 if spread > 1 else 1 for w in weights]]).double()
    units = torch.arange(weights.numel())[None]
    one, two = (rates_from_weights(weights, units, rate, backend=b) for b in BACKENDS)
    assert torch.equal(one, two)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_unit_has_the_weight_of_its_first_token(backend):
    units = torch.tensor([[-1, 0, 0, 1, 2, 2, 2, -1]])
    weights = torch.tensor([[9.0, 1.0, 7.0, 2.0, 1.0, 0.0, 5.0, 9.0]])
    rates = rates_from_weights(weights, units, 0.35, backend=backend)
    assert rates[0].tolist() == pytest.approx([0, 0.3, 0.3, 0.6, 0.3, 0.3, 0.3, 0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_negative_zero_is_no_weight_and_hides_no_negative_one(backend):
    units = torch.arange(3)[None]
    rates = rates_from_weights(torch.tensor([[-0.0, 1.0, 1.0]]), units, 0.5, backend=backend)
    assert rates.tolist() == [[0.0, 0.75, 0.75]]
    with pytest.raises(ValueError, match="must not be negative"):
        rates_from_weights(torch.tensor([[-0.0, -1.0, 1.0]]), units, 0.1, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_expected_share_is_the_rate(backend):
    """A million tokens, words of 1 to 4 tokens, a tenth without weight."""
    g = torch.Generator().manual_seed(3)
    units = torch.randint(0, 2, (B, T), generator=g).cumsum(1)
    weights = torch.rand(B, T, generator=g) ** 3 * (torch.rand(B, T, generator=g) < 0.9)
    rates = rates_from_weights(weights, units, 0.15, backend=backend)
    assert torch.allclose(rates.sum(1), torch.full((B,), 0.15 * T).double())
    ids = torch.randint(10, V, (B, T), generator=g)
    masked = mask_tokens(ids, MaskingPolicy(3, V), seed=1, units=units, rates=rates)
    chosen = masked.labels != -100
    assert abs(chosen.double().mean().item() - 0.15) < 0.002
    heavy = rates > 0.3
    expected, n = rates[heavy].sum().item(), int(heavy.sum())
    assert abs(chosen[heavy].sum().item() - expected) < 5 * math.sqrt(3 * n)
    assert not chosen[rates == 0].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_rate_that_cannot_be_reached_is_refused(backend):
    units = torch.arange(10).expand(2, 10).clone()
    weights = torch.ones(2, 10)
    weights[1, 1:] = 0
    assert rates_from_weights(weights, units, 0.1, backend=backend)[1].tolist() == [1.0] + [0.0] * 9
    with pytest.raises(ValueError, match=r"sample 1: 1 of its 10 maskable tokens .* rate 0\.2"):
        rates_from_weights(weights, units, 0.2, backend=backend)
    units[1] = -1  # nothing to mask: nothing to reach
    rates_from_weights(weights, units, 0.2, backend=backend)


def test_empty_batches_come_back_empty():
    for backend in BACKENDS:
        for shape in ((0, 5), (3, 0)):
            units = torch.zeros(shape, dtype=torch.int64)
            samples = torch.arange(shape[0])
            spans = span_units(units, SPANBERT, sample_ids=samples, seed=1, backend=backend)
            assert spans.shape == shape
            rates = rates_from_weights(torch.zeros(shape), units, 0.1, backend=backend)
            assert rates.shape == shape


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_whole_graph_compiles_to_the_same_spans_and_rates(backend):
    units, weights = torch.arange(9).expand(3, 9), torch.rand(3, 9)

    def planned(units, weights):
        samples = torch.arange(3)
        spans = span_units(units, SPANBERT, sample_ids=samples, seed=1, backend=backend)
        return spans + 0, rates_from_weights(weights, units, 0.3, backend=backend)

    compiled = torch.compile(planned, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(units, weights), planned(units, weights), strict=True):
        assert torch.equal(a, b)


def test_where_nobody_looks_a_weight_that_is_none_counts_as_0():
    """In a trace, as on a GPU: the defined result, and no error."""
    units = torch.arange(6)[None]
    weights = torch.tensor([[math.nan, -1.0, math.inf, 1.0, 3.0, 0.0]])

    def rates(rate):
        @torch.compile(fullgraph=True, backend="aot_eager")
        def run(weights):
            return rates_from_weights(weights, units, rate, backend="reference")

        return run(weights)[0].tolist()

    assert rates(1 / 6) == [0, 0, 0, pytest.approx(0.25), pytest.approx(0.75), 0]
    assert rates(0.9) == [0, 0, 0, 1, 1, 0]  # no more can be had


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_highest_unit_number_is_refused(backend, place, compiled):
    """2^63 - 1, to which 1 cannot be added, at the beginning, in the middle and at the end."""
    units = torch.zeros(2, 3, dtype=torch.int64)
    units[1, place] = (1 << 63) - 1

    def spans(units):
        return span_units(units, SPANBERT, backend=backend, **OPTIONS)

    if compiled and backend == "reference":  # which a graph takes apart, with its looks left out
        return
    run = torch.compile(spans, fullgraph=True, backend="aot_eager") if compiled else spans
    with pytest.raises(ValueError, match="go up to 9223372036854775807 in a sample of 3 tokens"):
        run(units)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "row", [[0, 2, 2], [2, 1, 0], [0, 1, 0, 1], [0, 0, 1, -1, 1], [1, -1, 0, 0], [1, -1, 1]]
)
def test_units_out_of_order_are_refused(backend, row):
    units, sample = torch.tensor([row]), torch.tensor([0])
    with pytest.raises(ValueError, match=r"fall back or skip a number \(sample 0\)"):
        span_units(units, SPANBERT, sample_ids=sample, seed=1, backend=backend)


def test_units_may_begin_above_0_and_leave_numbers_out_between_runs():
    units, sample = torch.tensor([[3, 3, 4, -1, 6, 6, 7, 8, -1]]), torch.tensor([5])
    found = [
        span_units(units, [0.3, 0.3, 0.4], sample_ids=sample, seed=1, backend=backend)
        for backend in BACKENDS
    ]
    assert torch.equal(*found)


UNITS = torch.zeros(2, 3, dtype=torch.int64)
SAMPLES = torch.arange(2)
OPTIONS = {"sample_ids": SAMPLES, "seed": 1}


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: span_units(UNITS.float(), [1], **OPTIONS), TypeError, "units must be int32"),
        (lambda: span_units(None, [1], **OPTIONS), TypeError, "units must be int32"),
        (lambda: span_units(UNITS[0], [1], **OPTIONS), ValueError, "cu_seqlens"),
        (lambda: span_units(UNITS + 3, [1], **OPTIONS), ValueError, "go up to 3 in a sample of 3"),
        (
            lambda: span_units(UNITS + 3, [1], backend="reference", **OPTIONS),
            ValueError,
            "go up to 3 in a sample of 3",
        ),
        (
            lambda: rates_from_weights(UNITS - 1.0, UNITS, 0.1, backend="reference"),
            ValueError,
            "must not be negative",
        ),
        (lambda: span_units(UNITS, [], **OPTIONS), ValueError, "1 to 64 probabilities, got 0"),
        (lambda: span_units(UNITS, [0.0], **OPTIONS), ValueError, "a positive sum"),
        (lambda: span_units(UNITS, [-1, 2], **OPTIONS), ValueError, "must be probabilities"),
        (lambda: span_units(UNITS, [math.nan], **OPTIONS), ValueError, "must be probabilities"),
        (lambda: span_units(UNITS, [1], sample_ids=[1, 2], seed=1), TypeError, "sample_ids must"),
        (
            lambda: span_units(UNITS, [1], sample_ids=SAMPLES[:1], seed=1),
            ValueError,
            r"sample_ids must have shape \[2\], got \(1,\)",
        ),
        (lambda: span_units(UNITS, [1], sample_ids=SAMPLES, seed=-1), ValueError, "seed must"),
        (lambda: span_units(UNITS, [1], backend="triton", **OPTIONS), ValueError, "are on cpu"),
        (lambda: geometric_lengths(0.0), ValueError, r"p must be in \(0, 1\]"),
        (lambda: geometric_lengths(0.2, 0), ValueError, r"longest must be an int in \[1, 64\]"),
        (lambda: rates_from_weights(UNITS, UNITS, 0.1), TypeError, "weights must be a float"),
        (lambda: rates_from_weights(UNITS[:1] * 1.0, UNITS, 0.1), ValueError, "the shape of"),
        (lambda: rates_from_weights(UNITS - 1.0, UNITS, 0.1), ValueError, "must not be negative"),
        (lambda: rates_from_weights(UNITS * math.nan, UNITS, 0.1), ValueError, "or NaN"),
        (lambda: rates_from_weights(UNITS * 1.0, UNITS, 1.1), ValueError, "between 0 and 1"),
    ],
)
def test_bad_arguments_are_refused(call, error, text):
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_a_weight_that_is_none_comes_before_a_rate_out_of_reach(backend):
    """In whatever row: the backends do not differ."""
    weights = torch.tensor([[0.0], [1.0], [0.0], [math.inf]])
    units = torch.zeros(4, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="weights must not be negative, infinite or NaN"):
        rates_from_weights(weights, units, 0.5, backend=backend)
    with pytest.raises(ValueError, match="sample 0: 0 of its 1 maskable tokens have a weight"):
        rates_from_weights(weights[:3], units[:3], 0.5, backend=backend)
