"""The masking strategies: random, whole word, span, n-gram, entity, keyword, and your own.

Masked diffusion has a file of its own, ``diffusion.py``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from maskft.strategy.columns import ENTITY_COLUMN, WEIGHT_COLUMN
from maskft.strategy.diffusion import Diffusion
from maskft.strategy.plan import Plan, Strategy, Tokens
from maskkernels import geometric_lengths, rates_from_weights, span_units
from maskkernels.tokens import check_number
from maskkernels.units import LONGEST


@dataclass(frozen=True)
class Random(Strategy):
    """Mask every token on its own (Devlin et al., "BERT", 2019)."""

    def plan(self, tokens: Tokens) -> Plan:
        return Plan()


@dataclass(frozen=True)
class WholeWord(Strategy):
    """Mask whole words, every piece of a word or none (Google's BERT, 2019)."""

    def plan(self, tokens: Tokens) -> Plan:
        return Plan(tokens.words())


@dataclass(frozen=True)
class Span(Strategy):
    """Mask spans of geometric length, one action for each (Joshi et al., "SpanBERT", 2020).

    Args:
        p, longest: the lengths, ``maskkernels.geometric_lengths``.
        words: lengths count whole words, as SpanBERT's do; False: tokens.

    How it differs from SpanBERT's sampling: ``maskkernels.span_units``.
    """

    p: float = 0.2
    longest: int = 10
    words: bool = True
    replacement = "unit"
    reads_sample_ids = True
    lengths: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", tuple(geometric_lengths(self.p, self.longest)))

    def plan(self, tokens: Tokens) -> Plan:
        return Plan(_spans(tokens, self.words, self.lengths))


@dataclass(frozen=True)
class NGram(Strategy):
    """Mask runs of ``n`` words or tokens, which begin elsewhere in every epoch.

    Args:
        n: words in a run, 1 to 64; or the probabilities of 1, 2... words, as ALBERT's
            (1, 1/2, 1/3).
        words: False counts tokens.
    """

    n: int | tuple[float, ...] = 3
    words: bool = True
    reads_sample_ids = True

    def __post_init__(self) -> None:
        if isinstance(self.n, int) and not 1 <= self.n <= LONGEST:
            raise ValueError(f"n must be in [1, {LONGEST}], got {self.n}")

    def plan(self, tokens: Tokens) -> Plan:
        lengths = (0,) * (self.n - 1) + (1,) if isinstance(self.n, int) else self.n
        return Plan(_spans(tokens, self.words, lengths))


def _spans(tokens: Tokens, words: bool, lengths: Any) -> Tensor:
    return span_units(
        tokens.words() if words else tokens.singles(),
        lengths,
        sample_ids=tokens.sample_ids(),
        seed=tokens.seed,
        epoch=tokens.epoch,
        cu_seqlens=tokens.cu_seqlens,
    )


@dataclass(frozen=True)
class Entity(Strategy):
    """Mask whole entities (Sun et al., "ERNIE", 2019).

    Args:
        rest: what happens to tokens in no entity: "words" masks whole words of them, "none" never
            masks them.
        rate: the rate of entities; None: the collator's, as for words.
        column: the column that says which entity each token is in, -1 for none
            (``maskft.annotate`` makes it).
    """

    rest: str = "words"
    rate: float | None = None
    column: str = ENTITY_COLUMN

    def __post_init__(self) -> None:
        if self.rest not in ("words", "none"):
            raise ValueError(f'rest must be "words" or "none", got {self.rest!r}')
        if self.rate is not None:
            check_number("rate", self.rate)
            if not 0.0 <= self.rate <= 1.0:
                raise ValueError(f"rate must be between 0 and 1, got {self.rate}")

    @property
    def columns(self) -> Mapping[str, int | float]:  # type: ignore[override]
        return {self.column: -1}

    def plan(self, tokens: Tokens) -> Plan:
        entity = tokens.columns[self.column]
        units = tokens.grouped(entity) if self.rest == "none" else tokens.words(entity)
        if self.rate is None:
            return Plan(units)
        return Plan(units, torch.where(entity >= 0, self.rate, tokens.rate).double())


@dataclass(frozen=True)
class Keyword(Strategy):
    """Mask whole words, each at a rate that follows its weight.

    In each row the rates are scaled so that the collator's rate of the tokens is masked on average;
    none passes 1 (``maskkernels.rates_from_weights``). A row without enough weighted words for the
    rate is an error (not on a GPU, where all its weighted words are masked then).

    Args:
        column: the column of the tokens' weights (``maskft.annotate`` makes it from TF-IDF, YAKE
            or your own weights); the one at a word's first token counts.
    """

    column: str = WEIGHT_COLUMN

    @property
    def columns(self) -> Mapping[str, int | float]:  # type: ignore[override]
        return {self.column: 0.0}

    def plan(self, tokens: Tokens) -> Plan:
        words, weights = tokens.words(), tokens.columns[self.column]
        rates = rates_from_weights(weights, words, tokens.rate, cu_seqlens=tokens.cu_seqlens)
        return Plan(words, rates)


@dataclass(frozen=True)
class FromColumns(Strategy):
    """Take units and rates from your own columns, with a number for each token.

    Args:
        units: a column of integers, a new unit where it changes; negative: never masked.
            None: whole words.
        rates: a column of floats in [0, 1]. None: the collator's rate.
    """

    units: str | None = None
    rates: str | None = None

    @property
    def columns(self) -> Mapping[str, int | float]:  # type: ignore[override]
        named: dict[str, int | float] = {}
        if self.units is not None:
            named[self.units] = -1
        if self.rates is not None:
            named[self.rates] = 0.0
        return named

    def plan(self, tokens: Tokens) -> Plan:
        columns = tokens.columns
        units = tokens.words() if self.units is None else tokens.grouped(columns[self.units])
        return Plan(units, None if self.rates is None else columns[self.rates])


@dataclass(frozen=True)
class FromFunction(Strategy):
    """Call your own function from ``Tokens`` to a ``Plan`` or to a tensor of units.

    Args:
        function: spawned workers need one that can be pickled: no lambda.
        columns, replacement, reads_sample_ids: as for ``Strategy``.
    """

    function: Callable[[Tokens], Plan | Tensor]
    columns: Mapping[str, int | float] = field(default_factory=dict)
    replacement: str = "token"
    reads_sample_ids: bool = False

    def plan(self, tokens: Tokens) -> Plan:
        found = self.function(tokens)
        if isinstance(found, Tensor):
            return Plan(found)
        if not isinstance(found, Plan):
            name = getattr(self.function, "__name__", "the function")
            raise TypeError(
                f"strategy {name} must return a Plan or a tensor of units, "
                f"got {type(found).__name__}"
            )
        return found


STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "random": Random,
    "whole_word": WholeWord,
    "span": Span,
    "ngram": NGram,
    "entity": Entity,
    "keyword": Keyword,
    "diffusion": Diffusion,
}


def find_strategy(strategy: Any) -> Strategy:
    """Return the strategy for a name, a strategy or a function.

    Raises:
        ValueError: no strategy has this name. TypeError: it is none of the three.
    """
    if isinstance(strategy, Strategy):
        return strategy
    if isinstance(strategy, str):
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy must be one of {tuple(STRATEGIES)}, got {strategy!r}")
        return STRATEGIES[strategy]()
    if isinstance(strategy, type) and issubclass(strategy, Strategy):
        return strategy()
    if callable(strategy):
        return FromFunction(strategy)
    raise TypeError(
        f"strategy must be one of {tuple(STRATEGIES)}, a maskft.Strategy or a function, "
        f"got {type(strategy).__name__}"
    )
