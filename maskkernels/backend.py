"""Which backend runs: the reference, Numba on the CPU, or Triton on the GPU."""

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

BACKENDS = ("reference", "numba", "triton")
_OF = {"cpu": "numba", "cuda": "triton"}  # ROCm builds of torch call their device "cuda" too
_INSTALLED = {name: find_spec(name) is not None for name in _OF.values()}


def why_not(name: str, device: torch.device) -> str | None:
    """Say why backend ``name`` cannot run on tensors of ``device``; None where it can."""
    if name == "reference":
        return None
    if _OF.get(device.type) != name:
        home = next(kind for kind, kernels in _OF.items() if kernels == name)
        return f"tensors are on {device.type}; {name} runs on {home} tensors"
    if not _INSTALLED[name]:
        return f"{name} is not installed; pip install {name}"
    return None


def resolve(backend: str, device: torch.device) -> str:
    """Turn ``backend`` ("auto" or a name) into the name of the backend that runs on ``device``.

    "auto" takes Triton on a GPU, Numba on the CPU, and the reference where neither can run.

    Raises:
        ValueError: an unknown name, or a named backend that cannot run there.
    """
    if backend == "auto":
        name = _OF.get(device.type, "reference")
        return name if _INSTALLED.get(name) else "reference"
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: expected one of {('auto', *BACKENDS)}")
    if reason := why_not(backend, device):
        raise ValueError(f"backend={backend!r}: {reason}")
    return backend


@lru_cache(maxsize=256)
def numbers_on(device: torch.device, numbers: tuple[int, ...]) -> Tensor:
    """int64 [n]: options for a kernel, kept on its device, never written to.

    The first call waits for the copy, since later ones may come on another stream.
    """
    return torch.tensor(numbers, dtype=torch.int64, device=device)


_LIBRARY = torch.library.Library("maskkernels", "DEF")


def define_op(
    name: str,
    schema: str,
    *,
    cpu: Callable[..., Any],
    cuda: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Register ``maskkernels::name`` with PyTorch; returns what calls it.

    The plain registration, because ``torch.library.custom_op`` loads the whole compiler (a second
    in every worker) and wraps each call.

    Args:
        name: of the op.
        schema: its arguments and results, as PyTorch writes them, with what is written to.
        cpu, cuda: what runs on the tensors of each device.
        fake: what gives empty results of the right shapes.
        setup_context, backward: its autograd, as ``torch.library.register_autograd`` takes it.
    """
    _LIBRARY.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
    _LIBRARY.impl(name, cpu, "CPU")
    _LIBRARY.impl(name, cuda, "CUDA")
    torch.library.register_fake(f"maskkernels::{name}", fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(
            f"maskkernels::{name}", backward, setup_context=setup_context, lib=_LIBRARY
        )
    return getattr(torch.ops.maskkernels, name).default
