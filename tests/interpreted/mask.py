"""Compare the Triton kernels with the reference under TRITON_INTERPRET=1."""

import itertools
import os
import sys

import torch

from maskkernels import MaskingPolicy
from maskkernels.mask import _triton as mask_triton
from maskkernels.mask import api
from maskkernels.mask import reference as mask_reference
from maskkernels.mask.job import MaskJob
from maskkernels.rng import _triton as rng_triton
from maskkernels.rng import reference as rng_reference
from tests.support.mask_cases import V, cases, edges, tied_job, weighted


def unchecked():
    """(name, job) of what the API refuses and nobody looks at on a GPU: broken cu_seqlens, wild ids
    and rates, units that share their words.
    """
    policy = MaskingPolicy(3, V, rate=0.5)
    fields = {
        "input_ids": torch.randint(0, V, (40,)), "mask_token_id": 3, "vocab_size": V, "rate": 0.5,
        "mask_share": 0.5, "random_share": 0.3, "seed": 5, "epoch": 2,
        "ignore_index": policy.ignore_index, "capacity": 40, "budget": False,
        "at_least_one": False, "per_unit": False,
    }  # fmt: skip
    job = MaskJob(**dict.fromkeys(MaskJob._fields) | fields)
    broken = ([5, 9, 30], [-3, 10, 60], [0, 30, 10, 40], [7], [90, 95], [-9, -5], [0, 0, 40, 0])
    chances = torch.rand(40)
    for bounds, budget, keep in itertools.product(broken, (False, True, chances), (None, True)):
        yield f"{bounds} {budget} {keep}", job._replace(
            cu_seqlens=torch.tensor(bounds), budget=budget is not False,
            rates=chances if budget is chances else None,
            attention_mask=None if keep is None else torch.arange(40) % 3 > 0,
        )  # fmt: skip
    ids = torch.tensor([[V, -1, 1 << 40, 5, 6, 7, 8]])
    yield "ids", job._replace(input_ids=ids, rate=1.0, maskable=torch.ones(V, dtype=torch.bool))
    rates = torch.tensor([[float("nan"), 2.0, -1.0, float("inf"), -float("inf"), 0.5, 1.0]])
    yield "rates", job._replace(input_ids=ids % V, rates=rates)
    yield "rates of a budget", job._replace(input_ids=ids % V, rates=rates, budget=True)
    yield "ties", tied_job()
    for scale, per_unit in itertools.product((1.0, 2.0**-20), (False, True)):
        rates = torch.tensor([[0.5, 0.9, 0.5, 0.9, 0.9, 0.5]]).repeat_interleave(2, 1) * scale
        yield (
            f"ties of rates {scale}",
            tied_job(
                rates=rates, per_unit=per_unit, mask_share=0.5, random_share=0.25, at_least_one=True
            ),
        )
    number = torch.arange(1100)[None]  # more than the block of a budget
    yield "ties of a long row", tied_job(
        input_ids=number % V, units=number << 34, rates=torch.full((1, 1100), 0.97), per_unit=True,
        mask_share=0.5, random_share=0.25,
    )  # fmt: skip
    yield "no rows", job._replace(input_ids=ids[:0])
    yield "no tokens", job._replace(input_ids=ids[:, :0])


def budgets():
    """(name, job) of rows shorter than what a program keeps of one, as long, and longer; of rows
    in which little or nothing may be masked, and of equal keys.
    """
    generator = torch.Generator().manual_seed(6)
    keeps = mask_triton.LIMITS[0][0]
    shapes = [(keeps - 1, 1), (keeps, 1), (keeps + 1, 1)]
    if keeps < 100:
        shapes += [(1, 3), (keeps, 3), (3 * keeps, 3)]
    for length, samples in shapes:
        ids = torch.randint(0, V, (samples, length), generator=generator)
        maskable = torch.arange(V) % 2 == 0
        keep = torch.rand(ids.shape, generator=generator) < 0.7
        keep[0] = samples == 1
        number = torch.arange(length).expand(samples, length)
        half = torch.full(ids.shape, 0.5)
        for name, fields in {
            "plain": {"rate": 0.15, "mask_share": 0.8, "random_share": 0.1},
            "none": {"rate": 0.0, "at_least_one": True},
            "all": {"rate": 1.0, "mask_share": 1.0, "random_share": 0.0},
            "some": {"attention_mask": keep, "maskable": maskable, "at_least_one": True},
            "units": {"units": number // 3, "per_unit": length % 2 == 0},
            "rates": {"rates": torch.rand(ids.shape, generator=generator)},
            "ties": {"units": number << 34, "rates": half, "per_unit": True},
            "packed": {
                "input_ids": ids.reshape(-1),
                "cu_seqlens": torch.arange(samples + 1) * length // 2,
            },
        }.items():
            job = tied_job(
                input_ids=ids, sample_ids=torch.arange(samples), units=None, mask_share=0.5,
                random_share=0.25,
            )  # fmt: skip
            yield f"budget {name} {samples}x{length}", job._replace(**fields)


def main() -> int:
    if os.environ.get("TRITON_INTERPRET") != "1":
        print("TRITON_INTERPRET=1 is not set: nothing was interpreted")
        return 1
    torch.use_deterministic_algorithms(True)  # fills what torch.empty gives
    wide = torch.randint(-(1 << 63), (1 << 63) - 1, (300,))
    index = torch.randint(0, 1 << 34, (300,))
    compared = 0
    for seed, epoch, stream in [(0, 0, 0), (-1, (1 << 24) - 1, 255), (1 << 62, 5, 2)]:
        found = rng_triton.random_words(wide, index, seed, epoch, stream)
        if not torch.equal(found, rng_reference.random_words(wide, index, seed, epoch, stream)):
            print(f"FAILED random_words seed={seed} epoch={epoch} stream={stream}")
            return 1
        compared += 1
    check = api._mask_tokens
    for name, ids, policy, arguments in (*cases(full=False), *weighted(full=False), *edges()):
        layout = (ids, arguments.get("cu_seqlens"), arguments.get("attention_mask"))
        if not torch.equal(rng_triton.hash_rows(*layout), rng_reference.hash_rows(*layout)):
            print(f"FAILED hash_rows {name}")
            return 1
        results = []
        for run in (mask_triton.mask_tokens, mask_reference.mask_tokens):
            api._mask_tokens = lambda backend, device, job, run=run: run(job)
            results.append(api.mask_tokens(ids, policy, **arguments))
        for field, a, b in zip(results[0]._fields, *results, strict=True):
            same = a is b if a is None or b is None else a.dtype == b.dtype and torch.equal(a, b)
            if not same:
                print(f"FAILED mask_tokens {name}: {field}\n{a}\n{b}")
                return 1
        compared += 1
    api._mask_tokens = check
    for name, job in (*unchecked(), *budgets()):
        for a, b in zip(mask_triton.mask_tokens(job), mask_reference.mask_tokens(job), strict=True):
            if not torch.equal(a, b):
                print(f"FAILED unchecked {name}\n{a}\n{b}")
                return 1
        compared += 1
    mask_triton.LIMITS = ((8, 1), (16, 1))
    for name, job in budgets():
        for a, b in zip(mask_triton.mask_tokens(job), mask_reference.mask_tokens(job), strict=True):
            if not torch.equal(a, b):
                print(f"FAILED in short blocks {name}\n{a}\n{b}")
                return 1
        compared += 1
    print(f"{compared} comparisons passed")
    return 0 if compared > 200 else 1


if __name__ == "__main__":
    sys.exit(main())
