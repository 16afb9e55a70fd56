"""What rows predict, the class's way and the other way: fuse_loss(shift=)."""

import pytest
import torch
from torch.nn import functional as F

from maskft import fuse_loss, unfuse_loss
from maskft.fuse import fused
from maskft.fuse.check import compare
from tests.support.fused import update
from tests.support.tiny import tiny_batch, tiny_model


def plain_loss(model, batch, shift):
    """The mean over labelled tokens, written out."""
    logits = model(input_ids=batch["input_ids"]).logits
    labels = batch["labels"]
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize(
    ("kind", "model_type"), [("causal", "llama"), ("masked", "bert"), ("causal", "xlnet")]
)
def test_rows_predict_the_label_they_are_told_to(kind, model_type, shift):
    batch = tiny_batch(tiny_model(kind, model_type))
    batch["labels"][:, 0] = 9  # which nothing predicts where labels are shifted
    expected = plain_loss(tiny_model(kind, model_type), batch, shift)
    model = fuse_loss(tiny_model(kind, model_type), shift=shift)
    found = model(**batch, return_logits=False).loss
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    with_logits = model(**batch, return_logits=True).loss
    torch.testing.assert_close(with_logits, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("kind", "model_type", "shift"), [("causal", "llama", False),
                                                           ("masked", "bert", True)])  # fmt: skip
def test_gradients_agree_with_stock_on_labels_moved_by_one(kind, model_type, shift):
    model = tiny_model(kind, model_type)
    batch = tiny_batch(model)
    batch["labels"][:, -1] = batch["input_ids"][:, -1]
    fuse_loss(model, shift=shift, check=batch)
    difference = compare(model, batch)
    assert difference.agrees, str(difference)
    assert difference.stock_loss > 1


def test_places_of_labels_follow_the_shift():
    model = fuse_loss(tiny_model("causal", "llama"), shift=False)
    batch = tiny_batch(model)
    batch["labels"][:, 0] = 9
    flat = (batch["labels"] != -100).flatten().nonzero().squeeze(1)
    found = model(**batch, label_positions=flat, return_logits=False).loss
    assert found == model(**batch, return_logits=False).loss


def test_accumulation_counts_the_labels_that_are_predicted(tmp_path):
    def fresh():
        return fuse_loss(tiny_model("causal", "llama"), shift=False)

    (_, whole), (_, parts) = (update(fresh(), tmp_path, 8, 1), update(fresh(), tmp_path, 2, 4))
    assert whole == pytest.approx(parts, rel=1e-5)
    first = update(fresh(), tmp_path, 8, 1)[0].found
    second = update(fresh(), tmp_path, 2, 4)[0].found
    for name, gradient in first.items():
        torch.testing.assert_close(second[name], gradient, rtol=1e-3, atol=1e-6)


def test_unfused_model_is_its_class_again():
    model = tiny_model("causal", "llama")
    before = model.loss_type
    batch = tiny_batch(model)
    loss = model(**batch).loss
    fuse_loss(model, shift=False)
    assert fused(model).head.shift is False
    assert model.loss_type == "ForMaskedLM"  # by which Trainer counts labels
    unfuse_loss(model)
    assert model.loss_type == before
    assert model(**batch).loss == loss


def test_shifted_labels_need_rows_that_predict_the_next():
    model = fuse_loss(tiny_model("causal", "llama"), shift=False)
    batch = tiny_batch(model)
    with pytest.raises(TypeError, match="shift_labels"):
        model(**batch, shift_labels=batch["labels"])
    with pytest.raises(TypeError, match="shift must be True, False or None, got int"):
        fuse_loss(tiny_model("causal", "llama"), shift=1)
