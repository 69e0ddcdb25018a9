"""The Makefile in a folder whose path holds a space, with a stand-in for .venv's Python that runs nothing; the page."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
STAND_IN = """#!/bin/sh
case "$*" in
*prepare.py*) printf '%s' "$DRAWN" > .venv/images;;
*"--to notebook"*)
    mkdir -p "$COVID_XRAY_OUTPUT"
    for name in Binary Multi; do echo "$RESULT" > "$COVID_XRAY_OUTPUT/Covid19_GradientCrescent_$name.ipynb"; done;;
*"--to html"*) touch "$COVID_XRAY_OUTPUT/page.html";;
esac
echo "$COVID_XRAY_OUTPUT|$COVID_XRAY_DATA|$VGG16_WEIGHTS|$MPLBACKEND$PIP_TARGET$PIP_USER$PYTHONPATH|$*" >> "$CALLS"
"""


def write_script(path, text):
    """Write an executable file."""
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def clone(tmp_path):
    """A copy of what make reads in "a clone", with a .venv whose interpreter only writes down what it is asked."""
    folder = tmp_path / "a clone"
    for name in ("notebooks", ".venv/bin"):
        (folder / name).mkdir(parents=True)
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, folder / name)
    write_script(folder / ".venv" / "bin" / "python", STAND_IN)
    (folder / ".venv" / "installed").touch()
    return folder


def make(folder, *arguments, fails=False, **settings):
    """Run make, which must fail or not; returns its output, and what each call of the stand-in saw."""
    environment = {"PATH": os.environ["PATH"], "CALLS": str(folder / "calls"), **settings}
    (folder / "calls").write_text("")
    command = ["make", "--no-print-directory", "-C", str(folder), *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert (done.returncode != 0) == fails, done.stdout
    return done.stdout, [line.split("|") for line in (folder / "calls").read_text().splitlines()]


def test_settings_with_spaces(clone):
    """Paths relative to the project become absolute, what is set for others goes; the page is named at the end."""
    settings = {"COVID_XRAY_OUTPUT": "my pages", "COVID_XRAY_DATA": "my images", "VGG16_WEIGHTS": "my weights.h5"}
    other = {"PIP_TARGET": "x", "PIP_USER": "1", "PYTHONPATH": "x", "MPLBACKEND": "Agg"}
    output, calls = make(clone, "binary", **settings, **other)
    assert output.rstrip().endswith(f"Open {clone}/my pages/Covid19_GradientCrescent_Binary.html")
    what = [re.search(r"prepare\.py|--to \w+", call[-1])[0] for call in calls]
    assert what == ["prepare.py", "--to notebook", "--to html"]
    assert [call[:4] for call in calls] == 3 * [[*(f"{clone}/{name}" for name in settings.values()), ""]]


@pytest.mark.parametrize("setting", ["imagenet", "/some where/w.h5", "~/my w.h5", ""])
def test_settings_that_are_no_relative_path(clone, setting):
    """Not every shell puts the home folder in the place of ~ after `make NAME=`."""
    _, calls = make(clone, "multi", f"VGG16_WEIGHTS={setting}", HOME="/home of")
    assert calls[-1][:3] == [f"{clone}/output", "", setting.replace("~", "/home of")]


@pytest.mark.parametrize("target", ["run", "lab"])
def test_drawn_phantoms_are_passed_on(clone, target):
    """Where prepare.py has drawn phantoms, every notebook gets them; the next run asks for X-rays again."""
    for _ in range(2):
        _, calls = make(clone, target, DRAWN="/drawn/phantoms")
        assert calls[0][-1].startswith("data/prepare.py") and calls[0][1] == ""
        assert {call[1] for call in calls[1:]} == {"/drawn/phantoms"}


def test_a_failing_cell(clone):
    """What was computed is kept as notebook and page; then make fails, and names the error."""
    output, _ = make(clone, "run", fails=True, RESULT='"ename": "ValueError",\n"evalue": "broken on purpose"')
    assert "broken on purpose" in output and "Open" not in output
    assert {"Covid19_GradientCrescent_Binary.ipynb", "page.html"} <= {path.name for path in clone.glob("output/*")}


def test_the_page():
    """It loads nothing from elsewhere, says first which images it is of, hides tagged code, and describes figures."""
    figures = [new_output("display_data", {"image/png": ""}, metadata={"image/png": {"alt": a}}) for a in ("", "line")]
    says = [new_output("display_data", {"text/markdown": "**3 of 4** files"})]
    cells = [new_markdown_cell("# First"), new_code_cell(id="images", outputs=says)]
    cells += [new_code_cell("secret", outputs=figures, metadata={"tags": ["hide-input"], "alt": "a curve"})]
    exporter = HTMLExporter(template_name="page", extra_template_basedirs=[str(ROOT / "notebooks")])
    page, _ = exporter.from_notebook_node(new_notebook(cells=cells))
    assert not re.search(r"<script|<link|src=.?http|url\(.?http|@import", page) and "secret" not in page
    assert re.search(r'class="images"><p><strong>3 of 4</strong> files.*First', page, re.DOTALL)
    assert re.findall(r'<img[^>]* alt="([^"]*)"', page) == ["a curve", "line"]


def test_a_wrong_python(clone):
    """One that is too new or not there is refused, and .venv stays as it is."""
    code = "import sys; sys.version_info = (3, 14, 0); exec(sys.argv[1])"
    wrong = write_script(clone / "python", f"#!/bin/sh\nexec '{sys.executable}' -c '{code}' \"$2\"\n")
    (clone / ".venv" / "installed").unlink()
    for python in (wrong, clone / "none"):
        output, _ = make(clone, "setup", f"PYTHON={python}", fails=True)
        assert "TensorFlow needs Python 3.10 to 3.13" in output
    assert (clone / ".venv" / "bin" / "python").read_text() == STAND_IN


def test_what_clean_removes(clone):
    """Results, environments, and what interrupted downloads left go; images and weights stay."""
    kept = ["Covid.zip", "all/x.jpeg", "controls/x.jpg", "phantoms/x.jpeg", "weights/vgg16.weights.h5", "manifest.csv"]
    gone = ["unzip_two/x", "Covid.part", ".12-34-Covid.zip", "controls/.12-x.jpg", "weights/.12.weights.h5"]
    gone += ["../output/features/x", "../.venv-colab/x", "../.venv/x"]
    for name in kept + gone:
        path = clone / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    make(clone, "clean")
    assert [name for name in kept + gone if (clone / "data" / name).exists()] == kept
