"""Time contenders side by side: checked first, interleaved, reported with their provenance."""

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("maskkernels", "torch", "numpy", "numba", "triton", "transformers")


def provenance() -> dict[str, Any]:
    """What produced the numbers: device, versions, commit and command."""
    versions = {"python": platform.python_version()}
    versions |= {name: _version(name) for name in PACKAGES}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu()
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True, text=True, cwd=Path(__file__).parent,
    )  # fmt: skip
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": versions,
        "commit": git.stdout.strip() or "unknown",
        "command": "python -m " + " ".join(["benchmarks", *sys.argv[1:]])
        if sys.argv[0].endswith("__main__.py")
        else "python -m benchmarks.gpu",
        "date": time.strftime("%Y-%m-%d"),
    }


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
    synchronize: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, float]]:
    """Milliseconds of each contender: quantiles 20, 50 and 80 of ``repeats`` interleaved calls."""
    for call in contenders.values():
        call()
        call()
    synchronize()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, call in contenders.items():
            begin = time.perf_counter()
            call()
            synchronize()
            times[name].append((time.perf_counter() - begin) * 1e3)
    quantiles = {name: statistics.quantiles(values, n=10) for name, values in times.items()}
    return {name: {"p20": q[1], "p50": q[4], "p80": q[7]} for name, q in quantiles.items()}


def write(name: str, rows: list[dict[str, Any]]) -> Path:
    """Write rows with provenance as JSON, and print them; returns the path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"provenance": provenance(), "rows": rows}, indent=1) + "\n")
    for row in rows:
        print(
            "  ".join(
                f"{k}={v:.3f}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()
            )
        )
    print(f"wrote {path.relative_to(Path(__file__).parent.parent)}")
    return path
