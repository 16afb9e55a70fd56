"""The same contenders under pytest-benchmark: ``python -m pytest benchmarks``."""

import pytest
import torch

from benchmarks import bench_collate, bench_denoise, bench_mask, bench_pack


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.benchmark(group="mask 64x512")
@pytest.mark.parametrize("name", list(bench_mask.contenders()[1]))
def test_mask(benchmark, name):
    ids, calls = bench_mask.contenders()
    bench_mask.check(ids, {name: calls[name]})
    benchmark(calls[name])


@pytest.mark.benchmark(group="collate 64x512")
@pytest.mark.parametrize("form", list(bench_collate.FORMS))
@pytest.mark.parametrize("name", ["maskft", "transformers"])
def test_collate(benchmark, form, name):
    rows, calls = bench_collate.single_tokens(form, ragged=False)
    bench_collate.check(name, rows, calls[name]())
    benchmark(calls[name])


@pytest.mark.benchmark(group="whole words 64x512")
@pytest.mark.parametrize("name", ["maskft", "maskft, from offsets", "transformers"])
def test_whole_words(benchmark, name):
    rows, calls = bench_collate.whole_words(64, 512)
    bench_collate.check(name, rows, calls[name]())
    benchmark(calls[name])


@pytest.mark.benchmark(group="span corruption 64x512")
@pytest.mark.parametrize("name", list(bench_denoise.spans()[1]))
def test_spans(benchmark, name):
    rows, calls = bench_denoise.spans()
    bench_denoise.check(name, rows, *calls[name]())
    benchmark(calls[name])


@pytest.mark.benchmark(group="a block of 8192 to a batch")
@pytest.mark.parametrize("name", ["packed, varlen", "padded", "transformers, padded"])
def test_pack(benchmark, name):
    rows, calls = bench_pack.contenders(8192)
    bench_pack.check(rows, calls)
    benchmark(calls[name])
