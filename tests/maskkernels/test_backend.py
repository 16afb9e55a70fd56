"""The dispatcher: how a backend is added, the device that kernels are launched on, kept tables."""

import contextlib
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from maskkernels import MaskingPolicy, backend, mask_tokens
from maskkernels.mask import reference
from maskkernels.units.op import OPS

IDS = torch.arange(40).view(2, 20)
POLICY = MaskingPolicy(3, 40)
SECOND, FIRST = torch.device("cuda", 1), torch.device("cuda", 0)


def test_a_backend_is_an_entry_and_a_file(monkeypatch):
    seen = []
    file = ModuleType("maskkernels.mask._plain")
    file.mask_tokens = lambda job: seen.append(job) or reference.mask_tokens(job)
    monkeypatch.setitem(sys.modules, file.__name__, file)
    monkeypatch.setitem(backend._KERNELS, "plain", backend.Kernels(("cpu",), "torch"))
    found = mask_tokens(IDS, POLICY, seed=1, backend="plain")
    assert torch.equal(found.labels, mask_tokens(IDS, POLICY, seed=1).labels)
    assert [job.seed for job in seen] == [1]
    with pytest.raises(ValueError, match=r"maskkernels\.units has no kernels of plain"):
        OPS["rates_from_weights"]("plain", IDS.device, torch.ones(2, 20), IDS, 0.1, None)


def test_a_backend_that_cannot_run_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"expected one of .*'reference', 'numba', 'triton'"):
        mask_tokens(IDS, POLICY, seed=1, backend="cuda")
    with pytest.raises(ValueError, match="tensors are on cpu; triton runs on cuda tensors"):
        mask_tokens(IDS, POLICY, seed=1, backend="triton")
    monkeypatch.setattr(backend, "_MISSING", {"numba"})
    with pytest.raises(ValueError, match="pip install numba"):
        mask_tokens(IDS, POLICY, seed=1, backend="numba")
    assert backend.resolve("auto", IDS.device) == "reference"


@pytest.fixture
def guarded(monkeypatch):
    """The devices that were made current, on a machine whose current GPU is the first."""
    entered = []

    @contextlib.contextmanager
    def device(wanted):
        entered.append(wanted)
        yield
        entered.append("left")

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", device)
    return entered


@pytest.mark.parametrize(
    ("device", "expected"),
    [(SECOND, [SECOND, "launched", "left"]), (FIRST, ["launched"]), (IDS.device, ["launched"])],
)
def test_kernels_are_launched_on_the_device_of_their_tensors(
    guarded, monkeypatch, device, expected
):
    op = OPS["rates_from_weights"]
    kernels = SimpleNamespace(rates_from_weights=lambda *args: guarded.append("launched"))
    for name in ("numba", "triton"):
        monkeypatch.setitem(op._modules, name, kernels)
    weights = SimpleNamespace(device=device)  # a tensor, as far as the dispatcher looks
    op._kernel(device.type)(weights, None, 0.1, None)
    assert guarded == expected


def test_a_table_is_never_freed():
    """A captured graph may hold its address, and nothing tells the host which do."""
    kept = backend.numbers_on(IDS.device, (1, 2, 3))
    address = kept.data_ptr()
    for n in range(1000):
        backend.numbers_on(IDS.device, (n, 5))
    del kept
    assert backend.numbers_on(IDS.device, (1, 2, 3)).data_ptr() == address


def test_the_schema_of_an_op_comes_from_its_job():
    schema = str(torch.ops.maskkernels.mask_tokens.default._schema)
    assert "Tensor input_ids, Tensor? sample_ids" in schema
    assert "SymInt seed" in schema
    assert "bool budget" in schema
