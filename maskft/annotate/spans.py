"""Turn spans of characters into numbers and weights of tokens."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise

Span = tuple[int, int]  # [begin, end) in characters, or in tokens
Weighted = tuple[int, int, float]  # and a weight


def entity_ids(offset_mapping: Sequence[Span], spans: Iterable[Span], text: str) -> list[int]:
    """Number the entity of each token of a row, from spans of characters.

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

    Examples:
        >>> from maskft.annotate import entity_ids
        >>> offsets = [(0, 0), (0, 3), (4, 8), (8, 12), (13, 18), (0, 0)]  # of [CLS] ... [SEP]
        >>> entity_ids(offsets, [(0, 12)], "Ada Lovelace wrote")
        [-1, 0, 0, 0, -1, -1]
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
    """Do what ``entity_ids`` does, for a row of ``length`` tokens and spans [begin, end) of tokens.

    Raises:
        ValueError: a span that is empty, reversed or not within the row.

    Examples:
        >>> from maskft.annotate import entity_ids_from_tokens
        >>> entity_ids_from_tokens(6, [(1, 3), (4, 5)])
        [-1, 0, 0, -1, 1, -1]
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
    """Weigh each token of a row, from weighted spans of characters.

    Args:
        weighted: (begin, end, weight), not negative. A token in several has the largest.
        default: the weight of tokens in none. None: the least positive one of ``weighted``, so that
            every token can be masked; 1 where there is none.

    Raises:
        ValueError: a weight or default that is negative, infinite or NaN; offsets of a pair of
            texts.

    Examples:
        >>> from maskft.annotate import token_weights
        >>> token_weights([(0, 3), (4, 8), (8, 12)], [(4, 12, 5.0)], default=1.0)
        [1.0, 5.0, 5.0]
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


def _tokens(offset_mapping: Sequence[Span]) -> tuple[list[int], list[int], list[int]]:
    """List (index, begin, end) of the tokens that are not special."""
    index = [i for i, (begin, end) in enumerate(offset_mapping) if begin < end]
    begins, ends = ([offset_mapping[i][side] for i in index] for side in (0, 1))
    if any(b < a for a, b in pairwise(begins)):
        raise ValueError(
            "offset_mapping goes back in the row: it holds a pair of texts; give both of them, "
            "columns(texts, encoded, pairs); or a text in words (is_split_into_words=True); give "
            "lists of words as texts"
        )
    return index, begins, ends


def _number(found: list[tuple[int, int, int]], length: int) -> list[int]:
    """Number the longest spans of (first token, last + 1, size) that do not overlap."""
    row = [-1] * length
    kept: list[Span] = []
    for begin, end, _ in sorted(found, key=lambda span: (-span[2], span[0])):
        if all(entity < 0 for entity in row[begin:end]):
            row[begin:end] = [len(kept)] * (end - begin)
            kept.append((begin, end))
    rank = {place: n for n, place in enumerate(sorted(range(len(kept)), key=kept.__getitem__))}
    return [-1 if entity < 0 else rank[entity] for entity in row]
