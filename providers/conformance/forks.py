"""Processes that begin as forks of one that has loaded their modules, since loading them is most of a short process's work.

Each is a process of its own, with its own arguments, environment, working folder and streams, and ends as Python ends.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import IO, Any

_NUMBER_BYTES = 8


class Forks:
    """Starts processes; ``modules`` are loaded before any of them begins. It ends with the process that made it."""

    def __init__(self, *modules: str) -> None:
        self._asked, theirs = socket.socketpair(socket.AF_UNIX)
        with theirs:
            code = f"from {__name__} import serve; serve({theirs.fileno()}, {modules!r})"
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            self._server = subprocess.Popen([sys.executable, "-c", code], pass_fds=(theirs.fileno(),), env=environment)

    def start(
        self, target: str, *arguments: str, cwd: Path, env: Mapping[str, str], stdout: int | None = None, stderr: int | None = None
    ) -> Forked:
        """A process that calls "module:function" with ``arguments`` as sys.argv[1:] and nothing on its stdin."""
        wanted = {"target": target, "arguments": arguments, "cwd": str(cwd), "env": dict(env)}
        told, tell = os.pipe()
        out, err = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115 -- they are closed by communicate
        streams = [out.fileno() if stdout is None else stdout, err.fileno() if stderr is None else stderr, tell]
        message = json.dumps(wanted).encode()
        try:
            socket.send_fds(self._asked, [len(message).to_bytes(_NUMBER_BYTES, "little")], streams)
            self._asked.sendall(message)
        finally:
            os.close(tell)
        return Forked(told, out, err)

    def close(self) -> None:
        """Start no more; processes that run go on."""
        self._asked.close()
        self._server.wait()


class Forked:
    """A process that was started; ``returncode`` as subprocess.Popen has it."""

    returncode: int | None = None

    def __init__(self, told: int, out: IO[str], err: IO[str]) -> None:
        self._told, self._out, self._err = told, out, err
        self.pid = self._number()

    def send_signal(self, number: int) -> None:
        """Signal the process, unless its end is known."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 60) -> tuple[str, str]:
        """What it printed to stdout and stderr, once it has ended. Raises TimeoutError; the process is killed then."""
        if not select.select([self._told], [], [], timeout)[0]:
            self.kill()
            raise TimeoutError(f"process {self.pid} did not end in {timeout} s")
        self.returncode = os.waitstatus_to_exitcode(self._number())
        os.close(self._told)
        return _text(self._out), _text(self._err)

    def _number(self) -> int:
        answer = os.read(self._told, _NUMBER_BYTES)
        if not answer:
            raise ChildProcessError("the process that forks has ended; its own stderr says why")
        return int.from_bytes(answer, "little")


def _text(file: IO[str]) -> str:
    with file:
        file.seek(0)
        return file.read()


def serve(descriptor: int, modules: tuple[str, ...]) -> None:
    """Load the modules, then fork whenever asked, until nobody can ask any more. A fork returns when it has done its work."""
    for module in modules:
        import_module(module)
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C at a terminal ends the tests, and this with them
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the watchers of the forks
    with socket.socket(fileno=descriptor) as asked:
        while True:
            size, streams, *_ = socket.recv_fds(asked, _NUMBER_BYTES, 3)
            if not size:
                return
            message = asked.recv(int.from_bytes(size, "little"), socket.MSG_WAITALL)
            if os.fork() == 0:
                asked.close()
                _watch(json.loads(message), *streams)
                return
            for stream in streams:
                os.close(stream)


def _watch(wanted: dict[str, Any], out: int, err: int, tell: int) -> None:
    """Fork, and tell the process id and then how it ended. The fork itself does what is wanted and returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    process = os.fork()
    if process:
        os.write(tell, process.to_bytes(_NUMBER_BYTES, "little"))
        os.write(tell, os.waitpid(process, 0)[1].to_bytes(_NUMBER_BYTES, "little"))
        os._exit(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.close(tell)
    for stream, number in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (err, 2)):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(wanted["cwd"])
    os.environ.clear()
    os.environ.update(wanted["env"])
    sys.argv = [wanted["target"], *wanted["arguments"]]
    module, _, name = wanted["target"].partition(":")
    getattr(import_module(module), name)()
