"""A real Orthanc on loopback, for tests that need an archive: its own folder, free ports, gone at the end."""

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

BINARY = shutil.which("Orthanc")
PLUGIN = next(
    (
        plugin
        for folder in map(Path, ("/usr/share/orthanc/plugins", "/usr/lib/orthanc"))
        for plugin in folder.glob("libOrthancDicomWeb.so*")
    ),
    None,
)
needs_orthanc = [
    pytest.mark.e2e,
    pytest.mark.skipif(BINARY is None, reason="Orthanc is not installed: apt-get install orthanc"),
    pytest.mark.skipif(PLUGIN is None, reason="its DICOMweb plugin is not: apt-get install orthanc-dicomweb"),
]
LOGIN = ("reader", "a very secret word")
TITLE = "TESTPACS"


@dataclass(frozen=True, kw_only=True)
class Orthanc:
    """A running archive that wants a password and its own title."""

    base: str
    dicom_port: int
    login_file: Path

    @property
    def web(self) -> str:
        return f"{self.base}/dicom-web"

    @property
    def dimse(self) -> str:
        return f"dicom://{TITLE}@127.0.0.1:{self.dicom_port}"

    def take(self, path: Path) -> dict[str, Any]:
        """Have it take a file in by its own interface; what it says of it."""
        answer = requests.post(f"{self.base}/instances", path.read_bytes(), auth=LOGIN, timeout=30)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def get(self, place: str) -> requests.Response:
        """What its own interface has at a place."""
        answer = requests.get(f"{self.base}/{place}", auth=LOGIN, timeout=30)
        answer.raise_for_status()
        return answer


@contextmanager
def orthanc(folder: Path, **settings: Any) -> Iterator[Orthanc]:
    """An empty archive in a folder; `settings` are Orthanc's own."""
    folder.mkdir(parents=True, exist_ok=True)
    http, dicom = _free_port(), _free_port()
    values = {
        "Name": "TEST",
        "StorageDirectory": str(folder / "store"),
        "IndexDirectory": str(folder / "store"),
        "Plugins": [str(PLUGIN)],
        "HttpPort": http,
        "DicomPort": dicom,
        "DicomAet": TITLE,
        "DicomCheckCalledAet": True,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowStore": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {LOGIN[0]: LOGIN[1]},
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        **settings,
    }
    (folder / "orthanc.json").write_text(json.dumps(values))
    login = folder / "login"
    login.write_text(":".join(LOGIN) + "\n")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([str(BINARY), str(folder / "orthanc.json")], stdout=log, stderr=log)
    found = Orthanc(base=f"http://127.0.0.1:{http}", dicom_port=dicom, login_file=login)
    try:
        for _ in range(300):
            with contextlib.suppress(requests.ConnectionError):
                found.get("system")
                break
            time.sleep(0.1)
        else:
            pytest.fail((folder / "log").read_text(errors="replace")[-2000:])
        yield found
    finally:
        process.terminate()
        process.wait(30)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
