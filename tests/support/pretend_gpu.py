"""A GPU where there is none: tensors that say they are on one and lie in the CPU's memory.

The host code of the GPU half runs as it would there: every ``maskkernels`` op of such tensors runs
what is registered for CUDA. Its kernels are recorded, and compiled for a target if that is wanted,
but not run; the op's result is then what its CPU half gives for the same values. So a test's
assertions hold where its host code does, and the kernels that a GPU would have to compile are
known by number and name. Captured graphs and ``torch.compile`` are not pretended, and the CPU half
must not get what it refuses at its door.

    python -m tests.support.pretend_gpu -q -m "not long and not unchecked" tests/gpu
"""

import contextlib
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

GPU = torch.device("cuda", 0)
TARGET = GPUTarget("cuda", 90, 32)
NAME = "a pretended GPU: no kernel ran"
aten = torch.ops.aten
_FACTORIES_OF_GARBAGE = {
    aten.empty.memory_format, aten.empty_strided.default, aten.new_empty.default,
    aten.new_empty_strided.default, aten.empty_like.default,
}  # fmt: skip


_AT_ONCE = {  # what makes or reads tensors where a mode for ops does not see it
    getattr(torch.Tensor, name)
    for name in ("tolist", "item", "__int__", "__float__", "__bool__", "__index__", "__setitem__")
}


def _is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _unwrap(tree: Any) -> Any:
    return tree_map_only(OnGPU, lambda t: t.inner, tree)


class OnGPU(torch.Tensor):
    """A tensor whose device is a GPU's and whose values are those of ``inner``, on the CPU.

    To PyTorch's own code it is on "meta": a build without CUDA cannot have gradients on a GPU.
    """

    inner: torch.Tensor
    device = GPU  # type: ignore[assignment]
    is_cuda = True  # type: ignore[assignment]
    is_meta = False  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "OnGPU":
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device="meta", requires_grad=inner.requires_grad,
        )  # fmt: skip

    def __init__(self, inner: torch.Tensor):
        self.inner = inner

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def __repr__(self, **_: Any) -> str:
        return f"OnGPU({self.inner.tolist()})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]
        return _dispatch(func, args, kwargs or {})


def _dispatch(func: Any, args: Any, kwargs: Any) -> Any:
    """Run ``func`` on the CPU's memory; the result is on the GPU where the real one would be."""
    wrappers: dict[int, OnGPU] = {}

    def take(t: OnGPU) -> torch.Tensor:
        wrappers[id(t.inner)] = t
        return t.inner

    if func.namespace == "maskkernels":
        host_code = func.redispatch
        with _Mode(), _Indexed():  # what it makes with device= is on the GPU too
            host_code(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), *args, **kwargs)
    inner_args = tree_map_only(OnGPU, take, args)
    inner_kwargs = dict(tree_map_only(OnGPU, take, kwargs))
    on_gpu = bool(wrappers)
    if inner_kwargs.get("device") is not None:
        on_gpu = _is_gpu(inner_kwargs["device"])
        inner_kwargs["device"] = torch.device("cpu")
    inner_kwargs.pop("pin_memory", None)
    if func is aten.copy_.default and not isinstance(args[0], OnGPU):
        on_gpu = False
    out = func(*inner_args, **inner_kwargs)
    if func in _FACTORIES_OF_GARBAGE:
        out.zero_()  # what no kernel fills; an index of zero is inside
    if not on_gpu:
        return out

    def give(t: torch.Tensor) -> torch.Tensor:
        known = wrappers.get(id(t))
        return OnGPU(t) if known is None else known

    return tree_map_only(torch.Tensor, give, out)


class _Mode(TorchDispatchMode):
    """For what has no tensor of the GPU among its arguments: factories and copies to it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if _is_gpu(kwargs.get("device")) or any(isinstance(a, OnGPU) for a in args):
            return _dispatch(func, args, kwargs)
        return func(*args, **kwargs)


class _Indexed(TorchFunctionMode):
    """Says which GPU, since a torch that was built without CUDA has no current one."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.__repr__ and isinstance(args[0], OnGPU):
            return f"OnGPU({args[0].inner.tolist()})"
        if func in _AT_ONCE and isinstance(args[0], OnGPU):
            return func(*_unwrap(args))
        if func in (torch.where, torch.Tensor.where) and any(isinstance(a, OnGPU) for a in args):
            return OnGPU(func(*_unwrap(args)))  # its numbers become tensors on "meta"
        if func is torch.Tensor.cuda:
            return args[0].to(GPU)
        args, kwargs = tree_map_only((str, torch.device), _indexed, (args, kwargs or {}))
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == GPU:
            return func(*args, **{**kwargs, "device": "cpu"}).to(GPU)
        return func(*args, **kwargs)


def _indexed(device: Any) -> Any:
    return GPU if str(device) == "cuda" else device


class Kernels:
    """What was launched.

    Attributes:
        variants: {kernel's name: {what Triton compiles separately}}.
        launches: how many launches in all.
        seconds: what compiling took.
    """

    def __init__(self) -> None:
        self.variants: dict[str, set[str]] = {}
        self.launches = 0
        self.seconds = 0.0

    def __len__(self) -> int:
        return sum(map(len, self.variants.values()))

    def table(self) -> str:
        """The number of variants of each kernel and of all."""
        lines = [f"{len(self.variants[name]):5} {name}" for name in sorted(self.variants)]
        total = f"{len(self):5} variants in {self.launches} launches"
        took = f", compiled in {self.seconds:.0f} s" if self.seconds else ""
        return "\n".join([*lines, total + took])


class _Argument:
    """What a launch needs to know of a tensor: its type and whether its address is aligned."""

    def __init__(self, tensor: torch.Tensor):
        self.dtype, self._offset = tensor.dtype, tensor.storage_offset() * tensor.itemsize

    def data_ptr(self) -> int:
        return self._offset

    @staticmethod
    def ptr_range() -> int:
        return 0


class _Driver:
    """Triton's driver of a GPU that only compiles."""

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return GPU


@contextlib.contextmanager
def pretend_gpu(*, compile_kernels: bool = False) -> Iterator[Kernels]:
    """Let torch and Triton believe in a GPU; yields the record of the kernels launched.

    Args:
        compile_kernels: compile every new variant for sm_90, into Triton's cache.
    """
    found = Kernels()
    backend = triton.compiler.make_backend(TARGET)
    binders: dict[JITFunction, Any] = {}

    def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        args = tuple(_Argument(a) if isinstance(a, torch.Tensor) else a for a in args)
        kwargs = {k: _Argument(a) if isinstance(a, torch.Tensor) else a for k, a in kwargs.items()}
        if kernel not in binders:
            binders[kernel] = triton.runtime.jit.create_function_from_signature(
                kernel.signature, kernel.params, backend
            )
        _, kinds, options = binders[kernel](*args, **kwargs)
        key = f"{kinds} {options}"
        seen = found.variants.setdefault(kernel.fn.__name__, set())
        found.launches += 1
        if key not in seen and compile_kernels:
            begin = time.perf_counter()
            real_run(kernel, *args, grid=grid, warmup=True, **kwargs)
            found.seconds += time.perf_counter() - begin
        seen.add(key)

    real_run = JITFunction.run
    nothing = lambda *a, **k: None  # noqa: E731
    properties = SimpleNamespace(
        multi_processor_count=132, total_memory=80 << 30, major=9, minor=0, name=NAME
    )
    answers = {
        "is_available": lambda: True, "_lazy_init": nothing, "synchronize": nothing,
        "set_sync_debug_mode": nothing, "current_device": lambda: 0, "device_count": lambda: 1,
        "mem_get_info": lambda *a: (0, 80 << 30), "get_device_name": lambda *a: NAME,
        "get_device_capability": lambda *a: (9, 0), "get_device_properties": lambda *a: properties,
        "reset_peak_memory_stats": nothing, "memory_allocated": lambda *a: 0,
        "max_memory_allocated": lambda *a: 0, "is_current_stream_capturing": lambda: False,
        "empty_cache": nothing, "Stream": lambda *a: mock.MagicMock(),
        "current_stream": lambda *a: mock.MagicMock(),
        "stream": lambda *a: contextlib.nullcontext(),
        "device": lambda *a: contextlib.nullcontext(),
        "graph": lambda *a, **k: contextlib.nullcontext(), "CUDAGraph": _Graph,
    }  # fmt: skip
    before = dict(vars(driver))
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        stack.enter_context(mock.patch.object(JITFunction, "run", run))
        driver.set_active(_Driver())
        stack.enter_context(_Mode())
        stack.enter_context(_Indexed())
        try:
            yield found
        finally:
            vars(driver).clear()
            vars(driver).update(before)


class _Graph:
    """A graph whose replay changes nothing."""

    def replay(self) -> None:
        """Replay nothing."""


def main(arguments: list[str]) -> int:
    """Run pytest with ``arguments``; print what kernels a GPU would compile, or compile them."""
    import pytest
    import transformers.modeling_utils  # noqa: F401  looks for a real GPU when it is loaded

    wanted = "--compile" in arguments
    arguments = [a for a in arguments if a != "--compile"]
    with pretend_gpu(compile_kernels=wanted) as found:
        code = pytest.main(["-p", "no:cacheprovider", *arguments])
    print(found.table())
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
