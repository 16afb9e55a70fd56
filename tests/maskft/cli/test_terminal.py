"""Data reaches the terminal as text, never as markup, escape sequences or a traceback."""

import errno
import io
import os
import re
import subprocess
import sys

import pytest
from datasets import Dataset
from rich.console import Console
from safetensors.torch import load_file, save_file

from maskft.cli import UsageError, main, train
from maskft.cli.data import tokenize
from maskft.cli.messages import shown
from maskft.cli.predict import LONGEST_LINE
from maskft.cli.preview import Piece, first_rows, heaviest, render
from maskft.cli.saving import disk_errors
from maskft.strategy import WEIGHT_COLUMN
from tests.support.small import build_byte_level


@pytest.fixture
def model_dir(tiny_bert, tokenizer, tmp_path):
    tiny_bert.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_control_characters_are_shown_as_escapes():
    assert shown("a\x1b[31m\x07\n\x9b\x7f\u202e\u2066\u2028\udcff") == (
        r"a\x1b[31m\x07\n\x9b\x7f\u202e\u2066\u2028\udcff"
    )
    plain = "naïve 北京 \u200dعربي \U0001f600 [/red] \\x1b"
    assert shown(plain) == plain


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("kind", ["masked", "replaced", "kept", ""])
def test_a_row_is_printed_as_it_is(kind, colour):
    out = io.StringIO()
    piece = Piece(kind, "[/red]\x1b]0;title\x07", "[bold]\x1b[2J :smile:")
    Console(file=out, width=200).print(render([piece], colour))
    assert "\x1b" not in out.getvalue()
    assert "\x07" not in out.getvalue()
    assert "/red]\\x1b]0;title\\x07" in out.getvalue()


def test_the_heaviest_words_are_neither_markup_nor_special_tokens():
    tokenizer = build_byte_level()
    row = tokenizer("one [/red] :smile: a\x1b[2J rtl")
    row = {"input_ids": row["input_ids"], WEIGHT_COLUMN: [1.0] * len(row["input_ids"])}
    out = io.StringIO()
    Console(file=out, width=200).print(heaviest(tokenizer, row))
    words = "one 1, [/red] 1, :smile: 1, a\\x1b[2J 1, rtl 1"
    assert out.getvalue() == f"weights: {words}\n"


def test_preview_prints_markup_of_the_data(model_dir, tmp_path, capsys):
    """The console, too, takes no text for markup."""
    (tmp_path / "a.txt").write_text("the fox [/red] and [bold]x :smile:\n")
    arguments = ["preview", "--model", model_dir, "--train-file", str(tmp_path / "a.txt")]
    assert main([*arguments, "--strategy", "keyword", "--keywords", "tfidf"]) == 0
    assert "weights: " in capsys.readouterr().out


def test_predict_shows_control_characters(model_dir, capsys):
    assert main(["predict", "--model", model_dir, "a [MASK] \x1b[31m\x07"]) == 0
    assert capsys.readouterr().out.startswith("a [MASK] \\x1b[31m\\x07\n")


def test_an_error_shows_control_characters(capsys):
    assert main(["predict", "--model", "/no\x1b[31m", "a"]) == 2
    assert capsys.readouterr().err == "maskft predict: no such model folder: /no\\x1b[31m\n"


def test_a_text_that_is_not_utf8_is_one_sentence(model_dir, monkeypatch, capsys):
    """The shell's bytes that are not UTF-8 arrive as lone surrogates."""
    assert main(["predict", "--model", model_dir, "a \udcff [MASK]"]) == 2
    assert r"the text 'a \udcff [MASK]' is not UTF-8" in capsys.readouterr().err
    given = io.TextIOWrapper(io.BytesIO(b"a [MASK]\na \xff [MASK]\n"), "utf-8")
    monkeypatch.setattr(sys, "stdin", given)
    assert main(["predict", "--model", model_dir, "-"]) == 2
    assert "standard input is not UTF-8 (byte 0xff)" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO("a" * (LONGEST_LINE + 1)))
    assert main(["predict", "--model", model_dir, "-"]) == 2
    assert "a line of standard input is longer than 1,048,576" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["out[v2]", "out[/x]", "out[red]:smile:"])
def test_the_output_folder_is_named_as_it_is(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "train", lambda *_: {"before": {}})
    folder = str(tmp_path / name)
    assert main(["train", "--model", "m", "--train-file", "a.txt", "--output_dir", folder]) == 0
    assert capsys.readouterr().out == f"model and metrics.json are in {folder}\n"


def _cut(folder):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def _reshape(folder):
    weights = load_file(folder / "model.safetensors")
    weights["bert.embeddings.LayerNorm.bias"] = weights["bert.embeddings.LayerNorm.bias"][:5]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"not a pickle")


def _tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"version": ')


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_cut, r"cannot load a model from '.*model': SafetensorError: .*incomplete metadata"),
        (_reshape, r"do not fit its configuration: bert.embeddings.LayerNorm.bias is 5, .* 16"),
        (_pickle, "cannot load a model .* its weights are not a file of tensors"),
        (_tokenizer, "cannot load a tokenizer from .*JSONDecodeError: Expecting value"),
    ],
    ids=["truncated", "another_shape", "no_pickle", "tokenizer"],
)
def test_a_broken_model_is_one_sentence(damage, text, model_dir, tmp_path, capsys):
    damage(tmp_path / "model")
    assert main(["predict", "--model", model_dir, "[MASK]"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(text, error)
    if damage is not _tokenizer:
        assert main(["doctor", "--check", model_dir]) == 2
        assert re.search(text, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (OSError(errno.EFBIG, "File too large"), "a file in .* is larger than the system allows"),
        (OSError(errno.EDQUOT, "Quota exceeded"), "your quota on the disk of .* is used up"),
    ],
)
def test_a_file_that_may_not_grow_is_one_sentence(error, match, tmp_path):
    with pytest.raises(UsageError, match=match), disk_errors(tmp_path):
        raise error
    with pytest.raises(PermissionError), disk_errors(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_a_terminal_that_cannot_write_a_character_is_shown_its_escape(model_dir, tmp_path):
    """And a reader that has seen enough, as head, is no error."""
    lines = "".join(f"the [MASK] fox é {n}\n" for n in range(300))
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "maskft", "predict", "--model", model_dir]
    found = subprocess.run([*command, "é [MASK]"], env=environment, capture_output=True, text=True)
    assert found.stdout.startswith("\\xe9 [MASK]\n")
    assert found.stderr == ""
    environment |= {"PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command, "-"], env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        process.stdout.close()
        process.stdin.write(lines.encode())
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


SENTENCE = "the quick brown fox jumps over the lazy dog "


@pytest.mark.parametrize("texts", [[SENTENCE * 2000], ["a seed", "a mask " + SENTENCE * 2000]])
def test_preview_tokenizes_the_beginning_of_a_long_text_alone(texts, tokenizer, monkeypatch):
    lengths = []
    monkeypatch.setattr("maskft.cli.preview.tokenize", lambda texts, *a, **k: (
        lengths.append(max(map(len, texts["text"]))) or tokenize(texts, *a, **k)
    ))  # fmt: skip
    texts = Dataset.from_dict({"text": texts})
    found = first_rows(texts, 3, tokenizer, 12)
    assert lengths == [3600]
    whole = tokenize(texts, tokenizer, 12)
    assert found.to_dict()["input_ids"][:3] == whole.to_dict()["input_ids"][:3]
    lengths.clear()
    first_rows(Dataset.from_dict({"text": ["a" + " " * 4000 + "b"]}), 3, tokenizer, 12)
    assert lengths == [3600, 4002]  # the beginning alone has too few rows
