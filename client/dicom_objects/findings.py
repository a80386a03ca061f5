"""What was found in images as groups of measurements of a structured report. Source: DICOM PS3.16 TID 1410, 1501."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import highdicom as hd
import numpy as np
from pydicom.sr.codedict import codes

from client.dicom_objects.maker import concept, own, plain
from client.dicom_objects.origins import Origin

_SCORE = own("SCORE", "Score of a model, from 0 to 1")
_CLASS = own("CLASS", "Class of the highest score")
_MOST_VOTES = own("CLASS_BY_VOTES", "Class of the most votes")
_UNDECIDED = own("UNDECIDED", "Undecided: no class is ahead of all others")
_DISAGREEMENT = own("DISAGREEMENT", "Disagreement of models, from 0 to 1")
_FOUND = own("FOUND", "What the model found")
_LEAST = own("LEAST_SCORE", "Least score of a box that is reported")


@dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
    """What was found in a frame (from 0) of an image: a class with its score, in a box (corners xyxy in pixels) or, of
    the whole image, with all classes' scores, and their votes: how many models find a class more probable than any
    other.
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
        """As how many groups of measurements it counts in a report: each class's scores as one beside its own."""
        return 1 if self.box else 1 + len(self.scores)


def group_of(number: int, finding: Finding, algorithm: hd.sr.AlgorithmIdentification) -> Any:
    """A box's group, or a whole image's with the scores of all classes.

    Guarantees: Finding is the class that was chosen and no other, since viewers list whatever stands there as found.
    The scores of a whole image's classes have names of their own, which say so.
    """
    apart = [] if finding.disagreement is None else [_measured(_DISAGREEMENT, finding.disagreement)]
    if finding.box is not None and finding.name is not None:
        x1, y1, x2, y2 = finding.box
        region = hd.sr.ImageRegion(
            graphic_type=hd.sr.GraphicTypeValues.POLYLINE,
            graphic_data=np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)]),
            source_image=hd.sr.SourceImageForRegion(**_image(finding)),
        )
        return hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=_tracked(f"finding {number}"),
            algorithm_id=algorithm,
            referenced_region=region,
            finding_type=concept(finding.name),
            measurements=[_measured(_SCORE, finding.scores[finding.name]), *apart],
        )
    chosen = None if finding.name is None else concept(finding.name)
    scores = [_measured(_of_class("S", "Class score", name), score) for name, score in finding.scores.items()]
    votes = [_measured(_of_class("V", "Class votes", name), count) for name, count in finding.votes.items()]
    evaluation = hd.sr.QualitativeEvaluation(
        name=_MOST_VOTES if finding.votes else _CLASS, value=_UNDECIDED if chosen is None else chosen
    )
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracked(f"finding {number}"),
        algorithm_id=algorithm,
        source_images=[hd.sr.SourceImageForMeasurementGroup(**_image(finding))],
        finding_type=chosen,
        measurements=[*apart, *scores, *votes],
        qualitative_evaluations=[evaluation],
    )


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


def _of_class(mark: str, what: str, name: str) -> hd.sr.CodedConcept:
    """The name of a number that says something of a class, be it found or not."""
    return own(f"{mark}_{concept(name).value}", plain(f"{what}, no finding: {name}"))


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
