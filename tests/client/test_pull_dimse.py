"""Pulling from DIMSE archives that are well, broken or hostile: fakes on loopback."""

import gc
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pull_cases import IMAGE, NAME, SERIES, SOPS, STUDY, files, image, pulled
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, build_context, evt

from client.pull import run
from client.pull.archive import Fault
from client.pull.dimse import DimseArchive, Find, Get, read_address
from client.pull.web import WebArchive
from common.errors import DataError, RunError


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


@pytest.mark.parametrize("listed", [3, 0])
def test_images_that_the_archive_counts_and_does_not_list_are_failed(peer: Peer, tmp_path: Path, listed: int) -> None:
    peer.sops = SOPS[:listed]
    counts = pulled(dimse(peer.port), tmp_path / "out")
    assert (counts.found, counts.fetched, counts.complete) == (5, listed, False)
    assert counts.failed == {Fault.NOT_LISTED: 5 - listed}
    peer.sops = SOPS
    counts = pulled(dimse(peer.port), tmp_path / "out")
    assert (counts.present, counts.fetched, counts.complete) == (listed, 5 - listed, True)


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
def test_an_archive_that_is_not_there_ends_the_run_at_once(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        for archive in (dimse(port), WebArchive(f"http://127.0.0.1:{port}/dicom-web")):
            started = time.monotonic()
            with pytest.raises(RunError, match=f"127.0.0.1:{port}: no connection"):
                pulled(archive, tmp_path / type(archive).__name__)
            assert time.monotonic() - started < 2
        gc.collect()


def test_addresses() -> None:
    assert read_address("dicom://MY PACS@pacs.example:104") == ("MY PACS", "pacs.example", 104)
    assert read_address("dicom://A@[::1]:104") == ("A", "::1", 104)
    assert read_address("https://pacs.example") is None
    for wrong in ("dicom://pacs:104", "dicom://A@pacs", "dicom://A@pacs:0", "dicom://A@:104", "dicom://A@b:x"):
        with pytest.raises(DataError):
            read_address(wrong)
