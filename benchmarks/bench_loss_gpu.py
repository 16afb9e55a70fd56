"""The fused loss on a GPU: time, error, peak memory, and the share of three bare matrix products.

``python -m benchmarks.bench_loss_gpu --cases BERT`` runs a part, ``python -m benchmarks.gpu`` all.
Liger-Kernel and cut-cross-entropy take part where they are installed.
"""

import argparse
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
    "126k, half labelled": Shape(8192, 1024, 126_464, 0.5),
    "152k, half labelled": Shape(8192, 1024, 151_936, 0.5),
}
LOGITS = ("flat", "peaked")  # nothing learnt; the label's logit 12 above the others' mean
BOUND = 0.03  # relative norm of an error beyond which a contender is not timed
WEIGHTED = "weighted"  # contenders with a weight for each token
FILTERED = "filtered"  # contenders that drop small gradients on purpose: only reported
TORCH = "gather + F.linear + F.cross_entropy"
PRODUCTS = "three products of the labelled rows"

CAPTURED = {  # what waits for nothing
    "linear_cross_entropy", "gather + F.linear + F.cross_entropy",
    "three products of the labelled rows",
}  # fmt: skip


class Head(NamedTuple):
    """What every contender is given."""

    hidden: Tensor  # [N, H]
    weight: Tensor  # [V, H]
    labels: Tensor  # int64 [N]
    positions: Tensor  # int64 [R], known to whoever masked
    chosen: Tensor  # int64 [R], the labels at positions
    scales: Tensor  # float32 [R], a weight for each of them; 1 on average


def head(shape: Shape, logits: str, device: str, dtype: torch.dtype) -> Head:
    """Random numbers of a shape, the same each time."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(shape.rows, shape.width, generator=generator)
    weight = torch.randn(shape.vocab_size, shape.width, generator=generator) * 0.05
    labels = torch.randint(0, shape.vocab_size, (shape.rows,), generator=generator)
    if logits == "peaked":
        own = weight[labels]
        hidden += 12 * own / own.square().sum(1, keepdim=True)
    labels[torch.rand(shape.rows, generator=generator) >= shape.share] = -100
    positions = (labels != -100).nonzero().squeeze(1)
    scales = 1 / torch.rand(positions.numel(), generator=generator).clamp(min=1e-3)
    return Head(
        hidden.to(device, dtype), weight.to(device, dtype), labels.to(device),
        positions.to(device), labels[positions].to(device), (scales / scales.mean()).to(device),
    )  # fmt: skip


def exact(given: Head, weighted: bool = False, rows: int = 1024) -> list[Tensor]:
    """[loss, gradients of hidden states and weight] in float64, some rows at a time."""
    n, weight = given.chosen.numel(), given.weight.double()
    scales = given.scales.double() if weighted else weight.new_ones(n)
    scales = scales / scales.sum()
    loss, d_weight = weight.new_zeros(()), torch.zeros_like(weight)
    d_hidden = torch.zeros_like(given.hidden, dtype=torch.float64)
    parts = (given.positions, given.chosen, scales[:, None])
    for at, y, s in zip(*(part.split(rows) for part in parts), strict=True):
        x = given.hidden[at].double()
        log_p = (x @ weight.t()).log_softmax(1)
        loss -= (log_p.gather(1, y[:, None]) * s).sum()
        g = log_p.exp_().mul_(s)
        g.scatter_add_(1, y[:, None], -s)
        d_hidden[at] = g @ weight
        d_weight += g.t() @ x
    return [loss, d_hidden, d_weight]


def errors(found: list[Tensor], wanted: list[Tensor]) -> dict[str, float]:
    """Relative norms of what is off."""
    names = ("loss_error", "hidden_error", "weight_error")
    return {
        name: float((a.double() - b).norm() / b.norm())
        for name, a, b in zip(names, found, wanted, strict=True)
    }


def contenders(given: Head) -> dict[str, Callable[[], Any]]:
    """Steps of the head (loss, gradients of hidden states and weight), and the products alone."""
    hidden, weight, labels, positions, chosen, scales = given
    rows, vocab_size = positions.numel(), weight.shape[0]
    padded = hidden.new_empty(rows, -(-vocab_size // 64) * 64)

    def step(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], list[Tensor]]:
        def call() -> list[Tensor]:
            leaves = [t.detach().requires_grad_() for t in (hidden, weight)]
            value = loss(*leaves)
            return [value.detach(), *torch.autograd.grad(value, leaves)]

        return call

    def products(out: Tensor | None = None) -> None:
        x = hidden[positions]
        logits = torch.mm(x, weight.t(), out=out)
        _ = logits @ weight, logits.t() @ x

    def ours(h: Tensor, w: Tensor) -> Tensor:
        return linear_cross_entropy(h, w, chosen, positions=positions).loss

    def by_token(h: Tensor, w: Tensor) -> Tensor:
        return linear_cross_entropy(h, w, chosen, positions=positions, token_weights=scales).loss

    def by_row(h: Tensor, w: Tensor) -> Tensor:
        loss = linear_cross_entropy(h, w, chosen, positions=positions, reduction="none").loss
        return (loss * scales).sum() / scales.sum()

    calls: dict[str, Callable[[], Any]] = {
        "linear_cross_entropy": step(ours),
        f"linear_cross_entropy, {WEIGHTED}": step(by_token),
        f'linear_cross_entropy, reduction="none", {WEIGHTED}': step(by_row),
        TORCH: step(lambda h, w: F.cross_entropy(F.linear(h[positions], w).float(), chosen)),
        "F.linear + F.cross_entropy": step(
            lambda h, w: F.cross_entropy(F.linear(h, w).float(), labels)
        ),
    }
    if find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger, wide = LigerFusedLinearCrossEntropyLoss(), {"accum_dtype": torch.float32}
        accurate = LigerFusedLinearCrossEntropyLoss(**wide)
        calls["Liger"] = step(lambda h, w: liger(w, h, labels))
        calls["gather + Liger"] = step(lambda h, w: liger(w, h[positions], chosen))
        calls["gather + Liger, sums in float32"] = step(
            lambda h, w: accurate(w, h[positions], chosen)
        )
    if find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy as cut

        name = "cut-cross-entropy"
        calls[f"{name}, {FILTERED}"] = step(lambda h, w: cut(h, w, labels))
        calls[f"gather + {name}, {FILTERED}"] = step(lambda h, w: cut(h[positions], w, chosen))
        calls[f"gather + {name}, exact"] = step(
            lambda h, w: cut(h[positions], w, chosen, filter_eps=None)
        )
    return calls | {
        PRODUCTS: products,
        f"{PRODUCTS}, rows padded to 64": lambda: products(padded[:, :vocab_size]),
    }


def first_call(what: str, call: Callable[[], Any], wanted: list[Tensor], on_gpu: bool) -> Any:
    """{error and MiB that a contender adds at its peak}, or None where it does not fit."""
    before = 0
    try:
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        found = call()
    except torch.OutOfMemoryError:
        print(f"{what} does not fit")
        return None
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20 if on_gpu else math.nan
    off = {} if found is None else errors(found, wanted)
    if FILTERED not in what and not all(e <= BOUND for e in off.values()):
        raise RuntimeError(f"{what} is off by {off}: not timed")
    return off | {"added_MiB": peak}


def graph_of(what: str, call: Callable[[], Any]) -> Callable[[], Any] | None:
    """The call as a captured graph, or None where it cannot be one."""
    try:
        return captured(call)
    except RuntimeError as error:
        print(f"{what} cannot be captured: {error}")
        return None


CAPTURED = ("linear_cross_entropy", TORCH, PRODUCTS, f"{PRODUCTS}, rows padded to 64")


def measure(
    name: str,
    shape: Shape,
    logits: str,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
    repeats: int = 20,
) -> list[dict[str, Any]]:
    """Rows for one shape, checked first."""
    on_gpu = device == "cuda"
    given = head(shape, logits, device, dtype)
    calls, facts = contenders(given), {}
    for weighted in (False, True):
        wanted = exact(given, weighted)
        for what, call in calls.items():
            if (WEIGHTED in what) == weighted:
                facts[what] = first_call(what, call, wanted, on_gpu)
        del wanted
    calls = {what: call for what, call in calls.items() if facts[what] is not None}
    ways = {"launched": calls}
    if on_gpu:
        graphs = {what: graph_of(what, calls[what]) for what in CAPTURED if what in calls}
        ways["captured"] = {what: call for what, call in graphs.items() if call is not None}
    sync = torch.cuda.synchronize if on_gpu else (lambda: None)
    rows = []
    for how, these in ways.items():
        timed = compare(these, repeats=repeats, turn=0.02, synchronize=sync)
        bound = timed.get(PRODUCTS, {"p50": math.nan})["p50"]
        rows += [
            {
                "case": name, "logits": logits, "what": what, "how": how, **shape._asdict(),
                "dtype": str(dtype)[6:], **ms, "times_products": ms["p50"] / bound, **facts[what],
            }
            for what, ms in timed.items()
        ]  # fmt: skip
    return rows


def main(results: Results, shapes: dict[str, Shape] = SHAPES, repeats: int = 20) -> None:
    """Measure every shape, flat and peaked; rows are written as they come."""
    for name, shape in shapes.items():
        for logits in LOGITS:
            results.add(measure(name, shape, logits, repeats=repeats))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", choices=list(SHAPES), default=list(SHAPES))
    main(Results("loss_cuda"), {name: SHAPES[name] for name in parser.parse_args().cases})
