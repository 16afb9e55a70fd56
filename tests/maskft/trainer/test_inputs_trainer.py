"""MaskInputs in a Trainer: epochs, plain evaluation, masks on the device, resuming."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from maskft import MaskInputs, RateSchedule, attach, detach
from tests.support.trainers import Recording, Rows, ShuffledStream, assert_resumed

MASK = 4


def small(cls, tokenizer, **options):
    set_seed(0)
    return cls(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=64, num_labels=2, **options,
        )
    )  # fmt: skip


def build(tokenizer, rows, path, mask_on_device=False, stream=Rows, **options):
    collator = MaskInputs(
        DataCollatorWithPadding(tokenizer), 0.4, rng="sample", seed=3, sample_id_column="number",
        schedule=RateSchedule("linear", 0.9, 0.1),
    )  # fmt: skip
    options = {
        "num_train_epochs": 2, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 7,
        "report_to": "none", "use_cpu": True, "disable_tqdm": True, "seed": 1,
        "save_strategy": "no", "logging_strategy": "no",
    } | options  # fmt: skip
    labelled = [{**row, "labels": i % 2, "number": i} for i, row in enumerate(rows)]
    trainer = Recording(
        small(BertForSequenceClassification, tokenizer),
        TrainingArguments(str(path), **options),
        train_dataset=stream(labelled),
        eval_dataset=Rows(labelled),
        data_collator=collator,
    )
    trainer.seen = []
    return attach(trainer, mask_on_device=mask_on_device), collator


def test_training_is_masked_by_epoch_and_evaluation_is_not(tokenizer, rows, tmp_path):
    trainer, collator = build(tokenizer, rows, tmp_path)
    trainer.train()
    assert len(trainer.seen) == 10
    assert int(collator._masks._epoch) == 1
    for batch in trainer.get_eval_dataloader():
        assert not (batch["input_ids"] == MASK).any()
    first, second = (
        {tuple(ids.tolist()) for _, batch, _ in trainer.seen[half] for ids in batch}
        for half in (slice(5), slice(5, 10))
    )
    assert first != second
    early, late = ((trainer.seen[i][1] == MASK).float().mean() for i in (0, 9))
    assert early > 2 * late  # the rate falls from 90% to 10%


def test_evaluation_has_the_loss_of_all_rows(tokenizer, rows, tmp_path):
    trainer, _ = build(tokenizer, rows, tmp_path)
    rows = [{**row, "labels": i % 2} for i, row in enumerate(rows)]
    batch = DataCollatorWithPadding(tokenizer)(rows)
    with torch.no_grad():
        expected = trainer.model.eval()(**batch).loss
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_loss_without_labels_to_count_is_trainers_own(tokenizer, rows, tmp_path):
    spans = [{**row, "start_positions": 1, "end_positions": 2 + i % 3}
             for i, row in enumerate(rows)]  # fmt: skip
    losses = []
    for attached in (False, True):
        args = TrainingArguments(
            str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True,
            per_device_eval_batch_size=4,
        )  # fmt: skip
        trainer = Trainer(
            small(BertForQuestionAnswering, tokenizer), args, eval_dataset=Rows(spans),
            data_collator=MaskInputs(DataCollatorWithPadding(tokenizer), seed=1),
        )  # fmt: skip
        if attached:
            attach(trainer)
        else:
            trainer.data_collator = DataCollatorWithPadding(tokenizer)
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[0] == losses[1] == losses[1]  # not NaN


@pytest.mark.slow
def test_masks_on_the_device_are_those_of_the_loader(tokenizer, rows, tmp_path):
    seen = []
    for on_device in (False, True):
        trainer, _ = build(tokenizer, rows, tmp_path, mask_on_device=on_device)
        trainer.train()
        seen.append(trainer.seen)
    for one, two in zip(*seen, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[1:], two[1:], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("stream", [Rows, ShuffledStream])
def test_a_resumed_run_goes_on_with_its_masks(tokenizer, rows, tmp_path, stream):
    def run(name, resume=None):
        trainer, _ = build(
            tokenizer, rows, tmp_path / name, max_steps=12, save_strategy="steps", save_steps=1,
            stream=stream,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume and str(tmp_path / resume))
        weights = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        return trainer.seen, weights

    whole = run("whole")
    for step in (3, 7):
        assert_resumed(run(f"from {step}", f"whole/checkpoint-{step}"), whole, step)


def test_packing_a_trainer_is_refused(tokenizer, rows, tmp_path):
    trainer, _ = build(tokenizer, rows, tmp_path)
    with pytest.raises(TypeError, match=r"packing needs .* got MaskInputs"):
        attach(detach(trainer), packing=True)
