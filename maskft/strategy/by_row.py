"""Rates that differ by row: drawn for each, or 0 for rows that are not masked."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from maskft.strategy.plan import Plan, Strategy, Tokens
from maskkernels import random_words, threshold
from maskkernels.rng import ROW, TIME


@dataclass(frozen=True)
class ByRow(Strategy):
    """Plan as another strategy does, at rates that differ by row.

    Args:
        inner: the other strategy.
        uniform: give each row a rate in (0, 1), (w + 0.5) / 2^32 for its word w of stream TIME.
        share: of the rows that are masked at all: those with a word of stream ROW below T(share).
    """

    inner: Strategy
    uniform: bool
    share: float
    reads_sample_ids = True

    @property
    def columns(self) -> Mapping[str, int | float]:  # type: ignore[override]
        return self.inner.columns

    @property
    def replacement(self) -> str:  # type: ignore[override]
        return self.inner.replacement

    @property
    def shares(self) -> tuple[float, float] | None:  # type: ignore[override]
        return self.inner.shares

    def plan(self, tokens: Tokens) -> Plan:
        plan = self.inner.plan(tokens)
        own = plan.rates if plan.unit_rates is None else plan.unit_rates
        if self.uniform:
            if own is not None:
                raise ValueError(
                    f"rate='uniform' gives each row its rate, and {type(self.inner).__name__} "
                    "gives tokens rates of their own: use one of the two"
                )
            rates = (self._words(tokens, TIME).double() + 0.5) / 2**32
        else:
            rates = torch.full_like(tokens.sample_ids(), tokens.rate, dtype=torch.float64)
        masked = torch.ones_like(rates, dtype=torch.bool)
        if self.share < 1.0:
            masked = self._words(tokens, ROW) < threshold(self.share)
        if plan.unit_rates is not None:
            return Plan(plan.units, unit_rates=torch.where(masked[:, None], plan.unit_rates, 0.0))
        if plan.rates is not None:
            return Plan(plan.units, torch.where(tokens.of_rows(masked), plan.rates, 0.0))
        return Plan(plan.units, tokens.of_rows(torch.where(masked, rates, 0.0)))

    def _words(self, tokens: Tokens, stream: int) -> Tensor:
        """Return word 0 of ``stream`` of each row, int64 [B]."""
        ids = tokens.sample_ids()
        return random_words(
            ids, torch.zeros_like(ids), seed=tokens.seed, epoch=tokens.epoch, stream=stream
        )
