"""What was found in images as groups of measurements of a structured report. Source: DICOM PS3.16 TID 1410, 1501."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import highdicom as hd
import numpy as np
from pydicom.sr.codedict import codes

from client.dicom_objects.maker import concept, own
from client.dicom_objects.origins import Origin

_SCORE = own("SCORE", "Score of a model, from 0 to 1")
_VOTES = own("VOTES", "Models that find this class more probable than any other")
_CLASS = own("CLASS", "Class of the highest score")
_MOST_VOTES = own("CLASS_BY_VOTES", "Class of the most votes")
_UNDECIDED = own("UNDECIDED", "Undecided: no class is ahead of all others")
_DISAGREEMENT = own("DISAGREEMENT", "Disagreement of models, from 0 to 1")
_FOUND = own("FOUND", "What the model found")
_LEAST = own("LEAST_SCORE", "Least score of a box that is reported")


@dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
    """What was found in a frame (from 0) of an image: a class with its score, in a box (corners xyxy in pixels) or, of
    the whole image, with all classes' scores, and their votes where models have voted.
    """

    origin: Origin
    frame: int
    name: str | None  # None: no class is ahead
    scores: Mapping[str, float]  # by class; of a box its own alone
    votes: Mapping[str, int] = field(default_factory=dict)  # by class
    box: tuple[float, float, float, float] | None = None
    disagreement: float | None = None

    @property
    def groups(self) -> int:
        """Groups of measurements that it takes."""
        return 1 if self.box else 1 + len(self.scores)


def groups_of(number: int, finding: Finding, algorithm: hd.sr.AlgorithmIdentification) -> list[Any]:
    """A box's group; of a whole image one that names its class, and one for each class with its score."""
    apart = [] if finding.disagreement is None else [_measured(_DISAGREEMENT, finding.disagreement)]
    if finding.box is not None and finding.name is not None:
        x1, y1, x2, y2 = finding.box
        region = hd.sr.ImageRegion(
            graphic_type=hd.sr.GraphicTypeValues.POLYLINE,
            graphic_data=np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)]),
            source_image=hd.sr.SourceImageForRegion(**_image(finding)),
        )
        return [
            hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=_tracked(f"finding {number}"),
                algorithm_id=algorithm,
                referenced_region=region,
                finding_type=concept(finding.name),
                measurements=[_measured(_SCORE, finding.scores[finding.name]), *apart],
            )
        ]
    chosen = _UNDECIDED if finding.name is None else concept(finding.name)
    image: dict[str, Any] = {
        "algorithm_id": algorithm,
        "source_images": [hd.sr.SourceImageForMeasurementGroup(**_image(finding))],
    }
    first = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracked(f"finding {number}"),
        measurements=apart,
        qualitative_evaluations=[
            hd.sr.QualitativeEvaluation(name=_MOST_VOTES if finding.votes else _CLASS, value=chosen)
        ],
        **image,
    )
    others = [
        hd.sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=_tracked(f"finding {number}, class {place}"),
            finding_type=concept(name),
            measurements=[
                _measured(_SCORE, score),
                *([_measured(_VOTES, finding.votes[name])] if finding.votes else []),
            ],
            **image,
        )
        for place, (name, score) in enumerate(finding.scores.items(), 1)
    ]
    return [first, *others]


def nothing(origins: Sequence[Origin], algorithm: hd.sr.AlgorithmIdentification, *, min_score: float) -> Any:
    """That these images were looked at, and no box had the least score."""
    said = f"No box with a score of {min_score:g} or more"
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracked(said),
        algorithm_id=algorithm,
        source_images=[
            hd.sr.SourceImageForMeasurementGroup(origin.dataset.SOPClassUID, origin.dataset.SOPInstanceUID)
            for origin in origins
        ],
        measurements=[_measured(_LEAST, min_score)],
        qualitative_evaluations=[hd.sr.QualitativeEvaluation(name=_FOUND, value=own(f"NO_BOX_{min_score:g}", said))],
    )


def _measured(name: hd.sr.CodedConcept, value: float) -> hd.sr.Measurement:
    return hd.sr.Measurement(name=name, value=round(value, 6), unit=codes.UCUM.NoUnits)


def _tracked(identifier: str) -> hd.sr.TrackingIdentifier:
    return hd.sr.TrackingIdentifier(uid=hd.UID(), identifier=identifier)


def _image(finding: Finding) -> dict[str, Any]:
    source = finding.origin.dataset
    return {
        "referenced_sop_class_uid": source.SOPClassUID,
        "referenced_sop_instance_uid": source.SOPInstanceUID,
        "referenced_frame_numbers": [finding.frame + 1] if finding.origin.frames > 1 else None,
    }
