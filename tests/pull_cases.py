"""Images that a fake archive has, pulling without waiting, and a fake DICOMweb archive on loopback."""

import io
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom.sop_class import CTImageStorage  # type: ignore[attr-defined]

from client.pull.archive import Archive, Fault, Instance
from client.pull.folder import Folder
from client.pull.pace import Pace
from client.pull.run import Counts, pull
from client.pull.selection import Selection

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
