"""DataLoader end to end: a dataset of tokenized rows to masked batches, and the first batch.

Rows of 512 tokens in a ``datasets.Dataset``, 64 to a batch, shuffled, workers 0 to 4.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import datasets
import torch
import transformers
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from benchmarks.bench_collate import check, examples, token_rows, tokenizer
from benchmarks.harness import ROOT, compare, write
from maskft import DataCollatorForLanguageModeling

BATCH, LENGTH, ROWS = 64, 512, 4096
WORKERS = (0, 1, 2, 4)
STEP_TOKENS_PER_S = 1e6  # what the simulated training step consumes

COLLATORS: dict[str, Callable[[Any], Any]] = {
    "maskft": DataCollatorForLanguageModeling,
    "transformers": transformers.DataCollatorForLanguageModeling,
}


def dataset(rows: int = ROWS) -> datasets.Dataset:
    """Tokenized rows in Arrow memory: int32 ids and an int8 attention mask."""
    columns = examples(token_rows(rows, LENGTH, ragged=False), "NumPy")
    features = datasets.Features({
        "input_ids": datasets.List(datasets.Value("int32")),
        "attention_mask": datasets.List(datasets.Value("int8")),
    })  # fmt: skip
    return datasets.Dataset.from_list(columns, features=features)


def loader(rows: datasets.Dataset, how: str, collator: Any, workers: int = 0) -> DataLoader:
    """A shuffling loader; ``how`` is a format of the dataset, or "arrow tables" for whole ones."""
    if how == "arrow tables":
        batches = BatchSampler(RandomSampler(rows), BATCH, drop_last=False)
        return DataLoader(
            rows.with_format("arrow"), batch_size=None, sampler=batches, collate_fn=collator,
            num_workers=workers,
        )  # fmt: skip
    return DataLoader(
        rows.with_format(None if how == "lists" else how), batch_size=BATCH, shuffle=True,
        collate_fn=collator, num_workers=workers,
    )  # fmt: skip


def passes(rows: datasets.Dataset, workers: int) -> dict[str, Callable[[], Any]]:
    """One pass over the rows by name, each checked once."""
    calls: dict[str, Callable[[], Any]] = {}
    for name, how in (
        ("maskft", "lists"), ("maskft", "numpy"), ("maskft", "arrow tables"),
        ("transformers", "lists"), ("transformers", "numpy"),
    ):  # fmt: skip
        loading = loader(rows, how, COLLATORS[name](tokenizer()), workers)
        seen = sum(batch["input_ids"].numel() for batch in loading)
        if seen != len(rows) * LENGTH:
            raise RuntimeError(f"{name}, {how}: {seen} tokens in a pass: not timed")
        calls[f"{name}, {how}"] = lambda loading=loading: sum(1 for _ in loading)
    return calls


def over_workers() -> list[dict[str, Any]]:
    """Tokens a second of a whole pass, with new workers for each, as DataLoader starts them."""
    rows, results = dataset(), []
    whole = examples(token_rows(BATCH, LENGTH, ragged=False), "NumPy")
    for name, make in COLLATORS.items():
        check(name, [row["input_ids"] for row in whole], make(tokenizer())(whole))
    for workers in WORKERS:
        timed = compare(passes(rows, workers), repeats=3, turn=0)
        for name, ms in timed.items():
            results.append({
                "part": "workers", "what": name, "workers": workers, "device": "cpu", **ms,
                "Mtokens_per_s": ROWS * LENGTH / ms["p50"] / 1e3,
            })  # fmt: skip
    return results


def beside_a_step() -> list[dict[str, Any]]:
    """Without a worker, the share of the step's speed that is left when the loader takes turns."""
    rows, results = dataset(), []
    step = BATCH * LENGTH / STEP_TOKENS_PER_S
    for name, how in (("maskft", "lists"), ("maskft", "arrow tables"), ("transformers", "lists")):
        loading = loader(rows, how, COLLATORS[name](tokenizer()))
        begin = time.perf_counter()
        for _ in loading:
            time.sleep(step)
        took = time.perf_counter() - begin
        begin = time.perf_counter()
        for _ in range(len(loading)):
            time.sleep(step)
        alone = time.perf_counter() - begin
        results.append({
            "part": "step", "what": f"{name}, {how}", "workers": 0, "device": "cpu",
            "step_ms": step * 1e3, "wait_ms": (took - alone) / len(loading) * 1e3,
            "speed_left": alone / took,
        })  # fmt: skip
    return results


FIRST_BATCH = """
import sys, time
import torch, transformers
from benchmarks.bench_loader import COLLATORS, BATCH, LENGTH
from benchmarks.bench_collate import examples, token_rows, tokenizer
words, rows = tokenizer(), examples(token_rows(BATCH, LENGTH, ragged=False), "NumPy")
begin = time.perf_counter()
COLLATORS[sys.argv[1]](words)(rows)
print(time.perf_counter() - begin)
"""


class FirstRow(torch.utils.data.Dataset):
    """Rows for a worker, which says nothing of when it began: the parent's clock does."""

    def __init__(self) -> None:
        self.rows = examples(token_rows(BATCH, LENGTH, ragged=False), "NumPy")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.rows[i]


def first_batch() -> list[dict[str, Any]]:
    """Seconds to the first batch: of a call in a fresh process, and of a spawned worker."""
    results = []
    with tempfile.TemporaryDirectory() as empty:
        for what, name, cache in (
            ("maskft, kernels cached", "maskft", None),
            ("maskft, empty cache", "maskft", empty),
            ("transformers", "transformers", None),
        ):
            environment = os.environ | ({"NUMBA_CACHE_DIR": cache} if cache else {})
            seconds = [
                float(
                    subprocess.run(
                        [sys.executable, "-c", FIRST_BATCH, name], cwd=ROOT, env=environment,
                        capture_output=True, text=True, check=True,
                    ).stdout.split()[-1]
                )
                for _ in range(1 if cache else 5)
            ]  # fmt: skip
            results.append({
                "part": "first call of a fresh process, imports done", "what": what,
                "device": "cpu", "seconds": statistics.median(seconds),
            })  # fmt: skip
    rows = FirstRow()
    for name, make in COLLATORS.items():
        seconds = []
        for _ in range(5):
            loading = DataLoader(
                rows, BATCH, collate_fn=make(tokenizer()), num_workers=1,
                multiprocessing_context="spawn",
            )  # fmt: skip
            begin = time.perf_counter()
            next(iter(loading))
            seconds.append(time.perf_counter() - begin)
        results.append({
            "part": "first batch of a spawned worker, imports included", "what": name,
            "device": "cpu", "seconds": statistics.median(seconds),
        })  # fmt: skip
    return results


def main() -> None:
    """Everything; one thread in the main process, as in each worker."""
    torch.set_num_threads(1)
    write("loader_cpu", over_workers() + beside_a_step() + first_batch())


if __name__ == "__main__":
    main()
