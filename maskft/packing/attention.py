"""Which form of packing a model can take: tried on the model, because its class does not tell.

Attention that ignores what keeps rows apart, convolutions over neighbours (ConvBERT, MobileBERT),
mixing by Fourier transforms (FNet): nothing of it fails, the rows just see each other.
"""

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskft.collate.columns import moved

ATTENTIONS = ("varlen", "block_diagonal", "padded")
_CLOSE = {torch.float32: 0.05, torch.float64: 0.05}  # of the effect that seeing each other has
_CLOSE_ROUNDED = 0.5  # in lower precision, where rounding is a good part of that effect


def lay_out(
    cu_seqlens: Tensor,
    *,
    attention: str,
    position_ids_start: int = 0,
    mask_dtype: torch.dtype = torch.bool,
    sliding_window: int | None = None,
    padding: int = 0,
    max_samples: int | None = None,
) -> dict[str, Any]:
    """Return the arguments that separate packed rows; see ``DataCollatorWithPacking``.

    Args:
        cu_seqlens: int64 [B + 1]: row b is cu_seqlens[b]..cu_seqlens[b + 1].
        padding: tokens behind the rows, which see each other and nothing else.
        the others: as for the collator.

    Returns:
        position_ids [1, N] and, by ``attention``, attention_mask or the four of FlashAttention.
    """
    lengths, count = cu_seqlens.diff(), int(cu_seqlens[-1])
    position = torch.arange(count) - torch.repeat_interleave(
        cu_seqlens[:-1], lengths, output_size=count
    )
    # Padding may be longer than any row the model has positions for: all of it has the first.
    position = torch.nn.functional.pad(position, (0, padding)) + position_ids_start
    ends = torch.cat([cu_seqlens, cu_seqlens[-1:] + padding]) if padding else cu_seqlens
    told: dict[str, Any] = {"position_ids": position.unsqueeze(0)}
    if attention == "varlen":
        return told | _varlen(ends, max_samples)
    return told | {"attention_mask": _block_diagonal(ends, mask_dtype, sliding_window)}


def _varlen(ends: Tensor, max_samples: int | None) -> dict[str, Any]:
    """Return the arguments of FlashAttention, with Transformers' names."""
    longest = int(ends.diff().max()) if ends.numel() > 1 else 0
    if max_samples is not None:
        missing = max_samples + 2 - ends.numel()  # one for the 0, one for the padding
        if missing < 0:
            raise ValueError(
                f"the batch has {ends.numel() - 1} rows, padding included; max_samples is "
                f"{max_samples}"
            )
        longest = int(ends[-1])
        ends = torch.cat([ends, ends.new_full((missing,), longest)])
    ends = ends.int()
    return {
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _block_diagonal(ends: Tensor, dtype: torch.dtype, sliding_window: int | None) -> Any:
    """Return [1, 1, N, N]: a token sees the tokens of its row; in local layers the near ones."""
    if sliding_window is None:
        return _as_mask(ends, dtype, None)
    return {
        "full_attention": _as_mask(ends, dtype, None),
        "sliding_attention": _as_mask(ends, dtype, sliding_window),
    }


def _as_mask(ends: Tensor, dtype: torch.dtype, window: int | None) -> Tensor:
    """Written row by row: NumPy's zeros are not touched until then, and most of N * N never are."""
    bounds = ends.tolist()
    count = bounds[-1]
    if dtype == torch.bool:
        mask = torch.from_numpy(np.zeros((count, count), np.bool_))
    else:
        mask = torch.full((count, count), torch.finfo(dtype).min, dtype=dtype)
    for begin, end in itertools.pairwise(bounds):
        block = mask[begin:end, begin:end]
        block.fill_(dtype == torch.bool)  # True, or 0 to add
        if window is not None:
            place = torch.arange(end - begin)
            far = (place.unsqueeze(1) - place).abs() > window
            block.masked_fill_(far, 0 if dtype == torch.bool else torch.finfo(dtype).min)
    return mask[None, None]


def packed_attention(model: Any, vocab_size: int, attention: str | None) -> dict[str, Any]:
    """Find the arguments of ``DataCollatorWithPacking`` that fit a model.

    Args:
        model: a Transformers model that returns ``logits``; left in the mode it was in.
        vocab_size: ids that may be tried.
        attention: what it has to be; None: what the model can do, at worst "padded".

    Raises:
        ValueError: the model does not keep rows apart by ``attention``.
    """
    if attention == "padded":
        return {"attention": "padded"}
    config = model.config
    kind = getattr(config, "_attn_implementation", None) or "eager"
    found: dict[str, Any] = {
        "attention": attention or ("varlen" if "flash" in kind else "block_diagonal"),
        "position_ids_start": _first_position(model),
    }
    if found["attention"] == "block_diagonal":
        found["mask_dtype"] = torch.bool if kind == "sdpa" else torch.float32
        if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
            found["sliding_window"] = config.sliding_window
    problem = _problem(model, vocab_size, found)
    if problem is None:
        return found
    if attention is not None:
        raise ValueError(
            f"{type(model).__name__} with {kind} attention cannot take attention={attention!r}: "
            f'{problem}. attention="padded" is for every model'
        )
    return {"attention": "padded"}


def _first_position(model: Any) -> int:
    """Return the first position: RoBERTa and its kin count from padding_idx + 1."""
    for module in model.modules():
        padding = getattr(getattr(module, "position_embeddings", None), "padding_idx", None)
        if padding is not None:
            return int(padding) + 1
    return 0


@torch.no_grad()
def _problem(model: Any, vocab_size: int, arguments: dict[str, Any]) -> str | None:
    """Say what goes wrong with packed rows; None if they give what each gives alone."""
    rows = _rows(model.config, vocab_size, arguments.get("sliding_window"))
    ends = torch.tensor([0, *(row.numel() for row in rows)]).cumsum(0)
    told = moved(lay_out(ends, **arguments), model.device)
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        alone = [model(input_ids=row[None].to(model.device)).logits[0] for row in rows]
        ids = torch.cat(rows)[None].to(model.device)
        mixed = model(input_ids=ids, position_ids=told["position_ids"]).logits[0]
        packed = model(input_ids=ids, **told).logits[0]
    except Exception as error:  # whatever a model raises that cannot do this
        return f"it raises {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    finally:
        for module, mode in training.items():
            module.training = mode
    expected = torch.cat(alone)
    effect = (mixed - expected).float().norm()
    close = _CLOSE.get(expected.dtype, _CLOSE_ROUNDED)
    if not float((packed - expected).float().norm()) <= close * float(effect):
        return "rows see each other, or have other positions than alone"
    return None


def _rows(config: Any, vocab_size: int, sliding_window: int | None) -> list[Tensor]:
    """Make a few rows of ordinary ids, the first longer than a local layer looks."""
    limit = getattr(config, "max_position_embeddings", None) or 64
    longest = max(8, min(2 * (sliding_window or 4) + 8, limit // 2))
    half = max(vocab_size // 2, 1)
    rows = []
    for length in (longest, 3, 6):
        ids = vocab_size - 1 - torch.arange(length) * 7919 % half
        rows.append(torch.where(ids == (config.pad_token_id or -1), vocab_size - half, ids))
    return rows
