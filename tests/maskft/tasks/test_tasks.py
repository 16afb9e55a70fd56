"""Tasks: examples, predictions and scores, and the command line from the outside."""

import csv
import json
import re

import pytest
import sklearn.metrics
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from transformers import AutoModelForSequenceClassification, BertForMaskedLM

from maskft.cli import main
from maskft.cli.data import split_of
from maskft.prompt import Template
from maskft.tasks.classify import Classify
from maskft.tasks.examples import Examples
from maskft.tasks.prompt import Prompt
from maskft.tasks.scores import majority, scores
from tests.support.small import CORPUS

TEXTS = [f"the {kind} dog {i}" for i in range(40) for kind in ("quick", "lazy")]
LABELS = ["good", "bad"] * 40


def test_scores_are_those_of_scikit_learn():
    true, predicted = [0, 1, 2, 2, 1, 0], [0, 1, 1, 2, 1, 1]
    assert scores(true, predicted, 4) == {
        "accuracy": sklearn.metrics.accuracy_score(true, predicted),
        "macro_f1": pytest.approx((2 / 3 + 2 / 3 + 2 / 3 + 0) / 4),  # no label 3, so its F1 is 0
        "rows": 6,
    }
    assert majority([2, 2, 1], true, 3)["accuracy"] == pytest.approx(2 / 6)


def test_shots_are_as_many_of_each_label_and_follow_the_seed():
    examples = Examples([str(i) for i in range(30)], [i % 3 for i in range(30)])
    few = examples.few(4, seed=1)
    assert sorted(few.labels) == [0] * 4 + [1] * 4 + [2] * 4
    assert all(int(text) % 3 == label for text, label in zip(few.texts, few.labels, strict=True))
    assert few == examples.few(4, seed=1) != examples.few(4, seed=2)
    with pytest.raises(ValueError, match="label 0 has 10 training examples, fewer than 11"):
        examples.few(11, seed=1)


def test_a_classifier_predicts_as_one_text_at_a_time(tokenizer, tiny_bert, tmp_path):
    tiny_bert.save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    task = Classify(tokenizer, 12)
    examples = Examples(CORPUS[:5], [0, 1, 2, 0, 1])
    rows = task.rows(examples)
    assert [row["labels"] for row in rows] == examples.labels
    assert max(len(row["input_ids"]) for row in rows) == 12
    expected = []
    for row in rows:
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.tensor([row["input_ids"]])).logits
        expected.append(int(logits.argmax()))
    for size in (1, 2, 32):
        assert task.predict(model, examples, size) == expected


def test_a_prompt_predicts_the_number_of_its_label(tokenizer, tiny_bert):
    template = Template("{text} [MASK] {pair}", {"dog": "b", "fox": "a"}, tokenizer)
    task = Prompt(template, ["a", "b"])
    examples = Examples(CORPUS[:4], [0, 1, 0, 1], CORPUS[1:5])
    rows = task.rows(examples)
    fox, dog = tokenizer.convert_tokens_to_ids(["fox", "dog"])
    assert [max(row["labels"]) for row in rows] == [fox, dog, fox, dog]
    pairs = [{"text": CORPUS[i], "pair": CORPUS[i + 1]} for i in range(4)]
    named = template.predict_labels(tiny_bert, pairs)
    assert task.predict(tiny_bert, examples, 2) == ["ab".index(name) for name in named]


@pytest.fixture
def model_dir(tiny_bert, tokenizer, tmp_path):
    tiny_bert.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def write(path, rows, columns=("text", "label")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return str(path)


@pytest.fixture
def reviews(tmp_path):
    return write(tmp_path / "reviews.csv", zip(TEXTS, LABELS, strict=True))


def train(model_dir, reviews, tmp_path, *more, task="classify"):
    return main(
        [
            "train", "--task", task, "--model", model_dir, "--train-file", reviews, "--output_dir",
            str(tmp_path / "out"), "--use_cpu", "--num_train_epochs", "20", "--learning_rate",
            "1e-2", "--per_device_train_batch_size", "8", "--save_strategy", "no",
            "--validation-fraction", "0.2", "--test-fraction", "0.2", *more,
        ]
    )  # fmt: skip


PROMPT = ("--template", "{text} is a [MASK] dog.", "--label-words", "good=quick", "bad=lazy")


def metrics_of(tmp_path):
    return json.loads((tmp_path / "out" / "metrics.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("masked", [(), ("--input-mask-rate", "0.1")])
def test_a_classifier_learns_what_a_word_says(model_dir, reviews, tmp_path, capsys, masked):
    assert train(model_dir, reviews, tmp_path, *masked) == 0
    metrics = metrics_of(tmp_path)
    assert metrics["labels"] == ["bad", "good"]
    for split in ("validation", "test"):
        assert metrics["after"][split]["accuracy"] > 0.75 > metrics["majority"][split]["accuracy"]
    assert "macro-F1" in capsys.readouterr().out
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "bad", 1: "good"}


@pytest.mark.slow
@pytest.mark.parametrize("extra", [("--input-mask-rate", "uniform"), ("--fused_loss", "off")])
def test_a_prompt_is_scored_by_the_words_it_predicts(
    model_dir, reviews, tmp_path, tokenizer, extra
):
    assert train(model_dir, reviews, tmp_path, *PROMPT, *extra, task="prompt") == 0
    model = BertForMaskedLM.from_pretrained(tmp_path / "out")
    held_out = [
        (text, label)
        for text, label in zip(TEXTS, LABELS, strict=True)
        if split_of(text, 0.2, 0.2) == "test"
    ]
    template = Template("{text} is a [MASK] dog.", {"quick": "good", "lazy": "bad"}, tokenizer)
    predicted = template.predict_labels(model, [text for text, _ in held_out])
    right = sum(a == b for a, (_, b) in zip(predicted, held_out, strict=True))
    assert metrics_of(tmp_path)["after"]["test"]["accuracy"] == right / len(held_out)


@pytest.mark.slow
def test_few_shots_early_stopping_and_adapted_weights(model_dir, reviews, tmp_path):
    more = ["--shots", "5", "--early-stopping", "1", "--init-from", model_dir]
    more += ["--metric_for_best_model", "accuracy", "--num_train_epochs", "30"]
    assert train(model_dir, reviews, tmp_path, *more) == 0
    metrics = metrics_of(tmp_path)
    assert metrics["train"]["examples"] == 10 < metrics["train"]["of"]
    assert metrics["train"]["steps"] < 30 * 2


@pytest.mark.slow
def test_splits_labels_and_pairs_of_a_dataset(model_dir, tmp_path):
    features = Dataset.from_dict({"a": TEXTS, "b": CORPUS * 4, "kind": [0, 1] * 40})
    features = features.cast_column("kind", ClassLabel(names=["good", "bad"]))
    folder = str(tmp_path / "data")
    DatasetDict({"train": features, "dev": features, "test": features}).save_to_disk(folder)
    command = [
        "train", "--task=classify", "--model", model_dir, "--dataset", folder, "--output_dir",
        str(tmp_path / "out"), "--use_cpu", "--max_steps", "1", "--text-column", "a",
        "--pair-column", "b", "--label-column", "kind", "--max-length", "20",
    ]  # fmt: skip
    assert main(command) == 0
    metrics = metrics_of(tmp_path)
    assert metrics["labels"] == ["bad", "good"]
    assert metrics["after"]["validation"]["rows"] == 80


MISTAKES = [
    (("--label-column", "stars"), r"no column 'stars'.*\['label', 'text'\] \(--label-column"),
    (("--text-column", "review"), r"no column 'review'.*\['label', 'text'\]"),
    (("--task", "translate"), r"--task must be one of \('mlm', 'classify', 'prompt'\)"),
    (("--task", "prompt"), "--task prompt needs --template and --label-words"),
    (PROMPT, "--template and --label-words go with --task prompt"),
    (("--task", "prompt", *PROMPT[:3], "good=quick"), r"words for \['good'\].*\['bad', 'good'\]"),
    (("--task", "prompt", *PROMPT[:3], "good"), "--label-words must be label=word, got 'good'"),
    (
        ("--task", "prompt", "--template", "{text}.", *PROMPT[2:]),
        r"--template: pattern must have \[MASK\] once",
    ),
    (
        ("--task", "prompt", "--template", "{txt} [MASK].", *PROMPT[2:]),
        r"--template: the fields are \['text'\], got \['txt'\]",
    ),
    (
        ("--task", "prompt", *PROMPT[:3], "good=quicker", "bad=lazy"),
        "--template: word 'quicker' must be one token .*: .*quick",
    ),
    (("--shots", "1000"), "label 0 has .* fewer than 1000; labels are"),
    (("--shots", "0"), "--shots must be positive"),
    (("--input-mask-rate", "much"), r"must be a number in \[0, 1\] or uniform, got 'much'"),
    (("--input-mask-rate", "1.5"), "got '1.5'"),
    (("--early-stopping", "0"), "--early-stopping must be positive"),
    (("--early-stopping", "2", "--validation-fraction", "0"), "needs a validation split"),
    (("--packing", "on"), "--packing goes with --task mlm"),
    (("--test-file", "no.csv"), "no.csv: no such file"),
    (("--test-file", "no.txt"), r"expected a file that ends in \.jsonl"),
    (("--max-length", "65"), "more than the model takes: 64"),
    (("--init-from", "./nowhere"), "no such model folder: ./nowhere"),
    (("--validation-fraction", "0", "--test-fraction", "0.99999"), "the train split is empty"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("more", "says"), MISTAKES, ids=[says for _, says in MISTAKES])
def test_a_mistake_is_one_sentence_and_status_2(model_dir, reviews, tmp_path, capsys, more, says):
    assert train(model_dir, reviews, tmp_path, *more) == 2
    error = capsys.readouterr().err
    line = error.strip().splitlines()[-1]
    assert line.startswith("maskft train: ")
    assert re.search(says, line), line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "columns", "says"),
    [
        ([("a", "good"), ("b", "bad"), ("c", "awful")], ("text", "label"), "that training does"),
        ([("a", 0.5)], ("text", "label"), "holds double, and labels are text or whole numbers"),
        ([(1, "good")], ("text", "label"), "column 'text' holds int64, not text"),
        ([("a", "good")], ("text", "stars"), r"no column 'label'.*\['stars', 'text'\]"),
    ],
)  # fmt: skip
def test_examples_that_do_not_fit_are_refused(
    model_dir, reviews, tmp_path, capsys, rows, columns, says
):
    test = write(tmp_path / "test.csv", rows, columns)
    assert train(model_dir, reviews, tmp_path, "--test-file", test) == 2
    assert re.search(says, capsys.readouterr().err)


@pytest.mark.slow
def test_one_label_is_refused_and_weights_of_other_kinds_too(
    model_dir, reviews, tmp_path, capsys, tokenizer
):
    one = write(tmp_path / "one.csv", [(text, "good") for text in TEXTS])
    assert train(model_dir, one, tmp_path) == 2
    assert "one label only, 'good'" in capsys.readouterr().err
    other = AutoModelForSequenceClassification.from_pretrained(model_dir)
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    assert train(model_dir, reviews, tmp_path, "--init-from", str(tmp_path / "other")) == 2
    assert "not a masked language model" in capsys.readouterr().err
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(tmp_path / "more")
    BertForMaskedLM.from_pretrained(model_dir).save_pretrained(tmp_path / "more")
    assert train(model_dir, reviews, tmp_path, "--init-from", str(tmp_path / "more")) == 2
    assert "has another vocabulary than --model" in capsys.readouterr().err
