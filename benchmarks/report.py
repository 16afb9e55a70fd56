"""Draw the committed results: ``python -m benchmarks.report``.

Reads benchmarks/results/*.json. Writes docs/benchmarks.md, its figures, and the parts of README.md
and docs/strategies.md between their two markers. Every number in them comes from the results.
"""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.harness import RESULTS, ROOT

DOCS = ROOT / "docs"
OURS, THEIRS, OTHER = "#1b7f5c", "#b5b5b5", "#5b7db1"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
EVALUATED = {"tokens": "random tokens", "words": "whole words"}  # as the results name them
Row = dict[str, Any]


def load(name: str) -> tuple[str, list[Row]]:
    """Return (provenance of the numbers, rows)."""
    found = json.loads((RESULTS / f"{name}.json").read_text())
    origin = found["provenance"]
    versions = ", ".join(
        f"{package} {version}"
        for package, version in origin["versions"].items()
        if package in ("python", "torch", "numpy", "numba", "transformers", "datasets")
    )
    return (
        f"{origin['device']}, {origin['threads']} thread; {versions}; commit {origin['commit']}, "
        f"{origin['date']}; `{origin['command']}`",
        found["rows"],
    )


def part(rows: Iterable[Row], name: str) -> list[Row]:
    return [row for row in rows if row["part"] == name]


def table(headings: list[str], lines: Iterable[list[Any]]) -> str:
    """Format a Markdown table; floats get three significant digits."""
    text = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    for line in lines:
        cells = [digits(cell) if isinstance(cell, float) else str(cell) for cell in line]
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


def digits(value: float) -> str:
    """Format a number with three significant digits and no exponent."""
    if value >= 1000:
        return f"{round(value, 3 - len(str(int(value)))):,.0f}"
    return f"{value:.3g}"


def bars(path: str, title: str, named: list[tuple[str, float, str]], unit: str) -> None:
    """Draw horizontal bars on a logarithmic axis, each labelled with its value."""
    figure, axes = plt.subplots(figsize=(8, 0.42 * len(named) + 1.1))
    names, values, colours = zip(*reversed(named), strict=True)
    drawn = axes.barh(names, values, color=colours)
    axes.bar_label(drawn, [digits(v) for v in values], padding=3, fontsize=9)
    axes.set_xscale("log")
    axes.set_xlim(right=max(values) * 3)
    axes.set_xlabel(unit)
    axes.set_title(title, fontsize=11, loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    save(figure, path)


def legend_right(axes: Any) -> None:
    """Place the legend to the right of the plot."""
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def save(figure: Any, path: str) -> None:
    figure.tight_layout()
    figure.savefig(DOCS / path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def collate() -> tuple[str, str]:
    """Return (section of docs/benchmarks.md, table for the README)."""
    origin, rows = load("collate_cpu")
    parts = list(dict.fromkeys(row["part"] for row in rows))
    pairs = {}
    for name in parts:
        by = {row["what"]: row for row in part(rows, name)}
        pairs[name] = (by["maskft"], by["transformers"])
    drawn = [
        (f"{name}: {who}", row["Mtokens_per_s"], colour)
        for name, both in pairs.items()
        if not name.startswith("ragged")
        for who, row, colour in zip(
            ("Transformers", "maskft"), reversed(both), (THEIRS, OURS), strict=True
        )
    ]
    title = "From rows to a masked batch, 32,768 tokens, one core"
    bars("collate.png", title, drawn, "million tokens per second (log scale)")
    lines = [
        [name, theirs["p50"], ours["p50"], theirs["p50"] / ours["p50"]]
        for name, (ours, theirs) in pairs.items()
    ]
    headings = ["batch", "Transformers, ms", "maskft, ms", "speedup"]
    short = table(headings, [line for line in lines if not line[0].startswith("ragged")])
    section = (
        "## The collator\n\nTime to turn rows into a padded, masked batch, with each collator's "
        "defaults. Even rows have 512 tokens; ragged rows have between an eighth of 512 tokens and "
        "512. Transformers' whole-word masking is given the offsets and special tokens it needs."
        "\n\n![throughput of the collators](collate.png)"
        f"\n\n{table(headings, lines)}\n\n{origin}\n"
    )
    return section, short


def mask() -> str:
    origin, rows = load("mask_cpu")
    peers = part(rows, "peers")
    colours = {"mask_tokens": OURS, "mask_tokens, hashing the rows": OURS}
    drawn = [
        (row["what"], row["Mtokens_per_s"], OTHER if "copy" in row["what"] else
         colours.get(row["what"], THEIRS))
        for row in sorted(peers, key=lambda row: row["p50"])
    ]  # fmt: skip
    bars("mask.png", "Masking 64x512 ids, one core", drawn, "million tokens per second (log scale)")
    sizes = part(rows, "sizes")
    figure, axes = plt.subplots(figsize=(8, 3.4))
    for name in dict.fromkeys(row["what"] for row in sizes):
        line = [row for row in sizes if row["what"] == name]
        axes.plot(
            [row["tokens"] for row in line], [row["ns_per_token"] for row in line],
            marker="o", markersize=3, label=name,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("tokens in the batch")
    axes.set_ylabel("nanoseconds per token")
    legend_right(axes)
    save(figure, "mask_sizes.png")
    by_peer = table(
        [
            "masker",
            "ms (20%)",
            "ms (50%)",
            "ms (80%)",
            "million tokens/s",
            "relative to mask_tokens",
        ],
        [
            [r["what"], r["p20"], r["p50"], r["p80"], r["Mtokens_per_s"], r["times_ours"]]
            for r in sorted(peers, key=lambda row: row["p50"])
        ],
    )
    kinds = table(
        ["selection", "ms", "relative to single tokens"],
        [[r["what"], r["p50"], r["times_single"]] for r in part(rows, "kinds")],
    )
    threads = table(
        ["threads", "ms", "million tokens/s"],
        [[r["threads"], r["p50"], r["Mtokens_per_s"]] for r in part(rows, "threads")],
    )
    memory = table(
        ["masker", "peak memory above the input, MiB"],
        [[r["what"], r["peak_MiB"]] for r in part(rows, "memory")],
    )
    return (
        "## The masking op\n\n`mask_tokens` compared with other mask functions on [64, 512] int64 "
        'ids. "Plain torch" draws once per token, with whole-tensor operations. "Sparse NumPy" '
        'draws 32 bits per token and then processes only the selected tokens. "NumPy by gaps" '
        "draws the distances between selected tokens, so it never reads the others. None of these "
        "three can reproduce its masks in another batch, on another device or after a resume. A "
        "copy of the same bytes shows the limit set by memory.\n\n"
        "![throughput of maskers](mask.png)\n\n"
        f"{by_peer}\n\n![cost over sizes](mask_sizes.png)\n\n{kinds}\n\n"
        f"Scaling with threads, 1024x512 tokens:\n\n{threads}\n\n"
        f"Memory, 8192x512 tokens (32 MiB of ids):\n\n{memory}\n\n{origin}\n"
    )


def loader() -> str:
    origin, rows = load("loader_cpu")
    workers = part(rows, "workers")
    counts = list(dict.fromkeys(row["workers"] for row in workers))
    names = list(dict.fromkeys(row["what"] for row in workers))
    speed = {(row["what"], row["workers"]): row["Mtokens_per_s"] for row in workers}
    figure, axes = plt.subplots(figsize=(8, 3.4))
    for name in names:
        ours = name.startswith("maskft")
        axes.plot(
            [str(n) for n in counts], [speed[name, n] for n in counts], marker="o", label=name,
            color=OURS if ours else THEIRS,
            linestyle={"lists": "-", "numpy": "--"}.get(name.split(", ")[1], ":"),
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("DataLoader workers (two cores)")
    axes.set_ylabel("million tokens per second")
    legend_right(axes)
    save(figure, "loader.png")
    passes = table(
        ["million tokens/s", *(f"{n} workers" for n in counts)],
        [[name, *(speed[name, n] for n in counts)] for name in names],
    )
    step = table(
        ["no worker, training at 1 M tokens/s", "wait per step, ms", "speed kept"],
        [[r["what"], r["wait_ms"], f"{r['speed_left']:.0%}"] for r in part(rows, "step")],
    )
    first = table(
        ["first batch", "collator", "seconds"],
        [[r["part"], r["what"], r["seconds"]] for r in rows if "seconds" in r],
    )
    return (
        "## The DataLoader\n\n4096 rows of 512 tokens in a `datasets.Dataset`, shuffled, 64 per "
        "batch. Every pass starts new workers. Transferring a batch from a worker to the parent "
        "costs more than making it: with maskft the fastest loader has no workers.\n\n"
        f"![loader throughput](loader.png)\n\n{passes}\n\n{step}\n\n{first}\n\n{origin}\n"
    )


def denoise() -> str:
    origin, rows = load("denoise_cpu")
    lines = [[r["part"], r["what"], r["p50"], r["Mtokens_per_s"], r["times_ours"]] for r in rows]
    scripts = table(["part", "implementation", "ms", "million tokens/s", "relative to ours"], lines)
    return (
        "## Denoising\n\nTime to turn 64 rows of 512 tokens into inputs and targets, with new "
        "spans at every call. The NumPy script follows Transformers' T5 example, which needs rows "
        'of one length; "tightened" is the same algorithm in the fewest NumPy operations. "Python '
        'script" goes token by token; "Python, by slices" joins slices of the rows.\n\n'
        f"{scripts}\n\n{origin}\n"
    )


def loss() -> str:
    origin, rows = load("loss_cpu")
    titles = {
        "kernel": "Loss and gradient of 307x30522 logits, in preallocated memory",
        "given_logits": "Loss and gradient of given logits, 2048x30522, 15% labelled",
        "bert_small": "Head and loss, 4096 rows, hidden size 384, vocabulary 30522, 15% labelled",
        "modernbert": "Head and loss, 4096 rows, hidden size 768, vocabulary 50368, 15% labelled",
        "large_vocabulary": "Head and loss, hidden size 128, vocabulary 256,000, by rows",
    }
    sections = []
    for case, title in titles.items():
        here = [row for row in rows if row["case"] == case]
        memory = "added_MiB" in here[0]
        lines = [
            [r["what"], r["p50"], r["times_ours"], *([r["added_MiB"]] if memory else [])]
            for r in here
        ]
        added = ["added memory, MiB"] if memory else []
        headings = ["implementation", "ms", "relative to the first", *added]
        sections.append(f"{title}:\n\n{table(headings, lines)}")
    return (
        "## The losses\n\nForward and backward passes in float32, compared with torch's own "
        "functions on the same rows.\n\n" + "\n\n".join(sections) + f"\n\n{origin}\n"
    )


def step() -> tuple[str, str]:
    """Return (section of docs/benchmarks.md, table for the README)."""
    origin, rows = load("step_cpu")
    lines = [[r["what"], r["p50"], r["times_fused"], r["added_MiB"]] for r in rows]
    shown = table(["step, 16x128", "ms", "relative to fused", "added memory, MiB"], lines)
    section = (
        "## A training step\n\nForward and backward pass in float32 of BERT with 6 layers, hidden "
        "size 384 and vocabulary 30522, on 16 rows of 128 tokens, 15% labelled. The encoder alone "
        f"is the lower bound for any head.\n\n{shown}\n\n{origin}\n"
    )
    return section, shown


def strategies() -> str:
    origin, rows = load("strategies_cpu")
    lines = [
        [r["what"], f'"{r["rng"]}"', r["p50"], r["Mtokens_per_s"], r["times_random"]] for r in rows
    ]
    headings = ["strategy", "rng", "ms", "million tokens/s", "relative to random"]
    return (
        "## Strategies\n\nTime of the whole collator for 64 NumPy rows of 512 tokens, by strategy. "
        "Entities and word weights are columns of the rows, computed beforehand.\n\n"
        f"{table(headings, lines)}\n\n{origin}\n"
    )


def study() -> str:
    """Return the comparison of strategies for docs/strategies.md."""
    origin, rows = load("strategy_study")
    names = list(dict.fromkeys(row["trained"] for row in rows if "train_loss" in row))
    kinds = [key.removesuffix(" loss") for key in rows[-1] if key.endswith(" loss")]
    by = {(row["trained"], row["seed"]): row for row in rows}
    seeds = [row["seed"] for row in rows if row["trained"] == names[0]]

    def over_seeds(name: str, key: str) -> str:
        values = [by[name, seed][key] for seed in seeds]
        return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"

    losses = table(
        ["trained with", *(f"evaluated on {EVALUATED.get(kind, kind)}" for kind in kinds)],
        [[name, *(over_seeds(name, f"{kind} loss") for kind in kinds)] for name in names],
    )
    topics = [["untrained", f"{by['untrained', 0]['topic_accuracy']:.1%}", "", ""]]
    for name in names:
        scores = [by[name, seed]["topic_accuracy"] for seed in seeds]
        better = [by[name, s]["topic_accuracy"] - by["random", s]["topic_accuracy"] for s in seeds]
        topics.append(
            [
                name,
                f"{statistics.mean(scores):.1%} ± {100 * statistics.stdev(scores):.1f}",
                "" if name == "random" else f"{100 * statistics.mean(better):+.1f}",
                "" if name == "random" else ", ".join(f"{100 * b:+.1f}" for b in better),
            ]
        )
    scores = table(["trained with", "topic accuracy", "points above random", "per seed"], topics)
    return f"{losses}\n\n{scores}\n\n{len(seeds)} seeds, mean ± standard deviation. {origin}"


def put(path: Path, text: str) -> None:
    """Replace the text between the two markers of a document."""
    before, rest = path.read_text().split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")


def annotate() -> str:
    origin, rows = load("annotate_cpu")
    speeds = table(
        ["step", "words", "seconds", "words/s"],
        [
            [r["what"], f"{r['words']:,}", r["seconds"], r["words_per_s"]]
            for r in part(rows, "speed")
        ],
    )
    runs = part(rows, "runs")
    twice = table(
        ["annotation", "first run, seconds", "second run, seconds"],
        [[r["what"], r["first_s"], r["second_s"]] for r in runs],
    )
    return (
        "## Annotation\n\nEntities, keywords and words are annotated once, when texts are "
        "tokenized. The text is Wikipedia leads; for jieba, six Chinese sentences repeated many "
        "times.\n\n"
        f"{speeds}\n\nTime from a file of leads ({runs[0]['words']:,} words) to the rows of three "
        "splits, as in `maskft train`, in two successive processes. The second run finds the rows "
        "in the `datasets` cache, as does every epoch.\n\n"
        f"{twice}\n\n{part(rows, 'speed')[0]['libraries']}; {origin}\n"
    )


def main() -> None:
    DOCS.mkdir(exist_ok=True)
    section, short = collate()
    steps, short_steps = step()
    head = (
        "# Benchmarks\n\nThis page is written by `python -m benchmarks.report` from "
        "benchmarks/results. Times are medians of interleaved calls, and every contender's "
        "result is checked before it is timed. `make bench` measures again. "
        "`benchmarks/NOTES.md` records what was tried.\n\n"
    )
    parts = [section, strategies(), mask(), loader(), annotate(), denoise(), loss()]
    parts += [steps]
    text = head + "\n".join(parts)
    (DOCS / "benchmarks.md").write_text(text)
    put(ROOT / "README.md", f"{short}\n\n{short_steps}")
    put(DOCS / "strategies.md", study())
    print("wrote docs/benchmarks.md, its figures, and the tables of README.md and strategies.md")


if __name__ == "__main__":
    main()
