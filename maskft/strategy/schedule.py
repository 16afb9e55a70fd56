"""Masking rates that change during training.

A schedule maps progress in [0, 1] to a rate. The collator
counts the batches it makes, in each worker, so that a batch has the rate of the step it is for, not
of the step that ran while it was made: prefetching changes nothing, and a resumed run goes on with
the very rates of the whole run.

Source: Yang et al., "Learning Better Masking for Better Language Model Pre-training" (2023): a high
rate early, a low one late.
"""

import itertools
import math
import numbers
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import get_worker_info

KINDS = ("constant", "linear", "cosine", "steps")


@dataclass(frozen=True)
class RateSchedule:
    """Map progress in [0, 1] to a masking rate.

    Attributes:
        kind: "constant", "linear" or "cosine" from ``begin`` to ``end``, or "steps".
        begin, end: rates in [0, 1].
        steps: with kind="steps", (share of training, rate from there on), ascending from 0.0.
        by: "step" changes the rate at every optimiser step, "epoch" between epochs only.

    Raises:
        TypeError, ValueError: a field that does not fit, or a progress that is no number.

    Examples:
        >>> from maskft import RateSchedule
        >>> schedule = RateSchedule("linear", begin=0.3, end=0.1)
        >>> round(schedule(0.0), 2), round(schedule(0.5), 2), round(schedule(1.0), 2)
        (0.3, 0.2, 0.1)
    """

    kind: str
    begin: float = 0.30
    end: float = 0.05
    steps: tuple[tuple[float, float], ...] = ()
    by: str = "step"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {self.kind!r}")
        if self.by not in ("step", "epoch"):
            raise ValueError(f'by must be "step" or "epoch", got {self.by!r}')
        try:
            steps = [
                (_number("steps", start), _number("steps", rate)) for start, rate in self.steps
            ]
        except (TypeError, ValueError):  # no pairs, or not of numbers
            raise TypeError(
                f"steps must be pairs (share of training, rate), got {self.steps!r}"
            ) from None
        rates = [_number("begin", self.begin), _number("end", self.end), *(r for _, r in steps)]
        if not all(0.0 <= rate <= 1.0 for rate in rates):
            raise ValueError(
                f"rates must be between 0 and 1, got begin={self.begin!r}, end={self.end!r}, "
                f"steps={self.steps!r}"
            )
        if (self.kind == "steps") != bool(self.steps):
            raise ValueError('steps goes with kind="steps", and needs it')
        starts = [start for start, _ in steps]
        ascending = all(a < b for a, b in itertools.pairwise(starts))
        if self.steps and (starts[0] != 0.0 or not ascending or not starts[-1] < 1.0):
            raise ValueError(f"steps must ascend from 0.0 and stay below 1, got {starts}")

    def __call__(self, done: float) -> float:
        """Return the rate at progress ``done``, which is clamped to [0, 1]."""
        if math.isnan(_number("done", done)):
            raise ValueError("done must be a number, the progress of training, got NaN")
        done = min(max(done, 0.0), 1.0)
        if self.kind == "constant":
            return self.begin
        if self.kind == "steps":
            return [rate for start, rate in self.steps if start <= done][-1]
        if self.kind == "cosine":
            done = (1.0 - math.cos(math.pi * done)) / 2.0
        return self.begin + (self.end - self.begin) * done


def parse_schedule(text: str) -> RateSchedule:
    """Parse a schedule as the command line writes it.

    "linear:0.3:0.05", "cosine:0.3:0.05", "constant:0.15", "steps:0.3,0.5:0.15,0.8:0.05" (0.3 to
    begin with, 0.15 from half of training on, 0.05 from 80% on); "/epoch" at the end changes the
    rate between epochs only.

    Raises:
        TypeError, ValueError: the text is none of these.
    """
    if not isinstance(text, str):
        raise TypeError(f"a rate schedule must be a str, got {type(text).__name__}")
    text, _, by = text.partition("/")
    kind, _, rest = text.partition(":")
    by = by or "step"
    try:
        if kind == "steps":
            first, *others = rest.split(",")
            pairs = [tuple(map(float, other.split(":"))) for other in others]
            steps = ((0.0, float(first)), *((start, rate) for start, rate in pairs))
            return RateSchedule(kind, steps=steps, by=by)
        rates = [float(rate) for rate in rest.split(":")]
        if kind == "constant" and len(rates) == 1:
            return RateSchedule(kind, rates[0], rates[0], by=by)
        begin, end = rates
        return RateSchedule(kind, begin, end, by=by)
    except ValueError as error:
        raise ValueError(
            f"rate schedule {text!r}: expected linear:BEGIN:END, cosine:BEGIN:END, constant:RATE "
            f"or steps:RATE,SHARE:RATE,... ({error})"
        ) from None


def _number(name: str, value: Any) -> float:
    """Check that ``value`` is a number; return it."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be a number that a float can hold, got {value}") from None


def check_count(name: str, value: Any, least: int, bits: int = 63) -> int:
    """Check that ``value`` is an integer in [least, 2**bits); return it."""
    try:
        if isinstance(value, bool):
            raise TypeError
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if value < least:
        kind = "be positive" if least else "not be negative"
        raise ValueError(f"{name} must {kind}, got {value}")
    if value >= 1 << bits:
        raise ValueError(f"{name} must be less than 2**{bits}, got {value}")
    return value


class Progress:
    """Keep the progress of training in memory that workers share, and count batches from there.

    Worker w of n makes the batches w, w + n, w + 2n... of an epoch, so each knows the number of its
    batch by itself, however far it runs ahead of the training step.
    """

    def __init__(self) -> None:
        # how often begin() was called, step, steps, epoch, epochs, batches a step
        self._shared = torch.zeros(6, dtype=torch.int64).share_memory_()
        self._seen = self._made = 0

    def begin(self, step: int, steps: int, epoch: int, epochs: int, batches_a_step: int) -> None:
        """Start counting: the next batch is the first of ``step``.

        Raises:
            TypeError, ValueError: not integers, negative, or totals of 0.
        """
        step, epoch = check_count("step", step, 0), check_count("epoch", epoch, 0)
        steps, epochs = check_count("steps", steps, 1), check_count("epochs", epochs, 1)
        batches_a_step = check_count("batches_a_step", batches_a_step, 1)
        calls = int(self._shared[0]) + 1
        self._shared.copy_(torch.tensor([calls, step, steps, epoch, epochs, batches_a_step]))

    def next_batch(self, by: str) -> float | None:
        """Return the progress in [0, 1] of the batch being made; None before ``begin``.

        Counts that batch. ``by`` is "step" or "epoch", the unit of progress.
        """
        calls, step, steps, epoch, epochs, batches_a_step = self._shared.tolist()
        if calls != self._seen:
            self._seen, self._made = calls, 0
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        batch = number + workers * self._made
        self._made += 1
        if not calls:
            return None
        if by == "epoch":
            return epoch / epochs
        return (step + batch // batches_a_step) / steps
