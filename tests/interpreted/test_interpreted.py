"""The Triton kernels, interpreted on the CPU in a process of their own, equal the reference."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "room",
    ["mask", "units", "loss", "denoise", "diffusion"],
)
def test_interpreted_kernels_equal_the_reference(room):
    done = subprocess.run(
        [sys.executable, "-m", f"tests.interpreted.{room}"], cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "comparisons passed" in done.stdout


KERNELS = {
    "mask._triton": ("rank_tokens", "limit_keys", "_mask_tokens", "_positions"),
    "units._triton": ("_number", "_span_units", "_weigh"),
    "denoise._triton": (
        "plan_spans", "write_spans", "plan_infilling", "write_infilling", "find_sentences",
        "permute_sentences",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in KERNELS.items() for name in names]
)
def test_numbers_that_change_from_call_to_call_compile_nothing(module, name):
    """What Triton distinguishes kernels by is the same for a 1, a multiple of 16 and others."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    kernel = getattr(import_module(f"maskkernels.{module}"), name)
    backend = make_backend(GPUTarget("cuda", 90, 32))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)

    def kind(number):
        arguments = {}
        for p in kernel.params:
            if p.name.endswith("_ptr"):
                arguments[p.name] = torch.zeros(8, dtype=torch.int64)
            elif p.is_constexpr or p.name == "length":
                arguments[p.name] = 64
            elif p.annotation_type == "i32":
                arguments[p.name] = min(max(number, -(1 << 31)), (1 << 31) - 1)
            else:
                arguments[p.name] = float(number) if p.annotation_type == "fp64" else number
        return bind(**arguments)[1]

    assert kind(3) == kind(1) == kind(0) == kind(16) == kind(-(1 << 63))
    assert {("i64", None), ("fp64", None)} & set(kind(3))
