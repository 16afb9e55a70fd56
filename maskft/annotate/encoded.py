"""Locate the tokens of tokenized texts in their texts, also of texts given in words."""

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from maskft.annotate.spans import Span
from maskft.strategy.scripts import kind_of


class Part(NamedTuple):
    """Hold one text of a row."""

    offsets: list[Span]  # of every token of the row, (0, 0) where it is of the other text
    side: int
    text: int  # its number


class Texts:
    """Hold the texts of one side, and where their words begin if they were given in words.

    Args:
        texts: strings, or lists of words, as for ``tokenizer(..., is_split_into_words=True)``.
            Words are joined with a space between them, but for two of a script that writes none
            (Chinese, Japanese, Thai...).
        name: of the argument, for errors.
    """

    def __init__(self, texts: Any, name: str = "texts") -> None:
        if isinstance(texts, str):
            raise TypeError(f"{name} must be a list of texts, got the string {texts[:30]!r}")
        texts = list(texts)
        kinds = {type(text) if isinstance(text, str) else list for text in texts}
        if len(kinds) > 1:
            raise TypeError(f"{name} must be strings or lists of words, not both")
        self.starts: list[list[int]] | None = None
        self.texts: list[str] = texts
        if kinds == {list}:
            self.words = [_words(words, f"{name}[{i}]") for i, words in enumerate(texts)]
            joined = [_joined(words) for words in self.words]
            self.texts = [text for text, _ in joined]
            self.starts = [starts for _, starts in joined]

    def placed(self, i: int, offsets: list[Span], word_ids: Sequence[int | None]) -> list[Span]:
        """Turn offsets within the words of text ``i`` into offsets within the text."""
        if self.starts is None:
            return offsets
        starts, words = self.starts[i], self.words[i]
        found = []
        for (begin, end), word in zip(offsets, word_ids, strict=True):
            if begin == end or word is None:
                found.append((0, 0))
                continue
            if word >= len(starts) or end > len(words[word]):
                raise ValueError(
                    f"text {i} is given in {len(starts)} words, and a token is of word {word} up "
                    f"to character {end}: encoded is not tokenizer(texts, is_split_into_words=True)"
                    " of these words"
                )
            found.append((starts[word] + begin, starts[word] + end))
        return found


def rows_of(sides: Sequence[Texts], encoded: Any) -> Iterator[list[Part]]:
    """Yield the texts of each row of ``encoded``.

    Raises:
        ValueError, TypeError: ``encoded`` without offsets, of one text or of other texts than
            these; saying what to do.
    """
    rows = _offset_rows(encoded)
    texts = len(sides[0].texts)
    numbers = list(range(texts))
    if "overflow_to_sample_mapping" in encoded:
        numbers = [int(i) for i in encoded["overflow_to_sample_mapping"]]
    if len(rows) != len(numbers) or any(not 0 <= i < texts for i in numbers):
        raise ValueError(
            f"encoded has {len(rows)} rows, which are not those of {texts} texts: give the texts "
            "that were tokenized"
        )
    for row, (offsets, i) in enumerate(zip(rows, numbers, strict=True)):
        parts = []
        if len(sides) == 1:
            split = [offsets]
        else:
            of_token = encoded.sequence_ids(row)
            split = [
                [place if s == side else (0, 0) for place, s in zip(offsets, of_token, strict=True)]
                for side in (0, 1)
            ]
        for side, (texts_of_side, own) in enumerate(zip(sides, split, strict=True)):
            word_ids = _word_ids(encoded, row)
            if texts_of_side.starts is None:
                if word_ids is not None and _in_words(own, word_ids, texts_of_side.texts[i]):
                    raise ValueError(
                        f"row {row} was tokenized in words (is_split_into_words=True), so its "
                        "offsets are within words: give lists of words as texts, "
                        "columns(words, encoded)"
                    )
            elif word_ids is None:
                raise TypeError(
                    "texts in words need the word of each token: give the result of the tokenizer "
                    "itself, tokenizer(words, is_split_into_words=True, "
                    f"return_offsets_mapping=True), not a {type(encoded).__name__} of its columns"
                )
            else:
                own = texts_of_side.placed(i, own, word_ids)
            parts.append(Part(own, side, i))
        yield parts


def _offset_rows(encoded: Any) -> list[list[Span]]:
    if "offset_mapping" not in encoded:
        raise ValueError(
            "annotation needs the offsets of the tokens: tokenizer(..., "
            "return_offsets_mapping=True), which fast tokenizers have"
        )
    rows = encoded["offset_mapping"]
    rows = rows.tolist() if hasattr(rows, "tolist") else list(rows)
    rows = [row.tolist() if hasattr(row, "tolist") else row for row in rows]
    for b, row in enumerate(rows):
        for place in row:
            if isinstance(place, int):
                raise ValueError(
                    "encoded is of a single text: its offset_mapping has pairs of numbers where "
                    "rows of pairs are expected. Tokenize a list, tokenizer([text], ...), and give "
                    "columns([text], encoded); in words, [words] in place of [text]"
                )
            if place is None or len(place) != 2:
                raise ValueError(
                    f"row {b} of offset_mapping must hold pairs (begin, end), got {place!r}"
                )
    return [[(begin, end) for begin, end in row] for row in rows]


def _word_ids(encoded: Any, row: int) -> Sequence[int | None] | None:
    """Return the word of each token; None where ``encoded`` does not say."""
    return encoded.word_ids(row) if getattr(encoded, "is_fast", False) else None


def _in_words(offsets: Sequence[Span], word_ids: Sequence[int | None], text: str) -> bool:
    """Return whether every word begins at 0 though there are several, as in no text.

    But for a first character that is several once it is normalized (1/2 from one sign).
    """
    before, words, last = None, 0, 0
    for (begin, end), word in zip(offsets, word_ids, strict=True):
        if begin < end:
            if word != before:
                if begin:
                    return False
                words += 1
            before, last = word, max(last, end)
    several = len(unicodedata.normalize("NFKD", text[:1]))
    return words > max(1, several) and last < len(text.rstrip())


def _words(words: Any, name: str) -> list[str]:
    found = list(words)
    for word in found:
        if not isinstance(word, str):
            raise TypeError(
                f"{name} must be a text or a list of words, got a {type(word).__name__}"
            )
    return found


def _joined(words: list[str]) -> tuple[str, list[int]]:
    """Return the text and where each word begins in it."""
    starts, text = [0] if words else [], words[:1]
    at = len(words[0]) if words else 0
    for before, word in pairwise(words):
        together = before and word and kind_of(before[-1]) and kind_of(word[0])
        gap = "" if together else " "
        at += len(gap)
        starts.append(at)
        text.append(gap + word)
        at += len(word)
    return "".join(text), starts
