"""Forks while other threads are inside a first call: the child must not wait for ever.

Each case runs in a process of its own, so that a child that hangs fails here and nowhere else.
Events decide what happens when; the time limit is for a child that hangs.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

FORK = """
import os, sys, threading
entered, go = threading.Event(), threading.Event()

def pause():
    entered.set()
    go.wait()

def masks():
    import torch
    from maskkernels import MaskingPolicy, mask_tokens
    return mask_tokens(torch.arange(64).view(2, 32), MaskingPolicy(3, 64), seed=1).labels

{before}

thread = threading.Thread(target={first})
thread.start()
entered.wait()
os.register_at_fork(before=go.set)  # runs before the library's own: the thread goes on only now
child = os.fork()
if not child:
    {first}()
    os._exit(0)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
thread.join()
raise SystemExit(status)
"""

IMPORT = """
import maskkernels, maskft

class Pause:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            pause()

sys.meta_path.insert(0, Pause())
"""

COMPILE = """
import numba.core.event

class Pause(numba.core.event.Listener):
    def on_start(self, event):
        pause()

    def on_end(self, event):
        pass

numba.core.event.register("numba:compile", Pause())
"""


def run(before, first, **environment):
    subprocess.run(
        [sys.executable, "-c", FORK.format(before=before, first=first)],
        cwd=Path(__file__).parents[3], check=True, timeout=600,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("name", ["maskkernels.mask._numba", "numba"])
def test_a_fork_waits_for_a_thread_that_imports_kernels(name):
    run(IMPORT.format(name=name), "masks")


def test_a_fork_waits_for_a_thread_that_imports_a_name_of_maskft():
    run(IMPORT.format(name="maskft.collate.collator"), "(lambda: maskft.mask_batch)")


def test_a_fork_waits_for_a_thread_that_compiles(tmp_path):
    run(COMPILE, "masks", NUMBA_CACHE_DIR=str(tmp_path))


def test_many_threads_fork_at_once():
    """The locks are given back to whom they belong to, whatever the order."""
    code = """
import os, threading
import maskkernels.backend
from maskkernels.runtime import jit

def work():
    for _ in range(20):
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)

threads = [threading.Thread(target=work) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not any(lock._is_owned() for lock in [maskkernels.runtime.fork._imports])
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=Path(__file__).parents[3], check=True,
        timeout=600, capture_output=True, text=True,
    )  # fmt: skip
    assert "Error" not in done.stderr
