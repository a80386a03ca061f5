"""What a container's health check asks: `python -m common.probe HOST:PORT [MODULE ...]`.

Exit code 0 where the gRPC health endpoint says SERVING and each module of ours runs here as a process; else 1 and one
line that says what is missing.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from common.processes import serving

_OWN = b"-m"  # stands before a module's name in the command of a process that was started as `python -m MODULE`


def missing(address: str, modules: Sequence[str], *, processes: Path = Path("/proc")) -> list[str]:
    """What isn't up: the endpoint, and those of the modules that no process here runs.

    Guarantees: a module that is only spoken of in a command, as it is in this one's own, is not taken for running.
    """
    running = set()
    for path in processes.glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile
            continue
        if _OWN in words[:-1]:
            running.add(words[words.index(_OWN) + 1].decode("utf-8", "replace"))
    gone = [module for module in modules if module not in running]
    return gone if serving(address) else [address, *gone]


if __name__ == "__main__":
    if gone := missing(sys.argv[1], sys.argv[2:]):
        sys.exit(f"not up: {', '.join(gone)}")
