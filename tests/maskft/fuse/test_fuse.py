"""fuse_loss: stock's loss and gradients from the predicted rows alone, and no trace after."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM

from maskft import fuse_loss, unfuse_loss
from maskft.fuse import forward, fused
from maskft.fuse.check import compare
from tests.support.fused import RowCounter, assert_same, gradients
from tests.support.tiny import VOCABULARY, tiny_batch, tiny_model

MODELS = {
    "bert": ("masked", "bert"),
    "modernbert": ("masked", "modernbert"),
    "mobilebert": ("masked", "mobilebert"),  # its decoder's weight is in two parts
    "llama": ("causal", "llama"),
    "gemma2": ("causal", "gemma2"),  # softcap
    "cohere": ("causal", "cohere"),  # logit scale
    "t5": ("seq2seq", "t5"),
    "bart": ("seq2seq", "bart"),  # a bias after the decoder
}


@pytest.fixture(params=MODELS)
def model(request):
    return tiny_model(*MODELS[request.param])


@pytest.fixture
def bert():
    return tiny_model("masked", "bert")


@pytest.fixture
def llama():
    return tiny_model("causal", "llama")


def test_loss_and_gradients_are_stocks(model):
    batch = tiny_batch(model)
    expected = gradients(model, batch)
    assert fuse_loss(model) is model
    assert_same(gradients(model, batch), expected)


def test_unfuse_leaves_nothing_behind(model):
    modules = [model, model.base_model, model.get_output_embeddings()]

    def state():
        return [
            (sorted(vars(m)), dict(m._forward_hooks)) for m in modules if isinstance(m, nn.Module)
        ]

    before, batch = state(), tiny_batch(model)
    expected = model(**batch)
    fuse_loss(model)
    model(**batch)
    assert unfuse_loss(model) is model
    assert state() == before
    found = model(**batch)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.loss, expected.loss)
    unfuse_loss(model)  # a model that is not fused stays as it is
    fuse_loss(model)


def test_head_and_loss_see_the_predicted_rows_only(bert):
    batch = tiny_batch(bert)
    fuse_loss(bert)
    transform, decoder = (
        RowCounter(bert.cls.predictions.transform),
        RowCounter(bert.cls.predictions.decoder),
    )
    bert(**batch)
    predicted = int((batch["labels"] != -100).sum())
    assert transform.seen == decoder.seen == [predicted]


def test_logits_are_there_where_they_are_asked_for(model):
    batch = tiny_batch(model)
    stock = model(**batch)
    fuse_loss(model)
    assert "logits" not in model(**batch)
    assert model(**batch).logits is None
    full = model(**batch, return_logits=True)
    torch.testing.assert_close(full.logits, stock.logits)
    torch.testing.assert_close(full.loss, stock.loss)
    unfuse_loss(model)
    fuse_loss(model, logits="eval")
    assert model(**batch).logits is not None
    assert model(**batch, return_logits=False).logits is None
    if not model.config.model_type.startswith("t5"):
        model.train()
        assert model(**batch).logits is None
    unfuse_loss(model)
    fuse_loss(model, logits=True)
    model.train()
    assert model(**batch).logits is not None


def test_calls_without_labels_are_stocks(model):
    batch = tiny_batch(model)
    batch.pop("labels")
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"]
    expected = model(**batch)
    fuse_loss(model)
    found = model(**batch, num_items_in_batch=3)
    assert found.keys() == expected.keys()
    assert torch.equal(found.logits, expected.logits)


def test_generation_is_stocks(llama):
    ids = torch.arange(8, 14)[None]
    expected = llama.generate(ids, max_new_tokens=5, do_sample=False)
    fuse_loss(llama)
    assert torch.equal(llama.generate(ids, max_new_tokens=5, do_sample=False), expected)


def test_num_items_in_batch_divides_the_sum(model):
    batch = tiny_batch(model)
    fuse_loss(model)
    count = (batch["labels"] != -100).sum()
    if fused(model).head.shift:
        count = (batch["labels"][:, 1:] != -100).sum()
    loss, found = gradients(model, batch)
    for items in (3 * count, int(3 * count)):
        third, scaled = gradients(model, batch, num_items_in_batch=items)
        torch.testing.assert_close(third, loss / 3)
        assert_same((loss, {n: g * 3 for n, g in scaled.items()}), (loss, found))
    full = model(**batch, num_items_in_batch=3 * count, return_logits=True)
    torch.testing.assert_close(full.loss, loss / 3)


def test_tuples_begin_with_the_loss(model):
    batch = tiny_batch(model)
    loss = model(**batch).loss
    fuse_loss(model)
    found = model(**batch, return_dict=False)
    assert isinstance(found, tuple)
    torch.testing.assert_close(found[0], loss)


def test_positional_arguments_reach_their_names(bert):
    batch = tiny_batch(bert)
    attention_mask = torch.ones_like(batch["input_ids"])
    attention_mask[:, -3:] = 0
    expected = bert(batch["input_ids"], attention_mask, labels=batch["labels"]).loss
    fuse_loss(bert)
    found = bert(batch["input_ids"], attention_mask, labels=batch["labels"]).loss
    torch.testing.assert_close(found, expected)


def test_nothing_labelled_is_a_loss_of_zero(model):
    batch = tiny_batch(model)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"]
    fuse_loss(model)
    loss, found = gradients(model, batch)
    assert loss == 0
    assert not any(g.any() for g in found.values())


def test_positions_in_place_of_a_search(model):
    batch = tiny_batch(model)
    expected = gradients(model, batch)
    fuse_loss(model)
    positions = (batch["labels"] != -100).flatten().nonzero().flatten()
    padded = torch.cat([positions, positions.new_full((5,), -1)])
    assert_same(gradients(model, batch, label_positions=padded), expected)


def test_shift_labels_take_the_place_of_shifted_labels(llama):
    batch = tiny_batch(llama)
    batch["shift_labels"] = batch["labels"].flip(0)
    expected = gradients(llama, batch)
    fuse_loss(llama)
    assert_same(gradients(llama, batch), expected)


def test_capacity_is_checked_on_the_cpu(bert):
    batch = tiny_batch(bert)
    count = int((batch["labels"] != -100).sum())
    expected = gradients(bert, batch)
    fuse_loss(bert, capacity=count)
    assert_same(gradients(bert, batch), expected)
    unfuse_loss(bert)
    fuse_loss(bert, capacity=count - 1)
    with pytest.raises(ValueError, match=f"{count} labels.*capacity is {count - 1}"):
        bert(**batch)


def test_label_smoothing(bert):
    batch = tiny_batch(bert)
    logits, labels = bert(input_ids=batch["input_ids"]).logits, batch["labels"]
    expected = F.cross_entropy(logits.view(-1, VOCABULARY), labels.view(-1), label_smoothing=0.2)
    fuse_loss(bert, label_smoothing=0.2)
    torch.testing.assert_close(bert(**batch).loss, expected)


def test_copies_and_pickles_are_fused_in_their_own_right(model):
    batch = tiny_batch(model)
    fuse_loss(model)
    expected = gradients(model, batch)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        model.zero_grad()
        assert_same(gradients(other, batch), expected)
        assert all(p.grad is None for p in model.parameters())
        assert fused(other).model is other
        unfuse_loss(other)
        assert other(**batch).logits is not None
        assert fused(model) is not None


def test_threads_that_share_a_model_do_not_meet(model):
    batches = [tiny_batch(model), tiny_batch(model)]
    batches[1]["labels"][:, :9] = -100
    expected = [model(**batch).loss for batch in batches]
    fuse_loss(model)
    together = threading.Barrier(2, timeout=60)

    def wait(*_):
        together.wait()

    model.get_input_embeddings().register_forward_pre_hook(wait)
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda batch: model(**batch).loss, batches))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_saved_files_are_stocks(bert, tmp_path):
    bert.save_pretrained(tmp_path / "stock")
    fuse_loss(bert).save_pretrained(tmp_path / "fused")
    for file in (tmp_path / "stock").iterdir():
        assert (tmp_path / "fused" / file.name).read_bytes() == file.read_bytes(), file.name
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "fused")
    assert fused(loaded) is None
    batch = tiny_batch(bert)
    torch.testing.assert_close(loaded(**batch).loss, bert(**batch).loss)


def test_untied_weights_and_frozen_ones(llama):
    assert llama.lm_head.weight is not llama.model.embed_tokens.weight
    llama.lm_head.weight.requires_grad_(False)
    batch = tiny_batch(llama)
    expected = gradients(llama, batch)
    fuse_loss(llama)
    assert_same(gradients(llama, batch), expected)


def test_a_head_that_changes_its_size(bert):
    batch = tiny_batch(bert)
    fuse_loss(bert)
    bert.resize_token_embeddings(VOCABULARY + 8, mean_resizing=False)
    found = gradients(bert, batch)
    unfuse_loss(bert)
    assert_same(found, gradients(bert, batch))


def test_gradient_checkpointing(bert):
    bert.train()
    for module in bert.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    batch = tiny_batch(bert)
    expected = gradients(bert, batch)
    fuse_loss(bert)
    for reentrant in (False, True):
        bert.gradient_checkpointing_enable({"use_reentrant": reentrant})
        assert_same(gradients(bert, batch), expected)


def test_autocast(bert):
    batch = tiny_batch(bert)
    exact = gradients(bert, batch)[0]
    with torch.autocast("cpu", torch.bfloat16):
        expected = gradients(bert, batch)
        fuse_loss(bert)
        found = gradients(bert, batch)
    assert found[0].dtype == torch.float32
    assert abs(found[0] - exact) <= abs(expected[0] - exact) + 1e-2
    assert_same(found, expected, 3e-2)


def test_low_precision_weights(model):
    model.bfloat16()
    batch = tiny_batch(model)
    expected = gradients(model, batch)
    fuse_loss(model)
    assert_same(gradients(model, batch), expected, 3e-2)


@pytest.mark.parametrize("capacity", [None, 16])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_compiled(name, capacity):
    model = tiny_model(*MODELS[name])
    batch = tiny_batch(model)
    expected = gradients(model, batch)
    fuse_loss(model, capacity=capacity)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    loss = compiled(**batch).loss
    model.zero_grad()
    loss.backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert_same((loss.detach(), found), expected)
    unlabelled = dict(batch, labels=batch["labels"].clone())
    unlabelled["labels"][0] = -100
    with torch._dynamo.config.patch(error_on_recompile=True):
        torch.testing.assert_close(compiled(**unlabelled).loss, model(**unlabelled).loss)
    if capacity is not None:
        batch["labels"] = batch["input_ids"]
        assert compiled(**batch).loss.isnan()
    with pytest.raises(TypeError, match=r"before torch\.compile"):
        fuse_loss(compiled)


def test_check_compares_with_stock(bert, caplog, monkeypatch):
    caplog.set_level("INFO", "maskft.fuse")
    fuse_loss(bert, check=True)
    assert "gradients differ by at most" in caplog.text
    assert compare(bert, tiny_batch(bert)).agrees
    unfuse_loss(bert)
    loss = forward.linear_cross_entropy

    def wrong(*args, **kwargs):
        result = loss(*args, **kwargs)
        return result._replace(loss=result.loss * 1.01)

    monkeypatch.setattr(forward, "linear_cross_entropy", wrong)
    with pytest.raises(ValueError, match=r"BertForMaskedLM disagree"):
        fuse_loss(bert, check=tiny_batch(bert))
    assert fused(bert) is None


def test_check_leaves_gradients_and_mode_alone(bert):
    bert.train()
    bert.cls.predictions.bias.grad = torch.ones(VOCABULARY)
    fuse_loss(bert, check=True)
    assert bert.training
    assert bert.cls.predictions.bias.grad.eq(1).all()
    assert bert.bert.embeddings.word_embeddings.weight.grad is None


@pytest.mark.parametrize("items", [None, 0])
def test_nothing_labelled_is_nan_in_evaluation_as_stock(model, items):
    batch = tiny_batch(model)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"]
    given = {} if items is None else {"num_items_in_batch": torch.tensor(items)}
    fuse_loss(model)
    with torch.no_grad():
        assert model(**batch, **given).loss.isnan()
        assert model(**batch, num_items_in_batch=torch.tensor(3)).loss == 0  # of another rank
        model.train()
        assert model(**batch, **given).loss == 0
