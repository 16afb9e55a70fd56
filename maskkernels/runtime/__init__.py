"""How kernels run on the CPU: compiled and cached, over a few threads."""
