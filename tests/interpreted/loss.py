"""Compare the loss kernels with the reference under TRITON_INTERPRET=1."""

import os
import sys

import torch

from maskkernels import backend as dispatch
from maskkernels import linear_cross_entropy, masked_cross_entropy
from maskkernels.loss import _triton
from tests.support.losses import inputs, with_gradients

FIELDS = ("loss", "count", "accuracy", "entropy", "top_k")
_triton.BLOCK = 16  # several blocks of the few rows,
_triton._launch_shape = lambda row_bytes: (64, 8)  # and of the small vocabularies here


def use_triton() -> None:
    """Let the CPU's ops run the kernels; the op itself is called as ever."""
    dispatch._KERNELS = {"triton": dispatch.Kernels(("cpu",), "triton")}


def options():
    """(options, whether to try them in every dtype and with positions): alone, then together."""
    g = torch.Generator().manual_seed(1)
    weights, token_weights = torch.rand(131, generator=g), torch.randn(2, 4, generator=g)
    alone = [
        {"class_weights": weights}, {"token_weights": token_weights}, {"label_smoothing": 0.1},
        {"z_loss": 0.01}, {"softcap": 3.0}, {"logit_scale": 0.4}, {"num_items": 77},
        {"chunk_bytes": 2000},
    ]  # fmt: skip
    several = {k: v for o in alone for k, v in o.items() if k != "num_items"}
    yield from ((one, False) for one in alone)
    for reduction in ("mean", "sum", "none"):
        yield {"reduction": reduction}, True
        yield several | {"reduction": reduction}, True


def both(call, leaves):
    """(result, gradients) of the kernels and of the reference, gradients asked for twice."""
    for backend in ("auto", "reference"):
        found = call(backend)
        by = torch.linspace(0.5, 2, max(found.loss.numel(), 1))[: found.loss.numel()]
        by = by.view(found.loss.shape)
        first = torch.autograd.grad(found.loss, leaves, by, retain_graph=True)
        yield (
            (found.loss.detach(), *found[1:]),
            [*first, *with_gradients(found.loss, leaves, by)[1:]],
        )


def compare(name, call, leaves, dtype) -> None:
    (a, da), (b, db) = both(call, leaves)
    tolerance = 2e-5 if dtype == torch.float32 else 4e-3
    pairs = [*zip(FIELDS, a, b, strict=True)]
    pairs += zip(("gradient",) * len(da), da, db, strict=True)
    for field, x, y in pairs:
        if x is None and y is None:
            continue
        x, y = x.float(), y.float()
        scale = max(float(y.nan_to_num().abs().max()), 1e-3) if y.numel() else 1.0
        ok = x.shape == y.shape
        if not ok or not torch.allclose(x, y, rtol=0, atol=tolerance * scale, equal_nan=True):
            print(f"FAILED {name} {field}\n{x}\n{y}")
            sys.exit(1)


def compare_all(dtype, option, everywhere) -> int:
    """Both losses with labels and, ``everywhere``, with positions, with ids and with capacity."""
    leaves, labels = inputs(dtype, (2, 4), vocab_size=131)
    logits = (torch.randn(2, 4, 131) * 3).to(dtype).requires_grad_()
    at = (labels.flatten() != -100).nonzero()[:, 0]
    positions = torch.cat([at, torch.tensor([-1, -1])])
    ids = torch.cat([labels.flatten()[at], torch.tensor([0, 1])])
    option = option | {"accuracy": True, "entropy": True, "top_k": 2}
    plain = {k: v for k, v in option.items() if k != "chunk_bytes"}
    given = [(labels, {})]
    if everywhere:
        given += [(labels, {"positions": positions}), (ids, {"positions": positions})]
    if everywhere and "token_weights" in option:
        scattered = torch.cat(
            [option["token_weights"].flatten()[at], torch.tensor([3.0, torch.nan])]
        )
        given.append((ids, {"positions": positions, "token_weights": scattered}))
    for y, where in given:

        def masked(backend, y=y, where=where):
            return masked_cross_entropy(logits, y, **(plain | where), backend=backend)

        compare(f"masked {dtype} {option} {where.keys()}", masked, [logits], dtype)
    if everywhere:
        given.append((labels, {"capacity": 7}))
    for y, where in given:

        def linear(backend, y=y, where=where):
            hidden, weight, bias = leaves
            return linear_cross_entropy(
                hidden, weight, y, bias, **(option | where), backend=backend
            )

        compare(f"linear {dtype} {option} {where.keys()}", linear, leaves, dtype)
    return 2 * len(given)


def compare_layouts() -> int:
    """Rows with strides, vocabularies with tails, chunks of several sizes, unusual positions."""
    compared = 0
    for vocab_size in (1003, 1024, 40):  # a tail and padding, neither, a tail alone
        leaves, labels = inputs(torch.float32, (5,), vocab_size=vocab_size, share=0.7)
        for chunk_bytes in (1, 8 * vocab_size, None):

            def linear(backend, leaves=leaves, y=labels, size=chunk_bytes):
                return linear_cross_entropy(
                    *leaves[:2], y, leaves[2], chunk_bytes=size, backend=backend
                )

            compare(f"chunks of {chunk_bytes} of {vocab_size}", linear, leaves, torch.float32)
            compared += 1
        wide = (torch.randn(5, vocab_size + 5) * 3).requires_grad_()

        def strided(backend, wide=wide, y=labels, v=vocab_size):
            return masked_cross_entropy(wide[:, 2 : v + 2], y, backend=backend)

        compare(f"logits inside rows of {vocab_size + 5}", strided, [wide], torch.float32)
        compared += 1
    return compared


def main() -> int:
    if os.environ.get("TRITON_INTERPRET") != "1":
        print("TRITON_INTERPRET=1 is not set: nothing was interpreted")
        return 1
    use_triton()
    compared = 0
    for option, everywhere in options():
        compared += compare_all(torch.float32, option, everywhere)
        if everywhere:
            compared += compare_all(torch.float16, option, False)
    compared += compare_layouts()
    leaves, labels = inputs(torch.float16, (2, 9))
    large = torch.rand(labels.shape, generator=torch.Generator().manual_seed(2)) * 1e5

    def weighted(backend):  # float16 holds none of these gradients before they are divided
        return linear_cross_entropy(*leaves[:2], labels, token_weights=large, backend=backend)

    compare("large weights", weighted, leaves[:2], torch.float16)
    compared += 1
    leaves, labels = inputs(torch.float32, (2, 9))
    for reduction in ("mean", "none"):  # what cannot be refused without a look is NaN
        over = linear_cross_entropy(*leaves[:2], labels, capacity=3, reduction=reduction).loss
        bad = labels.clone()
        bad[0, :2], bad[0, 2] = torch.tensor([11, -1]), 4
        outside = linear_cross_entropy(*leaves[:2], bad, reduction=reduction).loss
        if reduction == "mean":
            ok = over.isnan() and outside.isnan()
        else:
            ok = torch.equal(over.isnan(), labels != -100)
            ok = ok and outside[0, :3].isnan().tolist() == [True, True, False]
        if not ok:
            print(f"FAILED to say NaN {reduction}: {over} {outside}")
            return 1
        scales = torch.tensor([torch.nan, torch.inf, 0.0]).repeat(2, 3)  # of columns 0, 1, 2
        found = linear_cross_entropy(
            *leaves[:2], labels, token_weights=scales, reduction=reduction, accuracy=True
        )
        gradient = with_gradients(found.loss, leaves[:1])[1]
        bad = (labels != -100) & (scales != 0)
        if reduction == "mean":
            ok = found.loss.isnan() and gradient[bad].isnan().all()
        else:
            ok = torch.equal(found.loss.isnan(), bad) and gradient[bad].isnan().all()
            ok = ok and not found.loss[~bad].any() and not gradient[~bad].any()
        if not ok:
            print(f"FAILED to say NaN for weights {reduction}: {found} {gradient}")
            return 1
        empty = linear_cross_entropy(
            leaves[0], leaves[1], torch.full_like(labels, -100), reduction=reduction
        )
        zero = [*with_gradients(empty.loss, leaves[:2]), empty.count]
        if any(t.any() for t in zero):
            print("FAILED: something where nothing is labelled")
            return 1
        compared += 1
    print(f"{compared} comparisons passed")
    return 0 if compared > 60 else 1


if __name__ == "__main__":
    sys.exit(main())
