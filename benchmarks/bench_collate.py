"""The collator against Transformers': from rows to a masked batch, whatever holds the rows."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.harness import compare, write
from maskft import DataCollatorForLanguageModeling

VOCABULARY = 30522
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "lists": np.ndarray.tolist,
    "NumPy": lambda row: row,
    "torch": torch.from_numpy,
}
Calls = dict[str, Callable[[], Any]]


def tokenizer() -> PreTrainedTokenizerFast:
    """A WordPiece vocabulary of BERT's size, one piece in five going on with a word."""
    pieces = [f"##{i}" if i % 5 == 0 else f"w{i}" for i in range(VOCABULARY - len(SPECIAL))]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *pieces])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip


def token_rows(count: int, length: int, ragged: bool) -> list[np.ndarray]:
    """Rows as a tokenizer makes them; ragged ones have an eighth of ``length`` to all of it."""
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        n = int(generator.integers(length // 8, length + 1)) if ragged else length
        row = generator.integers(len(SPECIAL), VOCABULARY, n)
        row[0], row[-1] = 2, 3
        rows.append(row)
    return rows


def examples(rows: list[np.ndarray], form: str, words: bool = False) -> list[dict[str, Any]]:
    """One example a row: ids and attention mask, and what stock needs to find whole words."""
    make = FORMS[form]
    made = []
    for row in rows:
        example = {"input_ids": make(row), "attention_mask": make(np.ones_like(row))}
        if words:
            special = np.zeros_like(row)
            special[0] = special[-1] = 1
            ends = np.arange(1, row.size + 1)
            begins = ends - (row % 5 != 0)  # a piece that goes on begins where its word ended
            example["special_tokens_mask"] = make(special)
            example["offset_mapping"] = make(np.stack([begins, ends], axis=1))
        made.append(example)
    return made


def single_tokens(form: str, ragged: bool) -> tuple[list[np.ndarray], Calls]:
    """(rows, contenders) for 64 rows of at most 512 tokens."""
    rows, words = token_rows(64, 512, ragged), tokenizer()
    batch = examples(rows, form)
    ours = DataCollatorForLanguageModeling(words)
    stock = transformers.DataCollatorForLanguageModeling(words)
    return rows, {"maskft": lambda: ours(batch), "transformers": lambda: stock(batch)}


def whole_words(count: int, length: int) -> tuple[list[np.ndarray], Calls]:
    """(rows, contenders) for NumPy rows; stock is given the offsets and special tokens it needs."""
    rows, words = token_rows(count, length, ragged=False), tokenizer()
    batch, with_offsets = examples(rows, "NumPy"), examples(rows, "NumPy", words=True)
    ours = DataCollatorForLanguageModeling(words, strategy="whole_word")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock = transformers.DataCollatorForLanguageModeling(words, whole_word_mask=True)
    return rows, {
        "maskft": lambda: ours(batch),
        "maskft, from offsets": lambda: ours(with_offsets),
        "transformers": lambda: stock([dict(example) for example in with_offsets]),
    }


def check(name: str, rows: list[np.ndarray], batch: Any) -> None:
    """Every token that is not labelled is unchanged, and about 15% are labelled."""
    labels, ids = batch["labels"].numpy(), batch["input_ids"].numpy()
    masked, real = labels != -100, batch["attention_mask"].numpy() != 0
    for row, target, seen, hidden, keep in zip(rows, labels, ids, masked, real, strict=True):
        if keep.sum() != row.size or not np.array_equal(
            np.where(hidden, target, seen)[: row.size], row
        ):
            raise RuntimeError(f"{name} lost tokens: not timed")
    rate = masked.sum() / real.sum()
    if not 0.13 < rate < 0.17:
        raise RuntimeError(f"{name} predicts {rate:.3f} of the tokens: not timed")


def time_part(part: str, rows: list[np.ndarray], calls: Calls, repeats: int) -> list[dict]:
    tokens = sum(row.size for row in rows)
    for name, call in calls.items():
        check(f"{name}, {part}", rows, call())
    timed = compare(calls, repeats=repeats)
    return [
        {
            "part": part, "what": name, "rows": len(rows), "longest": max(map(len, rows)),
            "tokens": tokens, "device": "cpu", **ms, "Mtokens_per_s": tokens / ms["p50"] / 1e3,
            "times_ours": ms["p50"] / timed["maskft"]["p50"],
        }
        for name, ms in timed.items()
    ]  # fmt: skip


def main() -> None:
    """Everything on one core."""
    torch.set_num_threads(1)
    results = []
    for ragged in (False, True):
        for form in FORMS:
            part = f"{'ragged' if ragged else 'even'} rows of {form}"
            results += time_part(part, *single_tokens(form, ragged), repeats=20)
    for count, length, repeats in ((64, 512, 10), (4, 8192, 5)):
        part = f"whole words, {count}x{length}, rows of NumPy"
        results += time_part(part, *whole_words(count, length), repeats=repeats)
    write("collate_cpu", results)


if __name__ == "__main__":
    main()
