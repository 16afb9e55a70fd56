"""The fused loss on a GPU: time, peak memory, and the share of three bare matrix products.

``python -m benchmarks.gpu`` runs it. Liger-Kernel and cut-cross-entropy take part where they are
installed.
"""

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Results, captured, compare
from maskkernels import linear_cross_entropy


class Shape(NamedTuple):
    """A head: rows of hidden states, their width, the vocabulary, the share of rows labelled."""

    rows: int
    width: int
    vocab_size: int
    share: float


SHAPES = {
    "BERT": Shape(16384, 768, 30522, 0.15),
    "ModernBERT": Shape(16384, 768, 50368, 0.15),
    "256k vocabulary": Shape(16384, 768, 256_000, 0.15),
    "Llama, half ignored": Shape(16384, 4096, 128_256, 0.5),
}

CAPTURED = {  # what waits for nothing
    "linear_cross_entropy", "gather + F.linear + F.cross_entropy",
    "three products of the labelled rows",
}  # fmt: skip


def contenders(shape: Shape, device: str, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """Steps of the head (loss, gradients of hidden states and weight), and the products alone."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(shape.rows, shape.width, generator=generator).to(device, dtype)
    weight = torch.randn(shape.vocab_size, shape.width, generator=generator).to(device, dtype)
    weight *= 0.05
    labels = torch.randint(0, shape.vocab_size, (shape.rows,), generator=generator)
    labels[torch.rand(shape.rows, generator=generator) >= shape.share] = -100
    found = (labels != -100).nonzero().squeeze(1)
    positions, labels = found.to(device), labels.to(device)  # known to whoever masked
    chosen = labels[positions]

    def step(loss: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in (hidden, weight)]
        value = loss(*leaves)
        value.backward()
        return [value.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    def products() -> None:
        x = hidden[positions]
        logits = x @ weight.t()
        _ = logits @ weight, logits.t() @ x

    calls: dict[str, Callable[[], Any]] = {
        "linear_cross_entropy": lambda: step(
            lambda h, w: linear_cross_entropy(h, w, chosen, positions=positions).loss
        ),
        "gather + F.linear + F.cross_entropy": lambda: step(
            lambda h, w: F.cross_entropy(F.linear(h[positions], w).float(), chosen)
        ),
        "F.linear + F.cross_entropy": lambda: step(
            lambda h, w: F.cross_entropy(F.linear(h, w).float(), labels)
        ),
    }
    if find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss()
        calls["Liger"] = lambda: step(lambda h, w: liger(w, h, labels))
        calls["gather + Liger"] = lambda: step(lambda h, w: liger(w, h[positions], chosen))
    if find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy as cut

        calls["cut-cross-entropy"] = lambda: step(lambda h, w: cut(h, w, labels))
    return calls | {"three products of the labelled rows": products}


def check(name: str, found: list[Tensor], wanted: list[Tensor]) -> None:
    """Loss and gradients of ``found`` are near those of torch on the gathered rows."""
    for a, b in zip(found, wanted, strict=True):
        off = float((a.float() - b.float()).abs().max())
        if not off <= 3e-2 * max(float(b.float().abs().max()), 1e-6):
            raise RuntimeError(f"{name} is off by {off:.3g}: not timed")


def first_call(what: str, call: Callable[[], Any], wanted: list[Tensor], on_gpu: bool) -> float:
    """Check a contender; the MiB it adds at its peak, NaN where it does not fit."""
    try:
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        found = call()
    except torch.OutOfMemoryError:
        print(f"{what} does not fit")
        return math.nan
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20 if on_gpu else 0.0
    if found is not None:
        check(what, found, wanted)
    return peak


def measure(
    name: str,
    shape: Shape,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
    repeats: int = 20,
) -> list[dict[str, Any]]:
    """Rows for one shape, checked first."""
    on_gpu = device == "cuda"
    calls = contenders(shape, device, dtype)
    wanted = calls["gather + F.linear + F.cross_entropy"]()
    peaks = {what: first_call(what, call, wanted, on_gpu) for what, call in calls.items()}
    calls = {what: call for what, call in calls.items() if not math.isnan(peaks[what])}
    if on_gpu:
        for what in CAPTURED & calls.keys():
            calls[f"{what}, captured"] = captured(calls[what])
            peaks[f"{what}, captured"] = peaks[what]
    sync = torch.cuda.synchronize if on_gpu else (lambda: None)
    timed = compare(calls, repeats=repeats, turn=0.02, synchronize=sync)
    bound = timed["three products of the labelled rows"]["p50"]
    return [
        {
            "case": name, "what": what, **shape._asdict(), "dtype": str(dtype)[6:], **ms,
            "times_products": ms["p50"] / bound, "added_MiB": peaks[what],
        }
        for what, ms in timed.items()
    ]  # fmt: skip


def main(results: Results, shapes: dict[str, Shape] = SHAPES, repeats: int = 20) -> None:
    """Measure every shape; rows are written as they come."""
    for name, shape in shapes.items():
        results.add(measure(name, shape, repeats=repeats))
