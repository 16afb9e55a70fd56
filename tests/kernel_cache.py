"""Compile the kernels of the short GPU tests here, and carry them to a machine with a GPU.

    python -m tests.kernel_cache make FOLDER      # writes FOLDER/triton-VERSION-sm_90.tar.gz
    python -m tests.kernel_cache unpack FILE      # there: into Triton's cache

Triton keys its cache by its own version, so the file's name has it and another one is refused. The
cache lists its files by absolute paths, which unpacking rewrites. Only what launches is packed.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import triton

NAME = f"triton-{triton.__version__}-sm_90.tar.gz"
KEPT = (".cubin", ".json")
TESTS = ("-q", "-m", "not long and not unchecked", "tests/gpu")


def pack(cache: Path, file: Path) -> None:
    """Pack the cubins of a cache, their metadata and the lists of them."""
    with tarfile.open(file, "w:gz") as tar:
        for path in sorted(p for p in cache.rglob("*") if p.suffix in KEPT):
            tar.add(path, path.relative_to(cache))


def unpack(file: Path, cache: Path) -> int:
    """Unpack into ``cache``, with the paths that hold there; returns the number of kernels.

    Raises:
        ValueError: the file was made by another version of Triton.
    """
    if file.name != NAME:
        raise ValueError(f"file={file.name!r}: this Triton reads {NAME}; make it with this version")
    with tarfile.open(file) as tar:
        tar.extractall(cache, filter="data")
    groups = list(cache.glob("*/__grp__*.json"))
    for group in groups:
        listed = json.loads(group.read_text())
        kept = [name for name in listed["child_paths"] if name.endswith(KEPT)]
        listed["child_paths"] = {name: str(group.parent / name) for name in kept}
        group.write_text(json.dumps(listed))
    return len(groups)


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] not in ("make", "unpack"):
        print(__doc__)
        return 2
    path = Path(arguments[1])
    if arguments[0] == "unpack":
        cache = Path(os.environ.get("TRITON_CACHE_DIR", Path.home() / ".triton" / "cache"))
        print(f"{unpack(path, cache)} kernels in {cache}")
        return 0
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "tests.support.pretend_gpu", "--compile", *TESTS]
        subprocess.run(command, env={**os.environ, "TRITON_CACHE_DIR": cache})
        pack(Path(cache), path / NAME)
    print(f"wrote {path / NAME}: {(path / NAME).stat().st_size >> 20} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
