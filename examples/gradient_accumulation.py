"""Trainer's loss under gradient accumulation: wrong for most masked language models, and the cure.

    python examples/gradient_accumulation.py

The same 8 rows make one update, as 1 x 8, 2 x 4, 4 x 2 and 8 x 1. Trainer counts the labels of the
update and hands the number to the model as num_items_in_batch, for the model to divide its summed
loss by. BertForMaskedLM takes the number among its **kwargs, ignores it and returns its own mean;
Trainer adds those means up and divides by nothing. maskft.fuse_loss has the model divide.
"""

import copy
import tempfile

import torch
import transformers
from transformers import BertConfig, BertForMaskedLM, Trainer, TrainingArguments

import maskft

VOCABULARY, LENGTH = 100, 24


def rows(count: int = 8) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        ids = torch.randint(5, VOCABULARY, (LENGTH,), generator=generator)
        predicted = torch.rand(LENGTH, generator=generator) < 0.15
        predicted[0] = True
        labels = torch.where(predicted, ids, -100)
        input_ids = torch.where(predicted, 4, ids)
        made.append({"input_ids": input_ids.tolist(), "labels": labels.tolist()})
    return made


def one_update(model: BertForMaskedLM, size: int, steps: int) -> tuple[float, float]:
    """The loss and the gradient norm that Trainer reports for one update."""
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=size, gradient_accumulation_steps=steps,
            max_steps=1, logging_steps=1, max_grad_norm=1.0, report_to="none", save_strategy="no",
            disable_tqdm=True, use_cpu=True, seed=0,
        )  # fmt: skip
        trainer = Trainer(model=model, args=args, train_dataset=rows())
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    log = trainer.state.log_history[0]
    return float(log["loss"]), float(log["grad_norm"])


def main() -> None:
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=LENGTH, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    print(f"{'rows a step x steps':<22}{'stock loss':>12}{'norm':>8}{'fused loss':>14}{'norm':>8}")
    for size, steps in ((8, 1), (4, 2), (2, 4), (1, 8)):
        stock = one_update(copy.deepcopy(model), size, steps)
        fused = one_update(maskft.fuse_loss(copy.deepcopy(model)), size, steps)
        numbers = f"{stock[0]:>12.4f}{stock[1]:>8.3f}{fused[0]:>14.4f}{fused[1]:>8.3f}"
        print(f"{size} x {steps:<18}{numbers}")


if __name__ == "__main__":
    main()
