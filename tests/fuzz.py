"""Calls of every op with any arguments: `python -m tests.fuzz ROOM --calls N --seed S`.

Each call runs on the reference and on Numba, and on Numba once more as in a compiled graph, which
leaves out what the public functions look at. There must be no crash, no hang, no error but a
ValueError or TypeError that names an argument, and no difference from the reference. A call is a
function of (seed, number) alone. The command checks the bounds of every array in the kernels,
in a process of its own; `--unchecked` leaves that out and runs the machine code of every day.
"""

import argparse
import faulthandler
import linecache
import math
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

import maskkernels as mk

V = 97
INTEGERS = (0, 1, -1, 2, 5, V - 1, V, 1 << 31, (1 << 34) - 1, 1 << 34, 1 << 60, (1 << 63) - 1,
            -(1 << 31), -(1 << 63))  # fmt: skip
FLOATS = (0.0, -0.0, 1.0, 0.5, 5e-324, 1e308, 10.0, -1.0, math.nan, math.inf, -math.inf)
OTHER = (None, "x", [1, 2], 1.5, True, -1, 1 << 63, 1 << 70, math.nan, (), {})
LONGEST = 60  # tokens of most rows; now and then they pass a kernel's block
HANG = 120  # seconds a call may take

Case = tuple[Callable[..., Any], list[Any], dict[str, Any]]


class Draw(random.Random):
    """What a call is made of; ``wild`` is the chance that an argument is anything at all."""

    wild = 0.0

    def rarely(self, chance: float = 0.1) -> bool:
        return self.random() < chance

    def tensor(self, shape, low, high, dtype=torch.int64):
        n = math.prod(shape)
        values = [self.randint(low, high) for _ in range(n)]
        if n and self.rarely(self.wild):
            for _ in range(self.randint(1, 3)):
                values[self.randrange(n)] = self.choice(INTEGERS)
        if dtype == torch.int32:
            values = [(v + (1 << 31)) % (1 << 32) - (1 << 31) for v in values]
        return self.strange(torch.tensor(values, dtype=dtype).view(shape))

    def floats(self, shape, low=0.0, high=1.0, dtype=torch.float32):
        n = math.prod(shape)
        values = [self.uniform(low, high) for _ in range(n)]
        if n and self.rarely(self.wild):
            for _ in range(self.randint(1, 3)):
                values[self.randrange(n)] = self.choice(FLOATS)
        return self.strange(torch.tensor(values, dtype=dtype).view(shape))

    def strange(self, tensor):
        """The tensor with other strides, or of another kind, or something else."""
        if tensor.dim() == 2 and self.rarely():
            return tensor.t().contiguous().t()
        if not self.rarely(self.wild / 4):
            return tensor
        return self.choice((
            lambda: tensor.float(), lambda: tensor.bool(), lambda: tensor[:0],
            lambda: tensor[..., :1], lambda: tensor.reshape(-1), lambda: tensor[None],
            lambda: tensor.to_sparse(), lambda: tensor.tolist(), lambda: self.choice(OTHER),
            lambda: tensor.int(),
        ))()  # fmt: skip

    def option(self, *usual):
        """One of the usual values, or anything."""
        return self.choice(OTHER) if self.rarely(self.wild / 4) else self.choice(usual)

    def shape(self):
        """(shape of the tokens, bounds of packed rows or None)."""
        rows = self.choice((0, 1, 1, 2, 3, 4))
        longest = 1500 if self.rarely(0.01) else LONGEST
        if self.random() < 0.5:
            return (rows, self.choice((0, 1, self.randint(2, longest)))), None
        lengths = [self.choice((0, 1, self.randint(0, longest))) for _ in range(rows)]
        bounds = [0]
        for length in lengths:
            bounds.append(bounds[-1] + length)
        n = bounds[-1]
        if self.rarely(self.wild):
            bounds[self.randrange(len(bounds))] = self.choice((*INTEGERS, n + 1, n // 2))
        dtype = torch.int32 if max(map(abs, bounds)) < 1 << 31 and self.rarely(0.5) else torch.int64
        return (n,), self.strange(torch.tensor(bounds, dtype=dtype))

    def rows(self, high=V - 1):
        """(tokens, keyword arguments of their layout, how many rows)."""
        shape, bounds = self.shape()
        ids = self.tensor(shape, 0, high, self.choice((torch.int64, torch.int32)))
        layout = {} if bounds is None else {"cu_seqlens": bounds}
        if self.rarely(0.5):
            kind = self.choice((torch.int64, torch.bool, torch.uint8, torch.float32))
            layout["attention_mask"] = self.strange(self.tensor(shape, 0, 1).bool().to(kind)
                                                    if not self.wild else
                                                    self.bits(shape).to(kind))  # fmt: skip
        count = shape[0] if bounds is None else getattr(bounds, "shape", (1,))[0] - 1
        return ids, layout, max(count, 0), shape

    def bits(self, shape):
        return torch.tensor(
            [self.random() < 0.8 for _ in range(math.prod(shape))], dtype=torch.bool
        ).view(shape)

    def randomness(self, count):
        """Seed, epoch and sample ids."""
        found = {
            "seed": self.option(0, 7, (1 << 64) - 1),
            "epoch": self.option(0, 3, (1 << 24) - 1, 1 << 40),
        }
        if self.rarely(0.5):
            found["sample_ids"] = self.tensor((count,), -(1 << 63), (1 << 63) - 1)
        return found


def numbered(draw: Draw, shape, bounds) -> Any:
    """Units as ``word_units`` numbers them, and now and then others."""
    n = math.prod(shape)
    ends = set(range(0, n + 1, shape[1])) if len(shape) == 2 and shape[1] else set()
    if isinstance(bounds, torch.Tensor) and bounds.dim() == 1 and not bounds.is_sparse:
        ends = set(bounds.tolist())
    units, number, inside = [], -1, False
    for t in range(n):
        if t in ends:
            number, inside = -1, False
        if draw.random() < 0.15:
            inside = False
            units.append(-1)
            continue
        number += not inside or draw.random() < 0.6
        inside = True
        units.append(number)
    if n and draw.rarely(draw.wild):
        units[draw.randrange(n)] = draw.choice(INTEGERS)
    found = torch.tensor(units, dtype=torch.int64).view(shape)
    return draw.strange(found.int() if draw.rarely(0.2) else found)


def rng(draw: Draw) -> Case:
    if draw.random() < 0.5:
        ids, layout, _, _ = draw.rows()
        return mk.hash_rows, [ids], layout
    shape = draw.choice(((5,), (2, 3), (0,), (1,)))
    index = draw.tensor(shape, 0, draw.choice((9, (1 << 34) - 1)))
    options = draw.randomness(1)
    options.pop("sample_ids", None)
    samples = draw.tensor(draw.choice((shape, (1,))), -(1 << 63), (1 << 63) - 1)
    return mk.random_words, [samples, index], {**options, "stream": draw.option(0, 9, 255, 256)}


def table(draw: Draw, dtype=torch.uint8, most=3) -> Any:
    size = draw.choice((0, 1, V // 2, 2 * V)) if draw.rarely(draw.wild) else V
    values = [draw.randint(0, most) for _ in range(size)]
    return draw.strange(torch.tensor(values, dtype=dtype))


def units(draw: Draw) -> Case:
    name = draw.choice(("word_units", "units_from_offsets", "units_from_word_ids", "span_units",
                        "rates_from_weights"))  # fmt: skip
    ids, layout, count, shape = draw.rows()
    bounds = layout.get("cu_seqlens")
    packed = {} if bounds is None else {"cu_seqlens": bounds}
    if name == "span_units":
        given = draw.randomness(count)
        given.setdefault("sample_ids", draw.tensor((count,), -(1 << 63), (1 << 63) - 1))
        lengths = draw.option([1.0], [0, 0, 1], [0.3, 0.3, 0.4], mk.geometric_lengths(), [], [0.0])
        return mk.span_units, [numbered(draw, shape, bounds), lengths], {**given, **packed}
    if name == "rates_from_weights":
        weights = draw.floats(shape, 0.0, 3.0, draw.choice((torch.float32, torch.float64)))
        rate = draw.option(0.0, 0.15, 0.5, 1.0)
        return mk.rates_from_weights, [weights, numbered(draw, shape, bounds), rate], packed
    if draw.rarely(0.4):
        layout["special_tokens_mask"] = draw.strange(draw.bits(shape) ^ True)
    if draw.rarely(0.4):
        layout["maskable"] = table(draw, torch.bool, 1)
    if draw.rarely(0.3):
        layout["groups"] = draw.tensor(shape, -1, 2)
    second: Any = table(draw)
    if name == "units_from_offsets":
        second = draw.tensor((*shape, 2), 0, 3)
    elif name == "units_from_word_ids":
        second = draw.tensor(shape, -1, 3)
    return getattr(mk, name), [ids, second], layout


def mask(draw: Draw) -> Case:
    ids, layout, count, shape = draw.rows()
    policy: Any = {
        "rate": draw.option(0.0, 0.15, 0.5, 1.0), "mask_share": draw.option(0.8, 0.5, 0.0),
        "random_share": draw.option(0.1, 0.2, 0.0),
        "selection": draw.option("bernoulli", "budget"),
    }  # fmt: skip
    by_unit = draw.rarely(0.5)
    policy["replacement"] = draw.option("token", "unit" if by_unit else "token")
    policy["at_least_one"] = draw.option(False, policy["selection"] == "budget")
    given = {**layout, **draw.randomness(count)}
    if draw.rarely(0.3):
        given["special_tokens_mask"] = draw.strange(draw.bits(shape) ^ True)
    if draw.rarely(0.4):
        given["maskable"] = table(draw, torch.bool, 1)
    if draw.rarely(0.3):
        given["replacement_ids"] = draw.tensor(
            (draw.choice((1, 7, 0 if draw.wild else 7)),), 0, V - 1
        )
    if by_unit:
        given["units"] = numbered(draw, shape, layout.get("cu_seqlens"))
        if draw.rarely(0.2):
            given["units"] = draw.tensor(shape, -1, (1 << 34) - 1)
    if draw.rarely(0.3):
        given["rates"] = draw.floats(shape, dtype=draw.choice((torch.float32, torch.float64)))
    elif by_unit and draw.rarely(0.3):
        given["unit_rates"] = draw.floats((count, draw.choice((LONGEST, 3))))
    if draw.rarely(0.5):
        given["capacity"] = draw.option(0, 5, 100)

    def masked(ids, backend, **given):
        return mk.mask_tokens(ids, mk.MaskingPolicy(3, V, **policy), backend=backend, **given)

    return masked, [ids], {**given}


def denoise(draw: Draw) -> Case:
    kind = draw.choice(("spans", "spans", "infill", "infill", "pad", "replace"))
    ids, layout, count, shape = draw.rows()
    given = {**layout, **draw.randomness(count)}
    edges = draw.option((), (0,), (1, 2))
    many = draw.option(range(1000, 1100), range(1000, 1003))
    if kind == "replace":
        labels, sampled = draw.tensor(shape, 0, V - 1), draw.tensor(shape, 0, V - 1)
        options: Any = {"ignore_index": draw.option(-100, 5)}
        if draw.rarely(0.5):
            n = draw.choice((0, 1, 4))
            sampled, options["positions"] = draw.tensor((n,), 0, V), draw.tensor((n,), -1, 5)
        return partial(_plain, mk.replace_tokens), [ids, labels, sampled], options
    if kind == "infill":
        options = {
            "ratio": draw.option(0.3, 0.01, 0.99), "mean_span_length": draw.option(3.0, 0.1, 200.0),
            "permute_sentences": draw.option(True, False), "edge_token_ids": edges,
            "sentence_end_ids": draw.option((5, 9), tuple(range(0, V, 4))),
        }  # fmt: skip
        return (
            (lambda ids, **k: mk.infill_text(ids, mk.TextInfilling(4, **options), **k)),
            [ids],
            given,
        )
    denoiser = {
        "noise_density": draw.option(0.15, 0.5, 0.99), "share": draw.option(1.0, 2.0, 1e308),
        "mean_span_length": draw.option(3.0, 1.0, 64.0), "prefix": draw.option(True, False),
        "mode_token_id": draw.option(None, 96),
    }  # fmt: skip
    options = {
        "eos_token_id": draw.option(None, 1), "final_sentinel": draw.option(True, False),
        "edge_token_ids": edges,
    }  # fmt: skip

    def corrupted(ids, **k):
        denoisers = (mk.Denoiser(**denoiser), mk.Denoiser())
        return mk.corrupt_spans(ids, mk.SpanCorruption(many, denoisers, **options), **k)

    if kind == "spans":
        return corrupted, [ids], given
    values, bounds = draw.tensor((30,), 0, V), sorted(draw.randint(0, 30) for _ in range(3))
    rows = mk.CorruptedRows(values, draw.tensor((3,), 0, 9), values, torch.tensor(bounds))
    options = {
        "input_length": draw.option(9, 30), "target_length": draw.option(30, 31),
        "padding_value": draw.option(0, -5), "ignore_index": draw.option(-100),
    }  # fmt: skip
    return partial(_plain, mk.pad_corrupted), [rows], options


def _plain(function, *args, backend, **options):
    """A function in plain torch, which has no backends."""
    return function(*args, **options)


def loss(draw: Draw) -> Case:
    shape = draw.choice(((0,), (1,), (7,), (2, 5), (40,)))
    classes, n = draw.choice((1, 2, V, 300)), math.prod(shape)
    options: Any = {
        "ignore_index": draw.option(-100, 0), "label_smoothing": draw.option(0.0, 0.1, 1.0),
        "z_loss": draw.option(0.0, 1e-3), "softcap": draw.option(None, 5.0),
        "logit_scale": draw.option(1.0, 0.5), "reduction": draw.option("mean", "sum", "none"),
        "accuracy": draw.option(True, False), "entropy": draw.option(True, False),
        "top_k": draw.option(None, 1, 5),
    }  # fmt: skip
    ignored = 0 if options["ignore_index"] == 0 else -100
    labels = [draw.choice((ignored, draw.randrange(classes))) for _ in range(n)]
    if n and draw.rarely(draw.wild):
        labels[draw.randrange(n)] = draw.choice(INTEGERS)
    labels = draw.strange(torch.tensor(labels, dtype=torch.int64).view(shape))
    if draw.rarely(0.3):
        places = sorted(draw.sample(range(n), min(n, 4)))
        at = [*places, *[-1] * draw.choice((0, 2))]
        if at and draw.rarely(draw.wild):
            at[draw.randrange(len(at))] = draw.choice(INTEGERS)
        options["positions"] = draw.strange(torch.tensor(at, dtype=torch.int64))
    if draw.rarely(0.2):
        options["class_weights"] = draw.floats((classes,))
    if draw.rarely(0.3):
        options["token_weights"] = draw.floats(shape, 0.0, 2.0)
    if options["reduction"] == "mean" and draw.rarely(0.3):
        options["num_items"] = draw.option(3, 0 if draw.wild else 1, torch.tensor(4), 2.5)
    if draw.rarely(0.5):
        logits = draw.floats((*shape, classes), -4.0, 4.0)
        return partial(_with_gradients, mk.masked_cross_entropy), [logits, labels], options
    if "positions" not in options:
        options["capacity"] = draw.option(None, n, 3)
    options["chunk_bytes"] = draw.option(None, 1, 4 * classes * 3)
    hidden, weight = draw.floats((*shape, 8), -1.0, 1.0), draw.floats((classes, 8), -1.0, 1.0)
    bias = draw.option(None, draw.floats((classes,)))
    function = partial(_with_gradients, mk.linear_cross_entropy)
    return function, [hidden, weight, labels, bias], options


def _with_gradients(function, *tensors, backend, **options):
    tensors = [
        t.detach().requires_grad_() if isinstance(t, torch.Tensor) and t.is_floating_point()
        else t for t in tensors
    ]  # fmt: skip
    found = function(*tensors, backend=backend, **options)
    if found.loss.requires_grad:
        found.loss.sum().backward()
    return *found, *(getattr(t, "grad", None) for t in tensors)


def batch(draw: Draw) -> Case:
    lengths = [draw.randint(0, 9) for _ in range(draw.randint(0, 4))]
    rows: Any = [[draw.randint(-5, V) for _ in range(length)] for length in lengths]
    if draw.rarely(draw.wild) and rows and rows[0]:
        rows[0][0] = draw.choice((*INTEGERS, *OTHER))
    given = {
        "padding_side": draw.option("left", "right"), "pad_to_multiple_of": draw.option(None, 8),
        "dtype": draw.option(torch.int64, torch.int32),
    }  # fmt: skip
    form = draw.choice(("lists", "arrays", "tensors", "packed", "other"))
    if form == "packed":
        values = draw.tensor((20,), 0, V)
        ends = [0, draw.randint(0, 9), draw.randint(9, 20), 20]
        if draw.rarely(draw.wild):
            ends[draw.randrange(4)] = draw.choice(INTEGERS)
        rows = mk.PackedRows(values, draw.strange(torch.tensor(ends)))
    elif form != "lists" and all(type(v) is int and abs(v) < 1 << 63 for row in rows for v in row):
        make = {"arrays": partial(np.array, dtype=np.int64), "tensors": torch.tensor}.get(form)
        rows = draw.choice(OTHER) if make is None else [make(row) for row in rows]
    padding = draw.option(0, -7)
    if draw.random() < 0.5:
        return mk.pad_rows, [rows], {"padding_value": padding, **given}
    return mk.pad_batch, [{"a": rows}], {"padding_values": {"a": padding}, **given}


def pack(draw: Draw) -> Case:
    capacity = draw.option(1, 8, 100)
    most = capacity if isinstance(capacity, int) and 0 < capacity <= 100 else 9
    lengths: Any = [draw.randint(0, most) for _ in range(draw.randint(0, 200))]
    if lengths and draw.rarely(draw.wild):
        lengths[draw.randrange(len(lengths))] = draw.choice((*INTEGERS, *OTHER))
    elif draw.rarely(0.5):
        lengths = draw.strange(torch.tensor(lengths, dtype=torch.int64))
    options = {
        "window": draw.option(None, 1, 7, 64, 1000), "overlong": draw.option("error", "truncate"),
    }  # fmt: skip
    return mk.pack_rows, [lengths, capacity], options


ROOMS: dict[str, Callable[[Draw], Case]] = {
    "rng": rng, "units": units, "mask": mask, "denoise": denoise, "loss": loss, "batch": batch,
    "pack": pack,
}  # fmt: skip
IN_GRAPHS = ("rng", "units", "mask", "denoise", "loss")


def outcome(function, args, options, backend) -> Any:
    """The result, or the error."""
    try:
        return function(*args, backend=backend, **options)
    except Exception as error:
        return error


def differ(a: Any, b: Any, exact: bool) -> bool:
    """Whether two outcomes are unlike."""
    if isinstance(a, Exception) or isinstance(b, Exception):
        return type(a) is not type(b) or str(a) != str(b)
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            return True
        if exact or not a.is_floating_point():
            return not torch.equal(a, b)
        return not torch.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True)
    if isinstance(a, dict):
        return a.keys() != b.keys() or any(differ(a[k], b[k], exact) for k in a)
    if isinstance(a, (tuple, list)):
        return len(a) != len(b) or any(differ(x, y, exact) for x, y in zip(a, b, strict=True))
    return type(a) is not type(b) or a != b


def is_named(error: Exception) -> bool:
    """A ValueError or TypeError that a ``raise`` of ours made: those say which argument it is."""
    if not isinstance(error, (ValueError, TypeError)):
        return False
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return False
    file = last.tb_frame.f_code.co_filename
    line = linecache.getline(file, last.tb_lineno).strip()
    return file.startswith(str(Path(mk.__file__).parent)) and line.startswith("raise")


def fault(room: str, seed: int, number: int) -> str | None:
    """What is wrong with a call; None where nothing is."""
    draw = Draw(f"{room}/{seed}/{number}")
    draw.wild = draw.choice((0.0, 0.1, 0.5))
    function, args, options = ROOMS[room](draw)
    wanted = outcome(function, args, options, "reference")
    found = outcome(function, args, options, "numba")
    # Where a loss is not finite, NaN and infinity come in any order.
    wild_loss = room == "loss" and draw.wild > 0
    what = None
    for error in (wanted, found):
        if isinstance(error, Exception) and not is_named(error):
            what = f"an error without a name: {error!r}"
    unlike = isinstance(wanted, Exception) != isinstance(found, Exception)
    if unlike or (not wild_loss and differ(wanted, found, room != "loss")):
        what = f"the reference gives {wanted!r}\nNumba gives {found!r}"
    elif room in IN_GRAPHS:
        with mock.patch.object(torch.compiler, "is_compiling", return_value=True):
            again = outcome(function, args, options, "numba")
        if isinstance(again, Exception) and not is_named(again):
            what = f"in a graph, an error without a name: {again!r}"
        elif not (isinstance(found, Exception) or wild_loss) and differ(found, again, True):
            what = f"Numba gives {found!r}\nin a graph {again!r}"
    if what is None:
        return None
    given = f"{args}"[:1500], f"{options}"[:1500]
    return f"{room}, seed {seed}, call {number}: {what[:1500]}\n{given[0]}\n{given[1]}"


def run(room: str, calls: int, seed: int, first: int = 0, note: Any = None) -> list[str]:
    """The faults of some calls."""
    faults = []
    for number in range(first, first + calls):
        if note is not None:
            faulthandler.dump_traceback_later(HANG, exit=True)
            os.pwrite(note, f"{number:12d}".encode(), 0)
        if (found := fault(room, seed, number)) is not None:
            faults.append(found)
    if note is not None:
        faulthandler.cancel_dump_traceback_later()
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("room", choices=ROOMS)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--unchecked", action="store_true")
    parser.add_argument("--note", help=argparse.SUPPRESS)  # inside the process that may die
    options = parser.parse_args()
    if options.note:
        note = os.open(options.note, os.O_RDWR)
        faults = run(options.room, options.calls, options.seed, options.first, note)
        print(*faults[:20], sep="\n\n")
        print(f"{options.room}: {options.calls} calls, {len(faults)} faults")
        return min(len(faults), 1)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "number"
        place.write_text("")
        environment = dict(os.environ)
        if not options.unchecked:
            environment |= {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": folder}
        arguments = ["-X", "faulthandler", "-m", "tests.fuzz", *sys.argv[1:], "--note", str(place)]
        code = subprocess.run([sys.executable, *arguments], env=environment).returncode
        if code not in (0, 1):
            print(f"{options.room}: died ({code}) in call {place.read_text().strip()}")
    return code


if __name__ == "__main__":
    sys.exit(main())
