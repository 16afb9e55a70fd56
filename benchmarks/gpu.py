"""Prove and measure the GPU half, in stages: ``python -m benchmarks.gpu --out DIR [STAGE ...]``.

Every stage is a command of its own that takes less than eight minutes, prints a short table last
and fails where something is red; a red test does not stop the benchmarks. Without a stage all run
in turn. Results are written to DIR as they come.

    python -m benchmarks.gpu --plan                 # the stages and their planned minutes
    python -m benchmarks.gpu --dry-run STAGE ...    # their host code, without a GPU
    python -m benchmarks.gpu --dry-run --compile STAGE ...  # and what compiling takes
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import bench_loss_gpu, bench_mask, harness
from benchmarks.bench_loss_gpu import Shape
from benchmarks.harness import RESULTS, Results, captured, compare
from benchmarks.peers import MASK_ID, SPECIAL, VOCABULARY
from maskkernels import (
    MaskingPolicy,
    SpanCorruption,
    TextInfilling,
    corrupt_spans,
    corrupted_lengths,
    geometric_lengths,
    infill_text,
    mask_tokens,
    pad_corrupted,
    rates_from_weights,
    span_units,
    word_units,
)

LIMIT = 470  # seconds of a stage
_EDGES = "test_mask_gpu.py::test_masks_equal_those_of_the_cpu_where_blocks_begin_and_end"
SANITIZED = (  # about ten: every kernel at least once, where addresses could go wrong
    f"{_EDGES}[left-131-bernoulli]",
    f"{_EDGES}[long-budget]",
    f"{_EDGES}[packed-weighted-units]",
    "test_mask_gpu.py::test_broken_samples_stay_inside_the_tokens[bounds2]",
    "test_mask_gpu.py::test_units_that_nobody_looked_at_have_the_defined_result",
    "test_mask_gpu.py::test_ids_outside_the_table_are_never_masked",
    "test_denoise_gpu.py::test_broken_bounds_stay_inside_the_tokens[t5-bounds2]",
    "test_denoise_gpu.py::test_broken_bounds_stay_inside_the_tokens[sentences-bounds1]",
    "test_loss_gpu.py::test_labels_outside_the_classes_and_too_many_of_them_are_nan",
    "test_loss_gpu.py::test_two_runs_give_the_same_bits[True]",
)
SIZES = ((64, 512), (4096, 512), (32768, 512))  # 2^24 tokens are the most
DRY_SIZES, DRY_SHAPES = ((4, 64),), {"dry": Shape(32, 16, 300, 0.5)}


class Run(NamedTuple):
    """How to run a stage.

    Attributes:
        out: the folder for results.
        commit: what to write down as the commit; None asks git.
        dry: whether there is no GPU and only the host code is tried, on small shapes.
        compiles: whether a dry run compiles its kernels too.
    """

    out: Path
    commit: str | None
    dry: bool = False
    compiles: bool = False

    def results(self, name: str) -> Results:
        """The file for rows of this name."""
        return Results(name, self.out, self.commit)


def layouts(rows: int, length: int, device: str) -> dict[str, tuple[float, Callable[[], Any]]]:
    """{name: (bytes a token that the kernels must move, call)}: every layout and selection.

    int64 ids come in, ids and labels go out: 24 bytes. 8 more where ids are hashed or units read
    or labels searched for positions, 24 for the keys of a budget (written, read for the limits
    and for the masks), 1 for a boolean attention mask in each kernel that reads all of it.
    """
    column = torch.arange(length, device=device)
    ids = torch.randint(SPECIAL, VOCABULARY, (rows, length), device=device)
    start = torch.randint(0, length // 2, (rows, 1), device=device)
    maskable = torch.ones(VOCABULARY, dtype=torch.bool, device=device)
    maskable[:SPECIAL] = False
    names = torch.arange(rows, device=device)
    packed = torch.cat([names.new_zeros(1), (length - start.view(-1)).cumsum(0)])
    flat = ids.view(-1)[: int(packed[-1])].contiguous()
    units = (column // 3).expand(rows, length).contiguous()
    plain = MaskingPolicy(MASK_ID, VOCABULARY)
    budget = MaskingPolicy(MASK_ID, VOCABULARY, selection="budget")
    room = rows * length // 4
    given = {"seed": 1, "maskable": maskable}
    named = given | {"sample_ids": names}
    left, right = column >= start, column < length - start
    out = [torch.empty_like(ids) for _ in range(2)]
    return {
        "full rows": (24, lambda: mask_tokens(ids, plain, **named)),
        "full rows, hashed": (32, lambda: mask_tokens(ids, plain, **given)),
        "right padding": (25, lambda: mask_tokens(ids, plain, attention_mask=right, **named)),
        "left padding": (26, lambda: mask_tokens(ids, plain, attention_mask=left, **named)),
        "packed": (
            24 * flat.numel() / ids.numel(),
            lambda: mask_tokens(flat, plain, cu_seqlens=packed, **named),
        ),
        "positions": (32, lambda: mask_tokens(ids, plain, capacity=room, **named)),
        "units": (32, lambda: mask_tokens(ids, plain, units=units, **named)),
        "budget": (48, lambda: mask_tokens(ids, budget, **named)),
        "the ids copied twice": (32, lambda: [o.copy_(ids) for o in out]),
    }


def denoisers(rows: int, length: int, device: str) -> dict[str, tuple[float, Callable[[], Any]]]:
    """{name: (bytes a token, call)}: denoising to packed rows and to batches of one shape.

    int64 ids are read twice, for their hash and to be copied; inputs and targets go out, and once
    more with their padding and an attention mask. Sentences have 20 tokens and are copied once.
    """
    ids = torch.randint(SPECIAL, SPECIAL + 100, (rows, length), device=device)
    ends = range(SPECIAL, SPECIAL + 5)
    corruption = SpanCorruption(range(VOCABULARY - 1, VOCABULARY - 101, -1))
    infilling = TextInfilling(MASK_ID)
    sentences = TextInfilling(MASK_ID, permute_sentences=True, sentence_end_ids=ends)
    inputs, targets = corrupted_lengths(length, eos=False)

    def batch() -> dict[str, Any]:
        found = corrupt_spans(ids, corruption, seed=1)
        return pad_corrupted(found, input_length=inputs, target_length=targets)

    out, padded = 8 * (inputs + targets) / length, 8 * (2 * inputs + targets) / length
    return {
        "spans": (16 + out, lambda: corrupt_spans(ids, corruption, seed=1)),
        "spans, one shape": (16 + 2 * out + padded, batch),
        "infilling": (30, lambda: infill_text(ids, infilling, seed=1)),
        "infilling, sentences shuffled": (46, lambda: infill_text(ids, sentences, seed=1)),
    }


def plans(rows: int, length: int, device: str) -> dict[str, tuple[float, Callable[[], Any]]]:
    """{name: (bytes a token that the kernels must move, call)}: words, spans of them, rates.

    int64 ids or units come in and int64 numbers go out: 16 bytes. The weights of rates are float64
    and read twice with the units; parts of them are written, and read once to become rates: 56.
    """
    ids = torch.randint(SPECIAL, VOCABULARY, (rows, length), device=device)
    table = (torch.arange(VOCABULARY, device=device) % 4 > 0).to(torch.uint8)
    weights = torch.rand(rows, length, device=device, dtype=torch.float64) ** 3 + 0.01
    names, words = torch.arange(rows, device=device), word_units(ids, table)
    lengths = geometric_lengths()
    calls: dict[str, tuple[float, Callable[[], Any]]] = {}
    for backend, name in (("triton", ""), ("reference", ", whole tensors in torch")):
        on: dict[str, Any] = {"backend": backend}
        spans: dict[str, Any] = {"sample_ids": names, "seed": 1, **on}
        calls |= {
            f"words{name}": (16, partial(word_units, ids, table, **on)),
            f"spans{name}": (16, partial(span_units, words, lengths, **spans)),
            f"rates{name}": (56, partial(rates_from_weights, weights, words, 0.15, **on)),
        }
    return calls


def time_calls(results: Results, calls_of: Callable[..., Any], run: Run) -> None:
    """Time every call, launched from Python and as a captured graph, with the bandwidth."""
    for shape in DRY_SIZES if run.dry else SIZES:
        calls = calls_of(*shape, "cuda")
        for how in ("launched", "captured"):
            timed = compare(
                {
                    k: call if how == "launched" else captured(call)
                    for k, (_, call) in calls.items()
                },
                repeats=2 if run.dry else 30,
                turn=0.0 if run.dry else 0.005,
                synchronize=torch.cuda.synchronize,
            )
            rows = []
            for what, ms in timed.items():
                moved = calls[what][0] * shape[0] * shape[1]
                rows.append({
                    "what": what, "how": how, "shape": "x".join(map(str, shape)), **ms,
                    "bytes": int(moved), "GB_per_s": moved / ms["p50"] / 1e6,
                })  # fmt: skip
            results.add(rows)


def loss(run: Run) -> int:
    """Time the fused loss with its peers, head by head."""
    results = run.results("loss_cuda")
    if run.dry:
        bench_loss_gpu.main(results, DRY_SHAPES, repeats=2)
    else:
        bench_loss_gpu.main(results)
    for row in results.rows:
        print(f"{row['p50']:10.3f} ms  {row['case']:22} {row['what']}")
    return 0


def kernels(run: Run) -> int:
    """Time masks in every layout, plans and denoising, with the bandwidth each reaches."""
    for name, calls_of in (("mask_layouts", layouts), ("plans", plans), ("denoise", denoisers)):
        time_calls(results := run.results(f"{name}_cuda"), calls_of, run)
        for row in results.rows:
            print(f"{row['GB_per_s']:8.0f} GB/s  {row['shape']:9} {row['how']} {row['what']}")
    if not run.dry:
        bench_mask.on_gpu(run.results("mask_cuda"))
    return 0


def short(run: Run) -> int:
    """Compare every kernel with the CPU: few distinct kernels, pairs of options all met."""
    return run_tests(run, "short", "not long", "tests/gpu")


def long(run: Run) -> int:
    """Capture, compile, pass 2^31 elements, and repeat the whole grids of cases."""
    return run_tests(run, "long", "long", "tests/gpu")


def sanitizer(run: Run) -> int:
    """Watch a few tests of every kernel with compute-sanitizer."""
    tool = shutil.which("compute-sanitizer")
    if tool is None and not run.dry:
        print("compute-sanitizer is not installed: memory was not checked")
        return 1
    watch = [str(tool), "--error-exitcode", "9", "--report-api-errors", "no"]
    watch += ["--target-processes", "all"]
    names = [f"tests/gpu/{name}" for name in SANITIZED]
    return run_tests(run, "sanitizer", "not long", *names, watch=[] if run.dry else watch)


def run_tests(run: Run, name: str, marks: str, *names: str, watch: list[str] | None = None) -> int:
    """Run tests in a process of their own; what pytest prints goes to the folder too."""
    command = ["-q", "--tb=short", "-p", "no:cacheprovider", "-m", marks, *names]
    if run.dry:
        # the CPU half stands in for kernels, and must not get what it refuses
        command[command.index(marks)] = f"({marks}) and not unchecked"
        command = ["-m", "tests.support.pretend_gpu", *command]
        command += ["--compile"] if run.compiles else []
        if name == "long":
            command.append("--collect-only")
    else:
        workers = ["-n", str(min(8, os.cpu_count() or 1))]
        spread = find_spec("xdist") is not None and watch is None
        command = ["-m", "pytest", *(workers if spread else []), *command]
    environment = dict(os.environ)
    if watch is not None:
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    run.out.mkdir(parents=True, exist_ok=True)
    with (run.out / f"{name}.log").open("w+") as log:
        try:
            code = subprocess.run(
                [*(watch or []), sys.executable, *command], stdout=log, stderr=subprocess.STDOUT,
                cwd=harness.ROOT, env=environment,
                timeout=None if run.compiles else LIMIT,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            print(f"{name}: stopped after {LIMIT} s", file=log)
            code = 124
        log.seek(0)
        print("".join(log.readlines()[-25:]))
    return code


STAGES: dict[str, tuple[Callable[[Run], int], int]] = {  # and minutes to plan for
    "short": (short, 5), "loss": (loss, 4), "kernels": (kernels, 5), "long": (long, 7),
    "sanitizer": (sanitizer, 5),
}  # fmt: skip


def plan() -> None:
    """Print the stages with their planned minutes, and the sum."""
    for name, (stage, minutes) in STAGES.items():
        print(f"{minutes:3} min  {name:10} {(stage.__doc__ or '').splitlines()[0]}")
    print(f"{sum(minutes for _, minutes in STAGES.values()):3} min  in all")


def dry_run(name: str, run: Run) -> int:
    """Try a stage's host code on a pretended GPU; prints what kernels it would compile."""
    from tests.support.pretend_gpu import pretend_gpu

    stage = STAGES[name][0]
    if stage not in (loss, kernels):
        return stage(run)  # a process of its own pretends
    with pretend_gpu(compile_kernels=run.compiles) as found:
        code = stage(run)
    print(found.table())
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--out", type=Path, help="folder for results; benchmarks/results")
    parser.add_argument("--commit", help="what to write down as the commit where git cannot tell")
    parser.add_argument("--dry-run", action="store_true", help="host code only, without a GPU")
    parser.add_argument("--compile", action="store_true", help="with --dry-run: compile for sm_90")
    parser.add_argument("--plan", action="store_true", help="print the stages and do nothing")
    given = parser.parse_args()
    if unknown := set(given.stages) - set(STAGES):
        parser.error(f"unknown stage {sorted(unknown)}; there are {list(STAGES)}")
    if given.plan:
        plan()
        return 0
    if not given.dry_run and not torch.cuda.is_available():
        print("no GPU on this machine: nothing was run (--dry-run tries the host code)")
        return 1
    with tempfile.TemporaryDirectory() as nowhere:  # what a dry run measures is nothing
        out = given.out or (Path(nowhere) if given.dry_run else RESULTS)
        run = Run(out, given.commit, given.dry_run, given.compile)
        return run_stages(given.stages or list(STAGES), run)


def run_stages(names: list[str], run: Run) -> int:
    """Run stages in turn, whatever the ones before did; 1 where one is red."""
    codes = {}
    for name in names:
        begin = time.perf_counter()
        try:
            codes[name] = dry_run(name, run) if run.dry else STAGES[name][0](run)
        except Exception as error:  # the next stage runs all the same
            print(f"{name}: {type(error).__name__}: {error}")
            codes[name] = 1
        print(f"{name}: {'red' if codes[name] else 'green'} in {time.perf_counter() - begin:.0f} s")
    return int(any(codes.values()))


if __name__ == "__main__":
    sys.exit(main())
