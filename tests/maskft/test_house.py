"""The rooms of maskft: imports run one way and in no circle, and files stay short."""

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES = 400
# What a room may import from others, rooms or files; its own files come on top. The command line
# may import every room.
MAY_IMPORT = {
    "strategy": (),
    "annotate": ("strategy.columns", "strategy.scripts"),  # names of columns, kinds of letters
    "collate": ("strategy",),
    "packing": ("collate", "strategy"),
    "fuse": ("collate.labels",),
    "trainer": ("packing", "collate", "strategy"),
    "insight": ("annotate", "collate", "fuse", "strategy"),
    "prompt": ("insight.logits",),
    "tasks": ("prompt", "insight.logits"),
}
FREE = ("extras",)  # a file on no floor: optional packages


def files(package):
    """{dotted name in the package: file}; the room itself for its ``__init__``."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT / package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path, known):
    """The files of maskft that one imports, anywhere in its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import, which this test does not read"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {n.removeprefix("maskft.") for n in names if n.startswith("maskft.")} & known
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def graph():
    known = files("maskft")
    return {
        name: imports(path, known.keys()) for name, path in known.items() if name != ""
    }  # the package itself loads its names on first use, so it may name every room


def within(name, rooms):
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_run_downwards(room):
    allowed = (room, *MAY_IMPORT[room], *FREE)
    wrong = [
        f"{name} imports {other}"
        for name, others in graph().items()
        if within(name, (room,))
        for other in others
        if not within(other, allowed)
    ]
    assert not wrong


def test_every_room_has_its_place():
    rooms = {name.partition(".")[0] for name in graph()}
    assert rooms == {*MAY_IMPORT, *FREE, "cli", "__main__"}


def test_imports_make_no_circle():
    list(TopologicalSorter(graph()).static_order())  # raises CycleError and names the circle


def test_maskft_takes_what_rooms_of_maskkernels_offer():
    """Names of maskkernels, of its rooms and of its dispatcher, and of no file within a room."""
    for path in files("maskft").values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("maskkernels.") for alias in node.names), path
            if isinstance(node, ast.ImportFrom) and node.module.startswith("maskkernels"):
                names = [alias.name for alias in node.names]
                assert node.module.count(".") < 2, f"{path} imports {node.module}"
                assert not any(name.startswith("_") for name in names), f"{path} imports {names}"


@pytest.mark.parametrize("package", ["maskft", "maskkernels"])
def test_no_file_is_long(package):
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in files(package).values()
    }
    assert {name: n for name, n in lengths.items() if n > LINES} == {}


def test_maskft_works_without_datasets():
    """attach, packing included, needs no ``datasets``: who has none cannot give it one."""
    code = """
import sys

sys.modules["datasets"] = None  # as if it were not installed
import maskft
from maskft.trainer.packing import row_lengths
maskft.attach, maskft.DataCollatorWithPacking, maskft.mask_batch
import tests.support.example, tests.support.fused, tests.support.trainers
assert row_lengths([{"input_ids": [1, 2]}, {"input_ids": [3]}]).tolist() == [2, 1]
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
