"""How many files a batch walks through: few enough that its path can be read."""

import pytest

from tests.trace_path import trace


@pytest.mark.parametrize("options", [{}, {"rng": "sample"}, {"return_tensors": "np"}])
def test_a_masked_batch_walks_through_few_files(options):
    files = set(trace(**options))
    assert {"maskft/collate/collator.py", "maskkernels/mask/api.py"} <= files
    assert len([file for file in files if file.startswith("maskft/")]) <= 4
    assert len(files) <= 13
