"""A made-up CT series and the annotation objects that highdicom writes about it; hostile ones with plain pydicom."""

import warnings
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from highdicom.sr.coding import CodedConcept
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    RTStructureSetStorage,
    generate_uid,
)

FRAME_OF_REFERENCE = "1.2.826.0.1.3680043.8.498.7"
SIZE, SPACING, STEP, COUNT = (12, 16), (2.0, 1.5), 3.0, 5
# Turned about two axes, so that no coordinate of the patient is a row or a column.
_A, _B = np.deg2rad((25, -40))
ACROSS = np.array([np.cos(_A), np.sin(_A), 0.0])
DOWN = np.cross(np.array([np.sin(_A) * np.sin(_B), -np.cos(_A) * np.sin(_B), np.cos(_B)]), ACROSS)
NORMAL = np.cross(ACROSS, DOWN)
ORIGIN = np.array([-30.0, 12.5, 100.0])


def blank(sop_class: str, uid: str, *, patient: str | None = "P") -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, uid
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, uid
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.9.1", "1.2.9.2"
    if patient is not None:
        dataset.PatientID = patient
    return dataset


def slice_(
    number: int, *, uid: str | None = None, patient: str = "P", projection: bool = False, size: tuple[int, int] = SIZE
) -> FileDataset:
    """One slice of the series, or a projection image that has no place in the patient."""
    kind = ComputedRadiographyImageStorage if projection else CTImageStorage
    dataset = blank(kind, uid or f"1.2.9.3.{number + 1}", patient=patient)
    dataset.Modality = "CR" if projection else "CT"
    dataset.PatientName, dataset.PatientBirthDate, dataset.PatientSex = "A^B", "", ""
    dataset.StudyID = dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    dataset.StudyDate, dataset.StudyTime, dataset.SeriesNumber, dataset.InstanceNumber = "20210101", "1200", 1, number
    dataset.Rows, dataset.Columns = size
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.PixelData = (np.arange(size[0] * size[1], dtype=np.uint16) + 7 * number).tobytes()
    dataset["PixelData"].VR = "OW"
    if not projection:
        dataset.FrameOfReferenceUID = FRAME_OF_REFERENCE
        dataset.ImagePositionPatient = [f"{v:.6f}" for v in ORIGIN + number * STEP * NORMAL]
        dataset.ImageOrientationPatient = [f"{v:.9f}" for v in (*ACROSS, *DOWN)]
        dataset.PixelSpacing, dataset.SliceThickness = [str(v) for v in SPACING], str(STEP)
        dataset.SpacingBetweenSlices = str(STEP)
    return dataset


def saved(dataset: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(path, enforce_file_format=True)
    return path


def jp2(codestream: bytes, *, length: bytes | None = None) -> bytes:
    """A JP2 file: signature, file type, and the codestream in a box whose length field may be given."""
    first = b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x14ftypjp2 \0\0\0\0jp2 "
    own = (8 + len(codestream)).to_bytes(4, "big") if length is None else length
    return first + own[:4] + b"jp2c" + own[4:] + codestream


def encapsulated(dataset: FileDataset, streams: list[bytes], syntax: str) -> FileDataset:
    """The file with these compressed frames for its pixels."""
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.PixelData = encapsulate(streams)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dataset


def described(number: int, label: str, kind: Any = codes.SCT.Neoplasm) -> hd.seg.SegmentDescription:
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=label,
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=kind,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
    )


def segmentation(images: list[FileDataset], pixels: Any, labels: list[str], **options: Any) -> hd.seg.Segmentation:
    kind = options.pop("segmentation_type", "BINARY")
    kinds = options.pop("kinds", [codes.SCT.Neoplasm] * len(labels))
    values: dict[str, Any] = {
        "series_instance_uid": generate_uid(),
        "series_number": 2,
        "sop_instance_uid": generate_uid(),
        "instance_number": 1,
        "manufacturer": "Maker",
        "manufacturer_model_name": "Model",
        "software_versions": "1",
        "device_serial_number": "1",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return hd.seg.Segmentation(
            source_images=images,
            pixel_array=pixels,
            segmentation_type=kind,
            segment_descriptions=[described(k, *pair) for k, pair in enumerate(zip(labels, kinds, strict=True), 1)],
            **values | options,
        )


def structure_set(
    images: list[FileDataset],
    regions: dict[str, list[tuple[NDArray[np.float64], FileDataset | None]]],
    *,
    shape: str = "CLOSED_PLANAR",
    listed: bool = True,
) -> FileDataset:
    """Regions by name: outlines in mm [n, 3], each with the image that it names."""
    dataset = blank(RTStructureSetStorage, generate_uid())
    dataset.Modality = "RTSTRUCT"
    dataset.StructureSetROISequence, dataset.ROIContourSequence = Sequence(), Sequence()
    dataset.RTROIObservationsSequence = Sequence()
    for number, (name, outlines) in enumerate(regions.items(), 1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, FRAME_OF_REFERENCE
        drawn.ReferencedROINumber, drawn.ContourSequence = number, Sequence()
        for points, image in outlines:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = shape, len(points)
            contour.ContourData = [f"{v:.5f}" for v in points.ravel()]
            if image is not None:
                contour.ContourImageSequence = Sequence([_reference(image)])
            drawn.ContourSequence.append(contour)
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(drawn)
    if listed:
        series, study, frame = Dataset(), Dataset(), Dataset()
        series.ContourImageSequence = Sequence([_reference(image) for image in images])
        study.RTReferencedSeriesSequence = Sequence([series])
        frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = FRAME_OF_REFERENCE, Sequence([study])
        dataset.ReferencedFrameOfReferenceSequence = Sequence([frame])
    return dataset


def _reference(image: FileDataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    return item


def region(shape: str, points: Any, image: FileDataset) -> hd.sr.ImageRegion:
    return hd.sr.ImageRegion(
        graphic_type=getattr(hd.sr.GraphicTypeValues, shape),
        graphic_data=np.array(points, np.float64),
        source_image=hd.sr.SourceImageForRegion(image.SOPClassUID, image.SOPInstanceUID),
    )


def region_3d(shape: str, points: Any) -> hd.sr.ImageRegion3D:
    return hd.sr.ImageRegion3D(
        graphic_type=getattr(hd.sr.GraphicTypeValues3D, shape),
        graphic_data=np.array(points, np.float64),
        frame_of_reference_uid=FRAME_OF_REFERENCE,
    )


def report(images: list[FileDataset], regions: list[tuple[Any, CodedConcept]], *, diameter: float = 4.5) -> Dataset:
    """A TID 1500 report: a measurement group for each region and finding."""
    groups = [
        hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=hd.sr.TrackingIdentifier(uid=generate_uid(), identifier=f"L{k}"),
            referenced_region=outline,
            finding_type=finding,
            measurements=[
                hd.sr.Measurement(name=codes.SCT.Diameter, value=diameter + k, unit=codes.UCUM.Millimeter),
            ],
        )
        for k, (outline, finding) in enumerate(regions)
    ]
    context = hd.sr.ObservationContext(
        observer_person_context=hd.sr.ObserverContext(
            observer_type=codes.DCM.Person,
            observer_identifying_attributes=hd.sr.PersonObserverIdentifyingAttributes("R^S"),
        )
    )
    content = hd.sr.MeasurementReport(
        observation_context=context,
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=groups,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return hd.sr.Comprehensive3DSR(
            evidence=images,
            content=content[0],
            series_number=3,
            series_instance_uid=generate_uid(),
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="Maker",
        )


def drawn() -> NDArray[np.uint8]:
    """Two classes on slices 1 and 3, and nothing on the others: [slice, row, column]."""
    values = np.zeros((COUNT, *SIZE), np.uint8)
    values[1, 2:5, 3:9], values[1, 8:10, 3:9] = 1, 2
    values[3, 6:9, 1:4] = 1
    return values


def enhanced(series: list[FileDataset]) -> FileDataset:
    """The series as one multi-frame file."""
    dataset = slice_(0, uid="1.2.9.4")
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(dataset, name)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    dataset.NumberOfFrames = len(series)
    dataset.PixelData = b"".join(image.PixelData for image in series)
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = series[0].ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = series[0].PixelSpacing, str(STEP)
    measures.SpacingBetweenSlices = str(STEP)
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Sequence([orientation]), Sequence([measures])
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = Sequence()
    for image in series:
        group, position = Dataset(), Dataset()
        position.ImagePositionPatient = image.ImagePositionPatient
        group.PlanePositionSequence = Sequence([position])
        dataset.PerFrameFunctionalGroupsSequence.append(group)
    return dataset


def ring(corners: Any, number: int) -> NDArray[np.float64]:
    """Corners (column, row) in pixels of a slice of the series as points in mm."""
    at = np.array(corners, np.float64)
    return ORIGIN + number * STEP * NORMAL + at[:, :1] * SPACING[1] * ACROSS + at[:, 1:] * SPACING[0] * DOWN


BIG, SMALL = [(1.6, 1.6), (9.4, 1.6), (9.4, 8.4), (1.6, 8.4)], [(3.6, 3.6), (6.4, 3.6), (6.4, 5.4), (3.6, 5.4)]
