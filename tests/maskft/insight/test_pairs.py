"""Pairs of texts, and the interval of their accuracy."""

import pytest
from scipy.stats import binomtest

from maskft import score, score_pairs
from maskft.insight.pairs import wilson

GOOD = ["the quick brown fox", "a seed and an epoch", "pieces and all"]
BAD = ["fox quick brown the", "a seed and an epoch", "and all pieces"]


@pytest.mark.parametrize(
    ("hits", "count"), [(0, 1), (1, 1), (7, 10), (0, 50), (50, 50), (333, 1000)]
)
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_the_interval_is_wilsons(hits, count, level):
    expected = binomtest(hits, count).proportion_ci(level, method="wilson")
    assert wilson(hits, count, level) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_pairs_compare_the_scores_of_their_texts(tiny_bert, tokenizer):
    found = score_pairs(tiny_bert, tokenizer, GOOD, BAD)
    good = [text.logprob for text in score(tiny_bert, tokenizer, GOOD)]
    bad = [text.logprob for text in score(tiny_bert, tokenizer, BAD)]
    assert [text.logprob for text in found.good] == pytest.approx(good, abs=1e-4)
    assert [text.logprob for text in found.bad] == pytest.approx(bad, abs=1e-4)
    both = zip(found.good, found.bad, strict=True)
    assert found.correct == [g.logprob > b.logprob for g, b in both]
    assert found.accuracy == sum(found.correct) / 3
    assert found.interval == wilson(sum(found.correct), 3)


def test_a_tie_is_not_correct(tiny_bert, tokenizer):
    assert score_pairs(tiny_bert, tokenizer, GOOD[1:2], BAD[1:2]).correct == [False]


@pytest.mark.parametrize(("good", "bad"), [(GOOD, BAD[:2]), ([], [])])
def test_pairs_need_two_texts_each(tiny_bert, tokenizer, good, bad):
    with pytest.raises(ValueError, match="as many texts"):
        score_pairs(tiny_bert, tokenizer, good, bad)


def test_a_level_is_between_0_and_1(tiny_bert, tokenizer):
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        score_pairs(tiny_bert, tokenizer, GOOD, BAD, level=95)
