"""What each of two ranks does for test_fuse_distributed.py and test_masks_distributed.py.

python -m tests.distributed.ranks JOB FOLDER
"""

import copy
import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from maskft import fuse_loss
from tests.support import diffusion as diffused
from tests.support.fused import LabelledRows, still, update
from tests.support.small import CORPUS, build_bert, build_wordpiece
from tests.support.tiny import tiny_model
from tests.support.trainers import ShuffledStream, record

MODELS = {
    "bert": ("masked", "bert"),
    "llama": ("causal", "llama"),
    "t5": ("seq2seq", "t5"),
    "mobilebert": ("masked", "mobilebert"),
}
STEPS, RESUMED = 7, 5  # of the runs below, and where a second one goes on: within an epoch
_OWN_BATCHES = {"accelerator_config": {"dispatch_batches": False}}
# The kind of dataset, gradient accumulation, and options of Trainer. Accelerate has one rank
# make the batches of a stream for all of them unless it is told otherwise.
RUNS = {
    "rows": (list, 2, {"dataloader_num_workers": 1}),
    "stream, dispatched": (ShuffledStream, 2, {}),
    "stream, on the device": (ShuffledStream, 2, {"mask_on_device": True}),
    "stream, each its own": (ShuffledStream, 2, _OWN_BATCHES),
}
LAYERS = ("BertLayer", "LlamaDecoderLayer", "T5Block", "MobileBertLayer")


def run(job, folder, world=2):
    """Have some ranks do a job; waits for all."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tests.distributed.ranks", job, str(folder)]
    ranks = []
    for rank in range(world):
        place = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
            "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        started = subprocess.Popen(
            command, env=os.environ | place, stderr=subprocess.PIPE, text=True
        )
        ranks.append(started)
    for rank in ranks:
        _, errors = rank.communicate(timeout=600)
        assert rank.returncode == 0, errors[-3000:]


def build(name, tied):
    model = still(tiny_model(*MODELS[name]))
    if tied != bool(model.config.tie_word_embeddings):
        model.config.tie_word_embeddings = tied
        if tied:
            model.tie_weights()
        else:
            decoder = model.get_output_embeddings()
            decoder.weight = torch.nn.Parameter(decoder.weight.detach().clone())
    return model


def batch_of(rank, world):
    rows, each = LabelledRows(), 8 // world
    mine = slice(rank * each, (rank + 1) * each)
    count = int((rows.labels[:, 1:] != -100).sum()), int((rows.labels != -100).sum())
    return {"input_ids": rows.ids[mine], "labels": rows.labels[mine]}, count


def gradients(model, batch, items, world=1):
    loss = model(**batch, num_items_in_batch=items).loss
    (loss * world).backward()  # the ranks' gradients are averaged
    found = {}
    inner = getattr(model, "module", model)
    for name, p in inner.named_parameters():
        if p.grad is not None:
            found[name] = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
    total = loss.detach().clone()
    if world > 1:
        dist.all_reduce(total)
    return total, found


def shard(model, mesh, tied, **options):
    layers = [m for m in model.modules() if type(m).__name__ in LAYERS]
    for layer in layers:
        fully_shard(layer, mesh=mesh, **options)
    if not tied:  # a unit of its own; BERT's head also holds the decoder's bias
        fully_shard(getattr(model, "cls", None) or model.lm_head, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def wrapped(folder):
    """Loss and gradients of DDP and FSDP2 against one process with the whole batch."""
    dist.init_process_group("gloo")
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (2,))
    lines = []
    for name in MODELS:
        for tied in (True, False):
            model = build(name, tied)
            whole, (shifted, all_) = batch_of(0, 1)
            items = shifted if name == "llama" else all_
            expected = gradients(fuse_loss(copy.deepcopy(model)), whole, items)
            mine, _ = batch_of(rank, 2)
            for kind in ("ddp", "fsdp2", "fsdp2 fused after", "fsdp2 bf16"):
                other = copy.deepcopy(model)
                if kind == "ddp":
                    other = DistributedDataParallel(fuse_loss(other))
                elif kind == "fsdp2 fused after":
                    other = fuse_loss(shard(other, mesh, tied))
                elif kind == "fsdp2":
                    other = shard(fuse_loss(other), mesh, tied)
                else:
                    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
                    other = shard(fuse_loss(other), mesh, tied, mp_policy=policy)
                found = gradients(other, mine, items, 2)
                scale = max(g.abs().max() for g in expected[1].values() if g.numel())
                assert found[1].keys() == expected[1].keys(), (name, kind)
                off = max(
                    float((found[1][n] - g).abs().max())
                    for n, g in expected[1].items()
                    if g.numel()
                )
                loss = abs(float(found[0] / expected[0]) - 1)
                lines.append(f"{name}|{tied}|{kind}|{loss}|{off / float(scale)}")
    if rank == 0:
        (folder / "result").write_text("\n".join(lines))
    dist.destroy_process_group()


def trainer(folder):
    """One update of 8 rows by two ranks, in steps of 4, 2 and 1 rows a rank."""
    lines = []
    for name, weighted in (("bert", False), ("llama", False), ("bert", True), ("llama", True)):
        for size, steps in ((4, 1), (2, 2), (1, 4)):
            model = fuse_loss(still(tiny_model(*MODELS[name])))
            options = {"weighted": weighted, "ddp_backend": "gloo"}
            done, loss = update(model, folder, size, steps, **options)
            norm = float(done.state.log_history[0]["grad_norm"])
            lines.append(f"{name}|{weighted}|{size}|{steps}|{loss}|{norm}")
    if done.is_world_process_zero():
        (folder / "result").write_text("\n".join(lines))


def diffusion(folder):
    """One update of masked diffusion over 8 rows by all ranks, by divisor and rows in a step."""
    tokenizer, rows = diffused.example_rows()
    each, found = len(rows) // int(os.environ["WORLD_SIZE"]), {}
    for normalize in diffused.NORMALIZE:
        for size in (size for size in (4, 2, 1) if size <= each):
            found[normalize, size] = diffused.update(
                tokenizer, rows, folder, normalize, size=size, steps=each // size,
                ddp_backend="gloo",
            )  # fmt: skip
        found[normalize, "dispatched"] = diffused.update(
            tokenizer, rows, folder, normalize, size=each, dataset=ShuffledStream,
            ddp_backend="gloo",
        )  # fmt: skip
    if dist.get_rank() == 0:
        torch.save(found, folder / "updates.pt")


def mask(folder, run, size, resume=None):
    """``record`` one of RUNS, from the same model, in batches of ``size`` on each rank."""
    kind, accumulation, options = RUNS[run]
    tokenizer = build_wordpiece()
    rows = [
        dict(tokenizer(f"{text} {i}", padding="max_length", max_length=48))
        for i, text in enumerate(itertools.islice(itertools.cycle(CORPUS), 24))
    ]
    return record(
        build_bert(tokenizer), tokenizer, kind(rows), folder / run, resume, max_steps=STEPS,
        per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, **options,
    )  # fmt: skip


def masks(folder):
    """What this rank is trained on, in whole runs and in resumed ones."""
    found = {}
    for run in RUNS:
        found[run] = [mask(folder, run, 4)]
        found[run] += [mask(folder / "resumed", run, 4, folder / run / f"checkpoint-{RESUMED}")]
    torch.save(found, folder / f"masks{dist.get_rank()}.pt")


if __name__ == "__main__":
    jobs = {"wrapped": wrapped, "trainer": trainer, "masks": masks, "diffusion": diffusion}
    jobs[sys.argv[1]](Path(sys.argv[2]))
