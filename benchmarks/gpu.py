"""Prove and measure the GPU half: ``python -m benchmarks.gpu`` on a machine with a GPU.

Runs the GPU tests, the same comparisons under compute-sanitizer where it is installed, and the GPU
benchmarks; writes JSON under benchmarks/results/. Stops at the first red test: a wrong kernel is
not timed.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks import bench_loss_gpu, bench_mask
from benchmarks.harness import compare, write
from benchmarks.peers import MASK_ID, SPECIAL, VOCABULARY
from maskkernels import (
    MaskingPolicy,
    SpanCorruption,
    TextInfilling,
    corrupt_spans,
    corrupted_lengths,
    geometric_lengths,
    infill_text,
    mask_tokens,
    pad_corrupted,
    rates_from_weights,
    span_units,
    word_units,
)

GPU_TESTS = (
    "tests/gpu/test_mask_gpu.py",
    "tests/gpu/test_denoise_gpu.py",
    "tests/gpu/test_loss_gpu.py",
    "tests/gpu/test_static_gpu.py",
)


def layouts(rows: int, length: int, device: str) -> dict[str, tuple[float, Callable[[], Any]]]:
    """{name: (bytes a token that the kernels must move, call)}: every layout and selection.

    int64 ids come in, ids and labels go out: 24 bytes. 8 more where ids are hashed or units read
    or labels searched for positions, 24 for the keys of a budget (written, read for the limits
    and for the masks), 1 for a boolean attention mask in each kernel that reads all of it.
    """
    column = torch.arange(length, device=device)
    ids = torch.randint(SPECIAL, VOCABULARY, (rows, length), device=device)
    start = torch.randint(0, length // 2, (rows, 1), device=device)
    maskable = torch.ones(VOCABULARY, dtype=torch.bool, device=device)
    maskable[:SPECIAL] = False
    names = torch.arange(rows, device=device)
    packed = torch.cat([names.new_zeros(1), (length - start.view(-1)).cumsum(0)])
    flat = ids.view(-1)[: int(packed[-1])].contiguous()
    units = (column // 3).expand(rows, length).contiguous()
    plain = MaskingPolicy(MASK_ID, VOCABULARY)
    budget = MaskingPolicy(MASK_ID, VOCABULARY, selection="budget")
    room = rows * length // 4
    given = {"seed": 1, "maskable": maskable}
    named = given | {"sample_ids": names}
    left, right = column >= start, column < length - start
    out = [torch.empty_like(ids) for _ in range(2)]
    return {
        "full rows": (24, lambda: mask_tokens(ids, plain, **named)),
        "full rows, hashed": (32, lambda: mask_tokens(ids, plain, **given)),
        "right padding": (25, lambda: mask_tokens(ids, plain, attention_mask=right, **named)),
        "left padding": (26, lambda: mask_tokens(ids, plain, attention_mask=left, **named)),
        "packed": (
            24 * flat.numel() / ids.numel(),
            lambda: mask_tokens(flat, plain, cu_seqlens=packed, **named),
        ),
        "positions": (32, lambda: mask_tokens(ids, plain, capacity=room, **named)),
        "units": (32, lambda: mask_tokens(ids, plain, units=units, **named)),
        "budget": (48, lambda: mask_tokens(ids, budget, **named)),
        "the ids copied twice": (32, lambda: [o.copy_(ids) for o in out]),
    }


def denoisers(rows: int, length: int, device: str) -> dict[str, tuple[float, Callable[[], Any]]]:
    """{name: (bytes a token, call)}: denoising to packed rows and to batches of one shape.

    int64 ids are read twice, for their hash and to be copied; inputs and targets go out, and once
    more with their padding and an attention mask. Sentences have 20 tokens and are copied once.
    """
    ids = torch.randint(SPECIAL, SPECIAL + 100, (rows, length), device=device)
    ends = range(SPECIAL, SPECIAL + 5)
    corruption = SpanCorruption(range(VOCABULARY - 1, VOCABULARY - 101, -1))
    infilling = TextInfilling(MASK_ID)
    sentences = TextInfilling(MASK_ID, permute_sentences=True, sentence_end_ids=ends)
    inputs, targets = corrupted_lengths(length, eos=False)

    def batch() -> dict[str, Any]:
        found = corrupt_spans(ids, corruption, seed=1)
        return pad_corrupted(found, input_length=inputs, target_length=targets)

    out, padded = 8 * (inputs + targets) / length, 8 * (2 * inputs + targets) / length
    return {
        "spans": (16 + out, lambda: corrupt_spans(ids, corruption, seed=1)),
        "spans, one shape": (16 + 2 * out + padded, batch),
        "infilling": (30, lambda: infill_text(ids, infilling, seed=1)),
        "infilling, sentences shuffled": (46, lambda: infill_text(ids, sentences, seed=1)),
    }


def plans(rows: int, length: int, device: str) -> dict[str, tuple[float, Callable[[], Any]]]:
    """{name: (bytes a token that the kernels must move, call)}: words, spans of them, rates.

    int64 ids or units come in and int64 numbers go out: 16 bytes. The weights of rates are float64
    and read twice with the units; parts of them are written, and read once to become rates: 56.
    """
    ids = torch.randint(SPECIAL, VOCABULARY, (rows, length), device=device)
    table = (torch.arange(VOCABULARY, device=device) % 4 > 0).to(torch.uint8)
    weights = torch.rand(rows, length, device=device, dtype=torch.float64) ** 3 + 0.01
    names, words = torch.arange(rows, device=device), word_units(ids, table)
    lengths = geometric_lengths()
    calls: dict[str, tuple[float, Callable[[], Any]]] = {}
    for backend, name in (("triton", ""), ("reference", ", whole tensors in torch")):
        on: dict[str, Any] = {"backend": backend}
        spans: dict[str, Any] = {"sample_ids": names, "seed": 1, **on}
        calls |= {
            f"words{name}": (16, partial(word_units, ids, table, **on)),
            f"spans{name}": (16, partial(span_units, words, lengths, **spans)),
            f"rates{name}": (56, partial(rates_from_weights, weights, words, 0.15, **on)),
        }
    return calls


def _captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """The same kernels without the Python that launches them."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def time_calls(name: str, calls_of: Callable[..., Any]) -> None:
    """Time every call, launched from Python and as a captured graph, with the bandwidth."""
    rows = []
    for shape in [(64, 512), (4096, 512), (65536, 512)]:
        calls = calls_of(*shape, "cuda")
        for how in ("launched", "captured"):
            timed = compare(
                {
                    k: call if how == "launched" else _captured(call)
                    for k, (_, call) in calls.items()
                },
                synchronize=torch.cuda.synchronize,
            )
            for what, ms in timed.items():
                moved = calls[what][0] * shape[0] * shape[1]
                rows.append({
                    "what": what, "how": how, "shape": "x".join(map(str, shape)), **ms,
                    "bytes": int(moved), "GB_per_s": moved / ms["p50"] / 1e6,
                })  # fmt: skip
    write(name, rows)


def main() -> int:
    if not torch.cuda.is_available():
        print("no GPU on this machine: nothing was run")
        return 1
    tests = [sys.executable, "-m", "pytest", "-q", *GPU_TESTS]
    if code := subprocess.run(tests).returncode:
        return code
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        print("compute-sanitizer is not installed: memory checks were not run")
    elif code := subprocess.run([sanitizer, "--error-exitcode", "9", *tests]).returncode:
        return code
    bench_mask.main("cuda")
    time_calls("mask_layouts_cuda", layouts)
    time_calls("plans_cuda", plans)
    time_calls("denoise_cuda", denoisers)
    bench_loss_gpu.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
