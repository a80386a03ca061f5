"""Stored values to model input and back: grey range, size, channels. Training and prediction run this same code."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from client.pose import STORED, Pose
from common.parts import Preprocessing
from common.study import Study

if TYPE_CHECKING:
    import torch

Window = Literal["dicom", "percentile"] | tuple[float, float]
Scalar = TypeVar("Scalar", bound=np.generic)
Array = TypeVar("Array", NDArray[np.float32], "torch.Tensor")
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def to_unit(values: NDArray[Any], window: Window, *, limits: tuple[float, float] | None = None) -> NDArray[np.float32]:
    """Values of any real type and shape, stretched to [0, 1] and cut there.

    Window "dicom" maps `limits` (None: smallest and largest value) to 0 and 1, "percentile" the 1st and 99th
    percentile, (centre, width) the values centre - width / 2 and centre + width / 2.
    Edge case: a constant image has no range: all 0.
    """
    if isinstance(window, tuple):
        low, high = window[0] - window[1] / 2, window[0] + window[1] / 2
    elif window == "percentile":
        low, high = (float(value) for value in np.percentile(values, (1, 99)))
    else:
        low, high = limits or (float(values.min()), float(values.max()))
    if not high > low:
        return np.zeros(values.shape, np.float32)
    scaled = (values.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return np.clip(scaled, 0, 1, out=scaled)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Where a stored image of `stored` = (H, W) pixels lies on the model's grid of `model` = (h, w) pixels.

    It is turned upright first, by its pose. With aspect "pad" proportions are kept, those of the patient where the
    pose knows them, and black borders of equal width (one pixel apart where odd) fill the rest.
    """

    stored: tuple[int, int]
    model: tuple[int, int]
    aspect: Literal["pad", "stretch"]
    pose: Pose = STORED

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width of the stored image, turned."""
        return self.pose.size(self.stored)

    @property
    def content(self) -> tuple[int, int]:
        """Height and width of the image on the model's grid, without padding; at least 1 each."""
        if self.aspect == "stretch":
            return self.model
        sides = self.upright[0] * self.pose.upright_ratio, self.upright[1]
        scale = min(self.model[0] / sides[0], self.model[1] / sides[1])
        height, width = (max(1, min(m, round(s * scale))) for s, m in zip(sides, self.model, strict=True))
        return height, width

    @property
    def offset(self) -> tuple[int, int]:
        """Rows and columns of padding above and to the left."""
        return (self.model[0] - self.content[0]) // 2, (self.model[1] - self.content[1]) // 2

    def image_to_model(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """[C, H, W] to [C, h, w]: bilinear, averaging over what a smaller pixel covers; padding is 0."""
        return self._padded(_resized(np.ascontiguousarray(self.pose.turned(image)), self.content))

    def mask_to_model(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """[H, W] to [h, w]: the stored pixel under each model pixel's centre; padding is 0, background."""
        rows, columns = (
            ((np.arange(n) + 0.5) * s / n).astype(np.intp) for n, s in zip(self.content, self.upright, strict=True)
        )
        return self._padded(self.pose.turned(mask)[np.ix_(rows, columns)])

    def maps_to_stored(self, maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """[K, h, w] to [K, H, W]: padding cut away, then bilinear."""
        (top, left), (height, width) = self.offset, self.content
        return self.pose.back(_resized(maps[:, top : top + height, left : left + width], self.upright))

    def boxes_to_model(self, boxes: NDArray[Any]) -> NDArray[np.float32]:
        """Corners xyxy [n, 4] in stored pixels to model pixels. n may be 0."""
        scale, shift = self._scale_and_shift()
        upright = self.pose.boxes(np.asarray(boxes, np.float64).reshape(-1, 4), self.stored)
        return (upright * scale + shift).astype(np.float32)

    def boxes_to_stored(self, boxes: NDArray[Any]) -> NDArray[np.float32]:
        """Corners xyxy [n, 4] in model pixels to stored pixels, cut at the border: a box on padding has no area."""
        scale, shift = self._scale_and_shift()
        upright = (np.asarray(boxes, np.float64).reshape(-1, 4) - shift) / scale
        stored = self.pose.boxes_back(upright, self.stored)
        height, width = self.stored
        return np.clip(stored, 0, (width, height, width, height)).astype(np.float32)

    def _scale_and_shift(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        y, x = (c / s for c, s in zip(self.content, self.upright, strict=True))
        return np.array((x, y, x, y)), np.array((*self.offset[::-1], *self.offset[::-1]), np.float64)

    def _padded(self, content: NDArray[Scalar]) -> NDArray[Scalar]:
        if self.content == self.model:
            return np.ascontiguousarray(content)
        full = np.zeros((*content.shape[:-2], *self.model), content.dtype)
        (top, left), (height, width) = self.offset, self.content
        full[..., top : top + height, left : left + width] = content
        return full


def geometry(stored: tuple[int, int], pose: Pose, study: Study) -> Geometry:
    """How an image of this size, that lies so in the patient, lies on the grid of the study's model."""
    how = study.preprocessing
    own = pose if how.orientation == "patient" else STORED
    return Geometry(stored=stored, model=study.model.image_size, aspect=how.aspect, pose=own)


def to_model(pixels: NDArray[np.float32], study: Study, pose: Pose = STORED) -> NDArray[np.float32]:
    """A stored image, [H, W] or [H, W, 3] in [0, 1], as the model's input before mean and std: [C, h, w] in [0, 1].

    Grey is repeated where the model wants colour; colour becomes luminance where it wants grey.
    """
    channels = study.model.channels
    height, width = pixels.shape[:2]
    if pixels.ndim == 3 and channels == 1:
        pixels = pixels @ LUMINANCE
    planes = pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
    model = np.clip(geometry((height, width), pose, study).image_to_model(planes), 0, 1)
    return model if len(model) == channels else np.repeat(model, channels, axis=0)


def kept(pixels: NDArray[np.float32], study: Study, pose: Pose) -> NDArray[np.float16]:
    """`to_model` as it is kept on a disk, and given to the model whether it came from there or not."""
    return to_model(pixels, study, pose).astype(np.float16)


def normalise(array: Array, preprocessing: Preprocessing) -> Array:
    """Model input in [0, 1] (numpy or torch, any shape) less the study's mean, divided by its std."""
    return (array - preprocessing.mean) / preprocessing.std


def _resized(planes: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    import torch

    if planes.shape[-2:] == size:
        return planes
    batch = torch.from_numpy(np.ascontiguousarray(planes, np.float32))[None]
    resized = torch.nn.functional.interpolate(batch, size=size, mode="bilinear", align_corners=False, antialias=True)
    result: NDArray[np.float32] = resized[0].numpy()
    return result
