"""Report how training goes."""

import time
from typing import Any

from transformers import TrainerCallback

from maskft.cli.messages import say


class Progress(TrainerCallback):
    """Print a line at every log: step, epoch, loss, learning rate, tokens/s, time left."""

    def __init__(self) -> None:
        self.tokens_per_second = 0.0
        self._began = self._last = 0.0
        self._first_step = self._first_tokens = self._tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = self._last = time.perf_counter()
        self._first_step, self._first_tokens = state.global_step, state.num_input_tokens_seen
        self._tokens = self._first_tokens

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        now = time.perf_counter()
        rate = (state.num_input_tokens_seen - self._tokens) / max(now - self._last, 1e-9)
        whole = (now - self._began) / max(state.global_step - self._first_step, 1)
        left = (state.max_steps - state.global_step) * whole
        say(
            f"step {state.global_step}/{state.max_steps}  epoch {state.epoch:.2f}  "
            f"loss {float(logs['loss']):.4f}  lr {float(logs['learning_rate']):.2e}  "
            f"{rate:,.0f} tokens/s  {int(left // 60)}:{int(left % 60):02d} left"
        )
        self._tokens, self._last = state.num_input_tokens_seen, now

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        seconds = time.perf_counter() - self._began
        tokens = state.num_input_tokens_seen - self._first_tokens
        self.tokens_per_second = tokens / max(seconds, 1e-9)
