"""Tokenizers of the families that differ in how they mark words, made by hand."""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<s>", "</s>", "<pad>", "<mask>", "<unk>"]


def wrapped(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, mask_token="<mask>", pad_token="<pad>", unk_token="<unk>"
    )


def byte_level(
    *words: str, trim_offsets: bool = True, prefix: bool = False, suffix: str | None = None
) -> PreTrainedTokenizerFast:
    """Every byte, and ``words`` in one token each, with the space before them where one is given.

    Args:
        trim_offsets: False: offsets begin at the space, as GPT-2's, DeBERTa's and ModernBERT's do.
        suffix: CLIP's kind, which marks the ends of words.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    for character in alphabet if suffix else ():
        vocabulary[character + suffix] = len(vocabulary)
    merges = []
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for word in words:
        (pieces, _), *_ = splitter.pre_tokenize_str(word)
        for end in range(2, len(pieces) + 1):
            if pieces[:end] not in vocabulary:
                vocabulary[pieces[:end]] = len(vocabulary)
                merges.append((pieces[: end - 1], pieces[end - 1]))
    options = {"end_of_word_suffix": suffix} if suffix else {}
    backend = Tokenizer(models.BPE(vocabulary, merges, **options))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=prefix, trim_offsets=trim_offsets
    )
    if suffix:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    backend.decoder = decoders.ByteLevel()
    return wrapped(backend)


def sentencepiece(*pieces: str, split: bool = True) -> PreTrainedTokenizerFast:
    """Unigram pieces (``▁`` for a space), and bytes for what they lack."""
    known = [(token, 0.0) for token in SPECIAL]
    known += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    known += [("▁", -9.0), *((piece, -1.0) for piece in pieces)]
    backend = Tokenizer(models.Unigram(known, unk_id=4, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=split)
    backend.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]
    )
    return wrapped(backend)


def wordpiece(*pieces: str, split: str | None = None) -> PreTrainedTokenizerFast:
    """Multilingual BERT's kind; ``split``: a pattern that takes text apart before the pieces."""
    letters = sorted({character for piece in pieces for character in piece.removeprefix("##")})
    known = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *pieces]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(known))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    backend.pre_tokenizer = (
        pre_tokenizers.BertPreTokenizer()
        if split is None
        else pre_tokenizers.Split(split, "isolated")
    )
    backend.decoder = decoders.WordPiece()
    return wrapped(backend)
