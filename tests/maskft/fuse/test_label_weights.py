"""label_weights in fused models: the plain weighted loss of stock logits, for all kinds."""

import copy

import pytest
import torch
from torch.nn import functional as F

from maskft import fuse_loss, unfuse_loss
from maskft.fuse.call import shifted
from tests.support.fused import LabelledRows, assert_same, gradients, still, update
from tests.support.tiny import tiny_batch, tiny_model

MODELS = {
    "bert": ("masked", "bert"),
    "mobilebert": ("masked", "mobilebert"),  # its loss is computed from logits
    "llama": ("causal", "llama"),
    "gemma2": ("causal", "gemma2"),
    "t5": ("seq2seq", "t5"),
    "bart": ("seq2seq", "bart"),
}
SHIFTS = ("llama", "gemma2")


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


def weighted_batch(model):
    """A batch with weights around 1, some 0 and negative; NaN where nothing is labelled."""
    batch = tiny_batch(model)
    weights = torch.randn(batch["labels"].shape, generator=torch.Generator().manual_seed(9)) + 1
    weights = torch.where(weights.abs() < 0.3, 0.0, weights)
    return batch, torch.where(batch["labels"] == -100, torch.nan, weights)


def plain(model, batch, weights, shifts, num_items=None):
    """Loss and gradients from the logits of the stock model, as a user of torch writes it."""
    model.zero_grad()
    logits, labels = model(**batch).logits, batch["labels"]
    if shifts:
        logits, labels, weights = logits[:, :-1], labels[:, 1:], weights[:, 1:]
    losses = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")
    labelled = labels != -100
    losses, weights = losses[labelled], weights[labelled]
    loss = (losses * weights).sum() / (weights.sum() if num_items is None else num_items)
    loss.backward()
    return loss.detach(), {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("linear", [None, False])
@pytest.mark.parametrize("num_items", [None, 29])
def test_loss_and_gradients_are_the_plain_ones(name, linear, num_items):
    model = tiny_model(*MODELS[name])
    batch, weights = weighted_batch(model)
    expected = plain(model, batch, weights, name in SHIFTS, num_items)
    fuse_loss(model, linear=linear)
    call = {"label_weights": weights, "num_items_in_batch": num_items}
    assert_same(gradients(model, batch, **call), expected)
    with_logits = model(**batch, **call, return_logits=True)
    torch.testing.assert_close(with_logits.loss.detach(), expected[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("by_row", [False, True])
def test_places_of_labels_bring_their_weights(name, by_row):
    model = tiny_model(*MODELS[name])
    batch, weights = weighted_batch(model)
    expected = plain(model, batch, weights, name in SHIFTS)
    labelled = batch["labels"] != -100
    if by_row:
        most = int(labelled.sum(1).max()) + 2
        places = torch.full((len(labelled), most), -1)
        for row, at in zip(places, labelled, strict=True):
            at = at.nonzero()[:, 0]
            row[: len(at)] = at
    else:
        places = labelled.flatten().nonzero()[:, 0]
    fuse_loss(model)
    call = {"label_weights": weights, "label_positions": places}
    assert_same(gradients(model, batch, **call), expected)


def test_weights_go_with_shift_labels_as_they_are():
    model = tiny_model("causal", "llama")
    batch, weights = weighted_batch(model)
    expected = plain(model, batch, weights, True)
    fuse_loss(model)
    moved = F.pad(weights[:, 1:], (0, 1))
    found = gradients(model, batch, shift_labels=shifted(batch["labels"]), label_weights=moved)
    assert_same(found, expected)


def test_capacity_and_compiled_code_weigh_too(name):
    model = tiny_model(*MODELS[name])
    batch, weights = weighted_batch(model)
    expected = plain(model, batch, weights, name in SHIFTS)
    fuse_loss(model, capacity=20)
    assert_same(gradients(model, batch, label_weights=weights), expected)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    loss = compiled(**batch, label_weights=weights).loss
    torch.testing.assert_close(loss.detach(), expected[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("kind", "name"), [("masked", "bert"), ("causal", "llama"), ("seq2seq", "t5")]
)
def test_accumulation_changes_nothing(kind, name, tmp_path):
    """Each split of an update gives the sum of weighted losses over the number of labels."""
    model = still(tiny_model(kind, name))
    rows = LabelledRows(weighted=True)
    batch = {"input_ids": rows.ids, "labels": rows.labels}
    shifts = kind == "causal"
    items = int((rows.labels[:, 1:] if shifts else rows.labels).ne(-100).sum())
    expected = plain(copy.deepcopy(model).train(), batch, rows.weights, shifts, items)
    fuse_loss(model)
    for size, steps in ((8, 1), (4, 2), (2, 4), (1, 8)):
        trainer, loss = update(copy.deepcopy(model), tmp_path, size, steps, weighted=True)
        assert abs(loss - expected[0]) < 1e-4 * expected[0]
        scale = max(g.abs().max() for g in expected[1].values())
        for parameter, gradient in expected[1].items():
            off = (trainer.found[parameter] - gradient).abs().max()
            assert off < 1e-4 * scale, (size, steps, parameter)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda w: w[:, 1:], ValueError, r"shape of labels, \(2, 16\), got \(2, 15\)"),
        (
            lambda w: w.long(),
            TypeError,
            "label_weights must be a tensor of floats, got torch.int64",
        ),
        (lambda w: w.tolist(), TypeError, "label_weights must be a tensor of floats, got list"),
        (lambda w: w.to("meta"), ValueError, "label_weights are on meta, labels on cpu"),
        (lambda w: w.requires_grad_(), ValueError, r"pass label_weights\.detach\(\)"),
        (lambda w: w * torch.inf, ValueError, r"label_weights\[0, \d+\] is inf: .* finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(change, error, message):
    model = fuse_loss(tiny_model("masked", "bert"))
    batch = tiny_batch(model)
    with pytest.raises(error, match=message):
        model(**batch, label_weights=change(torch.ones(batch["labels"].shape)))


def test_weights_without_labels_are_refused():
    model = fuse_loss(tiny_model("masked", "bert"))
    batch = tiny_batch(model)
    weights = torch.ones(batch.pop("labels").shape)
    with pytest.raises(ValueError, match=r"label_weights go with labels.*label_smoothing_factor"):
        model(**batch, label_weights=weights)


def test_check_compares_a_weighted_batch_as_stock_sees_it():
    """Stock models ignore weights, and most of them the number of items."""
    model = still(tiny_model(*MODELS["bert"]))
    model.train()
    model.bert.embeddings.eval()
    batch, weights = weighted_batch(model)
    batch |= {"label_weights": weights, "num_items": torch.tensor([30, 40])}
    assert fuse_loss(model, check=batch) is model
    assert model.training
    assert not model.bert.embeddings.training


def test_stock_models_ignore_weights():
    """Why docs/loss.md warns of it; when this fails, Transformers has a use for the key."""
    model = unfuse_loss(fuse_loss(tiny_model("masked", "bert")))
    batch, weights = weighted_batch(model)
    assert torch.equal(model(**batch, label_weights=weights).loss, model(**batch).loss)
