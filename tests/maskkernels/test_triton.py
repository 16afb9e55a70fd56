"""The Triton kernels, interpreted on the CPU in a process of their own, equal the reference."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("script", ["interpret_triton.py", "interpret_loss.py"])
def test_interpreted_kernels_equal_the_reference(script):
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name(script)],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "comparisons passed" in done.stdout
