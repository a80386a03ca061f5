"""The data SPEC: what it means, and that a phantom is written once, whole, and never over somebody's files."""

import errno
import json
from pathlib import Path

import pytest

from common.errors import DataError, RunError
from simulations import datasets
from simulations.datasets import DEFAULT_PATIENTS, Spec, materialise, parse_spec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("phantom", Spec(kind="phantom", patients=DEFAULT_PATIENTS)),
        ("phantom:12", Spec(kind="phantom", patients=12)),
        ("medmnist:a/b.npz", Spec(kind="medmnist", path=Path("a/b.npz"))),
        ("voc:set", Spec(kind="voc", path=Path("set"))),
        ("coco:C:set", Spec(kind="coco", path=Path("C:set"))),
        ("masks:set", Spec(kind="masks", path=Path("set"))),
        ("dicom:/archive/export 1", Spec(kind="dicom", path=Path("/archive/export 1"))),
        ("dicom:~/x", Spec(kind="dicom", path=Path.home() / "x")),
    ],
)
def test_a_spec_is_parsed_and_printed_back(text: str, spec: Spec) -> None:
    assert parse_spec(text) == spec
    assert parse_spec(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "'' is not a kind of data"),
        ("mnist:x", "'mnist' is not a kind of data"),
        ("voc", "the path after voc: is missing"),
        ("dicom: ", "the path after dicom: is missing"),
        ("phantom:", "PATIENTS is a whole number from 1"),
        ("phantom:0", "PATIENTS is a whole number from 1"),
        ("phantom:1.5", "PATIENTS is a whole number from 1"),
        ("phantom:²", "PATIENTS is a whole number from 1"),
        ("phantom:9999999999", "PATIENTS is a whole number from 1"),
    ],
)
def test_a_wrong_spec_gets_one_line_that_names_it_the_fault_and_the_allowed_forms(text: str, fault: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_spec(text)
    message = str(caught.value)
    assert message.startswith(f"data {text!r}: ") and fault in message and "medmnist:FILE" in message
    assert "\n" not in message


def test_a_path_that_is_absent_or_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "set.npz"
    file.touch()
    with pytest.raises(DataError, match=r"gone does not exist: give the path of a folder$"):
        materialise(parse_spec(f"voc:{tmp_path}/gone"), tmp_path, seed=0)
    with pytest.raises(DataError, match="is not a folder"):
        materialise(parse_spec(f"dicom:{file}"), tmp_path, seed=0)
    with pytest.raises(DataError, match="is not a file"):
        materialise(parse_spec(f"medmnist:{tmp_path}"), tmp_path, seed=0)
    assert materialise(parse_spec(f"medmnist:{file}"), tmp_path, seed=0) == ("medmnist", file)
    assert materialise(parse_spec(f"coco:{tmp_path}"), tmp_path, seed=0) == ("coco", tmp_path)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_whole_phantom_is_kept_and_another_or_a_half_written_one_is_replaced(tmp_path: Path) -> None:
    spec = parse_spec("phantom:1")
    kind, path = materialise(spec, tmp_path, seed=1)
    assert (kind, path) == ("dicom", tmp_path / "phantom")
    first = _files(path)
    trace = path / "trace"
    trace.touch()
    materialise(spec, tmp_path, seed=1)
    assert trace.exists()

    marker = tmp_path / "phantom.json"
    for spoilt in ('{"finished"', json.dumps({**json.loads(marker.read_text()), "finished": False})):
        marker.write_text(spoilt)
        trace.touch()
        materialise(spec, tmp_path, seed=1)
        assert _files(path) == first

    materialise(spec, tmp_path, seed=2)
    assert _files(path).keys() != first.keys()


def test_a_folder_that_is_no_phantom_is_never_deleted(tmp_path: Path) -> None:
    own = tmp_path / "phantom" / "thesis.txt"
    own.parent.mkdir()
    own.write_text("mine")
    with pytest.raises(DataError, match="is in the way"):
        materialise(parse_spec("phantom:1"), tmp_path, seed=1)
    assert own.read_text() == "mine"


def test_a_full_disk_is_one_line_and_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, **_: object) -> None:
        folder.mkdir()
        (folder / "labels.csv").write_text("key,label\n")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "write_phantom", full)
        with pytest.raises(RunError, match=r"^.*phantom: the phantom can't be written \(No space left on device\).*$"):
            materialise(parse_spec("phantom:1"), tmp_path, seed=1)
    materialise(parse_spec("phantom:1"), tmp_path, seed=1)
    assert len((tmp_path / "phantom" / "labels.csv").read_text().splitlines()) > 1
