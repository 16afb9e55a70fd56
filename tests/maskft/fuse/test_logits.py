"""Logits of fused models: when they are there, and when they are computed."""

import copy
import pickle

import pytest
import torch
from torch.nn import functional as F

from maskft import fuse_loss
from maskft.fuse.later import LaterLogits
from tests.support.fused import RowCounter
from tests.support.tiny import tiny_batch, tiny_model

MODELS = [
    ("masked", "bert"), ("masked", "mobilebert"), ("causal", "llama"), ("seq2seq", "t5"),
    ("seq2seq", "bart"),
]  # fmt: skip


@pytest.fixture(params=MODELS, ids=lambda kind: kind[1])
def model(request):
    return tiny_model(*request.param)


def later(dtype=torch.float32):
    """Later logits, and a list that grows as they are computed."""
    computed = []

    def compute():
        computed.append(1)
        return torch.arange(12, dtype=dtype).reshape(3, 4)

    return LaterLogits((3, 4), dtype, torch.device("cpu"), compute), computed


@torch.no_grad()
def test_an_evaluation_call_returns_stock_logits(model):
    batch = tiny_batch(model)
    expected = model(**batch)
    found = fuse_loss(model)(**batch)
    assert isinstance(found.logits, LaterLogits)
    assert (found.logits.shape, found.logits.dtype) == (expected.logits.shape, torch.float32)
    torch.testing.assert_close(found.logits.detach(), expected.logits)
    torch.testing.assert_close(found.loss, expected.loss)


@torch.no_grad()
def test_logits_that_nobody_reads_are_not_computed():
    model = tiny_model("masked", "bert")
    batch = tiny_batch(model)
    fuse_loss(model)
    rows, base = RowCounter(model.cls), RowCounter(model.bert.encoder)
    for _ in range(2):
        assert list(model(**batch).keys()) == ["loss", "logits"]
    assert sum(rows.seen) == 2 * (batch["labels"] != -100).sum()
    model(**batch).logits.argmax(-1)
    assert len(base.seen) == 4
    assert not isinstance(model(**batch).logits, LaterLogits)  # they will be read again
    assert len(base.seen) == 5
    with torch.enable_grad():
        assert model(**batch).logits is None
    assert isinstance(model(**batch).logits, LaterLogits)


@torch.no_grad()
def test_logits_of_a_model_that_has_changed_are_refused():
    model = tiny_model("masked", "bert")
    batch = tiny_batch(model)
    fuse_loss(model)
    outputs = model(**batch)
    model.cls.predictions.bias.add_(1)
    with pytest.raises(RuntimeError, match="have changed since the call: read them sooner"):
        outputs.logits.argmax(-1)
    outputs = model(**batch)
    model.train()
    with pytest.raises(RuntimeError, match="return_logits=True"):
        outputs.logits.float().argmax(-1)


@torch.no_grad()
def test_later_logits_are_those_of_the_calls_precision():
    model = tiny_model("masked", "bert")
    batch = tiny_batch(model)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(**batch).logits
        found = fuse_loss(model)(**batch).logits
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found.detach(), expected)


def test_later_logits_behave_as_a_tensor():
    for use in (
        lambda z: z.argmax(-1).tolist(),
        lambda z: z.detach().numpy().tolist(),
        lambda z: F.cross_entropy(z, torch.tensor([0, 1, 2])).item(),
        lambda z: torch.cat([z, z])[4].tolist(),
        lambda z: z[1:, 0].tolist(),
        lambda z: (2 * z + z).sum().item(),
        lambda z: [len(z), *map(float, z[0])],
        lambda z: torch.empty(3, 4).copy_(z).tolist(),
        lambda z: copy.deepcopy(z).tolist(),
        lambda z: pickle.loads(pickle.dumps(z)).tolist(),
        str,
    ):
        found, computed = later()
        assert use(found) == use(torch.arange(12.0).reshape(3, 4))
        assert len(computed) == 1


def test_shape_dtype_and_casts_compute_nothing():
    found, computed = later(torch.bfloat16)
    assert found.shape == (3, 4)
    assert found.dim() == found.ndim == 2
    assert found.size(0) == 3
    assert found.is_floating_point()
    assert not found.is_cuda
    assert found.device.type == "cpu"
    assert not found.requires_grad
    for cast in (found.float(), found.to(torch.float32)):  # as accelerate and FSDP2 do
        assert isinstance(cast, LaterLogits)
        assert cast.dtype == torch.float32
    assert not computed
    assert torch.equal(cast.detach(), torch.arange(12.0).reshape(3, 4))


@pytest.mark.parametrize("option", ["auto", False])
def test_tuples_have_stocks_length(model, option):
    batch = tiny_batch(model)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            expected = model(**batch, return_dict=False)
            found = fuse_loss(copy.deepcopy(model), logits=option)(**batch, return_dict=False)
        assert len(found) == len(expected)
        torch.testing.assert_close(found[0], expected[0])
        if grad or option is False:
            assert found[1] is None
        else:
            torch.testing.assert_close(found[1].detach(), expected[1])
