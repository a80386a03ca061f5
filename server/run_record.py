"""Which run was submitted last: FOLDER/current.json."""

import json
from dataclasses import asdict, dataclass

from common.errors import RunError
from server.folder import Folder, write


@dataclass(frozen=True, kw_only=True)
class Current:
    """run: Flower's number; out: an absolute path; rounds: of the study."""

    run: int
    out: str
    rounds: int


def remember(folder: Folder, run: Current) -> None:
    """From now on this is the current run."""
    write(folder.path / "current.json", json.dumps(asdict(run)).encode())


def current(folder: Folder) -> Current | None:
    """None where none was submitted. Raises RunError for a damaged record."""
    path = folder.path / "current.json"
    if not path.exists():
        return None
    try:
        return Current(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not what `server run` wrote"
        raise RunError(f"{path}: can't be read ({why}); remove it: then no run counts as the current one") from error
