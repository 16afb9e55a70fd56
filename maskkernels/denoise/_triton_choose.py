"""Which places of a row are chosen, without repetition, on the GPU."""

import triton
import triton.language as tl

CHOICE = tl.constexpr(4)  # size, count, where its draws are, where its flags are
_LAST = tl.constexpr((1 << 31) - 1)
_CHOSEN = tl.constexpr(-(1 << 31))  # the sign, of a place that is chosen in place of a taken draw


@triton.jit
def mark(flags, drawn, i, ok):
    """Note at each place drawn which step drew it first: the earlier, the larger a number."""
    tl.atomic_max(flags + drawn, (i * -1 + _LAST).to(tl.int32), mask=ok)


@triton.jit
def choose(choices_ptr, draws_ptr, flags_ptr, BLOCK: tl.constexpr):
    """Set flags, which ``mark`` began, at all places that Floyd's algorithm chooses.

    Step i takes its draw, or its highest place (size - count + i) if the draw is taken. It is taken
    if an earlier step drew it too, or if it is the highest place of an earlier step whose own draw
    was taken. Each lane goes back from step to such a step; as draws are uniform, it passes about
    as many of them as the logarithm of their count.
    """
    at = choices_ptr + tl.program_id(0).to(tl.int64) * CHOICE
    size, count = tl.load(at), tl.load(at + 1)
    draws, flags = draws_ptr + tl.load(at + 2), flags_ptr + tl.load(at + 3)
    for start in range(0, count, BLOCK):
        i = (start + tl.arange(0, BLOCK)).to(tl.int64)
        step, taken, going = i, i < 0, i < count
        while tl.max(going.to(tl.int32), 0) > 0:
            drawn = tl.load(draws + step, mask=going, other=0)
            first = tl.load(flags + drawn, mask=going, other=0) & _LAST
            taken = taken | (going & (first + step > _LAST))
            before = drawn - (size - count)
            going = going & (taken == 0) & (before >= 0) & (before < step)
            step = tl.where(going, before, step)
        tl.atomic_or(flags + (size - count + i), _CHOSEN, mask=taken)


@triton.jit
def part_ends(choices_ptr, flags_ptr, until_ptr, BLOCK: tl.constexpr):
    """Where each part of a composition ends, in order: behind each cut, and at the end of all.

    They take the place of the draws and one more.
    """
    at = choices_ptr + tl.program_id(0).to(tl.int64) * CHOICE
    size = tl.load(at)
    until, flags = until_ptr + tl.load(at + 2), flags_ptr + tl.load(at + 3)
    done = tl.full([], 0, tl.int64)
    for start in range(0, size + 1, BLOCK):
        place = start + tl.arange(0, BLOCK)
        cut = tl.load(flags + place, mask=place < size, other=0) != 0
        cut = (cut | (place == size)).to(tl.int32)
        slot = done + tl.cumsum(cut, 0) - cut
        tl.store(until + slot, place + 1, mask=cut != 0)
        done += tl.sum(cut, 0)
