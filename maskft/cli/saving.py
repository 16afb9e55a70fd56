"""Save checkpoints and models so that each is whole or not there, and one run at a time does.

Everything is written to a folder of its own, flushed to the disk, and then renamed: a run that is
killed at any moment, or finds the disk full, loses nothing that was saved before.
"""

import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from maskft.cli.checkpoints import STATE, checkpoints
from maskft.cli.interrupt import Interrupted, StopOnInterrupt, outlive_signals
from maskft.cli.messages import UsageError, say

INCOMPLETE = "incomplete"  # what is being written or deleted
_REPLACED = ".replaced"
_LOCK = ".maskft.lock"
_NO_ROOM = {
    errno.ENOSPC: "the disk of {} is full",
    errno.EDQUOT: "your quota on the disk of {} is used up",
    errno.EFBIG: "a file in {} is larger than the system allows (ulimit -f)",
}


class SteadyTrainer(Trainer):
    """Save by renaming, and stop at a signal with a checkpoint, for which the workers live on.

    Args:
        stop: listens to the signals.
        the others: as for Trainer.
    """

    _writing: str | None = None  # where a checkpoint is being written

    def __init__(self, *args: Any, stop: StopOnInterrupt, **options: Any) -> None:
        super().__init__(*args, **options)
        self.stop = stop
        self.add_callback(stop)

    def get_train_dataloader(self) -> Any:
        loader = super().get_train_dataloader()
        base = getattr(loader, "base_dataloader", loader)  # what accelerate wraps
        base.worker_init_fn = outlive_signals(self.stop.training, base.worker_init_fn)
        return loader

    def train_and_save(self, resume: Path | None) -> Any:
        """Train from a checkpoint or from the start, save the model, return Trainer's result.

        Raises:
            Interrupted: a signal stopped training; a checkpoint was saved.
        """
        with self.stop.listening():
            result = self.train(resume_from_checkpoint=None if resume is None else str(resume))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        saved = Path(self.args.output_dir) / name
        if self.stop.signal is not None and saved.is_dir():  # else it came after the last step
            raise Interrupted(str(saved), self.stop.signal)
        self.save_model()
        return result

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save to ``output_dir``; None replaces the files in the run's own folder by whole ones."""
        if output_dir is not None:
            super().save_model(output_dir, _internal_call)
            return
        output = Path(self.args.output_dir)
        with _incomplete(output, self.is_world_process_zero()) as folder:
            super().save_model(str(folder / "model"), _internal_call=True)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                _move_files(folder / "model", output)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save")

    def _get_output_dir(self, trial: Any) -> str:
        return self._writing or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        output = Path(super()._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with _incomplete(output, self.is_world_process_zero()) as folder:
            self._writing = str(folder)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._writing = None
            if self.state.best_model_checkpoint == str(folder / name):
                self.state.best_model_checkpoint = str(output / name)
                if self.args.should_save:
                    self.state.save_to_json(str(folder / name / STATE))
            self.accelerator.wait_for_everyone()  # until all ranks have written their part
            if self.is_world_process_zero():
                publish(folder / name, output / name)
                self._delete_old(output, output / name)
            self.accelerator.wait_for_everyone()
            if self.is_local_process_zero() and (folder / name).is_dir():
                publish(folder / name, output / name)  # on a disk that this node does not share
        self._push_from_checkpoint(str(output / name))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.args.push_to_hub and self._writing is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _delete_old(self, output: Path, new: Path) -> None:
        """Keep ``save_total_limit`` checkpoints, the new and the best one among them."""
        limit = self.args.save_total_limit or 0
        kept = {new, Path(self.state.best_model_checkpoint or new)}
        old = [path for path in checkpoints(output) if path not in kept]
        old.sort(key=lambda path: path.stat().st_mtime)
        spare = len(old) + len(kept) - limit if limit > 0 else 0
        for path in old[: max(spare, 0)]:
            gone = output / INCOMPLETE / f"{path.name}{_REPLACED}"
            path.rename(gone)  # never half a checkpoint under its name
            shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def run_folder(output: Path) -> Iterator[None]:
    """Hold the output folder for one run, and clear it of what a killed one left unfinished.

    Raises:
        UsageError: another run holds it.
    """
    with (output / _LOCK).open("a+b") as file:
        try:
            _lock(file)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UsageError(
                    f"another run is training in {output}: wait for it, or give this one another "
                    "--output_dir"
                ) from None
            say(f"warning: cannot lock {output} ({error.strerror}); let no other run train in it")
        shutil.rmtree(output / INCOMPLETE, ignore_errors=True)
        for replaced in output.glob(f"{PREFIX_CHECKPOINT_DIR}-*{_REPLACED}"):
            if replaced.with_suffix("").exists():
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                replaced.rename(replaced.with_suffix(""))
        yield


@contextmanager
def disk_errors(output: Path) -> Iterator[None]:
    """Report that nothing more can be written as a UsageError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        then = "resume with --resume_from_checkpoint True" if checkpoints(output) else "start again"
        raise UsageError(f"{_NO_ROOM[error.errno].format(output)}; make room and {then}") from error


def publish(folder: Path, name: Path) -> None:
    """Give a complete folder its name; an older folder of that name is there until then."""
    _flush(folder)
    replaced = name.with_name(name.name + _REPLACED)
    if name.exists():
        name.rename(replaced)
    folder.rename(name)
    _flush_names(name.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a file that is whole, or as it was before."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    _flush_file(part)
    part.replace(path)


@contextmanager
def _incomplete(output: Path, owner: bool) -> Iterator[Path]:
    folder = output / INCOMPLETE
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except Exception as error:
        if number := _error_number(error, folder):
            raise OSError(number, os.strerror(number), str(folder)) from error
        raise
    finally:
        if owner:  # a full disk gets its room back
            shutil.rmtree(folder, ignore_errors=True)


def _error_number(error: Exception, folder: Path) -> int | None:
    """Find the system's error number, which safetensors has in its text and torch.save nowhere."""
    if isinstance(error, OSError):
        return None
    if found := re.search(r"os error (\d+)", str(error)):
        return int(found[1])
    if "inline_container" in str(error):
        longest = max((path.stat().st_size for path in folder.rglob("*")), default=0)
        try:
            with (folder / "probe").open("wb", buffering=0) as file:
                file.seek(longest)
                file.write(bytes(1 << 20))
        except OSError as found_again:
            return found_again.errno
    return None


def _move_files(folder: Path, to: Path) -> None:
    _flush(folder)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        target = to / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    _flush_names(to)


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            _flush_file(path)
        elif path.is_dir():
            _flush_names(path)
    _flush_names(folder)


def _flush_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_names(folder: Path) -> None:
    if sys.platform == "win32":  # where a folder cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _lock(file: Any) -> None:
    """Lock for this process alone, unlike flock: a worker that outlives it does not hold it."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def writable(folder: str) -> Path:
    """Make the output folder and try it, before hours of training depend on it."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"maskft")
            file.flush()
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}") from None
    return path
