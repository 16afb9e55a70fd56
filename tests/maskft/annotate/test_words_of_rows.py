"""Annotation of rows in words, of names in other Unicode forms, and the names of its cache."""

import pickle
import unicodedata

import pytest
from datasets.fingerprint import Hasher
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
    code,
    entity_ids,
    tfidf_weights,
)
from tests.support.families import wordpiece
from tests.support.small import build_byte_level

BEIJING_UNIVERSITY = "\u5317\u4eac\u5927\u5b66"
SENTENCE = "\u6211\u5728" + BEIJING_UNIVERSITY
ROWS = [list(SENTENCE), ["Barack", "Obama", "visits", "\u5317", "\u4eac"]]


@pytest.fixture(scope="module")
def tokenizer():
    return wordpiece(*SENTENCE, "Barack", "Ob", "##ama", "visits")


def in_words(tokenizer, rows, pairs=None):
    return tokenizer(rows, pairs, is_split_into_words=True, return_offsets_mapping=True)


def test_names_are_found_in_rows_of_words(tokenizer):
    """One character a word, and words of several pieces."""
    annotator = Entities(Gazetteer([BEIJING_UNIVERSITY, "Barack Obama"]))
    found = annotator.columns(ROWS, in_words(tokenizer, ROWS))
    assert found == {"entity_ids": [[-1, -1, 0, 0, 0, 0], [0, 0, 0, -1, -1, -1]]}
    words = WordIds(Gazetteer([BEIJING_UNIVERSITY])).columns(ROWS, in_words(tokenizer, ROWS))
    assert words["word_ids"][0] == [6, 7, 0, 0, 0, 0]
    weights = Keywords(WordWeights({"obama": 3.0}), default=1.0)
    found = weights.columns(ROWS, in_words(tokenizer, ROWS))
    assert found == {"keyword_weights": [[1.0] * 6, [1.0, 3.0, 3.0, 1.0, 1.0, 1.0]]}


@pytest.mark.parametrize("build", ["wordpiece", "byte_level"])
def test_pairs_in_words_are_annotated_text_by_text(tokenizer, build):
    tokenizer = tokenizer if build == "wordpiece" else build_byte_level()
    if build == "byte_level":
        tokenizer._tokenizer.pre_tokenizer.add_prefix_space = True
        tokenizer.add_prefix_space = True
    rows, pairs = [["visits", "Barack"]], [["Obama", "Barack"]]
    encoded = in_words(tokenizer, rows, pairs)
    found = Entities(Gazetteer(["Barack"])).columns(rows, encoded, pairs)["entity_ids"][0]
    assert {number for number in found if number >= 0} == {0, 1}
    for number, side in ((0, 0), (1, 1)):
        tokens = [i for i, n in enumerate(found) if n == number]
        assert {encoded.sequence_ids(0)[i] for i in tokens} == {side}
        assert {encoded.word_ids(0)[i] for i in tokens} == {1}


def test_rows_of_a_long_text_in_words(tokenizer):
    encoded = tokenizer(
        ROWS,
        is_split_into_words=True,
        return_offsets_mapping=True,
        truncation=True,
        max_length=4,
        return_overflowing_tokens=True,
    )
    found = Entities(Gazetteer(["visits", "\u5927\u5b66"])).columns(ROWS, encoded)["entity_ids"]
    assert found == [[-1] * 4, [0, 0], [-1, -1, -1, 0], [-1, -1]]


@pytest.mark.parametrize("annotator", [Entities, Keywords, WordIds])
@pytest.mark.parametrize(
    ("texts", "encode", "kind", "message"),
    [
        (
            [SENTENCE, "Barack Obama visits"],
            lambda t: in_words(t, ROWS),
            ValueError,
            r"row 0 was tokenized in words \(is_split_into_words=True\).*give lists of words",
        ),
        (
            ["Barack Obama visits " + SENTENCE],
            lambda t: in_words(t, ROWS[1:]),
            ValueError,
            "row 0 was tokenized in words",
        ),
        (
            ["Barack"],
            lambda t: t("Barack", return_offsets_mapping=True),
            ValueError,
            r"of a single text.*Tokenize a list",
        ),
        (
            ROWS[0],
            lambda t: t(ROWS[0], is_split_into_words=True, return_offsets_mapping=True),
            ValueError,
            r"of a single text.*\[words\]",
        ),
        (ROWS, lambda t: dict(in_words(t, ROWS)), TypeError, "the result of the tokenizer itself"),
        (ROWS[:1], lambda t: in_words(t, ROWS), ValueError, "encoded has 2 rows.*of 1 texts"),
        (
            [["x"], ["y"]],
            lambda t: in_words(t, ROWS),
            ValueError,
            "text 0 is given in 1 words, and a token is of word 1",
        ),
        (
            [["x"], "y"],
            lambda t: in_words(t, ROWS),
            TypeError,
            "strings or lists of words, not both",
        ),
        (
            [["x", 3], ["y"]],
            lambda t: in_words(t, ROWS),
            TypeError,
            r"texts\[0\] must be a text or a list of words, got a int",
        ),
        (
            ["x", "y"],
            lambda t: {"offset_mapping": [[(0, 1)], [None]]},
            ValueError,
            r"row 1 of offset_mapping must hold pairs \(begin, end\), got None",
        ),
    ],
)
def test_texts_that_are_not_those_of_the_rows(tokenizer, annotator, texts, encode, kind, message):
    with pytest.raises(kind, match=message):
        annotator(lambda texts: [[] for _ in texts]).columns(texts, encode(tokenizer))


def test_pairs_that_are_not_as_many_as_the_texts(tokenizer):
    encoded = in_words(tokenizer, ROWS, ROWS)
    with pytest.raises(ValueError, match="there are 2 texts but 1 pairs"):
        Entities(Gazetteer(["x"])).columns(ROWS, encoded, ROWS[:1])


def test_offsets_within_words_are_told_from_a_pair():
    with pytest.raises(ValueError, match=r"offset_mapping goes back.*in words"):
        entity_ids([(0, 3), (3, 4), (0, 2)], [], "abcdefg")


def test_a_first_sign_that_is_several_characters_is_no_text_in_words(tokenizer):
    """One half, as some normalizers take it apart: three words that all begin at 0."""

    class Encoded(dict):
        is_fast = True

        def word_ids(self, row):
            return [*range(len(self["offset_mapping"][row]))]

    encoded = Encoded(offset_mapping=[[(0, 1), (0, 1), (0, 1), (2, 6)]])
    found = Entities(lambda texts: [[(2, 6)]]).columns(["\u00bd cups"], encoded)
    assert found == {"entity_ids": [[-1, -1, -1, 0]]}
    encoded = Encoded(offset_mapping=[[(0, 1), (0, 1), (0, 1)]])
    assert Entities(lambda texts: [[]]).columns(["\u00bd cups"], encoded)


FORMS = ("NFC", "NFD")
NAMES = ["Zo\u00eb", "\uc11c\uc6b8", "Vi\u1ec7t Nam", "\u30d1\u30ea", "\u0995\u09cb"]


@pytest.mark.parametrize("names_form", FORMS)
@pytest.mark.parametrize("text_form", FORMS)
@pytest.mark.parametrize("ignore_case", [False, True])
def test_names_are_found_in_every_unicode_form(names_form, text_form, ignore_case):
    names = [unicodedata.normalize(names_form, name) for name in NAMES]
    text = unicodedata.normalize(text_form, ", ".join(NAMES).replace(" Nam", "  Nam"))
    found = Gazetteer(names, ignore_case=ignore_case)([text])[0]
    shown = [" ".join(unicodedata.normalize("NFC", text[b:e]).split()) for b, e in found]
    assert shown == NAMES


@settings(max_examples=200, deadline=None)
@given(
    st.text("aZ\u00eb\u0308\u0301\u0323\uc11c\u1109\u1165\u11bc \u30cf\u309a", max_size=12),
    st.booleans(),
)
def test_other_forms_are_found_where_the_composed_form_is(text, ignore_case):
    composed = unicodedata.normalize("NFC", text)
    gazetteer = Gazetteer(
        ["Z", "a", "\u00eb", "\uc11c", "\u30d1", "Z\u0308"], ignore_case=ignore_case
    )
    (found,), (expected,) = gazetteer([text]), gazetteer([composed])
    assert [unicodedata.normalize("NFC", text[b:e]) for b, e in found] == [
        composed[b:e] for b, e in expected
    ]


def test_affixes_of_names():
    text = "\uc11c\uc6b8\uc740 \uc11c\uc6b8\uc5d0\uc11c \uc11c\uc6b8\ub300\ub294"
    assert Gazetteer(["\uc11c\uc6b8"])([text]) == [[]]
    particles = ["\uc740", unicodedata.normalize("NFD", "\uc5d0\uc11c")]
    assert Gazetteer(["\uc11c\uc6b8"], suffixes=particles)([text]) == [[(0, 2), (4, 6)]]
    arabic = "\u0648\u0645\u0635\u0631 \u0628\u0645\u0635\u0631 \u0639\u0645\u0635\u0631"
    gazetteer = Gazetteer(["\u0645\u0635\u0631"], prefixes=["\u0648", "\u0628"])
    assert gazetteer([arabic]) == [[(1, 4), (6, 9)]]
    copy = pickle.loads(pickle.dumps(gazetteer))
    assert copy([arabic]) == gazetteer([arabic])
    assert Hasher.hash(copy) == Hasher.hash(gazetteer) != Hasher.hash(Gazetteer(gazetteer.names))
    for wrong, kind in (("\u0648", "prefixes must be a list"), ([3], "prefixes must be strings")):
        with pytest.raises(TypeError, match=kind):
            Gazetteer(["x"], prefixes=wrong)


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_found_in_every_unicode_form(form):
    weights = WordWeights({unicodedata.normalize(form, "zo\u00eb"): 2.0})
    for text in ("Zo\u00eb", "Zoe\u0308"):
        assert weights([text]) == [[(0, len(text), 2.0)]]


def test_vowel_signs_are_within_words():
    hindi = "\u0939\u093f\u0928\u094d\u0926\u0940"
    assert WordWeights({hindi: 2.0})([f"{hindi}, {hindi}"]) == [[(0, 6, 2.0), (8, 14, 2.0)]]
    assert tfidf_weights([hindi]).weights.keys() == {hindi}


class Extractor:
    def extract_keywords(self, text):
        return [("fox", 0.1)]


class Segmenter:
    def tokenize(self, text):
        return []


class Documents:
    def pipe(self, texts, batch_size):
        return ()


@pytest.mark.parametrize(
    "annotator",
    [
        Gazetteer(["fox"]),
        Entities(Gazetteer(["fox"])),
        Entities(len),
        Keywords(WordWeights({"fox": 1.0})),
        WordWeights({"fox": 1.0}),
        SpacyEntities(Documents()),
        Entities(SpacyEntities(Documents())),
        YakeWeights(Extractor()),
        WordIds(JiebaWords(Segmenter())),
        Together((Entities(len),)),
    ],
    ids=lambda annotator: type(annotator).__name__,
)
def test_other_code_annotates_again(annotator, monkeypatch):
    before = Hasher.hash(annotator)
    assert Hasher.hash(annotator) == before
    copy = pickle.loads(pickle.dumps(annotator))
    assert Hasher.hash(copy) == before
    assert type(copy) is type(annotator)
    for module in ("code", "gazetteer", "weights", "spacy"):
        monkeypatch.setattr(f"maskft.annotate.{module}.code_digest", lambda: "another version")
    assert Hasher.hash(annotator) != before


def test_the_digest_follows_the_sources(tmp_path, monkeypatch):
    for name in ("maskft/annotate/code.py", "maskft/strategy/words.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("first")
    monkeypatch.setattr(code, "__file__", str(tmp_path / "maskft/annotate/code.py"))
    digest = code.code_digest.__wrapped__
    before = digest()
    assert digest() == before
    (tmp_path / "maskft/strategy/words.py").write_text("second")
    assert digest() != before
