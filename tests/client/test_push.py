"""Storing results in archives that are well, broken or hostile: fakes on loopback, over both protocols."""

import email
import io
import json
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import archives
import numpy as np
import pydicom
import pytest
from dicom_cases import SIZE, saved, slice_
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, build_context, evt
from typer.testing import CliRunner

from client.__main__ import app
from client.dicom_objects.maker import Maker
from client.dicom_objects.origins import read_origin
from client.dicom_objects.writing import write_report, write_segmentation
from client.pull import run as asking
from client.pull.archive import Archive, Fault
from client.pull.dimse import DimseArchive, Find
from client.pull.pace import Pace
from client.pull.web import WebArchive
from client.push.journal import Journal
from client.push.results import Refusal, gather
from client.push.run import Counts, push
from common.errors import DataError, FederationError, RunError

MAKER = Maker(
    name="tiny",
    version="0.1.0",
    weights=("ab" * 32,),
    studies=("12" * 32,),
    intended_use="research; not a medical device",
    made=datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC),
)
STUDIES = ("1.2.9.1", "1.2.9.8")
SEG, SR = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.88.33"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """As `predict` leaves them: of two studies a segmentation and a report each, and pictures that are never sent."""
    out = tmp_path / "out"
    for folder in ("segmentations", "reports", "overlays"):
        (out / folder).mkdir(parents=True)
    for number, study in enumerate(STUDIES):
        image = slice_(number, uid=f"1.2.9.3.{number + 1}", patient=f"P{number}")
        image.StudyInstanceUID, image.SeriesInstanceUID = study, f"{study}.2"
        origin = read_origin(saved(image, tmp_path / "in" / f"{number}.dcm"))
        mask = np.zeros((1, 1, *SIZE), np.bool_)
        mask[..., 2:5, 3:7] = True
        name = f"{number:06d}.dcm"
        write_segmentation(out / "segmentations" / name, [origin], [mask], classes=("lesion",), maker=MAKER)
        write_report(out / "reports" / name, [origin], [], maker=MAKER)
    (out / "overlays" / "000001.png").write_bytes(b"picture")
    (out / "prediction.json").write_text("{}")
    return out


class Hospital:
    """What a fake archive holds and how it answers, over either protocol."""

    def __init__(self) -> None:
        self.studies: dict[str, str] = {study: f"P{number}" for number, study in enumerate(STUDIES)}
        self.again: list[tuple[str, str]] = []  # studies under the number of a further patient
        self.kept: dict[str, bytes] = {}  # the data set of each object, as it came
        self.wrong: Callable[[str], int] = lambda sop: 0  # HTTP or DIMSE status instead of taking it
        self.asked = 0
        self.open: Callable[[], Archive]

    def listed(self) -> list[tuple[str, str]]:
        return [*self.studies.items(), *self.again]

    def series(self, study: str) -> list[dict[str, str]]:
        """Of a study, what was kept: UID, modality and description of each object's series."""
        kept = [pydicom.dcmread(io.BytesIO(content)) for content in self.kept.values()]
        names = ("SeriesInstanceUID", "Modality", "SeriesDescription")
        return [{n: str(one[n].value) for n in names} for one in kept if one.StudyInstanceUID == study]

    def keep(self, content: bytes) -> str:
        dataset = pydicom.dcmread(io.BytesIO(content))
        self.kept[str(dataset.SOPInstanceUID)] = content
        return str(dataset.SOPInstanceUID)


@pytest.fixture(params=["web", "dimse"])
def hospital(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hospital]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(asking, "PAUSES", (0.0,))
    found = Hospital()
    served = _web(found) if request.param == "web" else _dimse(found)
    yield from served


def _web(found: Hospital) -> Iterator[Hospital]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked += 1
            if "/series?" in self.path:
                study = self.path.partition("/studies/")[2].partition("/")[0]
                tags = {"SeriesInstanceUID": "0020000E", "Modality": "00080060", "SeriesDescription": "0008103E"}
                rows = found.series(study) if "offset=0" in self.path else []
                self._send(200, [{tags[k]: {"vr": "LO", "Value": [v]} for k, v in row.items()} for row in rows])
                return
            self._send(200, [_json(s, p) for s, p in found.listed() if s in self.path and "offset=0" in self.path])

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            parts: Any = email.message_from_bytes(head + body).get_payload()
            assert len(parts) == 1
            content = parts[0].get_payload(decode=True)
            sop = str(pydicom.dcmread(io.BytesIO(content)).SOPInstanceUID)
            status = found.wrong(sop)
            if status >= 300:
                self._send(status, {})
                return
            assert self.path.endswith("/studies/" + pydicom.dcmread(io.BytesIO(content)).StudyInstanceUID)
            if status != 202:
                found.keep(content)
            listed = {"00081198" if status == 202 else "00081199": {"vr": "SQ", "Value": [_named(sop)]}}
            self._send(status or 200, listed)

        def _send(self, code: int, values: Any) -> None:
            body = json.dumps(values).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    found.open = lambda: WebArchive(f"http://127.0.0.1:{server.server_address[1]}/dicom-web")
    yield found
    server.shutdown()
    thread.join()
    server.socket.close()


def _named(sop: str) -> dict[str, Any]:
    return {"00081155": {"vr": "UI", "Value": [sop]}}


def _json(study: str, patient: str) -> dict[str, Any]:
    return {"0020000D": {"vr": "UI", "Value": [study]}, "00100020": {"vr": "LO", "Value": [patient]}}


def _dimse(found: Hospital) -> Iterator[Hospital]:
    def on_find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        found.asked += 1
        if event.identifier.QueryRetrieveLevel == "SERIES":
            for row in found.series(event.identifier.StudyInstanceUID):
                answer = Dataset()
                answer.QueryRetrieveLevel, answer.StudyInstanceUID = "SERIES", event.identifier.StudyInstanceUID
                for name, value in row.items():
                    setattr(answer, name, value)
                yield 0xFF00, answer
            return
        for study, patient in found.listed():
            if study == event.identifier.StudyInstanceUID:
                answer = Dataset()
                answer.QueryRetrieveLevel, answer.StudyInstanceUID, answer.PatientID = "STUDY", study, patient
                yield 0xFF00, answer

    def on_store(event: evt.Event) -> int:
        request: Any = event.request
        status = found.wrong(str(request.AffectedSOPInstanceUID))
        if status and not 0xB000 <= status < 0xC000:
            return status
        found.keep(event.dataset_path.read_bytes())  # our own settings hold for this side, too
        return status

    entity = AE(ae_title="PACS")
    entity.supported_contexts = [
        build_context(Find),
        *(build_context(kind, "1.2.840.10008.1.2.1") for kind in (SEG, SR)),
    ]
    handlers = [(evt.EVT_C_FIND, on_find), (evt.EVT_C_STORE, on_store)]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)  # type: ignore[arg-type]
    assert server is not None

    stores = {(kind, "1.2.840.10008.1.2.1") for kind in (SEG, SR)}
    found.open = lambda: DimseArchive(
        "127.0.0.1", server.server_address[1], called="PACS", calling="FEDWARD", timeout=3, deadline=10, stores=stores
    )
    yield found
    entity.shutdown()


def pushed(hospital: Hospital, folder: Path, **named: Any) -> Counts:
    """One push, without waiting. Checks what Counts guarantees."""
    counts = Counts()
    pace = Pace(rate=1000, sleep=lambda _: None)
    found, others = gather(folder)
    assert not others
    with closing(hospital.open()) as archive, Journal(folder=folder, address="test") as journal, suppress(RunError):
        push(archive, found, journal, pace=pace, counts=counts, **named)
    assert counts.found == counts.present + counts.stored + counts.refused.total() + counts.failed.total()
    return counts


def sent(folder: Path) -> dict[str, Path]:
    return {
        str(pydicom.dcmread(path).SOPInstanceUID): path
        for name in ("segmentations", "reports")
        for path in (folder / name).iterdir()
    }


def test_segmentations_and_reports_arrive_as_they_are_and_once(hospital: Hospital, results: Path) -> None:
    counts = pushed(hospital, results)
    assert (counts.found, counts.stored, counts.complete) == (4, 4, True), counts
    files = sent(results)
    assert hospital.kept.keys() == files.keys()
    for sop, content in hospital.kept.items():
        assert pydicom.dcmread(io.BytesIO(content)) == pydicom.dcmread(files[sop])
    assert hospital.asked >= 2
    hospital.kept.clear()
    assert pushed(hospital, results).present == 4 and not hospital.kept
    assert pushed(hospital, results, again=True).stored == 4 and len(hospital.kept) == 4


def predicted_anew(results: Path) -> None:
    """As a second prediction: the same objects under other UIDs, in a folder that nothing was sent of."""
    for path in sent(results).values():
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.SeriesInstanceUID = generate_uid()
        dataset.save_as(path)
    (results / "pushed.jsonl").unlink(missing_ok=True)


def test_no_second_results_are_stored_beside_an_earlier_predictions_unless_asked(
    hospital: Hospital, results: Path
) -> None:
    segmentations = [path for path in sent(results).values() if path.parent.name == "segmentations"]
    pushed(hospital, results)
    (results / "pushed.jsonl").unlink()
    assert pushed(hospital, results).stored == 4  # its own, whatever became of the journal
    predicted_anew(results)
    other = pydicom.dcmread(segmentations[0])
    other.SeriesDescription = "Fedward another, research only"
    other.save_as(segmentations[0])
    counts = pushed(hospital, results)
    assert counts.refused == {Refusal.RESULTS_THERE: 3} and counts.stored == 1 and len(hospital.kept) == 5
    assert pushed(hospital, results, again=True).stored == 4 and len(hospital.kept) == 8
    predicted_anew(results)
    assert pushed(hospital, results, unasked=True).stored == 4


@pytest.mark.e2e
@pytest.mark.skipif(archives.BINARY is None, reason="Orthanc is not installed: apt-get install orthanc")
@pytest.mark.skipif(archives.PLUGIN is None, reason="its DICOMweb plugin is not: apt-get install orthanc-dicomweb")
@pytest.mark.parametrize("protocol", ["web", "dimse"])
def test_orthanc_says_that_an_earlier_predictions_results_are_there(
    protocol: str, results: Path, tmp_path: Path
) -> None:
    with archives.orthanc(tmp_path / "archive", DicomAlwaysAllowStore=True) as archive:
        for path in (tmp_path / "in").iterdir():
            archive.take(path)
        place = [archive.dimse] if protocol == "dimse" else [archive.web, "--login-file", archive.login_file]
        assert command(*place, results, "--json")[0] == 0
        predicted_anew(results)
        code, text = command(*place, results, "--json")
        assert code == 3 and json.loads(text)["refused"] == {"results_there": 4}
        code, text = command(*place, results)
        assert code == 3 and "an earlier prediction's results" in " ".join(text.split())
        assert command(*place, results, "--again")[0] == 0
        assert len(archive.get("series").json()) == 10  # two of images, eight of results


def test_no_object_starts_a_study_or_goes_to_another_patient(hospital: Hospital, results: Path) -> None:
    hospital.studies = {STUDIES[0]: "SOMEBODY"}
    counts = pushed(hospital, results)
    assert counts.refused == {Refusal.OTHER_PATIENT: 2, Refusal.NO_STUDY: 2} and not hospital.kept
    assert pushed(hospital, results, unasked=True).stored == 4


def test_nothing_goes_to_a_study_that_the_archive_has_under_two_patients(hospital: Hospital, results: Path) -> None:
    hospital.again = [(STUDIES[0], "SOMEBODY")]
    counts = pushed(hospital, results)
    assert counts.refused == {Refusal.TWO_PATIENTS: 2} and counts.stored == 2
    assert {pydicom.dcmread(io.BytesIO(one)).PatientID for one in hospital.kept.values()} == {"P1"}


@pytest.mark.parametrize(
    ("web", "dimse", "refused", "failed"),
    [
        (409, 0xA900, {Fault.NOT_TAKEN: 1}, {}),
        (202, 0xC000, {Fault.NOT_TAKEN: 1}, {}),
        (503, 0xA700, {}, {Fault.FAILED: 1}),
        (200, 0xB000, {}, {}),
        (200, 0x0111, {}, {}),
    ],
)
def test_what_an_archive_does_not_take_is_counted_and_the_others_go(
    hospital: Hospital, results: Path, web: int, dimse: int, refused: dict[Fault, int], failed: dict[Fault, int]
) -> None:
    chosen = sorted(sent(results))[0]
    status = web if isinstance(hospital.open(), WebArchive) else dimse
    hospital.wrong = lambda sop: status if sop == chosen else 0
    counts = pushed(hospital, results)
    assert (counts.refused, counts.failed) == (refused, failed)
    assert counts.stored == 4 - sum((*refused.values(), *failed.values()))
    hospital.wrong = lambda sop: 0
    assert pushed(hospital, results).stored == 4 - counts.stored


def test_an_archive_that_takes_nothing_in_ends_the_run_in_one_line(hospital: Hospital, results: Path) -> None:
    status = 405 if isinstance(hospital.open(), WebArchive) else 0x0124
    hospital.wrong = lambda sop: status
    with pytest.raises(DataError) as caught:
        pushed(hospital, results)
    assert "\n" not in str(caught.value) and not hospital.kept


def test_only_what_fedward_wrote_is_ever_sent(results: Path, tmp_path: Path) -> None:
    foreign = pydicom.dcmread(next((results / "reports").iterdir()))
    foreign.Manufacturer = "Another"
    foreign.save_as(results / "reports" / "foreign.dcm")
    saved(slice_(0), results / "segmentations" / "image.dcm")
    (results / "reports" / "text.dcm").write_text("no DICOM at all")
    found, others = gather(results)
    assert len(found) == 4 and others == {Refusal.NOT_OURS: 3}
    (results / "prediction.json").unlink()
    with pytest.raises(DataError, match="finished"):
        gather(results)
    with pytest.raises(DataError):
        gather(tmp_path / "in")


def test_a_journal_is_its_owners_alone_and_a_torn_line_costs_nothing(results: Path) -> None:
    with Journal(folder=results, address="a") as journal:
        journal.note("1.2.3")
        with pytest.raises(DataError, match="another push"), Journal(folder=results, address="a"):
            pass
    path = results / "pushed.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text(path.read_text() + '{"archive": "a", "sto')
    with Journal(folder=results, address="a") as journal:
        assert journal.taken == {"1.2.3"}
        journal.note("1.2.4")
    with Journal(folder=results, address="a") as journal:
        assert journal.taken == {"1.2.3", "1.2.4"}
    with Journal(folder=results, address="another") as journal:
        assert not journal.taken


def command(*words: str | Path) -> tuple[int, str]:
    """Exit code and all that is printed."""
    found = CliRunner().invoke(app, ["push", *map(str, words), "--rate", "1000"])
    assert found.exception is None or isinstance(found.exception, SystemExit | FederationError), found.exception
    error = str(found.exception) if isinstance(found.exception, FederationError) else ""
    return found.exit_code, found.output + error


@pytest.mark.parametrize("hospital", ["web"], indirect=True)
def test_the_exit_code_says_how_it_ended_and_no_identifier_is_printed(hospital: Hospital, results: Path) -> None:
    address = hospital.open()._base  # type: ignore[attr-defined]
    code, text = command(address, results, "--list")
    assert code == 0 and "would be stored" in text and not hospital.kept and not hospital.asked
    said = text
    hospital.studies.pop(STUDIES[1])
    code, text = command(address, results, "--json")
    assert code == 3 and json.loads(text)["refused"] == {"no_study": 2} and json.loads(text)["complete"] is False
    said += text
    hospital.studies[STUDIES[1]] = "P1"
    code, text = command(address, results)
    assert code == 0 and "there already" in text
    said += text
    for folder in ("segmentations", "reports"):
        for path in (results / folder).iterdir():
            path.unlink()
    assert command(address, results)[0] == 4
    assert command(address.replace("dicom-web", "x"), results / "overlays")[0] == 1
    assert not any(name in said for name in (*STUDIES, "P0", "A^B", *hospital.kept))
