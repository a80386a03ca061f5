"""The study file: what a consortium agrees on, parsed once from TOML into frozen values and hashed.

Every key is a field in `common.parts`. An unknown key is an error, so that a study never silently means less than was
written.
"""

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any, Self, get_args

import rfc8785
from pydantic import BaseModel, ValidationError, model_validator

from common.errors import StudyError
from common.parts import Aggregation, Agreement, ModelPart, Part, Preprocessing, Privacy, Training

MODELS_OF_TASK = {
    "classification": ("cnn", "scatter", "resnet18"),
    "segmentation": ("unet", "scatter"),
    "detection": ("retinanet", "fasterrcnn"),
}


class Study(Part):
    """A whole study.

    Guarantees: equal studies have equal `canonical` text and `sha256`; any change of a value changes both.
    """

    study: Agreement
    model: ModelPart
    preprocessing: Preprocessing = Preprocessing()
    training: Training
    aggregation: Aggregation = Aggregation()
    privacy: Privacy | None = None

    @model_validator(mode="before")
    @classmethod
    def _private_defaults(cls, values: Any) -> Any:
        """Keys whose default is another one under `[privacy]`, where nobody has set them."""
        if not isinstance(values, dict) or not isinstance(values.get("privacy"), dict):
            return values
        filled = dict(values)
        for key, default in _PRIVATE_DEFAULTS.items():
            part, name = key.split(".")
            if isinstance(filled.get(part, {}), dict):
                filled[part] = {name: default, **filled.get(part, {})}
        return filled

    @model_validator(mode="after")
    def _fits(self) -> Self:
        task, model = self.study.task, self.model
        if model.name not in MODELS_OF_TASK[task]:
            raise ValueError(f"model.name = {model.name!r} does not do {task}: use {' or '.join(MODELS_OF_TASK[task])}")
        for key, owners in _OWNERS.items():
            part, name = key.split(".")
            owner_of = model.name if part == "model" else self._owner_value(part)
            section = getattr(self, part)
            if owner_of not in owners and getattr(section, name) != type(section).model_fields[name].default:
                raise ValueError(f"{key} is not a key of {owner_of!r}, only of {', '.join(owners)}: remove it")
        if task == "classification" and len(self.study.classes) < 2:
            raise ValueError("study.classes: classification needs at least two")
        if model.name == "unet" and any(side % 16 for side in model.image_size):
            raise ValueError("model.image_size: both sides must be multiples of 16 for unet")
        if model.freeze != "none" and not model.pretrained_sha256:
            raise ValueError(
                f"model.freeze = {model.freeze!r} needs pretrained_sha256: random layers are not worth keeping"
            )
        if model.freeze == "all_but_norms" and model.norm == "none":
            raise ValueError("model.freeze = 'all_but_norms' needs model.norm = 'group': there are no norms to train")
        if model.weight_standardisation and model.norm == "none":
            raise ValueError("model.weight_standardisation needs model.norm = 'group': kernels lose their length")
        _fits_secure(self)
        if self.privacy is None:
            _fits_without_privacy(self)
        else:
            _fits_privacy(self, self.privacy)
        return self

    def _owner_value(self, part: str) -> str:
        return self.training.optimizer if part == "training" else self.aggregation.algorithm

    @property
    def spare_rounds(self) -> int:
        """Attempts beyond `rounds` that are paid for in advance."""
        if self.privacy is None:
            return 0
        return max(1, -(-self.study.rounds // 10)) if self.privacy.spare_rounds is None else self.privacy.spare_rounds

    @property
    def canonical(self) -> str:
        """RFC 8785 canonical JSON (sorted keys, no whitespace, one spelling per number), all defaults written out."""
        return rfc8785.dumps(self.model_dump(mode="json", by_alias=True)).decode()

    @property
    def sha256(self) -> str:
        """Hex digest of `canonical`: the study's identity everywhere."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()


# Keys that only some models, optimisers or algorithms have. Setting one for another is a mistake, not a wish.
_OWNERS = {
    "model.head": ("cnn",),
    "model.norm": ("cnn", "resnet18", "unet", "retinanet", "fasterrcnn"),
    "model.freeze": ("cnn", "resnet18", "unet", "retinanet", "fasterrcnn"),
    "model.weight_standardisation": ("cnn", "resnet18", "unet"),
    "model.base_channels": ("unet",),
    "model.backbone": ("retinanet", "fasterrcnn"),
    "model.anchor_sizes": ("retinanet", "fasterrcnn"),
    "model.anchor_ratios": ("retinanet", "fasterrcnn"),
    "model.anchor_scales": ("retinanet",),
    "training.momentum": ("sgd",),
    "aggregation.proximal_mu": ("fedprox",),
    "aggregation.server_momentum": ("fedavg", "fedprox"),
    "aggregation.beta1": ("fedadam", "fedyogi"),
    "aggregation.beta2": ("fedadam", "fedyogi"),
    "aggregation.tau": ("fedadam", "fedyogi"),
}
_SECURE = ("lanes", "range_", "weight_cap")

# What the keys mean under [privacy] unless they are set: the mean of released weights costs nothing, and how many
# images or patients a site has is private.
_PRIVATE_DEFAULTS = {"study.select": "average", "aggregation.weights": "nominal", "training.batch_size": None}


def _fits_secure(study: Study) -> None:
    """Keys of secure aggregation, which are nothing without it."""
    aggregation = study.aggregation
    for key in _SECURE if not aggregation.secure else ():
        field = type(aggregation).model_fields[key]
        if getattr(aggregation, key) != field.default:
            raise ValueError(f"aggregation.{field.alias or key} is not a key without secure = true: remove it")
    counted = aggregation.weights in ("images", "patients")
    if aggregation.secure and counted != (aggregation.weight_cap is not None):
        raise ValueError(
            f"aggregation.weight_cap = {aggregation.weight_cap}: with secure = true, weights = 'images' and 'patients'"
            " need the most that any site has, and only they"
        )


def _fits_without_privacy(study: Study) -> None:
    if study.training.batch_size is None:
        raise ValueError("training.batch_size: needed without [privacy]")
    if study.aggregation.weights == "nominal":
        raise ValueError("aggregation.weights = 'nominal' is for [privacy]: use 'images', 'patients' or 'equal'")
    if study.training.class_prior:
        raise ValueError(
            f"training.class_prior = {_shown(study)} is for [privacy]: without it sites use their own counts; remove it"
        )


def _fits_privacy(study: Study, privacy: Privacy) -> None:
    """What differential privacy forbids to the rest of the study."""
    training = study.training
    if training.local_steps is None or training.batch_size is not None:
        name = "local_epochs" if training.local_steps is None else "batch_size"
        raise ValueError(
            f"training.{name} is not allowed under [privacy]: with sample_rate each patient is drawn by chance; say how"
            " many such draws a round has with training.local_steps"
        )
    if study.study.select == "best":
        raise ValueError("study.select = 'best' asks the patients at every round: under [privacy] 'average' or 'last'")
    if study.aggregation.weights not in ("nominal", "equal"):
        raise ValueError(
            f"aggregation.weights = {study.aggregation.weights!r}: under [privacy] 'nominal' or 'equal', as counts are"
            " private"
        )
    if (training.class_balance in ("weighted", "sampler")) != bool(training.class_prior):
        raise ValueError(
            f"training.class_prior = {_shown(study)} with class_balance = {training.class_balance!r}: under [privacy]"
            " 'weighted' and 'sampler' need it, and only they, as counts of patients are private"
        )
    prior, count = training.class_prior, len(study.study.classes)
    if prior == "released":
        if count < 2:
            raise ValueError(f"training.class_prior = {_shown(study)}: there is nothing to balance in one class")
    elif prior and (len(prior) != count or abs(sum(prior) - 1) > 1e-6):
        raise ValueError(f"training.class_prior = {_shown(study)}: one share for each of {count} classes, with sum 1")
    if privacy.augmentations > 1 and training.augmentation == "none":
        raise ValueError("privacy.augmentations: several views of an image need training.augmentation = 'standard'")
    if privacy.evaluation is not None and privacy.evaluation.releases > study.study.rounds:
        raise ValueError(f"privacy.evaluation.releases = {privacy.evaluation.releases}: at most one for each round")


def _shown(study: Study) -> str:
    prior = study.training.class_prior
    return repr(prior if isinstance(prior, str) else list(prior))


def load(path: Path, *, changes: dict[str, Any] | None = None) -> Study:
    """The study in a TOML file; `changes` maps dotted keys to values that replace the file's (`--set`).

    Raises StudyError, one line that names the key, the value and what is allowed.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(
            f"{path}: can't be read ({error.__class__.__name__}): give the path of a study file"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise StudyError(f"{path}: not valid TOML: {error}") from error
    for key, value in (changes or {}).items():
        *parents, name = key.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise StudyError(f"{key}: {parent!r} is not a table")
        place[name] = value
    return parse(values, where=str(path))


def from_json(text: str) -> Study:
    """The study that another party sent as canonical JSON.

    Raises StudyError when the text is not JSON, not a study, or not canonical (then its hash would be another's).
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise StudyError("the study sent is not JSON") from error
    if not isinstance(values, dict):
        raise StudyError("the study sent is not a JSON object")
    study = parse(values, where="study")
    if study.canonical != text:
        raise StudyError("the study sent is not in canonical form")
    return study


def parse(values: dict[str, Any], *, where: str) -> Study:
    """A study from nested plain values. Raises StudyError with every fault, one per clause, on one line."""
    try:
        return Study.model_validate(_tuples(values))
    except ValidationError as error:
        faults = [_fault(dict(fault)) for fault in error.errors(include_url=False)]
        raise StudyError(f"{where}: " + "; ".join(dict.fromkeys(faults))) from None


def _tuples(value: Any) -> Any:
    """TOML and JSON arrays as the tuples that frozen values hold; whole numbers stay whole."""
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(_tuples(inner) for inner in value) if isinstance(value, list) else value


def _fault(fault: dict[str, Any]) -> str:
    place = [
        str(part) for part in fault["loc"] if not str(part).startswith(("literal", "tuple", "function", "constrained"))
    ]
    key = ".".join(place)
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        allowed = _known(place[:-1])
        return f"{key} is not a known key" + (f"; known: {', '.join(allowed)}" if allowed else "")
    if fault["type"] == "missing":
        return f"{key} is missing"
    if not key or isinstance(fault["input"], (dict, BaseModel)):
        return f"{key}: {message}" if key else message
    return f"{key} = {fault['input']!r}: {message[:1].lower()}{message[1:]}"


def _known(place: list[str]) -> list[str]:
    part: type[BaseModel] = Study
    for name in place:
        annotation = part.model_fields[name].annotation if name in part.model_fields else None
        kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]  # also of X | None
        parts = [kind for kind in kinds if issubclass(kind, BaseModel)]
        if not parts:
            return []
        part = parts[0]
    return [field.alias or name for name, field in part.model_fields.items()]
