"""One call that makes a Transformers model compute its head and loss on the predicted rows only.

model = maskft.fuse_loss(AutoModelForMaskedLM.from_pretrained(name))
loss = model(**batch).loss  # and in a Trainer, num_items_in_batch counts
"""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import torch

from maskft.fuse.check import compare
from maskft.fuse.forward import FusedForward, Options
from maskft.fuse.head import read, router_losses, unwrap
from maskft.fuse.replaced import fused
from maskkernels.backend import BACKENDS
from maskkernels.loss import masked_cross_entropy

LOGITS = ("auto", False, True, "eval")
_LOG = logging.getLogger(__name__)


def fuse_loss(
    model: Any,
    *,
    logits: bool | str = "auto",
    capacity: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    linear: bool | None = None,
    shift: bool | None = None,
    check: Any = False,
    backend: str = "auto",
) -> Any:
    """Make ``model`` compute its head and its loss on the predicted rows only.

    Acts on this one object, which it returns; ``unfuse_loss`` undoes it. Calls with ``labels``
    change, all others stay as they are. The rows whose label is not -100 are gathered after the
    base model; head and loss see no others, and ``maskkernels.linear_cross_entropy`` runs in place
    of the decoder, in its own ``__call__`` (so that DDP and FSDP2 find its weights in place). A
    decoder that is not a plain nn.Linear (LoRA, quantised...) is called on those rows instead, and
    ``masked_cross_entropy`` follows.

    ``num_items_in_batch`` or, of the batch itself, ``num_items`` (one of the two; a number or a
    tensor that is summed) is what the sum of the losses is divided by, for every model, so losses
    and gradients do not depend on gradient accumulation or the number of ranks. A call without any
    label has loss 0 and zero gradients in training, and loss NaN, as stock, in an evaluation call:
    evaluation mode with gradients off. Trainer leaves NaN out of ``eval_loss``.

    Forward takes four keywords more: ``label_positions``, int64 [B, k], places of the labelled
    tokens in each row, -1 for none, as the collators make them, or [R], places in the flattened
    labels, as ``mask_tokens(..., capacity=R)`` returns them (so that nothing is searched for on a
    GPU, and with k or R fixed all shapes are); ``label_weights``, float [B, T] as ``labels``, the
    ``token_weights`` of ``masked_cross_entropy`` (for causal models shifted along with the labels;
    given with ``shift_labels``, they are those of these); ``num_items``; and ``return_logits``,
    which overrides ``logits`` for a call. A model that is not fused ignores ``label_weights``.

    Args:
        model: a masked, causal or sequence-to-sequence language model, BertForPreTraining,
            AlbertForPreTraining, or a PEFT or DDP model of one. Fuse before ``torch.compile``;
            before or after DDP and FSDP2.
        logits: when outputs have ``logits``. "auto": in evaluation calls, where they are computed
            when something first reads them (so that Trainer's compute_metrics and predict find
            them, and an evaluation without them costs nothing) and, once read, at once until the
            model trains again; None in calls with gradients or in training mode. "eval": in
            evaluation mode, at once. True: always. False: never, and reading those of an
            evaluation call is a ValueError.
        capacity: at most so many labels per call. On a GPU and in compiled code this many rows are
            then gathered, whatever the labels: shapes stay the same and the host never waits to
            count them (without it, and without ``label_positions``, a GPU waits once per call;
            compiled code gathers in the loss only). More labels: ValueError on the CPU, a NaN loss
            and NaN gradients on a GPU and in compiled code.
        label_smoothing, z_loss: as in ``masked_cross_entropy``.
        linear: whether the loss is computed in the decoder. None: where that is possible.
        shift: whether a row predicts the next row's label, as the labels of a causal language model
            are read, or its own. None: what the model's class does. False for a causal model that
            is trained as a masked one (``make_bidirectional``); True for a masked model whose
            logits are those of the next token.
        check: a batch (or True for one of random tokens) on which loss and gradients are compared
            with those of the stock model, and the difference logged.
        backend: "auto", "reference", "numba" or "triton"; see ``maskkernels``.

    Raises:
        TypeError: a model that is not covered, by its class.
        ValueError: an argument that does not fit; a model that is fused already; a check that
            found another loss or other gradients than stock. In a call: ``label_positions`` that
            are not those of the labels; ``label_weights`` of another shape or device, without
            labels, with a gradient, or not finite at a label. A GPU and compiled code, where
            looking would wait, give a NaN loss and NaN gradients.

    Examples:
        >>> from maskft import DataCollatorForLanguageModeling, fuse_loss
        >>> batch = DataCollatorForLanguageModeling(tokenizer, seed=1)(rows)
        >>> stock = model.eval()(**batch).loss.item()
        >>> fused = fuse_loss(model)(**batch)
        >>> abs(fused.loss.item() - stock) < 1e-4, fused.logits is None
        (True, True)
    """
    if not any(logits is value or logits == value for value in LOGITS):
        raise ValueError(f"logits must be one of {LOGITS}, got {logits!r}")
    if capacity is not None and (isinstance(capacity, bool) or not isinstance(capacity, int)):
        raise TypeError(f"capacity must be an int or None, got {type(capacity).__name__}")
    if capacity is not None and capacity < 1:
        raise ValueError(f"capacity must be at least 1, got {capacity}")
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend must be one of {('auto', *BACKENDS)}, got {backend!r}")
    if linear is not None and not isinstance(linear, bool):
        raise TypeError(f"linear must be True, False or None, got {type(linear).__name__}")
    if shift is not None and not isinstance(shift, bool):
        raise TypeError(f"shift must be True, False or None, got {type(shift).__name__}")
    if not isinstance(check, (bool, Mapping)):
        raise TypeError(f"check must be a batch, True or False, got {type(check).__name__}")
    masked_cross_entropy(  # refuses what it would refuse in each call
        torch.zeros(1, 2), torch.tensor([0]), label_smoothing=label_smoothing, z_loss=z_loss
    )
    inner = unwrap(model)
    if fused(inner) is not None:
        raise ValueError(
            f"this {type(inner).__name__} is fused already; unfuse_loss(model) undoes it"
        )
    head = read(inner)
    if shift is not None:
        head = dataclasses.replace(head, shift=shift)
    if linear and head.rows_because:
        raise TypeError(f"the loss of {head.name} cannot run in its decoder: {head.rows_because}")
    if router_losses(head, inner, {}):
        raise TypeError(
            f"fuse_loss does not cover {head.name} with output_router_logits: it adds the router's "
            "losses in code of its own"
        )
    in_decoder = head.rows_because is None if linear is None else linear
    options = Options(logits, capacity, label_smoothing, z_loss, in_decoder, backend)
    FusedForward(inner, head, options).attach()
    if check is not False:
        try:
            difference = compare(inner, None if check is True else dict(check))
        except BaseException:
            unfuse_loss(inner)
            raise
        _LOG.info("%s", difference)
        if not difference.agrees:
            unfuse_loss(inner)
            raise ValueError(f"fused and stock {head.name} disagree: {difference}")
    return model


def predicts_next(model: Any) -> bool:
    """Say whether a row of ``model`` predicts the next row's label: as fused, or by its class.

    Raises:
        ValueError: a class of which that is not known.
    """
    forward = fused(model)
    if forward is not None:
        return forward.head.shift
    try:
        return read(model).shift
    except TypeError as error:
        raise ValueError(
            f"which row predicts a token of {type(model).__name__} is not known ({error}): give "
            "shift=True, the row before it, or shift=False, its own"
        ) from None


def unfuse_loss(model: Any) -> Any:
    """Undo ``fuse_loss``; a model that is not fused stays as it is.

    Raises:
        ValueError: something else (accelerate, for one) has since wrapped ``model.forward``.

    Examples:
        >>> from maskft import fuse_loss, unfuse_loss
        >>> unfuse_loss(fuse_loss(model)) is model
        True
    """
    inner = unwrap(model)
    forward = fused(inner)
    if forward is not None:
        forward.detach()
    return model
