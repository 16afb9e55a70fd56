"""Compare the loss and gradients of a fused model with those of the stock model."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskft.collate.labels import IGNORE_INDEX
from maskft.fuse.call import shifted, unshifted
from maskft.fuse.replaced import fused

_OURS = ("label_weights", "num_items")  # of a batch; stock models ignore them


@dataclass(frozen=True)
class Difference:
    """How far a fused model is from the stock one.

    Attributes:
        loss, stock_loss: of the batch.
        gradient: the largest difference of any gradient's elements, as a share of the largest
            element of all the stock model's gradients.
        parameter: where it is.
        tolerance: what ``agrees`` allows.
    """

    loss: float
    stock_loss: float
    gradient: float
    parameter: str
    tolerance: float

    @property
    def agrees(self) -> bool:
        off = abs(self.loss - self.stock_loss)
        return off <= self.tolerance * abs(self.stock_loss) and self.gradient <= self.tolerance

    def __str__(self) -> str:
        return (
            f"loss {self.loss:.7g}, stock {self.stock_loss:.7g}; gradients differ by at most "
            f"{self.gradient:.1e} of the largest, at {self.parameter}"
        )


def compare(
    model: Any, batch: dict[str, Any] | None = None, *, training: bool = False
) -> Difference:
    """Compare a fused model with the stock model that it was.

    ``.grad`` of the parameters, buffers' values aside, stays as it was.

    Args:
        model: a fused model.
        batch: what it is called with, labels included. None: 2 rows of 16 random tokens, a third
            of them labelled. Its ``label_weights`` and ``num_items`` are left out: stock
            models ignore them.
        training: whether in training mode, where dropout must be 0 for a fair comparison.
    """
    forward = fused(model)
    if forward is None:
        raise ValueError(f"this {type(model).__name__} is not fused")
    batch = random_batch(model) if batch is None else batch
    batch = {name: value for name, value in batch.items() if name not in _OURS}
    stock_batch = batch
    if forward.head.shift != forward.head.shifts_itself:
        batch, stock_batch = _alike(batch, forward.head.shift)
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        loss, gradients = _loss_and_gradients(model, batch, return_logits=False)
        forward.detach()
        try:
            stock_loss, stock = _loss_and_gradients(model, stock_batch)
        finally:
            forward.attach()
    finally:
        for module, mode in before.items():
            module.training = mode
    scale = max((g.abs().max().item() for g in stock.values()), default=0.0) or 1.0
    worst, parameter = 0.0, "no parameter"
    for name in stock.keys() | gradients.keys():
        a, b = gradients.get(name), stock.get(name)
        off = max(g.abs().max().item() for g in (a, b) if g is not None)
        if a is not None and b is not None:
            off = (a - b).abs().max().item()
        if off > worst:
            worst, parameter = off, name
    low = next(model.parameters()).dtype in (torch.float16, torch.bfloat16)
    return Difference(loss, stock_loss, worst / scale, parameter, 3e-2 if low else 1e-4)


def _alike(batch: dict[str, Any], shift: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make the batch for a fused model whose class has the opposite of ``shift``, and for stock.

    A label that only one of the two reads is left out.
    """
    labels = batch["labels"].clone()
    labels[..., 0 if shift else -1] = IGNORE_INDEX
    moved = shifted(labels) if shift else unshifted(labels)
    batch = {name: value for name, value in batch.items() if name != "label_positions"}
    return batch | {"labels": labels}, batch | {"labels": moved}


def random_batch(model: Any) -> dict[str, Tensor]:
    """Draw 2 rows of 16 random tokens, a third of them labelled."""
    size = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(size, (2, 16), generator=generator)
    labels = torch.where(torch.rand(ids.shape, generator=generator) < 1 / 3, ids, IGNORE_INDEX)
    device = next(model.parameters()).device
    return {"input_ids": ids.to(device), "labels": labels.to(device)}


def _loss_and_gradients(
    model: Any, batch: dict[str, Any], **kwargs: Any
) -> tuple[float, dict[str, Tensor]]:
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        loss = model(**batch, **kwargs).loss
    found = torch.autograd.grad(loss, list(learned.values()), allow_unused=True)
    gradients = zip(learned, found, strict=True)
    return loss.item(), {name: g for name, g in gradients if g is not None and g.numel()}
