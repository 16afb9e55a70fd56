"""Whole words from a vocabulary, for every family of tokenizers, each trained here."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from maskft.strategy.words import ENDS, STARTS, word_table
from maskkernels import units_from_offsets, units_from_word_ids, word_units
from tests.support.small import CORPUS, build_wordpiece

TEXT = [*CORPUS, "我们在学习中文模型", "日本語のテスト です", "a\nb\tc d  e", "hello, world!"]
ALPHABET = pre_tokenizers.ByteLevel.alphabet()
SPECIAL = ["<s>", "</s>", "<pad>", "<mask>", "<unk>"]


def wrap(backend):
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, mask_token="<mask>", pad_token="<pad>", unk_token="<unk>"
    )


def byte_level(add_prefix_space):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(vocab_size=330, initial_alphabet=ALPHABET, special_tokens=SPECIAL),
    )
    return wrap(backend)


def metaspace(model, scheme="always"):
    if model == "unigram":
        backend = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(vocab_size=150, unk_token="<unk>", special_tokens=SPECIAL)
    else:
        backend = Tokenizer(models.BPE(unk_token="<unk>"))
        trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=SPECIAL)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    backend.train_from_iterator(TEXT, trainer)
    return wrap(backend)


def llama_like():
    """Spaces by normalizer instead of pre-tokenizer, bytes for what the vocabulary lacks."""
    pieces = {token: i for i, token in enumerate(SPECIAL)}
    pieces |= {f"<0x{b:02X}>": len(pieces) + b for b in range(256)}
    for piece in ["▁", *"abcdefghijklmnopqrstuvwxyz", "▁t", "▁th", "▁the", "qu", "▁qu"]:
        pieces.setdefault(piece, len(pieces))
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("q", "u"), ("▁", "qu")]
    backend = Tokenizer(models.BPE(pieces, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return wrap(backend)


def suffixed():
    backend = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(vocab_size=120, end_of_word_suffix="</w>", special_tokens=SPECIAL),
    )
    return wrap(backend)


def word_level():
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.train_from_iterator(TEXT, trainers.WordLevelTrainer(special_tokens=SPECIAL))
    return wrap(backend)


SPACED = {
    "byte-level": lambda: byte_level(False),
    "byte-level, prefix space": lambda: byte_level(True),
    "unigram": lambda: metaspace("unigram"),
    "unigram, first": lambda: metaspace("unigram", "first"),
    "unigram, never": lambda: metaspace("unigram", "never"),
    "sentencepiece bpe": lambda: metaspace("bpe"),
    "byte fallback": llama_like,
    "suffix": suffixed,
    "word level": word_level,
}


def words(tokenizer, text, table=None):
    """The pieces of each word, as the units group them."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    input_ids = torch.tensor([ids])
    units = word_units(input_ids, word_table(tokenizer) if table is None else table)
    groups = {}
    for unit, i in zip(units[0].tolist(), ids, strict=True):
        groups.setdefault(unit, []).append(i)
    assert list(groups) == list(range(len(groups)))
    return list(groups.values())


def texts(tokenizer, groups):
    return [tokenizer.decode(ids).strip() for ids in groups]


@pytest.mark.parametrize("family", SPACED)
def test_words_are_what_stands_between_spaces(family):
    tokenizer = SPACED[family]()
    for text in (
        "the quick brown fox",
        "internationalisation is predicted",
        "a mask, and an epoch",
    ):
        if family == "word level":
            text = "the quick brown mask"
        groups = words(tokenizer, text)
        assert len(groups) == len(text.split())
        if family not in ("suffix", "byte fallback"):
            assert texts(tokenizer, groups) == text.split()
    if family != "word level":
        assert max(len(group) for group in groups) > 1


@pytest.mark.parametrize("side", ["false", "true"])
@settings(max_examples=60, deadline=None)
@given(text=st.lists(st.text("abcdefgh,.!-'", min_size=1, max_size=9), min_size=1, max_size=7))
def test_byte_level_words_are_those_of_split(side, text):
    tokenizer = TOKENIZERS[side]
    groups = words(tokenizer, " ".join(text))
    assert texts(tokenizer, groups) == text


TOKENIZERS = {"false": byte_level(False), "true": byte_level(True)}


def test_wordpiece_words_are_whole_and_punctuation_stands_alone():
    tokenizer = build_wordpiece()
    groups = words(tokenizer, "internationalisation, masked")
    assert len(groups) == 3
    assert len(groups[0]) > 1
    assert tokenizer.convert_ids_to_tokens(groups[1]) == [","]


def test_another_prefix_of_wordpiece_is_read_from_the_model():
    backend = Tokenizer(
        models.WordPiece(
            {"<unk>": 0, "mask": 1, "@ing": 2, "##": 3}, unk_token="<unk>",
            continuing_subword_prefix="@",
        )
    )  # fmt: skip
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    assert words(wrap(backend), "masking mask ##") == [[1, 2], [1], [3]]


@pytest.mark.parametrize("family", ["byte-level", "unigram", "sentencepiece bpe", "byte fallback"])
def test_chinese_characters_are_words(family):
    """No token that begins with a character goes on with the word before it."""
    tokenizer = SPACED[family]()
    groups = words(tokenizer, "我们 学龍")  # the last one is not in the corpus
    assert len(groups) >= 3
    decoded = [tokenizer.decode(ids).strip() for ids in groups]
    assert [c for c in decoded if c] == [c for c in decoded if c and "\ufffd" not in c]


def test_a_character_in_several_byte_tokens_is_one_word():
    tokenizer = byte_level(False)
    groups = words(tokenizer, "龍虎鳳")
    assert texts(tokenizer, groups) == ["龍", "虎", "鳳"]
    assert all(len(group) > 1 for group in groups)


def test_line_breaks_and_tabs_end_words():
    tokenizer = byte_level(False)
    assert texts(tokenizer, words(tokenizer, "the\nfox\tdog")) == ["the", "", "fox", "", "dog"]


def test_an_added_token_is_a_word():
    tokenizer = byte_level(False)
    tokenizer.add_tokens(["covid19"])
    new = tokenizer.convert_tokens_to_ids("covid19")
    groups = words(tokenizer, "the covid19ing mask")
    assert [new] in groups
    assert int(word_table(tokenizer)[new]) == STARTS | ENDS


class Slow:
    """A tokenizer without a backend: only its vocabulary is known."""

    all_special_tokens = ("<unk>",)

    def __init__(self, *tokens):
        self.tokens = ["<unk>", *tokens]

    def __len__(self):
        return len(self.tokens)

    def get_vocab(self):
        return {token: i for i, token in enumerate(self.tokens)}


@pytest.mark.parametrize(
    ("tokens", "flags"),
    [
        (("mask", "##ing", "fox"), [STARTS, 0, STARTS]),
        (("▁mask", "ing", "▁fox", "中"), [STARTS, 0, STARTS, STARTS | ENDS]),
        (("Ġmask", "ing", "Ċ", "ä¸Ń"), [STARTS, 0, STARTS | ENDS, STARTS | ENDS]),
        (("mask</w>", "ing", "fox</w>"), [ENDS, 0, ENDS]),
        (("mask@@", "ing", "fox"), [0, ENDS, ENDS]),
        (("a", " ", "é"), [0, STARTS, 0]),
    ],
)
def test_a_vocabulary_alone_tells_by_its_marks(tokens, flags):
    assert word_table(Slow(*tokens))[1:].tolist() == flags


def test_a_vocabulary_without_marks_is_refused():
    with pytest.raises(ValueError, match=r'no word marks.*strategy="random".*word_ids'):
        word_table(Slow(*"ACDEFGHIKLMNPQRSTVWY"))
    backend = Tokenizer(models.WordLevel({c: i for i, c in enumerate("ACDEFG")}, unk_token="A"))
    with pytest.raises(ValueError, match="no word marks"):
        word_table(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_the_table_covers_ids_beyond_the_length():
    slow = Slow("mask", "##ing")
    slow.get_vocab = lambda: {"<unk>": 0, "mask": 1, "##ing": 9}
    table = word_table(slow)
    assert table.dtype == torch.uint8
    assert table.shape == (10,)


def test_offsets_give_the_words_of_transformers():
    g = torch.Generator().manual_seed(0)
    gaps = torch.randint(0, 2, (6, 15), generator=g)
    ends = (torch.randint(1, 4, (6, 15), generator=g) + gaps).cumsum(1)
    starts = torch.cat([torch.zeros(6, 1, dtype=torch.int64), ends[:, :-1]], 1) + gaps
    special = torch.rand(6, 15, generator=g) < 0.2
    offsets = torch.stack([starts, ends], -1)
    stock, _ = DataCollatorForLanguageModeling._calc_word_ids_and_prob_mask(
        offsets.numpy(), special.long().numpy()
    )
    ours = units_from_offsets(special.long(), offsets, special_tokens_mask=special)
    assert torch.equal(ours, torch.where(special, -1, torch.from_numpy(stock) - 1))


def test_word_ids_change_where_words_do():
    ids = torch.tensor([[-1, 0, 0, 1, 2, 2, -1, 3]])
    special = torch.tensor([[1, 0, 0, 0, 0, 1, 0, 0]])
    units = units_from_word_ids(ids, ids, special_tokens_mask=special)
    assert units.tolist() == [[-1, 0, 0, 1, 2, -1, -1, 3]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=12), st.integers(0, 3), st.integers(0, 3))
def test_padding_does_not_change_the_numbers(row, left, right):
    table = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0, 1], dtype=torch.uint8)
    padded = torch.tensor([[4] * left + row + [5] * right], dtype=torch.int64)
    real = torch.zeros_like(padded, dtype=torch.bool)
    real[:, left : left + len(row)] = True
    alone = word_units(torch.tensor([row], dtype=torch.int64), table)
    units = word_units(padded, table, attention_mask=real)
    assert units[:, left : left + len(row)].tolist() == alone.tolist()
    assert (units[~real] == -1).all()
