"""Entities and weights of words: spans to tokens, and the libraries that find them, by stand-ins
with the interface of each (what the real ones find is in docs/strategies.md)."""

import math
import pickle
from types import SimpleNamespace

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from maskft.annotate import (
    Entities,
    Gazetteer,
    JiebaWords,
    Keywords,
    SpacyEntities,
    Together,
    WordIds,
    WordWeights,
    YakeWeights,
    entity_ids,
    entity_ids_from_tokens,
    tfidf_weights,
    token_weights,
)
from maskft.data import tokenize

TEXT = "New York City is in New York"
OFFSETS = [
    (0, 0),
    (0, 3),
    (4, 8),
    (9, 13),
    (14, 16),
    (17, 19),
    (20, 23),
    (24, 26),
    (26, 28),
    (0, 0),
]


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], [-1] * 10),
        ([(0, 13)], [-1, 0, 0, 0, -1, -1, -1, -1, -1, -1]),
        ([(20, 28), (0, 13)], [-1, 0, 0, 0, -1, -1, 1, 1, 1, -1]),  # numbered as in the text
        ([(0, 8), (0, 13), (4, 13)], [-1, 0, 0, 0, -1, -1, -1, -1, -1, -1]),  # nested: the longest
        ([(0, 8), (4, 16)], [-1, -1, 0, 0, 0, -1, -1, -1, -1, -1]),  # crossing: the longest
        ([(4, 12), (0, 8)], [-1, 0, 0, -1, -1, -1, -1, -1, -1, -1]),  # of one length: the first
        ([(0, 3), (4, 8)], [-1, 0, 1, -1, -1, -1, -1, -1, -1, -1]),  # side by side
        ([(25, 27)], [-1, -1, -1, -1, -1, -1, -1, 0, 0, -1]),  # cuts two tokens: both, whole
        ([(3, 9)], [-1, -1, 0, -1, -1, -1, -1, -1, -1, -1]),  # space at its ends
        ([(3, 4), (5, 5)], [-1] * 10),  # nothing but space, and nothing
    ],
)
def test_spans_become_whole_tokens(spans, expected):
    assert entity_ids(OFFSETS, spans, TEXT) == expected


@pytest.mark.parametrize("span", [(-1, 3), (3, 2), (0, 29), (40, 50)])
def test_spans_outside_the_text_are_refused(span):
    with pytest.raises(ValueError, match=r"is not within the text of 28 characters 'New York"):
        entity_ids(OFFSETS, [span], TEXT)


def test_a_pair_of_texts_is_refused():
    with pytest.raises(ValueError, match="a pair of texts"):
        entity_ids([(0, 3), (4, 8), (0, 3)], [], TEXT)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_entities_never_overlap_and_the_longest_stays(data):
    spans = data.draw(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=8))
    spans = [(min(s), max(s)) for s in spans if s[0] != s[1]]
    row = entity_ids_from_tokens(12, spans)
    found = {n: [i for i, e in enumerate(row) if e == n] for n in set(row) - {-1}}
    assert sorted(found) == list(range(len(found)))
    places = [(tokens[0], tokens[-1] + 1) for _, tokens in sorted(found.items())]
    assert places == sorted(places)
    assert set(places) <= set(spans)
    assert all(len(found[n]) == end - begin for n, (begin, end) in enumerate(places))
    if spans:
        assert max(e - b for b, e in spans) == max(e - b for b, e in places)
    for begin, end in spans:  # what was dropped lost a token to one at least as long
        assert any(b < end and begin < e and e - b >= end - begin for b, e in places)


@pytest.mark.parametrize("span", [(-1, 3), (3, 3), (5, 4), (0, 13)])
def test_spans_outside_the_row_are_refused(span):
    with pytest.raises(ValueError, match="is not within the row of 12 tokens"):
        entity_ids_from_tokens(12, [span])


def test_weights_go_to_tokens():
    weights = token_weights(OFFSETS, [(0, 3, 2.0), (24, 28, 3.0), (26, 28, 5.0)], default=0.5)
    assert weights == [0.5, 2.0, 0.5, 0.5, 0.5, 0.5, 0.5, 3.0, 5.0, 0.5]
    assert token_weights(OFFSETS, [(0, 3, 2.0), (4, 8, 0.0)])[:4] == [2.0, 2.0, 0.0, 2.0]
    assert token_weights(OFFSETS, []) == [1.0] * 10
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="must not be negative"):
            token_weights(OFFSETS, [(0, 3, bad)])


@pytest.mark.parametrize(
    ("names", "text", "found"),
    [
        (["New York", "New York City"], TEXT, ["New York City", "New York"]),
        (["York"], "Yorkshire, York; New-York", ["York", "York"]),  # whole words
        (["new york"], TEXT, []),
        (["U.S.", "AT&T"], "AT&T of the U.S. and AT and T", ["AT&T", "U.S."]),
        (["a b c", "b"], "a b d a b c", ["b", "a b c"]),  # steps back after a failed long name
        (["北京", "北京大学"], "我在北京大学学习，不在北京。", ["北京大学", "北京"]),
        (["Zoë"], "Zoë and Zo", ["Zoë"]),
        (["x", "  "], "", []),
    ],
)
def test_a_gazetteer_finds_the_longest_names(names, text, found):
    assert [text[b:e] for b, e in Gazetteer(names)([text])[0]] == found


def test_a_gazetteer_that_ignores_case_and_one_without_names():
    assert Gazetteer(["new york"], ignore_case=True)([TEXT]) == [[(0, 8), (20, 28)]]
    with pytest.raises(ValueError, match="the list of names is empty"):
        Gazetteer(["", " "])


class Pipeline:
    """spaCy's: ``pipe`` yields documents whose ``ents`` know their characters and label."""

    def pipe(self, texts, batch_size):
        assert batch_size == 64
        for text in texts:
            at = text.find("fox")
            ents = [SimpleNamespace(start_char=at, end_char=at + 3, label_="ANIMAL")]
            yield SimpleNamespace(ents=ents if at >= 0 else [])


class Segmenter:
    """jieba's: ``tokenize`` yields words with their places."""

    words = ("我们", "学习", "中文", "模型")

    def tokenize(self, text):
        at = 0
        while at < len(text):
            word = next((w for w in self.words if text.startswith(w, at)), text[at])
            yield word, at, at + len(word)
            at += len(word)


class Vectorizer:
    """scikit-learn's TfidfVectorizer, after ``fit``."""

    def fit(self, texts):
        words = sorted({word for text in texts for word in text.split()})
        self.vocabulary_ = {word: i for i, word in enumerate(words)}
        self.idf_ = [1.0 + i for i in range(len(words))]


class Extractor:
    """yake's KeywordExtractor."""

    def extract_keywords(self, text):
        return [("Fox", 0.01), ("quick", 0.5), ("odd", 3.0)]


def test_what_libraries_find_becomes_spans():
    texts = ["the quick fox", "no animal"]
    assert SpacyEntities(Pipeline())(texts) == [[(10, 13)], []]
    assert SpacyEntities(Pipeline(), labels=("PERSON",))(texts) == [[], []]
    assert JiebaWords(Segmenter())(["我们学习 了"]) == [[(0, 2), (2, 4), (5, 6)]]
    tfidf = tfidf_weights(["the fox the dog", "the end"], Vectorizer())
    assert tfidf(["The the fox, cat"]) == [[(0, 3, 8.0), (4, 7, 8.0), (8, 11, 3.0)]]
    yake = YakeWeights(Extractor())(["The quick FOX is odd"])[0]
    assert [(b, e) for b, e, _ in yake] == [(4, 9), (10, 13), (17, 20)]
    assert yake[1][2] > yake[0][2] > yake[2][2] > 0


def test_rows_of_a_long_text_get_their_part(tokenizer):
    texts = Dataset.from_dict({"text": ["the quick brown fox jumps over the lazy dog", "a seed"]})
    annotator = Together(
        (Entities(Gazetteer(["brown fox jumps", "seed"])), Keywords(WordWeights({"fox": 7.0})))
    )
    rows = tokenize(texts, tokenizer, 6, annotator)
    shown = [
        [(tokenizer.convert_ids_to_tokens(i), e, w) for i, e, w in zip(*columns, strict=True)]
        for columns in zip(
            rows["input_ids"], rows["entity_ids"], rows["keyword_weights"], strict=True
        )
    ]
    assert len(shown) == 4
    entities = [[token for token, e, _ in row if e == 0] for row in shown]
    assert entities == [["brown", "fox"], ["jumps"], [], ["seed"]]
    weights = {token: w for row in shown for token, _, w in row if not token.startswith("[")}
    assert weights["fox"] == 7.0
    assert weights["quick"] == 7.0  # the least that the text has
    assert weights["seed"] == 1.0


def test_annotation_is_cached(tokenizer):
    """``datasets`` keeps what it has worked out under a name made of the annotator."""
    texts = Dataset.from_dict({"text": ["the quick brown fox"]})
    names = [["fox"], ["fox"], ["quick"]]
    rows = [tokenize(texts, tokenizer, 8, Entities(Gazetteer(n))) for n in names]
    assert rows[0]._fingerprint == rows[1]._fingerprint != rows[2]._fingerprint
    annotator = Entities(Gazetteer(["fox"]))
    assert pickle.loads(pickle.dumps(annotator)).find(["a fox"]) == [[(2, 5)]]


def test_chinese_words_are_units():
    """Characters are words for the vocabulary; jieba's words are for ``word_ids``."""
    text = "我们在学习中文模型"
    encoded = {"offset_mapping": [[(0, 0), *[(i, i + 1) for i in range(9)], (0, 0)]]}
    row = WordIds(JiebaWords(Segmenter())).columns([text], encoded)["word_ids"][0]
    assert row == [-1, 0, 0, 1, 2, 2, 3, 3, 4, 4, -1]
    row = WordIds(lambda texts: [[(0, 2)]]).columns([text], encoded)["word_ids"][0]
    assert row[:4] == [-1, 0, 0, 14]
    assert len(set(row[3:10])) == 7  # each of the others on its own


def test_offsets_are_needed(tokenizer):
    encoded = tokenizer(["a seed"])
    with pytest.raises(ValueError, match="return_offsets_mapping=True"):
        Entities(Gazetteer(["seed"])).columns(["a seed"], encoded)
