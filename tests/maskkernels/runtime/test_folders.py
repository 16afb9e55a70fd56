"""Compiled kernels are kept only where nobody else can write: what lies there runs as the user."""

import os
import pickle
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from maskkernels.runtime import folders
from maskkernels.runtime.folders import open_to_others

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="folders have no owners here")
root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives folders away"
)
STRANGER = 54321


@pytest.fixture
def base():
    """A folder that others can see into, in one where all can write (sticky)."""
    made = Path(tempfile.mkdtemp(dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture(autouse=True)
def closed_package(base, monkeypatch):
    monkeypatch.setattr(folders, "_PACKAGE", base)
    open_to_others.cache_clear()
    yield
    open_to_others.cache_clear()


def folder(base, *modes):
    for i, mode in enumerate(modes):
        base = base / str(i)
        base.mkdir()
        base.chmod(mode)
    return base


@pytest.mark.parametrize(
    "modes", [(0o755, 0o755), (0o700, 0o777), (0o755, 0o1755), (0o1777, 0o755)]
)
def test_a_folder_of_ones_own_is_closed(base, modes):
    assert open_to_others(str(folder(base, *modes))) is None


@pytest.mark.parametrize(
    ("modes", "culprit"),
    [((0o755, 0o777), "0/1"), ((0o777, 0o755), "0"), ((0o755, 0o1777), "0/1"), ((0o702,), "0")],
)
def test_a_folder_where_all_can_write_is_open(base, modes, culprit):
    assert open_to_others(str(folder(base, *modes))) == base / culprit


@root
def test_a_group_is_others_unless_it_is_the_owners_own(base):
    made = folder(base, 0o775)
    assert open_to_others(str(made)) is None
    os.chown(made, -1, STRANGER)
    open_to_others.cache_clear()
    assert open_to_others(str(made)) == made


@root
def test_a_folder_of_another_user_is_open(base):
    made = folder(base, 0o755)
    os.chown(made, STRANGER, -1)
    assert open_to_others(str(made)) == made
    assert open_to_others(str(folder(made, 0o755))) == made  # who can put another one there


def test_a_link_is_judged_by_where_it_leads(base):
    made = folder(base, 0o777)
    (base / "link").symlink_to(made)
    assert open_to_others(str(base / "link")) == made


def test_who_may_write_to_the_package_is_no_stranger(base, monkeypatch):
    """A package that all can write to runs what anybody likes, with a cache or without."""
    monkeypatch.setattr(folders, "_PACKAGE", folder(base, 0o777))
    assert open_to_others(str(base / "0")) is None


class Planted:
    """What runs when a planted index is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def test_what_others_leave_in_the_cache_does_not_run(base):
    code = "from only_kernel import add\nassert add(1) == 2\n"
    (base / "only_kernel.py").write_text(
        "from maskkernels.runtime.jit import kernel\n\n@kernel\ndef add(x):\n    return x + 1\n"
    )
    cache, mark = base / "cache", base / "mark"

    def run():
        return subprocess.run(
            [sys.executable, "-c", code], cwd=base, check=True, capture_output=True, text=True,
            env={**os.environ, "NUMBA_CACHE_DIR": str(cache),
                 "PYTHONPATH": f"{Path(__file__).parents[3]}{os.pathsep}{base}"},
        ).stderr  # fmt: skip

    assert "Warning" not in run()
    indices = list(cache.rglob("*.nbi"))
    assert len(indices) == 1
    with indices[0].open("wb") as file:
        pickle.dump(Planted(mark), file)
    indices[0].parent.chmod(0o777)
    said = run()
    assert not mark.exists()
    assert "others can write to" in said
    assert "nobody else, can write to" in said
    assert stat.S_IMODE(indices[0].parent.stat().st_mode) == 0o777
