"""Write the columns that strategies read, for tokenized texts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from maskft.annotate.spans import Span, Weighted, entity_ids, token_weights
from maskft.strategy.columns import ENTITY_COLUMN, WEIGHT_COLUMN, WORD_COLUMN


@dataclass(frozen=True)
class Entities:
    """Make the column "entity_ids" of tokenized texts.

    Args:
        find: from texts to the spans (begin, end) of characters in each.

    Example:
        >>> from maskft.annotate import Entities
        >>> foxes = Entities(lambda texts: [[(4, 13)] for text in texts])  # of characters
        >>> texts = ["the quick fox"]
        >>> encoded = tokenizer(texts, return_offsets_mapping=True)
        >>> foxes.columns(texts, encoded)
        {'entity_ids': [[-1, -1, 0, 0, -1]]}
    """

    find: Callable[[Sequence[str]], Iterable[Iterable[Span]]]

    def columns(
        self, texts: Sequence[str], encoded: Any, pairs: Sequence[str] | None = None
    ) -> dict[str, list[list[int]]]:
        """Make the columns of the rows of ``encoded``.

        Args:
            texts, encoded: ``encoded = tokenizer(texts, return_offsets_mapping=True)``; rows of
                overflowing tokens too.
            pairs: ``encoded = tokenizer(texts, pairs, ...)``.
        """
        return {ENTITY_COLUMN: _span_numbers(self.find, texts, encoded, pairs)}


@dataclass(frozen=True)
class Keywords:
    """Make the column "keyword_weights" of tokenized texts.

    Args:
        weigh: from texts to weighted spans (begin, end, weight) of characters in each.
        default: as for ``token_weights``.

    Example:
        >>> from maskft.annotate import Keywords, WordWeights
        >>> texts = ["the quick fox"]
        >>> encoded = tokenizer(texts, return_offsets_mapping=True)
        >>> Keywords(WordWeights({"fox": 5.0, "quick": 2.0}), default=1.0).columns(texts, encoded)
        {'keyword_weights': [[1.0, 1.0, 2.0, 5.0, 1.0]]}
    """

    weigh: Callable[[Sequence[str]], Iterable[Iterable[Weighted]]]
    default: float | None = None

    def columns(
        self, texts: Sequence[str], encoded: Any, pairs: Sequence[str] | None = None
    ) -> dict[str, list[list[float]]]:
        """Make the columns, as ``Entities.columns`` does."""
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
    """Make the column "word_ids" of tokenized texts: words that the vocabulary does not show.

    Strategies of whole words, spans, entities and keywords read it in place of the vocabulary: for
    Chinese, ``WordIds(JiebaWords(jieba))`` makes them mask words, not characters. Every token in no
    word is a word of its own.

    Args:
        find: from texts to the spans (begin, end) of the words in each.

    Example:
        >>> from maskft.annotate import WordIds
        >>> texts = ["the quick fox"]
        >>> encoded = tokenizer(texts, return_offsets_mapping=True)
        >>> WordIds(lambda texts: [[(0, 9)] for text in texts]).columns(texts, encoded)
        {'word_ids': [[-1, 0, 0, 8, -1]]}
    """

    find: Callable[[Sequence[str]], Iterable[Iterable[Span]]]

    def columns(
        self, texts: Sequence[str], encoded: Any, pairs: Sequence[str] | None = None
    ) -> dict[str, list[list[int]]]:
        """Make the columns, as ``Entities.columns`` does."""
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
    """Make the columns of several annotators.

    Example:
        >>> from maskft.annotate import Entities, Keywords, Together, WordWeights
        >>> entities = Entities(lambda texts: [[(4, 13)] for text in texts])
        >>> annotator = Together((entities, Keywords(WordWeights({"fox": 5.0}))))
        >>> texts = ["the quick fox"]
        >>> sorted(annotator.columns(texts, tokenizer(texts, return_offsets_mapping=True)))
        ['entity_ids', 'keyword_weights']
    """

    annotators: tuple[Any, ...]

    def columns(
        self, texts: Sequence[str], encoded: Any, pairs: Sequence[str] | None = None
    ) -> dict[str, list[Any]]:
        """Make the columns, as ``Entities.columns`` does."""
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
    """Compute ``entity_ids`` of each row; a second text continues the numbers of the first."""
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
    """List what ``find`` gives for each text; refuse another number of answers than texts."""
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
    """Yield for each row its (offsets, side of the pair, number of the text), once per side."""
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
