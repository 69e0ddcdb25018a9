"""Both notebooks from top to bottom on small phantoms, in each place where they may run, and what they leave behind."""

import json
import math
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import conftest
import lessons
import pytest
from conftest import BINARY, MULTI, NOWHERE, ROOT, copy_clone, copy_with, execute, outputs_of

both = pytest.mark.parametrize("notebook", [BINARY, MULTI], ids=["binary", "multi"])
NAMES, SETTINGS = {BINARY: "binary", MULTI: "multi"}, {BINARY: conftest.QUICK, MULTI: conftest.QUICK_MULTI}
PLACES = {"COVID_XRAY_DATA", "COVID_XRAY_OUTPUT", "COVID_XRAY_URL", "VGG16_WEIGHTS"}
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


@pytest.fixture(scope="module")
def in_a_clone(tree, weights, tmp_path_factory):
    """Both notebooks run, side by side, in copies of the clone: by notebook, the copy's folder and the page's cells."""

    def run(notebook):
        clone = copy_clone(tmp_path_factory.mktemp("a clone"))
        copy = copy_with(notebook, clone / "notebooks", SETTINGS[notebook])
        places = {"COVID_XRAY_DATA": str(tree), "VGG16_WEIGHTS": str(weights)}
        return clone, execute(copy, clone, clone / "output", **places)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip((BINARY, MULTI), pool.map(run, (BINARY, MULTI))))


@pytest.fixture(scope="module")
def alone(archive, weights, tmp_path_factory):
    """Both notebooks, side by side, each alone in a folder, every cell twice in one kernel, in an odd shell.

    Beside a notebook are files that are not its toolbox. Nothing answers but a server that has the zip.
    """
    keras_json = {"backend": "torch", "image_data_format": "channels_first", "floatx": "float16", "epsilon": 0.1}
    shell = {"KERAS_BACKEND": "torch", "TF_USE_LEGACY_KERAS": "1", "PRECISION": "float16", "SEED": "7"}
    shell |= {"LEARNING_RATE": "9", "NUM_EPOCHS": "1", "IMAGE_SIZE": "64", "COVID_XRAY_NIH_URL": NOWHERE}

    def run(notebook, server):
        home = tmp_path_factory.mktemp("alone")
        for place in (home, home / "output" / "toolbox-000000000000"):
            place.mkdir(parents=True, exist_ok=True)
            for module in ("xray.py", "xray_data.py"):
                (place / module).write_text("raise RuntimeError('another toolbox')", encoding="utf-8")
        copy = copy_with(notebook, home, SETTINGS[notebook])
        content = json.loads(copy.read_text(encoding="utf-8"))
        code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
        content["cells"] = [{**cell, "id": f"cell-{index}"} for index, cell in enumerate(code + code)]
        copy.write_text(json.dumps(content), encoding="utf-8")
        aside = tmp_path_factory.mktemp("aside")
        (aside / "keras.json").write_text(json.dumps(keras_json), encoding="utf-8")
        places = {"COVID_XRAY_URL": server.put(f"/{notebook.stem}.zip", archive.read_bytes())}
        places |= {"VGG16_WEIGHTS": str(weights), "KERAS_HOME": str(aside)}
        return home, execute(copy, home, aside, **places, **shell), server.asked

    with conftest.running_server() as server, ThreadPoolExecutor(2) as pool:
        return dict(zip((BINARY, MULTI), pool.map(run, (BINARY, MULTI), (server, server))))


@both
def test_in_a_clone(notebook, in_a_clone):
    """Every section leaves its results, figures, and models, says that these are phantoms, and nothing else."""
    clone, cells = in_a_clone[notebook]
    name, output = NAMES[notebook], clone / "output"
    assert outputs_of(cells, "error") == []
    results = results_of(output, notebook)
    assert (results["dataset"], results["weights"], results["seed"]) == ("phantoms", "imagenet", 42)
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
    left = {path.name for path in (clone / "notebooks").iterdir()} - {"__pycache__"}
    assert left == {path.name for path in (ROOT / "notebooks").glob("*.*") if path.suffix in (".py", ".ipynb")}


@both
def test_alone_in_a_folder(notebook, alone):
    """It downloads its images once, unpacks its own toolbox, and takes no other; what is not to be had is left out."""
    home, cells, asked = alone[notebook]
    assert outputs_of(cells, "error") == [] and asked.count(f"/{notebook.stem}.zip") == 1 and len(asked) == 2
    found = {path.name for path in home.iterdir()} - {"__pycache__"}
    assert found == {notebook.name, "xray.py", "xray_data.py", "data", "output"}
    assert {path.name for path in (home / "data").iterdir()} == {"Covid_Data_GradientCrescent.zip", "two", "all"}
    results = results_of(home / "output", notebook)
    assert results["dataset"] == ("own_two" if notebook == BINARY else "own_all")
    assert not any(key.startswith(("controls", "no_finding")) for key in results["trust"])
    (toolbox,) = set((home / "output").glob("toolbox-*")) - {home / "output" / "toolbox-000000000000"}
    for name, folder in {"xray.py": "notebooks", "xray_data.py": "notebooks", "manifest.csv": "data"}.items():
        assert (toolbox / name).read_bytes() == (ROOT / folder / name).read_bytes()


@both
def test_neither_the_shell_nor_a_second_run_changes_a_number(notebook, in_a_clone, alone):
    """From the top again in one kernel, with other settings all around: the numbers of a plain run, on equal images."""
    plain = results_of(in_a_clone[notebook][0] / "output", notebook)
    again = results_of(alone[notebook][0] / "output", notebook)
    assert_same_results(plain["cases"], again["cases"])
    assert plain["seed"] == again["seed"] and len(again["trust"]) >= 5
    for key in ("children", "children_blackout"):  # the other tasks need controls
        for results in (plain, again) if notebook == BINARY else ():
            results["trust"][key] = results["trust"].get("like_for_like", {}).get(key)
    for results in (plain, again):
        results["trust"].pop("like_for_like", None)
    for key in again["trust"]:
        assert_same_results(plain["trust"][key], again["trust"][key])


def papermill(cwd, notebook, output, *parameters, **settings):
    """Run `notebook` by papermill in `cwd`, as a user does; returns the finished process."""
    command = [sys.executable, "-m", "papermill", str(notebook), str(output), "-k", "python3", *parameters]
    return subprocess.run(command, cwd=cwd, env=conftest.clean_environment(**settings), capture_output=True, text=True)


def test_papermill_from_the_root(in_a_clone, tree, weights, tmp_path):
    """It sets the parameters, whatever the shell says, and leaves nothing behind but output/. (Part 1 is enough.)"""
    clone = copy_clone(tmp_path / "clone")
    content = json.loads(BINARY.read_text(encoding="utf-8"))
    last = [cell["id"] for cell in content["cells"]].index("record")
    notebook = clone / "notebooks" / BINARY.name
    notebook.write_text(json.dumps(content | {"cells": content["cells"][: last + 1]}), encoding="utf-8")

    def files():
        return {path: path.read_bytes() for path in clone.rglob("*") if path.is_file() and path.suffix != ".pyc"}

    before, output = files(), clone / "output"
    output.mkdir()
    parameters = ["-p", "IMAGE_SIZE", "32", "-p", "NUM_EPOCHS", "2", "-p", "SEED", "7"]
    places = {"COVID_XRAY_DATA": str(tree), "VGG16_WEIGHTS": str(weights), "SEED": "5"}
    done = papermill(clone, notebook.relative_to(clone), output / "run.ipynb", *parameters, **places)
    assert done.returncode == 0, done.stderr[-2000:]
    results, plain = results_of(output, BINARY), results_of(in_a_clone[BINARY][0] / "output", BINARY)
    history = results["cases"]["binary"]["history"]
    assert results["seed"] == 7 and len(history["loss"]) == 2 and history != plain["cases"]["binary"]["history"]
    assert {path: data for path, data in files().items() if output not in path.parents} == before


@both
def test_without_any_source(notebook, tmp_path):
    """A notebook alone stops where it finds no images, with one message that names every address that it tried."""
    github = NOWHERE.replace("none", "github")
    addresses = {"DRIVE_URL": NOWHERE, "GITHUB_URL": github}
    lines = [f"xray_data.{name} = {address!r}" for name, address in addresses.items()] if notebook == MULTI else []
    copy = copy_with(notebook, tmp_path, addresses if notebook == BINARY else {}, lines)
    done = papermill(tmp_path, copy, tmp_path / "run.ipynb")
    assert done.returncode != 0
    cells = json.loads((tmp_path / "run.ipynb").read_text(encoding="utf-8"))["cells"]
    (message,) = outputs_of(cells, "error")
    assert NOWHERE in message and github in message and "Covid_Data_GradientCrescent.zip" in message
    assert str(tmp_path) in message and not list(tmp_path.rglob("PHANTOMS.txt"))


def test_the_environment_gives_places_alone():
    """No cell and no module reads any other variable (CI hides bars of progress)."""
    sources = ["\n".join(lessons.code_cells(notebook).values()) for notebook in (BINARY, MULTI)]
    sources += [path.read_text(encoding="utf-8") for path in (ROOT / "notebooks").glob("*.py")]
    read = set(re.findall(r"environ\.get\(\W(\w+)", "".join(sources)))
    assert read == PLACES | {"CI"} and not re.search(r"getenv|environ\[[^]]+\](?! = )", "".join(sources))
