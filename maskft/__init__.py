"""Masked-language-model training with Transformers, on maskkernels.

    from maskft import DataCollatorForLanguageModeling  # in place of transformers'

Names load on first use, so that ``maskft --help`` does not wait for torch. Examples in docstrings
use a ``tokenizer``, tokenized ``rows``, a ``model`` and a ``trainer`` of yours.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the names of _HOMES, for tools that read code
    from maskft.collate.collator import (
        DataCollatorForLanguageModeling as DataCollatorForLanguageModeling,
    )
    from maskft.collate.denoising import (
        DataCollatorForSpanCorruption as DataCollatorForSpanCorruption,
    )
    from maskft.collate.denoising import (
        DataCollatorForTextInfilling as DataCollatorForTextInfilling,
    )
    from maskft.collate.inputs import MaskInputs as MaskInputs
    from maskft.collate.unmasked import UnmaskedCollator as UnmaskedCollator
    from maskft.collate.unmasked import mask_batch as mask_batch
    from maskft.fuse import fuse_loss as fuse_loss
    from maskft.fuse import make_bidirectional as make_bidirectional
    from maskft.fuse import make_causal as make_causal
    from maskft.fuse import unfuse_loss as unfuse_loss
    from maskft.insight.compare import compare_models as compare_models
    from maskft.insight.explain import explain as explain
    from maskft.insight.generate import generate as generate
    from maskft.insight.pairs import score_pairs as score_pairs
    from maskft.insight.score import score as score
    from maskft.insight.variants import score_variants as score_variants
    from maskft.packing.collator import DataCollatorWithPacking as DataCollatorWithPacking
    from maskft.packing.sampler import PackedBatchSampler as PackedBatchSampler
    from maskft.strategy import Plan as Plan
    from maskft.strategy import Strategy as Strategy
    from maskft.strategy import Tokens as Tokens
    from maskft.strategy.schedule import RateSchedule as RateSchedule
    from maskft.trainer.attach import MaskingCallback as MaskingCallback
    from maskft.trainer.attach import attach as attach
    from maskft.trainer.attach import detach as detach

_HOMES = {
    "DataCollatorForLanguageModeling": "maskft.collate.collator",
    "DataCollatorForSpanCorruption": "maskft.collate.denoising",
    "DataCollatorForTextInfilling": "maskft.collate.denoising",
    "DataCollatorWithPacking": "maskft.packing.collator",
    "MaskInputs": "maskft.collate.inputs",
    "MaskingCallback": "maskft.trainer.attach",
    "PackedBatchSampler": "maskft.packing.sampler",
    "Plan": "maskft.strategy",
    "RateSchedule": "maskft.strategy.schedule",
    "Strategy": "maskft.strategy",
    "Tokens": "maskft.strategy",
    "UnmaskedCollator": "maskft.collate.unmasked",
    "attach": "maskft.trainer.attach",
    "compare_models": "maskft.insight.compare",
    "detach": "maskft.trainer.attach",
    "explain": "maskft.insight.explain",
    "fuse_loss": "maskft.fuse",
    "generate": "maskft.insight.generate",
    "make_bidirectional": "maskft.fuse",
    "make_causal": "maskft.fuse",
    "mask_batch": "maskft.collate.unmasked",
    "score": "maskft.insight.score",
    "score_pairs": "maskft.insight.pairs",
    "score_variants": "maskft.insight.variants",
    "unfuse_loss": "maskft.fuse",
}
__all__ = sorted(_HOMES)


def __dir__() -> list[str]:
    return list(__all__)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'maskft' has no attribute {name!r}")
    from maskkernels.runtime import import_guarded

    return getattr(import_guarded(_HOMES[name]), name)
