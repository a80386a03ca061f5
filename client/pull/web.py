"""DICOMweb: questions by dicomweb-client (QIDO-RS), images piece by piece (WADO-RS, STOW-RS: DICOM PS3.18 10.4, 10.5).

dicomweb-client parses a whole image in memory and would write it anew; images are therefore fetched and stored beside
it, through the same session, as they are.
"""

import io
import json
import logging
import secrets
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from dicomweb_client.api import DICOMwebClient
from pydicom.datadict import tag_for_keyword
from requests.auth import AuthBase, HTTPBasicAuth
from urllib3.exceptions import HTTPError, NewConnectionError, ReadTimeoutError

from client.pull.archive import (
    ANSWERS_LIMIT,
    TEXT_LIMIT,
    Answer,
    Fault,
    Instance,
    Level,
    Missing,
    Unreached,
    distinct,
    identity,
    uid_of,
)
from client.pull.multipart import Parcel, boundary_of, single_part
from client.pull.pace import Late, within
from common.errors import DataError

# Both write addresses, which hold identifiers, into the log.
for _name in ("dicomweb_client", "urllib3"):
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)

_PAGE = 500  # answers asked for at once
_ANSWER_BYTES = 64 * 2**20  # of one page
_PIECE = 65536
_SEARCHES = {"STUDY": "search_for_studies", "SERIES": "search_for_series", "IMAGE": "search_for_instances"}
_ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'  # as it is stored: PS3.18 8.7.3.5.2


class _Token(AuthBase):
    """A bearer token; set as the session's, so that no ~/.netrc takes its place."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _Session(requests.Session):
    """A session whose own certificate authority counts more than REQUESTS_CA_BUNDLE, and that follows nobody.

    A slash in a question stands for itself (RFC 3986, 3.4): Orthanc does not find a patient 17/A under 17%2FA.
    """

    def __init__(self, ca: Path | None) -> None:
        super().__init__()
        self._ca = ca

    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        address, mark, question = str(request.url).partition("?")
        request.url = address + mark + question.replace("%2F", "/")
        return super().prepare_request(request)

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        if super().get_redirect_target(resp) is not None:
            resp.close()
            raise requests.TooManyRedirects
        return None

    def merge_environment_settings(self, *arguments: Any, **named: Any) -> Any:
        settings = super().merge_environment_settings(*arguments, **named)
        return settings if self._ca is None else {**settings, "verify": str(self._ca)}


class WebArchive:
    """An Archive behind a DICOMweb address. HTTPS_PROXY and NO_PROXY are honoured, redirects are not.

    `timeout`: seconds without a byte; `deadline`: seconds for the answers to one question, or one image.
    Raises DataError for an address that can't be used, and for credentials that would go out unencrypted.
    """

    def __init__(
        self,
        address: str,
        *,
        ca: Path | None = None,
        login: tuple[str, str] | None = None,
        token: str | None = None,
        timeout: float = 30,
        deadline: float = 600,
    ) -> None:
        parts = urllib.parse.urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise DataError("the archive's address must be https://HOST/PATH, without ? and #")
        if parts.username is not None or parts.password is not None:
            raise DataError("a password does not belong in an address: use --login-file or FEDWARD_PACS_LOGIN")
        if (login or token) and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise DataError("a password or token is not sent over http://; use https://")
        if ca is not None and not ca.is_file():
            raise DataError(f"{ca}: no such file; --ca is a PEM file of the authority that signed the archive's key")
        self._base = address.rstrip("/")
        self._place = f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
        self._timeout, self._deadline = timeout, deadline
        self._session = _Session(ca)
        self._session.headers["Accept-Encoding"] = "identity"
        self._session.auth = _Token(token) if token else HTTPBasicAuth(*login) if login else None
        try:
            self._client = DICOMwebClient(
                self._base, session=self._session, callback=_bounded, timeout=timeout, permissive_uid=True
            )
        except ValueError:
            raise DataError("the archive's address must be https://HOST/PATH") from None
        self._client.set_http_retry_params(retry=False)

    def find(self, level: Level, keys: Mapping[str, str]) -> list[Answer]:
        """See Archive. Asks for page after page, until one brings nothing new; the deadline is of all together."""
        found: dict[tuple[str, str], Answer] = {}
        end = time.monotonic() + self._deadline
        while True:
            page = distinct(level, self._page(level, keys, offset=len(found), end=end))
            new = {name: answer for answer in page if (name := identity(level, answer)) not in found}
            found |= new
            if not new:
                return list(found.values())
            if len(found) > ANSWERS_LIMIT:
                raise Missing(Fault.MALFORMED)

    def fetch(self, instance: Instance, path: Path, *, limit: int) -> None:
        """See Archive."""
        address = f"{self._base}/studies/{instance.study}/series/{instance.series}/instances/{instance.sop}"
        headers = {"Accept": _ACCEPT}
        with (
            _translated(self._deadline, self._place),
            path.open("wb") as file,
            self._session.get(address, headers=headers, stream=True, timeout=self._timeout) as response,
        ):
            response.raise_for_status()
            written = 0
            for piece in _content(response):
                written += len(piece)
                if written > limit:
                    raise Missing(Fault.TOO_LARGE)
                file.write(piece)

    def store(self, path: Path, instance: Instance) -> None:
        """See Archive. The object goes to its study's address, so that the archive files it nowhere else."""
        parcel = Parcel(path=path, boundary=secrets.token_hex(20))
        headers = {"Accept": "application/dicom+json", "Content-Type": parcel.content_type}
        address = f"{self._base}/studies/{instance.study}"
        with (
            _translated(self._deadline, self._place),
            self._session.post(address, data=parcel, headers=headers, stream=True, timeout=self._timeout) as response,
        ):
            status = response.status_code
            if status in (404, 405, 501):
                raise DataError(f"the archive takes in no objects at this address (HTTP {status}); try its DIMSE")
            if status in (400, 409, 413, 415):
                raise Missing(Fault.TOO_LARGE if status == 413 else Fault.NOT_TAKEN)
            response.raise_for_status()
            taken, refused = _stored(_bounded(response).content)
            if instance.sop in refused or (instance.sop not in taken and status != 200):
                raise Missing(Fault.NOT_TAKEN)

    def close(self) -> None:
        """See Archive."""
        self._session.close()

    def _page(self, level: Level, keys: Mapping[str, str], *, offset: int, end: float) -> list[Answer]:
        study, series = keys.get("StudyInstanceUID", ""), keys.get("SeriesInstanceUID", "")
        above = {"STUDY": (), "SERIES": (study,), "IMAGE": (study, series)}[level]
        search = getattr(self._client, _SEARCHES[level])
        named = {k: v for k, v in keys.items() if not k.endswith("InstanceUID") or (v and level == "STUDY")}
        with _translated(end - time.monotonic(), self._place):
            answers = search(
                *above,
                fields=list(named),
                search_filters={keyword: value for keyword, value in named.items() if value},
                limit=_PAGE,
                offset=offset,
            )
        if not isinstance(answers, list) or len(answers) > ANSWERS_LIMIT:
            raise Missing(Fault.MALFORMED)
        return [
            {k: _value(answer, k) for k in (*keys, uid_of(level))} for answer in answers if isinstance(answer, dict)
        ]


def _bounded(response: requests.Response, *_: Any, **named: Any) -> requests.Response:
    """Reads an answer to its end or its limit, before anyone else does without one."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise Missing(Fault.FAILED)  # not asked for, and small bytes can become very many
    if not named.get("stream"):
        content = response.raw.read(_ANSWER_BYTES + 1)
        response.close()
        if len(content) > _ANSWER_BYTES:
            raise Missing(Fault.TOO_LARGE)
        response.raw = io.BytesIO(content)
    return response


def _stored(answer: bytes) -> tuple[set[str], set[str]]:
    """Objects that a store's answer says were taken, and that were not (PS3.18 10.5.3). Other text says neither."""
    try:
        (found,) = told if isinstance(told := json.loads(answer), list) else [told]
        said = [
            {str(item["00081155"]["Value"][0]) for item in found.get(tag, {}).get("Value", [])}
            for tag in ("00081199", "00081198")
        ]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return set(), set()
    return said[0], said[1]


def _content(response: requests.Response) -> Iterator[bytes]:
    """The DICOM file of an answer. Raises Missing unless the protocol says where it ends."""
    boundary = boundary_of(response.headers.get("Content-Type", ""))
    pieces = response.iter_content(_PIECE)
    if boundary is not None:
        return single_part(pieces, boundary)
    # Some archives send the file bare. Its end is known when its length is, or when it comes in chunks.
    if "Content-Length" not in response.headers and "chunked" not in response.headers.get("Transfer-Encoding", ""):
        raise Missing(Fault.FAILED)
    return pieces


def _value(answer: Mapping[str, Any], keyword: str) -> str:
    """The first value in a DICOM JSON answer (PS3.18 F.2); whatever else stands there is no value."""
    element = answer.get(f"{tag_for_keyword(keyword):08X}")
    values = element.get("Value") if isinstance(element, dict) else None
    first = values[0] if isinstance(values, list) and values else ""
    return str(first)[:TEXT_LIMIT] if isinstance(first, str | int) else ""


@contextmanager
def _translated(seconds: float, place: str) -> Iterator[None]:
    """Within the time, and every failure as what it means here. Texts may quote an address or an answer: they go."""
    try:
        with within(seconds):
            yield
    except (Missing, DataError):
        raise
    except (Late, requests.Timeout, ReadTimeoutError):
        raise Missing(Fault.LATE) from None
    except requests.HTTPError as error:
        status = 0 if error.response is None else error.response.status_code
        if status in (401, 403):
            raise DataError(f"the archive refuses (HTTP {status}); check --login-file or --token-file") from None
        raise Missing(Fault.NOT_THERE if status in (404, 410) else Fault.FAILED) from None
    except requests.TooManyRedirects:
        raise DataError("the archive sends to another address; give that one, if it is the archive's") from None
    except requests.exceptions.SSLError:
        raise DataError("the archive's certificate is not trusted; give its authority with --ca") from None
    except (requests.RequestException, HTTPError) as error:
        if isinstance(getattr(next(iter(error.args), None), "reason", None), NewConnectionError):
            raise Unreached(place) from None
        raise Missing(Fault.BROKE_OFF) from None
    except OSError:  # of the disk: the network's are all above
        raise
    except Exception:
        raise Missing(Fault.FAILED) from None
