"""Prediction: the same bits as training, every file accounted for, tables, windows, several models."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from predict_cases import NOW, RETINA, UNET, lines, run, saved
from small import SIDE, tiny_study
from typer.testing import CliRunner

from client import dataset, ensemble, index, predict_cli, sliding, sources
from client.annotations.picture import pixels as picture_pixels
from client.ensemble import Outcome, divergence, outcomes
from client.pose import STORED
from client.site import site_toml
from client.train import device, predicted
from common.errors import DataError, StudyError
from common.model_files import Model, open_model
from common.tasks.batch import Detections
from simulations.datasets.phantom import write_phantom

CPU = torch.device("cpu")
RULES: tuple[ensemble.Rule, ...] = ("mean", "vote")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of three sizes, grey and colour, and files that are no images."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (50, 70), np.uint8)).save(folder / "a.png")
    Image.fromarray(rng.integers(0, 256, (90, 40, 3), np.uint8)).save(folder / "b.png")
    Image.fromarray(rng.integers(0, 256, (SIDE, SIDE), np.uint8)).save(folder / "c.png")
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("nothing")
    (folder / "labels.csv").write_text("this,is\nnot,even a table of labels\n")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:200])
    return folder


@pytest.mark.parametrize("kind", ["dicom", "picture"])
def test_each_image_becomes_model_input_by_the_code_that_training_uses_bit_for_bit(tmp_path: Path, kind: str) -> None:
    """One file, through index, cache and dataset on the one side, and as prediction reads it on the other."""
    images = tmp_path / "images"
    if kind == "dicom":
        write_phantom(images, patients=3, seed=1, image_size=48)
    else:
        images.mkdir()
        pixels = np.random.default_rng(2).integers(0, 256, (37, 53, 3), np.uint8)
        Image.fromarray(pixels).save(images / "a.png")
        (images / "labels.csv").write_text("key,label\na.png,bright\n")
    study = tiny_study(
        study={"classes": ["dark", "bright", "absent", "present"]}, preprocessing={"window": "percentile", "mean": 0.3}
    )
    site = tmp_path / "site"
    (site / "keys").mkdir(parents=True)
    (site / "keys" / "patient.key").write_bytes(bytes(32))
    (site / "site.toml").write_text(site_toml("a"))
    index.build("dicom", images, site, patient_key=bytes(32), image_is_patient=True, require_annotation=False)
    rows = index.read(site)
    cache = dataset.caches.open_cache(tmp_path / "cache", study)
    assert rows and not cache.ensure(rows)
    trained = dataset.Images(study=study, rows=tuple(rows), truths=(0,) * len(rows), cache=cache)
    model = open_model(saved(tmp_path / "m", study))
    for position, row in enumerate(rows):
        pixels = sources.pixels(row.source, window=study.preprocessing.window)
        own, theirs = ensemble.model_input([pixels], [row.pose], model), trained.batch([position]).images
        assert own.numpy().tobytes() == theirs.numpy().tobytes() and own.shape == theirs.shape
    probabilities = [p for _, _, batch in predicted(model.network.to(device()), trained, study) for p in batch]
    counts = run([tmp_path / "m"], images, tmp_path / "out", overlays=False, objects=False)
    assert counts.images == len(rows)
    said = {(one["file"], int(one["frame"]) - 1): one for one in lines(tmp_path / "out" / "predictions.csv")}
    for row, probability in zip(rows, probabilities, strict=True):
        scores = [float(said[row.source.path, row.source.item][f"score:{name}"]) for name in study.study.classes]
        assert scores == pytest.approx(probability.tolist(), abs=2e-6)


def test_every_file_is_used_or_counted_with_a_reason(tmp_path: Path, pictures: Path) -> None:
    before = {path.name: path.read_bytes() for path in pictures.iterdir()}
    model = saved(tmp_path / "m", tiny_study())
    counts = run([model], pictures, tmp_path / "out").plain
    assert counts["files"] == len(before) and counts["used"] == counts["images"] == 3
    assert counts["used"] + sum(counts["dropped"].values()) == counts["files"]
    assert counts["dropped"] == {"empty_file": 1, "not_an_image": 2, "unreadable": 1}
    problems = {one["file"]: one["reason"] for one in lines(tmp_path / "out" / "problems.csv")}
    assert problems == {
        "empty.png": "empty_file", "notes.txt": "not_an_image", "labels.csv": "not_an_image", "cut.png": "unreadable"
    }  # fmt: skip
    assert {path.name: path.read_bytes() for path in pictures.iterdir()} == before
    card = json.loads((model / "model.json").read_text())
    for one in lines(tmp_path / "out" / "predictions.csv"):
        assert one["model_sha256"] == card["weights_sha256"] and one["study_sha256"] == card["study_hash"]
        assert one["made"] == NOW.isoformat(timespec="seconds") and one["predicted"] in ("dark", "bright")
        with Image.open(tmp_path / "out" / one["overlay"]) as shown:
            assert shown.info["weights_sha256"] == card["weights_sha256"]
            assert "Not a medical device" in shown.info["Disclaimer"]
            assert shown.info["study_sha256"] == card["study_hash"] and shown.info["made"] == one["made"]
    summary = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert summary["models"][0]["weights_sha256"] == card["weights_sha256"] and summary["images"] == 3
    assert not list((tmp_path / "out").glob(".*"))


def test_the_command_counts_and_says_when_nothing_could_be_used(tmp_path: Path, pictures: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(predict_cli.command)
    model = saved(tmp_path / "m", tiny_study())
    given = ["--model", str(model), "--json", "--out", str(tmp_path / "out"), "--input"]
    done = CliRunner().invoke(app, [*given, str(pictures)])
    assert done.exit_code == 0 and json.loads(done.stdout)["used"] == 3
    again = CliRunner().invoke(app, [*given, str(pictures)])
    assert isinstance(again.exception, DataError) and "new folder" in str(again.exception)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "a.txt").write_text("a")
    given[4] = str(tmp_path / "none")
    bare = CliRunner().invoke(app, [*given, str(tmp_path / "nothing")])
    assert isinstance(bare.exception, DataError) and "none of 1 files" in str(bare.exception)


@pytest.mark.parametrize("fault", ["weights", "card", "inside", "missing"])
def test_what_cannot_be_right_is_refused_in_one_line(tmp_path: Path, pictures: Path, fault: str) -> None:
    model, data, out = saved(tmp_path / "m", tiny_study()), pictures, tmp_path / "out"
    if fault == "weights":
        other = saved(tmp_path / "other", tiny_study(), seed=2)
        (model / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    elif fault == "card":
        (model / "model.json").write_text("[]")
    elif fault == "inside":
        out = pictures / "out"
    else:
        data = tmp_path / "not there"
    with pytest.raises(DataError) as error:
        run([model], data, out)
    assert "\n" not in str(error.value)


def test_a_segmentation_of_pictures_is_a_picture_for_each_class(tmp_path: Path, pictures: Path) -> None:
    study = tiny_study(study={**UNET["study"], "classes": ["a", "b/c"]}, model=UNET["model"])
    run([saved(tmp_path / "m", study)], pictures, tmp_path / "out")
    for one in lines(tmp_path / "out" / "predictions.csv"):
        masks = sorted((tmp_path / "out").glob(one["masks"]))
        assert [path.name[7:] for path in masks] == ["1-a.png", "2-b-c.png"]
        with Image.open(pictures / one["file"]) as image:
            for path, name in zip(masks, study.study.classes, strict=True):
                mask = np.asarray(Image.open(path))
                assert mask.shape == (image.height, image.width)
                assert int((mask == 255).sum()) == int(one[f"pixels:{name}"]) == int((mask > 0).sum())


def test_boxes_are_in_pixels_of_the_stored_image(tmp_path: Path, pictures: Path) -> None:
    study = tiny_study(study=RETINA["study"], model=RETINA["model"])
    model = open_model(saved(tmp_path / "m", study))
    run([tmp_path / "m"], pictures, tmp_path / "out", min_score=0.2)
    boxes = lines(tmp_path / "out" / "boxes.csv")
    (expected,) = outcomes([model], [{"dicom": _pixels(pictures / "a.png")}], rule="mean", window=False, where=CPU)
    own = [one for one in boxes if one["file"] == "a.png"]
    assert len(own) == len(expected.prediction.boxes) > 0
    found = np.array([[float(one[name]) for name in ("x1", "y1", "x2", "y2")] for one in own])
    np.testing.assert_allclose(found, expected.prediction.boxes, atol=1e-3)
    assert found[:, [0, 2]].max() <= 70 and found[:, [1, 3]].max() <= 50  # a.png is 50 x 70


def _pixels(path: Path) -> Any:
    return picture_pixels(path.read_bytes(), window="dicom")


# Windows


@pytest.mark.parametrize(("stored", "model"), [((100, 70), (32, 32)), ((33, 20), (32, 32)), ((64, 1), (32, 48))])
def test_every_pixel_lies_in_a_window_and_none_leaves_the_image_without_need(
    stored: tuple[int, int], model: tuple[int, int]
) -> None:
    seen = np.zeros(stored, int)
    for top, left in sliding.windows(stored, model):
        for start, side, own in ((top, stored[0], model[0]), (left, stored[1], model[1])):
            assert (start >= 0 and start + own <= side) or (side < own and start == -((own - side) // 2))
        seen[max(0, top) : top + model[0], max(0, left) : left + model[1]] += 1
    assert seen.min() >= 1


def test_blending_gives_back_a_map_that_windows_cut_out_of_one() -> None:
    whole = np.random.default_rng(0).random((61, 83)).astype(np.float32)
    corners = sliding.windows(whole.shape, (32, 32))
    parts = [np.stack([sliding.cut(whole, corner, (32, 32))]) for corner in corners]
    np.testing.assert_allclose(sliding.blended(parts, corners, (61, 83), classes=1)[0], whole, atol=1e-6)


def test_blended_values_lie_between_those_of_the_windows() -> None:
    corners = sliding.windows((48, 40), (32, 32))
    rng = np.random.default_rng(1)
    parts = [rng.random((2, 32, 32)).astype(np.float32) for _ in corners]
    low, high = np.full((2, 48, 40), np.inf), np.full((2, 48, 40), -np.inf)
    for part, (top, left) in zip(parts, corners, strict=True):
        area = (slice(None), slice(top, top + 32), slice(left, left + 32))
        low[area], high[area] = np.minimum(low[area], part), np.maximum(high[area], part)
    mixed = sliding.blended(parts, corners, (48, 40), classes=2)
    assert (mixed >= low - 1e-6).all() and (mixed <= high + 1e-6).all()


def _boxes(*values: tuple[float, ...], kind: int = 0) -> Detections:
    array = np.array(values, np.float32).reshape(-1, 5)
    return Detections(boxes=array[:, :4], classes=np.full(len(array), kind, np.int64), scores=array[:, 4])


def test_an_object_that_several_windows_see_is_one_box_and_a_cut_one_gives_way() -> None:
    corners = [(0, 0), (0, 16), (0, 32)]
    # The object is 20..44 in the image: whole in the second window, cut by the first's and the third's borders.
    parts = [
        _boxes((20, 5, 32, 20, 0.9)),
        _boxes((4, 5, 28, 20, 0.6)),
        _boxes((0, 5, 12, 20, 0.8), (22, 4, 30, 9, 0.7)),
    ]
    found = sliding.merged(parts, corners, (32, 32), (32, 64))
    np.testing.assert_allclose(found.boxes, [(54, 4, 62, 9), (20, 5, 44, 20)])
    np.testing.assert_allclose(found.scores, [0.7, 0.6])
    other = [parts[0], _boxes((4, 5, 28, 20, 0.6), kind=1), _boxes()]
    assert len(sliding.merged(other, corners, (32, 32), (32, 64)).boxes) == 2  # of another class: another object


def test_no_box_is_no_box() -> None:
    assert sliding.merged([_boxes(), _boxes()], [(0, 0), (0, 16)], (32, 32), (32, 48)).boxes.shape == (0, 4)


@pytest.mark.parametrize("values", [UNET, RETINA], ids=["segmentation", "detection"])
def test_with_windows_an_image_of_the_models_size_is_predicted_as_ever(tmp_path: Path, values: dict[str, Any]) -> None:
    study = tiny_study(study=values["study"], model=values["model"])
    model = open_model(saved(tmp_path / "m", study))
    rng = np.random.default_rng(3)
    height, width = study.model.image_size
    small: list[ensemble.Grey] = [{"dicom": rng.random((height - 9, width), np.float32)}]
    large: list[ensemble.Grey] = [{"dicom": rng.random((height + 40, width + 30), np.float32)}]
    one, other = (next(outcomes([model], small, rule="mean", window=w, where=CPU)) for w in (False, True))
    assert _same(one, other)
    plain, slid = (next(outcomes([model], large, rule="mean", window=w, where=CPU)) for w in (False, True))
    assert not _same(plain, slid)


def test_windows_are_answered_at_the_images_own_resolution(tmp_path: Path) -> None:
    """In the middle of the window that weighs most the blended map is nearly that window's own."""
    study = tiny_study(study=UNET["study"], model=UNET["model"])
    model = open_model(saved(tmp_path / "m", study))
    pixels = np.random.default_rng(5).random((32, 48), np.float32)
    corners = sliding.windows((32, 48), (32, 32))
    assert corners == [(0, 0), (0, 16)]
    raw = [model.network(ensemble.model_input([pixels[:, x : x + 32]], [STORED], model)) for x in (0, 16)]
    left, right = (torch.sigmoid(one.detach())[0, 0].numpy() for one in raw)
    (found,) = outcomes([model], [{"dicom": pixels}], rule="mean", window=True, where=torch.device("cpu"))
    assert np.array_equal(found.prediction[0, :, :16], left[:, :16] >= 0.5)
    assert np.array_equal(found.prediction[0, :, 32:], right[:, 16:] >= 0.5)


def _same(one: Outcome, other: Outcome) -> bool:
    a, b = one.prediction, other.prediction
    if isinstance(a, Detections):
        return bool(np.array_equal(a.boxes, b.boxes) and np.array_equal(a.scores, b.scores))
    return bool(np.array_equal(a, b))


# Several models


@pytest.fixture
def three(tmp_path: Path) -> list[Model]:
    return [open_model(saved(tmp_path / f"m{k}", tiny_study(), seed=k)) for k in range(3)]


def test_a_mean_and_a_vote_are_what_they_say(three: list[Model]) -> None:
    rng = np.random.default_rng(0)
    images: list[ensemble.Grey] = [{"dicom": rng.random((30, 25), np.float32)} for _ in range(4)]
    alone = [[next(outcomes([m], [i], rule="mean", window=False, where=CPU)).prediction for m in three] for i in images]
    for rule in RULES:
        together = outcomes(three, images, rule=rule, window=False, where=CPU)
        for own, found in zip(alone, together, strict=True):
            np.testing.assert_allclose(found.prediction, np.mean(own, axis=0), atol=1e-5)
            votes = np.bincount([int(one.argmax()) for one in own], minlength=2)
            assert found.best == (np.mean(own, axis=0) if rule == "mean" else votes).argmax()
            assert found.votes is None if rule == "mean" else found.votes.tolist() == votes.tolist()  # type: ignore[union-attr]
            assert found.disagreement is not None and 0 <= found.disagreement <= 1


def test_a_tie_is_undecided_and_scores_are_no_votes(tmp_path: Path, three: list[Model]) -> None:
    said = [np.array(values, np.float32) for values in ([0.9, 0.1], [0.4, 0.6], [0.5, 0.5])]
    voted, alone = ensemble._classified(said, "vote"), ensemble._classified(said[2:], "vote")
    np.testing.assert_allclose(voted.prediction, [0.6, 0.4], rtol=1e-6)
    assert voted.votes is not None and voted.votes.tolist() == [1, 1] and voted.best is None
    assert alone.votes is None and alone.best is None
    assert ensemble._classified(said[:2], "mean").best == 0
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), np.uint8)).save(images / "a.png")
    models = [tmp_path / f"m{k}" for k in range(3)]
    run(models, images, tmp_path / "out", rule="vote", overlays=False)
    run(models, images, tmp_path / "mean", overlays=False)
    (vote,), (mean,) = (lines(tmp_path / name / "predictions.csv") for name in ("out", "mean"))
    assert int(vote["votes:dark"]) + int(vote["votes:bright"]) == 3 and "votes:dark" not in mean
    assert vote["score:dark"] == mean["score:dark"] and 0 < float(vote["score:dark"]) < 1


@pytest.mark.parametrize(
    ("values", "models", "options"),
    [
        ({}, 1, {}),
        ({}, 2, {"rule": "mean"}),
        (UNET, 1, {"window": False}),
        (RETINA, 1, {"window": False, "min_score": 0.3}),
    ],
)
def test_the_summary_and_the_pictures_have_the_options_that_mean_something(
    tmp_path: Path, pictures: Path, values: dict[str, Any], models: int, options: dict[str, Any]
) -> None:
    folders = [saved(tmp_path / f"m{k}", tiny_study(**values), seed=k) for k in range(models)]
    run(folders, pictures, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert {name: summary[name] for name in ("rule", "window", "min_score") if name in summary} == options
    with Image.open(tmp_path / "out" / "overlays" / "000001.png") as shown:
        assert shown.info.get("min_score") == (str(options["min_score"]) if "min_score" in options else None)


def test_disagreement_is_0_of_one_mind_and_1_where_each_is_sure_of_another() -> None:
    same = np.tile(np.array([0.2, 0.8], np.float32), (3, 1))
    assert divergence(same) == pytest.approx(0, abs=1e-9)
    assert divergence(np.eye(3, dtype=np.float32)) == pytest.approx(1, abs=1e-9)
    # Jensen-Shannon divergence of (1, 0) and (1/2, 1/2), in bits, by hand: H(3/4, 1/4) - 1/2
    entropy = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25))
    assert divergence(np.array([(1, 0), (0.5, 0.5)], np.float32)) == pytest.approx(entropy - 0.5, abs=1e-6)


def test_masks_are_averaged_or_voted_and_their_dice_is_the_disagreement() -> None:
    a, b, c = (
        np.array([[row]], np.float32) for row in ([0.9, 0.9, 0.1, 0.0], [0.45, 0.6, 0.1, 0.0], [0.1, 0.1, 0.4, 0.0])
    )
    mean = ensemble._segmented([a, b, c], "mean")
    vote = ensemble._segmented([a, b, c], "vote")
    assert mean.prediction.tolist() == [[[False, True, False, False]]] == vote.prediction.tolist()
    # Dice: a-b 2 x 1 / 3, a-c 0, b-c 0
    assert mean.disagreement == pytest.approx(1 - (2 / 3) / 3)
    assert mean.doubt is not None and mean.doubt.shape == (1, 4) and mean.doubt[0, 3] == pytest.approx(0, abs=1e-6)
    assert mean.doubt[0, 0] > mean.doubt[0, 2]


def test_boxes_of_several_models_that_overlap_are_one() -> None:
    first = _boxes((0, 0, 10, 10, 0.9), (50, 50, 60, 60, 0.6))
    second = _boxes((0, 0, 12, 10, 0.3))
    mean, vote = (ensemble._detected([first, second], rule) for rule in RULES)
    np.testing.assert_allclose(mean.prediction.boxes, [(0, 0, 10.5, 10), (50, 50, 60, 60)], rtol=1e-6)
    np.testing.assert_allclose(mean.prediction.scores, [0.6, 0.3], rtol=1e-6)
    assert mean.finders is not None and mean.finders.tolist() == [2, 1] and mean.apart(1) == 0.5
    assert mean.disagreement == pytest.approx(0.3 * 0.5 / 0.9)
    np.testing.assert_allclose(vote.prediction.scores, [0.6], rtol=1e-6)
    none = ensemble._detected([_boxes(), _boxes()], "mean")
    assert none.prediction.boxes.shape == (0, 4) and none.disagreement == 0


def test_models_of_different_questions_or_the_same_twice_are_refused(tmp_path: Path, three: list[Model]) -> None:
    other = open_model(saved(tmp_path / "x", tiny_study(study={"classes": ["bright", "dark"]})))
    for models, window, words in (
        ([three[0], other], False, "answer together"),
        ([three[0], three[0]], False, "twice"),
        ([three[0]], True, "whole images"),
    ):
        with pytest.raises(StudyError, match=words):
            ensemble.check(models, window=window)


def test_models_with_their_own_preprocessing_each_get_the_image_their_way(tmp_path: Path, pictures: Path) -> None:
    models = []
    for k, how in enumerate(({"window": "percentile"}, {"window": (0.5, 0.2), "aspect": "stretch", "mean": 0.0})):
        model = {"image_size": [SIDE + 4 * k, SIDE]}
        models.append(saved(tmp_path / f"m{k}", tiny_study(preprocessing=how, model=model), seed=k))
    run(models, pictures, tmp_path / "both", overlays=False)
    for k, model in enumerate(models):
        run([model], pictures, tmp_path / f"one{k}", overlays=False)
    both, *single = (lines(tmp_path / name / "predictions.csv") for name in ("both", "one0", "one1"))
    for whole, *parts in zip(both, *single, strict=True):
        mean = np.mean([float(one["score:bright"]) for one in parts])
        assert float(whole["score:bright"]) == pytest.approx(mean, abs=2e-6) and whole["disagreement"]
