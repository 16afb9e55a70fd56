"""The Trainer glue: epochs reach the collator, and evaluation repeats itself to the last digit."""

import pytest
import torch
import transformers
from transformers import Trainer

from maskft import DataCollatorForLanguageModeling, MaskingCallback, attach, detach
from maskft.collate.randomness import EVALUATION_EPOCH
from tests.support.trainers import Rows, Stream, build

pytestmark = pytest.mark.slow


def test_the_callback_gives_the_collator_its_epochs(tiny_bert, tokenizer, rows, tmp_path):
    trainer = attach(build(tiny_bert, tokenizer, rows, tmp_path))
    trainer.train()
    per_epoch = -(-len(rows) // 8)
    assert trainer.data_collator.seen == [0] * per_epoch + [1] * per_epoch


def test_epochs_of_a_dataset_without_length_are_counted(tiny_bert, tokenizer, rows, tmp_path):
    trainer = attach(build(tiny_bert, tokenizer, Stream(rows), tmp_path, max_steps=8))
    trainer.train()
    seen = trainer.data_collator.seen
    per_epoch = -(-len(rows) // 8)
    assert seen[: 2 * per_epoch] == [0] * per_epoch + [1] * per_epoch


def test_a_resumed_run_masks_as_the_whole_run(tiny_bert, tokenizer, rows, tmp_path):
    """Interrupted in the middle of the second epoch and resumed: the same weights."""
    options = {"save_strategy": "steps", "save_steps": 4}
    state = {k: v.clone() for k, v in tiny_bert.state_dict().items()}
    whole = attach(build(tiny_bert, tokenizer, rows, tmp_path / "whole", **options))
    whole.train()
    expected = {k: v.clone() for k, v in tiny_bert.state_dict().items()}

    tiny_bert.load_state_dict(state)
    resumed = attach(build(tiny_bert, tokenizer, rows, tmp_path / "resumed", **options))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert set(resumed.data_collator.seen) == {1}
    for name, value in tiny_bert.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("rng", ["stream", "sample", "hf"])
def test_two_evaluations_agree_to_the_last_digit(tiny_bert, tokenizer, rows, tmp_path, rng):
    collator = DataCollatorForLanguageModeling(tokenizer, rng=rng)
    trainer = attach(build(tiny_bert, tokenizer, rows, tmp_path, collator))
    first = trainer.evaluate()["eval_loss"]
    collator.set_epoch(3)
    torch.manual_seed(99)
    assert trainer.evaluate()["eval_loss"] == first
    predictions = [trainer.predict(Rows(rows)).label_ids for _ in range(2)]
    assert (predictions[0] == predictions[1]).all()
    assert trainer.data_collator is collator


def test_evaluation_does_not_disturb_training(tiny_bert, tokenizer, rows, tmp_path):
    trainer = attach(
        build(tiny_bert, tokenizer, rows, tmp_path, eval_strategy="steps", eval_steps=1)
    )
    trainer.train()
    per_epoch = -(-len(rows) // 8)
    seen = trainer.data_collator.seen  # the evaluation copy writes to the same list
    assert [e for e in seen if e != EVALUATION_EPOCH] == [0] * per_epoch + [1] * per_epoch
    assert seen.count(EVALUATION_EPOCH) == 2 * per_epoch * -(-len(rows) // 7)
    losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert len(set(losses)) == len(losses)  # the model changed; the masks did not


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_persistent_workers_learn_the_epoch(tiny_bert, tokenizer, rows, tmp_path, method):
    """What reaches the model, worked out in workers, equals what this process works out."""

    batches = []

    class Watched(Trainer):
        def training_step(self, model, inputs, *args, **kwargs):
            batches.append({k: v.clone() for k, v in inputs.items()})
            return super().training_step(model, inputs, *args, **kwargs)

    collator = DataCollatorForLanguageModeling(tokenizer, rng="sample", seed=2, mlm_probability=0.5)
    trainer = build(
        tiny_bert, tokenizer, rows, tmp_path, collator, dataloader_num_workers=2,
        dataloader_persistent_workers=True, dataloader_multiprocessing_context=method,
    )  # fmt: skip
    trainer.__class__ = Watched
    attach(trainer).train()
    local = DataCollatorForLanguageModeling(tokenizer, rng="sample", seed=2, mlm_probability=0.5)
    by_text = {tuple(row["input_ids"]): row for row in rows}
    per_epoch = -(-len(rows) // 8)
    assert len(batches) == 2 * per_epoch
    for step, batch in enumerate(batches):
        local.set_epoch(step // per_epoch)
        original = torch.where(batch["labels"] != -100, batch["labels"], batch["input_ids"])
        for i in range(len(original)):
            row = original[i][batch["attention_mask"][i] == 1]
            expected = local([by_text[tuple(row.tolist())]])
            n = len(row)
            assert torch.equal(batch["labels"][i][:n], expected["labels"][0])


def test_a_sample_id_column_survives_trainer(tiny_bert, tokenizer, rows, tmp_path):
    named = [{**row, "row": i} for i, row in enumerate(rows)]
    collator = DataCollatorForLanguageModeling(tokenizer, rng="sample", sample_id_column="row")
    trainer = build(tiny_bert, tokenizer, named, tmp_path, collator)
    with pytest.raises(ValueError, match=r"no column 'row'.*maskft\.attach"):
        trainer.evaluate()
    attach(trainer)
    assert trainer.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"]
    trainer.train()


def test_detach_undoes_attach(tiny_bert, tokenizer, rows, tmp_path):
    trainer = build(tiny_bert, tokenizer, rows, tmp_path)
    before = trainer.get_eval_dataloader
    attach(trainer)
    assert trainer.get_eval_dataloader != before
    with pytest.raises(ValueError, match="attached already"):
        attach(trainer)
    detach(trainer)
    assert trainer.get_eval_dataloader == before
    assert not any(isinstance(c, MaskingCallback) for c in trainer.callback_handler.callbacks)
    attach(trainer)


def test_attach_refuses_a_collator_of_another_make(tiny_bert, tokenizer, rows, tmp_path):
    stock = transformers.DataCollatorForLanguageModeling(tokenizer)
    with pytest.raises(TypeError, match=r"maskft\.DataCollatorForLanguageModeling"):
        attach(build(tiny_bert, tokenizer, rows, tmp_path, stock))


def test_what_is_no_trainer_is_refused_by_name(tiny_bert, tokenizer, rows, tmp_path):
    for function in (attach, detach):
        for given in (None, tiny_bert, "trainer"):
            with pytest.raises(
                TypeError, match=rf"{function.__name__} needs a transformers\.Trainer"
            ):
                function(given)
    with pytest.raises(TypeError, match=r"needs a collator with set_epoch.*NoneType"):
        MaskingCallback(None)
    for packing in (None, "on", 2.5, float("nan")):
        trainer = build(tiny_bert, tokenizer, rows, tmp_path)
        with pytest.raises(TypeError, match="packing must be a bool or a number of tokens, got"):
            attach(trainer, packing=packing)
        attach(trainer)  # nothing was left behind
