"""Models with two losses: of the masked tokens and of the row's sentences."""

import pytest
import torch
import transformers

from maskft import fuse_loss, unfuse_loss
from tests.support.fused import RowCounter, assert_same, gradients
from tests.support.tiny import tiny_batch, tiny_config

MODELS = {
    "BertForPreTraining": ("bert", "next_sentence_label"),
    "AlbertForPreTraining": ("albert", "sentence_order_label"),
}


@pytest.fixture(params=MODELS)
def case(request):
    torch.manual_seed(0)
    config, label = MODELS[request.param]
    model = getattr(transformers, request.param)(tiny_config(config)).eval()
    return model, tiny_batch(model) | {label: torch.tensor([0, 1])}, label


@pytest.mark.parametrize("linear", [None, False])
def test_both_losses_are_stocks(case, linear):
    model, batch, _ = case
    expected = gradients(model, batch)
    fuse_loss(model, check=batch, linear=linear)
    rows = RowCounter(model.get_output_embeddings())
    assert_same(gradients(model, batch), expected)
    assert rows.seen == [int((batch["labels"] != -100).sum())]
    outputs = model(**batch)
    assert outputs.prediction_logits is None
    with torch.no_grad():
        found = model(**batch)
        unfuse_loss(model)
        stock = model(**batch)
    assert found.keys() == stock.keys()
    for name in stock.keys():  # noqa: SIM118
        torch.testing.assert_close(found[name].detach(), stock[name])


def test_without_sentence_labels_the_tokens_count_alone(case):
    model, batch, label = case
    sentences = batch.pop(label)
    logits = model(input_ids=batch["input_ids"])
    tokens = torch.nn.functional.cross_entropy(
        logits.prediction_logits.flatten(0, 1), batch["labels"].flatten()
    )
    fuse_loss(model)
    torch.testing.assert_close(model(**batch).loss, tokens)
    assert model(**batch, **{label: sentences}).loss > tokens


def test_accumulated_parts_add_up_to_the_whole(case):
    model, batch, _ = case
    batch["labels"][:, :] = -100
    batch["labels"][:, 3:7] = batch["input_ids"][:, 3:7]  # as many in each row
    expected = gradients(model, batch)
    fuse_loss(model)
    model.zero_grad()
    total = 0.0
    for row in range(2):
        part = {name: value[row : row + 1] for name, value in batch.items()}
        loss = model(**part, num_items_in_batch=torch.tensor(8)).loss
        loss.backward()
        total += loss.detach()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert_same((total, found), expected)
