"""Who else on this machine executes what the SuperNode hands out: a stray worker, or Flower's own executor.

Whoever holds SITE/supernode/executor.secret can take this site's tasks, and answer them with other code.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

_FLAG = "--superexec-auth-secret-file"
_EXECUTOR = "superexec"  # of Flower: flower-superexec, flwr-superexec and their like
_WORKER = "client.worker"


def workers(site: Path, *, processes: Path = Path("/proc")) -> list[int]:
    """Numbers of the workers of this site that run here, as far as this user may see them."""
    return sorted(number for number, words in _commands(processes) if _is_worker(words, site.resolve()))


def strangers(secret: Path, *, processes: Path = Path("/proc")) -> list[int]:
    """Numbers of processes that are Flower's executors and were given this secret, in this file or in a copy."""
    wanted = _content(secret)
    found = []
    for number, words in _commands(processes):
        if any(_EXECUTOR in Path(word).name for word in words if not word.startswith("-")):
            files = [Path(word.partition("=")[2]) for word in words if word.startswith(f"{_FLAG}=")]
            files += [Path(after) for word, after in pairwise(words) if word == _FLAG]
            same = [file == secret or (wanted and _content(file) == wanted) for file in files]
            if any(same):
                found.append(number)
    return sorted(found)


def _is_worker(words: list[str], site: Path) -> bool:
    if _WORKER not in words or words.index(_WORKER) + 1 >= len(words):
        return False
    return Path(words[words.index(_WORKER) + 1]).resolve() == site


def _commands(processes: Path) -> Iterator[tuple[int, list[str]]]:
    """Every process that may be looked at, and the words of its command."""
    for path in processes.glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        except OSError:
            continue
        yield int(path.name), [word.decode("utf-8", "replace") for word in words]


def _content(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(4096)
    except OSError:
        return b""
