"""The checks that rooms share: integers, and tensors that belong to a batch of tokens.

None of them waits for a GPU. Values are looked at on the CPU only, by those who are about to
compute: in a compiled graph that is when it runs.
"""

import operator
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

INTEGERS = (torch.int32, torch.int64)
_LARGEST = (1 << 63) - 1  # what an op takes as an int


def check_int(name: str, value: Any, expected: str = "an int") -> None:
    """``value`` must be an integer and no bool; a size that a trace made symbolic is one."""
    if type(value) is int:  # nearly always; asking an abstract class takes a microsecond
        return
    if isinstance(value, bool) or not isinstance(value, (Integral, torch.SymInt)):
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}")


def check_int64(
    name: str, value: Any, least: int = -_LARGEST - 1, below: int = _LARGEST + 1
) -> None:
    """``value`` must be an integer in [least, below)."""
    check_int(name, value)
    if value < least:
        what = f"be at least {least}" if least else "not be negative"
        raise ValueError(f"{name} must {what}, got {value}")
    if not isinstance(value, torch.SymInt) and int(value) >= below:
        raise ValueError(f"{name} must be below 2**{below.bit_length() - 1}, got {value}")


def check_number(name: str, value: Any) -> None:
    """``value`` must be a real number that a float can hold, and no bool; NaN is one."""
    if isinstance(value, bool) or not isinstance(value, (Real, torch.SymFloat)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if isinstance(value, (float, torch.SymFloat)):
        return
    try:
        float(value)
    except OverflowError:
        raise ValueError(f"{name} must be a number that a float can hold, got {value}") from None


def check_flag(name: str, value: Any) -> None:
    """``value`` must be a bool: any other value would be taken for one in silence."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def sequence_of(name: str, values: Any, kind: str) -> tuple[Any, ...]:
    """``values`` as a tuple, from anything that can be gone through but text."""
    try:
        if isinstance(values, (str, bytes)):
            raise TypeError
        return tuple(values)
    except TypeError:
        got = f"{type(values).__name__} {values!r}"[:60] if values is not None else "NoneType"
        raise TypeError(f"{name} must be a sequence of {kind}, got {got}") from None


def check_dense(name: str, tensor: Any) -> None:
    """``tensor`` must be a tensor whose elements lie in memory with strides."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.is_nested:
        kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        raise TypeError(f"{name} must be a dense tensor, got a {kind} one: pad it, or to_dense()")


def as_int(name: str, value: Any) -> int:
    """``value`` as an int, from anything that can index a list."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {type(value).__name__}") from None


def check_ids(input_ids: Tensor, cu_seqlens: Tensor | None, attention_mask: Tensor | None) -> None:
    """Check the rows of tokens of any op, without waiting for a GPU."""
    check_dense("input_ids", input_ids)
    if input_ids.dtype not in INTEGERS:
        raise TypeError(f"input_ids must be int32 or int64, got {input_ids.dtype}")
    if cu_seqlens is None and input_ids.dim() != 2:
        raise ValueError(
            f"input_ids must be [B, T], got shape {tuple(input_ids.shape)}; "
            "flat packed tokens [N] need cu_seqlens"
        )
    if cu_seqlens is not None:
        if input_ids.dim() != 1:
            raise ValueError(
                f"with cu_seqlens, input_ids must be flat [N], got shape {tuple(input_ids.shape)}"
            )
        check_dense("cu_seqlens", cu_seqlens)
        if cu_seqlens.dtype not in INTEGERS or cu_seqlens.dim() != 1 or cu_seqlens.numel() < 1:
            raise ValueError(
                "cu_seqlens must be int32 or int64 [B + 1], got "
                f"{cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}"
            )
        if cu_seqlens.device != input_ids.device:
            raise ValueError(
                f"cu_seqlens is on {cu_seqlens.device}, input_ids on {input_ids.device}"
            )
    check_like("attention_mask", attention_mask, input_ids)


def checked_bounds(cu_seqlens: Tensor, n: int) -> np.ndarray:
    """int64 [B + 1]: a copy of ``cu_seqlens``, whose values are looked at. On the CPU only.

    A copy, because another thread may write to the caller's after the look.

    Raises:
        ValueError: it does not go from 0 up to n, or falls.
    """
    bounds = cu_seqlens.detach().numpy().astype(np.int64)
    # In NumPy: four calls of torch would take longer than a small batch.
    if bounds[0] != 0 or bounds[-1] != n or (bounds[1:] < bounds[:-1]).any():
        raise ValueError(
            f"cu_seqlens must rise from 0 to {n} (input_ids.numel()), got {bounds.tolist()}"
        )
    return bounds


def check_bounds(tokens: Tensor, cu_seqlens: Tensor | None) -> None:
    """The values of ``cu_seqlens``, if there is one: from 0 up to the tokens, never falling."""
    if cu_seqlens is not None:
        checked_bounds(cu_seqlens, tokens.numel())


def check_indices(name: str, index: Tensor, low: int) -> None:
    """Every index is in [low, 2^34), all that a counter of the contract holds. On the CPU only."""
    if not index.numel():
        return
    values = index.detach().numpy()
    most = int(values.max())
    least = int(values.min()) if low > -(1 << 63) else low
    if least < low or most >= 1 << 34:
        bad = least if least < low else most
        raise ValueError(f"{name} must be in [{low}, 2**34), got {bad}")


def check_drawn_from(replacement_ids: Tensor | None, size: int) -> None:
    """Every id that replacements are drawn from is in [0, size). On the CPU only."""
    if replacement_ids is None:
        return
    low, high = int(replacement_ids.min()), int(replacement_ids.max())
    if low < 0 or high >= size:
        raise ValueError(
            f"replacement_ids go from {low} to {high}, outside the vocabulary [0, {size})"
        )


def check_rates(name: str, rates: Tensor | None) -> None:
    """Every rate is in [0, 1]. On the CPU only."""
    if rates is None or not rates.numel():
        return
    values = rates.detach().double().numpy()
    if not (values.min() >= 0 and values.max() <= 1):  # a NaN is both
        raise ValueError(f"{name} must be between 0 and 1, NaN excluded")


def check_like(name: str, tensor: Tensor | None, input_ids: Tensor) -> None:
    """Check that ``tensor`` has the shape and device of ``input_ids``."""
    if tensor is None:
        return
    check_dense(name, tensor)
    if tensor.shape != input_ids.shape:
        raise ValueError(
            f"{name} must have the shape of input_ids {tuple(input_ids.shape)}, "
            f"got {tuple(tensor.shape)}"
        )
    if tensor.device != input_ids.device:
        raise ValueError(f"{name} is on {tensor.device}, input_ids on {input_ids.device}")


def check_vector(
    name: str,
    tensor: Tensor | None,
    input_ids: Tensor,
    dtypes: tuple[torch.dtype, ...],
    length: int | None,
) -> None:
    """``tensor`` must be one-dimensional, of one of ``dtypes``, with ``length`` entries."""
    if tensor is None:
        return
    if not isinstance(tensor, Tensor) or tensor.dtype not in dtypes:
        got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        article = "an" if kinds.startswith("int") else "a"
        raise TypeError(f"{name} must be {article} {kinds} tensor, got {got}")
    check_dense(name, tensor)
    if tensor.dim() != 1 or length not in (None, tensor.numel()):
        raise ValueError(
            f"{name} must have shape [{'n' if length is None else length}], "
            f"got {tuple(tensor.shape)}"
        )
    if tensor.device != input_ids.device:
        raise ValueError(f"{name} is on {tensor.device}, input_ids on {input_ids.device}")


def check_table(name: str, table: Tensor, dtype: torch.dtype, input_ids: Tensor) -> None:
    """``table`` must have an entry of ``dtype`` for each id of a vocabulary, of one at least."""
    if not isinstance(table, Tensor) or table.dtype != dtype or table.dim() != 1:
        is_tensor = isinstance(table, Tensor)
        got = f"{table.dtype} {tuple(table.shape)}" if is_tensor else type(table).__name__
        raise TypeError(f"{name} must be {str(dtype).removeprefix('torch.')} [V], got {got}")
    check_dense(name, table)
    if not table.numel():
        raise ValueError(f"{name} must have an entry for each id of the vocabulary, got none")
    if table.device != input_ids.device:
        raise ValueError(f"{name} is on {table.device}, input_ids on {input_ids.device}")


def check_column(name: str, tensor: Tensor, shape: tuple[int, ...], input_ids: Tensor) -> None:
    """``tensor`` must be int64 of ``shape``, on the device of ``input_ids``."""
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.int64:
        raise TypeError(f"{name} must be an int64 tensor, got {getattr(tensor, 'dtype', tensor)}")
    check_dense(name, tensor)
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
    if tensor.device != input_ids.device:
        raise ValueError(f"{name} is on {tensor.device}, input_ids on {input_ids.device}")


def seed_bits(seed: int) -> int:
    """Return the int64 with the bits of a 64-bit seed (torch ops take signed integers).

    Raises:
        TypeError: seed is not an integer.
        ValueError: seed is negative or needs more than 64 bits.
    """
    check_int("seed", seed)
    seed = int(seed)
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}")
    return seed - (1 << 64) if seed >> 63 else seed


def epoch_bits(epoch: int) -> int:
    """Return the epoch modulo 2^24, as the contract uses it.

    Raises:
        TypeError: epoch is not an integer.
        ValueError: epoch is negative.
    """
    check_int("epoch", epoch)
    if epoch < 0:
        raise ValueError(f"epoch must not be negative, got {epoch}")
    return int(epoch) % (1 << 24)
