"""Which rows share a packed batch: blocks that rows fill."""

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from maskkernels import Packing, pack_rows

_LARGEST = 1 << 24  # tokens in a block that pack_rows fills


class PackedBatchSampler(Sampler[list[int]]):
    """Sample batches of rows that fill blocks: for ``DataLoader(batch_sampler=...)``.

    Rows are shuffled and packed by ``maskkernels.pack_rows``, once: all epochs have as many
    batches. At every epoch rows of one length change places, so that a row meets other rows, and
    the blocks are shuffled: a pure function of (lengths, seed, epoch). Every row is in one batch of
    an epoch.

    Args:
        lengths: the tokens of each row, as ``pack_rows`` takes them.
        block_size: tokens in a batch, at most.
        shuffle: False keeps the order of the rows, and packs the same blocks every time.
        seed: an integer in [-2**63, 2**64), of the shuffling; seed + epoch, modulo 2**64, seeds an
            epoch, as in DistributedSampler.
        window: rows that are packed together by decreasing length: the larger the fuller the
            blocks, and the more alike the rows of one. None: all.
        overlong: "error", or "truncate" for rows that the collator cuts (``max_length``).
        num_replicas, rank: give every rank its own batches, as many as the others: the last ones
            come again where they do not come out even, or are left out with ``drop_last``. Leave
            them where Accelerate deals out the batches (with even_batches=False).
        drop_last: leave out what does not come out even among ranks.

    Raises:
        TypeError, ValueError: as ``pack_rows``; a rank outside [0, num_replicas).

    Examples:
        >>> from maskft import PackedBatchSampler
        >>> sampler = PackedBatchSampler([5, 3, 4, 4], block_size=8, shuffle=False)
        >>> list(sampler)
        [[0, 1], [2, 3]]
    """

    def __init__(
        self,
        lengths: Any,
        block_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        window: int | None = 256,
        overlong: str = "error",
        num_replicas: int = 1,
        rank: int = 0,
        drop_last: bool = False,
    ) -> None:
        num_replicas, rank = _integer("num_replicas", num_replicas), _integer("rank", rank)
        if num_replicas < 1:
            raise ValueError(f"num_replicas must be positive, got {num_replicas}")
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank must be in [0, num_replicas={num_replicas}), got {rank}")
        seed = _integer("seed", seed)
        if not -(1 << 63) <= seed < 1 << 64:
            raise ValueError(f"seed must be in [-2**63, 2**64), got {seed}")
        self.lengths = _checked(lengths)
        self.block_size, self.shuffle, self.seed = _block_size(block_size), shuffle, seed
        if window is not None:  # no larger than what there is, which is as good as None
            window = min(_integer("window", window), max(len(self.lengths), 1))
        self.window, self.overlong = window, overlong
        self.num_replicas, self.rank, self.drop_last = num_replicas, rank, drop_last
        self.epoch = 0
        self.batches()  # refuses here what does not fit

    def set_epoch(self, epoch: int) -> None:
        """Shuffle as for ``epoch`` from the next iteration on."""
        epoch = _integer("epoch", epoch)
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        self.epoch = epoch

    def batches(self) -> list[list[int]]:
        """Return the batches of this epoch and rank."""
        state = (self.epoch, self.seed, self.shuffle)
        if getattr(self, "_known", (None,))[0] != state:
            self._known = (state, self._pack())
        return self._known[1]

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.batches()

    def __len__(self) -> int:
        return len(self.batches())

    def _pack(self) -> list[list[int]]:
        generator = torch.Generator().manual_seed((self.seed + self.epoch) % (1 << 64))
        state = (self.seed, self.shuffle)
        if getattr(self, "_packed", (None,))[0] != state:
            self._packed = (state, self._pack_once())
        packed = self._packed[1]
        if not self.shuffle:
            return self._own(packed.blocks())
        blocks = packed._replace(rows=self._exchanged(packed.rows, generator)).blocks()
        places = torch.randperm(len(blocks), generator=generator).tolist()
        return self._own([blocks[k] for k in places])

    def _pack_once(self) -> Packing:
        order = torch.arange(len(self.lengths))
        if self.shuffle:
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(self.seed))
        packed = pack_rows(
            self.lengths[order], self.block_size, window=self.window, overlong=self.overlong
        )
        return packed._replace(rows=order[packed.rows])

    def _exchanged(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return ``rows`` with the places of rows of one length shuffled."""
        sizes = self.lengths.clamp(max=self.block_size)
        others = torch.randperm(rows.numel(), generator=generator)
        others = others[sizes[others].argsort(stable=True)]
        return torch.empty_like(rows).index_copy_(0, sizes[rows].argsort(stable=True), others)

    def _own(self, blocks: list[list[int]]) -> list[list[int]]:
        """Return this rank's share, without a list of what all ranks get."""
        count, ranks = len(blocks), self.num_replicas
        uneven = count % ranks
        total = count if not uneven else count - uneven + (0 if self.drop_last else ranks)
        return [blocks[i % count] for i in range(self.rank, total, ranks)]


def _integer(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None


def _block_size(value: Any) -> int:
    size = _integer("block_size", value)
    if isinstance(value, bool) or not 0 < size <= _LARGEST:
        raise ValueError(f"block_size must be a number of tokens in [1, {_LARGEST}], got {value}")
    return size


def _checked(lengths: Any) -> Tensor:
    """Return lengths as a tensor; ``pack_rows`` says what is wrong with its values."""
    try:
        given = torch.as_tensor(lengths)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(
            "lengths must be a sequence of integers, one for each row, got "
            f"{type(lengths).__name__}"
        ) from None
    if given.dim() != 1 or given.layout != torch.strided:
        raise ValueError(
            f"lengths must be dense and have shape [B], got {tuple(given.shape)}, {given.layout}"
        )
    return given
