"""Logits of an evaluation call that are computed when something reads them.

Whether anyone will is not known in the call: a Trainer takes them from every output, and drops them
unless it has metrics to compute.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

_CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.double)
# What is answered without computing.
_KNOWN = {
    Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.is_floating_point, torch.is_floating_point,
    Tensor.get_device, Tensor.__hash__,
    *(
        getattr(Tensor, name).__get__
        for name in ("shape", "dtype", "device", "ndim", "is_cuda", "is_cpu", "layout",
                     "requires_grad", "grad_fn", "is_nested", "is_sparse")
    ),
}  # fmt: skip


class Replay:
    """An evaluation call of a model that can be made again, for all of its logits.

    It refuses where the model or the inputs have changed since: the logits would be others.
    """

    def __init__(self, model: Any, kwargs: dict[str, Any], kind: str) -> None:
        self.model, self.kwargs, self.kind = model, kwargs, kind
        self.autocast: dict[str, Any] | None = (
            {
                "dtype": torch.get_autocast_dtype(kind),
                "enabled": torch.is_autocast_enabled(kind),
            }
            if torch.amp.is_autocast_available(kind)
            else None
        )
        self.versions = self._versions()

    def __call__(self) -> Any:
        if self.model.training or self._versions() != self.versions:
            raise RuntimeError(
                "the logits of a fused model's evaluation call are computed when they are first "
                "read, and the model or its inputs have changed since the call: read them sooner, "
                "or call the model with return_logits=True"
            )
        autocast: Any = contextlib.nullcontext()
        if self.autocast is not None:
            autocast = torch.autocast(self.kind, **self.autocast)
        inputs = {**self.kwargs, "return_dict": True, "return_logits": True}
        with torch.no_grad(), autocast:
            return self.model(**inputs)

    def _versions(self) -> list[int]:
        given = [value for value in self.kwargs.values() if isinstance(value, Tensor)]
        tensors = [*self.model.parameters(), *given]
        return [tensor._version for tensor in tensors if not tensor.is_inference()]


def refuse_logits() -> Tensor:
    """Refuse what ``fuse_loss(logits=False)`` does not make, when something reads it."""
    raise ValueError(
        "fuse_loss(logits=False) makes no logits, and something reads those of an evaluation call "
        "(compute_metrics, preprocess_logits_for_metrics or predict of a Trainer): use "
        'fuse_loss(logits="auto"), or maskft.attach(trainer)'
    )


class LaterLogits(Tensor):
    """A tensor of known shape and dtype whose elements ``compute()`` returns, once.

    Any operation on it is one on what ``compute`` returns, and its result a plain tensor. Its
    shape, dtype and device, and casting it to another dtype, compute nothing.
    """

    _compute: Callable[[], Tensor] | None
    _found: Tensor | None

    @staticmethod
    def __new__(
        cls,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        compute: Callable[[], Tensor],
    ) -> "LaterLogits":
        later = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        later._compute, later._found = compute, None
        return later

    def read(self) -> Tensor:
        """Return the logits as a plain tensor."""
        with torch._C.DisableTorchFunctionSubclass():
            if self._compute is not None:
                self._found, self._compute = self._compute(), None
            return self._found  # type: ignore[return-value]

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _KNOWN:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **kwargs)
        to_dtype = function is Tensor.to and len(args) == 2 and isinstance(args[1], torch.dtype)
        if (function in _CASTS or to_dtype) and isinstance(args[0], cls) and not kwargs:
            return args[0]._cast(function, args[1:])
        args, kwargs = tree_map_only(cls, cls.read, (args, kwargs))
        return function(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Serve what reaches PyTorch's dispatcher without having been a call in Python."""
        args, kwargs = tree_map_only(cls, cls.read, (args, kwargs or {}))
        return function(*args, **kwargs)

    def _cast(self, function: Any, args: tuple[Any, ...]) -> "LaterLogits":
        dtype = function(torch.empty(0, dtype=self.dtype), *args).dtype
        return LaterLogits(
            tuple(self.shape), dtype, self.device, lambda: function(self.read(), *args)
        )
