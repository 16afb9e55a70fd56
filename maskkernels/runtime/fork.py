"""Let a fork wait for what other threads are in the middle of.

A child has only the thread that forked. A lock that another thread held stays locked in it for
ever: that of a module being imported, that of Numba's compiler. So those are guarded by locks of
ours, and a fork takes them all first. Systems that do not fork need none of this.
"""

import os
import threading
from contextlib import AbstractContextManager
from importlib import import_module
from types import ModuleType
from typing import Any

_imports = threading.RLock()
_guards: list[Any] = [_imports]  # taken in this order: imports may compile, compiling imports none
_taken: list[Any] = []  # by the thread that forks


def hold_forks(lock: AbstractContextManager[Any]) -> None:
    """Have every later fork take ``lock`` (a reentrant one) first, after those known so far."""
    _guards.append(lock)


def import_guarded(path: str) -> ModuleType:
    """Import a module, which a fork waits for. What imports at the first call uses this."""
    with _imports:
        return import_module(path)


def _acquire() -> None:
    for lock in _guards:  # which grows while imports are waited for
        lock.__enter__()
        _taken.append(lock)


def _release() -> None:
    held, _taken[:] = _taken[:], []  # before the first is free, and another thread forks
    for lock in reversed(held):
        lock.__exit__(None, None, None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_acquire, after_in_parent=_release, after_in_child=_release)
