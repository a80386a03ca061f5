"""The study file: one line for every wrong key, and a hash that stands for the whole."""

import json
from pathlib import Path

import pytest
from small import private_study, private_values, study_values, tiny_study

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
    ("study", "classes", ["a", "\x1b[2Jb"], "study.classes.1 = '\\x1b[2Jb'", "printable"),
    ("study", "classes", ["a", "\x9b31mb"], "study.classes.1 = '\\x9b31mb'", "printable"),
    ("study", "classes", ["a", "\x1b]8;;http://x\x07b"], "study.classes.1", "printable"),
    ("study", "classes", ["a", "b\rc"], "study.classes.1", "printable"),
    ("study", "split", [0.5, 0.1, 0.1], "study.split", "sum 1"),
    ("study", "schema", 2, "study.schema = 2", "1"),
    ("study", "min_sites", 0, "study.min_sites = 0", "greater than or equal to 1"),
    ("model", "name", "unet", "model.name = 'unet'", "cnn or"),
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


WRONG_UNDER_PRIVACY = [
    ("privacy", "epsilon", 0.0, "privacy.epsilon = 0.0", "greater than or equal to 0.01"),
    ("privacy", "epsilon", -1.0, "privacy.epsilon = -1.0", "greater than or equal to 0.01"),
    ("privacy", "epsilon", float("nan"), "privacy.epsilon = nan", "finite"),
    ("privacy", "epsilon", 51.0, "privacy.epsilon = 51.0", "less than or equal to 50"),
    ("privacy", "delta", 0.5, "privacy.delta = 0.5", "less than or equal to 0.01"),
    ("privacy", "sample_rate", 0.0, "privacy.sample_rate = 0.0", "greater than or equal to 0.000001"),
    ("privacy", "sample_rate", 1.5, "privacy.sample_rate = 1.5", "less than or equal to 1"),
    ("privacy", "clip_norm", 0.0, "privacy.clip_norm = 0.0", "greater than or equal to"),
    ("privacy", "unit", "image", "privacy.unit = 'image'", "'patient'"),
    ("privacy", "noise", "none", "privacy.noise = 'none'", "'local'"),
    ("privacy", "seed", 3, "privacy.seed is not a known key", "sample_rate"),
    ("privacy", "augmentations", 4, "privacy.augmentations", "training.augmentation = 'standard'"),
    ("privacy", "evaluation", {"epsilon": 3.0, "releases": 3}, "privacy.evaluation.releases = 3", "one for each round"),
    ("privacy", "evaluation", {"epsilon": 3.0, "pool": "train"}, "privacy.evaluation.pool = 'train'", "'test'"),
    ("training", "local_epochs", 1, "training", "exactly one of local_epochs and local_steps"),
    ("training", "batch_size", 32, "training.batch_size is not allowed under [privacy]", "sample_rate"),
    ("training", "class_balance", "weighted", "training.class_prior = []", "'sampler' need it"),
    ("training", "class_prior", [0.5, 0.5], "training.class_prior = [0.5, 0.5]", "'weighted' and 'sampler'"),
    ("training", "class_prior", "released", "training.class_prior = 'released'", "'weighted' and 'sampler'"),
    ("training", "class_prior", "counted", "training.class_prior = 'counted'", "'released'"),
    ("study", "select", "best", "study.select = 'best'", "'average' or 'last'"),
    ("aggregation", "weights", "images", "aggregation.weights = 'images'", "'nominal' or 'equal'"),
]


@pytest.mark.parametrize(
    ("section", "key", "value", "names", "allows"),
    WRONG_UNDER_PRIVACY,
    ids=[f"{w[0]}.{w[1]}-{w[2]}" for w in WRONG_UNDER_PRIVACY],
)
def test_what_privacy_forbids_is_one_line_too(section: str, key: str, value: object, names: str, allows: str) -> None:
    values = private_values()
    values.setdefault(section, {})[key] = value
    with pytest.raises(StudyError) as caught:
        parse(values, where="s.toml")
    text = str(caught.value)
    assert "\n" not in text and names in text and allows in text


def test_local_epochs_are_refused_under_privacy() -> None:
    values = private_values()
    values["training"] = {"local_epochs": 1}
    with pytest.raises(StudyError, match=r"training\.local_epochs is not allowed"):
        parse(values, where="s.toml")


@pytest.mark.parametrize("prior", [[0.5, 0.4], [0.2, 0.3, 0.5], [0.5, 0.6]])
def test_a_class_prior_has_a_share_for_each_class(prior: list[float]) -> None:
    with pytest.raises(StudyError, match="one share for each of 2 classes, with sum 1"):
        private_study(training={"class_balance": "weighted", "class_prior": prior})


RELEASED = {"class_prior": "released", "class_balance": "weighted"}


@pytest.mark.parametrize("balance", ["none", "focal"])
def test_released_shares_are_for_weighted_and_sampler_alone(balance: str) -> None:
    said = f"training.class_prior = 'released' with class_balance = '{balance}': under .privacy. 'weighted' and 'samp"
    with pytest.raises(StudyError, match=said):
        private_study(training={**RELEASED, "class_balance": balance})


def test_released_shares_need_two_classes_and_differential_privacy() -> None:
    one = {"study": {"task": "detection", "classes": ["a"]}, "model": {"name": "retinanet", "head": "dense"}}
    with pytest.raises(
        StudyError, match=r"training\.class_prior = 'released': there is nothing to balance in one class"
    ):
        private_study(training=RELEASED, **one)
    with pytest.raises(StudyError, match=r"training\.class_prior = 'released' is for .privacy."):
        tiny_study(training=RELEASED)


@pytest.mark.parametrize("balance", ["weighted", "sampler"])
def test_a_study_with_released_shares_is_another_study_and_comes_back_equal(balance: str) -> None:
    study = private_study(training={**RELEASED, "class_balance": balance})
    assert from_json(study.canonical) == study and '"class_prior":"released"' in study.canonical
    other = private_study(training={"class_balance": balance, "class_prior": [0.5, 0.5]})
    assert other.sha256 != study.sha256 and '"class_prior":[0.5,0.5]' in other.canonical


HASHES = [
    "4a78da8bc3a0158b52fa11c43472c3e7d340963ad918665eb737c270fa9d9bff",
    "6805aeee65da005817ee97435e2b97c3516e09cf06f5434c13e99b3dc6845827",
    "50344c36d9713f0f78be5fd4eef2b9fd985e6233e2fc9867421d501ecb451c0a",
]


def test_studies_from_before_released_shares_have_the_hashes_they_had() -> None:
    """As the release before computed them."""
    balanced = {"class_balance": "weighted", "class_prior": [0.2, 0.8]}
    assert [study.sha256 for study in (tiny_study(), private_study(), private_study(training=balanced))] == HASHES


def test_privacy_changes_what_is_not_said() -> None:
    study = private_study()
    assert (study.study.select, study.aggregation.weights, study.training.batch_size) == ("average", "nominal", None)
    assert private_study(study={"select": "last"}).study.select == "last"
    assert from_json(study.canonical) == study
    assert (tiny_study().study.select, tiny_study().training.batch_size) == ("last", 8)


@pytest.mark.parametrize(("rounds", "spare", "expected"), [(2, None, 1), (100, None, 10), (101, None, 11), (5, 0, 0)])
def test_a_tenth_of_the_rounds_is_spare(rounds: int, spare: int | None, expected: int) -> None:
    assert private_study(study={"rounds": rounds}, privacy={"spare_rounds": spare}).spare_rounds == expected
    assert tiny_study().spare_rounds == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training": {"batch_size": None}}, "batch_size: needed without"),
        ({"aggregation": {"weights": "nominal"}}, "is for .privacy.: use"),
        ({"training": {"class_prior": [0.5, 0.5]}}, "is for .privacy."),
    ],
)
def test_what_is_for_privacy_alone_is_refused_elsewhere(changes: dict[str, dict[str, object]], said: str) -> None:
    with pytest.raises(StudyError, match=said):
        tiny_study(**changes)
