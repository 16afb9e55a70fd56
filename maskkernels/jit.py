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
from numba.extending import intrinsic

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
