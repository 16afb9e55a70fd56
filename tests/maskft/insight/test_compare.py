"""Fixed masks, classes of tokens, and the paired bootstrap."""

import numpy as np
import pytest
import torch
from transformers import set_seed

from maskft import DataCollatorForLanguageModeling, compare_models
from maskft.insight.compare import paired_bootstrap
from maskft.insight.fixed import Predictions, predict_masked, token_classes
from tests.support.small import CORPUS, build_bert


@pytest.fixture
def collator(tokenizer):
    return DataCollatorForLanguageModeling(tokenizer, rng="sample", seed=3, mlm_probability=0.4)


@pytest.fixture
def other(tokenizer):
    model = build_bert(tokenizer)
    set_seed(7)
    torch.nn.init.normal_(model.cls.predictions.bias)
    return model


@torch.no_grad()
def plain(model, rows, collator):
    """(row, position, token, logprob, rank, confidence) of each predicted token, row by row."""
    found = []
    for number, row in enumerate(rows):
        batch = dict(collator.for_evaluation()([dict(row)]))
        labels = batch.pop("labels")[0]
        logits = model.eval()(**batch).logits[0].double()
        for place, label in enumerate(labels.tolist()):
            if label == -100:
                continue
            logprobs = logits[place].log_softmax(-1)
            rank = int((logprobs > logprobs[label]).sum())
            best = float(logprobs.max().exp())
            found.append((number, place, label, float(logprobs[label]), rank, best))
    return found


@pytest.mark.parametrize("batch_tokens", [1, 60, 4096])
def test_predictions_are_those_of_single_rows(tiny_bert, rows, collator, batch_tokens):
    found = predict_masked(tiny_bert, rows, collator, batch_tokens=batch_tokens)
    expected = plain(tiny_bert, rows, collator)
    columns = (found.row, found.position, found.token, found.logprob, found.rank, found.confidence)
    assert len(found.row) == len(expected) > 20
    for made, wanted in zip(columns, zip(*expected, strict=True), strict=True):
        assert made.tolist() == pytest.approx(list(wanted), abs=1e-5)
    assert found.loss == pytest.approx(-np.mean([one[3] for one in expected]), abs=1e-5)
    assert found.top_k(3) == np.mean([one[4] < 3 for one in expected])


def predictions(rank, confidence):
    n = np.arange(len(rank))
    return Predictions(len(n), n, n, n, -n.astype(float), np.array(rank), np.array(confidence))


def test_calibration_error_by_hand():
    found = predictions([0, 3, 0, 0], [0.92, 0.91, 0.31, 1.0])
    bins = [(0.5, 0.5, 0.915), (0.25, 1.0, 0.31), (0.25, 1.0, 1.0)]
    expected = sum(share * abs(right - sure) for share, right, sure in bins)
    assert found.calibration_error(20) == pytest.approx(expected)
    assert predictions([0, 0], [1.0, 1.0]).calibration_error() == 0


def test_classes_say_what_a_token_is(tiny_bert, tokenizer, collator):
    rows = [dict(tokenizer(text)) for text in CORPUS[:5]]
    for row in rows:
        row["entity_ids"] = [-1, *[0] * 2, *[-1] * (len(row["input_ids"]) - 3)]
    found = predict_masked(tiny_bert, rows, collator)
    classes = token_classes(tokenizer, rows, found)
    assert sorted(classes) == ["entity", "frequency", "position", "word"]
    for n, (row, place) in enumerate(zip(found.row, found.position, strict=True)):
        tokens = tokenizer.convert_ids_to_tokens(rows[row]["input_ids"])
        later, before = tokens[place].startswith("##"), tokens[place + 1].startswith("##")
        kind = "later piece" if later else "first piece" if before else "whole word"
        assert classes["word"][n] == kind
        quarter = ["first", "second", "third", "last"][place * 4 // len(tokens)]
        assert classes["position"][n] == f"{quarter} quarter"
        assert classes["entity"][n] == ("in an entity" if place in (1, 2) else "elsewhere")
        assert classes["frequency"][n] == "rank 1 to 100"


def test_frequency_bands_count_the_tokens_of_the_rows(tokenizer):
    rows = [{"input_ids": [i] * (300 - i)} for i in range(300)]
    found = predictions([0, 0, 0], [0.5, 0.5, 0.5])
    object.__setattr__(found, "token", np.array([0, 99, 100]))
    bands = token_classes(tokenizer, rows, found)["frequency"].tolist()
    assert bands == ["rank 1 to 100", "rank 1 to 100", "rank 101 to 1,000"]


def test_the_difference_is_that_of_the_losses(tiny_bert, other, tokenizer, rows, collator):
    found = compare_models(tiny_bert, other, tokenizer, rows, collator=collator, resamples=200)
    a = [one[3] for one in plain(tiny_bert, rows, collator)]
    b = [one[3] for one in plain(other, rows, collator)]
    assert found.difference == pytest.approx(np.mean(a) - np.mean(b), abs=1e-5)
    assert found.interval[0] <= found.difference <= found.interval[1]
    whole = [one for one in found.classes if one.kind == "position"]
    assert sum(one.tokens for one in whole) == found.classes[0].tokens == len(a)
    assert str(found).splitlines()[1].startswith("all")


def test_the_interval_resamples_whole_rows():
    """With equal counts the ratio is a mean of rows, whose normal interval is known."""
    generator = np.random.default_rng(1)
    sums = generator.normal(size=(1, 400))
    low, high = paired_bootstrap(sums, np.ones((1, 400)), 4000, 0.95, seed=0)
    half = 1.96 * sums.std() / 20
    assert low[0] == pytest.approx(sums.mean() - half, abs=0.15 * half)
    assert high[0] == pytest.approx(sums.mean() + half, abs=0.15 * half)
    again = paired_bootstrap(sums, np.ones((1, 400)), 4000, 0.95, seed=0)
    assert (low[0], high[0]) == (again[0][0], again[1][0])


def test_swapping_the_models_turns_the_sign(tiny_bert, other, tokenizer, rows):
    there = compare_models(tiny_bert, other, tokenizer, rows, resamples=50)
    back = compare_models(other, tiny_bert, tokenizer, rows, resamples=50)
    assert there.difference == pytest.approx(-back.difference)
    assert there.interval == pytest.approx((-back.interval[1], -back.interval[0]))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rows": []}, "rows is empty"),
        ({"rows": [{"input_ids": [2, 3]}]}, "no token of the 1 rows is masked"),
        ({"resamples": 0}, "resamples must be at least 1"),
        ({"level": 1}, "level must be between 0 and 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(tiny_bert, tokenizer, rows, options, text):
    options = {"rows": rows, **options}
    with pytest.raises(ValueError, match=text):
        compare_models(tiny_bert, tiny_bert, tokenizer, **options)
