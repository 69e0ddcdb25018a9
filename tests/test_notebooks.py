"""Both notebooks from top to bottom on small phantoms, in each place where they may run, and what they leave behind."""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import conftest
import pack
import pandas as pd
import pytest
from conftest import BINARY, MULTI, ZIP, copy_clone, copy_with, execute, outputs_of
from tables import load

both = pytest.mark.parametrize("notebook", [BINARY, MULTI], ids=["binary", "multi"])
NAMES = {BINARY: "binary", MULTI: "multi"}
SETTINGS = {BINARY: conftest.QUICK | {"SEED": 7}, MULTI: conftest.QUICK_MULTI | {"SEED": 7}}
FEWER = ["import functools", "xray.bootstrap_interval = functools.partial(xray.bootstrap_interval, draws=50)"]


def results_of(output, notebook):
    """The result file that a notebook left in `output`."""
    return json.loads((output / f"{NAMES[notebook]}.json").read_text(encoding="utf-8"))


def files_of(clone):
    """The files of a clone but for output/ and what Python compiled, and their content."""
    files = {path.relative_to(clone): path for path in clone.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    return {name: path.read_bytes() for name, path in files.items() if name.parts[0] != "output"}


def in_a_clone(notebook, tree, weights, clone):
    """Run a notebook in a copy of the clone: Binary by papermill in its root, Multi as the Makefile does.

    Returns the copy's folder, the page's cells, and the files that were there before.
    """
    places = {"COVID_XRAY_DATA": str(tree), "VGG16_WEIGHTS": str(weights)}
    settings = SETTINGS[notebook]
    copy = copy_with(notebook, copy_clone(clone) / "notebooks", settings if notebook == MULTI else {}, FEWER)
    before = files_of(clone)
    if notebook == MULTI:
        return clone, execute(copy, clone, clone / "output", **places), before
    (clone / "output").mkdir()
    options = [word for name, value in settings.items() for word in ("-p", name, str(value))]
    command = [sys.executable, "-m", "papermill", str(copy), "output/run.ipynb", "-k", "python3", *options]
    subprocess.run(command, cwd=clone, env=os.environ | places, check=True)
    return clone, json.loads((clone / "output" / "run.ipynb").read_text(encoding="utf-8"))["cells"], before


def alone(notebook, url, weights, folder):
    """Run a notebook alone in `folder`/home, every cell twice in one kernel, in an odd shell; returns home and cells.

    Beside it are files that are not its toolbox. Only `url` answers: it has the zip of the images.
    """
    home = folder / "home"
    for place in (home, home / "output" / "toolbox-000000000000"):
        place.mkdir(parents=True)
        for module in ("xray.py", "xray_data.py"):
            (place / module).write_text("raise RuntimeError('another toolbox')", encoding="utf-8")
    copy = copy_with(notebook, home, SETTINGS[notebook], FEWER)
    content = json.loads(copy.read_text(encoding="utf-8"))
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    content["cells"] = [{**cell, "id": f"cell-{index}"} for index, cell in enumerate(code + code)]
    copy.write_text(json.dumps(content), encoding="utf-8")
    keras_json = {"backend": "torch", "image_data_format": "channels_first", "floatx": "float16", "epsilon": 0.1}
    (folder / "keras.json").write_text(json.dumps(keras_json), encoding="utf-8")
    shell = {"COVID_XRAY_URL": url, "VGG16_WEIGHTS": str(weights), "KERAS_HOME": str(folder), "KERAS_BACKEND": "torch"}
    shell |= {"TF_USE_LEGACY_KERAS": "1", "SEED": "9", "LEARNING_RATE": "9", "NUM_EPOCHS": "1", "IMAGE_SIZE": "64"}
    return home, execute(copy, home, folder, **shell)


@pytest.fixture(scope="module")
def runs(tree, archive, weights, tmp_path_factory):
    """All of these runs, two at a time: a future by its name, which a test waits for."""
    with conftest.Server() as server, ThreadPoolExecutor(2) as pool:
        started = {}
        for name, run, *arguments in (
            ("clone", in_a_clone, tree, weights),
            ("alone", alone, server.put(f"/{ZIP}", archive.read_bytes()), weights),
        ):
            for notebook in (BINARY, MULTI):
                folder = tmp_path_factory.mktemp("a run")
                started[name, notebook] = pool.submit(run, notebook, *arguments, folder)
        yield started


@both
def test_in_a_clone(notebook, runs):
    """Every section leaves its results, figures, and models, says that these are phantoms, and nothing else."""
    clone, cells, before = runs["clone", notebook].result()
    name, output = NAMES[notebook], clone / "output"
    assert outputs_of(cells, "error") == []
    results, committed = results_of(output, notebook), load(name)
    assert (results["dataset"], results["weights"], results["seed"]) == ("phantoms", "imagenet", 7)
    assert results["files"] == {"article": 0, "same_pixels": 0, "other": 16 if name == "binary" else 32}
    assert set(results["cases"]) == set(committed["cases"])
    assert set(results["trust"]) == set(committed["trust"]) - {"marks"}  # of two X-rays of the article
    leaked = results["trust"]["test_images_of_training_patients"]
    assert len(leaked) == (2 if name == "binary" else 4) and all("_000.jpeg" in file for file in leaked)
    markdown, text = outputs_of(cells, "text/markdown"), "".join(outputs_of(cells, "stream"))
    assert "phantoms" in markdown[0] and "drawn phantoms" in markdown[-1] and "Traceback" not in text
    figures = [page for page in outputs_of(cells, "text/html") if "<img" in page]
    assert figures and all(re.search(r'alt="\w', page) for page in figures)
    models = {"binary": ["binary.keras"], "multi": ["multi_four.keras", "multi_three.keras"]}
    assert sorted(path.name for path in output.glob("*.keras")) == models[name]
    assert not list(output.glob("toolbox-*"))  # in a clone, the modules beside the notebook are taken
    assert files_of(clone) == before


@both
def test_alone_in_a_folder(notebook, runs):
    """It downloads its images, unpacks its own toolbox, and takes no other; it goes on without controls."""
    home, cells = runs["alone", notebook].result()
    assert outputs_of(cells, "error") == []
    found = {path.name for path in home.iterdir()} - {"__pycache__"}
    assert found == {notebook.name, "xray.py", "xray_data.py", "data", "output"}
    assert {path.name for path in (home / "data").iterdir()} == {ZIP, "two" if notebook == BINARY else "all"}
    results = results_of(home / "output", notebook)
    assert results["dataset"].startswith("own")
    assert not any(key.startswith(("controls", "no_finding")) for key in results["trust"])
    (toolbox,) = set((home / "output").glob("toolbox-*")) - {home / "output" / "toolbox-000000000000"}
    for name, content in pack.read_packed().items():
        assert (toolbox / name).read_bytes() == content


@both
def test_neither_the_shell_nor_a_second_run_changes_a_number(notebook, runs):
    """From the top again in one kernel, with other settings all around: the numbers of a plain run, on equal images."""
    plain, again = (results_of(runs[name, notebook].result()[0] / "output", notebook) for name in ("clone", "alone"))
    assert plain["seed"] == again["seed"] and len(again["trust"]) >= 5
    for part in ("cases", "trust"):  # the plain run has more of them: those that need controls
        known, found = (pd.json_normalize(results[part]).iloc[0] for results in (plain, again))
        pd.testing.assert_series_equal(known[found.index], found, rtol=1e-3, atol=1e-4)
