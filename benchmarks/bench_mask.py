"""mask_tokens against Transformers' mask function and a plain torch rewrite of it, CPU or GPU."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DataCollatorForLanguageModeling

from benchmarks.harness import compare, write
from maskkernels import MaskingPolicy, mask_tokens

VOCABULARY, SPECIAL, MASK_ID = 30522, 1000, 103


class _Tokenizer:
    """What Transformers' mask function asks of a tokenizer, with no per-row Python in it."""

    mask_token = "[MASK]"
    mask_token_id = MASK_ID

    def __len__(self) -> int:
        return VOCABULARY

    def convert_tokens_to_ids(self, token: str) -> int:
        return MASK_ID


def plain_torch(ids: Tensor, maskable: Tensor) -> tuple[Tensor, Tensor]:
    """The 80/10/10 rule in as few torch calls as it takes: one uniform draw decides everything."""
    u = torch.rand(ids.shape, device=ids.device)
    u = torch.where(maskable[ids], u, 1.0)
    labels = torch.where(u < 0.15, ids, -100)
    out = torch.where(u < 0.12, MASK_ID, ids)
    random = torch.randint(VOCABULARY, ids.shape, device=ids.device)
    return torch.where((u >= 0.12) & (u < 0.135), random, out), labels


def contenders(shape: tuple[int, int], device: str) -> dict[str, Callable[[], Any]]:
    """What is timed, by name, on one batch of random ids."""
    policy = MaskingPolicy(MASK_ID, VOCABULARY)
    maskable = torch.ones(VOCABULARY, dtype=torch.bool, device=device)
    maskable[:SPECIAL] = False
    ids = torch.randint(SPECIAL, VOCABULARY, shape, device=device)
    sample_ids = torch.arange(shape[0], device=device)
    special = torch.zeros_like(ids)
    out = [torch.empty_like(ids) for _ in range(2)]
    calls: dict[str, Callable[[], Any]] = {
        "mask_tokens": lambda: mask_tokens(ids, policy, seed=1, maskable=maskable),
        "mask_tokens, sample ids given": lambda: mask_tokens(
            ids, policy, seed=1, maskable=maskable, sample_ids=sample_ids
        ),
        "plain torch": lambda: plain_torch(ids, maskable),
        "copy of the same bytes": lambda: [o.copy_(ids) for o in out],
    }
    if device == "cpu":  # stock draws on the CPU whatever the device
        stock = DataCollatorForLanguageModeling.torch_mask_tokens
        collator = object.__new__(DataCollatorForLanguageModeling)
        collator.tokenizer, collator.generator = _Tokenizer(), None
        collator.whole_word_mask, collator.mlm_probability = False, 0.15
        collator.mask_replace_prob, collator.random_replace_prob = 0.8, 0.1
        calls["transformers, special_tokens_mask given"] = lambda: stock(
            collator, ids.clone(), special
        )
    return calls


def main(device: str = "cpu") -> None:
    """Time 64x512 and, on a GPU, 4096x512 tokens, after a look at the rate each one masks."""
    torch.set_num_threads(1)
    rows = []
    for shape in [(64, 512)] if device == "cpu" else [(64, 512), (4096, 512)]:
        calls = contenders(shape, device)
        for name, call in calls.items():
            if name.startswith("copy"):
                continue
            rate = (call()[1] != -100).double().mean().item()
            if not abs(rate - 0.15) < 0.02:
                raise RuntimeError(f"{name} masked {rate:.3f} of the tokens: not timed")
        sync = torch.cuda.synchronize if device != "cpu" else (lambda: None)
        timed = compare(calls, synchronize=sync)
        for name, ms in timed.items():
            rows.append({
                "what": name, "shape": "x".join(map(str, shape)), "dtype": "int64",
                "device": device, **ms,
                "Mtokens_per_s": shape[0] * shape[1] / ms["p50"] / 1e3,
                "times_ours": ms["p50"] / timed["mask_tokens"]["p50"],
            })  # fmt: skip
    write(f"mask_{device}", rows)


if __name__ == "__main__":
    main()
