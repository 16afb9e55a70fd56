"""What fuse_loss refuses, and heads that are not what they seem."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)
from transformers.modeling_outputs import CausalLMOutput

from maskft import fuse_loss, unfuse_loss
from maskft.fuse import fused
from tests.support.fused import RowCounter, assert_same, gradients
from tests.support.tiny import tiny_batch, tiny_config, tiny_model


@pytest.fixture
def bert():
    return tiny_model("masked", "bert")


class LoraLinear(nn.Module):
    """An adapter as PEFT puts it around a layer."""

    def __init__(self, base, rank=4):
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)

    @property
    def weight(self):
        return self.base_layer.weight

    @property
    def bias(self):
        return self.base_layer.bias

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


class Int8Linear(nn.Linear):
    """A quantised layer that calls itself a Linear."""

    def forward(self, x):
        scale = self.weight.abs().max() / 127
        return nn.functional.linear(x, (self.weight / scale).round() * scale, self.bias)


class PeftModel(nn.Module):
    """As PEFT's: the model is what get_base_model returns; forward goes through it."""

    def __init__(self, model):
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = model

    def get_base_model(self):
        return self.base_model.model

    def forward(self, *args, **kwargs):
        return self.get_base_model().forward(*args, **kwargs)


def test_fusing_twice_is_an_error(bert):
    fuse_loss(bert)
    with pytest.raises(ValueError, match=r"BertForMaskedLM is fused already; unfuse_loss"):
        fuse_loss(bert)


def test_models_that_are_not_covered_are_named():
    config = tiny_config("bert")
    with pytest.raises(TypeError, match="BertForSequenceClassification"):
        fuse_loss(BertForSequenceClassification(config))
    with pytest.raises(TypeError, match="LlamaForSequenceClassification with the loss function"):
        fuse_loss(LlamaForSequenceClassification(tiny_config("llama")))
    with pytest.raises(TypeError, match="Linear"):
        fuse_loss(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="does not cover ProphetNetForCausalLM: it predicts"):
        fuse_loss(tiny_model("causal", "prophetnet"))


def test_a_forward_of_the_users_own_is_not_guessed_at():
    class Mine(BertForMaskedLM):
        def forward(self, input_ids, labels=None):
            return super().forward(input_ids, labels=labels)

    with pytest.raises(TypeError, match="does not cover Mine"):
        fuse_loss(Mine(tiny_config("bert")))


def test_a_subclass_that_keeps_forward_is_covered():
    class Named(BertForMaskedLM):
        pass

    model = Named(tiny_config("bert")).eval()
    batch = tiny_batch(model)
    expected = gradients(model, batch)
    assert_same(gradients(fuse_loss(model), batch), expected)


def test_a_loss_function_of_the_users_own_is_refused():
    model = tiny_model("causal", "llama")
    model.loss_function = lambda logits, labels, vocab_size, **kwargs: logits.sum()
    with pytest.raises(TypeError, match="LlamaForCausalLM with the loss function '<lambda>'"):
        fuse_loss(model)


def test_logits_that_are_tampered_with_are_noticed():
    class Tempered(LlamaForCausalLM):
        def forward(self, input_ids, labels=None):
            logits = self.lm_head(self.model(input_ids).last_hidden_state) / 1.1
            loss = None
            if labels is not None:
                loss = self.loss_function(logits, labels, self.vocab_size)
            return CausalLMOutput(loss=loss, logits=logits)

    model = Tempered(tiny_config("llama")).eval()
    batch = tiny_batch(model)
    expected = gradients(model, batch)
    fuse_loss(model)
    with pytest.raises(RuntimeError, match="Tempered does something to its logits"):
        model(**batch)
    unfuse_loss(model)
    fuse_loss(model, linear=False)
    assert_same(gradients(model, batch), expected)


@pytest.mark.parametrize("how", ["unshifted", "changed", "copied"])
@pytest.mark.parametrize("linear", [None, False])
def test_labels_that_a_model_makes_itself_are_noticed(how, linear):
    class Own(LlamaForCausalLM):
        def forward(self, input_ids, labels=None):
            logits = self.lm_head(self.model(input_ids).last_hidden_state)
            if how == "unshifted":
                loss = self.loss_function(logits, None, self.vocab_size, shift_labels=labels)
            elif how == "changed":
                labels = labels.masked_fill(labels == 8, -100)
                loss = self.loss_function(logits, labels, self.vocab_size)
            else:
                loss = self.loss_function(logits, labels.clone(), self.vocab_size)
            return CausalLMOutput(loss=loss, logits=logits)

    model = Own(tiny_config("llama")).eval()
    batch = tiny_batch(model)
    expected = gradients(model, batch)
    fuse_loss(model, linear=linear)
    if how == "copied":
        assert_same(gradients(model, batch), expected)
    else:
        with pytest.raises(TypeError, match="does not cover Own: it computes its loss on other"):
            model(**batch)


def test_sparse_prediction_of_modernbert():
    model = tiny_model("masked", "modernbert")
    model.config.sparse_prediction = model.sparse_prediction = True
    batch = tiny_batch(model)
    expected = gradients(model, batch)
    fuse_loss(model)
    assert_same(gradients(model, batch), expected)
    batch.pop("labels")
    assert model(**batch).logits.shape == (2, 16, 128)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_adapters_on_the_head_are_honoured(kind, when):
    model = tiny_model(kind, "llama" if kind == "causal" else "bert")
    if when == "after":
        fuse_loss(model)
    torch.manual_seed(1)
    model.set_output_embeddings(LoraLinear(model.get_output_embeddings()))
    model.requires_grad_(False)
    model.get_output_embeddings().lora_A.requires_grad_(True)
    model.get_output_embeddings().lora_B.requires_grad_(True)
    batch = tiny_batch(model)
    if when == "before":
        fuse_loss(model)
    rows = RowCounter(model.get_output_embeddings())
    found = gradients(model, batch)
    assert len(found[1]) == 2
    assert rows.seen[0] < batch["labels"].numel()
    unfuse_loss(model)
    assert_same(found, gradients(model, batch))


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_decoder_that_is_copied_leaves_the_model_behind(name):
    """As PEFT's modules_to_save does: the copy takes the decoder's place and learns."""
    model = tiny_model("masked" if name == "bert" else "causal", name)
    fuse_loss(model)
    decoder = model.get_output_embeddings()
    copied = copy.deepcopy(decoder)
    assert copied.forward.fused.model is None
    assert copied.weight is not decoder.weight
    base = copy.deepcopy(model.base_model)
    ids = tiny_batch(model)["input_ids"]
    assert torch.equal(base(ids)[0], model.base_model(ids)[0])
    with torch.no_grad():
        copied.weight.mul_(0.9)
    model.set_output_embeddings(copied)
    batch = tiny_batch(model)
    found = gradients(model, batch)
    unfuse_loss(model)
    assert_same(found, gradients(model, batch))


def test_quantised_heads_are_honoured():
    model = tiny_model("causal", "llama")
    head = Int8Linear(32, 128, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head
    batch = tiny_batch(model)
    expected = gradients(model, batch)
    fuse_loss(model)
    assert fused(model).head.rows_because == "its decoder is a Int8Linear, not a plain nn.Linear"
    assert_same(gradients(model, batch), expected)
    unfuse_loss(model)
    with pytest.raises(TypeError, match="cannot run in its decoder: its decoder is a Int8Linear"):
        fuse_loss(model, linear=True)


@pytest.mark.parametrize("when", ["before", "after"])
def test_hooked_decoders_are_called(when):
    model = tiny_model("causal", "llama")
    batch = tiny_batch(model)
    fused_one = copy.deepcopy(model)
    if when == "after":
        gradients(fuse_loss(fused_one), batch)
    for each in (model, fused_one):
        each.lm_head.register_forward_hook(lambda module, args, output: output * 2)
    if when == "before":
        fuse_loss(fused_one)
    assert_same(gradients(fused_one, batch), gradients(model, batch))


def test_a_peft_model_is_fused_within(bert):
    batch = tiny_batch(bert)
    expected = gradients(bert, batch)
    wrapped = PeftModel(bert)
    assert fuse_loss(wrapped) is wrapped
    assert fused(bert) is not None
    loss = wrapped(**batch).loss
    torch.testing.assert_close(loss.detach(), expected[0])
    unfuse_loss(wrapped)
    assert fused(bert) is None


def test_losses_of_a_router_are_added_or_refused():
    mixtral = tiny_model("causal", "mixtral")
    mixtral.config.output_router_logits = True
    batch = tiny_batch(mixtral)
    expected = gradients(mixtral, batch)
    assert_same(gradients(fuse_loss(mixtral), batch), expected)
    switch = tiny_model("seq2seq", "switch_transformers")
    fuse_loss(switch)
    with pytest.raises(TypeError, match="takes no output_router_logits"):
        switch(**tiny_batch(switch), output_router_logits=True)


def test_arguments_that_do_not_fit(bert):
    for arguments, kind, match in (
        ({"logits": "always"}, ValueError, "logits must be one of"),
        ({"backend": "cuda"}, ValueError, "backend must be one of"),
        ({"capacity": 0}, ValueError, "capacity must be at least 1"),
        ({"capacity": 1.5}, TypeError, "capacity must be an int"),
        ({"label_smoothing": "x"}, TypeError, "label_smoothing must be a number, got str"),
        ({"label_smoothing": float("nan")}, ValueError, "label_smoothing must be between 0 and 1"),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing must be between 0 and 1"),
        ({"z_loss": float("inf")}, ValueError, "z_loss must be finite and not negative"),
        ({"z_loss": [1.0]}, TypeError, "z_loss must be a number, got list"),
        ({"linear": "yes"}, TypeError, "linear must be True, False or None, got str"),
        ({"check": 3}, TypeError, "check must be a batch, True or False, got int"),
    ):
        with pytest.raises(kind, match=match):
            fuse_loss(bert, **arguments)
        assert fused(bert) is None


def test_labels_outside_the_vocabulary_are_an_error(bert):
    batch = tiny_batch(bert)
    batch["labels"][0, 0] = 128
    fuse_loss(bert)
    with pytest.raises(ValueError, match="128"):
        bert(**batch)
    batch["labels"][0, 0] = 5
    assert bert(**batch).loss > 0  # the failed call left nothing behind


@pytest.mark.parametrize("kind", [("masked", "bert"), ("causal", "llama")])
def test_positions_that_are_not_those_of_the_labels(kind):
    model = fuse_loss(tiny_model(*kind))
    batch = tiny_batch(model)
    places = (batch["labels"] != -100).flatten().nonzero().flatten()
    first = int(places[0])
    count = len(places) - (kind[0] == "causal")  # nothing predicts the first label of row 1
    for wrong, message in (
        (torch.cat([places, places[:1]]), f"name place {first} twice"),
        (places[:-2], f"leave out 2 of the {count} labels"),
        (torch.cat([places, torch.tensor([32])]), "places in the 32 labels"),
        (places - first - 2, "places in the 32 labels"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**batch, label_positions=wrong)
    for wrong in (places.float(), places.tolist()):
        with pytest.raises(TypeError, match="label_positions must be a tensor"):
            model(**batch, label_positions=wrong)


def test_calls_that_do_not_fit():
    llama = fuse_loss(tiny_model("causal", "llama"))
    batch = tiny_batch(llama)
    for wrong, error, message in (
        ({"ignore_index": 7}, TypeError, "takes no ignore_index"),
        ({"logits_to_keep": 4}, RuntimeError, "decodes 4 of 11 predicted rows: logits_to_keep"),
        ({"labels": batch["labels"].tolist()}, TypeError, "labels must be a tensor, got list"),
        ({"labels": batch["labels"][:, :8]}, RuntimeError, "for labels of shape .2, 8.: give each"),
    ):
        with pytest.raises(error, match=message):
            llama(**batch | wrong)


def test_gradients_of_each_row_are_refused_with_a_sentence(bert):
    fuse_loss(bert)
    weights = {name: p.detach() for name, p in bert.named_parameters()}
    batch = tiny_batch(bert)

    def loss(weights, ids, labels):
        inputs = {"input_ids": ids[None], "labels": labels[None]}
        return torch.func.functional_call(bert, weights, kwargs=inputs).loss

    of_each_row = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    with pytest.raises(RuntimeError, match=r"transforms of torch\.func .*unfuse_loss"):
        of_each_row(weights, batch["input_ids"], batch["labels"])


def test_data_parallel_is_refused(bert):
    """Trainer wraps a model in it where one process sees several GPUs."""
    fuse_loss(bert)
    with pytest.raises(RuntimeError, match="DataParallel cannot run a fused model"):
        bert._replicate_for_data_parallel()  # as nn.DataParallel does, on GPUs only
    unfuse_loss(bert)
    assert "_replicate_for_data_parallel" not in vars(bert)
