"""Every masking strategy against random masking: rows of NumPy to a masked batch, one core."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.bench_collate import check, examples, token_rows, tokenizer
from benchmarks.harness import compare, write
from maskft import DataCollatorForLanguageModeling
from maskft.strategy import STRATEGIES, Diffusion, Span, Strategy

CONTENDERS: dict[str, str | Strategy] = {
    **{name: name for name in STRATEGIES},
    "span of tokens": Span(words=False),
    "diffusion": Diffusion(times=(0.05, 0.25)),  # 15% of the tokens, as the others
}


def annotated(rows: list[np.ndarray]) -> list[dict[str, Any]]:
    """Examples with an entity of one to four tokens in every 17, and a weight for each token."""
    generator, made = np.random.default_rng(0), examples(rows, "NumPy")
    for example, row in zip(made, rows, strict=True):
        entity = np.full(row.size, -1)
        for number, begin in enumerate(range(5, row.size - 6, 17)):
            entity[begin : begin + 1 + number % 4] = number
        example["entity_ids"] = entity
        example["keyword_weights"] = generator.random(row.size) ** 3 + 0.01
    return made


def contenders(
    count: int = 64, length: int = 512, rng: str = "stream"
) -> dict[str, Callable[[], Any]]:
    """A call for each strategy, on rows that have the columns it reads and no others."""
    rows, words = token_rows(count, length, ragged=False), tokenizer()
    full, calls = annotated(rows), {}
    for name, strategy in CONTENDERS.items():
        collator = DataCollatorForLanguageModeling(words, strategy=strategy, rng=rng)
        known = ("input_ids", "attention_mask", *collator.required_columns())
        batch = [{k: example[k] for k in known} for example in full]
        calls[name] = lambda collator=collator, batch=batch: collator(batch)
    return calls


def main() -> None:
    torch.set_num_threads(1)
    results, rows = [], token_rows(64, 512, ragged=False)
    tokens = sum(row.size for row in rows)
    for rng in ("stream", "sample"):
        calls = contenders(rng=rng)
        for name, call in calls.items():
            check(name, rows, call())
        timed = compare(calls, repeats=20)
        results += [
            {
                "part": "64x512, rows of NumPy", "what": name, "rng": rng, "tokens": tokens,
                "device": "cpu", **ms, "Mtokens_per_s": tokens / ms["p50"] / 1e3,
                "times_random": ms["p50"] / timed["random"]["p50"],
            }
            for name, ms in timed.items()
        ]  # fmt: skip
    write("strategies_cpu", results)


if __name__ == "__main__":
    main()
