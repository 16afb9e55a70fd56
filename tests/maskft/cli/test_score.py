"""maskft score and maskft compare, from files to files."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from maskft import DataCollatorForLanguageModeling, compare_models, score, score_pairs
from maskft.cli import main
from maskft.cli.results import Results
from maskft.insight.score import AT_ONCE
from tests.support.insight import protein_model
from tests.support.small import CORPUS, build_byte_level


@pytest.fixture
def model_dir(tiny_bert, tokenizer, tmp_path):
    tiny_bert.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def texts():
    return [f"{text} {n}" for n in range(10) for text in CORPUS[:15]]


@pytest.fixture
def file(texts, tmp_path):
    path = tmp_path / "texts.jsonl"
    rows = [{"text": text, "id": f"t{n}"} for n, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_texts_are_scored_in_their_order(
    model_dir, file, texts, tiny_bert, tokenizer, tmp_path, capsys
):
    out = tmp_path / "scores.jsonl"
    options = ["--keep", "id", "--tokens", "--method", "within_word_l2r"]
    assert main(["score", file, "--model", model_dir, "--output", str(out), *options]) == 0
    found = jsonl(out)
    expected = score(tiny_bert, tokenizer, texts, method="within_word_l2r")
    assert [row["text"] for row in found] == texts
    assert [row["id"] for row in found] == [f"t{n}" for n in range(len(texts))]
    for row, text in zip(found, expected, strict=True):
        assert row["logprob"] == pytest.approx(text.logprob, abs=1e-4)
        assert row["token_logprobs"] == pytest.approx(text.logprobs, abs=1e-5)
        assert row["tokens"] == text.tokens
        assert row["token_count"] == text.count
        assert row["perplexity"] == pytest.approx(text.perplexity, rel=1e-4)
    assert f"pseudo-perplexity {expected.perplexity:.4g}" in capsys.readouterr().out
    assert not list(tmp_path.glob("scores.jsonl.*"))


def test_csv_and_parquet_go_in_and_out(model_dir, file, tmp_path):
    main(["score", file, "--model", model_dir, "--output", str(tmp_path / "a.csv"), "--tokens"])
    with (tmp_path / "a.csv").open(newline="") as opened:
        table = list(csv.DictReader(opened))
    again = ["--model", model_dir, "--output", str(tmp_path / "b.parquet"), "--tokens"]
    main(["score", str(tmp_path / "a.csv"), *again])
    rows = pyarrow.parquet.read_table(tmp_path / "b.parquet").to_pylist()
    assert [float(row["logprob"]) for row in table] == [row["logprob"] for row in rows]
    assert [json.loads(row["tokens"]) for row in table] == [row["tokens"] for row in rows]
    main(["score", str(tmp_path / "b.parquet"), "--model", model_dir, "--output",
          str(tmp_path / "c.jsonl")])  # fmt: skip
    assert [row["logprob"] for row in jsonl(tmp_path / "c.jsonl")] == [
        row["logprob"] for row in rows
    ]


def test_pairs_report_their_accuracy(model_dir, tiny_bert, tokenizer, tmp_path, capsys):
    rows = [{"sentence_good": CORPUS[i], "sentence_bad": CORPUS[i + 1], "UID": "x"}
            for i in range(4)]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.jsonl"
    options = ["--good-column", "sentence_good", "--bad-column", "sentence_bad", "--keep", "UID"]
    path = str(tmp_path / "pairs.jsonl")
    assert main(["score", path, "--model", model_dir, "--output", str(out), *options]) == 0
    expected = score_pairs(tiny_bert, tokenizer, CORPUS[:4], CORPUS[1:5])
    assert [row["correct"] for row in jsonl(out)] == expected.correct
    low, high = expected.interval
    shown = f"accuracy {expected.accuracy:.2%}, 95% interval {low:.2%} to {high:.2%}"
    assert shown in capsys.readouterr().out


def test_variants_of_one_sequence_and_of_several(tmp_path, capsys):
    model, tokenizer = protein_model()
    model.save_pretrained(tmp_path / "esm")
    tokenizer.save_pretrained(tmp_path / "esm")
    (tmp_path / "v.csv").write_text("text,mutant\nMKTA,K2R\nMKTA,A4G\nGGG,G1A\n")
    (tmp_path / "one.csv").write_text("mutant\nK2R\nA4G\n")
    common = ["--model", str(tmp_path / "esm"), "--variant-column", "mutant"]
    main(["score", str(tmp_path / "v.csv"), *common, "--output", str(tmp_path / "a.jsonl")])
    main(["score", str(tmp_path / "one.csv"), *common, "--output", str(tmp_path / "b.jsonl"),
          "--sequence", "MKTA"])  # fmt: skip
    a, b = jsonl(tmp_path / "a.jsonl"), jsonl(tmp_path / "b.jsonl")
    assert [row["score"] for row in a[:2]] == [row["score"] for row in b]
    assert [row["mutant"] for row in a] == ["K2R", "A4G", "G1A"]
    (tmp_path / "v.csv").write_text("text,mutant\nMKTA,K2R\nMKTA,M4G\n")
    out = ["--output", str(tmp_path / "c.jsonl")]
    assert main(["score", str(tmp_path / "v.csv"), *common, *out]) == 2
    assert "M4G does not match the sequence, which has A" in capsys.readouterr().err


def settings(**more):
    return {"model": "m", "input": "x", **more}


def test_results_go_on_after_the_last_whole_part(tmp_path):
    out = str(tmp_path / "r.jsonl")
    first = Results(out, settings(), 2)
    first.add([{"row": n} for n in range(5)])
    with first.part.open("ab") as file:
        file.write(b'{"row": 5')  # killed in the middle of a line
    again = Results(out, settings(), 2)
    assert again.done == 4
    assert [row["row"] for row in again.written()] == [0, 1, 2, 3]
    again.add([{"row": n} for n in (4, 5)])
    again.finish()
    assert [row["row"] for row in jsonl(tmp_path / "r.jsonl")] == list(range(6))


@pytest.mark.parametrize("begun", [b"", b'{"input'])
def test_results_of_a_run_killed_at_once_begin_again(tmp_path, begun):
    (tmp_path / "r.jsonl.part").write_bytes(begun)
    results = Results(str(tmp_path / "r.jsonl"), settings(), 2)
    results.add([{"row": 0}])
    results.finish()
    assert jsonl(tmp_path / "r.jsonl") == [{"row": 0}]


def test_results_of_another_run_are_kept(tmp_path, model_dir, file, capsys):
    part = tmp_path / "s.jsonl.part"
    Results(str(tmp_path / "s.jsonl"), settings(), 2).add([{"row": 0}])
    before = part.read_bytes()
    assert main(["score", file, "--model", model_dir, "--output", str(tmp_path / "s.jsonl")]) == 2
    assert "holds results of other settings or another input" in capsys.readouterr().err
    assert part.read_bytes() == before
    (tmp_path / "s.jsonl").write_text("mine")
    assert main(["score", file, "--model", model_dir, "--output", str(tmp_path / "s.jsonl")]) == 2
    assert "there is such a file" in capsys.readouterr().err


def test_a_killed_run_goes_on_and_ends_with_the_same_file(model_dir, file, tmp_path, capsys):
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    main(["score", file, "--model", model_dir, "--output", str(whole)])
    command = [sys.executable, "-c", SLOW, "score", file, "--model", model_dir, "--output",
               str(killed)]  # fmt: skip
    process = subprocess.Popen(command, env=os.environ)
    part = tmp_path / "killed.jsonl.part"
    while process.poll() is None and not (part.exists() and part.read_bytes().count(b"\n") > 64):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not killed.exists()
    with part.open("ab") as opened:
        opened.write(b'{"row": 64, "te')
    capsys.readouterr()
    assert main(["score", file, "--model", model_dir, "--output", str(killed)]) == 0
    assert f"going on after {AT_ONCE} rows" in capsys.readouterr().err
    assert killed.read_bytes() == whole.read_bytes()


# A run that waits after its first part, until it is killed
SLOW = """
import sys, threading
from maskft.cli import main, score
inner = score.Texts.__call__
def call(self, rows):
    if rows[0][0]:
        threading.Event().wait()
    return inner(self, rows)
score.Texts.__call__ = call
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "fox"}\n{"text": ""}\n', "line 2: 'text' is empty"),
        ('{"text": "fox"}\n{"text": null}\n', "line 2: 'text' is empty"),
        ('{"text": "fox"}\n{"text": "fo\n', "line 2 is not JSON"),
        ('{"text": "fox"}\n{"words": "fox"}\n', "no column 'text'"),
        ("", "the file is empty"),
    ],
)
def test_broken_rows_are_refused_before_anything_is_scored(
    model_dir, tmp_path, content, message, capsys
):
    (tmp_path / "t.jsonl").write_text(content)
    command = ["score", str(tmp_path / "t.jsonl"), "--model", model_dir]
    assert main([*command, "--output", str(tmp_path / "o.jsonl")]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("o.jsonl*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--good-column", "text"], "go together"),
        (["--sequence", "MK"], "--sequence goes with --variant-column"),
        (["--method", "entity"], "--entities and --method entity go together"),
        (["--method", "salazar"], "invalid choice"),
        (["--level", "95"], "level must be between 0 and 1"),
        (["--max-length", "1000"], "max_length must be from 3 to 64"),
        (["--variant-column", "id", "--tokens"], "--tokens goes with texts"),
        (["--device", "tpu"], "--device tpu"),
        (["--keep", "nothing"], "no column 'nothing'"),
    ],
)
def test_options_that_do_not_fit_are_refused(model_dir, file, tmp_path, options, message, capsys):
    command = ["score", file, "--model", model_dir, "--output", str(tmp_path / "o.jsonl")]
    assert main([*command, *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("o.jsonl*"))


@pytest.mark.parametrize("name", ["scores.txt", "scores"])
def test_an_output_of_another_format_is_refused(model_dir, file, tmp_path, name, capsys):
    assert main(["score", file, "--model", model_dir, "--output", str(tmp_path / name)]) == 2
    assert "expected a file that ends in .jsonl, .csv, .parquet" in capsys.readouterr().err


def test_a_causal_model_is_refused(file, tmp_path, capsys):
    tokenizer: PreTrainedTokenizerFast = build_byte_level()
    tokenizer.mask_token = None
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt")
    tokenizer.save_pretrained(tmp_path / "gpt")
    command = ["score", file, "--model", str(tmp_path / "gpt")]
    assert main([*command, "--output", str(tmp_path / "o.jsonl")]) == 2
    assert "choose a masked language model" in capsys.readouterr().err


def test_entities_of_a_list_are_scored_whole(model_dir, tmp_path):
    (tmp_path / "t.txt").write_text("the quick brown fox\n")
    (tmp_path / "names.txt").write_text("quick brown\n")
    out = tmp_path / "o.jsonl"
    options = ["--method", "entity", "--entities", str(tmp_path / "names.txt")]
    command = ["score", str(tmp_path / "t.txt"), "--model", model_dir, "--output", str(out)]
    assert main([*command, *options]) == 0
    assert jsonl(out)[0]["token_count"] == 4


def test_compare_prints_and_writes_the_table(
    tiny_bert, tokenizer, model_dir, file, texts, tmp_path, capsys
):
    torch.nn.init.normal_(tiny_bert.cls.predictions.bias)
    tiny_bert.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    out = tmp_path / "table.json"
    options = ["--train-file", file, "--resamples", "100", "--seed", "5", "--output", str(out)]
    assert main(["compare", model_dir, str(tmp_path / "other"), *options]) == 0
    found = json.loads(out.read_text())
    stock = type(tiny_bert).from_pretrained(model_dir)
    collator = DataCollatorForLanguageModeling(tokenizer, rng="sample", seed=5)
    rows = [dict(tokenizer(text)) for text in texts]
    expected = compare_models(
        stock, tiny_bert, tokenizer, rows, collator=collator, resamples=100, seed=5
    )
    whole = found["classes"][0]
    assert whole["tokens"] == expected.classes[0].tokens
    assert whole["difference"] == pytest.approx(expected.difference, abs=1e-5)
    assert (whole["low"], whole["high"]) == pytest.approx(expected.interval, abs=1e-5)
    assert found["b"]["accuracy"] == expected.b.top_k(1)
    shown = capsys.readouterr().out
    assert f"{expected.difference:+.4f}" in shown
    assert "calibration error" in shown


@pytest.mark.parametrize(
    ("names", "message"),
    [([], "give the two models first"), (["A"], "give the two models first")],
)
def test_compare_needs_two_models(names, message, file, capsys):
    assert main(["compare", *names, "--train-file", file]) == 2
    assert message in capsys.readouterr().err


def test_compare_needs_one_vocabulary(model_dir, file, tmp_path, capsys):
    model, tokenizer = protein_model()
    model.save_pretrained(tmp_path / "esm")
    tokenizer.save_pretrained(tmp_path / "esm")
    assert main(["compare", model_dir, str(tmp_path / "esm"), "--train-file", file]) == 2
    assert "have different vocabularies" in capsys.readouterr().err
