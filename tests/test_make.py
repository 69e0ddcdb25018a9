"""The Makefile and the phantoms' command, in a folder whose path holds a space, with a stand-in for the interpreter."""

import csv
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, clean_environment

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
STAND_IN = """#!/bin/sh
echo "$COVID_XRAY_OUTPUT|$COVID_XRAY_DATA|$VGG16_WEIGHTS|$*" >> calls
case "$*" in *"--to notebook"*)
    mkdir -p "$COVID_XRAY_OUTPUT"
    for name in Binary Multi; do echo "$RESULT" > "$COVID_XRAY_OUTPUT/Covid19_GradientCrescent_$name.ipynb"; done;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    """A copy of the Makefile in "a clone"; its interpreter writes down settings and arguments, and runs nothing."""
    folder = tmp_path / "a clone"
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    python = folder / ".venv" / "bin" / "python"
    python.write_text(STAND_IN, encoding="utf-8")
    python.chmod(0o755)
    (folder / ".venv" / "installed").touch()
    return folder


def make(folder, *arguments, **settings):
    """Run make in `folder`; returns the process, its output as one text, and what the interpreter was called with."""
    command = ["make", "-C", str(folder), *arguments]
    done = subprocess.run(
        command, env=clean_environment(**settings), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    calls = folder / "calls"
    return done, [line.split("|") for line in calls.read_text().splitlines()] if calls.exists() else []


@needs_make
def test_settings_with_spaces(clone):
    """Paths relative to the project become absolute, spaces and all; the notebook runs after prepare.py."""
    settings = {"COVID_XRAY_OUTPUT": "my pages", "COVID_XRAY_DATA": "my images", "VGG16_WEIGHTS": "my weights.h5"}
    done, calls = make(clone, "binary", **settings)
    assert done.returncode == 0, done.stdout
    assert f"Open {clone}/my pages/Covid19_GradientCrescent_Binary.html" in done.stdout
    what = [re.search(r"\w+\.py$|--to \w+", call[-1])[0] for call in calls]
    assert what == ["prepare.py", "--to notebook", "--to html"]
    for call in calls[1:]:
        assert call[:3] == [f"{clone}/{name}" for name in settings.values()]


@needs_make
@pytest.mark.parametrize("weights", ["random", "imagenet", "/some/where else.h5"])
def test_settings_that_stay_as_they_are(clone, weights):
    """Words and absolute paths; a setting that is not made stays unset, but for the output."""
    done, calls = make(clone, "multi", f"VGG16_WEIGHTS={weights}")
    assert done.returncode == 0, done.stdout
    assert calls[-1][:3] == [f"{clone}/output", "", weights]


@needs_make
@pytest.mark.parametrize("target", ["run", "binary", "multi", "lab"])
def test_no_run_rewrites_a_tracked_file(clone, target):
    """Images come first; the toolbox's cell is written by `make sync` alone."""
    done, calls = make(clone, target)
    assert done.returncode == 0, done.stdout
    assert calls[0][-1] == "data/prepare.py" and not any("sync.py" in call[-1] for call in calls)
    assert sum("notebooks" in call[-1] for call in calls) == (2 if target == "run" else 1)


@needs_make
def test_a_failing_cell(clone):
    """What was computed is kept as notebook and page; then make fails, and names the error."""
    error = '"ename": "ValueError",\n"evalue": "broken on purpose"'
    done, calls = make(clone, "run", RESULT=error)
    assert done.returncode != 0 and "broken on purpose" in done.stdout and "Open" not in done.stdout
    assert "--to html" in calls[-1][-1] and (clone / "output" / "Covid19_GradientCrescent_Binary.ipynb").exists()


@needs_make
def test_what_clean_removes(clone):
    """Results, environments, and what interrupted downloads left go; images and weights stay."""
    kept = ["Covid.zip", "all/x.jpeg", "controls/x.jpg", "phantoms/x.jpeg", "weights/vgg16.weights.h5", "manifest.csv"]
    kept += ["nih_no_finding/x.png", "excluded.csv"]
    gone = [".12-34-Covid.zip", ".unzip-1/x", "public/x.jpeg", "controls/.12-34-x.jpg", "weights/.12.weights.h5"]
    gone += ["nih_no_finding/.12-34-x.png"]
    paths = {name: clone / "data" / name for name in kept + gone}
    paths |= {name: clone / name for name in ("output/views/x", ".venv-colab/x", "notebooks/.12-xray.py")}
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    done, _ = make(clone, "clean")
    assert done.returncode == 0 and not (clone / ".venv").exists()
    assert [name for name, path in paths.items() if path.exists()] == kept


@needs_make
def test_help_lists_every_target(clone):
    """`make` alone says what can be made."""
    done, _ = make(clone)
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1].split()
    assert re.findall(r"^  make ([a-z-]+) +\w", done.stdout, re.MULTILINE) == targets


def run_phantoms(*arguments):
    """Run data/phantoms.py."""
    command = [sys.executable, str(ROOT / "data" / "phantoms.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_phantoms_command(tmp_path):
    """It replaces phantoms, and nothing else; counts that would mix patients are refused."""
    folder = tmp_path / "some phantoms"
    assert run_phantoms("--folder", folder, "--train", 2, "--test", 1).returncode == 0
    assert len(list(folder.glob("all/*/*/*.jpeg"))) == 12
    done = run_phantoms("--folder", folder, "--train", 1, "--test", 1)
    assert "Drew 8 phantoms and 4 controls" in done.stdout and len(list(folder.glob("all/*/*/*.jpeg"))) == 8
    (tmp_path / "mine.txt").touch()
    done = run_phantoms("--folder", tmp_path)
    assert (
        done.returncode == 2 and "holds files other than phantoms" in done.stderr and (tmp_path / "mine.txt").exists()
    )
    done = run_phantoms("--folder", tmp_path / "many", "--train", 9990, "--test", 20)
    assert done.returncode == 2 and "too many" in done.stderr


@pytest.mark.parametrize("train", [5, 1400])
def test_patients_of_the_phantoms(train, tmp_path, monkeypatch):
    """However many are drawn, one test patient of each class is in training, and nobody is of two classes."""
    import phantoms

    monkeypatch.setattr(phantoms, "draw", lambda *_: np.zeros((4, 4), np.uint8))
    phantoms.write_tree(tmp_path, train, 8)
    with open(tmp_path / "all" / "patients.csv", newline="", encoding="utf-8") as file:
        rows = [(*row["file"].split("/")[:2], row["patient"]) for row in csv.DictReader(file)]
    assert len(rows) == 4 * (train + 8)
    known = {patient for split, _, patient in rows if split == "train"}
    assert sum(split == "test" and patient in known for split, _, patient in rows) == 4
    assert len({(kind, patient) for _, kind, patient in rows}) == len({patient for *_, patient in rows})


def test_groups_of_controls_among_the_phantoms(tree):
    """Both groups have their list, as X-rays do; nobody on them is on another phantom."""
    rows = {}
    for kind in ("controls", "nih_no_finding"):
        with open(tree / kind / f"{kind}.csv", newline="", encoding="utf-8") as file:
            rows[kind] = list(csv.DictReader(file))
        assert {row["filename"] for row in rows[kind]} == {path.name for path in (tree / kind).glob("*.jpeg")}
    groups = [row["group"] for row in rows["controls"]]
    assert groups == ["bacterial pneumonia", "viral pneumonia"] * 2
    assert [row["group"] for row in rows["nih_no_finding"]] == ["no finding"] * 4
    with open(tree / "all" / "patients.csv", newline="", encoding="utf-8") as file:
        others = {row["patient"] for row in csv.DictReader(file)}
    patients = [row["patient"] for kind in rows for row in rows[kind]]
    assert len(set(patients)) == 8 and not set(patients) & others
