"""The example of static shapes, as a module."""

import importlib.util
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "static_shapes.py"


def load_example():
    spec = importlib.util.spec_from_file_location("static_shapes", EXAMPLE)
    example = sys.modules["static_shapes"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example
