"""The Triton kernels, interpreted on the CPU in a process of their own, equal the reference."""

import os
import subprocess
import sys
from pathlib import Path


def test_interpreted_kernels_equal_the_reference():
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("interpret_triton.py")],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "comparisons passed" in done.stdout
