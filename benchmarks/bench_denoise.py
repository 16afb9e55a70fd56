"""Span corruption against the scripts in use today, re-expressed from T5's published recipe.

The NumPy script follows Transformers' T5 example (run_t5_mlm_flax.py): one noise mask a row, by
shuffling where segments begin, with ``np.pad`` and ``np.unique`` as there, then a cut of the whole
batch, which needs rows of one length; "row by row" cuts each on its own, as scripts for ragged rows
do. "NumPy, tightened" draws the same masks as cheaply as NumPy can. The Python script goes token by
token. "Python, by slices" is what a careful hand would write instead: cuts by ``random.sample``,
rows put together from slices.
"""

import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.bench_collate import FORMS, tokenizer
from benchmarks.harness import compare, write
from maskft import DataCollatorForSpanCorruption
from maskkernels import Denoiser, SpanCorruption, TextInfilling, corrupt_spans, infill_text

VOCABULARY, SENTINELS, EOS = 32100, 100, 1
DENSITY, MEAN = 0.15, 3.0
COUNT, LENGTH = 64, 512
Calls = dict[str, Callable[[], Any]]


def token_rows() -> np.ndarray:
    rows = np.random.default_rng(0).integers(5, VOCABULARY - SENTINELS, (COUNT, LENGTH))
    rows[:, -1] = EOS
    return rows


def counts(length: int) -> tuple[int, int]:
    """(tokens of noise, spans)."""
    noise = min(max(round(length * DENSITY), 1), length - 1)
    return noise, max(round(noise / MEAN), 1)


def script_lengths(total: int, parts: int) -> np.ndarray:
    begins = np.arange(total - 1) < parts - 1
    np.random.shuffle(begins)
    return np.unique(np.cumsum(np.pad(begins, [[1, 0]])), return_counts=True)[1]


def tight_lengths(total: int, parts: int) -> np.ndarray:
    begins = np.zeros(total - 1, np.int64)
    begins[: parts - 1] = 1
    np.random.shuffle(begins)
    return np.bincount(np.cumsum(np.concatenate([[0], begins])), minlength=parts)


def numpy_mask(length: int, lengths: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """Bool [length], True at noise."""
    noise, spans = counts(length)
    kept, hidden = lengths(length - noise, spans), lengths(noise, spans)
    ends = np.cumsum(np.stack([kept, hidden], axis=1).reshape(-1))
    turns = np.zeros(length, np.int64)
    turns[ends[:-1]] = 1
    return np.cumsum(turns) % 2 == 1


def numpy_cut(ids: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Rows with each run of hidden tokens replaced by the next sentinel, and the end added."""
    before = np.concatenate([np.zeros((len(ids), 1), bool), hidden[:, :-1]], axis=1)
    first = hidden & ~before
    marked = np.where(first, VOCABULARY - np.cumsum(first, axis=1), ids)
    rows = marked[~hidden | first].reshape(len(ids), -1)
    return np.concatenate([rows, np.full((len(ids), 1), EOS)], axis=1)


def numpy_script(
    rows: np.ndarray, lengths: Callable[[int, int], np.ndarray] = script_lengths
) -> tuple[np.ndarray, np.ndarray]:
    body = rows[:, :-1]
    hidden = np.stack([numpy_mask(body.shape[1], lengths) for _ in body])
    return numpy_cut(body, hidden), numpy_cut(body, ~hidden)


def numpy_tightened(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return numpy_script(rows, tight_lengths)


def numpy_row_by_row(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cut = [numpy_script(row[None]) for row in rows]
    return np.concatenate([seen for seen, _ in cut]), np.concatenate([said for _, said in cut])


def python_lengths(total: int, parts: int) -> list[int]:
    begins = [1] * (parts - 1) + [0] * (total - parts)
    random.shuffle(begins)
    lengths = [1]
    for begin in begins:
        if begin:
            lengths.append(1)
        else:
            lengths[-1] += 1
    return lengths


def python_script(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = [], []
    for row in rows:
        noise, spans = counts(len(row) - 1)
        hidden = []
        for kept, taken in zip(
            python_lengths(len(row) - 1 - noise, spans), python_lengths(noise, spans), strict=True
        ):
            hidden += [False] * kept + [True] * taken
        seen, said, sentinel, before = [], [], VOCABULARY, False
        for token, hide in zip(row, hidden, strict=False):
            if hide and not before:
                sentinel -= 1
                seen.append(sentinel)
                said.append(sentinel)
            if hide:
                said.append(token)
            else:
                seen.append(token)
            before = hide
        inputs.append([*seen, EOS])
        targets.append([*said, EOS])
    return torch.tensor(inputs), torch.tensor(targets)


def sliced_script(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = [], []
    for row in rows:
        length = len(row) - 1
        noise, spans = counts(length)
        kept = [*sorted(random.sample(range(1, length - noise), spans - 1)), length - noise]
        taken = [*sorted(random.sample(range(1, noise), spans - 1)), noise]
        seen, said, here, hidden = [], [], 0, 0
        for i in range(spans):
            begin, end = kept[i] + hidden, kept[i] + taken[i]
            sentinel = VOCABULARY - 1 - i
            seen += row[here:begin]
            seen.append(sentinel)
            said.append(sentinel)
            said += row[begin:end]
            here, hidden = end, taken[i]
        inputs.append([*seen, EOS])
        targets.append([*said, EOS])
    return torch.tensor(inputs), torch.tensor(targets)


def spans() -> tuple[np.ndarray, Calls]:
    """(rows, contenders) that cut a batch which is an array, or lists, as each likes best."""
    rows = token_rows()
    lists, ids = rows.tolist(), torch.from_numpy(rows)
    corruption = SpanCorruption(
        range(VOCABULARY - 1, VOCABULARY - 1 - SENTINELS, -1), (Denoiser(DENSITY, MEAN),),
        eos_token_id=EOS, final_sentinel=False,
    )  # fmt: skip

    seeds = itertools.count()  # fresh spans at every call, as the scripts draw them

    def ours() -> tuple[torch.Tensor, torch.Tensor]:
        found = corrupt_spans(ids, corruption, seed=next(seeds))
        return found.input_ids.view(COUNT, -1), found.target_ids.view(COUNT, -1)

    return rows, {
        "corrupt_spans": ours,
        "NumPy script": lambda: numpy_script(rows),
        "NumPy script, row by row": lambda: numpy_row_by_row(rows),
        "NumPy, tightened": lambda: numpy_tightened(rows),
        "Python script": lambda: python_script(lists),
        "Python, by slices": lambda: sliced_script(lists),
    }


def collators(form: str) -> tuple[np.ndarray, Calls]:
    """(rows, contenders) that make a batch of examples."""
    rows = token_rows()
    make = FORMS[form]
    words = tokenizer()
    words.add_special_tokens({"eos_token": "</s>"})
    ours = DataCollatorForSpanCorruption(
        words, DENSITY, MEAN, final_sentinel=False,
        sentinel_ids=range(VOCABULARY - 1, VOCABULARY - 1 - SENTINELS, -1),
    )  # fmt: skip
    rows[:, -1] = words.eos_token_id
    examples = [{"input_ids": make(row)} for row in rows]

    def script(cut: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
        inputs, labels = cut(np.array([example["input_ids"] for example in examples]))
        return {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}

    return rows, {
        "maskft": lambda: ours(examples),
        "NumPy script": lambda: script(numpy_script),
        "NumPy, tightened": lambda: script(numpy_tightened),
    }


def infilling() -> Calls:
    """BART's corruption, for which no script is timed."""
    ids = torch.from_numpy(token_rows())
    options = {
        "infill_text": TextInfilling(4, edge_token_ids=(EOS,)),
        "infill_text, sentences shuffled": TextInfilling(
            4, permute_sentences=True, sentence_end_ids=range(5, 1605), edge_token_ids=(EOS,)
        ),
    }
    seeds = itertools.count()
    return {name: lambda o=o: infill_text(ids, o, seed=next(seeds)) for name, o in options.items()}


def check(name: str, rows: np.ndarray, inputs: Any, targets: Any) -> None:
    """Targets put back into the inputs give the rows, with the requested share of noise."""
    noise, spans = counts(rows.shape[1] - 1)
    if inputs.shape[1] != rows.shape[1] - noise + spans or targets.shape[1] != noise + spans + 1:
        raise RuntimeError(f"{name} has other lengths than T5: not timed")
    lowest = VOCABULARY - SENTINELS
    for row, seen, said in zip(rows.tolist(), inputs.tolist(), targets.tolist(), strict=True):
        hidden: dict[int, list[int]] = {}
        for token in said[:-1]:
            if token >= lowest:
                last = hidden.setdefault(token, [])
            else:
                last.append(token)
        whole = [t for token in seen[:-1] for t in hidden.get(token, [token])]
        if whole != row[:-1] or list(hidden) != [VOCABULARY - 1 - i for i in range(spans)]:
            raise RuntimeError(f"{name} lost tokens: not timed")


def time_part(part: str, ours: str, calls: Calls, repeats: int) -> list[dict[str, Any]]:
    timed = compare(calls, repeats=repeats)
    return [
        {
            "part": part, "what": name, "rows": COUNT, "length": LENGTH, "device": "cpu", **ms,
            "Mtokens_per_s": COUNT * LENGTH / ms["p50"] / 1e3,
            "times_ours": ms["p50"] / timed[ours]["p50"],
        }
        for name, ms in timed.items()
    ]  # fmt: skip


def main() -> None:
    """Everything on one core."""
    torch.set_num_threads(1)
    rows, calls = spans()
    for name, call in calls.items():
        check(name, rows, *call())
    results = time_part("op, spans", "corrupt_spans", calls, repeats=10)
    for form in FORMS:
        rows, calls = collators(form)
        for name, call in calls.items():
            batch = call()
            check(name, rows, batch["input_ids"], batch["labels"])
        results += time_part(f"collator, rows of {form}", "maskft", calls, repeats=10)
    results += time_part("op, text infilling", "infill_text", infilling(), repeats=10)
    write("denoise_cpu", results)


if __name__ == "__main__":
    main()
