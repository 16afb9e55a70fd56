"""Where entities, words and their weights come from: functions from texts to spans of characters.

Each is handed to an annotator of ``maskft.annotate``, which explains them together. What they find
depends on what they are made from alone, and so do the bytes that they pickle to: ``datasets``
names its cache by those, and a later process finds what an earlier one has worked out.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from maskft.strategy.words import spaceless

Span = tuple[int, int]  # [begin, end) in characters, or in tokens
Weighted = tuple[int, int, float]  # and a weight
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|(?:(?![{_CJK}])\w)+")
_NOT_SPACE = re.compile(r"\S+")
NUMBERS = ("DATE", "TIME", "PERCENT", "MONEY", "QUANTITY", "ORDINAL", "CARDINAL")
_NO_ENTITIES = (
    "parser", "tagger", "morphologizer", "lemmatizer", "trainable_lemmatizer", "attribute_ruler",
    "senter", "sentencizer",
)  # fmt: skip


def optional(module: str, extra: str) -> Any:
    """An optional package.

    Raises:
        ModuleNotFoundError: it is not installed; the error gives the command that does it.
    """
    try:
        return import_module(module)
    except ImportError:
        raise ModuleNotFoundError(
            f"this needs {module.partition('.')[0]}, which is not installed: "
            f"pip install 'maskkernels[{extra}]'"
        ) from None


class Gazetteer:
    """Finds the names of a list, as whole words, the longest at each place; for ``Entities``.

    An Aho-Corasick automaton (ahocorasick_rs) reads each text once, however long the list. A name
    does not begin or end within a word. Scripts that are written without spaces (Chinese, Japanese,
    Thai...) do not show where words end: there a name is found wherever its characters stand.
    Spaces between the words of a name may be of any width, line breaks too.

    Args:
        names: what to find; blank ones are left out.
        ignore_case: "paris" is found for "Paris", "STRASSE" for "Straße".

    Raises:
        ValueError: no names. TypeError: names that are not strings, or one string in place of
        them. ModuleNotFoundError: ahocorasick_rs is not installed.
    """

    def __init__(self, names: Iterable[str], *, ignore_case: bool = False) -> None:
        self.ignore_case = ignore_case
        if isinstance(names, str):
            raise TypeError(f"names must be a list of names, got the string {names[:30]!r}")
        names = list(names)
        if not all(isinstance(name, str) for name in names):
            bad = next(name for name in names if not isinstance(name, str))
            raise TypeError(f"names must be strings, got {type(bad).__name__}")
        self.names = sorted({self._plain(name) for name in names} - {""})
        if not self.names:
            raise ValueError("the list of names is empty")
        self._automaton = optional("ahocorasick_rs", "gazetteer").AhoCorasick(self.names)

    def __reduce__(self) -> tuple[Any, ...]:
        return _gazetteer, (self.names, self.ignore_case)

    def __call__(self, texts: Sequence[str]) -> list[list[Span]]:
        return [list(self._find(text)) for text in texts]

    def _plain(self, text: str) -> str:
        """As texts and names are compared: single spaces, and without case where it is ignored."""
        spaced = " ".join(text.split())
        return spaced.casefold() if self.ignore_case else spaced

    def _find(self, text: str) -> Iterator[Span]:
        plain = self._plain(text)
        found = [
            (begin, -end)
            for _, begin, end in self._automaton.find_matches_as_indexes(plain, overlapping=True)
            if not (_within_word(plain, begin) or _within_word(plain, end))
        ]
        if not found:
            return
        places, last = self._places(text, plain), 0
        for begin, end in sorted(found):  # the longest first at each place
            if begin >= last:
                last = -end
                yield places[begin], places[last - 1] + 1

    def _places(self, text: str, plain: str) -> Sequence[int]:
        """Where each character of ``plain`` stands in ``text``."""
        if len(text) == len(plain) and not (self.ignore_case and len(text.casefold()) > len(text)):
            return range(len(text))  # nothing was cut out, and so nothing was put in
        places: list[int] = []
        for word in _NOT_SPACE.finditer(text):
            if places:
                places.append(word.start() - 1)
            within = range(word.start(), word.end())
            places += (
                [i for i in within for _ in text[i].casefold()] if self.ignore_case else within
            )
        return places


def _gazetteer(names: list[str], ignore_case: bool) -> Gazetteer:
    return Gazetteer(names, ignore_case=ignore_case)


def _within_word(text: str, at: int) -> bool:
    """Whether a word goes on from the character before ``at`` to the one there."""
    if not 0 < at < len(text):
        return False
    before, after = text[at - 1], text[at]
    if not (before.isascii() and after.isascii()):
        if _is_mark(after):  # an accent or a vowel sign
            return not before.isspace()
        if spaceless(before) or spaceless(after):
            return False
    return _in_word(before) and _in_word(after)


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_" or _is_mark(character)


def _is_mark(character: str) -> bool:
    return not character.isascii() and unicodedata.category(character).startswith("M")


class SpacyEntities:
    """The named entities of a spaCy pipeline, for ``Entities``.

    Args:
        pipeline: the name or folder of a pipeline, which is loaded when the first text comes, so
            that a run that finds its annotation in the cache does not load it at all, without the
            parts that entities do not need; or what ``spacy.load`` gives; or whatever has ``pipe``
            and yields ``doc.ents``.
        labels: the kinds to keep ("PERSON", "ORG"...). None: all but spaCy's dates, times and
            numbers (``NUMBERS``), of which encyclopaedias are full and which name nothing.
        batch_size: texts at a time.

    Raises:
        ValueError: there is no pipeline of this name; a batch_size below 1. TypeError: labels in
            one string. ModuleNotFoundError: spaCy is not installed.
    """

    def __init__(
        self, pipeline: Any, labels: Sequence[str] | None = None, batch_size: int = 64
    ) -> None:
        if isinstance(labels, str):
            raise TypeError(f"labels must be a list of labels, got the string {labels!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.pipeline = pipeline
        self.labels = None if labels is None else tuple(labels)
        self.batch_size = batch_size
        self._loaded = None if isinstance(pipeline, str) else pipeline
        self._state: Any = None  # the pipeline before its vocabulary grows with what it reads
        if isinstance(pipeline, str):
            self._state = _digest(_pipeline_folder(pipeline))
        elif hasattr(pipeline, "to_bytes"):
            self._state = (pipeline.config.to_str(), pipeline.to_bytes())

    def __reduce__(self) -> tuple[Any, ...]:
        named = self.pipeline if isinstance(self.pipeline, str) or self._state is None else None
        return _spacy_entities, (named, self._state, self.labels, self.batch_size)

    def __call__(self, texts: Sequence[str]) -> list[list[Span]]:
        if self._loaded is None:
            self._loaded = _load_pipeline(self.pipeline)
        return [
            [
                (entity.start_char, entity.end_char)
                for entity in doc.ents
                if (
                    entity.label_ not in NUMBERS
                    if self.labels is None
                    else entity.label_ in self.labels
                )
            ]
            for doc in self._loaded.pipe(texts, batch_size=self.batch_size)
        ]


def _spacy_entities(
    pipeline: Any, state: Any, labels: tuple[str, ...] | None, batch_size: int
) -> SpacyEntities:
    rebuilt = pipeline is None
    if rebuilt:
        config, parts = state
        util = optional("spacy.util", "spacy")
        config = optional("thinc.api", "spacy").Config().from_str(config)
        language = util.get_lang_class(config["nlp"]["lang"])
        pipeline = language.from_config(config).from_bytes(parts)
    found = SpacyEntities(pipeline, labels, batch_size)
    if rebuilt:
        found._state = state  # a copy's vocabulary is in another order
    return found


def _pipeline_folder(name: str) -> Path:
    if find_spec("spacy") is None:  # does not import it
        optional("spacy", "spacy")
    spec = find_spec(name) if name.isidentifier() else None
    packages = spec.submodule_search_locations if spec is not None else None
    for folder in (*(packages or ()), *([name] if name else ())):
        if (Path(folder) / "meta.json").is_file():  # what makes it a pipeline
            return Path(folder)
    raise ValueError(
        f"there is no spaCy pipeline {name!r}: no folder with a meta.json and no installed package "
        f"of this name (python -m spacy download {name} fetches spaCy's own)"
    )


def _digest(folder: Path) -> str:
    """A hash of the files in a folder."""
    found = blake2b(digest_size=16)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            found.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
            found.update(path.read_bytes())
    return found.hexdigest()


def _load_pipeline(name: str) -> Any:
    """A pipeline, without the parts that its entities do not need."""
    pipeline = optional("spacy", "spacy").load(name)
    factories = pipeline.pipe_factories
    if any("ruler" in factory for factory in factories.values() if factory != "attribute_ruler"):
        return pipeline  # rules may read anything
    for part, component in pipeline.pipeline:
        # Shared layers, which a recognizer may read
        listeners = getattr(component, "listening_components", None)
        if factories[part] in _NO_ENTITIES or (
            listeners is not None and not any(factories.get(name) == "ner" for name in listeners)
        ):
            pipeline.disable_pipe(part)
    return pipeline


@dataclass(frozen=True)
class JiebaWords:
    """Chinese words, for ``WordIds``.

    Args:
        segment: the ``jieba`` module, or whatever has ``tokenize(text)`` that yields (word, begin,
            end).
    """

    segment: Any
    version: str | None = field(init=False, repr=False)  # so that another one annotates anew

    def __post_init__(self) -> None:
        object.__setattr__(self, "version", getattr(self.segment, "__version__", None))

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
        by_count: True: times n, how often the word stands in the text; "log": times 1 + log(n).
            Where the weights are IDF that makes TF-IDF.
        words: from texts to the spans of their words, such as ``JiebaWords``. None: letters and
            digits in a row, and single characters of Chinese and Japanese.
    """

    weights: Mapping[str, float]
    by_count: bool | str = False
    words: Callable[[Sequence[str]], Iterable[Iterable[Span]]] | None = None

    def __call__(self, texts: Sequence[str]) -> list[list[Weighted]]:
        found = []
        for text, spans in zip(texts, (self.words or _words)(texts), strict=True):
            words = [(text[begin:end].lower(), begin, end) for begin, end in spans]
            counts = Counter(word for word, _, _ in words if word in self.weights)
            weights = {word: self._weight(word, n) for word, n in counts.items()}
            found.append(
                [(begin, end, weights[word]) for word, begin, end in words if word in weights]
            )
        return found

    def _weight(self, word: str, count: int) -> float:
        times = 1 + math.log(count) if self.by_count == "log" else count if self.by_count else 1
        return self.weights[word] * times


def _words(texts: Sequence[str]) -> Iterator[list[Span]]:
    return ([match.span() for match in _WORD.finditer(text)] for text in texts)


def tfidf_weights(
    texts: Iterable[str],
    vectorizer: Any = None,
    words: Callable[[Sequence[str]], Iterable[Iterable[Span]]] | None = None,
) -> WordWeights:
    """TF-IDF of the words of a corpus, for ``Keywords``: tf counts a word in its own text.

    Args:
        texts: the corpus.
        vectorizer: scikit-learn's TfidfVectorizer, of words. None: one with sublinear_tf, for tf is
            1 + log(n) then: with n a long text has "the" outweigh its rare words.
        words: as for ``WordWeights``.

    Raises:
        ValueError: texts without a word. ModuleNotFoundError: scikit-learn is not installed.
    """
    if vectorizer is None:
        text = optional("sklearn.feature_extraction.text", "keywords")
        find = words or _words
        vectorizer = text.TfidfVectorizer(
            analyzer=lambda t: [t[b:e].lower() for found in find([t]) for b, e in found],
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
    """Weights of the words that YAKE takes for keywords: -log of their score, for ``Keywords``.

    Args:
        extractor: ``yake.KeywordExtractor(n=1, top=1000, dedup_lim=1.0)`` (less drops words that
            look like others), or whatever has ``extract_keywords(text)`` that gives (word, score),
            the best with the lowest score.
    """

    extractor: Any
    _fresh: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_fresh", deepcopy(self.extractor))

    def __reduce__(self) -> tuple[Any, ...]:
        return YakeWeights, (self._fresh,)  # as it was before it remembered what it read

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
