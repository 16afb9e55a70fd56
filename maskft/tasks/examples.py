"""Hold labelled texts, and choose few of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Examples:
    """Hold texts or pairs of texts, and the number of each one's label."""

    texts: list[str]
    labels: list[int]
    pairs: list[str] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def at(self, places: Sequence[int]) -> "Examples":
        """Return the examples at these places."""
        pairs = None if self.pairs is None else [self.pairs[i] for i in places]
        return Examples([self.texts[i] for i in places], [self.labels[i] for i in places], pairs)

    def few(self, shots: int, seed: int) -> "Examples":
        """Return ``shots`` examples of each label, chosen by ``seed``, in their order.

        Raises:
            ValueError: a label has fewer.
        """
        labels = np.array(self.labels)
        order = np.random.default_rng(seed).permutation(len(labels))
        places: list[int] = []
        for label, count in sorted(Counter(self.labels).items()):
            if count < shots:
                raise ValueError(f"label {label} has {count} training examples, fewer than {shots}")
            places += order[labels[order] == label][:shots].tolist()
        return self.at(sorted(places))
