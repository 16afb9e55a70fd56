"""Batches of masked diffusion by every backend, under TRITON_INTERPRET=1: the same bits."""

import itertools
import os
import sys

import torch

from maskft import DataCollatorForLanguageModeling, DataCollatorWithPacking
from maskft.strategy import Diffusion
from maskkernels.backend import Op
from tests.support.diffusion import NORMALIZE, SEED, example_rows

BACKENDS = ("reference", "numba", "triton")
COLLATORS = (
    (DataCollatorForLanguageModeling, {}),
    (DataCollatorWithPacking, {"attention": "varlen"}),
)
PLAIN = Op.run
used = set()


def run_by(backend):
    """What an op runs on ``backend``, also where another is at home; padding on its own one."""

    def run(self, name, device, *args):
        if self.room not in ("mask", "units", "rng"):
            return PLAIN(self, name, device, *args)
        used.add((backend, self.name))
        if backend == "reference":
            return self.reference(*args)
        return getattr(self.module(backend), self.name)(*args)

    return run


def main() -> int:
    if os.environ.get("TRITON_INTERPRET") != "1":
        print("TRITON_INTERPRET=1 is not set: nothing was interpreted")
        return 1
    tokenizer, rows = example_rows()
    compared = 0
    options = itertools.product(COLLATORS, NORMALIZE, (None, "answer"), ("bernoulli", "budget"))
    for (kind, more), normalize, mask_only, selection in options:
        batches = []
        for backend in BACKENDS:
            collator = kind(
                tokenizer, strategy=Diffusion(normalize=normalize), rng="sample", seed=SEED,
                mask_only=mask_only, selection=selection, **more,
            )  # fmt: skip
            collator.set_epoch(7)
            given = [{k: v for k, v in row.items() if k != "answer" or mask_only} for row in rows]
            Op.run = run_by(backend)
            batches.append(collator(given))
            Op.run = PLAIN
        for name, value in batches[0].items():
            for backend, batch in zip(BACKENDS[1:], batches[1:], strict=True):
                same = value == batch[name]
                if not (same.all() if isinstance(value, torch.Tensor) else same):
                    print(f"FAILED {kind.__name__} {normalize} {mask_only} {backend}: {name}")
                    return 1
                compared += 1
    ops = {"random_words", "word_units", "mask_tokens"}
    missing = {(backend, op) for backend in BACKENDS for op in ops} - used
    if missing:
        print(f"FAILED: never ran {sorted(missing)}")
        return 1
    print(f"{compared} comparisons passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
