"""A few of the fuzzer's calls, the same ones every time; `python -m tests.fuzz` makes the rest."""

import pytest

from tests import fuzz


@pytest.mark.parametrize("room", fuzz.ROOMS)
def test_no_arguments_crash_or_differ_from_the_reference(room):
    assert fuzz.run(room, calls=60, seed=1) == []


def test_the_fuzzer_finds_what_is_wrong(monkeypatch):
    """A kernel that answers elsewhere, and an error without a name."""
    pack = fuzz.mk.pack_rows

    def wrong(lengths, capacity, *, backend, **options):
        packing = pack(lengths, capacity, backend=backend, **options)
        return packing if backend == "reference" else packing._replace(fill=2.0)

    monkeypatch.setattr(fuzz.mk, "pack_rows", wrong)
    assert "Numba gives" in fuzz.run("pack", calls=20, seed=1)[0]
    monkeypatch.setattr(fuzz.mk, "pack_rows", lambda *_, **__: [][0])
    assert "an error without a name: IndexError" in fuzz.run("pack", calls=1, seed=1)[0]
