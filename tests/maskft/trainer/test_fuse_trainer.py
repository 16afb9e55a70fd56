"""Fused models in a Trainer: any split of an update gives one loss and one set of gradients."""

import copy

import numpy as np
import pytest
import torch
import transformers
from transformers import Trainer, TrainingArguments

from maskft import fuse_loss, unfuse_loss
from tests.support.fused import LENGTH, LabelledRows, still, update
from tests.support.tiny import VOCABULARY, tiny_model

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "name"), [("masked", "bert"), ("masked", "modernbert"), ("causal", "llama"),
                       ("causal", "gemma2"), ("seq2seq", "t5"), ("masked", "mobilebert")]
)  # fmt: skip
def test_accumulation_changes_nothing(kind, name, tmp_path):
    model = still(tiny_model(kind, name))
    expected, loss = update(copy.deepcopy(model), tmp_path)  # one whole batch: stock is right
    fuse_loss(model)
    for size, steps in ((8, 1), (4, 2), (2, 4), (1, 8)):
        found, fused_loss = update(copy.deepcopy(model), tmp_path, size, steps)
        assert found.model_accepts_loss_kwargs
        assert abs(fused_loss - loss) < 1e-4 * loss
        scale = max(g.abs().max() for g in expected.found.values())
        for parameter, gradient in expected.found.items():
            assert (found.found[parameter] - gradient).abs().max() < 1e-4 * scale, parameter


def test_stock_bert_gets_it_wrong(tmp_path):
    """Why fuse_loss is needed; when this fails, Transformers has mended it: say so in the docs."""
    model = still(tiny_model("masked", "bert"))
    _, whole = update(copy.deepcopy(model), tmp_path)
    _, parts = update(model, tmp_path, 2, 4)
    assert parts > 3 * whole


def test_models_that_refuse_loss_kwargs_take_them(tmp_path):
    model = still(tiny_model("masked", "esm"))
    assert not model.accepts_loss_kwargs
    whole = update(fuse_loss(copy.deepcopy(model)), tmp_path)[1]
    parts = update(fuse_loss(copy.deepcopy(model)), tmp_path, 2, 4)[1]
    assert abs(parts - whole) < 1e-4 * whole


def test_evaluation_without_metrics_makes_no_logits(tmp_path):
    model = fuse_loss(still(tiny_model("masked", "bert")))
    seen = []
    model.cls.predictions.transform.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].shape[:-1].numel())
    )
    trainer, _ = update(model, tmp_path)
    seen.clear()
    fused = trainer.evaluate()["eval_loss"]
    assert sum(seen) == (LabelledRows().labels != -100).sum()
    unfuse_loss(model)
    trainer.model_accepts_loss_kwargs = False
    assert abs(trainer.evaluate()["eval_loss"] - fused) < 0.2 * fused  # stock weighs rows unevenly


def test_metrics_get_logits_on_request(tmp_path):
    model = fuse_loss(still(tiny_model("masked", "bert")), logits="eval")
    trainer, _ = update(model, tmp_path)
    shapes = []

    def metrics(prediction):
        shapes.append(prediction.predictions.shape)
        known = prediction.label_ids != -100
        right = prediction.predictions.argmax(-1) == prediction.label_ids
        return {"accuracy": float(np.mean(right[known]))}

    trainer.compute_metrics = metrics
    assert "eval_accuracy" in trainer.evaluate()
    assert shapes == [(8, LENGTH, VOCABULARY)]


def test_mixed_precision_and_what_accelerate_wraps(tmp_path):
    model = still(tiny_model("masked", "bert"))
    _, whole = update(copy.deepcopy(model), tmp_path, bf16=True)
    fuse_loss(model)
    trainer, parts = update(model, tmp_path, 2, 4, bf16=True)
    assert abs(parts - whole) < 2e-2 * whole
    with pytest.raises(ValueError, match="has been wrapped since fuse_loss"):
        unfuse_loss(model)
    trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    batch = {k: v[None] for k, v in LabelledRows()[0].items()}
    assert model(**batch).logits is None  # still fused, though accelerate bound it anew
    unfuse_loss(model)
    assert model(**batch).logits is not None


def test_label_positions_reach_the_model_through_trainer(tmp_path):
    """The columns that Trainer keeps are those of the fused forward."""
    trainer = Trainer(
        model=fuse_loss(tiny_model("masked", "bert")),
        args=TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True),
    )
    trainer._set_signature_columns_if_needed()
    assert {"input_ids", "labels", "label_positions"} <= set(trainer._signature_columns)


def test_saved_by_trainer_and_loaded_again(tmp_path):
    model = fuse_loss(still(tiny_model("causal", "llama")))
    trainer, _ = update(model, tmp_path, bf16=True)
    trainer.save_model(str(tmp_path / "saved"))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.parametrize("capacity", [None, 64])
def test_compiled_by_trainer(tmp_path, capacity):
    model = still(tiny_model("masked", "bert"))
    _, whole = update(copy.deepcopy(model), tmp_path)
    torch.compiler.reset()
    options = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    fuse_loss(model, capacity=capacity)
    _, parts = update(model, tmp_path, 2, 4, **options)
    assert abs(parts - whole) < 1e-4 * whole
