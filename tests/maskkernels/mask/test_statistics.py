"""Chi-square tests of what the masks should look like, with fixed seeds: they cannot flake.

Each states the smallest deviation it would have caught, at significance 0.001 (0.0001 where many
cells are looked at) and power 0.99: noncentrality lambda = N * sum((p1 - p0)^2 / p0) must reach
about 30 for one degree of freedom.
"""

import pytest
import torch
from scipy.stats import chi2, chi2_contingency, chisquare

from maskkernels import MaskingPolicy, mask_tokens, random_words

V, MASK = 1000, 3
B, T = 2000, 500  # a million tokens
LIMIT = 0.001


@pytest.fixture(scope="module")
def masked():
    ids = torch.randint(10, V, (B, T), generator=torch.Generator().manual_seed(0))
    found = mask_tokens(ids, MaskingPolicy(MASK, V), seed=20261, sample_ids=torch.arange(B))
    return ids, found.input_ids, found.labels


def test_the_selected_share_is_the_rate(masked):
    """Would catch 15.2% or 14.8% for 15%: N * 0.002^2 / (0.15 * 0.85) = 31."""
    selected = int((masked[2] != -100).sum())
    n = B * T
    assert chisquare([selected, n - selected], [0.15 * n, 0.85 * n]).pvalue > LIMIT


def test_the_shares_are_80_10_10(masked):
    """N = 150,000: would catch 80.6% for 80%. A random id equals the token once in 1000."""
    ids, seen, labels = masked
    chosen = labels != -100
    n = int(chosen.sum())
    mask = int((seen[chosen] == MASK).sum())
    kept = int((seen[chosen] == ids[chosen]).sum())
    expected = [0.8 + 0.1 / V, 0.1 + 0.1 / V, 0.1 - 0.2 / V]
    assert chisquare([mask, kept, n - mask - kept], [n * p for p in expected]).pvalue > LIMIT


def test_random_replacements_are_uniform():
    """A million draws on 1000 ids: would catch every tenth id being 3% too rare."""
    ids = torch.full((B, T), 5)
    policy = MaskingPolicy(MASK, V, rate=1.0, mask_share=0.0, random_share=1.0)
    seen = mask_tokens(ids, policy, seed=7, sample_ids=torch.arange(B)).input_ids
    counts = torch.bincount(seen.reshape(-1), minlength=V)
    assert counts.numel() == V
    assert chisquare(counts.numpy()).pvalue > LIMIT


def independent(a, b):
    """p-value of independence of two boolean tensors; N = 10^6 catches a correlation of 0.006."""
    a, b = a.reshape(-1), b.reshape(-1)
    table = [[int((x & y).sum()) for y in (b, ~b)] for x in (a, ~a)]
    return chi2_contingency(table, correction=False).pvalue


@pytest.mark.parametrize("distance", [1, 2, 3, 4, 5, 8, 64])
def test_neighbours_are_independent(masked, distance):
    chosen = masked[2] != -100
    assert independent(chosen[:, distance:], chosen[:, :-distance]) > LIMIT


def test_samples_are_independent(masked):
    chosen = masked[2] != -100
    assert independent(chosen[1:], chosen[:-1]) > LIMIT


@pytest.mark.parametrize("change", [{"epoch": 1}, {"seed": 20262}, {"epoch": 1 << 20}])
def test_epochs_and_seeds_are_independent(masked, change):
    ids = masked[0]
    arguments = {"seed": 20261, "sample_ids": torch.arange(B)} | change
    other = mask_tokens(ids, MaskingPolicy(MASK, V), **arguments).labels
    assert independent(masked[2] != -100, other != -100) > LIMIT


def test_streams_are_independent():
    samples, index = torch.arange(B)[:, None], torch.arange(T)[None]
    low = [random_words(samples, index, seed=1, stream=s) < 1 << 30 for s in range(3)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert independent(low[a], low[b]) > LIMIT


def test_the_bits_of_a_word_are_fair():
    """32 bits, a million words each: would catch a bit that is set 50.3% of the time."""
    words = random_words(torch.arange(B)[:, None], torch.arange(T)[None], seed=1)
    for bit in range(32):
        ones = int(((words >> bit) & 1).sum())
        assert chisquare([ones, B * T - ones]).pvalue > LIMIT / 10, bit


def test_hashed_rows_are_masked_at_the_rate():
    """Content hashes as sample ids: rows that differ in one token. Would catch 15.2% for 15%."""
    ids = torch.full((B, T), 5)
    ids[:, 0] = torch.arange(B) % 900 + 50
    ids[:, 1] = torch.arange(B) // 900 + 50
    labels = mask_tokens(ids, MaskingPolicy(MASK, V), seed=3).labels
    chosen = labels != -100
    n, selected = B * T, int(chosen.sum())
    assert chisquare([selected, n - selected], [0.15 * n, 0.85 * n]).pvalue > LIMIT
    assert independent(chosen[1:], chosen[:-1]) > LIMIT


def test_a_budget_is_exact_and_its_places_uniform():
    """75 of 500 in every row; each place is as likely: 150,000 draws on 500 places."""
    ids = torch.full((B, T), 5)
    policy = MaskingPolicy(MASK, V, selection="budget")
    others = torch.arange(10, V)
    found = mask_tokens(ids, policy, seed=3, sample_ids=torch.arange(B), replacement_ids=others)
    chosen = found.labels != -100
    assert (chosen.sum(1) == 75).all()
    assert ((found.input_ids == MASK).sum(1) == 60).all()
    # Places are drawn without replacement: the statistic is (1 - 75/500) of a chi-square.
    counts = chosen.sum(0).double()
    spread = ((counts - counts.mean()) ** 2 / counts.mean()).sum().item() / (1 - 0.15)
    assert LIMIT < chi2.sf(spread, T - 1) < 1 - LIMIT


@pytest.mark.parametrize(
    ("n", "low", "high", "bound"),
    [(8, 0.0, 1.0, 0.09), (50, 0.0, 1.0, 0.055), (200, 0.0, 1.0, 0.035), (200, 0.05, 0.3, 0.015)],
)
def test_a_budget_selects_units_at_about_their_rates(n, low, high, bound):
    """Each bound is the largest deviation over 100,000 rows (0.075, 0.041, 0.022, 0.004; the whole
    rates have the largest) and four standard errors of 20,000 rows.
    """
    rates = torch.linspace(low, high, n, dtype=torch.float64)
    found = mask_tokens(
        torch.full((20_000, n), 5), MaskingPolicy(MASK, V, selection="budget"), seed=1,
        sample_ids=torch.arange(20_000), rates=rates.expand(20_000, n),
    )  # fmt: skip
    chosen = found.labels != -100
    assert (chosen.sum(1) == round(rates.sum().item())).all()
    assert (chosen.double().mean(0) - rates).abs().max() < bound
