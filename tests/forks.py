"""Commands in processes of their own that need not import everything again: forked off one that has.

Importing torch, transformers and peft takes longer than most runs of a tiny model. A server process imports what a run
does, and nothing else; each command is a child of it, with its own arguments, environment, session and output, which
runs the same file or module as `python` would and ends through the interpreter's usual end. What begins with a launcher
(torchrun, accelerate) is started as usual.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class ForkedProcess:
    """What the tests use of `subprocess.Popen`, of a child of the server. Its output is text."""

    def __init__(self, connection: socket.socket, streams: tuple[int, int]):
        self._connection, self.returncode = connection, None
        self.stdout, self.stderr = (os.fdopen(stream, encoding="utf-8", errors="replace") for stream in streams)
        self._told = connection.makefile("r", encoding="ascii")
        self.pid = int(self._told.readline())

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        if self.returncode is None and selectors_ready(self._connection, 0):
            self.returncode = int(self._told.readline())
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and not selectors_ready(self._connection, timeout):
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return self.poll()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it printed, when it has ended."""
        found: dict[str, str] = {}
        readers = [
            threading.Thread(target=lambda name=name: found.update({name: getattr(self, name).read()}), daemon=True)
            for name in ("stdout", "stderr")
        ]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join()
        return found["stdout"], found["stderr"]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def selectors_ready(connection: socket.socket, timeout: float | None) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        return bool(selector.select(timeout))


class Server:
    """The process that has imported everything; it ends with the one that made it."""

    def __init__(self, environment: dict[str, str]):
        self._address = tempfile.mktemp(prefix="align-forks-")
        self._process = subprocess.Popen(
            [sys.executable, __file__, self._address], cwd=ROOT, env=environment, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        if self._process.stdout.readline() != b"ready\n":
            raise RuntimeError("the process that is forked from could not import what a run needs")

    def start(self, arguments: list[str], environment: dict[str, str]) -> ForkedProcess:
        """`python ARGUMENTS` in the repository's root, as the leader of a session."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._address)
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        ends = array.array("i", [out_end, err_end])
        connection.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, ends)])
        connection.sendall(json.dumps([arguments, environment]).encode() + b"\n")
        os.close(out_end), os.close(err_end)
        return ForkedProcess(connection, (out, err))


def serve(address: str) -> list[str]:
    """Forks a child for each request until standard input closes. Returns in the children: their arguments."""
    waker, woken = socket.socketpair()
    for end in (waker, woken):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker.fileno())
    listener, running = socket.socket(socket.AF_UNIX), {}
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    with selectors.DefaultSelector() as selector:
        for channel in (listener, woken, sys.stdin):
            selector.register(channel, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if woken in ready:
                woken.recv(4096)
                reap(running)
            if listener in ready:
                connection = listener.accept()[0]
                _, streams, *_ = socket.recv_fds(connection, 1, 2)
                arguments, environment = json.loads(connection.makefile().readline())
                child = os.fork()
                if child == 0:
                    become(streams, environment, [listener, waker, woken, connection, *running.values()])
                    return arguments
                for stream in streams:
                    os.close(stream)
                connection.sendall(b"%d\n" % child)
                running[child] = connection
            if sys.stdin in ready:  # closed: who asked is gone
                os.unlink(address)
                return []


def reap(running: dict[int, socket.socket]) -> None:
    """Tells of the children that have ended."""
    for child in list(running):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            with contextlib.suppress(OSError), running.pop(child) as connection:
                connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def become(streams: list[int], environment: dict[str, str], others: list[socket.socket]) -> None:
    """Makes a fresh child what a new process would be."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for end in others:
        end.close()
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for number, stream in enumerate(streams, 1):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    import align.cli
    import align.job.training
    import align.rollouts.iterate  # noqa: F401

    words = serve(sys.argv[1])
    if words[:1] == ["-m"]:
        sys.argv = words[1:]
        sys.modules.pop(words[1], None)  # it runs as the main module
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
