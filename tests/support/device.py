"""Code for a GPU where there is none: its host half runs on tensors without values ("meta").

What would make the host wait for a GPU, or break the capture of a CUDA graph, cannot be done to
such tensors or is refused here: reading a number, searching for places, choosing by booleans,
copying between host and device. So what gets through never waits. Kernels are not run, only
counted; what they compute is tested elsewhere.
"""

import contextlib
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from maskkernels import backend
from maskkernels.loss import _triton as loss
from maskkernels.loss.job import LossJob
from maskkernels.mask import _triton as mask
from maskkernels.mask.job import MaskJob
from maskkernels.rng import _triton as rng
from maskkernels.tokens import _triton as tokens

DEVICE = torch.device("meta")
aten, ours = torch.ops.aten, torch.ops.maskkernels
_READS = {
    aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default,
    aten.nonzero.default, aten.masked_select.default, aten._unique2.default,
    aten.unique_consecutive.default, aten.bincount.default,
}  # fmt: skip
_BY_INDEX = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
_COPIES = {aten._to_copy.default, aten.copy_.default}
_HOST_CODE = {
    ours.mask_tokens.default: lambda *a: mask.mask_tokens(MaskJob(*a)),
    ours.cross_entropy.default: lambda *a: loss.cross_entropy(LossJob(*a)),
    ours.cross_entropy_backward.default: lambda grad, *a: loss.cross_entropy_backward(
        grad, LossJob(*a)
    ),
}


class Waits(RuntimeError):
    """The host would wait for the device."""


class Kernel:
    """What is called in place of a kernel."""

    def __init__(self, name, launched):
        self.name, self.launched = name, launched

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.launched.append(self.name)


class _NoWaits(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _HOST_CODE:
            with self:
                return _HOST_CODE[func](*args, **kwargs)
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
        on_device = any(t.device == DEVICE for t in tensors)
        if func in _READS and on_device:
            raise Waits(f"{func} reads from the device")
        if func is aten.repeat_interleave.Tensor and on_device and not kwargs.get("output_size"):
            raise Waits("repeat_interleave without output_size")
        if func in _BY_INDEX and on_device:
            chosen = [i.dtype for i in args[1] if i is not None]
            if torch.bool in chosen or torch.uint8 in chosen:
                raise Waits(f"{func} by booleans searches on the device")
        if func in _COPIES:
            devices = {t.device.type for t in tensors}
            devices |= {kwargs["device"].type} if kwargs.get("device") is not None else set()
            if len(devices) > 1:
                raise Waits(f"{func} copies between {sorted(devices)}")
        return func(*args, **kwargs)


@contextlib.contextmanager
def on_device():
    """No host code within may wait for the meta device; gives the names of the kernels launched."""
    launched = []
    with contextlib.ExitStack() as stack:
        for module in (loss, mask, rng, tokens):
            for name, value in list(vars(module).items()):
                if type(value).__name__ in ("JITFunction", "InterpretedFunction"):
                    stack.enter_context(mock.patch.object(module, name, Kernel(name, launched)))
        kernels = backend.Kernels(("cuda", DEVICE.type), "triton")
        stack.enter_context(mock.patch.dict(backend._KERNELS, triton=kernels))
        stack.enter_context(_NoWaits())
        yield launched
