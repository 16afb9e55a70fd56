"""Packing: rows into blocks, and blocks into masked batches without padding.

Lengths are lognormal, the way short documents come: around 128 tokens with sigma 0.6, and for the
fill of blocks of 512 also around others with sigma 0.5.
"""

from bisect import bisect_left, insort
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.bench_collate import SPECIAL, VOCABULARY, examples, tokenizer
from benchmarks.harness import compare, write
from maskft import (
    DataCollatorForLanguageModeling,
    DataCollatorWithPacking,
    PackedBatchSampler,
    UnmaskedCollator,
    mask_batch,
)
from maskkernels import pack_rows

BLOCKS = (512, 1024, 2048, 4096, 8192)
ROWS = 100_000
FEW = 20_000  # for plain Python


def lengths(count: int, longest: int, median: float = 128, sigma: float = 0.6) -> np.ndarray:
    drawn = np.exp(np.random.default_rng(0).normal(np.log(median), sigma, count))
    return np.clip(drawn, 8, longest).astype(np.int64)


def plain_python(sizes: list[int], capacity: int) -> list[list[int]]:
    """Best-fit-decreasing as scripts do it: the spaces that are left in a sorted list."""
    blocks: list[list[int]] = []
    spaces: list[tuple[int, int]] = []
    for row in sorted(range(len(sizes)), key=lambda r: -sizes[r]):
        at = bisect_left(spaces, (sizes[row], -1))
        if at == len(spaces):
            space, block = capacity, len(blocks)
            blocks.append([])
        else:
            space, block = spaces.pop(at)
        blocks[block].append(row)
        insort(spaces, (space - sizes[row], block))
    return blocks


def check_blocks(name: str, blocks: list[list[int]], sizes: np.ndarray, capacity: int) -> float:
    """Every row once, no block too full; returns the share of the blocks that is filled."""
    rows = [row for block in blocks for row in block]
    used = [int(sizes[block].sum()) for block in blocks]
    if sorted(rows) != list(range(sizes.size)) or max(used) > capacity:
        raise RuntimeError(f"{name} lost rows or overfilled a block: not timed")
    return sum(used) / (len(blocks) * capacity)


def into_blocks() -> list[dict[str, Any]]:
    """Tokens a second and fill of the packing alone."""
    results = []
    for capacity in BLOCKS:
        many, few = lengths(ROWS, capacity), lengths(FEW, capacity)
        listed = few.tolist()
        calls: dict[str, tuple[np.ndarray, Callable[[], Any]]] = {
            "pack_rows": (many, lambda c=capacity, s=many: pack_rows(s, c)),
            "pack_rows, window=1024": (
                many, lambda c=capacity, s=many: pack_rows(s, c, window=1024)),
            "pack_rows, window=1": (many, lambda c=capacity, s=many: pack_rows(s, c, window=1)),
            "plain Python": (few, lambda c=capacity, s=listed: plain_python(s, c)),
        }  # fmt: skip
        fills = {}
        for name, (sizes, call) in calls.items():
            found = call()
            blocks = found if isinstance(found, list) else found.blocks()
            fills[name] = check_blocks(name, blocks, sizes, capacity)
        timed = compare({name: call for name, (_, call) in calls.items()}, repeats=5)
        for name, ms in timed.items():
            sizes = calls[name][0]
            results.append({
                "part": "rows into blocks", "what": name, "block": capacity, "rows": sizes.size,
                "tokens": int(sizes.sum()), "fill": fills[name], "device": "cpu", **ms,
                "Mtokens_per_s": int(sizes.sum()) / ms["p50"] / 1e3,
            })  # fmt: skip
    return results


def fills() -> list[dict[str, Any]]:
    """How full blocks of 512 are by how many rows are sorted at a time."""
    results = []
    for median in (64, 128, 200):
        sizes = lengths(ROWS, 512, median, 0.5)
        for window in (1, 16, 256, ROWS):
            blocks = pack_rows(sizes, 512, window=window).blocks()
            results.append({
                "part": "fill", "block": 512, "median": median, "sigma": 0.5, "rows": ROWS,
                "window": window, "fill": check_blocks("pack_rows", blocks, sizes, 512),
            })  # fmt: skip
    return results


def contenders(block: int) -> tuple[list[np.ndarray], dict[str, Callable[[], Any]]]:
    """(rows, calls) of one full block of NumPy rows."""
    sizes = lengths(4096, min(block, 512))
    generator = np.random.default_rng(1)
    rows = []
    for i in PackedBatchSampler(sizes, block, seed=1).batches()[0]:
        row = generator.integers(len(SPECIAL), VOCABULARY, sizes[i])
        row[0], row[-1] = 2, 3
        rows.append(row)
    words, batch = tokenizer(), examples(rows, "NumPy")
    ids = [{"input_ids": example["input_ids"]} for example in batch]
    options = {"rng": "sample", "seed": 1}
    varlen = DataCollatorWithPacking(words, attention="varlen", **options)
    diagonal = DataCollatorWithPacking(words, attention="block_diagonal", **options)
    padded = DataCollatorForLanguageModeling(words, **options)
    plain = UnmaskedCollator(padded)
    loaded = plain(batch)
    flattening = transformers.DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    return rows, {
        "packed, varlen": lambda: varlen(batch),
        "packed, block_diagonal": lambda: diagonal(batch),
        "padded": lambda: padded(batch),
        "padded only, int32": lambda: plain(batch),
        "mask_batch": lambda: mask_batch(loaded, padded),
        "transformers, flattened, not masked": lambda: flattening(ids),
        "transformers, padded": lambda: transformers.DataCollatorForLanguageModeling(words)(batch),
    }


def check(rows: list[np.ndarray], calls: dict[str, Callable[[], Any]]) -> None:
    """The packed batch holds the masks of the padded one, and every token in its place."""
    packed, padded = calls["packed, varlen"](), calls["padded"]()
    real = padded["attention_mask"] != 0
    same = all(
        torch.equal(packed[name][0], padded[name][real]) for name in ("input_ids", "labels")
    ) and torch.equal(calls["mask_batch"]()["labels"], padded["labels"])
    whole = torch.where(packed["labels"] == -100, packed["input_ids"], packed["labels"])[0]
    if not same or not np.array_equal(whole.numpy(), np.concatenate(rows)):
        raise RuntimeError("packed batches differ from padded ones: not timed")


def into_batches() -> list[dict[str, Any]]:
    """One block of rows to a masked batch."""
    results = []
    for block in (2048, 8192):
        rows, calls = contenders(block)
        check(rows, calls)
        tokens = sum(row.size for row in rows)
        for name, ms in compare(calls, repeats=10).items():
            results.append({
                "part": "a block to a batch", "what": name, "block": block, "rows": len(rows),
                "longest": max(map(len, rows)), "tokens": tokens, "device": "cpu", **ms,
                "Mtokens_per_s": tokens / ms["p50"] / 1e3,
            })  # fmt: skip
    return results


def main() -> None:
    """Everything on one core."""
    torch.set_num_threads(1)
    write("pack_cpu", into_blocks() + fills() + into_batches())


if __name__ == "__main__":
    main()
