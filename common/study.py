"""The study file: what a consortium agrees on, parsed once from TOML into frozen values and hashed.

Every key is a field below: its type says what is allowed, its description what it means and in which unit. An
unknown key is an error, so that a study never silently means less than was written.
"""

import hashlib
import json
import tomllib
import unicodedata
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import rfc8785
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from common.errors import StudyError

MODELS_OF_TASK = {
    "classification": ("cnn", "scatter", "resnet18"),
    "segmentation": ("unet", "scatter"),
    "detection": ("retinanet", "fasterrcnn"),
}
Freeze = Literal["none", "backbone", "all_but_head"]


def _printable(name: str) -> str:
    """Class names reach terminals and pages at every site: no control or direction characters."""
    if not 0 < len(name) <= 64 or any(unicodedata.category(c)[0] == "C" for c in name):
        raise ValueError("a class name has 1 to 64 printable characters")
    return name


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Agreement(_Part):
    """`[study]`: what is learnt, by how many, for how long."""

    schema_: Literal[1] = Field(alias="schema", description="version of this file's format")
    name: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,64}$")] = Field(description="short name, [a-z0-9-]{1,64}")
    task: Literal["classification", "segmentation", "detection"] = Field(description="what the model does")
    classes: Annotated[tuple[Annotated[str, AfterValidator(_printable)], ...], Field(min_length=1, max_length=1000)] = (
        Field(description="class names in the model's order; segmentation and detection have background besides")
    )
    rounds: Annotated[int, Field(ge=1, le=100_000)] = Field(description="rounds of training")
    min_sites: Annotated[int, Field(ge=1, le=10_000)] = Field(2, description="quorum: sites that a round needs")
    round_deadline: Annotated[float, Field(gt=0, le=7 * 86400)] = Field(600.0, description="seconds a site may take")
    round_retries: Annotated[int, Field(ge=0, le=1000)] = Field(
        3, description="failed attempts in a row that stop the run"
    )
    split: tuple[float, float, float] = Field((0.7, 0.1, 0.2), description="train, validation, test shares of patients")
    seed: Annotated[int, Field(ge=0, lt=2**53)] = Field(0, description="root of all repeatable randomness")
    select: Literal["last", "best", "average"] = Field(
        "last",
        description="which weights are final: last round's, best on validation, or the mean over the later half; under"
        " [privacy] that mean unless said otherwise: it costs nothing and takes noise away",
    )

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) != len(classes):
            raise ValueError("class names must differ")
        return classes

    @field_validator("split")
    @classmethod
    def _whole(cls, split: tuple[float, float, float]) -> tuple[float, float, float]:
        if not (min(split) >= 0 and split[0] > 0 and abs(sum(split) - 1) < 1e-9):
            raise ValueError("three shares, none negative, the first above 0, with sum 1")
        return split


class ModelPart(_Part):
    """`[model]`: the network. Keys that a model does not have are errors when they are set."""

    name: Literal["cnn", "scatter", "resnet18", "unet", "retinanet", "fasterrcnn"] = Field(description="architecture")
    image_size: tuple[Annotated[int, Field(ge=8, le=4096)], Annotated[int, Field(ge=8, le=4096)]] = Field(
        description="height, width of the model's input in pixels"
    )
    channels: Literal[1, 3] = Field(1, description="1 grey, 3 colour")
    norm: Literal["none", "group"] = Field(
        "group", description="normalisation layers; batch norm couples patients and is absent"
    )
    head: Literal["dense", "gap"] = Field(
        "dense", description="cnn: a 64-unit dense layer, or global average pooling (small)"
    )
    base_channels: Annotated[int, Field(ge=2, le=256)] = Field(64, description="unet: channels of the first level")
    backbone: Literal["small", "resnet18", "resnet50"] = Field(
        "small", description="detectors: feature extractor under the FPN"
    )
    anchor_sizes: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(max_length=8)] = Field(
        (),
        description="detectors: anchor sides in pixels of the model's input, one per level; empty: from image_size",
    )
    pretrained_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = Field(
        "", description="SHA-256 of the .safetensors file that training starts from; the file itself is a run option"
    )
    freeze: Freeze = Field(
        "none",
        description="what stays as pretrained and is never sent: nothing, the backbone, or all but the last layer"
        " (of detectors: the layers that give classes and boxes)",
    )
    weight_standardisation: bool = Field(
        False, description="cnn, resnet18, unet: convolutions with standardised kernels; needs norm = 'group'"
    )


class Preprocessing(_Part):
    """`[preprocessing]`: stored image to model input; the same at training and at prediction."""

    window: Literal["dicom", "percentile"] | tuple[float, float] = Field(
        "dicom", description="grey values to [0, 1]: the file's VOI window, 1st to 99th percentile, or [centre, width]"
    )
    aspect: Literal["pad", "stretch"] = Field("pad", description="keep proportions and pad with black, or stretch")
    mean: Annotated[float, Field(ge=-1000, le=1000)] = Field(
        0.5, description="subtracted after [0, 1]; a public constant"
    )
    std: Annotated[float, Field(gt=0, le=1000)] = Field(0.25, description="divides after the mean; a public constant")

    @field_validator("window")
    @classmethod
    def _width(cls, window: str | tuple[float, float]) -> str | tuple[float, float]:
        if isinstance(window, tuple) and not window[1] > 0:
            raise ValueError("[centre, width] needs width > 0")
        return window


class Training(_Part):
    """`[training]`: what a site does in one round."""

    local_epochs: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        None, description="passes over the site's training images"
    )
    local_steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        None, description="optimiser steps; instead of local_epochs"
    )
    batch_size: Annotated[int, Field(ge=1, le=65_536)] | None = Field(
        32, description="images per step; under [privacy] patients are drawn instead, and there is no such number"
    )
    optimizer: Literal["sgd", "adam", "adamw"] = Field("sgd", description="local optimiser; starts afresh each round")
    learning_rate: Annotated[float, Field(gt=0, le=100)] = Field(0.01, description="local learning rate in round 1")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="sgd only")
    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="L2 (sgd, adam) or decoupled (adamw)")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="learning rate over the rounds; cosine ends near 0"
    )
    class_balance: Literal["none", "weighted", "focal", "sampler"] = Field(
        "none",
        description="per-image weights or sampling by the site's own class counts, or focal loss; under [privacy] by"
        " class_prior instead of counts",
    )
    class_prior: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(max_length=1000)] = Field(
        (), description="share of each class among patients, as publicly known; for class_balance under [privacy]"
    )
    augmentation: Literal["none", "standard"] = Field(
        "none", description="standard: flips, shifts, scale, small turns, contrast"
    )

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.local_epochs is None) == (self.local_steps is None):
            raise ValueError("exactly one of local_epochs and local_steps")
        return self


class Aggregation(_Part):
    """`[aggregation]`: from the sites' updates to the next weights."""

    algorithm: Literal["fedavg", "fedprox", "fedadam", "fedyogi"] = Field("fedavg", description="server optimiser")
    proximal_mu: Annotated[float, Field(ge=0, le=1000)] = Field(
        0.01, description="fedprox: pull towards the round's weights"
    )
    server_learning_rate: Annotated[float, Field(gt=0, le=100)] = Field(
        1.0, description="step of the server's optimiser"
    )
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="fedavg, fedprox: momentum over rounds"
    )
    beta1: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="fedadam, fedyogi: first moment")
    beta2: Annotated[float, Field(ge=0, lt=1)] = Field(0.99, description="fedadam, fedyogi: second moment")
    tau: Annotated[float, Field(gt=0, le=1)] = Field(1e-3, description="fedadam, fedyogi: adaptivity")
    weights: Literal["images", "patients", "nominal", "equal"] = Field(
        "images",
        description="how much a site counts in the mean: its images, its patients, or all sites the same; under"
        " [privacy] its declared nominal_patients, as counts are private",
    )


class Evaluation(_Part):
    """`[privacy.evaluation]`: which metrics may be released, and for how much. Without it none are."""

    pool: Literal["validation", "test"] = Field(
        "test", description="held-out patients, who have an account of their own"
    )
    epsilon: Annotated[float, Field(ge=0.01, le=50)] = Field(description="for all releases of this study together")
    releases: Annotated[int, Field(ge=1, le=1000)] = Field(
        1, description="1: the final model alone; each of R releases has sqrt(R) times the noise"
    )
    score_bins: Annotated[int, Field(ge=2, le=64)] = Field(
        16, description="bins of a score's logit, from -6 to 6: few lose the order of scores, many take up noise"
    )


class Privacy(_Part):
    """`[privacy]`: patient-level differential privacy of what each site sends. Without it there is none."""

    unit: Literal["patient"] = Field("patient", description="who is protected: all images of one patient at one site")
    epsilon: Annotated[float, Field(ge=0.01, le=50)] = Field(description="of each site's training pool in this study")
    delta: Annotated[float, Field(ge=1e-10, le=0.01)] = Field(
        description="at most 1 / (10 x nominal_patients) of every site"
    )
    clip_norm: Annotated[float, Field(ge=2.0**-20, le=2.0**20)] = Field(
        1.0, description="longest gradient of one patient; longer ones are scaled down to it"
    )
    clip_groups: Literal["one", "layers"] = Field(
        "one", description="clip the whole gradient, or each layer's to an equal part of the norm"
    )
    sample_rate: Annotated[float, Field(ge=1e-6, le=1)] = Field(
        0.25, description="chance of each patient to take part in a step, independently"
    )
    spare_rounds: Annotated[int, Field(ge=0, le=100_000)] | None = Field(
        None, description="attempts beyond `rounds` that are paid for in advance; 10 % of the rounds, at least 1"
    )
    images_per_patient: Annotated[int, Field(ge=1, le=1024)] = Field(
        4, description="at most, chosen afresh each time the patient is drawn"
    )
    augmentations: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="views of each image, averaged before the clip; more than 1 needs training.augmentation"
    )
    noise: Literal["local"] = Field("local", description="each site adds all the noise that its own promise needs")
    evaluation: Evaluation | None = Field(None, description="[privacy.evaluation]")


class Study(_Part):
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
        if model.weight_standardisation and model.norm == "none":
            raise ValueError("model.weight_standardisation needs model.norm = 'group': kernels lose their length")
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
    "training.momentum": ("sgd",),
    "aggregation.proximal_mu": ("fedprox",),
    "aggregation.server_momentum": ("fedavg", "fedprox"),
    "aggregation.beta1": ("fedadam", "fedyogi"),
    "aggregation.beta2": ("fedadam", "fedyogi"),
    "aggregation.tau": ("fedadam", "fedyogi"),
}

# What the keys mean under [privacy] unless they are set: the mean of released weights costs nothing, and how many
# images or patients a site has is private.
_PRIVATE_DEFAULTS = {"study.select": "average", "aggregation.weights": "nominal", "training.batch_size": None}


def _fits_without_privacy(study: Study) -> None:
    if study.training.batch_size is None:
        raise ValueError("training.batch_size: needed without [privacy]")
    if study.aggregation.weights == "nominal":
        raise ValueError("aggregation.weights = 'nominal' is for [privacy]: use 'images', 'patients' or 'equal'")
    if study.training.class_prior:
        raise ValueError("training.class_prior is for [privacy]: without it sites use their own counts; remove it")


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
            f"training.class_prior = {list(training.class_prior)} with class_balance = {training.class_balance!r}:"
            " under [privacy] 'weighted' and 'sampler' need it, and only they, as counts of patients are private"
        )
    if training.class_prior and (
        len(training.class_prior) != len(study.study.classes) or abs(sum(training.class_prior) - 1) > 1e-6
    ):
        raise ValueError(
            f"training.class_prior = {list(training.class_prior)}: one share for each of {len(study.study.classes)}"
            " classes, with sum 1"
        )
    if privacy.augmentations > 1 and training.augmentation == "none":
        raise ValueError("privacy.augmentations: several views of an image need training.augmentation = 'standard'")
    if privacy.evaluation is not None and privacy.evaluation.releases > study.study.rounds:
        raise ValueError(f"privacy.evaluation.releases = {privacy.evaluation.releases}: at most one for each round")


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
