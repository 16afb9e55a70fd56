"""Strategies through the collator: what each masks, whatever the batch, and what is refused."""

import math
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import Trainer

from maskft import DataCollatorForLanguageModeling, Plan, RateSchedule, attach
from maskft.strategy import (
    STRATEGIES,
    Entity,
    FromColumns,
    FromFunction,
    Keyword,
    NGram,
    Span,
    Strategy,
)
from maskft.strategy.schedule import parse_schedule
from maskft.strategy.vocabulary import Vocabulary
from maskkernels import (
    MaskingPolicy,
    geometric_lengths,
    hash_rows,
    mask_tokens,
    span_units,
    threshold,
    word_units,
)
from tests.support.trainers import build

SPECIAL_IDS = torch.arange(5)


def split_words(tokens):
    """The strategy of the module's docstring."""
    words = tokens.words()
    several = (words == words.roll(1, 1)) | (words == words.roll(-1, 1))
    return torch.where(several, words, -1)


def every_other(tokens):
    rates = torch.zeros(tokens.input_ids.shape, dtype=torch.float64)
    rates[:, ::2] = 1.0
    return Plan(tokens.singles(), rates)


@pytest.fixture
def annotated(rows):
    """The rows with an entity of three tokens and two of one, weights, units and a limit."""
    made = []
    for row in rows:
        n = len(row["input_ids"])
        entity = [-1] * n
        entity[2:5], entity[5], entity[7] = [0, 0, 0], 1, 2
        made.append(
            {
                **row,
                "entity_ids": entity,
                "keyword_weights": [0.5 + i % 3 for i in range(n)],
                "mine": [i // 4 for i in range(n)],
                "often": [0.9 if i < 4 else 0.0 for i in range(n)],
                "question": [i < n // 2 for i in range(n)],
            }
        )
    return made


ALL = {
    **{name: name for name in STRATEGIES},
    "span of tokens": Span(p=0.5, longest=3, words=False),
    "bigram": NGram(2),
    "only entities": Entity(rest="none", rate=0.6),
    "columns": FromColumns("mine", "often"),
    "function": split_words,
}


def collate(tokenizer, rows, **options):
    return collator_and_rows(tokenizer, rows, **options)[1]()


def collator_and_rows(tokenizer, rows, **options):
    """A collator, and what calls it on the columns it knows, as a Trainer that is attached does."""
    collator = DataCollatorForLanguageModeling(
        tokenizer, **{"rng": "sample", "seed": 5, "mlm_probability": 0.4} | options
    )
    known = [
        *tokenizer.model_input_names,
        *collator.required_columns(),
        *collator.optional_columns(),
    ]
    kept = [{k: v for k, v in row.items() if k in known} for row in rows]
    return collator, lambda: collator(kept)


def restored(batch):
    return torch.where(batch["labels"] != -100, batch["labels"], batch["input_ids"])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("mask_only", [None, "question", (0, 2)])
@pytest.mark.parametrize("selection", ["bernoulli", "budget"])
def test_masks_do_not_depend_on_the_batch_or_the_padding(
    tokenizer, annotated, name, mask_only, selection
):
    options = {"strategy": ALL[name], "mask_only": mask_only, "selection": selection}
    batch = collate(tokenizer, annotated, **options)
    shuffled = collate(tokenizer, annotated[::-1], pad_to_multiple_of=64, **options)
    tokenizer.padding_side = "left"
    left = collate(tokenizer, annotated, **options)
    tokenizer.padding_side = "right"
    assert (batch["labels"] != -100).any()
    assert not torch.isin(batch["labels"], SPECIAL_IDS).any()
    weighing = {"label_weights", "num_items"} if name == "diffusion" else set()
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "labels"} | weighing
    for i, row in enumerate(annotated):
        n = len(row["input_ids"])
        assert restored(batch)[i, :n].tolist() == row["input_ids"]
        alone = collate(tokenizer, [row], **options)
        for key in ("input_ids", "labels"):
            seen = batch[key][i, :n]
            assert torch.equal(alone[key][0], seen)
            assert torch.equal(left[key][i, left[key].shape[1] - n :], seen)
            assert torch.equal(shuffled[key][len(annotated) - 1 - i, :n], seen)


@pytest.mark.parametrize("make", [np.array, torch.tensor])
@pytest.mark.parametrize("name", ["entity", "keyword", "columns"])
def test_rows_of_arrays_are_masked_as_lists(tokenizer, annotated, name, make):
    expected = collate(tokenizer, annotated, strategy=ALL[name])
    arrays = [{k: make(v) for k, v in row.items()} for row in annotated]
    assert torch.equal(collate(tokenizer, arrays, strategy=ALL[name])["labels"], expected["labels"])
    numpy = collate(tokenizer, annotated, strategy=ALL[name], return_tensors="np")
    assert np.array_equal(numpy["labels"], expected["labels"].numpy())


def test_workers_mask_alike(tokenizer, annotated):
    for name in ("span", "entity", "keyword"):
        batches = []
        for workers in (0, 2):
            collator = DataCollatorForLanguageModeling(
                tokenizer, rng="sample", seed=5, strategy=ALL[name]
            )
            rows = [
                {k: v for k, v in row.items() if k in ("input_ids", *collator.required_columns())}
                for row in annotated
            ]
            loader = DataLoader(rows, 4, collate_fn=collator, num_workers=workers)
            batches.append([batch["labels"] for batch in loader])
        for one, two in zip(*batches, strict=True):
            assert torch.equal(one, two)


def test_span_is_span_units_of_words_with_one_action_each(tokenizer, annotated):
    rows = [{k: row[k] for k in ("input_ids", "attention_mask")} for row in annotated]
    collator = DataCollatorForLanguageModeling(tokenizer, rng="sample", seed=5, strategy="span")
    collator.set_epoch(3)
    batch = collator(rows)
    ids = restored(batch)
    real = batch["attention_mask"]
    samples = hash_rows(ids, attention_mask=real)
    special_ids = tuple(tokenizer.all_special_ids)
    vocabulary = Vocabulary(tokenizer, ids.device, len(tokenizer), special_ids)
    maskable = vocabulary.maskable
    words = word_units(ids, vocabulary.words.table, attention_mask=real, maskable=maskable)
    spans = span_units(words, geometric_lengths(), sample_ids=samples, seed=5, epoch=3)
    policy = MaskingPolicy(tokenizer.mask_token_id, len(tokenizer), replacement="unit")
    expected = mask_tokens(
        ids, policy, seed=5, epoch=3, sample_ids=samples, units=spans, attention_mask=real,
        maskable=maskable,
    )  # fmt: skip
    assert torch.equal(batch["labels"], expected.labels)
    assert torch.equal(batch["input_ids"], expected.input_ids)


def test_entities_are_whole_or_untouched(tokenizer, annotated):
    words = rest = hit = 0
    for seed in range(40):
        for strategy in ("entity", Entity(rest="none")):
            chosen = collate(tokenizer, annotated, seed=seed, strategy=strategy)["labels"] != -100
            entity = chosen[:, 2:5].sum(1)
            assert set(entity.tolist()) <= {0, 3}
            hit += int((entity == 3).sum())
            others = int(chosen.sum()) - int(chosen[:, [2, 3, 4, 5, 7]].sum())
            words, rest = (words + others, rest) if strategy == "entity" else (words, rest + others)
    assert words > 0
    assert rest == 0
    assert 0.3 < hit / (80 * len(annotated)) < 0.5  # the rate is 0.4


def test_entities_can_have_a_rate_of_their_own(tokenizer, annotated):
    for rate in (0.0, 1.0):
        batch = collate(tokenizer, annotated, strategy=Entity(rate=rate))
        assert ((batch["labels"][:, [2, 3, 4, 5, 7]] != -100) == bool(rate)).all()
        assert (batch["labels"][:, 8:] != -100).any()


def test_words_follow_their_weights_at_the_asked_rate(tokenizer, annotated):
    """Every token a word of its own: rates are 0.5, 1.5 and 2.5 parts of a row's share."""
    rows = [{**row, "word_ids": list(range(len(row["input_ids"])))} for row in annotated] * 100
    rows = [{**row, "id": i} for i, row in enumerate(rows)]
    batch = collate(
        tokenizer, rows, strategy="keyword", mlm_probability=0.15, sample_id_column="id"
    )
    chosen = batch["labels"] != -100
    maskable = ~torch.isin(restored(batch), SPECIAL_IDS)
    share = chosen.sum().item() / maskable.sum().item()
    assert abs(share - 0.15) < 4 * math.sqrt(0.15 / maskable.sum().item())
    column = torch.arange(chosen.shape[1]).expand_as(chosen)
    rate = [chosen[maskable & (column % 3 == k)].double().mean().item() for k in range(3)]
    assert rate[1] / rate[0] == pytest.approx(3, rel=0.1)
    assert rate[2] / rate[0] == pytest.approx(5, rel=0.1)


def test_mask_only_masks_nothing_else(tokenizer, annotated):
    text = [("a seed and an epoch", "internationalisation is a long word")] * 8
    encoded = tokenizer([a for a, _ in text], [b for _, b in text])
    kinds = [[int(i > 6) for i in range(len(row))] for row in encoded["input_ids"]]
    rows = [
        {"input_ids": ids, "token_type_ids": kind, "attention_mask": [1] * len(ids)}
        for ids, kind in zip(encoded["input_ids"], kinds, strict=True)
    ]
    for strategy in ("random", "whole_word", "span"):
        for mask_only in (1, [1], (0, 1)):
            batch = collate(
                tokenizer, rows, strategy=strategy, mask_only=mask_only, mlm_probability=1.0
            )
            chosen = batch["labels"] != -100
            special = torch.isin(restored(batch), SPECIAL_IDS)
            allowed = torch.isin(batch["token_type_ids"], torch.tensor(mask_only))
            assert torch.equal(chosen, allowed & ~special)
    batch = collate(tokenizer, annotated, mask_only="question", mlm_probability=1.0)
    for row, labels in zip(annotated, batch["labels"], strict=True):
        assert not (labels[len(row["input_ids"]) // 2 :] != -100).any()
    no_types = [{k: v for k, v in row.items() if k != "token_type_ids"} for row in annotated]
    with pytest.raises(ValueError, match="mask_only=1 needs a token_type_ids column"):
        collate(tokenizer, no_types, mask_only=1)


@pytest.mark.parametrize("strategy", ["random", "whole_word", "span", "ngram", "entity", "keyword"])
def test_a_budget_is_exact_in_units(tokenizer, annotated, strategy):
    options = {"selection": "budget", "strategy": strategy, "mlm_probability": 0.3}
    one, two = (collate(tokenizer, annotated, seed=seed, **options)["labels"] for seed in (1, 2))
    assert not torch.equal(one, two)
    if strategy == "random":
        counts = (one != -100).sum(1).tolist()
        assert counts == [round(0.3 * (len(row["input_ids"]) - 2)) for row in annotated]
    none = {"mlm_probability": 0.001, "selection": "budget", "strategy": strategy}
    assert not (collate(tokenizer, annotated, **none)["labels"] != -100).any()
    some = collate(tokenizer, annotated, at_least_one=True, **none)["labels"] != -100
    assert some.any(1).all()


@pytest.mark.parametrize(
    "strategy",
    [Keyword(), Entity(rate=0.9), FromColumns("mine", "often"), FromFunction(every_other)],
    ids=["keyword", "entity", "columns", "function"],
)
def test_a_budget_of_units_with_rates_is_their_rounded_sum(tokenizer, annotated, strategy):
    """Against the strategy's own plan, in plain Python: k units, whole, and none of rate 0."""
    plans = []

    def seen(tokens):
        plans.append(strategy.plan(tokens))
        return plans[0]

    batch = collate(tokenizer, annotated, strategy=strategy, selection="budget")
    again = FromFunction(seen, columns=strategy.columns)
    assert torch.equal(
        collate(tokenizer, annotated, strategy=again, selection="budget")["labels"], batch["labels"]
    )
    chosen, (plan,) = batch["labels"] != -100, plans
    total = 0
    for row in range(len(annotated)):
        rates = {}
        for t, unit in enumerate(plan.units[row].tolist()):
            if unit >= 0:
                rates.setdefault(unit, plan.rates[row, t].item())
        masked = set(plan.units[row][chosen[row]].tolist())
        assert len(masked) == (sum(map(threshold, rates.values())) + (1 << 31)) >> 32
        assert all(rates[unit] > 0 for unit in masked)
        whole = torch.isin(plan.units[row], torch.tensor(sorted(masked)))
        assert torch.equal(chosen[row], whole)
        total += len(masked)
    assert total >= len(annotated)


def test_replacement_per_unit_for_any_strategy(tokenizer, annotated):
    options = {"strategy": Entity(rest="none", rate=1.0), "mask_replace_prob": 0.5}
    seen = set()
    for seed in range(20):
        for replacement in ("unit", "token"):
            batch = collate(tokenizer, annotated, seed=seed, replacement=replacement, **options)
            masked = (batch["input_ids"][:, 2:5] == tokenizer.mask_token_id).sum(1)
            seen |= {(replacement, int(n)) for n in masked}
    assert {n for kind, n in seen if kind == "unit"} == {0, 3}
    assert {n for kind, n in seen if kind == "token"} == {0, 1, 2, 3}


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("columns", "function")])
def test_stream_masks_are_fresh_at_every_call(tokenizer, annotated, name):
    options = {"rng": "stream", "seed": 1, "strategy": ALL[name]}
    _, call = collator_and_rows(tokenizer, annotated, **options)
    one, two = call()["labels"], call()["labels"]
    assert not torch.equal(one, two)
    assert torch.equal(collate(tokenizer, annotated, **options)["labels"], one)


def test_your_own_strategy(tokenizer, annotated):
    batch = collate(tokenizer, annotated, strategy=split_words, mlm_probability=1.0)
    ids = restored(batch)
    for row, labels in zip(ids, batch["labels"], strict=True):
        tokens = tokenizer.convert_ids_to_tokens(row.tolist())
        for i, token in enumerate(tokens):
            split = token.startswith("##") or (i + 1 < len(tokens) and tokens[i + 1][:2] == "##")
            assert (labels[i] != -100) == split
    batch = collate(tokenizer, annotated, strategy=every_other)
    special = torch.isin(restored(batch), SPECIAL_IDS)
    assert ((batch["labels"] != -100)[:, ::2] == ~special[:, ::2]).all()
    assert not (batch["labels"] != -100)[:, 1::2].any()

    class Last(Strategy):
        columns = {"mine": -1}  # noqa: RUF012

        def plan(self, tokens):
            mine = tokens.columns["mine"]
            return Plan(tokens.grouped(torch.where(mine == mine.max(1, True).values, mine, -1)))

    batch = collate(tokenizer, annotated, strategy=Last(), mlm_probability=1.0)
    assert (batch["labels"] != -100).any(1).sum() > 0
    collator = DataCollatorForLanguageModeling(tokenizer, strategy=split_words)
    assert pickle.loads(pickle.dumps(collator)).strategy is split_words


def test_columns_that_nobody_asked_for_do_not_reach_the_model(tokenizer, annotated):
    rows = [
        {k: v for k, v in r.items() if k not in ("mine", "often", "question")} for r in annotated
    ]
    batch = collate(tokenizer, rows)
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "labels"}


# --- schedules ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ("constant:0.2", [0.2, 0.2, 0.2, 0.2, 0.2]),
        ("linear:0.3:0.1", [0.3, 0.25, 0.2, 0.15, 0.1]),
        ("cosine:0.3:0.1", [0.3, 0.2 + 0.1 * math.sqrt(0.5), 0.2, 0.2 - 0.1 * math.sqrt(0.5), 0.1]),
        ("steps:0.3,0.25:0.2,0.9:0.05", [0.3, 0.2, 0.2, 0.2, 0.05]),
    ],
)
def test_schedules_follow_their_formulas(text, rates):
    schedule = parse_schedule(text)
    assert [schedule(done / 4) for done in range(5)] == pytest.approx(rates)
    assert schedule(7.0) == pytest.approx(rates[-1])
    assert parse_schedule(text + "/epoch").by == "epoch"


@pytest.mark.parametrize(
    "text",
    ["", "linear", "linear:0.3", "linear:a:b", "steps:", "steps:0.3,0.5", "steps:0.3,0.5:2",
     "steps:0.3,0.6:0.2,0.5:0.1", "linear:0.3:0.1/week", "wavy:0.1:0.2", "constant:0.1:0.2:0.3"],
)  # fmt: skip
def test_broken_schedules_are_refused(text):
    with pytest.raises(ValueError, match=r"rate schedule .*expected linear:BEGIN:END"):
        parse_schedule(text)


def test_a_schedule_of_steps_needs_steps():
    with pytest.raises(ValueError, match="steps goes with"):
        RateSchedule("steps")
    with pytest.raises(ValueError, match="kind must be one of"):
        RateSchedule("wavy")
    with pytest.raises(ValueError, match="between 0 and 1"):
        RateSchedule("linear", 1.3)


class Staircase:
    """A rate that shows the step: 0 or 1 in turn."""

    def __init__(self, steps, by="step"):
        self.steps, self.by = steps, by

    def __call__(self, done):
        return round(done * self.steps) % 2


def rates(loader):
    return [int((batch["labels"] != -100).any()) for batch in loader]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_workers_know_the_step_of_each_batch(tokenizer, rows, workers, accumulation):
    collator = DataCollatorForLanguageModeling(tokenizer, schedule=Staircase(20))
    loader = DataLoader(
        rows, 2, collate_fn=collator, num_workers=workers, persistent_workers=workers > 0
    )
    for step in (0, 7):  # the second epoch, or a resumed one
        collator.set_progress(step, 20, batches_a_step=accumulation)
        expected = [(step + i // accumulation) % 2 for i in range(len(loader))]
        assert rates(loader) == expected


def test_a_schedule_by_epoch_and_none_before_training(tokenizer, rows):
    collator = DataCollatorForLanguageModeling(
        tokenizer, schedule=Staircase(4, "epoch"), mlm_probability=1.0
    )
    loader = DataLoader(rows, 4, collate_fn=collator)
    assert set(rates(loader)) == {1}  # mlm_probability, until training says where it stands
    for epoch in range(4):
        collator.set_progress(5 * epoch, 20, epoch=epoch, epochs=4)
        assert set(rates(loader)) == {epoch % 2}
    assert set(rates(DataLoader(rows, 4, collate_fn=collator.for_evaluation()))) == {1}
    with pytest.raises(ValueError, match="must be positive"):
        collator.set_progress(0, 0)
    with pytest.raises(ValueError, match="must not be negative"):
        collator.set_progress(-1, 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_trainer_gives_each_step_its_rate_and_resumes_exactly(
    tiny_bert, tokenizer, rows, tmp_path, workers
):
    class Recording(Trainer):
        def training_step(self, model, inputs, *args, **kwargs):
            masked.append((self.state.global_step, int((inputs["labels"] != -100).any())))
            return super().training_step(model, inputs, *args, **kwargs)

    options = {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "save_steps": 7,
        "save_strategy": "steps", "dataloader_num_workers": workers,
    }  # fmt: skip
    state = {k: v.clone() for k, v in tiny_bert.state_dict().items()}

    def run(path, resume=None):
        collator = DataCollatorForLanguageModeling(tokenizer, rng="sample", schedule=Staircase(10))
        trainer = build(tiny_bert, tokenizer, rows, tmp_path / path, collator, **options)
        trainer.__class__ = Recording
        attach(trainer).train(resume_from_checkpoint=resume)
        return {k: v.clone() for k, v in tiny_bert.state_dict().items()}

    masked = []
    whole = run("whole")
    assert masked == [(step, step % 2) for step in range(10) for _ in range(2)]
    tiny_bert.load_state_dict(state)
    masked = []
    resumed = run("resumed", str(tmp_path / "whole" / "checkpoint-7"))
    assert masked == [(step, step % 2) for step in range(7, 10) for _ in range(2)]
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"strategy": "spam"}, ValueError, "'random', 'whole_word', 'span', 'ngram', 'entity'"),
        ({"strategy": 3}, TypeError, "a maskft.Strategy or a function, got int"),
        ({"strategy": "span", "rng": "hf"}, ValueError, "rng='hf' draws what Transformers'"),
        ({"selection": "budget", "rng": "hf"}, ValueError, "rng='hf' draws what"),
        ({"mask_only": 0, "rng": "hf"}, ValueError, "rng='hf' draws what"),
        ({"selection": "some"}, ValueError, "selection must be one of"),
        ({"replacement": "row"}, ValueError, "replacement must be one of"),
        ({"replacement": "unit"}, ValueError, "needs a strategy with units"),
        ({"at_least_one": True}, ValueError, "goes with selection='budget'"),
        ({"mask_only": 1.5}, (TypeError, ValueError), "mask_only|iterable"),
        ({"mask_only": []}, ValueError, "mask_only must be the name"),
        ({"schedule": 0.3}, TypeError, "schedule must be a function"),
    ],
)
def test_bad_options_are_refused(tokenizer, options, error, text):
    with pytest.raises(error, match=text):
        DataCollatorForLanguageModeling(tokenizer, **options)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Entity(rest="all"), "rest must be"),
        (lambda: Entity(rate=2), "rate must be between"),
        (lambda: NGram(0), r"n must be in \[1, 64\]"),
        (lambda: Span(p=2), r"p must be in"),
        (lambda: Span(longest=0), "longest must be"),
    ],
)
def test_bad_strategies_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_bad_columns_are_refused(tokenizer, annotated):
    bare = [{k: row[k] for k in ("input_ids", "attention_mask")} for row in annotated]
    for strategy, name in (("entity", "entity_ids"), ("keyword", "keyword_weights")):
        with pytest.raises(ValueError, match=rf"no column '{name}'.*maskft\.attach"):
            collate(tokenizer, bare, strategy=strategy)
    for name, options in (("entity_ids", {"strategy": "entity"}), ("part", {"mask_only": "part"})):
        collator = DataCollatorForLanguageModeling(tokenizer, **options)
        with pytest.raises(ValueError, match=rf"reads \['{name}'\] here, .* mappings, got list"):
            collator([row["input_ids"] for row in bare])
    short = [{**annotated[0], "entity_ids": [1, 2]}]
    with pytest.raises(ValueError, match=r"example 0 has .* but 2 entries in 'entity_ids'"):
        collate(tokenizer, short, strategy="entity")
    for bad in (-1.0, math.nan, math.inf):
        weights = [bad] * len(annotated[0]["input_ids"])
        with pytest.raises(ValueError, match="must not be negative, infinite or NaN"):
            collate(tokenizer, [{**annotated[0], "keyword_weights": weights}], strategy="keyword")
    zero = [{**annotated[0], "keyword_weights": [0.0] * len(annotated[0]["input_ids"])}]
    with pytest.raises(ValueError, match=r"sample 0: 0 of its .* give the others a weight"):
        collate(tokenizer, zero, strategy=Keyword())
    with pytest.raises(TypeError, match="must return a Plan or a tensor of units, got str"):
        collate(tokenizer, annotated, strategy=FromFunction(repr))


NAN = math.nan


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((NAN, 3.7), TypeError, "step must be an integer, got nan"),
        ((1, 3.7), TypeError, "steps must be an integer, got 3.7"),
        (("1", 3), TypeError, "step must be an integer, got '1'"),
        ((1, 1 << 63), ValueError, "steps must be less than"),
        ((1, 3, NAN), TypeError, "epoch must be an integer, got nan"),
        ((1, 3, 0, 0), ValueError, "epochs must be positive, got 0"),
        ((1, 3, 0, 1, 0.5), TypeError, "batches_a_step must be an integer, got 0.5"),
    ],
)
def test_progress_that_is_no_whole_number_is_refused(tokenizer, arguments, error, message):
    collator = DataCollatorForLanguageModeling(tokenizer, schedule=RateSchedule("linear"))
    names = ("step", "steps", "epoch", "epochs", "batches_a_step")
    with pytest.raises(error, match=message):
        collator.set_progress(**dict(zip(names, arguments, strict=False)))


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"begin": None}, TypeError, "begin must be a number, got NoneType"),
        ({"end": "0.1"}, TypeError, "end must be a number, got str"),
        ({"end": NAN}, ValueError, "rates must be between 0 and 1"),
        ({"kind": "steps", "steps": (0.0, 0.1)}, TypeError, "steps must be pairs"),
        ({"kind": "steps", "steps": "ab"}, TypeError, "steps must be pairs"),
        ({"kind": "steps", "steps": ((0.0, "x"),)}, TypeError, "steps must be pairs"),
    ],
)
def test_a_schedule_names_the_field_that_is_no_number(fields, error, message):
    with pytest.raises(error, match=message):
        RateSchedule(**{"kind": "linear", **fields})


@pytest.mark.parametrize("done", [NAN, None, "0.5"])
def test_a_schedule_refuses_progress_that_is_no_number(done):
    for schedule in (RateSchedule("linear"), RateSchedule("steps", steps=((0.0, 0.1),))):
        with pytest.raises((TypeError, ValueError), match="done must be a number"):
            schedule(done)
