"""Two gloo processes, or four: DDP, FSDP2 and Trainer give what one process gives."""

import pytest
import torch

from maskft import fuse_loss
from tests.distributed.ranks import MODELS, run
from tests.support import diffusion
from tests.support.fused import still, update
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.slow


def results(job, folder):
    run(job, folder)
    return [line.split("|") for line in (folder / "result").read_text().splitlines()]


def test_ddp_and_fsdp2(tmp_path):
    rows = results("wrapped", tmp_path)
    assert len(rows) == len(MODELS) * 2 * 4
    for name, tied, kind, loss, gradient in rows:
        tolerance = 8e-2 if kind.endswith("bf16") else 1e-5
        assert float(loss) < tolerance, (name, tied, kind, loss)
        assert float(gradient) < tolerance, (name, tied, kind, gradient)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_trainer_with_two_ranks(name, weighted, tmp_path, two_ranks):
    model = fuse_loss(still(tiny_model(*MODELS[name])))
    trainer, loss = update(model, tmp_path, weighted=weighted)
    norm = float(trainer.state.log_history[0]["grad_norm"])
    mine = [row[2:] for row in two_ranks if row[:2] == [name, str(weighted)]]
    assert len(mine) == 3
    for size, steps, found_loss, found_norm in mine:
        assert abs(float(found_loss) - loss) < 1e-3 * loss, (size, steps)
        assert abs(float(found_norm) - norm) < 1e-3 * norm, (size, steps)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    return results("trainer", tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(("world", "ways"), [(2, (4, 2, 1)), (4, (2, 1))])
def test_masked_diffusion_on_several_ranks_is_the_published_formula(tmp_path, world, ways):
    run("diffusion", tmp_path, world)
    found = torch.load(tmp_path / "updates.pt")
    assert len(found) == 3 * (len(ways) + 1)
    tokenizer, rows = diffusion.example_rows()
    for normalize in diffusion.NORMALIZE:
        model = diffusion.build_model(tokenizer)
        wanted = diffusion.expected(model, tokenizer, rows, normalize)
        for way in (*ways, "dispatched"):
            diffusion.assert_update(found[normalize, way], wanted)
