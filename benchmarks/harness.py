"""Time contenders side by side: checked first, interleaved, reported with their provenance."""

import importlib
import json
import platform
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("maskkernels", "torch", "numpy", "numba", "triton", "transformers", "datasets")


def provenance(commit: str | None = None) -> dict[str, Any]:
    """Say what produced the numbers: device, versions, commit (git's unless given) and command."""
    versions = {"python": platform.python_version()}
    versions |= {name: _version(name) for name in PACKAGES}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu()
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": versions,
        "commit": commit or _commit(),
        "command": "python " + " ".join(sys.orig_argv[1:]),
        "date": time.strftime("%Y-%m-%d"),
    }


def _commit() -> str:
    """The commit, with "-dirty" where code (and not only results) differs from it."""

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=ROOT)

    if shutil.which("git") is None or git("rev-parse").returncode:
        return "unknown"
    code = ("maskkernels", "maskft", "benchmarks/*.py", "constraints.txt")
    dirty = "-dirty" if git("diff", "--quiet", "HEAD", "--", *code).returncode else ""
    return git("rev-parse", "--short=12", "HEAD").stdout.strip() + dirty


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def compare(
    contenders: dict[str, Callable[[], Any]],
    *,
    repeats: int = 50,
    turn: float = 0.005,
    synchronize: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, float]]:
    """Milliseconds of each contender: quantiles 20, 50 and 80 of its interleaved calls.

    Every one of ``repeats`` rounds goes through the contenders in another order. A contender's turn
    is one call that is not timed, so that it does not pay for what its neighbour left in the caches
    and the allocator, and then timed calls for ``turn`` seconds, at least one. With turn=0, for
    calls of seconds, a turn is one timed call.
    """
    order, shuffle = list(contenders), random.Random(0).shuffle
    for call in contenders.values():
        call()
    synchronize()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        shuffle(order)
        for name in order:
            if turn:
                contenders[name]()
                synchronize()
            end = time.perf_counter() + turn
            while True:
                begin = time.perf_counter()
                contenders[name]()
                synchronize()
                now = time.perf_counter()
                times[name].append((now - begin) * 1e3)
                if now >= end:
                    break
    return {name: quantiles(values) for name, values in times.items()}


def quantiles(values: Iterable[float]) -> dict[str, float]:
    """Quantiles 20, 50 and 80."""
    q = statistics.quantiles(values, n=10)
    return {"p20": q[1], "p50": q[4], "p80": q[7]}


def peak_mib(module: str, function: str, name: str) -> float:
    """MiB that one call adds to the memory of a process of its own, at its peak.

    ``module.function()`` gives contenders by name; the named one is called once to warm up, and
    once more while the kernel keeps the highest mark of resident memory (Linux only).
    """
    code = f"from benchmarks.harness import _print_peak; _print_peak(*{(module, function, name)!r})"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return float(run.stdout.split()[-1])


def _print_peak(module: str, function: str, name: str) -> None:
    torch.set_num_threads(1)
    call = getattr(importlib.import_module(module), function)()[name]
    call()
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts from here
    before = _status("VmRSS")
    call()
    print((_status("VmHWM") - before) / 1024)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"no {field} in /proc/self/status")


class Results:
    """Rows with provenance in a JSON file, written whenever rows are added.

    Attributes:
        path: of the file.
        rows: all so far, numbers rounded to four digits.
    """

    def __init__(self, name: str, out: Path = RESULTS, commit: str | None = None):
        self.path, self.rows = out / f"{name}.json", list[dict[str, Any]]()
        self._commit = commit

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Print rows and write them with those before."""
        for row in rows:
            self.rows.append({
                k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()
            })  # fmt: skip
            print("  ".join(f"{k}={v}" for k, v in self.rows[-1].items()), flush=True)
        found = {"provenance": provenance(self._commit), "rows": self.rows}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(found, indent=1) + "\n")


def write(name: str, rows: list[dict[str, Any]]) -> Path:
    """Write rows with provenance as JSON, and print them; returns the path."""
    results = Results(name)
    results.add(rows)
    print(f"wrote {results.path.relative_to(ROOT)}")
    return results.path


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """The same kernels as a CUDA graph: without the Python that launches them."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # as PyTorch asks where there are gradients
        call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
