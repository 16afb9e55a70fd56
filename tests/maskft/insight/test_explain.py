"""Explanations against models whose answers are known."""

import html
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, set_seed

from maskft import explain, score
from maskft.insight.explain import area
from tests.support.small import CORPUS, build_bert, build_byte_level


class Votes(torch.nn.Module):
    """A classifier whose logit of label 1 counts some tokens and discounts others."""

    def __init__(self, model, plus, minus):
        super().__init__()
        self.model, self.plus, self.minus = model, plus, minus
        self.config = model.config

    def get_output_embeddings(self):
        return None

    def forward(self, input_ids, **_):
        votes = 2.0 * (input_ids == self.plus).sum(-1) - 1.0 * (input_ids == self.minus).sum(-1)
        logits = torch.stack([torch.zeros_like(votes), votes], -1)
        return type("Output", (), {"logits": logits})()


@pytest.fixture
def classifier(tokenizer):
    set_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64, num_labels=2, initializer_range=0.5,
        id2label={0: "cats", 1: "dogs"},
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


@pytest.fixture
def votes(classifier, tokenizer):
    fox, dog = tokenizer.convert_tokens_to_ids(["fox", "dog"])
    return Votes(classifier, fox, dog)


@pytest.mark.parametrize("hide", ["mask", "drop"])
def test_contributions_have_the_sign_of_the_vote(votes, tokenizer, hide):
    found = explain(votes, tokenizer, "the fox and the dog", target="dogs", hide=hide)
    by_text = {part.text: part.contribution for part in found.parts}
    value = lambda logit: -np.log1p(np.exp(-logit))  # noqa: E731
    assert by_text["fox"] == pytest.approx(value(1) - value(-1), abs=1e-6)
    assert by_text["dog"] == pytest.approx(value(1) - value(2), abs=1e-6)
    assert by_text["and"] == 0
    assert [part.text for part in found.positive] == ["fox"]
    assert [part.text for part in found.negative] == ["dog"]
    assert found.value == pytest.approx(value(1), abs=1e-6)


def test_faithful_explanations_beat_random_orders(votes, tokenizer):
    found = explain(
        votes, tokenizer, "the fox and the dog and a fox and the words", target="dogs", orders=20
    )
    assert found.deletion_area < found.random_area < found.insertion_area
    assert found.deletion[0] == found.probability == found.insertion[-1]
    assert found.random[0] == pytest.approx(found.probability)
    assert found.deletion[-1] == pytest.approx(found.insertion[0]) == pytest.approx(0.5)
    assert found.shares[0] == 0
    assert found.shares[-1] == 1


def test_area_is_by_trapezoids():
    assert area([0, 0.5, 1], [1, 0.5, 0]) == 0.5
    assert area([0, 0.25, 1], [1, 1, 0]) == 0.25 + 0.375


@torch.no_grad()
def test_a_mask_is_explained_by_leaving_words_out(tiny_bert, tokenizer):
    text = "the quick antidisestablishmentarianism [MASK] jumps"
    found = explain(tiny_bert, tokenizer, text, target="fox")
    assert [p.text for p in found.parts] == [w for w in text.split() if w != "[MASK]"]
    encoded = tokenizer(text, return_tensors="pt")
    place = encoded["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    fox = tokenizer.convert_tokens_to_ids("fox")

    def value(hidden):
        ids = encoded["input_ids"].clone()
        ids[0, hidden] = tokenizer.mask_token_id
        logits = tiny_bert.eval()(**{**encoded, "input_ids": ids}).logits
        return float(logits[0, place].log_softmax(-1)[fox])

    for part in found.parts:
        hidden = list(range(part.begin + 1, part.end + 1))
        assert part.contribution == pytest.approx(value([]) - value(hidden), abs=1e-5)


@torch.no_grad()
def test_dropped_words_leave_the_row(tiny_bert, tokenizer):
    found = explain(tiny_bert, tokenizer, "the quick [MASK] jumps", target="fox", hide="drop")
    fox = tokenizer.convert_tokens_to_ids("fox")

    def value(text):
        encoded = tokenizer(text, return_tensors="pt")
        place = encoded["input_ids"][0].tolist().index(tokenizer.mask_token_id)
        return float(tiny_bert.eval()(**encoded).logits[0, place].log_softmax(-1)[fox])

    whole = value("the quick [MASK] jumps")
    for part, without in zip(
        found.parts, ["quick [MASK] jumps", "the [MASK] jumps", "the quick [MASK]"], strict=True
    ):
        assert part.contribution == pytest.approx(whole - value(without), abs=1e-5)


def test_the_most_probable_answer_is_the_default(tiny_bert, tokenizer):
    text = "the quick [MASK] jumps"
    encoded = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        best = int(tiny_bert.eval()(**encoded).logits[0, 3].argmax())
    assert explain(tiny_bert, tokenizer, text).target == tokenizer.decode([best]).strip()


def test_blocks_and_tokens_and_entities(tiny_bert, tokenizer):
    text = "the quick brown fox [MASK] the lazy dog"
    texts = lambda **options: [p.text for p in explain(tiny_bert, tokenizer, text, **options).parts]  # noqa: E731
    assert texts(block=4) == ["the quick brown fox", "the lazy dog"]
    assert texts(unit="entity", entities=[(0, 15)])[:2] == ["the quick brown", "fox"]
    pieces = explain(tiny_bert, tokenizer, "antidise [MASK]", unit="token").parts
    assert [p.text for p in pieces] == ["anti", "dise"]


def test_a_long_text_is_explained_around_its_mask(tiny_bert, tokenizer):
    text = " ".join(["the fox"] * 60 + ["[MASK]"] + ["the dog"] * 60)
    found = explain(tiny_bert, tokenizer, text, block=10, orders=2)
    assert found.parts[0].begin == 120 - 31
    assert found.parts[-1].end == 120 - 31 + 62


def test_a_long_text_of_a_classifier_is_refused(classifier, tokenizer):
    with pytest.raises(ValueError, match="has 120 tokens, BertForSequenceClassification takes 62"):
        explain(classifier, tokenizer, "the fox " * 60)


def test_a_classifier_of_transformers_is_explained(classifier, tokenizer):
    found = explain(classifier, tokenizer, CORPUS[0])
    assert found.target in ("cats", "dogs")
    assert len(found.parts) == len(CORPUS[0].split())


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_other_kinds_of_labels(classifier, tokenizer, problem):
    classifier.config.problem_type = problem
    if problem == "regression":
        classifier.config.num_labels = 1
    found = explain(classifier, tokenizer, CORPUS[0], target=0)
    with torch.no_grad():
        logit = classifier(**tokenizer(CORPUS[0], return_tensors="pt")).logits[0, 0]
    expected = logit.sigmoid() if problem.startswith("multi") else logit
    assert found.probability == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("the fox", {}, r"no \[MASK\] in the text"),
        ("[MASK] fox [MASK]", {}, "answer= says which"),
        ("[MASK] fox", {"answer": 1}, "answer must be from 0 to 0"),
        ("[MASK] fox", {"target": "zebra crossing"}, "not a single token"),
        ("[MASK] fox", {"target": 10**6}, "target must be from 0"),
        ("[MASK] fox", {"unit": "line"}, "unit must be one of"),
        ("[MASK] fox", {"hide": "delete"}, "hide must be one of"),
        ("[MASK] fox", {"block": 0}, "block must be at least 1"),
        ("[MASK] fox", {"unit": "entity"}, "entities= goes with"),
        ("[MASK]", {}, "has no token to score"),
    ],
)
def test_what_cannot_be_explained_is_refused(tiny_bert, tokenizer, text, options, message):
    with pytest.raises(ValueError, match=message):
        explain(tiny_bert, tokenizer, text, **options)


def test_a_label_that_is_not_one_is_refused(classifier, tokenizer):
    with pytest.raises(ValueError, match="must be one of the labels"):
        explain(classifier, tokenizer, "the fox", target="birds")


class Seen(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = set(), ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.text += data


def test_notebooks_show_text_as_text(votes, tokenizer):
    text = '<script>fox("dog")</script> & <img>'
    of_bytes = build_byte_level()  # knows every character
    scores = score(build_bert(of_bytes), of_bytes, [text])
    explanation = explain(votes, tokenizer, text)
    for shown in (scores._repr_html_(), explanation._repr_html_()):
        seen = Seen()
        seen.feed(shown)
        assert not seen.tags & {"script", "img"}
        assert html.escape("<") in shown
        assert "script" in seen.text.replace(" ", "")
