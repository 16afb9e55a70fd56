"""How others mask a padded batch, re-expressed: each takes [B, T] ids and returns (ids, labels).

They follow the published recipes, not the code: BERT's 80/10/10 rule at a rate of 15%, with the
draws each project makes. None of them depends on the row alone, so none gives the same masks in
another batch.
"""

import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

VOCABULARY, SPECIAL, MASK_ID = 30522, 1000, 103
RATE, MASKED, MIXED = 0.15, 0.8, 0.9


def maskable_table() -> Tensor:
    """Bool [V]: the first ids are special."""
    table = torch.ones(VOCABULARY, dtype=torch.bool)
    table[:SPECIAL] = False
    return table


def plain_torch(ids: Tensor, maskable: Tensor) -> tuple[Tensor, Tensor]:
    """As few torch calls as it takes when every token is looked at: one uniform draw decides."""
    u = torch.rand(ids.shape, device=ids.device)
    u = torch.where(maskable[ids], u, 1.0)
    labels = torch.where(u < RATE, ids, -100)
    out = torch.where(u < RATE * MASKED, MASK_ID, ids)
    new = torch.randint(VOCABULARY, ids.shape, device=ids.device)
    return torch.where((u >= RATE * MASKED) & (u < RATE * MIXED), new, out), labels


class SparseNumpy:
    """The best NumPy we could write: 32 random bits a token, then only the selected tokens."""

    def __init__(self, maskable: Tensor) -> None:
        self.maskable = maskable.numpy()
        self.generator = np.random.Generator(np.random.SFC64(1))

    def __call__(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        flat = ids.numpy().reshape(-1)
        words = self.generator.integers(0, 1 << 32, size=flat.size, dtype=np.uint32)
        chosen = np.flatnonzero(words < int(RATE * 2**32))
        chosen = chosen[self.maskable[flat[chosen]]]
        return self.finish(ids, flat, chosen, words[chosen] * (2.0**-32 / RATE))

    def finish(
        self, ids: Tensor, flat: np.ndarray, chosen: np.ndarray, share: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        labels, out = np.full_like(flat, -100), flat.copy()
        labels[chosen] = flat[chosen]
        out[chosen[share < MASKED]] = MASK_ID
        mixed = chosen[(share >= MASKED) & (share < MIXED)]
        out[mixed] = self.generator.integers(VOCABULARY, size=mixed.size)
        return torch.from_numpy(out).view(ids.shape), torch.from_numpy(labels).view(ids.shape)


class GapNumpy(SparseNumpy):
    """Faster still: draw the gaps between selected tokens, one exponential each, none for the
    rest."""

    def __call__(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        flat = ids.numpy().reshape(-1)
        n = flat.size
        most = int(n * RATE + 8 * (n * RATE) ** 0.5) + 8  # eight standard deviations to spare
        gaps = self.generator.standard_exponential(most) * (-1 / np.log1p(-RATE))
        chosen = np.cumsum(gaps.astype(np.int64) + 1) - 1
        chosen = chosen[: np.searchsorted(chosen, n)]
        chosen = chosen[self.maskable[flat[chosen]]]
        return self.finish(ids, flat, chosen, self.generator.random(chosen.size))


class ModernBertStyle:
    """ModernBERT's training code (Warner et al., 2024): whole arrays, one uniform draw, NumPy."""

    def __init__(self, maskable: Tensor) -> None:
        self.maskable = maskable.numpy()
        self.generator = np.random.default_rng(1)

    def __call__(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        tokens = ids.numpy()
        u = self.generator.random(tokens.shape)
        u[~self.maskable[tokens]] = 1.0
        masked, mixed = u < RATE * MASKED, (u >= RATE * MASKED) & (u < RATE * MIXED)
        labels = np.where(u < RATE, tokens, -100)
        out = np.where(masked, MASK_ID, tokens)
        out = np.where(mixed, self.generator.integers(0, VOCABULARY, tokens.shape), out)
        return torch.from_numpy(out), torch.from_numpy(labels)


class FairseqStyle:
    """fairseq's (Ott et al., 2019): a row at a time, a fixed number of tokens by choice without
    replacement, random ids by weight."""

    def __init__(self, maskable: Tensor) -> None:
        self.maskable = maskable.numpy()
        self.generator = np.random.default_rng(1)
        self.weights = self.maskable / self.maskable.sum()

    def __call__(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        generator, out, labels = self.generator, ids.numpy().copy(), np.full(ids.shape, -100)
        for row, target in zip(out, labels, strict=True):
            allowed = np.flatnonzero(self.maskable[row])
            k = int(RATE * allowed.size + generator.random())
            chosen = generator.choice(allowed, k, replace=False)
            target[chosen] = row[chosen]
            u = generator.random(k)
            mixed = chosen[(u >= MASKED) & (u < MIXED)]
            row[chosen[u < MASKED]] = MASK_ID
            row[mixed] = generator.choice(VOCABULARY, mixed.size, p=self.weights)
        return torch.from_numpy(out), torch.from_numpy(labels)


class MegatronStyle:
    """Megatron-LM's (Shoeybi et al., 2019), as BERT's own: a shuffled list of candidates, one
    Python step and up to three draws for each selected token."""

    def __init__(self, maskable: Tensor) -> None:
        self.maskable = maskable.tolist()
        self.random = random.Random(1)

    def __call__(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        inputs, labels = ids.tolist(), torch.full(ids.shape, -100).tolist()
        for row, target in zip(inputs, labels, strict=True):
            candidates = [i for i, token in enumerate(row) if self.maskable[token]]
            self.random.shuffle(candidates)
            for i in candidates[: max(1, round(len(candidates) * RATE))]:
                target[i] = row[i]
                if self.random.random() < MASKED:
                    row[i] = MASK_ID
                elif self.random.random() < 0.5:
                    row[i] = self.random.randrange(VOCABULARY)
        return torch.tensor(inputs), torch.tensor(labels)


def cpu_peers(ids: Tensor) -> dict[str, Callable[[], tuple[Tensor, Tensor]]]:
    """Every peer by name, on ``ids``."""
    maskable = maskable_table()
    styles = {
        "sparse NumPy": SparseNumpy(maskable),
        "NumPy by gaps": GapNumpy(maskable),
        "ModernBERT-style": ModernBertStyle(maskable),
        "fairseq-style": FairseqStyle(maskable),
        "Megatron-style": MegatronStyle(maskable),
    }
    calls: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
        "plain torch": lambda: plain_torch(ids, maskable)
    }
    return calls | {name: (lambda mask=mask: mask(ids)) for name, mask in styles.items()}


def check_masks(name: str, ids: Tensor, masked: Tensor, labels: Tensor) -> None:
    """The rate, the shares and the untouched tokens of a masked batch; raises where they are off.

    The tolerances are six standard deviations of independent draws.
    """
    chosen = labels != -100
    n = ids.numel()
    share = chosen.double().mean().item()
    if abs(share - RATE) > 6 * (RATE * (1 - RATE) / n) ** 0.5 + 1 / ids.shape[-1]:
        raise RuntimeError(f"{name} selects {share:.4f} of the tokens: not timed")
    if not torch.equal(labels[chosen], ids[chosen]) or not torch.equal(
        masked[~chosen], ids[~chosen]
    ):
        raise RuntimeError(f"{name} changes tokens it did not select: not timed")
    k = int(chosen.sum())
    for what, found, expected in (
        ("mask tokens", (masked[chosen] == MASK_ID).double().mean().item(), MASKED),
        ("kept tokens", (masked[chosen] == ids[chosen]).double().mean().item(), 1 - MIXED),
    ):
        if abs(found - expected) > 6 * (expected * (1 - expected) / k) ** 0.5:
            raise RuntimeError(f"{name} has {found:.4f} {what}: not timed")
