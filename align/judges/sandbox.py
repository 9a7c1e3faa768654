"""Runs a program that nobody has read: in a process of its own, with limits, without the network where that can be had.

It keeps accidents away from this machine (loops, memory, files, the network). It is no wall against an attacker.
"""

from __future__ import annotations

import functools
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

_LARGEST_FILE = 2**20  # bytes, its output included
# The limits are set inside, before the program begins: a hard limit cannot be raised again.
_START = """
import resource, sys
seconds, memory, size = map(int, sys.argv[1:4])
for kind, limit in (("CPU", seconds), ("AS", memory), ("FSIZE", size), ("NPROC", 0), ("CORE", 0), ("NOFILE", 64)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + kind), (limit, limit))
source = open("program.py").read()
del resource, sys
exec(compile(source, "program.py", "exec"), {"__name__": "__main__"})
"""


class Run(NamedTuple):
    passed: bool
    note: str | None = None


def run(program: str, tests: str, seconds: float, mebibytes: int) -> Run:
    """Whether `program` and `tests` behind it come to their end within the limits.

    A program that leaves early does not pass: the last line, which it cannot know, must have been written.
    """
    mark = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="align-run-") as folder, tempfile.TemporaryFile() as output:
        # os.write of a fresh import: the program may have replaced print and sys.stdout
        end = f"\n__import__('os').write(1, b'\\n{mark}')\n"
        Path(folder, "program.py").write_text(f"{program}\n{tests}{end}", encoding="utf-8", errors="replace")
        limits = [str(max(1, round(seconds))), str(mebibytes * 2**20), str(_LARGEST_FILE)]
        process = subprocess.Popen(
            [*_apart(), sys.executable, "-I", "-c", _START, *limits],
            cwd=folder, env={"PATH": "/usr/bin:/bin", "HOME": folder, "TMPDIR": folder}, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return Run(False, "over the time limit")
        finally:
            _kill_group(process)
        output.seek(0)
        passed = code == 0 and output.read(2 * _LARGEST_FILE).endswith(mark.encode())
    return Run(passed, None if passed else "the tests do not pass")


def _kill_group(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


@functools.lru_cache(maxsize=1)
def _apart() -> tuple[str, ...]:
    """What starts a program without the network and kills all it started; nothing where the system forbids that."""
    words = ("unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child")
    try:
        works = subprocess.run([*words, "true"], capture_output=True, check=False, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        works = False
    return words if works else ()


def is_offline() -> bool:
    """Whether programs run without the network on this machine."""
    return bool(_apart())
