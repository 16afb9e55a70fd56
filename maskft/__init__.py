"""Masked-language-model training with Transformers, on maskkernels.

    from maskft import DataCollatorForLanguageModeling  # in place of transformers'

Names load on first use, so that ``maskft --help`` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskft.collator import DataCollatorForLanguageModeling
    from maskft.schedule import RateSchedule
    from maskft.strategy import Plan, Strategy
    from maskft.trainer import MaskingCallback, attach, detach

_HOMES = {
    "DataCollatorForLanguageModeling": "maskft.collator",
    "MaskingCallback": "maskft.trainer",
    "Plan": "maskft.strategy",
    "RateSchedule": "maskft.schedule",
    "Strategy": "maskft.strategy",
    "attach": "maskft.trainer",
    "detach": "maskft.trainer",
}
__all__ = [
    "DataCollatorForLanguageModeling",
    "MaskingCallback",
    "Plan",
    "RateSchedule",
    "Strategy",
    "attach",
    "detach",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'maskft' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
