"""Both notebooks from top to bottom on small phantoms in a clone, and what they leave behind; alone: test_colab.py."""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import conftest
import pandas as pd
import pytest
from conftest import BINARY, MULTI, copy_clone, copy_with, execute, outputs_of

both = pytest.mark.parametrize("notebook", [BINARY, MULTI], ids=["binary", "multi"])
NAMES = {BINARY: "binary", MULTI: "multi"}
SETTINGS = {BINARY: conftest.QUICK | {"SEED": 7}, MULTI: conftest.QUICK_MULTI | {"SEED": 7}}
FEWER = ["import functools", "xray.bootstrap_interval = functools.partial(xray.bootstrap_interval, draws=50)"]
KEPT = {  # what the results have
    "binary": {"silly", "ladder", "blackout", "swap", "heat_map_correlations", "like_for_like", "nih", "collection"},
    "multi": {"article_draw", "grouped_cv", "differences", "blackout", "nih", "collection", "nih_none"},
}


def files_of(clone):
    """The files of a clone but for output/ and what Python compiled, and their content."""
    files = {path.relative_to(clone): path for path in clone.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    return {name: path.read_bytes() for name, path in files.items() if name.parts[0] != "output"}


def run_twice(places, clone):
    """Run Binary by papermill, and all cells after its settings once more in the same kernel; returns its cells."""
    copy = copy_with(BINARY, copy_clone(clone) / "notebooks", {}, FEWER)
    content = json.loads(copy.read_text(encoding="utf-8"))
    cells = content["cells"]
    (start,) = (index for index, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", []))
    keep = "(OUTPUT / 'binary.json').rename(OUTPUT / 'first.json')"
    added = {"cell_type": "code", "id": "keep", "metadata": {}, "outputs": [], "execution_count": None, "source": keep}
    again = [{**cell, "id": f"{cell['id']}-again"} for cell in cells[start + 1 :]]
    copy.write_text(json.dumps(content | {"cells": [*cells, added, *again]}), encoding="utf-8")
    before = files_of(clone)
    (clone / "output").mkdir()
    options = [word for name, value in SETTINGS[BINARY].items() for word in ("-p", name, str(value))]
    command = [sys.executable, "-m", "papermill", str(copy), "output/run.ipynb", "-k", "python3", *options]
    done = subprocess.run(command, cwd=clone, env=os.environ | places, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((clone / "output" / "run.ipynb").read_text(encoding="utf-8"))["cells"], before


def run_in_an_odd_shell(places, clone):
    """Run Multi as the Makefile does, in a shell that has other settings; returns its cells."""
    copy = copy_with(MULTI, copy_clone(clone) / "notebooks", SETTINGS[MULTI], FEWER)
    keras_json = {"backend": "torch", "image_data_format": "channels_first", "floatx": "float16", "epsilon": 0.1}
    (clone / "keras.json").write_text(json.dumps(keras_json), encoding="utf-8")
    shell = {"KERAS_HOME": str(clone), "KERAS_BACKEND": "torch", "TF_USE_LEGACY_KERAS": "1", "MPLBACKEND": "Agg"}
    shell |= {"SEED": "9", "LEARNING_RATE": "9", "NUM_EPOCHS": "1", "IMAGE_SIZE": "64", "TF_ENABLE_ONEDNN_OPTS": "0"}
    before = files_of(clone)
    return execute(copy, clone, clone / "output", **places, **shell), before


@pytest.fixture(scope="module")
def runs(tree, weights, tmp_path_factory):
    """Both runs, side by side: the clone, the cells, and the files that were there before, by the notebook."""
    places = {"COVID_XRAY_DATA": str(tree), "VGG16_WEIGHTS": str(weights)}
    clones = {notebook: tmp_path_factory.mktemp("clone") for notebook in (BINARY, MULTI)}
    with ThreadPoolExecutor(2) as pool:
        binary = pool.submit(run_twice, places, clones[BINARY])
        multi = pool.submit(run_in_an_odd_shell, places, clones[MULTI])
        found = {BINARY: binary.result(), MULTI: multi.result()}
    return {notebook: (clones[notebook], *found[notebook]) for notebook in clones}


def results_of(clone, name):
    """The results that a notebook left."""
    return json.loads((clone / "output" / f"{name}.json").read_text(encoding="utf-8"))


@both
def test_in_a_clone(notebook, runs):
    """Every section leaves its results, and the lesson its model, and nothing else, whatever the shell."""
    clone, cells, before = runs[notebook]
    name, output = NAMES[notebook], clone / "output"
    assert outputs_of(cells, "error") == []
    results = results_of(clone, name)
    assert (results["dataset"], results["weights"], results["seed"]) == ("phantoms", "imagenet", 7)
    assert results["files"] == {"article": 0, "same_pixels": 0, "other": 16 if name == "binary" else 32}
    assert set(results["trust"]) >= KEPT[name]
    for key, case in results["cases"].items():
        assert len(case["history"]["loss"]) == (1 if "fine_tuned" in key else 2), key
    leaked = results["trust"]["test_images_of_training_patients"]
    assert len(leaked) == (2 if name == "binary" else 4) and all("_000.jpeg" in file for file in leaked)
    markdown, text = outputs_of(cells, "text/markdown"), "".join(outputs_of(cells, "stream"))
    assert "phantoms" in "".join(markdown) and "phantoms" in markdown[-1] and "Traceback" not in text
    assert [path.name for path in output.glob("*.keras")] == [f"{name}.keras"]
    assert not list(output.glob("toolbox-*"))  # in a clone, the modules beside the notebook are taken
    assert files_of(clone) == before


@both
def test_every_figure_is_there(notebook, runs):
    """A cell that has words for a picture shows one, even if the shell chooses a backend without pictures."""
    absent = {"marks"}  # of two X-rays of the article
    cells = [cell for cell in runs[notebook][1] if "alt" in cell["metadata"]]
    assert len(cells) >= 8
    for cell in cells:
        assert outputs_of([cell], "image/png") or re.sub("-again$", "", cell["id"]) in absent, cell["id"]


def test_a_second_run_of_all_cells_changes_no_number(runs):
    clone = runs[BINARY][0]
    first, second = results_of(clone, "first"), results_of(clone, "binary")
    for part in ("cases", "trust"):
        known, found = (pd.json_normalize(results[part]).iloc[0] for results in (first, second))
        pd.testing.assert_series_equal(known, found, rtol=1e-3, atol=1e-4)
