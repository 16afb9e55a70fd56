"""Fused models in a Trainer: any split of an update gives one loss and one set of gradients."""

import copy

import numpy as np
import pytest
import torch
import transformers
from transformers import Trainer, TrainingArguments

from maskft import DataCollatorForLanguageModeling, attach, fuse_loss, unfuse_loss
from tests.support.fused import LENGTH, LabelledRows, RowCounter, still, update
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


def tokens_of_most_probability(logits, labels):
    """What run_mlm.py gives Trainer to shrink the logits with."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(dim=-1)


def accuracy(prediction):
    """What run_mlm.py computes of the predictions."""
    found, labels = prediction
    known = labels.reshape(-1) != -100
    return {"accuracy": float((found.reshape(-1) == labels.reshape(-1))[known].mean())}


def mlm_trainer(model, tokenizer, path, **options):
    """As run_mlm.py builds it, with the collator's line and fuse_loss's."""
    texts = [f"the cat {i} sat on the mat and the dog {i % 5} ate it" for i in range(24)]
    rows = [tokenizer(text) for text in texts]
    options = {
        "per_device_train_batch_size": 4, "per_device_eval_batch_size": 3, "max_steps": 2,
        "gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 1,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True,
    } | options  # fmt: skip
    return Trainer(
        model=fuse_loss(model),
        args=TrainingArguments(output_dir=str(path), **options),
        train_dataset=rows,
        eval_dataset=rows[:9],
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm_probability=0.3),
        compute_metrics=accuracy,
        preprocess_logits_for_metrics=tokens_of_most_probability,
    )


@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"eval_accumulation_steps": 1}])
def test_the_masked_lm_script_runs_with_two_lines_changed(tiny_bert, tokenizer, tmp_path, options):
    trainer = mlm_trainer(tiny_bert, tokenizer, tmp_path, **options)
    trainer.train()
    metrics = trainer.evaluate()
    assert 0 <= metrics["eval_accuracy"] <= 1
    assert np.isfinite(np.exp(metrics["eval_loss"]))
    evaluated = [log for log in trainer.state.log_history if "eval_accuracy" in log]
    assert len(evaluated) == 3


@pytest.mark.parametrize("attached", [False, True])
def test_predict_returns_the_stock_models_predictions(tiny_bert, tokenizer, tmp_path, attached):
    trainer = mlm_trainer(copy.deepcopy(tiny_bert).eval(), tokenizer, tmp_path)
    trainer.preprocess_logits_for_metrics = trainer.compute_metrics = None
    if attached:
        trainer.data_collator = DataCollatorForLanguageModeling(tokenizer, rng="sample", seed=1)
        attach(trainer)
    loader = trainer.get_test_dataloader(trainer.eval_dataset[:3])
    batch = next(iter(loader))
    trainer.get_test_dataloader = lambda rows: [batch]
    found = trainer.predict(trainer.eval_dataset[:3])
    unfuse_loss(trainer.model)
    with torch.no_grad():
        expected = trainer.model.eval()(**batch)
    np.testing.assert_allclose(found.predictions, expected.logits.numpy(), atol=1e-5)
    assert abs(found.metrics["test_loss"] - expected.loss.item()) < 1e-4


def test_an_attached_evaluation_computes_logits_where_they_are_used(tiny_bert, tokenizer, tmp_path):
    trainer = mlm_trainer(tiny_bert, tokenizer, tmp_path)
    trainer.data_collator = DataCollatorForLanguageModeling(
        tokenizer, rng="sample", seed=1, mlm_probability=0.3
    )
    attach(trainer)
    base, decoder = RowCounter(tiny_bert.bert.encoder), RowCounter(tiny_bert.cls.predictions)
    assert "eval_accuracy" in trainer.evaluate()
    assert decoder.seen == base.seen  # all rows, once
    decoder.seen.clear()
    base.seen.clear()
    trainer.compute_metrics = None
    assert "eval_loss" in trainer.evaluate()
    assert sum(decoder.seen) < 0.6 * sum(base.seen)


def test_unattached_logits_are_computed_twice_in_the_first_batch_only(
    tiny_bert, tokenizer, tmp_path
):
    trainer = mlm_trainer(tiny_bert, tokenizer, tmp_path)
    base = RowCounter(tiny_bert.bert.encoder)
    trainer.evaluate()
    assert len(base.seen) == 3 + 1


@pytest.mark.parametrize("reader", ["compute_metrics", "preprocess_logits_for_metrics", "predict"])
def test_logits_that_the_option_rules_out_are_an_error_that_names_it(
    tiny_bert, tokenizer, tmp_path, reader
):
    """A Trainer would hand them to the user's function as nothing at all."""
    trainer = mlm_trainer(tiny_bert, tokenizer, tmp_path)
    fuse_loss(unfuse_loss(tiny_bert), logits=False)
    for name in ("compute_metrics", "preprocess_logits_for_metrics"):
        if name != reader:
            setattr(trainer, name, None)
    if reader == "preprocess_logits_for_metrics":
        trainer.args.prediction_loss_only = False
        trainer.compute_metrics = accuracy
    with pytest.raises(ValueError, match=r"fuse_loss\(logits=False\) makes no logits.*attach"):
        trainer.predict(trainer.eval_dataset) if reader == "predict" else trainer.evaluate()
    trainer.compute_metrics = trainer.preprocess_logits_for_metrics = None
    assert np.isfinite(trainer.evaluate()["eval_loss"])  # nothing reads them
    trainer.compute_metrics = accuracy
    trainer.preprocess_logits_for_metrics = tokens_of_most_probability
    trainer.data_collator = DataCollatorForLanguageModeling(tokenizer, rng="sample", seed=1)
    assert "eval_accuracy" in attach(trainer).evaluate()  # which asks for them in advance


def next_tokens_right(prediction):
    """What run_clm.py computes of the predictions: each is of the token after it."""
    found, labels = prediction
    found, labels = found[:, :-1].reshape(-1), labels[:, 1:].reshape(-1)
    return {"accuracy": float((found == labels).mean()), "sum": float(found.sum())}


@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"eval_accumulation_steps": 1}])
def test_the_causal_lm_script_runs_with_one_line_more(tmp_path, options):
    """As run_clm.py builds its Trainer: blocks whose labels are their ids, no masking."""
    ids = torch.randint(6, VOCABULARY, (12, 16), generator=torch.Generator().manual_seed(1))
    blocks = [{"input_ids": row, "labels": row.clone()} for row in ids]
    expected = None
    for fuse in (False, True):
        model = still(tiny_model("causal", "llama"))
        if fuse:
            fuse_loss(model)
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=str(tmp_path), per_device_train_batch_size=4, max_steps=2,
                per_device_eval_batch_size=5, gradient_accumulation_steps=2, save_strategy="no",
                eval_strategy="steps", eval_steps=1, report_to="none", disable_tqdm=True,
                use_cpu=True, **options,
            ),
            train_dataset=blocks,
            eval_dataset=blocks[:9],
            data_collator=transformers.default_data_collator,
            compute_metrics=next_tokens_right,
            preprocess_logits_for_metrics=tokens_of_most_probability,
        )  # fmt: skip
        untrained = trainer.evaluate()
        trainer.train()
        assert len([log for log in trainer.state.log_history if "eval_accuracy" in log]) == 2
        if fuse:
            assert untrained["eval_accuracy"] == expected["eval_accuracy"]
            assert untrained["eval_sum"] == expected["eval_sum"] > 0
            tolerance = 2e-2 if options.get("bf16") else 1e-4
            assert abs(untrained["eval_loss"] - expected["eval_loss"]) < tolerance
        expected = untrained
