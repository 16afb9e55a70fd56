"""Masks filled in step by step: against a plain second implementation, and what is refused."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from maskft import fuse_loss, generate, make_bidirectional
from maskft.cli import main
from maskkernels import hash_rows, random_words
from tests.support.small import build_byte_level, build_wordpiece

PROMPTS = [
    "the quick [MASK] fox [MASK] over the [MASK] dog",
    "a seed and an [MASK]",
    "[MASK] [MASK] [MASK] [MASK] [MASK]",
    "whole words are [MASK] together, [MASK] and all",
]


def plain(model, tokenizer, text, steps=None, temperature=0.0, seed=0, shift=0):
    """One text, every row of logits, in Python and NumPy."""
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    row = hash_rows(ids)
    banned = tokenizer.all_special_ids
    total = int((ids == tokenizer.mask_token_id).sum())
    count = min(total if steps is None else steps, total)
    for step in range(count):
        with torch.no_grad():
            logits = model.eval()(input_ids=ids).logits[0].double().numpy()
        found = []
        for place in (ids[0] == tokenizer.mask_token_id).nonzero().flatten().tolist():
            scores = logits[place - shift, : len(tokenizer)].copy()
            scores[banned] = -math.inf
            p = np.exp(scores - scores.max())
            p /= p.sum()
            token = int(p.argmax())
            if temperature:
                word = random_words(row, torch.tensor([place]), seed=seed, epoch=step, stream=12)
                hot = np.exp((scores - scores.max()) / temperature)
                share = np.cumsum(hot / hot.sum())
                token = int(np.argmax(share > (int(word) + 0.5) / 2**32 * share[-1]))
            found.append((-p[token], place, token))
        keep = total // count + (step < total % count)
        for _, place, token in sorted(found)[:keep]:
            ids[0, place] = token
    return ids[0].tolist()


@pytest.fixture
def model(tiny_bert):
    """BERT whose answers are not all the same."""
    torch.manual_seed(1)
    with torch.no_grad():
        for module in tiny_bert.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                module.weight.normal_(0, 0.2)
    return tiny_bert


def llama(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 5, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64,
        initializer_range=0.2, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("steps", [None, 1, 2, 3])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 3.0])
def test_texts_are_those_of_the_plain_loop(model, tokenizer, steps, temperature):
    made = generate(model, tokenizer, PROMPTS, steps=steps, temperature=temperature, seed=5)
    for text, ids in zip(PROMPTS, made.input_ids, strict=True):
        assert ids == plain(model, tokenizer, text, steps, temperature, 5)
    assert made.texts == [tokenizer.decode(ids, skip_special_tokens=True) for ids in made.input_ids]


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_a_text_does_not_depend_on_its_batch(model, tokenizer, batch_size):
    def run(prompts, size):
        made = generate(model, tokenizer, prompts, temperature=1.0, seed=3, batch_size=size)
        return made.input_ids

    together = run(PROMPTS, 16)
    assert run(PROMPTS, batch_size) == together
    assert run(PROMPTS[::-1], batch_size)[::-1] == together
    assert [run([text], 1)[0] for text in PROMPTS] == together


def test_what_it_costs_is_counted(model, tokenizer):
    made = generate(model, tokenizer, PROMPTS, steps=2)
    # 3, 1, 5 and 2 masks; the rows of the head in step 0, then what is left
    assert made.forward_passes == 2
    assert made.head_rows == (3 + 1 + 5 + 2) + (1 + 0 + 2 + 1)
    assert made.seconds > 0
    seen = []
    hook = model.cls.predictions.decoder.register_forward_hook(
        lambda _, args, __: seen.append(args[0].shape[:-1].numel())
    )
    generate(model, tokenizer, PROMPTS, steps=2)
    hook.remove()
    assert seen[-2:] == [11, 4]


def test_masks_are_appended(model, tokenizer):
    appended = generate(model, tokenizer, ["the quick"], length=3)
    written = generate(model, tokenizer, ["the quick [MASK] [MASK] [MASK]"])
    assert appended.input_ids == written.input_ids
    assert appended.forward_passes == 3


def test_seed_and_temperature_matter_and_no_mask_is_left(model, tokenizer):
    def run(**options):
        return generate(model, tokenizer, PROMPTS, **options).input_ids

    assert run(temperature=2.0, seed=1) == run(temperature=2.0, seed=1)
    assert run(temperature=2.0, seed=1) != run(temperature=2.0, seed=2)
    assert run(seed=1) == run(seed=2)
    for row, text in zip(run(temperature=50.0), PROMPTS, strict=True):
        assert tokenizer.mask_token_id not in row
        inner = tokenizer(text)["input_ids"]
        new = [b for a, b in zip(inner, row, strict=True) if a == tokenizer.mask_token_id]
        assert not set(new) & set(tokenizer.all_special_ids)


def test_special_tokens_where_they_are_wanted(model, tokenizer):
    with torch.no_grad():
        model.cls.predictions.bias[tokenizer.sep_token_id] = 1e4
        model.cls.predictions.bias[tokenizer.mask_token_id] = 1e5
    made = generate(model, tokenizer, PROMPTS[1:2], special_tokens=True)
    assert made.input_ids[0][-2] == tokenizer.sep_token_id


def test_draws_follow_the_softmax(model, tokenizer):
    """Many seeds: a statistics test of the temperature, with a fixed outcome."""
    text = "a seed and an [MASK]"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        scores = model.eval()(ids).logits[0, -2].double() / 4.0
    scores[tokenizer.all_special_ids] = -math.inf
    expected = scores.softmax(-1)
    count = 600
    drawn = [generate(model, tokenizer, [text], temperature=4.0, seed=s).input_ids[0][-2]
             for s in range(count)]  # fmt: skip
    found = torch.bincount(torch.tensor(drawn), minlength=len(expected)) / count
    assert (found - expected).abs().sum() / 2 < 0.5 * (len(expected) / count) ** 0.5


@pytest.mark.parametrize("shift", [None, True, False])
def test_causal_model_made_bidirectional(tokenizer, shift):
    model = make_bidirectional(llama(tokenizer))
    text = "the quick [MASK] fox [MASK]"
    made = generate(model, tokenizer, [text], shift=shift)
    assert made.input_ids[0] == plain(model, tokenizer, text, shift=0 if shift is False else 1)


def test_fused_model_knows_which_row_predicts(tokenizer):
    text = "the quick [MASK] fox [MASK]"
    model = fuse_loss(make_bidirectional(llama(tokenizer)), shift=False)
    assert generate(model, tokenizer, [text]).input_ids[0] == plain(model, tokenizer, text)


def test_mode_and_weights_stay_as_they_were(model, tokenizer):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generate(model, tokenizer, PROMPTS[:1])
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_no_prompts_no_texts(model, tokenizer):
    made = generate(model, tokenizer, [])
    assert (made.texts, made.forward_passes, made.head_rows) == ([], 0, 0)


@pytest.mark.parametrize(
    ("error", "prompts", "options", "message"),
    [
        (ValueError, ["nothing"], {}, r"no \[MASK\] in 'nothing'.*length=n"),
        (ValueError, ["a"], {"length": 70}, "the text has 73 tokens, the model takes 64"),
        (TypeError, "a [MASK]", {}, "prompts must be a list of texts"),
        (TypeError, [3], {}, "prompts must be a list of texts"),
        (ValueError, ["[MASK]"], {"steps": 0}, "steps must be at least 1, got 0"),
        (TypeError, ["[MASK]"], {"steps": 1.5}, "steps must be an int, got float"),
        (ValueError, ["[MASK]"], {"length": -1}, "length must be at least 0, got -1"),
        (ValueError, ["[MASK]"], {"batch_size": 0}, "batch_size must be at least 1"),
        (ValueError, ["[MASK]"], {"temperature": -1.0}, "temperature must be at least 0"),
        (ValueError, ["[MASK]"], {"temperature": math.nan}, "temperature must be at least 0"),
        (TypeError, ["[MASK]"], {"temperature": "hot"}, "temperature must be a number, got str"),
        (TypeError, ["[MASK]"], {"special_tokens": 1}, "special_tokens must be True or False"),
        (TypeError, ["[MASK]"], {"shift": "no"}, "shift must be True or False, got str"),
        (ValueError, ["[MASK]"], {"seed": -1, "temperature": 1.0}, "seed"),
    ],
)
def test_bad_input_is_refused(model, tokenizer, error, prompts, options, message):
    with pytest.raises(error, match=message):
        generate(model, tokenizer, prompts, **options)


def test_causal_model_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"LlamaForCausalLM is causal.*make_bidirectional"):
        generate(llama(tokenizer), tokenizer, PROMPTS)


def test_tokenizer_without_mask_token_is_refused(model):
    tokenizer = build_wordpiece()
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match=r"no mask token.*add_special_tokens"):
        generate(model, tokenizer, ["a [MASK]"])


def test_first_mask_needs_a_row_before_it(tokenizer):
    model = make_bidirectional(llama(tokenizer))
    bare = build_wordpiece()
    bare.backend_tokenizer.post_processor = None
    with pytest.raises(ValueError, match="no token before the first mask"):
        generate(model, bare, ["[MASK] fox"])


def save(model, tokenizer, path):
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def test_command_prints_texts_and_what_they_cost(model, tokenizer, tmp_path, capsys):
    folder = save(model, tokenizer, tmp_path / "model")
    assert main(["generate", "--model", folder, "--steps", "2", *PROMPTS]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == generate(model, tokenizer, PROMPTS, steps=2).texts
    assert "2 forward passes, 15 rows of the head" in printed.err
    options = ["--length", "3", "--temperature", "1.5", "--seed", "9"]
    assert main(["generate", "--model", folder, *options, "the quick"]) == 0
    expected = generate(model, tokenizer, ["the quick"], length=3, temperature=1.5, seed=9)
    assert capsys.readouterr().out.splitlines() == expected.texts


def test_command_loads_a_causal_model_that_was_made_bidirectional(tokenizer, tmp_path, capsys):
    model = make_bidirectional(llama(tokenizer))
    folder = save(model, tokenizer, tmp_path / "model")
    assert main(["generate", "--model", folder, "--shift", "off", PROMPTS[0]]) == 0
    expected = generate(model, tokenizer, PROMPTS[:1], shift=False).texts
    assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nothing"], "no [MASK] in 'nothing'"),
        (["--length", "99", "a"], "tokens, the model takes 64"),
        (["--steps", "0", "[MASK]"], "steps must be at least 1"),
    ],
)
def test_command_refuses_in_a_sentence(model, tokenizer, tmp_path, capsys, options, message):
    folder = save(model, tokenizer, tmp_path / "model")
    assert main(["generate", "--model", folder, *options]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("maskft generate: ")
    assert message in said


def test_command_refuses_causal_models_and_tokenizers_without_mask(tokenizer, tmp_path, capsys):
    folder = save(llama(tokenizer), tokenizer, tmp_path / "causal")
    assert main(["generate", "--model", folder, "[MASK]"]) == 2
    assert "LlamaForCausalLM is causal" in capsys.readouterr().err
    tokenizer = build_byte_level()
    tokenizer.mask_token = None
    folder = save(llama(tokenizer), tokenizer, tmp_path / "unmasked")
    assert main(["generate", "--model", folder, "a"]) == 2
    assert "has no mask token" in capsys.readouterr().err
