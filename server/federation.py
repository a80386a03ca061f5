"""A federation's run, from the first proposal to the final model: the loop around `rounds.step`."""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from common import anchor, guarantee, params, wire
from common.errors import Reason, RunError, StudyError
from common.kinds import Answering
from common.layout import Layout, layout_of
from common.models import build_model, load_pretrained
from common.randomness import seeded
from common.study import Study
from common.tasks import task_of
from server import aggregate, checkpoint, model_card, rounds
from server.class_counts import class_counts
from server.events import EventLog
from server.exchange import Credentials, Exchange
from server.gathering import Clear, Gathered, Gathering, Tally
from server.heads import NAME, Heads
from server.private_metrics import private_metrics
from server.proposals import Proposals, SitesOf
from server.secure import Secure

Watch = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a run is carried out; nothing in here changes what the study means."""

    out: Path
    backend: str
    roster: frozenset[str]  # the sites that belong to the federation
    nominal: Mapping[str, int] = field(default_factory=dict)  # their declared patients; under [privacy] all of them
    sites_of: SitesOf | None = None  # the site of each node, where the runtime knows
    credentials: Credentials | None = None  # of a federation with a roster; studies with aggregation.secure need them
    heads: Path | None = None  # where the heads of the sites' ledgers are kept; in OUT unless it is said
    pretrained: dict[str, Tensor] | None = None
    resume: bool = False
    watch: Watch = lambda _event: None  # is shown every event as it is logged


def run(exchange: Exchange, study: Study, options: Options) -> None:
    """Train the study's model with the sites that the exchange reaches and write everything that a run leaves behind.

    Guarantees: a round is applied only when at least `min_sites` sites answered; every absent site is named with a
    reason; killed at any point, the run goes on from its last closed round when started again with `resume`, to the
    same result.
    Raises RunError when a round failed `round_retries` times more in a row, or when OUT can't be used.
    """
    try:
        _Run(exchange, study, options).all_rounds()
    finally:
        exchange.listen(None)  # or exchange and run would hold each other, with all of the run's arrays


def _check_nominal(study: Study, options: Options) -> None:
    """Raises StudyError or AccountingError where the study doesn't fit what the sites have declared."""
    if missing := sorted(options.roster - options.nominal.keys()):
        raise StudyError(f"site {missing[0]} has declared no nominal_patients: needed under [privacy]")
    guarantee.check_nominal(study, options.nominal)


class _Run:
    """State of one run that several steps share: which node is which site, the weights, the log."""

    def __init__(self, exchange: Exchange, study: Study, options: Options) -> None:
        self._sites, self._study, self._options = exchange, study, options
        self._releases: frozenset[int] = frozenset()  # rounds, but for the last: that is the final model's
        if study.privacy is not None:
            _check_nominal(study, options)
            self._releases = guarantee.release_rounds(study) - {study.study.rounds}
        self._task = task_of(study)
        with seeded(study.study.seed, "initialisation"):
            self._model = build_model(study)
        if options.pretrained is not None:
            load_pretrained(self._model, options.pretrained)
        self._shapes = params.shapes(self._model, trainable=False)
        self._trainable = np.concatenate(
            [np.full(p.numel(), p.requires_grad) for p in self._model.parameters()] or [np.zeros(0, bool)]
        )
        self._layouts: dict[wire.Kind, Layout] = {
            "update": layout_of(study, "update"),
            "evaluate": layout_of(study, "evaluate"),
        }
        self._proposals = Proposals(exchange, study, options.roster, options.sites_of)
        self._logs: dict[str, str] = {}  # where each site's audit log stood when it last answered
        own = options.credentials
        self._heads = Heads(options.heads or options.out / NAME, {} if own is None else own.roster.identities)
        exchange.listen(self._hear)
        self._open()
        self._gathering = self._way()

    def _open(self) -> None:
        """Start afresh in an unused OUT, or take up the newest checkpoint."""
        out, study = self._options.out, self._study
        architecture = model_card.architecture_hash(self._shapes)
        out.mkdir(parents=True, exist_ok=True)
        found = None
        if self._options.resume:
            found = checkpoint.newest(out / "checkpoints", study_hash=study.sha256, architecture=architecture)
        elif (out / "events.jsonl").exists():
            raise RunError(f"{out}: holds a run already; continue it with --resume or choose another --out")
        self._log = EventLog(out / "events.jsonl")
        if found is None:
            full = params.vector_of(self._model, trainable=False)
            self._saved = checkpoint.Checkpoint(
                run=secrets.token_hex(32),
                study_hash=study.sha256,
                architecture=architecture,
                round=0,
                state=aggregate.initial(full[self._trainable], study.aggregation),
                weights=full,
                kept=np.zeros(0, np.float32),
                kept_score=None,
            )
            self._record(
                {
                    "event": "started",
                    "run": self._saved.run,
                    "study": study.model_dump(mode="json", by_alias=True),
                    "study_hash": study.sha256,
                    "backend": self._options.backend,
                    "sites": sorted(self._options.roster),
                    "nominal_patients": dict(self._options.nominal),
                }
            )
        else:
            self._saved = found
            self._record({"event": "resumed", "round": found.round})

    def _way(self) -> Gathering:
        """In the clear, or masked."""
        if not self._study.aggregation.secure:
            return Clear(self._sites, self._study)
        own = self._options.credentials
        if own is None:
            raise StudyError("aggregation.secure = true: the server has no roster and no key of its own to sign with")
        if missing := self._options.roster ^ own.roster.identities.keys():
            raise RunError(f"the roster and the run don't name the same sites: {', '.join(sorted(missing))}")
        return Secure(self._sites, self._study, own, run=self._saved.run)

    def _record(self, event: dict[str, Any]) -> None:
        logs = {"audit": dict(sorted(self._logs.items()))} if self._logs else {}
        event = {**event, **logs, "time": time.time()}
        self._log.append(event)
        self._options.watch(event)

    def all_rounds(self) -> None:
        """Rounds until the study's number is reached, then the last evaluation and the model."""
        if guarantee.counts(self._study) and not self._saved.prior:
            self._count()
        for number in range(self._saved.round + 1, self._study.study.rounds + 1):
            done = self._attempts(number, "update")
            weight = self._public_weight(done.round.participants)
            closed = aggregate.close(done.total, self._layouts["update"], public_weight=weight)
            metrics = self._metrics(closed.sums)
            self._close(number, closed.mean, metrics.get("validation", {}))
            released = {"released": self._release(number)} if number in self._releases else {}
            self._record(
                {
                    **_closed("round", done),
                    "metrics": {"val": metrics.get("validation", {})},
                    "bytes_up": done.tally.bytes_up,
                    "bytes_down": done.tally.bytes_down,
                    "seconds": {"train": max(done.tally.seconds.values(), default=0.0), "sites": done.tally.seconds},
                    **({"saturated": done.saturated} if self._study.aggregation.secure else {}),
                    **released,
                }
            )
            checkpoint.save_checkpoint(self._options.out / "checkpoints", self._saved)
        self._finish()

    def _count(self) -> None:
        """How common the classes are: round 0, closed once. A run that goes on has it from its checkpoint, as the sites
        would be charged for another.
        """
        done = self._attempts(0, "count")
        found = class_counts(done.total, self._study, sites=len(done.round.participants))
        self._saved = replace(self._saved, prior=tuple(found["prior"]))
        self._record({**_closed("counted", done), **found})
        checkpoint.save_checkpoint(self._options.out / "checkpoints", self._saved)

    def _finish(self) -> None:
        """Evaluate the weights that the study selects, and write the model."""
        select, kept = self._study.study.select, self._saved.kept
        if select == "average" and kept.size:
            self._saved = replace(self._saved, weights=kept)
        if self._study.privacy is not None:
            self._finish_privately()
            return
        final = self._evaluate()
        score, best = final["validation"].get(self._task.headline), self._saved.kept_score
        if select == "best" and best is not None and (score is None or best > score):
            self._saved = replace(self._saved, weights=kept)
            final = self._evaluate()
        self._save_model(final["validation"])
        self._record({"event": "final", "val": final["validation"], "test": final["test"]})
        self._record({"event": "finished"})

    def _finish_privately(self) -> None:
        """The model, and of its metrics what the study releases, if anything."""
        releases = bool(guarantee.release_rounds(self._study))
        released = {"private": self._release(self._study.study.rounds + 1)} if releases else {}
        self._save_model({})
        self._record({"event": "final", **released})
        self._record({"event": "finished"})

    def _release(self, number: int) -> dict[str, Any]:
        """The metrics that the sites release of the current weights, each with the interval of its noise."""
        done = self._attempts(number, "evaluate")
        sites, agreement = done.round.participants, self._study.study
        event = guarantee.release_event(self._study)
        share = dict(zip(("train", "validation", "test"), agreement.split, strict=True))[event.pool]
        return private_metrics(
            done.total,
            guarantee.metrics_of(self._study),
            noise_multipliers=dict.fromkeys(sites, event.noise_multiplier),
            nominal_patients={site: round(share * self._options.nominal[site]) for site in sites},
        )

    def _save_model(self, validation: dict[str, Any]) -> None:
        model_card.save_model(
            self._options.out,
            self._study,
            run=self._saved.run,
            shapes=self._shapes,
            weights=self._saved.weights,
            validation=validation,
        )

    def _public_weight(self, participants: Iterable[str]) -> float:
        """Under `[privacy]`, the sum of these sites' public weights."""
        if self._study.privacy is None:
            return 0.0
        return sum(guarantee.site_weight(self._study, self._options.nominal[site]) for site in participants)

    def _evaluate(self) -> dict[str, dict[str, Any]]:
        done = self._attempts(self._study.study.rounds + 1, "evaluate")
        return self._metrics(aggregate.close(done.total, self._layouts["evaluate"]).sums)

    def _close(self, number: int, mean: NDArray[np.float64] | None, validation: dict[str, Any]) -> None:
        """The state after a round. The round's metrics are of the weights that it started from."""
        saved, score, select = self._saved, validation.get(self._task.headline), self._study.study.select
        if select == "best" and score is not None and (saved.kept_score is None or score > saved.kept_score):
            saved = replace(saved, kept=saved.weights, kept_score=score)
        state = aggregate.apply(saved.state, mean, self._study.aggregation)
        weights = saved.weights.copy()
        weights[self._trainable] = state.weights
        later = number - self._study.study.rounds // 2  # how many rounds of the later half are closed with this one
        if select == "average" and later > 0:
            before = saved.kept if later > 1 else np.zeros_like(weights)
            saved = replace(saved, kept=before + (weights - before) / np.float32(later))
        self._saved = replace(saved, round=number, state=state, weights=weights)

    def _metrics(self, sums: dict[str, NDArray[np.float64]]) -> dict[str, dict[str, Any]]:
        """Metrics by pool; loss None and no others where a pool has no images."""
        pools: dict[str, dict[str, NDArray[np.float64]]] = {}
        for name, value in sums.items():
            pool, key = name.split("/", 1)
            pools.setdefault(pool, {})[key] = value
        metrics = {}
        for pool, named in pools.items():
            images, loss = float(named.pop("images")), float(named.pop("loss"))
            mean = {"loss": loss / images if images > 0 else None, "images": round(images)}
            metrics[pool] = {**self._task.summarise(named), **mean}
        return metrics

    def _attempts(self, number: int, kind: Answering) -> Gathered:
        """A round tried until it closes, `round_retries` times more at the most."""
        agreement, retries = self._study.study, self._study.study.round_retries
        for attempt in range(1, retries + 2):
            self._proposals.show(number, attempt, run=self._saved.run, heads=self._heads.told)
            done = self._gather(number, attempt, kind)
            if done.round.outcome == "closed":
                return done
            absent = {site: str(reason) for site, reason in sorted(done.round.absent.items())}
            why = {"why": done.round.failed} if done.round.failed else {}
            self._record({"event": "retry", "round": number, "attempt": attempt, "absent": absent, **why})
        what = {"count": "the class histogram", "evaluate": "the last evaluation"}.get(kind, f"round {number}")
        reason = (
            f"{what}: fewer than {agreement.min_sites} sites answered, {retries + 1} times in a row"
            f" (absent: {', '.join(f'{site} {why}' for site, why in absent.items())}); {_mended(set(absent.values()))}"
        )
        self._record({"event": "stopped", "reason": reason})
        raise RunError(reason)

    def _gather(self, number: int, attempt: int, kind: Answering) -> Gathered:
        """Ask every site that is there and add up what comes, as it comes."""
        nodes = self._proposals.agreed
        state = rounds.begin(
            number=number,
            attempt=attempt,
            quorum=self._study.study.min_sites,
            phases=[kind],
            present=nodes.values(),
            absent=self._proposals.absent(),
        )
        if state.outcome == "abandoned":  # what would be charged for it would be lost
            return Gathered(round=state, tally=Tally(), total=np.zeros(0))
        weights = None if kind == "count" else self._saved.weights
        order = wire.Order(
            kind=kind,
            round=number,
            attempt=attempt,
            study_hash=self._study.sha256,
            weights=weights,
            weights_hash="" if weights is None else wire.digest_of(weights),
            prior=self._saved.prior if kind == "update" else (),
            run=self._saved.run,
            heads=self._heads.told(),
        )
        done = self._gathering.gather(nodes, order, state)
        self._proposals.forget(site for site, reason in done.round.absent.items() if reason is Reason.STUDY_CHANGED)
        return done

    def _hear(self, order: wire.Order, answer: wire.Answer) -> None:
        """Keep where the site says that its audit log stands, and what it says of privacy ledgers."""
        if answer.audit:
            self._logs[answer.site] = anchor.plain(answer.audit)
        followed = order.heads if answer.reason is Reason.OK else ()
        self._heads.hear(answer.heads, site=answer.site, followed=followed)


def _closed(event: str, done: Gathered) -> dict[str, Any]:
    """How a closed round begins in the log."""
    absent = {site: str(reason) for site, reason in sorted(done.round.absent.items())}
    number, attempt, participants = done.round.number, done.round.attempt, list(done.round.participants)
    return {"event": event, "round": number, "attempt": attempt, "participants": participants, "absent": absent}


def _mended(reasons: set[str]) -> str:
    """What to do about sites that were absent for these reasons, until a run can go on."""
    if reasons == {str(Reason.NOT_APPROVED)}:
        return "continue with resume when these sites have approved the study (`client approve`)"
    if str(Reason.WIRE_VERSION) in reasons:
        return "install the same release of Fedward at the server and at these sites, and continue with resume"
    return "look into errors.log of the sites that failed, and continue with resume when all are back"
