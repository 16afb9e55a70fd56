"""Denoising options: densities, span lengths, mixtures, and the ids of sentinels and masks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from maskkernels.rng import threshold
from maskkernels.tokens.checks import check_flag, check_int, check_number, sequence_of

LONGEST_MEAN = 1 << 15  # tokens; keeps the integer arithmetic of span counts inside 64 bits
LONGEST_POISSON = 256  # tokens; e^-mean is far from underflow
WORDS = 1 << 32


def _ids(name: str, ids: Any) -> tuple[int, ...]:
    ids = sequence_of(name, ids, "ids")
    for value in ids:
        _check_id(name, value)
    if len(set(ids)) < len(ids):
        raise ValueError(f"{name} must not repeat an id, got {ids}")
    return tuple(int(value) for value in ids)


def _check_id(name: str, value: Any) -> None:
    check_int(name, value)
    if not 0 <= int(value) < 1 << 31:
        raise ValueError(f"{name} must be in [0, 2**31), got {value}")


def _check_share(name: str, value: Any) -> None:
    check_number(name, value)
    if not 0 < value < 1:
        raise ValueError(f"{name} must be in (0, 1), got {value}")


@dataclass(frozen=True)
class Denoiser:
    """One way to cut a row into noise and context.

    Attributes:
        noise_density: share of the tokens that become noise, in (0, 1).
        mean_span_length: mean length of a span of noise, at least 1.
        share: weight of this denoiser in a mixture; the weights need not sum to 1.
        prefix: the noise is one span at the end of the row (prefix language modelling);
            ``mean_span_length`` has no effect.
        mode_token_id: an id put in front of the row's inputs, to tell the model which denoiser ran.

    Raises:
        TypeError, ValueError: at construction, naming the field.

    Examples:
        >>> from maskkernels import Denoiser, corrupted_lengths
        >>> corrupted_lengths(512, Denoiser(noise_density=0.5, mean_span_length=32.0))
        (264, 266)
    """

    noise_density: float = 0.15
    mean_span_length: float = 3.0
    share: float = 1.0
    prefix: bool = False
    mode_token_id: int | None = None

    def __post_init__(self) -> None:
        _check_share("noise_density", self.noise_density)
        check_number("mean_span_length", self.mean_span_length)
        if not 1 <= self.mean_span_length <= LONGEST_MEAN:
            raise ValueError(
                f"mean_span_length must be in [1, {LONGEST_MEAN}], got {self.mean_span_length}"
            )
        check_number("share", self.share)
        if not 0 < self.share < math.inf:
            raise ValueError(f"share must be positive and finite, got {self.share}")
        check_flag("prefix", self.prefix)
        if self.mode_token_id is not None:
            _check_id("mode_token_id", self.mode_token_id)


@dataclass(frozen=True)
class SpanCorruption:
    """Replace spans of a row by sentinels in the inputs, and list the spans in the targets.

    Attributes:
        sentinel_ids: one id for each span of a row, in order of use. T5's 100, in a vocabulary of
            32100: ``range(32099, 31999, -1)``.
        denoisers: a mixture; each row gets one of them. The default is T5's.
        eos_token_id: the id that ends every target. At the end of a row it is never corrupted.
            None: targets end without it.
        final_sentinel: one more sentinel after the last span of the targets.
        edge_token_ids: ids that are never noise at either end of a row.

    Raises:
        TypeError, ValueError: at construction, naming the field.

    Source: Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
    Transformer" (2020), sections 3.1.4 and 3.3.

    Examples:
        >>> from maskkernels import Denoiser, SpanCorruption
        >>> denoisers = (Denoiser(share=3.0), Denoiser(noise_density=0.5, mean_span_length=32.0))
        >>> corruption = SpanCorruption(sentinel_ids=range(32099, 31999, -1), denoisers=denoisers)
        >>> len(corruption.sentinel_ids)
        100
    """

    sentinel_ids: Sequence[int]
    denoisers: Sequence[Denoiser] = (Denoiser(),)
    eos_token_id: int | None = None
    final_sentinel: bool = True
    edge_token_ids: Sequence[int] = ()

    def __post_init__(self) -> None:
        for name in ("sentinel_ids", "edge_token_ids"):
            object.__setattr__(self, name, _ids(name, getattr(self, name)))
        if not self.sentinel_ids:
            raise ValueError("sentinel_ids must hold at least one id, got none")
        object.__setattr__(self, "denoisers", sequence_of("denoisers", self.denoisers, "Denoisers"))
        if not self.denoisers:
            raise ValueError("denoisers must hold at least one Denoiser, got none")
        for denoiser in self.denoisers:
            if not isinstance(denoiser, Denoiser):
                raise TypeError(f"denoisers must hold Denoisers, got {denoiser!r}")
        if not math.isfinite(sum(float(denoiser.share) for denoiser in self.denoisers)):
            raise ValueError("the shares of denoisers must have a finite sum")
        check_flag("final_sentinel", self.final_sentinel)
        if self.eos_token_id is not None:
            _check_id("eos_token_id", self.eos_token_id)
        taken = {self.eos_token_id, *(denoiser.mode_token_id for denoiser in self.denoisers)}
        for value in self.sentinel_ids:
            if value in taken:
                raise ValueError(f"sentinel_ids hold {value}, the eos token or a mode token")


@dataclass(frozen=True)
class TextInfilling:
    """Replace spans of Poisson lengths by one mask each; optionally shuffle sentences.

    Attributes:
        mask_token_id: replaces a span of any length; a span of length 0 only inserts a mask.
        ratio: share of the tokens that are masked, in (0, 1).
        mean_span_length: the mean of the Poisson distribution, in (0, 256].
        permute_sentences: shuffle the sentences of a row before it is masked.
        sentence_end_ids: a sentence ends after each of these ids (a full stop...) and at the row's
            end.
        edge_token_ids: ids that are kept in place at either end of a row.

    Raises:
        TypeError, ValueError: at construction, naming the field.

    Source: Lewis et al., "BART" (2020), section 2.2.

    Examples:
        >>> import torch
        >>> from maskkernels import TextInfilling, infill_text
        >>> infilling = TextInfilling(mask_token_id=4, ratio=0.2, edge_token_ids=(0, 2))
        >>> ids = torch.tensor([[0, 11, 12, 13, 14, 15, 2]])
        >>> infill_text(ids, infilling, seed=1).input_ids.tolist()
        [0, 11, 12, 13, 14, 4, 2]
    """

    mask_token_id: int
    ratio: float = 0.3
    mean_span_length: float = 3.0
    permute_sentences: bool = False
    sentence_end_ids: Sequence[int] = ()
    edge_token_ids: Sequence[int] = ()

    def __post_init__(self) -> None:
        _check_id("mask_token_id", self.mask_token_id)
        _check_share("ratio", self.ratio)
        check_number("mean_span_length", self.mean_span_length)
        if not 0 < self.mean_span_length <= LONGEST_POISSON:
            raise ValueError(
                f"mean_span_length must be in (0, {LONGEST_POISSON}], got {self.mean_span_length}"
            )
        for name in ("sentence_end_ids", "edge_token_ids"):
            object.__setattr__(self, name, _ids(name, getattr(self, name)))
        check_flag("permute_sentences", self.permute_sentences)
        if self.permute_sentences and not self.sentence_end_ids:
            raise ValueError(
                "permute_sentences=True needs sentence_end_ids (a full stop...), got none"
            )


def ul2_denoisers(
    r_token_id: int | None = None, s_token_id: int | None = None, x_token_id: int | None = None
) -> tuple[Denoiser, ...]:
    """Return UL2's seven denoisers, mixed evenly: regular (R), sequential (S) and extreme (X).

    Args:
        r_token_id, s_token_id, x_token_id: mode tokens in front of the inputs of each kind.

    Raises:
        TypeError, ValueError: a mode token that is no id.

    Source: Tay et al., "UL2: Unifying Language Learning Paradigms" (2022), table 1.

    Examples:
        >>> from maskkernels import ul2_denoisers
        >>> [denoiser.noise_density for denoiser in ul2_denoisers()]
        [0.15, 0.15, 0.25, 0.5, 0.5, 0.15, 0.5]
    """
    modes = {"r_token_id": r_token_id, "s_token_id": s_token_id, "x_token_id": x_token_id}
    for name, value in modes.items():
        if value is not None:
            _check_id(name, value)
    regular = [(0.15, 3.0), (0.15, 8.0)]
    extreme = [(0.5, 3.0), (0.5, 8.0), (0.15, 64.0), (0.5, 64.0)]
    return (
        *(Denoiser(p, mean, mode_token_id=r_token_id) for p, mean in regular),
        Denoiser(0.25, prefix=True, mode_token_id=s_token_id),
        *(Denoiser(p, mean, mode_token_id=x_token_id) for p, mean in extreme),
    )


@lru_cache(maxsize=64)
def denoiser_table(denoisers: tuple[Denoiser, ...]) -> np.ndarray:
    """Tabulate denoisers as int64 [D, 5], one row each.

    The first number is a threshold: the first row whose threshold is above the word is chosen. The
    others are T(noise_density), the mean length in 2^-16 tokens, prefix, and mode token or -1.
    """
    total, before, rows = sum(float(d.share) for d in denoisers), 0.0, []
    for denoiser in denoisers:
        before += float(denoiser.share)
        rows.append(
            (
                threshold(min(before / total, 1.0)),
                threshold(denoiser.noise_density),
                round(denoiser.mean_span_length * 65536),
                int(denoiser.prefix),
                -1 if denoiser.mode_token_id is None else denoiser.mode_token_id,
            )
        )
    table = np.array(rows, np.int64)
    table[-1, 0] = WORDS
    return table


@lru_cache(maxsize=64)
def poisson_table(mean: float) -> np.ndarray:
    """Tabulate floor(P(length <= k) * 2^32) for k = 0, 1..., the last raised to 2^32; int64 [L].

    A word has length k if entry k is the first above it.
    """
    probability = math.exp(-mean)
    total, numbers = probability, [threshold(probability)]
    while numbers[-1] < WORDS - 1:
        probability *= mean / len(numbers)
        total += probability
        numbers.append(threshold(min(total, 1.0)))
        if len(numbers) > mean and numbers[-1] == numbers[-2]:
            break  # the remaining probability is less than one word
    numbers[-1] = WORDS
    return np.array(numbers, np.int64)
