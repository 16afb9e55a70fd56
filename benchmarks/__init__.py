"""Benchmarks: ``python -m benchmarks`` on the CPU, ``python -m benchmarks.gpu`` on a GPU."""
