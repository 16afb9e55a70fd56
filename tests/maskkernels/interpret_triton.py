"""Compare the Triton kernels with the reference under TRITON_INTERPRET=1; run by test_triton."""

import os
import sys

import torch
from cases import cases

from maskkernels.mask import _triton as mask_triton
from maskkernels.mask import api
from maskkernels.mask import reference as mask_reference
from maskkernels.mask.job import Job
from maskkernels.rng import _triton as rng_triton
from maskkernels.rng import reference as rng_reference


def main() -> int:
    if os.environ.get("TRITON_INTERPRET") != "1":
        print("TRITON_INTERPRET=1 is not set: nothing was interpreted")
        return 1
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
    for name, ids, policy, arguments in cases(full=False):
        layout = (ids, arguments.get("cu_seqlens"), arguments.get("attention_mask"))
        if not torch.equal(rng_triton.hash_rows(*layout), rng_reference.hash_rows(*layout)):
            print(f"FAILED hash_rows {name}")
            return 1
        results = []
        for run in (mask_triton.mask_tokens, mask_reference.mask_tokens):
            api._mask_tokens = lambda *job, run=run: run(Job(*job))
            results.append(api.mask_tokens(ids, policy, **arguments))
        for field, a, b in zip(results[0]._fields, *results, strict=True):
            same = a is b if a is None or b is None else a.dtype == b.dtype and torch.equal(a, b)
            if not same:
                print(f"FAILED mask_tokens {name}: {field}\n{a}\n{b}")
                return 1
        compared += 1
    api._mask_tokens = check
    print(f"{compared} comparisons passed")
    return 0 if compared > 20 else 1


if __name__ == "__main__":
    sys.exit(main())
