"""Compute logits where something is predicted, and nowhere else."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def predicted_logits(model: Any, inputs: dict[str, Tensor], predicted: Tensor) -> Tensor:
    """Compute the logits [R, V], float32, of the R predicted tokens; the head sees no others.

    The hidden states are gathered right after the base model, or in front of the decoder where the
    model has no base model of its own. What a model decodes elsewhere is gathered from its logits.

    Args:
        model: a masked language model, wrapped (DDP) or not.
        inputs: what the model takes, without labels.
        predicted: bool [B, T], or int64 [R], places in the flattened batch, in any order.
    """
    shape = next(iter(inputs.values())).shape[:2]
    rows = predicted
    if predicted.dtype == torch.bool:
        rows = predicted.reshape(-1).nonzero().squeeze(1)
    gathered = False

    def gather(hidden: Tensor) -> Tensor:
        nonlocal gathered
        gathered = True
        return hidden.reshape(-1, hidden.shape[-1]).index_select(0, rows.to(hidden.device))[None]

    def after_base(_: Any, arguments: Any, output: Any) -> Any:
        hidden = output[0]
        if gathered or not isinstance(hidden, Tensor) or hidden.shape[:-1] != shape:
            return None
        if isinstance(output, tuple):
            return (gather(hidden), *output[1:])
        output[next(iter(output.keys()))] = gather(hidden)
        return output

    def before_decoder(_: Any, arguments: tuple[Any, ...]) -> Any:
        if gathered or arguments[0].shape[:-1] != shape:
            return None
        return (gather(arguments[0]), *arguments[1:])

    inner = language_model(model)
    base, decoder = getattr(inner, "base_model", None), inner.get_output_embeddings()
    handles = []
    if base is not None and base is not inner and base is not decoder:
        handles.append(base.register_forward_hook(after_base))
    if decoder is not None:
        handles.append(decoder.register_forward_pre_hook(before_decoder))
    try:
        output = model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    logits = output["prediction_logits"] if "prediction_logits" in output else output["logits"]
    logits = logits.reshape(-1, logits.shape[-1])
    if not gathered:
        logits = logits.index_select(0, rows.to(logits.device))
    return logits.float()


def language_model(model: Any) -> Any:
    """Return the Transformers model within DDP, a PEFT model, or both."""
    while True:
        if hasattr(model, "get_base_model"):  # PEFT
            model = model.get_base_model()
        elif isinstance(getattr(model, "module", None), nn.Module):  # DDP
            model = model.module
        else:
            return model


def device_of(model: Any) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Hold the model in evaluation mode, without gradients."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
