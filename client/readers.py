"""Several readers of one image: one annotation from theirs, and how far they agree.

Everything here looks at one image at a time. Estimating a reader's reliability over several patients' images would make
each patient's truth depend on all others', which no clipping of gradients could undo.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from client.agreement import Agreement, dice, matched, over_pairs, overlap
from client.drops import Drop, Unusable
from common.annotation import Annotation, Box

Fusion = Literal["majority", "staple"]
READERS_LIMIT = 32
_ROUNDS = 200  # of STAPLE; it takes 5 to 30


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one reader knows of an image. Readers of different name are different, "" among them."""

    reader: str
    annotation: Annotation


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimate:
    """What STAPLE finds: the object's probability in each pixel [...], sensitivity and specificity by reader [R]."""

    probability: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    specificity: NDArray[np.float64]


def fused(
    readings: Sequence[Reading], how: Fusion, *, path: str = "", item: int = 0
) -> tuple[Annotation, Agreement | None]:
    """One annotation of the image at `path`, and the agreement where there are several readers.

    A label is the one that most readers give. A class's outline is what more than half of those readers cover who look
    for the class at all, or what STAPLE finds more probable than not; where fused classes meet, the better supported
    one wins, the later of equals. A box is the mean of matching boxes of more than half of those readers who look for
    its class, with either method. Masks with names and masks without can't be compared: those of the first reader's
    kind count.
    Guarantees: one reader's annotation is returned as it is. A function of this image's readings alone.
    Raises Unusable for a tie between labels, more than READERS_LIMIT readers, or boxes of which none is left although
    half of the readers or more drew some: that is no image without objects.
    """
    if len(readings) > READERS_LIMIT:
        raise Unusable(Drop.TOO_LARGE, f"{len(readings)} readers; limit {READERS_LIMIT}")
    labels = {one.reader: one.annotation.label for one in readings if one.annotation.label is not None}
    apart = not_comparable(readings)
    masks = [one.annotation for one in readings if one.annotation.mask is not None and one not in apart]
    boxes = [one.annotation for one in readings if one.annotation.boxes is not None]
    mask, names, agreed = _fused_masks(masks, how)
    kept, met = _fused_boxes(boxes)
    annotation = Annotation(label=_fused_label(labels), mask=mask, mask_names=names, boxes=kept)
    several = labels if len(labels) > 1 else {}
    if not (several or agreed or met):
        return annotation, None
    return annotation, Agreement(path=path, item=item, labels=several, dice=agreed, iou=met)


def not_comparable(readings: Sequence[Reading]) -> list[Reading]:
    """Those whose masks don't count: with names where the first reader's has none, or the other way round."""
    masks = [one for one in readings if one.annotation.mask is not None]
    is_named = [one.annotation.mask_names is not None for one in masks]
    return [one for one, named in zip(masks, is_named, strict=True) if named != is_named[0]]


def outvoted(readings: Sequence[Reading], known: Annotation) -> bool:
    """Whether one of several readers drew a class that the one annotation of all has nothing of."""
    if len(readings) < 2:
        return False
    apart = not_comparable(readings)
    boxes = {box.name for one in readings for box in one.annotation.boxes or ()}
    covering = {name for one in readings if one not in apart for name in _covering(one.annotation)}
    return bool(boxes - {box.name for box in known.boxes or ()} or covering - _covering(known))


def staple(decisions: NDArray[np.bool_]) -> Estimate:
    """Simultaneous truth and performance level estimation, from one image's decisions [R, ...] alone.

    The prior of the object is the share of pixels that readers gave it; the start is that all readers are good.
    Edge case: where nobody or everybody covers every pixel, that is the truth.
    Source: Warfield, Zou, Wells 2004, section II, equations 11, 14, 18, 19.
    """
    count = len(decisions)
    flat = decisions.reshape(count, -1)
    patterns, which, pixels = np.unique(np.packbits(flat, axis=0), axis=1, return_inverse=True, return_counts=True)
    said = np.unpackbits(patterns, axis=0, count=count).astype(np.float64)  # [R, patterns]: few, however many pixels
    sensitivity, specificity = np.full(count, 0.99999), np.full(count, 0.99999)
    prior = float((said @ pixels).sum() / (count * pixels.sum()))
    if prior in (0.0, 1.0):
        return Estimate(
            probability=np.full(decisions.shape[1:], prior), sensitivity=sensitivity, specificity=specificity
        )
    probability = np.full(len(pixels), prior)
    for _ in range(_ROUNDS):
        inside = np.log(prior) + np.log(sensitivity) @ said + np.log1p(-sensitivity) @ (1 - said)
        outside = np.log1p(-prior) + np.log(specificity) @ (1 - said) + np.log1p(-specificity) @ said
        before, probability = probability, 1 / (1 + np.exp(np.clip(outside - inside, -700, 700)))
        weight, rest = probability * pixels, (1 - probability) * pixels
        sensitivity = np.clip(said @ weight / max(weight.sum(), 1e-300), 1e-9, 1 - 1e-9)
        specificity = np.clip((1 - said) @ rest / max(rest.sum(), 1e-300), 1e-9, 1 - 1e-9)
        if np.abs(probability - before).max() < 1e-9:
            break
    everywhere = probability[which.ravel()].reshape(decisions.shape[1:])
    return Estimate(probability=everywhere, sensitivity=sensitivity, specificity=specificity)


def _fused_label(labels: Mapping[str, str]) -> str | None:
    if not labels:
        return None
    (best, votes), *others = Counter(labels.values()).most_common(2)
    if others and others[0][1] == votes:
        raise Unusable(Drop.BAD_ANNOTATION, f"its {len(labels)} readers give no label more often than another")
    return best


def _fused_masks(
    masks: Sequence[Annotation], how: Fusion
) -> tuple[NDArray[np.uint8] | None, tuple[str, ...] | None, dict[str, float]]:
    """The mask, what its values stand for, and mean Dice of pairs of readers by class."""
    if len(masks) < 2:
        return (masks[0].mask, masks[0].mask_names, {}) if masks else (None, None, {})
    named = masks[0].mask_names is not None
    names = tuple(dict.fromkeys(name for one in masks for name in _names(one)))
    if len(names) > 255:
        raise Unusable(Drop.BAD_ANNOTATION, f"{len(names)} classes by its readers together; at most 255")
    shape = masks[0].mask.shape if masks[0].mask is not None else ()
    best, mask = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    agreed: dict[str, float] = {}
    for name in names:
        said = np.stack([_covered(one, name) for one in masks if not named or name in _names(one)])
        share = said.mean(axis=0) if how == "majority" or len(said) < 2 else staple(said).probability
        inside = (share > 0.5) & (share >= best)
        mask[inside], best[inside] = int(name) if not named else names.index(name) + 1, share[inside]
        found = over_pairs(list(said), dice)
        if found is not None:
            agreed[name] = found
    return mask, names if named else None, agreed


def _names(one: Annotation) -> tuple[str, ...]:
    """The classes that a reader looks for; of masks without names the values that occur."""
    if one.mask_names is not None or one.mask is None:
        return one.mask_names or ()
    return tuple(str(value) for value in np.unique(one.mask[one.mask > 0]))


def _covering(one: Annotation) -> set[str]:
    """The classes that a mask covers at least one pixel with."""
    values = [] if one.mask is None else np.unique(one.mask[one.mask > 0]).tolist()
    return {str(v) if one.mask_names is None else one.mask_names[v - 1] for v in values}


def _covered(one: Annotation, name: str) -> NDArray[np.bool_]:
    values = (
        [k for k, own in enumerate(one.mask_names, 1) if own == name] if one.mask_names is not None else [int(name)]
    )
    return np.isin(one.mask if one.mask is not None else np.zeros(0), values)


def _fused_boxes(readers: Sequence[Annotation]) -> tuple[tuple[Box, ...] | None, dict[str, float]]:
    """The boxes, and mean IoU of pairs of readers by class; an object that one of a pair has not seen counts 0."""
    if len(readers) < 2:
        return (readers[0].boxes if readers else None), {}
    kept: list[Box] = []
    iou: dict[str, float] = {}
    is_disputed = False
    for name in dict.fromkeys(box.name for own in readers for box in own.boxes or ()):
        drawn = [[box for box in own.boxes or () if box.name == name] for own in readers if _looks_for(own, name)]
        objects: list[list[Box]] = []
        for own in drawn:
            pairs = {j: i for i, j, _ in matched([_mean(group) for group in objects], own)}
            for j, box in enumerate(own):
                if j in pairs:
                    objects[pairs[j]].append(box)
                else:
                    objects.append([box])
        kept += [_mean(group) for group in objects if 2 * len(group) > len(drawn)]
        is_disputed = is_disputed or 2 * sum(map(bool, drawn)) >= len(drawn)
        found = over_pairs(drawn, overlap)
        if found is not None:
            iou[name] = found
    if is_disputed and not kept:
        raise Unusable(Drop.BAD_ANNOTATION, f"its {len(readers)} readers drew boxes, and no majority of them the same")
    return tuple(kept), iou


def _looks_for(one: Annotation, name: str) -> bool:
    """Whether a reader's boxes, or their absence, say something of a class. Who drew none and names no class may look
    for any.
    """
    drawn = {box.name for box in one.boxes or ()}
    return name in drawn or (name in one.box_names if one.box_names is not None else not drawn)


def _mean(group: Sequence[Box]) -> Box:
    x1, y1, x2, y2 = (float(v) for v in np.mean([(box.x1, box.y1, box.x2, box.y2) for box in group], axis=0))
    return Box(x1=x1, y1=y1, x2=x2, y2=y2, name=group[0].name)
