"""Pulling from archives that are well, broken or hostile: fakes on loopback, and the parts by themselves."""

import gc
import io
import json
import logging
import re
import signal
import socket
import ssl
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import date, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import CTImageStorage  # type: ignore[attr-defined]
from small import full_disk
from typer.testing import CliRunner

from client.__main__ import app
from client.pull import run
from client.pull.archive import Archive, Fault, Instance, Missing, is_uid
from client.pull.dimse import DimseArchive, Find, Get, read_address
from client.pull.folder import Folder
from client.pull.line import Line
from client.pull.multipart import boundary_of, single_part
from client.pull.pace import Late, Pace, is_open, read_hours, within
from client.pull.run import Counts, pull, survey
from client.pull.selection import Selection, matches, read_entries
from client.pull.web import WebArchive
from common.errors import DataError, FederationError, RunError

STUDY, SERIES = "1.2.3", "1.2.3.4"
SOPS = [f"1.2.3.4.{n}" for n in range(1, 6)]
DAY = Selection(since=date(2024, 5, 1), until=date(2024, 5, 1))
NAME = "Secret^Name"
IMAGE = str(CTImageStorage)


def image(sop: str = SOPS[0], *, study: str = STUDY, series: str = SERIES, size: int = 512) -> bytes:
    """A DICOM file."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = IMAGE
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = sop
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
    dataset.PatientName, dataset.PatientID, dataset.Modality = NAME, "MRN77", "CT"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.PixelRepresentation = size // 256, 256, 1, 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.PixelData = bytes(range(256)) * (size // 256)
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def instance(sop: str = SOPS[0]) -> Instance:
    return Instance(study=STUDY, series=SERIES, sop=sop, sop_class=IMAGE)


def at_once(**named: Any) -> Pace:
    return Pace(rate=1000, sleep=lambda _: None, **named)


def pulled(archive: Archive, out: Path, selection: Selection = DAY, **named: Any) -> Counts:
    """One pull, without waiting. Checks what Counts guarantees."""
    counts = Counts()
    with closing(archive), Folder(path=out) as folder:
        pull(archive, selection, folder, pace=at_once(), counts=counts, limit=100_000, **named)
    assert counts.found == counts.present + counts.fetched + counts.refused.total() + counts.failed.total()
    assert not (out / "incoming").exists()
    return counts


def files(out: Path) -> list[str]:
    return sorted(path.stem for path in out.rglob("*") if path.is_file() and path.name != "journal.jsonl")


# The parts


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "../1", "1..2", "1.2/3", "1.2.", ".1", "1.2\n", "1.2\0", "１.２", "1" * 65, "1.2 ", "-1", "1.a"],
)
def test_what_is_no_uid_never_becomes_a_name(text: str) -> None:
    assert not is_uid(text)
    with pytest.raises(Missing):
        Instance(study=STUDY, series=SERIES, sop=text)


def test_uids_are_names() -> None:
    assert is_uid("2.25.329800735698586629295641978511506172918") and is_uid("1.02.3") and is_uid("1")


@given(st.text("ab*?", max_size=7), st.text("abAB", max_size=7))
def test_wildcards_match_as_the_plain_definition(pattern: str, text: str) -> None:
    def plain(p: str, t: str) -> bool:
        if not p:
            return not t
        if p[0] == "*":
            return plain(p[1:], t) or bool(t and plain(p, t[1:]))
        return bool(t) and p[0] in ("?", t[0]) and plain(p[1:], t[1:])

    assert matches(pattern, text) == (pattern == "" or plain(pattern, text.lower()))


def test_no_pattern_is_slow() -> None:
    started = time.monotonic()
    assert not matches("*a" * 32, "a" * 31 + "b" * 10_000)
    assert time.monotonic() - started < 1


def test_questions_are_asked_day_by_day_and_lists_entry_by_entry() -> None:
    days = list(Selection(since=date(2024, 2, 28), until=date(2024, 3, 1), modalities=frozenset({"CT"})).questions())
    assert [one["StudyDate"] for one in days] == ["20240228", "20240229", "20240301"]
    assert {one["ModalitiesInStudy"] for one in days} == {"CT"}
    named = list(Selection(entries=("a", "b"), key="AccessionNumber").questions())
    assert [one["AccessionNumber"] for one in named] == ["a", "b"]


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"since": date(2024, 1, 2), "until": date(2024, 1, 1)},
        {"since": date(2024, 1, 2)},
        {"entries": ("1",), "modalities": frozenset({"C*"})},
        {"entries": ("1",), "study_description": "a\\b"},
    ],
)
def test_a_selection_that_makes_no_sense_is_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        Selection(**wrong)


@pytest.mark.parametrize(
    "text", ["MRN1\nMR*\n", "MRN1\nM?\n", "MRN1\na\\b\n", "MRN1\n" + "x" * 65, "\n\n", "MRN1\na\x07b"]
)
def test_a_list_with_wildcards_is_an_error_that_quotes_no_entry(tmp_path: Path, text: str) -> None:
    (tmp_path / "list").write_text(text)
    with pytest.raises(DataError) as error:
        read_entries(tmp_path / "list")
    assert "MRN1" not in str(error.value)


PART = b"\r\n--frontier\r\nContent-Type: application/dicom\r\n\r\nDATA\r\n--front!\r\nMORE\r\n--frontier--\r\n"


@given(st.lists(st.integers(0, len(PART)), max_size=12), st.integers(0, 2))
def test_a_part_comes_whole_however_it_is_cut(cuts: list[int], skipped: int) -> None:
    edges = [skipped - skipped % 2, *sorted(max(cut, 2) for cut in cuts), len(PART)]
    pieces = [PART[a:b] for a, b in pairwise(edges)]
    assert b"".join(single_part(pieces, b"frontier")) == b"DATA\r\n--front!\r\nMORE"


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (PART[:-12], Fault.BROKE_OFF),
        (PART[:60], Fault.BROKE_OFF),
        (b"", Fault.BROKE_OFF),
        (b"x" * 200_000, Fault.MALFORMED),
        (PART.replace(b"\r\n\r\nDATA", b"\r\nDATA" + b"h" * 200_000), Fault.MALFORMED),
        (PART.replace(b"frontier--", b"frontier\r\n\r\nsecond\r\n--frontier--"), Fault.MALFORMED),
        (PART.replace(b"--frontier\r\nC", b"--frontierX\r\nC"), Fault.MALFORMED),
    ],
)
def test_a_malformed_answer_is_missing(body: bytes, fault: Fault) -> None:
    with pytest.raises(Missing) as error:
        list(single_part([body[k : k + 65536] for k in range(0, len(body), 65536)], b"frontier"))
    assert error.value.fault == fault


@pytest.mark.parametrize(
    "text", ["", "text/html", "multipart/related", "multipart/related; boundary=", "multipart/mixed; boundary=a"]
)
def test_other_types_of_answers_are_failures_that_may_pass(text: str) -> None:
    with pytest.raises(Missing) as error:
        boundary_of(text)
    assert error.value.fault == Fault.FAILED
    assert boundary_of('Multipart/Related; type="application/dicom"; boundary="a b"') == b"a b"


def test_the_pace_is_kept() -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    pace = Pace(rate=4, clock=lambda: now[0], sleep=sleep)
    times = []
    for _ in range(9):
        pace.wait()
        times.append(now[0])
    assert [b - a for a, b in pairwise(times)] == pytest.approx([0.25] * 8)


def test_outside_the_hours_it_waits() -> None:
    clock, told = [datetime(2024, 1, 1, 17, 59)] * 3 + [datetime(2024, 1, 1, 19, 0)], []
    slept: list[float] = []
    Pace(rate=1, hours=(19, 6), sleep=slept.append, now=lambda: clock.pop(0), on_wait=told.append).wait()
    assert slept == [20, 20, 20] and told == [(19, 6)]
    assert [is_open((19, 6), datetime(2024, 1, 1, hour)) for hour in (18, 19, 23, 0, 5, 6)] == [0, 1, 1, 1, 1, 0]
    assert [is_open((8, 17), datetime(2024, 1, 1, hour)) for hour in (7, 8, 16, 17)] == [0, 1, 1, 0]
    assert read_hours("19-24") == (19, 0)
    for wrong in ("19", "19-25", "7-7", "a-b", "-1-5"):
        with pytest.raises(DataError):
            read_hours(wrong)


def test_nothing_takes_longer_than_within() -> None:
    started = time.monotonic()
    before = signal.getsignal(signal.SIGALRM)
    near, far = socket.socketpair()
    with near, far, pytest.raises(Late), within(0.2):
        near.recv(1)
    assert 0.1 < time.monotonic() - started < 2
    assert signal.getsignal(signal.SIGALRM) == before


def test_a_line_ends_with_its_bytes_and_its_time() -> None:
    now = [0.0]
    near, far = socket.socketpair()
    with near, far:
        line = Line(near, timeout=1, clock=lambda: now[0])
        line.allow(seconds=10, size=5)
        far.sendall(b"12345678")
        assert (line.recv(100), line.recv(100), line.used_up) == (b"12345", b"", True)
        line.allow(seconds=10, size=100)
        now[0] = 11
        assert (line.recv(100), line.used_up) == (b"", False)
        line.allow(seconds=10, size=100)
        assert line.recv(100) == b"678"
        with pytest.raises(TimeoutError):
            line.recv(1)


# The folder


def test_the_folder_is_its_owners_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o755)
    with Folder(path=tmp_path / "out") as folder:
        (folder.incoming / "image").write_bytes(b"x")
        folder.keep(folder.incoming / "image", instance())
    for path in [tmp_path / "out", *(tmp_path / "out").rglob("*")]:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077 or path.name.endswith(".dcm")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700


def test_a_folder_of_other_things_or_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(DataError, match="not empty"), Folder(path=tmp_path):
        pass
    with (
        Folder(path=tmp_path / "out"),
        pytest.raises(DataError, match="another pull"),
        Folder(path=tmp_path / "out"),
    ):
        pass


@pytest.mark.parametrize(
    "torn", [b'{"complete": "1.2.3/1.2.3.4", "ima', b"\xff\xfe", b"[]\n{}\n7\nnull\n", b'{"refused": "../../x/y"}\n']
)
def test_a_torn_journal_costs_questions_only(tmp_path: Path, torn: bytes) -> None:
    with Folder(path=tmp_path / "out") as folder:
        folder.finish(f"{STUDY}/{SERIES}", 1)
        folder.refuse(instance(), Fault.TOO_LARGE)
    with (tmp_path / "out" / "journal.jsonl").open("ab") as file:
        file.write(torn)
    with Folder(path=tmp_path / "out") as folder:
        assert folder.complete == {f"{STUDY}/{SERIES}": 1}
        assert folder.refused == {f"{STUDY}/{SERIES}": {SOPS[0]: Fault.TOO_LARGE}}
        folder.finish("1.9/1.9.1", 3)
    with Folder(path=tmp_path / "out") as folder:
        assert folder.complete["1.9/1.9.1"] == 3


# A fake DICOMweb archive


class Web:
    """What a fake DICOMweb archive has, does and was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.headers: list[Any] = []
        self.sops = list(SOPS)
        self.study: dict[str, Any] = {
            "00080020": "20240501",
            "0020000D": STUDY,
            "00081030": "CT Chest",
            "00100020": "P1",
        }
        self.series: dict[str, Any] = {"0020000E": SERIES, "00080060": "CT", "0008103E": "axial", "00201209": 5}
        self.fetch: Callable[[BaseHTTPRequestHandler, str], None] = lambda handler, sop: part(handler, image(sop))
        self.search: Callable[[BaseHTTPRequestHandler], bool] = lambda handler: False
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        self.asked.append(handler.path)
        self.headers.append(handler.headers)
        steps = parts.path.partition("/dicom-web/")[2].split("/")
        if len(steps) == 6:
            self.fetch(handler, steps[5])
        elif not self.search(handler):
            offset = int(parse_qs(parts.query).get("offset", ["0"])[0])
            rows = {1: [self.study], 3: [self.series], 5: [{"00080018": s, "00080016": IMAGE} for s in self.sops]}
            found = [{tag: {"vr": "LO", "Value": [v]} for tag, v in row.items()} for row in rows[len(steps)][offset:]]
            send(handler, json.dumps(found).encode(), "application/dicom+json")


def send(handler: BaseHTTPRequestHandler, body: bytes, kind: str, *, code: int = 200, **headers: str) -> None:
    handler.send_response(code)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def part(handler: BaseHTTPRequestHandler, content: bytes, *, end: bytes = b"\r\n--b--\r\n") -> None:
    body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + content + end
    send(handler, body, 'multipart/related; type="application/dicom"; boundary=b')


def endless(handler: BaseHTTPRequestHandler, piece: bytes, pause: float = 0.0) -> None:
    """Sends until the other side is gone."""
    handler.send_response(200)
    handler.send_header("Content-Type", "multipart/related; boundary=b")
    handler.end_headers()
    with suppress(OSError):
        handler.wfile.write(b"--b\r\n\r\n")
        while True:
            handler.wfile.write(piece)
            time.sleep(pause)


@contextmanager
def served(web: Web, context: ssl.SSLContext | None = None) -> Iterator[Web]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(OSError):
                web.answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    web.url = f"http{'s' if context else ''}://127.0.0.1:{server.server_address[1]}/dicom-web"
    try:
        yield web
    finally:
        server.shutdown()
        thread.join()
        server.socket.close()


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with served(Web()) as found:
        yield found


def test_what_dicomweb_has_is_fetched_whole_and_once(web: Web, tmp_path: Path) -> None:
    archive = WebArchive(web.url)
    counts = pulled(archive, tmp_path / "out")
    assert (counts.studies, counts.series, counts.found, counts.fetched, counts.complete) == (1, 1, 5, 5, True)
    for sop in SOPS:
        assert (tmp_path / "out/images" / STUDY / SERIES / f"{sop}.dcm").read_bytes() == image(sop)
    web.asked.clear()
    assert pulled(archive, tmp_path / "out").present == 5
    assert not [path for path in web.asked if "/instances" in path]
    archive.close()


def test_a_series_that_grew_or_lost_files_is_asked_for_what_is_missing(web: Web, tmp_path: Path) -> None:
    archive = WebArchive(web.url)
    web.sops, web.series["00201209"] = SOPS[:3], 3
    assert pulled(archive, tmp_path / "out").fetched == 3
    web.sops, web.series["00201209"] = SOPS, 5
    (tmp_path / "out/images" / STUDY / SERIES / f"{SOPS[0]}.dcm").unlink()
    web.asked.clear()
    counts = pulled(archive, tmp_path / "out")
    assert (counts.present, counts.fetched) == (2, 3)
    assert [p.rpartition("/")[2] for p in web.asked if "/instances/" in p] == [SOPS[0], *SOPS[3:]]


FETCHES: dict[str, tuple[Callable[[BaseHTTPRequestHandler, str], None], Fault]] = {
    "another image": (lambda h, s: part(h, image("1.9.9")), Fault.WRONG_UID),
    "of another study": (lambda h, s: part(h, image(s, study="1.7")), Fault.WRONG_UID),
    "no DICOM": (lambda h, s: part(h, b"\x89PNG" * 99), Fault.MALFORMED),
    "empty": (lambda h, s: part(h, b""), Fault.MALFORMED),
    "damaged header": (lambda h, s: part(h, image(s)[:132] + b"\xff" * 400), Fault.WRONG_UID),
    "no end": (lambda h, s: part(h, image(s), end=b""), Fault.BROKE_OFF),
    "two parts": (lambda h, s: part(h, image(s), end=b"\r\n--b\r\n\r\nX\r\n--b--"), Fault.MALFORMED),
    "too large": (lambda h, s: part(h, image(s, size=200_192)), Fault.TOO_LARGE),
    "endless": (lambda h, s: endless(h, bytes(65536)), Fault.TOO_LARGE),
    "a login page": (lambda h, s: send(h, b"<html>", "text/html"), Fault.FAILED),
    "gone": (lambda h, s: send(h, b"", "text/plain", code=404), Fault.NOT_THERE),
    "an error": (lambda h, s: send(h, NAME.encode(), "text/plain", code=500), Fault.FAILED),
    "compressed": (lambda h, s: send(h, b"x", "application/dicom", Content_Encoding="gzip"), Fault.FAILED),
    "hangs up": (lambda h, s: h.connection.shutdown(socket.SHUT_RDWR), Fault.BROKE_OFF),
}


@pytest.mark.parametrize("name", FETCHES)
def test_a_broken_image_is_counted_and_the_others_come(web: Web, tmp_path: Path, name: str) -> None:
    broken, fault = FETCHES[name]
    web.fetch = lambda h, sop: broken(h, sop) if sop == SOPS[2] else part(h, image(sop))
    counts = pulled(WebArchive(web.url, timeout=5, deadline=20), tmp_path / "out")
    assert counts.fetched == 4 and not counts.complete
    assert counts.refused + counts.failed == {fault: 1}
    assert bool(counts.refused) == fault.lasting
    assert files(tmp_path / "out") == sorted(set(SOPS) - {SOPS[2]})
    web.fetch = lambda h, sop: part(h, image(sop))
    web.asked.clear()
    second = pulled(WebArchive(web.url), tmp_path / "out", again=fault.lasting)
    assert (second.present, second.fetched, second.complete) == (4, 1, True)
    assert pulled(WebArchive(web.url), tmp_path / "out").present == 5


def test_a_byte_now_and_then_ends_at_the_deadline(web: Web, tmp_path: Path) -> None:
    web.sops = SOPS[:1]
    web.fetch = lambda h, sop: endless(h, b"x", 0.05)
    started = time.monotonic()
    with closing(WebArchive(web.url, timeout=5, deadline=0.4)) as archive, pytest.raises(Missing) as error:
        archive.fetch(instance(), tmp_path / "x", limit=1000)
    assert error.value.fault in (Fault.LATE, Fault.BROKE_OFF)
    assert time.monotonic() - started < 4


def slow_header(handler: BaseHTTPRequestHandler) -> bool:
    with suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        for _ in range(200):
            handler.wfile.write(b"x")
            time.sleep(0.05)
    return True


def huge(handler: BaseHTTPRequestHandler) -> bool:
    endless(handler, b"[" * 2**20)
    return True


def deep(handler: BaseHTTPRequestHandler) -> bool:
    send(handler, b"[" * 200_000, "application/dicom+json")
    return True


def answering(body: bytes) -> Callable[[BaseHTTPRequestHandler], bool]:
    def search(handler: BaseHTTPRequestHandler) -> bool:
        send(handler, body, "application/dicom+json")
        return True

    return search


@pytest.mark.parametrize("search", [slow_header, huge, deep, *map(answering, (b"{", b"7", b'"x"', b"\xff", b"<html>"))])
def test_a_hostile_answer_is_a_question_that_failed(
    web: Web, tmp_path: Path, search: Callable[[BaseHTTPRequestHandler], bool]
) -> None:
    web.search = search
    counts = pulled(WebArchive(web.url, timeout=5, deadline=0.8), tmp_path / "out")
    assert counts.found == 0 and counts.questions_failed.total() == 1 and not counts.complete


@pytest.mark.parametrize(
    "row",
    [
        {"0020000D": {"Value": ["../../etc"]}},
        {"0020000D": {"Value": [{"a": 1}]}},
        {"0020000D": {"Value": []}},
        {"0020000D": "1.2.3"},
        {},
    ],
)
def test_an_answer_without_a_uid_is_not_followed(web: Web, tmp_path: Path, row: dict[str, Any]) -> None:
    web.search = answering(json.dumps([row, None, 7, "x"]).encode())
    assert pulled(WebArchive(web.url), tmp_path / "out").found == 0
    assert all("/studies?" in path for path in web.asked)


def test_an_archive_that_ignores_pages_keys_or_repeats_itself_is_not_believed(web: Web, tmp_path: Path) -> None:
    web.sops = [SOPS[0], SOPS[0], "../x", SOPS[1]]
    plain = Web.answer

    def ignoring(handler: BaseHTTPRequestHandler) -> None:
        handler.path = re.sub("offset=[0-9]+", "offset=0", handler.path)
        plain(web, handler)

    web.answer = ignoring  # type: ignore[method-assign]
    assert pulled(WebArchive(web.url), tmp_path / "out").found == 2
    other = Selection(since=date(2024, 5, 2), until=date(2024, 5, 3))
    assert pulled(WebArchive(web.url), tmp_path / "other", other).unmatched == 2
    for entry, unmatched in (("P1", 0), ("P2", 1)):
        counts = pulled(WebArchive(web.url), tmp_path / entry, Selection(entries=(entry,)))
        assert (counts.unmatched, counts.fetched) == (unmatched, 2 - 2 * unmatched)
    for wanted, found in (
        ({"modalities": {"MR"}}, 0),
        ({"study_description": "ct*"}, 2),
        ({"series_description": "x"}, 0),
    ):
        named = {k: frozenset(v) if isinstance(v, set) else v for k, v in wanted.items()}
        selection = Selection(entries=("P1",), **named)  # type: ignore[arg-type]
        assert pulled(WebArchive(web.url), tmp_path / next(iter(wanted)), selection).found == found


def test_an_answer_is_read_to_its_limit_only(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.pull.web._ANSWER_BYTES", 4096)
    web.search = answering(b"[" + b" " * 8192 + b"]")
    assert pulled(WebArchive(web.url), tmp_path / "out").questions_failed == {Fault.TOO_LARGE: 1}


def test_pages_without_end_end(web: Web) -> None:
    def more(handler: BaseHTTPRequestHandler) -> bool:
        offset = int(parse_qs(urlsplit(handler.path).query)["offset"][0])
        return answering(json.dumps([{"0020000D": {"Value": [f"1.2.{offset}"]}}]).encode())(handler)

    web.search = more
    started = time.monotonic()
    with closing(WebArchive(web.url, deadline=0.5)) as archive, pytest.raises(Missing) as error:
        archive.find("STUDY", {"StudyInstanceUID": ""})
    assert error.value.fault == Fault.LATE and 0.4 < time.monotonic() - started < 5


def test_a_full_disk_ends_the_run_and_leaves_whole_files(web: Web, tmp_path: Path) -> None:
    web.fetch = lambda h, sop: part(h, image(sop, size=65536 if sop == SOPS[2] else 512))
    with full_disk(10_000), pytest.raises(RunError, match="make room"):
        pulled(WebArchive(web.url), tmp_path / "out")
    assert files(tmp_path / "out") == SOPS[:2]
    assert pulled(WebArchive(web.url), tmp_path / "out").fetched == 3


def test_an_archive_that_is_down_ends_the_run(web: Web, tmp_path: Path) -> None:
    web.sops = [f"1.2.3.4.{n}" for n in range(40)]
    web.fetch = FETCHES["an error"][0]
    with pytest.raises(RunError, match="10 times in a row"):
        pulled(WebArchive(web.url), tmp_path / "out")
    assert len([path for path in web.asked if "/instances/" in path]) == run.IN_A_ROW * 3


def test_credentials_go_to_the_archive_and_nowhere_else(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login other password wrong\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with closing(WebArchive(web.url, token="abc")) as archive:
        archive.find("STUDY", {"StudyInstanceUID": ""})
    assert web.headers[-1]["Authorization"] == "Bearer abc"
    with closing(WebArchive(web.url, login=("u", "p"))) as archive:
        archive.fetch(instance(), tmp_path / "x", limit=10_000)
    assert web.headers[-1]["Authorization"] == "Basic dTpw"
    assert "transfer-syntax=*" in web.headers[-1]["Accept"]
    with pytest.raises(DataError, match="not sent over http"):
        WebArchive("http://pacs.example/dicom-web", token="abc")
    with pytest.raises(DataError, match="does not belong in an address"):
        WebArchive("https://u:p@pacs.example/dicom-web")
    for wrong in ("ftp://x/y", "https://", "pacs", "https://x/y?z=1"):
        with pytest.raises(DataError):
            WebArchive(wrong)


def test_a_redirect_is_not_followed_and_a_refusal_ends_the_run(web: Web, tmp_path: Path) -> None:
    web.fetch = lambda h, s: send(h, b"", "text/plain", code=302, Location="http://127.0.0.1:1/")
    with pytest.raises(DataError, match="another address"):
        pulled(WebArchive(web.url), tmp_path / "a")
    web.fetch = lambda h, s: send(h, b"", "text/plain", code=401)
    with pytest.raises(DataError, match="HTTP 401"):
        pulled(WebArchive(web.url), tmp_path / "b")


def test_proxies_of_the_environment_are_used(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", web.url.removesuffix("/dicom-web"))
    monkeypatch.setenv("http_proxy", web.url.removesuffix("/dicom-web"))
    with closing(WebArchive("http://pacs.invalid/dicom-web")) as archive:
        assert archive.find("STUDY", {"StudyInstanceUID": "", "StudyDate": ""})
    assert web.asked[0].startswith("http://pacs.invalid/dicom-web/studies")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and self-signed certificate for 127.0.0.1, in one file."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=127.0.0.1"
    words += f" -addext subjectAltName=IP:127.0.0.1 -keyout {path}.key -out {path}.crt"
    try:
        subprocess.run(words.split(), check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("openssl is not installed: no certificate to test with")
    path.write_text(Path(f"{path}.key").read_text() + Path(f"{path}.crt").read_text())
    return path


def test_https_trusts_the_authority_that_is_given_and_no_other(
    certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", ssl.get_default_verify_paths().openssl_cafile)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with served(Web(), context) as secure:
        ca = Path(f"{certificate}.crt")
        assert pulled(WebArchive(secure.url, ca=ca, token="abc"), tmp_path / "out").fetched == 5
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
        with pytest.raises(DataError, match="not trusted"):
            pulled(WebArchive(secure.url, token="abc"), tmp_path / "other")


def test_a_survey_counts_and_fetches_nothing(web: Web) -> None:
    with closing(WebArchive(web.url)) as archive:
        found = survey(archive, DAY, pace=at_once())
        assert (found.images, found.series, found.by) == (5, 1, {"CT": {"2024": 5}})
        web.series.pop("00201209")
        assert survey(archive, DAY, pace=at_once()).untold == 1
    assert not [path for path in web.asked if "/instances" in path]


# A fake DIMSE archive


class Peer:
    """What a fake DIMSE archive has and does."""

    def __init__(self) -> None:
        self.sops = list(SOPS)
        self.associations = self.open = self.most_open = 0
        self.gets: list[str] = []
        self.data: Callable[[str], list[bytes]] = lambda sop: [image(sop)]
        self.find: Callable[[], Iterator[tuple[int, Dataset | None]]] | None = None
        self.port = 0

    def on_find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        if self.find is not None:
            yield from self.find()
            return
        level = event.identifier.QueryRetrieveLevel
        for sop in self.sops if level == "IMAGE" else ["1"]:
            found = Dataset()
            found.QueryRetrieveLevel, found.StudyInstanceUID, found.StudyDate = level, STUDY, "20240501"
            if level != "STUDY":
                found.SeriesInstanceUID, found.Modality, found.NumberOfSeriesRelatedInstances = SERIES, "CT", 5
            if level == "IMAGE":
                found.SOPInstanceUID, found.SOPClassUID = sop, IMAGE
            found.PatientName = NAME
            yield 0xFF00, found

    def on_get(self, event: evt.Event) -> Iterator[Any]:
        sop = str(event.identifier.SOPInstanceUID)
        self.gets.append(sop)
        contents = self.data(sop)
        yield len(contents)
        for content in contents:
            yield 0xFF00, pydicom.dcmread(io.BytesIO(content))

    def on_open(self, _: evt.Event) -> None:
        self.associations += 1
        self.open += 1
        self.most_open = max(self.open, self.most_open)

    def on_close(self, _: evt.Event) -> None:
        self.open -= 1


@pytest.fixture
def peer() -> Iterator[Peer]:
    found, entity = Peer(), AE(ae_title="PACS")
    entity.require_called_aet = True
    entity.supported_contexts = [build_context(Find), build_context(Get)]
    entity.add_supported_context(IMAGE, ExplicitVRLittleEndian, scu_role=True, scp_role=True)
    entity.dimse_timeout = entity.network_timeout = entity.acse_timeout = 5
    handlers = [(evt.EVT_C_FIND, found.on_find), (evt.EVT_C_GET, found.on_get)]
    watched = [(evt.EVT_ESTABLISHED, found.on_open), (evt.EVT_CONN_CLOSE, found.on_close)]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[*handlers, *watched])  # type: ignore[list-item]
    assert server is not None
    found.port = server.server_address[1]
    yield found
    entity.shutdown()


def dimse(port: int, *, called: str = "PACS", timeout: float = 3, deadline: float = 10) -> DimseArchive:
    return DimseArchive("127.0.0.1", port, called=called, calling="FEDWARD", timeout=timeout, deadline=deadline)


def test_what_dimse_has_is_fetched_once_over_one_association(peer: Peer, tmp_path: Path) -> None:
    counts = pulled(dimse(peer.port), tmp_path / "out")
    assert (counts.found, counts.fetched, counts.complete) == (5, 5, True)
    assert peer.most_open == 1 and peer.associations == 2  # one to ask, one that takes CT as well
    for sop in SOPS:
        came = pydicom.dcmread(tmp_path / "out/images" / STUDY / SERIES / f"{sop}.dcm")
        assert came.PixelData == pydicom.dcmread(io.BytesIO(image(sop))).PixelData
        assert came.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    peer.gets.clear()
    assert pulled(dimse(peer.port), tmp_path / "out").present == 5 and peer.gets == []


GETS: dict[str, tuple[Callable[[str], list[bytes]], Fault]] = {
    "another image": (lambda sop: [image("1.9.9")], Fault.WRONG_UID),
    "of another study": (lambda sop: [image(sop, study="1.7")], Fault.WRONG_UID),
    "nothing": (lambda sop: [], Fault.NOT_THERE),
    "too large": (lambda sop: [image(sop, size=200_192)], Fault.TOO_LARGE),
    "far too large": (lambda sop: [image(sop, size=4 * 2**20)], Fault.TOO_LARGE),
}


@pytest.mark.parametrize("name", GETS)
def test_a_broken_image_over_dimse_is_counted_and_the_others_come(peer: Peer, tmp_path: Path, name: str) -> None:
    broken, fault = GETS[name]
    peer.data = lambda sop: broken(sop) if sop == SOPS[2] else [image(sop)]
    counts = pulled(dimse(peer.port), tmp_path / "out")
    assert counts.fetched == 4 and counts.refused + counts.failed == {fault: 1}
    assert files(tmp_path / "out") == sorted(set(SOPS) - {SOPS[2]})


def test_an_image_that_comes_twice_is_kept_once(peer: Peer, tmp_path: Path) -> None:
    peer.data = lambda sop: [image(sop), image(sop, size=1024), image("1.9.9")]
    assert pulled(dimse(peer.port), tmp_path / "out").fetched == 5
    assert files(tmp_path / "out") == SOPS
    kept = (tmp_path / "out/images" / STUDY / SERIES / f"{SOPS[0]}.dcm").read_bytes()
    assert pydicom.dcmread(io.BytesIO(kept)).PixelData == bytes(range(256)) * 2


def test_another_image_is_not_taken_for_the_one_that_follows(peer: Peer, tmp_path: Path) -> None:
    peer.data = lambda sop: [image("1.9.9"), image(sop)]
    assert pulled(dimse(peer.port), tmp_path / "out").fetched == 5
    assert files(tmp_path / "out") == SOPS


def test_answers_without_end_end(peer: Peer, tmp_path: Path) -> None:
    def find() -> Iterator[tuple[int, Dataset | None]]:
        number = 0
        while True:
            number += 1
            found = Dataset()
            found.QueryRetrieveLevel, found.StudyInstanceUID, found.StudyDate = "STUDY", f"1.2.{number}", "20240501"
            yield 0xFF00, found

    peer.find = find
    started = time.monotonic()
    counts = pulled(dimse(peer.port, deadline=0.5), tmp_path / "out")
    assert counts.questions_failed.total() == 1 and counts.found == 0
    assert time.monotonic() - started < 20


def test_wrong_titles_end_the_run_in_one_line(peer: Peer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="AE titles"):
        pulled(dimse(peer.port, called="OTHER"), tmp_path / "out")
    with pytest.raises(DataError, match="AE title"):
        dimse(peer.port, called="MUCH TOO LONG A TITLE")


@contextmanager
def talking(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A peer that says what it likes to everyone who connects."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def one(found: socket.socket) -> None:
        with found, suppress(OSError):
            talk(found)
            over.wait(10)

    def serve() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    over.set()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def dripping(found: socket.socket) -> None:
    for byte in b"\x02\x00\x00\x00\x10\x00" + bytes(500):
        found.sendall(bytes([byte]))
        time.sleep(0.05)


def flooding(found: socket.socket) -> None:
    found.sendall(b"\x02\x00\xff\xff\xff\xff")
    while True:
        found.sendall(bytes(65536))


@pytest.mark.parametrize(
    "talk",
    [
        lambda found: None,
        lambda found: found.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        lambda found: found.sendall(b"\x02\x00\x00\x00\x00\x05\x00\x01\xff\xff\xff"),
        lambda found: found.shutdown(socket.SHUT_RDWR),
        dripping,
        flooding,
    ],
)
def test_a_peer_that_does_not_speak_dicom_is_a_question_that_failed(
    talk: Callable[[socket.socket], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run, "PAUSES", ())
    started, threads = time.monotonic(), threading.active_count()
    with talking(talk) as port:
        counts = pulled(dimse(port, timeout=0.5, deadline=0.6), tmp_path / "out")
    assert counts.questions_failed.total() == 1
    assert time.monotonic() - started < 10
    for _ in range(100):
        if threading.active_count() <= threads:
            break
        time.sleep(0.05)
    assert not [t for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()]
    assert "Traceback" not in capfd.readouterr().err


# pynetdicom leaves a socket that did not connect to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_archive_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PAUSES", ())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        for archive in (dimse(port), WebArchive(f"http://127.0.0.1:{port}/dicom-web")):
            assert pulled(archive, tmp_path / type(archive).__name__).questions_failed == {Fault.BROKE_OFF: 1}
        gc.collect()


def test_addresses() -> None:
    assert read_address("dicom://MY PACS@pacs.example:104") == ("MY PACS", "pacs.example", 104)
    assert read_address("dicom://A@[::1]:104") == ("A", "::1", 104)
    assert read_address("https://pacs.example") is None
    for wrong in ("dicom://pacs:104", "dicom://A@pacs", "dicom://A@pacs:0", "dicom://A@:104", "dicom://A@b:x"):
        with pytest.raises(DataError):
            read_address(wrong)


# The command


def command(*words: str | Path) -> tuple[int, str]:
    """Exit code and all that is printed."""
    found = CliRunner().invoke(app, ["pull", *map(str, words), "--rate", "1000"])
    assert found.exception is None or isinstance(found.exception, SystemExit | FederationError), found.exception
    error = str(found.exception) if isinstance(found.exception, FederationError) else ""
    return found.exit_code, found.output + error


MAY = ("--from", "2024-05-01", "--to", "2024-05-01")


def test_the_exit_code_says_how_it_ended_and_no_identifier_is_printed(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run, "PAUSES", (0.0,))
    caplog.set_level(logging.DEBUG)
    (tmp_path / "list").write_text("P1\n")
    out = tmp_path / "out"
    printed = []
    code, text = command(web.url, *MAY, "--out", out)
    assert code == 0 and "fetched" in text and "--out SITE" in text
    printed.append(text)
    code, text = command(web.url, "--patients", tmp_path / "list", "--out", out, "--json")
    assert code == 0 and json.loads(text)["present"] == 5 and json.loads(text)["complete"] is True
    printed.append(text)
    web.sops, web.series["00201209"] = [*SOPS, "1.2.3.4.9"], 6
    web.fetch = FETCHES["an error"][0]
    code, text = command(web.url, *MAY, "--out", out, "--json")
    assert code == 3 and json.loads(text)["failed"] == {"failed": 1} and json.loads(text)["complete"] is False
    printed.append(text)
    web.fetch = FETCHES["another image"][0]
    code, text = command(web.url, *MAY, "--out", out)
    assert code == 3 and "refused: wrong uid" in text
    printed.append(text)
    code, text = command(web.url, *MAY, "--modality", "MR", "--out", tmp_path / "none")
    assert code == 4
    code, text = command(web.url, *MAY, "--list")
    assert code == 0 and "2024" in text and "CT" in text
    printed.append(text)
    code, text = command(web.url, *MAY)
    assert code == 1 and "--out is missing" in text
    everything = "".join(printed) + caplog.text.replace(str(tmp_path), "")
    assert not any(name in everything for name in (NAME, "MRN77", "P1", STUDY, *SOPS))


def test_an_interrupted_run_says_what_it_did(web: Web, tmp_path: Path) -> None:
    def interrupting(handler: BaseHTTPRequestHandler, sop: str) -> None:
        if sop == SOPS[3]:
            signal.raise_signal(signal.SIGINT)
            time.sleep(1)
        part(handler, image(sop))

    web.fetch = interrupting
    code, text = command(web.url, *MAY, "--out", tmp_path / "out", "--json")
    assert code == 130 and json.loads(text)["fetched"] == 3 and json.loads(text)["complete"] is False
    assert files(tmp_path / "out") == SOPS[:3]


def test_a_secret_is_read_from_a_file_or_the_environment(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("t0ken\n")
    assert command(web.url, *MAY, "--list", "--token-file", tmp_path / "token")[0] == 0
    assert web.headers[-1]["Authorization"] == "Bearer t0ken"
    monkeypatch.setenv("FEDWARD_PACS_LOGIN", "u:p:q")
    assert command(web.url, *MAY, "--list")[0] == 0
    assert web.headers[-1]["Authorization"] == "Basic dTpwOnE="
    monkeypatch.setenv("FEDWARD_PACS_LOGIN", "secretword")
    code, text = command(web.url, *MAY, "--list")
    assert code == 1 and "secretword" not in text
