"""Import packages that only some features need, or say how to install them."""

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def optional(module: str, extra: str) -> Any:
    """Import a module of an optional package.

    Raises:
        ModuleNotFoundError: it is not installed; the error gives the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError:
        raise _not_installed([module.partition(".")[0]], extra) from None


def require(packages: Iterable[str], extra: str) -> None:
    """Raise ModuleNotFoundError, as ``optional`` does, unless ``packages`` are installed."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise _not_installed(missing, extra)


def _not_installed(packages: list[str], extra: str) -> ModuleNotFoundError:
    *others, last = packages
    names = f"{', '.join(others)} and {last}" if others else last
    return ModuleNotFoundError(
        f"this needs {names}, which {'are' if others else 'is'} not installed: "
        f"pip install 'maskkernels[{extra}]'"
    )
