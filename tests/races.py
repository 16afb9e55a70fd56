"""Calls of every op while another thread writes to their inputs: `python -m tests.races --calls N`.

Kernels run without the GIL, so what they have looked at may change before they use it. A mask may
then be any mask, but no array may be left: inputs and results lie between pages that cannot be
touched, so that an access past either end kills the process. `--checked` compiles with the bounds
of every array checked, those inside the kernels too; an access past them is then an IndexError.
"""

import argparse
import ctypes
import faulthandler
import mmap
import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch

import maskkernels as mk

B, T, V, H = 2, 16000, 97, 8  # long rows: much happens between a look at one and its use
N = B * T
HUGE = (N, V, 1 << 20, 1 << 40, (1 << 63) - 1, -1, -(1 << 31), -(1 << 63))
FLOATS = (float("nan"), float("inf"), -float("inf"), -1.0, 10.0, 1e30)
HANG = 1800  # seconds; a value that changes may also make a loop endless
_PAGE, _NO_ACCESS = mmap.PAGESIZE, 0
_empty = np.empty
_libc = ctypes.CDLL(None, use_errno=True)


def fenced(shape: Any, dtype: Any = np.float64) -> np.ndarray:
    """Memory as from ``np.empty``, which ends where a page that cannot be touched begins."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64))
    size = count * dtype.itemsize
    pages = -(-size // _PAGE)
    memory = mmap.mmap(-1, (pages + 2) * _PAGE)
    whole = np.frombuffer(memory, np.uint8)
    for page in (0, pages + 1):
        place = ctypes.c_void_p(whole.ctypes.data + page * _PAGE)
        if _libc.mprotect(place, ctypes.c_size_t(_PAGE), _NO_ACCESS):
            raise OSError(ctypes.get_errno(), "mprotect")
    end = (pages + 1) * _PAGE
    return whole[end - size : end].view(dtype).reshape(shape)


class Inputs:
    """The arguments of all ops, and what is written to them meanwhile."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.arrays: list[tuple[np.ndarray, np.ndarray]] = []
        draw = np.random.default_rng(seed)
        inside = draw.random((B, T)) < 0.9
        turns = np.diff(inside.astype(np.int64), axis=1, prepend=0) == 1
        unit = np.cumsum(turns | (draw.random((B, T)) < 0.6), 1) - 1
        cuts = np.sort(draw.integers(0, N, B - 1))
        self.ids = self.shared(draw.integers(5, V, (B, T)))
        self.ids32 = self.shared(draw.integers(5, V, (B, T)).astype(np.int32))
        self.flat = self.shared(draw.integers(5, V, N))
        self.bounds = self.shared(np.array([0, *cuts, N]))
        self.units = self.shared(np.where(inside, np.maximum(unit, 0), -1))
        self.flat_units = self.shared(np.arange(N) - np.repeat(np.array([0, *cuts]),
                                                               np.diff([0, *cuts, N])))  # fmt: skip
        self.real = self.shared(np.ones((B, T), np.int64))
        self.special = self.shared((draw.random((B, T)) < 0.1).astype(np.int64))
        self.table = self.shared(draw.random(V) < 0.9)
        self.flags = self.shared(draw.integers(0, 4, V).astype(np.uint8))
        self.rates = self.shared(draw.random((B, T)))
        self.replacements = self.shared(np.arange(5, 50))
        self.samples = self.shared(draw.integers(0, 1 << 40, B))
        self.offsets = self.shared(
            np.stack([np.arange(N), np.arange(1, N + 1)], 1).reshape(B, T, 2)
        )
        self.words = self.shared(np.arange(N).reshape(B, T) // 3)
        self.groups = self.shared(np.where(draw.random((B, T)) < 0.1, 1, -1))
        self.weights = self.shared(draw.random((B, T)) + 1.0)
        self.lengths = self.shared(draw.integers(1, 60, N))
        self.index = self.shared(draw.integers(0, 1 << 20, N))
        self.index_samples = self.shared(draw.integers(0, 1 << 40, N))
        self.hidden = torch.randn(200, H, generator=torch.Generator().manual_seed(seed))
        self.weight = torch.randn(V, H, generator=torch.Generator().manual_seed(seed))
        self.logits = self.shared(draw.standard_normal((200, V)).astype(np.float32))
        self.labels = self.shared(np.where(draw.random(200) < 0.5, -100, draw.integers(0, V, 200)))
        self.positions = self.shared(np.flatnonzero(self.labels.numpy() >= 0))
        self.class_weights = self.shared(draw.random(V).astype(np.float32))

    def shared(self, values: np.ndarray) -> torch.Tensor:
        array = fenced(values.shape, values.dtype)
        array[...] = values
        self.arrays.append((array, values.copy()))
        return torch.from_numpy(array)

    def write(self, done: threading.Event, begun: threading.Event) -> None:
        """Put values that nobody expects into the arrays, and take them out again."""
        begun.set()
        while not done.is_set():
            chosen = self.random.sample(self.arrays, len(self.arrays) // 3)
            parts = [self._spoil(array.reshape(-1)) for array, _ in chosen]
            for (array, usual), part in zip(chosen, parts, strict=True):
                array.reshape(-1)[part] = usual.reshape(-1)[part]

    def _spoil(self, flat: np.ndarray) -> slice:
        """Write something absurd to a part of an array; which part."""
        begin = self.random.randrange(flat.size)
        part = slice(begin, begin + self.random.choice((1, 64, 1024)))
        if flat.dtype == np.bool_:
            flat[part] = ~flat[part]
        elif flat.dtype.kind == "f":
            flat[part] = self.random.choice(FLOATS)
        else:
            flat[part] = np.array([self.random.choice(HUGE)]).astype(flat.dtype)  # may wrap
        return part


def ops(a: Inputs) -> dict[str, Callable[[int], Any]]:
    """Every op in every form, as functions of a seed."""
    policy = mk.MaskingPolicy(3, V, rate=0.4)
    by_unit = mk.MaskingPolicy(3, V, rate=0.4, replacement="unit")
    budget = mk.MaskingPolicy(3, V, rate=0.4, selection="budget", at_least_one=True)
    packed = {"cu_seqlens": a.bounds}
    limits = {"attention_mask": a.real, "special_tokens_mask": a.special, "maskable": a.table}
    corruption = mk.SpanCorruption(tuple(range(1000, 9000)), edge_token_ids=(5, 6))
    infilling = mk.TextInfilling(4, edge_token_ids=(5, 6), sentence_end_ids=(9, 30, 60))

    def mask(policy: Any, ids: Any = None, **given: Any) -> Callable[[int], Any]:
        ids = a.ids if ids is None else ids
        return lambda seed: mk.mask_tokens(ids, policy, seed=seed, capacity=N, **given)

    def loss(**given: Any) -> Callable[[int], Any]:
        def run(seed: int) -> Any:
            hidden = a.hidden.clone().requires_grad_()
            mk.linear_cross_entropy(hidden, a.weight, a.labels, **given).loss.backward()
            return mk.masked_cross_entropy(a.logits, a.labels, accuracy=True, **given)

        return run

    return {
        "tokens": mask(policy, maskable=a.table, replacement_ids=a.replacements),
        "tokens, int32": mask(policy, a.ids32, attention_mask=a.real, sample_ids=a.samples),
        "tokens, rates": mask(policy, rates=a.rates, **limits),
        "tokens, packed": mask(policy, a.flat, **packed),
        "units": mask(policy, units=a.units, maskable=a.table, attention_mask=a.real),
        "units, one draw": mask(by_unit, units=a.units, rates=a.rates),
        "units, packed": mask(policy, a.flat, units=a.flat_units, **packed),
        "budget": mask(budget, **limits),
        "budget, rates": mask(budget, rates=a.rates, attention_mask=a.real),
        "budget, units": mask(budget, units=a.units, maskable=a.table, attention_mask=a.real),
        "budget, units, rates": mask(budget, units=a.units, rates=a.rates, **limits),
        "budget, packed": mask(budget, a.flat, units=a.flat_units, **packed),
        "word_units": lambda _: mk.word_units(a.ids, a.flags, groups=a.groups, **limits),
        "word_units, packed": lambda _: mk.word_units(a.flat, a.flags, **packed),
        "offsets": lambda _: mk.units_from_offsets(a.ids, a.offsets, **limits),
        "word_ids": lambda _: mk.units_from_word_ids(a.ids, a.words, groups=a.groups),
        "spans": lambda seed: mk.span_units(a.units, [0.3, 0.3, 0.4], seed=seed,
                                            sample_ids=a.samples),
        "spans, packed": lambda seed: mk.span_units(a.flat_units, [0, 0, 1], seed=seed,
                                                    sample_ids=a.samples, **packed),
        "weights": lambda _: mk.rates_from_weights(a.weights, a.units, 0.3),
        "weights, packed": lambda _: mk.rates_from_weights(a.weights.view(-1), a.flat_units, 0.3,
                                                           **packed),
        "hash": lambda _: mk.hash_rows(a.ids, attention_mask=a.real),
        "hash, packed": lambda _: mk.hash_rows(a.flat, **packed),
        "words": lambda seed: mk.random_words(a.index_samples, a.index, seed=seed),
        "corruption": lambda seed: mk.corrupt_spans(a.ids, corruption, seed=seed,
                                                    attention_mask=a.real),
        "corruption, packed": lambda seed: mk.corrupt_spans(a.flat, corruption, seed=seed,
                                                            **packed),
        "infilling": lambda seed: mk.infill_text(a.ids, infilling, seed=seed),
        "infilling, packed": lambda seed: mk.infill_text(a.flat, infilling, seed=seed, **packed),
        "pad": lambda _: mk.pad_rows(mk.PackedRows(a.flat, a.bounds), padding_side="left"),
        "pad, rows": lambda _: mk.pad_batch({"a": list(a.ids)}, padding_values={"a": 0}),
        "pack": lambda _: mk.pack_rows(a.lengths, 64, overlong="truncate"),
        "loss": loss(),
        "loss, positions": loss(positions=a.positions, class_weights=a.class_weights),
    }  # fmt: skip


def run(calls: int, seed: int) -> None:
    """Raise at the first error but a refusal; an access outside ends the process."""
    torch.set_num_threads(1)
    inputs = Inputs(seed)
    functions = ops(inputs)
    for function in functions.values():  # nothing is refused, and all is compiled
        function(0)
    done, begun = threading.Event(), threading.Event()
    writer = threading.Thread(target=inputs.write, args=(done, begun))
    sys.setswitchinterval(1e-5)
    refused = 0
    with mock.patch.object(np, "empty", fenced):
        writer.start()
        begun.wait()
        try:
            for number in range(calls):
                refused += sum(_is_refused(name, functions[name], number) for name in functions)
        finally:
            done.set()
            writer.join()
    print(f"{calls * len(functions)} calls, {refused} refused")


def _is_refused(name: str, function: Callable[[int], Any], number: int) -> bool:
    """Call an op; whether it refused its inputs."""
    try:
        function(number)
    except (ValueError, TypeError):
        return True
    except Exception as error:
        raise AssertionError(f"{name}, call {number}") from error
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=1000, help="of each op")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checked", action="store_true")
    options = parser.parse_args()
    if options.checked and "NUMBA_BOUNDSCHECK" not in os.environ:
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": folder}
            command = [sys.executable, "-m", "tests.races", *sys.argv[1:]]
            return subprocess.run(command, env=environment).returncode
    faulthandler.enable()
    faulthandler.dump_traceback_later(HANG, exit=True)
    run(options.calls, options.seed)
    faulthandler.cancel_dump_traceback_later()
    return 0


if __name__ == "__main__":
    sys.exit(main())
