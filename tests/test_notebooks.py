"""Both notebooks executed from top to bottom on phantoms, and what they leave behind."""

import json
import re
import shutil
import subprocess
import sys
import time
from urllib.parse import quote, unquote

import lessons
import numpy as np
import psutil
import pytest
import xray
import xray_data
from conftest import BINARY, MULTI, ROOT, clean_environment, execute, outputs_of

QUICK = {"NUM_EPOCHS": "2", "VIEWS_PER_IMAGE": "2", "FINE_TUNE_EPOCHS": "1"}
SMALL = {**QUICK, "IMAGE_SIZE": "64"}
NAMES = {BINARY: "binary", MULTI: "multi"}
both = pytest.mark.parametrize("notebook", [BINARY, MULTI], ids=["binary", "multi"])
CASES = {
    "binary": ["binary"],
    "multi": [f"{case}{kind}" for case in ("three", "four") for kind in ("", "_gentle", "_none", "_fine_tuned")],
}
TRUST = {
    "binary": ["test_images_of_training_patients", "blackout", "no_finding", "controls", "by_seed", "like_for_like"],
    "multi": ["article_draw", "grouped_cv", "differences", "test_images_of_training_patients", "blackout"]
    + [f"{group}{kind}" for group in ("no_finding", "controls") for kind in ("", "_gentle", "_none")],
}
UNPACKED = {"xray.py": "notebooks", "xray_data.py": "notebooks", "manifest.csv": "data"}


def results_of(folder, notebook):
    """The result file that a notebook left in `folder`."""
    return json.loads((folder / f"{NAMES[notebook]}.json").read_text(encoding="utf-8"))


def cell_of(cells, name):
    """The cell whose id is `name`, in a list of its own, for outputs_of."""
    return [cell for cell in cells if cell["id"] == name]


def cut_after(notebook, name, path):
    """Write a copy of `notebook` to `path` that ends with the cell whose id is `name`."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    last = [cell["id"] for cell in content["cells"]].index(name)
    content["cells"] = content["cells"][: last + 1]
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def plain_run(tree, weights, tmp_path_factory):
    """Run a notebook in the repository, once for all tests that need it; returns its folder and its cells."""
    runs = {}

    def run(notebook):
        if notebook not in runs:
            output = tmp_path_factory.mktemp("plain run")
            settings = {"COVID_XRAY_DATA": str(tree), "COVID_XRAY_OUTPUT": str(output), "VGG16_WEIGHTS": str(weights)}
            runs[notebook] = output, execute(notebook, ROOT / "notebooks", output, **settings, **QUICK)
        return runs[notebook]

    return run


@both
def test_in_the_repository(notebook, plain_run):
    """On phantoms: every section leaves its results, figures, and models, and says that they are synthetic."""
    output, cells = plain_run(notebook)
    assert outputs_of(cells, "error") == []
    name, results = NAMES[notebook], results_of(output, notebook)
    assert results["dataset"] == "phantoms" and results["weights"] == "imagenet"
    assert results["precision"] in ("float32", "bfloat16", "float16") and results["seed"] == 42
    assert sorted(results["cases"]) == sorted(CASES[name]) and sorted(results["trust"]) == sorted(TRUST[name])
    assert {"images", "features", "training", "trust", "total"} <= set(results["seconds"])
    for key, case in results["cases"].items():
        epochs = 1 if key.endswith("fine_tuned") else 2
        assert all(len(case["history"][metric]) == epochs for metric in ("acc", "val_acc", "loss", "val_loss"))
        test, classes = case["test"], len(case["classes"])
        assert test["n"] == 2 * classes == np.sum(test["confusion"]) and test["correct"] == np.trace(test["confusion"])
        assert test["ci95"][0] <= test["accuracy"] <= test["ci95"][1] and test["patients"] == 2 * classes
        assert test["ci95"] == pytest.approx(xray.exact_interval(test["correct"], test["n"]))
    trust = results["trust"]
    leaked = trust["test_images_of_training_patients"]
    assert len(leaked) == (2 if name == "binary" else 4) and all("_000.jpeg" in file for file in leaked)
    markdown, text = outputs_of(cells, "text/markdown"), "".join(outputs_of(cells, "stream"))
    assert "SYNTHETIC" in markdown[0] and "drawn phantoms" in markdown[-1]
    assert "float32" in "".join(outputs_of(cell_of(cells, "save"), "stream"))
    for group in ("controls", "no_finding"):  # four each: two bacterial, two viral; all of the NIH's without a finding
        for kind in [""] if name == "binary" else ["", "_gentle", "_none"]:
            scored = trust[f"{group}{kind}"]
            assert scored["n"] == scored["patients"] == scored["with_right_answer"]["n"] == 4
            assert 0 <= scored["predicted_covid"] <= 4 and len(scored["by_finding"]) == (
                2 if group == "controls" else 1
            )
    if name == "binary":
        assert "16,812,353" in "".join(outputs_of(cells, "text/html"))
        assert len(trust["by_seed"]) == 5 and all({"NIH", "collection"} < set(row) for row in trust["by_seed"])
        assert {task: scored["n"] for task, scored in trust["like_for_like"].items()} == {
            "children": 14, "children_blackout": 14, "nih": 11, "nih_blackout": 11, "same_collection": 11,
        }  # fmt: skip
        assert all({"auc", "auc_ci95", "majority"} < set(scored) for scored in trust["like_for_like"].values())
        assert list(trust["blackout"]["binary"]["by_share"]) == ["0", "0.5", "0.7", "0.9"]
    else:
        assert list(trust["grouped_cv"]) == ["four", "four_gentle", "four_none", "four_logistic"]
        assert all(cv["n"] == 28 and len(cv["folds"]) == 5 for cv in trust["grouped_cv"].values())
        assert all("mean_on_views" in trust["grouped_cv"][key] for key in ("four", "four_gentle", "four_none"))
        assert {case: draw["n"] for case, draw in trust["article_draw"].items()} == {"three": 1, "four": 1}
        pairs = [("gentle", "four"), ("none", "four"), ("none", "four_gentle"), ("logistic", "four")]
        assert list(trust["differences"]) == [f"four_{one} - {other}" for one, other in pairs]
        assert trust["blackout"]["four"]["n"] == 8
    shown = [page for page in outputs_of(cells, "text/html") if "<img" in page]
    assert len(shown) == len(list(output.glob("*.png"))) and all(re.search(r'alt="\w', page) for page in shown)
    models = {"binary": ["binary.keras"], "multi": ["multi_four.keras", "multi_three.keras"]}
    assert sorted(path.name for path in output.glob("*.keras")) == models[name]
    assert "I0000" not in text and "WARNING" not in text  # TensorFlow starts quietly


@both
def test_alone_in_a_folder(notebook, archive, server, tmp_path):
    """Colab's situation: nothing but the notebook. It unpacks its own toolbox; controls are not available."""
    home = tmp_path / "content"
    home.mkdir()
    shutil.copy(notebook, home)
    settings = {"COVID_XRAY_URL": server.put("/data.zip", archive.read_bytes()), "COVID_CHESTXRAY_URL": server.url}
    settings |= {"COVID_XRAY_NIH_URL": server.url, "VGG16_WEIGHTS": "random"}
    cells = execute(home / notebook.name, home, tmp_path, **settings, **SMALL)
    assert outputs_of(cells, "error") == []
    assert server.asked.count("/data.zip") == 1
    assert sorted(path.name for path in (home / "data").iterdir()) == [
        "Covid_Data_GradientCrescent.zip", "all", "controls", "nih_no_finding", "two",
    ]  # fmt: skip
    made = {path.name for path in home.iterdir()} - {"__pycache__"}
    assert made == {notebook.name, "data", "output", *UNPACKED}
    for name, folder in UNPACKED.items():
        assert (home / name).read_bytes() == (ROOT / folder / name).read_bytes()
    results = results_of(home / "output", notebook)
    assert results["dataset"] == ("two" if notebook == BINARY else "all") and results["weights"] == "random"
    assert not any(re.match("controls|no_finding", key) for key in results["trust"])
    said = "".join(outputs_of(cell_of(cells, "controls"), "stream"))
    for kind, table in xray_data.CONTROLS.items():
        assert f"{len(table)} of {len(table)} {kind} are not available" in said
    assert "0 of 0" not in str(cells)


def test_an_edit_of_the_toolbox_takes_effect_in_a_clone(tree, tmp_path):
    """In a clone the notebook imports the files, and leaves them as they are."""
    home = tmp_path / "clone"
    for name, folder in {**UNPACKED, BINARY.name: "notebooks"}.items():
        (home / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / folder / name, home / folder)
    toolbox = home / "notebooks" / "xray_data.py"
    edited = toolbox.read_text(encoding="utf-8").replace('"covid": "COVID-19"', '"covid": "EDITED"')
    assert "EDITED" in edited
    toolbox.write_text(edited, encoding="utf-8")
    path = cut_after(BINARY, "data", home / "notebooks" / BINARY.name)
    cells = execute(path, path.parent, tmp_path, COVID_XRAY_DATA=str(tree))
    assert outputs_of(cells, "error") == [] and "EDITED" in "".join(outputs_of(cells, "text/html"))
    assert toolbox.read_text(encoding="utf-8") == edited
    assert {each.name for each in path.parent.iterdir()} - {"__pycache__"} == {path.name, "xray.py", "xray_data.py"}


def test_own_data(tree, tmp_path):
    """Folders of any names make one case of Multi, named after them; what is the article's alone is left out."""
    data = tmp_path / "fruit"
    for split in ("train", "test"):
        for source, target in (("covid", "apples"), ("pneumonia_bac", "pears"), ("normal", "plums")):
            shutil.copytree(tree / "all" / split / source, data / split / target)
    settings = {"COVID_XRAY_DATA": str(data), "COVID_XRAY_OUTPUT": str(tmp_path), "VGG16_WEIGHTS": "random", **SMALL}
    cells = execute(MULTI, ROOT / "notebooks", tmp_path, **settings)
    assert outputs_of(cells, "error") == []
    results = results_of(tmp_path, MULTI)
    assert results["dataset"] == "fruit"
    assert list(results["cases"]) == ["fruit", "fruit_fine_tuned", "fruit_gentle", "fruit_none"]
    assert results["cases"]["fruit"]["classes"] == ["apples", "pears", "plums"]
    assert list(results["trust"]["grouped_cv"]) == ["fruit", "fruit_gentle", "fruit_none", "fruit_logistic"]
    assert list(results["trust"]["blackout"]) == ["fruit"]
    assert not {"article_draw", "controls", "no_finding"} & set(results["trust"])
    (said,) = "".join(outputs_of(cell_of(cells, "controls"), "stream")).splitlines()
    assert "controls" in said and outputs_of(cell_of(cells, "draw-results"), "stream") == []
    shown = [output for cell in cells for output in cell.get("outputs", [])]
    assert "0 of 0" not in str(shown) and "COVID-19" not in str(outputs_of(cells, "text/markdown"))
    assert not list(tmp_path.glob("*draw*"))


def again(notebook, folder):
    """Write a copy of `notebook` that runs each code cell twice in a row, keeps the results, and runs it all again."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    name = NAMES[notebook]
    keep = f'import shutil; shutil.copy(run.output / "{name}.json", run.output / "twice.json")'
    once_more = {**code[0], "metadata": {}, "source": [keep]}
    cells = [cell for cell in code for _ in range(2)] + [once_more] + code
    content["cells"] = [{**cell, "id": f"cell-{index}"} for index, cell in enumerate(cells)]
    path = folder / f"again_{notebook.name}"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@both
def test_run_again_in_one_kernel(notebook, plain_run, tree, weights, tmp_path):
    """Each cell run twice, and then the whole from the top in the same kernel: the numbers of a plain run."""
    settings = {"COVID_XRAY_DATA": str(tree), "COVID_XRAY_OUTPUT": str(tmp_path), "VGG16_WEIGHTS": str(weights)}
    cells = execute(again(notebook, tmp_path), tmp_path, tmp_path / "page", **settings, **QUICK)
    assert outputs_of(cells, "error") == []
    plain, whole = results_of(plain_run(notebook)[0], notebook), results_of(tmp_path, notebook)
    each = json.loads((tmp_path / "twice.json").read_text(encoding="utf-8"))
    for key in ("cases", "trust"):
        assert plain[key] and each[key] == plain[key] and whole[key] == plain[key], key


KAGGLEHUB = """
import pathlib, time
HERE = pathlib.Path(__file__).parent
def dataset_download(handle, path=None, *, force_download=False, output_dir=None):
    name = pathlib.PurePosixPath(path).name
    with (HERE / "asked").open("a") as file:
        file.write(name + "\\n")
    if (HERE / "slow").exists() and len((HERE / "asked").read_text().splitlines()) > 60:
        time.sleep(600)
    kind = "pneumonia_bac" if "bacteria" in name else "pneumonia_vir" if "virus" in name else "normal"
    return str(HERE / f"{kind}.jpeg")
"""


def test_alone_without_the_articles_link(tree, server, tmp_path):
    """Drive answers 404: the notebook rebuilds its data set, and goes on where kill -9 stopped it."""
    home, modules = tmp_path / "content", tmp_path / "modules"
    home.mkdir()
    modules.mkdir()
    notebook = home / BINARY.name
    shutil.copy(BINARY, home)
    (modules / "kagglehub.py").write_text(KAGGLEHUB, encoding="utf-8")
    pictures = {kind.name: next(kind.iterdir()) for kind in (tree / "all" / "train").iterdir()}
    for kind, picture in pictures.items():
        shutil.copy(picture, modules / f"{kind}.jpeg")
    for index, row in enumerate(xray_data.MANIFEST.to_dict("records")):
        folder = "X-Ray Image DataSet/No_findings" if row["split"] == "no_finding" else "images"
        picture = list(pictures.values())[index % 2].read_bytes()
        if not row["patient"].startswith("kermany"):
            server.put(quote(f"/{folder}/{row['filename']}"), picture)
    settings = {"COVID_XRAY_URL": server.put("/gone.zip", b"gone", 404), "COVID_CHESTXRAY_URL": server.url}
    settings |= {"COVID_XRAY_NIH_URL": server.url, "PYTHONPATH": str(modules), "VGG16_WEIGHTS": "random", **SMALL}
    (modules / "slow").touch()
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", notebook.name, "--stdout"]
    with subprocess.Popen(
        command, cwd=home, env=clean_environment(**settings), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as victim:
        pool, deadline = home / "data" / "public", time.time() + 120
        while not (pool.exists() and len(list(pool.glob("[!.]*"))) >= 100) and time.time() < deadline:
            time.sleep(0.2)
        kernels = psutil.Process(victim.pid).children(recursive=True)
        for process in (*kernels, victim):
            process.kill()
        psutil.wait_procs(kernels, timeout=30)
    kept = {path.name for path in pool.glob("[!.]*")}
    assert 100 <= len(kept) < len(xray_data.ARTICLE) and not (home / "data" / "two").exists()
    (modules / "slow").unlink()
    (modules / "asked").unlink()
    before = len(server.asked)
    cells = execute(notebook, home, tmp_path, **settings)
    assert outputs_of(cells, "error") == []
    fetched = [unquote(path.rpartition("/")[2]) for path in server.asked[before:]]
    fetched += (modules / "asked").read_text().splitlines()
    assert not kept & set(fetched) and set(xray_data.ARTICLE["filename"]) <= kept | set(fetched)
    results = results_of(home / "output", BINARY)
    assert results["dataset"] == "Covid_Data_GradientCrescent" and results["cases"]["binary"]["test"]["n"] == 18
    assert results["trust"]["controls"]["n"] == len(xray_data.CONTROLS["controls"]) == 83
    assert results["trust"]["no_finding"]["n"] == len(xray_data.CONTROLS["nih_no_finding"]) == 100
    assert sorted(path.name for path in (home / "data").iterdir()) == ["all", "controls", "nih_no_finding", "two"]


def papermill(cwd, notebook, output, *parameters, **settings):
    """Run `notebook` by papermill in `cwd`, as a user does; returns the finished process."""
    command = [sys.executable, "-m", "papermill", str(notebook), str(output), "-k", "python3"]
    for name, value in zip(parameters[::2], parameters[1::2]):
        command += ["-p", name, value]
    environment = clean_environment(VGG16_WEIGHTS="random", **settings)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_papermill_from_the_root(tree, tmp_path):
    """Papermill sets the parameters, and leaves nothing behind but output/ and what Python compiled."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no Git clone")
    for name in filter(lambda name: (ROOT / name).exists(), listed.stdout.splitlines()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)

    def files():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".pyc"}

    before, output = files(), tmp_path / "output"
    output.mkdir()
    parameters = ["NUM_EPOCHS", "2", "SEED", "7", "VIEWS_PER_IMAGE", "1", "IMAGE_SIZE", "64", "LEARNING_RATE", "1e-3"]
    notebook = BINARY.relative_to(ROOT)
    done = papermill(tmp_path, notebook, "output/run.ipynb", *parameters, COVID_XRAY_DATA=str(tree))
    assert done.returncode == 0, done.stderr[-2000:]
    results = results_of(output, BINARY)
    assert results["seed"] == 7 and len(results["cases"]["binary"]["history"]["acc"]) == 2
    assert {path: data for path, data in files().items() if output not in path.parents} == before
    left = {path.name for path in tmp_path.iterdir()} - {name.name for name in ROOT.iterdir()}
    assert left <= {"output"}
    cut = cut_after(BINARY, "check", tmp_path / "notebooks" / "cut.ipynb")
    done = papermill(tmp_path, cut, "output/bad.ipynb", "IMAGE_SIZE", "10", COVID_XRAY_DATA=str(tree))
    assert done.returncode != 0 and done.stderr.strip().splitlines()[-1].startswith("SetupError: IMAGE_SIZE is '10'. ")


BAD_SETTINGS = [
    *[("IMAGE_SIZE", value) for value in (10, 31, 1025, "150px", 150.5, -150)],
    *[("BATCH_SIZE", value) for value in (0, -1, "ten", 1.5, True)],
    *[("VALIDATION_SPLIT", value) for value in (1.5, 0, 1, -0.2, "nan", "a fifth")],
    *[("LEARNING_RATE", value) for value in ("abc", 0, -0.1, "inf", "1e", 100)],
    *[("NUM_EPOCHS", value) for value in ("zero", 0, -3, 1e9)],
    *[("VIEWS_PER_IMAGE", value) for value in (0, "all")],
    *[("SEED", value) for value in (-1, "x", 0.5)],
    ("PRECISION", "float64"),
]


@both
@pytest.mark.parametrize("name, value", BAD_SETTINGS, ids=[f"{name}={value}" for name, value in BAD_SETTINGS])
def test_bad_settings_answer_in_one_line(notebook, name, value, tmp_path, monkeypatch):
    """As a parameter and as an environment variable, a bad value is named in one line that says what is allowed."""
    monkeypatch.setenv("COVID_XRAY_OUTPUT", str(tmp_path))
    variables = lessons.run_cells(notebook, "settings", xray=xray, xray_data=xray_data)
    with pytest.raises(xray_data.SetupError, match=f"^{name} is '{re.escape(str(value))}'. Set it to .*$") as parameter:
        lessons.run_cells(notebook, "check", **{**variables, name: value})
    monkeypatch.setenv(name, str(value))
    with pytest.raises(xray_data.SetupError) as variable:
        lessons.run_cells(notebook, "check", **variables)
    assert str(variable.value) == str(parameter.value) and "\n" not in str(parameter.value)


@pytest.mark.parametrize("name", ["FINE_TUNE_EPOCHS", "FINE_TUNE_LEARNING_RATE"])
def test_bad_settings_of_multi_alone(name, monkeypatch):
    """The two settings that Binary does not have."""
    variables = lessons.run_cells(MULTI, "settings", xray=xray, xray_data=xray_data)
    with pytest.raises(xray_data.SetupError, match=f"^{name} is '0'. Set it to .*$"):
        lessons.run_cells(MULTI, "check", **{**variables, name: 0})


def test_results_so_far_survive_a_failure(tree, tmp_path):
    """A cell that fails in the evaluation leaves the figures and seconds of what came before."""
    (tmp_path / "notebooks").mkdir()
    path = cut_after(BINARY, "first-result", tmp_path / "notebooks" / BINARY.name)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["cells"][-1]["source"] = ["raise ValueError('broken on purpose')"]
    path.write_text(json.dumps(content), encoding="utf-8")
    settings = {"COVID_XRAY_DATA": str(tree), "COVID_XRAY_OUTPUT": str(tmp_path), "VGG16_WEIGHTS": "random"}
    cells = execute(path, path.parent, tmp_path, **settings, **SMALL)
    assert outputs_of(cells, "error") == ["broken on purpose"]
    assert results_of(tmp_path, BINARY)["seconds"]["features"] > 0
    assert (tmp_path / "binary_curves.png").exists()


def test_a_problem_is_one_sentence(tmp_path):
    """Without images and network, the page shows what to do, and no traceback."""
    path = cut_after(BINARY, "data", tmp_path / BINARY.name)
    nowhere = {"COVID_XRAY_URL": "http://127.0.0.1:9/nothing.zip", "COVID_CHESTXRAY_URL": "http://127.0.0.1:9"}
    cells = execute(path, tmp_path, tmp_path / "out", **nowhere)
    (error,) = [output for cell in cells for output in cell.get("outputs", []) if output["output_type"] == "error"]
    assert error["ename"] == "SetupError" and "Open it in a browser" in error["evalue"]
    assert len(error["traceback"]) == 1 and error["traceback"][0].startswith("SetupError: ")
    assert "urllib3" not in str(cells) and "HTTPConnectionPool" not in str(cells)
