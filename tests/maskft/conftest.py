"""Fixtures: small tokenizers and models, made here."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from transformers import BertForMaskedLM, PreTrainedTokenizerFast

from tests.support.small import CORPUS, build_bert, build_wordpiece


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return build_wordpiece()


@pytest.fixture
def rows(tokenizer: PreTrainedTokenizerFast) -> list[dict[str, list[int]]]:
    """Ragged rows, as Trainer hands them over: no offsets, no special tokens mask."""
    return [dict(tokenizer(text)) for text in CORPUS]


@pytest.fixture
def tiny_bert(tokenizer: PreTrainedTokenizerFast) -> BertForMaskedLM:
    return build_bert(tokenizer)
