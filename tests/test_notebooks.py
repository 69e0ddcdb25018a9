"""Both notebooks from top to bottom on small phantoms, in each place where they may run, and what they leave behind."""

import json
import math
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import conftest
import pack
import pytest
from conftest import BINARY, MULTI, NOWHERE, ZIP, copy_clone, copy_with, execute, outputs_of

both = pytest.mark.parametrize("notebook", [BINARY, MULTI], ids=["binary", "multi"])
NAMES = {BINARY: "binary", MULTI: "multi"}
SETTINGS = {BINARY: conftest.QUICK | {"SEED": 7}, MULTI: conftest.QUICK_MULTI | {"SEED": 7}}
GITHUB = NOWHERE.replace("none", "github")
FEWER = ["import functools", "xray.bootstrap_interval = functools.partial(xray.bootstrap_interval, draws=50)"]
RECIPES = ("", "_gentle", "_none")
TRUST = {
    "binary": {"test_images_of_training_patients", "blackout", "swap", "heat_map_correlations", "no_finding"}
    | {"controls", "like_for_like"},
    "multi": {"article_draw", "grouped_cv", "differences", "test_images_of_training_patients", "blackout"}
    | {f"{group}{recipe}" for group in ("no_finding", "controls") for recipe in RECIPES},
}


def results_of(output, notebook):
    """The result file that a notebook left in `output`."""
    return json.loads((output / f"{NAMES[notebook]}.json").read_text(encoding="utf-8"))


def leaves(value, path=""):
    """All numbers and texts in nested results, by their path."""
    if isinstance(value, dict):
        return {key: leaf for name, inner in value.items() for key, leaf in leaves(inner, f"{path}.{name}").items()}
    if isinstance(value, list):
        return leaves(dict(enumerate(value)), path)
    return {path: value}


def assert_same_results(first, second):
    """Results are equal, floating-point numbers nearly."""
    first, second = leaves(first), leaves(second)
    assert list(first) == list(second)
    for path, value in first.items():
        if isinstance(value, float) and isinstance(second[path], float):
            assert math.isclose(value, second[path], rel_tol=1e-3, abs_tol=1e-4), path
        else:
            assert value == second[path], path


def papermill(cwd, notebook, parameters, **settings):
    """Run a notebook by papermill in `cwd`, as a user does; returns the process, and the page's cells."""
    (cwd / "output").mkdir()
    command = [sys.executable, "-m", "papermill", str(notebook.relative_to(cwd)), "output/run.ipynb", "-k", "python3"]
    for name, value in parameters.items():
        command += ["-p", name, str(value)]
    environment = conftest.clean_environment(**settings)
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    return done, json.loads((cwd / "output" / "run.ipynb").read_text(encoding="utf-8"))["cells"]


def files_of(clone):
    """The files of a clone but for output/ and what Python compiled, and their content."""
    files = {path.relative_to(clone): path for path in clone.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    return {name: path.read_bytes() for name, path in files.items() if name.parts[0] != "output"}


def in_a_clone(notebook, tree, weights, clone):
    """Run a notebook in a copy of the clone: Binary by papermill in its root, Multi as the Makefile does.

    Returns the copy's folder, the page's cells, and the files that were there before.
    """
    places = {"COVID_XRAY_DATA": str(tree), "VGG16_WEIGHTS": str(weights)}
    copy_clone(clone)
    if notebook == MULTI:
        copy = copy_with(notebook, clone / "notebooks", SETTINGS[notebook], FEWER)
        before = files_of(clone)
        return clone, execute(copy, clone, clone / "output", **places), before
    copy = copy_with(notebook, clone / "notebooks", {}, FEWER)
    before = files_of(clone)
    done, cells = papermill(clone, copy, SETTINGS[notebook], **places)
    assert done.returncode == 0, done.stderr[-2000:]
    return clone, cells, before


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


def without_source(notebook, folder):
    """Run a notebook alone, where nobody answers; returns the process, and the page's cells."""
    return papermill(folder, copy_with(notebook, folder, {}), {"DRIVE_URL": NOWHERE, "GITHUB_URL": GITHUB})


@pytest.fixture(scope="module")
def runs(tree, archive, weights, tmp_path_factory):
    """All of these runs, two at a time: a future by its name, which a test waits for."""
    with conftest.running_server() as server, ThreadPoolExecutor(2) as pool:
        started = {}
        for name, run, *arguments in (
            ("clone", in_a_clone, tree, weights),
            ("alone", alone, server.put(f"/{ZIP}", archive.read_bytes()), weights),
            ("nowhere", without_source),
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
    results = results_of(output, notebook)
    assert (results["dataset"], results["weights"], results["seed"]) == ("phantoms", "imagenet", 7)
    assert results["files"] == {"article": 0, "same_pixels": 0, "other": 16 if name == "binary" else 32}
    trust, cases = results["trust"], results["cases"]
    assert set(trust) == TRUST[name]
    recipes = [f"{case}{kind}" for case in ("three", "four") for kind in (*RECIPES, "_fine_tuned")]
    assert sorted(cases) == (["binary"] if name == "binary" else sorted(recipes))
    for key, case in cases.items():
        test, classes = case["test"], len(case["classes"])
        assert test["n"] == test["patients"] == 3 * classes == sum(map(sum, test["confusion"]))
        epochs = 1 if key.endswith("fine_tuned") else 2
        assert all(len(case["history"][metric]) == epochs for metric in ("acc", "val_acc", "loss", "val_loss"))
    leaked = trust["test_images_of_training_patients"]
    assert len(leaked) == (2 if name == "binary" else 4) and all("_000.jpeg" in file for file in leaked)
    for group, scored in ((key, trust[key]) for key in trust if key.startswith(("controls", "no_finding"))):
        assert scored["n"] == scored["patients"] == 6, group
    if name == "binary":
        assert {task: scored["n"] for task, scored in trust["like_for_like"].items()} == {
            "children": 16, "children_blackout": 16, "nih": 14, "nih_blackout": 14,
            "same_collection": 14, "same_collection_blackout": 14,
        }  # fmt: skip
        assert list(trust["blackout"]["binary"]["by_share"]) == ["0", "0.5", "0.7", "0.9"]
    else:
        assert {key: (cv["n"], len(cv["folds"])) for key, cv in trust["grouped_cv"].items()} == {
            f"four{kind}": (32, 5) for kind in (*RECIPES, "_logistic")
        }
        assert {case: len(draw["files"]) for case, draw in trust["article_draw"].items()} == {"three": 1, "four": 2}
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
    plain = results_of(runs["clone", notebook].result()[0] / "output", notebook)
    again = results_of(runs["alone", notebook].result()[0] / "output", notebook)
    assert plain["seed"] == again["seed"] and len(again["trust"]) >= 5
    assert_same_results(plain["cases"], again["cases"])
    for key, found in again["trust"].items():
        if key == "like_for_like":  # the other tasks need controls
            plain["trust"][key] = {task: plain["trust"][key][task] for task in ("children", "children_blackout")}
        assert_same_results(plain["trust"][key], found)


@both
def test_without_any_source(notebook, runs):
    """A notebook alone stops where it finds no images, with one message that names every address that it tried."""
    done, cells = runs["nowhere", notebook].result()
    (message,) = outputs_of(cells, "error")
    assert done.returncode != 0 and NOWHERE in message and GITHUB in message and ZIP in message
