"""Static shapes: a step over batches of varied content is compiled once, and is stock's step."""

import copy
import warnings

import pytest
import torch
from accelerate.utils import concatenate, slice_tensors
from torch._dynamo.exc import RecompileError
from transformers import Trainer, TrainingArguments

from maskft import (
    DataCollatorForLanguageModeling,
    DataCollatorWithPacking,
    PackedBatchSampler,
    UnmaskedCollator,
    attach,
    fuse_loss,
    mask_batch,
)
from maskft.fuse import fused
from maskft.fuse.call import flat_positions
from tests.support.device import DEVICE, Waits, on_device
from tests.support.example import load_example
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.trainers import Stream

pytestmark = pytest.mark.slow

BUDGET = {"rng": "sample", "seed": 1, "selection": "budget"}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True, trace_autograd_ops=True):
        yield
    torch._dynamo.reset()


def test_the_example_compiles_once_and_learns(capsys):
    losses = load_example().main(["--backend", "eager", "--rows", "240", "--epochs", "5"])
    assert "2 graphs (step, optimizer) compiled once" in capsys.readouterr().out
    assert len(losses) > 50
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_compiled_step_is_the_stock_step_run_eagerly(layout):
    """Forward, fused loss and backward in one graph: loss and gradients of the plain model."""
    example = load_example()
    model = example.make_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    loader, _ = example.make_loader(layout, example.make_rows(160), model)
    stock = copy.deepcopy(model)
    step = example.compiled(example.make_step(fuse_loss(model)), backend="aot_eager")
    shapes, contents = set(), set()
    for batch in loader:
        loss = step(batch)
        stock.zero_grad()
        given = {name: value for name, value in batch.items() if name != "label_positions"}
        expected = stock(**given).loss
        expected.backward()
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=0)
        largest = max(p.grad.abs().max() for p in stock.parameters())
        for p, q in zip(model.parameters(), stock.parameters(), strict=True):
            assert (p.grad - q.grad).abs().max() <= 1e-5 * largest
        shapes.add(tuple((name, value.shape) for name, value in batch.items()))
        real = int((batch["input_ids"] != 0).sum())
        contents.add((real, int((batch["label_positions"] >= 0).sum())))
    assert len(shapes) == 1
    assert len(contents) >= 5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_without_a_number_of_places_it_compiles_anew():
    """So the counter can fail."""
    example = load_example()
    model = example.make_model()
    loader, collator = example.make_loader("padded", example.make_rows(64), model)
    collator.label_positions, collator.selection = True, "bernoulli"
    step = example.compiled(example.make_step(fuse_loss(model)), backend="eager")
    with pytest.raises(RecompileError):
        list(map(step, loader))


@pytest.mark.parametrize("packing", [False, 64])
def test_a_trainer_compiles_once(tmp_path, tokenizer, rows, tiny_bert, packing):
    """With accumulation, where the number of labels in an update varies."""
    rows = [{"input_ids": r["input_ids"], "attention_mask": r["attention_mask"]} for r in rows]
    collator = DataCollatorForLanguageModeling(
        tokenizer, pad_to_multiple_of=64, label_positions=4 * 10, **BUDGET
    )
    trainer = Trainer(
        model=fuse_loss(tiny_bert),
        args=TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=4, report_to="none",
            gradient_accumulation_steps=2, dataloader_drop_last=True, num_train_epochs=2,
            torch_compile=True, torch_compile_backend="aot_eager", use_cpu=True,
            save_strategy="no", disable_tqdm=True,
        ),
        train_dataset=rows,
        data_collator=collator,
    )  # fmt: skip
    attach(trainer, packing=packing).train()
    assert trainer.state.global_step >= 6
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("packing", [False, 64])
def test_masked_diffusion_compiles_once(tmp_path, tokenizer, rows, tiny_bert, packing):
    """Whatever share of a batch its rows' times mask."""
    rows = [{"input_ids": r["input_ids"], "attention_mask": r["attention_mask"]} for r in rows]
    collator = DataCollatorForLanguageModeling(
        tokenizer, strategy="diffusion", rng="sample", seed=1, pad_to_multiple_of=64,
        label_positions=64,
    )  # fmt: skip
    trainer = Trainer(
        model=fuse_loss(tiny_bert),
        args=TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=4, report_to="none",
            gradient_accumulation_steps=2, dataloader_drop_last=True, num_train_epochs=2,
            torch_compile=True, torch_compile_backend="aot_eager", use_cpu=True,
            save_strategy="no", disable_tqdm=True,
        ),
        train_dataset=rows,
        data_collator=collator,
    )  # fmt: skip
    attach(trainer, packing=packing).train()
    assert trainer.state.global_step >= 4
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_labels_left_out_are_a_nan_in_compiled_code(name):
    model = fuse_loss(tiny_model({"bert": "masked", "llama": "causal"}[name], name))
    batch = tiny_batch(model)
    places = (batch["labels"].reshape(-1) != -100).nonzero().squeeze(1)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    loss = compiled(**batch, label_positions=places).loss
    torch.testing.assert_close(loss, model(**batch).loss)
    for place in (-1, places[-2], 10**6):  # left out, named twice, none of the batch
        places[-1] = place
        assert_poisoned(model, compiled(**batch, label_positions=places).loss)


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("linear", [None, False])
def test_more_labels_than_capacity_poison_the_gradients(name, linear):
    """A NaN loss whose gradients are 0 trains nothing, and Trainer logs it as 0."""
    model = tiny_model({"bert": "masked", "llama": "causal"}[name], name)
    batch = tiny_batch(model)
    fuse_loss(model, capacity=3, linear=linear)
    assert_poisoned(model, torch.compile(model, backend="eager", fullgraph=True)(**batch).loss)


def assert_poisoned(model, loss):
    assert loss.isnan()
    model.zero_grad()
    loss.backward()
    assert model.get_output_embeddings().weight.grad.isnan().any()


def test_places_are_those_of_each_row_and_survive_cutting(tokenizer, rows, tiny_bert):
    """As accelerate's dispatching loader joins batches and cuts them by rows."""
    collator = DataCollatorForLanguageModeling(
        tokenizer, pad_to_multiple_of=64, label_positions=12, **BUDGET
    )
    batches = [collator(rows[:4]), collator(rows[4:8])]
    joined = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    fuse_loss(tiny_bert.eval())
    for part in (slice(0, 4), slice(4, 8), slice(1, 3), slice(2, 7)):
        cut = {name: value[part] for name, value in joined.items()}
        found = tiny_bert(**cut).loss
        cut.pop("label_positions")
        assert torch.equal(found, tiny_bert(**cut).loss)


def test_an_iterable_dataset_dispatched_by_accelerate(tokenizer, rows, tiny_bert, tmp_path):
    """Its loader cuts every tensor to the batch size."""
    collator = DataCollatorForLanguageModeling(tokenizer, label_positions=True, **BUDGET)
    trainer = Trainer(
        model=fuse_loss(tiny_bert),
        args=TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=4, report_to="none", max_steps=2,
            use_cpu=True, save_strategy="no", disable_tqdm=True, logging_steps=1,
            accelerator_config={"dispatch_batches": True},
        ),
        train_dataset=Stream(rows),
        data_collator=collator,
    )  # fmt: skip
    trainer.train()
    assert all(log["loss"] > 0 for log in trainer.state.log_history if "loss" in log)


@pytest.mark.parametrize("strategy", ["random", "whole_word"])
def test_rows_masked_on_the_device_are_dispatched_too(
    tokenizer, rows, tiny_bert, tmp_path, strategy
):
    """Also with ids that the tokenizer does not know, of which a GPU must be told."""
    known = len(tokenizer)
    tiny_bert.resize_token_embeddings(known + 8)
    rows = [{"input_ids": [2, 40, known + i % 8, 41, 3]} for i in range(16)]
    collator = DataCollatorForLanguageModeling(
        tokenizer, rng="sample", seed=1, mlm_probability=1.0, strategy=strategy
    )
    trainer = Trainer(
        model=tiny_bert,
        args=TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=4, report_to="none", max_steps=4,
            use_cpu=True, save_strategy="no", disable_tqdm=True,
            accelerator_config={"dispatch_batches": True},
        ),
        train_dataset=Stream(rows),
        data_collator=collator,
    )  # fmt: skip
    seen, forward = [], tiny_bert.forward

    def recorded(**batch):
        assert "masking" not in batch
        seen.append(batch["labels"].clone())
        return forward(**batch)

    tiny_bert.forward = recorded
    trainer._signature_columns = [*rows[0], "attention_mask", "labels"]
    attach(trainer, mask_on_device=True)
    with pytest.warns(UserWarning, match="input_ids hold"):
        trainer.train()
    labels = torch.cat(seen)
    assert labels[:, 2].tolist() == [known + i % 8 for i in range(16)]
    assert (labels[:, 1] == 40).all()


def test_a_packed_batch_that_would_be_dispatched_is_refused(tokenizer, rows):
    packing = DataCollatorWithPacking(tokenizer, attention="block_diagonal", seed=1)
    with pytest.raises(ValueError, match="a packed batch cannot be cut and joined by rows"):
        UnmaskedCollator(packing, dispatched=True)(rows)
    with pytest.raises(TypeError, match="dispatched must be True or False, got 1"):
        UnmaskedCollator(packing, dispatched=1)


def test_dispatched_batches_can_be_cut_and_joined(tokenizer, rows):
    known = len(tokenizer)
    collator = DataCollatorForLanguageModeling(tokenizer, rng="sample", mlm_probability=1.0)
    unmasked = UnmaskedCollator(collator, dispatched=True)
    batches = [unmasked([[2, 40, 3]] * 2), unmasked([[2, known + 3, 3]] * 2)]
    joined = concatenate(batches)
    for part in (slice(0, 2), slice(1, 3), slice(2, 4)):
        cut = slice_tensors(joined, part)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            labels = mask_batch(cut, collator)["labels"]
        assert labels[:, 1].tolist() == [40, 40, known + 3, known + 3][part]


def test_flat_places_that_were_cut_name_the_cause():
    model = fuse_loss(tiny_model("masked", "bert"))
    batch = tiny_batch(model)
    places = (batch["labels"].reshape(-1) != -100).nonzero().squeeze(1)
    with pytest.raises(ValueError, match=r"a loader that cuts batches .* each row, \[B, k\]"):
        model(**batch, label_positions=places[:2])
    with pytest.raises(ValueError, match=r"must be \[B, k\].* got \(3, 1\) for labels"):
        model(**batch, label_positions=places[:3, None])
    with pytest.raises(ValueError, match="places in the 16 labels of each row"):
        model(**batch, label_positions=torch.full((2, 3), 16))


@pytest.mark.parametrize("linear", [None, False])
@pytest.mark.parametrize("way", ["positions", "capacity"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_training_step_never_waits_for_a_gpu(name, way, linear):
    """A mask [B, 1, T, T], because Transformers reads one of [B, T] at every uncompiled call."""
    model = tiny_model({"bert": "masked", "llama": "causal"}[name], name)
    fuse_loss(model, linear=linear, capacity=20 if way == "capacity" else None)
    fused(model).verified = True  # as after a first call, which looks at its loss
    model.to(DEVICE)
    batch = tiny_batch(model) | {"num_items_in_batch": torch.tensor(9)}
    batch = {name: value.to(DEVICE) for name, value in batch.items()}
    batch["attention_mask"] = torch.ones(2, 1, 16, 16, dtype=torch.bool, device=DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    places = torch.empty(20, dtype=torch.int64, device=DEVICE)
    with on_device() as launched:
        if way == "positions":
            batch["label_positions"] = places
        model(**batch).loss.backward()
        gathered = ["_gather"] if linear is None else []
        scaled = ["_scale"] * launched.count("_scale")
        assert launched == ["_select", *gathered, "_cross_entropy", *scaled]
        assert "_scale" in launched
        optimizer.step()


def test_searching_for_labels_would_wait():
    """So the test above can fail."""
    model = fuse_loss(tiny_model("masked", "bert"))
    model.to(DEVICE)
    batch = {name: value.to(DEVICE) for name, value in tiny_batch(model).items()}
    with on_device(), pytest.raises(Waits, match="nonzero"):
        model(**batch)


@pytest.mark.parametrize("strategy", ["random", "whole_word"])
@pytest.mark.parametrize("selection", ["bernoulli", "budget"])
def test_masking_on_a_gpu_never_waits(tokenizer, rows, strategy, selection):
    collator = DataCollatorForLanguageModeling(
        tokenizer, rng="sample", strategy=strategy, selection=selection, label_positions=40,
        pad_to_multiple_of=64,
    )  # fmt: skip
    plain = UnmaskedCollator(collator)(rows[:4])
    assert "label_positions" not in plain
    batch = {
        name: {n: v.to(DEVICE) for n, v in value.items()}
        if isinstance(value, dict)
        else value.to(DEVICE)
        for name, value in plain.items()
    }
    mask_batch(batch, collator)  # the tables of the vocabulary are copied once
    with on_device() as launched:
        masked = mask_batch(batch, collator)
    assert "_mask_tokens" in launched
    assert masked["label_positions"].shape == (4, 40)
    assert masked["labels"].shape == masked["input_ids"].shape == (4, 64)
    unmasked = collator.prepare(rows[:4]).to(DEVICE)
    with on_device() as launched:
        direct = collator.mask(unmasked)
    assert "_mask_tokens" in launched
    assert {n: v.shape for n, v in direct.items()} == {n: v.shape for n, v in masked.items()}


@pytest.mark.parametrize("packed", [False, True])
def test_masking_where_the_model_is_names_the_same_places(tokenizer, rows, tiny_bert, packed):
    options = {**BUDGET, "label_positions": 48}
    collator = DataCollatorForLanguageModeling(tokenizer, pad_to_multiple_of=64, **options)
    if packed:
        collator = DataCollatorWithPacking.for_model(
            tiny_bert, tokenizer, total_length=256, **options
        )
    for part in (rows[:4], rows[3:7]):
        expected, found = collator(part), mask_batch(UnmaskedCollator(collator)(part), collator)
        assert torch.equal(expected["label_positions"], found["label_positions"])
        places, looked = flat_positions(found["label_positions"], found["labels"], False)
        assert looked
        assert torch.equal(places, (found["labels"].reshape(-1) != -100).nonzero().squeeze(1))
        assert found["label_positions"].shape == (len(found["labels"]), 48)


def test_places_that_do_not_suffice_are_an_error(tokenizer, rows):
    collator = DataCollatorForLanguageModeling(tokenizer, label_positions=2, **BUDGET)
    with pytest.raises(ValueError, match=r"has \d+ labels, label_positions=2 has no room"):
        collator(rows)
    assert collator.for_evaluation()(rows)["label_positions"].numel() > 2  # evaluation has room
    for wrong in (0, -3, 1.5, "all"):
        with pytest.raises(ValueError, match="label_positions must be True, False or a positive"):
            DataCollatorForLanguageModeling(tokenizer, label_positions=wrong)


def test_counting_labels_on_a_gpu_is_refused(tokenizer, rows):
    collator = DataCollatorForLanguageModeling(tokenizer, rng="sample", label_positions=True)
    ids = torch.zeros(2, 8, dtype=torch.int64, device=DEVICE)
    with pytest.raises(ValueError, match=r"label_positions=n"):
        mask_batch({"input_ids": ids}, collator)


@pytest.mark.parametrize("total_length", [64, None])
def test_packed_batches_of_a_total_length_compile_once(tokenizer, rows, tiny_bert, total_length):
    """And without one the check raises, so it can fail."""
    sampler = PackedBatchSampler([len(row["input_ids"]) for row in rows], 64, seed=1)
    packing = DataCollatorWithPacking.for_model(
        tiny_bert, tokenizer, rng="sample", total_length=total_length
    )
    tiny_bert.eval()
    compiled = torch.compile(tiny_bert, backend="eager", dynamic=False)

    def run():
        for batch in sampler:
            packed = packing([rows[i] for i in batch])
            expected = tiny_bert(**packed).loss
            assert torch.allclose(compiled(**packed).loss, expected)

    if total_length is None:
        with pytest.raises(RecompileError):
            run()
    else:
        run()


def test_bounds_for_flash_attention_compile_once(tokenizer, rows):
    """Their shape and the longest row, a number, stay the same; so does a function of them."""
    packing = DataCollatorWithPacking(
        tokenizer, attention="varlen", rng="sample", total_length=128, max_samples=12
    )

    def consume(input_ids, cu_seq_lens_q, max_length_q, **_):
        return input_ids.sum() * max_length_q + cu_seq_lens_q.sum()

    compiled = torch.compile(consume, backend="eager", dynamic=False, fullgraph=True)
    for part in (rows[:4], rows[4:6], rows[6:7] * 8):
        packed = packing(part)
        assert compiled(**packed) == consume(**packed)
