"""Which backend computes, and the one dispatcher that every op goes through.

A backend is one entry of ``_KERNELS`` and a file ``_<name>.py`` in each room that has it, with a
function for each ``Op`` of the room. Nothing else imports those files by name.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple, NewType

import torch
from torch import Tensor

from maskkernels.runtime.fork import import_guarded


class Kernels(NamedTuple):
    """Where a backend runs and what it needs.

    Attributes:
        devices: types of the devices whose tensors it takes; the first backend of a device is what
            "auto" and the registered ops run there.
        package: what must be installed.
    """

    devices: tuple[str, ...]
    package: str


_KERNELS = {
    "numba": Kernels(("cpu",), "numba"),
    "triton": Kernels(("cuda",), "triton"),  # ROCm builds of torch call their device "cuda" too
}
BACKENDS = ("reference", *_KERNELS)
_MISSING = {kernels.package for kernels in _KERNELS.values() if find_spec(kernels.package) is None}


def home_of(device_type: str) -> str:
    """Name the first backend of a type of device; the reference where it has none."""
    for name, kernels in _KERNELS.items():
        if device_type in kernels.devices:
            return name
    return "reference"


def why_not(name: str, device: torch.device) -> str | None:
    """Say why backend ``name`` cannot run on tensors of ``device``; None where it can."""
    if name == "reference":
        return None
    devices, package = _KERNELS[name]
    if device.type not in devices:
        return f"tensors are on {device.type}; {name} runs on {' and '.join(devices)} tensors"
    if package in _MISSING:
        return f"{name} is not installed; pip install {package}"
    return None


def resolve(backend: str, device: torch.device) -> str:
    """Turn ``backend`` ("auto" or a name) into the name of the backend that runs on ``device``.

    "auto" takes Triton on a GPU, Numba on the CPU, and the reference where neither can run.

    Raises:
        ValueError: an unknown name, or a named backend that cannot run there.
    """
    if not isinstance(backend, str):
        raise TypeError(f"backend must be a str, got {type(backend).__name__}")
    if backend == "auto":
        name = home_of(device.type)
        return "reference" if name in _KERNELS and _KERNELS[name].package in _MISSING else name
    if backend != "reference" and backend not in _KERNELS:
        raise ValueError(f"backend={backend!r}: expected one of {('auto', 'reference', *_KERNELS)}")
    if reason := why_not(backend, device):
        raise ValueError(f"backend={backend!r}: {reason}")
    return backend


@cache
def numbers_on(device: torch.device, numbers: tuple[int, ...]) -> Tensor:
    """int64 [n]: options for a kernel, kept on its device, never written to and never freed.

    A captured CUDA graph holds the address, and kernels on other streams may still read it, so no
    table can be dropped safely. Tables are small (a few numbers to a few hundred), one for each set
    of options. The first call waits for the copy, since later ones may come on another stream.
    """
    return torch.tensor(numbers, dtype=torch.int64, device=device)


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Make ``device`` the current one, on which Triton launches; does nothing where it is."""
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        return torch.cuda.device(device)
    return _NOTHING


_NOTHING = nullcontext()
_LIBRARY = torch.library.Library("maskkernels", "DEF")
Constant = NewType("Constant", int)  # an int argument of an op that a trace never makes symbolic
_SCHEMA_TYPES: dict[Any, str] = {
    Tensor: "Tensor", Tensor | None: "Tensor?", int: "SymInt", Constant: "int", float: "float",
    bool: "bool", str: "str", list[int]: "int[]", list[float]: "float[]", list[bool]: "bool[]",
}  # fmt: skip


def _schema(arguments: Mapping[str, Any], results: int) -> str:
    taken = ", ".join(f"{_SCHEMA_TYPES[kind]} {name}" for name, kind in arguments.items())
    given = "Tensor" if results == 1 else f"({', '.join(['Tensor'] * results)})"
    return f"({taken}) -> {given}"


class Op:
    """One operation: the function of its name in ``reference`` and in each backend of a room.

    Every backend's function takes the same arguments: a checked job, or a few values. Where there
    is a ``fake``, the operation is also registered as ``maskkernels::<name>``, with those arguments
    spelt out in tensors and numbers, so that graphs, fake tensors and autograd see it. It is the
    plain registration, because ``torch.library.custom_op`` loads the whole compiler (a second in
    every worker) and wraps each call.
    """

    def __init__(
        self,
        room: str,
        name: str,
        *,
        fake: Callable[..., Any] | None = None,
        job: Any = None,
        arguments: Mapping[str, Any] | None = None,
        results: int = 1,
        read: Callable[..., tuple[Any, ...]] | None = None,
        spell: Callable[..., tuple[Any, ...]] | None = None,
        own: Callable[..., Any] | None = None,
        check: Callable[..., None] | None = None,
        direct: bool = False,
        setup_context: Callable[..., None] | None = None,
        backward: Callable[..., Any] | None = None,
    ) -> None:
        """Define the operation, and register it where it has a ``fake``.

        Args:
            room: the folder whose modules hold the functions.
            name: of the functions and of the registered op.
            fake: takes what the functions take; gives empty results of the right shapes.
            job: a named tuple, the only argument of the functions, whose fields are those of the
                registered op.
            arguments: {name: type} of the registered op, where ``job`` does not say it.
            results: how many tensors it gives.
            read: its arguments to those of the functions. Default: the same, or ``job`` of them.
            spell: the inverse of ``read``.
            own: (results, arguments of the functions) to results that share no memory with the
                arguments, as an op's must not. Default: they never do.
            check: looks at values, with the arguments of the functions, before the reference runs
                on the CPU. The reference itself has defined results for any values; the kernels
                for the CPU look as they go, so that compiled graphs have their looks too.
            direct: on the CPU, outside a graph, call the backend without the op in between, which
                costs 15 us: a quarter of a call on a small batch.
            setup_context, backward: its autograd, as ``torch.library.register_autograd`` takes it.
        """
        self.room, self.name = room, name
        self.direct = direct or fake is None
        self.read, self.spell, self.own, self.check = read, spell, own, check
        if job is not None:
            arguments = job.__annotations__
            self.read = read or (lambda *args: (job(*args),))
            self.spell = spell or (lambda given: given)
        self._modules: dict[str, ModuleType] = {}
        self.reference: Any = getattr(import_module(f"maskkernels.{room}.reference"), name, None)
        self.registered: Any = None
        if fake is None:
            return
        if arguments is None:
            raise TypeError(f"the op {name} needs a job or arguments for its schema")
        read = self.read
        _LIBRARY.define(name + _schema(arguments, results), tags=torch.Tag.pt2_compliant_tag)
        for device_type in sorted({d for kernels in _KERNELS.values() for d in kernels.devices}):
            _LIBRARY.impl(name, self._kernel(device_type), device_type.upper())
        torch.library.register_fake(
            f"maskkernels::{name}",
            fake if read is None else lambda *args: fake(*read(*args)),
            lib=_LIBRARY,
        )
        if backward is not None:
            torch.library.register_autograd(
                f"maskkernels::{name}", backward, setup_context=setup_context, lib=_LIBRARY
            )
        self.registered = getattr(torch.ops.maskkernels, name).default

    def __call__(self, backend: str, device: torch.device, *args: Any) -> Any:
        """Run on ``args``, whose tensors are on ``device``; ``backend`` as the user gave it."""
        return self.run(resolve(backend, device), device, *args)

    def run(self, name: str, device: torch.device, *args: Any) -> Any:
        """Run on the backend that ``resolve`` named."""
        if name == "reference":
            if self.check and device.type == "cpu" and not torch.compiler.is_compiling():
                self.check(*args)
            return self.reference(*args)
        if self._eager(device) or name != home_of(device.type):
            with current(device):
                return getattr(self.module(name), self.name)(*args)
        return self.registered(*(args if self.spell is None else self.spell(*args)))

    def _eager(self, device: torch.device) -> bool:
        """Whether a call may do without the registered op: nothing looks at it but its caller."""
        if self.registered is None:
            return True
        if not self.direct or device.type != "cpu" or torch.compiler.is_compiling():
            return False
        return not torch._C._len_torch_dispatch_stack()  # fake tensors, traces

    def module(self, name: str) -> ModuleType:
        """The room's file for backend ``name``, loaded at the first call."""
        found = self._modules.get(name)
        if found is None:
            path = f"maskkernels.{self.room}._{name}"
            try:
                found = self._modules[name] = import_guarded(path)
            except ModuleNotFoundError as error:
                if error.name != path:
                    raise
                raise ValueError(
                    f"backend={name!r}: maskkernels.{self.room} has no kernels of {name}"
                ) from None
        return found

    def _kernel(self, device_type: str) -> Callable[..., Any]:
        """What PyTorch calls for tensors of a type of device."""

        def compute(*args: Any) -> Any:
            taken = args if self.read is None else self.read(*args)
            with current(args[0].device):
                found = getattr(self.module(home_of(device_type)), self.name)(*taken)
            if self.own is not None:
                found = self.own(found, *taken)
            return tuple(found) if isinstance(found, tuple) else found

        return compute
