"""What runs on a GPU never makes the host wait for it, and its shapes do not depend on values."""

import itertools

import pytest
import torch

from maskkernels import MaskingPolicy, linear_cross_entropy, mask_tokens, masked_cross_entropy
from tests.support.device import DEVICE, Waits, on_device

ROWS, TOKENS, WIDTH, CLASSES, CAPACITY = 4, 32, 16, 50, 20
OPTIONS = [
    {},
    {"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 5.0, "logit_scale": 0.5},
    {"accuracy": True, "entropy": True, "top_k": 5, "chunk_bytes": 4 * CLASSES * 3,
     "token_weights": True},
]  # fmt: skip


def new(*shape, dtype=torch.float32, **kwargs):
    return torch.empty(shape, dtype=dtype, device=DEVICE, **kwargs)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: (x > 0).nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: torch.equal(x, x),
        lambda x: torch.repeat_interleave(x.long()),
        lambda x: x.cpu(),
        lambda x: torch.ones(3).to(x.device),
        lambda x: x.copy_(torch.ones(3)),
    ],
)
def test_a_wait_is_found(wait):
    with on_device(), pytest.raises((Waits, RuntimeError, NotImplementedError)):
        wait(new(3))


@pytest.mark.parametrize("way", ["labels", "capacity", "positions", "aligned"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_loss_does_not_wait(way, options, reduction, dtype):
    hidden = new(ROWS, TOKENS, WIDTH, dtype=dtype, requires_grad=True)
    weight = new(CLASSES, WIDTH, dtype=dtype, requires_grad=True)
    bias = new(CLASSES, dtype=dtype, requires_grad=True)
    labels = new(*((CAPACITY,) if way == "aligned" else (ROWS, TOKENS)), dtype=torch.int64)
    call = {"reduction": reduction, "class_weights": new(CLASSES), **options}
    if "token_weights" in options:
        call["token_weights"] = new(*labels.shape)
    if reduction == "mean":
        call["num_items"] = new(dtype=torch.int64)
    if way == "capacity":
        call["capacity"] = CAPACITY
    elif way != "labels":
        call["positions"] = new(CAPACITY, dtype=torch.int64)
    with on_device() as launched:
        loss = linear_cross_entropy(hidden, weight, labels, bias, **call).loss
        loss.sum().backward(retain_graph=True)
        assert "_cross_entropy" in launched
        del launched[:]
        loss.sum().backward()  # the gradients of the forward pass are gone
        assert "_cross_entropy" in launched
    assert all(leaf.grad.shape == leaf.shape for leaf in (hidden, weight, bias))


@pytest.mark.parametrize("way", ["labels", "positions"])
def test_the_loss_of_logits_does_not_wait(way):
    logits = new(ROWS, TOKENS, CLASSES, requires_grad=True)
    positions = None if way == "labels" else new(CAPACITY, dtype=torch.int64)
    labels = new(ROWS, TOKENS, dtype=torch.int64)
    with on_device() as launched:
        masked_cross_entropy(logits, labels, positions=positions).loss.backward()
    assert launched == ["_select", "_cross_entropy", "_scale"]


@pytest.mark.parametrize(
    ("packed", "padded", "units", "budget", "hashed"),
    [c for c in itertools.product([False, True], repeat=5) if not (c[0] and c[1])],
)
def test_masking_does_not_wait(packed, padded, units, budget, hashed):
    policy = MaskingPolicy(3, CLASSES, selection="budget" if budget else "bernoulli")
    shape = (ROWS * TOKENS,) if packed else (ROWS, TOKENS)
    given = {"maskable": new(CLASSES, dtype=torch.bool), "capacity": CAPACITY}
    if packed:
        given["cu_seqlens"] = new(ROWS + 1, dtype=torch.int64)
    if padded:
        given["attention_mask"] = new(*shape, dtype=torch.int64)
    if units:
        given["units"] = new(*shape, dtype=torch.int64)
    if not hashed:
        given["sample_ids"] = new(ROWS, dtype=torch.int64)
    with on_device() as launched:
        masked = mask_tokens(new(*shape, dtype=torch.int64), policy, seed=1, **given)
    assert {"_mask_tokens", "_positions"} <= set(launched)
    assert masked.positions.shape == (CAPACITY,)
    assert masked.labels.shape == shape
