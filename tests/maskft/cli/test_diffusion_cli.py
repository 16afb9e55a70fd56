"""maskft train and preview with --strategy diffusion."""

import json
import math
import re

import pytest
import torch
from torch.nn import functional as F

from maskft import DataCollatorForLanguageModeling
from maskft.cli import main
from maskft.cli.evaluate import bound_scores
from maskft.strategy import Diffusion
from tests.support import contract
from tests.support.fused import still
from tests.support.small import CORPUS

pytestmark = pytest.mark.slow


@pytest.fixture
def model_dir(tiny_bert, tokenizer, tmp_path):
    tiny_bert.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"{line} {n}" for n, line in enumerate(CORPUS * 4)))
    return str(path)


def bound_of(model, tokenizer, rows, passes, seed):
    """The bound in nats a token, written plainly: a row at a time, from the contract's text."""
    total, tokens = 0.0, 0
    for number in range(passes):
        fixed = DataCollatorForLanguageModeling(
            tokenizer, strategy="diffusion", rng="sample", seed=seed
        ).for_evaluation(number, passes)
        for row in rows:
            ids = row["input_ids"]
            epoch = (1 << 24) - 1 - number
            word = contract.word(seed, epoch, 10, contract.row_hash(dict(enumerate(ids))), 0)
            t = (number + (word + 0.5) / 2.0**32) / passes
            p = (1 - 1e-3) * t + 1e-3
            batch = fixed([dict(row)])
            masked = batch["labels"] != -100
            special = torch.isin(torch.tensor(ids), torch.tensor(tokenizer.all_special_ids))
            tokens += int((~special).sum())
            logits = model(input_ids=batch["input_ids"]).logits
            total += float(
                F.cross_entropy(logits[masked], batch["labels"][masked], reduction="sum") / p
            )
    return total / tokens


@torch.no_grad()
def test_the_bound_is_the_mean_over_strata_and_two_evaluations_agree(tiny_bert, tokenizer, rows):
    model, rows = still(tiny_bert).eval(), rows[:5]
    collator = DataCollatorForLanguageModeling(
        tokenizer, strategy=Diffusion(normalize="sequence", times=(0.2, 0.3)), rng="sample", seed=3
    )
    for passes in (1, 4):
        scores = bound_scores(model, rows, collator, 2, passes)
        assert scores == bound_scores(model, rows, collator, 2, passes)
        assert scores["bound"] == pytest.approx(bound_of(model, tokenizer, rows, passes, 3), 1e-5)
        assert scores["perplexity_bound"] == math.exp(scores["bound"])
        assert scores["tokens"] == sum(len(row["input_ids"]) - 2 for row in rows)
        assert scores["passes"] == passes
        other = bound_scores(model, rows[::-1], collator, 5, passes)
        assert other["bound"] == pytest.approx(scores["bound"], 1e-6)
        assert other["predicted"] == scores["predicted"]
    assert not model.training


@pytest.mark.parametrize("options", [[], ["--packing", "on", "--diffusion-normalize", "sequence"]])
def test_train_lowers_the_bound(model_dir, text, tmp_path, capsys, options):
    status = main([
        "train", "--model", model_dir, "--train-file", text, "--output_dir", str(tmp_path / "out"),
        "--num-train-epochs", "12", "--learning_rate", "1e-2", "--strategy", "diffusion",
        "--diffusion-passes", "3", "--test-fraction", "0", "--validation_fraction", "0.2",
        "--logging_steps", "5", "--use_cpu", "True", "--save_strategy", "no", *options,
    ])  # fmt: skip
    printed = capsys.readouterr()
    assert status == 0
    assert "perplexity bound" in printed.out
    assert re.search(r"before training: validation bound \d\.\d{4}, accuracy", printed.err)
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    before, after = (metrics[when]["validation"] for when in ("before", "after"))
    assert before["tokens"] == after["tokens"] > 0
    assert before["predicted"] == after["predicted"]
    assert after["bound"] < before["bound"] - 0.5
    assert after["perplexity_bound"] == math.exp(after["bound"])
    assert after["passes"] == 3
    assert metrics["masking"]["strategy"] == "diffusion"


def test_preview_shows_the_times(model_dir, text, tokenizer, capsys):
    arguments = [
        "preview", "--model", model_dir, "--train-file", text, "--rows", "6", "--strategy",
        "diffusion", "--diffusion-times", "0.5,0.75", "--diffusion-eps", "0.01", "--seed", "3",
    ]  # fmt: skip
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    found = [re.match(r"t (\S+): (\d+) of (\d+) maskable tokens selected, asked (\S+)%", line)
             for line in lines]  # fmt: skip
    found = [match.groups() for match in found if match]
    rows = [tokenizer(f"{line} {n}")["input_ids"] for n, line in enumerate(CORPUS[:6])]
    assert len(found) == 6
    mean = total = 0.0
    for ids, (t, _, maskable, asked) in zip(rows, found, strict=True):
        word = contract.word(3, 0, 10, contract.row_hash(dict(enumerate(ids))), 0)
        expected = 0.5 + 0.25 * (word + 0.5) / 2.0**32
        assert t == f"{expected:.3f}"
        assert asked == f"{100 * (0.99 * expected + 0.01):.1f}"
        assert int(maskable) == len(ids) - 2
        mean, total = mean + (0.99 * expected + 0.01) * int(maskable), total + int(maskable)
    selected = sum(int(n) for _, n, _, _ in found)
    assert lines[-1].startswith(f"{selected} of {total:.0f} maskable tokens selected")
    assert f"asked {mean / total:.1%})" in lines[-1]
    assert "masked 100.0%" in lines[-1]
    assert main([*arguments, "--mask_replace_prob", "0.5", "--random_replace_prob", "0.5"]) == 0
    assert "masked 100.0%" not in capsys.readouterr().out


MISTAKES = [
    ("--diffusion-eps 2", r"--diffusion-eps: eps must be a number in \[0, 1\), got 2.0"),
    ("--diffusion-times 0.2,1.5", r"--diffusion-times: times must be \(low, high\)"),
    ("--diffusion-times 0.2", "--diffusion-times must be LOW,HIGH, got '0.2'"),
    ("--diffusion-weights t", "--diffusion-weights: weights must be one of"),
    ("--diffusion-antithetic yes", "--diffusion-antithetic must be on or off, got 'yes'"),
    ("--diffusion-normalize token", "--diffusion-normalize: normalize must be one of"),
    ("--diffusion-eps 0", "eps=0 with weights='1/p' has no largest weight"),
    ("--rng hf", "rng='hf' draws what Transformers' collator does"),
    ("--rate-schedule linear:0.3:0.1", "strategy='diffusion' draws a rate for each row"),
    ("--strategy random --diffusion-eps 0.1", "--diffusion-eps goes with --strategy diffusion"),
]


@pytest.mark.parametrize(("options", "match"), MISTAKES)
def test_an_error_names_the_option(options, match, model_dir, text, capsys):
    arguments = ["preview", "--model", model_dir, "--train-file", text, "--strategy", "diffusion"]
    assert main([*arguments, *options.split()]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(match, error)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ("--fused-loss off", "--strategy diffusion weights the loss, which needs --fused-loss on"),
        ("--diffusion-passes 0", "--diffusion-passes must be positive, got 0"),
    ],
)
def test_train_refuses_at_once(options, match, model_dir, text, tmp_path, capsys):
    arguments = ["train", "--model", model_dir, "--train-file", text, "--strategy", "diffusion"]
    assert main([*arguments, "--output_dir", str(tmp_path / "o"), *options.split()]) == 2
    assert match in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
