"""Weigh the words of texts: a mapping, TF-IDF, YAKE."""

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import regex  # type: ignore[import-untyped]

from maskft.annotate.code import NamedByCode, code_digest
from maskft.annotate.spans import Span, Weighted
from maskft.extras import optional

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = regex.compile(rf"[{_CJK}]|(?:(?![{_CJK}])[\w\p{{M}}])+")


@dataclass(frozen=True)
class WordWeights(NamedByCode):
    """Weigh words by a mapping, for ``Keywords``; a word that is not in it has no weight.

    Args:
        weights: from words, in lower case, to their weights. Words are compared in Unicode's form
            NFC, so that accents are found however they are encoded.
        by_count: True: times n, how often the word occurs in the text; "log": times 1 + log(n).
            Where the weights are IDF that makes TF-IDF.
        words: from texts to the spans of their words, such as ``JiebaWords``. None: letters (with
            their accents and vowel signs) and digits in a row, and single characters of Chinese and
            Japanese.

    Examples:
        >>> from maskft.annotate import WordWeights
        >>> WordWeights({"fox": 2.0}, by_count=True)(["the fox and the fox"])
        [[(4, 7, 4.0), (16, 19, 4.0)]]
    """

    weights: Mapping[str, float]
    by_count: bool | str = False
    words: Callable[[Sequence[str]], Iterable[Iterable[Span]]] | None = None

    def __post_init__(self) -> None:
        if not all(unicodedata.is_normalized("NFC", word) for word in self.weights):
            weights = {unicodedata.normalize("NFC", w): n for w, n in self.weights.items()}
            object.__setattr__(self, "weights", weights)

    def __call__(self, texts: Sequence[str]) -> list[list[Weighted]]:
        found = []
        for text, spans in zip(texts, (self.words or _words)(texts), strict=True):
            words = [(_key(text[begin:end]), begin, end) for begin, end in spans]
            counts = Counter(word for word, _, _ in words if word in self.weights)
            weights = {word: self._weight(word, n) for word, n in counts.items()}
            found.append(
                [(begin, end, weights[word]) for word, begin, end in words if word in weights]
            )
        return found

    def _weight(self, word: str, count: int) -> float:
        times = 1 + math.log(count) if self.by_count == "log" else count if self.by_count else 1
        return self.weights[word] * times


def _key(word: str) -> str:
    """Return a word as words are compared."""
    return unicodedata.normalize("NFC", word.lower())


def _words(texts: Sequence[str]) -> Iterator[list[Span]]:
    return ([match.span() for match in _WORD.finditer(text)] for text in texts)


def tfidf_weights(
    texts: Iterable[str],
    vectorizer: Any = None,
    words: Callable[[Sequence[str]], Iterable[Iterable[Span]]] | None = None,
) -> WordWeights:
    """Compute TF-IDF of the words of a corpus, for ``Keywords``: tf counts a word in its own text.

    Args:
        texts: the corpus.
        vectorizer: scikit-learn's TfidfVectorizer, of words. None: one with sublinear_tf, for tf is
            1 + log(n) then: with n a long text has "the" outweigh its rare words.
        words: as for ``WordWeights``.

    Raises:
        ValueError: texts without a word. ModuleNotFoundError: scikit-learn is not installed.

    Examples:
        >>> from maskft.annotate import tfidf_weights
        >>> weigh = tfidf_weights(["the fox", "the dog"])
        >>> weigh.weights["fox"] > weigh.weights["the"]
        True
    """
    if vectorizer is None:
        text = optional("sklearn.feature_extraction.text", "keywords")
        find = words or _words
        vectorizer = text.TfidfVectorizer(
            analyzer=lambda t: [_key(t[b:e]) for found in find([t]) for b, e in found],
            sublinear_tf=True,
        )
    try:
        vectorizer.fit(texts)
    except ValueError as error:
        if "empty vocabulary" not in str(error):
            raise
        raise ValueError("TF-IDF: there is no word in the texts") from error
    idf = vectorizer.idf_
    weights = {word: float(idf[i]) for word, i in vectorizer.vocabulary_.items()}
    by_count = "log" if getattr(vectorizer, "sublinear_tf", False) else True
    return WordWeights(weights, by_count, words)


@dataclass(frozen=True)
class YakeWeights:
    """Weigh the words that YAKE extracts by -log of their score, for ``Keywords``.

    Args:
        extractor: ``yake.KeywordExtractor(n=1, top=1000, dedup_lim=1.0)`` (less drops words that
            look like others), or whatever has ``extract_keywords(text)`` that gives (word, score),
            the best with the lowest score.

    Examples:
        >>> import yake
        >>> from maskft.annotate import YakeWeights
        >>> weigh = YakeWeights(yake.KeywordExtractor(n=1, top=1000, dedup_lim=1.0))
        >>> [(begin, end) for begin, end, _ in weigh(["insulin lowers glucose"])[0]]
        [(0, 7), (8, 14), (15, 22)]
    """

    extractor: Any
    _fresh: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_fresh", deepcopy(self.extractor))

    def __reduce__(self) -> tuple[Any, ...]:
        return _yake_weights, (self._fresh, code_digest())  # before it remembered what it read

    def __call__(self, texts: Sequence[str]) -> list[list[Weighted]]:
        found = []
        for text in texts:
            scores = dict(self.extractor.extract_keywords(text))
            weights = {
                _key(word): -math.log(min(max(score, 1e-9), 0.99)) for word, score in scores.items()
            }
            found += WordWeights(weights)([text])
        return found


def _yake_weights(extractor: Any, code: str) -> YakeWeights:
    return YakeWeights(extractor)
