"""Measure how fast the lessons are. Leave the machine alone meanwhile.

    python tests/measure/bench.py [PART ...] [--rounds N]

What a part found goes at once to output/bench.json, under its name, with the load of the machine before it:
  machine  processor, cores, what it computes with, versions
  image    ms an image: VGG16 alone on arrays in memory; in Part 1's `fit`, and where tf.data does not tune itself;
           in `extract_features`; of augmentation alone
  passes   images that go through VGG16 in each part of both lessons, counted while the lessons run
  first    `make run` from nothing: seconds to the packages, and of each lesson to the first picture, epoch, accuracy,
           and to the end, from its own start, with the peak of memory
  second   Multi again, with the features that `first` kept
All but `image` measure what is committed, in a copy. They need images (COVID_XRAY_DATA or data/) and weights
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
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "notebooks")]

import psutil  # noqa: E402
from lessons import BINARY, MULTI, run_lesson  # noqa: E402

LESSONS = {"Binary": BINARY.name, "Multi": MULTI.name}
OUTPUT = Path(os.environ.get("COVID_XRAY_OUTPUT") or ROOT / "output").resolve()
RESULTS = OUTPUT / "bench.json"
KEPT = OUTPUT / "bench"  # what `first` leaves for `second`
IMAGES = Path(os.environ.get("COVID_XRAY_DATA") or ROOT / "data").resolve()
WEIGHTS = Path(os.environ.get("VGG16_WEIGHTS") or ROOT / "data" / "weights" / "vgg16.weights.h5").resolve()
# For the cell of settings. The addition is part of Keras's compiled graph, so it counts every run. Neither the size of
# images nor the epochs of heads on features change the count.
COUNT = """
IMAGE_SIZE, NUM_EPOCHS, FINE_TUNE_EPOCHS = 32, 20, 2
import tensorflow as tf

passed = tf.Variable(0, dtype=tf.int64)
plain_call = keras.layers.Conv2D.call


def counting_call(layer, inputs):
    if layer.name == "block1_conv1":
        passed.assign_add(tf.shape(inputs, tf.int64)[0])
    return plain_call(layer, inputs)


keras.layers.Conv2D.call = counting_call
get_ipython().events.register("post_run_cell", lambda _: print("VGG16 has seen", int(passed.numpy())))
"""


def save(part, found):
    """Put what a part found into output/bench.json."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    saved = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(saved | {part: found}, indent=1) + "\n", encoding="utf-8")
    print(part, json.dumps(found), flush=True)


def copy_project(folder, code="", linked=()):
    """Unpack the project as it is committed into `folder`; append code to its cells of settings.

    linked: what the copy need not download, if data/ has it, beside the controls.
    """
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    tarfile.open(fileobj=io.BytesIO(archive)).extractall(folder, filter="data")
    for name in ("controls", "nih_no_finding", *linked):
        if (ROOT / "data" / name).exists():
            (folder / "data" / name).symlink_to(ROOT / "data" / name)
    for name in LESSONS.values():
        path = folder / "notebooks" / name
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if "parameters" in cell["metadata"].get("tags", []):
                cell["source"] = "".join(cell["source"]) + code
        path.write_text(json.dumps(notebook), encoding="utf-8")


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


def image(options):
    """Save milliseconds an image, in turns: medians, and the median of each one's ratio to VGG16 alone.

    `fit` is an epoch of Part 1, validation included.
    """
    os.environ.update(environment(MPLBACKEND="agg"))
    os.chdir(ROOT / "notebooks")
    with tempfile.TemporaryDirectory() as output:
        os.environ["COVID_XRAY_OUTPUT"] = output
        lesson = run_lesson(BINARY, {}, last="compile")
        import xray

        model, conv_base, datagen = lesson["model"], lesson["conv_base"], lesson["train_datagen"]
        drawn = [lesson["train_batches"], lesson["valid_batches"]]
        arrays = [batches[index][0] for batches in drawn for index in range(len(batches))]
        in_order = {"target_size": arrays[0].shape[1:3], "class_mode": None, "batch_size": 10, "shuffle": False}

        def extraction():
            batches = datagen.flow_from_directory(lesson["SMALL"] / "train", seed=42, **in_order)
            with tempfile.TemporaryDirectory() as kept:
                xray.extract_features(conv_base, batches, Path(kept))

        calls = {
            "alone": lambda: [conv_base.predict_on_batch(array) for array in arrays],
            "fit": lambda: model.fit(drawn[0], validation_data=drawn[1], verbose=0),
            "fit_untuned": lambda: untuned(model.fit, drawn[0], validation_data=drawn[1], verbose=0),
            "extraction": extraction,
            "augmentation": lambda: [batches[index] for batches in drawn for index in range(len(batches))],
        }
        n, rounds = sum(map(len, arrays)), {name: [] for name in calls}
        for _ in range(options.rounds + 1):
            for name, call in calls.items():
                begin = time.perf_counter()
                call()
                rounds[name].append(1000 * (time.perf_counter() - begin) / n)
    rounds = {name: values[1:] for name, values in rounds.items()}  # the first warms up
    ratio = {name: statistics.median(a / b for a, b in zip(values, rounds["alone"])) for name, values in rounds.items()}
    ms = {name: statistics.median(values) for name, values in rounds.items()}
    save("image", {"n": n, "ms": ms, "ratio": ratio, "rounds": rounds, "load": options.load})


def untuned(function, *arguments, **named):
    """Call a function in which tf.data does not tune itself.

    The thread that tunes a data set sleeps between its turns, ever longer, for up to a minute. `fit` waits for its
    next turn when it is done with the data set of an epoch.
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    plain = tf.data.Dataset.__iter__
    tf.data.Dataset.__iter__ = lambda dataset: plain(dataset.with_options(options))
    try:
        function(*arguments, **named)
    finally:
        tf.data.Dataset.__iter__ = plain


def passes(options):
    """Save how many images VGG16 has seen at the end of each part of a lesson."""
    found = {}
    for name in LESSONS:
        with tempfile.TemporaryDirectory() as scratch:
            project = Path(scratch) / "project"
            copy_project(project, COUNT)
            cells, _ = execute(project, name, project / "output")
        part, counts = 1, {}
        for cell in cells:
            part += "".join(cell["source"]).startswith("# Part ")  # the title of Part 1 stands in the first cell
            if seen := re.findall(r"VGG16 has seen (\d+)", json.dumps(cell.get("outputs"))):
                counts[f"part {part}"] = int(seen[-1])
        found[name] = counts
    save("passes", found)


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


PARTS = {part.__name__: part for part in (machine, image, passes, first, second)}


def main():
    """Measure the parts that the command line names, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; by default all")
    parser.add_argument("--rounds", type=int, default=3, help="of image")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part is named {', '.join(unknown)}")
    for part in options.parts or PARTS:
        options.load = os.getloadavg()[0]
        PARTS[part](options)


if __name__ == "__main__":
    main()
