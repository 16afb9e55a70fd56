"""The random contract in plain torch. This file is its specification.

Philox4x32-10 is from Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011);
splitmix64 from Steele et al., "Fast splittable pseudorandom number generators" (OOPSLA 2014).

Torch has few unsigned operations, so 32-bit words live in the low half of an int64 and 64-bit words
are int64 bit patterns. Both are exact: int64 products wrap modulo 2^64.
"""

import torch
from torch import Tensor

from maskkernels.tokens.layout import layout

WORD = 0xFFFFFFFF


def _signed(word: int) -> int:
    """Return the int64 with the bits of the unsigned 64-bit ``word``."""
    return word - (1 << 64) if word >> 63 else word


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift int64 bit patterns right, filling with zeros."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def philox4x32(
    c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, k0: int, k1: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run ten rounds of Philox4x32 on int64 tensors of 32-bit counter words."""
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            _shift_right(p1, 32) ^ c1 ^ k0,
            p1 & WORD,
            _shift_right(p0, 32) ^ c3 ^ k1,
            p0 & WORD,
        )
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return c0, c1, c2, c3


def random_words(sample_ids: Tensor, index: Tensor, seed: int, epoch: int, stream: int) -> Tensor:
    """Draw words [N] for ``sample_ids`` [N] and ``index`` [N]; see ``rng.api.random_words``."""
    c3 = torch.full_like(index, epoch << 8 | stream)
    words = philox4x32(
        _shift_right(index, 2) & WORD,
        sample_ids & WORD,
        _shift_right(sample_ids, 32),
        c3,
        seed & WORD,
        (seed >> 32) & WORD,
    )
    return torch.stack(words, -1).gather(-1, (index & 3).unsqueeze(-1)).squeeze(-1)


def splitmix64(x: Tensor) -> Tensor:
    """Add the golden-ratio increment, then apply the splitmix64 finaliser to int64 bit patterns."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def hash_rows(
    input_ids: Tensor, cu_seqlens: Tensor | None, attention_mask: Tensor | None
) -> Tensor:
    """Hash each sample's real tokens to [B]; see ``rng.api.hash_rows``."""
    samples, sample, position, real = layout(input_ids, cu_seqlens, attention_mask)
    mixed = splitmix64((position << 32) | (input_ids.reshape(-1).long() & WORD))
    total = torch.zeros(samples + 1, dtype=torch.int64, device=input_ids.device)
    total = total.scatter_add(0, sample, torch.where(real, mixed, 0))
    return splitmix64(total[:samples])
