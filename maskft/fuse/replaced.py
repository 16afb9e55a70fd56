"""What a fused model has in place of its own: its forward, its decoder's and its loss function.

They hold references to ``FusedForward`` and no closures, so that a copy or a pickle of the model is
fused in its own right.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from maskft.collate.labels import IGNORE_INDEX


def fused(model: Any) -> Any:
    """Return the FusedForward of a fused model; None for another model."""
    return vars(model).get("_fused_loss")


def forward_function(signature: inspect.Signature) -> Callable[..., Any]:
    """Return the function of a fused model's ``forward``, whose signature is its own.

    Whoever wraps a method takes its function and binds that to the model (accelerate, TRL), so it
    runs with either for ``self``.
    """

    def _fused_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        run: Any = fused(self) if isinstance(self, nn.Module) else self
        return run.run(*args, **kwargs)

    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    named: Any = _fused_forward
    named.__signature__ = signature.replace(parameters=[own, *signature.parameters.values()])
    return _fused_forward


def wraps(forward: Any, function: Callable[..., Any]) -> bool:
    """Say whether ``forward`` is ``function``, bound or wrapped by what says so."""
    while forward is not None:
        forward = getattr(forward, "__func__", forward)
        if forward is function:
            return True
        forward = getattr(forward, "__wrapped__", None)
    return False


def name_of(forward: Any) -> str:
    """Say where a forward comes from."""
    function = getattr(forward, "__func__", forward)
    where = getattr(function, "__module__", None) or type(function).__module__
    return f"{where}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def signature_of(model: Any) -> inspect.Signature:
    """Add what a fused model takes to its signature, so that Trainer keeps those columns."""
    parameters = [
        p.replace(annotation=inspect.Parameter.empty)
        for p in inspect.signature(model.forward).parameters.values()
    ]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
        for name in ("label_positions", "label_weights", "num_items")
    ]
    last = len(parameters)
    if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
        last -= 1
    return inspect.Signature([*parameters[:last], *added, *parameters[last:]])


class DecoderForward:
    """The ``forward`` of a fused decoder: F.linear, or the loss in a call with labels."""

    def __init__(self, fused: Any, decoder: nn.Linear) -> None:
        self.fused = fused
        self.decoder = decoder

    def __call__(self, hidden: Tensor) -> Tensor:
        call = self.fused.now.call
        if call is None or not call.in_decoder:
            return type(self.decoder).forward(self.decoder, hidden)
        return self.fused.decode(call, hidden, self.decoder)


class FusedLossFunction:
    """The ``loss_function`` of a fused model: the stock one, or the loss of the current call."""

    def __init__(self, fused: Any, stock: Any) -> None:
        self.fused = fused
        self.stock = stock

    def __call__(self, logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        call = self.fused.now.call
        if call is None:
            return self.stock(logits, *args, **kwargs)
        if kwargs.get("ignore_index", IGNORE_INDEX) != IGNORE_INDEX:
            raise TypeError(
                f"a fused model ignores the label {IGNORE_INDEX} and takes no ignore_index"
            )
        labels = args[0] if args else kwargs.get("labels")
        self.fused.check_labels(call, labels, kwargs.get("shift_labels"))
        return self.fused.finish(call, logits)


def no_replica() -> Any:
    """Refuse nn.DataParallel: its replicas would all run the one model that is fused."""
    raise RuntimeError(
        "nn.DataParallel cannot run a fused model: start one process per GPU (torchrun, accelerate "
        "launch), let CUDA_VISIBLE_DEVICES name one GPU, or unfuse_loss(model)"
    )


def refuse_transforms() -> None:
    """Refuse the transforms of torch.func: the rows to compute depend on values."""
    if torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is None:
        return
    raise RuntimeError(
        "a fused model does not run within the transforms of torch.func (grad, vmap...), as "
        "gradients of each row need: unfuse_loss(model) for them"
    )
