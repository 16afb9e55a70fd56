"""Masked-language-model training with Transformers, on maskkernels.

    from maskft import DataCollatorForLanguageModeling  # in place of transformers'

Names load on first use, so that ``maskft --help`` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskft.collate.collator import DataCollatorForLanguageModeling
    from maskft.collate.denoising import DataCollatorForSpanCorruption, DataCollatorForTextInfilling
    from maskft.collate.unmasked import UnmaskedCollator, mask_batch
    from maskft.fuse import fuse_loss, unfuse_loss
    from maskft.packing.collator import DataCollatorWithPacking
    from maskft.packing.sampler import PackedBatchSampler
    from maskft.strategy import Plan, Strategy
    from maskft.strategy.schedule import RateSchedule
    from maskft.trainer.attach import MaskingCallback, attach, detach

_HOMES = {
    "DataCollatorForLanguageModeling": "maskft.collate.collator",
    "DataCollatorForSpanCorruption": "maskft.collate.denoising",
    "DataCollatorForTextInfilling": "maskft.collate.denoising",
    "DataCollatorWithPacking": "maskft.packing.collator",
    "PackedBatchSampler": "maskft.packing.sampler",
    "UnmaskedCollator": "maskft.collate.unmasked",
    "mask_batch": "maskft.collate.unmasked",
    "MaskingCallback": "maskft.trainer.attach",
    "Plan": "maskft.strategy",
    "RateSchedule": "maskft.strategy.schedule",
    "Strategy": "maskft.strategy",
    "attach": "maskft.trainer.attach",
    "detach": "maskft.trainer.attach",
    "fuse_loss": "maskft.fuse",
    "unfuse_loss": "maskft.fuse",
}
__all__ = [
    "DataCollatorForLanguageModeling",
    "DataCollatorForSpanCorruption",
    "DataCollatorForTextInfilling",
    "DataCollatorWithPacking",
    "MaskingCallback",
    "PackedBatchSampler",
    "Plan",
    "RateSchedule",
    "Strategy",
    "UnmaskedCollator",
    "attach",
    "detach",
    "fuse_loss",
    "mask_batch",
    "unfuse_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'maskft' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
