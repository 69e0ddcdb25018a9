"""Measure how fast the lessons are. Leave the machine alone meanwhile.

    python tests/measure/bench.py [PART ...]

What a part found goes at once to output/bench.json, under its name, with the load of the machine before it:
  machine  processor, cores, what it computes with, versions
  first    `make run` from nothing: seconds to the packages, and of each lesson to the first picture, epoch, accuracy,
           and to the end, from its own start, with the peak of memory
  second   Multi again, with the features that `first` kept
They measure what is committed, in a copy, and need images (COVID_XRAY_DATA or data/) and weights
(VGG16_WEIGHTS or data/weights), as `make data` leaves them.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "notebooks")]

import psutil  # noqa: E402
from lessons import BINARY, MULTI  # noqa: E402

LESSONS = {"Binary": BINARY.name, "Multi": MULTI.name}
OUTPUT = Path(os.environ.get("COVID_XRAY_OUTPUT") or ROOT / "output").resolve()
RESULTS = OUTPUT / "bench.json"
KEPT = OUTPUT / "bench"  # what `first` leaves for `second`
IMAGES = Path(os.environ.get("COVID_XRAY_DATA") or ROOT / "data").resolve()
WEIGHTS = Path(os.environ.get("VGG16_WEIGHTS") or ROOT / "data" / "weights" / "vgg16.weights.h5").resolve()


def save(part, found):
    """Put what a part found into output/bench.json."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    saved = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(saved | {part: found}, indent=1) + "\n", encoding="utf-8")
    print(part, json.dumps(found), flush=True)


def copy_project(folder, linked=()):
    """Unpack the project as it is committed into `folder`.

    linked: what the copy need not download, if data/ has it, beside the controls.
    """
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    tarfile.open(fileobj=io.BytesIO(archive)).extractall(folder, filter="data")
    for name in ("controls", "nih_no_finding", *linked):
        if (ROOT / "data" / name).exists():
            (folder / "data" / name).symlink_to(ROOT / "data" / name)


def environment(**settings):
    """Return this process's environment for a copy: the same images and weights."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CI", "COVID_", "MPL", "MAKE"))}
    found = {"COVID_XRAY_DATA": str(IMAGES), "VGG16_WEIGHTS": str(WEIGHTS), "KERAS_BACKEND": "tensorflow"}
    return kept | found | settings


def watch(command, folder, variables):
    """Run a command to its end; return when it began, its seconds, and its memory: pairs of a time and GiB.

    The memory is the sum of what its processes hold, files that they map included.
    """
    begin, memory = time.time(), []
    process = psutil.Popen([str(word) for word in command], cwd=folder, env=variables)
    while process.poll() is None:
        held = 0
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has just ended
                held += child.memory_info().rss
        memory.append((time.time(), held / 2**30))
        time.sleep(0.2)
    if process.returncode:
        sys.exit(f"{command} fails, with status {process.returncode}.")
    return begin, time.time() - begin, memory


def execute(project, name, output):
    """Execute a lesson of a copy; return its cells, and seconds and memory."""
    command = [sys.executable, "-m", "nbconvert", "--log-level", "ERROR", "--to", "notebook", "--execute"]
    command += ["--ExecutePreprocessor.timeout=-1", "--ExecutePreprocessor.kernel_name=python3"]
    command += ["--output-dir", output, project / "notebooks" / LESSONS[name]]
    begin, seconds, memory = watch(command, project, environment(COVID_XRAY_OUTPUT=str(output)))
    cells = executed(output, name)
    return cells, first_times(cells, begin) | {"end": seconds, "peak_gib": max(held for _, held in memory)}


def executed(output, name):
    return json.loads((output / LESSONS[name]).read_text(encoding="utf-8"))["cells"]


def first_times(cells, begin):
    """Return the seconds from `begin` to the first cell, picture, epoch of `fit`, accuracy, and to the last cell's end.

    Jupyter notes when a cell began and ended. A picture is there when its cell ends. Within the cell `fit`, Keras says
    "11/11 - 14s" after an epoch, or a bar of epochs "1/100 [00:02<".
    """
    found = {}
    for cell in cells:
        if not (stamps := cell["metadata"].get("execution")):
            continue
        stamps = [stamps[f"iopub.status.{state}"].replace("Z", "+00:00") for state in ("busy", "idle")]
        started, ended = (datetime.datetime.fromisoformat(stamp).timestamp() - begin for stamp in stamps)
        found.setdefault("begin", started)
        found["end"] = ended
        outputs = json.dumps(cell["outputs"])
        if "image/png" in outputs:
            found.setdefault("first_picture", ended)
        if "first-result" in cell["metadata"].get("tags", []):
            found["first_accuracy"] = ended
        if cell["id"] == "fit" and (keras_says := re.search(r"\d+/\d+ - (\d+)s ", outputs)):
            found["first_epoch"] = started + int(keras_says[1])
        elif cell["id"] == "fit" and (bar := re.search(r" ([1-9]\d*)/\d+ \[(\d+):(\d+)<", outputs)):
            found["first_epoch"] = started + (60 * int(bar[2]) + int(bar[3])) / int(bar[1])
    return found


# --------------------------------------------------------------------------------------- the parts


def machine(options):
    path = Path("/proc/cpuinfo")
    cpu = path.read_text() if path.exists() else ""
    model = re.search(r"model name\s*: (.*)", cpu)
    flags = ("avx2", "avx512f", "avx512_bf16", "amx_tile")
    versions = {name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "numpy", "scipy")}
    save("machine", {
        "model": model[1] if model else platform.processor(),
        "cores": os.cpu_count(),
        "flags": {flag: flag in cpu.split() for flag in flags},
        "versions": {"python": platform.python_version()} | versions,
    })  # fmt: skip


def first(options):
    """Save the seconds of `make run` in a fresh clone; the zip, controls, and weights that data/ has are linked.

    What it leaves in its output stays in output/bench.
    """
    with tempfile.TemporaryDirectory() as scratch:
        project = Path(scratch) / "project"
        copy_project(project, linked=["Covid_Data_GradientCrescent.zip", "weights"])
        variables = {name: value for name, value in environment().items() if not name.startswith("COVID_")}
        begin, seconds, memory = watch(["make", "run", f"PYTHON={sys._base_executable}"], project, variables)
        found = {"end": seconds, "load": options.load}
        for name, path in {"packages": "installed", "images_and_weights": "images"}.items():
            found[name] = (project / ".venv" / path).stat().st_mtime - begin
        for name in LESSONS:
            cells = executed(project / "output", name)
            ran = first_times(cells, begin)
            started, ended = ran["begin"] + begin, ran["end"] + begin
            peak = max(held for when, held in memory if started <= when <= ended)
            found[name] = {key: value - ran["begin"] for key, value in ran.items()} | {"peak_gib": peak}
            found[name]["begin"] = ran["begin"]
        shutil.rmtree(KEPT, ignore_errors=True)
        shutil.move(project / "output", KEPT)
    save("first", found)


def second(options):
    """Save seconds and memory of Multi with the features that are kept."""
    with tempfile.TemporaryDirectory() as project:
        copy_project(Path(project))
        _, found = execute(Path(project), "Multi", KEPT)
    save("second", found | {"load": options.load})


PARTS = {part.__name__: part for part in (machine, first, second)}


def main():
    """Measure the parts that the command line names, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; by default all")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part is named {', '.join(unknown)}")
    for part in options.parts or PARTS:
        options.load = os.getloadavg()[0]
        PARTS[part](options)


if __name__ == "__main__":
    main()
