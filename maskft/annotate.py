"""Entities and weights of words, worked out once, when texts become tokens.

    annotator = Entities(SpacyEntities("en_core_web_sm"))

    def rows(batch):
        encoded = tokenizer(batch["text"], truncation=True, return_offsets_mapping=True)
        return {**encoded, **annotator.columns(batch["text"], encoded)}

    dataset = dataset.map(rows, batched=True)  # datasets caches it: epochs pay nothing

``Entities`` writes the column "entity_ids" (which entity each token is in, -1 for none), which
strategy="entity" reads; ``Keywords`` writes "keyword_weights" for strategy="keyword". Where the
spans come from is a function from texts to spans of characters: a spaCy pipeline, a list of names
(``Gazetteer``), TF-IDF, YAKE, your own.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from maskft.finders import (
    Gazetteer,
    JiebaWords,
    SpacyEntities,
    Span,
    Weighted,
    WordWeights,
    YakeWeights,
    tfidf_weights,
)
from maskft.strategy.columns import ENTITY_COLUMN, WEIGHT_COLUMN, WORD_COLUMN

__all__ = [
    "Entities",
    "Gazetteer",
    "JiebaWords",
    "Keywords",
    "SpacyEntities",
    "Together",
    "WordIds",
    "WordWeights",
    "YakeWeights",
    "entity_ids",
    "entity_ids_from_tokens",
    "tfidf_weights",
    "token_weights",
]


def entity_ids(offset_mapping: Sequence[Span], spans: Iterable[Span], text: str) -> list[int]:
    """Which entity each token of a row is in, from spans of characters.

    Every token that shares a character with a span, space at its ends aside, is in the entity: one
    that the span cuts through belongs to it whole. Where spans overlap, cross or share a token, the
    longest stays (of equal ones the first) and the others are no entities. Spans outside the row,
    as rows of a long text have them, are left out.

    Args:
        offset_mapping: where each token of the row begins and ends in the text; (0, 0) for special
            tokens.
        spans: (begin, end) in characters of the text, in any order.
        text: the whole text.

    Returns:
        a number for each token: entities count from 0 in the order of the text, -1 for none.

    Raises:
        ValueError: a span that is reversed or not within the text; offsets of a pair of texts.
    """
    index, begins, ends = _tokens(offset_mapping)
    found = []
    for begin, end in spans:
        if not 0 <= begin <= end <= len(text):
            raise ValueError(
                f"span ({begin}, {end}) is not within the text of {len(text)} characters "
                f"{text[:30]!r}"
            )
        part = text[begin:end]
        begin, end = end - len(part.lstrip()), begin + len(part.rstrip())
        first, last = bisect_right(ends, begin), bisect_left(begins, end)
        if begin < end and first < last:
            found.append((index[first], index[last - 1] + 1, end - begin))
    return _number(found, len(offset_mapping))


def entity_ids_from_tokens(length: int, spans: Iterable[Span]) -> list[int]:
    """``entity_ids`` for a row of ``length`` tokens, from spans [begin, end) of tokens.

    Raises:
        ValueError: a span that is empty, reversed or not within the row.
    """
    spans = list(spans)
    for begin, end in spans:
        if not 0 <= begin < end <= length:
            raise ValueError(f"span ({begin}, {end}) is not within the row of {length} tokens")
    return _number([(begin, end, end - begin) for begin, end in spans], length)


def token_weights(
    offset_mapping: Sequence[Span],
    weighted: Iterable[Weighted],
    default: float | None = None,
) -> list[float]:
    """The weight of each token of a row, from weighted spans of characters.

    Args:
        weighted: (begin, end, weight), not negative. A token in several has the largest.
        default: the weight of tokens in none. None: the least positive one of ``weighted``, so that
            every token can be masked; 1 where there is none.

    Raises:
        ValueError: a weight or default that is negative, infinite or NaN; offsets of a pair of
            texts.
    """
    weighted = list(weighted)
    if not all(0.0 <= weight < math.inf for _, _, weight in weighted):
        bad = next(w for _, _, w in weighted if not 0.0 <= w < math.inf)
        raise ValueError(f"weights must not be negative, infinite or NaN, got {bad}")
    if default is not None and not 0.0 <= default < math.inf:
        raise ValueError(f"default must not be negative, infinite or NaN, got {default}")
    if default is None:
        default = min((w for _, _, w in weighted if w > 0), default=1.0)
    index, begins, ends = _tokens(offset_mapping)
    weights: list[float | None] = [None] * len(offset_mapping)
    for begin, end, weight in weighted:
        for i in index[bisect_right(ends, begin) : bisect_left(begins, end)]:
            weights[i] = max(weight, weights[i] or 0.0)
    return [float(default if weight is None else weight) for weight in weights]


@dataclass(frozen=True)
class Entities:
    """The column "entity_ids" of tokenized texts.

    Args:
        find: from texts to the spans (begin, end) of characters in each.
    """

    find: Callable[[Sequence[str]], Iterable[Iterable[Span]]]

    def columns(
        self, texts: Sequence[str], encoded: Any, pairs: Sequence[str] | None = None
    ) -> dict[str, list[list[int]]]:
        """The columns of the rows of ``encoded``.

        Args:
            texts, encoded: ``encoded = tokenizer(texts, return_offsets_mapping=True)``; rows of
                overflowing tokens too.
            pairs: ``encoded = tokenizer(texts, pairs, ...)``.
        """
        return {ENTITY_COLUMN: _span_numbers(self.find, texts, encoded, pairs)}


@dataclass(frozen=True)
class Keywords:
    """The column "keyword_weights" of tokenized texts.

    Args:
        weigh: from texts to weighted spans (begin, end, weight) of characters in each.
        default: as for ``token_weights``.
    """

    weigh: Callable[[Sequence[str]], Iterable[Iterable[Weighted]]]
    default: float | None = None

    def columns(
        self, texts: Sequence[str], encoded: Any, pairs: Sequence[str] | None = None
    ) -> dict[str, list[list[float]]]:
        """As ``Entities.columns``."""
        sides = [texts] if pairs is None else [texts, pairs]
        weighted = [_found(self.weigh, side) for side in sides]
        made = []
        for parts in _rows(sides, encoded):
            row: list[float] = []
            for offsets, side, i in parts:
                found = token_weights(offsets, weighted[side][i], self.default)
                row = [
                    new if begin < end else old
                    for old, new, (begin, end) in zip(row or found, found, offsets, strict=True)
                ]
            made.append(row)
        return {WEIGHT_COLUMN: made}


@dataclass(frozen=True)
class WordIds:
    """The column "word_ids" of tokenized texts: words that the vocabulary does not tell.

    Strategies of whole words, spans, entities and keywords read it in place of the vocabulary: for
    Chinese, ``WordIds(JiebaWords(jieba))`` makes them mask words, not characters. Every token that
    is in no word is one of its own.

    Args:
        find: from texts to the spans (begin, end) of the words in each.
    """

    find: Callable[[Sequence[str]], Iterable[Iterable[Span]]]

    def columns(
        self, texts: Sequence[str], encoded: Any, pairs: Sequence[str] | None = None
    ) -> dict[str, list[list[int]]]:
        """As ``Entities.columns``."""
        rows = _span_numbers(self.find, texts, encoded, pairs)
        made = []
        for row, offsets in zip(rows, encoded["offset_mapping"], strict=True):
            alone = range(len(row), 2 * len(row))  # numbers that no word has
            made.append(
                [
                    word if word >= 0 or begin == end else own
                    for word, own, (begin, end) in zip(row, alone, offsets, strict=True)
                ]
            )
        return {WORD_COLUMN: made}


@dataclass(frozen=True)
class Together:
    """The columns of several annotators."""

    annotators: tuple[Any, ...]

    def columns(
        self, texts: Sequence[str], encoded: Any, pairs: Sequence[str] | None = None
    ) -> dict[str, list[Any]]:
        """As ``Entities.columns``."""
        made: dict[str, list[Any]] = {}
        for annotator in self.annotators:
            made |= annotator.columns(texts, encoded, pairs)
        return made


def _span_numbers(
    find: Callable[[Sequence[str]], Iterable[Iterable[Span]]],
    texts: Sequence[str],
    encoded: Any,
    pairs: Sequence[str] | None,
) -> list[list[int]]:
    """``entity_ids`` of every row; the numbers of a second text go on from those of the first."""
    sides = [texts] if pairs is None else [texts, pairs]
    spans = [_found(find, side) for side in sides]
    made = []
    for parts in _rows(sides, encoded):
        row: list[int] = []
        for offsets, side, i in parts:
            new, first = entity_ids(offsets, spans[side][i], sides[side][i]), max(row, default=-1)
            row = [
                old if number < 0 else number + first + 1
                for old, number in zip(row or new, new, strict=True)
            ]
        made.append(row)
    return made


def _found(find: Callable[[Sequence[str]], Iterable[Iterable[Any]]], texts: Any) -> list[list[Any]]:
    """What a finder gives for each text; another number of answers would go to the wrong texts."""
    if isinstance(texts, str):
        raise TypeError(f"texts must be a list of texts, got the string {texts[:30]!r}")
    found = [list(spans) for spans in find(texts)]
    if len(found) != len(texts):
        raise ValueError(
            f"a finder must give a list of spans for each text: {len(found)} for {len(texts)} texts"
        )
    return found


def _rows(
    sides: Sequence[Sequence[str]], encoded: Any
) -> Iterator[list[tuple[Sequence[Span], int, int]]]:
    """For each row and side of a pair: (offsets, those of the other side empty; side; number)."""
    if "offset_mapping" not in encoded:
        raise ValueError(
            "annotation needs the offsets of the tokens: tokenizer(..., "
            "return_offsets_mapping=True), which fast tokenizers have"
        )
    samples = (
        encoded["overflow_to_sample_mapping"]
        if "overflow_to_sample_mapping" in encoded
        else range(len(sides[0]))
    )
    for row, (offsets, i) in enumerate(zip(encoded["offset_mapping"], samples, strict=True)):
        if len(sides) == 1:
            yield [(offsets, 0, i)]
            continue
        of_token = encoded.sequence_ids(row)
        yield [
            ([place if s == side else (0, 0) for place, s in zip(offsets, of_token, strict=True)],
             side, i)
            for side in (0, 1)
        ]  # fmt: skip


def _tokens(offset_mapping: Sequence[Span]) -> tuple[list[int], list[int], list[int]]:
    """(index, begin, end) of the tokens that stand for text."""
    index = [i for i, (begin, end) in enumerate(offset_mapping) if begin < end]
    begins, ends = ([offset_mapping[i][side] for i in index] for side in (0, 1))
    if any(b < a for a, b in pairwise(begins)):
        raise ValueError(
            "offsets go back in the row: it holds a pair of texts; give both of them, "
            "columns(texts, encoded, pairs)"
        )
    return index, begins, ends


def _number(found: list[tuple[int, int, int]], length: int) -> list[int]:
    """Ids of the longest of (first token, last + 1, size), none over another."""
    row = [-1] * length
    kept: list[Span] = []
    for begin, end, _ in sorted(found, key=lambda span: (-span[2], span[0])):
        if all(entity < 0 for entity in row[begin:end]):
            row[begin:end] = [len(kept)] * (end - begin)
            kept.append((begin, end))
    rank = {place: n for n, place in enumerate(sorted(range(len(kept)), key=kept.__getitem__))}
    return [-1 if entity < 0 else rank[entity] for entity in row]
