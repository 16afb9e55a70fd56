"""Which step of training a batch is for, counted where the batch is made."""

import torch
from torch.utils.data import get_worker_info


class Progress:
    """Where training stands, in memory that workers share, and how many batches came since.

    Worker w of n makes the batches w, w + n, w + 2n... of an epoch, so each knows the number of its
    batch by itself, however far it runs ahead of the training step.
    """

    def __init__(self) -> None:
        # how often begin() was called, step, steps, epoch, epochs, batches a step
        self._shared = torch.zeros(6, dtype=torch.int64).share_memory_()
        self._seen = self._made = 0

    def begin(self, step: int, steps: int, epoch: int, epochs: int, batches_a_step: int) -> None:
        """The next batch is the first of ``step``."""
        if steps < 1 or epochs < 1 or batches_a_step < 1:
            raise ValueError(
                "steps, epochs and batches_a_step must be positive, got "
                f"{steps}, {epochs}, {batches_a_step}"
            )
        if step < 0 or epoch < 0:
            raise ValueError(f"step and epoch must not be negative, got {step}, {epoch}")
        calls = int(self._shared[0]) + 1
        self._shared.copy_(torch.tensor([calls, step, steps, epoch, epochs, batches_a_step]))

    def next_batch(self, by: str) -> float | None:
        """The share of training that is done at the batch being made; None before ``begin``.

        Counts that batch. ``by`` is "step" or "epoch", whichever the share is counted in.
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
