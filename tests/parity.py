"""Compare fused with stock, for every language model class that Transformers maps.

python -m tests.parity                  # all, about ten minutes; writes docs/models.md
python -m tests.parity BertForMaskedLM  # one, without writing
"""

import json
import logging
import os
import select
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

SECONDS = 120  # per class; a slower model gets a row that says so
PAGE = Path(__file__).parents[1] / "docs" / "models.md"


def examine(kind: str, model_type: str) -> dict[str, Any]:
    """Compare a tiny model before and after fusing; return a row of the table."""
    import transformers

    from maskft.fuse import forward, fuse_loss, fused
    from maskft.fuse.check import compare
    from maskft.fuse.head import REFUSED
    from tests.support.tiny import KINDS, tiny_batch, tiny_model

    name = KINDS[kind][model_type]
    row: dict[str, Any] = {"kind": kind, "type": model_type, "class": name}
    if name in REFUSED:
        return row | {"why": REFUSED[name], "stage": "refused"}
    calls = []

    class Watched(forward.LabelledCall):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            calls.append(self)

    stock_call, forward.LabelledCall = forward.LabelledCall, Watched
    transformers.logging.set_verbosity_error()
    try:
        model = tiny_model(kind, model_type)
    except Exception as error:
        return row | {"why": f"not built: {_brief(error)}", "stage": "build"}
    try:
        batch = tiny_batch(model)
        try:
            loss = model(**batch).loss
            loss.backward()
        except Exception as error:
            return row | {"why": f"stock does not run: {_brief(error)}", "stage": "stock"}
        model.zero_grad()
        fuse_loss(model)
        difference = compare(model, batch, training=model.training)
        head = fused(model).head
        return row | {
            "loss": difference.loss,
            "stock": difference.stock_loss,
            "gradient": difference.gradient,
            "parameter": difference.parameter,
            "agrees": difference.agrees,
            "in_decoder": calls[0].in_decoder,
            "gathered": _where(calls[0]),
            "both_ways": _both_ways(kind, model_type),
            "shift": head.shift,
            "rows_because": head.rows_because,
        }
    except Exception as error:
        if os.environ.get("PARITY_TRACE"):
            traceback.print_exc()
        return row | {"why": _brief(error), "stage": "fused"}
    finally:
        forward.LabelledCall = stock_call


def _both_ways(kind: str, model_type: str) -> str:
    """Say whether a causal class can attend both ways: "yes", "always", or why not."""
    from maskft import make_bidirectional
    from tests.support.tiny import tiny_model

    if kind != "causal":
        return ""
    model = tiny_model(kind, model_type)
    try:
        make_bidirectional(model)
    except ValueError as error:
        return str(error).partition("both ways: ")[2] or _brief(error)
    return "yes" if hasattr(model, "_causal_before") else "always"


def _where(call: Any) -> str:
    if not call.gathered:
        return "decoder"
    return "last layer" if call.early else "base"


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def classes() -> list[tuple[str, str]]:
    """List the (kind, model type) of every mapped class, each class once."""
    from tests.support.tiny import KINDS

    seen, found = set(), []
    for kind, mapping in KINDS.items():
        for model_type, name in mapping.items():
            if name not in seen:
                seen.add(name)
                found.append((kind, model_type))
    return found


def sweep(wanted: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Examine ``wanted``; a class that hangs or kills its process gets a row that says so."""
    from tests.support.tiny import KINDS

    rows: list[dict[str, Any]] = []
    while len(rows) < len(wanted):
        left = wanted[len(rows) :]
        worker = subprocess.Popen(
            [sys.executable, "-m", "tests.parity", "--worker", json.dumps(left)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        began = time.monotonic()
        while len(rows) < len(wanted):
            ready, _, _ = select.select([worker.stdout], [], [], SECONDS)
            line = worker.stdout.readline() if ready else ""
            if not line:
                kind, model_type = wanted[len(rows)]
                why = f"killed after {SECONDS} s" if not ready else "its process died"
                name = KINDS[kind][model_type]
                row = {"kind": kind, "type": model_type, "class": name}
                rows.append(row | {"why": why, "stage": "died"})
                print(summary(rows[-1]), file=sys.stderr, flush=True)
                break
            rows.append(json.loads(line) | {"seconds": round(time.monotonic() - began, 1)})
            began = time.monotonic()
            print(summary(rows[-1]), file=sys.stderr, flush=True)
        worker.kill()
        worker.wait()
    return rows


def summary(row: dict[str, Any]) -> str:
    name = f"{row['kind']:<8}{row.get('class', row['type']):<44}"
    if "why" in row:
        return f"{name}{row['stage']}: {row['why']}"
    where = "decoder" if row["in_decoder"] else "rows"
    verdict = "ok" if row["agrees"] else "DIFFERS"
    return (
        f"{name}{verdict} {where} {row['gathered']} {row['stock']:.5f} {row['loss']:.5f} "
        f"{row['gradient']:.1e} {row['parameter'] if not row['agrees'] else ''}"
    )


def main(argv: list[str]) -> int:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if argv[:1] == ["--worker"]:
        out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # models print to stdout too
        for kind, model_type in json.loads(argv[1]):
            print(json.dumps(examine(kind, model_type)), file=out, flush=True)
        return 0
    from tests.support.tiny import KINDS

    wanted = classes()
    if argv:
        wanted = [(k, t) for k, t in wanted if KINDS[k][t] in argv or k in argv]
    rows = sweep(wanted)
    if not argv:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(rows), "utf-8")
    return int(any(row.get("stage") == "fused" or not row.get("agrees", True) for row in rows))


def page(rows: list[dict[str, Any]]) -> str:
    """Format docs/models.md."""
    from importlib.metadata import version

    compared = [row for row in rows if "why" not in row]
    agree = sum(row["agrees"] for row in compared)
    lines = [
        "# Models that fuse_loss covers",
        "",
        "This page is written by `python -m tests.parity` with transformers "
        f"{version('transformers')} and torch {version('torch')} (CPU, float32). Every masked, "
        "causal and sequence-to-sequence language model class that Transformers maps is built with "
        "two small random layers. The loss and all gradients of the fused model are compared with "
        "those of the stock model on 2 x 16 tokens, a third of them labelled.",
        "",
        f"{agree} of {len(rows)} classes agree with stock to 1e-4 of the loss and of the largest "
        "gradient. A class in several mappings is counted in the first:",
        "",
        "| mapping | classes | agree | differ | not compared |",
        "|---|---|---|---|---|",
    ]
    for kind in ("masked", "causal", "seq2seq"):
        mine = [row for row in rows if row["kind"] == kind]
        same = sum(row.get("agrees", False) for row in mine)
        without = sum("why" in row for row in mine)
        counts = f"{len(mine)} | {same} | {len(mine) - same - without} | {without}"
        lines.append(f"| {kind} | {counts} |")
    lines += [
        "",
        "- **loss computed in**: `decoder` computes the loss in place of the decoder's logits; "
        "`logits` computes it from the logits of the labelled rows, which the model decodes.",
        "- **rows gathered at**: `base` gathers the labelled rows from the output of the base "
        "model, before any part of the head; `last layer` gathers them there behind attention, "
        "before the feed-forward part; `decoder` gathers them at the decoder's input.",
        "- **predicts**: the label of the token `itself`, or of the `next` token.",
        "- **both ways**: whether `make_bidirectional` lets a causal class attend both ways; the "
        "classes that cannot are listed below.",
        "- **errors**: differences from stock, relative to the loss and to the largest gradient.",
        "",
        "| class | loss computed in | rows gathered at | predicts | both ways | loss | loss error "
        "| gradient error | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in compared:
        off = abs(row["loss"] - row["stock"]) / abs(row["stock"])
        cells = (
            row["class"],
            "decoder" if row["in_decoder"] else "logits",
            row["gathered"],
            "next" if row["shift"] else "itself",
            row["both_ways"] if row["both_ways"] in ("", "yes", "always") else "no",
            f"{row['stock']:.4f}",
            f"{off:.0e}",
            f"{row['gradient']:.0e}",
            "" if row["agrees"] else "**differs**",
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += _one_way(compared)
    lines += ["", "## Not compared", "", "| class | reason |", "|---|---|"]
    stages = {"refused": "fuse_loss refuses it: ", "fused": "fails once fused: "}
    for row in rows:
        if "why" in row:
            why = stages.get(row["stage"], "") + row["why"].replace("|", "/")
            lines.append(f"| {row.get('class', row['type'])} | {why} |")
    return "\n".join([*lines, ""])


def _one_way(compared: list[dict[str, Any]]) -> list[str]:
    """Format the section on causal classes that cannot attend both ways."""
    causal = [row for row in compared if row["both_ways"]]
    stay = [row for row in causal if row["both_ways"] not in ("yes", "always")]
    able = sum(row["both_ways"] == "yes" for row in causal)
    return [
        "",
        "## Causal classes that cannot attend both ways",
        "",
        f"`make_bidirectional` lets {able} of {len(causal)} causal classes attend both ways, and "
        f"{len(causal) - able - len(stay)} do so already. It refuses the others and leaves them as "
        "they were:",
        "",
        "| class | reason |",
        "|---|---|",
        *(f"| {row['class']} | {row['both_ways'].replace('|', '/')} |" for row in stay),
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
