"""Ask which of two texts a masked language model finds more likely, pair by pair."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

from maskft.insight.copies import BATCH_TOKENS
from maskft.insight.score import Scores, score


@dataclass(frozen=True)
class PairScores:
    """Hold the scores of pairs of texts.

    Attributes:
        good, bad: the scores of the first and the second texts.
        level: of ``interval``.
    """

    good: Scores = field(repr=False)
    bad: Scores = field(repr=False)
    level: float = 0.95

    @property
    def correct(self) -> list[bool]:
        """Say for each pair whether the good text scores higher; a tie does not count."""
        return [good.logprob > bad.logprob for good, bad in zip(self.good, self.bad, strict=True)]

    @property
    def accuracy(self) -> float:
        """Return the share of pairs whose good text scores higher."""
        return sum(self.correct) / len(self.good)

    @property
    def interval(self) -> tuple[float, float]:
        """Return Wilson's interval of the accuracy."""
        return wilson(sum(self.correct), len(self.good), self.level)


def score_pairs(
    model: Any,
    tokenizer: Any,
    good: Sequence[str],
    bad: Sequence[str],
    *,
    method: str = "original",
    level: float = 0.95,
    max_length: int | None = None,
    stride: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int, int], None] | None = None,
) -> PairScores:
    """Score minimal pairs, as of BLiMP (Warstadt et al. 2020): is the good text more likely?

    Args:
        good, bad: as many texts each. Pseudo-log-likelihoods are compared as they are, not by
            token.
        level: of the interval of the accuracy, between 0 and 1.
        the others: as for ``score``.

    Raises:
        TypeError, ValueError: as for ``score``; unequal numbers of texts, or none.

    Examples:
        >>> from maskft import score_pairs
        >>> found = score_pairs(model, tokenizer, ["the lazy dog"], ["dog lazy the"])
        >>> found.accuracy == sum(found.correct), found.interval[0] <= found.accuracy
        (True, True)
    """
    for name, texts in (("good", good), ("bad", bad)):
        if isinstance(texts, str):
            raise TypeError(f"{name} must be a list of texts, got the string {texts[:30]!r}")
    if len(good) != len(bad) or not len(good):
        raise ValueError(
            f"good and bad must be as many texts, at least one, got {len(good)} and {len(bad)}"
        )
    check_level(level)
    both = [text for pair in zip(good, bad, strict=True) for text in pair]
    found = score(
        model, tokenizer, both, method=method, max_length=max_length, stride=stride,
        batch_tokens=batch_tokens, progress=progress,
    )  # fmt: skip
    return PairScores(Scores(found.texts[::2], method), Scores(found.texts[1::2], method), level)


def wilson(hits: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's (1927) interval of a share ``hits / count``.

    With z the normal quantile of (1 + level) / 2, p the share and n the count:
    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).
    """
    z, share = NormalDist().inv_cdf((1 + level) / 2), hits / count
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    whole = 1 + z * z / count
    return max((middle - half) / whole, 0.0), min((middle + half) / whole, 1.0)


def check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
