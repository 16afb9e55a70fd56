"""Stop training at Ctrl-C or SIGTERM with a checkpoint."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C; what schedulers, containers and kill send


class Interrupted(Exception):
    """Training was interrupted; ``checkpoint`` holds its state."""

    def __init__(self, checkpoint: str, number: int = signal.SIGINT) -> None:
        super().__init__(checkpoint)
        self.checkpoint = checkpoint
        self.status = 128 + number  # as a shell reports it


def outlive_signals(training: Tensor, then: Callable[[int], None] | None) -> Callable[[int], None]:
    """Make a worker_init_fn under which a worker outlives the signals that stop training.

    They may be sent to the whole process group, and the current step needs its workers.

    Args:
        training: in shared memory; not 0 as long as SIGTERM is ignored: at the end it is how the
            main process ends its workers. SIGINT is ignored always.
        then: the worker_init_fn to call.
    """
    return partial(_begin_worker, training, then)


def _begin_worker(training: Tensor, then: Callable[[int], None] | None, worker: int) -> None:
    def end(number: int, _: Any) -> None:
        if not int(training):
            os._exit(0)  # as torch's own handler, or the main process takes it for a crash

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)
    if then is not None:
        then(worker)


class StopOnInterrupt(TrainerCallback):
    """At Ctrl-C or SIGTERM finish the step, save a checkpoint and stop; at a second, stop at once.

    Attributes:
        signal: the number of the signal that arrived; None before.
        training: whether training goes on, in memory that workers share.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.training = torch.zeros((), dtype=torch.int64).share_memory_()

    @contextmanager
    def listening(self) -> Iterator[None]:
        before = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def ask(number: int, _: Any) -> None:
            self.signal = number
            restore()

        for number in SIGNALS:
            signal.signal(number, ask)
        self.training.fill_(1)
        try:
            yield
        finally:
            self.training.fill_(0)
            restore()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.signal is not None:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False
