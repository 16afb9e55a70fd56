"""Compare Triton's denoising with the reference under TRITON_INTERPRET=1."""

import itertools
import os
import random
import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from maskkernels import (
    CorruptedRows,
    Denoiser,
    SpanCorruption,
    TextInfilling,
    corrupt_spans,
    corrupted_lengths,
    infill_text,
    pad_batch,
    pad_corrupted,
    pad_rows,
)
from maskkernels.denoise import _triton as denoise_triton
from maskkernels.denoise import reference
from maskkernels.denoise.job import DenoiseJob, spans_capacity
from maskkernels.tokens.checks import epoch_bits, seed_bits
from maskkernels.tokens.layout import safe_bounds
from tests.support.denoise_cases import CORRUPTIONS, EOS, INFILLINGS, MASK, SENTINELS, problem
from tests.support.denoising import restore

compared = 0
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "is_nonzero")


class NoWait(TorchDispatchMode):
    """Refuse what would make the host wait for a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        flat = tree_leaves((args, kwargs)) if name.startswith("index") else ()
        if name in WAITS or any(getattr(t, "dtype", None) == torch.bool for t in flat):
            raise RuntimeError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def waits_are_seen():
    values = torch.arange(4)
    for call in (lambda: int(values[1]), lambda: values[values > 2], lambda: values.nonzero()):
        try:
            with NoWait():
                call()
        except RuntimeError:
            continue
        return False
    return True


def equal(name, found, expected):
    global compared
    for a, b in zip(found, expected, strict=True):
        if a.dtype != b.dtype or not torch.equal(a, b):
            print(f"FAILED {name}\n{a}\n{b}")
            sys.exit(1)
    compared += 1


def on_gpu(options, ids, *, seed, epoch=0, sample_ids=None, cu_seqlens=None, attention_mask=None):
    """What the op does with GPU tensors; the room behind the last row holds zeros."""
    seed, epoch = seed_bits(seed), epoch_bits(epoch)
    rows = DenoiseJob(ids, sample_ids, cu_seqlens, attention_mask, seed, epoch)
    if isinstance(options, SpanCorruption):
        with NoWait():
            found = CorruptedRows(*denoise_triton.corrupt_spans(rows, options))
        room = spans_capacity(ids.numel(), rows.samples, options)
        tail = [found.input_ids[found.cu_seqlens[-1] :]]
        tail.append(found.target_ids[found.target_cu_seqlens[-1] :])
    else:
        with NoWait():
            found = CorruptedRows(*denoise_triton.infill_text(rows, options))
        room = (2 * ids.numel(), ids.numel())
        tail = [found.input_ids[found.cu_seqlens[-1] :]]
    if (found.input_ids.numel(), found.target_ids.numel()) != room or any(t.any() for t in tail):
        print(f"FAILED room {options}: {found} {room}")
        sys.exit(1)
    return found


def cut(found):
    """The rows alone, as the CPU gives them."""
    inputs, begins, targets, target_begins = found
    return inputs[: begins[-1]], begins, targets[: target_begins[-1]], target_begins


def cases():
    """(name, options, ids, keyword arguments)."""
    shapes = itertools.cycle(("right", "packed_gaps", "left", "full", "packed"))
    for name, options in (CORRUPTIONS | INFILLINGS).items():
        for n, length in enumerate((13, 61)):
            shape = next(shapes)
            ids, arguments, _ = problem(shape, length, n)
            yield f"{name}-{shape}-{length}", options, ids, arguments
    # More tokens, draws and sentences than a block or a step holds, and a second row behind them.
    ids = torch.randint(10, 90, (2, 1100), generator=torch.Generator().manual_seed(0))
    dense = SpanCorruption(range(9000, 8000, -1), (Denoiser(0.5, 2.0),))
    text = TextInfilling(MASK, 0.6, 2.0, True, range(10, 30), (EOS,))
    yield "long-spans", dense, ids, {"seed": 3}
    yield "long-infilling", text, ids[:, :600], {"seed": 3}
    edges = torch.full((1, 1200), EOS)  # a row in the middle of more of them than a block holds
    edges[0, 600:640] = ids[0, :40]
    yield "long-edges", CORRUPTIONS["t5"], edges, {"seed": 3}
    yield "long-edges", INFILLINGS["edges"], edges, {"seed": 3}
    for shape in ((0, 5), (3, 0), (1, 1), (2, 2)):
        ids = torch.full(shape, 7)
        for name in ("ul2", "open targets", "sentences"):
            yield f"{name}-{shape}", (CORRUPTIONS | INFILLINGS)[name], ids, {"seed": 1}


def check_choices():
    """Small choices, where places are taken over and over: ``reference._chosen``, 250 times."""
    rng = random.Random(0)
    sizes = [rng.randint(1, 12) for _ in range(250)]
    counts = [rng.randint(0, size) for size in sizes]
    choices, draws, flags, expected = [], [], 0, []
    for size, count in zip(sizes, counts, strict=True):
        words = [rng.choice((0, (1 << 32) - 1, rng.getrandbits(32))) for _ in range(count)]
        choices.append((size, count, len(draws), flags))
        draws += [(w * (size - count + i + 1)) >> 32 for i, w in enumerate(words)]
        expected += [int(t in reference._chosen(size, count, words)) for t in range(size)]
        flags += size
    found = torch.zeros(flags, dtype=torch.int32)
    for _, count, draw, flag in choices:
        for i, place in enumerate(draws[draw : draw + count]):  # as ``mark`` does
            found[flag + place] = max(int(found[flag + place]), (1 << 31) - 1 - i)
    denoise_triton.choose[len(choices),](
        torch.tensor(choices), torch.tensor(draws, dtype=torch.int32), found, 4
    )
    equal("choices", [(found != 0).int()], [torch.tensor(expected, dtype=torch.int32)])


def check_too_few_sentinels():
    """As many spans as there are sentinels, of the same noise: here what a longer mean gives."""
    ids = torch.randint(10, 90, (3, 61), generator=torch.Generator().manual_seed(1))
    few = SpanCorruption(SENTINELS[:3], eos_token_id=EOS)  # 9 of 61: three spans, and the last one
    fewer = SpanCorruption(SENTINELS[:3], (Denoiser(0.15, 4.5),), eos_token_id=EOS)
    expected = corrupt_spans(ids, fewer, seed=5, backend="reference")
    equal("too few sentinels", cut(on_gpu(few, ids, seed=5)), expected)
    one = SpanCorruption(SENTINELS[:1], (Denoiser(0.15, 3.0, mode_token_id=8),), eos_token_id=EOS)
    found = on_gpu(one, ids, seed=5)
    for b, row in enumerate(ids.tolist()):  # none is left for a span
        inputs = found.input_ids[found.cu_seqlens[b] : found.cu_seqlens[b + 1]].tolist()
        targets = found.target_ids[2 * b : 2 * b + 2].tolist()
        equal("no sentinel", [torch.tensor(inputs)], [torch.tensor([8, *row])])
        equal("no sentinel", [torch.tensor(targets)], [torch.tensor([SENTINELS[0], EOS])])
        if restore(inputs, targets, one) != row:
            sys.exit("FAILED to restore a row without spans")


def check_broken_bounds():
    """What nobody looks at on a GPU: rows are held to the tokens, as in ``mask_tokens``."""
    ids = torch.randint(10, 90, (40,), generator=torch.Generator().manual_seed(2))
    for bounds in ([5, 9, 30], [-3, 10, 60], [0, 30, 10, 40], [7], [90, 95], [-9, -5]):
        held = safe_bounds(torch.tensor(bounds), 40)
        within = ids[held[0] : held[-1]]  # the same rows, and bounds that rise from 0
        job = DenoiseJob(within, None, held - held[0], None, 1, 0)
        where = {"seed": 1, "cu_seqlens": torch.tensor(bounds)}
        found = cut(on_gpu(CORRUPTIONS["t5"], ids, **where))
        equal(f"{bounds}", found, reference.corrupt_spans(job, CORRUPTIONS["t5"]))
        found = on_gpu(INFILLINGS["bart"], ids, **where)
        expected = reference.infill_text(job, INFILLINGS["bart"])
        equal(f"{bounds}", cut(found)[:2], expected[:2])
        equal(f"{bounds}", found[2:], (ids, held))


def check_static_batches():
    """What is behind the last row gets into no batch."""
    ids = torch.randint(10, 90, (3, 64), generator=torch.Generator().manual_seed(4))
    ids[:, -1] = EOS
    t, n = corrupted_lengths(64)
    found = on_gpu(CORRUPTIONS["t5"], ids, seed=5)
    expected = corrupt_spans(ids, CORRUPTIONS["t5"], seed=5)
    batch = pad_batch({"input_ids": expected.inputs}, padding_values={"input_ids": 0})
    batch["labels"] = pad_rows(expected.targets, padding_value=-100)
    static = pad_corrupted(found, input_length=t, target_length=n)
    equal("static batch", static.values(), [batch[name] for name in static])


def main() -> int:
    if os.environ.get("TRITON_INTERPRET") != "1":
        print("TRITON_INTERPRET=1 is not set: nothing was interpreted")
        return 1
    torch.use_deterministic_algorithms(True)  # fills what torch.empty gives
    if not waits_are_seen():
        print("FAILED to see a wait")
        return 1
    for name, options, ids, arguments in cases():
        kept = ids.clone()
        run = corrupt_spans if isinstance(options, SpanCorruption) else infill_text
        expected = run(ids, options, **arguments, backend="reference")
        equal(name, cut(on_gpu(options, ids, **arguments)), expected)
        equal(name, [ids], [kept])
    check_choices()
    check_too_few_sentinels()
    check_broken_bounds()
    check_static_batches()
    print(f"{compared} comparisons passed")
    return 0 if compared > 90 else 1


if __name__ == "__main__":
    sys.exit(main())
