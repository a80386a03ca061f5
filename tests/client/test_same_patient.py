"""One person under one PatientID in two hospitals: nothing tells so, and the federation goes on."""

import json
from pathlib import Path

import numpy as np
from control_cases import settle
from dicom_cases import saved, slice_
from small import SIDE, tiny_study
from typer.testing import CliRunner

from client import index
from client.__main__ import app
from client.dataset import open_dataset
from client.site import open_site
from server import federation
from server.events import read, summary
from simulations.faults import Faults
from simulations.inprocess import run

SHARED = "4711"
STUDY = tiny_study(study={"rounds": 1, "classes": ["a", "b"], "split": [1.0, 0.0, 0.0]})


def hospital(base: Path, name: str) -> Path:
    """A site with four patients of its own and the shared one, whose image and study are the very same in both."""
    images, site = base / f"images-{name}", base / name
    patients = [SHARED, *(f"{name}-{number}" for number in range(4))]
    for number, patient in enumerate(patients):
        pixels = np.random.default_rng(number).integers(0, 1000, (SIDE, SIDE)).astype(np.uint16)
        image = slice_(number, patient=patient)
        image.Rows, image.Columns, image.PixelData = SIDE, SIDE, pixels.tobytes()
        image.StudyInstanceUID = f"1.2.9.{number + 1}"
        saved(image, images / f"{number}.dcm")
    lines = [f"{patient},{'ab'[number % 2]}" for number, patient in enumerate(patients)]
    (images / "labels.csv").write_text("\n".join(["key,label", *lines]) + "\n")
    done = CliRunner().invoke(app, ["index", str(images), "--out", str(site), "--json"], catch_exceptions=False)
    assert json.loads(done.output)["patients"] == 5
    return settle(site, approve="auto", privacy="optional")


def test_a_patient_of_two_hospitals_has_two_hashes_and_nothing_joins_them(tmp_path: Path) -> None:
    sites = [hospital(tmp_path, name) for name in ("site-0", "site-1")]
    rows = [row for site in sites for row in index.read(site)]
    assert len(rows) == 10 and sum(row.source.path == "0.dcm" for row in rows) == 2  # his image, in both
    for name in ("patient", "study", "image"):  # under two keys: no hash occurs in both hospitals
        assert len({getattr(row, name) for row in rows}) == 10
    for site in sites:
        assert not any(SHARED.encode() in path.read_bytes() for path in site.rglob("*") if path.is_file())


def test_the_federation_goes_on_with_a_patient_of_two_hospitals(tmp_path: Path) -> None:
    sites, out = [hospital(tmp_path, name) for name in ("site-0", "site-1")], tmp_path / "out"
    assert all(open_dataset(open_site(site), STUDY).patients["train"] == 5 for site in sites)
    roster = frozenset(site.name for site in sites)
    run(STUDY, federation.Options(out=out, backend="inprocess", roster=roster), sites, Faults(scripted={}))
    events = read(out / "events.jsonl")
    assert summary(events)["rounds"][0]["participants"] == ["site-0", "site-1"] and events[-1]["event"] == "finished"
    assert SHARED not in json.dumps(events)
