"""What ``test_packed_trainer`` runs in two processes: a packed Trainer, whole and resumed."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import BertConfig, BertForMaskedLM, set_seed

from tests.support.packed import TEXTS, build, rows_of
from tests.support.small import build_wordpiece


def trained_on(trainer):
    """The rows of each batch, as they were before masking."""
    return [
        [tuple(b if b != -100 else a for a, b in zip(*row, strict=True)) for row in rows_of(batch)]
        for batch in trainer.batches
    ]


def main(folder):
    set_seed(0)
    tokenizer = build_wordpiece()
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=64,
        )
    )  # fmt: skip
    rows = [dict(tokenizer(text)) for text in TEXTS]
    for name, resume in (("whole", None), ("resumed", folder / "whole" / "checkpoint-6")):
        trainer = build(
            model, tokenizer, rows, folder / name, ddp_backend="gloo", num_train_epochs=3,
            save_strategy="steps", save_steps=6,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        found = {
            "rows": trained_on(trainer),
            "weights": [p.detach() for p in trainer.model.parameters()],
        }
        torch.save(found, folder / f"{name}{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
