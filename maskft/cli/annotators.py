"""Make annotators from the options --entities, --keywords and --words."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskft.annotate import (
    Entities,
    Gazetteer,
    JiebaWords,
    Keywords,
    SpacyEntities,
    WordWeights,
    YakeWeights,
    tfidf_weights,
)
from maskft.cli.formats import LONGEST_TEXT, lines
from maskft.cli.messages import UsageError
from maskft.extras import optional


def jieba_words() -> JiebaWords:
    """Make what finds Chinese words."""
    jieba = optional("jieba", "chinese")
    jieba.setLogLevel("WARNING")  # it reports on its dictionary
    return JiebaWords(jieba)


def entities(source: str | None, labels: list[str]) -> Entities:
    """Make what finds entities: from a file with a name a line, or "spacy:PIPELINE"."""
    if source is None:
        raise UsageError(
            "--strategy entity needs --entities: a file with a name a line, or spacy:PIPELINE"
        )
    kind, _, name = source.partition(":")
    if labels and kind != "spacy":
        raise UsageError("--entity-labels goes with --entities spacy:PIPELINE")
    try:
        if kind == "spacy":
            return Entities(SpacyEntities(name, labels or None))
        return Entities(Gazetteer([line for _, line in _lines("--entities", source)]))
    except ValueError as error:
        raise UsageError(f"--entities {source}: {error}") from None


def keywords(source: str, train: Any, words: Any) -> Keywords:
    """Make what weighs words: "tfidf" of ``train``, "yake", or a file (word, tab, weight)."""
    if source == "tfidf":

        def fit(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
            texts = (text for column in batch.values() for text in column)
            found = tfidf_weights(texts, words=words).weights
            return {"word": list(found), "weight": list(found.values())}

        # As one batch, so that datasets caches the fit as well
        try:
            found = train.map(fit, batched=True, batch_size=-1, remove_columns=train.column_names)
        except ValueError as error:
            if "no word in the texts" not in str(error):
                raise
            raise UsageError(f"--keywords tfidf: {error}") from None
        fitted = dict(zip(found["word"], found["weight"], strict=True))
        return Keywords(WordWeights(fitted, by_count="log", words=words))
    if source == "yake":
        extractor = optional("yake", "keywords").KeywordExtractor(n=1, top=1000, dedup_lim=1.0)
        return Keywords(YakeWeights(extractor))
    weights = {}
    for number, line in _lines("--keywords", source):
        word, _, weight = line.rpartition("\t")
        try:
            found = float(weight)
        except ValueError:
            found = -1.0
        if not word.strip() or not 0 <= found < float("inf"):
            raise UsageError(f"--keywords {source}: line {number} is not word, tab, weight")
        weights[word.strip().lower()] = found
    if not weights:
        raise UsageError(f"--keywords {source}: the list of words is empty")
    return Keywords(WordWeights(weights, words=words))


def _lines(option: str, name: str) -> Iterator[tuple[int, str]]:
    """Yield (number, text) of the lines of a list that are not blank."""
    try:
        for number, line in lines(Path(name), LONGEST_TEXT):
            yield number, line.rstrip("\r\n")
    except UsageError as error:
        raise UsageError(f"{option} {error}") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{option} {name}: {error}") from None
