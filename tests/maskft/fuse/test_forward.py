"""A fused model's forward among others that wrap, replace or trace it."""

import copy
import functools
import inspect
import pickle
from types import MethodType, SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from maskft import fuse_loss, unfuse_loss
from tests.support.fused import assert_same, gradients
from tests.support.tiny import tiny_batch, tiny_model


@pytest.fixture
def llama():
    return tiny_model("causal", "llama")


def chunked_head(self, input_ids=None, labels=None, **kwargs):
    """As a trainer that brings a head and a loss of its own puts it in the model's place."""
    hidden = self.model(input_ids).last_hidden_state
    if labels is None:
        return SimpleNamespace(logits=self.lm_head(hidden))
    logits = self.lm_head(hidden[:, :-1]).flatten(0, 1)
    return SimpleNamespace(loss=F.cross_entropy(logits, labels[:, 1:].flatten()))


def test_forward_is_a_bound_method(llama):
    stock = inspect.signature(llama.forward).parameters
    fuse_loss(llama)
    for model in (llama, copy.deepcopy(llama), pickle.loads(pickle.dumps(llama))):
        assert inspect.ismethod(model.forward)
        assert model.forward.__code__.co_name
        assert list(inspect.signature(model.forward).parameters) == [
            *list(stock)[:-1], "label_positions", "label_weights", "num_items", list(stock)[-1]
        ]  # fmt: skip


def test_a_wrapper_that_binds_the_function_to_the_model(llama):
    batch = tiny_batch(llama)
    expected = gradients(llama, batch)
    fuse_loss(llama)
    function = llama.forward.__func__

    @functools.wraps(function)
    def wrapped(self, *args, **kwargs):
        return function(self, *args, **kwargs)

    llama.forward = MethodType(wrapped, llama)
    for model in (llama, copy.deepcopy(llama)):
        assert_same(gradients(model, batch), expected)
        assert "label_positions" in inspect.signature(model.forward).parameters
        assert model(**batch).logits is None
        with pytest.raises(ValueError, match="has been wrapped since fuse_loss"):
            unfuse_loss(model)


def test_a_head_that_has_taken_the_place_of_forward_is_said_once(llama, caplog):
    batch = tiny_batch(llama)
    fuse_loss(llama)
    fused_forward = llama.forward
    llama(**batch)
    llama.generate(batch["input_ids"], max_new_tokens=2, do_sample=False)
    assert not caplog.records
    llama.forward = MethodType(chunked_head, llama)
    for _ in range(2):
        llama(**batch)
    (record,) = caplog.records
    assert "forward has been replaced since fuse_loss by" in record.message
    assert "test_forward.chunked_head" in record.message
    with pytest.raises(ValueError, match=r"replaced since fuse_loss by .*chunked_head; put back"):
        unfuse_loss(llama)
    llama.forward = fused_forward
    unfuse_loss(llama)
    assert llama(**batch).logits is not None


def test_a_wrapper_that_calls_forward_is_not_taken_for_another_head(llama, caplog):
    batch = tiny_batch(llama)
    inner = fuse_loss(llama).forward
    llama.forward = lambda *args, **kwargs: inner(*args, **kwargs)
    llama(**batch)
    llama(batch["input_ids"])
    assert not caplog.records


def test_a_fused_model_is_exported_without_labels(llama):
    ids = torch.arange(8, 14)[None]
    expected = llama(ids).logits
    fuse_loss(llama)
    exported = torch.export.export(llama, (), {"input_ids": ids, "use_cache": False})
    torch.testing.assert_close(exported.module()(input_ids=ids, use_cache=False).logits, expected)
