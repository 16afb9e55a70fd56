"""The published losses of masked diffusion, written plainly, and one update in a Trainer."""

import torch
import transformers
from torch.nn import functional as F
from transformers import TrainingArguments

from maskft import DataCollatorForLanguageModeling, attach, fuse_loss
from maskft.strategy import Diffusion
from tests.support import contract
from tests.support.fused import GradientWatcher, still
from tests.support.small import CORPUS, build_bert, build_wordpiece
from tests.support.trainers import Rows

SEED, LENGTH = 5, 32
NORMALIZE = ("maskable", "batch", "sequence")


def example_rows(count=8):
    """Rows with a prompt that is never masked and an answer that may be."""
    tokenizer = build_wordpiece()
    rows = [dict(tokenizer(f"{text} {i}")) for i, text in enumerate(CORPUS[:count])]
    for i, row in enumerate(rows):
        n = len(row["input_ids"])
        row["answer"] = [int(j > 1 + i % 5) for j in range(n)]
    return tokenizer, rows


def rate(ids, eps=1e-3, epoch=0):
    """The rate of a row, from the contract's text."""
    word = contract.word(SEED, epoch, 10, contract.row_hash(dict(enumerate(ids))), 0)
    return (1 - eps) * ((word + 0.5) / 2.0**32) + eps


def llada_pretraining(logits, ids, masked, p, maskable):
    """Nie et al. 2025, algorithm 1 (and SMDM's): over all B * L tokens."""
    p_mask = p[:, None].expand(ids.shape)
    token_loss = F.cross_entropy(logits[masked], ids[masked], reduction="none") / p_mask[masked]
    return token_loss.sum() / (ids.shape[0] * ids.shape[1])


def llada_fine_tuning(logits, ids, masked, p, maskable):
    """Nie et al. 2025, algorithm 2: each answer by its length, then the batch."""
    total = logits.new_zeros(())
    for row in range(len(ids)):
        for place in masked[row].nonzero().flatten():
            log_p = logits[row, place].log_softmax(-1)[ids[row, place]]
            total = total - log_p / p[row] / maskable[row].sum()
    return total / len(ids)


def mdlm(logits, ids, masked, p, maskable):
    """Sahoo et al. 2024, equation 11 with alpha = 1 - t: unmasked tokens are carried over."""
    log_p = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    log_p = torch.where(masked, log_p, 0.0)
    alpha, slope = 1 - p, -1.0
    return (slope / (1 - alpha)[:, None] * log_p).sum() / maskable.sum()


FORMULAS = {"maskable": mdlm, "batch": llada_pretraining, "sequence": llada_fine_tuning}


def build_model(tokenizer):
    return still(build_bert(tokenizer)).double()


def build_collator(tokenizer, normalize, kind=DataCollatorForLanguageModeling, **options):
    options = {"rng": "sample", "seed": SEED, "mask_only": "answer"} | options
    if kind is DataCollatorForLanguageModeling:
        options = {"pad_to_multiple_of": LENGTH} | options
    return kind(tokenizer, strategy=Diffusion(normalize=normalize), **options)


def expected(model, tokenizer, rows, normalize, length=LENGTH):
    """(loss, gradients) of the formula on the stock ``model`` over all rows at once."""
    collator = build_collator(tokenizer, normalize)
    batch = collator([dict(row) for row in rows])
    ids = torch.full((len(rows), LENGTH), tokenizer.pad_token_id)
    maskable = torch.zeros(ids.shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        n = len(row["input_ids"])
        ids[i, :n] = torch.tensor(row["input_ids"])
        special = torch.isin(ids[i, :n], torch.tensor(tokenizer.all_special_ids))
        maskable[i, :n] = torch.tensor(row["answer"]).bool() & ~special
    p = torch.tensor([rate(row["input_ids"]) for row in rows], dtype=torch.float64)
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids")}
    masked = batch["labels"] != -100
    assert masked.any()
    model.zero_grad()
    loss = FORMULAS[normalize](model(**inputs).logits, ids, masked, p, maskable)
    loss.backward()
    return loss.detach(), gradients_of(model)


def gradients_of(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def build_trainer(
    model, tokenizer, rows, path, normalize, size=8, steps=1, dataset=Rows, kind=GradientWatcher,
    **options,
):  # fmt: skip
    attached = {k: options.pop(k) for k in ("packing", "mask_on_device") if k in options}
    collator = build_collator(tokenizer, normalize, **options.pop("collator", {}))
    options = {
        "per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 1,
        "logging_steps": 1, "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
        "use_cpu": True, "seed": 0, "per_device_eval_batch_size": 3,
    } | options  # fmt: skip
    trainer = kind(
        model=model,
        args=TrainingArguments(output_dir=str(path), **options),
        train_dataset=dataset(rows),
        eval_dataset=Rows(rows),
        data_collator=collator,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return attach(trainer, **attached)


def update(tokenizer, rows, path, normalize, **options):
    """(loss, gradients) of one update over all rows."""
    model = fuse_loss(build_model(tokenizer))
    trainer = build_trainer(model, tokenizer, rows, path, normalize, **options)
    trainer.train()
    return float(trainer.state.log_history[0]["loss"]), trainer.found


def assert_update(found, wanted, tolerance=1e-6):
    """The weights are float32: relative errors of 2^-24 in each."""
    loss, gradients = found
    assert abs(loss - float(wanted[0])) <= tolerance * float(wanted[0])
    assert gradients.keys() == wanted[1].keys()
    scale = max(g.abs().max() for g in wanted[1].values())
    for name, gradient in wanted[1].items():
        assert (gradients[name] - gradient).abs().max() <= tolerance * scale, name
