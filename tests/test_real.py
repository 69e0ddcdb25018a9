"""Both notebooks on the article's own images: what they find now is what is committed.

The zip and the controls are those that `make data` left in data/, or those in ../shared. Skipped where neither is.
Another processor changes last bits, so counts may differ a little. Multi runs with few views and epochs; what does not
depend on them is compared with the committed results, too, and the rest with the ranges that such runs span.
"""

import json
import shutil
import subprocess
import sys
from fnmatch import fnmatch

import numpy as np
import pytest
import xray_data
from conftest import BINARY, MULTI, ROOT, SHARED, ZIP, copy_clone, copy_with, execute, outputs_of

NAMES = ("article_zip.py", "article_all.zip", "controls.zip", "nih_no_finding.zip")
IMAGES = [SHARED / "data" / name for name in NAMES]
KEPT = [ROOT / "data" / name for name in (ZIP, *xray_data.FOLDERS.values())]
IS_SHARED, IS_KEPT = (all(path.exists() for path in paths) for paths in (IMAGES, KEPT))
WHY = "the article's images are not here: run `make data`"
pytestmark = [pytest.mark.real, pytest.mark.skipif(not (IS_SHARED or IS_KEPT), reason=WHY)]

# What may differ from the committed results, by patterns of paths, of which the first that fits counts: by so much,
# within two ends, or at will (None). All else must be equal.
FREE = dict.fromkeys(["versions.*", "cases.*.history.*", "*ci95.*", "*.correct", "*.confusion.*"])
BINARY_MAY_DIFFER = {
    "trust.silly.*": 0.1,
    "trust.ladder.*.normal called COVID-19": 2,
    "trust.swap.*.predicted_covid": 6,
    "trust.heat_map_correlations.*": None,
    "trust.marks.*": 0.05,
    "trust.same_site.share": 0.05,
    "trust.like_for_like.*.accuracy": 0.05,
    "*.accuracy": 0.06,  # one of 18
    "*.auc": 0.05,
    "*.predicted_covid": 4,
    **FREE,
}
MULTI_MAY_DIFFER = {
    "cases.*.test.confusion.0.0": (5, 9),  # of nine: COVID-19 is found
    "cases.*_gentle.test.accuracy": (0.5, 1),
    "cases.*_none.test.accuracy": (0.5, 0.95),
    "cases.*.test.accuracy": (0.4, 0.95),
    "trust.article_draw.*.share_of_draws": None,
    "trust.grouped_cv.article.accuracy": (0.45, 0.75),
    "trust.grouped_cv.gentle.accuracy": (0.6, 0.85),
    "trust.grouped_cv.none.accuracy": (0.7, 0.87),
    "trust.grouped_cv.logistic.accuracy": 0.01,  # three of 306
    "trust.differences.none minus article.difference": (0.05, 0.35),
    "trust.differences.*.difference": None,
    "trust.blackout.confusion.0.0": (50, 69),  # of 69: the frame alone finds COVID-19
    "trust.blackout.accuracy": None,
    "trust.*.by_finding.*.predicted_covid": None,
    "trust.nih*.predicted_covid": (30, 80),
    "trust.nih*.with_right_answer.correct": (0, 20),  # guessing gets 20
    "trust.collection*.predicted_covid": (35, 82),
    "trust.collection*.with_right_answer.correct": (0, 15),  # guessing gets 13
    **FREE,
}


def leaves(value, path=""):
    """All numbers and words of a result by their paths, such as trust.silly.black."""
    if not isinstance(value, (dict, list)):
        return {path.lstrip("."): value}
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    return {key: leaf for name, part in parts for key, leaf in leaves(part, f"{path}.{name}").items()}


def assert_alike(found, known, may_differ):
    """All differences that are not allowed are named at once."""
    found, known, wrong = leaves(found), leaves(known), []
    for path in sorted(found.keys() | known.keys()):
        rule = next((rule for pattern, rule in may_differ.items() if fnmatch(path, pattern)), 0)
        if isinstance(rule, tuple):
            is_right = rule[0] <= found[path] <= rule[1]
        elif rule:
            is_right = abs(found[path] - known[path]) <= rule
        else:
            is_right = rule is None or found.get(path) == known.get(path)
        if not is_right:
            wrong.append(f"{path}: {found.get(path)}, and {known.get(path)} is committed")
    assert wrong == []


def committed(name):
    return json.loads((ROOT / "notebooks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


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


def run(clone, weights, notebook, name, **parameters):
    """Execute a notebook in the clone, without a network; returns its results."""
    copy = copy_with(notebook, clone / "notebooks", parameters)
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    cells = execute(copy, clone, clone / "output", VGG16_WEIGHTS=str(weights), **nowhere)
    assert outputs_of(cells, "error") == []
    return json.loads((clone / "output" / f"{name}.json").read_text(encoding="utf-8"))


def test_binary(clone, weights):
    """The whole lesson as it stands."""
    found, known = run(clone, weights, BINARY, "binary"), committed("binary")
    assert_alike(found, known, BINARY_MAY_DIFFER)
    now, then = (results["cases"]["binary"]["history"] for results in (found, known))
    assert now["loss"][:3] == pytest.approx(then["loss"][:3], rel=0.05)
    assert np.mean(now["val_acc"][-5:]) == pytest.approx(np.mean(then["val_acc"][-5:]), abs=0.05)


def test_multi(clone, weights):
    """With few views and epochs, what the lesson finds points the same way."""
    found = run(clone, weights, MULTI, "multi", VIEWS_PER_IMAGE=2, NUM_EPOCHS=20, FINE_TUNE_EPOCHS=2)
    assert_alike(found, committed("multi"), MULTI_MAY_DIFFER)
    children = np.array(found["trust"]["blackout"]["confusion"])[1:, 1:]
    assert 95 <= np.trace(children) <= 215  # of 237; guessing gets 79
