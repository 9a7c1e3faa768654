"""Errors a user can cause and mend: one line on stderr each, exit code 2, never a traceback."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable
from typing import TextIO

FAILED, USER_ERROR = 1, 2


class UserError(Exception):
    """Something the user can fix: `where` it is, `what` is wrong, and the way out.

    Raised anywhere; `run_main` turns it into one line on stderr and exit code 2.
    """

    def __init__(self, where: str, what: str, fix: str = ""):
        self.where, self.what, self.fix = where, what, fix
        super().__init__(printable(f"{where}: {what}" + (f"; {fix}" if fix else "")))

    def each(self) -> list[UserError]:
        """The single errors: this one."""
        return [self]


class Interrupted(BaseException):
    """A signal asked the process to end; `note` says what is kept. The exit code is a shell's, 128 + the signal."""

    def __init__(self, number: int, note: str = ""):
        self.number, self.note = number, note
        super().__init__("interrupted" + (f" {note}" if note else ""))


class UserErrors(UserError):
    """Several user errors, found together and reported together, one line each."""

    def __init__(self, errors: list[UserError], note: str = ""):
        self.errors = errors
        Exception.__init__(self, "\n".join([str(error) for error in errors] + ([note] if note else [])))

    def each(self) -> list[UserError]:
        return self.errors


class Stopped(Exception):
    """A run that must not go on, though nothing is wrong with the program or the recipe: one line, exit code 1."""


def printable(text: str) -> str:
    """`text` on one line, control characters (terminal escapes in data, say) shown as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def has_colour(stream: TextIO) -> bool:
    """Whether what is written there may be in colour: a person's terminal that has not asked for none."""
    return stream.isatty() and "NO_COLOR" not in os.environ


def shorten(value: object, limit: int = 60) -> str:
    """`value` as it may appear in a message: one printable line of at most `limit` characters."""
    text = printable(_plain(value))
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _plain(value: object) -> str:
    """`value` in the words of a recipe's reader, not of Python."""
    if value is None:
        return "null"
    if isinstance(value, OSError) and value.strerror:
        return value.strerror  # without the number and the path, which `where` says already
    if isinstance(value, UnicodeDecodeError):
        return "it is not UTF-8 text"
    if isinstance(value, BaseException):
        return " ".join(str(value).split()) or type(value).__name__
    try:
        return value if isinstance(value, str) else repr(value)
    except ValueError:  # Python refuses to write out integers of thousands of digits
        return f"{type(value).__name__} of enormous length"


def run_main(main: Callable[[], None]) -> None:
    """Runs a program's `main` and leaves with the exit code of the README: 0 done, 1 failed, 2 user error."""
    signal.signal(signal.SIGTERM, _interrupt)  # preemption ends it like Ctrl-C: what is open is closed
    try:
        main()
        _leave_ranks()
    except UserError as error:
        if is_first_process():
            print(error, file=sys.stderr)
        sys.exit(USER_ERROR)
    except (FloatingPointError, Stopped) as error:
        if is_first_process():
            print(f"stopped: {error}", file=sys.stderr)
        sys.exit(FAILED)
    except (KeyboardInterrupt, Interrupted) as error:
        if is_first_process():
            print(str(error) or "interrupted", file=sys.stderr)
        sys.exit(128 + getattr(error, "number", signal.SIGINT))


def _leave_ranks() -> None:
    """Ends a process that is one rank of several, once it has done all.

    Threads of gloo may still let go of Python's tensors; if Python shuts down meanwhile, they abort the process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted(number)


def is_first_process() -> bool:
    """Whether this process speaks for its machine: local rank 0 or the only one, by the launcher's environment."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
