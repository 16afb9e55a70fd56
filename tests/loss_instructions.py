"""Bound what the loss kernel's loops compile to on sm_90; ``tests.compile_kernels`` runs it.

The share of a GPU's time that is not matrix products is n elements times these instructions, so a
change that doubles them should be seen without a GPU.
"""

import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from maskkernels.loss._triton_rows import _cross_entropy

BLOCK, WARPS, WIDTH = 4096, 8, 8
ELEMENTS = BLOCK // (32 * WARPS)  # of a thread and a block
# Of both loops together. In the first, 6 belong to a branch that only the label's block takes.
INSTRUCTIONS = {"": 20.0, "HAS_BIAS": 26.0}
REGISTERS = 64  # 1024 threads of a processor then have theirs
TYPES = {
    "rows": "*i64", "labels": "*i64", "factors": "*fp32", "class_weights": "*fp32",
    "loss": "*fp32", "entropy": "*fp32", "rank": "*i32",
}  # fmt: skip
MULTIPLES_OF_16 = ("padded", "out_padded", "stride", "out_stride")


def compile_for_sm90(flag: str) -> bytes:
    """The cubin for bfloat16 rows with a padded stride, a gradient and one option."""
    on = {"IN_ORDER", "ONE_FACTOR", "GRADIENT", flag}
    signature, constants, attributes = {}, {}, {}
    for i, p in enumerate(_cross_entropy.params):
        if p.is_constexpr:
            signature[p.name] = "constexpr"
            constants[p.name] = {"BLOCK": BLOCK, "WIDTH": WIDTH}.get(p.name, p.name in on)
        elif p.name.endswith("_ptr"):
            signature[p.name] = TYPES.get(p.name.removesuffix("_ptr"), "*bf16")
        else:
            signature[p.name] = p.annotation_type
        if p.name.endswith("_ptr") or p.name in MULTIPLES_OF_16:
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(_cross_entropy, signature, constants, attributes)
    target = GPUTarget("cuda", 90, 32)
    return triton.compile(source, target=target, options={"num_warps": WARPS}).asm["cubin"]


def tool(name: str, option: str, cubin: bytes) -> str:
    """What one of the tools that Triton ships with prints about a cubin."""
    path = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        run = subprocess.run([path, option, file.name], capture_output=True, text=True, check=True)
    return run.stdout + run.stderr


def loops(listing: str) -> list[list[str]]:
    """The instructions from each label to a branch back to it."""
    places: dict[str, int] = {}
    code: list[str] = []
    bodies = []
    for label, line in re.findall(
        r"^\s*(\.L_\w+):|^\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", listing, re.MULTILINE
    ):
        if label:
            places[label] = len(code)
            continue
        code.append(line)
        to = re.search(r"\bBRA\b.*`\((\.L_\w+)\)", line)
        if to and places.get(to[1], len(code)) < len(code) - 1:
            bodies.append(code[places[to[1]] :])
    return bodies


def faults(flag: str) -> list[str]:
    """What is beyond the bounds; prints what was found."""
    cubin = compile_for_sm90(flag)
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", tool("cuobjdump", "-res-usage", cubin)))
    bodies = [
        body for body in loops(tool("nvdisasm", "-c", cubin))
        if sum("MUFU.EX2" in line for line in body) >= ELEMENTS
    ]  # fmt: skip
    each = sum(map(len, bodies)) / ELEMENTS
    wide = all(sum("LDG.E.128" in line for line in body) >= ELEMENTS // WIDTH for body in bodies)
    barriers = sum("BAR." in line for body in bodies for line in body)
    print(f"loss loops {flag or 'plain'}: {each:.1f} instructions an element, {usage}")
    found = {
        f"{len(bodies)} loops in place of 2": len(bodies) != 2,
        "loads below 16 bytes": not wide,
        f"{barriers} barriers in a loop": barriers > 0,
        f"{each:.1f} instructions an element": each > INSTRUCTIONS[flag],
        f"{usage['REG']} registers": int(usage["REG"]) > REGISTERS,
        f"{usage['STACK']} bytes of stack": int(usage["STACK"]) + int(usage["LOCAL"]) > 0,
    }
    return [f"{flag or 'plain'}: {what}" for what, is_bad in found.items() if is_bad]


def main() -> int:
    """Print what is beyond the bounds; how much that is."""
    found = [fault for flag in INSTRUCTIONS for fault in faults(flag)]
    for fault in found:
        print(f"FAILED loss loops: {fault}")
    return len(found)


if __name__ == "__main__":
    raise SystemExit(main())
