"""What a submitted run is to do: written before it is submitted, read by `server.app` when it is its turn.

Flower hands a ServerApp the study and nothing else; where its results go and whether it resumes is the coordinator's
affair, and lies in FOLDER/orders/, under the study's hash.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from common import params
from common.errors import DataError, RunError, StudyError
from common.study import Study, parse
from server.events import effective, read
from server.folder import Folder, write


@dataclass(frozen=True, kw_only=True)
class Order:
    """out: an absolute path, as is `pretrained` ("" for none)."""

    out: str
    resume: bool
    pretrained: str = ""


def give(folder: Folder, study: Study, order: Order) -> None:
    """Keep it. The last word counts."""
    write(_path(folder, study), json.dumps(asdict(order)).encode())


def given(folder: Folder, study: Study) -> Order:
    """Raises RunError for a study that nobody ordered here: one that came in by Flower's own door, say."""
    path = _path(folder, study)
    try:
        return Order(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path}: no order for this study; start it with `server run`") from error


def pretrained(order: Order, study: Study) -> dict[str, Tensor] | None:
    """The tensors to start from. Raises StudyError when the file isn't the one that the study names."""
    wanted = study.model.pretrained_sha256
    if not order.pretrained:
        if wanted:
            raise StudyError(f"model.pretrained_sha256 = {wanted[:12]}…: give the file with --pretrained")
        return None
    try:
        data = Path(order.pretrained).read_bytes()
    except OSError as error:
        raise StudyError(f"--pretrained {order.pretrained}: can't be read ({error.strerror})") from error
    return params.pinned(data, sha256=wanted, where=f"--pretrained {order.pretrained}")


def study_of(out: Path) -> Study:
    """The study of a run's folder, as its event log holds it. Raises RunError, DataError."""
    started = effective(read(out / "events.jsonl"))[:1]
    if not started or "study" not in started[0]:
        raise DataError(f"{out}: no run has begun there")
    return parse(started[0]["study"], where=str(out / "events.jsonl"))


def _path(folder: Folder, study: Study) -> Path:
    return folder.path / "orders" / f"{study.sha256}.json"
