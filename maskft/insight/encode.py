"""Turn texts into tokens and units, and units into copies of the text that hide them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from maskft.annotate.spans import Span, entity_ids
from maskft.insight.copies import Copy
from maskft.insight.windows import choose_windows, longest_row
from maskft.strategy.word_marks import WordMarks

METHODS = ("original", "within_word_l2r", "whole_word", "entity")


@dataclass(frozen=True)
class Text:
    """Hold the tokens of a text, without the special tokens around it.

    Attributes:
        text: as it was given.
        ids: int64 [n].
        offsets: where each token begins and ends in the text; None from a tokenizer in Python.
        scored: bool [n], false for special tokens that the text itself contains.
    """

    text: str
    ids: np.ndarray
    offsets: list[Span] | None
    scored: np.ndarray


class TextEncoder:
    """Encode texts for one model.

    Attributes:
        mask_id, pad_id: of the tokenizer.
        room: tokens of a text in a window, the special tokens around it not counted.
        stride: tokens from the beginning of a window to that of the next.

    Args:
        max_length: tokens in a window, special tokens included. None: what the model takes.
        stride: None: half of ``room``.

    Raises:
        TypeError: a model or tokenizer that nothing can be masked with, saying what to use.
        ValueError: ``max_length`` or ``stride`` that does not fit.
    """

    def __init__(
        self, model: Any, tokenizer: Any, max_length: int | None = None, stride: int | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.mask_id = tokenizer.mask_token_id
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        keep = {tokenizer.unk_token_id}
        self._special = np.array([i for i in tokenizer.all_special_ids if i not in keep], np.int64)
        self._marks: WordMarks | None = None
        self._frame = _frame(tokenizer)
        prefix, suffix = self._frame[0], self._frame[1]
        around = len(prefix) + len(suffix)
        limit = longest_row(tokenizer, model)
        if max_length is not None and not around < max_length <= limit:
            raise ValueError(
                f"max_length must be from {around + 1} to {limit}, what the model takes, "
                f"got {max_length}"
            )
        self.room = (max_length or limit) - around
        self.stride = max(self.room // 2, 1) if stride is None else stride
        if not 1 <= self.stride <= self.room:
            raise ValueError(
                f"stride must be from 1 to {self.room}, the tokens of a text in a window, "
                f"got {stride}"
            )

    def __call__(self, texts: Sequence[str], name: str = "texts", first: int = 0) -> list[Text]:
        """Encode texts.

        Args:
            name, first: of the argument, and the number of its first text, for errors.

        Raises:
            ValueError: a text without a token to score. TypeError: no text.
        """
        for i, text in enumerate(texts, first):
            if not isinstance(text, str):
                raise TypeError(f"{name}[{i}] must be a string, got {type(text).__name__}")
        fast = bool(self.tokenizer.is_fast)
        encoded = self.tokenizer(
            list(texts), add_special_tokens=False, return_offsets_mapping=fast, verbose=False
        )
        found = []
        for i, text in enumerate(texts):
            ids = np.array(encoded["input_ids"][i], np.int64)
            scored = ~np.isin(ids, self._special)
            if not scored.any():
                raise ValueError(
                    f"{name}[{first + i}] has no token to score: {text[:40]!r}; leave empty texts "
                    "out"
                )
            found.append(Text(text, ids, encoded["offset_mapping"][i] if fast else None, scored))
        return found

    def tokens(self, ids: np.ndarray) -> list[str]:
        return list(self.tokenizer.convert_ids_to_tokens(ids.tolist()))

    def words(self, text: Text, groups: np.ndarray | None = None) -> np.ndarray:
        """Number the words of a text, int64 [n], -1 where nothing is scored.

        Args:
            groups: int64 [n]: neighbours with the same number are one unit whatever their words.

        Raises:
            ValueError: the vocabulary has no word marks.
        """
        if self._marks is None:
            self._marks = WordMarks(self.tokenizer)
        if not self._marks.known:
            raise ValueError(
                f"the vocabulary of {type(self.tokenizer).__name__} has no word marks, so whole "
                "words cannot be told from it: use units of single tokens"
            )
        limits: dict[str, Any] = {"special_tokens_mask": torch.from_numpy(~text.scored)[None]}
        if groups is not None:
            limits["groups"] = torch.from_numpy(groups)[None]
        return self._marks.units(torch.from_numpy(text.ids)[None], **limits)[0].numpy()

    def units(self, text: Text, method: str, spans: Sequence[Span] | None = None) -> np.ndarray:
        """Number the units of a text, int64 [n], -1 where nothing is scored.

        Args:
            method: one of METHODS. Under "entity" a token that is in no entity is of its word.
            spans: the entities, (begin, end) in characters.
        """
        if method == "original":
            return np.where(text.scored, np.arange(len(text.ids)), -1)
        if method != "entity":
            return self.words(text)
        if text.offsets is None:
            raise ValueError(
                f"{type(self.tokenizer).__name__} does not give the offsets of its tokens, which "
                "entities need: use a fast tokenizer"
            )
        numbers = entity_ids(text.offsets, spans or (), text.text)
        return self.words(text, np.array(numbers, np.int64))

    def copies(self, text: Text, units: np.ndarray, method: str) -> tuple[list[Copy], np.ndarray]:
        """Make the copies that score a text, and say which tokens they predict, in order.

        Under "within_word_l2r" there is a copy for each token: it hides the token and the later
        ones of its unit. Else there is one for each unit.

        Returns:
            copies, and int64 [n'], the places in the text that they predict one after another.
        """
        hidden = unit_places(units)
        predicted = hidden
        if method == "within_word_l2r":
            predicted = [places[i : i + 1] for places in hidden for i in range(len(places))]
            hidden = [places[i:] for places in hidden for i in range(len(places))]
        return self.hide(text, hidden, predicted), np.concatenate(predicted)

    def hide(
        self, text: Text, hidden: Sequence[np.ndarray], predicted: Sequence[np.ndarray]
    ) -> list[Copy]:
        """Make copies of a text that hide and predict these places of it, ascending.

        The window of a copy is chosen for what it hides.
        """
        first = np.array([places[0] for places in hidden], np.int64)
        last = np.array([places[-1] for places in hidden], np.int64)
        begins = choose_windows(first, last, len(text.ids), self.room, self.stride)
        prefix = len(self._frame[0])
        windows = {begin: self.window(text, begin) for begin in np.unique(begins).tolist()}
        return [
            Copy(*windows[begin], places + (prefix - begin), wanted + (prefix - begin))
            for begin, places, wanted in zip(begins.tolist(), hidden, predicted, strict=True)
        ]

    def window(self, text: Text, begin: int = 0) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the ids and types of the model's row that begins at token ``begin``."""
        prefix, suffix, types = self._frame
        part = text.ids[begin : begin + self.room]
        ids = np.concatenate([prefix, part, suffix])
        if types is None:
            return ids, None
        before, within, after = types
        return ids, np.concatenate([before, np.full(len(part), within), after])

    @property
    def prefix(self) -> int:
        """Return how many special tokens come before a text."""
        return len(self._frame[0])


def unit_places(units: np.ndarray) -> list[np.ndarray]:
    """List the places of each unit, int64 [u], in the order of the units' numbers."""
    places = np.flatnonzero(units >= 0)
    places = places[np.argsort(units[places], kind="stable")]
    bounds = np.flatnonzero(np.diff(units[places])) + 1
    return np.split(places, bounds)


_Types = tuple[np.ndarray, int, np.ndarray]


def _frame(tokenizer: Any) -> tuple[np.ndarray, np.ndarray, _Types | None]:
    """Read which special tokens a tokenizer puts before and after a text, and the token types."""
    sample = "a"
    bare = tokenizer(sample, add_special_tokens=False)["input_ids"]
    whole = tokenizer(sample)
    ids, size = list(whole["input_ids"]), len(bare)
    begin = next((i for i in range(len(ids) - size + 1) if ids[i : i + size] == bare), None)
    if begin is None or not size:
        raise TypeError(
            f"{type(tokenizer).__name__} writes a text otherwise with special tokens than without "
            "them: texts cannot be cut into windows"
        )
    end = begin + size
    types: _Types | None = None
    if "token_type_ids" in whole and "token_type_ids" in tokenizer.model_input_names:
        given = np.array(whole["token_type_ids"], np.int64)
        types = given[:begin], int(given[begin]), given[end:]
    return np.array(ids[:begin], np.int64), np.array(ids[end:], np.int64), types


def check_masked_model(model: Any, tokenizer: Any) -> None:
    """Refuse what fills no masks.

    Raises:
        TypeError: a causal or an encoder-decoder model, or a tokenizer without a mask token.
    """
    config, name = getattr(model, "config", None), type(model).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise TypeError(
            f"{name} is an encoder-decoder model, which does not fill a mask token by token; its "
            "own loss, model(input_ids, labels=...), scores a text"
        )
    causal = getattr(config, "is_decoder", False) or name.endswith(("CausalLM", "LMHeadModel"))
    if causal and getattr(config, "is_causal", None) is not False:  # False: it attends both ways
        raise TypeError(
            f"{name} predicts each token from those before it: its own log-likelihood, "
            "-model(ids, labels=ids).loss, is its score and needs no masks; give a masked language "
            "model (BERT, RoBERTa, ModernBERT, ESM...)"
        )
    if tokenizer.mask_token_id is None:
        raise TypeError(
            f"{type(tokenizer).__name__} has no mask token, so nothing can be masked; give a "
            "masked language model and its tokenizer (BERT, RoBERTa, ModernBERT, ESM...)"
        )
