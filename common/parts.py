"""The study file's tables, key by key: the type says what is allowed, the description what it means, in which unit."""

import unicodedata
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

Freeze = Literal["none", "backbone", "all_but_norms", "all_but_head"]


def _printable(name: str) -> str:
    """Class names reach terminals and pages at every site: no control or direction characters."""
    if not 0 < len(name) <= 64 or any(unicodedata.category(c)[0] == "C" for c in name):
        raise ValueError("a class name has 1 to 64 printable characters")
    return name


class Part(BaseModel):
    """A table of the study file: frozen, no unknown keys, no conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Agreement(Part):
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


class ModelPart(Part):
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
    anchor_ratios: Annotated[
        tuple[Annotated[float, Field(ge=0.01, le=100)], ...], Field(min_length=1, max_length=8)
    ] = Field((0.5, 1.0, 2.0), description="detectors: height / width of the anchors")
    anchor_scales: Annotated[int, Field(ge=1, le=8)] = Field(
        3,
        description="retinanet: anchors of each ratio within an octave; with one and one ratio the last layers have a"
        " ninth of the values, which matters under [privacy]",
    )
    pretrained_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = Field(
        "", description="SHA-256 of the .safetensors file that training starts from; the file itself is a run option"
    )
    freeze: Freeze = Field(
        "none",
        description="what stays as pretrained and is never sent: nothing, the backbone, all but normalisations and the"
        " last layer (of detectors: the layers that know the classes), or all but the last layer",
    )
    weight_standardisation: bool = Field(
        False, description="cnn, resnet18, unet: convolutions with standardised kernels; needs norm = 'group'"
    )


class Preprocessing(Part):
    """`[preprocessing]`: stored image to model input; the same at training and at prediction."""

    window: Literal["dicom", "percentile"] | tuple[float, float] = Field(
        "dicom", description="grey values to [0, 1]: the file's VOI window, 1st to 99th percentile, or [centre, width]"
    )
    aspect: Literal["pad", "stretch"] = Field("pad", description="keep proportions and pad with black, or stretch")
    orientation: Literal["stored", "patient"] = Field(
        "stored",
        exclude_if=lambda value: (
            value == "stored"
        ),  # so studies without this key are what they were before there was one
        description="images as they are stored; or turned and flipped by their headers until columns count to the"
        " patient's left and rows to the feet (of axial slices to the back), pad by the lengths of pixels in mm",
    )
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


class Training(Part):
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
    class_prior: (
        Literal["released"] | Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(max_length=1000)]
    ) = Field(
        (),
        description="share of each class among patients, as publicly known, or 'released': as a noised histogram of all"
        " sites' training patients says before round 1; for class_balance under [privacy]",
    )
    augmentation: Literal["none", "standard"] = Field(
        "none", description="standard: flips, shifts, scale, small turns, contrast"
    )

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.local_epochs is None) == (self.local_steps is None):
            raise ValueError("exactly one of local_epochs and local_steps")
        return self


class Aggregation(Part):
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

    secure: bool = Field(
        False, description="encrypted updates: the server reads sums over sites, and of no site anything"
    )
    lanes: Literal[3, 4] = Field(3, description="secure: values in 8 bytes; 4 is coarser, for slow links")
    range_: Annotated[float, Field(alias="range", ge=2.0**-20, le=2.0**20)] = Field(
        1.0, description="secure: largest change of a weight in a round; more is cut off and counted"
    )
    weight_cap: Annotated[float, Field(ge=1, le=1e9)] | None = Field(
        None, description="secure, weights = 'images' or 'patients': the most that any site has; near it, for precision"
    )


class Evaluation(Part):
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


class Privacy(Part):
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
