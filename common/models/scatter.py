"""Fixed scattering features with a linear layer on top: all that is trained are a few thousand weights.

Features that need neither data nor a download are worth more under noise than learnt ones (Tramèr and Boneh 2021,
"Differentially private learning needs better features (or much more data)"). Source of the transform: Bruna and Mallat
2013, "Invariant scattering convolution networks", section 2, with two scales and eight orientations.
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Iterator
from functools import lru_cache
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ORIENTATIONS = 8
FEATURES = 1 + 2 * ORIENTATIONS + ORIENTATIONS**2  # of one grey channel: orders 0, 1, 2
LOCAL_FEATURES = 1 + 2 * ORIENTATIONS  # orders 0 and 1
MOST_CELLS = 8  # on each side of a classifier's features: larger images get larger cells, not more weights
_MARGIN = 6  # pixels of the mirrored image on each side, at least: what the widest wavelet sees beyond the border
_MOST_KNOWN = 2**26  # feature values kept in memory: 256 MB, the features of 16,000 small images
_AT_ONCE = 2**15  # pixels: more images at once don't stay in the processor's cache


class Scatter(nn.Module):
    """A classifier of scattering features: images [B, C, H, W] to logits [B, K]. One linear layer is trained.

    Features stand for cells of at least 4 x 4 pixels, at most 8 x 8 cells, and are normalised three by three within
    each image, as Tramèr and Boneh do: images have features of like length, and the clip treats them alike. With two
    classes there is one weight for each feature, and the first class's logit is 0.

    Guarantees: 3,970 parameters for two classes at 28x28x1, at most 5,185 at larger sizes; the weights start at 0,
    where every class is as likely.
    """

    def __init__(self, *, channels: int, classes: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.cells = min(image_size[0] // 4, MOST_CELLS), min(image_size[1] // 4, MOST_CELLS)
        self.head = nn.Linear(channels * FEATURES * self.cells[0] * self.cells[1], 1 if classes == 2 else classes)
        self._known: OrderedDict[bytes, Tensor] = OrderedDict()  # features by digest of the image, newest last
        _start_at_zero(self.head)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.stack([self._features(image) for image in images]).to(images.device))
        return logits if logits.shape[1] > 1 else torch.cat([torch.zeros_like(logits), logits], dim=1)

    def _features(self, image: Tensor) -> Tensor:
        """Normalised features [n] of one image [C, H, W], in memory: images come again in every round, and their
        features stay. Each image is transformed alone, so that no bit depends on who came along.
        """
        digest = hashlib.sha256(image.detach().cpu().contiguous().numpy().tobytes()).digest()
        if digest not in self._known:
            found = scattering(image[None], self.cells)
            self._known[digest] = F.group_norm(found, found.shape[1] // 3).flatten().cpu()
            while len(self._known) * self._known[digest].numel() > _MOST_KNOWN:
                self._known.popitem(last=False)
        self._known.move_to_end(digest)
        return self._known[digest]


class PixelScatter(nn.Module):
    """A classifier of every pixel by what is near it: images [B, C, H, W] to logits [B, K, H, W].

    Features are those of orders 0 and 1 for cells of 2 x 2 pixels, normalised within each image, and their absolute
    values: how far a place is from the image's average, so that a linear layer finds bright and dark objects alike.
    Logits are interpolated between cells.

    Guarantees: 35 parameters for a class in grey images, 103 in colour, whatever their size; the weights start at 0.
    """

    def __init__(self, *, channels: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(2 * channels * LOCAL_FEATURES, classes, 1)
        _start_at_zero(self.head)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        return self.answer(scattering(images, (height // 2, width // 2), second=False), images)

    def answer(self, found: Tensor, images: Tensor) -> Tensor:
        """Logits [B, K, H, W] of features [B, C x 17, H / 2, W / 2]."""
        batch, channels, height, width = images.shape
        # The mean with the fine scale, the coarse scale by itself; each colour by itself.
        by_channel = found.reshape(batch, channels, LOCAL_FEATURES, height // 2, width // 2)
        parts = torch.split(by_channel, [1 + ORIENTATIONS, ORIENTATIONS], dim=2)
        features = torch.cat([F.group_norm(part.flatten(1, 2), channels) for part in parts], dim=1)
        logits = self.head(torch.cat([features, features.abs()], dim=1))
        return F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)


def _start_at_zero(head: nn.Module) -> None:
    for parameter in head.parameters():
        nn.init.zeros_(parameter)


def scattering(images: Tensor, cells: tuple[int, int], *, second: bool = True) -> Tensor:
    """Features [B, C x 81, *cells] of images [B, C, H, W] float32 or float64; C x 17 without the second order.

    Of each channel: its local mean (1), local means of its wavelet moduli at the fine scale (8), then for each of the
    eight orientations that at the coarse scale (1) and of the coarse moduli of the fine modulus (8). The image is
    continued by its mirror image. No gradient.

    Guarantees: an image's features depend on no other image; images that differ by a constant differ in the mean alone.
    """
    batch, channels, height, width = images.shape
    grey = images.detach().reshape(batch * channels, height, width)
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        bank = Bank(height, width, cells, images.dtype, images.device)
        size = max(1, _AT_ONCE // (bank.padded[0] * bank.padded[1]))
        found = [bank.features(part, second=second) for part in torch.split(grey, size)]
        return torch.cat(found).view(batch, -1, *cells)


class Bank:
    """Filters for images of one size: wavelets as their spectra, averages as matrices."""

    def __init__(
        self, height: int, width: int, cells: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.padded = _padded(height), _padded(width)
        self.rows, self.columns = (_mirrored(side).to(device) for side in (height, width))
        self.wavelets = [_wavelets(self.padded, scale).to(device, dtype) for scale in (0, 1)]
        self.averages = [
            tuple(
                _average(side, places, step).to(device, dtype)
                for side, places in zip((height, width), cells, strict=True)
            )
            for step in (1, 2)
        ]

    def features(self, grey: Tensor, *, second: bool) -> Tensor:
        """[n, H, W] to [n, 81, *cells], or 17 without the second order."""
        whole = grey[:, self.rows][:, :, self.columns]
        spectrum = torch.fft.fft2(whole)[:, None]
        fine = torch.fft.ifft2(spectrum * self.wavelets[0]).abs()
        coarse = self._mean(self._coarse(spectrum), 1)[:, :, None]
        if second:
            coarse = torch.cat([coarse, self._mean(self._coarse(torch.fft.fft2(fine)[:, :, None]), 1)], dim=2)
        return torch.cat([self._mean(whole[:, None], 0), self._mean(fine, 0), coarse.flatten(1, 2)], dim=1)

    def _coarse(self, spectra: Tensor) -> Tensor:
        """Moduli of the coarse wavelets at every second pixel: dropping pixels adds up the quarters of a spectrum."""
        high, wide = (side // 2 for side in self.padded)
        total = spectra.new_zeros(())
        for top, left in product((0, high), (0, wide)):
            quarter = (..., slice(top, top + high), slice(left, left + wide))
            total = total + spectra[quarter] * self.wavelets[1][quarter]
        moduli: Tensor = torch.fft.ifft2(total).abs().div_(4)
        return moduli

    def _mean(self, maps: Tensor, step: int) -> Tensor:
        down, right = self.averages[step]
        means: Tensor = down @ (maps @ right.t())
        return means


def _padded(side: int) -> int:
    """The next multiple of 8 with room for the margins: such sizes have fast Fourier transforms."""
    return -(-(side + 2 * _MARGIN) // 8) * 8


@lru_cache(maxsize=16)
def _mirrored(side: int) -> Tensor:
    """Which pixel of an image stands at each place of the padded one."""
    before = (_padded(side) - side) // 2
    return torch.from_numpy(np.pad(np.arange(side), (before, _padded(side) - side - before), mode="symmetric"))


@lru_cache(maxsize=16)
def _average(side: int, places: int, step: int) -> Tensor:
    """[places, padded / step]: Gaussian means about the middles of equal cells, of every `step`-th pixel; rows add up
    to 1.
    """
    cell, before = side / places, (_padded(side) - side) // 2
    pixel = torch.arange(0, _padded(side), step, dtype=torch.float64) - before
    middle = (torch.arange(places, dtype=torch.float64) + 0.5) * cell - 0.5
    weights = torch.exp(-(((pixel - middle[:, None]) / (0.8 * cell)) ** 2) / 2)
    return weights / weights.sum(dim=1, keepdim=True)


@lru_cache(maxsize=16)
def _wavelets(size: tuple[int, int], scale: int) -> Tensor:
    """Spectra [8, *size], real, of Morlet wavelets: width 0.8 x 2^scale pixels along the wave and twice that across,
    frequency 3 pi / 4 / 2^scale, mean exactly 0.
    """
    spread, frequency = 0.8 * 2**scale, 0.75 * math.pi / 2**scale
    made = []
    for orientation in range(ORIENTATIONS):
        angle = math.pi * orientation / ORIENTATIONS
        wave, bump = torch.zeros(2, *size, dtype=torch.float64)
        for along, across in _axes(size, angle):
            wave += torch.exp(-(spread**2) * ((along - frequency) ** 2 + 4 * across**2) / 2)
            bump += torch.exp(-(spread**2) * (along**2 + 4 * across**2) / 2)
        made.append(wave - bump * (wave[0, 0] / bump[0, 0]))
    return torch.stack(made)


def _axes(size: tuple[int, int], angle: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Angular frequencies along and across a direction, of the spectrum and its repetitions, which pixels bring."""
    down, right = (2 * math.pi * torch.fft.fftfreq(side, dtype=torch.float64) for side in size)
    for one, other in product(range(-2, 3), repeat=2):
        y, x = down[:, None] + 2 * math.pi * one, right + 2 * math.pi * other
        yield math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
