"""Run every CPU benchmark, or the named ones: ``python -m benchmarks mask loader``."""

import sys

from benchmarks import (
    bench_annotate,
    bench_collate,
    bench_denoise,
    bench_inputs,
    bench_loader,
    bench_loss,
    bench_mask,
    bench_pack,
    bench_score,
    bench_step,
    bench_strategies,
)

BENCHMARKS = {
    "mask": bench_mask.main,
    "collate": bench_collate.main,
    "inputs": bench_inputs.main,
    "denoise": bench_denoise.main,
    "loader": bench_loader.main,
    "loss": bench_loss.main,
    "weighted": bench_loss.weighted,
    "step": bench_step.main,
    "pack": bench_pack.main,
    "strategies": bench_strategies.main,
    "annotate": bench_annotate.main,
    "score": bench_score.main,
}


def main() -> int:
    names = sys.argv[1:] or list(BENCHMARKS)
    if unknown := set(names) - set(BENCHMARKS):
        print(f"unknown benchmark {sorted(unknown)}; there are {sorted(BENCHMARKS)}")
        return 2
    for name in names:
        BENCHMARKS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
