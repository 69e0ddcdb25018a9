"""The article's own images, where ../shared has them: what the manifest says of them, and what the notebooks find."""

import collections
import json
import shutil
import subprocess
import zipfile

import dataset
import numpy as np
import pytest
import xray
from conftest import ROOT, SHARED, clean_environment, real_images

pytestmark = [pytest.mark.real, real_images]
WEIGHTS = SHARED / "weights" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
LEAKED = [f"nejmoa2001191_{figure}.jpeg" for figure in ("f3-PA", "f4", "f5-PA")]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The images and the controls, unpacked."""
    folder = tmp_path_factory.mktemp("real images")
    for name in (dataset.ZIP_NAME, "controls.zip"):
        with zipfile.ZipFile(SHARED / "data" / name) as zipped:
            zipped.extractall(folder)
    return folder


def make(target, images, output, **settings):
    """Run a notebook by its make target; returns its results."""
    paths = {"COVID_XRAY_DATA": str(images), "COVID_XRAY_OUTPUT": str(output), "VGG16_WEIGHTS": str(WEIGHTS)}
    done = subprocess.run(
        ["make", "-C", str(ROOT), target], env=clean_environment(**paths, **settings), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads((output / f"{target}.json").read_text(encoding="utf-8"))


def test_binary(unpacked, tmp_path):
    """The whole binary notebook as it stands, within the ranges that many true runs span."""
    results = make("binary", unpacked, tmp_path / "out put")
    trust, case = results["trust"], results["cases"]["binary"]
    assert results["dataset"] == "Covid_Data_GradientCrescent" and results["weights"] == "imagenet"
    assert case["test"]["n"] == 18 and case["test"]["correct"] >= 17 and case["test"]["patients"] == 14
    assert np.mean(case["history"]["val_acc"][-5:]) >= 0.9
    assert trust["test_images_of_training_patients"] == LEAKED
    assert trust["blackout"]["binary"]["correct"] >= 17
    controls = trust["controls"]
    assert controls["n"] == 97 and controls["patients"] == 60 and 55 <= controls["called_covid"] <= 96
    assert all(55 <= row["called_covid"] <= 96 and row["test_right"] >= 17 for row in controls["by_seed"])
    assert controls["no_finding"]["n"] == 13 and controls["no_finding"]["called_covid"] >= 7
    assert controls["with_right_answer"]["n"] == 13
    tasks = trust["like_for_like"]
    for name, n, patients, accuracy, auc in (
        ("children", 148, 122, (0.97, 1.0), (0.99, 1.0)),
        ("children_blackout", 148, 122, (0.91, 0.98), (0.96, 1.0)),
        ("adults", 166, 107, (0.60, 0.73), (0.63, 0.76)),
    ):
        task = tasks[name]
        assert (task["n"], task["patients"]) == (n, patients)
        assert accuracy[0] <= task["accuracy"] <= accuracy[1] and auc[0] <= task["auc"] <= auc[1], (name, task)
        assert task["ci95"][0] < task["accuracy"] < task["ci95"][1] + 1e-9
        assert task["auc_ci95"][0] <= task["auc"] <= task["auc_ci95"][1] + 1e-9
    assert tasks["adults"]["majority"] == pytest.approx(97 / 166)


def test_multi(unpacked, tmp_path):
    """Multi with few views and epochs: what it finds points the same way."""
    results = make("multi", unpacked, tmp_path, VIEWS_PER_IMAGE="4", NUM_EPOCHS="30")
    trust, cases = results["trust"], results["cases"]
    assert {key: case["test"]["n"] for key, case in cases.items()} == {
        f"{case}{kind}": n
        for case, n in (("three", 27), ("four", 36))
        for kind in ("_none", "_gentle", "", "_fine_tuned")
    }
    assert cases["three_gentle"]["test"]["correct"] >= 22 and cases["three"]["test"]["correct"] >= 16
    assert cases["four_gentle"]["test"]["correct"] >= 23 and cases["four"]["test"]["correct"] >= 16
    assert trust["test_images_of_training_patients"] == LEAKED
    by_name = {name: cv["accuracy"] for name, cv in trust["grouped_cv"].items()}
    assert 0.45 <= by_name["four"] <= 0.70 and 0.72 <= by_name["four_gentle"] <= 0.84
    assert 0.76 <= by_name["four_none"] <= 0.86 and 0.74 <= by_name["four_logistic"] <= 0.82
    assert all(cv["n"] == 306 and cv["patients"] == 259 for cv in trust["grouped_cv"].values())
    assert trust["differences"]["four_gentle - four"]["ci95"][0] > 0  # the article's augmentation is worse
    assert [file.split("/")[1] for file in trust["article_draw"]["three"]["files"]] == ["covid", "normal", "normal"]
    assert "test/covid" not in " ".join(trust["article_draw"]["four"]["files"])
    right = trust["controls"]["by_augmentation"]["none"]["with_right_answer"]
    assert right["n"] == 67 and right["correct"] <= 12  # chance would be 17
    assert trust["controls"]["by_augmentation"]["none"]["called_covid"] >= 70


def test_manifest_lists_the_zip():
    with zipfile.ZipFile(SHARED / "data" / dataset.ZIP_NAME) as zipped:
        names = {name for name in zipped.namelist() if not name.endswith(("/", ".ini"))}
    expected = {
        f"{tree}/{row['split']}/{row['class']}/{row['filename']}"
        for row in dataset.ARTICLE.to_dict("records")
        for tree in (("all", "two") if row["class"] in ("covid", "normal") else ("all",))
    }
    assert names == expected and len(names) == 454


def test_the_articles_split(unpacked):
    for tree, validation, total in (("two", 26, 130), ("all", 54, 270)):
        folder = unpacked / tree
        images, table = dataset.load_images(folder)
        counts = collections.Counter(table["split"])
        assert counts["validation"] == validation and counts["train"] + validation == total
        assert counts["test"] == 9 * table["class"].nunique() and images.shape[1:] == (150, 150, 3)
        assert dataset.identify(folder, table["file"]) == "Covid_Data_GradientCrescent"


def test_every_image_has_contrast(unpacked):
    """No image is shown as all black or all white, the 16-bit PNG among the COVID-19 images included."""
    for path in dataset.list_images(unpacked / "all" / "train" / "covid"):
        assert np.std(dataset.read_image(path)) > 10, path.name


def test_the_zip_and_the_controls_as_a_teacher_puts_them(tmp_path, monkeypatch):
    """Both zips in data/, and no network."""
    monkeypatch.setenv("COVID_CHESTXRAY_URL", "http://127.0.0.1:9")
    for name in (dataset.ZIP_NAME, "controls.zip"):
        shutil.copy(SHARED / "data" / name, tmp_path)
    folder = dataset.find_images("two", "http://127.0.0.1:9/none.zip", tmp_path)
    assert len(dataset.find_controls(folder.parent)) == 97


def test_keras_weights_file_is_accepted():
    assert xray.weights_sha256(xray.load_vgg16(str(WEIGHTS))) == xray.VGG16_SHA256
