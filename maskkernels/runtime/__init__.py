"""How kernels run on the CPU: compiled and cached, over a few threads."""

from maskkernels.runtime.fork import import_guarded

__all__ = ["import_guarded"]
