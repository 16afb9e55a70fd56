"""Compile the Numba kernels: without the GIL, cached on disk, never from a stale cache.

Numba's cache notices a change of the file that holds a kernel, and of no other. Ours call functions
of other files, so the name under which a kernel is cached carries a digest of them all: of this
file, of every ``_numba*.py`` in the package, and of the files whose constants they compile in.
Kernels live in files of that name only.
"""

import contextlib
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba as nb
import numpy.ma  # noqa: F401  Numba asks for it at a call, and no lock would keep a fork out
from llvmlite import ir
from numba.core import cgutils
from numba.core.caching import FunctionCache, NullCache
from numba.core.compiler_lock import global_compiler_lock
from numba.core.runtime import rtsys
from numba.extending import intrinsic

from maskkernels.runtime.folders import open_to_others
from maskkernels.runtime.fork import hold_forks

_TRIED = ("0.68.",)  # versions of Numba
_CONSTANTS = ("mask/actions.py", "rng/streams.py", "units/flags.py", "units/weights.py")

inlined = nb.njit(forceinline=True)  # a function that kernels call: part of each of them


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile ``function`` at its first call, or load what an earlier process compiled.

    Where no folder can be written to or read from, it is compiled in every process, and a
    warning says so. So it is where others could write to the folder: what they leave there would
    run as this user.
    """
    function.__qualname__ += f"-{_DIGEST}"
    compiled = nb.njit(nogil=True)(function)
    try:
        compiled.enable_caching()
        if nb.__version__.startswith(_TRIED):
            compiled._cache = _Cache(function)
    except RuntimeError:
        _warn_once("no folder to keep compiled kernels in")
        return compiled
    folder = compiled._cache.cache_path
    if others := open_to_others(folder):
        compiled._cache = NullCache()
        _warn_once(
            f"compiled kernels are not kept in {folder}, because others can write to {others} and "
            "what they leave there would run as you"
        )
    return compiled


class _Cache(FunctionCache):
    """Numba's cache on disk, without its set-up of the whole compiler in front of every load.

    Machine code that is there needs the run-time and nothing else, and the rest was half of a
    worker's first batch. Where there is no such code, compilation sets everything up by itself.
    It rests on Numba's insides, so only the versions it was tried with have it.

    A full disk or a spoiled file costs a compilation, as no cache would, and not the masks.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        rtsys.initialize(target_context)
        try:
            with self._guard_against_spurious_io_errors():
                return self._load_overload(sig, target_context)
        except Exception as error:  # unpickling what anything has written raises anything
            _warn_once(f"a compiled kernel in {self.cache_path} cannot be read ({error!r})")
            with contextlib.suppress(OSError):
                self.flush()  # what is compiled now can be kept again
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _warn_once(f"a compiled kernel cannot be kept in {self.cache_path} ({error})")


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


def copier(width: int) -> Any:
    """copy(source, begin, end, target, at, limit): source[begin:end] to target from ``at``.

    For many short stretches, of which most have at most ``width`` elements. Gives where the stretch
    ends in the target. Where there is room for them, ``width`` elements are copied at once, because
    a loop that may end anywhere is a branch mispredicted every time; what is written behind the
    stretch, below ``limit``, is for the caller to write over later. Contiguous arrays of one dtype.
    An intrinsic, because a function that is handed arrays counts references, which costs more than
    such a copy.
    """

    @intrinsic
    def copy(_, source, begin, end, target, at, limit):
        def codegen(context, builder, signature, arguments):
            kinds = signature.args
            read, written = (
                context.make_array(kinds[n])(context, builder, arguments[n]) for n in (0, 3)
            )
            begin, end, at, limit = (arguments[n] for n in (1, 2, 4, 5))
            size = builder.sub(end, begin)
            after = builder.add(at, size)
            step = ir.Constant(size.type, width)
            room = builder.and_(
                builder.icmp_signed("<=", builder.add(after, step), limit),
                builder.icmp_signed("<=", builder.add(end, step), read.nitems),
            )
            first, place = builder.gep(read.data, [begin]), builder.gep(written.data, [at])
            element = context.get_data_type(kinds[0].dtype)
            bytes_each = context.get_abi_sizeof(element)
            block = ir.VectorType(element, width).as_pointer()
            with builder.if_else(room) as (blocks, exact):
                with blocks, cgutils.for_range_slice(builder, size.type(0), size, step) as (i, _):
                    taken = builder.load(
                        builder.bitcast(builder.gep(first, [i]), block), align=bytes_each
                    )
                    to = builder.bitcast(builder.gep(place, [i]), block)
                    builder.store(taken, to, align=bytes_each)
                with exact:
                    cgutils.raw_memcpy(builder, place, first, size, bytes_each)
            return after

        return nb.int64(source, nb.int64, nb.int64, target, nb.int64, nb.int64), codegen

    return copy


@intrinsic
def lowest_bit(_, bits):
    """The index of the lowest bit that is set in a uint64, which is not 0."""

    def codegen(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return nb.int64(nb.uint64), codegen


def kernel_files() -> list[Path]:
    """List the files that a compiled kernel depends on: ``_numba*.py`` and those of constants."""
    package = Path(__file__).parents[1]
    return [*sorted(package.glob("**/_numba*.py")), *(package / name for name in _CONSTANTS)]


def _digest() -> str:
    digest = hashlib.sha256()
    for source in [Path(__file__), *kernel_files()]:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


_DIGEST = _digest()
_warned = False


def _warn_once(what: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"{what}: compiling again takes seconds. If every process says so, set NUMBA_CACHE_DIR "
            "to a folder that you, and nobody else, can write to.",
            RuntimeWarning,
            stacklevel=3,
        )


hold_forks(global_compiler_lock)
