"""Inputs that another thread writes to during a call: any mask, but nothing outside the arrays."""

import subprocess
import sys


def test_no_array_is_left_while_another_thread_writes_to_the_inputs():
    """``tests.races --checked`` looks inside the kernels too, and compiles for a minute."""
    command = [sys.executable, "-m", "tests.races", "--calls", "25"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[0]) >= 25 * 30, done.stdout
