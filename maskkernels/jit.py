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
from llvmlite import ir
from numba.core.caching import FunctionCache
from numba.core.runtime import rtsys
from numba.extending import intrinsic

_TRIED = ("0.68.",)  # versions of Numba

inlined = nb.njit(forceinline=True)  # a function that kernels call: part of each of them


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile ``function`` at its first call, or load what an earlier process compiled.

    Where no folder can be written to, it is compiled anew in every process, and a warning says so.
    """
    function.__qualname__ += f"-{_DIGEST}"
    compiled = nb.njit(nogil=True)(function)
    try:
        compiled.enable_caching()
        if nb.__version__.startswith(_TRIED):
            compiled._cache = _Cache(function)
    except RuntimeError:
        _warn_once()
    return compiled


class _Cache(FunctionCache):
    """Numba's cache on disk, without its set-up of the whole compiler in front of every load.

    Machine code that is there needs the run-time and nothing else, and the rest was half of a
    worker's first batch. Where there is no such code, compilation sets everything up by itself.
    It rests on Numba's insides, so only the versions it was tried with have it.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        rtsys.initialize(target_context)
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)


@intrinsic
def at_most(_, words, begin, highest):
    """A uint64 whose bit i says that words[begin + i] <= highest, for the 64 words from begin.

    ``words`` is a contiguous uint32 array. A vector comparison and its mask, which no loop in
    Python terms becomes.
    """
    vector = ir.VectorType(ir.IntType(32), 64)

    def codegen(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = builder.gep(array.data, [arguments[1]])
        block = builder.load(builder.bitcast(place, vector.as_pointer()), align=4)
        lane = builder.insert_element(vector(ir.Undefined), arguments[2], ir.IntType(32)(0))
        limit = builder.shuffle_vector(lane, vector(ir.Undefined), vector([0] * 64))
        return builder.bitcast(builder.icmp_unsigned("<=", block, limit), ir.IntType(64))

    return nb.uint64(words, nb.int64, nb.uint32), codegen


@intrinsic
def lowest_bit(_, bits):
    """The index of the lowest bit that is set in a uint64, which is not 0."""

    def codegen(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return nb.int64(nb.uint64), codegen


def _digest() -> str:
    digest = hashlib.sha256()
    for source in [Path(__file__), *sorted(Path(__file__).parent.glob("**/_numba.py"))]:
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
