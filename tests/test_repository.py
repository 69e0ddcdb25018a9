"""What can be checked of how the project is written: lessons as they should be, copies in step, no X-ray committed."""

import json
import re
import subprocess
import sys

import lessons
import nbformat
import pytest
import sync
from conftest import BINARY, MULTI, ROOT

both = pytest.mark.parametrize("notebook", [BINARY, MULTI], ids=["binary", "multi"])
SECTIONS = [
    *("Setup", "Settings", "Data", "Augmentation", "Model", "Training", "Evaluation", "Predictions"),
    *("The article against this run", "How far to trust this", "Conclusions", "Exercises", "References"),
]
SHARED_CELLS = ["toolbox", "imports", "augmentation", "conv-base", "patient-folds", "black-out"]


def cells_of(notebook, kind):
    """The cells of one kind, without the packed toolbox."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == kind and cell["id"] != "toolbox"]


def source_of(cell):
    """The text of a cell."""
    return "".join(cell["source"])


def lines_of(cell):
    """The lines of a cell that are not blank."""
    return [line for line in source_of(cell).splitlines() if line.strip()]


@both
def test_open_cells_are_short(notebook):
    """No cell of more than 18 lines, and no line that would have to be scrolled."""
    long = {cell["id"]: len(lines_of(cell)) for cell in cells_of(notebook, "code") if len(lines_of(cell)) > 18}
    assert long == {}
    wide = [(cell["id"], line) for cell in cells_of(notebook, "code") for line in lines_of(cell) if len(line) > 88]
    assert wide == []


@both
def test_toolbox_is_one_short_cell(notebook):
    """At most eight lines, folded everywhere; what it unpacks are the modules and the list of images as they are."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    (toolbox,) = (cell for cell in cells if cell["id"] == "toolbox")
    assert len(lines_of(toolbox)) <= 8 and source_of(toolbox).startswith("# @title ")
    assert toolbox["metadata"] == {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": ["hide-input"]}
    files = {path.name: path.read_bytes() for path in sync.PACKED}
    assert sync.unpack(source_of(toolbox)) == files and set(files) == {"xray.py", "xray_data.py", "manifest.csv"}
    code = [cell["id"] for cell in cells if cell["cell_type"] == "code"]
    assert code[0] == "toolbox" and code[1].startswith("imports")


@both
def test_format(notebook):
    """Valid notebooks without outputs, of Colab's and Jupyter's metadata and a title alone."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    nbformat.validate(content)
    assert set(content["metadata"]) == {"accelerator", "colab", "kernelspec", "language_info", "title"}
    assert len(content["metadata"]["title"]) > 10
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
    (settings,) = (cell for cell in content["cells"] if cell["metadata"].get("tags") == ["parameters"])
    assert all(re.match(r"[A-Z_]+ = ", line) for line in lines_of(settings))
    assert "@@" not in "".join(source_of(cell) for cell in content["cells"] if cell["id"] != "toolbox")  # placeholders


@both
def test_ids_name_the_cells(notebook):
    """Every cell has an id of its own, of words, by which tests and readers can find it."""
    ids = [cell["id"] for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]]
    assert len(set(ids)) == len(ids)
    for name in ids:
        assert re.fullmatch(r"[a-z]{2,}(-([a-z]+|\d))*", name) and not re.fullmatch(r"cell.*|[0-9a-f-]+", name), name


@both
def test_sections(notebook):
    """One title that names the article and says what this is not; the sections in their order."""
    text = [source_of(cell) for cell in cells_of(notebook, "markdown")]
    assert text[0].startswith("# ") and "not a medical device" in text[0] and "A. Y. Xu" in text[0]
    headings = [line for source in text for line in source.splitlines() if line.startswith("#")]
    assert sum(heading.startswith("# ") for heading in headings) == 1
    names = [re.sub(r"^## (Part \d\. )?", "", heading) for heading in headings if heading.startswith("## ")]
    places = [names.index(section) for section in SECTIONS]
    assert places == sorted(places)


def test_copies_are_in_step():
    """The toolbox cells and the READMEs' tables are what sync.py would write."""
    command = [sys.executable, str(ROOT / "notebooks" / "sync.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", SHARED_CELLS)
def test_both_lessons_have_the_same_cell(name):
    """What is one thing in both lessons stands in both in the same words."""
    assert lessons.cell(BINARY, name) == lessons.cell(MULTI, name)


def tracked():
    """The files that Git tracks; other files in a clone are its owner's."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("Git is not installed")
    if listed.returncode:
        pytest.skip("this is no Git clone")
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def test_no_picture_of_an_xray():
    """Pictures are committed below notebooks/figures alone, and only those that show no X-ray."""
    binary = r"binary_(curves|controls|like_for_like|roc|model)"
    multi = r"multi_(curves_\w+|confusions|confusions_cv|augmentations)"
    for name in tracked():
        picture = r"\.(jpe?g|gif|webp|bmp|tiff?|svg|pdf|dcm|zip|h5|keras|npz?|onnx|pkl)$"
        assert not re.search(picture, name, re.IGNORECASE), name
        if name.lower().endswith(".png"):
            assert re.fullmatch(rf"notebooks/figures/({binary}|{multi}|phantoms)\.png", name), name


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


def test_actions_are_pinned():
    """Every action of the workflow is one commit, with its version beside it; no permission but to read."""
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    used = re.findall(r"uses: (.*)", text)
    assert used and all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action) for action in used)
    assert re.search(r"^permissions:\n  contents: read$", text, re.MULTILINE)
    assert text.count("timeout-minutes:") == text.count("runs-on:")
