"""Attacks on whole clients: site folders that `client.app` answers for, with training, ledger and audit log."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from client import app as client_app
from client import chain, ledger
from client.membership import identity_of, pinned
from client.site import open_site
from common import params, secure, wire
from common.errors import RunError
from common.guarantee import site_weight
from common.masking import MaskedSum
from common.models import build_model
from common.session import Signed, answered
from common.study import parse
from server.session import Session
from simulations.attacks.finding import Finding, judged
from simulations.attacks.liar import FEDWARD, VICTIM
from simulations.partition import Partition
from simulations.sites import prepare

SITES, SIDE, IMAGES = 4, 20, 48  # 20 pixels: the smallest that the cnn's convolutions leave something of
RUN = "a1" * 32
STUDY = {
    "study": {
        "schema": 1,
        "name": "attacked",
        "task": "classification",
        "classes": ["dark", "bright"],
        "rounds": 2,
        "min_sites": 3,
    },
    "model": {"name": "cnn", "image_size": [SIDE, SIDE], "head": "gap"},
    "training": {"local_steps": 1, "learning_rate": 0.05, "momentum": 0.0},
    "privacy": {"epsilon": 8.0, "delta": 1e-5, "images_per_patient": 1},
    "aggregation": {"secure": True},
}


class Hospitals:
    """Four sites with random images that have agreed to a study with secure aggregation and differential privacy."""

    def __init__(self, folder: Path) -> None:
        self.study = parse(STUDY, where="attacks")
        found = prepare(
            self.study,
            source_study=self.study,
            data=f"medmnist:{_images(folder / 'images.npz')}",
            partition=Partition(),
            sites=SITES,
            shared=folder / "shared",
            folder=folder / "sites",
            say=lambda _: None,
            quiet=True,
        )
        roster = None if found.credentials is None else pinned(found.credentials)
        if found.credentials is None or roster is None:
            raise RunError("the federation has no roster, though its study has secure aggregation")
        self.sites = {path.name: open_site(path) for path in found.folders}
        self.roster, self.key = roster, identity_of(found.credentials)
        self.setting = secure.setting_of(self.study, roster, run=RUN)
        self.encoding = secure.encoding_of(self.study, "update", sites=len(roster.sites))
        self._weights = params.vector_of(build_model(self.study), trainable=False)
        wire.speak_as_server(run_id=1)
        for name in self.sites:
            self.ask(name, self.order("propose"))

    def order(self, kind: wire.Kind, *, attempt: int = 1, session: bytes = b"") -> wire.Order:
        """An order of round 1, as a server sends it."""
        study = self.study
        order = wire.Order(kind=kind, round=1, attempt=attempt, study_hash=study.sha256, run=RUN, session=session)
        if kind == "propose":
            return replace(order, study_json=study.canonical)
        if kind in ("update", "evaluate"):
            return replace(order, weights=self._weights, weights_hash=wire.digest_of(self._weights))
        return order

    def ask(self, name: str, order: wire.Order) -> wire.Answer:
        """What `client.app` answers for this site."""
        kind = "train" if order.kind == "update" else "evaluate" if order.kind == "evaluate" else "query"
        return client_app.respond(self.sites[name], Message(wire.order_record(order, self.key), 1, kind, ttl=60))

    def noted(self, name: str) -> str:
        """The last line of a site's own error log."""
        path = self.sites[name].folder / "errors.log"
        return path.read_text(encoding="utf-8").strip().splitlines()[-1].partition(": ")[2] if path.exists() else ""

    def charges(self, name: str) -> int:
        """How often the site's ledger was charged."""
        entries = chain.read(self.sites[name].folder / ledger.FOLDER, ledger.NAME).entries
        return sum(entry.kind == "reserve" for entry in entries)

    def released(self, name: str) -> bytes:
        """The one update that this site has stored: the file that is nobody's note (`client.released`)."""
        stored = (self.sites[name].folder / ledger.FOLDER / "released").iterdir()
        (update,) = (path for path in stored if not path.suffix)
        return update.read_bytes()

    def said(self, name: str, answer: wire.Answer) -> dict[str, Signed]:
        """The protocol's messages in an answer. Raises RunError where the site gave none."""
        if not answer.session:
            raise RunError(f"{name} refused what an honest server asks: {self.noted(name)}")
        return answered(answer.session, self.roster, site=name)


def clear_order(hospitals: Hospitals) -> Finding:
    """Ask a site of a secure study for its update, and for its metrics, as one asks in a study without."""
    said, found = [], None
    for kind in ("update", "evaluate"):
        order = hospitals.order(kind)
        answer = hospitals.ask(VICTIM, order)
        if answer.vector is None:
            said.append(f"{VICTIM}: {answer.reason}, without a vector; in its own log: {hospitals.noted(VICTIM)}")
        elif found is None:
            message = Message(wire.order_record(order), 1, "train", ttl=60)
            found = (answer.vector, client_app.vector(hospitals.sites[VICTIM], hospitals.study, order, message))
    read, truth = (None, 0.0) if found is None else found
    return judged(
        read, truth, tolerance=0, against=FEDWARD, said=said, detail="orders without a session, to the whole client"
    )


def mask_again(hospitals: Hospitals) -> Finding:
    """Have three of four sites open a sum and tell the fourth that it was abandoned; then order the same again, without
    the victim. Where the others send what they had sent, the difference of both sums is the victim's update.
    """
    peers = [name for name in hospitals.sites if name != VICTIM]
    first = _Attempt(hospitals, 1)
    whole = first.masked(list(hospitals.sites))
    truth = np.frombuffer(hospitals.released(VICTIM), "<f4").astype(np.float64)
    told = peers[-1]
    before = first.opened(whole, [name for name in hospitals.sites if name != told], closed=[told])
    second = _Attempt(hospitals, 2)
    after = second.opened(second.masked(peers), peers)
    said = [
        f"{name}: another update than before, trained and charged anew: {charges} charges in its ledger"
        for name in peers
        if (charges := hospitals.charges(name)) > 1
    ]
    cap = secure.weight_cap(hospitals.study, hospitals.roster)
    own = next(site.nominal_patients for site in hospitals.roster.sites if site.name == VICTIM)
    weighted = truth * site_weight(hospitals.study, own)
    reach, encoding = hospitals.study.aggregation.range_ * cap, hospitals.encoding
    return judged(
        (before - after)[: len(truth)],
        np.clip(weighted, -reach, reach),
        tolerance=2 * SITES * encoding.unit * cap,
        against=FEDWARD,
        said=said,
        detail="one order, two sessions, opened sums of four sites and of three; wanted: their difference",
    )


class _Attempt:
    """One session for the same order, with the server's own code but for who is asked and what is told."""

    def __init__(self, hospitals: Hospitals, number: int) -> None:
        self._hospitals, self._number = hospitals, number
        self._session = Session(key=hospitals.key, setting=hospitals.setting, number=number)

    def masked(self, asked: Sequence[str]) -> MaskedSum:
        """K and S with everybody, A with these."""
        session, hospitals = self._session, self._hospitals
        for name in hospitals.sites:
            session.take_keys(self._said(name, "keys", session.ask_keys())["keys"])
        for name in hospitals.sites:
            session.take_shares(self._said(name, "shares", session.ask_shares())["shares"])
        order, total = hospitals.order("update", attempt=self._number), MaskedSum(hospitals.encoding)
        order = replace(order, session=session.ask_masked(bytes.fromhex(order.sha256)))
        for name in asked:
            answer = hospitals.ask(name, order)
            messages = hospitals.said(name, answer)
            words = np.zeros(0, np.uint64) if answer.words is None else answer.words
            session.take_header(messages["header"], vector=hashlib.sha256(words.tobytes()).digest())
            total.add(words)
        return total

    def opened(self, total: MaskedSum, asked: Sequence[str], *, closed: Sequence[str] = ()) -> NDArray[np.float64]:
        """B, and C where somebody is missing: the sum. The others are told that there is none."""
        session, hospitals = self._session, self._hospitals
        for name in closed:
            self._said(name, "open", session.ask_closing())
        for name in asked:
            messages = self._said(name, "open", session.ask_opening())
            if "confirm" in messages:
                session.take_confirm(messages["confirm"])
            else:
                session.take_opened(messages["opened"])
        for name in session.confirmers:
            session.take_opened(self._said(name, "reveal", session.ask_reveal())["opened"])
        total.unmask(session.streams())
        survivors = len(session.survivors.names)
        return secure.from_sum(total, hospitals.study, "update", hospitals.roster, sites=survivors)[0]

    def _said(self, name: str, kind: wire.Kind, request: bytes) -> dict[str, Signed]:
        order = self._hospitals.order(kind, attempt=self._number, session=request)
        return self._hospitals.said(name, self._hospitals.ask(name, order))


def _images(path: Path) -> Path:
    """Random images with labels, as a file of MedMNIST."""
    arrays = {}
    for split, count in (("train", IMAGES), ("val", 0), ("test", 0)):
        arrays[f"{split}_images"] = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 2)[:, None].astype(np.uint8)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path
