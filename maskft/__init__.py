"""Masked-language-model training with Transformers, on maskkernels.

    from maskft import DataCollatorForLanguageModeling  # in place of transformers'

Names load on first use, so that ``maskft --help`` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskft.collator import DataCollatorForLanguageModeling
    from maskft.denoising import DataCollatorForSpanCorruption, DataCollatorForTextInfilling
    from maskft.device import PlainCollator, mask_batch
    from maskft.fuse import fuse_loss, unfuse_loss
    from maskft.packing import DataCollatorWithPacking, PackedBatchSampler
    from maskft.schedule import RateSchedule
    from maskft.strategy import Plan, Strategy
    from maskft.trainer import MaskingCallback, attach, detach

_HOMES = {
    "DataCollatorForLanguageModeling": "maskft.collator",
    "DataCollatorForSpanCorruption": "maskft.denoising",
    "DataCollatorForTextInfilling": "maskft.denoising",
    "DataCollatorWithPacking": "maskft.packing",
    "PackedBatchSampler": "maskft.packing",
    "PlainCollator": "maskft.device",
    "mask_batch": "maskft.device",
    "MaskingCallback": "maskft.trainer",
    "Plan": "maskft.strategy",
    "RateSchedule": "maskft.schedule",
    "Strategy": "maskft.strategy",
    "attach": "maskft.trainer",
    "detach": "maskft.trainer",
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
    "PlainCollator",
    "Plan",
    "RateSchedule",
    "Strategy",
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
