"""maskft doctor: what it says of models, and its exit status."""

import pytest
from transformers import ViTConfig

from maskft.cli import main
from tests.maskft.tiny import tiny_config, tiny_model


@pytest.fixture
def saved(tmp_path):
    def save(kind, name):
        tiny_model(kind, name).save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return save


@pytest.mark.parametrize(
    ("kind", "name", "facts"),
    [
        ("masked", "bert", ["BertForMaskedLM", "in the decoder", "128 x 32", "its own label",
                            "the head and the loss see", "ignores it", "numba, for tensors on cpu",
                            "not triton: tensors are on cpu"]),
        ("causal", "gemma2", ["capped at 30", "the next label", "as in the stock model"]),
        ("masked", "mobilebert", ["on logits: the weights of its decoder are in two parts"]),
        ("masked", "esm", ["every step counts the same"]),
        ("seq2seq", "t5", ["the decoder and the loss see the predicted ones only"]),
        ("seq2seq", "bart", ["BartForConditionalGeneration", "final_logits_bias added"]),
    ],
)  # fmt: skip
def test_what_it_says(kind, name, facts, saved, capsys):
    assert main(["doctor", saved(kind, name)]) == 0
    out = capsys.readouterr().out
    for fact in facts:
        assert fact in out


def test_check_compares_with_stock(saved, capsys):
    assert main(["doctor", "--check", saved("masked", "bert"), saved("causal", "llama")]) == 0
    assert capsys.readouterr().out.count("agrees: loss") == 2


def test_a_model_that_is_not_covered(tmp_path, capsys):
    tiny_config("prophetnet").save_pretrained(tmp_path)
    assert main(["doctor", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "no: fuse_loss does not cover ProphetNetForConditionalGeneration" in out


def test_no_language_model_and_no_model(tmp_path, capsys):
    ViTConfig().save_pretrained(tmp_path)
    assert main(["doctor", str(tmp_path)]) == 2
    assert "is a vit, and Transformers has no language model" in capsys.readouterr().err
    assert main(["doctor", "/no/such"]) == 2
    assert "cannot read the configuration of '/no/such'" in capsys.readouterr().err
