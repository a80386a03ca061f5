"""Results as DICOM objects: masks as a segmentation, boxes and classes as a structured report (TID 1500).

Patient and study are those of the images, as DICOM demands of whatever belongs to them: the results stay at the site.
Source: DICOM PS3.3 A.51, C.8.20; PS3.16 TID 1500, 1410, 1501, 4019.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from pydicom.sr.codedict import codes

from client.dicom import refusing
from client.dicom_objects.origins import Origin

_SCHEME = "99FEDWARD"
_SCORE = CodedConcept("SCORE", _SCHEME, "Score of a model, from 0 to 1")
_CLASS = CodedConcept("CLASS", _SCHEME, "Most probable class")
_NOTHING = CodedConcept("NOTHING", _SCHEME, "Nothing found by the model")
_DISAGREEMENT = CodedConcept("DISAGREEMENT", _SCHEME, "Disagreement of models, from 0 to 1")
FINDINGS_LIMIT = 1000  # of one report: readers, ours among them, bound what they take in


@dataclass(frozen=True, kw_only=True)
class Maker:
    """What made a result: it stands in every object that is written."""

    name: str  # of the study
    version: str  # of Fedward
    weights: tuple[str, ...]  # SHA-256 of each model's weights
    studies: tuple[str, ...]  # SHA-256 of each model's study
    intended_use: str
    made: datetime  # local time, with its zone

    @property
    def details(self) -> dict[str, str]:
        """Parameters of the algorithm, as text."""
        return {
            "weights_sha256": " ".join(self.weights),
            "study_sha256": " ".join(self.studies),
            "made": self.made.isoformat(timespec="seconds"),
            "intended_use": self.intended_use,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
    """What was found in a frame (from 0) of an image: a class with its score, in a box (corners xyxy in pixels) or, of
    the whole image, with all classes' scores.
    """

    origin: Origin
    frame: int
    name: str
    scores: dict[str, float]  # by class; of a box its own alone
    box: tuple[float, float, float, float] | None = None
    disagreement: float | None = None


def write_segmentation(
    path: Path, origins: Sequence[Origin], masks: Sequence[NDArray[np.bool_]], *, classes: Sequence[str], maker: Maker
) -> None:
    """A binary segmentation of images of one key; `masks` [frames, K, H, W] for each.

    Segments are the classes, in order; frames where nothing was found are left out, unless that's all of them.
    Raises Unusable where the images' headers allow none, OSError where it can't be written.
    """
    pixels = np.concatenate([one.transpose(0, 2, 3, 1) for one in masks])
    described = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=_plain(name),
            segmented_property_category=codes.SCT.SpatialAndRelationalConcept,
            segmented_property_type=_concept(name),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=hd.AlgorithmIdentificationSequence(
                name=f"Fedward {maker.name}"[:64],
                family=codes.DCM.ArtificialIntelligence,
                version=maker.version,
                source="Fedward",
                parameters=maker.details,
            ),
        )
        for number, name in enumerate(classes, start=1)
    ]
    with refusing():
        result = hd.seg.Segmentation(
            source_images=[origin.dataset for origin in origins],
            pixel_array=pixels.astype(np.uint8),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=described,
            series_number=9001,
            content_label="FEDWARD",
            content_description=_plain("Automatic; research; not a medical device"),
            omit_empty_frames=bool(pixels.any()),
            **_made_by(maker),
        )
        result.ImageComments = maker.intended_use
        data = _encoded(result, maker)
    _save(path, data)


def write_report(path: Path, origins: Sequence[Origin], findings: Sequence[Finding], *, maker: Maker) -> None:
    """A report on images of one study: each finding is a group of measurements. Unverified, preliminary.

    At most FINDINGS_LIMIT of them. Edge case: a report without findings says that these images were looked at and
    nothing was found.
    Raises Unusable where the images' headers allow none, OSError where it can't be written.
    """
    if len(findings) > FINDINGS_LIMIT:
        raise ValueError(f"{len(findings)} findings; a report holds {FINDINGS_LIMIT}")
    algorithm = hd.sr.AlgorithmIdentification(
        name=f"Fedward {maker.name}"[:64],
        version=maker.version,
        parameters=[f"{name}={value}" for name, value in maker.details.items()],
        family=codes.DCM.ArtificialIntelligence,
        manufacturer="Fedward",
    )
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=hd.UID(_device_uid(maker)),
        name=f"Fedward {maker.name}"[:64],
        manufacturer_name="Fedward",
        model_name=maker.name,
        serial_number=maker.weights[0],
    )
    with refusing():
        content = hd.sr.MeasurementReport(
            observation_context=hd.sr.ObservationContext(
                observer_device_context=hd.sr.ObserverContext(
                    observer_type=codes.DCM.Device, observer_identifying_attributes=device
                )
            ),
            procedure_reported=CodedConcept("18748-4", "LN", "Diagnostic imaging study"),
            imaging_measurements=[_group(number, finding, algorithm) for number, finding in enumerate(findings, 1)]
            or [_nothing(origins, algorithm)],
        )
        result = hd.sr.ComprehensiveSR(
            evidence=[origin.dataset for origin in origins],
            content=content,
            series_number=9002,
            is_complete=True,
            **_made_by(maker),
        )
        data = _encoded(result, maker)
    _save(path, data)


def _group(number: int, finding: Finding, algorithm: hd.sr.AlgorithmIdentification) -> Any:
    source = finding.origin.dataset
    image = {
        "referenced_sop_class_uid": source.SOPClassUID,
        "referenced_sop_instance_uid": source.SOPInstanceUID,
        "referenced_frame_numbers": [finding.frame + 1] if finding.origin.frames > 1 else None,
    }
    numbers = [(_SCORE if finding.box else _concept(name), score) for name, score in finding.scores.items()]
    if finding.disagreement is not None:
        numbers.append((_DISAGREEMENT, finding.disagreement))
    measured = [hd.sr.Measurement(name=name, value=round(value, 6), unit=codes.UCUM.NoUnits) for name, value in numbers]
    common: dict[str, Any] = {
        "tracking_identifier": hd.sr.TrackingIdentifier(uid=hd.UID(), identifier=f"finding {number}"),
        "algorithm_id": algorithm,
        "measurements": measured,
    }
    if finding.box is None:
        return hd.sr.MeasurementsAndQualitativeEvaluations(
            source_images=[hd.sr.SourceImageForMeasurementGroup(**image)],
            qualitative_evaluations=[hd.sr.QualitativeEvaluation(name=_CLASS, value=_concept(finding.name))],
            **common,
        )
    x1, y1, x2, y2 = finding.box
    region = hd.sr.ImageRegion(
        graphic_type=hd.sr.GraphicTypeValues.POLYLINE,
        graphic_data=np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)]),
        source_image=hd.sr.SourceImageForRegion(**image),
    )
    return hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        referenced_region=region, finding_type=_concept(finding.name), **common
    )


def _nothing(origins: Sequence[Origin], algorithm: hd.sr.AlgorithmIdentification) -> Any:
    """That these images were looked at, and nothing was found."""
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=hd.UID(), identifier="nothing found"),
        algorithm_id=algorithm,
        source_images=[
            hd.sr.SourceImageForMeasurementGroup(origin.dataset.SOPClassUID, origin.dataset.SOPInstanceUID)
            for origin in origins
        ],
        qualitative_evaluations=[hd.sr.QualitativeEvaluation(name=_CLASS, value=_NOTHING)],
    )


def _made_by(maker: Maker) -> dict[str, Any]:
    return {
        "series_instance_uid": hd.UID(),
        "sop_instance_uid": hd.UID(),
        "instance_number": 1,
        "manufacturer": "Fedward",
        "manufacturer_model_name": f"Fedward {maker.name}"[:64],
        "software_versions": maker.version,
        "device_serial_number": maker.weights[0],
        "specific_character_set": "ISO_IR 192",
    }


def _encoded(result: Any, maker: Maker) -> bytes:
    """A file of the object, with the time that all results of a run have. For use within `refusing`."""
    result.SeriesDescription = _plain(f"Fedward {maker.name}, research only")
    result.ContentDate, result.ContentTime = maker.made.strftime("%Y%m%d"), maker.made.strftime("%H%M%S")
    result.SeriesDate, result.SeriesTime = result.ContentDate, result.ContentTime
    file = io.BytesIO()
    result.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _save(path: Path, data: bytes) -> None:
    """Whole, or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(data)
    temporary.replace(path)


def _concept(name: str) -> CodedConcept:
    """A class of the study as a code of our own: studies name their classes freely."""
    return CodedConcept(hashlib.sha256(name.encode()).hexdigest()[:12].upper(), _SCHEME, _plain(name))


def _plain(text: str) -> str:
    """As a DICOM long string: at most 64 characters, and a backslash would part two values."""
    return text.replace("\\", "/").strip()[:64] or "unnamed"


def _device_uid(maker: Maker) -> str:
    """The same for the same weights. Source: DICOM PS3.5 B.2, UIDs from a UUID."""
    return f"2.25.{int(hashlib.sha256(' '.join(maker.weights).encode()).hexdigest()[:32], 16)}"
