"""Identify the version of this package in the names of caches that hold what it computed."""

from functools import cache
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


@cache
def code_digest() -> str:
    """Hash the sources and the version of this package."""
    found = blake2b(digest_size=16)
    try:
        found.update(version("maskkernels").encode())
    except PackageNotFoundError:  # run from a checkout that is not installed
        found.update(b"not installed")
    folder = Path(__file__).resolve().parents[1]
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        found.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
        found.update(content)
    return found.hexdigest()


class NamedByCode:
    """Pickle together with ``code_digest``.

    ``datasets`` names its cache by what an annotator pickles to, so that other code annotates again
    in place of finding the columns of the old.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_code": code_digest()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({name: value for name, value in state.items() if name != "_code"})
