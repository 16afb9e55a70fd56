"""The predicted rows gathered within the last layer: where, when, and with the same results."""

import copy
import pickle

import pytest
import torch
from torch import nn

from maskft import fuse_loss, unfuse_loss
from maskft.fuse import fused
from maskft.fuse.check import compare
from tests.support.tiny import tiny_batch, tiny_model

BERT_LIKE = [
    "bert",
    "roberta",
    "electra",
    "distilbert",
    "mpnet",
    "esm",
    "deberta-v2",
    "megatron-bert",
]


def feed_forward_rows(model, batch, **kwargs):
    """How many rows each linear layer as wide as the feed-forward part sees, in order."""
    width = getattr(model.config, "intermediate_size", None) or model.config.hidden_dim
    seen = []
    hooks = [
        module.register_forward_hook(lambda _, args, __: seen.append(args[0][..., 0].numel()))
        for module in model.base_model.modules()
        if isinstance(module, nn.Linear) and module.out_features == width
    ]
    loss = model(**batch, **kwargs).loss
    for hook in hooks:
        hook.remove()
    return seen, loss


@pytest.mark.parametrize("model_type", BERT_LIKE)
def test_last_feed_forward_sees_predicted_rows_only(model_type):
    stock = tiny_model("masked", model_type)
    batch = tiny_batch(stock)
    expected = stock(**batch).loss
    model = fuse_loss(stock)
    seen, loss = feed_forward_rows(model, batch)
    labelled = int((batch["labels"] != -100).sum())
    assert seen == [32, labelled]
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    difference = compare(model, batch)
    assert difference.agrees, str(difference)


@pytest.mark.parametrize("model_type", ["albert", "modernbert", "funnel"])
def test_model_that_needs_the_other_rows_gathers_behind_the_base_model(model_type):
    model = tiny_model("masked", model_type)
    batch = tiny_batch(model)
    fuse_loss(model)
    assert fused(model).early is None
    assert compare(model, batch).agrees


def test_pooled_sentences_need_their_first_rows():
    from transformers import BertForPreTraining

    model = fuse_loss(BertForPreTraining(tiny_model("masked", "bert").config).eval())
    assert fused(model).early is None


def test_padding_and_capacity():
    stock = tiny_model("masked", "bert")
    batch = tiny_batch(stock)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][1, 9:] = 0
    batch["labels"][1, 9:] = -100
    expected = stock(**batch).loss
    labelled = batch["labels"].flatten() != -100
    places = torch.nonzero_static(labelled, size=20, fill_value=-1).squeeze(1)
    model = fuse_loss(stock)
    seen, loss = feed_forward_rows(model, batch, label_positions=places)
    assert seen[-1] in (20, int(labelled.sum()))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: {"output_hidden_states": True},
        lambda model: setattr(model.config, "output_hidden_states", True),
        lambda model: model.train().gradient_checkpointing_enable(),
        lambda model: setattr(model.bert.encoder.layer[-1], "chunk_size_feed_forward", 2),
    ],
)
def test_call_that_needs_all_rows_has_them(change):
    model = tiny_model("masked", "bert")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.config.attention_probs_dropout_prob = 0.0
    for layer in model.bert.encoder.layer:
        layer.attention.self.dropout.p = 0.0
    batch = tiny_batch(model)
    expected = model(**batch).loss
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    fuse_loss(model)
    assert fused(model).early is not None
    kwargs = change(model) or {}
    outputs = model(**batch, **kwargs)
    torch.testing.assert_close(outputs.loss, expected, rtol=1e-5, atol=0)
    if outputs.hidden_states is not None:
        assert [tuple(h.shape) for h in outputs.hidden_states] == [(2, 16, 32)] * 3
    outputs.loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], rtol=1e-3, atol=1e-5)


def test_layer_that_was_wrapped_since_is_left_alone():
    class Wrapper(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, *args, **kwargs):
            return torch.utils.checkpoint.checkpoint(
                self.layer, *args, use_reentrant=False, **kwargs
            )

    model = fuse_loss(tiny_model("masked", "bert"))
    batch = tiny_batch(model)
    loss = model(**batch).loss
    layers = model.bert.encoder.layer
    layers[-1] = Wrapper(layers[-1])
    again = model(**batch).loss
    again.backward()
    torch.testing.assert_close(again, loss, rtol=1e-6, atol=0)


def test_calls_without_labels_and_with_logits_are_stock():
    model = tiny_model("masked", "bert")
    batch = tiny_batch(model)
    ids = {"input_ids": batch["input_ids"]}
    stock = model(**ids).logits
    fuse_loss(model)
    assert torch.equal(model(**ids).logits, stock)
    assert torch.equal(model(**batch, return_logits=True).logits, stock)


def test_no_label_no_row():
    model = fuse_loss(tiny_model("masked", "bert")).train()
    batch = tiny_batch(model)
    batch["labels"].fill_(-100)
    loss = model(**batch).loss
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_hooks_go_with_unfuse_and_with_copies():
    model = tiny_model("masked", "bert")
    fuse_loss(model)
    output = model.bert.encoder.layer[-1].attention.output
    assert len(output._forward_pre_hooks) == 1
    batch = tiny_batch(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        seen, _ = feed_forward_rows(twin, batch)
        assert seen == feed_forward_rows(model, batch)[0]
        unfuse_loss(twin)
        assert not twin.bert.encoder.layer[-1].attention.output._forward_pre_hooks
    alone = copy.deepcopy(model.bert.encoder.layer[-1])
    hidden = torch.rand(1, 3, 32)
    assert torch.equal(alone(hidden), model.bert.encoder.layer[-1](hidden))
    (hook,) = alone.attention.output._forward_pre_hooks.values()
    assert hook.__self__.layers is None  # the copy of a layer takes no others along
    unfuse_loss(model)
    assert not output._forward_pre_hooks


def test_trial_leaves_modes_and_random_numbers_alone():
    model = tiny_model("masked", "bert").train()
    model.bert.encoder.layer[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    fuse_loss(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_compiled_in_one_graph():
    model = fuse_loss(tiny_model("masked", "bert"), capacity=16)
    batch = tiny_batch(model)
    expected = model(**batch).loss
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**batch).loss, expected, rtol=1e-5, atol=0)


def test_model_without_weights_is_not_tried():
    with torch.device("meta"):
        from transformers import BertConfig, BertForMaskedLM

        model = BertForMaskedLM(BertConfig(num_hidden_layers=1))
    assert fused(fuse_loss(model)).early is None
