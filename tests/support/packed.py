"""Trainers over packed batches, and the rows of a batch, packed or padded."""

import copy
import itertools

import datasets
import torch
import transformers
from transformers import Trainer, TrainingArguments

from maskft import DataCollatorForLanguageModeling, attach, fuse_loss
from tests.support.fused import still
from tests.support.small import CORPUS
from tests.support.trainers import Rows

BLOCK = 64
TEXTS = [*CORPUS, *(f"{text} {i}" for i, text in enumerate(CORPUS[:9]))]


class BatchWatcher(Trainer):
    """Keeps what the model is trained on."""

    def training_step(self, model, inputs, *args, **kwargs):
        kept = getattr(self, "batches", [])
        self.batches = [*kept, {n: v for n, v in inputs.items() if isinstance(v, torch.Tensor)}]
        return super().training_step(model, inputs, *args, **kwargs)


def build(model, tokenizer, rows, path, collator=None, packing=BLOCK, fused=True, **options):
    on_device = options.pop("mask_on_device", False)
    options = {
        "num_train_epochs": 2, "per_device_train_batch_size": 4, "report_to": "none",
        "use_cpu": True, "disable_tqdm": True, "seed": 1, "save_strategy": "no",
        "logging_steps": 1, "learning_rate": 1e-3, "max_grad_norm": 1.0,
        "include_num_input_tokens_seen": "non_padding",
    } | options  # fmt: skip
    model = still(copy.deepcopy(model))
    trainer = BatchWatcher(
        model=fuse_loss(model) if fused else model,
        args=TrainingArguments(output_dir=str(path), **options),
        train_dataset=rows if isinstance(rows, datasets.Dataset) else Rows(rows),
        eval_dataset=Rows(rows[:6]) if isinstance(rows, list) else None,
        data_collator=collator or DataCollatorForLanguageModeling(tokenizer, rng="sample", seed=1),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return attach(trainer, packing=packing, mask_on_device=on_device)


def rows_of(batch):
    """{(ids the model sees), (labels)} of each row of a packed or padded batch."""
    found = []
    for b in range(batch["input_ids"].shape[0]):
        ids, labels = batch["input_ids"][b], batch["labels"][b]
        if "position_ids" in batch:
            starts = (batch["position_ids"][b] == 0).nonzero().flatten().tolist()
            bounds = [*starts, len(ids)]
            parts = list(itertools.pairwise(bounds))
        else:
            parts = [(0, int(batch["attention_mask"][b].sum()))]
        found += [(tuple(ids[a:e].tolist()), tuple(labels[a:e].tolist())) for a, e in parts]
    return sorted(found)
