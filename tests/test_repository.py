"""What can be checked of how the project is written: lessons as they should be, copies in step, no X-ray committed."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import xray_data
from conftest import BINARY, MULTI, ROOT

TOOLS = ROOT / "tests" / "tools"
sys.path.insert(0, str(TOOLS))

import links  # noqa: E402
import pack  # noqa: E402
import results  # noqa: E402

both = pytest.mark.parametrize("notebook", [BINARY, MULTI], ids=["binary", "multi"])


def cells_of(notebook, kind="code"):
    """The sources of the cells of one kind by their ids, without the packed toolbox."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return {c["id"]: "".join(c["source"]) for c in cells if c["cell_type"] == kind and c["id"] != "toolbox"}


# --- the lessons


@both
def test_code_cells_are_short(notebook):
    """No cell of more than 20 lines, and no line that would have to be scrolled."""
    lines = {
        name: [line for line in source.splitlines() if line.strip()] for name, source in cells_of(notebook).items()
    }
    assert {name: len(listed) for name, listed in lines.items() if len(listed) > 20} == {}
    assert [(name, line) for name, listed in lines.items() for line in listed if len(line) > 88] == []


@both
def test_format(notebook):
    """Valid, without outputs, of Colab's and Jupyter's metadata and a title alone; ids are words, each its own."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    nbformat.validate(content)
    assert set(content["metadata"]) == {"accelerator", "colab", "kernelspec", "language_info", "title"}
    for cell in content["cells"]:
        assert re.fullmatch(r"[a-z]{2,}(-([a-z]+|\d))*", cell["id"]) and not cell["id"].startswith("cell"), cell["id"]
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    title, *texts = cells_of(notebook, "markdown").values()
    assert title.startswith("# ") and "not a medical device" in title and "A. Y. Xu" in title
    assert not [text for text in texts if re.fullmatch(r"[A-Z\W]*", text)]  # a placeholder


@both
def test_settings_are_plain_constants(notebook):
    """papermill's -p can set each of them, and nothing of the environment decides what is computed."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    (settings,) = ("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", []))
    for statement in ast.parse(settings).body:
        assert isinstance(statement, ast.Assign) and statement.targets[0].id.isupper()
        ast.literal_eval(statement.value)
    asked = set(re.findall(r"os\.environ(?:\.get\(|\[)\"(\w+)\"(?!\] =)", "".join(cells_of(notebook).values())))
    assert asked <= {"COVID_XRAY_DATA", "COVID_XRAY_OUTPUT", "COVID_XRAY_URL", "VGG16_WEIGHTS"}


@both
def test_toolbox_cell(notebook):
    """One short cell, folded everywhere; it unpacks the modules and the list of images as they are."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    (toolbox,) = (cell for cell in cells if cell["id"] == "toolbox")
    source = "".join(toolbox["source"])
    assert source.startswith("# @title ") and sum(bool(line.strip()) for line in source.splitlines()) <= 10
    assert toolbox["metadata"] == {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": ["hide-input"]}
    assert pack.split_cell(source) == pack.split_cell(pack.make_cell(pack.read_packed()))


def test_the_toolbox_cell_follows_its_files():
    """Another content goes to another folder; the same one in other bytes of a zip counts as the same."""
    files = {"xray.py": b"x = 1\n", "manifest.csv": b"split\n"}
    cell, other = pack.make_cell(files), pack.make_cell(files | {"xray.py": b"x = 2\n"})
    assert pack.split_cell(cell)[1] == files and cell == pack.make_cell(files)
    assert len({re.search(r"toolbox-\w+", text)[0] for text in (cell, other)}) == 2
    assert pack.split_cell(cell)[0] != pack.split_cell(other)[0]


@pytest.mark.parametrize("requirements", ["requirements.txt", "tests/requirements-colab.txt"])
def test_imported_packages_are_pinned(requirements):
    """Every package that the lessons and the toolbox import has one version there."""
    names = {"cv2": "opencv-python-headless", "PIL": "pillow", "sklearn": "scikit-learn"}
    names |= {"IPython": "jupyter" if requirements == "requirements.txt" else "ipython"}
    sources = [source for notebook in (BINARY, MULTI) for source in cells_of(notebook).values()]
    sources += [(ROOT / "notebooks" / name).read_text(encoding="utf-8") for name in ("xray.py", "xray_data.py")]
    imported = set(re.findall(r"^ *(?:import|from) (\w+)", "\n".join(sources), re.MULTILINE))
    imported -= set(sys.stdlib_module_names) | {"xray", "xray_data"}
    pinned = re.findall(r"^([\w-]+)==\d", (ROOT / requirements).read_text(encoding="utf-8"), re.MULTILINE)
    assert {names.get(name, name) for name in imported} <= set(pinned)


# --- what is derived


@pytest.mark.parametrize("name", results.LESSONS)
def test_results_are_of_this_code(name):
    """The committed numbers come from the lesson and the toolbox as they are now."""
    found = json.loads((results.RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    now = results.code_hash(ROOT / "notebooks" / results.LESSONS[name])
    assert found.get("code") == now, f"{name} has changed since its results were made: run `make run results`"


def test_what_counts_as_the_same_code(tmp_path):
    """Comments, layout, and docstrings do not; a number does."""

    def hash_of(source):
        cells = [{"id": "model", "cell_type": "code", "source": [source]}]
        (tmp_path / "lesson.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
        return results.code_hash(tmp_path / "lesson.ipynb")

    same = hash_of("def f(x):\n    '''Double.'''\n    return 2 * x")
    assert hash_of("# twice\ndef f(\n    x\n):\n    return 2*x  # doubled\n") == same
    assert hash_of("def f(x):\n    return 3 * x") != same


@pytest.mark.parametrize("fault", ["", "phantoms", "other", "few", "weights", "code"])
def test_which_results_are_taken(fault, tmp_path):
    """Only those of the article's images, of VGG16's weights, and of the code as it is."""
    found = {"dataset": xray_data.ARTICLE_NAME, "weights": "imagenet"}
    found["files"] = {"article": 147, "same_pixels": 1, "other": 0}
    if fault == "phantoms":
        found["dataset"] = fault
    if fault in ("other", "few"):
        found["files"] |= {"other": 1} if fault == "other" else {"article": 146}
    if fault == "weights":
        found["weights"] = "other"
    text = BINARY.read_text(encoding="utf-8")
    changed = text.replace("NUM_EPOCHS = 20", "NUM_EPOCHS = 2") if fault == "code" else text
    (tmp_path / BINARY.name).write_text(changed, encoding="utf-8")
    assert bool(results.why_not("binary", found, tmp_path / BINARY.name)) == bool(fault)


def test_a_source_with_other_images(server, archive, tmp_path):
    """The weekly check of links tells other images and a dead link from the article's."""
    url = server.put("/data.zip", archive.read_bytes())
    for place, reason in ((url, "images of your own"), (f"{server.url}/none.zip", "HTTP 404")):
        with pytest.raises(xray_data.SetupError, match=reason):
            links.check_archive(place, tmp_path)


# --- what Git tracks


def tracked():
    """The files that Git tracks; other files in a clone are its owner's."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("Git is not installed")
    if listed.returncode:
        pytest.skip("this is no Git clone")
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def test_no_xray_is_committed():
    """Pictures are figures that show no X-ray, each shown by a README; data are lists and the results of four files."""
    pictures = {f"notebooks/figures/{name}" for name in (*results.SHOWN, "phantoms.png")}
    readmes = "".join((ROOT / name).read_text(encoding="utf-8") for name in tracked() if name.endswith("README.md"))
    assert {name for name in pictures if Path(name).name not in readmes} == set()
    text = r"\.(md|py|ipynb|txt|toml|ini|yml)|(^|/)(Makefile|LICENSE|\.gitignore|\.ci/run)"
    lists = {"data/manifest.csv", "data/excluded.csv"}
    lists |= {f"notebooks/results/{name}.json" for name in ("binary", "multi", "chance", "bench")}
    others = {name for name in tracked() if not re.search(f"({text})$", name)}
    assert others - pictures - lists == set()


def test_no_machine_in_the_files():
    """No path of somebody's machine, no private address, and no package index of one's own."""
    machine = (
        r"(?<![\w.~-])/(home|root|work|opt|mnt|Users)/\w|\b(10|192\.168|172\.(1[6-9]|2\d|3[01]))(\.\d{1,3}){2,3}\b(?!\.)"
        r"|[a-z]\.(internal|corp|lan)\b|--(extra-)?index-url"
    )
    folders = ["/".join(["", place, "me", "x"]) for place in ("home", "work")]
    addresses = [".".join(parts) for parts in (["10", "0", "0", "12"], ["192", "168", "1", "5"], ["pip", "corp"])]
    for sample in (*folders, *addresses, "--" + "index-url"):
        assert re.search(machine, sample), sample
    for name in tracked():
        if not name.endswith(".png"):
            assert not re.search(machine, (ROOT / name).read_text(encoding="utf-8")), name


@pytest.mark.parametrize("workflow", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.stem)
def test_workflows(workflow):
    """Every action is one commit, with its version beside it; no permission but to read; every job ends."""
    text = workflow.read_text(encoding="utf-8")
    used = re.findall(r"uses: (.*)", text)
    assert used and all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action) for action in used)
    assert re.search(r"^permissions:\n  contents: read$", text, re.MULTILINE)
    assert text.count("timeout-minutes:") == text.count("runs-on:")
