"""Write the columns that strategies read, for tokenized texts."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from maskft.annotate.code import NamedByCode
from maskft.annotate.encoded import Texts, rows_of
from maskft.annotate.spans import Span, Weighted, entity_ids, token_weights
from maskft.strategy.columns import ENTITY_COLUMN, WEIGHT_COLUMN, WORD_COLUMN

Text = str | Sequence[str]  # a text, or its words


@dataclass(frozen=True)
class Entities(NamedByCode):
    """Make the column "entity_ids" of tokenized texts.

    Args:
        find: from texts to the spans (begin, end) of characters in each.

    Examples:
        >>> from maskft.annotate import Entities
        >>> foxes = Entities(lambda texts: [[(4, 13)] for text in texts])  # of characters
        >>> texts = ["the quick fox"]
        >>> encoded = tokenizer(texts, return_offsets_mapping=True)
        >>> foxes.columns(texts, encoded)
        {'entity_ids': [[-1, -1, 0, 0, -1]]}
    """

    find: Callable[[Sequence[str]], Iterable[Iterable[Span]]]

    def columns(
        self, texts: Sequence[Text], encoded: Any, pairs: Sequence[Text] | None = None
    ) -> dict[str, list[list[int]]]:
        """Make the columns of the rows of ``encoded``.

        Args:
            texts, encoded: ``encoded = tokenizer(texts, return_offsets_mapping=True)``; rows of
                overflowing tokens too. Texts in words (lists of strings, as files of named entities
                have them) with ``is_split_into_words=True`` as well: ``find`` gets the words joined
                with spaces, without one between two of Chinese, Japanese, Thai...
            pairs: ``encoded = tokenizer(texts, pairs, ...)``.

        Raises:
            ValueError, TypeError: ``encoded`` that has no offsets, is of a single text or of other
                texts, or texts given as strings that were tokenized in words; saying what to do.
        """
        return {ENTITY_COLUMN: _span_numbers(self.find, _Rows(texts, encoded, pairs))}


@dataclass(frozen=True)
class Keywords(NamedByCode):
    """Make the column "keyword_weights" of tokenized texts.

    Args:
        weigh: from texts to weighted spans (begin, end, weight) of characters in each.
        default: as for ``token_weights``.

    Examples:
        >>> from maskft.annotate import Keywords, WordWeights
        >>> texts = ["the quick fox"]
        >>> encoded = tokenizer(texts, return_offsets_mapping=True)
        >>> Keywords(WordWeights({"fox": 5.0, "quick": 2.0}), default=1.0).columns(texts, encoded)
        {'keyword_weights': [[1.0, 1.0, 2.0, 5.0, 1.0]]}
    """

    weigh: Callable[[Sequence[str]], Iterable[Iterable[Weighted]]]
    default: float | None = None

    def columns(
        self, texts: Sequence[Text], encoded: Any, pairs: Sequence[Text] | None = None
    ) -> dict[str, list[list[float]]]:
        """Make the columns, as ``Entities.columns`` does."""
        rows = _Rows(texts, encoded, pairs)
        weighted = rows.found(self.weigh)
        made = []
        for parts in rows.parts:
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
class WordIds(NamedByCode):
    """Make the column "word_ids" of tokenized texts: words that the vocabulary does not show.

    Strategies of whole words, spans, entities and keywords read it in place of the vocabulary: for
    Chinese, ``WordIds(JiebaWords(jieba))`` makes them mask words, not characters. Every token in no
    word is a word of its own.

    Args:
        find: from texts to the spans (begin, end) of the words in each.

    Examples:
        >>> from maskft.annotate import WordIds
        >>> texts = ["the quick fox"]
        >>> encoded = tokenizer(texts, return_offsets_mapping=True)
        >>> WordIds(lambda texts: [[(0, 9)] for text in texts]).columns(texts, encoded)
        {'word_ids': [[-1, 0, 0, 8, -1]]}
    """

    find: Callable[[Sequence[str]], Iterable[Iterable[Span]]]

    def columns(
        self, texts: Sequence[Text], encoded: Any, pairs: Sequence[Text] | None = None
    ) -> dict[str, list[list[int]]]:
        """Make the columns, as ``Entities.columns`` does."""
        rows = _Rows(texts, encoded, pairs)
        made = []
        for row, parts in zip(_span_numbers(self.find, rows), rows.parts, strict=True):
            alone = range(len(row), 2 * len(row))  # numbers that no word has
            for offsets, _, _ in parts:
                row = [
                    word if word >= 0 or begin == end else own
                    for word, own, (begin, end) in zip(row, alone, offsets, strict=True)
                ]
            made.append(row)
        return {WORD_COLUMN: made}


@dataclass(frozen=True)
class Together(NamedByCode):
    """Make the columns of several annotators.

    Examples:
        >>> from maskft.annotate import Entities, Keywords, Together, WordWeights
        >>> entities = Entities(lambda texts: [[(4, 13)] for text in texts])
        >>> annotator = Together((entities, Keywords(WordWeights({"fox": 5.0}))))
        >>> texts = ["the quick fox"]
        >>> sorted(annotator.columns(texts, tokenizer(texts, return_offsets_mapping=True)))
        ['entity_ids', 'keyword_weights']
    """

    annotators: tuple[Any, ...]

    def columns(
        self, texts: Sequence[Text], encoded: Any, pairs: Sequence[Text] | None = None
    ) -> dict[str, list[Any]]:
        """Make the columns, as ``Entities.columns`` does."""
        made: dict[str, list[Any]] = {}
        for annotator in self.annotators:
            made |= annotator.columns(texts, encoded, pairs)
        return made


def _span_numbers(
    find: Callable[[Sequence[str]], Iterable[Iterable[Span]]], rows: "_Rows"
) -> list[list[int]]:
    """Compute ``entity_ids`` of each row; a second text continues the numbers of the first."""
    spans = rows.found(find)
    made = []
    for parts in rows.parts:
        row: list[int] = []
        for offsets, side, i in parts:
            text = rows.sides[side].texts[i]
            new, first = entity_ids(offsets, spans[side][i], text), max(row, default=-1)
            row = [
                old if number < 0 else number + first + 1
                for old, number in zip(row or new, new, strict=True)
            ]
        made.append(row)
    return made


class _Rows:
    """Hold the rows of tokenized texts: which texts each holds, and where."""

    def __init__(self, texts: Any, encoded: Any, pairs: Any) -> None:
        self.sides = [Texts(texts)] if pairs is None else [Texts(texts), Texts(pairs, "pairs")]
        counts = [len(side.texts) for side in self.sides]
        if len(set(counts)) > 1:
            raise ValueError(f"there are {counts[0]} texts but {counts[1]} pairs")
        self.parts = list(rows_of(self.sides, encoded))

    def found(self, find: Callable[[Sequence[str]], Iterable[Iterable[Any]]]) -> list[Any]:
        """List what a finder gives for each text of each side."""
        return [_found(find, side.texts) for side in self.sides]


def _found(find: Callable[[Sequence[str]], Iterable[Iterable[Any]]], texts: Any) -> list[list[Any]]:
    """List what ``find`` gives for each text; refuse another number of answers than texts."""
    found = [list(spans) for spans in find(texts)]
    if len(found) != len(texts):
        raise ValueError(
            f"a finder must give a list of spans for each text: {len(found)} for {len(texts)} texts"
        )
    return found
