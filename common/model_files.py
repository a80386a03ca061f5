"""A finished model as a run leaves it, `model.safetensors` and its card `model.json`: read, checked, made a network."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from common import params
from common.errors import DataError, StudyError
from common.models import build_model, load_pretrained
from common.study import Study, parse

WEIGHTS, CARD = "model.safetensors", "model.json"
INTENDED_USE = "research; not a medical device; check it on your own patients before any decision rests on it"


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A finished model: its network, in eval mode on the CPU, and what its card says."""

    study: Study
    network: nn.Module
    weights_sha256: str  # of model.safetensors, as it was read
    run: str
    fedward: str  # the version that made it
    intended_use: str
    validation: dict[str, Any]  # metrics; {} where none were released

    @property
    def provenance(self) -> dict[str, str]:
        """What a result made with this model says of it."""
        return {
            "study": self.study.study.name,
            "study_hash": self.study.sha256,
            "weights_sha256": self.weights_sha256,
            "run": self.run,
        }


def open_model(folder: Path) -> Model:
    """The model in a folder.

    Guarantees: the weights are the file whose SHA-256 stands in the card, all of them, finite; nothing is executed.
    Raises DataError where a file can't be read or isn't the card's, StudyError where card and weights don't fit.
    """
    card = _card(folder / CARD)
    study = parse(card["study"], where=str(folder / CARD))
    data = _read(folder / WEIGHTS)
    found = hashlib.sha256(data).hexdigest()
    if card.get("weights_sha256") != found:
        raise DataError(f"{folder / WEIGHTS}: SHA-256 is {found}, not the card's: take both files from one run")
    validation = card.get("validation")
    return Model(
        study=study,
        network=_network(study, data, folder / WEIGHTS).eval(),
        weights_sha256=found,
        run=_text(card, "run"),
        fedward=_text(card, "fedward"),
        intended_use=_text(card, "intended_use") or INTENDED_USE,
        validation=validation if isinstance(validation, dict) else {},
    )


def study_of(folder: Path) -> Study:
    """The study that a model's card holds. Raises DataError where there is no card, StudyError where it isn't whole."""
    return parse(_card(folder / CARD)["study"], where=str(folder / CARD))


def load_network(study: Study, folder: Path) -> nn.Module:
    """The study's network, on the CPU, with all weights of a folder. Raises DataError where there are none, StudyError
    where the file holds another architecture, or only a part.
    """
    return _network(study, _read(folder / WEIGHTS), folder / WEIGHTS)


def _network(study: Study, data: bytes, path: Path) -> nn.Module:
    network = build_model(study)
    tensors = params.from_bytes(data, where=str(path))
    if missing := [name for name, _ in params.shapes(network, trainable=False) if name not in tensors]:
        raise StudyError(f"{path}: lacks {missing[0]!r} and {len(missing) - 1} more: not the whole model of its card")
    load_pretrained(network, tensors)
    return network


def _card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(_read(path))
    except ValueError as error:
        raise DataError(f"{path}: can't be read as a model card; give the folder of a finished run") from error
    if not isinstance(card, dict) or not isinstance(card.get("study"), dict):
        raise DataError(f"{path}: is not a model card; give the folder of a finished run")
    return card


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}): give the folder of a finished run") from error


def _text(card: dict[str, Any], key: str) -> str:
    """A line of the card, as much of it as fits into a DICOM text."""
    value = card.get(key)
    return "".join(c for c in value if c.isprintable())[:256] if isinstance(value, str) else ""
