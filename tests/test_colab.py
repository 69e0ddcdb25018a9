"""Colab's situation: its versions of everything, and a folder that holds one notebook and nothing else."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import BINARY, MULTI, QUICK, QUICK_MULTI, ROOT, copy_with, execute, outputs_of

pytestmark = pytest.mark.colab
ENVIRONMENT = ROOT / ".venv-colab"
WANTED = ROOT / "tests" / "requirements-colab.txt"


@pytest.fixture(scope="module")
def python():
    """The interpreter of an environment with Colab's versions; PYTHON_COLAB chooses what it is made from."""
    base = os.environ.get("PYTHON_COLAB") or sys.executable
    if base == sys.executable and sys.version_info < (3, 11):
        pytest.skip("Colab's versions need Python 3.11 to 3.13: set PYTHON_COLAB to one")
    installed = ENVIRONMENT / "installed"
    python = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not installed.exists() or installed.stat().st_mtime < WANTED.stat().st_mtime:
        subprocess.run([base, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-compile", "-r", str(WANTED)]
        subprocess.run(install, check=True)
        installed.touch()
    return str(python)


def test_each_notebook_alone(python, tree, weights, tmp_path):
    """Both lessons run to the end, side by side, on images of COVID_XRAY_DATA."""
    places = {"COVID_XRAY_DATA": str(tree), "VGG16_WEIGHTS": str(weights)}

    def run(notebook, settings):
        home = tmp_path / notebook.stem
        copy = copy_with(notebook, home, settings)
        return home, execute(copy, home, tmp_path / f"{notebook.stem}-page", python, **places)

    with ThreadPoolExecutor(2) as pool:
        (binary, binary_page), (multi, multi_page) = pool.map(run, (BINARY, MULTI), (QUICK, QUICK_MULTI))
    pinned = dict(line.split("==") for line in WANTED.read_text().splitlines() if "==" in line)
    for home, page, name in ((binary, binary_page, "binary"), (multi, multi_page, "multi")):
        assert outputs_of(page, "error") == []
        results = json.loads((home / "output" / f"{name}.json").read_text(encoding="utf-8"))
        assert results["dataset"] == "phantoms" and results["cases"] and results["trust"]
        for package in ("tensorflow", "keras"):
            assert results["versions"][package] == pinned[package]
