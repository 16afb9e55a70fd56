"""A causal model made bidirectional: what it attends to, what it refuses, and back again."""

import copy
import pickle

import pytest
import torch
from transformers import AutoModelForCausalLM

from maskft import fuse_loss, make_bidirectional, make_causal
from maskft.fuse.bidirectional import attends_both_ways, attention_of
from tests.support.tiny import tiny_batch, tiny_model

# A plain decoder, one with local layers, learned positions, experts, BERT's causal class.
CAUSAL = ["llama", "gemma3_text", "gpt2", "mixtral", "bert"]


def logits(model, ids, mask=None):
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits


def changed(model, place, mask=None):
    """Which positions' logits change when the token at ``place`` does."""
    ids = tiny_batch(model)["input_ids"][:1]
    other = ids.clone()
    other[0, place] = ids[0, place] % 100 + 7
    off = (logits(model, ids, mask) - logits(model, other, mask)).abs().amax(-1)[0]
    return off > 1e-9


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", CAUSAL)
def test_every_position_sees_every_token(model_type, attention):
    model = tiny_model("causal", model_type).double()  # float32 rounds by what an expert gets
    model.set_experts_implementation("eager")  # the other one has no float64 on a CPU
    model.set_attn_implementation(attention)
    assert not changed(model, 15)[:15].any()
    make_bidirectional(model)
    assert changed(model, 15).all()
    assert changed(model, 0).all()
    mask = torch.ones(1, 16, dtype=torch.long)
    mask[0, 12:] = 0
    assert changed(model, 11, mask)[:12].all()
    assert not changed(model, 13, mask)[:12].any()  # padding


@pytest.mark.parametrize("model_type", CAUSAL)
def test_undone_it_is_the_model_it_was(model_type):
    model = tiny_model("causal", model_type)
    before = model.config.to_dict()
    ids = tiny_batch(model)["input_ids"]
    stock = logits(model, ids)
    assert make_bidirectional(model) is model
    assert make_bidirectional(model) is model  # once is enough
    assert not torch.allclose(logits(model, ids), stock)
    assert make_causal(model) is model
    assert torch.equal(logits(model, ids), stock)
    assert model.config.to_dict() == before
    assert make_causal(model) is model


def test_attention_is_a_full_softmax():
    """The plain formula: what SDPA gives without its is_causal flag, layer by layer."""
    model = make_bidirectional(tiny_model("causal", "llama"))
    seen = []
    stock = torch.nn.functional.scaled_dot_product_attention

    def watched(query, key, value, **options):
        out = stock(query, key, value, **options)
        weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
        seen.append((out - weights @ value).abs().max())
        return out

    torch.nn.functional.scaled_dot_product_attention = watched
    try:
        logits(model, tiny_batch(model)["input_ids"])
    finally:
        torch.nn.functional.scaled_dot_product_attention = stock
    assert len(seen) == 2
    assert max(seen) < 1e-5


def test_copy_and_pickle_can_be_undone_too():
    model = make_bidirectional(tiny_model("causal", "llama"))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert attends_both_ways(twin)
        make_causal(twin)
        assert not attends_both_ways(twin)
    assert attends_both_ways(model)


def test_saved_model_is_loaded_bidirectional(tmp_path):
    make_bidirectional(tiny_model("causal", "llama")).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.is_causal is False
    assert attends_both_ways(make_bidirectional(model))


@pytest.mark.parametrize("model_type", ["bert", "modernbert", "xlm-roberta", "convbert"])
def test_model_built_for_it_stays_as_it_is(model_type):
    model = tiny_model("masked", model_type)
    before = dict(vars(model))
    assert make_bidirectional(model) is model
    assert vars(model) == before


@pytest.mark.parametrize(
    ("model_type", "why"),
    [
        ("mamba", "without padding, its first token does not see the last"),
        ("gpt_neo", "without padding, its first token does not see the last"),
        ("jamba", r"1 of 2 layers stay causal \(model.layers.0\)"),
        ("qwen3_next", "3 of 4 layers stay causal"),
        ("llama4_text", "with padding"),  # its chunked layers, only where a mask is made
        ("mpt", "it raises AttributeError"),
    ],
)
def test_model_that_would_stay_causal_is_refused_and_left_as_it_was(model_type, why):
    model = tiny_model("causal", model_type)
    batch = tiny_batch(model)
    stock, before = logits(model, batch["input_ids"]), model.config.to_dict()
    with pytest.raises(
        ValueError, match=f"{type(model).__name__} cannot attend both ways: .*{why}"
    ):
        make_bidirectional(model)
    assert torch.equal(logits(model, batch["input_ids"]), stock)
    assert model.config.to_dict() == before


def test_no_transformers_model_is_refused():
    with pytest.raises(TypeError, match="Linear"):
        make_bidirectional(torch.nn.Linear(2, 2))


def test_trial_leaves_modes_gradients_and_random_numbers_alone():
    model = tiny_model("causal", "llama").train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    make_bidirectional(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_are_examined_in_any_precision(dtype):
    model = tiny_model("causal", "llama").to(dtype)
    seen = attention_of(model, 0)
    assert seen.causal == ("model.layers.0", "model.layers.1")
    assert not seen.sees_last
    seen = attention_of(make_bidirectional(model), 0)
    assert (seen.causal, seen.mixing, seen.sees_last) == ((), 2, True)


def test_frozen_weights_can_be_examined():
    model = tiny_model("causal", "llama").requires_grad_(False)
    make_bidirectional(model)
    assert attends_both_ways(model)


@pytest.mark.parametrize("shift", [None, False])
def test_it_goes_with_the_fused_loss(shift):
    """Dream's way, each row predicts the next label, and LLaDA's, its own."""
    stock = make_bidirectional(tiny_model("causal", "llama"))
    batch = tiny_batch(stock)
    rows = stock(input_ids=batch["input_ids"]).logits
    labels = batch["labels"]
    if shift is None:
        rows, labels = rows[:, :-1], labels[:, 1:]
    expected = torch.nn.functional.cross_entropy(rows.flatten(0, 1), labels.flatten())
    model = fuse_loss(make_bidirectional(tiny_model("causal", "llama")), shift=shift)
    torch.testing.assert_close(
        model(**batch, return_logits=False).loss, expected, rtol=1e-5, atol=0
    )
    again = make_bidirectional(fuse_loss(tiny_model("causal", "llama"), shift=shift))
    assert again(**batch, return_logits=False).loss == model(**batch, return_logits=False).loss


def test_wrapped_model_is_made_bidirectional_inside():
    class Wrapper(torch.nn.Module):  # as DDP has it
        def __init__(self, module):
            super().__init__()
            self.module = module

    wrapper = Wrapper(tiny_model("causal", "llama"))
    assert make_bidirectional(wrapper) is wrapper
    assert attends_both_ways(wrapper.module)
