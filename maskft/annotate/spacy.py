"""Find named entities with a spaCy pipeline."""

from collections.abc import Sequence
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from maskft.annotate.code import code_digest
from maskft.annotate.spans import Span
from maskft.extras import optional

NUMBERS = ("DATE", "TIME", "PERCENT", "MONEY", "QUANTITY", "ORDINAL", "CARDINAL")
_NO_ENTITIES = (
    "parser", "tagger", "morphologizer", "lemmatizer", "trainable_lemmatizer", "attribute_ruler",
    "senter", "sentencizer",
)  # fmt: skip


class SpacyEntities:
    """Find the named entities of a spaCy pipeline, for ``Entities``.

    Args:
        pipeline: the name or folder of a pipeline, which is loaded when the first text comes, so
            that a run that finds its annotation in the cache does not load it at all, without the
            parts that entities do not need; or what ``spacy.load`` gives; or whatever has ``pipe``
            and yields ``doc.ents``.
        labels: the kinds to keep ("PERSON", "ORG"...). None: all but spaCy's dates, times and
            numbers (``NUMBERS``), which name nothing.
        batch_size: texts at a time.

    Raises:
        ValueError: there is no pipeline of this name; a batch_size below 1. TypeError: labels in
            one string. ModuleNotFoundError: spaCy is not installed.

    Examples:
        >>> import spacy
        >>> from maskft.annotate import SpacyEntities
        >>> pipeline = spacy.blank("en")
        >>> ruler = pipeline.add_pipe("entity_ruler")
        >>> ruler.add_patterns([{"label": "GPE", "pattern": "Norway"}])
        >>> SpacyEntities(pipeline)(["born in Norway"])
        [[(8, 14)]]
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
        return _spacy_entities, (named, self._state, self.labels, self.batch_size, code_digest())

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
    pipeline: Any, state: Any, labels: tuple[str, ...] | None, batch_size: int, code: str
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
    """Hash the files of a folder."""
    found = blake2b(digest_size=16)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            found.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
            found.update(path.read_bytes())
    return found.hexdigest()


def _load_pipeline(name: str) -> Any:
    """Load a pipeline without the parts that its entities do not need."""
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
