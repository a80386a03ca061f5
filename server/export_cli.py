"""`python -m server export`: a finished model for other programs."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer


def command(
    model: Annotated[Path, typer.Option("--model", help="Folder of a finished model (model.safetensors, model.json).")],
    out: Annotated[Path, typer.Option("--out", help="Folder for what is written.")],
    form: Annotated[Literal["onnx", "torch", "monai"], typer.Option("--format", help="Which; see above.")] = "onnx",
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON on standard output.")] = False,
) -> None:
    """Write a finished model for programs that don't know Fedward. RESEARCH ONLY: not a medical device.

    \b
    onnx   OUT/model.onnx, for onnxruntime and others;
           needs onnx, onnxruntime, onnxscript
    torch  OUT/model.pt2, for torch.export.load
    monai  OUT as a MONAI bundle: configs, models, docs

    The input is an image as the study's preprocessing leaves it, from 0 to 1; mean, std and the last activation are
    inside, and classes, preprocessing and hashes stand in the file. A detector gives boxes and scores of all its
    anchors (retinanet) or proposals (fasterrcnn), which the caller merges: those above 0.05, of retinanet the 1000
    best of each level of the pyramid; by class no overlap above 0.5; the 100 best. A bundle does that itself and
    writes a JSON file for each picture. Import torchvision before opening fasterrcnn with torch.export.load.
    What was written is opened again and has to answer within 0.0001.

    A model that was trained without differential privacy can carry traces of patients in any form.
    """
    from server.export import export  # here, as it brings in torch

    done = export(model, out, form)
    if as_json:
        print(json.dumps(done))
    else:
        print(f"{done['file']}: {done['bytes'] / 1e6:,.1f} MB, answers within {done['difference']:.1g}")
