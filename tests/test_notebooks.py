"""Both notebooks executed from top to bottom on phantoms, and what they leave behind."""

import json
import shutil

import numpy as np
import pytest
from conftest import BINARY, MULTI, ROOT, execute, outputs_of

RECIPES = {"": "article", "_gentle": "gentle", "_none": "none"}
CASES = {
    "binary": {"binary": "article"},
    "multi": {f"{case}{suffix}": recipe for case in ("three", "four") for suffix, recipe in RECIPES.items()},
}
QUICK = {"NUM_EPOCHS": "4", "VIEWS_PER_IMAGE": "2"}


def check_results(folder, name, images):
    """The result file is complete and consistent in itself."""
    results = json.loads((folder / f"{name}.json").read_text())
    assert results["dataset"] == "phantoms"
    assert set(results["cases"]) == set(CASES[name])
    assert {"images", "features", "training", "total"} <= set(results["seconds"])
    for key, case in results["cases"].items():
        assert case["augmentation"] == CASES[name][key] and case["views"] == (1 if key.endswith("_none") else 2)
        assert case["epochs"] == 4 and case["validation_images"] == len(case["classes"])
        assert all(len(case["history"][metric]) == 4 for metric in ("acc", "val_acc", "loss", "val_loss"))
        test, classes = case["test"], len(case["classes"])
        assert test["n"] == 2 * classes == sum(map(sum, test["confusion"])) and case["train_images"] == 4 * classes
        assert test["correct"] == sum(test["confusion"][label][label] for label in range(classes))
        assert test["ci95"][0] <= test["accuracy"] <= test["ci95"][1]
    leaked = results["trust"]["test_images_of_training_patients"]
    assert len(leaked) == images // 7 and all("_000.jpeg" in file for file in leaked)  # one test image of each class
    (blackout,) = results["trust"]["blackout"].values()
    assert list(blackout["by_share"]) == ["0%", "50%", "70%", "90%"] and blackout["hidden"] == 0.9
    assert blackout["correct"] == blackout["by_share"]["90%"]["correct"]
    return results


@pytest.mark.parametrize("notebook", [BINARY, MULTI], ids=["binary", "multi"])
def test_in_the_repository(notebook, tree, weights, tmp_path):
    settings = {
        "COVID_XRAY_DATA": str(tree),
        "COVID_XRAY_OUTPUT": str(tmp_path),
        "VGG16_WEIGHTS": str(weights),
        **QUICK,
    }
    cells = execute(notebook, ROOT / "notebooks", tmp_path, **settings)
    assert outputs_of(cells, "error") == []
    name = "binary" if notebook == BINARY else "multi"
    results = check_results(tmp_path, name, 14 if name == "binary" else 28)
    assert results["weights"] == "imagenet"
    assert "SYNTHETIC" in "".join(outputs_of(cells, "text/markdown"))
    assert "drawn phantoms: the sentences" in outputs_of(cells, "text/markdown")[-1]
    text = "".join(outputs_of(cells, "stream")) + "".join(outputs_of(cells, "text/plain"))
    assert "would have reported" in text and "gives the same probabilities" in text
    pictures = {path.stem.removeprefix(f"{name}_") for path in tmp_path.glob("*.png")}
    assert {"examples", "views", "blackout", "grad_cam", "your_xray"} <= pictures
    if name == "binary":
        assert "16,812,353" in text.replace("\x1b[38;5;34m", "")
        assert {"curves", "confusion", "predictions", "roc", "controls", "what_it_is_worth"} <= pictures
        assert results["trust"]["controls"]["n"] == 6
        assert len(results["trust"]["controls"]["called_covid_by_seed"]) == 5
        same_source = results["trust"]["same_source_cv"]
        assert same_source["n"] == 7 + 6 and len(same_source["folds"]) == 5 and 0 <= same_source["auc"] <= 1
    else:
        assert {
            "curves_three",
            "curves_four",
            "confusion_four",
            "predictions_three",
            "recipes",
            "confusion_cv_four",
            "confusion_cv_four_gentle",
            "views_gentle",
        } <= pictures
        assert set(results["trust"]["grouped_cv"]) == {"four", "four_gentle", "four_none"}
        for cv in results["trust"]["grouped_cv"].values():
            assert cv["n"] == 28 and len(cv["folds"]) == 5 and 0 <= cv["mean_on_views"] <= 1
            assert np.trace(cv["confusion"]) == cv["correct"] and np.sum(cv["confusion"]) == 28
    assert len(outputs_of(cells, "image/png")) == len(pictures)


@pytest.mark.parametrize("notebook", [BINARY, MULTI], ids=["binary", "multi"])
def test_alone_in_a_folder(notebook, archive, server, tmp_path):
    """Colab's situation: nothing but the notebook; the zip comes over HTTP through gdown, controls cannot be had."""
    url = server.put("/data.zip", archive.read_bytes())
    home = tmp_path / "content"
    home.mkdir()
    shutil.copy(notebook, home)
    settings = {"COVID_XRAY_URL": url, "COVID_CHESTXRAY_URL": server.url, "VGG16_WEIGHTS": "random", **QUICK}
    cells = execute(home / notebook.name, home, tmp_path, **settings)
    assert outputs_of(cells, "error") == []
    assert server.asked.count("/data.zip") == 1
    assert sorted(path.name for path in (home / "data").iterdir()) == ["Covid_Data_GradientCrescent.zip", "all", "two"]
    results = json.loads((home / "output" / ("binary.json" if notebook == BINARY else "multi.json")).read_text())
    assert results["dataset"] == "two" if notebook == BINARY else "all" and results["weights"] == "random"


def test_own_data(tree, tmp_path):
    """Folders of any names make one case of Multi, and everything is named after them."""
    data = tmp_path / "fruit"
    for split in ("train", "test"):
        for source, target in (("covid", "apples"), ("pneumonia_bac", "pears"), ("normal", "plums")):
            shutil.copytree(tree / "all" / split / source, data / split / target)
    settings = {"COVID_XRAY_DATA": str(data), "COVID_XRAY_OUTPUT": str(tmp_path), "VGG16_WEIGHTS": "random", **QUICK}
    cells = execute(MULTI, ROOT / "notebooks", tmp_path, **settings)
    assert outputs_of(cells, "error") == []
    results = json.loads((tmp_path / "multi.json").read_text())
    assert results["dataset"] == "fruit" and set(results["cases"]) == {"fruit", "fruit_gentle", "fruit_none"}
    assert results["cases"]["fruit"]["classes"] == ["apples", "pears", "plums"]


def test_same_numbers_twice(tree, weights, tmp_path):
    runs = []
    for run in ("first", "second"):
        settings = {
            "COVID_XRAY_DATA": str(tree),
            "COVID_XRAY_OUTPUT": str(tmp_path / run),
            "VGG16_WEIGHTS": str(weights),
            **QUICK,
        }
        execute(BINARY, ROOT / "notebooks", tmp_path / run, **settings)
        results = json.loads((tmp_path / run / "binary.json").read_text())
        runs.append({**results, "seconds": None})
    assert runs[0] == runs[1]
