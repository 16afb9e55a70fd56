"""Compile every Triton kernel for four GPU architectures, on a machine that needs none of them.

    python -m tests.compile_kernels

Prints registers, stack, spills and shared memory where the compiler tells; exits with 1 if any
kernel does not compile, or spills or takes more stack than ``SPILLS`` and ``STACK`` allow.
"""

import importlib
import inspect
import itertools
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import compiler
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

import maskkernels
from tests import loss_instructions

TARGETS = [
    GPUTarget("cuda", 80, 32),
    GPUTarget("cuda", 90, 32),
    GPUTarget("cuda", 100, 32),
    GPUTarget("hip", "gfx942", 64),
]
STACK = {  # bytes of stack a thread, which calls take, such as a division's; 8 elsewhere
    "_cross_entropy": 16, "_weigh": 16,
}  # fmt: skip
WIDTHS = {"fp32": 4, "bf16": 8, "fp16": 8}  # elements of 16 bytes of logits
SPILLS = {  # bytes that ptxas gives up to stay at a whole number of blocks a processor; 0 elsewhere
    ("write_spans", 80): 12, ("limit_keys", 80): 12,
}  # fmt: skip
# Older compilers than the one that these bounds were set with give up a few registers more;
# limit_keys keeps a whole row's keys in registers, all 255 of them.
OLDER = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)
OLDER_MOST = {"limit_keys": 160}  # bytes of stack or spilled; 64 elsewhere
POINTERS = {  # what a pointer argument points to; the names are the same in every kernel
    "edges": "i64", "odds": "i64", "plan": "i64", "choices": "i64", "draws": "i32", "flags": "i32",
    "until": "i32", "lengths": "i64", "target_lengths": "i64", "begins": "i64",
    "target_begins": "i64", "sentinels": "i64", "inputs": "i64", "targets": "i64", "list": "i64",
    "starts": "i32", "turns": "i32", "heads": "i32", "links": "i32",
    "shifts": "i32", "sentences": "i64",
    "ids": "i64", "sample": "i64", "sample_ids": "i64", "first": "i64", "real": "u8",
    "special": "u8", "table": "u8", "replacement": "i64", "units": "i64", "rates": "fp64",
    "keys": "i64", "limits": "i64", "leaders": "i64", "bounds": "i64", "index": "i64",
    "out": "i64", "labels": "i64", "counts": "i32", "count": "i64", "ends": "i64",
    "positions": "i64",
    "maskable": "u8", "offsets": "i64", "word_ids": "i64", "groups": "i64", "whole": "i64",
    "cut": "i64", "weights": "fp64", "parts": "fp64", "asked": "fp64", "total": "i64",
}  # fmt: skip
NARROW = {"ids": "i32", "out": "i32", "labels": "i32", "units": "i32", "rates": "fp32"}
NARROW_ROWS = {"ids": "i32", "inputs": "i32", "targets": "i32", "out": "i32"}
WIDE = {"real": "i64", "special": "i64"}  # masks as tokenizers give them
OVERRIDES = {
    "_cross_entropy": {
        "rows": "i64", "factors": "fp32", "class_weights": "fp32", "loss": "fp32",
        "entropy": "fp32", "rank": "i32",
    },
    "_scale": {"factors": "fp32"},
    "_select": {
        "class_weights": "fp32", "token_weights": "fp32", "items": "fp32", "at": "i64",
        "out": "i64", "scales": "fp32", "count": "i64", "numbers": "fp32",
    },
    "_gather": {"at": "i64"},
}  # fmt: skip
FLOATS = [dict.fromkeys(("logits", "out", "bias"), t) for t in ("fp32", "bf16", "fp16")]
DTYPES = {  # in which dtypes a kernel is compiled; POINTERS unless it is here
    "_mask_tokens": [{}, NARROW | WIDE],
    "_number": [{}, WIDE | {"ids": "i32"}],
    "_span_units": [{}, {"units": "i32"}],
    "_weigh": [{}, {"units": "i32", "weights": "fp32"}, {"weights": "bf16"}],
    "_cross_entropy": [*FLOATS, FLOATS[2] | {"out": "fp32"}],
    "_scale": FLOATS,
    "_gather": [dict.fromkeys(("input", "out"), t) for t in WIDTHS],
    **{name: [{}, NARROW_ROWS] for name in ("write_spans", "write_infilling", "permute_sentences")},
}
ALIGNED = {"length", "padded", "out_padded", "stride", "out_stride"}  # as a chunk of logits is
TOGETHER = {"_mask_tokens": [{"BUDGET", "HAS_RATES"}]}  # flags that change each other's code
LAUNCH = {  # block and warps, 512 and 4 elsewhere
    "choose": (128, 4), "order_sentences": (128, 4),
    "limit_keys": (512, 1), "rank_tokens": (256, 1), "_mask_tokens": (256, 1),
    "_positions": (256, 1), "_first_real": (1024, 4), "_hash_rows": (1024, 4),
    "_number": (1024, 4), "_span_units": (1024, 4), "_weigh": (1024, 4), "_share_out": (1024, 4),
    "_random_words": (256, 4), "_cross_entropy": (4096, 8), "_scale": (4096, 4),
    "_select": (1024, 8), "_gather": (1024, 4),
}  # fmt: skip
WRITES = re.compile(r"_ptr\b[^)]*\).*tl\.(store|atomic_)", re.DOTALL)


def kernels() -> Iterator[JITFunction]:
    """Every kernel: a jitted function with pointer arguments that stores something."""
    for module in pkgutil.walk_packages(maskkernels.__path__, "maskkernels."):
        if "._triton" in module.name:
            for value in vars(importlib.import_module(module.name)).values():
                is_own = isinstance(value, JITFunction) and value.module == module.name
                if is_own and WRITES.search(value.src):
                    yield value


def variants(kernel: JITFunction) -> Iterator[tuple[dict, dict]]:
    """(signature, constexprs) for all flags off, each alone, some, all on; other widths too."""
    sizes = ("BLOCK", "WIDTH")
    flags = [p.name for p in kernel.params if p.is_constexpr and p.name not in sizes]
    chosen = [set(), *({flag} for flag in flags), *TOGETHER.get(kernel.__name__, []), set(flags)]
    settings = map(frozenset, chosen)
    block, _ = LAUNCH.get(kernel.__name__, (512, 4))
    for on, dtypes in itertools.product(dict.fromkeys(settings), DTYPES.get(kernel.__name__, [{}])):
        types = POINTERS | OVERRIDES.get(kernel.__name__, {}) | dtypes
        signature, constants = {}, {}
        for p in kernel.params:
            if p.is_constexpr:
                signature[p.name] = "constexpr"
                sizes_of = {"BLOCK": block, "WIDTH": WIDTHS.get(types.get("logits", ""))}
                constants[p.name] = sizes_of.get(p.name, p.name in on)
            elif p.name.endswith("_ptr"):
                signature[p.name] = "*" + types[p.name.removesuffix("_ptr")]
            else:
                signature[p.name] = p.annotation_type
        yield signature, constants


def aligned(signature: dict) -> dict:
    """What a launch tells the compiler of torch's tensors and of an even row length."""
    return {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name in ALIGNED
    }


def resources(cubin: bytes) -> str:
    """Registers and spilled bytes, from the cuobjdump that Triton ships with."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        run = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True)
    return " ".join(re.findall(r"(?:REG|STACK|LOCAL|SHARED):\d+", run.stdout + run.stderr))


def registers(usage: str) -> int:
    """The register count in what ``resources`` prints."""
    found = re.search(r"REG:(\d+)", usage)
    return int(found[1]) if found else 0


def stack(usage: str) -> int:
    """The bytes of stack and local memory in what ``resources`` prints."""
    return sum(map(int, re.findall(r"(?:STACK|LOCAL):(\d+)", usage)))


def spills(ptx: str, arch: int) -> int:
    """Spilled bytes as ptxas counts them: a stack frame alone may be a call's."""
    target = re.search(r"\.target (\w+)", ptx)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        name = target[1] if target else f"sm_{arch}"
        takes = inspect.signature(compiler.get_ptxas).parameters  # none before Triton 3.5
        tool = compiler.get_ptxas(arch) if takes else compiler.get_ptxas()
        command = [tool.path, "-v", f"--gpu-name={name}", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return sum(map(int, re.findall(r"(\d+) bytes spill", said)))


def main() -> int:
    passed, failed = 0, 0
    for kernel in kernels():
        for target in TARGETS:
            worst = ""
            for signature, constants in variants(kernel):
                try:
                    source = ASTSource(kernel, signature, constants, aligned(signature))
                    warps = LAUNCH.get(kernel.__name__, (512, 4))[1]
                    compiled = triton.compile(source, target=target, options={"num_warps": warps})
                    passed += 1
                except Exception as error:
                    failed += 1
                    print(f"FAILED {kernel.__name__} {target} {constants}: {error}")
                    continue
                if "cubin" not in compiled.asm:
                    continue
                usage = resources(compiled.asm["cubin"])
                worst = max(worst, usage, key=registers)
                frame = stack(usage)
                lost = spills(compiled.asm["ptx"], target.arch) if frame else 0
                name = kernel.__name__
                least = OLDER_MOST.get(name, 64) if OLDER else 0
                most = max(least, SPILLS.get((name, target.arch), 0))
                if lost > most or frame > max(least, STACK.get(name, 8)):
                    failed += 1
                    usage += f" SPILLED:{lost}"
                    print(f"STACK OR SPILLS {kernel.__name__} {target} {constants}: {usage}")
            print(f"{kernel.module}.{kernel.__name__} {target.backend}:{target.arch} {worst}")
    failed += loss_instructions.main()
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
