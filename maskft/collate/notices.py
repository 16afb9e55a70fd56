"""Warnings that are given once, whatever the number of batches, workers and passes."""

import warnings

import torch

NOTICES = ("unknown ids", "labels")


class Notices:
    """Remember which warnings were given, in memory that DataLoader workers share."""

    def __init__(self) -> None:
        self._given = torch.zeros(len(NOTICES), dtype=torch.int64).share_memory_()

    def warn(self, notice: str, message: str) -> None:
        """Warn with ``message``, unless a warning of this name was given before."""
        given = self._given[NOTICES.index(notice)]
        if not given:
            given.fill_(1)
            warnings.warn(message, UserWarning, stacklevel=2)
