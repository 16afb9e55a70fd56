"""mask_tokens against Transformers' mask function, rewrites of it, and a copy of the same bytes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DataCollatorForLanguageModeling

from benchmarks.harness import Results, captured, compare, peak_mib, write
from benchmarks.peers import (
    MASK_ID,
    SPECIAL,
    VOCABULARY,
    SparseNumpy,
    check_masks,
    cpu_peers,
    maskable_table,
    plain_torch,
)
from maskkernels import MaskingPolicy, mask_tokens

POLICY = MaskingPolicy(MASK_ID, VOCABULARY)
SIZES = tuple(1 << n for n in range(10, 27, 2))


class _Tokenizer:
    """What Transformers' mask function asks of a tokenizer."""

    mask_token = "[MASK]"
    mask_token_id = MASK_ID
    special = frozenset(range(SPECIAL))

    def __len__(self) -> int:
        return VOCABULARY

    def convert_tokens_to_ids(self, token: str) -> int:
        return MASK_ID

    def get_special_tokens_mask(self, ids: list[int], already_has_special_tokens: bool) -> list:
        return [1 if token in self.special else 0 for token in ids]


def stock_mask(ids: Tensor, special_tokens_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Transformers' torch_mask_tokens at its defaults; it works in place, so it gets a copy."""
    collator = object.__new__(DataCollatorForLanguageModeling)
    collator.tokenizer, collator.generator = _Tokenizer(), None
    collator.whole_word_mask, collator.mlm_probability = False, 0.15
    collator.mask_replace_prob, collator.random_replace_prob = 0.8, 0.1
    mask = DataCollatorForLanguageModeling.torch_mask_tokens
    return mask(collator, ids.clone(), special_tokens_mask)


def contenders(
    shape: tuple[int, int] = (64, 512), device: str = "cpu"
) -> tuple[Tensor, dict[str, Callable[[], Any]]]:
    """(ids, what is timed by name)."""
    maskable = maskable_table().to(device)
    ids = torch.randint(SPECIAL, VOCABULARY, shape, device=device)
    sample_ids = torch.arange(shape[0], device=device)
    out = [torch.empty_like(ids) for _ in range(2)]
    calls: dict[str, Callable[[], Any]] = {
        "mask_tokens": lambda: mask_tokens(
            ids, POLICY, seed=1, maskable=maskable, sample_ids=sample_ids
        )[:2],
        "mask_tokens, hashing the rows": lambda: mask_tokens(
            ids, POLICY, seed=1, maskable=maskable
        )[:2],
        "copy of the same bytes": lambda: [o.copy_(ids) for o in out],
        "copy of the same bytes into new memory": lambda: [ids.clone() for _ in out],
    }
    if device == "cpu":  # stock and the peers draw on the CPU
        special = torch.zeros_like(ids)
        calls |= cpu_peers(ids)
        calls["torch_mask_tokens, special tokens given"] = lambda: stock_mask(ids, special)
        calls["torch_mask_tokens, as Trainer runs it"] = lambda: stock_mask(ids, None)
    else:
        calls["plain torch"] = lambda: plain_torch(ids, maskable)
    return ids, calls


def check(ids: Tensor, calls: dict[str, Callable[[], Any]]) -> None:
    """Raise where a contender does not mask as it should."""
    for name, call in calls.items():
        if not name.startswith("copy"):
            check_masks(name, ids, *call())


def against_peers(
    shape: tuple[int, int], device: str, *, graphs: bool = False
) -> list[dict[str, Any]]:
    """Time the contenders on one shape, checked first; ``graphs``: captured, on a GPU."""
    ids, calls = contenders(shape, device)
    check(ids, calls)
    how = {} if device == "cpu" else {"how": "captured" if graphs else "launched"}
    if graphs:
        calls = {name: captured(call) for name, call in calls.items()}
    sync = torch.cuda.synchronize if device != "cpu" else (lambda: None)
    timed = compare(calls, repeats=30, synchronize=sync)
    return [
        {
            "part": "peers", "what": name, "shape": "x".join(map(str, shape)), "dtype": "int64",
            "device": device, **how, **ms, "Mtokens_per_s": ids.numel() / ms["p50"] / 1e3,
            "times_ours": ms["p50"] / timed["mask_tokens"]["p50"],
        }
        for name, ms in timed.items()
    ]  # fmt: skip


def over_sizes() -> list[dict[str, Any]]:
    """Nanoseconds for each token from 2^10 to 2^26 tokens, in rows of at most 512."""
    rows = []
    for n in SIZES:
        ids, calls = contenders((n // 512, 512))
        numpy = SparseNumpy(maskable_table())
        calls = {
            "mask_tokens": calls["mask_tokens"],
            "sparse NumPy": lambda ids=ids, numpy=numpy: numpy(ids),
            "plain torch": calls["plain torch"],
            "copy of the same bytes": calls["copy of the same bytes"],
            "copy of the same bytes into new memory": calls[
                "copy of the same bytes into new memory"
            ],
        }
        for name, ms in compare(calls, repeats=20 if n < 1 << 22 else 5).items():
            rows.append({
                "part": "sizes", "what": name, "tokens": n, "device": "cpu", **ms,
                "ns_per_token": ms["p50"] * 1e6 / n,
            })  # fmt: skip
    return rows


def over_threads() -> list[dict[str, Any]]:
    """One and two threads on half a million tokens, interleaved; page faults taken out of both."""
    bytearray(30 << 20)  # freed at once: malloc then keeps up to twice as much for later results
    ids, calls = contenders((1024, 512))

    def with_threads(n: int) -> Callable[[], Any]:
        def call() -> Any:
            torch.set_num_threads(n)
            return calls["mask_tokens"]()

        return call

    threads = {n: with_threads(n) for n in (1, 2)}
    if not all(torch.equal(a, b) for a, b in zip(threads[1](), threads[2](), strict=True)):
        raise RuntimeError("two threads mask otherwise than one: not timed")
    timed = compare({str(n): call for n, call in threads.items()}, repeats=30)
    torch.set_num_threads(1)
    return [
        {
            "part": "threads", "what": "mask_tokens", "threads": int(n), "shape": "1024x512",
            "device": "cpu", **ms, "Mtokens_per_s": ids.numel() / ms["p50"] / 1e3,
        }
        for n, ms in timed.items()
    ]  # fmt: skip


def kinds() -> list[dict[str, Any]]:
    """Every way to select, against single tokens."""
    maskable = maskable_table()
    ids = torch.randint(SPECIAL, VOCABULARY, (64, 512))
    sample_ids = torch.arange(64)
    units = (torch.arange(512) // 2).expand(64, 512).contiguous()
    budget = MaskingPolicy(MASK_ID, VOCABULARY, selection="budget")
    rates = torch.full(ids.shape, 0.15, dtype=torch.float64)

    def masked(policy: MaskingPolicy, **beside: Any) -> Callable[[], Any]:
        return lambda: mask_tokens(
            ids, policy, seed=1, maskable=maskable, sample_ids=sample_ids, **beside
        )

    calls = {
        "single tokens": masked(POLICY),
        "single tokens, positions too": masked(POLICY, capacity=8192),
        "single tokens, a rate for each": masked(POLICY, rates=rates),
        "units": masked(POLICY, units=units),
        "exact budget": masked(budget),
        "exact budget of units": masked(budget, units=units),
        "exact budget, a rate for each": masked(budget, rates=rates),
    }
    timed = compare(calls, repeats=30)
    return [
        {
            "part": "kinds", "what": name, "shape": "64x512", "device": "cpu", **ms,
            "times_single": ms["p50"] / timed["single tokens"]["p50"],
        }
        for name, ms in timed.items()
    ]  # fmt: skip


def memory() -> list[dict[str, Any]]:
    """Peak memory on 8192x512 tokens (32 MiB of ids), results included."""
    names = [
        "mask_tokens",
        "sparse NumPy",
        "plain torch",
        "torch_mask_tokens, special tokens given",
    ]
    return [
        {
            "part": "memory", "what": name, "shape": "8192x512", "device": "cpu",
            "peak_MiB": peak_mib("benchmarks.bench_mask", "large_calls", name),
        }
        for name in names
    ]  # fmt: skip


def large_calls() -> dict[str, Callable[[], Any]]:
    """The contenders of ``memory``, by name."""
    return contenders((8192, 512))[1]


def on_gpu(results: Results) -> None:
    """Time the peers on a GPU up to 2^24 tokens, launched from Python and as captured graphs."""
    for shape in ((64, 512), (4096, 512), (32768, 512)):
        for graphs in (False, True):
            results.add(against_peers(shape, "cuda", graphs=graphs))


def main() -> None:
    """Everything on one core of the CPU."""
    torch.set_num_threads(1)
    rows = against_peers((64, 512), "cpu")
    write("mask_cpu", rows + over_sizes() + over_threads() + kinds() + memory())


if __name__ == "__main__":
    main()
