"""Training runs, one after the other or several processes at once: each a federation of some site folders."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, Literal

import torch

from client.membership import identity_of, pinned
from common import params
from common.errors import RunError, StudyError
from common.study import from_json
from server import federation
from server.events import effective, read
from server.exchange import Credentials
from simulations.faults import Faults

Backend = Literal["inprocess", "ray"]
Watch = Callable[[str, Mapping[str, Any]], None]  # a task's name, and an event of its log


@dataclass(frozen=True, kw_only=True)
class Task:
    """One federation to train, in plain values that another process understands."""

    name: str
    study: str  # canonical JSON
    folders: tuple[Path, ...]
    out: Path
    faults: Faults
    backend: Backend = "inprocess"
    pretrained: Path | None = None
    threads: int = 1
    nominal: Mapping[str, int] = field(default_factory=dict)
    credentials: Path | None = None  # a folder with the server's key and the roster

    @property
    def finished(self) -> bool:
        """The model and its last evaluation are there."""
        log = self.out / "events.jsonl"
        return log.exists() and any(event["event"] == "finished" for event in effective(read(log)))


def execute(task: Task, watch: Watch | None = None) -> None:
    """Train, from the newest checkpoint where there is one. Does nothing when it was finished before."""
    if task.finished:
        return
    torch.set_num_threads(task.threads)
    study = from_json(task.study)
    options = federation.Options(
        out=task.out,
        backend=task.backend,
        roster=frozenset(folder.name for folder in task.folders),
        nominal=task.nominal,
        credentials=_credentials(task.credentials),
        pretrained=_pretrained(task.pretrained, study.model.pretrained_sha256),
        resume=(task.out / "events.jsonl").exists(),
        watch=(lambda event: watch(task.name, event)) if watch else (lambda _event: None),
    )
    if task.backend == "ray":
        from simulations import flower

        flower.run(study, options, task.folders, task.faults, threads=task.threads)
    else:
        from simulations import inprocess

        inprocess.run(study, options, task.folders, task.faults)


def _credentials(folder: Path | None) -> Credentials | None:
    roster = pinned(folder) if folder is not None else None
    return Credentials(key=identity_of(folder), roster=roster) if folder is not None and roster is not None else None


def _pretrained(path: Path | None, wanted: str) -> dict[str, torch.Tensor] | None:
    """The tensors to start from. Raises StudyError when the file isn't the one that the study names."""
    if path is None and not wanted:
        return None
    if path is None:
        raise StudyError(f"model.pretrained_sha256 = {wanted[:12]}…: give the file with --pretrained")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StudyError(f"--pretrained {path}: can't be read ({error.strerror})") from error
    return params.pinned(data, sha256=wanted, where=f"--pretrained {path}")


def execute_all(tasks: Sequence[Task], *, jobs: int, watch: Watch) -> None:
    """Carry out all tasks, `jobs` processes at once; with one, in this process. Raises the first error; others are
    waited for.
    """
    todo = [task for task in tasks if not task.finished]
    if jobs == 1 or len(todo) < 2:
        for task in todo:
            execute(task, watch)
        return
    seen = {task.name: _lines(task) for task in todo}
    spawn = get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(todo)), mp_context=spawn, initializer=_end_with_parent) as pool:
        futures: dict[Future[None], Task] = {pool.submit(execute, task): task for task in todo}
        waiting = set(futures)
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                for task in futures.values():
                    seen[task.name] = _follow(task, seen[task.name], watch)
                for future in done:
                    future.result()
        except BrokenProcessPool as error:
            raise RunError("a training process died; continue with --resume") from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """Have this process end when its parent does: a parent that was killed may be started again with `--resume`, and
    two processes would then write one OUT.
    """
    parent = parent_process()

    def wait_and_end() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    Thread(target=wait_and_end, daemon=True).start()


def _lines(task: Task) -> int:
    log = task.out / "events.jsonl"
    return len(read(log)) if log.exists() else 0


def _follow(task: Task, seen: int, watch: Watch) -> int:
    """Show what another process has logged since."""
    log = task.out / "events.jsonl"
    events = read(log) if log.exists() else []
    for event in events[seen:]:
        watch(task.name, event)
    return len(events)
