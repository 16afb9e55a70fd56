"""Masked inputs: what MaskInputs adds to Transformers' padding collator.

The masks are also timed alone, over a batch that is made already: their share of collation is less
than the noise of the padding.
"""

from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.bench_collate import SPECIAL, Calls, examples, token_rows, tokenizer
from benchmarks.harness import compare, write
from maskft import MaskInputs


def contenders(ragged: bool) -> tuple[list[np.ndarray], Calls]:
    """(rows, contenders) for 64 rows of lists, of at most 512 tokens."""
    rows, words = token_rows(64, 512, ragged), tokenizer()
    batch = [{**example, "labels": i % 2} for i, example in enumerate(examples(rows, "lists"))]
    padding = transformers.DataCollatorWithPadding(words)
    masks = MaskInputs(padding, rate=0.15, rng="sample", seed=1)
    uniform = MaskInputs(padding, rate="uniform", share=0.5, rng="sample", seed=1)
    made = padding(batch)
    alone = MaskInputs(lambda _: made, rate=0.15, tokenizer=words, rng="sample", seed=1)
    return rows, {
        "padding": lambda: padding(batch),
        "masked": lambda: masks(batch),
        "masked at uniform rates, half of the rows": lambda: uniform(batch),
        "masked, the masks alone": lambda: alone(batch),
    }


def check(name: str, rows: list[np.ndarray], batch: Any) -> None:
    """Labels are left alone, and every token is its own or the mask token."""
    ids, count = batch["input_ids"].numpy(), 0
    if batch["labels"].tolist() != [i % 2 for i in range(len(rows))]:
        raise RuntimeError(f"{name} changed labels: not timed")
    for row, seen in zip(rows, ids, strict=True):
        hidden = seen[: row.size] != row
        count += int(hidden.sum())
        if not (seen[: row.size][hidden] == SPECIAL.index("[MASK]")).all():
            raise RuntimeError(f"{name} lost tokens: not timed")
    if (count > 0) != name.startswith("masked"):
        raise RuntimeError(f"{name} masks {count} tokens: not timed")


def main() -> None:
    """Interleaved, on one core."""
    torch.set_num_threads(1)
    results = []
    for ragged in (False, True):
        rows, calls = contenders(ragged)
        for name, call in calls.items():
            check(name, rows, call())
        timed = compare(calls, repeats=25)
        results += [
            {
                "part": f"{'ragged' if ragged else 'even'} rows of lists", "what": name,
                "rows": len(rows), "tokens": sum(row.size for row in rows), "device": "cpu", **ms,
                "times_padding": ms["p50"] / timed["padding"]["p50"],
            }
            for name, ms in timed.items()
        ]  # fmt: skip
    write("inputs_cpu", results)


if __name__ == "__main__":
    main()
