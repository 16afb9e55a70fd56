"""Compile the Numba kernels: without the GIL, cached on disk, never from a stale cache.

Numba's cache notices a change of the file a kernel stands in, and no other. Ours call functions of
other files, so the name under which a kernel is cached carries a digest of them all.
"""

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba as nb

inlined = nb.njit(forceinline=True)  # a function that kernels call: part of each of them


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile ``function`` at its first call, or load what an earlier process compiled.

    Where no folder can be written to, it is compiled anew in every process, and a warning says so.
    """
    function.__qualname__ += f"-{_DIGEST}"
    compiled = nb.njit(nogil=True)(function)
    try:
        compiled.enable_caching()
    except RuntimeError:
        _warn_once()
    return compiled


def _digest() -> str:
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("**/_numba.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


_DIGEST = _digest()
_warned = False


def _warn_once() -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            "no folder to keep compiled kernels in: every process compiles them anew, which takes "
            "seconds. Set NUMBA_CACHE_DIR to a folder that can be written to.",
            RuntimeWarning,
            stacklevel=3,
        )
