"""A training step of a small BERT, stock against fused: time and the memory it adds.

6 layers, 384 wide, vocabulary 30522, 16 rows of 128 tokens, 15% of them labelled; forward and
backward, float32, dropout off so that both compute the same.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from benchmarks.harness import compare, peak_mib, write
from maskft import fuse_loss

ROWS, LENGTH, SHARE = 16, 128, 0.15


def model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForMaskedLM(config).train()


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30522, (ROWS, LENGTH), generator=generator)
    labels = torch.where(torch.rand(ids.shape, generator=generator) < SHARE, ids, -100)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def _step(trained: PreTrainedModel, inputs: dict[str, Tensor]) -> Callable[[], float]:
    def step() -> float:
        trained.zero_grad(set_to_none=True)
        loss = trained(**inputs).loss
        loss.backward()
        return loss.item()

    return step


def steps() -> dict[str, Callable[[], Any]]:
    """A step of each, and of the encoder alone: what no head can be faster than."""
    inputs = batch()
    encoder = model().bert
    encoded = {k: v for k, v in inputs.items() if k != "labels"}

    def encoder_alone() -> None:
        encoder.zero_grad(set_to_none=True)
        encoder(**encoded).last_hidden_state.sum().backward()

    return {
        "fused": _step(fuse_loss(model()), inputs),
        "stock": _step(model(), inputs),
        "encoder alone": encoder_alone,
    }


def check() -> None:
    """Loss and gradients of both agree, or nothing is timed."""
    fused, stock, inputs = fuse_loss(model()), model(), batch()
    losses = [_step(trained, inputs)() for trained in (fused, stock)]
    if abs(losses[0] - losses[1]) > 1e-5 * losses[1]:
        raise RuntimeError(f"fused loss {losses[0]}, stock {losses[1]}: not timed")
    for (name, p), q in zip(stock.named_parameters(), fused.parameters(), strict=True):
        if p.grad is None or q.grad is None:
            raise RuntimeError(f"{name} has no gradient: not timed")
        off = float((p.grad - q.grad).abs().max())
        if off > 1e-4 * max(float(p.grad.abs().max()), 1e-3):
            raise RuntimeError(f"the gradients of {name} differ by {off:.3g}: not timed")


def main() -> None:
    torch.set_num_threads(1)
    check()
    timed = compare(steps(), repeats=5, turn=0)
    rows = [
        {
            "what": name, "shape": f"{ROWS}x{LENGTH}", "device": "cpu", **ms,
            "times_fused": ms["p50"] / timed["fused"]["p50"],
            "added_MiB": peak_mib("benchmarks.bench_step", "steps", name),
        }
        for name, ms in timed.items()
    ]  # fmt: skip
    write("step_cpu", rows)


if __name__ == "__main__":
    main()
