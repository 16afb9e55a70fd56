"""Compare two models on the same text under the same masks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maskft.collate.collator import DataCollatorForLanguageModeling
from maskft.insight.copies import BATCH_TOKENS
from maskft.insight.encode import check_masked_model
from maskft.insight.fixed import Predictions, by_class, predict_masked, token_classes
from maskft.insight.logits import language_model
from maskft.insight.pairs import check_level
from maskft.insight.score import check_batch_tokens

_AT_ONCE = 1 << 22  # numbers of resampled rows that are held at once


@dataclass(frozen=True)
class ClassDifference:
    """Hold the difference between two models on a class of tokens.

    Attributes:
        kind, label: of the class; ("all", "tokens") for all tokens.
        tokens: how many there are.
        loss_a, loss_b: mean cross-entropy of each model, nats.
        low, high: the interval of ``difference``.
    """

    kind: str
    label: str
    tokens: int
    loss_a: float
    loss_b: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """Return loss_b - loss_a: below 0 where B is better."""
        return self.loss_b - self.loss_a


@dataclass(frozen=True)
class Comparison:
    """Hold the difference between two models, in all and by class of token.

    Attributes:
        a, b: what each model predicted.
        classes: a difference for each class; the first is of all tokens.
        level: of the intervals.
    """

    a: Predictions = field(repr=False)
    b: Predictions = field(repr=False)
    classes: tuple[ClassDifference, ...] = field(repr=False)
    level: float

    @property
    def difference(self) -> float:
        """Return loss_b - loss_a over all tokens: below 0 where B is better."""
        return self.classes[0].difference

    @property
    def interval(self) -> tuple[float, float]:
        """Return the interval of ``difference``."""
        return self.classes[0].low, self.classes[0].high

    def __str__(self) -> str:
        header = ("class", "", "tokens", "A", "B", "B - A", f"{self.level:.0%} interval")
        lines = [header, *(self.cells(one) for one in self.classes)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if n < 2 else cell.rjust(width)
                for n, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        )

    @staticmethod
    def cells(one: ClassDifference) -> tuple[str, ...]:
        """Write a class as the cells of a table."""
        return (
            one.kind, one.label, f"{one.tokens:,}", f"{one.loss_a:.4f}", f"{one.loss_b:.4f}",
            f"{one.difference:+.4f}", f"{one.low:+.4f} to {one.high:+.4f}",
        )  # fmt: skip


def compare_models(
    model_a: Any,
    model_b: Any,
    tokenizer: Any,
    rows: Sequence[Any],
    *,
    collator: DataCollatorForLanguageModeling | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
) -> Comparison:
    """Compare two masked language models on the same rows under the same masks.

    Both predict the same tokens, those that the collator's evaluation masks select. The interval of
    the difference in loss is a paired bootstrap over rows (percentiles): rows are drawn with
    replacement, both models' losses with them, and each resample gives
    sum(loss_b - loss_a) / tokens. What makes a row hard for both models cancels.

    Args:
        model_a, model_b: of one vocabulary, that of ``tokenizer``.
        rows: tokenized rows, with the columns that the collator's strategy reads; lists and
            ``datasets`` alike.
        collator: masks the rows. None: a collator with its defaults, 15% of single tokens.
        resamples: of the bootstrap.
        level: of the intervals, between 0 and 1.
        seed: of the bootstrap and, where ``collator`` is None, of the masks.
        batch_tokens: tokens in a batch, padding included, at most.

    Raises:
        TypeError: a model that fills no masks.
        ValueError: no rows, no masks in them, or options that do not fit.

    Examples:
        >>> from maskft import compare_models
        >>> same = compare_models(model, model, tokenizer, rows, resamples=100)
        >>> same.difference, same.interval
        (0.0, (0.0, 0.0))
    """
    for model in (model_a, model_b):
        check_masked_model(language_model(model), tokenizer)
    check_level(level)
    check_batch_tokens(batch_tokens)
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    rows = [rows[i] for i in range(len(rows))]
    if not rows:
        raise ValueError("rows is empty: there is nothing to compare the models on")
    if collator is None:
        collator = DataCollatorForLanguageModeling(tokenizer, rng="sample", seed=seed)
    a = predict_masked(model_a, rows, collator, batch_tokens=batch_tokens)
    b = predict_masked(model_b, rows, collator, batch_tokens=batch_tokens)
    if not len(a.token):
        raise ValueError(
            f"no token of the {len(rows)} rows is masked: give more text or a higher "
            "mlm_probability"
        )
    if not (np.array_equal(a.token, b.token) and np.array_equal(a.position, b.position)):
        raise ValueError("the collator masked other tokens for B than for A")
    classes = token_classes(tokenizer, rows, a)
    return Comparison(a, b, differences(a, b, classes, resamples, level, seed), level)


def differences(
    a: Predictions,
    b: Predictions,
    classes: dict[str, np.ndarray],
    resamples: int,
    level: float,
    seed: int,
) -> tuple[ClassDifference, ...]:
    """Compute the difference of all tokens and of each class, with its interval."""
    everything = np.ones(len(a.token), bool)
    groups = [("all", "tokens", everything), *by_class(classes)]
    delta = a.logprob - b.logprob
    sums = np.stack([_by_row(a, here, delta) for _, _, here in groups])
    counts = np.stack([_by_row(a, here, everything) for _, _, here in groups])
    low, high = paired_bootstrap(sums, counts, resamples, level, seed)
    return tuple(
        ClassDifference(
            kind, label, int(here.sum()), float(-a.logprob[here].mean()),
            float(-b.logprob[here].mean()), float(low[n]), float(high[n]),
        )
        for n, (kind, label, here) in enumerate(groups)
    )  # fmt: skip


def paired_bootstrap(
    sums: np.ndarray, counts: np.ndarray, resamples: int, level: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (low, high) [C] of the ratios sum(sums) / sum(counts) over resampled rows.

    Args:
        sums, counts: float [C, R], of each class in each row.
    """
    generator, size = np.random.default_rng(seed), sums.shape[1]
    share = np.full(size, 1 / size)
    found: list[np.ndarray] = []
    step = max(_AT_ONCE // size, 1)
    for begin in range(0, resamples, step):
        drawn = generator.multinomial(size, share, min(step, resamples - begin)).astype(np.float64)
        with np.errstate(invalid="ignore"):
            found.append((drawn @ sums.T) / (drawn @ counts.T))
    tail = (1 - level) / 2 * 100
    low, high = np.nanpercentile(np.concatenate(found), [tail, 100 - tail], axis=0)
    return low, high


def _by_row(a: Predictions, here: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.bincount(a.row[here], values[here], minlength=a.rows).astype(np.float64)
