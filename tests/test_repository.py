"""What can be checked of how the project is written: budgets, copies in step, style, and that no X-ray is committed."""

import ast
import json
import re
import subprocess
import sys

import nbformat
import pytest
import xray
from conftest import BINARY, MULTI, ROOT

both = pytest.mark.parametrize("notebook", [BINARY, MULTI], ids=["binary", "multi"])
SECTIONS = [
    *("Setup", "Settings", "Data", "Pipeline", "Model", "Training", "Evaluation", "Predictions"),
    *("The article against this run", "How far to trust this", "Conclusions", "Exercises", "References"),
]


def cells_of(notebook, kind):
    """The cells of one kind, without the folded copy of the toolbox."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == kind and not source_of(cell).startswith("%%toolbox")]


def source_of(cell):
    """The text of a cell."""
    return "".join(cell["source"])


def lines_of(cell):
    """The lines of a cell that are not blank."""
    return [line for line in source_of(cell).splitlines() if line.strip()]


@both
def test_budgets(notebook):
    """A lesson is a lesson: so many cells and lines, a picture, a fit, and a result early on."""
    budget = {"cells": 70, "picture": 40, "fit": 90, "result": 110} if notebook == BINARY else {
        "cells": 60, "picture": 40, "fit": 90, "result": 110}  # fmt: skip
    code, prose = cells_of(notebook, "code"), cells_of(notebook, "markdown")
    lengths = [len(lines_of(cell)) for cell in code]
    assert len(code) + len(prose) + 2 <= budget["cells"]
    assert sum(lengths) <= 200 and sorted(lengths)[len(lengths) // 2] <= 6 and max(lengths) <= 18
    firsts = {
        "picture": lambda cell: "run.show(" in source_of(cell),
        "fit": lambda cell: ".fit(" in source_of(cell),
        "result": lambda cell: "first-result" in cell["metadata"].get("tags", []),
    }
    for name, is_it in firsts.items():
        place = next(index for index, cell in enumerate(code) if is_it(cell))
        assert sum(lengths[:place]) <= budget[name], name
    assert sum(line.strip().startswith("def ") for cell in code for line in lines_of(cell)) <= 4
    text = re.sub(r"```.*?```|<[^>]+>", " ", "\n".join(map(source_of, prose)), flags=re.DOTALL)
    assert len(text.split()) <= 2000
    assert max(len(line) for cell in code for line in lines_of(cell)) <= 100


@pytest.mark.parametrize("name, most", [("dataset.py", 310), ("xray.py", 550)])
def test_toolbox_budget(name, most):
    """Its modules stay small enough to be read: without docstrings, comments, blank lines, and the list of images."""
    source, skipped = (ROOT / "notebooks" / name).read_text(encoding="utf-8"), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            skipped |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = source.splitlines()
    if name == "dataset.py":
        start, end = (lines.index(mark) + 1 for mark in ("# <list of images>", "# </list of images>"))
        assert end - start - 1 <= 120
        skipped |= set(range(start, end + 1))
    code = [line for number, line in enumerate(lines, 1) if number not in skipped and line.strip()]
    assert len([line for line in code if not line.strip().startswith("#")]) <= most


@both
def test_format(notebook):
    """Valid notebooks without outputs, of Colab's and Jupyter's metadata alone; the toolbox is folded everywhere."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    nbformat.validate(content)
    assert set(content["metadata"]) == {"accelerator", "colab", "kernelspec", "language_info"}
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
    toolbox = [cell for cell in content["cells"] if source_of(cell).startswith("%%toolbox")]
    folded = {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": ["hide-input"]}
    assert [source_of(cell).splitlines()[0] for cell in toolbox] == ["%%toolbox dataset.py", "%%toolbox xray.py"]
    for cell in toolbox:
        assert cell["metadata"] == folded and source_of(cell).splitlines()[1].startswith("#@title ")
    (settings,) = (cell for cell in content["cells"] if cell["metadata"].get("tags") == ["parameters"])
    assert all(re.match(r"[A-Z_]+ = ", line) for line in lines_of(settings))


@both
def test_sections(notebook):
    """One title that names the article and says what this is not; the sections in their order."""
    text = [source_of(cell) for cell in cells_of(notebook, "markdown")]
    assert text[0].startswith("# ") and "not a medical device" in text[0] and "A. Y. Xu" in text[0]
    headings = [line for source in text for line in source.splitlines() if line.startswith("#")]
    assert sum(heading.startswith("# ") for heading in headings) == 1
    sections = [section for section in SECTIONS if notebook == BINARY or section != "Pipeline"]
    names = [re.sub(r"^## (Part \d\. )?", "", heading) for heading in headings if heading.startswith("## ")]
    places = [names.index(section) for section in sections]
    assert places == sorted(places)


def test_copies_are_in_step():
    """The toolbox cells are dataset.py and xray.py, and the list of images is the manifest."""
    command = [sys.executable, str(ROOT / "notebooks" / "sync.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_augmentation_in_the_open_is_the_toolboxs():
    """What Binary shows as the article's augmentation is what Multi and the bench use."""
    source = next(source_of(cell) for cell in cells_of(BINARY, "code") if "ARTICLE_AUGMENTATION = " in source_of(cell))
    namespace = {}
    exec(source.split("train_datagen")[0], namespace)
    assert namespace["ARTICLE_AUGMENTATION"] == xray.ARTICLE_AUGMENTATION


MODULES = [f"notebooks/{name}.py" for name in ("dataset", "xray", "sync")] + ["data/prepare.py", "data/phantoms.py"]


@pytest.mark.parametrize("path", MODULES)
def test_functions_have_docstrings_and_type_hints(path):
    """Every function that has a name says what it does; inner ones need hints alone."""
    module = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    outer = [n for c in [module, *module.body] for n in getattr(c, "body", []) if isinstance(n, ast.FunctionDef)]
    functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)]
    assert functions and outer
    for node in functions:
        inner = any(node is not other and node in ast.walk(other) for other in functions)
        assert inner or node.name.startswith("__") or ast.get_docstring(node), node.name
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        bare = [arg.arg for arg in arguments if arg and arg.annotation is None and arg.arg not in ("self", "cls")]
        assert not bare and (node.returns is not None or node.name == "__init__"), (node.name, bare)


def tracked():
    """The files of the repository, tracked or about to be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def test_no_picture_of_an_xray():
    """Pictures are committed below notebooks/figures alone, and none of them is one that shows images."""
    allowed = r"(curves(_\w+)?|confusions(_cv)?|controls|roc|augmentations|like_for_like|blackout|phantoms)\.png"
    for name in tracked():
        assert not re.search(r"\.(jpe?g|zip|h5|keras|npz?|onnx|pkl)$", name, re.IGNORECASE), name
        if name.endswith(".png"):
            assert re.fullmatch(rf"notebooks/figures/(binary_|multi_)?{allowed}", name), name


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
