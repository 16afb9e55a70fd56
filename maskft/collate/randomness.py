"""The random numbers of a collator: its seed, its epoch and the sample ids of the rows."""

import copy
import hashlib
import multiprocessing
import operator
import os
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.utils.data import get_worker_info

from maskft.collate.notices import Notices
from maskkernels.tokens import as_int

EVALUATION_EPOCH = (1 << 24) - 1  # the last epoch of the contract: no training run reaches it
_WORKERS = 1024  # of a DataLoader, whose streams are counted one by one
Collator = TypeVar("Collator", bound="SampleDraws")


class SampleDraws:
    """Decide which random words the batches of a collator get.

    A collator that mixes this in is a dataclass with these fields and calls ``_begin_draws`` at the
    end of its ``__post_init__``.

    Attributes:
        rng: "stream": fresh words at every call, other ones on every rank of torch.distributed.
            Without a ``seed`` they come from torch's global generator. With one they are those of
            a stream that each process begins at its first batch, and that depends on (seed, rank,
            epoch, and in a DataLoader worker its number and how often that number has begun one):
            other masks in every pass, and the same ones when a run is repeated with the same seed,
            ranks, workers and batches. "sample": words that depend on (seed, epoch, row) alone,
            whatever the batch, the order, the padding, the workers or the ranks; a missing ``seed``
            counts as 0.
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
            self.seed = as_int("seed", self.seed)
            low = 0 if self.rng == "sample" else -(1 << 63)
            if not low <= self.seed < 1 << 64:
                raise ValueError(f"seed must be in [{low}, 2**64), got {self.seed}")
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by every worker
        self._begun = torch.zeros(_WORKERS, dtype=torch.int64).share_memory_()  # streams
        self._notices = Notices()
        self._rank = 0
        self._owner: int | None = None  # the process whose stream ``generator`` is

    def __getstate__(self) -> dict[str, Any]:
        """Take the rank along: a worker that is not forked does not know it."""
        return {**vars(self), "_rank": self._own_rank()}

    def _own_rank(self) -> int:
        known = distributed.is_available() and distributed.is_initialized()
        return distributed.get_rank() if known else self._rank

    def set_epoch(self, epoch: int) -> None:
        """Use the random words of ``epoch`` (rng="sample") from the next batch on, also in workers.

        Call it before iterating over the DataLoader, as for DistributedSampler.
        """
        epoch = as_int("epoch", epoch)
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        self._epoch.fill_(epoch % (1 << 24))

    def follow(self, other: "SampleDraws") -> None:
        """Share the epoch of another collator: ``set_epoch`` of one sets both."""
        self._epoch = other._epoch

    def for_evaluation(self: Collator, number: int = 0) -> Collator:
        """Return a copy with fixed batches: rng="sample" at an epoch training never reaches.

        Args:
            number: of the pass over the rows, each of which has an epoch of its own.
        """
        fixed = copy.copy(self)
        fixed.rng, fixed.generator = "sample", None
        fixed.seed = (self.seed or 0) % (1 << 64)
        fixed._epoch = torch.tensor(EVALUATION_EPOCH - number)
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
            first = self._own_rank() << 32  # so that ranks with one seed differ
            sample_ids = torch.arange(first, first + count, device=device)
            return {"seed": int(draw), "epoch": 0, "sample_ids": sample_ids}
        return {"seed": self.seed or 0, "epoch": int(self._epoch), "sample_ids": sample_ids}

    def _seed_generator(self) -> None:
        """Begin the stream of a seed at the first batch of each process.

        A forked worker inherits the stream of its parent, and begins its own all the same.
        """
        if self.rng != "stream" or self.seed is None:
            return
        if self.generator is not None and self._owner in (None, os.getpid()):
            return  # None: a generator that the user has set
        worker, rank = get_worker_info(), self._own_rank()
        place = (-1, 0)
        if worker is not None:
            count = self._begun[worker.id % _WORKERS]
            count += 1
            place = (worker.id, int(count))
        elif multiprocessing.parent_process() is not None and not distributed.is_initialized():
            raise ValueError(
                f"seed={self.seed} begins a stream in each process, and nothing tells this process "
                "from others: Worker process information is not available. Use a DataLoader's "
                "workers, torch.distributed, or rng='sample', whose masks do not depend on the "
                "process"
            )
        parts = (self.seed % (1 << 64), rank, int(self._epoch), *place)
        key = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
        self.generator = torch.Generator().manual_seed(int.from_bytes(key, "little"))
        self._owner = os.getpid()

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
