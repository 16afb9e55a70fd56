"""Which options of the collator go together."""

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any

from torch import Tensor

from maskft.strategy import Diffusion, Random, Strategy, WholeWord
from maskkernels.tokens import check_flag, check_number

SHARES = ("mlm_probability", "mask_replace_prob", "random_replace_prob")
FRAMEWORKS = ("pt", "np")
_STOCK_SHARES = (0.8, 0.1)  # what Transformers' collator replaces by, if nothing is said


@contextmanager
def noting_shares(collator: Any) -> Iterator[None]:
    """Note the shares on an error of Transformers, whose messages leave values out."""
    try:
        yield
    except ValueError as error:
        if sys.version_info >= (3, 11):
            error.add_note(", ".join(f"{name}={getattr(collator, name)!r}" for name in SHARES))
        raise


def check_column(name: str, value: Any) -> None:
    """Check that an option is None or the name of a column."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} must be the name of a column or None, got {value!r}")


def check_framework(value: Any) -> None:
    """Check the option ``return_tensors``."""
    if value not in FRAMEWORKS:
        raise ValueError(f"return_tensors must be one of {FRAMEWORKS}, got {value!r}")


def check_options(collator: Any, strategy: Strategy) -> None:
    """Refuse values that are none of an option's, and options that do not go together."""
    for name in SHARES:
        value = getattr(collator, name)
        if value is None and name == SHARES[0]:
            continue  # the parent class looks whether it is needed
        check_number(name, value)
        if value != value:
            raise ValueError(f"{name} should be between 0 and 1, got NaN.")
    check_flag("at_least_one", collator.at_least_one)
    check_column("sample_id_column", collator.sample_id_column)
    own = isinstance(strategy, (Random, WholeWord))
    plain = (collator.replacement, collator.replacement_ids, collator.mask_only, collator.schedule)
    own = own and collator.selection == "bernoulli" and all(option is None for option in plain)
    if collator.rng == "hf" and not own:
        raise ValueError(
            "rng='hf' draws what Transformers' collator does: strategy='random' or "
            "'whole_word', without selection, replacement, replacement_ids, mask_only or "
            "schedule; use rng='stream' or rng='sample'"
        )
    if isinstance(strategy, Diffusion):
        _check_diffusion(collator, strategy)
    if collator.at_least_one and collator.selection != "budget":
        raise ValueError("at_least_one goes with selection='budget'")
    if collator.replacement == "unit" and isinstance(strategy, Random):
        raise ValueError("replacement='unit' needs a strategy with units, not 'random'")
    only = collator.mask_only
    if only is not None and not isinstance(only, str):
        types = list(only) if _is_collection(only) else [only]
        if not types or not all(_is_token_type(kind) for kind in types):
            raise ValueError(
                "mask_only must be the name of a column, a token type below 2**31 or several, got "
                f"{only!r}"
            )
    count = collator.label_positions
    if count is not False and (not isinstance(count, int) or not 0 < count < 1 << 31):
        raise ValueError(
            f"label_positions must be True, False or a positive number below 2**31, got {count!r}"
        )
    if collator.schedule is not None and not callable(collator.schedule):
        raise TypeError(
            "schedule must be a function from [0, 1] to a rate, as maskft.RateSchedule, got "
            f"{type(collator.schedule).__name__}"
        )


def _is_collection(value: Any) -> bool:
    """Return whether it holds values: no text, and no tensor or array without a dimension."""
    if isinstance(value, (str, bytes)) or getattr(value, "ndim", 1) == 0:
        return False
    return isinstance(value, (Collection, Tensor))


def _is_token_type(kind: Any) -> bool:
    return isinstance(kind, int) and not isinstance(kind, bool) and abs(kind) < 1 << 31


def _check_diffusion(collator: Any, strategy: Diffusion) -> None:
    if not collator.mlm:
        raise ValueError("strategy='diffusion' masks tokens, which mlm=False does not")
    if collator.schedule is not None:
        raise ValueError(
            "strategy='diffusion' draws a rate for each row, so it takes no schedule; its own "
            "times=... is the law of the rates"
        )
    given = (collator.mask_replace_prob, collator.random_replace_prob)
    if given not in (_STOCK_SHARES, tuple(strategy.shares)):
        raise ValueError(
            f"strategy='diffusion' replaces by its own shares, {strategy.shares}, not by "
            f"mask_replace_prob={given[0]} and random_replace_prob={given[1]}; for others give "
            f"strategy=maskft.strategy.Diffusion(shares={given})"
        )
    if collator._own_masking:
        raise ValueError(
            f"strategy='diffusion' weights the labels, which {type(collator).__name__} cannot: it "
            f"replaces {', '.join(sorted(collator._own_masking))}"
        )
    if collator.tokenizer.mask_token_id is None:
        raise ValueError(
            "strategy='diffusion' needs a mask token, and the tokenizer has none: "
            "tokenizer.add_special_tokens({'mask_token': '[MASK]'}) adds one, and "
            "model.resize_token_embeddings(len(tokenizer)) its row in the model"
        )


def replacements(given: Any, tokenizer: Any) -> str | tuple[int, ...] | None:
    """Check the option ``replacement_ids``, and return it as something that can be compared."""
    if given is None or (isinstance(given, str) and given == "ordinary"):
        return given
    if not _is_collection(given):
        raise ValueError(
            "replacement_ids must be 'ordinary' (all but the special tokens), a sequence of ids or "
            f"None, got {given!r}"
        )
    known = max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)
    given = given.tolist() if hasattr(given, "tolist") else given
    for value in given:
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not whole or not 0 <= int(value) < known:
            raise ValueError(f"replacement_ids must be ids in [0, {known}), got {value!r}")
    if not len(given):
        raise ValueError("replacement_ids must hold at least one id, got none")
    return tuple(map(int, given))
