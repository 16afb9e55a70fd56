"""Masked diffusion: each row is masked at a rate of its own, and its loss is weighted by the rate.

A row's time t is uniform in (0, 1), its rate p = (1 - eps) t + eps, and the loss of a selected
token is its cross-entropy divided by p. The mean over all tokens that may be masked is then a bound
on the negative log-likelihood of a token.

Sources: Nie et al., "Large Language Diffusion Models" (LLaDA, 2025); Sahoo et al., "Simple and
Effective Masked Diffusion Language Models" (MDLM, 2024); Nie et al., "Scaling up Masked Diffusion
Models on Text" (SMDM, 2024).
"""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from maskft.strategy.plan import Plan, Strategy, Tokens
from maskkernels import random_words
from maskkernels.rng import TIME

WEIGHTS = ("1/p", "none")
NORMALIZE = ("maskable", "batch", "sequence")


@dataclass(frozen=True)
class Diffusion(Strategy):
    """Mask each row at a rate p of its own, and weight the loss of its labels by 1/p.

    t = (w + 0.5) / 2^32, where w is word 0 of stream 10 of the random contract: it depends on
    (seed, epoch, sample) alone. p = (1 - eps) t + eps. A token is selected by the word of stream 0,
    as with "random", so a row's masks at a larger t include those at a smaller one.

    Args:
        eps: the least rate, in [0, 1).
        times: the law of t. (low, high): uniform in that range, 0 <= low <= high <= 1, low being
            left out where it is 0. A function: from u, float64 [B] in (0, 1), to t, float64 [B] in
            (0, 1]; spawned workers need one that can be pickled.
        weights: "1/p"; "none": 1; or a function from p, float64 [B], to the weights of the rows'
            labels, [B].
        antithetic: spread the times of a batch: a row has (i + u) / n in place of u, where i is the
            rank of its word 1 of stream 10 among those of the batch's n rows (MDLM's
            low-discrepancy sampler, whose i is the place in the batch: with rows in an order, such
            as by length, their times would follow it). **Times then depend on which rows share a
            batch.** Never in evaluation.
        normalize: what the weighted sum of losses is divided by, over all batches of an update.
            "maskable": the tokens that may be masked (MDLM). "batch": all tokens, rows times
            length, with padding (LLaDA's and SMDM's pretraining); packed batches have none.
            "sequence": each row's losses by its tokens that may be masked, then by the number of
            rows (LLaDA's fine-tuning).
        shares: (mask, random): what replaces the selected tokens. LLaDA, MDLM, SMDM: always the
            mask token.

    Raises:
        ValueError, TypeError: a field that does not fit; eps=0 where 1/p has no bound; when a batch
            is made, a time outside (0, 1] (on a GPU, where looking would wait for the device, it is
            clamped to that).

    Examples:
        >>> from maskft import DataCollatorForLanguageModeling
        >>> from maskft.strategy import Diffusion
        >>> strategy = Diffusion(normalize="sequence")
        >>> collator = DataCollatorForLanguageModeling(tokenizer, strategy=strategy, seed=1)
        >>> sorted(collator(rows).keys() - {"attention_mask", "token_type_ids"})
        ['input_ids', 'label_weights', 'labels', 'num_items']
    """

    eps: float = 1e-3
    times: tuple[float, float] | Callable[[Tensor], Tensor] = (0.0, 1.0)
    weights: str | Callable[[Tensor], Tensor] = "1/p"
    antithetic: bool = False
    normalize: str = "maskable"
    shares: tuple[float, float] = (1.0, 0.0)
    reads_sample_ids = True

    def __post_init__(self) -> None:
        if not _is_number(self.eps) or not 0 <= self.eps < 1:
            raise ValueError(f"eps must be a number in [0, 1), got {self.eps!r}")
        unbounded = callable(self.times)
        if not callable(self.times):
            low, high = _pair("times", self.times)
            if not 0 <= low <= high <= 1 or high == 0:
                raise ValueError(
                    "times must be (low, high) with 0 <= low <= high <= 1 and high > 0, for t in "
                    f"(0, 1], got {self.times!r}"
                )
            unbounded = low == 0
        if not callable(self.weights) and self.weights not in WEIGHTS:
            raise ValueError(
                f"weights must be one of {WEIGHTS} or a function of p, got {self.weights!r}"
            )
        if self.eps == 0 and self.weights == "1/p" and unbounded:
            raise ValueError(
                "eps=0 with weights='1/p' has no largest weight: give eps=1e-3, or times=(1e-3, 1)"
            )
        if self.normalize not in NORMALIZE:
            raise ValueError(f"normalize must be one of {NORMALIZE}, got {self.normalize!r}")
        mask, random = _pair("shares", self.shares)
        if not (0 <= mask <= 1 and 0 <= random <= 1 and mask + random <= 1):
            raise ValueError(
                f"shares must be (mask, random) in [0, 1] with a sum of at most 1, got "
                f"{self.shares!r}"
            )

    def time(self, tokens: Tokens) -> Tensor:
        """Return float64 [B], the time t of each row."""
        u = (_words(tokens, 0).double() + 0.5) * 2.0**-32
        if self.antithetic:
            stratum = _words(tokens, 1).argsort(stable=True).argsort()
            u = (stratum + u) / max(u.numel(), 1)
        if callable(self.times):
            return _checked_times(self.times(u), u)
        low, high = self.times
        return low + (high - low) * u

    def rate(self, t: Tensor) -> Tensor:
        """Return p = (1 - eps) t + eps, the rate of the rows at time ``t``."""
        return ((1.0 - self.eps) * t + self.eps).clamp(max=1.0)

    def plan(self, tokens: Tokens) -> Plan:
        p = self.rate(self.time(tokens))
        weights = self._weights(p)
        if self.normalize == "batch":
            items = tokens.count(torch.ones_like(tokens.input_ids, dtype=torch.bool))
        else:
            items = tokens.count(tokens.may_mask())
        if self.normalize == "sequence":
            weights, items = weights / items.clamp(min=1), torch.ones_like(items)
        return Plan(
            rates=tokens.of_rows(p),
            label_weights=tokens.of_rows(weights.float()),
            num_items=items,
        )

    def for_evaluation(self, number: int, passes: int) -> "Diffusion":
        """Return the strategy that estimates the bound, in pass ``number`` of so many.

        In that pass t is uniform in (number / passes, (number + 1) / passes]: the passes are the
        strata of (0, 1], for every row. The options are the defaults, whatever training's are.
        """
        return Diffusion(times=(number / passes, (number + 1) / passes))

    def _weights(self, p: Tensor) -> Tensor:
        if not callable(self.weights):
            return torch.ones_like(p) if self.weights == "none" else 1.0 / p
        found = self.weights(p)
        if not isinstance(found, Tensor) or found.shape != p.shape:
            raise ValueError(
                f"weights must return a tensor of shape {tuple(p.shape)}, like p, got "
                f"{_kind(found)}"
            )
        return found.double()


def _words(tokens: Tokens, index: int) -> Tensor:
    """Return a word of stream 10 for each row, int64 [B]."""
    ids = tokens.sample_ids()
    return random_words(
        ids, torch.full_like(ids, index), seed=tokens.seed, epoch=tokens.epoch, stream=TIME
    )


def _checked_times(t: Any, u: Tensor) -> Tensor:
    """Return what a function made of ``u`` as times in (0, 1]."""
    if not isinstance(t, Tensor) or t.shape != u.shape:
        raise ValueError(
            f"times must return a tensor of shape {tuple(u.shape)}, like u, got {_kind(t)}"
        )
    t = t.double()
    if t.device.type != "cpu":
        return t.nan_to_num(0.0).clamp(2.0**-33, 1.0)
    inside = (t > 0) & (t <= 1)
    if not inside.all():
        raise ValueError(f"times must return t in (0, 1], got {t[~inside][0].item()}")
    return t


def _pair(name: str, value: Any) -> tuple[float, float]:
    try:
        first, second = value
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a pair of numbers, got {value!r}") from None
    if not _is_number(first) or not _is_number(second):
        raise TypeError(f"{name} must be a pair of numbers, got {value!r}")
    return first, second


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"one of shape {tuple(value.shape)}"
    return type(value).__name__
