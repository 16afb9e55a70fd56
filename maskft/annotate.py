"""Entities and weights of words, worked out once, when texts become tokens.

    annotator = Entities(SpacyEntities(spacy.load("en_core_web_sm")))

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
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from maskft.strategy import ENTITY_COLUMN, WEIGHT_COLUMN

Span = tuple[int, int]  # [begin, end) in characters, or in tokens
Weighted = tuple[int, int, float]  # and a weight
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|(?:(?![{_CJK}])\w)+")
_PIECE = re.compile(rf"{_WORD.pattern}|[^\w\s]")  # punctuation too


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
        ValueError: a weight that is negative, infinite or NaN; offsets of a pair of texts.
    """
    weighted = list(weighted)
    if not all(0.0 <= weight < math.inf for _, _, weight in weighted):
        bad = next(w for _, _, w in weighted if not 0.0 <= w < math.inf)
        raise ValueError(f"weights must not be negative, infinite or NaN, got {bad}")
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

    def columns(self, texts: Sequence[str], encoded: Any) -> dict[str, list[list[int]]]:
        """For ``encoded = tokenizer(texts, return_offsets_mapping=True)``, overflow rows too."""
        spans = [list(found) for found in self.find(texts)]
        return {
            ENTITY_COLUMN: [
                entity_ids(offsets, spans[i], texts[i]) for offsets, i in _rows(texts, encoded)
            ]
        }


@dataclass(frozen=True)
class Keywords:
    """The column "keyword_weights" of tokenized texts.

    Args:
        weigh: from texts to weighted spans (begin, end, weight) of characters in each.
        default: as for ``token_weights``.
    """

    weigh: Callable[[Sequence[str]], Iterable[Iterable[Weighted]]]
    default: float | None = None

    def columns(self, texts: Sequence[str], encoded: Any) -> dict[str, list[list[float]]]:
        """As ``Entities.columns``."""
        weighted = [list(found) for found in self.weigh(texts)]
        return {
            WEIGHT_COLUMN: [
                token_weights(offsets, weighted[i], self.default)
                for offsets, i in _rows(texts, encoded)
            ]
        }


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

    def columns(self, texts: Sequence[str], encoded: Any) -> dict[str, list[list[int]]]:
        """As ``Entities.columns``."""
        words = [list(found) for found in self.find(texts)]
        made = []
        for offsets, i in _rows(texts, encoded):
            row = entity_ids(offsets, words[i], texts[i])
            alone = range(len(row), 2 * len(row))  # numbers that no word has
            special = [begin == end for begin, end in offsets]
            made.append(
                [
                    word if word >= 0 or not_text else own
                    for word, own, not_text in zip(row, alone, special, strict=True)
                ]
            )
        return {"word_ids": made}


@dataclass(frozen=True)
class Together:
    """The columns of several annotators."""

    annotators: tuple[Any, ...]

    def columns(self, texts: Sequence[str], encoded: Any) -> dict[str, list[Any]]:
        """As ``Entities.columns``."""
        return {k: v for one in self.annotators for k, v in one.columns(texts, encoded).items()}


class Gazetteer:
    """Finds the names of a list, as whole words, the longest at each place; for ``Entities``.

    A trie of words: the time is that of splitting the text into words, however long the list.
    Spaces and punctuation between the words of a name may differ in width only.

    Args:
        names: what to find; blank ones are left out.
        ignore_case: "paris" is found for "Paris".

    Raises:
        ValueError: no names.
    """

    def __init__(self, names: Iterable[str], *, ignore_case: bool = False) -> None:
        self.ignore_case = ignore_case
        self._trie: dict[str, Any] = {}
        for name in names:
            node = self._trie
            pieces = [piece for piece, _, _ in self._pieces(name)]
            for piece in pieces:
                node = node.setdefault(piece, {})
            if pieces:
                node[""] = True  # a name ends here
        if not self._trie:
            raise ValueError("the list of names is empty")

    def __call__(self, texts: Sequence[str]) -> list[list[Span]]:
        return [self._find(text) for text in texts]

    def _pieces(self, text: str) -> list[tuple[str, int, int]]:
        fold = str.casefold if self.ignore_case else str
        return [(fold(m.group()), m.start(), m.end()) for m in _PIECE.finditer(text)]

    def _find(self, text: str) -> list[Span]:
        pieces, found, i = self._pieces(text), [], 0
        while i < len(pieces):
            node, last = self._trie, None
            for j in range(i, len(pieces)):
                node = node.get(pieces[j][0])  # type: ignore[assignment]
                if node is None:
                    break
                if "" in node:
                    last = j
            if last is None:
                i += 1
            else:
                found.append((pieces[i][1], pieces[last][2]))
                i = last + 1
        return found


@dataclass(frozen=True)
class SpacyEntities:
    """The named entities of a spaCy pipeline, for ``Entities``.

    Args:
        pipeline: what ``spacy.load`` gives, or whatever has ``pipe`` and yields ``doc.ents``.
        labels: the kinds to keep ("PERSON", "ORG"...). None: all.
        batch_size: texts at a time.
    """

    pipeline: Any
    labels: tuple[str, ...] | None = None
    batch_size: int = 64

    def __call__(self, texts: Sequence[str]) -> list[list[Span]]:
        return [
            [
                (entity.start_char, entity.end_char)
                for entity in doc.ents
                if self.labels is None or entity.label_ in self.labels
            ]
            for doc in self.pipeline.pipe(texts, batch_size=self.batch_size)
        ]


@dataclass(frozen=True)
class JiebaWords:
    """Chinese words, for ``WordIds``.

    Args:
        segment: the ``jieba`` module, or whatever has ``tokenize(text)`` that yields (word, begin,
            end).
    """

    segment: Any

    def __call__(self, texts: Sequence[str]) -> list[list[Span]]:
        return [
            [(begin, end) for word, begin, end in self.segment.tokenize(text) if word.strip()]
            for text in texts
        ]


@dataclass(frozen=True)
class WordWeights:
    """Weights from a mapping, for ``Keywords``; a word that is not in it has none of its own.

    Args:
        weights: from words, in lower case, to their weights.
        by_count: times how often the word stands in the text: TF-IDF, where the weights are IDF.
    """

    weights: Mapping[str, float]
    by_count: bool = False

    def __call__(self, texts: Sequence[str]) -> list[list[Weighted]]:
        found = []
        for text in texts:
            words = [(m.group().lower(), m.start(), m.end()) for m in _WORD.finditer(text)]
            counts = Counter(word for word, _, _ in words) if self.by_count else Counter()
            found.append(
                [
                    (begin, end, self.weights[word] * (counts[word] if self.by_count else 1))
                    for word, begin, end in words
                    if word in self.weights
                ]
            )
        return found


def tfidf_weights(texts: Iterable[str], vectorizer: Any = None) -> WordWeights:
    """TF-IDF of the words of a corpus, for ``Keywords``: tf counts a word in its own text.

    Args:
        texts: the corpus.
        vectorizer: scikit-learn's TfidfVectorizer, of words, or None for its defaults.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    if vectorizer is None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(token_pattern=_WORD.pattern)
    vectorizer.fit(texts)
    idf = vectorizer.idf_
    weights = {word: float(idf[i]) for word, i in vectorizer.vocabulary_.items()}
    return WordWeights(weights, by_count=True)


@dataclass(frozen=True)
class YakeWeights:
    """Weights of the words that YAKE takes for keywords: -log of their score, for ``Keywords``.

    Args:
        extractor: ``yake.KeywordExtractor(n=1, top=...)``, or whatever has
            ``extract_keywords(text)`` that gives (word, score), the best with the lowest score.
    """

    extractor: Any

    def __call__(self, texts: Sequence[str]) -> list[list[Weighted]]:
        found = []
        for text in texts:
            scores = dict(self.extractor.extract_keywords(text))
            weights = {
                word.lower(): -math.log(min(max(score, 1e-9), 0.99))
                for word, score in scores.items()
            }
            found += WordWeights(weights)([text])
        return found


def _rows(texts: Sequence[str], encoded: Any) -> list[tuple[Sequence[Span], int]]:
    """(offsets, index of the text) of each row."""
    if "offset_mapping" not in encoded:
        raise ValueError(
            "annotation needs the offsets of the tokens: tokenizer(..., "
            "return_offsets_mapping=True), which fast tokenizers have"
        )
    offsets = encoded["offset_mapping"]
    samples = (
        encoded["overflow_to_sample_mapping"]
        if ("overflow_to_sample_mapping" in encoded)
        else range(len(texts))
    )
    return list(zip(offsets, samples, strict=True))


def _tokens(offset_mapping: Sequence[Span]) -> tuple[list[int], list[int], list[int]]:
    """(index, begin, end) of the tokens that stand for text."""
    index = [i for i, (begin, end) in enumerate(offset_mapping) if begin < end]
    begins, ends = ([offset_mapping[i][side] for i in index] for side in (0, 1))
    if any(b < a for a, b in pairwise(begins)):
        raise ValueError(
            "offsets go back in the row: it holds a pair of texts; annotate them one by one"
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
