"""Errors by whose fault they are, and the closed set of reason codes that may cross the network."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path


class Reason(StrEnum):
    """Why a site did not contribute to a round: all that another party ever learns about it.

    Guarantees: closed; a reply with any other code is malformed. The text of an error stays where it happened.
    """

    OK = "ok"
    OFFLINE = "offline"
    LATE = "late"
    MALFORMED = "malformed"
    FAILED = "failed"
    NOT_APPROVED = "refused:not_approved"
    POLICY = "refused:policy"
    BUDGET = "refused:budget"
    STUDY_CHANGED = "refused:study_changed"
    WIRE_VERSION = "refused:wire_version"
    ROSTER = "refused:roster"


class FederationError(Exception):
    """Root of all errors that Fedward raises on purpose: one line that says what was wrong, where, and what would be
    right.

    `code`: all that other parties learn when an order ends in it.
    """

    code = Reason.FAILED


class StudyError(FederationError):
    """The study file is wrong: the coordinator's or researcher's to mend."""

    code = Reason.POLICY


class DataError(FederationError):
    """The images, annotations or folders are wrong: the data engineer's to mend."""


class MessageError(FederationError):
    """A message from another party breaks the wire's rules: the sender's fault."""

    code = Reason.MALFORMED


class WireVersionError(MessageError):
    """A message of another release of Fedward: neither side's fault, and both have to install the same."""

    code = Reason.WIRE_VERSION


class RunError(FederationError):
    """A run can't go on: quorum lost, disk full, wrong checkpoint. Says how to continue."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of what a file holds begins with the file's name."""
    try:
        yield
    except FederationError as error:
        raise type(error)(f"{path}: {error}") from error
