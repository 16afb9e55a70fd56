"""Evaluation of sparsely labelled rows in a Trainer: what eval_loss is the mean of."""

import copy

import pytest
import torch
from transformers import Trainer, TrainingArguments

from maskft import DataCollatorForLanguageModeling, attach, detach, fuse_loss
from tests.support.fused import still
from tests.support.tiny import VOCABULARY, tiny_model

LENGTH = 6


class SparseRows(torch.utils.data.Dataset):
    """Rows of which half have no label, as entities and low rates leave them."""

    def __init__(self, count=12):
        generator = torch.Generator().manual_seed(3)
        self.ids = torch.randint(6, VOCABULARY, (count, LENGTH), generator=generator)
        self.labels = torch.full_like(self.ids, -100)
        for row in range(0, count, 2):
            self.labels[row, 1 : 2 + row % 5] = self.ids[row, 1 : 2 + row % 5]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "labels": self.labels[i]}


def stack(rows):
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def evaluator(model, path, size, **options):
    return Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(path), per_device_eval_batch_size=size, use_cpu=True,
            report_to="none", disable_tqdm=True, **options,
        ),
        data_collator=stack,
        eval_dataset=SparseRows(),
    )  # fmt: skip


@pytest.mark.parametrize("size", [1, 3])
def test_eval_loss_leaves_out_batches_without_labels(tmp_path, size):
    model = still(tiny_model("masked", "bert"))
    trainer = evaluator(copy.deepcopy(model), tmp_path, size)
    trainer.model_accepts_loss_kwargs = False  # stock BERT takes the mean of its own batch
    expected = trainer.evaluate()["eval_loss"]
    found = evaluator(fuse_loss(model), tmp_path, size).evaluate()["eval_loss"]
    assert abs(found - expected) < 1e-5 * expected


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("fuse", [True, False])
def test_attached_eval_loss_is_the_mean_over_tokens(tmp_path, tokenizer, name, fuse):
    model = still(tiny_model("masked" if name == "bert" else "causal", name))
    rows = SparseRows()
    with torch.no_grad():
        expected = model(input_ids=rows.ids, labels=rows.labels).loss.item()
    if fuse:
        fuse_loss(model)
    collator = DataCollatorForLanguageModeling(tokenizer, rng="sample", seed=1)
    for size in (1, 2, 5, 12):
        trainer = evaluator(model, tmp_path, size)
        trainer.data_collator = collator
        attach(trainer)
        trainer.get_eval_dataloader = lambda *_, n=size: torch.utils.data.DataLoader(
            rows, n, collate_fn=stack
        )
        counts = vars(trainer)["_get_num_items_in_batch"]
        found = trainer.evaluate()["eval_loss"]
        assert abs(found - expected) < 1e-5 * expected, size
        assert vars(trainer)["_get_num_items_in_batch"] is counts
        detach(trainer)
        replaced = {"prediction_step", "evaluation_loop", "_get_num_items_in_batch"}
        assert not replaced & vars(trainer).keys()


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_attached_eval_loss_is_the_weighted_mean_over_tokens(tmp_path, tokenizer, name):
    model = still(tiny_model("masked" if name == "bert" else "causal", name))
    rows = SparseRows()
    weights = torch.rand(rows.ids.shape, generator=torch.Generator().manual_seed(4)) * 2
    with torch.no_grad():
        logits, labels, scales = model(input_ids=rows.ids).logits, rows.labels, weights
    if name == "llama":
        logits, labels, scales = logits[:, :-1], labels[:, 1:], weights[:, 1:]
    losses = torch.nn.functional.cross_entropy(logits.mT, labels, reduction="none")
    scales = torch.where(labels == -100, 0.0, scales)
    expected = ((losses * scales).sum() / scales.sum()).item()
    weighted = [row | {"label_weights": w} for row, w in zip(rows, weights, strict=True)]

    def evaluate(size):
        trainer = evaluator(model, tmp_path, size)
        trainer.data_collator = DataCollatorForLanguageModeling(tokenizer, rng="sample", seed=1)
        attach(trainer)
        trainer.get_eval_dataloader = lambda *_: torch.utils.data.DataLoader(
            weighted, size, collate_fn=stack
        )
        return trainer.evaluate()["eval_loss"]

    with pytest.raises(ValueError, match=r"not fused ignores: use maskft\.fuse_loss"):
        evaluate(3)
    fuse_loss(model)
    for size in (1, 5, 12):
        assert abs(evaluate(size) - expected) < 1e-5 * expected, size
