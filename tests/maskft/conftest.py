"""Fixtures: small tokenizers and models, made here."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from small import CORPUS, build_wordpiece
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast, set_seed


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return build_wordpiece()


@pytest.fixture
def rows(tokenizer: PreTrainedTokenizerFast) -> list[dict[str, list[int]]]:
    """Ragged rows, as Trainer hands them over: no offsets, no special tokens mask."""
    return [dict(tokenizer(text)) for text in CORPUS]


@pytest.fixture
def tiny_bert(tokenizer: PreTrainedTokenizerFast) -> BertForMaskedLM:
    set_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    return BertForMaskedLM(config)
