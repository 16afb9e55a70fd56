"""Words do not depend on the columns of the rows, nor on how a vocabulary cuts characters."""

import itertools
import pickle
import unicodedata
import warnings
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer, CanineTokenizer

from maskft import DataCollatorForLanguageModeling, DataCollatorWithPacking
from maskft.strategy import NGram, Tokens
from maskft.strategy.word_marks import LONG, WordMarks
from maskft.strategy.words import word_table
from maskkernels import units_from_offsets, word_units
from maskkernels.units import ENDS, STARTS
from tests.support.families import byte_level, sentencepiece, wordpiece
from tests.support.small import build_wordpiece

THAI = "\u0e01\u0e23\u0e38\u0e07\u0e40\u0e17\u0e1e"
KHMER = "\u1787\u17c6\u179a\u17b6\u1794\u179f\u17bd\u179a"
BURMESE = "\u1019\u1004\u103a\u1039\u1002\u101c\u102c\u1015\u102b"
SUBSCRIPTS = "\u1780\u17d2\u179a\u17bb\u1784\u1797\u17d2\u1793\u17c6\u17d2\u1796\u17c1\u1789"
VOWEL_AM = "\u0e19\u0e49\u0e33\u0e04\u0e33\u0e99\u0eb3"
LAO = "\u0eaa\u0eb0\u0e9a\u0eb2\u0e8d\u0e94\u0eb5"
TIBETAN = "\u0f56\u0f7c\u0f51\u0f0b\u0f66\u0f90\u0f51"
HINDI = "\u0939\u093f\u0928\u094d\u0926\u0940 \u092e\u0947\u0902"
BYTES = byte_level()
BYT5 = ByT5Tokenizer(extra_ids=0)
PIECES = sentencepiece("▁the", "▁fox", "\u0e01\u0e23\u0e38", "ing")


def encoded(tokenizer, text, **options):
    return tokenizer(text, add_special_tokens=False, **options)


@cache
def marks_of(tokenizer):
    return WordMarks(tokenizer)


def words(tokenizer, text, ids=None):
    """The text of each word, as the units group its tokens."""
    ids = encoded(tokenizer, text)["input_ids"] if ids is None else ids
    units = marks_of(tokenizer).units(torch.tensor([ids]))[0].tolist()
    assert sorted(set(units)) == list(range(max(units) + 1))
    return [
        tokenizer.decode([i for i, unit in zip(ids, units, strict=True) if unit == number]).strip()
        for number in range(max(units) + 1)
    ]


def clusters(text):
    """Every letter with the marks and the subscript letters behind it."""
    found = []
    for character in text:
        is_mark = unicodedata.category(character).startswith("M") or character in "\u0e33\u0eb3"
        if found and (is_mark or found[-1][-1] in "\u1039\u17d2"):
            found[-1] += character
        else:
            found.append(character)
    return found


@pytest.mark.parametrize(
    "text", ["the quick fox", "a fox, the na\u00efve fox", "fox \U0001f600 fox"]
)
@pytest.mark.parametrize(
    "tokenizer",
    [
        byte_level(" the", " fox", " quick", "na", trim_offsets=False),
        byte_level(" the", " fox", trim_offsets=False, prefix=True),
        byte_level(" the", " fox", trim_offsets=True),
        PIECES,
    ],
    ids=["space in offsets", "prefix space", "trimmed", "metaspace"],
)
@pytest.mark.parametrize("strategy", ["whole_word", "span", NGram(2)])
def test_words_do_not_depend_on_an_offset_mapping(tokenizer, text, strategy):
    rows = [encoded(tokenizer, text, return_offsets_mapping=True) for _ in range(4)]
    collator = DataCollatorForLanguageModeling(
        tokenizer, strategy=strategy, rng="sample", seed=3, mlm_probability=0.5
    )
    plain = collator([{"input_ids": row["input_ids"]} for row in rows])
    found = collator([{k: row[k] for k in ("input_ids", "offset_mapping")} for row in rows])
    assert torch.equal(found["labels"], plain["labels"])
    assert len(words(tokenizer, text)) == len(text.split())


def test_given_word_ids_win_over_the_vocabulary():
    tokenizer = build_wordpiece()
    ids = torch.tensor([encoded(tokenizer, "the fox the")["input_ids"]])
    given = torch.zeros_like(ids)
    marks = WordMarks(tokenizer)
    tokens = Tokens(ids, 0.1, 0, 0, word_ids=given, word_table=lambda: marks)
    assert tokens.words().tolist() == [[0, 0, 0]]


def test_offsets_serve_where_the_vocabulary_has_no_marks():
    class Protein:
        all_special_tokens = ()

        def __len__(self):
            return 4

        def get_vocab(self):
            return {"A": 0, "C": 1, "D": 2, "E": 3}

    marks = WordMarks(Protein())
    ids = torch.tensor([[0, 1, 2, 3]])
    offsets = torch.tensor([[[0, 1], [1, 2], [3, 4], [4, 5]]])
    tokens = Tokens(ids, 0.1, 0, 0, offset_mapping=offsets, word_table=lambda: marks)
    assert tokens.words().tolist() == [[0, 0, 1, 1]]
    with pytest.raises(ValueError, match=r"vocabulary of Protein has no word marks.*word_ids"):
        Tokens(ids, 0.1, 0, 0, word_table=lambda: marks).words()


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_offsets_that_overlap_are_one_word(backend):
    """Bytes of a character share its offsets; a second text begins in front of the first."""
    offsets = [(0, 2), (2, 3), (2, 3), (3, 5), (6, 7), (6, 7), (6, 7), (0, 2), (2, 4), (5, 6)]
    ids = torch.zeros(1, len(offsets), dtype=torch.int64)
    units = units_from_offsets(ids, torch.tensor([offsets]), backend=backend)
    assert units.tolist() == [[0, 0, 0, 0, 1, 1, 1, 2, 2, 3]]


@pytest.mark.parametrize("tokenizer", [BYTES, BYT5, PIECES], ids=["byte-level", "ByT5", "fallback"])
@pytest.mark.parametrize(
    "text", [THAI[3:], KHMER, SUBSCRIPTS, VOWEL_AM, BURMESE, LAO, TIBETAN], ids=ascii
)
def test_scripts_without_spaces_are_words_by_character(tokenizer, text):
    found = words(tokenizer, f"the {text} fox")
    assert [word for word in found if word] == ["the", *clusters(text), "fox"]


@pytest.mark.parametrize("tokenizer", [BYTES, BYT5], ids=["byte-level", "ByT5"])
@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.text(
            "ab,.\u00e9\u1ea1\u0939\u093f\u2019\U0001f600\uac00\u10d0\u1208", min_size=1, max_size=5
        ),
        min_size=1,
        max_size=4,
    )
)
def test_bytes_of_scripts_with_spaces_do_not_break_words(tokenizer, text):
    assert words(tokenizer, " ".join(text)) == text


@pytest.mark.parametrize("tokenizer", [BYTES, BYT5], ids=["byte-level", "ByT5"])
@settings(max_examples=60, deadline=None)
@given(text=st.text("ab \u00e9\u4e2d\u3042\u0e01\u0e38\u1019\u0939\u10d0\U00020000", min_size=1))
def test_bytes_are_words_as_their_characters_are(tokenizer, text):
    """CANINE's vocabulary has the same text in whole characters."""
    text = " ".join(text.split(" ")).strip()
    if text:
        kept = [word for word in words(CANINE, text) if word]
        assert [word for word in words(tokenizer, text) if word] == kept


CANINE = CanineTokenizer()


def test_a_vocabulary_of_all_of_unicode_is_read():
    table = word_table(CANINE)
    assert table.shape == (0x110000,)
    assert table[0xD800] == 0
    assert table[ord("\u4e2d")] == STARTS | ENDS
    assert table[ord(" ")] == STARTS
    assert table[ord("\u00e9")] == 0  # a character, not a byte
    assert words(CANINE, f"caf\u00e9 {HINDI}") == f"caf\u00e9 {HINDI}".split()


def test_hindi_and_accents_are_words_between_spaces():
    for tokenizer in (BYTES, BYT5):
        assert words(tokenizer, f"na\u00efve {HINDI}") == f"na\u00efve {HINDI}".split()


def test_kana_and_thai_under_wordpiece_are_words_by_character():
    text = "\u3053\u308c\u306f\u30c6\u30b9\u30c8"
    tokenizer = wordpiece("the", "##\u30b9\u30c8", text, *THAI)
    assert words(tokenizer, f"the{text[:4]}")[0].replace(" ", "")[:3] == "the"
    plain = wordpiece("the", *text, *THAI)
    assert [word.strip("# ") for word in words(plain, text)] == list(text)
    assert len(words(plain, THAI)) == len(clusters(THAI))


def test_a_tokenizer_that_finds_japanese_words_keeps_its_own():
    text = "\u3053\u308c\u306f\u30c6\u30b9\u30c8"
    tokenizer = wordpiece(
        *text, *"\u3072\u3089\u304c\u306a\u306e\u3076\u3093\u3067\u3059", split="\u306f"
    )
    assert len(words(tokenizer, text)) == 3  # in front of the particle, it, and behind it


def test_byte_level_words_with_marked_ends():
    tokenizer = byte_level("the", suffix="</w>")
    ids = encoded(tokenizer, "the fox runs")["input_ids"]
    assert len(words(tokenizer, "", ids)) == 3


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text("a \u4e2d\u0e01\u00e9\U0001f600", max_size=6), min_size=1, max_size=4),
    st.data(),
)
def test_words_do_not_depend_on_the_batch(texts, data):
    """Rows cut within characters, alone and together, padded and packed."""
    rows = [encoded(BYTES, text)["input_ids"] for text in texts]
    rows = [row[data.draw(st.integers(0, len(row))) :] for row in rows]
    rows = [row[: data.draw(st.integers(0, len(row)))] for row in rows]
    marks = marks_of(BYTES)
    alone = [marks.units(torch.tensor([row], dtype=torch.int64))[0].tolist() for row in rows]
    longest = max(map(len, rows))
    padded = torch.full((len(rows), longest), 1)
    real = torch.zeros(padded.shape, dtype=torch.bool)
    for b, row in enumerate(rows):
        padded[b, longest - len(row) :] = torch.tensor(row, dtype=torch.int64)
        real[b, longest - len(row) :] = True
    found = marks.units(padded, attention_mask=real)
    assert [found[b][real[b]].tolist() for b in range(len(rows))] == alone
    bounds = torch.tensor([0, *map(len, rows)]).cumsum(0)
    flat = torch.tensor([*itertools.chain.from_iterable(rows)], dtype=torch.int64)
    packed = marks.units(flat, cu_seqlens=bounds)
    assert packed.tolist() == [*itertools.chain.from_iterable(alone)]


def test_ids_outside_the_vocabulary_have_no_marks():
    marks = marks_of(BYTES)
    (cut,) = encoded(BYTES, "\u0e01")["input_ids"][:1]
    ids = torch.tensor([[cut, 10**6, cut, -5, 2**40]])
    assert marks.units(ids).tolist() == [[0, 0, 0, 0, 0]]


def test_ids_that_the_table_is_lengthened_by_are_words():
    marks = WordMarks(BYTES)
    size = marks.table.numel()
    marks.cover(size + 5)
    (cut,) = encoded(BYTES, "\u0e01")["input_ids"][:1]
    (letter,) = encoded(BYTES, "a")["input_ids"]
    row = [letter, size, letter, letter, size + 4, size + 5]
    plain = marks.units(torch.tensor([row]))
    assert plain.tolist() == [[0, 1, 2, 2, 3, 4]]
    assert marks.units(torch.tensor([[cut, cut, *row]]))[0, 2:].tolist() == [0, 1, 2, 2, 3, 4]


def test_batches_without_cut_characters_are_word_units():
    marks = marks_of(BYTES)
    ids = torch.tensor([encoded(BYTES, "the quick fox na\u00efve")["input_ids"]])
    assert torch.equal(marks.units(ids), word_units(ids, marks.table))


def long_rows(count=2, length=100):
    return [{"input_ids": encoded(BYTES, "CC(=O)Oc1ccccc1" * 20)["input_ids"][:length]}] * count


@pytest.mark.parametrize("packed", [False, True])
def test_rows_of_one_word_are_warned_of_once(packed):
    collator = DataCollatorForLanguageModeling(BYTES, strategy="whole_word", seed=1)
    rows = [*long_rows(), {"input_ids": encoded(BYTES, "the quick fox")["input_ids"]}]
    if packed:
        collator = DataCollatorWithPacking(
            BYTES, strategy="whole_word", seed=1, attention="block_diagonal"
        )
    with pytest.warns(
        UserWarning,
        match=r"2 of 3 rows are little more than one word: one word has 100 of the 100 tokens.*"
        r"--words.*NGram.*random",
    ):
        collator(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collator(rows)


def test_long_words_among_others_are_not_warned_of():
    text = "CC(=O)Oc1ccccc1" * 4 + " the quick brown fox" * 6
    rows = [{"input_ids": encoded(BYTES, text)["input_ids"]}]
    short = [{"input_ids": long_rows()[0]["input_ids"][: LONG - 1]}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DataCollatorForLanguageModeling(BYTES, strategy="whole_word")(rows)
        DataCollatorForLanguageModeling(BYTES, strategy="whole_word")(short)
        DataCollatorForLanguageModeling(BYTES, strategy="random")(long_rows())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("packed", [False, True])
def test_characters_are_put_together_in_a_trace(dtype, packed):
    marks = marks_of(BYTES)
    ids = torch.tensor([encoded(BYTES, f"the {THAI} fox")["input_ids"]] * 2, dtype=dtype)
    bounds = None
    if packed:
        bounds, ids = torch.tensor([0, ids.shape[1], ids.numel()]), ids.view(-1)
    torch._dynamo.reset()

    def units(ids, bounds):
        return marks.units(ids, cu_seqlens=bounds)

    compiled = torch.compile(units, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(ids, bounds), units(ids, bounds))


@pytest.mark.parametrize("packed", [False, True])
def test_characters_are_put_together_without_waiting(packed):
    """On meta tensors, whose values cannot be looked at."""
    marks = WordMarks(BYTES, "meta")
    ids = torch.zeros(2, 8, dtype=torch.int64, device="meta")
    bounds = torch.zeros(3, dtype=torch.int64, device="meta") if packed else None
    assert marks._depends_here(ids)
    assert marks._begins(ids.view(-1) if packed else ids, bounds).dtype == torch.bool


def test_words_survive_pickling():
    marks = pickle.loads(pickle.dumps(marks_of(BYTES)))
    ids = torch.tensor([encoded(BYTES, THAI)["input_ids"]])
    assert torch.equal(marks.units(ids), marks_of(BYTES).units(ids))


def test_whole_words_of_canine_are_masked():
    collator = DataCollatorForLanguageModeling(
        CANINE, strategy="whole_word", rng="sample", seed=1, mlm_probability=0.5
    )
    row = CANINE("a seed and an epoch, caf\u00e9 " * 8)
    labels = collator([{"input_ids": row["input_ids"]}])["labels"][0]
    chosen = labels != -100
    spaces = torch.tensor(row["input_ids"]) == ord(" ")
    inside = ~(spaces[1:] | spaces[:-1])
    inside[0] = inside[-1] = inside[-2] = False  # special tokens and the last space
    assert chosen.any()
    assert torch.equal(chosen[1:][inside], chosen[:-1][inside])


@pytest.mark.parametrize("pieces", ["\u1780\u17d2 \u179a\u17bb", "\u1780 \u17d2 \u179a \u17bb"])
@pytest.mark.parametrize("end", ["\u1784", " \u1784", "\u17d2 fox"])
def test_a_subscript_belongs_to_its_cluster_however_tokens_cut_it(pieces, end):
    """A Khmer coeng and the letter behind it; a space behind a coeng begins a word all the same."""
    tokenizer = sentencepiece(*pieces.split(), "\u1784", "\u17d2", "\u2581fox", "\u2581\u1784")
    text = pieces.replace(" ", "") + end
    cluster, _, after = (pieces.replace(" ", "") + end).partition(" ")
    expected = [cluster, after] if after else [cluster[:-1], cluster[-1]]
    assert [word for word in words(tokenizer, text) if word] == expected


def test_canine_keeps_subscripts_together():
    text = SUBSCRIPTS + VOWEL_AM
    tokenizer = CanineTokenizer()
    ids = encoded(tokenizer, text)["input_ids"]
    units = WordMarks(tokenizer).units(torch.tensor([ids]))[0].tolist()
    assert [units.count(n) for n in range(units[-1] + 1)] == [*map(len, clusters(text))]
