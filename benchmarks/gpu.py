"""Prove and measure the GPU half: ``python -m benchmarks.gpu`` on a machine with a GPU.

Runs the GPU tests, the same comparisons under compute-sanitizer where it is installed, and the GPU
benchmarks; writes JSON under benchmarks/results/. Stops at the first red test: a wrong kernel is
not timed.
"""

import shutil
import subprocess
import sys

import torch


def main() -> int:
    if not torch.cuda.is_available():
        print("no GPU on this machine: nothing was run")
        return 1
    tests = [sys.executable, "-m", "pytest", "-q", "tests/maskkernels/test_gpu.py"]
    if code := subprocess.run(tests).returncode:
        return code
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        print("compute-sanitizer is not installed: memory checks were not run")
    elif code := subprocess.run([sanitizer, "--error-exitcode", "9", *tests]).returncode:
        return code
    from benchmarks import bench_mask

    bench_mask.main("cuda")
    return 0


if __name__ == "__main__":
    sys.exit(main())
