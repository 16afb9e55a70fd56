"""The random numbers of a collator: its seed, its epoch and the sample ids of the rows."""

import copy
import operator
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

EVALUATION_EPOCH = (1 << 24) - 1  # the last epoch of the contract: no training run reaches it
Collator = TypeVar("Collator", bound="SampleDraws")


class SampleDraws:
    """Decide which random words the batches of a collator get.

    A collator that mixes this in is a dataclass with these fields and calls ``_begin_draws`` at the
    end of its ``__post_init__``.

    Attributes:
        rng: "stream": fresh words at every call, from torch's global generator without a ``seed``
            and from the collator's own stream with one. "sample": words that depend on (seed,
            epoch, row) alone, whatever the batch, the order, the padding, the workers or the ranks;
            a missing ``seed`` counts as 0.
        seed: None or an integer.
        sample_id_column: with rng="sample", the name of a column of integers that identify the
            rows. None: a hash of the row's tokens.
    """

    rng: str
    seed: int | None
    sample_id_column: str | None
    generator: Any

    def _begin_draws(self) -> None:
        if self.seed is not None:
            self.seed = operator.index(self.seed)
            low = 0 if self.rng == "sample" else -(1 << 63)
            if not low <= self.seed < 1 << 64:
                raise ValueError(f"seed must be in [{low}, 2**64), got {self.seed}")
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by every worker

    def set_epoch(self, epoch: int) -> None:
        """Use the random words of ``epoch`` (rng="sample") from the next batch on, also in workers.

        Call it before iterating over the DataLoader, as for DistributedSampler.
        """
        epoch = operator.index(epoch)
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        self._epoch.fill_(epoch % (1 << 24))

    def follow(self, other: "SampleDraws") -> None:
        """Share the epoch of another collator: ``set_epoch`` of one sets both."""
        self._epoch = other._epoch

    def for_evaluation(self: Collator) -> Collator:
        """Return a copy with fixed batches: rng="sample" at an epoch training never reaches."""
        fixed = copy.copy(self)
        fixed.rng, fixed.generator = "sample", None
        fixed.seed = (self.seed or 0) % (1 << 64)
        fixed._epoch = torch.tensor(EVALUATION_EPOCH)
        return fixed

    def required_columns(self) -> list[str]:
        """Return the columns that the collator needs and the model does not take."""
        return [] if self.sample_id_column is None else [self.sample_id_column]

    def optional_columns(self) -> list[str]:
        """Return the columns that are read if the examples have them."""
        return []

    def _draws(
        self, count: int, sample_ids: Tensor | None, device: torch.device | None = None
    ) -> dict[str, Any]:
        """Return the seed, epoch and sample_ids of an op on ``count`` rows."""
        if self.rng == "stream":
            draw = torch.empty((), dtype=torch.int64).random_(generator=self.generator)
            return {"seed": int(draw), "epoch": 0, "sample_ids": torch.arange(count, device=device)}
        return {"seed": self.seed or 0, "epoch": int(self._epoch), "sample_ids": sample_ids}

    def _seed_generator(self) -> None:
        """Start the stream of a seed at the first batch, another one in each worker."""
        if self.rng == "stream" and self.seed is not None and self.generator is None:
            worker = get_worker_info()
            self.generator = torch.Generator().manual_seed(self.seed + (worker.id if worker else 0))

    def _sample_ids(self, columns: Mapping[str, Any]) -> Tensor | None:
        """Return int64 [B] from the sample-id column; None without one."""
        if self.sample_id_column is None:
            return None
        ids = []
        for value in columns[self.sample_id_column]:
            try:
                number = operator.index(value)
            except TypeError:
                raise TypeError(
                    f"column {self.sample_id_column!r} must hold integers, got {value!r}"
                ) from None
            if not -(1 << 63) <= number < 1 << 64:
                raise ValueError(f"sample id {number} does not fit in 64 bits")
            ids.append(number - (1 << 64) if number >> 63 == 1 else number)
        return torch.tensor(ids, dtype=torch.int64)
