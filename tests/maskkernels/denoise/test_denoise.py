"""Denoising: every backend equals a second implementation, rows come back whole, odds are right."""

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, poisson

from maskkernels import (
    CorruptedRows,
    Denoiser,
    SpanCorruption,
    TextInfilling,
    corrupt_spans,
    corrupted_lengths,
    hash_rows,
    infill_text,
    mask_tokens,
    pad_batch,
    pad_corrupted,
    pad_rows,
    replace_tokens,
    ul2_denoisers,
)
from maskkernels.denoise.job import spans_capacity
from maskkernels.mask import MaskingPolicy
from tests.support.denoise_cases import CORRUPTIONS, EOS, INFILLINGS, MASK, SENTINELS, problem
from tests.support.denoising import corrupt_row, infill_row, restore, sentences
from tests.support.mask_cases import SHAPES, V

BACKENDS = ("reference", "numba")
LIMIT = 0.001


def split(values, bounds):
    return [values[i:j].tolist() for i, j in itertools.pairwise(bounds.tolist())]


def rows_of(found):
    """[(inputs, targets)] of CorruptedRows."""
    return list(
        zip(
            split(found.input_ids, found.cu_seqlens),
            split(found.target_ids, found.target_cu_seqlens),
            strict=True,
        )
    )


def pack(rows, dtype=torch.int64):
    bounds = torch.tensor([0, *map(len, rows)]).cumsum(0)
    return torch.tensor([t for row in rows for t in row], dtype=dtype), bounds


def check_layout(found, ids):
    assert found.input_ids.dtype == found.target_ids.dtype == ids.dtype
    assert found.cu_seqlens.dtype == found.target_cu_seqlens.dtype == torch.int64
    assert found.cu_seqlens[-1] == found.input_ids.numel()
    assert found.target_cu_seqlens[-1] == found.target_ids.numel()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_spans_equal_the_second_implementation(name, shape, backend):
    corruption, several = CORRUPTIONS[name], 0
    for n, length in enumerate((13, 40, 90, 60)):
        ids, arguments, rows = problem(shape, length, n)
        kept = ids.clone()
        found = corrupt_spans(ids, corruption, **arguments, backend=backend)
        assert torch.equal(ids, kept)
        check_layout(found, ids)
        for (row, sample), (inputs, targets) in zip(rows, rows_of(found), strict=True):
            expected = corrupt_row(
                row, corruption, seed=arguments["seed"], epoch=arguments["epoch"], sample=sample
            )
            assert (inputs, targets) == expected
            assert restore(inputs, targets, corruption) == row
            several += sum(token in SENTINELS for token in inputs) > 1
    assert several or name in ("nearly all", "prefix")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", INFILLINGS)
def test_infilling_equals_the_second_implementation(name, shape, backend):
    infilling = INFILLINGS[name]
    for n, length in enumerate((13, 40, 90, 60)):
        ids, arguments, rows = problem(shape, length, n)
        kept = ids.clone()
        found = infill_text(ids, infilling, **arguments, backend=backend)
        assert torch.equal(ids, kept)
        check_layout(found, ids)
        for (row, sample), (inputs, targets) in zip(rows, rows_of(found), strict=True):
            expected, _ = infill_row(
                row, infilling, seed=arguments["seed"], epoch=arguments["epoch"], sample=sample
            )
            assert inputs == expected
            assert targets == row


KNOWN_INPUTS = [
    10, 11, 12, 13, 14, 15, 99, 18, 19, 20, 98, 24, 25, 26, 27, 28, 29, 30, 31, 32, 97,
    34, 96, 37, 38, 95,
]  # fmt: skip
KNOWN_TARGETS = [
    99, 16, 17, 98, 21, 22, 23, 97, 33, 96, 35, 36, 95, 39, 94, 1,
]  # fmt: skip
KNOWN_INFILLED = [
    10, 11, 12, 2, 16, 2, 2, 20, 21, 22, 23, 2, 26, 27, 28, 29, 30, 31, 32, 33, 34, 2, 36,
    37, 38, 39,
]  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_rows_ever_corrupted_stay_as_they_were(backend):
    """Known answers: whoever changes the law of these breaks every seed in use."""
    ids = torch.arange(10, 40)[None]
    corruption = SpanCorruption(range(99, 93, -1), (Denoiser(0.3, 2.0),), eos_token_id=EOS)
    found = corrupt_spans(ids, corruption, seed=0, backend=backend)
    assert rows_of(found) == [(KNOWN_INPUTS, KNOWN_TARGETS)]
    found = infill_text(ids, TextInfilling(MASK), seed=0, backend=backend)
    assert found.input_ids.tolist() == KNOWN_INFILLED


@st.composite
def corruptions(draw):
    density = draw(st.floats(0.001, 0.999))
    mean = draw(st.floats(1.0, 70.0))
    mode = draw(st.sampled_from([None, 801]))
    denoiser = Denoiser(density, mean, prefix=draw(st.booleans()), mode_token_id=mode)
    eos = draw(st.sampled_from([None, EOS]))
    edges = draw(st.sampled_from([(), (3,), (EOS, 5)]))
    return SpanCorruption(SENTINELS, (denoiser,), eos, draw(st.booleans()), edges)


ROWS = st.lists(st.lists(st.integers(1, 20), max_size=60), min_size=1, max_size=5)


@settings(max_examples=200, deadline=None)
@given(ROWS, corruptions(), st.integers(0, (1 << 64) - 1), st.integers(0, 3))
def test_targets_put_back_into_the_inputs_give_the_row(rows, corruption, seed, epoch):
    ids, bounds = pack(rows)
    arguments = {"seed": seed, "epoch": epoch, "cu_seqlens": bounds}
    found = corrupt_spans(ids, corruption, **arguments)
    for row, (inputs, targets) in zip(rows, rows_of(found), strict=True):
        assert restore(inputs, targets, corruption) == row
    other = corrupt_spans(ids, corruption, **arguments, backend="reference")
    assert all(map(torch.equal, found, other))


@settings(max_examples=100, deadline=None)
@given(
    ROWS, st.floats(0.001, 0.999), st.floats(0.05, 60.0), st.booleans(),
    st.integers(0, (1 << 64) - 1),
)  # fmt: skip
def test_an_infilled_row_is_the_row_with_gaps(rows, ratio, mean, permute, seed):
    """What is between the masks stands in the row in that order, and the masks hide the rest."""
    infilling = TextInfilling(0, ratio, mean, permute, range(5, 9), edge_token_ids=(1,))
    ids, bounds = pack(rows)
    found = infill_text(ids, infilling, seed=seed, cu_seqlens=bounds)
    other = infill_text(ids, infilling, seed=seed, cu_seqlens=bounds, backend="reference")
    assert all(map(torch.equal, found, other))
    names = hash_rows(ids, cu_seqlens=bounds).tolist()
    for row, name, (inputs, targets) in zip(rows, names, rows_of(found), strict=True):
        assert targets == row
        expected, hidden = infill_row(row, infilling, seed=seed, epoch=0, sample=name)
        assert inputs == expected
        filled = [token for span in _filled(inputs, hidden) for token in span]
        assert Counter(filled) == Counter(row)
        if not permute:
            assert filled == row


def _filled(inputs, hidden):
    spans = iter(hidden)
    return [next(spans) if token == 0 else [token] for token in inputs]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=30), min_size=1, max_size=6),
    st.integers(0, (1 << 64) - 1),
    st.sampled_from(BACKENDS),
    st.sampled_from(["t5", "ul2", "bart", "sentences"]),
)
def test_rows_do_not_depend_on_batch_order_padding_or_packing(rows, seed, backend, name):
    def run(ids, **arguments):
        call = corrupt_spans if name in CORRUPTIONS else infill_text
        options = CORRUPTIONS.get(name) or INFILLINGS[name]
        return rows_of(call(ids, options, seed=seed, backend=backend, **arguments))

    alone = [run(torch.tensor([row]))[0] for row in rows]
    width = max(map(len, rows)) + 2
    for left in (False, True):
        ids = torch.full((len(rows), width), 96)
        keep = torch.zeros_like(ids)
        for b, row in enumerate(reversed(rows)):
            place = slice(width - len(row), width) if left else slice(0, len(row))
            ids[b, place], keep[b, place] = torch.tensor(row), 1
        assert run(ids, attention_mask=keep) == alone[::-1]
    ids, bounds = pack(rows)
    assert run(ids, cu_seqlens=bounds) == alone
    assert run(ids.int(), cu_seqlens=bounds.int()) == alone


def test_threads_make_no_difference():
    ids = torch.randint(10, 900, (300, 512), generator=torch.Generator().manual_seed(0))
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(
                [
                    *corrupt_spans(ids, CORRUPTIONS["t5"], seed=3),
                    *infill_text(ids, INFILLINGS["sentences"], seed=3),
                ]
            )
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_strides_do_not_matter():
    ids = torch.randint(10, 90, (6, 40), generator=torch.Generator().manual_seed(0))
    wide = ids.repeat_interleave(2, 1)[:, ::2]
    for backend in BACKENDS:
        a, b = (corrupt_spans(x, CORRUPTIONS["t5"], seed=1, backend=backend) for x in (ids, wide))
        assert all(map(torch.equal, a, b))


# --- short rows --------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_short_rows_have_a_defined_result(backend):
    rows = [[], [EOS], [7], [7, EOS], [7, 8], [7, 8, EOS], [EOS, EOS]]
    ids, bounds = pack(rows)
    corruption = CORRUPTIONS["t5"]
    found = rows_of(corrupt_spans(ids, corruption, seed=0, cu_seqlens=bounds, backend=backend))
    first, second = SENTINELS[:2]
    assert found == [
        ([], [first, EOS]),
        ([EOS], [first, EOS]),
        ([7], [first, EOS]),
        ([7, EOS], [first, EOS]),
        ([7, first], [first, 8, second, EOS]),
        ([7, first, EOS], [first, 8, second, EOS]),
        ([EOS, EOS], [first, EOS]),
    ]
    infilling = TextInfilling(MASK, edge_token_ids=(EOS,))
    found = rows_of(infill_text(ids, infilling, seed=0, cu_seqlens=bounds, backend=backend))
    assert [targets for _, targets in found] == rows
    for b in (0, 1, 6):  # nothing that may be masked
        assert found[b][0] == rows[b]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_empty_batches(backend, shape):
    ids = torch.zeros(shape, dtype=torch.int64)
    found = corrupt_spans(ids, CORRUPTIONS["t5"], seed=0, backend=backend)
    assert rows_of(found) == [([], [SENTINELS[0], EOS])] * shape[0]
    found = infill_text(ids, INFILLINGS["sentences"], seed=0, backend=backend)
    assert rows_of(found) == [([], [])] * shape[0]
    flat = torch.zeros(0, dtype=torch.int32)
    found = corrupt_spans(
        flat, CORRUPTIONS["ul2"], seed=0, cu_seqlens=torch.tensor([0]), backend=backend
    )
    assert found.input_ids.shape == found.target_ids.shape == (0,)


def test_spans_longer_than_the_row_become_one_span():
    corruption = SpanCorruption(SENTINELS, (Denoiser(0.5, 64.0),))
    ids = torch.randint(10, 90, (50, 9), generator=torch.Generator().manual_seed(0))
    for inputs, targets in rows_of(corrupt_spans(ids, corruption, seed=0)):
        assert len(inputs) == 9 - 5 + 1  # 4.5 tokens of noise, rounded up
        assert len(targets) == 5 + 2


# --- lengths and odds --------------------------------------------------------------------------


@pytest.mark.parametrize("eos", [False, True])
@pytest.mark.parametrize("denoiser", [None, Denoiser(0.5, 8.0), *ul2_denoisers(7, 8, 9)])
def test_lengths_are_known_beforehand(denoiser, eos):
    corruption = SpanCorruption(
        range(1000, 600, -1), (denoiser or Denoiser(),), eos_token_id=EOS if eos else None
    )
    for length in (1, 2, 3, 7, 20, 114, 512, 568):
        ids = torch.full((1, length), 20)
        if eos:
            ids[0, -1] = EOS
        ((inputs, targets),) = rows_of(corrupt_spans(ids, corruption, seed=0))
        assert (len(inputs), len(targets)) == corrupted_lengths(length, denoiser, eos=eos)


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize(
    "denoisers",
    [(Denoiser(p, mean),) for p in (0.01, 0.15, 0.5, 0.97) for mean in (1, 2.5, 3, 70)]
    + [(Denoiser(0.25, prefix=True, mode_token_id=7),), ul2_denoisers(7, 8, 9)],
)
def test_no_rows_need_more_room_than_there_is_on_a_gpu(denoisers, final):
    """Rows of one length, from where a row has one span at most to where shares are all."""
    corruption = SpanCorruption(range(1000, 500, -1), denoisers, 1, final)
    for length in (1, 2, 3, 4, 5, 6, 7, 11, 30, 101, 1000):
        sizes = [corrupted_lengths(length, d, final_sentinel=final, eos=False) for d in denoisers]
        inputs, targets = (max(s) for s in zip(*sizes, strict=True))
        for count in (1, 9):
            room = spans_capacity(count * length, count, corruption)
            assert count * inputs <= room[0] <= count * (length + 1)
            assert count * (targets + 1) <= room[1] <= count * (length + 2)


def test_t5_lengths_are_those_of_the_paper():
    """568 tokens and the end of sequence become 512 inputs and 114 targets, as in T5's code."""
    assert corrupted_lengths(569, final_sentinel=False) == (512, 114)
    assert corrupted_lengths(570, final_sentinel=False)[0] > 512


def test_every_cut_of_noise_and_context_is_equally_likely():
    """10 tokens, 4 of noise in 2 spans: 3 cuts of the noise times 5 of the rest, 15 in all.

    20,000 rows would catch one of them being 15% too likely.
    """
    corruption = SpanCorruption(SENTINELS, (Denoiser(0.4, 2.0),))
    ids = torch.arange(10, 20).expand(20000, 10)
    found = corrupt_spans(ids, corruption, seed=5, sample_ids=torch.arange(20000))
    counts = Counter(tuple(inputs) for inputs, _ in rows_of(found))
    assert len(counts) == 15
    assert chisquare(list(counts.values())).pvalue > LIMIT


def test_the_realised_density_and_span_length():
    ids = torch.randint(10, 900, (64, 512), generator=torch.Generator().manual_seed(0))
    found = corrupt_spans(ids, SpanCorruption(SENTINELS, final_sentinel=False), seed=5)
    sentinels = (found.target_ids > 900).sum()
    noise = found.target_ids.numel() - sentinels
    assert noise == 64 * 77  # 76.8
    assert sentinels == 64 * 26  # 25.67
    assert found.input_ids.numel() == 64 * (512 - 77 + 26)


def test_a_mixture_is_drawn_by_its_shares():
    """20,000 rows would catch 19% for 20%."""
    shares = (0.5, 0.2, 0.3)
    denoisers = [Denoiser(0.15, 3.0, s, mode_token_id=i) for i, s in enumerate(shares)]
    corruption = SpanCorruption(SENTINELS, denoisers)
    ids = torch.full((20000, 4), 20)
    found = corrupt_spans(ids, corruption, seed=5, sample_ids=torch.arange(20000))
    modes = torch.bincount(found.input_ids[found.cu_seqlens[:-1]])
    assert chisquare(modes.tolist(), [20000 * s for s in shares]).pvalue > LIMIT


def test_the_lengths_of_infilled_spans_are_poisson():
    """All but the last draw of a row, which is cut to fit: about 51 draws in each of 300 rows."""
    infilling, counts = TextInfilling(MASK), Counter()
    row = list(range(10, 522))
    for sample in range(300):
        _, hidden = infill_row(row, infilling, seed=5, epoch=0, sample=sample)
        lengths = [len(span) for span in hidden]
        assert sum(lengths) == 154  # 153.6
        found = infill_text(
            torch.tensor([row]), infilling, seed=5, sample_ids=torch.tensor([sample])
        )
        assert found.input_ids.numel() == 512 - 154 + len(lengths)
        counts.update(lengths)
    total, top = sum(counts.values()), 8
    observed = [counts[k] for k in range(top)] + [sum(counts[k] for k in counts if k >= top)]
    expected = [total * poisson.pmf(k, 3) for k in range(top)] + [total * poisson.sf(top - 1, 3)]
    # One draw in 50 is cut short: the first cells may be 2% too full, no more.
    for seen, due in zip(observed, expected, strict=True):
        assert abs(seen - due) < 0.02 * total
    assert sum(k * c for k, c in counts.items()) / total == pytest.approx(3, abs=0.1)


def test_masks_stand_anywhere_equally():
    """One masked token of 4, in one span: the mask is at each of 4 places equally often."""
    ids = torch.arange(10, 14).expand(20000, 4)
    found = infill_text(ids, TextInfilling(MASK, 0.25, 6.0), seed=5, sample_ids=torch.arange(20000))
    rows = [inputs for inputs, _ in rows_of(found)]
    places = Counter(row.index(MASK) for row in rows if row.count(MASK) == 1)
    assert len(places) == 4
    assert chisquare(list(places.values())).pvalue > LIMIT


def test_every_order_of_sentences_is_equally_likely():
    infilling = TextInfilling(MASK, 0.01, permute_sentences=True, sentence_end_ids=(5,))
    body = [10, 11, 5, 12, 5, 13, 14, 15, 5, 16]
    ids = torch.tensor(body).expand(12000, 10)
    found = infill_text(ids, infilling, seed=5, sample_ids=torch.arange(12000))
    orders = Counter()
    for inputs, targets in rows_of(found):
        assert targets == body
        orders[tuple(t for t in inputs if t in (10, 12, 13, 16))] += 1
    whole = [orders[order] for order in itertools.permutations((10, 12, 13, 16))]
    assert min(whole) > 0
    assert chisquare(whole).pvalue > LIMIT
    assert len(sentences(body, (5,))) == 4


def test_epochs_and_seeds_change_the_spans():
    ids = torch.randint(10, 90, (1, 200), generator=torch.Generator().manual_seed(0))
    found = [
        rows_of(corrupt_spans(ids, CORRUPTIONS["t5"], seed=s, epoch=e))[0]
        for s, e in ((1, 0), (2, 0), (1, 1), (1, 1 << 24))
    ]
    assert found[0] == found[3]
    assert found[0] != found[1] != found[2] != found[0]


# --- batches of one shape ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_rows_padded_to_known_lengths(dtype):
    bounds, ends = torch.tensor([0, 2, 2, 5, 5]), torch.tensor([0, 0, 3, 4, 4])
    rows = CorruptedRows(
        torch.arange(1, 6, dtype=dtype), bounds, torch.arange(4, dtype=dtype), ends
    )
    found = pad_corrupted(rows, input_length=4, target_length=3, padding_value=9)
    assert found["input_ids"].tolist() == [[1, 2, 9, 9], [9] * 4, [3, 4, 5, 9], [9] * 4]
    assert found["attention_mask"].tolist() == [[1, 1, 0, 0], [0] * 4, [1, 1, 1, 0], [0] * 4]
    assert found["labels"].tolist() == [[-100] * 3, [0, 1, 2], [3, -100, -100], [-100] * 3]
    assert {t.dtype for t in found.values()} == {torch.int64}
    roomy = [torch.cat([t, t.new_full((3,), 77)]) for t in (rows.input_ids, rows.target_ids)]
    rows = CorruptedRows(roomy[0], bounds, roomy[1], ends)
    again = pad_corrupted(rows, input_length=4, target_length=3, padding_value=9)
    assert all(torch.equal(again[name], found[name]) for name in found)
    empty = pad_corrupted(
        infill_text(torch.zeros(0, 5, dtype=dtype), INFILLINGS["bart"], seed=0),
        input_length=4, target_length=3,
    )  # fmt: skip
    assert [t.shape for t in empty.values()] == [(0, 4), (0, 4), (0, 3)]


@pytest.mark.parametrize("name", [*CORRUPTIONS, *INFILLINGS])
def test_known_lengths_give_the_batch_of_the_longest(name):
    ids, arguments, _ = problem("right", 60, 1)
    run, options = (
        (corrupt_spans, CORRUPTIONS) if name in CORRUPTIONS else (infill_text, INFILLINGS)
    )
    rows = run(ids, options[name], **arguments)
    expected = pad_batch({"input_ids": rows.inputs}, padding_values={"input_ids": 5})
    expected["labels"] = pad_rows(rows.targets, padding_value=-1)
    t, n = expected["input_ids"].shape[1], expected["labels"].shape[1]
    found = pad_corrupted(rows, input_length=t, target_length=n, padding_value=5, ignore_index=-1)
    assert all(torch.equal(found[column], expected[column]) for column in expected)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"input_length": 50}, ValueError, "row 0 has 51 tokens, more than input_length=50"),
        ({"target_length": 63}, ValueError, "row 0 has 64 tokens, more than target_length=63"),
        ({"input_length": 5.0}, TypeError, "input_length must be an int, got float"),
        ({"target_length": -1}, ValueError, "target_length must not be negative, got -1"),
        ({"rows": (1, 2)}, TypeError, "rows must be CorruptedRows, got tuple"),
    ],
)
def test_lengths_that_do_not_fit(change, error, text):
    """19 of 64 tokens are masked, in 6 spans."""
    rows = infill_text(IDS[:1], INFILLINGS["bart"], seed=1)
    arguments = {"rows": rows, "input_length": 64, "target_length": 64} | change
    with pytest.raises(error, match=text):
        pad_corrupted(arguments.pop("rows"), **arguments)


# --- ELECTRA -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_samples_stand_at_the_masked_tokens_and_the_right_ones_count_as_original(dtype):
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(0, V, (8, 30), generator=g, dtype=dtype)
    masked = mask_tokens(ids, MaskingPolicy(3, V, rate=0.4), seed=1, capacity=120)
    chosen = masked.labels != -100
    sampled = torch.randint(0, 4, ids.shape, generator=g, dtype=dtype)
    sampled = torch.where(sampled == 0, ids, sampled)  # right by luck, now and then
    found = replace_tokens(masked.input_ids, masked.labels, sampled)
    assert torch.equal(found.input_ids, torch.where(chosen, sampled, ids))
    assert torch.equal(found.is_replaced == 1, chosen & (sampled != ids))
    assert found.input_ids.dtype == dtype
    assert found.is_replaced.dtype == torch.int64
    assert 0 < found.is_replaced.sum() < chosen.sum()
    places = masked.positions
    by_place = sampled.reshape(-1)[places.clamp(0)]
    by_place[places < 0] = 77  # what belongs to no token goes nowhere
    other = replace_tokens(masked.input_ids, masked.labels, by_place, positions=places)
    assert all(map(torch.equal, found, other))
    again = replace_tokens(ids, masked.labels, sampled)  # from the row as it was
    assert all(map(torch.equal, found, again))


def test_replacing_nothing_changes_nothing():
    ids = torch.arange(6).view(2, 3)
    found = replace_tokens(ids, torch.full_like(ids, -100), torch.zeros_like(ids))
    assert torch.equal(found.input_ids, ids)
    assert found.is_replaced.sum() == 0
    none = torch.zeros(0, dtype=torch.int64)
    found = replace_tokens(ids, torch.full_like(ids, -100), none, positions=none)
    assert torch.equal(found.input_ids, ids)


# --- bad input ---------------------------------------------------------------------------------

IDS = torch.randint(10, 90, (2, 64), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_spans_than_sentinels(backend):
    """61 tokens have 3 spans, and one more sentinel ends the targets."""
    ids, bounds = pack([[7] * 5, [7] * 61])
    for count in (2, 3):
        few = SpanCorruption(range(200, 200 - count, -1), eos_token_id=EOS)
        text = f"row 1 needs 4 sentinels for its 61 tokens and there are {count}: give more"
        with pytest.raises(ValueError, match=text):
            corrupt_spans(ids, few, seed=0, cu_seqlens=bounds, backend=backend)
    for count, final in ((4, True), (3, False)):
        enough = SpanCorruption(range(200, 200 - count, -1), final_sentinel=final)
        found = corrupt_spans(ids, enough, seed=0, cu_seqlens=bounds, backend=backend)
        assert (found.target_ids[found.target_cu_seqlens[1] :] > 100).sum() == count


@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0, -0.1, 1.5, float("nan")])
def test_densities_outside_0_and_1(value):
    with pytest.raises(ValueError, match=r"noise_density must be in \(0, 1\), got"):
        Denoiser(value)
    with pytest.raises(ValueError, match=r"ratio must be in \(0, 1\), got"):
        TextInfilling(MASK, value)


@pytest.mark.parametrize(
    ("build", "error", "text"),
    [
        (lambda: Denoiser("0.1"), TypeError, "noise_density must be a number, got str"),
        (lambda: Denoiser(mean_span_length=0.9), ValueError, r"in \[1, 32768\], got 0.9"),
        (lambda: Denoiser(mean_span_length=float("inf")), ValueError, "got inf"),
        (lambda: Denoiser(mean_span_length=True), TypeError, "must be a number, got bool"),
        (lambda: Denoiser(share=0.0), ValueError, "share must be positive and finite, got 0"),
        (lambda: Denoiser(share=float("nan")), ValueError, "share must be positive"),
        (lambda: Denoiser(mode_token_id=1.5), TypeError, "mode_token_id must be an int"),
        (lambda: SpanCorruption(()), ValueError, "sentinel_ids must hold at least one id"),
        (lambda: SpanCorruption((5, 5)), ValueError, "sentinel_ids must not repeat an id"),
        (lambda: SpanCorruption((-1,)), ValueError, r"sentinel_ids must be in \[0, 2\*\*31\)"),
        (lambda: SpanCorruption("abc"), TypeError, "must be a sequence of ids, got str"),
        (lambda: SpanCorruption(7), TypeError, "must be a sequence of ids, got int"),
        (lambda: SpanCorruption((5,), ()), ValueError, "at least one Denoiser, got none"),
        (lambda: SpanCorruption((5,), (0.15,)), TypeError, "must hold Denoisers, got 0.15"),
        (lambda: SpanCorruption((5,), eos_token_id=5), ValueError, "sentinel_ids hold 5, the eos"),
        (
            lambda: SpanCorruption((5,), (Denoiser(mode_token_id=5),)),
            ValueError,
            "the eos token or a mode token",
        ),
        (lambda: TextInfilling("m"), TypeError, "mask_token_id must be an int, got str"),
        (lambda: TextInfilling(-1), ValueError, r"mask_token_id must be in \[0, 2\*\*31\)"),
        (lambda: TextInfilling(1, mean_span_length=0), ValueError, r"in \(0, 256\], got 0"),
        (lambda: TextInfilling(1, mean_span_length=300), ValueError, r"in \(0, 256\], got 300"),
        (
            lambda: TextInfilling(1, permute_sentences=True),
            ValueError,
            "permute_sentences=True needs sentence_end_ids",
        ),
    ],
)
def test_options_that_do_not_fit(build, error, text):
    with pytest.raises(error, match=text):
        build()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"input_ids": IDS.float()}, TypeError, r"int32 or int64, got torch\.float32"),
        ({"input_ids": IDS[0]}, ValueError, r"must be \[B, T\], got shape \(64,\)"),
        ({"seed": 1 << 64}, ValueError, r"seed must be in \[0, 2\*\*64\)"),
        ({"seed": 0.5}, TypeError, "seed must be an int"),
        ({"epoch": -1}, ValueError, "epoch must not be negative"),
        ({"attention_mask": IDS[:1]}, ValueError, "attention_mask must have the shape"),
        ({"cu_seqlens": torch.tensor([0, 128])}, ValueError, "input_ids must be flat"),
        (
            {"input_ids": IDS.view(-1), "cu_seqlens": torch.tensor([0, 9])},
            ValueError,
            "cu_seqlens must rise from 0 to 128",
        ),
        ({"sample_ids": torch.arange(3)}, ValueError, r"sample_ids must have shape \[2\]"),
        ({"sample_ids": torch.arange(2).int()}, TypeError, "sample_ids must be an int64"),
        ({"sample_ids": [1, 2]}, TypeError, "sample_ids must be an int64 tensor, got list"),
        ({"backend": "triton"}, ValueError, "backend='triton': tensors are on cpu"),
        ({"backend": "cuda"}, ValueError, "backend='cuda': expected one of"),
    ],
)
def test_arguments_that_do_not_fit(change, error, text):
    arguments = {"input_ids": IDS, "seed": 0} | change
    ids = arguments.pop("input_ids")
    with pytest.raises(error, match=text):
        corrupt_spans(ids, CORRUPTIONS["t5"], **arguments)
    with pytest.raises(error, match=text):
        infill_text(ids, INFILLINGS["bart"], **arguments)


def test_options_of_the_other_function():
    with pytest.raises(TypeError, match="corruption must be a SpanCorruption, got TextInfilling"):
        corrupt_spans(IDS, INFILLINGS["bart"], seed=0)
    with pytest.raises(TypeError, match="infilling must be a TextInfilling, got SpanCorruption"):
        infill_text(IDS, CORRUPTIONS["t5"], seed=0)


@pytest.mark.parametrize(
    ("length", "eos", "text"),
    [(0, True, "at least 1, got 0"), (-1, False, "at least 0, got -1"), (2.5, True, "got 2.5")],
)
def test_lengths_that_no_row_has(length, eos, text):
    with pytest.raises(ValueError, match=text):
        corrupted_lengths(length, eos=eos)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"input_ids": IDS.float()}, TypeError, "input_ids must be int32 or int64"),
        ({"labels": IDS[0]}, ValueError, "labels must have the shape"),
        ({"sampled_ids": IDS[0]}, ValueError, "sampled_ids must have the shape"),
        ({"positions": IDS[0]}, ValueError, r"must both be \[R\]"),
    ],
)
def test_replacements_that_do_not_fit(change, error, text):
    arguments = {"input_ids": IDS, "labels": IDS, "sampled_ids": IDS} | change
    with pytest.raises(error, match=text):
        replace_tokens(**arguments)
