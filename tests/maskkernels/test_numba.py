"""What only the CPU kernels can get wrong: threads, forks, long rows, the cache on disk."""

import itertools
import mmap
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest
import torch

from maskkernels import MaskingPolicy, mask_tokens
from maskkernels.runtime.jit import _TRIED
from maskkernels.runtime.threads import WORTH, over_rows

pytestmark = pytest.mark.slow

V = 1000
POLICIES = (
    MaskingPolicy(3, V),
    MaskingPolicy(3, V, rate=0.5, random_share=0.2, replacement="unit"),
    MaskingPolicy(3, V, selection="budget"),
    MaskingPolicy(3, V, selection="budget", rate=0.5, replacement="unit"),
)


own_cache = pytest.mark.skipif(
    not numba.__version__.startswith(_TRIED), reason="Numba's own cache, without our precautions"
)


@pytest.fixture
def threads():
    """Sets the number of threads; back to what it was afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def large(seed=0):
    """Flat ids of rows from 0 to 100,000 tokens, enough of them for four threads."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.cat([torch.randint(0, 3000, (150,), generator=g), torch.tensor([100_000, 0])])
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    assert bounds[-1] > 4 * WORTH
    return torch.randint(4, V, (int(bounds[-1]),), generator=g), bounds


def same(a, b):
    return all(x is y is None or torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("capacity", [None, 7, 50_000, 400_000])
def test_any_number_of_threads_gives_the_same_bits(policy, capacity, threads):
    ids, bounds = large()
    arguments = {"seed": 3, "cu_seqlens": bounds, "capacity": capacity}
    if policy.replacement == "unit":
        arguments["units"] = torch.arange(ids.numel()) // 3 % 40
    if policy is POLICIES[3]:
        arguments["rates"] = torch.arange(ids.numel()) % 100 / 99
    found = []
    for n in (1, 2, 4):
        threads(n)
        found.append(mask_tokens(ids, policy, **arguments))
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    if capacity is not None:
        predicted = torch.nonzero(found[0].labels != -100).squeeze(1)
        assert found[0].count == predicted.numel()
        kept = predicted[:capacity]
        assert torch.equal(found[0].positions[: kept.numel()], kept)
        assert (found[0].positions[kept.numel() :] == -1).all()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("rated", [False, True])
def test_long_rows_equal_the_reference(policy, scattered, rated):
    """Rows past the block of a kernel, and unit numbers too far apart for a table."""
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(0, V, (3, 5003), generator=g)
    keep = torch.rand(ids.shape, generator=g) < 0.9
    keep[0, :1500] = False
    units = None
    if scattered or policy.replacement == "unit":
        units = torch.arange(ids.numel()).view(ids.shape) // 2 % 2400 - 1
    if scattered:
        numbers = torch.randint(0, 1 << 34, (2400,), generator=g)
        units = torch.where(units < 0, -1, numbers[units.clamp(0)])
    rates = torch.rand(ids.shape, generator=g) ** 3 if rated else None
    found = [
        mask_tokens(
            ids,
            policy,
            seed=8,
            attention_mask=keep,
            units=units,
            rates=rates,
            capacity=9000,
            backend=backend,
        )
        for backend in ("reference", "numba")
    ]
    assert same(*found)


def test_the_first_bad_id_is_named_whatever_the_threads(threads):
    ids, bounds = large()
    ids[[ids.numel() // 2, ids.numel() - 5]] = V
    for n in (1, 4):
        threads(n)
        with pytest.raises(ValueError, match=rf"input_ids\[{ids.numel() // 2}\] is {V}"):
            mask_tokens(ids, POLICIES[0], seed=1, cu_seqlens=bounds)


def test_callers_at_the_same_time_do_not_meet(threads):
    threads(2)
    batches = [large(seed) for seed in range(6)]

    def masked(batch):
        return mask_tokens(batch[0], POLICIES[0], seed=1, cu_seqlens=batch[1])

    alone = [masked(batch) for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(masked, batches))
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_makes_its_own_threads():
    """In a process of its own, so that a child that hangs fails here and nowhere else."""
    code = """
import os, torch
from tests.maskkernels.test_numba import POLICIES, large, mask_tokens
torch.set_num_threads(2)
ids, bounds = large()
before = mask_tokens(ids, POLICIES[0], seed=1, cu_seqlens=bounds).labels
child = os.fork()
if not child:
    after = mask_tokens(ids, POLICIES[0], seed=1, cu_seqlens=bounds).labels
    os._exit(0 if torch.equal(before, after) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    folder = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, timeout=120)


@pytest.mark.skipif(sys.platform != "linux", reason="MAP_NORESERVE has this number on Linux")
def test_offsets_past_2_to_the_31_are_right():
    from maskkernels.batch import _numba

    space = mmap.mmap(  # 16 GiB of addresses, of which one page is touched
        -1, 8 * ((1 << 31) + 8), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000
    )  # MAP_NORESERVE
    values = np.frombuffer(space, np.int64)
    begin = (1 << 31) - 2
    values[begin : begin + 5] = [1, 2, 3, 4, 5]
    out = np.zeros((1, 8), np.int64)
    _numba.pad(values, np.array([begin, begin + 5]), True, 9, out)
    assert out.tolist() == [[9, 9, 9, 1, 2, 3, 4, 5]]


def test_rows_are_cut_by_tokens(threads):
    threads(2)
    bounds = np.cumsum([0, *[1] * 1000, 4 * WORTH])
    parts = over_rows(lambda begin, end: (begin, end), bounds)
    assert parts[0][0] == 0
    assert parts[-1][1] == 1001
    assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
    assert over_rows(lambda begin, end: (begin, end), np.array([0])) == [(0, 0)]


PRINT_MASKS = """
import torch
from maskkernels import MaskingPolicy, mask_tokens
print(mask_tokens(torch.arange(64).view(2, 32), MaskingPolicy(3, 64), seed=1).labels.tolist())
"""


EVERY_KERNEL = """
import importlib, pkgutil, torch, maskkernels
from maskkernels import *
ids, words = torch.arange(40, 104).view(2, 32), torch.ones(104, dtype=torch.uint8)
keep, sample_ids = torch.ones_like(ids), torch.arange(2)
def results(backend):
    for ids_ in (ids, ids.int()):
        units = word_units(ids_, words, attention_mask=keep, backend=backend)
        yield units
        yield hash_rows(ids_, attention_mask=keep, backend=backend)
        for selection in ("bernoulli", "budget"):
            for unit in (None, units):
                policy = MaskingPolicy(3, 104, selection=selection)
                yield mask_tokens(ids_, policy, seed=1, units=unit, capacity=9, backend=backend)[0]
    yield random_words(sample_ids, sample_ids, seed=1, backend=backend)
    yield pad_rows([[1, 2], [3]], backend=backend)
    rows = {"a": [[1, 2], [3]]}
    yield pad_batch(rows, padding_values={"a": 0}, backend=backend)["attention_mask"]
assert all(torch.equal(a, b) for a, b in zip(results("numba"), results("reference"), strict=True))
hits = misses = 0
for room in pkgutil.walk_packages(maskkernels.__path__, "maskkernels."):
    if "._numba" in room.name:
        for kernel in vars(importlib.import_module(room.name)).values():
            if getattr(kernel, "stats", None) and kernel.stats.cache_path:  # not inlined ones
                hits += sum(kernel.stats.cache_hits.values())
                misses += sum(kernel.stats.cache_misses.values())
print(hits, misses)
"""


def test_a_second_process_loads_every_kernel_and_compiles_none(package):
    first, second = (run(package, EVERY_KERNEL) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    compiled = int(first.stdout.split()[1])
    assert compiled >= 10
    assert second.stdout.split() == [str(compiled), "0"]


def run(folder, code=PRINT_MASKS, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **environment}, timeout=300,
    )  # fmt: skip


@pytest.fixture
def package(tmp_path):
    """A copy of the package without compiled kernels."""
    source = Path(sys.modules["maskkernels"].__file__).parent
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source, tmp_path / "maskkernels", ignore=ignore)
    return tmp_path


def test_a_change_in_an_inlined_function_is_compiled_anew(package):
    before = run(package)
    assert list(package.glob("maskkernels/mask/__pycache__/*.nbi")), "nothing was cached"
    assert run(package).stdout == before.stdout
    changed = package / "maskkernels" / "rng" / "_numba.py"
    text = changed.read_text()
    assert "0xD2511F53" in text
    changed.write_text(text.replace("0xD2511F53", "0xD2511F55"))
    after = run(package)
    assert after.returncode == 0
    assert after.stdout != before.stdout


def test_without_a_folder_for_the_cache_it_works_and_says_so_once(package):
    for room in ("rng", "mask"):  # a file where the folder should be: nobody can write into it
        (package / "maskkernels" / room / "__pycache__").write_text("")
    blocked = package / "file"
    blocked.write_text("")
    nowhere = str(blocked / "folder")
    found = run(package, XDG_CACHE_HOME=nowhere, HOME=nowhere, NUMBA_CACHE_DIR=nowhere)
    assert found.returncode == 0, found.stderr
    assert found.stdout == run(package).stdout
    assert found.stderr.count("RuntimeWarning") == 1
    assert "NUMBA_CACHE_DIR" in found.stderr


@own_cache
@pytest.mark.parametrize(("ending", "kept"), [("nbi", 50), ("nbc", 500)])
def test_a_spoiled_cache_costs_a_compilation_and_no_more(package, ending, kept):
    first = run(package)
    for file in package.glob(f"maskkernels/mask/__pycache__/*.{ending}"):
        file.write_bytes(file.read_bytes()[:kept])
    second, third = run(package), run(package)
    assert first.stdout == second.stdout == third.stdout != ""
    assert second.stderr.count("RuntimeWarning") == 1
    assert "cannot be read" in second.stderr
    assert third.stderr == ""


@own_cache
@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files, as POSIX can")
def test_a_full_disk_costs_the_cache_and_no_more(package):
    full = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
"""
    found = run(package, full + PRINT_MASKS)
    assert found.stdout == run(package).stdout != ""
    assert found.stderr.count("RuntimeWarning") == 1
    assert "cannot be kept" in found.stderr
