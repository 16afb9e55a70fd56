"""Say something to the person who runs the command line, other than results."""

import re
import sys

# What would act on a terminal: C0 and C1, line and paragraph ends, overrides of the direction
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UsageError(Exception):
    """A mistake of the user's, in one sentence that says what to do."""


def say(text: str) -> None:
    """Print a line on standard error; standard output is for results."""
    print(shown(text), file=sys.stderr, flush=True)


def shown(text: str) -> str:
    """Write control characters as escapes: text of the user's is shown to a terminal, not sent."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
