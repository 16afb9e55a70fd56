"""Checkpoints that are whole or not there: killed runs, full disks, wrong folders, two runs."""

import json
import os
import resource
import shutil
import signal
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
    TrainerControl,
)

from maskft.cli.checkpoints import check_fits, checkpoints, damage, to_resume
from maskft.cli.config import TrainArguments
from maskft.cli.interrupt import SIGNALS, Interrupted, StopOnInterrupt, outlive_signals
from maskft.cli.messages import UsageError
from maskft.cli.saving import INCOMPLETE, SteadyTrainer, disk_errors, run_folder


def saver(model, tokenizer, output, **options):
    """A trainer that can save, without training."""
    arguments = TrainArguments(output_dir=str(output), use_cpu=True, save_steps=1, **options)
    trainer = SteadyTrainer(
        model=model, args=arguments, processing_class=tokenizer, stop=StopOnInterrupt()
    )
    trainer.create_optimizer_and_scheduler(9)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()  # so that there is a state to save
    return trainer


def save(trainer, step):
    trainer.state.global_step = step
    trainer._save_checkpoint(trainer.model, None)


@pytest.fixture
def output(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def trainer(tiny_bert, tokenizer, output):
    trainer = saver(tiny_bert, tokenizer, output)
    for step in (1, 2):
        save(trainer, step)
    return trainer


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def in_child(act):
    """Run ``act`` in a forked child; return how the child ended, and what ``act`` returned."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found = act()
            os.write(write, json.dumps(found).encode())
        finally:
            os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.set_blocking(read, False)
    os.write(write, b"\n")
    answer = os.read(read, 1 << 16).strip()
    os.close(read)
    os.close(write)
    return status, json.loads(answer) if answer else None


def with_a_count(output, act, kill_at=None):
    """Run ``act``, counting what Python does to files below ``output``; die at one of these."""
    seen = 0

    def watch(event, arguments):
        nonlocal seen
        if event not in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"):
            return
        path = str(arguments[0])
        if not path.startswith(str(output)) and (event == "open" or os.path.isabs(path)):
            return  # rmtree deletes by relative names
        seen += 1
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    act()
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 2], ids=["a new one", "one of its name"])
def test_a_save_that_is_killed_at_any_moment_loses_nothing(trainer, output, tmp_path, step):
    before = {path.name: contents(path) for path in checkpoints(output)}
    kept = tmp_path / "kept"
    shutil.copytree(output, kept)
    if step == 2:
        trainer.state.epoch = 0.5  # so that old and new differ
    _, moments = in_child(lambda: with_a_count(output, lambda: save(trainer, step)))
    assert moments > 15
    for moment in range(1, moments + 1):
        shutil.rmtree(output)
        shutil.copytree(kept, output)
        status, _ = in_child(
            lambda at=moment: with_a_count(output, lambda: save(trainer, step), kill_at=at)
        )
        assert status == -signal.SIGKILL
        with run_folder(output):
            found = to_resume("True", output)
        assert not (output / INCOMPLETE).exists()
        names = [path.name for path in checkpoints(output)]
        assert names in (["checkpoint-1", "checkpoint-2"], [*before, f"checkpoint-{step}"])
        assert found.name == names[-1]
        assert all(damage(path) is None for path in checkpoints(output))
        assert contents(output / "checkpoint-1") == before["checkpoint-1"]
        if step != 2:
            assert contents(output / "checkpoint-2") == before["checkpoint-2"]
        assert not list(output.glob("*.replaced"))


@pytest.mark.slow
def test_a_model_that_is_killed_while_replaced_is_the_old_or_the_new_one(trainer, output, tmp_path):
    trainer.save_model()
    old = contents(output)["model.safetensors"]
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight.add_(1)
    shutil.copytree(output, tmp_path / "kept")
    _, moments = in_child(lambda: with_a_count(output, trainer.save_model))
    found = set()
    for moment in range(1, moments + 1):
        shutil.rmtree(output)
        shutil.copytree(tmp_path / "kept", output)
        in_child(lambda at=moment: with_a_count(output, trainer.save_model, kill_at=at))
        found.add(contents(output)["model.safetensors"])
        load_file(output / "model.safetensors")
    assert len(found) == 2
    assert old in found


@pytest.mark.parametrize(
    ("file", "share"),
    [("model.safetensors", 0.1), ("model.safetensors", 0.9), ("optimizer.pt", 0.9)],
)
def test_a_file_that_cannot_grow_loses_nothing(trainer, output, file, share):
    """A limit on the size of files cuts weights or optimizer state where a full disk would."""
    before = contents(output)
    limit = int(share * len(before[f"checkpoint-1/{file}"]))

    def saves():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            with disk_errors(output):
                save(trainer, 3)
        except UsageError as error:
            return str(error)
        return None

    _, answer = in_child(saves)
    assert answer == (
        f"a file in {output} is larger than the system allows (ulimit -f); make room and resume "
        "with --resume_from_checkpoint True"
    )
    assert contents(output) == before
    assert not (output / INCOMPLETE).exists()


def test_a_small_disk_that_is_full_loses_nothing(tiny_bert, tokenizer, tmp_path):
    """Needs the right to mount a file system, and is left out without it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=1m tmpfs {disk} 2> {os.devnull}"):
        pytest.skip("no right to mount a small file system")
    try:
        trainer = saver(tiny_bert, tokenizer, disk)

        def fill():
            with disk_errors(disk):
                for step in range(1, 100):
                    save(trainer, step)

        with pytest.raises(UsageError, match="is full; make room and resume with --resume"):
            fill()
        found = checkpoints(disk)
        assert len(found) > 1
        assert [damage(path) for path in found] == [None] * len(found)
        assert not (disk / INCOMPLETE).exists()
    finally:
        os.system(f"umount {disk}")


BROKEN = {
    "trainer_state.json": "it has no trainer_state.json",
    "model.safetensors": "it has no weights",
}


@pytest.mark.parametrize("name", ["trainer_state.json", "model.safetensors"])
def test_a_checkpoint_that_was_not_saved_to_its_end_is_left_out(trainer, output, capsys, name):
    (output / "checkpoint-2" / name).unlink()
    assert to_resume("True", output) == output / "checkpoint-1"
    assert f"checkpoint-2 is not a whole checkpoint and is left out: {BROKEN[name]}" in (
        capsys.readouterr().err
    )
    with pytest.raises(UsageError, match=BROKEN[name]):
        to_resume(str(output / "checkpoint-2"), output)
    shutil.rmtree(output / "checkpoint-1")
    with pytest.raises(UsageError, match="there is no whole checkpoint in"):
        to_resume("True", output)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"],
)
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_an_error_that_names_it(trainer, output, name, kept):
    path = output / "checkpoint-2" / name
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(UsageError, match=f"{name} (is truncated or damaged|cannot be read)"):
        to_resume(str(output / "checkpoint-2"), output)
    assert to_resume("True", output) == output / "checkpoint-1"


def test_a_missing_shard_is_an_error_that_names_it(trainer, output):
    folder = output / "checkpoint-2"
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for name, tensor in weights.items():
        save_file({name: tensor}, folder / f"{name}.safetensors")
    index = {"weight_map": {name: f"{name}.safetensors" for name in weights}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert damage(folder) is None
    check_fits(folder, trainer.model)
    (folder / f"{name}.safetensors").unlink()
    assert damage(folder) == f"{name}.safetensors is missing"


def test_a_torch_file_of_weights_is_read_too(trainer, output):
    folder = output / "checkpoint-2"
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert damage(folder) is None
    check_fits(folder, trainer.model)
    whole = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(whole[:-100])
    assert damage(folder).startswith("pytorch_model.bin is truncated or damaged")


def test_the_checkpoints_of_another_run_are_neither_mixed_nor_deleted(trainer, output):
    before = contents(output)
    with pytest.raises(
        UsageError, match=r"earlier run \(the last is checkpoint-2\): --resume_from"
    ):
        to_resume(None, output)
    assert contents(output) == before


def test_one_run_at_a_time_trains_in_a_folder(output):
    def second():
        try:
            with run_folder(output):
                return "no error"
        except UsageError as error:
            return str(error)

    with run_folder(output):
        (output / INCOMPLETE).mkdir()
        assert in_child(second)[1].startswith(f"another run is training in {output}: wait for it")
        assert (output / INCOMPLETE).exists()  # the other's
    assert in_child(second)[1] == "no error"


def test_a_worker_that_outlives_a_killed_run_does_not_hold_its_folder(output):
    read, write = os.pipe()

    def run():
        with run_folder(output):
            if worker := os.fork():
                os.write(write, str(worker).encode())
                os.kill(os.getpid(), signal.SIGKILL)
            signal.alarm(60)  # in case this test dies
            signal.pause()

    assert in_child(run)[0] == -signal.SIGKILL
    worker = int(os.read(read, 20))
    try:
        with run_folder(output):
            os.kill(worker, 0)  # still there
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(read)
        os.close(write)


def test_old_checkpoints_are_deleted_but_for_the_best(tiny_bert, tokenizer, output):
    trainer = saver(tiny_bert, tokenizer, output, save_total_limit=2)
    for step in range(1, 6):
        if step == 2:
            trainer.state.best_global_step = 2
        save(trainer, step)
        os.utime(output / f"checkpoint-{step}", (step, step))
        written = json.loads((output / f"checkpoint-{step}/trainer_state.json").read_text())
        best = str(output / "checkpoint-2") if step >= 2 else None
        assert written["best_model_checkpoint"] == trainer.state.best_model_checkpoint == best
    assert [path.name for path in checkpoints(output)] == ["checkpoint-2", "checkpoint-5"]


def other_models(config):
    """Models of which none can go on from a checkpoint of ``config``, and what to say."""
    sizes = {
        "vocab_size": config.vocab_size, "hidden_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64,
    }  # fmt: skip
    yield RobertaForMaskedLM(RobertaConfig(**sizes)), "model_type 'bert', not 'roberta'"
    modern = ModernBertConfig(**sizes, pad_token_id=0)
    yield ModernBertForMaskedLM(modern), "model_type 'bert', not 'modernbert'"
    for name, value in {
        "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 999,
        "hidden_act": "relu",
    }.items():  # fmt: skip
        yield BertForMaskedLM(BertConfig(**sizes | {name: value})), f"{name} is "
    yield BertModel(config), "tensors are not the model's"


def test_a_checkpoint_of_another_model_is_refused(trainer, output):
    folder = output / "checkpoint-2"
    check_fits(folder, trainer.model)
    for model, message in other_models(trainer.model.config):
        with pytest.raises(UsageError, match="not of the model that --model names: ") as raised:
            check_fits(folder, model)
        assert message in str(raised.value)


def test_shapes_and_names_are_compared_without_a_config_too(trainer, output):
    folder = output / "checkpoint-2"
    (folder / "config.json").unlink()
    check_fits(folder, trainer.model)
    messages = {"has shape", "tensors are not the model's", "tensors are missing"}
    found = set()
    for model, message in other_models(trainer.model.config):
        if "num_attention_heads" in message or "hidden_act" in message:
            continue  # which only the config tells
        with pytest.raises(UsageError) as raised:
            check_fits(folder, model)
        found |= {part for part in messages if part in str(raised.value)}
    assert found == messages


def test_dropout_and_special_tokens_may_differ_from_the_checkpoint(trainer, output):
    config = BertConfig(**trainer.model.config.to_dict() | {"hidden_dropout_prob": 0.3})
    config.eos_token_id = 3
    check_fits(output / "checkpoint-2", BertForMaskedLM(config))


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_and_a_second_one_stops_at_once(number):
    stop, control = StopOnInterrupt(), TrainerControl()
    before = signal.getsignal(number)
    with stop.listening():
        stop.on_step_end(None, None, control)
        assert not control.should_save
        signal.raise_signal(number)
        assert signal.getsignal(number) == before
        stop.on_step_end(None, None, control)
        assert control.should_save
        assert control.should_training_stop
    assert Interrupted("x", stop.signal).status == 128 + number


def test_a_worker_outlives_the_signals_of_training_only():
    stop = StopOnInterrupt()
    begin = outlive_signals(stop.training, None)

    def signalled():
        begin(0)
        for number in SIGNALS:
            signal.raise_signal(number)
        return "alive"

    with stop.listening():
        assert in_child(signalled) == (0, "alive")
    assert in_child(signalled) == (0, None)  # ended without a word, as a worker should
