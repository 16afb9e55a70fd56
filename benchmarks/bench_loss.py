"""The losses against torch's, one core: the kernel, the loss of given logits, the whole head."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions
from torch.nn import functional as F

from benchmarks.harness import compare, peak_mib, write
from maskkernels import linear_cross_entropy, masked_cross_entropy
from maskkernels.loss import _numba_rows

Calls = dict[str, Callable[[], Any]]
SHARE = 0.15  # of rows that are labelled
HEADS = {"bert_small": (4096, 384, 30522), "modernbert": (4096, 768, 50368)}  # N, H, V
# N, H, V and the share that is labelled; as many rows of the last two as fit with full logits
WEIGHTED = {
    "weighted_30k": (4096, 384, 30522, 0.15),
    "weighted_126k": (256, 1024, 126_464, 0.5),
    "weighted_152k": (256, 1024, 151_936, 0.5),
}
UNWEIGHTED = "linear_cross_entropy, without weights"


def labels_of(rows: int, vocab_size: int, share: float = SHARE) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, vocab_size, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) >= share] = -100
    return labels


def kernel() -> Calls:
    """Loss and gradient of 307 rows of 30522 logits in memory that is already there."""
    rows, vocab_size = 307, 30522
    logits = torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(0)) * 3
    labels = torch.arange(rows) * 97 % vocab_size
    buffer, log_p, gradient = logits.clone(), torch.empty_like(logits), torch.empty_like(logits)
    one = torch.ones(())

    def plain(source: np.ndarray, out: np.ndarray) -> float:
        nothing = np.empty(0, np.float32)
        job = _numba_rows.Chunk(
            source, out, np.arange(rows), labels.numpy(), np.full(rows, 1 / rows), nothing, nothing
        )
        law = _numba_rows.Law(
            0.0, 0.0, np.float32(0), np.float32(1), float(vocab_size), True, False, False
        )
        found = _numba_rows.Found(np.zeros(rows), np.zeros(rows), np.zeros(rows, np.int64))
        _numba_rows.cross_entropy(job, law, found, 0, rows)
        return found.loss.mean()

    def torch_into_memory() -> float:
        torch._log_softmax(logits, 1, False, out=log_p)
        nll = torch.ops.aten.nll_loss_forward(log_p, labels, None, 1, -100)
        gradient.zero_()
        backward = torch.ops.aten.nll_loss_backward.grad_input
        backward(one, log_p, labels, None, 1, -100, nll[1], grad_input=gradient)
        torch._log_softmax_backward_data(gradient, log_p, 1, torch.float32, out=gradient)
        return nll[0].item()

    return {
        "loss kernel, in place": lambda: plain(np.empty((0, 0), np.float32), buffer.numpy()),
        "loss kernel, out of place": lambda: plain(logits.numpy(), buffer.numpy()),
        "torch, preallocated": torch_into_memory,
    }


def given_logits() -> Calls:
    """Loss and gradient of [2048, 30522] logits as users ask for them."""
    logits = torch.randn(2048, 30522, generator=torch.Generator().manual_seed(0))
    labels = labels_of(*logits.shape)

    def step(loss: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaf = logits.detach().requires_grad_()
        found = loss(leaf)
        found.backward()
        return [found.detach(), leaf.grad]

    return {
        "masked_cross_entropy": lambda: step(lambda x: masked_cross_entropy(x, labels).loss),
        "F.cross_entropy": lambda: step(lambda x: F.cross_entropy(x, labels)),
        "gather + F.cross_entropy": lambda: step(
            lambda x: F.cross_entropy(x[labels != -100], labels[labels != -100])
        ),
    }


def head(rows: int, width: int, vocab_size: int) -> Calls:
    """A step of the head: loss, and gradients of hidden states, weight and bias."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator)
    weight = torch.randn(vocab_size, width, generator=generator) * 0.05
    bias = torch.zeros(vocab_size)
    labels = labels_of(rows, vocab_size)

    def step(loss: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in (hidden, weight, bias)]
        found = loss(*leaves)
        found.backward()
        return [found.detach(), *(leaf.grad for leaf in leaves)]

    def gathered(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda h, w, b: loss(h[labels != -100], w, b, labels[labels != -100])

    def chunked(h: Tensor, w: Tensor, b: Tensor, y: Tensor) -> Tensor:
        return F.linear_cross_entropy(h, w, y, linear_bias=b, options=LinearCrossEntropyOptions())

    return {
        "linear_cross_entropy": lambda: step(
            lambda h, w, b: linear_cross_entropy(h, w, labels, b).loss
        ),
        "gather + F.linear + F.cross_entropy": lambda: step(
            gathered(lambda h, w, b, y: F.cross_entropy(F.linear(h, w, b), y))
        ),
        "gather + F.linear_cross_entropy": lambda: step(gathered(chunked)),
        "F.linear_cross_entropy": lambda: step(lambda h, w, b: chunked(h, w, b, labels)),
        "F.linear + F.cross_entropy": lambda: step(
            lambda h, w, b: F.cross_entropy(F.linear(h, w, b), labels)
        ),
    }


def bert_small() -> Calls:
    return head(*HEADS["bert_small"])


def modernbert() -> Calls:
    return head(*HEADS["modernbert"])


def weighted_head(rows: int, width: int, vocab_size: int, share: float) -> Calls:
    """A step of the head with a weight for each token: loss, gradients of hidden states, weight."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator)
    weight = torch.randn(vocab_size, width, generator=generator) * 0.05
    labels, scales = labels_of(rows, vocab_size, share), 1 / torch.rand(rows, generator=generator)
    total = scales[labels != -100].sum()

    def step(loss: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in (hidden, weight)]
        found = loss(*leaves)
        found.backward()
        return [found.detach(), *(leaf.grad for leaf in leaves)]

    def by_row(h: Tensor, w: Tensor) -> Tensor:
        rows = linear_cross_entropy(h, w, labels, reduction="none").loss
        return (rows * scales).sum() / total

    def full(h: Tensor, w: Tensor) -> Tensor:
        rows = F.cross_entropy(F.linear(h, w), labels, reduction="none")
        return (rows * scales).sum() / total

    return {
        "linear_cross_entropy, token_weights": lambda: step(
            lambda h, w: linear_cross_entropy(h, w, labels, token_weights=scales).loss
        ),
        UNWEIGHTED: lambda: step(lambda h, w: linear_cross_entropy(h, w, labels).loss),
        'linear_cross_entropy, reduction="none" times weights': lambda: step(by_row),
        "F.linear + F.cross_entropy times weights": lambda: step(full),
    }


def weighted_30k() -> Calls:
    return weighted_head(*WEIGHTED["weighted_30k"])


def weighted_126k() -> Calls:
    return weighted_head(*WEIGHTED["weighted_126k"])


def weighted_152k() -> Calls:
    return weighted_head(*WEIGHTED["weighted_152k"])


def large_vocabulary() -> Calls:
    """256 to 1024 labelled rows of 128 numbers, 256,000 classes; and the products alone."""
    width, vocab_size = 128, 256_000
    weight = torch.randn(vocab_size, width, generator=torch.Generator().manual_seed(0)) * 0.1
    calls: Calls = {}
    for rows in (256, 512, 1024):
        hidden = torch.randn(rows, width)
        labels = torch.arange(rows)

        def step(hidden: Tensor = hidden, labels: Tensor = labels) -> None:
            leaves = [t.detach().requires_grad_() for t in (hidden, weight)]
            linear_cross_entropy(leaves[0], leaves[1], labels).loss.backward()

        def products(hidden: Tensor = hidden) -> None:
            logits = hidden @ weight.t()
            _ = logits @ weight, logits.t() @ hidden

        calls[f"linear_cross_entropy, {rows} rows"] = step
        calls[f"three products, {rows} rows"] = products
    return calls


def check(calls: Calls) -> None:
    """Every contender gives the same loss and gradients, or nothing is timed."""
    results = {name: call() for name, call in calls.items() if name != UNWEIGHTED}
    name, *others = results
    for other in others:
        for a, b in zip(results[name], results[other], strict=True):
            difference = float((a - b).abs().max())
            if not difference <= 1e-4 * max(float(b.abs().max()), 1e-6):
                raise RuntimeError(f"{name} and {other} differ by {difference:.3g}: not timed")


def weighted() -> None:
    """Time the weighted losses, and the memory that a step adds."""
    main(tuple(WEIGHTED), "loss_weighted_cpu")


def main(
    names: tuple[str, ...] = ("kernel", "given_logits", *HEADS, "large_vocabulary"),
    to: str = "loss_cpu",
) -> None:
    """Time all of it, and the memory that a step adds."""
    torch.set_num_threads(1)
    rows = []
    for name in names:
        calls = globals()[name]()
        if name in ("given_logits", *HEADS, *WEIGHTED):
            check(calls)
        elif name == "kernel":
            losses = [calls["torch, preallocated"](), calls["loss kernel, out of place"]()]
            if abs(losses[0] - losses[1]) > 1e-5 * losses[0]:
                raise RuntimeError(f"the kernel's loss is not torch's: {losses}")
        turn = 0.0 if name in WEIGHTED else 0.005  # calls of seconds
        timed = compare(calls, repeats={"kernel": 20, "given_logits": 5}.get(name, 3), turn=turn)
        first = next(iter(timed))
        for what, ms in timed.items():
            row = {"case": name, "what": what, **ms, "times_ours": ms["p50"] / timed[first]["p50"]}
            if name in ("given_logits", *HEADS, *WEIGHTED):
                row["added_MiB"] = peak_mib("benchmarks.bench_loss", name, what)
            rows.append(row)
    write(to, rows)


if __name__ == "__main__":
    main()
