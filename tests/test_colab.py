"""Colab's situation: its versions of everything, a folder that holds the notebooks and nothing else, and a URL."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import BINARY, MULTI, ROOT, execute, outputs_of

pytestmark = pytest.mark.colab
ENVIRONMENT = ROOT / ".venv-colab"
MULTI_CASES = [f"{case}{kind}" for case in ("three", "four") for kind in ("", "_gentle", "_none", "_fine_tuned")]


def new_enough(python):
    """Tell whether `python` can make an environment of Colab's versions, which need Python 3.11 to 3.13."""
    check = "import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))"
    try:
        return subprocess.run([python, "-c", check], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.fixture(scope="module")
def python():
    """The interpreter of an environment with Colab's versions; PYTHON_COLAB chooses what it is made from."""
    pyenv = sorted(map(str, Path.home().glob(".pyenv/versions/3.13.*/bin/python")))
    chosen = [os.environ["PYTHON_COLAB"]] if "PYTHON_COLAB" in os.environ else []
    candidates = chosen or ["python3.13", *pyenv, "python3.12", "python3.11", sys.executable]
    base = next((candidate for candidate in candidates if new_enough(candidate)), None)
    if base is None:
        pytest.skip("Colab's versions need Python 3.11 to 3.13, and none is here")
    wanted, installed = ROOT / "tests" / "requirements-colab.txt", ENVIRONMENT / "installed"
    python = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not installed.exists() or installed.stat().st_mtime < wanted.stat().st_mtime:
        subprocess.run([base, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(wanted)]
        subprocess.run(install, check=True)
        installed.touch()
    return str(python)


def test_both_notebooks_at_once_in_one_folder(python, archive, server, tmp_path):
    """Two runs share a folder, a download, and a cache of views, and lose nothing."""
    home = tmp_path / "content"
    home.mkdir()
    settings = {"COVID_XRAY_URL": server.put("/data.zip", archive.read_bytes()), "COVID_CHESTXRAY_URL": server.url}
    settings |= {"COVID_XRAY_NIH_URL": server.url, "VGG16_WEIGHTS": "random", "NUM_EPOCHS": "2"}
    settings |= {"VIEWS_PER_IMAGE": "2", "FINE_TUNE_EPOCHS": "1"}
    for notebook in (BINARY, MULTI):
        shutil.copy(notebook, home)

    def run(notebook):
        return execute(home / notebook.name, home, tmp_path / notebook.stem, python, **settings)

    with ThreadPoolExecutor(2) as pool:
        pages = list(pool.map(run, (BINARY, MULTI)))
    assert [outputs_of(cells, "error") for cells in pages] == [[], []]
    binary, multi = (json.loads((home / "output" / f"{name}.json").read_text()) for name in ("binary", "multi"))
    colab = dict(
        line.split("==") for line in (ROOT / "tests" / "requirements-colab.txt").read_text().split() if "==" in line
    )
    for results, name, cases in ((binary, "two", ["binary"]), (multi, "all", MULTI_CASES)):
        assert results["versions"]["tensorflow"] == colab["tensorflow"]
        assert results["versions"]["keras"] == colab["keras"]
        assert results["dataset"] == name and results["weights"] == "random"
        assert sorted(results["cases"]) == sorted(cases)
    assert binary["cases"]["binary"]["test"]["n"] == 4 and multi["cases"]["four"]["test"]["n"] == 8
