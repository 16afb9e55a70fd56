"""Exact budgets, of one rate or of units' own: sequential Poisson sampling, its ties and limits."""

from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskkernels import MaskingPolicy, mask_tokens, random_words
from tests.support.contract import T, mask_row, word
from tests.support.mask_cases import SHAPES, V, batch, tied_job, unit_tensor

BACKENDS = ("reference", "numba")
RATES = st.one_of(
    st.floats(0, 1), st.sampled_from([0.0, 1.0, 0.15, 0.5, 2.0**-32, 2.0**-33, 1 - 2.0**-33])
)


@st.composite
def rows(draw):
    """(ids, real, units or None, rates) of one row of up to 30 tokens."""
    n = draw(st.integers(1, 30))

    def each(values):
        return draw(st.lists(values, min_size=n, max_size=n))

    units = each(st.integers(-1, 8)) if draw(st.booleans()) else None
    rates = each(RATES) if draw(st.booleans()) else [draw(RATES)] * n
    return each(st.integers(0, V - 1)), each(st.booleans()), units, rates


@settings(max_examples=150, deadline=None)
@given(rows(), st.booleans(), st.booleans(), st.integers(0, (1 << 64) - 1))
def test_any_row_equals_the_second_implementation(row, at_least_one, per_unit, seed):
    ids, real, units, rates = row
    replacement = "unit" if per_unit and units is not None else "token"
    policy = MaskingPolicy(
        3, V, selection="budget", at_least_one=at_least_one, replacement=replacement,
        mask_share=0.6, random_share=0.3,
    )  # fmt: skip
    out, labels = mask_row(ids, policy=policy, seed=seed, real=real, units=units, rates=rates)
    places = [t for t, label in enumerate(labels) if label != -100]
    for backend in BACKENDS:
        found = mask_tokens(
            torch.tensor([ids]), policy, seed=seed, attention_mask=torch.tensor([real]),
            units=None if units is None else torch.tensor([units]),
            rates=torch.tensor([rates], dtype=torch.float64), capacity=len(ids), backend=backend,
        )  # fmt: skip
        assert found.input_ids.tolist() == [out]
        assert found.labels.tolist() == [labels]
        assert found.positions.tolist() == places + [-1] * (len(ids) - len(places))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("replacement", [None, "token", "unit"])
def test_equal_rates_mask_as_one_rate_does(backend, shape, replacement):
    for rate in (0.05, 0.15, 0.6, 1 - 2.0**-40, 1.0):
        ids, arguments = batch(shape, 6, 40)
        arguments |= {"seed": 5, "capacity": 100, "backend": backend}
        if shape.startswith("packed"):
            arguments["cu_seqlens"] = torch.tensor([0, 3, 3, 40, 240])
        if replacement is not None:
            arguments["units"] = unit_tensor("scattered", ids)
        policy = MaskingPolicy(
            3, V, rate=rate, selection="budget", at_least_one=True, random_share=0.2,
            replacement=replacement or "token",
        )  # fmt: skip
        rates = torch.full(ids.shape, rate, dtype=torch.float64)
        one, own = (mask_tokens(ids, policy, rates=r, **arguments) for r in (None, rates))
        assert all(torch.equal(a, b) for a, b in zip(one, own, strict=True))
        assert one.count > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_rates_of_0_are_never_selected_and_whole_ones_fill_the_budget(backend):
    rates = torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0, 1.0], [0.0] * 6, [2.0**-33] * 6])
    for at_least_one in (False, True):
        policy = MaskingPolicy(3, V, selection="budget", at_least_one=at_least_one)
        found = mask_tokens(
            torch.arange(18).view(3, 6), policy, seed=4, rates=rates, backend=backend
        )
        assert torch.equal(found.labels != -100, rates == 1.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_rounded_budget_of_none_takes_one_where_asked(backend):
    rates = torch.full((50, 9), 0.01)
    rates[:, 0] = 0.0
    for at_least_one in (False, True):
        policy = MaskingPolicy(3, V, selection="budget", at_least_one=at_least_one)
        found = mask_tokens(
            torch.arange(450).view(50, 9) % V, policy, seed=4, rates=rates, backend=backend
        )
        assert ((found.labels != -100).sum(1) == at_least_one).all()
        assert (found.labels[:, 0] == -100).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_unit_larger_than_the_budget_is_masked_whole_or_not_at_all(backend):
    """A budget counts units: 15% of one unit are none, or with at_least_one all its 20 tokens."""
    ids, units = torch.arange(20).view(1, 20), torch.zeros(1, 20, dtype=torch.int64)
    for at_least_one in (False, True):
        policy = MaskingPolicy(3, V, rate=0.15, selection="budget", at_least_one=at_least_one)
        found = mask_tokens(ids, policy, seed=4, units=units, backend=backend)
        assert int((found.labels != -100).sum()) == 20 * at_least_one


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_unit_has_the_rate_at_its_first_token_that_may_be_masked(backend):
    ids = torch.tensor([[7, 8, 9, 10, 11, 12]])
    units = torch.tensor([[0, 0, 0, 1, 1, 1]])
    special = torch.tensor([[1, 0, 0, 0, 0, 0]])
    rates = torch.tensor([[0.0, 1.0, 0.0, 0.0, 1.0, 1.0]])
    policy = MaskingPolicy(3, V, selection="budget")
    found = mask_tokens(
        ids, policy, seed=1, units=units, rates=rates, special_tokens_mask=special, backend=backend
    )
    assert (found.labels != -100).tolist() == [[False, True, True, False, False, False]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_ties_of_unlike_words_go_to_the_lower_position(backend, share):
    """Thresholds that bring words of 2^30 to 2^31 to the same key, 2^31."""
    n, key = 400, 1 << 31
    words = [word(9, 0, 0, 5, t) for t in range(n)]
    within = [0.9 * key > w > 0.5 * key for w in words]
    tied = [(w << 32) // key if ok else 0 for w, ok in zip(words, within, strict=True)]
    tied = [t if t and (w << 32) // t == key else 0 for w, t in zip(words, tied, strict=True)]
    places = [t for t in range(n) if tied[t]]
    assert len({words[t] for t in places}) > 40
    rates = torch.tensor([tied], dtype=torch.float64) / 2.0**32
    policy = MaskingPolicy(3, V, selection="budget", mask_share=share, random_share=0.0)
    found = mask_tokens(
        torch.full((1, n), 7), policy, seed=9, sample_ids=torch.tensor([5]), rates=rates,
        capacity=n, backend=backend,
    )  # fmt: skip
    k = (sum(tied) + (1 << 31)) >> 32
    assert 10 < k < len(places)
    assert found.positions[:k].tolist() == places[:k]
    assert found.count == k
    k_mask = (k * T(share) + (1 << 31)) >> 32
    assert (found.input_ids == 3).nonzero()[:, 1].tolist() == places[:k_mask]


@pytest.mark.parametrize("module", ["reference", "_numba"])
@pytest.mark.parametrize("rates", [None, 0.5])
def test_ties_of_a_budget_go_to_the_unit_that_starts_first(module, rates):
    run = import_module(f"maskkernels.mask.{module}").mask_tokens
    rates = None if rates is None else torch.full((1, 12), rates)
    labels = run(tied_job(rates=rates))[1]
    assert (labels[0] != -100).tolist() == [True] * 6 + [False] * 6


@pytest.mark.parametrize("module", ["reference", "_numba"])
def test_ties_across_all_three_limits_go_to_the_unit_that_starts_first(module):
    """Of six units with one word the higher rates come first, in order of position each."""
    run = import_module(f"maskkernels.mask.{module}").mask_tokens
    rates = torch.tensor([[0.5, 0.9, 0.5, 0.9, 0.9, 0.5]]).repeat_interleave(2, 1)
    job = tied_job(rates=rates, per_unit=True, mask_share=0.5, random_share=0.25)
    out, labels = run(job)[:2]  # k = 4: units 1, 3, 4, then 0; two masked, one random, one kept
    assert (labels[0, ::2] != -100).tolist() == [True, True, False, True, True, False]
    assert (out[0, ::2] == 3).tolist() == [False, True, False, True, False, False]
    assert torch.equal(out[0, :2], job.input_ids[0, :2])
    rates = rates * 2.0**-20  # keys far past 2^33
    labels = run(job._replace(rates=rates, at_least_one=True))[1]
    assert (labels[0, ::2] != -100).tolist() == [False, True, False, False, False, False]


@pytest.mark.parametrize("backend", BACKENDS)
def test_long_rows_with_keys_of_all_sizes_are_exact(backend):
    """Against plain integers: most rates tiny, so that the k-th key passes 2^33 in some rows."""
    g = torch.Generator().manual_seed(2)
    n, policy = 3000, MaskingPolicy(3, V, selection="budget", at_least_one=True)
    names = torch.arange(6)
    rates = torch.rand(6, n, generator=g, dtype=torch.float64) ** torch.tensor(
        [[1], [3], [10], [200], [2000], [20000]]
    )
    rates[3:] *= 1e-4
    words = random_words(names[:, None], torch.arange(n)[None], seed=6)
    found = mask_tokens(
        torch.full((6, n), 7), policy, seed=6, sample_ids=names, rates=rates, backend=backend
    )
    far = 0
    for b in range(6):
        below = [T(p) for p in rates[b].tolist()]
        keys = {t: (int(words[b, t]) << 32) // below[t] for t in range(n) if below[t]}
        k = max((sum(below) + (1 << 31)) >> 32, min(len(keys), 1))
        first = sorted(keys, key=lambda t: (keys[t], t))[:k]
        far += keys[first[-1]] > 1 << 33
        assert (found.labels[b] != -100).nonzero()[:, 0].tolist() == sorted(first)
    assert far >= 1
