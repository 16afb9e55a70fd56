"""Random words and content hashes: check the arguments, choose a backend, compute."""

import math

import torch
from torch import Tensor

from maskkernels.backend import Op
from maskkernels.tokens.checks import (
    check_bounds,
    check_dense,
    check_ids,
    check_indices,
    check_int,
    check_number,
    epoch_bits,
    seed_bits,
)


def threshold(p: float) -> int:
    """Return floor(p * 2^32): a word of the contract is below it with probability p (to 2^-32).

    The result has 33 bits: probability 1 gives 2^32, which is above every word, and 0 gives 0.

    Raises:
        TypeError: p is not a number.
        ValueError: p is NaN or outside [0, 1].

    Examples:
        >>> from maskkernels import threshold
        >>> threshold(0.5) == 2**31, threshold(1.0) == 2**32
        (True, True)
    """
    check_number("a probability", p)
    p = float(p)
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"a probability must be between 0 and 1, got {p!r}")
    return math.floor(p * 4294967296.0)


def _fake_hash_rows(
    input_ids: Tensor, cu_seqlens: Tensor | None, attention_mask: Tensor | None
) -> Tensor:
    samples = input_ids.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return input_ids.new_empty(samples, dtype=torch.int64)


def _fake_random_words(
    sample_ids: Tensor, index: Tensor, seed: int, epoch: int, stream: int
) -> Tensor:
    return torch.empty_like(index, memory_format=torch.contiguous_format)


_hash_rows = Op(
    "rng",
    "hash_rows",
    fake=_fake_hash_rows,
    arguments={"input_ids": Tensor, "cu_seqlens": Tensor | None, "attention_mask": Tensor | None},
    check=lambda input_ids, cu_seqlens, _: check_bounds(input_ids, cu_seqlens),
    direct=True,
)
_random_words = Op(
    "rng",
    "random_words",
    fake=_fake_random_words,
    arguments={"sample_ids": Tensor, "index": Tensor, "seed": int, "epoch": int, "stream": int},
    check=lambda _, index, *__: check_indices("index", index, 0),
    direct=True,
)


def hash_rows(
    input_ids: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Hash each sample's tokens: the default sample id, which does not depend on padding.

    h = splitmix64(sum over positions i of splitmix64((i << 32) | token_i)) modulo 2^64, over the
    real tokens, including special tokens; positions count from the first real one.

    Args:
        input_ids: [B, T], or flat [N] with ``cu_seqlens``; int32 or int64, any strides.
        cu_seqlens: [B + 1], int32 or int64: sample b is input_ids[cu_seqlens[b]:cu_seqlens[b + 1]].
        attention_mask: like input_ids; non-zero where the token is real. None: all are.
        backend: "auto", "reference", "numba" or "triton".

    Returns:
        int64 [B], the bits of the unsigned 64-bit hash.

    Raises:
        TypeError, ValueError: a dtype, shape, device or backend that does not fit.

    Examples:
        >>> import torch
        >>> from maskkernels import hash_rows
        >>> hex(hash_rows(torch.tensor([[101, 7592, 2088, 102]])).item())
        '0x1cdbe112d370c414'
    """
    check_ids(input_ids, cu_seqlens, attention_mask)
    return _hash_rows(backend, input_ids.device, input_ids, cu_seqlens, attention_mask)


def random_words(
    sample_ids: Tensor,
    index: Tensor,
    *,
    seed: int,
    epoch: int = 0,
    stream: int = 0,
    backend: str = "auto",
) -> Tensor:
    """Draw the 32-bit random word of each (seed, epoch, stream, sample id, index).

    Philox4x32-10 with the seed as key (low word, high word) and the counter
    (index // 4, sample id low, sample id high, (epoch mod 2^24) << 8 | stream); the draw is output
    word index % 4. ``rng/streams.py`` names the streams in use.

    Args:
        sample_ids: int64, the bits of unsigned 64-bit ids; broadcast against ``index``.
        index: int64, in [0, 2^34).
        seed: in [0, 2^64).
        epoch: non-negative; taken modulo 2^24.
        stream: in [0, 256).
        backend: "auto", "reference", "numba" or "triton".

    Returns:
        int64 of the broadcast shape, each in [0, 2^32).

    Raises:
        TypeError, ValueError: a dtype, range or backend that does not fit.

    Examples:
        >>> import torch
        >>> from maskkernels import random_words
        >>> random_words(torch.tensor([0]), torch.arange(4), seed=0).tolist()
        [1713891541, 3781805453, 3159862348, 2600524760]
    """
    for name, tensor in (("sample_ids", sample_ids), ("index", index)):
        if not isinstance(tensor, Tensor) or tensor.dtype != torch.int64:
            raise TypeError(
                f"{name} must be an int64 tensor, got {getattr(tensor, 'dtype', tensor)}"
            )
        check_dense(name, tensor)
    if sample_ids.device != index.device:
        raise ValueError(f"sample_ids is on {sample_ids.device}, index on {index.device}")
    check_int("stream", stream)
    if not 0 <= stream < 256:
        raise ValueError(f"stream must be in [0, 256), got {stream}")
    epoch = epoch_bits(epoch)
    try:
        sample_ids, index = torch.broadcast_tensors(sample_ids, index)
    except RuntimeError:
        raise ValueError(
            f"sample_ids {tuple(sample_ids.shape)} and index {tuple(index.shape)} do not broadcast"
        ) from None
    words = _random_words(
        backend, index.device, sample_ids.reshape(-1), index.reshape(-1), seed_bits(seed), epoch,
        int(stream),
    )  # fmt: skip
    return words.view(index.shape)
