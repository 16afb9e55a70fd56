"""What the denoising kernels share: a program a row, which goes over it block by block."""

import triton
import triton.language as tl

from maskkernels.rng._triton import word, words_of_quads

FIELDS = tl.constexpr(5)  # of a row's plan: begin and end of what may be corrupted (flat), tokens
# of noise, spans, then the mode token (or -1) or which length comes first
# Numbers that change from call to call, and must not compile a kernel again when they do.
VARYING = [
    "edges", "denoisers", "entries", "ends", "limit", "more", "ratio", "eos_token_id",
    "mask_token_id", "seed", "epoch_word",
]  # fmt: skip


@triton.jit
def among(ids, list_ptr, count):
    """Which of ``ids`` are in a list."""
    found = ids != ids
    for i in range(count):
        found = found | (ids == tl.load(list_ptr + i))
    return found


@triton.jit
def inner_of(ids_ptr, row_begin, row_end, edges_ptr, edges, BLOCK: tl.constexpr):
    """(begin, end) of a row without the tokens that stay at its ends."""
    begin, start = row_end, row_begin
    while start < begin:
        offs = start + tl.arange(0, BLOCK)
        ok = offs < row_end
        ids = tl.load(ids_ptr + offs, mask=ok, other=0).to(tl.int64)
        inner = ok & (among(ids, edges_ptr, edges) == 0)
        begin = tl.min(tl.where(inner, offs, row_end), 0)
        start += BLOCK
    end, stop = begin, row_end
    while stop > end:
        stop -= BLOCK
        offs = stop + tl.arange(0, BLOCK)
        ok = (offs >= begin) & (offs < row_end)
        ids = tl.load(ids_ptr + offs, mask=ok, other=0).to(tl.int64)
        inner = ok & (among(ids, edges_ptr, edges) == 0)
        end = tl.max(tl.where(inner, offs + 1, begin), 0)
    return begin, end


@triton.jit
def word_at(index, sample, c3, seed):
    """One word, as int64."""
    return word(index, sample, c3, seed).to(tl.int64)


@triton.jit
def words_from(start, sample, c3, seed, BLOCK: tl.constexpr):
    """The words of start..start + BLOCK - 1 as int64; start is a multiple of four."""
    quads = (start >> 2) + tl.arange(0, BLOCK // 4).to(tl.int64)
    return words_of_quads(quads, sample, c3, seed).to(tl.int64)
