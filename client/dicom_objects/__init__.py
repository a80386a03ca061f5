"""DICOM segmentations, structure sets and reports as plain values; one of the doors of pydicom in this room.

What was drawn is laid onto the stored pixels of an image by its place in the patient, so image and annotation may
differ in spacing, orientation and size. A reader raises Unusable for a file that it can't use, and no other error but
OSError; time and memory are bounded, whatever the file says.
"""

from pathlib import Path

from client.dicom_objects.contours import StructureSet, read_structure_set
from client.dicom_objects.opening import HEAD, Geometry, Kind, image_geometry, kind_of
from client.dicom_objects.origins import Origin, read_origin
from client.dicom_objects.reports import Region, Report, read_report
from client.dicom_objects.segments import Segmentation, read_segmentation
from client.dicom_objects.views import View, view_of

__all__ = ["HEAD", "DicomObject", "Geometry", "Kind", "Region", "Report", "Segmentation", "StructureSet"]
__all__ += ["Origin", "View", "image_geometry", "kind_of", "read", "read_origin", "view_of"]

DicomObject = Segmentation | StructureSet | Report


def read(path: Path, kind: Kind) -> DicomObject:
    """An annotation object of a kind that `kind_of` named."""
    match kind:
        case "segmentation":
            return read_segmentation(path)
        case "structure set":
            return read_structure_set(path)
        case "report":
            return read_report(path)
