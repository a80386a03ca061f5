"""Options that several of the researcher's commands have, and the study that they name. Imports no torch."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.errors import StudyError

if TYPE_CHECKING:
    from common.study import Study

STUDIES = Path(__file__).parent / "studies"
DATA_HELP = (
    "where the images come from: phantom[:PATIENTS] (made on the spot), medmnist:FILE.npz, voc:DIR, coco:DIR,"
    " masks:DIR (images/ and masks/ with equal names) or dicom:DIR (DICOM files with labels.csv, masks/ or boxes.json)"
)
PARTITION_HELP = (
    "how patients are divided: uniform, quantity:ALPHA (unequal sizes), dirichlet:ALPHA (unequal classes), column:NAME"
    " (by a column of labels.csv), scanner:STRENGTH (each site's images look different); join with +."
    " Smaller ALPHA: more unequal"
)

StudyArgument = Annotated[
    Path, typer.Argument(help="study file, or the name of a ready one (see `studies`)", metavar="STUDY.toml")
]
DataOption = Annotated[str, typer.Option("--data", help=DATA_HELP, metavar="SPEC")]
SitesOption = Annotated[int, typer.Option("--sites", min=1, max=10_000, help="number of hospitals", metavar="N")]
PartitionOption = Annotated[str, typer.Option("--partition", help=PARTITION_HELP, metavar="SPEC")]
OutOption = Annotated[Path, typer.Option("--out", help="folder for everything that is left behind", metavar="DIR")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="change a key of the study: study.rounds=5; again for more", metavar="KEY=VALUE"),
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="no progress, only the result")]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object on standard output instead of a table")]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="CPU threads of each training", metavar="N")]
PretrainedOption = Annotated[
    Path | None,
    typer.Option("--pretrained", help=".safetensors file to start from; its hash is in the study", metavar="FILE"),
]


def study_from(path: Path, changes: list[str] | None) -> "Study":
    """The study in a file, or the ready one of that name, with `--set` applied."""
    from common.study import load

    ready = STUDIES / f"{path.name.removesuffix('.toml')}.toml"
    return load(ready if not path.exists() and ready.exists() else path, changes=dict(map(_change, changes or [])))


def _change(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise StudyError(f"--set {text}: write KEY=VALUE, for example study.rounds=5")
    try:
        return key.strip(), json.loads(value)
    except ValueError:
        return key.strip(), value
