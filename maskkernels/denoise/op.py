"""Denoising as ops: rows in any layout, options spelt out in numbers.

A call on the CPU goes to its backend straight away: an op between would add 20 us to the 100 that
64 rows of 512 tokens take. There results are as long as they turn out, and a compiled graph learns
that when it runs. On a GPU they have the capacity for whatever may be drawn, so that nobody waits
to learn it.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskkernels.backend import Constant, Op
from maskkernels.denoise.job import CorruptedRows, DenoiseJob, spans_capacity
from maskkernels.denoise.policy import Denoiser, SpanCorruption, TextInfilling

_FIELDS = len(DenoiseJob._fields)


class _Spans(NamedTuple):
    """The fields of ``SpanCorruption``; -1 for an id that is None."""

    sentinel_ids: list[int]
    noise_densities: list[float]
    mean_span_lengths: list[float]
    shares: list[float]
    prefixes: list[bool]
    mode_token_ids: list[int]
    eos_token_id: Constant
    final_sentinel: bool
    edge_token_ids: list[int]


class _Infilling(NamedTuple):
    """The fields of ``TextInfilling``."""

    mask_token_id: Constant
    ratio: float
    mean_span_length: float
    permute_sentences: bool
    sentence_end_ids: list[int]
    edge_token_ids: list[int]


def spell_spans(corruption: SpanCorruption) -> tuple:
    """Return the options as arguments of the op."""
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
    """Return the options as arguments of the op."""
    return (
        infilling.mask_token_id,
        float(infilling.ratio),
        float(infilling.mean_span_length),
        infilling.permute_sentences,
        list(infilling.sentence_end_ids),
        list(infilling.edge_token_ids),
    )


def _read_spans(*args: Any) -> tuple[DenoiseJob, SpanCorruption]:
    job, options = DenoiseJob(*args[:_FIELDS]), args[_FIELDS:]
    return job, _spans(*(tuple(o) if isinstance(o, list) else o for o in options))


@lru_cache(maxsize=64)
def _spans(sentinels, densities, means, shares, prefixes, modes, eos, final, edges):
    denoisers = tuple(
        Denoiser(density, mean, share, prefix, None if mode < 0 else mode)
        for density, mean, share, prefix, mode in zip(
            densities, means, shares, prefixes, modes, strict=True
        )
    )
    return SpanCorruption(sentinels, denoisers, None if eos < 0 else eos, final, edges)


def _read_infilling(*args: Any) -> tuple[DenoiseJob, TextInfilling]:
    job, options = DenoiseJob(*args[:_FIELDS]), args[_FIELDS:]
    return job, _infilling(*(tuple(o) if isinstance(o, list) else o for o in options))


_infilling = lru_cache(maxsize=64)(TextInfilling)


def _fake_spans(job: DenoiseJob, corruption: SpanCorruption) -> tuple[Tensor, ...]:
    if job.input_ids.device.type == "cpu":
        context = torch.library.get_ctx()
        return _empty(job, context.new_dynamic_size(), context.new_dynamic_size())
    return _empty(job, *spans_capacity(job.input_ids.numel(), job.samples, corruption))


def _fake_infilling(job: DenoiseJob, infilling: TextInfilling) -> tuple[Tensor, ...]:
    tokens = job.input_ids.numel()
    if job.input_ids.device.type != "cpu":
        return _empty(job, 2 * tokens, tokens)
    context = torch.library.get_ctx()
    inputs = context.new_dynamic_size()
    whole = job.attention_mask is None
    return _empty(job, inputs, tokens if whole else context.new_dynamic_size())


def _empty(job: DenoiseJob, inputs: Any, targets: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    new = job.input_ids.new_empty
    bounds = [new(job.samples + 1, dtype=torch.int64) for _ in range(2)]
    return new(inputs), bounds[0], new(targets), bounds[1]


def _own_targets(rows: CorruptedRows, job: DenoiseJob, _: TextInfilling) -> CorruptedRows:
    """Rows whose targets are no memory of the job's: on the CPU they are the rows as they came."""
    if job.input_ids.device.type != "cpu":
        return rows
    return CorruptedRows(
        rows.input_ids,
        rows.cu_seqlens,
        rows.target_ids.clone(),
        rows.target_cu_seqlens.clone(),
    )


corrupt_spans = Op(
    "denoise",
    "corrupt_spans",
    fake=_fake_spans,
    arguments={**DenoiseJob.__annotations__, **_Spans.__annotations__},
    results=4,
    read=_read_spans,
    spell=lambda job, corruption: (*job, *spell_spans(corruption)),
    direct=True,
)
infill_text = Op(
    "denoise",
    "infill_text",
    fake=_fake_infilling,
    arguments={**DenoiseJob.__annotations__, **_Infilling.__annotations__},
    results=4,
    read=_read_infilling,
    spell=lambda job, infilling: (*job, *spell_infilling(infilling)),
    own=_own_targets,
    direct=True,
)
