"""The study file: one line for every wrong key, and a hash that stands for the whole."""

import json
from pathlib import Path

import pytest
from small import study_values, tiny_study

from common.errors import StudyError
from common.study import MODELS_OF_TASK, Study, from_json, load, parse

READY = sorted((Path(__file__).parents[2] / "simulations" / "studies").glob("*.toml"))


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_ready_studies_parse_and_come_back_from_json(path: Path) -> None:
    study = load(path)
    assert from_json(study.canonical) == study


def test_every_task_has_a_ready_study() -> None:
    assert {load(path).study.task for path in READY} == set(MODELS_OF_TASK)


WRONG = [
    ("training", "bach_size", 8, "training.bach_size is not a known key", "batch_size"),
    ("privacy", "epsilon", 8.0, "privacy is not a known key", "aggregation"),
    ("aggregation", "secure", True, "aggregation.secure is not a known key", "algorithm"),
    ("training", "batch_size", 0, "training.batch_size = 0", "greater than or equal to 1"),
    ("training", "batch_size", "8", "training.batch_size = '8'", "integer"),
    ("training", "batch_size", True, "training.batch_size = True", "integer"),
    ("training", "learning_rate", float("nan"), "training.learning_rate = nan", "finite"),
    ("training", "local_steps", 3, "training", "exactly one of local_epochs and local_steps"),
    ("training", "optimizer", "lion", "training.optimizer = 'lion'", "'sgd', 'adam' or 'adamw'"),
    ("study", "name", "Tiny Study", "study.name = 'Tiny Study'", "pattern"),
    ("study", "classes", ["a", "a"], "study.classes", "must differ"),
    ("study", "classes", ["only"], "study.classes", "at least two"),
    ("study", "classes", ["a", "b\u202e"], "study.classes.1", "printable"),
    ("study", "split", [0.5, 0.1, 0.1], "study.split", "sum 1"),
    ("study", "schema", 2, "study.schema = 2", "1"),
    ("study", "min_sites", 0, "study.min_sites = 0", "greater than or equal to 1"),
    ("model", "name", "unet", "model.name = 'unet'", "cnn or resnet18"),
    ("model", "name", "vgg", "model.name = 'vgg'", "'cnn'"),
    ("model", "norm", "batch", "model.norm = 'batch'", "'none' or 'group'"),
    ("model", "base_channels", 32, "model.base_channels is not a key of 'cnn'", "unet"),
    ("model", "freeze", "backbone", "model.freeze", "pretrained_sha256"),
    ("preprocessing", "window", [40, 0], "preprocessing.window", "width > 0"),
    ("aggregation", "tau", 0.1, "aggregation.tau is not a key of 'fedavg'", "fedadam"),
    ("aggregation", "proximal_mu", 1.0, "aggregation.proximal_mu is not a key of 'fedavg'", "fedprox"),
]


@pytest.mark.parametrize(
    ("section", "key", "value", "names", "allows"), WRONG, ids=[f"{w[0]}.{w[1]}-{w[2]}" for w in WRONG]
)
def test_a_wrong_key_is_answered_by_one_line_that_names_it_and_what_is_allowed(
    section: str, key: str, value: object, names: str, allows: str
) -> None:
    values = study_values()
    values.setdefault(section, {})[key] = value
    with pytest.raises(StudyError) as caught:
        parse(values, where="s.toml")
    text = str(caught.value)
    assert "\n" not in text and names in text and allows in text


def test_a_missing_key_is_named() -> None:
    values = study_values()
    del values["study"]["rounds"]
    with pytest.raises(StudyError, match=r"study\.rounds is missing"):
        parse(values, where="s.toml")


def test_canonical_json_has_sorted_keys_no_whitespace_and_all_defaults() -> None:
    values = json.loads(tiny_study().canonical)
    assert json.dumps(values, sort_keys=True, separators=(",", ":")) == tiny_study().canonical
    assert values["aggregation"]["algorithm"] == "fedavg"


def test_writing_a_default_out_does_not_change_the_hash_and_any_other_value_does() -> None:
    plain = tiny_study()
    assert tiny_study(aggregation={"algorithm": "fedavg"}).sha256 == plain.sha256
    assert tiny_study(training={"learning_rate": 0.051}).sha256 != plain.sha256


def test_text_that_is_not_canonical_is_refused() -> None:
    text = tiny_study().canonical
    for wrong in (text.replace(":", ": ", 1), text[:-1], "[]", "nonsense", text.replace('"rounds":2', '"rounds":2.0')):
        with pytest.raises(StudyError):
            from_json(wrong)


def test_a_study_is_frozen() -> None:
    study: Study = tiny_study()
    with pytest.raises(ValueError, match="frozen"):
        study.study.rounds = 5  # type: ignore[misc]


@pytest.mark.parametrize("text", ["not toml [", "\xff"])
def test_a_file_that_is_not_toml_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(StudyError, match=r"s\.toml"):
        load(path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"absent\.toml"):
        load(tmp_path / "absent.toml")


def test_changes_replace_values_of_the_file(tmp_path: Path) -> None:
    path = READY[0]
    assert load(path, changes={"study.rounds": 9}).study.rounds == 9
    with pytest.raises(StudyError, match="not a table"):
        load(path, changes={"study.rounds.more": 9})
