"""Colab's situation: its versions of everything, and a folder that holds one notebook and nothing else."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pack
import pytest
from conftest import BINARY, MULTI, QUICK, QUICK_MULTI, ROOT, ZIP, copy_with, execute, outputs_of

pytestmark = pytest.mark.colab
ENVIRONMENT = ROOT / ".venv-colab"
WANTED = ROOT / "tests" / "requirements-colab.txt"


@pytest.fixture
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


def test_each_notebook_alone(python, archive, weights, server, tmp_path):
    """It downloads its images, unpacks its own toolbox and takes no other, and goes on without controls."""
    places = {"COVID_XRAY_URL": server.put(f"/{ZIP}", archive.read_bytes()), "VGG16_WEIGHTS": str(weights)}
    old = "toolbox-000000000000"

    def run(notebook, settings):
        home = tmp_path / notebook.stem
        for place in (home, home / "output" / old):
            place.mkdir(parents=True)
            for module in ("xray.py", "xray_data.py"):
                (place / module).write_text("raise RuntimeError('another toolbox')", encoding="utf-8")
        copy = copy_with(notebook, home, settings)
        return home, execute(copy, home, tmp_path / "executed", python, **places)

    with ThreadPoolExecutor(2) as pool:  # side by side
        runs = list(pool.map(run, (BINARY, MULTI), (QUICK, QUICK_MULTI)))
    pinned = dict(line.split("==") for line in WANTED.read_text().splitlines() if "==" in line)
    for (home, cells), name, images in zip(runs, ("binary", "multi"), ("two", "all")):
        assert outputs_of(cells, "error") == []
        results = json.loads((home / "output" / f"{name}.json").read_text(encoding="utf-8"))
        assert results["dataset"].startswith("own") and results["cases"] and len(results["trust"]) >= 5
        assert not any(key.startswith(("nih", "collection")) for key in results["trust"])
        assert {package: results["versions"][package] for package in ("tensorflow", "keras")}.items() <= pinned.items()
        assert {path.name for path in (home / "data").iterdir()} == {ZIP, images}
        (toolbox,) = set((home / "output").glob("toolbox-*")) - {home / "output" / old}
        for file, content in pack.read_packed().items():
            assert (toolbox / file).read_bytes() == content
