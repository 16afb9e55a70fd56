"""A small corpus, a small WordPiece tokenizer for it and a small model: nothing is downloaded."""

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast, set_seed

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "masked language models predict the words that were hidden from them",
    "antidisestablishmentarianism is a long word and so is internationalisation",
    "a seed and an epoch and a sample and a position make a mask",
    "whole words are masked together, pieces and all",
] * 4
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def pieces() -> list[str]:
    """Short words whole, long ones in pieces of four letters, and every single character."""
    found = set("abcdefghijklmnopqrstuvwxyz0123456789,.!-'")
    found |= {f"##{c}" for c in found if c.isalnum()}
    for word in " ".join(CORPUS).split():
        if len(word) <= 6:
            found.add(word)
        else:
            found |= {word[:4], *(f"##{word[i : i + 4]}" for i in range(4, len(word), 4))}
    return sorted(found)


def build_wordpiece() -> PreTrainedTokenizerFast:
    """Not trained, because training breaks ties in another way in every process."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *pieces()])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def build_byte_level() -> PreTrainedTokenizerFast:
    """RoBERTa's kind: byte-level BPE that marks spaces, without token types; a token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", cls_token="<s>",
        sep_token="</s>", unk_token="<unk>", pad_token="<pad>", mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def build_bert(tokenizer: PreTrainedTokenizerFast) -> BertForMaskedLM:
    set_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    return BertForMaskedLM(config)
