"""maskft doctor: what it says of models, and its exit status."""

import json

import pytest
from transformers import ViTConfig

from maskft.cli import main
from tests.support.tiny import tiny_config, tiny_model

OWN = """
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

class OwnConfig(PreTrainedConfig):
    model_type = "own"
    vocab_size: int = 50

class OwnForCausalLM(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed, self.lm_head = nn.Embedding(50, 8), nn.Linear(8, 50)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids, labels=None, **kwargs):
        logits = self.lm_head(self.embed(input_ids))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return CausalLMOutput(loss=loss, logits=logits)
"""


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
    assert "is a vit, and there is no language model" in capsys.readouterr().err
    assert main(["doctor", "/no/such"]) == 2
    assert "no such model folder: /no/such" in capsys.readouterr().err


def test_a_model_with_code_of_its_own(tmp_path, capsys):
    """A causal model alone, whose configuration Transformers does not know."""
    (tmp_path / "own.py").write_text(OWN)
    places = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": places}))
    assert main(["doctor", str(tmp_path)]) == 2
    assert "contains custom code" in capsys.readouterr().err
    assert main(["doctor", "--trust-remote-code", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "OwnForCausalLM" in out
    assert "50 x 8" in out


def test_check_without_weights(tmp_path, capsys):
    tiny_config("bert").save_pretrained(tmp_path)
    assert main(["doctor", "--check", str(tmp_path)]) == 2
    assert f"cannot load a model from '{tmp_path}': Error no file named" in capsys.readouterr().err
