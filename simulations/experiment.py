"""A whole simulation: sites, the federation, what it is compared with, several seeds, and everything it leaves
behind.
"""

import json
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import RunError, StudyError
from common.study import Study, parse
from common.tasks import task_of
from server import report
from server.checkpoint import write_atomically
from server.events import read, summary
from simulations import comparison, faults
from simulations import report as simulation_report
from simulations.comparison import Judges
from simulations.datasets import parse_spec
from simulations.examples import examples
from simulations.observer import EVERYBODY, per_site
from simulations.partition import figure, parse_partition
from simulations.sites import Federation, Say, charged, prepare, summary_of
from simulations.training import Backend, Task, Watch, execute_all


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a researcher asks for: `python -m simulations run`."""

    study: Study
    data: str
    sites: int
    out: Path
    partition: str = "uniform"
    backend: Backend = "inprocess"
    compare: bool = False
    seeds: int = 1
    drop: float = 0.0
    script: Path | None = None
    pretrained: Path | None = None
    threads: int = 1

    def as_json(self) -> str:
        """Everything that changes results, to recognise the same request when it is resumed."""
        script = self.script.read_text(encoding="utf-8") if self.script and self.script.exists() else ""
        values = {
            "study": self.study.sha256,
            "data": self.data,
            "sites": self.sites,
            "partition": self.partition,
            "compare": self.compare,
            "seeds": self.seeds,
            "drop": self.drop,
            "script": script,
            "threads": self.threads,
        }
        return json.dumps(values, indent=1)


@dataclass(frozen=True, kw_only=True)
class _Seeded:
    """One seed's part of a simulation."""

    study: Study
    federation: Federation
    task: Task
    others: dict[str, Task]


def run(
    request: Request,
    *,
    resume: bool = False,
    jobs: int = 0,
    quiet: bool = True,
    say: Say = lambda _: None,
    watch: Watch = lambda _n, _e: None,
) -> dict[str, Any]:
    """Carry out the request and return what is in OUT/summary.json; `jobs` processes at once, 0: one per core.

    Guarantees: interrupted at any point, the same request with `resume` continues and gives the same result; a file
    in OUT
    is whole or not there. Raises FederationError, one line.
    """
    _check(request)
    _claim(request, resume=resume)
    parts = [_seed(request, number, say=say, quiet=quiet) for number in range(request.seeds)]
    trainings = [task for part in parts for task in (part.task, *part.others.values())]
    try:
        execute_all(trainings, jobs=jobs or max(1, (os.cpu_count() or 1) // request.threads), watch=watch)
    except RunError:
        if (request.out / "events.jsonl").exists():
            report.write(request.out)  # who was missing, and when
        raise
    say("Judging the models on held-out patients …")
    results = []
    for part in parts:
        judges = Judges(part.study, part.federation)
        results.append(_result(part, judges))
        if part is parts[0]:
            pictures = examples(judges.of(part.task.out)[1])
    whole = {**results[0], "seeds": [_brief(part, result) for part, result in zip(parts, results, strict=True)]}
    if request.seeds > 1:
        whole["over_seeds"] = over_seeds(whole["seeds"], task_of(request.study).headline)
    write_atomically(request.out / "summary.json", [json.dumps(whole, indent=1, allow_nan=False).encode()])
    sections = simulation_report.sections(whole, partition_figure=figure(parts[0].federation.counts), pictures=pictures)
    report.write(request.out, sections)
    return whole


def _check(request: Request) -> None:
    quorum = request.study.study.min_sites
    if request.sites < quorum:
        raise StudyError(f"--sites {request.sites}: study.min_sites = {quorum}; simulate at least as many")
    if not 1 <= request.seeds <= 100:
        raise StudyError(f"--seeds {request.seeds}: 1 to 100")
    parse_partition(request.partition)
    parse_spec(request.data)
    faults.load(request.script, drop=request.drop, seed=request.study.study.seed)


def _claim(request: Request, *, resume: bool) -> None:
    """OUT belongs to this request from now on. Raises RunError where it belongs to another, or to this one and isn't
    resumed.
    """
    stamp, wanted = request.out / "request.json", request.as_json()
    if stamp.exists():
        found = stamp.read_text(encoding="utf-8")
        if not resume:
            raise RunError(
                f"{request.out}: holds a simulation already; add --resume to continue it, or choose another --out"
            )
        if found != wanted:
            before, now = json.loads(found), json.loads(wanted)
            changed = ", ".join(key for key in now if now[key] != before.get(key))
            raise RunError(
                f"{request.out}: was started with another {changed}; ask for the same, or choose another --out"
            )
        return
    try:
        request.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{request.out}: can't be made ({error.strerror}); choose another --out") from error
    write_atomically(stamp, [wanted.encode()])


def _seed(request: Request, number: int, *, say: Say, quiet: bool) -> _Seeded:
    """The sites and training runs of the study's seed plus `number`; the first lives in OUT itself."""
    study = _with_seed(request.study, request.study.study.seed + number)
    out = request.out if number == 0 else request.out / "seeds" / f"seed-{study.study.seed}"
    say(f"Dividing the patients among {request.sites} sites (seed {study.study.seed}) …")
    federation = prepare(
        study,
        source_study=request.study,
        data=request.data,
        partition=parse_partition(request.partition),
        sites=request.sites,
        shared=request.out / "data",
        folder=out / "sites",
        say=say,
        quiet=quiet,
    )
    task = Task(
        name="federation" if request.seeds == 1 else f"seed {study.study.seed}",
        study=study.canonical,
        folders=federation.folders,
        out=out,
        faults=faults.load(request.script, drop=request.drop, seed=study.study.seed),
        backend=request.backend,
        pretrained=request.pretrained,
        threads=request.threads,
        nominal=federation.nominal,
        credentials=federation.credentials,
    )
    others = comparison.tasks(study, federation, task) if request.compare else {}
    return _Seeded(study=study, federation=federation, task=task, others=others)


def _with_seed(study: Study, seed: int) -> Study:
    values = study.model_dump(mode="json", by_alias=True)
    values["study"]["seed"] = seed
    return parse(values, where="--seeds")


def _result(part: _Seeded, judges: Judges) -> dict[str, Any]:
    """One seed's summary: what its events say, and what only a simulation can know."""
    own = summary(read(part.task.out / "events.jsonl"))
    seen = per_site(part.task.out)
    for entry in own["rounds"]:
        everybody = seen.get(entry["round"], {}).pop(EVERYBODY, None)
        entry["per_site"] = seen.get(entry["round"], {})
        if everybody is not None and part.study.privacy is not None:
            entry["metrics"] = {"val": everybody, "source": "simulation"}
    if part.study.privacy is not None:
        own["privacy"] = {
            folder.name: charged(part.study, part.federation.nominal[folder.name], folder)
            for folder in part.federation.folders
        }
    own["sites"] = summary_of(part.federation.counts)
    own["unusable"] = dict(part.federation.unusable)
    own["final"] = {
        "val": own["final"].get("val", {}) if part.study.privacy is None else judges.validation(part.task.out),
        "test": judges.of(part.task.out)[1].metrics,
        "source": "simulation",
    }
    if part.others:
        own["comparison"] = comparison.compared(part.study, judges, part.task.out, part.others)
    return own


def _brief(part: _Seeded, result: dict[str, Any]) -> dict[str, Any]:
    brief = {"seed": part.study.study.seed, "final": {"test": result["final"]["test"]}}
    return {**brief, "comparison": result["comparison"]} if "comparison" in result else brief


def over_seeds(seeds: Sequence[dict[str, Any]], headline: str) -> dict[str, Any]:
    """Mean and 95 % interval (Student's t) of the headline metric over the seeds, and of its ratio to pooled
    training.
    """
    federated = [entry["final"]["test"].get(headline) for entry in seeds]
    columns: dict[str, list[float | None]] = {"federated": federated}
    if all("comparison" in entry for entry in seeds):
        pooled = [entry["comparison"]["pooled"]["test"].get(headline) for entry in seeds]
        columns["pooled"] = pooled
        columns["alone_mean"] = [entry["comparison"]["alone_mean"]["test"][headline] for entry in seeds]
        columns["federated_over_pooled"] = [
            f / p if f is not None and p else None for f, p in zip(federated, pooled, strict=True)
        ]
    return {"headline": headline, **{name: interval(values) for name, values in columns.items()}}


def interval(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean, standard deviation and 95 % confidence interval of the mean (Student's t); None where there are too few
    values.
    """
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return {"mean": known[0] if known else None, "sd": None, "low": None, "high": None}
    from scipy.stats import t

    mean, deviation = statistics.fmean(known), statistics.stdev(known)
    half = float(t.ppf(0.975, len(known) - 1)) * deviation / math.sqrt(len(known))
    return {"mean": mean, "sd": deviation, "low": mean - half, "high": mean + half}
