"""Both notebooks from top to bottom on small phantoms, in each place where they may run, and what they leave behind."""

import json
import math
import re
import subprocess
import sys

import lessons
import pytest
from conftest import BINARY, MULTI, NOWHERE, QUICK, QUICK_MULTI, ROOT, clean_environment, copy_clone, copy_with, execute
from conftest import outputs_of as outputs

both = pytest.mark.parametrize("notebook", [BINARY, MULTI], ids=["binary", "multi"])
NAMES, SETTINGS = {BINARY: "binary", MULTI: "multi"}, {BINARY: QUICK, MULTI: QUICK_MULTI}
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
def plain_run(tree, weights, tmp_path_factory):
    """Run a notebook in a copy of the clone, once for all tests that need it; returns its folder and its cells."""
    runs = {}

    def run(notebook):
        if notebook not in runs:
            clone = copy_clone(tmp_path_factory.mktemp("a clone"))
            copy = copy_with(notebook, clone / "notebooks", SETTINGS[notebook])
            places = {"COVID_XRAY_DATA": str(tree), "VGG16_WEIGHTS": str(weights)}
            runs[notebook] = clone, execute(copy, clone, clone / "output", **places)
        return runs[notebook]

    return run


@both
def test_in_a_clone(notebook, plain_run):
    """Every section leaves its results, figures, and models, says that these are phantoms, and nothing else."""
    clone, cells = plain_run(notebook)
    name, output = NAMES[notebook], clone / "output"
    assert outputs(cells, "error") == []
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
    markdown, text = outputs(cells, "text/markdown"), "".join(outputs(cells, "stream"))
    assert "phantoms" in markdown[0] and "drawn phantoms" in markdown[-1] and "Traceback" not in text
    figures = [page for page in outputs(cells, "text/html") if "<img" in page]
    assert figures and all(re.search(r'alt="\w', page) for page in figures)
    models = {"binary": ["binary.keras"], "multi": ["multi_four.keras", "multi_three.keras"]}
    assert sorted(path.name for path in output.glob("*.keras")) == models[name]
    assert not list(output.glob("toolbox-*"))  # in a clone, the modules beside the notebook are taken
    left = {path.name for path in (clone / "notebooks").iterdir()} - {"__pycache__"}
    assert left == {path.name for path in (ROOT / "notebooks").glob("*.*") if path.suffix in (".py", ".ipynb")}


@both
def test_again_in_one_kernel_whatever_the_shell_says(notebook, plain_run, tree, weights, tmp_path):
    """Every cell twice: the second time from the top gives the numbers of a plain run. So do settings elsewhere."""
    content = json.loads(copy_with(notebook, tmp_path / "once", SETTINGS[notebook]).read_text(encoding="utf-8"))
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    content["cells"] = [{**cell, "id": f"again-{index}"} for index, cell in enumerate(code + code)]
    clone = copy_clone(tmp_path / "clone")
    (clone / "notebooks" / notebook.name).write_text(json.dumps(content), encoding="utf-8")
    keras_json = {"backend": "torch", "image_data_format": "channels_first", "floatx": "float16", "epsilon": 0.1}
    (tmp_path / "keras.json").write_text(json.dumps(keras_json), encoding="utf-8")
    shell = {"KERAS_HOME": str(tmp_path), "KERAS_BACKEND": "torch", "TF_USE_LEGACY_KERAS": "1", "PRECISION": "float16"}
    shell |= {"SEED": "7", "LEARNING_RATE": "9", "NUM_EPOCHS": "1", "IMAGE_SIZE": "64", "COVID_XRAY_NIH_URL": NOWHERE}
    shell |= {"COVID_XRAY_DATA": str(tree), "VGG16_WEIGHTS": str(weights), "COVID_XRAY_OUTPUT": str(tmp_path / "out")}
    cells = execute(clone / "notebooks" / notebook.name, clone, tmp_path / "page", **shell)
    assert outputs(cells, "error") == []
    plain, again = results_of(plain_run(notebook)[0] / "output", notebook), results_of(tmp_path / "out", notebook)
    assert_same_results(plain, again)


@both
def test_alone_in_a_folder(notebook, archive, server, weights, tmp_path):
    """Nothing but the notebook, and files that are not its toolbox: it unpacks its own. No network but for the zip."""
    for place in (".", "output/toolbox-000000000000"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        for module in ("xray.py", "xray_data.py"):
            (tmp_path / place / module).write_text("raise RuntimeError('another toolbox')", encoding="utf-8")
    copy = copy_with(notebook, tmp_path, SETTINGS[notebook])
    places = {"COVID_XRAY_URL": server.put("/data.zip", archive.read_bytes()), "VGG16_WEIGHTS": str(weights)}
    cells = execute(copy, tmp_path, tmp_path / "page", **places)
    assert outputs(cells, "error") == [] and server.asked == ["/data.zip"]
    found = {path.name for path in tmp_path.iterdir()} - {"page", "__pycache__"}
    assert found == {notebook.name, "xray.py", "xray_data.py", "data", "output"}
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"Covid_Data_GradientCrescent.zip", "two", "all"}
    results = results_of(tmp_path / "output", notebook)
    assert results["dataset"] == ("own_two" if notebook == BINARY else "own_all")
    assert not any(key.startswith(("controls", "no_finding")) for key in results["trust"])
    (toolbox,) = set((tmp_path / "output").glob("toolbox-*")) - {tmp_path / "output" / "toolbox-000000000000"}
    for name, folder in {"xray.py": "notebooks", "xray_data.py": "notebooks", "manifest.csv": "data"}.items():
        assert (toolbox / name).read_bytes() == (ROOT / folder / name).read_bytes()


def papermill(cwd, notebook, output, *parameters, **settings):
    """Run `notebook` by papermill in `cwd`, as a user does; returns the finished process."""
    command = [sys.executable, "-m", "papermill", str(notebook), str(output), "-k", "python3", *parameters]
    return subprocess.run(command, cwd=cwd, env=clean_environment(**settings), capture_output=True, text=True)


def test_papermill_from_the_root(plain_run, tree, weights, tmp_path):
    """It sets the parameters, whatever the shell says, and leaves nothing behind but output/."""
    clone = copy_clone(tmp_path / "clone")

    def files():
        return {path: path.read_bytes() for path in clone.rglob("*") if path.is_file() and path.suffix != ".pyc"}

    before, output = files(), clone / "output"
    output.mkdir()
    parameters = ["-p", "IMAGE_SIZE", "32", "-p", "NUM_EPOCHS", "2", "-p", "SEED", "7"]
    places = {"COVID_XRAY_DATA": str(tree), "VGG16_WEIGHTS": str(weights), "SEED": "5"}
    done = papermill(clone, BINARY.relative_to(ROOT), output / "run.ipynb", *parameters, **places)
    assert done.returncode == 0, done.stderr[-2000:]
    results, plain = results_of(output, BINARY), results_of(plain_run(BINARY)[0] / "output", BINARY)
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
    (message,) = outputs(cells, "error")
    assert NOWHERE in message and github in message and "Covid_Data_GradientCrescent.zip" in message
    assert str(tmp_path) in message and not list(tmp_path.rglob("PHANTOMS.txt"))


def test_the_environment_gives_places_alone():
    """No cell and no module reads any other variable (CI hides bars of progress)."""
    sources = ["\n".join(lessons.code_cells(notebook).values()) for notebook in (BINARY, MULTI)]
    sources += [path.read_text(encoding="utf-8") for path in (ROOT / "notebooks").glob("*.py")]
    read = set(re.findall(r"environ\.get\(\W(\w+)", "".join(sources)))
    assert read == PLACES | {"CI"} and not re.search(r"getenv|environ\[[^]]+\](?! = )", "".join(sources))
