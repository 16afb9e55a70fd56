"""Masked diffusion in a Trainer: the published losses, whatever the steps, and its evaluation."""

import pytest
import torch
from torch.nn import functional as F
from transformers import Trainer

from maskft import (
    DataCollatorForLanguageModeling,
    DataCollatorWithPacking,
    Plan,
    detach,
    fuse_loss,
)
from tests.support.diffusion import (
    LENGTH,
    NORMALIZE,
    assert_update,
    build_collator,
    build_model,
    build_trainer,
    example_rows,
    expected,
    gradients_of,
    update,
)
from tests.support.packed import BLOCK

SHAPES = [(8, 1), (4, 2), (2, 4), (3, 3)]


@pytest.fixture(scope="module")
def made():
    return example_rows()


@pytest.fixture(scope="module", params=NORMALIZE)
def wanted(request, made):
    tokenizer, rows = made
    return request.param, expected(build_model(tokenizer), tokenizer, rows, request.param)


def test_loss_and_gradients_are_those_of_the_published_formula(wanted, made):
    tokenizer, rows = made
    normalize, formula = wanted
    model = fuse_loss(build_model(tokenizer))
    for positions in (False, True, 20):
        collator = build_collator(tokenizer, normalize, label_positions=positions)
        model.zero_grad()
        loss = model(**collator([dict(row) for row in rows])).loss
        loss.backward()
        assert_update((float(loss.detach()), gradients_of(model)), formula)


@pytest.mark.parametrize(("size", "steps"), SHAPES)
def test_an_update_does_not_depend_on_its_steps(wanted, made, tmp_path, size, steps):
    tokenizer, rows = made
    normalize, formula = wanted
    found = update(tokenizer, rows, tmp_path, normalize, size=size, steps=steps)
    assert_update(found, formula)


@pytest.mark.parametrize("collator", [{}, {"label_positions": 20}])
def test_masking_on_the_device_and_static_shapes_change_nothing(wanted, made, tmp_path, collator):
    tokenizer, rows = made
    normalize, formula = wanted
    for on_device in (False, True):
        found = update(
            tokenizer, rows, tmp_path, normalize, size=4, steps=2, mask_on_device=on_device,
            collator=collator,
        )  # fmt: skip
        assert_update(found, formula)


def test_packed_updates_have_the_same_loss(wanted, made, tmp_path):
    tokenizer, rows = made
    normalize, (loss, gradients) = wanted
    if normalize == "batch":  # a packed batch has no padding to count
        share = len(rows) * LENGTH / sum(len(row["input_ids"]) for row in rows)
        loss, gradients = loss * share, {name: g * share for name, g in gradients.items()}
    plain = [{k: v for k, v in row.items() if k != "attention_mask"} for row in rows]
    found = update(
        tokenizer, plain, tmp_path, normalize, steps=8, packing=BLOCK,
        collator={"pad_to_multiple_of": None},
    )  # fmt: skip
    assert_update(found, (loss, gradients))
    packing = build_collator(tokenizer, normalize, DataCollatorWithPacking, attention="varlen")
    assert packing(plain)["num_items"].shape == (1,)


def test_a_loop_of_ones_own_sums_the_items(wanted, made):
    tokenizer, rows = made
    normalize, formula = wanted
    collator, model = build_collator(tokenizer, normalize), fuse_loss(build_model(tokenizer))
    batches = [collator([dict(row) for row in rows[a : a + 3]]) for a in (0, 3, 6)]
    items = sum(batch["num_items"].sum() for batch in batches)
    assert not items.is_floating_point()
    total = 0.0
    for batch in batches:
        batch["num_items"] = items
        loss = model(**batch).loss
        loss.backward()
        total += float(loss.detach())
    assert_update((total, gradients_of(model)), formula)


def test_eval_loss_is_the_bound_whatever_the_batch_size(made, tmp_path):
    tokenizer, rows = made
    model = fuse_loss(build_model(tokenizer))
    fixed = build_collator(tokenizer, "maskable").for_evaluation()
    batch = fixed([dict(row) for row in rows])
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids")}
    logits = build_model(tokenizer).eval()(**inputs).logits.detach()
    losses = F.cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none")
    bound = float((losses * batch["label_weights"]).sum() / batch["num_items"].sum())
    seen = set()
    for size in (1, 3, 8):
        trainer = build_trainer(
            model, tokenizer, rows, tmp_path, "sequence", per_device_eval_batch_size=size
        )
        once, twice = (trainer.evaluate()["eval_loss"] for _ in range(2))
        assert once == twice
        assert abs(once - bound) <= 1e-6 * bound
        seen.add(round(once, 5))
    assert len(seen) == 1


class Recording(Trainer):
    """Remembers what each step is trained on."""

    def training_step(self, model, inputs, *args, **kwargs):
        kept = {name: value.clone() for name, value in inputs.items()}
        self.seen = [*getattr(self, "seen", []), (self.state.global_step, kept)]
        return super().training_step(model, inputs, *args, **kwargs)


def test_a_resumed_run_has_the_times_and_weights_of_the_whole_run(made, tmp_path):
    tokenizer, rows = made

    def steps(resume=None):
        trainer = build_trainer(
            fuse_loss(build_model(tokenizer)), tokenizer, rows, tmp_path, "maskable", 2,
            kind=Recording, max_steps=7, save_strategy="steps", save_steps=1,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        return trainer.seen

    whole, rest = steps(), steps(str(tmp_path / "checkpoint-3"))
    assert [step for step, _ in rest] == [3, 4, 5, 6]
    for (_, one), (_, two) in zip(whole[3:], rest, strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            assert torch.equal(value, two[name]), name
    assert not torch.equal(whole[0][1]["label_weights"], whole[4][1]["label_weights"])


def test_a_model_that_ignores_weights_is_refused(made, tmp_path):
    tokenizer, rows = made
    trainer = build_trainer(build_model(tokenizer), tokenizer, rows, tmp_path, "maskable")
    with pytest.raises(ValueError, match=r"BertForMaskedLM ignores: call maskft\.fuse_loss"):
        trainer.train()


def test_a_model_that_ignores_the_number_of_items_is_refused(made, tmp_path):
    tokenizer, rows = made
    trainer = build_trainer(build_model(tokenizer), tokenizer, rows, tmp_path, "maskable")
    trainer.data_collator.strategy = lambda tokens: Plan(num_items=tokens.may_mask().sum(1))
    trainer.data_collator.__post_init__()
    with pytest.raises(ValueError, match="have num_items, which BertForMaskedLM ignores"):
        trainer.train()
    with pytest.raises(ValueError, match="has num_items, which a model that is not fused"):
        trainer.evaluate()


def test_a_trainer_that_is_not_attached_is_refused(made, tmp_path):
    """It would divide by its own count of labels."""
    tokenizer, rows = made
    model = fuse_loss(build_model(tokenizer))
    trainer = detach(build_trainer(model, tokenizer, rows, tmp_path, "maskable"))
    trainer.args.remove_unused_columns = False
    with pytest.raises(ValueError, match=r"num_items.*maskft\.attach\(trainer\)"):
        trainer.train()


def test_detach_has_trainer_count_labels_again(made, tmp_path):
    tokenizer, rows = made
    model = fuse_loss(build_model(tokenizer))
    trainer = build_trainer(model, tokenizer, rows, tmp_path, "maskable")
    batch = trainer.data_collator([dict(row) for row in rows])
    device = torch.device("cpu")
    items = trainer._get_num_items_in_batch([dict(batch), dict(batch)], device)
    assert items == 2 * batch["num_items"].sum()
    assert trainer._get_num_items_in_batch([], device) is None
    labels = (batch["labels"] != -100).sum()
    plain = [{k: v for k, v in row.items() if k != "answer"} for row in rows]
    plain = DataCollatorForLanguageModeling(tokenizer, seed=1)(plain)
    assert trainer._get_num_items_in_batch([plain], device) == (plain["labels"] != -100).sum()
    assert detach(trainer)._get_num_items_in_batch([batch], device) == labels
