"""DIMSE: C-FIND, C-GET and C-STORE, over one association at a time (DICOM PS3.4 C.4.1, C.4.3, B.2).

C-GET brings the image over the association that asked for it, so that no port is opened here; C-MOVE is not used.
"""

import logging
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import UID
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, _config, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext

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
    uid_of,
)
from client.pull.line import Line
from client.pull.pace import Late, within
from common.errors import DataError

# pynetdicom writes queries and answers into its log. They go nowhere.
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
_config.LOG_HANDLER_LEVEL = "none"
_config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False
_config.STORE_RECV_CHUNKED_DATASET = True  # to a file as it comes, not to memory
_config.STORE_SEND_CHUNKED_DATASET = True  # from a file as it is, nothing decoded

Find, Get = UID("1.2.840.10008.5.1.4.1.2.2.1"), UID("1.2.840.10008.5.1.4.1.2.2.3")  # Study Root: PS3.4 C.6.2
_ANSWERS_BYTES = 64 * 2**20  # of one question
_OVERHEAD = 1 << 20  # bytes of an image's messages beside the image
_PENDING_LIMIT = 10_000  # reports of progress on one image
_REJECTED_FOR_GOOD = 1  # PS3.8 9.3.4; 2: for now
_UNLISTED = (
    tuple(  # proposed where the archive does not tell what kind of object an image is: CR, DX, MG, CT, MR, US, …
        f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("1", "1.1", "1.2", "2", "4", "6.1", "7", "12.1", "77.1.4")
    )
)
_COMMON = tuple(
    f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".5", *(f".4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91)))
)
# Status codes: PS3.7 C. A warning after the image arrived speaks of something else.
_PENDING, _REFUSED, _NOT_WANTED, _WARNINGS = 0xFF00, 0xA700, 0xA900, range(0xB000, 0xC000)
_THERE_ALREADY, _NOT_ALLOWED, _NO_ROOM = 0x0111, 0x0124, range(0xA700, 0xA800)


class DimseArchive:
    """An Archive behind an AE title. One association, opened when it is needed and kept until it doesn't fit.

    `timeout`: seconds without a byte; `deadline`: seconds for the answers to one question, or one image.
    `stores`: SOP class and transfer syntax of what will be stored; then nothing can be fetched.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        called: str,
        calling: str,
        max_pdu: int = 65536,
        timeout: float = 30,
        deadline: float = 600,
        stores: Collection[tuple[str, str]] = (),
    ) -> None:
        for title in (called, calling):
            if not 1 <= len(title.strip()) <= 16 or not title.isascii() or not title.isprintable() or "\\" in title:
                raise DataError(f"AE title {title!r}: 1 to 16 printable ASCII characters, no backslash")
        self._host, self._port, self._called, self._max_pdu = host, port, called, max_pdu
        self._timeout, self._deadline = timeout, deadline
        self._stores = sorted(stores)
        self._ae = AE(ae_title=calling)
        self._ae.connection_timeout = self._ae.acse_timeout = timeout
        self._ae.dimse_timeout = self._ae.network_timeout = timeout
        self._association: Association | None = None
        self._line: Line | None = None
        self._takes: frozenset[str] = frozenset()  # SOP classes that the association was opened for
        # Its threads die with a trace on the console of what they were handling.
        self._hook, threading.excepthook = threading.excepthook, lambda _: None
        self._wanted: tuple[Instance, Path] | None = None
        self._arrived: Fault | bool = False

    def find(self, level: Level, keys: Mapping[str, str]) -> list[Answer]:
        """See Archive."""
        question = _identifier(level, keys)
        found: list[Answer] = []
        code = _PENDING
        with self._asking(_ANSWERS_BYTES, self._takes) as association:
            if Find not in {context.abstract_syntax for context in association.accepted_contexts}:
                raise DataError("the archive does not answer questions (C-FIND of the Study Root model); see --unasked")
            for status, answer in association.send_c_find(question, Find):  # to its end: it frees the association there
                code = _code(status)
                if answer is not None:
                    found.append({keyword: _value(answer, keyword) for keyword in (*keys, uid_of(level))})
                if len(found) > ANSWERS_LIMIT:
                    raise Missing(Fault.MALFORMED)
        if code != 0:
            raise Missing(Fault.FAILED)
        return distinct(level, found)

    def fetch(self, instance: Instance, path: Path, *, limit: int) -> None:
        """See Archive."""
        keys = {"StudyInstanceUID": instance.study, "SeriesInstanceUID": instance.series}
        question = _identifier("IMAGE", keys | {"SOPInstanceUID": instance.sop})
        code = _PENDING
        kinds = frozenset([instance.sop_class] if instance.sop_class else _UNLISTED)
        self._wanted, self._arrived = (instance, path), False
        before, tempfile.tempdir = tempfile.tempdir, str(path.parent)  # where pynetdicom lets a file grow
        try:
            with self._asking(limit + _OVERHEAD, kinds) as association:
                for number, (status, _) in enumerate(association.send_c_get(question, Get)):
                    code = _code(status)
                    if number > _PENDING_LIMIT:
                        raise Missing(Fault.MALFORMED)
            if isinstance(self._arrived, Fault):
                raise Missing(self._arrived)
            if code != 0 and (code not in _WARNINGS or not self._arrived):
                raise Missing(Fault.FAILED)
            if not self._arrived:
                raise Missing(Fault.NOT_THERE)
            if path.stat().st_size > limit:
                raise Missing(Fault.TOO_LARGE)
        finally:
            tempfile.tempdir = before
            self._wanted = None

    def store(self, path: Path, instance: Instance) -> None:
        """See Archive."""
        with self._asking(_OVERHEAD, self._takes) as association:
            if instance.sop_class not in {context.abstract_syntax for context in association.accepted_contexts}:
                raise DataError("the archive takes in no objects of this kind (segmentation or report); try DICOMweb")
            code = _code(association.send_c_store(path))
        if code == _NOT_ALLOWED:
            raise DataError("the archive says that this machine may not store; check --title with its administrator")
        if code not in (0, _THERE_ALREADY) and code not in _WARNINGS:
            raise Missing(Fault.FAILED if code in _NO_ROOM else Fault.NOT_TAKEN)

    def close(self) -> None:
        """See Archive."""
        self._end(politely=True)
        threading.excepthook = self._hook

    @contextmanager
    def _asking(self, size: int, kinds: frozenset[str]) -> Iterator[Association]:
        """An association for one question, within its bytes and time; after any failure it is cut."""
        try:
            # The line ends first, in its own thread; the alarm is for whatever waits nevertheless.
            with within(self._deadline + self._timeout):
                association = self._opened(kinds)
                if self._line is not None:
                    self._line.allow(seconds=self._deadline, size=size)
                yield association
        except BaseException as error:
            used_up = self._line is not None and self._line.used_up
            self._end(politely=False)
            if not isinstance(error, Exception):
                raise
            if used_up:
                raise Missing(Fault.TOO_LARGE) from None
            if isinstance(error, Missing | DataError):
                raise
            raise Missing(Fault.LATE if isinstance(error, Late) else Fault.BROKE_OFF) from None

    def _opened(self, kinds: frozenset[str]) -> Association:
        if self._association is not None and self._association.is_established and kinds <= self._takes:
            return self._association
        self._end(politely=True)
        contexts: list[PresentationContext] = [build_context(Find)]
        if self._stores:
            contexts += [build_context(kind, syntax) for kind, syntax in self._stores]
        else:
            contexts.append(build_context(Get))
            # One context for each transfer syntax: of several in one context the archive would choose, and recode.
            syntaxes = ALL_TRANSFER_SYNTAXES if len(kinds) == 1 else _COMMON
            contexts += [build_context(kind, syntax) for kind in sorted(kinds) for syntax in syntaxes]
        association = self._ae.associate(
            self._host,
            self._port,
            contexts=contexts,
            ae_title=self._called,
            max_pdu=self._max_pdu,
            ext_neg=[build_role(kind, scp_role=True) for kind in sorted(kinds)],
            evt_handlers=[(evt.EVT_CONN_OPEN, self._on_open), (evt.EVT_C_STORE, self._on_store)],
        )
        self._association, self._takes = association, kinds
        if association.is_rejected and getattr(association.acceptor.primitive, "result", 0) == _REJECTED_FOR_GOOD:
            raise DataError("the archive rejects the association; check both AE titles, and that it knows this machine")
        if not association.is_established:
            raise Missing(Fault.BROKE_OFF) if self._line is not None else Unreached(f"{self._host}:{self._port}")
        accepted = {context.abstract_syntax for context in association.accepted_contexts}
        if not self._stores and not {Find, Get} <= accepted:
            raise DataError("the archive does not offer C-FIND and C-GET of the Study Root model; try its DICOMweb")
        return association

    def _on_open(self, event: evt.Event) -> None:
        """Before the first byte: put the line in the socket's place."""
        carrier = event.assoc.dul.socket
        if carrier is not None and carrier.socket is not None:
            self._line = Line(carrier.socket, timeout=self._timeout)
            self._line.allow(seconds=self._deadline, size=_OVERHEAD)
            carrier.socket = self._line  # type: ignore[assignment]

    def _on_store(self, event: evt.Event) -> int:
        """An image came. Takes the one that was asked for, once; tells the archive that any other is not wanted."""
        came = event.dataset_path
        request: Any = event.request
        try:
            named = str(request.AffectedSOPInstanceUID)
            if self._wanted is None or self._arrived is True or named != self._wanted[0].sop:
                self._arrived = self._arrived or Fault.WRONG_UID
                return _NOT_WANTED
            came.replace(self._wanted[1])
        except OSError:
            return _REFUSED
        finally:
            came.unlink(missing_ok=True)
        self._arrived = True
        return 0

    def _end(self, *, politely: bool) -> None:
        association, self._association = self._association, None
        if association is None:
            return
        with suppress(Exception), within(self._timeout):
            if self._line is not None:
                self._line.allow(seconds=self._timeout, size=_OVERHEAD)
            if politely and association.is_established:
                association.release()
            else:
                association.abort()


def read_address(text: str) -> tuple[str, str, int] | None:
    """(AE title, host, port) of "dicom://TITLE@HOST:PORT"; None for any other text. Raises DataError."""
    scheme, mark, rest = text.partition("://")
    if scheme.lower() != "dicom" or not mark:
        return None
    title, at, place = rest.rpartition("@")
    host, _, port = place.rpartition(":")
    if not at or not host or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise DataError("a DIMSE archive is dicom://TITLE@HOST:PORT")
    return title, host.strip("[]"), int(port)


def _identifier(level: Level, keys: Mapping[str, str]) -> Dataset:
    dataset = Dataset()
    if not all(value.isascii() for value in keys.values()):
        dataset.SpecificCharacterSet = "ISO_IR 192"  # an identifier may be written in any script
    dataset.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(dataset, keyword, value or None)
    return dataset


def _code(status: Dataset) -> int:
    """The status of an answer. Raises Missing where the archive hung up instead."""
    value = status.get("Status")
    if not isinstance(value, int):
        raise Missing(Fault.BROKE_OFF)
    return value


def _value(answer: Dataset, keyword: str) -> str:
    try:
        value = answer.get(keyword)
    except Exception:  # pydicom decodes a value when it is looked at
        return ""
    if isinstance(value, MultiValue):
        value = value[0] if value else None
    return "" if value is None else str(value)[:TEXT_LIMIT]
