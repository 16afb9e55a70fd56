"""A training step on a GPU: without a wait, captured once, replayed over varied batches."""

import copy

import pytest
import torch

from maskft import DataCollatorForLanguageModeling, UnmaskedCollator, fuse_loss, mask_batch
from tests.support.example import load_example

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("no GPU on this machine", allow_module_level=True)


def on_gpu(batch):
    return {name: value.cuda() for name, value in batch.items()}


@pytest.fixture(params=["padded", "packed"])
def run(request):
    """(the example, a model without dropout on the GPU, its batches)."""
    example = load_example()
    model = example.make_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    loader, _ = example.make_loader(request.param, example.make_rows(160), model)
    return example, model.cuda(), [on_gpu(batch) for batch in loader]


@pytest.mark.long
def test_a_captured_step_is_the_stock_step_run_eagerly(run):
    example, model, batches = run
    stock = copy.deepcopy(model)
    step = example.captured(example.make_step(fuse_loss(model)), batches[0])
    for batch in batches:
        loss = step(batch)
        stock.zero_grad()
        expected = stock(**{n: v for n, v in batch.items() if n != "label_positions"}).loss
        expected.backward()
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-4, atol=0)
        largest = max(p.grad.abs().max() for p in stock.parameters())
        for p, q in zip(model.parameters(), stock.parameters(), strict=True):
            assert (p.grad - q.grad).abs().max() <= 1e-4 * largest


@pytest.mark.long
def test_the_optimizer_can_be_in_the_graph(run):
    example, model, batches = run
    fuse_loss(model)
    step = example.make_step(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, capturable=True)

    def update(batch):
        loss = step(batch)
        optimizer.step()
        return loss

    replay = example.captured(update, batches[0])
    losses = [replay(batch) for _ in range(20) for batch in batches]
    n = len(batches)
    assert torch.stack(losses[-n:]).mean() < torch.stack(losses[:n]).mean()


@pytest.mark.long
def test_it_compiles_once_on_the_device(run):
    example, model, batches = run
    torch._dynamo.reset()
    step = example.compiled(example.make_step(fuse_loss(model)))
    with torch._dynamo.config.patch(error_on_recompile=True, trace_autograd_ops=True):
        for batch in batches:
            assert step(batch).isfinite()


@pytest.mark.long
def test_an_uncompiled_step_never_waits(run):
    """Masks of the batch are [B, 1, 1, T]: one of [B, T] Transformers itself reads."""
    example, model, batches = run
    step = example.make_step(fuse_loss(model))
    for batch in batches:
        if batch["attention_mask"].dim() == 2:
            batch["attention_mask"] = batch["attention_mask"][:, None, None, :].bool()
    step(batches[0])  # the first call checks what the model does to its logits
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = [step(batch) for batch in batches]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.stack(losses).isfinite().all()


def test_masking_on_the_device_gives_the_collators_batch_without_a_wait():
    example = load_example()
    collator = DataCollatorForLanguageModeling(
        example.make_tokenizer(), rng="sample", seed=1, selection="budget",
        pad_to_multiple_of=example.LENGTH, label_positions=example.CAPACITY["padded"],
    )  # fmt: skip
    rows = example.make_rows(example.ROWS)
    expected, plain = collator(rows), UnmaskedCollator(collator)(rows)
    plain["masking"] = {name: value.cuda() for name, value in plain["masking"].items()}
    plain = {n: v if isinstance(v, dict) else v.cuda() for n, v in plain.items()}
    mask_batch(plain, collator)  # the tables of the vocabulary are copied once
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = mask_batch(plain, collator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name, value in expected.items():
        assert torch.equal(found[name].cpu(), value), name
