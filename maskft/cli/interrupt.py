"""Stop training at Ctrl-C with a checkpoint."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from transformers import Trainer, TrainerCallback


class Interrupted(Exception):
    """Training was interrupted; ``checkpoint`` holds its state."""

    def __init__(self, checkpoint: str) -> None:
        super().__init__(checkpoint)
        self.checkpoint = checkpoint


class SteadyTrainer(Trainer):
    """Keep the loader workers alive at Ctrl-C: the current step needs them."""

    def get_train_dataloader(self) -> Any:
        loader = super().get_train_dataloader()
        base = getattr(loader, "base_dataloader", loader)  # what accelerate wraps
        base.worker_init_fn = partial(_ignore_interrupts, base.worker_init_fn)
        return loader


def _ignore_interrupts(then: Any, worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if then is not None:
        then(worker)


class StopOnInterrupt(TrainerCallback):
    """At Ctrl-C finish the step, save a checkpoint and stop; at a second one stop at once."""

    def __init__(self) -> None:
        self.interrupted = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        before = signal.getsignal(signal.SIGINT)

        def ask(*_: Any) -> None:
            self.interrupted = True
            signal.signal(signal.SIGINT, before)

        signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.interrupted:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False
