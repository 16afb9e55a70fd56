"""Say something to the person who runs the command line, other than results."""

import sys


class UsageError(Exception):
    """A mistake of the user's, in one sentence that says what to do."""


def say(text: str) -> None:
    """Print a line on standard error; standard output is for results."""
    print(text, file=sys.stderr, flush=True)
