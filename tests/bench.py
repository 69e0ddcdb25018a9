"""Measure speed: the article's code, this project, and what the machine could do.

    python tests/bench.py [--parts ours head] [--large 1000 3000 6000] [--revision REV] [--rounds 3]

Reads the images that the lessons would read. Each measurement has a process of its own, with its
peak memory, and is saved as it comes to output/bench.json, where parts of earlier runs stay.
  precision   VGG16's forward pass, and extraction with augmentation, by precision, in turns
  literal     the article's code, float32: the faster of two epochs, times its epochs
  ours        the same cases from the files to the trained heads, as the lessons do, no view kept
  head        milliseconds a step; two heads side by side; the share of memory's speed
  growth      100, 200, and 400 phantoms: seconds and exponent
  large       with --large N ...: the whole Multi notebook on N phantoms, 2 views, 2 epochs
  notebooks   whole notebooks, in turns with those of --revision, and a second time
  phantoms    `make run` where no X-ray can be reached, in turns with that of --revision
  first       `make run`: seconds until the first picture, the first accuracy, the pages; the steps
`phantoms` and `first` run a fresh copy of the last commit: `phantoms` with the packages of this .venv,
`first` with its own, which it installs.
NUM_EPOCHS, VIEWS_PER_IMAGE, BENCH_ROUNDS, and BENCH_IMAGES in the environment make a quick try.
notebooks/speed_tables.py makes the tables.
"""

import argparse
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lessons
import numpy as np

ROOT = lessons.ROOT
sys.path[:0] = [str(ROOT / "notebooks"), str(ROOT / "data")]
import speed_tables  # noqa: E402

if "--part" in sys.argv:  # the process that only starts the others needs no TensorFlow
    import phantoms
    import xray
    import xray_data
    from xray import keras, tf

LESSONS = {"Binary": lessons.BINARY, "Multi": lessons.MULTI}
CASES = {"binary": ("Binary", 2), "three": ("Multi", 3), "four": ("Multi", 4)}
RECIPES = {"binary": ("Binary", "article"), "multi": ("Multi", "article"), "multi_gentle": ("Multi", "gentle")}
NOWHERE = {name: "http://127.0.0.1:9" for name in ("COVID_CHESTXRAY_URL", "COVID_XRAY_NIH_URL")}
ROUNDS = int(os.environ.get("BENCH_ROUNDS", 5))
COUNT = int(os.environ.get("BENCH_IMAGES", 192))


def open_lesson(name, *cells):
    """Run a lesson's settings, and the cells that define augmentation, base, and head; return all variables."""
    given = {"xray": xray, "xray_data": xray_data}
    names = "imports-libraries", "settings", "check", "augmentation", "conv-base", "head", *cells
    return lessons.run_cells(LESSONS[name], *names, **given)


def medians(calls, rounds=ROUNDS):
    """Time the named calls in turns, after a round to warm up; return median seconds."""
    timed = defaultdict(list)
    for _ in range(rounds + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            timed[name].append(time.perf_counter() - begin)
    return {name: float(np.median(seconds[1:])) for name, seconds in timed.items()}


def measure_precision():
    """Seconds an image, of the forward pass by batch size and of extraction; the error of the features."""
    lesson, calls, sizes = open_lesson("Binary"), {}, (16, 32, 64)
    images, _ = xray_data.load_images(xray_data.find_images("two"))
    images = np.resize(images, (COUNT, *images.shape[1:]))
    inputs = (images / 255).astype(np.float32)
    bases = {}
    for precision in sorted({"bfloat16", "float32", xray.choose_precision()}):
        bases[precision] = xray.to_mixed_precision(lesson["conv_base"], precision, 0, precision)

    def forward(base, size):
        step = tf.function(lambda batch: base(batch, training=False))
        starts = range(0, COUNT, size)
        return lambda: [step(tf.constant(inputs[first : first + size])).numpy() for first in starts]

    def extract(base):
        return lambda: xray.compute_view(base, lesson["train_datagen"], images, 42)

    for precision, base in bases.items():
        for size in sizes:
            calls[f"{precision} {size}"] = forward(base, size)
        calls[f"{precision} extraction"] = extract(base)
    seconds = {name: value / COUNT for name, value in medians(calls).items()}
    best = {precision: min(seconds[f"{precision} {size}"] for size in sizes) for precision in bases}
    outputs = {name: np.float32(base.predict(inputs, batch_size=16, verbose=0)) for name, base in bases.items()}
    exact = outputs["float32"]
    errors = {name: np.linalg.norm(values - exact) / np.linalg.norm(exact) for name, values in outputs.items()}
    return {"seconds_an_image": seconds, "best": best, "relative_error": errors}


def measure_literal(case):
    """The article's code: the faster of two epochs after one to warm up, times its epochs."""
    name, count = CASES[case]
    lesson, tree = open_lesson(name), "two" if count == 2 else "all"
    warnings.simplefilter("ignore")  # one at each image, for these flags
    flags = ("featurewise_center", "featurewise_std_normalization", "zca_whitening")  # without effect, never fitted
    recipe = lesson["ARTICLE_AUGMENTATION"] | dict.fromkeys(flags, True)
    split = {"rescale": 1 / 255, "validation_split": lesson["VALIDATION_SPLIT"]}
    datagen = lesson["ImageDataGenerator"](**split, **recipe)
    options = {"target_size": lesson["conv_base"].input_shape[1:3], "batch_size": lesson["BATCH_SIZE"], "seed": 42}
    options |= {"classes": list(xray_data.LABELS)[:count], "class_mode": "binary" if count == 2 else "sparse"}
    folder = xray_data.find_images(tree) / "train"
    flow, held_out = (datagen.flow_from_directory(folder, subset=k, **options) for k in ("training", "validation"))
    head = lesson["build_head"]() if count == 2 else lesson["build_head"](count)
    model, ticks = keras.Sequential([lesson["conv_base"], head]), []
    loss = "binary_crossentropy" if count == 2 else "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(lesson["LEARNING_RATE"]), loss, metrics=["acc"])
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: ticks.append(time.perf_counter()))
    model.fit(flow, validation_data=held_out, epochs=3, verbose=0, callbacks=[note])
    timed, epochs = np.diff(ticks).tolist(), lesson["NUM_EPOCHS"]
    return {"timed_epochs": timed, "seconds": min(timed) * epochs, "forward_passes": epochs * (flow.n + held_out.n)}


def measure_ours(recipe, precision):
    """From the files to the trained heads of a recipe, with nothing kept: seconds by part."""
    os.environ["PRECISION"] = precision
    name, augmentation = RECIPES[recipe]
    notebook, lesson = LESSONS[name], open_lesson(name, *(["gentle"] if name == "Multi" else []))
    datagen = lesson["gentle_datagen" if augmentation == "gentle" else "train_datagen"]
    ticks = [time.perf_counter()]
    lesson = lessons.run_cells(notebook, "data", **lesson)
    learn = (lesson["table"]["split"] != "test").to_numpy()  # the article's code reads no more in training
    lesson |= {"images": lesson["images"][learn], "table": lesson["table"][learn]}
    ticks.append(time.perf_counter())
    images, views = lesson["images"], lesson["VIEWS_PER_IMAGE"]
    features = xray.extract_features(lesson["conv_base"], datagen, images, views, lesson["run"])
    ticks.append(time.perf_counter())
    if name == "Binary":
        histories = [lessons.run_cells(notebook, "splits", "training", **lesson, views=features)["history"]]
    else:
        lesson, histories = lessons.run_cells(notebook, "cases", "select", "train-head", **lesson), []
        select = lesson["select"]
        for case in lesson["CASES"]:
            trained = lesson["train_head"](case, features, select("train", case), select("validation", case))
            histories.append(trained[1])
    ticks.append(time.perf_counter())
    found = dict(zip(("images", "features", "heads"), np.diff(ticks)))
    found |= {"seconds": ticks[-1] - ticks[0], "views": views, "forward_passes": len(images) * views}
    return found | {"precision": lesson["run"].precision, "last_acc": [float(h["acc"].iloc[-1]) for h in histories]}


def measure_head(epochs=20):
    """Milliseconds a step of a head; two heads side by side; the share of memory's speed.

    The lesson's Keras loop (of two classes, which takes as long) compiles anew in every call. Two lengths
    tell that from the steps.
    """
    lesson, multi, rng = open_lesson("Binary"), open_lesson("Multi"), np.random.default_rng(0)
    shape = (270, *lesson["conv_base"].output_shape[1:])
    views = [np.float16(np.maximum(rng.standard_normal(shape), 0)) for _ in range(lesson["VIEWS_PER_IMAGE"])]
    validation, train = np.arange(54), np.arange(54, 270)
    labels, steps = rng.integers(0, 4, 270), -(-len(train) // 10) * epochs
    heads = {count: multi["build_head"](count) for count in (4, 5)}

    def fit(head, held_out=None):
        xray.fit_head(head, views, labels, train, held_out, learning_rate=1e-4, epochs=epochs)

    def fit_with_keras(count):
        given = {"views": views, "labels": labels % 2, "train": train, "validation": validation}
        lessons.run_cells(lessons.BINARY, "training", **lesson | given | {"NUM_EPOCHS": count})

    with ThreadPoolExecutor(2) as pool:
        calls = {
            "without validation": lambda: fit(heads[4]),
            "with validation": lambda: fit(heads[4], validation),
            "keras, short": lambda: fit_with_keras(epochs),
            "keras, long": lambda: fit_with_keras(3 * epochs),
            "one after the other": lambda: [fit(head) for head in heads.values()],
            "side by side": lambda: list(pool.map(fit, heads.values())),  # 5 classes: a worker of its own
        }
        seconds = medians(calls, min(ROUNDS, 3))
        copied = measure_memory(pool)
    found = {name: 1000 * seconds[name] / steps for name in ("without validation", "with validation")}
    found["keras"] = 1000 * (seconds["keras, long"] - seconds["keras, short"]) / (2 * steps)
    start = seconds["keras, short"] - steps * found["keras"] / 1000
    moved = 9 * 4 * heads[4].count_params() / 1e9  # weights, gradient, two moments
    speed = moved / (found["without validation"] / 1000)
    return {
        "ms_a_step": found,
        "keras_start_seconds": start,
        "side_by_side": seconds["side by side"] / seconds["one after the other"],
        "gigabytes_a_second": copied,
        "gigabytes_a_step": moved,
        "share_of_memory": speed / max(copied.values()),
    }


def measure_memory(pool):
    """Gigabytes a second that two threads move from and to memory."""
    a, b, c = (np.ones((2, 2**25), np.float32) for _ in range(3))  # 268 MB each, a half a thread

    def copy(half):
        np.copyto(a[half], b[half])

    def triad(half):
        np.multiply(b[half], 3, out=a[half])
        np.add(a[half], c[half], out=a[half])

    works = {"copy": lambda: list(pool.map(copy, (0, 1))), "triad": lambda: list(pool.map(triad, (0, 1)))}
    timed = medians(works)
    return {"copy": 2 * a.nbytes / timed["copy"] / 1e9, "triad": 5 * a.nbytes / timed["triad"] / 1e9}


def measure_growth():
    """Seconds from the files to Multi's two trained heads at 100, 200, and 400 phantoms: 2 views, 10 epochs."""
    os.environ |= {"NUM_EPOCHS": "10", "VIEWS_PER_IMAGE": "2"}
    seconds = {}
    for count in (40, 100, 200, 400):  # the first warms up
        with tempfile.TemporaryDirectory() as scratch:
            phantoms.write_tree(Path(scratch), train=count // 4 - 1, test=1)
            os.environ["COVID_XRAY_DATA"] = scratch
            seconds[count] = measure_ours("multi", "auto")["seconds"]
    del seconds[40]
    return {"seconds": seconds, "exponent": speed_tables.exponent(seconds)}


def run_notebook(folder, name, output, **settings):
    """Execute a notebook of `folder`/notebooks; return its seconds, fail where a cell does."""
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "notebook", "--execute"]
    command += ["--ExecutePreprocessor.timeout=-1", "--log-level=ERROR", f"--output-dir={output}"]
    path = Path(folder) / "notebooks" / LESSONS[name].name
    environment = os.environ | NOWHERE | {"COVID_XRAY_OUTPUT": str(output), **settings}
    begin = time.perf_counter()
    subprocess.run([*command, str(path)], env=environment, stdout=sys.stderr, check=True)
    return time.perf_counter() - begin


def measure_large(count):
    """Run the whole Multi notebook on `count` phantoms in four classes, 2 views, 2 epochs."""
    test = max(2, int(count) // 40)
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        phantoms.write_tree(data, train=int(count) // 4 - test, test=test)
        settings = dict.fromkeys(("NUM_EPOCHS", "FINE_TUNE_EPOCHS", "VIEWS_PER_IMAGE"), "2")
        seconds = run_notebook(ROOT, "Multi", Path(scratch) / "output", COVID_XRAY_DATA=str(data), **settings)
    return {"seconds": seconds, "kernel_peak_gib": peak_gib(resource.RUSAGE_CHILDREN)}


def unpack(commit, folder):
    """Write the project's files at a commit into a folder."""
    command = ["git", "archive", commit]
    archive = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    tarfile.open(fileobj=io.BytesIO(archive)).extractall(folder)


def is_commit(name):
    """Tell whether Git is here and knows the commit."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--quiet", "--verify", f"{name}^{{commit}}"]
    return bool(shutil.which("git")) and subprocess.run(command, capture_output=True).returncode == 0


def measure_notebooks(name, revision, rounds):
    """Seconds of a whole notebook: that of `revision` (unless ""), now, and now a second time, in turns."""
    os.environ["COVID_XRAY_DATA"] = str(xray_data.find_images("all").resolve().parent)
    if (weights := xray.find_weights()) not in (None, "imagenet"):
        os.environ["VGG16_WEIGHTS"] = str(Path(weights).resolve())
    timed = defaultdict(list)
    for _ in range(int(rounds)):
        with tempfile.TemporaryDirectory() as scratch:
            if revision:
                unpack(revision, Path(scratch) / "project")
                timed["before"].append(run_notebook(Path(scratch) / "project", name, Path(scratch) / "before"))
            for key in ("now", "second"):
                timed[key].append(run_notebook(ROOT, name, Path(scratch) / "now"))
    return {"revision": revision, "seconds": timed}


def note_times(times, folder, begin):
    """Put into `times` the seconds at which each thing was first seen that `make run` leaves in `folder`."""
    output, now = folder / "output", time.perf_counter() - begin
    log = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
    there = {"installed": (folder / ".venv" / "installed").exists(), "prepared": "Ready." in log}
    for name, path in LESSONS.items():
        record = output / f"{name.lower()}.json"
        results = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
        if results and f"{name} started" not in times:
            times[f"{name} started"] = now - results["seconds"]["total"]
        there[f"{name} picture"] = (output / f"{name.lower()}_examples.png").exists()
        there[f"{name} accuracy"] = bool(results.get("cases"))
        there[f"{name} page"] = (output / path.with_suffix(".html").name).exists()
    for name, seen in there.items():
        if seen:
            times.setdefault(name, now)


def make_run(commit, environment, install=False):
    """Run `make run` in a fresh copy of a commit; return its seconds until each thing, and both records.

    It uses the packages of this .venv, unless it is to `install` its own.
    """
    dropped = ("MAKE", "MFLAGS", "COVID_XRAY_OUTPUT")
    environment = {name: value for name, value in environment.items() if not name.startswith(dropped)}
    with tempfile.TemporaryDirectory() as scratch:
        folder, times, records = Path(scratch), {}, {}
        unpack(commit, folder)
        if not install:
            (folder / ".venv").symlink_to(sys.prefix)
            os.utime(folder / "requirements.txt", (0, 0))  # older than what is installed
        environment |= {"PYTHONUNBUFFERED": "1"}
        with open(folder / "log.txt", "w") as log:
            begin = time.perf_counter()
            options = {"env": environment, "stdout": log, "stderr": subprocess.STDOUT}
            process = subprocess.Popen(["make", "-C", scratch, "run"], **options)
            while process.poll() is None:
                note_times(times, folder, begin)
                time.sleep(0.1)
        times["end"] = time.perf_counter() - begin
        note_times(times, folder, begin)
        if process.returncode:
            sys.exit((folder / "log.txt").read_text(encoding="utf-8", errors="replace")[-3000:])
        for name in LESSONS:
            results = json.loads((folder / "output" / f"{name.lower()}.json").read_text(encoding="utf-8"))
            records[name] = {"dataset": results["dataset"], "seconds": results["seconds"]}
    return times, records


def measure_phantoms(revision, rounds):
    """Seconds of `make run` without data: of `revision` (unless ""), and of the last commit, in turns."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVID_")}
    environment |= NOWHERE | {"COVID_XRAY_URL": "http://127.0.0.1:9/a.zip"}
    timed, commits = defaultdict(list), {"before": revision, "now": "HEAD"}
    for _ in range(int(rounds)):
        for key, commit in commits.items():
            if commit:
                timed[key].append(make_run(commit, environment)[0]["end"])
    return {"revision": revision, "seconds": timed}


def measure_first():
    """Seconds from `make run` to the first picture, the first accuracy, and the page; and what each step takes."""
    times, records = make_run("HEAD", os.environ, install=True)
    steps = {"install": times["installed"], "prepare": times["prepared"] - times["installed"]}
    previous = times["prepared"]
    for name, record in records.items():
        parts = dict(record["seconds"])
        total = parts.pop("total")
        steps[name] = {"start": times[f"{name} started"] - previous, **parts}
        previous = times[f"{name} page"]
        steps[name]["page"] = previous - times[f"{name} started"] - total
    return {"dataset": records["Binary"]["dataset"], "times": times, "steps": steps}


def peak_gib(who):
    """Return the peak memory of this process, or of the largest that it started."""
    return resource.getrusage(who).ru_maxrss / 2**20


def run_part(name, *words):
    """Run one measurement in notebooks/, keeping nothing; print its figures as the last line."""
    os.chdir(ROOT / "notebooks")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["COVID_XRAY_OUTPUT"] = scratch
        figures = globals()[f"measure_{name}"](*words)
    figures["peak_gib"] = peak_gib(resource.RUSAGE_SELF)
    print("\n" + json.dumps(figures, default=xray.as_plain))


def make_plan(options):
    """Return the arguments of each part's measurements, and the names under which they are saved."""
    revision, rounds = options.revision, str(options.rounds)
    if revision and not is_commit(revision):
        print(f"Git does not know {revision}: nothing is compared with it.")
        revision = ""
    plan = {name: {"": []} for name in ("precision", "head", "growth")}
    plan["literal"] = {case: [case] for case in CASES}
    pairs = [(recipe, precision) for recipe in RECIPES for precision in options.precisions]
    plan["ours"] = {" ".join(pair): list(pair) for pair in pairs}
    plan["large"] = {str(count): [str(count)] for count in options.large}
    plan["notebooks"] = {name: [name, revision, rounds] for name in LESSONS}
    plan["phantoms"] = {"": [revision, rounds]}
    plan["first"] = {"": []}
    if not is_commit("HEAD"):
        print("Without Git and a commit, `phantoms` and `first` are skipped.")
        plan |= {"phantoms": {}, "first": {}}
    return plan


def main():
    """Read the command line, start a process for each measurement, save each, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ["precision", "literal", "ours", "head", "growth", "large", "notebooks", "phantoms", "first"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts, metavar="PART", help="only these")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "bench.json")
    parser.add_argument("--large", type=int, nargs="+", default=[], help="numbers of phantoms")
    parser.add_argument("--precisions", nargs="+", default=["auto", "float32"], help="of ours")
    parser.add_argument("--revision", default="", help="a commit to compare with")
    parser.add_argument("--rounds", type=int, default=1, help="of notebooks and phantoms")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        return run_part(*options.part)
    output, plan = options.output.resolve(), make_plan(options)
    output.parent.mkdir(parents=True, exist_ok=True)
    bench = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    environment, failed = dict(os.environ), []
    for name in ("COVID_XRAY_DATA", "VGG16_WEIGHTS"):  # the measurements run in notebooks/
        if Path(os.environ.get(name) or "/nowhere").exists():
            environment[name] = str(Path(os.environ[name]).resolve())
    for part in options.parts:
        for key, words in plan[part].items():
            command = [sys.executable, __file__, "--part", part, *words]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                failed.append(f"{part} {key} (status {done.returncode})")
                continue
            figures = done.stdout.splitlines()[-1]
            bench.setdefault(part, {})[key] = json.loads(figures)
            output.write_text(json.dumps(bench, indent=1) + "\n", encoding="utf-8")
            print(part, key, figures, flush=True)
    speed_tables.BENCH = output
    for name, table in speed_tables.TABLES.items():
        print("", name, table(), sep="\n")
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
