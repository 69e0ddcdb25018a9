"""Both notebooks on the article's own images: what they find, and what was committed.

The zip and the controls are those that `make data` left in data/, or those in ../shared. Skipped where neither is.
Every claim has a lower and an upper bound, wide enough for chance and for other processors.
"""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import xray_data
from conftest import BINARY, MULTI, ROOT, SHARED, ZIP, copy_clone, copy_with, execute, outputs_of

NAMES = ("article_zip.py", "article_all.zip", "controls.zip", "nih_no_finding.zip")
IMAGES = [SHARED / "data" / name for name in NAMES]
KEPT = [ROOT / "data" / name for name in (ZIP, *xray_data.CONTROLS)]
IS_SHARED, IS_KEPT = (all(path.exists() for path in paths) for paths in (IMAGES, KEPT))
WHY = "the article's images are not here: run `make data`"
pytestmark = [pytest.mark.real, pytest.mark.skipif(not (IS_SHARED or IS_KEPT), reason=WHY)]
LEAKED = [f"nejmoa2001191_{figure}.jpeg" for figure in ("f3-PA", "f4", "f5-PA")]
SWAPPED = {
    "COVID-19 frame, normal center": (54, 10, 54),  # pairs, and the least and the most of them predicted COVID-19
    "normal frame, COVID-19 center": (54, 45, 54),
}
TASKS = {  # images, patients, the least and the most accuracy, and area under the ROC curve
    "children": (148, 122, (0.97, 1.0), (0.99, 1.0)),
    "children_blackout": (148, 122, (0.89, 0.98), (0.94, 1.0)),
    "nih": (149, 127, (0.89, 0.97), (0.95, 1.0)),
    "nih_blackout": (149, 127, (0.74, 0.91), (0.83, 0.96)),
    "same_collection": (152, 94, (0.55, 0.73), (0.57, 0.76)),
    "same_collection_blackout": (152, 94, (0.36, 0.58), (0.35, 0.57)),
}
TEST = {"": (0.4, 0.95), "_gentle": (0.5, 1), "_none": (0.5, 0.95), "_fine_tuned": (0.4, 0.95)}  # Multi's accuracies
CROSS_VALIDATED = {"four": (0.45, 0.75), "four_gentle": (0.6, 0.85)}
CROSS_VALIDATED |= {"four_none": (0.7, 0.87), "four_logistic": (0.76, 0.86)}


def within(value, low, high, what):
    """Fail with the name of what lies outside of its range."""
    assert low <= value <= high, f"{what}: {value} is not within {low} and {high}"


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the clone with the article's zip and the controls in data/, as a teacher puts them there."""
    clone = copy_clone(tmp_path_factory.mktemp("real") / "clone")
    if IS_SHARED:
        subprocess.run([sys.executable, str(IMAGES[0]), str(clone / "data" / ZIP)], check=True)
        for path in IMAGES[2:]:
            shutil.unpack_archive(path, clone / "data")
    else:
        shutil.copy(KEPT[0], clone / "data")
        for path in KEPT[1:]:
            shutil.copytree(path, clone / "data" / path.name)
    return clone


def run(clone, weights, notebook, **parameters):
    """Execute a notebook in the clone; returns its results. It needs no network."""
    copy = copy_with(notebook, clone / "notebooks", parameters)
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    cells = execute(copy, clone, clone / "output", VGG16_WEIGHTS=str(weights), **nowhere)
    assert outputs_of(cells, "error") == []
    name = "binary" if notebook == BINARY else "multi"
    results = json.loads((clone / "output" / f"{name}.json").read_text(encoding="utf-8"))
    assert (results["dataset"], results["weights"]) == (xray_data.ARTICLE_NAME, "imagenet")
    return results


def check_groups(trust, recipe=""):
    """The two groups of controls are complete; returns what is predicted for them."""
    nih, others = trust[f"no_finding{recipe}"], trust[f"controls{recipe}"]
    assert (nih["n"], nih["patients"], others["n"], others["patients"]) == (80, 80, 83, 47)
    return nih, others


def test_binary(clone, weights):
    """The whole lesson as it stands: the ranges that true runs span, and the committed numbers, nearly."""
    results = run(clone, weights, BINARY)
    trust, case = results["trust"], results["cases"]["binary"]
    history, test = case["history"], case["test"]
    assert (test["n"], test["patients"]) == (18, 14) and len(history["loss"]) == 20
    within(test["correct"], 17, 18, "test images right")
    within(np.mean(history["val_acc"][-5:]), 0.85, 1, "validation accuracy of the last epochs")
    assert trust["test_images_of_training_patients"] == LEAKED
    for share, scored in trust["blackout"]["binary"]["by_share"].items():
        within(scored["correct"], 15, 18, f"{share} black")
    nih, others = check_groups(trust)
    within(nih["predicted_covid"], 65, 80, "NIH, predicted COVID-19")
    within(others["predicted_covid"], 50, 82, "collection, predicted COVID-19")
    for name, (n, least, most) in SWAPPED.items():
        assert trust["swap"]["0.7"][name]["n"] == n, name
        within(trust["swap"]["0.7"][name]["article"], least, most, name)
    tasks = trust["like_for_like"]
    for name, (n, patients, accuracy, auc) in TASKS.items():
        assert (tasks[name]["n"], tasks[name]["patients"]) == (n, patients), name
        within(tasks[name]["accuracy"], *accuracy, name)
        within(tasks[name]["auc"], *auc, f"{name}, area")
    assert tasks["children"]["accuracy"] > tasks["nih"]["accuracy"] > tasks["same_collection"]["accuracy"]

    committed = json.loads((ROOT / "notebooks" / "results" / "binary.json").read_text(encoding="utf-8"))
    theirs = committed["cases"]["binary"]
    assert history["loss"][0] == pytest.approx(theirs["history"]["loss"][0], rel=0.05)
    within(abs(test["correct"] - theirs["test"]["correct"]), 0, 1, "test images right, from the committed")
    for group, most in (("no_finding", 10), ("controls", 15)):
        apart = abs(trust[group]["predicted_covid"] - committed["trust"][group]["predicted_covid"])
        within(apart, 0, most, f"{group}, from the committed")


def test_multi(clone, weights):
    """Multi with few views and epochs: what it finds points the same way. The ranges are those of such runs."""
    results = run(clone, weights, MULTI, VIEWS_PER_IMAGE=2, NUM_EPOCHS=20, FINE_TUNE_EPOCHS=2)
    trust, cases = results["trust"], results["cases"]
    assert results["files"] == {"article": 305, "same_pixels": 1, "other": 0}
    for case, n in (("three", 27), ("four", 36)):
        for kind, accuracy in TEST.items():
            scored = cases[f"{case}{kind}"]["test"]
            assert scored["n"] == n and scored["confusion"][0][0] >= 5, f"{case}{kind}"  # of nine: COVID-19 is found
            within(scored["accuracy"], *accuracy, f"{case}{kind}")
    assert trust["test_images_of_training_patients"] == LEAKED
    for name, accuracy in CROSS_VALIDATED.items():
        scored = trust["grouped_cv"][name]
        assert (scored["n"], scored["patients"]) == (306, 259)
        within(scored["accuracy"], *accuracy, name)
    within(trust["differences"]["four_none - four"]["difference"], 0.05, 0.35, "none minus article")
    frame = trust["blackout"]["four"]
    assert frame["n"] == 36 and frame["confusion"][0][0] >= 6  # the frame alone finds COVID-19
    within(int(np.trace(np.array(frame["confusion"])[1:, 1:])), 5, 19, "children right; guessing gets 9 of 27")
    for recipe in ("", "_gentle", "_none"):
        nih, others = check_groups(trust, recipe)
        within(nih["predicted_covid"], 30, 80, f"NIH{recipe}")
        within(nih["with_right_answer"]["correct"], 0, 20, f"NIH{recipe}, right; guessing gets 20")
        within(others["predicted_covid"], 35, 82, f"collection{recipe}")
        assert others["with_right_answer"]["n"] == 51
        within(others["with_right_answer"]["correct"], 0, 15, f"collection{recipe}, right; guessing gets 13")
