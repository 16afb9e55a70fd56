"""The denoising ops as PyTorch's dispatcher sees them: rows in any layout, options spelt out.

On the CPU results are as long as they turn out, and a compiled graph learns that when it runs. On a
GPU they have room for whatever may be drawn, so that nobody waits to learn it.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskkernels.backend import define_op
from maskkernels.denoise.job import Batch
from maskkernels.denoise.policy import Denoiser, SpanCorruption, TextInfilling, denoiser_table
from maskkernels.rng import hash_rows

_LONGEST = (1 << 31) - 1  # tokens in a row: a choice among them takes 32-bit words
_SEED = (1 << 64) - 1
_SHARE = 1 << 20  # what a bound on the targets counts in

_ROWS = (
    "Tensor input_ids, Tensor? sample_ids, Tensor? cu_seqlens, Tensor? attention_mask, "
    "SymInt seed, SymInt epoch"
)
_SPANS = (
    "int[] sentinel_ids, float[] noise_densities, float[] mean_span_lengths, float[] shares, "
    "bool[] prefixes, int[] mode_token_ids, int eos_token_id, bool final_sentinel, "
    "int[] edge_token_ids"
)
_INFILLING = (
    "int mask_token_id, float ratio, float mean_span_length, bool permute_sentences, "
    "int[] sentence_end_ids, int[] edge_token_ids"
)
_RESULTS = "(Tensor, Tensor, Tensor, Tensor)"


class Rows(NamedTuple):
    """Checked rows in the layout they came in; ``seed`` holds the bits of an unsigned number."""

    input_ids: Tensor
    sample_ids: Tensor | None
    cu_seqlens: Tensor | None
    attention_mask: Tensor | None
    seed: int
    epoch: int

    @property
    def samples(self) -> int:
        if self.cu_seqlens is None:
            return self.input_ids.shape[0]
        return self.cu_seqlens.shape[0] - 1


def batch_of(rows: Rows, backend: str) -> Batch:
    """The rows without padding. Looks at the attention mask, so a GPU is waited for."""
    input_ids, sample_ids, cu_seqlens, attention_mask, seed, epoch = rows
    if cu_seqlens is None:
        count, length = input_ids.shape
        if length:
            bounds = torch.arange(0, count * length + 1, length, device=input_ids.device)
        else:
            bounds = torch.zeros(count + 1, dtype=torch.int64, device=input_ids.device)
    else:
        bounds = cu_seqlens.long()
    ids = input_ids.reshape(-1)
    if attention_mask is not None:
        if sample_ids is None:
            sample_ids = hash_rows(
                input_ids, cu_seqlens=cu_seqlens, attention_mask=attention_mask, backend=backend
            )
        keep = attention_mask.reshape(-1) != 0
        before = torch.cat([bounds.new_zeros(1), keep.cumsum(0)])
        ids, bounds = ids[keep], before[bounds]
    if ids.numel() > _LONGEST:
        check_longest(int(bounds.diff().max()))
    return Batch(ids.contiguous(), bounds.contiguous(), sample_ids, seed & _SEED, epoch)


def check_longest(longest: int) -> None:
    """A row of this length can be drawn from."""
    if longest > _LONGEST:
        raise ValueError(f"a row must have fewer than 2**31 tokens, got {longest}")


def spell_spans(corruption: SpanCorruption) -> tuple:
    """The options as the op takes them."""
    denoisers = corruption.denoisers
    return (
        list(corruption.sentinel_ids),
        [float(d.noise_density) for d in denoisers],
        [float(d.mean_span_length) for d in denoisers],
        [float(d.share) for d in denoisers],
        [d.prefix for d in denoisers],
        [-1 if d.mode_token_id is None else d.mode_token_id for d in denoisers],
        -1 if corruption.eos_token_id is None else corruption.eos_token_id,
        corruption.final_sentinel,
        list(corruption.edge_token_ids),
    )


def spell_infilling(infilling: TextInfilling) -> tuple:
    """The options as the op takes them."""
    return (
        infilling.mask_token_id,
        float(infilling.ratio),
        float(infilling.mean_span_length),
        infilling.permute_sentences,
        list(infilling.sentence_end_ids),
        list(infilling.edge_token_ids),
    )


def _read_spans(*options) -> SpanCorruption:
    return _spans(*(tuple(o) if isinstance(o, list) else o for o in options))


@lru_cache(maxsize=64)
def _spans(sentinels, densities, means, shares, prefixes, modes, eos, final, edges):
    denoisers = tuple(
        Denoiser(density, mean, share, prefix, None if mode < 0 else mode)
        for density, mean, share, prefix, mode in zip(
            densities, means, shares, prefixes, modes, strict=True
        )
    )
    return SpanCorruption(sentinels, denoisers, None if eos < 0 else eos, final, edges)


def _read_infilling(*options) -> TextInfilling:
    return _infilling(*(tuple(o) if isinstance(o, list) else o for o in options))


_infilling = lru_cache(maxsize=64)(TextInfilling)


def spans_room(tokens: int, count: int, corruption: SpanCorruption) -> tuple[int, int]:
    """(inputs, targets): room for ``count`` rows of ``tokens`` tokens, whatever is drawn.

    No row has more spans than tokens of noise, or than tokens that are none; noise and spans of n
    tokens are at most n * density * (1 + 1 / mean) + 2.
    """
    table = denoiser_table(corruption.denoisers).tolist()
    modes = any(mode >= 0 for *_, mode in table)
    share = max(-(-density * (mean + 65536) // (mean << 12)) for _, density, mean, _, _ in table)
    beside = corruption.final_sentinel + (corruption.eos_token_id is not None)
    taken = torch.sym_min(tokens, tokens * share // _SHARE + 1 + 2 * count)
    return tokens + count * modes, taken + count * beside


def _numba():
    from maskkernels.denoise import _numba

    return _numba


def _triton():
    from maskkernels.denoise import _triton

    return _triton


def _spans_on_cpu(*args):
    rows, options = Rows(*args[:6]), args[6:]
    return tuple(_numba().corrupt_spans(batch_of(rows, "numba"), _read_spans(*options)))


def _spans_on_gpu(*args):
    return _triton().corrupt_spans(Rows(*args[:6]), _read_spans(*args[6:]))


def _fake_spans(*args):
    rows = Rows(*args[:6])
    if rows.input_ids.device.type == "cpu":
        context = torch.library.get_ctx()
        return _empty(rows, context.new_dynamic_size(), context.new_dynamic_size())
    tokens = rows.input_ids.numel()
    return _empty(rows, *spans_room(tokens, rows.samples, _read_spans(*args[6:])))


def _infilling_on_cpu(*args):
    rows, options = Rows(*args[:6]), args[6:]
    batch = batch_of(rows, "numba")
    found = _numba().infill_text(batch, _read_infilling(*options))
    # An op must not hand back memory that came in.
    return found.input_ids, found.cu_seqlens, batch.ids.clone(), batch.bounds.clone()


def _infilling_on_gpu(*args):
    return _triton().infill_text(Rows(*args[:6]), _read_infilling(*args[6:]))


def _fake_infilling(*args):
    rows = Rows(*args[:6])
    tokens = rows.input_ids.numel()
    if rows.input_ids.device.type != "cpu":
        return _empty(rows, 2 * tokens, tokens)
    context = torch.library.get_ctx()
    inputs = context.new_dynamic_size()
    whole = rows.attention_mask is None
    return _empty(rows, inputs, tokens if whole else context.new_dynamic_size())


def _empty(rows: Rows, inputs: Any, targets: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    new = rows.input_ids.new_empty
    bounds = [new(rows.samples + 1, dtype=torch.int64) for _ in range(2)]
    return new(inputs), bounds[0], new(targets), bounds[1]


corrupt_spans = define_op(
    "corrupt_spans",
    f"({_ROWS}, {_SPANS}) -> {_RESULTS}",
    cpu=_spans_on_cpu,
    cuda=_spans_on_gpu,
    fake=_fake_spans,
)
infill_text = define_op(
    "infill_text",
    f"({_ROWS}, {_INFILLING}) -> {_RESULTS}",
    cpu=_infilling_on_cpu,
    cuda=_infilling_on_gpu,
    fake=_fake_infilling,
)
