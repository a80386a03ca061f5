"""Draws chest-like X-ray images: lungs, ribs, heart, vessels, and lesions of known place and extent.

Grey values add up as attenuation along the ray does on a logarithmic radiograph: 0 is air, 1 the densest. Coordinates
are the body's: x to the right of the image, y downwards, 0 in the middle, 1 is half of the image's shorter side.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.floating[Any]]

_LUNG_FLOOR = 0.36  # y at which the side walls run straight; above it they close in to the apex


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """A nodule or a consolidation: a star-shaped patch with soft edges, whole inside a lung."""

    x: float
    y: float
    radius: float  # mean distance of its edge from its centre
    lobes: tuple[tuple[float, float], ...]  # relative amplitude and phase of 2, 3, … waves round the edge
    softness: float  # width of the edge, in radii
    contrast: float  # grey values added in the middle


@dataclass(frozen=True, kw_only=True)
class Chest:
    """One patient's anatomy, the same in all of his images."""

    width: float  # of the rib cage
    apex: float
    diaphragm: float
    heart: float
    heart_x: float
    ribs: float  # contrast
    rib_shift: float
    fat: float  # soft tissue in front of everything
    vessels: tuple[tuple[float, float, float, float], ...]  # side, angle, length, contrast
    gas: float  # stomach bubble
    lesions: tuple[Lesion, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """An image [height, width] float32 in [0, 1] and what is on it: mask uint8 0/1, and per lesion x1, y1, x2, y2 in
    pixels, the smallest box about the lesion's mask (x2 and y2 exclusive)."""

    pixels: NDArray[np.float32]
    mask: NDArray[np.uint8]
    boxes: tuple[tuple[int, int, int, int], ...]


def grow(rng: np.random.Generator, *, lesions: int) -> Chest:
    """A patient with so many lesions, well apart from each other."""
    side = rng.choice((-1.0, 1.0), size=22)
    vessels = tuple(
        (float(s), float(rng.uniform(-1.25, 1.25)), float(rng.uniform(0.3, 0.65)), float(rng.uniform(0.03, 0.07)))
        for s in side
    )
    bare = Chest(
        width=float(rng.normal(0.80, 0.03)),
        apex=float(rng.normal(-0.80, 0.025)),
        diaphragm=float(rng.normal(0.42, 0.05)),
        heart=float(rng.normal(1.0, 0.09)),
        heart_x=float(rng.normal(0.10, 0.025)),
        ribs=float(rng.uniform(0.045, 0.085)),
        rib_shift=float(rng.uniform(-0.05, 0.05)),
        fat=float(np.clip(rng.normal(0.0, 0.035), -0.08, 0.08)),
        vessels=vessels,
        gas=float(rng.uniform(0, 0.16)),
        lesions=(),
    )
    placed: list[Lesion] = []
    while len(placed) < lesions:
        lesion = _lesion(rng, bare)
        apart = all(math.hypot(lesion.x - o.x, lesion.y - o.y) > 1.6 * (lesion.radius + o.radius) for o in placed)
        if lesion.radius > 0 and apart:
            placed.append(lesion)
    return Chest(**{**vars(bare), "lesions": tuple(placed)})


def _lesion(rng: np.random.Generator, chest: Chest) -> Lesion:
    """Anywhere in the lungs, also behind ribs and heart; radius 0 where it would not fit. Two in five drawn are
    consolidations (larger, softer, lobed), the others nodules."""
    consolidation = rng.random() < 0.4
    radius = float(rng.uniform(0.14, 0.23) if consolidation else rng.uniform(0.065, 0.125))
    rough = 0.16 if consolidation else 0.05
    lobes = tuple((float(rng.uniform(0, rough)), float(rng.uniform(0, 2 * math.pi))) for _ in range(3))
    x, y = float(rng.choice((-1.0, 1.0)) * rng.uniform(0.18, 0.75)), float(rng.uniform(-0.7, 0.5))
    inside = float(_lungs(chest, np.array(x), np.array(y))) - 0.02 > 0.8 * radius
    contrast = float(rng.uniform(0.10, 0.30) if consolidation else rng.uniform(0.14, 0.38))
    softness = float(rng.uniform(0.18, 0.35) if consolidation else rng.uniform(0.10, 0.22))
    return Lesion(x=x, y=y, radius=radius if inside else 0.0, lobes=lobes, softness=softness, contrast=contrast)


def expose(chest: Chest, rng: np.random.Generator, *, height: int, width: int) -> Picture:
    """One image of the patient: stands, breathes and is exposed a little differently each time.

    Guarantees: every lesion of the patient is on the image, with a mask of at least one pixel: where it adds half of
    its contrast or more.
    """
    turn, scale = rng.normal(0, 0.025), rng.normal(1.0, 0.025)
    shift_x, shift_y = rng.normal(0, 0.02), rng.normal(0, 0.02)
    half = min(height, width) / 2
    rows = ((np.arange(height, dtype=np.float32) + 0.5 - height / 2) / half)[:, None]
    columns = ((np.arange(width, dtype=np.float32) + 0.5 - width / 2) / half)[None, :]
    x = scale * (columns * math.cos(turn) - rows * math.sin(turn)) + shift_x
    y = scale * (columns * math.sin(turn) + rows * math.cos(turn)) + shift_y

    depth = _lungs(chest, x, y)
    grey = _body(chest, x, y, depth)
    grey += 0.022 * _smooth(rng, height, width, scale=0.05) * _soft(depth, 0.03)
    mask = np.zeros((height, width), np.uint8)
    boxes = []
    for lesion in chest.lesions:
        profile = _profile(lesion, x, y)
        inside = profile >= 0.5
        if not inside.any():  # smaller than a pixel at a very small image size
            inside.flat[int(profile.argmax())] = True
        grey += lesion.contrast * profile
        mask[inside] = 1
        across, down = np.flatnonzero(inside.any(axis=0)), np.flatnonzero(inside.any(axis=1))
        boxes.append((int(across[0]), int(down[0]), int(across[-1]) + 1, int(down[-1]) + 1))
    exposure, offset = rng.normal(1.0, 0.05), rng.normal(0.0, 0.02)
    grey = grey * exposure + offset
    grey += rng.standard_normal(grey.shape, dtype=np.float32) * (0.008 + 0.018 * np.clip(grey, 0, 1))
    return Picture(pixels=np.clip(grey, 0, 1).astype(np.float32), mask=mask, boxes=tuple(boxes))


def _soft(signed: Plane, width: float) -> Plane:
    """A step of the given width: 0 far below zero, 1 far above."""
    step: Plane = 0.5 + 0.5 * np.tanh(signed / (2 * width))
    return step


def _profile(lesion: Lesion, x: Plane, y: Plane) -> Plane:
    """What share of its contrast the lesion adds at each place, in [0, 1]."""
    dx, dy = x - lesion.x, y - lesion.y
    angle = np.arctan2(dy, dx)
    edge = np.ones_like(angle)
    for waves, (amplitude, phase) in enumerate(lesion.lobes, start=2):
        edge += amplitude * np.cos(waves * angle + phase)
    return _soft(edge - np.hypot(dx, dy) / lesion.radius, lesion.softness / 2)


def _wall(chest: Chest, y: Plane) -> Plane:
    """Distance of the lung's outer wall from the midline at each height."""
    rise = np.clip((_LUNG_FLOOR - y) / (_LUNG_FLOOR - chest.apex), 0, 1)
    wall: Plane = 0.12 + (chest.width - 0.12) * (1 - rise**2.4) ** (1 / 2.2)
    return wall


def _lungs(chest: Chest, x: Plane, y: Plane) -> Plane:
    """Depth inside the nearer lung's outline: positive inside, about the distance to the outline."""
    t = np.abs(x)
    dome = chest.diaphragm + np.where(x > 0, 0.05, 0.0) + 0.20 * ((t - 0.36) / 0.42) ** 2
    depth: Plane = np.minimum(np.minimum(_wall(chest, y) - t, t - 0.13), np.minimum(dome - y, y - chest.apex))
    return depth.astype(np.float32)


def _body(chest: Chest, x: Plane, y: Plane, depth: Plane) -> Plane:
    t = np.abs(x)
    air = np.minimum(y + 1.02 - 0.75 * np.maximum(t - 0.30, 0) ** 1.3, 1.06 + 0.04 * y - t)
    grey = (0.60 + chest.fat + 0.05 * y) * _soft(air, 0.012)
    lungs = _soft(depth, 0.014)
    grey -= lungs * (0.24 + 0.17 * np.clip(depth / 0.22, 0, 1) ** 0.6)
    grey += _bones(chest, x, y)
    grey += 0.14 * _soft(0.115 + 0.03 * np.maximum(y, 0) - t, 0.018)  # mediastinum
    grey += 0.10 * _soft(0.085 - np.hypot(x - 0.12, y + 0.27), 0.012)  # aortic arch
    grey -= 0.11 * _soft(0.038 - np.abs(x + 0.01), 0.012) * _soft(-0.14 - y, 0.03)  # windpipe
    heart = np.maximum(
        _ellipse(x - chest.heart_x, y - 0.19, 0.42 * chest.heart, 0.27 * chest.heart, 0.75),
        _ellipse(x + 0.06, y - 0.16, 0.15 * chest.heart, 0.26, 0.0),
    )
    grey += _soft(heart, 0.03) * (0.27 * lungs + 0.07 * _soft(chest.diaphragm + 0.15 - y, 0.05))
    grey += 0.10 * _soft(y - chest.diaphragm - 0.1, 0.10) * (1 - lungs)  # abdomen
    grey -= chest.gas * _soft(_ellipse(x - 0.42, y - chest.diaphragm - 0.20, 0.17, 0.08, 0.0), 0.08)
    return grey.astype(np.float32) + _vessels(chest, x, y, lungs)


def _ellipse(x: Plane, y: Plane, across: float, down: float, turn: float) -> Plane:
    """1 in the middle, 0 on the edge, negative outside."""
    c, s = math.cos(turn), math.sin(turn)
    inside: Plane = 1 - np.hypot((x * c + y * s) / across, (y * c - x * s) / down)
    return inside


def _bones(chest: Chest, x: Plane, y: Plane) -> Plane:
    t = np.abs(x)
    cage = _soft(_wall(chest, y) + 0.05 - t, 0.02) * _soft(t - 0.05, 0.02)
    # Nine ribs behind, arching down to the side, and six in front, rising to the side and ending in cartilage.
    arch = 0.10 * t + 0.60 * np.maximum(t - 0.45, 0) ** 2 - 0.06 * np.sin(5 * t)
    behind = (y - arch + 0.84 - chest.rib_shift) / 0.145
    front = (y + 0.62 * t + 0.15 - chest.rib_shift) / 0.19
    bones: Plane = chest.ribs * _bands(behind, count=9, half=0.20) * cage
    bones += 0.45 * chest.ribs * _bands(front, count=6, half=0.22) * cage * _soft(t - 0.34, 0.04)
    clavicle = np.abs(y + 0.655 + 0.13 * t - 0.05 * np.sin(7 * t))
    bones += 0.11 * _soft(0.032 - clavicle, 0.008) * _soft(t - 0.07, 0.01) * _soft(0.86 - t, 0.02)
    spine = 0.07 + 0.025 * np.cos(2 * np.pi * y / 0.15)
    bones += spine * _soft(0.075 - t, 0.012)
    return bones


def _bands(phase: Plane, *, count: int, half: float) -> Plane:
    """Bright bands at phases 0, 1, … count - 1 with brighter rims, as of tubes."""
    nearest = np.clip(np.round(phase), 0, count - 1)
    off = np.abs(phase - nearest)
    bands: Plane = _soft(half - off, 0.05) * (0.75 + 0.5 * np.minimum(off / half, 1) ** 2)
    return bands


def _vessels(chest: Chest, x: Plane, y: Plane, lungs: Plane) -> Plane:
    """Branches from the two hila outwards, thinner and fainter with distance, only seen against the lung."""
    grey = np.zeros_like(x)
    for side, angle, length, contrast in chest.vessels:
        dx, dy = side * x - 0.15, y - (0.07 * math.sin(angle) - 0.02)
        along = dx * math.cos(angle) + dy * math.sin(angle)
        off = np.abs(dy * math.cos(angle) - dx * math.sin(angle))
        left = np.clip(1 - along / length, 0, 1)
        grey += contrast * left * _soft(0.022 * left + 0.004 - off, 0.008) * _soft(along - 0.03, 0.02)
    hila = np.exp(-(((np.abs(x) - 0.19) / 0.06) ** 2) - (y / 0.13) ** 2)
    return (grey + 0.06 * hila).astype(np.float32) * lungs


def _smooth(rng: np.random.Generator, height: int, width: int, *, scale: float) -> Plane:
    """Gaussian noise of standard deviation 1, smooth over `scale` of the image's height."""
    spectrum = np.fft.rfft2(rng.standard_normal((height, width)))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    spectrum *= np.exp(-0.5 * (np.pi * frequency * scale * height) ** 2)
    field = np.fft.irfft2(spectrum, s=(height, width))
    return np.asarray(field / field.std(), np.float32)
