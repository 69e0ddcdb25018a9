"""Measure how fast the lessons are, and what makes them slow. Leave the machine alone meanwhile.

    python tests/measure/bench.py [PART ...] [--rounds N] [--commit C] [--images N ...] [--set NAME=VALUE ...]

Works on the images in COVID_XRAY_DATA or data/, after `make data`, and in copies of the project in a temporary folder.
What a part found goes at once to output/bench.json, under its name, with the load of the machine before it:
  machine  processor, cores, what it computes with, versions
  image    ms an image: VGG16's bare forward pass, inside `fit`, inside `extract_features`; without oneDNN; in bfloat16
  head     ms a training step of 10 rows: `train_head`, Keras's `fit` once an epoch, the same compiled
  passes   images that VGG16 sees in each cell of both lessons, now and at an earlier commit
  lessons  both lessons, with nothing kept and a second time: seconds until ..., and the peak of memory
  before   Multi at an earlier commit and now, in turns, both in float32, by default with small settings
  size     Multi on phantoms, one view, one epoch: seconds and memory, and the power of n that the seconds grow with
--set gives `lessons`, `before`, and `size` other settings, such as IMAGE_SIZE=32 for a trial. --images is for `size`.
ONEDNN_MAX_CPU_ISA=AVX2 in the environment imitates a processor without AVX-512; `machine` notes it.
"""

import argparse
import datetime
import functools
import importlib.metadata
import io
import json
import math
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
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "data")]
os.environ |= {"KERAS_BACKEND": "tensorflow", "MPLBACKEND": "agg"}
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np  # noqa: E402
import phantoms  # noqa: E402
import psutil  # noqa: E402
from lessons import BINARY, MULTI, code_cells, run_cells  # noqa: E402

LESSONS = {"Binary": BINARY.name, "Multi": MULTI.name}
RESULTS = Path(os.environ.get("COVID_XRAY_OUTPUT") or ROOT / "output").resolve() / "bench.json"
KINDS = ("controls", "nih_no_finding")
SMALL_SETTINGS = {"NUM_EPOCHS": 20, "FINE_TUNE_EPOCHS": 4, "VIEWS_PER_IMAGE": 2}
SMALLEST_SETTINGS = {"NUM_EPOCHS": 1, "FINE_TUNE_EPOCHS": 1, "VIEWS_PER_IMAGE": 1}
# Counts do not depend on the size of images, nor in Multi on epochs: as many as there are views will do.
COUNT_SETTINGS = {"Binary": {"IMAGE_SIZE": 32}, "Multi": {"IMAGE_SIZE": 32, "NUM_EPOCHS": 8, "FINE_TUNE_EPOCHS": 1}}


# ---------------------------------------------------------------------------- projects, processes, results


def saved():
    """Return what output/bench.json has."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def save(part, found):
    """Put what a part found into output/bench.json."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    bench = saved()
    bench[part] = found
    RESULTS.write_text(json.dumps(bench, indent=1) + "\n", encoding="utf-8")
    print(part, json.dumps(found), flush=True)


def copy_project(folder, commit="", images=None, settings=None):
    """Put the project into a new folder, as it is now or at a commit, with links to its images, and with `settings`.

    images: a folder that holds two/ and all/, instead of COVID_XRAY_DATA or data/.
    """
    if commit:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
        tarfile.open(fileobj=io.BytesIO(archive)).extractall(folder, filter="data")
    else:
        shutil.copytree(ROOT / "notebooks", folder / "notebooks")
        shutil.copytree(ROOT / "data", folder / "data", ignore=lambda _, names: {n for n in names if "csv" not in n})
    home = ROOT / "data"
    images = Path(images or os.environ.get("COVID_XRAY_DATA") or home).resolve()
    if not (images / "all" / "train").is_dir():
        sys.exit(f"{images} holds no all/train. Run `make data` first.")
    found = [images / name for name in ("two", "all", "PHANTOMS.txt")] + [home / "weights"]
    for kind in KINDS:  # from zips, where there are any, so that nothing is written through a link
        found += [place / f"{kind}{suffix}" for place in (images, home) for suffix in (".zip", "")]
    for path in found:
        link = folder / "data" / path.name
        if path.exists() and not link.exists() and not link.with_suffix(".zip").exists():
            link.symlink_to(path)
    for name in LESSONS.values():
        set_values(folder / "notebooks" / name, settings or {})


def set_values(notebook, settings):
    """Append settings to the notebook's cell of settings."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    (cell,) = (cell for cell in content["cells"] if "parameters" in cell["metadata"].get("tags", []))
    cell["source"] = "\n".join(["".join(cell["source"]), *(f"{name} = {value!r}" for name, value in settings.items())])
    notebook.write_text(json.dumps(content), encoding="utf-8")


def environment(**settings):
    """Return this process's environment for a copy of the project, plus `settings`; no control is downloaded."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COVID_")}
    if (weights := Path(kept.get("VGG16_WEIGHTS") or "/nowhere")).exists():
        kept["VGG16_WEIGHTS"] = str(weights.resolve())
    nowhere = dict.fromkeys(("COVID_CHESTXRAY_URL", "COVID_XRAY_NIH_URL"), "http://127.0.0.1:9")
    return kept | nowhere | settings


def in_new_process(name, *words, **settings):
    """Call a function of this file in a new process, with environment variables; returns its result."""
    command = [sys.executable, __file__, "--call", name, *map(str, words)]
    done = subprocess.run(command, env=environment(**settings), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def execute(folder, name, output, page=False, **settings):
    """Execute a lesson of a copy of the project as `make` does; returns seconds until ..., and the peak of memory.

    The peak is the sum of what the kernel and its processes hold, files that they map included.
    """
    command = [sys.executable, "-m", "nbconvert", "--log-level", "ERROR"]
    options = ["--to", "notebook", "--execute", "--ExecutePreprocessor.timeout=-1"]
    options += ["--ExecutePreprocessor.kernel_name=python3", "--output-dir", str(output)]
    variables = environment(COVID_XRAY_OUTPUT=str(output), **settings)
    begin, peak = time.time(), 0
    process = psutil.Popen([*command, *options, str(folder / "notebooks" / LESSONS[name])], env=variables)
    while process.poll() is None:
        peak = max(peak, memory_of(process))
        time.sleep(0.2)
    found = {"end": time.time() - begin, "peak_gib": peak / 2**30}
    if process.returncode:
        sys.exit(f"{name} fails: nbconvert's status is {process.returncode}.")
    cells = json.loads((output / LESSONS[name]).read_text(encoding="utf-8"))["cells"]
    if page:
        subprocess.run([*command, "--to", "html", str(output / LESSONS[name])], check=True)
        found["page"] = time.time() - begin
    return first_times(cells, begin) | found


def memory_of(process):
    """Return the bytes that the processes below this one hold."""
    total = 0
    for child in process.children(recursive=True):
        try:
            total += child.memory_info().rss
        except psutil.Error:  # it has just ended
            continue
    return total


def first_times(cells, begin):
    """Return the seconds from `begin` until a kernel ran, and until the first picture, epoch of fit, and accuracy."""

    def seconds(cell, when):
        stamp = cell["metadata"]["execution"][when].replace("Z", "+00:00")
        return datetime.datetime.fromisoformat(stamp).timestamp() - begin

    code = [cell for cell in cells if cell["cell_type"] == "code" and cell["metadata"].get("execution")]
    found = {"kernel": seconds(code[0], "iopub.status.busy")}
    for cell in code:
        outputs, end = json.dumps(cell["outputs"]), seconds(cell, "iopub.status.idle")
        if "image/png" in outputs or "<img" in outputs:
            found.setdefault("first_picture", end)
        if "first-result" in cell["metadata"].get("tags", []):
            found["first_accuracy"] = end
        if cell["id"] == "fit":  # Keras says "11/11 - 14s"; a bar of epochs, "1/100 [00:02<"
            begun = seconds(cell, "iopub.status.busy")
            if keras_says := re.search(r"\d+/\d+ - (\d+)s ", outputs):
                found["first_epoch"] = begun + int(keras_says[1])
            elif bar := re.search(r" ([1-9]\d*)/\d+ \[(\d+):(\d+)<", outputs):
                found["first_epoch"] = begun + (60 * int(bar[2]) + int(bar[3])) / int(bar[1])
    return found


def in_turns(calls, rounds):
    """Call each of `calls` once a round, in turns; returns what they returned, a list each."""
    found = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(call())
    return found


def seconds_of(call):
    """Return the seconds that a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def medians(found):
    """Return the median of each list."""
    return {name: statistics.median(values) for name, values in found.items()}


def ratios(found, base):
    """Return the median over rounds of each list's ratio to the list `base`."""
    others = [name for name in found if name != base]
    return medians({name: np.divide(found[name], found[base]).tolist() for name in others})


# ---------------------------------------------------------------------------------------------- the parts


def machine(options):
    """Save what the measurements ran on."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model, flags = re.search(r"model name\s*: (.*)", cpu), set(cpu.split())
    packages = ("tensorflow", "keras", "numpy", "scipy", "opencv-python-headless")
    save("machine", {
        "model": model[1] if model else platform.processor(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "memory_gib": psutil.virtual_memory().total / 2**30,
        "flags": {name: name in flags for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")},
        "environment": {name: os.environ.get(name, "") for name in ("ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS")},
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages},
    })  # fmt: skip


def image(options):
    """Save milliseconds an image, of VGG16 alone and in what the lessons do with it."""
    with tempfile.TemporaryDirectory() as scratch:
        copy_project(Path(scratch) / "project")
        found = in_new_process("time_image", scratch, options.rounds, COVID_XRAY_OUTPUT=f"{scratch}/output")
        found |= {"load": options.load, "alone": {}}
        variants = {"float32": {}, "without_onednn": {"TF_ENABLE_ONEDNN_OPTS": "0"}, "mixed_bfloat16": {}}
        for name, settings in variants.items():
            save("image", found)
            policy = name if name == "mixed_bfloat16" else "float32"
            found["alone"][name] = in_new_process("time_bare", scratch, options.rounds, policy, **settings)
    save("image", found)


def time_image(scratch, rounds):
    """In turns: the bare pass over arrays in memory, the second of two epochs of `fit`, and an extraction."""
    os.chdir(f"{scratch}/project/notebooks")
    sys.path.insert(0, os.getcwd())
    import xray

    names = "environment", "imports", "settings", "places", "shrink", "augmentation", "batches", "conv-base", "model"
    lesson = run_cells(BINARY, *names, "compile", CLASS_NAMES=["covid", "normal"])
    model, conv_base, train_batches = lesson["model"], lesson["conv_base"], lesson["train_batches"]
    datagen, size, ticks = lesson["train_datagen"], conv_base.input_shape[1:3], []
    options = {"target_size": size, "class_mode": None, "batch_size": 10, "shuffle": False, "seed": 42}
    plain = lesson["test_datagen"].flow_from_directory(lesson["SMALL"] / "train", **options)
    arrays = [plain[index] for index in range(len(plain))]
    tick = xray.keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda *_: ticks.append(time.perf_counter()),
        on_epoch_end=lambda *_: ticks.append(time.perf_counter()),
    )

    def bare():
        return seconds_of(lambda: [conv_base.predict_on_batch(array) for array in arrays])

    def fit():
        model.fit(train_batches, validation_data=lesson["valid_batches"], epochs=2, verbose=0, callbacks=[tick])
        return ticks[-1] - ticks[-2]

    def extraction():
        batches = datagen.flow_from_directory(lesson["SMALL"] / "train", **options)
        with tempfile.TemporaryDirectory(dir=scratch) as output:
            return seconds_of(lambda: xray.extract_features(conv_base, batches, Path(output)))

    calls = {"bare": bare, "fit": fit, "extraction": extraction}
    in_turns(calls, 1)  # to warm up
    seconds, n = in_turns(calls, int(rounds)), plain.n
    ms = {name: [1000 * value / n for value in values] for name, values in seconds.items()}
    return {"n": n, "ms": medians(ms), "ratio": ratios(ms, "bare"), "rounds": ms}


def time_bare(scratch, rounds, policy):
    """Return milliseconds an image of the bare pass alone, in a process of its own."""
    import keras

    os.chdir(f"{scratch}/project/notebooks")
    keras.config.set_dtype_policy(policy)
    names = "imports", "settings", "places", "conv-base"
    conv_base = run_cells(BINARY, *names, os=os)["conv_base"]
    arrays = np.random.default_rng(0).random((2, 10, *conv_base.input_shape[1:]), np.float32)
    calls = {"bare": lambda: seconds_of(lambda: [conv_base.predict_on_batch(array) for array in arrays])}
    in_turns(calls, 1)
    return 1000 * statistics.median(in_turns(calls, int(rounds))["bare"]) / 20


def head(options):
    """Save milliseconds a training step of 10 rows, validation included, and the seconds that training takes to start.

    Two lengths tell the steps from the start. Drawn features as those of four classes: 216 rows, and 54 to validate.
    """
    save("head", in_new_process("time_head", options.rounds) | {"load": options.load})


def time_head(rounds, short=3, long=13):
    """Return what `head` saves."""
    os.chdir(ROOT / "notebooks")
    sys.path.insert(0, os.getcwd())
    import xray
    import xray_data

    rng, train, validation = np.random.default_rng(0), np.arange(54, 270), np.arange(54)
    shape, rows = (None, 4, 4, 512), {"train": train, "validation": validation}
    given = {"xray": xray, "xray_data": xray_data, "conv_base": SimpleNamespace(output_shape=shape)}
    given |= {"CLASS_NAMES": list("abcd"), "CASES": {"four": list("abcd")}, "labels": rng.integers(0, 4, 270)}
    given |= {"views": list(np.maximum(rng.standard_normal((8, 270, *shape[1:]), np.float32), 0))}
    given |= {"select": lambda split, case: rows[split]}
    lesson = run_cells(MULTI, "environment", "imports", "settings", "head", "fit-views", "train-head", **given)

    def ours(epochs):
        lesson["NUM_EPOCHS"] = epochs
        lesson["train_head"]("four", lesson["views"], train, validation)

    def keras(epochs, **compiled):
        model = lesson["build_head"](4)
        model.compile = functools.partial(model.compile, **compiled)
        lesson["fit_views"](model, "four", 1e-4, 0, epochs)

    calls, steps = {}, -(-len(train) // lesson["BATCH_SIZE"])
    for epochs in (short, long):
        calls["train_head", epochs] = lambda epochs=epochs: seconds_of(lambda: ours(epochs))
        calls["fit", epochs] = lambda epochs=epochs: seconds_of(lambda: keras(epochs))
        calls["fit_compiled", epochs] = lambda epochs=epochs: seconds_of(lambda: keras(epochs, jit_compile=True))
    ours(1)  # to warm up
    seconds, ms, start = medians(in_turns(calls, int(rounds))), {}, {}
    for name in ("train_head", "fit", "fit_compiled"):
        ms[name] = 1000 * (seconds[name, long] - seconds[name, short]) / (long - short) / steps
        start[name] = seconds[name, short] - short * steps * ms[name] / 1000
    return {"ms": ms, "start_seconds": start, "ratio": {name: ms[name] / ms["train_head"] for name in list(ms)[1:]}}


def passes(options):
    """Save how many images VGG16 sees in each cell of a lesson, counted while its cells run on images of 32 pixels."""
    found = {"commit": options.commit, "now": {}, "before": {}}
    for when, commit in {"now": "", "before": options.commit}.items():
        for name, settings in COUNT_SETTINGS.items():
            with tempfile.TemporaryDirectory() as scratch:
                project, output = Path(scratch) / "project", f"{scratch}/output"
                copy_project(project, commit, settings=settings)
                variables = {"COVID_XRAY_OUTPUT": output, "PRECISION": "float32", "CI": "1"}
                found[when][name] = in_new_process("count_passes", project, name, **variables)
            save("passes", found)


def count_passes(project, name):
    """Run all cells of a lesson in this process; count the images that reach VGG16's first layer, by cell."""
    import tensorflow as tf
    from IPython.display import display
    from keras.layers import Conv2D

    os.chdir(Path(project) / "notebooks")
    sys.path.insert(0, os.getcwd())
    count, call = tf.Variable(0, dtype=tf.int64), Conv2D.call

    @functools.wraps(call)
    def counting_call(layer, inputs):
        if layer.name == "block1_conv1":
            count.assign_add(tf.shape(inputs, tf.int64)[0])  # part of the compiled graph, so it counts every run
        return call(layer, inputs)

    Conv2D.call = counting_call
    variables, cells, before = {"__name__": "__main__", "display": display}, {}, 0
    for cell, source in code_cells(Path(LESSONS[name])).items():
        exec(compile(source, cell, "exec"), variables)
        if (after := int(count.numpy())) > before:
            cells[cell], before = after - before, after
    results = Path(os.environ["COVID_XRAY_OUTPUT"]) / f"{name.lower()}.json"
    dataset = json.loads(results.read_text(encoding="utf-8"))["dataset"]
    return {"dataset": dataset, "total": before, "cells": cells}


def lessons(options):
    """Save seconds and memory of both lessons: "first" with nothing kept, "second" with the features of a first time.

    With --features, a folder of kept features, there is no first time.
    """
    found = {}
    for name in options.lessons:
        with tempfile.TemporaryDirectory() as scratch:
            project, output = Path(scratch) / "project", Path(options.output or scratch).resolve() / "output"
            copy_project(project, settings=options.settings)
            times = {}
            if options.features:
                output.mkdir(parents=True, exist_ok=True)
                (output / "features").symlink_to(Path(options.features).resolve())
            else:
                times["first"] = execute(project, name, output, page=True)
            if options.features or not options.once:
                times["second"] = execute(project, name, output)
            dataset = json.loads((output / f"{name.lower()}.json").read_text(encoding="utf-8"))["dataset"]
        found[name] = times | {"dataset": dataset}
        save("lessons", saved().get("lessons", {}) | found | {"settings": options.settings, "load": options.load})


def before(options):
    """Save seconds of Multi at an earlier commit and now, in turns, and the ratio of now to before."""
    settings, found = SMALL_SETTINGS | options.settings, {"before": [], "now": []}
    for _ in range(options.rounds):
        for when, commit in {"before": options.commit, "now": ""}.items():
            with tempfile.TemporaryDirectory() as scratch:
                project, output = Path(scratch) / "project", Path(scratch) / "output"
                copy_project(project, commit, settings=settings)
                found[when].append(execute(project, "Multi", output, PRECISION="float32")["end"])
        pairs = {when: values[: len(found["now"])] for when, values in found.items()}
        ratio = ratios(pairs, "before")["now"]
        known = {"commit": options.commit, "settings": settings, "load": options.load}
        save("before", known | {"seconds": found, "ratio": ratio})


def size(options):
    """Save seconds and memory of Multi on phantoms in four classes, and the power of n that the seconds grow with."""
    settings, found = SMALLEST_SETTINGS | options.settings, {}
    for count in options.images:
        test = max(2, count // 40)
        with tempfile.TemporaryDirectory() as scratch:
            project, output, images = (Path(scratch) / name for name in ("project", "output", "phantoms"))
            phantoms.write_tree(images, train=count // 4 - test, test=test)
            copy_project(project, images=images, settings=settings)
            times = execute(project, "Multi", output)
        found[count] = {"seconds": times["end"], "peak_gib": times["peak_gib"]}
        seconds = [math.log(run["seconds"]) for run in found.values()]
        logs, power = [math.log(n) for n in found], None
        if len(found) > 1:
            power = statistics.linear_regression(logs, seconds).slope
        save("size", {"settings": settings, "runs": found, "power": power, "load": options.load})


PARTS = {part.__name__: part for part in (machine, image, head, passes, lessons, before, size)}
CALLS = {call.__name__: call for call in (time_image, time_bare, time_head, count_passes)}


def main():
    """Read the command line and measure one part after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; by default all")
    parser.add_argument("--rounds", type=int, default=3, help="of image, head, and before")
    parser.add_argument("--commit", default="5adb0cf", help="what passes and before compare with")
    parser.add_argument("--images", type=int, nargs="+", default=[250, 500, 1000], help="numbers of phantoms for size")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the lessons")
    parser.add_argument("--output", help="folder that keeps what the lessons leave; by default none")
    parser.add_argument("--features", help="folder of kept features: the lessons run as for the second time")
    parser.add_argument("--once", action="store_true", help="run the lessons for the first time alone")
    parser.add_argument("--lessons", nargs="+", default=list(LESSONS), choices=list(LESSONS))
    parser.add_argument("--call", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.call:
        print("\n" + json.dumps(CALLS[options.call[0]](*options.call[1:])))
        return
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"no part is named {', '.join(unknown)}")
    options.settings = {}
    for pair in options.set:
        name, _, value = pair.partition("=")
        options.settings[name] = json.loads(value)
    for part in options.parts or PARTS:
        options.load = os.getloadavg()[0]
        PARTS[part](options)


if __name__ == "__main__":
    main()
