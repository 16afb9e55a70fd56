"""The masking policy: how many tokens are masked, and what replaces them."""

from dataclasses import dataclass

from torch import Tensor

from maskkernels.rng import threshold
from maskkernels.tokens import IGNORE_INDEX
from maskkernels.tokens.checks import check_flag, check_int, check_number

SELECTIONS = ("bernoulli", "budget")


@dataclass(frozen=True)
class MaskingPolicy:
    """The rate, shares and ids of masking; the defaults are BERT's 15% and 80/10/10.

    Attributes:
        mask_token_id: the id of the mask token, in [0, vocab_size).
        vocab_size: V, the number of ids. Random replacements are drawn from [0, V) unless
            ``mask_tokens`` is given ``replacement_ids``.
        rate: probability in [0, 1] that a maskable token (or unit) is selected.
        mask_share: share of the selected tokens that become the mask token.
        random_share: share of the selected tokens that become a random id. The rest,
            1 - mask_share - random_share, keep their id. All selected tokens are labelled.
        selection: "bernoulli" selects each token (or unit) independently; "budget" selects exactly
            round(rate * eligible) of them in each sample, or the rounded sum of their rates where
            the rates differ.
        at_least_one: with "budget", select one if rounding gives none and any is eligible.
        replacement: with ``units``, "token" picks mask, random or keep for each token, "unit" once
            for all tokens of a unit (as SpanBERT does).
        ignore_index: the label of every token that is not selected; negative.

    Raises:
        TypeError, ValueError: at construction, naming the field.

    Source: Devlin et al., "BERT" (2019), section 3.1; Joshi et al., "SpanBERT" (2020), section 3.1.

    Examples:
        >>> import torch
        >>> from maskkernels import MaskingPolicy, mask_tokens
        >>> shares = {"mask_share": 1.0, "random_share": 0.0}
        >>> policy = MaskingPolicy(103, 30522, rate=0.25, selection="budget", **shares)
        >>> mask_tokens(torch.arange(1000, 1008).view(1, 8), policy, seed=1).input_ids.tolist()
        [[1000, 1001, 103, 103, 1004, 1005, 1006, 1007]]
    """

    mask_token_id: int
    vocab_size: int
    rate: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    selection: str = "bernoulli"
    at_least_one: bool = False
    replacement: str = "token"
    ignore_index: int = IGNORE_INDEX

    def __post_init__(self) -> None:
        for name in ("mask_token_id", "vocab_size", "ignore_index"):
            check_int(name, getattr(self, name))
        for name in ("rate", "mask_share", "random_share"):
            value = getattr(self, name)
            check_number(name, value)
            if not 0.0 <= float(value) <= 1.0:
                raise ValueError(f"{name} must be between 0 and 1, got {value}")
        if self.mask_share + self.random_share > 1.0:
            raise ValueError(
                "mask_share + random_share must not exceed 1, got "
                f"{self.mask_share} + {self.random_share}"
            )
        if not 0 < self.vocab_size < 1 << 31:
            raise ValueError(f"vocab_size must be in [1, 2**31), got {self.vocab_size}")
        if not 0 <= self.mask_token_id < self.vocab_size:
            raise ValueError(
                f"mask_token_id must be in [0, vocab_size={self.vocab_size}), "
                f"got {self.mask_token_id}"
            )
        if not -(1 << 31) <= self.ignore_index < 0:
            raise ValueError(f"ignore_index must be in [-2**31, 0), got {self.ignore_index}")
        if self.selection not in SELECTIONS:
            raise ValueError(f"selection must be one of {SELECTIONS}, got {self.selection!r}")
        check_flag("at_least_one", self.at_least_one)
        if self.at_least_one and self.selection != "budget":
            raise ValueError("at_least_one goes with selection='budget'")
        if self.replacement not in ("token", "unit"):
            raise ValueError(f'replacement must be "token" or "unit", got {self.replacement!r}')


def thresholds(rate: float, mask_share: float, random_share: float) -> tuple[int, int, int]:
    """Return thresholds of a word that selects at ``rate``: (selected, mask, mask or random)."""
    return (
        threshold(rate),
        threshold(rate * mask_share),
        threshold(rate * min(mask_share + random_share, 1.0)),
    )


def outside_vocabulary(input_ids: Tensor, flat_index: int, size: int) -> ValueError:
    """Return the error for a real token whose id is outside the vocabulary."""
    length = input_ids.shape[-1]
    place = [flat_index] if input_ids.dim() == 1 else list(divmod(flat_index, length))
    value = int(input_ids.reshape(-1)[flat_index])
    return ValueError(f"input_ids{place} is {value}, outside the vocabulary [0, {size})")
