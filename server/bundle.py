"""A MONAI bundle: a folder with a network that needs no code of ours, what it is, and how to run it on pictures.

The preprocessing is written in MONAI's words and gives Fedward's numbers, rounded to half precision, for 8-bit
pictures. Source: MONAI, "MONAI Bundle" specification.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.model_files import Model
from server import bundle_boxes
from server.checkpoint import write_atomically

NETWORK = "model.pt2"
_MONAI = "1.5.0"  # for which this was written; newer ones read it too


def prepare(model: Model, out: Path) -> Path:
    """Write all of a bundle but its network, whose path is the answer."""
    files = {
        "configs/metadata.json": json.dumps(metadata(model), indent=1, ensure_ascii=False),
        "configs/inference.json": json.dumps(inference(model), indent=1, ensure_ascii=False),
        "docs/README.md": _readme(model),
    }
    for name, text in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out / name, [text.encode()])
    (out / "models").mkdir(exist_ok=True)
    return out / "models" / NETWORK


def metadata(model: Model) -> dict[str, Any]:
    """configs/metadata.json."""
    study, (height, width) = model.study, model.study.model.image_size
    names = {str(position): name for position, name in enumerate(study.study.classes)}
    is_classifier, is_detector = study.study.task == "classification", study.study.task == "detection"
    packages = {"fire": "0.5.0", "pillow": "11.0.0", "pytorch-ignite": "0.5.0"}
    packages |= {"torchvision": version("torchvision").split("+")[0]} if is_detector else {"nibabel": "5.0.0"}
    pred = {
        "type": "probabilities" if is_classifier else "image",
        "format": "classes" if is_classifier else "segmentation",
        "num_channels": len(names),
        "spatial_shape": [] if is_classifier else [height, width],
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": False,
    }
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
        "meta_schema_20240725.json",
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported from run {model.run}"},
        "monai_version": _MONAI,
        "pytorch_version": version("torch").split("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": packages,
        "name": study.study.name,
        "task": study.study.task,
        "description": f"{study.study.task} of {', '.join(study.study.classes)}, trained by federated learning",
        "authors": "the study's sites",
        "copyright": "the study's sites",
        "intended_use": model.intended_use,
        "fedward": model.provenance,
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "num_channels": study.model.channels,
                    "spatial_shape": [height, width],
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": False,
                    "channel_def": {"0": "grey"} if study.model.channels == 1 else {"0": "R", "1": "G", "2": "B"},
                }
            },
            "outputs": {"pred": {**(bundle_boxes.output(model) if is_detector else pred), "channel_def": names}},
        },
    }


def inference(model: Model) -> dict[str, Any]:
    """configs/inference.json."""
    task = model.study.study.task
    last = {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}
    saver = {
        "_target_": "ClassificationSaver",
        "output_dir": "@output_dir",
        "filename": "predictions.csv",
        "batch_transform": "$lambda batch: [one['image'].meta for one in batch]",
        "output_transform": "$lambda output: [one['pred'] for one in output]",
    }
    pictures = {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_postfix": "mask"}
    config: dict[str, Any] = {
        "imports": ["$import glob", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cpu')",
        # As a tree of modules, because MONAI calls eval(), which a program refuses.
        "network_def": f"$torch.export.unflatten(torch.export.load(@bundle_root + '/models/{NETWORK}'))",
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": _transforms(model)},
        "datalist": "$[{'image': path} for path in sorted(glob.glob(@dataset_dir + '/*'))]",
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "shuffle": False},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [last, {**pictures, "output_ext": ".nii.gz"}] if task == "segmentation" else [],
        },
        "handlers": [saver] if task == "classification" else [],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }
    return {**config, **bundle_boxes.merging(model)} if task == "detection" else config


def _transforms(model: Model) -> list[dict[str, Any]]:
    """From a picture file to the network's input. Rows stay rows: MONAI's reader would turn the picture."""
    how, (height, width) = model.study.preprocessing, model.study.model.image_size
    unit = {"keys": "image", "b_min": 0.0, "b_max": 1.0, "clip": True}
    if how.window == "percentile":
        scale = {"_target_": "ScaleIntensityRangePercentilesd", "lower": 1, "upper": 99, **unit}
    else:
        low, high = (0.0, 255.0)
        if how.window != "dicom":
            low, high = how.window[0] - how.window[1] / 2, how.window[0] + how.window[1] / 2
        scale = {"_target_": "ScaleIntensityRanged", "a_min": low, "a_max": high, **unit}
    if model.study.model.channels == 1:
        colour = (
            "$lambda x: (x[:3] * torch.tensor([0.299, 0.587, 0.114]).reshape(3, 1, 1)).sum(0, keepdim=True)"
            " if x.shape[0] > 2 else x[:1]"
        )
    else:
        colour = "$lambda x: x[:3] if x.shape[0] > 2 else x[:1].repeat(3, 1, 1)"
    size = f"[{height}, {width}]"
    if how.aspect == "pad":
        ratio = f"min({height} / x.shape[1], {width} / x.shape[2])"
        size = f"[max(1, min(m, round(s * {ratio}))) for s, m in zip(x.shape[1:], ({height}, {width}))]"
    resized = f"$lambda x: torch.nn.functional.interpolate(x[None], {size}, mode='bilinear', antialias=True)[0]"
    return [
        {"_target_": "LoadImaged", "keys": "image", "reader": "PILReader", "reverse_indexing": False,
         "ensure_channel_first": True},
        scale,
        {"_target_": "Lambdad", "keys": "image", "func": colour},
        {"_target_": "Lambdad", "keys": "image", "func": resized},
        {"_target_": "SpatialPadd", "keys": "image", "spatial_size": [height, width], "mode": "constant"},
        {"_target_": "CastToTyped", "keys": "image", "dtype": "$torch.float16"},  # as it is kept at a site
        {"_target_": "CastToTyped", "keys": "image", "dtype": "$torch.float32"},
    ]  # fmt: skip


_UPRIGHT = """
The model has learnt from images turned by their headers, and pictures have none: give them with columns that count to
the patient's left and rows that count to the feet (of axial slices to the back), and with square pixels.
"""


_WRITES = {
    "classification": "a table of probabilities",
    "segmentation": "masks",
    "detection": "a JSON file for each picture (class, score, and corners x1, y1, x2, y2 in its pixels)",
}


def _readme(model: Model) -> str:
    study = model.study
    return f"""# {study.study.name}

{study.study.task} of {", ".join(study.study.classes)}, trained by federated learning with Fedward.

**{model.intended_use}.**

    python -m monai.bundle run --config_file configs/inference.json --bundle_root .

reads 8-bit pictures from `images/` and writes to `eval/` {_WRITES[study.study.task]}.
DICOM files, windows and results as DICOM objects: `python -m client predict` of Fedward, with the model's own files.
{_UPRIGHT if study.preprocessing.orientation == "patient" else ""}
Study SHA-256 {study.sha256}, weights SHA-256 {model.weights_sha256}.
"""
