"""Templates: one label at the mask, words that are one token, and probabilities of labels."""

import pytest
import torch
from transformers import DataCollatorForTokenClassification

from maskft import MaskInputs, fuse_loss
from maskft.prompt import Template
from tests.support.small import CORPUS, build_byte_level

MASK = 4
PATTERN = "{text} and a [MASK]."
WORDS = {"fox": "animal", "word": "thing", "dog": "animal"}


@pytest.fixture
def template(tokenizer):
    return Template(PATTERN, WORDS, tokenizer)


def test_a_row_is_the_filled_template_with_one_label(tokenizer, template):
    labels = ["thing" if i % 2 else "animal" for i in range(len(CORPUS))]
    for text, label, row in zip(CORPUS, labels, template.rows(CORPUS, labels), strict=True):
        assert row["input_ids"] == tokenizer(f"{text} and a [MASK].")["input_ids"]
        assert row.keys() == {"input_ids", "token_type_ids", "attention_mask", "labels"}
        place = row["input_ids"].index(MASK)
        word = "word" if label == "thing" else "fox"  # the first word of the label
        expected = [-100] * len(row["input_ids"])
        expected[place] = tokenizer.convert_tokens_to_ids(word)
        assert row["labels"] == expected


def test_rows_without_labels_have_none(template):
    assert "labels" not in template.rows(CORPUS)[0]
    assert template.rows([]) == []
    assert template.labels == ["animal", "thing"]
    assert template.fields == ["text"]


def test_the_columns_for_input_masks_name_the_tokens_of_the_text(tokenizer, template):
    rows = template.rows(CORPUS, ["thing"] * len(CORPUS), mask_only="of_text")
    for text, row in zip(CORPUS, rows, strict=True):
        count = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        assert row["of_text"] == [0] + [1] * count + [0] * (len(row["input_ids"]) - count - 1)
    inner = DataCollatorForTokenClassification(tokenizer)
    plain = inner([{k: v for k, v in row.items() if k != "of_text"} for row in rows])
    batch = MaskInputs(inner, 1.0, mask_only="of_text", seed=1)(rows)
    for b, row in enumerate(rows):
        changed = (batch["input_ids"][b] != plain["input_ids"][b]).long()
        assert changed[: len(row["of_text"])].tolist() == row["of_text"]
    assert torch.equal(batch["labels"], plain["labels"])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pattern", [PATTERN, "a [MASK]: {text}", "the [MASK] {text} fox"])
def test_truncation_never_loses_the_mask(tokenizer, side, pattern):
    tokenizer.truncation_side = side
    whole = Template(pattern, WORDS, tokenizer).rows(["seed " * 8 + "mask " * 8], ["thing"])[0]
    for length in range(8, len(whole["input_ids"]) + 1):
        template = Template(pattern, WORDS, tokenizer, length)
        row = template.rows(["seed " * 8 + "mask " * 8], ["thing"], mask_only="own")[0]
        assert len(row["input_ids"]) == length == len(row["attention_mask"])
        place = row["input_ids"].index(MASK)
        assert [i for i, label in enumerate(row["labels"]) if label != -100] == [place]
        own = [i for i, of_text in zip(row["input_ids"], row["own"], strict=True) if of_text]
        seed, mask = tokenizer.convert_tokens_to_ids(["seed", "mask"])
        everything = [seed] * 8 + [mask] * 8
        kept = everything[-len(own) :] if side == "left" else everything[: len(own)]
        assert own == (kept if own else [])
        rest = [i for i, of_text in zip(row["input_ids"], row["own"], strict=True) if not of_text]
        assert rest == tokenizer(pattern.replace("{text}", ""))["input_ids"]


def test_the_longest_field_is_cut_first(tokenizer):
    template = Template("{first} [MASK] {second}", WORDS, tokenizer, 10)
    row = template.rows([{"first": "seed seed", "second": "mask " * 9}], mask_only="own")[0]
    seed, mask = tokenizer.convert_tokens_to_ids(["seed", "mask"])
    assert row["input_ids"] == [2, seed, seed, MASK, *[mask] * 5, 3]
    with pytest.raises(ValueError, match="the template alone has 3 tokens, and max_length is 2"):
        Template("{first} [MASK] {second}", WORDS, tokenizer, 2).rows(
            [{"first": "a", "second": ""}]
        )


def test_a_mask_in_the_text_is_not_the_templates(tokenizer):
    template = Template("{text} [MASK]", WORDS, tokenizer)
    row = template.rows(["[MASK] fox [MASK]"], ["thing"])[0]
    assert [i for i, label in enumerate(row["labels"]) if label != -100] == [4]


def test_words_are_the_tokens_that_follow_a_space_where_the_mask_does():
    """Byte-level vocabularies have two tokens for a word, with the space before it and without."""
    tokenizer = build_byte_level()
    tokenizer.add_tokens([" good", "good", " bad", "bad"])
    after_space = Template("{text} [MASK]", {"b": 1, "c": 0}, tokenizer)
    assert after_space.ids == {
        "b": tokenizer("b")["input_ids"][1],
        "c": tokenizer("c")["input_ids"][1],
    }
    assert after_space.rows(["xy"], [1])[0]["labels"].count(-100) == 5


def expected_probabilities(model, tokenizer, texts):
    """Of each label, from the logits of one text at a time."""
    found = []
    for text in texts:
        inputs = tokenizer(f"{text} and a [MASK].", return_tensors="pt")
        place = inputs["input_ids"][0].tolist().index(MASK)
        with torch.no_grad():
            logits = model(**inputs).logits[0, place]
        of_words = logits[tokenizer.convert_tokens_to_ids(list(WORDS))].softmax(-1)
        found.append([of_words[0] + of_words[2], of_words[1]])
    return torch.tensor(found)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("fused", [False, True])
def test_probabilities_are_those_of_one_text_at_a_time(tokenizer, template, tiny_bert, side, fused):
    texts = [*CORPUS[:5], "fox"]
    tokenizer.padding_side = side
    expected = expected_probabilities(tiny_bert.eval(), tokenizer, texts)
    if fused:
        fuse_loss(tiny_bert)
    tiny_bert.train()
    for size in (1, 4, 32):
        found = template.log_probabilities(tiny_bert, texts, batch_size=size)
        torch.testing.assert_close(found.exp(), expected, rtol=1e-4, atol=1e-6)
    assert tiny_bert.training
    predicted = template.predict_labels(tiny_bert, texts)
    assert predicted == [template.labels[i] for i in expected.argmax(1)]
    assert template.predict_labels(tiny_bert, []) == []


def test_calibration_divides_by_what_content_free_texts_get(tokenizer, template, tiny_bert):
    prior = template.calibrate(tiny_bert, ["", "N/A"])
    free = expected_probabilities(tiny_bert.eval(), tokenizer, ["", "N/A"]).mean(0)
    torch.testing.assert_close(prior, free, rtol=1e-4, atol=1e-6)
    plain = expected_probabilities(tiny_bert, tokenizer, CORPUS[:3])
    expected = plain / free
    expected /= expected.sum(1, keepdim=True)
    found = template.log_probabilities(tiny_bert, CORPUS[:3], prior=prior)
    torch.testing.assert_close(found.exp(), expected, rtol=1e-4, atol=1e-6)
    assert template.calibrate(tiny_bert).sum().item() == pytest.approx(1)


def test_a_fused_model_predicts_one_token_per_text(tokenizer, template, tiny_bert):
    """Training on a template: the loss of stock, with the decoder at the masks only."""
    rows = template.rows(CORPUS[:5], ["thing", "animal"] * 2 + ["thing"])
    batch = DataCollatorForTokenClassification(tokenizer)(rows)
    stock = tiny_bert.eval()(**batch).loss
    fuse_loss(tiny_bert)
    seen = []
    hook = tiny_bert.cls.predictions.transform.register_forward_hook(
        lambda module, inputs, output: seen.append(output.numel() // output.shape[-1])
    )
    fused = tiny_bert(**batch).loss
    hook.remove()
    assert fused.item() == pytest.approx(stock.item(), rel=1e-5)
    assert seen[0] == 5


BAD = [
    ("{text}", WORDS, ValueError, r"have \[MASK\] once, got '{text}', which has it 0 times"),
    ("[MASK] {text} [MASK]", WORDS, ValueError, "which has it 2 times"),
    ("It was [MASK].", WORDS, ValueError, r"must have named fields, such as {text}"),
    ("{} [MASK].", WORDS, ValueError, "must have named fields"),
    ("{text [MASK].", WORDS, ValueError, "a brace in the text is"),
    (3, WORDS, TypeError, "pattern must be text, got int"),
    (PATTERN, {"fox": 1}, ValueError, "two or more, got {'fox': 1}"),
    (PATTERN, {"fox": 1, "dog": 1}, ValueError, "two or more"),
    (PATTERN, ["fox", "dog"], ValueError, "words must map words to labels"),
    (PATTERN, {"fox": 1, 3: 2}, TypeError, "words must be text, got 3"),
    (PATTERN, {"fox": 1, "Fox": 2}, ValueError, "'fox' and 'Fox' are the same token 'fox'"),
    (PATTERN, {"fox": 1, "masks": 2}, ValueError, "is mask ##s; words like it that are one: mask"),
    (PATTERN, {"fox": 1, "lazy dog": 2}, ValueError, "must be one token .* and is lazy dog"),
    (PATTERN, {"fox": 1, "☃": 2}, ValueError, r"and is \[UNK\]; choose another"),
    ("{text} a[MASK]", {"fox": 1, "dog": 2}, ValueError, "'fox' must be one token"),
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "words", "error", "says"), BAD, ids=[b[-1] for b in BAD])
def test_what_does_not_fit_is_refused(tokenizer, pattern, words, error, says):
    with pytest.raises(error, match=says):
        Template(pattern, words, tokenizer)


def test_texts_labels_and_models_that_do_not_fit_are_refused(tokenizer, template, tiny_bert):
    pair = Template("{first} [MASK] {second}", WORDS, tokenizer)
    with pytest.raises(ValueError, match=r"the pattern has the fields \['first', 'second'\]"):
        pair.rows(["a"])
    with pytest.raises(ValueError, match=r"text 0 has no 'second'; it has \['first'\]"):
        pair.rows([{"first": "a"}])
    with pytest.raises(TypeError, match="'text' of text 1 must be a string, got NoneType"):
        template.rows(["a", {"text": None}])
    with pytest.raises(TypeError, match="text 0 must be a string or a mapping, got int"):
        template.rows([3])
    with pytest.raises(TypeError, match="texts must be a sequence of texts, got str"):
        template.rows("a")
    with pytest.raises(ValueError, match=r"label 1 is 'place', .* the labels are \['animal'"):
        template.rows(["a", "a"], ["thing", "place"])
    with pytest.raises(ValueError, match="there are 2 texts and 1 labels"):
        template.rows(["a", "a"], ["thing"])
    with pytest.raises(ValueError, match="max_length must be positive, got 0"):
        Template(PATTERN, WORDS, tokenizer, 0)
    with pytest.raises(ValueError, match="a row has 106 tokens and the model takes 64"):
        template.predict_labels(tiny_bert, ["a " * 100])
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="must have a mask token"):
        Template(PATTERN, WORDS, tokenizer)
