"""Both notebooks from top to bottom on small phantoms in a clone, and what they leave behind; alone: test_colab.py."""

import json
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
from conftest import BINARY, MULTI, QUICK, QUICK_MULTI, copy_clone, copy_with, execute, outputs_of
from nbformat.v4 import new_code_cell

both = pytest.mark.parametrize("name", ["binary", "multi"])


def files_of(clone):
    """The files of a clone but for output/ and what Python compiled, and their content."""
    files = [path for path in clone.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    contents = {path.relative_to(clone).as_posix(): path.read_bytes() for path in files}
    return {file: content for file, content in contents.items() if not file.startswith("output/")}


def results_of(clone, name):
    return json.loads((clone / "output" / f"{name}.json").read_text(encoding="utf-8"))


def run_twice(clone, places):
    """Run Binary in the clone's folder, and all of its cells once more in the same kernel; returns its cells."""
    copy = copy_with(BINARY, clone, {**QUICK, "SEED": 7})
    content = json.loads(copy.read_text(encoding="utf-8"))
    again = [{**cell, "id": f"{cell['id']}-again"} for cell in content["cells"]]
    keep = new_code_cell("(OUTPUT / 'binary.json').rename(OUTPUT / 'first.json')")
    content["cells"] = [*content["cells"], keep, *again]
    copy.write_text(json.dumps(content), encoding="utf-8")
    return execute(copy, clone, clone / "output", **places)


def run_in_an_odd_shell(clone, places):
    """Run Multi in notebooks/, as the Makefile does, in a shell that has other settings; returns its cells."""
    copy = copy_with(MULTI, clone / "notebooks", {**QUICK_MULTI, "SEED": 7})
    keras_json = {"backend": "torch", "image_data_format": "channels_first", "floatx": "float16", "epsilon": 0.1}
    (clone / "output").mkdir()
    (clone / "output" / "keras.json").write_text(json.dumps(keras_json), encoding="utf-8")
    shell = {"KERAS_HOME": str(clone / "output"), "KERAS_BACKEND": "torch", "TF_USE_LEGACY_KERAS": "1"}
    shell |= {"SEED": "9", "LEARNING_RATE": "9", "NUM_EPOCHS": "1", "IMAGE_SIZE": "64", "TF_ENABLE_ONEDNN_OPTS": "0"}
    return execute(copy, clone, clone / "output", **places, **shell, MPLBACKEND="Agg")


@pytest.fixture(scope="module")
def runs(tree, weights, tmp_path_factory):
    """Both runs, side by side: the clone, and the cells with their outputs, by name."""
    places = {"COVID_XRAY_DATA": str(tree), "VGG16_WEIGHTS": str(weights)}
    clones = [copy_clone(tmp_path_factory.mktemp("clone")) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        binary = pool.submit(run_twice, clones[0], places)
        multi = pool.submit(run_in_an_odd_shell, clones[1], places)
    return {"binary": (clones[0], binary.result()), "multi": (clones[1], multi.result())}


@both
def test_a_lesson_leaves_results_and_model_and_nothing_else(name, runs, tmp_path):
    clone, cells = runs[name]
    assert outputs_of(cells, "error") == []
    results = results_of(clone, name)
    assert (results["dataset"], results["weights"], results["seed"]) == ("phantoms", "imagenet", 7)
    for key, case in results["cases"].items():
        assert len(case["history"]["loss"]) == (1 if "fine_tuned" in key else 2), key
    markdown, text = outputs_of(cells, "text/markdown"), "".join(outputs_of(cells, "stream"))
    assert "phantoms" in "".join(markdown) and "phantoms" in markdown[-1] and "Traceback" not in text
    assert [path.name for path in (clone / "output").glob("*.keras")] == [f"{name}.keras"]
    assert not list((clone / "output").glob("toolbox-*"))  # in a clone, the modules beside the notebook are taken
    changed = files_of(clone).items() ^ files_of(copy_clone(tmp_path)).items()
    assert {file for file, _ in changed} == {BINARY.name if name == "binary" else f"notebooks/{MULTI.name}"}  # the copy


@both
def test_a_cell_that_has_words_for_a_picture_shows_one(name, runs):
    cells = [cell for cell in runs[name][1] if "alt" in cell["metadata"]]
    absent = {cell["id"].removesuffix("-again") for cell in cells if not outputs_of([cell], "image/png")}
    assert len(cells) >= 8 and absent <= {"marks"}  # of two X-rays of the article


def test_a_second_run_of_all_cells_changes_no_number(runs):
    clone = runs["binary"][0]
    for part in ("cases", "trust"):
        first, second = (pd.json_normalize(results_of(clone, run)[part]).iloc[0] for run in ("first", "binary"))
        pd.testing.assert_series_equal(first, second, rtol=1e-3, atol=1e-4)
