"""Denoising problems that all backends are compared on; imported by tests and by a subprocess."""

import itertools

import torch

from maskkernels import Denoiser, SpanCorruption, TextInfilling, ul2_denoisers
from tests.support.contract import row_hash
from tests.support.mask_cases import batch

EOS, MASK = 1, 2
SENTINELS = tuple(range(1200, 900, -1))
CORRUPTIONS = {
    "t5": SpanCorruption(SENTINELS, eos_token_id=EOS),
    "open targets": SpanCorruption(SENTINELS, final_sentinel=False, edge_token_ids=(0, 3)),
    "dense": SpanCorruption(SENTINELS, (Denoiser(0.5, 1.0),), eos_token_id=EOS),
    "nearly all": SpanCorruption(SENTINELS, (Denoiser(0.97, 2.5),)),
    "prefix": SpanCorruption(SENTINELS, (Denoiser(0.25, prefix=True),), eos_token_id=EOS),
    "ul2": SpanCorruption(SENTINELS, ul2_denoisers(801, 802, 803), eos_token_id=EOS),
    "uneven": SpanCorruption(
        SENTINELS, (Denoiser(0.3, 2.0, 5.0), Denoiser(0.6, 4.0, 0.1, mode_token_id=804))
    ),
}
INFILLINGS = {
    "bart": TextInfilling(MASK),
    "edges": TextInfilling(MASK, edge_token_ids=(EOS, 3)),
    "short": TextInfilling(MASK, 0.6, 0.3),
    "long": TextInfilling(MASK, 0.9, 20.0),
    "sentences": TextInfilling(
        MASK, permute_sentences=True, sentence_end_ids=range(4, 50, 3), edge_token_ids=(EOS,)
    ),
}


def problem(shape, length, n):
    """(ids, arguments, [(row without padding, sample id)]); some rows begin or end in EOS."""
    ids, arguments = batch(shape, length=length, seed=n)
    ids = torch.where(ids.reshape(-1) % 11 == 0, EOS, ids.reshape(-1)).view(ids.shape)
    flat = ids.reshape(-1).tolist()
    if ids.dim() == 2:
        bounds = [b * length for b in range(len(ids) + 1)]
    else:
        bounds = arguments["cu_seqlens"].tolist()
    keep = arguments.get("attention_mask", torch.ones_like(ids)).reshape(-1).tolist()
    rows, names = [], []
    for begin, end in itertools.pairwise(bounds):
        at = [t for t in range(begin, end) if keep[t]]
        rows.append([flat[t] for t in at])
        names.append(row_hash({t - at[0]: flat[t] for t in at}))
    if n % 2:
        ids = ids.int()
    if n % 3 == 0:
        names = [(1 << 63) + 7 * b for b in range(len(rows))]
        arguments["sample_ids"] = torch.tensor([name - (1 << 64) for name in names])
    arguments |= {"seed": (1 << 64) - 1 - n, "epoch": (1 << 24) - 2 + n % 4}
    return ids, arguments, list(zip(rows, names, strict=True))
