"""Pulling from a real Orthanc on loopback: what comes is what it has, bit for bit, over both protocols."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import archives
import pydicom
import pytest
from archives import LOGIN, needs_orthanc
from pull_cases import image
from typer.testing import CliRunner

from client.__main__ import app
from client.pull.archive import Fault
from client.pull.dimse import DimseArchive
from client.pull.folder import Folder
from client.pull.pace import Pace
from client.pull.run import Counts, pull
from client.pull.selection import Selection
from client.pull.web import WebArchive
from common.errors import FederationError
from simulations.datasets.phantom import write_phantom

pytestmark = needs_orthanc


@dataclass(frozen=True, kw_only=True)
class Orthanc:
    """A running archive with the phantom in it."""

    web: str
    dimse: str
    login_file: Path
    images: dict[str, Path]  # SOPInstanceUID -> the phantom's file
    patients: dict[str, list[str]]  # PatientID -> SOPInstanceUIDs
    modalities: dict[str, list[str]]


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    folder = tmp_path_factory.mktemp("orthanc")
    write_phantom(folder / "phantom", patients=12, seed=5, image_size=64)
    with archives.orthanc(folder) as archive:
        yield _filled(folder, archive)


def _filled(folder: Path, archive: archives.Orthanc) -> Orthanc:
    images: dict[str, Path] = {}
    patients: dict[str, list[str]] = {}
    modalities: dict[str, list[str]] = {}
    for path in sorted((folder / "phantom").rglob("*")):
        if path.is_file() and path.suffix not in (".csv", ".json", ".png"):
            archive.take(path)
            dataset = pydicom.dcmread(path, stop_before_pixels=True)
            images[str(dataset.SOPInstanceUID)] = path
            patients.setdefault(dataset.PatientID, []).append(str(dataset.SOPInstanceUID))
            modalities.setdefault(dataset.Modality, []).append(str(dataset.SOPInstanceUID))
    return Orthanc(
        web=archive.web,
        dimse=archive.dimse,
        login_file=archive.login_file,
        images=images,
        patients=patients,
        modalities=modalities,
    )


def arguments(orthanc: Orthanc, protocol: str, *given: str | Path, rate: int = 900) -> list[str]:
    """The command line of a pull."""
    place = [orthanc.web, "--login-file", str(orthanc.login_file)] if protocol == "web" else [orthanc.dimse]
    start = [sys.executable, "-P", "-W", "error", "-m", "client", "pull"]
    return [*start, *place, "--json", "--rate", str(rate), *map(str, given)]


def command(orthanc: Orthanc, protocol: str, *given: str | Path) -> tuple[int, dict[str, Any], str]:
    """Exit code, counts, and everything that was written to the console."""
    found = CliRunner().invoke(app, arguments(orthanc, protocol, *given)[6:])
    assert found.exception is None or isinstance(found.exception, SystemExit | FederationError), found.exception
    error = str(found.exception) if isinstance(found.exception, FederationError) else ""
    counts = json.loads(found.stdout) if found.stdout.strip() else {}
    return found.exit_code, counts, found.output + error


def pulled(out: Path) -> dict[str, Path]:
    return {path.stem: path for path in (out / "images").rglob("*.dcm")}


ALL = ("--from", "2021-01-04", "--to", "2021-03-05")


@pytest.mark.parametrize("protocol", ["web", "dimse"])
def test_all_images_come_bit_for_bit_in_their_own_transfer_syntax(
    orthanc: Orthanc, protocol: str, tmp_path: Path
) -> None:
    code, counts, console = command(orthanc, protocol, *ALL, "--out", tmp_path / "out")
    assert code == 0, console
    found = pulled(tmp_path / "out")
    assert found.keys() == orthanc.images.keys()
    assert counts["found"] == counts["fetched"] == len(found)
    syntaxes = set()
    for uid, path in found.items():
        came, given = pydicom.dcmread(path), pydicom.dcmread(orthanc.images[uid])
        assert came.PixelData == given.PixelData
        assert came.file_meta.TransferSyntaxUID == given.file_meta.TransferSyntaxUID
        syntaxes.add(str(came.file_meta.TransferSyntaxUID))
    assert len(syntaxes) >= 4


@pytest.mark.parametrize("protocol", ["web", "dimse"])
def test_a_second_run_asks_for_what_is_missing_only(orthanc: Orthanc, protocol: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command(orthanc, protocol, *ALL, "--out", out)[0] == 0
    found = pulled(out)
    gone = sorted(found)[:2]
    times = {uid: path.stat().st_mtime_ns for uid, path in found.items() if uid not in gone}
    for uid in gone:
        found[uid].unlink()
    code, counts, _ = command(orthanc, protocol, *ALL, "--out", out)
    assert code == 0
    assert (counts["fetched"], counts["present"]) == (2, len(found) - 2)
    again = pulled(out)
    assert again.keys() == found.keys()
    assert {uid: again[uid].stat().st_mtime_ns for uid in times} == times


@pytest.mark.parametrize("protocol", ["web", "dimse"])
def test_modality_description_and_patients_select(orthanc: Orthanc, protocol: str, tmp_path: Path) -> None:
    code, counts, _ = command(orthanc, protocol, *ALL, "--modality", "CR", "--out", tmp_path / "cr")
    assert code == 0
    assert sorted(pulled(tmp_path / "cr")) == sorted(orthanc.modalities["CR"])
    named = ("--study-description", "thor*p?a.", "--modality", "CR", "--modality", "DX")
    code, counts, _ = command(orthanc, protocol, *ALL, *named, "--out", tmp_path / "thorax")
    described = {
        uid
        for uid, path in orthanc.images.items()
        if pydicom.dcmread(path, stop_before_pixels=True).get("StudyDescription")
    }
    assert 0 < len(described) < len(orthanc.images)
    assert pulled(tmp_path / "thorax").keys() == described
    wanted = sorted(orthanc.patients)[:3]
    (tmp_path / "list").write_text("\n".join([*wanted, "NOBODY-1"]))
    code, counts, console = command(orthanc, protocol, "--patients", tmp_path / "list", "--out", tmp_path / "some")
    assert code == 3 and counts["absent"] == 1
    assert sorted(pulled(tmp_path / "some")) == sorted(uid for one in wanted for uid in orthanc.patients[one])
    assert counts["unmatched"] == 0 and counts["failed"] == counts["refused"] == {}
    assert not any(name in console for name in [*orthanc.patients, *orthanc.images, "Phantom"])


@pytest.mark.parametrize("protocol", ["web", "dimse"])
def test_list_counts_and_fetches_nothing(orthanc: Orthanc, protocol: str, tmp_path: Path) -> None:
    code, counts, _ = command(orthanc, protocol, *ALL, "--list", "--out", tmp_path / "out")
    assert code == 0
    assert not (tmp_path / "out").exists()
    assert counts["by"] == {kind: {"2021": len(uids)} for kind, uids in sorted(orthanc.modalities.items())}
    assert counts["images"] == len(orthanc.images)


@pytest.mark.parametrize("protocol", ["web", "dimse"])
def test_a_killed_run_leaves_whole_files_and_the_next_one_goes_on(
    orthanc: Orthanc, protocol: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        arguments(orthanc, protocol, *ALL, "--out", out, rate=40), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(2400):
        if len(pulled(out)) >= 5:
            break
        time.sleep(0.05)
    process.kill()
    process.wait(30)
    before = pulled(out)
    assert 5 <= len(before) < len(orthanc.images)
    for uid, path in before.items():
        assert pydicom.dcmread(path).PixelData == pydicom.dcmread(orthanc.images[uid]).PixelData
    code, counts, _ = command(orthanc, protocol, *ALL, "--out", out)
    assert code == 0
    assert counts["present"] == len(before)
    assert pulled(out).keys() == orthanc.images.keys()


@pytest.mark.parametrize("protocol", ["web", "dimse"])
def test_an_archive_that_cuts_its_answers_short_is_not_complete(protocol: str, tmp_path: Path) -> None:
    study, series = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.1.1"
    out, place = tmp_path / "out", tmp_path / "archive"
    with archives.orthanc(place, LimitFindInstances=3) as archive:
        for number in range(8):
            path = tmp_path / "image"
            path.write_bytes(image(f"{series}.{number + 1}", study=study, series=series))
            archive.take(path)
        entries = tmp_path / "list"
        entries.write_text("MRN77\n")
        found = _filled(tmp_path, archive)
        code, counts, _ = command(found, protocol, "--patients", entries, "--out", out)
        assert code == 3 and not counts["complete"] and counts["fetched"] < 8
        if protocol == "web":
            assert counts["found"] == 8 and counts["failed"] == {"not_listed": 8 - counts["fetched"]}
        else:  # here Orthanc says that it cut
            assert counts["questions_failed"] == {"failed": 1}
    with archives.orthanc(place) as archive:
        code, counts, _ = command(_filled(tmp_path, archive), protocol, "--patients", entries, "--out", out)
        assert code == 0 and counts["complete"] and len(pulled(out)) == 8


def test_wrong_password_or_title_is_one_line(orthanc: Orthanc, tmp_path: Path) -> None:
    (tmp_path / "login").write_text("reader:guess")
    code, _, console = command(orthanc, "web", *ALL, "--out", tmp_path / "a", "--login-file", tmp_path / "login")
    assert code == 1
    assert "check --login-file" in console and "Traceback" not in console and "guess" not in console
    wrong = replace(orthanc, dimse=orthanc.dimse.replace("TESTPACS", "OTHER"))
    code, _, console = command(wrong, "dimse", *ALL, "--out", tmp_path / "b")
    assert code == 1
    assert "AE title" in console and "Traceback" not in console


def test_an_image_too_large_is_refused_once(orthanc: Orthanc, tmp_path: Path) -> None:
    # Sizes on the command line are in MiB: the limit is lowered beneath it.
    for archive in (
        WebArchive(orthanc.web, login=LOGIN),
        DimseArchive("127.0.0.1", int(orthanc.dimse.rpartition(":")[2]), called="TESTPACS", calling="FEDWARD"),
    ):
        out = tmp_path / type(archive).__name__
        selection = Selection(since=date(2021, 1, 4), until=date(2021, 3, 5))
        sizes = []
        for _ in range(2):
            counts = Counts()
            with Folder(path=out) as folder:
                pull(archive, selection, folder, pace=Pace(rate=900), counts=counts, limit=8000)
            sizes.append((counts.fetched, counts.present, counts.refused[Fault.TOO_LARGE]))
        archive.close()
        (fetched, _, refused), second = sizes
        assert fetched > 0 and refused > 0 and fetched + refused == len(orthanc.images)
        assert second == (0, fetched, refused)
        assert all(path.stat().st_size <= 8000 for path in pulled(out).values())
