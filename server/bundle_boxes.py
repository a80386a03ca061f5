"""How a bundle makes a detector's boxes and scores into a file of objects: torchvision's own merging, in a config."""

from itertools import pairwise
from typing import Any

from common.model_files import Model


def merging(model: Model) -> dict[str, Any]:
    """Entries of configs/inference.json that are a detector's own.

    Guarantees: what comes out is what torchvision's detector makes of the same image: for RetinaNet scores above 0.05,
    the 1000 best of each of the pyramid's levels, for both by class no overlap above 0.5, the 100 best of all. Boxes
    are in pixels of the stored picture, padding taken off, cut at its border.
    """
    study, (height, width) = model.study, model.study.model.image_size
    count = len(study.study.classes)
    content = f"$lambda size: [{height}, {width}]"
    if study.preprocessing.aspect == "pad":
        content = (
            f"$lambda size: [max(1, min(m, round(s * min({height} / size[0], {width} / size[1]))))"
            f" for s, m in zip(size, ({height}, {width}))]"
        )
    candidates: dict[str, Any]
    if study.model.name == "retinanet":
        box, candidates = f"@at(pred) // {count}", {**_RETINANET, "levels": _levels(model, count)}
    else:
        box, candidates = "@at(pred)", _FASTERRCNN
    return {
        "imports": [f"$import {name}" for name in ("glob", "json", "pathlib", "torch", "torchvision")],
        "classes": list(study.study.classes),
        "grid": [height, width],
        "content": content,
        **candidates,
        "found": f"$lambda pred: {{'boxes': pred[0].reshape(-1, 4)[{box}], 'scores': pred[1].flatten()[@at(pred)],"
        f" 'labels': @at(pred) % {count}}}",
        **_MERGED,
    }


def output(model: Model) -> dict[str, Any]:
    """What `network_data_format` says of the boxes, in pixels of the model's input."""
    return {
        "type": "object",
        "format": "dict",
        "num_channels": len(model.study.study.classes),
        "spatial_shape": ["n", 4],
        "dtype": "float32",
        "value_range": [0, max(model.study.model.image_size)],
        "is_patch_data": False,
    }


def _levels(model: Model, count: int) -> list[list[int]]:
    """First score of each of the pyramid's levels, and of the next."""
    from server.portable_detectors import levels_of  # here, as it brings in torchvision

    ends = [0]
    for level in levels_of(model):
        ends.append(ends[-1] + len(level) * count)
    return [list(pair) for pair in pairwise(ends)]


# Positions among an image's scores, all in one row, of those that are merged.
_RETINANET = {
    "likely": "$lambda scores, at: at[scores[at].topk(min(1000, len(at)))[1]]",
    "at": "$lambda pred: torch.cat([@likely(pred[1].flatten(), first + torch.where("
    "pred[1].flatten()[first:last] > 0.05)[0]) for first, last in @levels])",
}
_FASTERRCNN = {"at": "$lambda pred: torch.where(pred[1].flatten() > 0.05)[0]"}
_MERGED = {
    "best": "$lambda one: torchvision.ops.batched_nms(one['boxes'], one['scores'], one['labels'], 0.5)[:100]",
    "shift": "$lambda size: torch.tensor([(m - c) // 2 for m, c in zip(@grid, @content(size))][::-1] * 2)",
    "stretch": "$lambda size: torch.tensor("
    "[s / c for s, c in zip(size, @content(size))][::-1] * 2, dtype=torch.float64)",
    "stored": "$lambda boxes, size: torch.minimum("
    "((boxes.double() - @shift(size)) * @stretch(size)).clamp(min=0), torch.tensor(size[::-1] * 2)).float()",
    "record": "$lambda meta, one: {'image': pathlib.Path(meta['filename_or_obj']).name,"
    " 'objects': [{'box': box, 'label': @classes[label], 'score': score} for box, label, score in"
    " zip(@stored(one['boxes'], [int(meta['height']), int(meta['width'])]).tolist(), one['labels'].tolist(),"
    " one['scores'].tolist())]}",
    "written": "$lambda one: (pathlib.Path(@output_dir) / (one['image'] + '.json')).write_text(json.dumps(one))",
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Lambdad", "keys": "pred", "func": "$lambda pred: @found([one.cpu() for one in pred])"},
            {
                "_target_": "Lambdad",
                "keys": "pred",
                "func": "$lambda one: {key: value[@best(one)] for key, value in one.items()}",
            },
            {
                "_target_": "Lambda",
                "func": "$lambda item: {**item, 'bytes': @written(@record(item['image'].meta, item['pred']))}",
            },
        ],
    },
    "run": ["$pathlib.Path(@output_dir).mkdir(parents=True, exist_ok=True)", "$@evaluator.run()"],
}
