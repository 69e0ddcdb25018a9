"""What can be checked of how the project is written: lessons as they should be, copies in step, no X-ray committed."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import prepare
import pytest
import results
import xray_data
from conftest import BINARY, MULTI, ROOT
from lessons import sources

both = pytest.mark.parametrize("notebook", [BINARY, MULTI], ids=["binary", "multi"])
PLACES = {"COVID_XRAY_DATA", "COVID_XRAY_OUTPUT", "COVID_XRAY_URL", "VGG16_WEIGHTS"}


def code_of(notebook):
    """The sources of the code cells by their ids, without the packed toolbox."""
    return {name: source for name, source in sources(notebook, "code").items() if name != "toolbox"}


@both
def test_code_cells_are_short(notebook):
    """No cell of more than 20 lines, and no line that would have to be scrolled."""
    for name, source in code_of(notebook).items():
        lines = [line for line in source.splitlines() if line.strip()]
        assert len(lines) <= 20 and max(map(len, lines)) <= 88, name


@both
def test_format(notebook):
    """Valid, without outputs, of Colab's and Jupyter's metadata and a title alone; ids are words, each its own."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    nbformat.validate(content)
    assert set(content["metadata"]) == {"accelerator", "colab", "kernelspec", "language_info", "title"}
    for cell in content["cells"]:
        assert re.fullmatch(r"[a-z]{2,}(-([a-z]+|\d))*", cell["id"]) and not cell["id"].startswith("cell"), cell["id"]
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)
        if cell["id"] == "toolbox":  # folded everywhere
            assert cell["metadata"] == {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": ["hide-input"]}
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    title = next(iter(sources(notebook, "markdown").values()))
    assert title.startswith("# ") and "not a medical device" in title and "A. Y. Xu" in title


@both
def test_settings_are_plain_constants(notebook):
    """papermill's -p can set each of them, and the environment gives places alone (CI hides bars of progress)."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    (settings,) = ("".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    for statement in ast.parse(settings).body:
        assert isinstance(statement, ast.Assign) and statement.targets[0].id.isupper()
        ast.literal_eval(statement.value)
    modules = [path.read_text(encoding="utf-8") for path in (ROOT / "notebooks").glob("*.py")]
    text = "\n".join([*code_of(notebook).values(), *modules])
    assert set(re.findall(r"environ\.get\(\W(\w+)", text)) <= PLACES | {"CI"}
    assert not re.search(r"getenv|environ\[[^]]+\](?! = )", text)


@pytest.mark.parametrize("requirements", ["requirements.txt", "tests/requirements-colab.txt"])
def test_imported_packages_are_pinned(requirements):
    """Every package that the lessons and the toolbox import has one version there."""
    names = {"cv2": "opencv-python-headless", "PIL": "pillow", "sklearn": "scikit-learn"}
    names |= {"IPython": "jupyter" if requirements == "requirements.txt" else "ipython"}
    code = [source for notebook in (BINARY, MULTI) for source in code_of(notebook).values()]
    code += [(ROOT / "notebooks" / name).read_text(encoding="utf-8") for name in ("xray.py", "xray_data.py")]
    imported = set(re.findall(r"^ *(?:import|from) (\w+)", "\n".join(code), re.MULTILINE))
    imported -= set(sys.stdlib_module_names) | {"xray", "xray_data"}
    pinned = re.findall(r"^([\w-]+)==\d", (ROOT / requirements).read_text(encoding="utf-8"), re.MULTILINE)
    assert {names.get(name, name) for name in imported} <= set(pinned)


@pytest.mark.parametrize("name", results.LESSONS)
def test_results_are_of_this_code(name):
    """The committed numbers come from the lesson and the toolbox as they are now, on the article's images."""
    text = (results.RESULTS / f"{name}.json").read_text(encoding="utf-8")
    found = json.loads(text, parse_constant=pytest.fail)  # of NaN, which other programs cannot read
    assert (found["dataset"], found["weights"], found["seed"]) == (xray_data.ARTICLE_NAME, "imagenet", 42)
    now = results.code_hash(ROOT / "notebooks" / results.LESSONS[name])
    assert found.get("code") == now, f"{name} has changed since its results were made: run `make run results`"


LAYOUT = ('"SEED = 42\\n"', '"# the seed\\n", "SEED  =  42\\n"')


@pytest.mark.parametrize("change, is_taken", [(LAYOUT, True), (("NUM_EPOCHS = 20", "NUM_EPOCHS = 2"), False)])
def test_which_code_is_other_code(change, is_taken, tmp_path):
    """Results of the article's images are taken whatever the code's comments and layout, but not of other settings."""
    text = BINARY.read_text(encoding="utf-8")
    assert change[0] in text
    (tmp_path / BINARY.name).write_text(text.replace(*change, 1), encoding="utf-8")
    found = {"dataset": xray_data.ARTICLE_NAME, "weights": "imagenet"}
    assert bool(results.why_not("binary", found, tmp_path / BINARY.name)) != is_taken


def tracked():
    """The files that Git tracks; other files in a clone are its owner's."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no Git clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def test_what_both_lessons_do_alike_has_one_text():
    binary, multi = code_of(BINARY), code_of(MULTI)
    for name in ("environment", "download", "read-image", "shrink-all", "augmentation", "conv-base"):
        assert binary[name] == multi[name], name
    for name in ("places", "shrink"):
        assert binary[name].replace("two", "all").replace("binary", "multi") == multi[name], name
    for code in (binary, multi):
        exec(code["settings"], addresses := {})
        assert (addresses["DRIVE_URL"], addresses["GITHUB_URL"]) == (prepare.DRIVE_URL, prepare.GITHUB_URL)


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
    for name in tracked():
        if not name.endswith(".png"):
            assert not re.search(machine, (ROOT / name).read_text(encoding="utf-8")), name
