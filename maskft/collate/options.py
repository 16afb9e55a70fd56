"""Which options of the collator go together."""

from typing import Any

from maskft.strategy import Random, Strategy, WholeWord


def check_options(collator: Any, strategy: Strategy) -> None:
    """Refuse options that do not go together."""
    own = isinstance(strategy, (Random, WholeWord))
    plain = (collator.selection, collator.replacement, collator.mask_only, collator.schedule)
    if collator.rng == "hf" and not (own and plain == ("bernoulli", None, None, None)):
        raise ValueError(
            "rng='hf' draws what Transformers' collator does: strategy='random' or "
            "'whole_word', without selection, replacement, mask_only or schedule; use "
            "rng='stream' or rng='sample'"
        )
    if collator.at_least_one and collator.selection != "budget":
        raise ValueError("at_least_one goes with selection='budget'")
    if collator.replacement == "unit" and isinstance(strategy, Random):
        raise ValueError("replacement='unit' needs a strategy with units, not 'random'")
    only = collator.mask_only
    if only is not None and not isinstance(only, str):
        types = [only] if isinstance(only, int) else list(only)
        if not types or not all(isinstance(kind, int) for kind in types):
            raise ValueError(
                f"mask_only must be the name of a column, a token type or several, got {only!r}"
            )
    count = collator.label_positions
    if not isinstance(count, int) or (not isinstance(count, bool) and count < 1):
        raise ValueError(f"label_positions must be True, False or a positive number, got {count!r}")
    if collator.schedule is not None and not callable(collator.schedule):
        raise TypeError(
            "schedule must be a function from [0, 1] to a rate, as maskft.RateSchedule, got "
            f"{type(collator.schedule).__name__}"
        )
