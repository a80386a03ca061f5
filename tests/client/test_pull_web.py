"""Pulling from DICOMweb archives that are well, broken or hostile: fakes on loopback."""

import json
import re
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import date
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from pull_cases import (
    DAY,
    FETCHES,
    SERIES,
    SOPS,
    STUDY,
    Web,
    at_once,
    endless,
    files,
    image,
    instance,
    part,
    pulled,
    send,
    served,
)
from small import full_disk

from client.pull import run
from client.pull.archive import Fault, Missing
from client.pull.run import survey
from client.pull.selection import Selection
from client.pull.web import WebArchive
from common.errors import DataError, RunError


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
    web.sops, web.series["00201209"] = [SOPS[0], SOPS[0], "../x", SOPS[1]], 2
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


@pytest.mark.parametrize(("told", "listed", "unlisted"), [(8, 4, 4), (8, 0, 8), (None, 0, 1), (0, 0, 0), (4, 5, 0)])
def test_images_that_the_archive_counts_and_does_not_list_are_failed(
    web: Web, tmp_path: Path, told: int | None, listed: int, unlisted: int
) -> None:
    web.sops = SOPS[:listed]
    if told is None:
        del web.series["00201209"]
    else:
        web.series["00201209"] = told
    counts = pulled(WebArchive(web.url), tmp_path / "out")
    assert (counts.found, counts.fetched) == (listed + unlisted, listed)
    assert counts.failed == ({Fault.NOT_LISTED: unlisted} if unlisted else {})
    assert counts.complete == (not unlisted)


def test_a_later_run_fetches_what_was_not_listed(web: Web, tmp_path: Path) -> None:
    web.sops = SOPS[:3]
    assert pulled(WebArchive(web.url), tmp_path / "out").failed == {Fault.NOT_LISTED: 2}
    web.sops = SOPS
    counts = pulled(WebArchive(web.url), tmp_path / "out")
    assert (counts.present, counts.fetched, counts.complete) == (3, 2, True)


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


def test_a_slash_in_a_question_stands_for_itself(web: Web) -> None:
    with closing(WebArchive(web.url)) as archive:
        archive.find("STUDY", {"StudyInstanceUID": "", "PatientID": "17/A&limit=1"})
    assert "PatientID=17/A%26limit%3D1" in web.asked[-1] and "%2F" not in web.asked[-1]


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
