"""What can be checked of how the project is written: lessons as they should be, copies in step, no X-ray committed."""

import ast
import json
import re
import subprocess
import sys

import pytest
import results
from conftest import BINARY, MULTI, ROOT
from lessons import sources

both = pytest.mark.parametrize("notebook", [BINARY, MULTI], ids=["binary", "multi"])
MODULES = "\n".join((ROOT / "notebooks" / name).read_text(encoding="utf-8") for name in ("xray.py", "xray_data.py"))
MACHINE = (
    r"(?<![\w.~-])/(home|root|work|opt|mnt|Users)/\w|\b(10|192\.168|172\.(1[6-9]|2\d|3[01]))(\.\d{1,3}){2,3}\b(?!\.)"
    r"|[a-z]\.(internal|corp|lan)\b|--(extra-)?index-url"
)
PLACES = {"COVID_XRAY_DATA", "COVID_XRAY_OUTPUT", "COVID_XRAY_URL", "VGG16_WEIGHTS"}


def cells_of(notebook):
    """The code cells; their source is one text, and tags are there."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            yield cell | {"source": "".join(cell["source"]), "tags": cell["metadata"].get("tags", [])}


def code_of(notebook):
    """The sources of the code cells by their ids, without the packed toolbox."""
    return {name: source for name, source in sources(notebook, "code").items() if name != "toolbox"}


@both
def test_settings_are_plain_constants(notebook):
    """papermill's -p can set each of them, and the environment gives places alone (CI hides bars of progress)."""
    (settings,) = (cell["source"] for cell in cells_of(notebook) if "parameters" in cell["tags"])
    for statement in ast.parse(settings).body:
        target = statement.target if isinstance(statement, ast.AugAssign) else statement.targets[0]
        assert target.id.isupper()
        ast.literal_eval(statement.value)
    text = "\n".join([*code_of(notebook).values(), MODULES])
    assert set(re.findall(r"environ\.get\(\W(\w+)", text)) <= PLACES | {"CI"}
    assert not re.search(r"getenv|environ\[[^]]+\](?! = )", text)


@pytest.mark.parametrize("requirements", ["requirements.txt", "tests/requirements-colab.txt"])
def test_imported_packages_are_pinned(requirements):
    """Every package that the lessons and the toolbox import has one version there."""
    names = {"cv2": "opencv-python-headless", "PIL": "pillow", "sklearn": "scikit-learn"}
    names |= {"IPython": "jupyter" if requirements == "requirements.txt" else "ipython"}
    text = "\n".join([*code_of(BINARY).values(), *code_of(MULTI).values(), MODULES])
    imported = set(re.findall(r"^ *(?:import|from) (\w+)", text, re.MULTILINE))
    imported -= set(sys.stdlib_module_names) | {"xray", "xray_data"}
    pinned = re.findall(r"^([\w-]+)==\d", (ROOT / requirements).read_text(encoding="utf-8"), re.MULTILINE)
    assert {names.get(name, name) for name in imported} <= set(pinned)


def test_what_both_lessons_do_alike_has_one_text():
    binary, multi = code_of(BINARY), code_of(MULTI)
    for name in ("download", "augmentation", "conv-base"):
        assert binary[name] == multi[name], name
    assert binary["places"].replace("two", "all") == multi["places"]
    assert binary["batches"].partition("test_batches")[0].replace("binary", "categorical") in multi["batches"]
    for line in re.findall(r"^\w+_URL.*", binary["settings"], re.MULTILINE):
        assert line in multi["settings"].splitlines()


@both
def test_cells_that_draw_xrays_say_so(notebook):
    """Whatever cell draws an image has the tag shows-xrays, but for pictures that the lesson makes itself."""
    for cell in cells_of(notebook):
        source = re.sub(r"^def .*\n(( .*)?\n)*", "", cell["source"], flags=re.MULTILINE)  # without functions
        draws = re.search(r"imshow|plot_images|plot_heat_maps|show_predictions\(", source)
        if draws and not cell["id"].startswith(("silly", "plot-confusion")):
            assert "shows-xrays" in cell["tags"], cell["id"]


@both
def test_outputs_are_of_their_cells(notebook):
    """A cell's outputs are of its code as it is; none shows an X-ray, a path, a bar of progress, or a warning."""
    assert notebook.stat().st_size < 1.5e6
    cells = list(cells_of(notebook))
    for cell in cells:
        assert not cell["outputs"] or cell["metadata"]["outputs-of"] == results.code_hash(cell["source"]), cell["id"]
        for output in cell["outputs"]:
            assert output["output_type"] in ("stream", "display_data", "execute_result"), cell["id"]
            assert output.get("name", "stdout") == "stdout", cell["id"]
            texts = {"text/plain": output.get("text", [])} | output.get("data", {})
            pictures = [texts.pop(kind) for kind in list(texts) if kind.startswith("image/")]
            assert not (pictures and "shows-xrays" in cell["tags"]), cell["id"]
            text = "".join("".join(lines) for lines in texts.values())
            assert not re.search(rf"{MACHINE}|\d+%\||\x08|\r|\b\d+/\d+ [━=]|<img", text), cell["id"]
    numbers = [cell["execution_count"] for cell in cells]
    assert numbers in ([None] * len(numbers), list(range(1, len(numbers) + 1)))


def tracked():
    """The files that Git tracks; other files in a clone are its owner's."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no Git clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}


def test_no_xray_is_committed():
    """Pictures are figures that show no X-ray; data are lists and the results of four files; all else is text."""
    known = {f"notebooks/figures/{name}" for name in (*results.SHOWN, "phantoms.png")}
    known |= {f"notebooks/results/{name}.json" for name in ("binary", "multi", "chance", "bench")}
    known |= {"data/manifest.csv", "data/excluded.csv", "notebooks/page/conf.json"}
    text = r"\.(md|py|ipynb|txt|toml|ini|yml|j2)$|(^|/)(Makefile|LICENSE|\.gitignore|\.ci/run)$"
    assert {name for name in tracked() - known if not re.search(text, name)} == set()


def test_no_machine_in_the_files():
    """No path of somebody's machine, no private address, and no package index of one's own."""
    for name in tracked():
        if not name.endswith(".png"):
            assert not re.search(MACHINE, (ROOT / name).read_text(encoding="utf-8")), name
