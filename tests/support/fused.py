"""Fused models and stock ones: gradients of a batch, and one update in a Trainer."""

import torch
import transformers
from torch import nn
from transformers import Trainer, TrainingArguments

from tests.support.tiny import VOCABULARY

LENGTH = 16


class LabelledRows(torch.utils.data.Dataset):
    """LabelledRows with unequal numbers of labels."""

    def __init__(self, count=8, weighted=False):
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(6, VOCABULARY, (count, LENGTH), generator=generator)
        shares = torch.linspace(0.05, 0.6, count)[:, None]
        labelled = torch.rand(self.ids.shape, generator=generator) < shares
        labelled[:, 1] = True
        self.labels = torch.where(labelled, self.ids, -100)
        self.weights = torch.rand(self.ids.shape, generator=generator) * 3 if weighted else None

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        row = {"input_ids": self.ids[i], "labels": self.labels[i]}
        return row if self.weights is None else row | {"label_weights": self.weights[i]}


class GradientWatcher(Trainer):
    """Keeps the gradients of the first update."""

    found = None

    def _clip_grad_norm(self, model, *args, **kwargs):
        if self.found is None:
            parameters = self.accelerator.unwrap_model(model).named_parameters()
            self.found = {n: p.grad.clone() for n, p in parameters if p.grad is not None}
        return super()._clip_grad_norm(model, *args, **kwargs)


def update(model, path, size=8, steps=1, kind=GradientWatcher, weighted=False, **options):
    options = {
        "per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 1,
        "logging_steps": 1, "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
        "use_cpu": True, "seed": 0, "per_device_eval_batch_size": 3, "max_grad_norm": 1.0,
    } | options  # fmt: skip
    trainer = kind(
        model=model,
        args=TrainingArguments(output_dir=str(path), **options),
        train_dataset=LabelledRows(weighted=weighted),
        eval_dataset=LabelledRows(weighted=weighted),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return trainer, float(trainer.state.log_history[0]["loss"])


def still(model):
    """Without dropout, so that a step can be repeated."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    for name in vars(model.config):
        if "drop" in name and isinstance(getattr(model.config, name), float):
            setattr(model.config, name, 0.0)
    return model


def gradients(model, batch, **kwargs):
    model.zero_grad()
    loss = model(**batch, **kwargs).loss
    loss.backward()
    return loss.detach(), {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


def assert_same(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found[0].float(), expected[0].float(), rtol=tolerance, atol=0)
    assert found[1].keys() == expected[1].keys()
    scale = max(g.abs().max() for g in expected[1].values())
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).abs().max() <= tolerance * scale, name


class RowCounter:
    """Counts the rows that a module sees."""

    def __init__(self, module):
        self.seen = []
        module.register_forward_pre_hook(lambda _, args: self.seen.append(args[0][..., 0].numel()))
