"""Both notebooks executed from top to bottom on phantoms, and what they leave behind."""

import json
import re
import shutil
import subprocess
import sys
import time

import dataset
import numpy as np
import psutil
import pytest
from conftest import BINARY, MULTI, ROOT, clean_environment, execute, outputs_of

QUICK = {"NUM_EPOCHS": "4", "VIEWS_PER_IMAGE": "2"}
NAMES = {BINARY: "binary", MULTI: "multi"}
both = pytest.mark.parametrize("notebook", [BINARY, MULTI], ids=["binary", "multi"])
CASES = {
    "binary": ["binary"],
    "multi": [f"{case}{kind}" for case in ("three", "four") for kind in ("_none", "_gentle", "", "_fine_tuned")],
}


def results_of(folder, notebook):
    """The result file that a notebook left in `folder`."""
    return json.loads((folder / f"{NAMES[notebook]}.json").read_text(encoding="utf-8"))


@both
def test_in_the_repository(notebook, tree, weights, tmp_path):
    """On phantoms: every section leaves its results, figures, and models, and says that they are synthetic."""
    settings = {"COVID_XRAY_DATA": str(tree), "COVID_XRAY_OUTPUT": str(tmp_path), "VGG16_WEIGHTS": str(weights)}
    cells = execute(notebook, ROOT / "notebooks", tmp_path, **settings, **QUICK)
    assert outputs_of(cells, "error") == []
    name, results = NAMES[notebook], results_of(tmp_path, notebook)
    assert results["dataset"] == "phantoms" and results["weights"] == "imagenet"
    assert list(results["cases"]) == CASES[name]
    assert {"images", "features", "training", "trust", "total"} <= set(results["seconds"])
    for key, case in results["cases"].items():
        epochs = 20 if key.endswith("fine_tuned") else 4
        assert all(len(case["history"][metric]) == epochs for metric in ("acc", "val_acc", "loss", "val_loss"))
        test, classes = case["test"], len(case["classes"])
        assert test["n"] == 2 * classes == np.sum(test["confusion"]) and test["correct"] == np.trace(test["confusion"])
        assert test["ci95"][0] <= test["accuracy"] <= test["ci95"][1] and test["patients"] == 2 * classes
    leaked = results["trust"]["test_images_of_training_patients"]
    assert len(leaked) == (2 if name == "binary" else 4) and all("_000.jpeg" in file for file in leaked)
    markdown, text = outputs_of(cells, "text/markdown"), "".join(outputs_of(cells, "stream"))
    assert "SYNTHETIC" in markdown[0] and "drawn phantoms" in markdown[-1]
    assert "Saved in float32" in text or "is float32" in text
    for kind in ("controls", "like_for_like") if name == "binary" else ("controls", "grouped_cv", "differences"):
        assert results["trust"][kind], kind
    controls = results["trust"]["controls"]  # of six, two each are bacterial, viral, and with no finding
    assert controls["n"] == 6 and controls["with_right_answer"]["n"] == (2 if name == "binary" else 6)
    if name == "binary":
        assert "16,812,353" in text and len(results["trust"]["controls"]["by_seed"]) == 5
        assert [task["n"] for task in results["trust"]["like_for_like"].values()] == [14, 14, 13]
        assert list(results["trust"]["blackout"]["binary"]["by_share"]) == ["0", "0.5", "0.7", "0.9"]
    else:
        assert list(results["trust"]["grouped_cv"]) == ["four", "four_gentle", "four_none", "four_logistic"]
        assert all(cv["n"] == 28 and len(cv["folds"]) == 5 for cv in results["trust"]["grouped_cv"].values())
        assert {case: draw["n"] for case, draw in results["trust"]["article_draw"].items()} == {"three": 1, "four": 1}
        pairs = [("gentle", "four"), ("none", "four"), ("none", "four_gentle"), ("logistic", "four")]
        assert list(results["trust"]["differences"]) == [f"four_{one} - {other}" for one, other in pairs]
    shown = [page for page in outputs_of(cells, "text/html") if page.startswith("<img")]
    assert len(shown) == len(list(tmp_path.glob("*.png"))) and all(re.search(r'alt="\w', page) for page in shown)
    models = {"binary": ["binary.keras"], "multi": ["multi_four.keras", "multi_three.keras"]}
    assert sorted(path.name for path in tmp_path.glob("*.keras")) == models[name]
    assert "I0000" not in text and "WARNING" not in text  # TensorFlow starts quietly


@both
def test_alone_in_a_folder(notebook, archive, server, tmp_path):
    """Colab's situation: nothing but the notebook. It writes its own toolbox; controls are not available."""
    home = tmp_path / "content"
    home.mkdir()
    shutil.copy(notebook, home)
    settings = {"COVID_XRAY_URL": server.put("/data.zip", archive.read_bytes()), "COVID_CHESTXRAY_URL": server.url}
    cells = execute(home / notebook.name, home, tmp_path, VGG16_WEIGHTS="random", **settings, **QUICK)
    assert outputs_of(cells, "error") == []
    assert server.asked.count("/data.zip") == 1
    assert sorted(path.name for path in (home / "data").iterdir()) == [
        "Covid_Data_GradientCrescent.zip", "all", "controls", "two",
    ]  # fmt: skip
    for name in ("dataset.py", "xray.py"):
        assert (home / name).read_bytes() == (ROOT / "notebooks" / name).read_bytes()
    results = results_of(home / "output", notebook)
    assert results["dataset"] == ("two" if notebook == BINARY else "all") and results["weights"] == "random"
    assert results["trust"]["controls"]["n"] == 0
    assert "97 of 97 controls are not available" in "".join(outputs_of(cells, "stream"))


def test_an_edit_of_the_toolbox_takes_effect_in_a_clone(tree, tmp_path):
    """In a clone the notebook imports the file, and leaves it as it is."""
    home = tmp_path / "clone"
    for folder, names in (("notebooks", ["dataset.py", "xray.py", BINARY.name]), ("data", ["manifest.csv"])):
        (home / folder).mkdir(parents=True)
        for name in names:
            shutil.copy(ROOT / folder / name, home / folder)
    toolbox = home / "notebooks" / "dataset.py"
    edited = toolbox.read_text(encoding="utf-8").replace('covid="COVID-19"', 'covid="EDITED"')
    toolbox.write_text(edited, encoding="utf-8")
    content = json.loads(BINARY.read_text(encoding="utf-8"))
    content["cells"] = content["cells"][
        : next(i for i, c in enumerate(content["cells"]) if "dataset.count_images(" in str(c)) + 1
    ]
    (home / "notebooks" / BINARY.name).write_text(json.dumps(content), encoding="utf-8")
    cells = execute(home / "notebooks" / BINARY.name, home / "notebooks", tmp_path, COVID_XRAY_DATA=str(tree))
    assert outputs_of(cells, "error") == [] and "EDITED" in "".join(outputs_of(cells, "text/html"))
    assert toolbox.read_text(encoding="utf-8") == edited


def test_own_data(tree, tmp_path):
    """Folders of any names make one case of Multi, and everything is named after them."""
    data = tmp_path / "fruit"
    for split in ("train", "test"):
        for source, target in (("covid", "apples"), ("pneumonia_bac", "pears"), ("normal", "plums")):
            shutil.copytree(tree / "all" / split / source, data / split / target)
    settings = {"COVID_XRAY_DATA": str(data), "COVID_XRAY_OUTPUT": str(tmp_path), "VGG16_WEIGHTS": "random", **QUICK}
    cells = execute(MULTI, ROOT / "notebooks", tmp_path, **settings)
    assert outputs_of(cells, "error") == []
    results = results_of(tmp_path, MULTI)
    assert results["dataset"] == "fruit"
    assert list(results["cases"]) == ["fruit_none", "fruit_gentle", "fruit", "fruit_fine_tuned"]
    assert results["cases"]["fruit"]["classes"] == ["apples", "pears", "plums"]
    assert results["trust"]["controls"]["n"] == 0  # the controls belong to the article's classes


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
def test_run_again_in_one_kernel(notebook, tree, weights, tmp_path):
    """Each cell run twice, and then the whole from the top in the same kernel: the numbers of a plain run."""
    home = tmp_path / "notebooks"
    home.mkdir()
    (tmp_path / "data").mkdir()
    shutil.copy(ROOT / "data" / "manifest.csv", tmp_path / "data")
    for name in ("dataset.py", "xray.py"):
        shutil.copy(ROOT / "notebooks" / name, home)
    shutil.copy(notebook, home)
    settings = {"COVID_XRAY_DATA": str(tree), "VGG16_WEIGHTS": str(weights), "NUM_EPOCHS": "2", "VIEWS_PER_IMAGE": "1"}
    for path in (home / notebook.name, again(notebook, home)):
        output = tmp_path / path.stem
        cells = execute(path, home, output, COVID_XRAY_OUTPUT=str(output), **settings)
        assert outputs_of(cells, "error") == []
    plain, whole = results_of(tmp_path / notebook.stem, notebook), results_of(output, notebook)
    each = json.loads((output / "twice.json").read_text(encoding="utf-8"))
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
    collection = dataset.ALL_IMAGES.loc[dataset.ALL_IMAGES["patient"].str.startswith("cohen"), "filename"]
    for index, name in enumerate(collection):
        server.put(f"/images/{name}", list(pictures.values())[index % 2].read_bytes())
    settings = {"COVID_XRAY_URL": server.put("/gone.zip", b"gone", 404), "COVID_CHESTXRAY_URL": server.url}
    settings |= {"PYTHONPATH": str(modules), "VGG16_WEIGHTS": "random", **QUICK}
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
    assert 100 <= len(kept) < len(dataset.ARTICLE) and not (home / "data" / "two").exists()
    (modules / "slow").unlink()
    (modules / "asked").unlink()
    before = len(server.asked)
    cells = execute(notebook, home, tmp_path, **settings)
    assert outputs_of(cells, "error") == []
    fetched = [path.rpartition("/")[2] for path in server.asked[before:]]
    fetched += (modules / "asked").read_text().splitlines()
    assert not kept & set(fetched) and set(dataset.ARTICLE["filename"]) <= kept | set(fetched)
    results = results_of(home / "output", BINARY)
    assert results["dataset"] == "Covid_Data_GradientCrescent" and results["cases"]["binary"]["test"]["n"] == 18
    assert results["trust"]["controls"]["n"] == len(dataset.CONTROLS) == 97
    assert sorted(path.name for path in (home / "data").iterdir()) == ["all", "controls", "two"]


def test_papermill(tree, tmp_path):
    """Papermill sets the parameters; a bad value is one line, as for the variable."""
    settings = clean_environment(COVID_XRAY_DATA=str(tree), COVID_XRAY_OUTPUT=str(tmp_path), VGG16_WEIGHTS="random")

    def papermill(*parameters):
        command = [sys.executable, "-m", "papermill", str(BINARY), str(tmp_path / "out.ipynb"), "-k", "python3"]
        command += ["--cwd", str(ROOT / "notebooks"), *parameters]
        return subprocess.run(command, env=settings, capture_output=True, text=True)

    done = papermill("-p", "NUM_EPOCHS", "2", "-p", "SEED", "7", "-p", "VIEWS_PER_IMAGE", "1")
    assert done.returncode == 0, done.stderr[-2000:]
    results = results_of(tmp_path, BINARY)
    assert results["seed"] == 7 and len(results["cases"]["binary"]["history"]["acc"]) == 2
    done = papermill("-p", "NUM_EPOCHS", "zero")
    assert done.returncode != 0 and "NUM_EPOCHS is 'zero'. Set it to a whole number from 1" in done.stderr


def test_results_so_far_survive_a_failure(tree, tmp_path):
    """A cell that fails in the evaluation leaves the figures and seconds of what came before."""
    content = json.loads(BINARY.read_text(encoding="utf-8"))
    (cell,) = (cell for cell in content["cells"] if "first-result" in cell["metadata"].get("tags", []))
    cell["source"] = ["raise ValueError('broken on purpose')"]
    (tmp_path / "notebooks").mkdir()
    path = tmp_path / "notebooks" / BINARY.name
    path.write_text(json.dumps(content), encoding="utf-8")
    settings = {"COVID_XRAY_DATA": str(tree), "COVID_XRAY_OUTPUT": str(tmp_path), "VGG16_WEIGHTS": "random"}
    cells = execute(path, path.parent, tmp_path, **settings, **QUICK)
    assert "broken on purpose" in outputs_of(cells, "error")
    assert results_of(tmp_path, BINARY)["seconds"]["features"] > 0
    assert (tmp_path / "binary_curves.png").exists()


def test_a_problem_is_one_sentence(tmp_path):
    """Without images and network, the page shows what to do, and no traceback."""
    shutil.copy(BINARY, tmp_path)
    nowhere = {"COVID_XRAY_URL": "http://127.0.0.1:9/nothing.zip", "COVID_CHESTXRAY_URL": "http://127.0.0.1:9"}
    cells = execute(tmp_path / BINARY.name, tmp_path, tmp_path / "out", **nowhere)
    errors = [output for cell in cells for output in cell.get("outputs", []) if output["output_type"] == "error"]
    assert errors[0]["ename"] == "Problem" and "Open it in a browser" in errors[0]["evalue"]
    assert len(errors[0]["traceback"]) == 1 and errors[0]["traceback"][0].startswith("Problem: ")
