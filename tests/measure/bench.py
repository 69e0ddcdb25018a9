"""Measure how fast the lessons are. Leave the machine alone meanwhile.

    python tests/measure/bench.py

Runs what is committed, in a copy. The images, controls, and weights that data/ has are not downloaded. Writes
output/bench.json:
  machine  processor, cores, what it computes with, versions, load
  first    `make run`: seconds until images and weights are checked; of each lesson, seconds from its own start to the
           first accuracy and to the end, and the peak of memory
  second   `make multi` again, with the features that `first` kept
"""

import contextlib
import datetime
import importlib.metadata
import io
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = Path(os.environ.get("COVID_XRAY_OUTPUT") or ROOT / "output").resolve()
AT_HAND = ("Covid_Data_GradientCrescent.zip", "controls", "nih_no_finding", "weights")


def machine() -> dict:
    path = Path("/proc/cpuinfo")
    cpu = path.read_text() if path.exists() else ""
    model = re.search(r"model name\s*: (.*)", cpu)
    return {
        "model": model[1] if model else platform.processor(),
        "cores": os.cpu_count(),
        "flags": {flag: flag in cpu.split() for flag in ("avx2", "avx512f", "avx512_bf16", "amx_tile")},
        "versions": {"tensorflow": importlib.metadata.version("tensorflow")},
        "load": os.getloadavg()[0],
    }


def copy_project(folder: Path) -> None:
    """Unpack the project as it is committed into `folder`, with links to what data/ has at hand."""
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    tarfile.open(fileobj=io.BytesIO(archive)).extractall(folder, filter="data")
    for name in AT_HAND:
        if (ROOT / "data" / name).exists():
            (folder / "data" / name).symlink_to(ROOT / "data" / name)


def make(target: str, project: Path) -> list[tuple[float, float]]:
    """Make a target of the project; return pairs of a time and the GiB that its processes hold then.

    They are the sum of what each holds, files that it maps included.
    """
    own = ("CI", "COVID_", "VGG16_", "MPL", "MAKE")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    process = psutil.Popen(["make", target, f"PYTHON={sys._base_executable}"], cwd=project, env=variables)
    memory = []
    while process.poll() is None:
        held = 0
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has just ended
                held += child.memory_info().rss
        memory.append((time.time(), held / 2**30))
        time.sleep(0.2)
    if process.returncode:
        sys.exit(f"make {target} fails, with status {process.returncode}.")
    return memory


def times_of(lesson: str, project: Path, memory: list[tuple[float, float]]) -> dict:
    """Return the seconds from a lesson's start to its first accuracy and to its end, and its peak of memory."""
    notebook = project / "output" / f"Covid19_GradientCrescent_{lesson}.ipynb"
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    cells = [cell for cell in cells if cell["cell_type"] == "code"]
    (accuracy,) = (cell for cell in cells if "first-result" in cell["metadata"].get("tags", []))
    begin, end = when(cells[0], "busy"), when(cells[-1], "idle")
    peak = max(held for moment, held in memory if begin <= moment <= end)
    return {"first_accuracy": when(accuracy, "idle") - begin, "end": end - begin, "peak_gib": peak}


def when(cell: dict, state: str) -> float:
    """Return when a cell began ("busy") or ended ("idle"), as Jupyter has noted."""
    stamp = cell["metadata"]["execution"][f"iopub.status.{state}"]
    return datetime.datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()


def main() -> None:
    """Measure all, and save it."""
    found = {"machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        copy_project(project)
        begin = time.time()
        memory = make("run", project)
        checked = (project / ".venv" / "images").stat().st_mtime - begin
        found["first"] = {"images_and_weights": checked}
        found["first"] |= {lesson: times_of(lesson, project, memory) for lesson in ("Binary", "Multi")}
        found["second"] = times_of("Multi", project, make("multi", project))
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / "bench.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
