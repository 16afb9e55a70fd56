"""Who may write to a folder: what is compiled and kept there runs as the user who loads it."""

import os
import stat
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


@cache
def open_to_others(folder: str) -> Path | None:
    """Return the folder in the path to ``folder`` through which others could write; None if none.

    Others are all but this user, the superuser and whoever may write to this package, whose code
    runs anyway. A group with the number of the owner counts as the owner's own, as is usual.
    Access lists are not looked at, nor anything where there are no owners (Windows).
    """
    if not hasattr(os, "geteuid"):
        return None
    package, user = _PACKAGE.stat(), os.geteuid()
    trusted = {user, package.st_uid, Path("/").stat().st_uid}
    last = Path(folder).resolve()
    for part in (*reversed(last.parents), last):
        seen = part.stat()
        bits = seen.st_mode
        by_group = bits & stat.S_IWGRP and seen.st_gid != seen.st_uid
        by_group = by_group and not (
            package.st_mode & stat.S_IWGRP and package.st_gid == seen.st_gid
        )
        by_all = bits & stat.S_IWOTH and not package.st_mode & stat.S_IWOTH
        kept = bits & stat.S_ISVTX and part != last  # what is in it, only its owner can replace
        if seen.st_uid not in trusted or ((by_group or by_all) and not kept):
            return part
        if seen.st_uid == user and not bits & (stat.S_IXGRP | stat.S_IXOTH):
            return None  # nobody else gets further
    return None
