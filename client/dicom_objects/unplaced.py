"""A segmentation of frames that have no place in the patient, or one place together: each names the frame it is of.

Ultrasound and fluoroscopy say nowhere where their frames lie; some slices don't say in which frame of reference, or how
large a pixel is. DICOM asks for a frame of reference only where a segmentation's frames don't name the images they were
derived from (PS3.3 A.51.3, C.7.4.1).
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.datadict import tag_for_keyword
from pydicom.pixels.utils import pack_bits
from pydicom.uid import SecondaryCaptureImageStorage

from client.dicom_objects.opening import PLACES
from client.dicom_objects.origins import Origin

_LEFT_OUT = ("FrameOfReferenceUID", "PositionReferenceIndicator", "NumberOfFrames", *PLACES)


def segmentation(origin: Origin, masks: NDArray[np.bool_], make: Callable[[pydicom.Dataset, NDArray[Any]], Any]) -> Any:
    """A segmentation of an image's frames, `masks` [frames, H, W, K]; `make` makes one of one frame [1, H, W, K].

    Frames of a segment with nothing in them are left out, unless that's all.
    """
    source = deepcopy(origin.dataset)
    for name in _LEFT_OUT:
        source.pop(name, None)
    source.SOPClassUID = SecondaryCaptureImageStorage  # one that needs no place, whatever the image lacks of its own
    result = make(source, masks[:1])
    kept = np.argwhere(masks.any(axis=(1, 2)) if masks.any() else np.ones(masks[:, 0, 0].shape, np.bool_))
    by_segment = list(result.PerFrameFunctionalGroupsSequence)
    several = origin.frames > 1
    if several:
        _count_in_stack(result)
    groups = []
    for frame, segment in kept.tolist():
        group = deepcopy(by_segment[segment])
        named = group.DerivationImageSequence[0].SourceImageSequence[0]
        named.ReferencedSOPClassUID = origin.dataset.SOPClassUID
        if several:
            named.ReferencedFrameNumber = frame + 1
            content = group.FrameContentSequence[0]
            content.StackID, content.InStackPositionNumber = "1", frame + 1
            indices = content.DimensionIndexValues
            content.DimensionIndexValues = [*([indices] if isinstance(indices, int) else indices), frame + 1]
        groups.append(group)
    for series in result.ReferencedSeriesSequence:
        for instance in series.ReferencedInstanceSequence:
            instance.ReferencedSOPClassUID = origin.dataset.SOPClassUID
    result.PerFrameFunctionalGroupsSequence = groups
    result.NumberOfFrames = len(groups)
    result.PixelData = pack_bits(np.stack([masks[frame, :, :, segment] for frame, segment in kept]).astype(np.uint8))
    return result


def _count_in_stack(result: Any) -> None:
    """The frame's number as a further dimension, so that frames of one segment have an order."""
    item = deepcopy(result.DimensionIndexSequence[0])
    item.DimensionIndexPointer = tag_for_keyword("InStackPositionNumber")
    item.FunctionalGroupPointer = tag_for_keyword("FrameContentSequence")
    item.DimensionDescriptionLabel = "In-Stack Position Number"
    result.DimensionIndexSequence.append(item)
