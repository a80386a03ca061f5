"""Results as DICOM objects: masks as a segmentation, boxes and classes as a structured report (TID 1500).

Patient and study are those of the images, as DICOM demands of whatever belongs to them: the results stay at the site.
Source: DICOM PS3.3 A.51, C.8.20; PS3.16 TID 1500, 1410, 1501, 4019.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from pydicom.sr.codedict import codes

from client.dicom_objects import unplaced
from client.dicom_objects.findings import Finding, group_of, nothing
from client.dicom_objects.maker import Maker, concept, plain
from client.dicom_objects.origins import Origin
from client.drops import Drop, Unusable
from common.errors import DataError

GROUPS_LIMIT = 1000  # of one report: readers, ours among them, bound what they take in


def write_segmentation(
    path: Path, origins: Sequence[Origin], masks: Sequence[NDArray[np.bool_]], *, classes: Sequence[str], maker: Maker
) -> None:
    """A binary segmentation of images of one key and grid, at different places, or of one image that has none; `masks`
    [frames, K, H, W] for each.

    Its frames lie where their images do, in the first one's directions and pixel spacing: `same_grid` says how little
    others differ.

    Segments are the classes, in order; frames where nothing was found are left out, unless that's all of them.
    Raises Unusable where the images' headers allow none, OSError where it can't be written.
    """
    pixels = np.concatenate([one.transpose(0, 2, 3, 1) for one in masks])
    described = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=plain(name),
            segmented_property_category=codes.SCT.SpatialAndRelationalConcept,
            segmented_property_type=concept(name),
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

    def make(sources: Sequence[pydicom.Dataset], values: NDArray[np.bool_], omit: bool) -> Any:
        return hd.seg.Segmentation(
            source_images=sources,
            pixel_array=values.astype(np.uint8),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=described,
            series_number=9001,
            content_label="FEDWARD",
            content_description=plain("Automatic; research; not a medical device"),
            omit_empty_frames=omit,
            **_made_by(maker),
        )

    with _making():
        if origins[0].places is None:
            (origin,) = origins
            result = unplaced.segmentation(origin, pixels, lambda source, values: make([source], values, False))
        else:
            result = make(_of_one_grid(origins), pixels, bool(pixels.any()))
        result.ImageComments = maker.intended_use
        data = _encoded(result, maker)
    _save(path, data)


def write_report(path: Path, origins: Sequence[Origin], findings: Sequence[Finding], *, maker: Maker) -> None:
    """A report on images of one study: each finding as a group of measurements. Unverified, preliminary.

    At most GROUPS_LIMIT of them, unless that's one finding. Edge case: a report without findings says that these
    images were looked at and no box had the maker's least score.
    Raises Unusable where the images' headers allow none, OSError where it can't be written.
    """
    groups = sum(finding.groups for finding in findings)
    if groups > GROUPS_LIMIT and len(findings) > 1:
        raise ValueError(f"{groups} groups of measurements; a report holds {GROUPS_LIMIT}")
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
    with _making():
        content = hd.sr.MeasurementReport(
            observation_context=hd.sr.ObservationContext(
                observer_device_context=hd.sr.ObserverContext(
                    observer_type=codes.DCM.Device, observer_identifying_attributes=device
                )
            ),
            procedure_reported=CodedConcept("18748-4", "LN", "Diagnostic imaging study"),
            imaging_measurements=[group_of(number, finding, algorithm) for number, finding in enumerate(findings, 1)]
            or [nothing(origins, algorithm, min_score=maker.min_score or 0)],
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


def _of_one_grid(origins: Sequence[Origin]) -> list[pydicom.Dataset]:
    """The images' headers with the first one's directions and spacing: highdicom takes no others together."""
    first, *others = (origin.dataset for origin in origins)
    found: list[pydicom.Dataset] = [first]
    for dataset in others:
        found.append(deepcopy(dataset))
        for name in ("ImageOrientationPatient", "PixelSpacing"):
            setattr(found[-1], name, first.get(name))
    return found


@contextmanager
def _making() -> Iterator[None]:
    """Whatever is thrown while an object is made is a fault of the images' header. Its text may quote it: it goes."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        why = f"no DICOM result can be made from the image's header ({type(error).__name__})"
        raise Unusable(Drop.UNSUPPORTED, why) from None


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
    """A file of the object, with the time that all results of a run have. For use within `_making`."""
    result.SeriesDescription = plain(f"Fedward {maker.name}, research only")
    result.ContentDate, result.ContentTime = maker.made.strftime("%Y%m%d"), maker.made.strftime("%H%M%S")
    result.SeriesDate, result.SeriesTime = result.ContentDate, result.ContentTime
    file = io.BytesIO()
    result.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _save(path: Path, data: bytes) -> None:
    """Whole, or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _device_uid(maker: Maker) -> str:
    """The same for the same weights. Source: DICOM PS3.5 B.2, UIDs from a UUID."""
    return f"2.25.{int(hashlib.sha256(' '.join(maker.weights).encode()).hexdigest()[:32], 16)}"
