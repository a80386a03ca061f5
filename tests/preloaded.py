"""Pytest in a fork of a process that has loaded the libraries and none of our modules: loading them takes longer than
most runs of a few tests.

As a program it reads lines of JSON, each a folder and arguments of pytest, runs pytest in that folder with what is on
the path there, and answers each line with an exit status. What pytest says is in `output.txt` of the folder. It ends
with its input.
"""

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

LIBRARIES = ("hypothesis", "torchvision", "opacus", "flwr.app", "flwr.simulation", "matplotlib.pyplot")
LIBRARIES += ("pydicom", "highdicom", "pynetdicom", "torchmetrics", "typer", "Crypto.PublicKey.ECC")
ROOMS = ("client", "common", "server", "simulations")
OUTPUT = "output.txt"
LIMIT = 900.0  # seconds of a run
STRANGE = 99  # exit status where something else was tested than the folder's modules


class Preloaded:
    """The process, seen from a test. Ends when its input is closed: at the latest with the process that started it."""

    def __init__(self) -> None:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        without_path = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            env={**without_path, **threads, "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def end(self) -> None:
        """Close its input, and wait for it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(self, folder: Path, arguments: Sequence[str]) -> int:
        """Pytest's exit status. Negative where a signal ended it, as it does after `LIMIT` seconds.

        Raises RuntimeError where the process is gone.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(folder), list(arguments)]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process that runs pytest is gone")
        return int(line)


def main() -> None:
    """Answer lines until the input ends."""
    for name in LIBRARIES:
        importlib.import_module(name)
    if len(os.listdir("/proc/self/task")) != 1:
        raise RuntimeError("a library has started a thread: its locks would not outlive a fork")
    gc.freeze()  # pytest collects garbage at its end, and would walk through all of it
    lines, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for line in lines:
        folder, arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(_run(Path(folder), arguments))
        print(_waited(child), file=answers, flush=True)


def _waited(child: int) -> int:
    deadline = time.monotonic() + LIMIT
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)


def _run(folder: Path, arguments: Sequence[str]) -> int:
    """In the fork: pytest as `python -m pytest` would run it in that folder."""
    try:
        os.chdir(folder)
        output = os.open(OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ["PYTHONPATH"] = str(folder)
        sys.path.insert(0, str(folder))
        early = [name for name in sys.modules if name.split(".")[0] in ROOMS]
        status = int(importlib.import_module("pytest").main(list(arguments)))
        sys.stdout.flush()
        sys.stderr.flush()
        return STRANGE if early or not _all_from(folder) else status
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        return STRANGE


def _all_from(folder: Path) -> bool:
    """Whether every module of ours that is loaded lies in the folder."""
    files = [module.__file__ for name, module in list(sys.modules.items()) if name.split(".")[0] in ROOMS]
    return all(Path(file or "").is_relative_to(folder) for file in files)


if __name__ == "__main__":
    main()
