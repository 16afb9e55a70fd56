"""Guard the speed: ``python -m benchmarks.guard`` fails where a ratio to a peer has collapsed.

Each bound is a small part of what the committed results show, and the best of three tries counts,
so that a busy machine passes and a lost fast path does not.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import bench_collate, bench_denoise, bench_mask
from benchmarks.harness import compare

TRIES = 3


def _mask() -> dict[str, Callable[[], Any]]:
    calls = bench_mask.contenders()[1]
    return {"ours": calls["mask_tokens"], "peer": calls["torch_mask_tokens, special tokens given"]}


def _mask_torch() -> dict[str, Callable[[], Any]]:
    calls = bench_mask.contenders()[1]
    return {"ours": calls["mask_tokens"], "peer": calls["plain torch"]}


def _collate(form: str) -> dict[str, Callable[[], Any]]:
    calls = bench_collate.single_tokens(form, ragged=False)[1]
    return {"ours": calls["maskft"], "peer": calls["transformers"]}


def _words() -> dict[str, Callable[[], Any]]:
    calls = bench_collate.whole_words(64, 512)[1]
    return {"ours": calls["maskft"], "peer": calls["transformers"]}


def _spans() -> dict[str, Callable[[], Any]]:
    calls = bench_denoise.spans()[1]
    return {"ours": calls["corrupt_spans"], "peer": calls["NumPy script"]}


GUARDS: dict[str, tuple[Callable[[], dict[str, Callable[[], Any]]], float]] = {
    "mask_tokens against Transformers' mask function": (_mask, 3.0),
    "mask_tokens against plain torch": (_mask_torch, 1.5),
    "the collator against Transformers', rows of lists": (lambda: _collate("lists"), 6.0),
    "the collator against Transformers', rows of NumPy": (lambda: _collate("NumPy"), 10.0),
    "whole words against Transformers'": (_words, 25.0),
    "corrupt_spans against a NumPy script": (_spans, 10.0),
}


def main() -> int:
    torch.set_num_threads(1)
    failed = 0
    for name, (contenders, least) in GUARDS.items():
        calls, best = contenders(), 0.0
        for _ in range(TRIES):
            timed = compare(calls, repeats=5)
            best = max(best, timed["peer"]["p50"] / timed["ours"]["p50"])
            if best >= least:
                break
        failed += best < least
        print(f"{'ok    ' if best >= least else 'FAILED'} {name}: {best:.1f}x, at least {least}x")
    print(f"{len(GUARDS) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
