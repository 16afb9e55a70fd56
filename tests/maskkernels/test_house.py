"""The house: which way imports run inside maskkernels, and what a room's files are called."""

import ast
from pathlib import Path

import pytest

import maskkernels
from maskkernels.runtime import jit

HOME = Path(maskkernels.__file__).parent
FILES = sorted(path for path in HOME.rglob("*.py") if path.name != "__init__.py")
GROUND = {"tokens", "rng", "runtime", "backend"}  # what every room may use
# Another room that a room may use, for rows without padding.
ALSO = {"denoise": {"batch"}}
BACKEND = ("reference", "_numba", "_triton")


def imports(path):
    """(module, names) of every import of the package in a file, wherever it is written."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("maskkernels"):
            yield node.module, [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("maskkernels"):
                    yield alias.name, []


def kind(name):
    """The backend that a file belongs to; None where it belongs to none."""
    return next((backend for backend in BACKEND if name.startswith(backend)), None)


def place(module):
    """(room, file) of a module's name."""
    parts = [*module.split(".")[1:], "", ""]
    return parts[0], parts[1]


def label(path):
    return str(path.relative_to(HOME))


@pytest.mark.parametrize("path", FILES, ids=label)
def test_a_room_uses_the_ground_and_itself(path):
    room = path.relative_to(HOME).parts[0].removesuffix(".py")
    allowed = GROUND | {room} | ALSO.get(room, set())
    if room == "rng":
        allowed = {"tokens", "runtime", "backend", "rng"}
    elif room == "tokens":
        allowed = {"runtime", "tokens"}
    elif room in ("runtime", "backend"):
        allowed = {"runtime", room}
    used = {place(module)[0] for module, _ in imports(path)}
    assert used <= allowed


@pytest.mark.parametrize("path", FILES, ids=label)
def test_no_backend_is_imported_by_another_or_by_hand(path):
    """Kernels come from ``Op``; a backend's files use those of the same backend alone."""
    room, ours = path.relative_to(HOME).parts[0], kind(path.stem)
    for module, names in imports(path):
        other_room, file = place(module)
        for found in {kind(file), *(kind(name) for name in names)} - {None, ours}:
            # The reference is plain torch, loaded with the package: its formulas may be used.
            assert found == "reference", f"{label(path)} imports {module}"
            assert other_room == room


@pytest.mark.parametrize("path", FILES, ids=label)
def test_no_file_of_a_backend_imports_the_door(path):
    if kind(path.stem) is not None:
        modules = [place(module) for module, _ in imports(path)]
        assert not [file for _, file in modules if file in ("api", "op")]


def test_every_room_has_the_same_files():
    rooms = {path.parent.name for path in FILES} - {"maskkernels", "tokens", "runtime"}
    assert rooms == {"batch", "denoise", "loss", "mask", "pack", "rng", "units"}
    for room in rooms:
        files = {path.stem for path in (HOME / room).glob("*.py")}
        assert {"__init__", "api", "reference", "_numba"} <= files


def test_a_stale_cache_is_noticed_in_every_file_that_kernels_compile_in():
    """Numba compiles constants into kernels, so the files that name them are in the digest."""
    digested = set(jit.kernel_files())
    assert {path for path in FILES if path.name.startswith("_numba")} <= digested
    for path in FILES:
        if not path.name.startswith("_numba"):
            continue
        for module, names in imports(path):
            if any(name.isupper() for name in names):
                source = HOME.joinpath(*module.split(".")[1:]).with_suffix(".py")
                assert source in digested, f"{label(path)} compiles in constants of {module}"


def test_kernels_are_defined_only_in_files_that_the_digest_sees():
    for path in FILES:
        defined = any("runtime.jit" in module for module, _ in imports(path))
        assert not defined or path.name.startswith("_numba")


def test_no_two_streams_coincide():
    from maskkernels.rng import streams

    numbers = [value for name, value in vars(streams).items() if name.isupper()]
    assert sorted(numbers) == list(range(13))
