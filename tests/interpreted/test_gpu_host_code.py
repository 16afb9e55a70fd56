"""What `make gpu` does on the host, without a GPU: its benchmarks and its short tests."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def run(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("stage", ["loss", "kernels"])
def test_a_stage_of_benchmarks_runs_and_writes_its_results(stage, tmp_path):
    said = run("benchmarks.gpu", "--dry-run", "--commit", "abc", "--out", str(tmp_path), stage)
    assert f"{stage}: green" in said
    written = list(tmp_path.glob("*_cuda.json"))
    assert written
    assert all('"commit": "abc"' in path.read_text() for path in written)


def test_the_short_gpu_tests_pass_on_a_pretended_gpu():
    said = run("tests.support.pretend_gpu", "-q", "-m", "not long and not unchecked", "tests/gpu")
    assert re.search(r"[1-9]\d* variants in \d+ launches", said)
