"""Scores against a plain loop over copies with one hidden unit each."""

import math

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    EsmConfig,
    EsmForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from maskft import score
from maskft.insight.copies import Copy, batches
from maskft.insight.windows import choose_windows
from tests.support.small import CORPUS, build_byte_level, build_wordpiece

TEXTS = [*CORPUS[:5], "fox"]


@torch.no_grad()
def one_by_one(model, tokenizer, text, hides):
    """Log-probability of each token of a text, a copy at a time: hides(i, words) are hidden."""
    model.eval()
    encoded = tokenizer(text, return_tensors="pt")
    ids = encoded["input_ids"]
    words = encoded.word_ids(0)
    found = []
    for i, word in enumerate(words):
        if word is None:
            continue
        copy = ids.clone()
        copy[0, hides(i, words)] = tokenizer.mask_token_id
        logits = model(**{**encoded, "input_ids": copy}).logits[0, i].double()
        found.append(float(logits.log_softmax(-1)[ids[0, i]]))
    return found


HIDES = {
    "original": lambda i, words: [i],
    "within_word_l2r": lambda i, words: [j for j in range(i, len(words)) if words[j] == words[i]],
    "whole_word": lambda i, words: [j for j in range(len(words)) if words[j] == words[i]],
}


def tiny(kind, config, tokenizer, **options):
    set_seed(1)
    sizes = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 80, "initializer_range": 0.5,
    }  # fmt: skip
    return kind(config(vocab_size=len(tokenizer), **(sizes | options))).eval()


@pytest.fixture
def model(tokenizer):
    return tiny(BertForMaskedLM, BertConfig, tokenizer)


@pytest.mark.parametrize("method", HIDES)
@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_scores_are_those_of_a_loop_over_copies(model, tokenizer, method, batch_tokens):
    scores = score(model, tokenizer, TEXTS, method=method, batch_tokens=batch_tokens)
    for text, found in zip(TEXTS, scores, strict=True):
        expected = one_by_one(model, tokenizer, text, HIDES[method])
        assert found.logprobs == pytest.approx(expected, abs=1e-5)
        assert found.logprob == pytest.approx(sum(expected), abs=1e-4)
        assert found.perplexity == pytest.approx(math.exp(-sum(expected) / len(expected)), rel=1e-4)
    everything = [value for text in scores for value in text.logprobs]
    assert scores.perplexity == pytest.approx(math.exp(-np.mean(everything)), rel=1e-4)


def test_the_methods_differ_on_words_of_several_pieces(model, tokenizer):
    text = ["antidisestablishmentarianism is long"]
    found = {method: score(model, tokenizer, text, method=method)[0].logprob for method in HIDES}
    assert len({round(value, 4) for value in found.values()}) == 3


def test_an_entity_is_one_unit_and_the_rest_are_words(model, tokenizer):
    text = "the quick brown antidisestablishmentarianism"
    found = score(model, tokenizer, [text], method="entity", entities=[[(0, 9)]])[0]
    pieces = len(found.tokens) - 3
    assert found.units == [0, 0, 1, *[2] * pieces]
    ids = tokenizer(text, return_tensors="pt")
    hidden = ids["input_ids"].clone()
    hidden[0, 1:3] = tokenizer.mask_token_id
    with torch.no_grad():
        logits = model(**{**ids, "input_ids": hidden}).logits[0, 1:3].log_softmax(-1)
    expected = [float(row[i]) for row, i in zip(logits, ids["input_ids"][0, 1:3], strict=True)]
    assert found.logprobs[:2] == pytest.approx(expected, abs=1e-5)


def test_roberta_has_no_token_types_and_other_positions():
    tokenizer = build_byte_level()
    model = tiny(RobertaForMaskedLM, RobertaConfig, tokenizer, pad_token_id=1)
    found = score(model, tokenizer, ["a fox", "dogs"], batch_tokens=64)
    for text, one in zip(["a fox", "dogs"], found, strict=True):
        expected = one_by_one(model, tokenizer, text, HIDES["original"])
        assert one.logprobs == pytest.approx(expected, abs=1e-5)


def test_esm_adds_its_bias_after_the_decoder(tokenizer):
    model = tiny(
        EsmForMaskedLM, EsmConfig, tokenizer, pad_token_id=0, mask_token_id=4,
        position_embedding_type="rotary", token_dropout=True,
    )  # fmt: skip
    torch.nn.init.normal_(model.lm_head.bias)
    found = score(model, tokenizer, TEXTS)
    for text, one in zip(TEXTS, found, strict=True):
        expected = one_by_one(model, tokenizer, text, HIDES["original"])
        assert one.logprobs == pytest.approx(expected, abs=1e-5)


def test_only_hidden_tokens_reach_the_head(model, tokenizer):
    seen = []
    model.cls.predictions.transform.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].shape[:-1].numel())
    )
    scores = score(model, tokenizer, TEXTS)
    assert sum(seen) == scores.count == sum(len(text.tokens) for text in scores)


def test_the_model_keeps_its_mode_and_loses_the_hooks(model, tokenizer):
    model.train()
    score(model, tokenizer, ["fox"])
    assert model.training
    assert not model.bert._forward_hooks
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_bfloat16_stays_close(model, tokenizer):
    exact = score(model, tokenizer, TEXTS)
    rough = score(model.bfloat16(), tokenizer, TEXTS)
    assert rough.logprob == pytest.approx(exact.logprob, rel=0.02)


def test_special_tokens_in_a_text_are_context(model, tokenizer):
    found = score(model, tokenizer, ["the [MASK] fox"])[0]
    assert found.tokens == ["the", "[MASK]", "fox"]
    assert found.logprobs[1] is None
    assert found.count == 2


def test_long_texts_are_read_through_windows(model, tokenizer):
    text = " ".join(["the quick brown fox jumps over the lazy dog"] * 4)
    found = score(model, tokenizer, [text], max_length=12, stride=3)[0]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    for i in (0, 7, 18, 35):
        begin = min([*range(0, len(ids) - 10, 3), len(ids) - 10], key=lambda b: (abs(b + 5 - i), b))
        row = torch.tensor([[2, *ids[begin : begin + 10], 3]])
        row[0, i - begin + 1] = tokenizer.mask_token_id
        with torch.no_grad():
            logits = model(row).logits[0, i - begin + 1].log_softmax(-1)
        assert found.logprobs[i] == pytest.approx(float(logits[ids[i]]), abs=1e-5)


@pytest.mark.parametrize(("length", "room", "stride"), [(50, 10, 5), (50, 10, 10), (11, 10, 1)])
@pytest.mark.parametrize("size", [1, 2, 3, 9, 10])
def test_a_window_holds_its_unit_and_lies_in_the_text(length, room, stride, size):
    first = np.arange(length - size + 1)
    last = first + size - 1
    begins = choose_windows(first, last, length, room, stride)
    assert (begins >= 0).all()
    assert (begins <= length - room).all()
    assert (begins <= first).all()
    assert (last < begins + room).all()
    grid = {*range(0, length - room, stride), length - room}
    for f, e, b in zip(first, last, begins, strict=True):
        if any(g <= f and e < g + room for g in grid):
            assert b in grid


def test_batches_hold_every_copy_once_within_their_budget():
    lengths = [3, 9, 4, 9, 30, 1, 9]
    copies = [Copy(np.full(n, 7), None, np.array([0]), np.array([0])) for n in lengths]
    made = list(batches(copies, mask_id=1, pad_id=0, batch_tokens=20))
    assert sorted(i for batch in made for i in batch.order) == list(range(len(lengths)))
    for batch in made:
        rows, width = batch.inputs["input_ids"].shape
        assert rows * width <= 20 or rows == 1
        assert (batch.inputs["input_ids"].view(-1)[batch.rows] == 1).all()
        assert batch.inputs["attention_mask"].sum() == sum(lengths[i] for i in batch.order)


@pytest.mark.parametrize("text", ["", "  ", "[MASK]"])
def test_a_text_of_nothing_is_refused_by_its_number(model, tokenizer, text):
    with pytest.raises(ValueError, match=r"texts\[1\] has no token to score"):
        score(model, tokenizer, ["fox", text])


def test_a_bare_string_is_refused(model, tokenizer):
    with pytest.raises(TypeError, match="list of texts"):
        score(model, tokenizer, "the fox")


def test_causal_and_encoder_decoder_models_are_refused(tokenizer):
    causal = tiny(BertLMHeadModel, BertConfig, tokenizer, is_decoder=True)
    with pytest.raises(TypeError, match="predicts each token from those before it"):
        score(causal, tokenizer, ["fox"])
    config = T5Config(vocab_size=len(tokenizer), d_model=8, d_ff=8, num_layers=1, num_heads=1)
    with pytest.raises(TypeError, match="encoder-decoder"):
        score(T5ForConditionalGeneration(config), tokenizer, ["fox"])


def test_a_causal_class_that_attends_both_ways_is_scored(tokenizer):
    model = tiny(BertLMHeadModel, BertConfig, tokenizer, is_decoder=True)
    model.config.is_causal = False  # Transformers' switch
    assert score(model, tokenizer, ["the fox"])[0].count == 2


def test_a_tokenizer_without_a_mask_is_refused(model):
    tokenizer = build_wordpiece()
    tokenizer.mask_token = None
    with pytest.raises(TypeError, match="has no mask token"):
        score(model, tokenizer, ["fox"])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"method": "salazar"}, "method must be one of"),
        ({"max_length": 2}, "max_length must be from 3 to"),
        ({"max_length": 8, "stride": 7}, "stride must be from 1 to 6"),
        ({"batch_tokens": 0}, "batch_tokens must be at least 1"),
        ({"entities": [[]]}, "entities="),
        ({"method": "whole_word", "max_length": 4}, "a unit has"),
    ],
)
def test_options_that_do_not_fit_are_refused(model, tokenizer, options, text):
    with pytest.raises(ValueError, match=text):
        score(model, tokenizer, ["antidisestablishmentarianism"], **options)


def test_words_of_a_vocabulary_without_marks_are_refused():
    from tests.support.insight import build_proteins

    tokenizer = build_proteins()
    model = tiny(BertForMaskedLM, BertConfig, tokenizer)
    with pytest.raises(ValueError, match="no word marks"):
        score(model, tokenizer, ["MKTA"], method="whole_word")
