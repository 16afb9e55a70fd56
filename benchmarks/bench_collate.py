"""The collator against Transformers': lists to masked batch, single tokens and whole words."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.harness import compare, write
from maskft import DataCollatorForLanguageModeling

VOCABULARY, ROWS = 30522, 64
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


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


def contenders(length: int) -> dict[str, Callable[[], Any]]:
    """What is timed, by name, on one batch of equally long rows of lists."""
    words = tokenizer()
    ids = torch.randint(len(SPECIAL), VOCABULARY, (ROWS, length))
    ids[:, 0], ids[:, -1] = 2, 3
    rows = [{"input_ids": row, "attention_mask": [1] * length} for row in ids.tolist()]
    offsets = [(i, i + 1) for i in range(length)]
    special = [1] + [0] * (length - 2) + [1]
    whole = [{**row, "offset_mapping": offsets, "special_tokens_mask": special} for row in rows]
    stock = transformers.DataCollatorForLanguageModeling
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock_words = stock(words, whole_word_mask=True)
    ours = DataCollatorForLanguageModeling(words)
    ours_words = DataCollatorForLanguageModeling(words, strategy="whole_word")
    return {
        "maskft": lambda: ours(rows),
        "transformers": lambda: stock(words)(rows),
        "maskft, whole_word": lambda: ours_words(rows),
        "transformers, whole_word_mask, offsets given": lambda: stock_words(whole),
    }


def main() -> None:
    """Time 64x512 on one core, after a look at what each one masks."""
    torch.set_num_threads(1)
    calls = contenders(512)
    for name, call in calls.items():
        batch = call()
        rate = (batch["labels"] != -100).double().mean().item()
        if not 0.02 < rate < 0.25:
            raise RuntimeError(f"{name} masked {rate:.3f} of the tokens: not timed")
    timed = compare(calls, repeats=15)
    rows = [
        {
            "what": name, "shape": f"{ROWS}x512", "from": "lists", "device": "cpu", **ms,
            "Mtokens_per_s": ROWS * 512 / ms["p50"] / 1e3,
        }
        for name, ms in timed.items()
    ]  # fmt: skip
    write("collate_cpu", rows)


if __name__ == "__main__":
    main()
