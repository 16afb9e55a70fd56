"""The project files that a batch walks through, from the collator's call to the kernel and back.

python -m tests.trace_path
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import maskft
from tests.support.small import CORPUS, build_wordpiece

ROOT = Path(maskft.__file__).parents[1]
PACKAGES = (str(ROOT / "maskft"), str(ROOT / "maskkernels"))


def walk(call: Callable[[], Any]) -> list[str]:
    """The project files in which ``call`` runs Python code, one entry for each change of file."""
    visited: list[str] = []

    def note(frame: FrameType | None) -> None:
        while frame is not None and not frame.f_code.co_filename.startswith(PACKAGES):
            frame = frame.f_back  # the file that called out of the project is the one it is in
        if frame is not None and visited[-1:] != [frame.f_code.co_filename]:
            visited.append(frame.f_code.co_filename)

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        if event == "call":
            note(frame)
        elif event == "return":
            note(frame.f_back)

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return [str(Path(file).relative_to(ROOT)) for file in visited]


def trace(**options: Any) -> list[str]:
    """``walk`` of one batch of a random-masking collator, warm."""
    tokenizer = build_wordpiece()
    collator = maskft.DataCollatorForLanguageModeling(tokenizer, **{"seed": 1, **options})
    rows = [dict(tokenizer(text)) for text in CORPUS]
    collator(rows)
    return walk(lambda: collator(rows))


if __name__ == "__main__":
    path = trace()
    for file in dict.fromkeys(path):
        print(file)
    print(f"{len(set(path))} files, {len(path) - 1} changes of file")
