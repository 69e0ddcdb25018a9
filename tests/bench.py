"""Measure speed and chance: the article's code, this project, and what the machine could do, in one run.

    python tests/bench.py [--parts ours head] [--seeds 5] [--heads 60] [--large 1000 3000 6000]

Reads the images that the lessons would read (COVID_XRAY_DATA, data/, or phantoms). Each measurement
runs in a process of its own, with its peak memory, and is saved as it comes to output/bench.json.
  precision     VGG16's forward pass and extraction with augmentation, float32 and bfloat16 in turns
  literal       the article's code from the files, float32: the faster of two epochs, times its epochs
  ours          the same cases from the files to the trained head, as the lessons do, no view kept before
  augmentation  views a second of ImageDataGenerator on one core, no base beside it
  head          milliseconds a step: compiled, validated beside fit, and the ways before; memory's share
  growth        100, 200, and 400 phantoms: seconds and exponent
  second        extraction and heads without the cache, with an empty one, and again
  large         --large N ...: the whole Multi notebook on N phantoms, 2 views, 2 epochs
  notebooks     the whole notebooks in turns with those of an older revision, and Multi a second time
  seeds         --seeds N: test and cross-validated accuracy over N seeds, in two precisions
  heads         --heads N: what N binary heads predict for the controls
NUM_EPOCHS, VIEWS_PER_IMAGE, BENCH_ROUNDS, and BENCH_IMAGES make a quick try of it.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np

TESTS = Path(__file__).resolve().parent
NOTEBOOKS = TESTS.parent / "notebooks"
sys.path[:0] = [str(TESTS), str(NOTEBOOKS), str(TESTS.parent / "data")]
if "--part" in sys.argv:  # TensorFlow has no place in the process that only starts the others
    import xray
    from xray import ImageDataGenerator, keras, tf

FOUR = ["covid", "normal", "pneumonia_bac", "pneumonia_vir"]
CASES = {"binary": FOUR[:2], "three": FOUR[:3], "four": FOUR}
RECIPES = {
    "binary": ("Binary", ["binary"], "article"),
    "multi": ("Multi", ["three", "four"], "article"),
    "multi_gentle": ("Multi", ["three", "four"], "gentle"),
}
FAST = {"jit_compile": True, "steps_per_execution": 1000}
FILES = "COVID_XRAY_DATA", "COVID_XRAY_OUTPUT", "VGG16_WEIGHTS"
ROUNDS, COUNT = (int(os.environ.get(f"BENCH_{name}", n)) for name, n in (("ROUNDS", 5), ("IMAGES", 192)))


def lesson(name):
    """Return the constants of a lesson's own settings cell, and GENTLE, as a namespace."""
    text = (NOTEBOOKS / f"Covid19_GradientCrescent_{name}.ipynb").read_text(encoding="utf-8")
    constants = {"xray": xray}
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if "parameters" in cell["metadata"].get("tags", []) or source.startswith("GENTLE = "):
            exec(source, constants)
    for count in ("NUM_EPOCHS", "VIEWS_PER_IMAGE"):
        constants[count] = xray.whole_number(count, constants[count])
    article = dict(xray.ARTICLE_AUGMENTATION)
    augmentations = {"article": article, "gentle": constants.get("GENTLE", {}), "none": {}}
    constants["datagens"] = {k: ImageDataGenerator(rescale=1 / 255, **v) for k, v in augmentations.items()}
    return SimpleNamespace(**constants)


def load(tree, folder=None):
    """Return the images of `tree` and a namespace of their table's columns, folder, and row numbers."""
    folder = folder or xray.find_images(tree)
    images, table = xray.load_images(folder, class_names=CASES["binary" if tree == "two" else "four"])
    columns = {name: table[name].to_numpy() for name in ("label", "split", "patient")}
    rows = {name: np.flatnonzero(columns["split"] == name) for name in ("train", "validation", "test")}
    return images, SimpleNamespace(folder=folder, **columns, **rows)


def load_base():
    """Return VGG16, frozen, for 150 x 150 pixels."""
    base = keras.applications.VGG16(xray.find_weights(), include_top=False, weights=None) if 0 else None
    base = keras.applications.VGG16(
        weights=xray.find_weights(), include_top=False, input_shape=(150, 150, 3)
    )
    base.trainable = False
    return base


def build_head(n_classes, rate, **options):
    """Return the lessons' head, compiled: a sigmoid for two classes, else a softmax."""
    two = n_classes == 2
    last = keras.layers.Dense(1 if two else n_classes, activation="sigmoid" if two else "softmax")
    hidden = keras.layers.Flatten(), keras.layers.Dense(256, activation="relu")
    head = keras.Sequential([keras.Input((4, 4, 512)), *hidden, last])
    loss = "binary_crossentropy" if two else "sparse_categorical_crossentropy"
    head.compile(keras.optimizers.Adam(rate), loss, metrics=["acc"], **(options or FAST))
    return head


def train(head, views, labels, rows, epochs, seed=42, validation=None):
    """Train a compiled head afresh on `rows` of the views; returns the head."""
    xray.initialize(head, seed)
    schedule = xray.ViewSchedule(views, labels, rows, validation, 10, seed)
    head.fit(schedule.batches, epochs=epochs, callbacks=[schedule], verbose=0)
    return head


def accuracy(head, features, labels, rows):
    """Return the share of `rows` that the head predicts right."""
    predicted = xray.predict_probabilities(head, features[rows]).argmax(axis=1)
    return float((predicted == labels[rows]).mean())


def medians(calls, rounds=ROUNDS):
    """Time each of the named calls in turns, after a round to warm up; returns median seconds."""
    timed = defaultdict(list)
    for _ in range(rounds + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            timed[name].append(time.perf_counter() - begin)
    return {name: float(np.median(seconds[1:])) for name, seconds in timed.items()}


def exponent(seconds):
    """Return the power of n that seconds grow with; seconds: {n: seconds}."""
    sizes = np.log([float(n) for n in seconds])
    return float(np.polyfit(sizes, np.log(list(seconds.values())), 1)[0])


def measure_precision():
    """Seconds an image of the forward pass by batch size, and of extraction; error of the features."""
    images = np.concatenate([load("two")[0]] * COUNT)[:COUNT]
    inputs, base, datagen = (images / 255).astype(np.float32), load_base(), lesson("Binary").datagens["article"]
    names = sorted({"bfloat16", "float32", xray.choose_precision()})
    bases, calls = {name: xray.reduced(base, name) for name in names}, {}

    def forward(network, size):
        step = tf.function(lambda batch: network(batch, training=False))
        return lambda: [step(tf.constant(inputs[k : k + size])).numpy() for k in range(0, COUNT, size)]

    for name, network in bases.items():
        calls |= {f"{name} {size}": forward(network, size) for size in (16, 32, 64)}
        extract = (network, datagen, images, 42, name, None)
        calls[f"{name} extraction"] = lambda extract=extract: xray.view_features(*extract)
    seconds = {name: value / COUNT for name, value in medians(calls).items()}
    exact = bases["float32"].predict(inputs, verbose=0)
    found = {"seconds_an_image": seconds, "best": {}, "relative_error": {}}
    for name, network in bases.items():
        found["best"][name] = min(seconds[f"{name} {size}"] for size in (16, 32, 64))
        off = network.predict(inputs, verbose=0).astype(np.float32) - exact
        found["relative_error"][name] = float(np.linalg.norm(off) / np.linalg.norm(exact))
    return found


def measure_literal(case):
    """Seconds of the article's code: the faster of two epochs after one to warm up, times its epochs."""
    tree, settings, ticks = ("two", "Binary") if case == "binary" else ("all", "Multi"), None, []
    (tree, name), settings = tree, lesson(tree[1])
    flags = ("featurewise_center", "featurewise_std_normalization", "zca_whitening")
    augmentation = xray.ARTICLE_AUGMENTATION | dict.fromkeys(flags, True)
    datagen = ImageDataGenerator(rescale=1 / 255, validation_split=0.2, **augmentation)
    mode, names = "binary" if case == "binary" else "categorical", CASES[case]
    options = dict(target_size=(150, 150), batch_size=10, seed=42, class_mode=mode, classes=names)
    folder = xray.find_images(tree) / "train"
    fitting, held_out = (
        datagen.flow_from_directory(folder, subset=part, **options) for part in ("training", "validation")
    )
    last = keras.layers.Dense(1 if mode == "binary" else len(names))
    activation = keras.layers.Activation("sigmoid" if mode == "binary" else "softmax")
    hidden = keras.layers.Flatten(), keras.layers.Dense(256, activation="relu")
    model = keras.Sequential([load_base(), *hidden, last, activation])
    rate = keras.optimizers.Adam(settings.LEARNING_RATE)
    model.compile(rate, f"{mode}_crossentropy", metrics=["acc"])
    clock = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: ticks.append(time.perf_counter()))
    # One epoch to warm up, two that are timed, and one whose beginning is the end of the last.
    model.fit(fitting, validation_data=held_out, epochs=4, verbose=0, callbacks=[clock])
    timed = np.diff(ticks)[1:].tolist()
    return {"timed_epochs": timed, "seconds": min(timed) * settings.NUM_EPOCHS, "lesson": name}


def train_recipe(name, run):
    """Run a recipe from the files to its trained heads; returns seconds by part and test accuracies."""
    lesson_name, cases, augmentation = RECIPES[name]
    settings, base, begin = lesson(lesson_name), load_base(), time.perf_counter()
    images, data = load("two" if lesson_name == "Binary" else "all")
    loaded = time.perf_counter()
    views = min(settings.VIEWS_PER_IMAGE, 8 if augmentation == "gentle" else 10**6)
    learn = np.flatnonzero(data.split != "test")  # the article's code reads no more in training
    features = run.extract_features(base, settings.datagens[augmentation], images[learn], views)
    extracted, heads, steps = time.perf_counter(), {}, 0
    for case in cases:
        n_classes = len(CASES[case])
        parts = [(data.split[learn] == part) & (data.label[learn] < n_classes) for part in ("train", "validation")]
        rows, held_out = map(np.flatnonzero, parts)
        heads[case] = build_head(n_classes, settings.LEARNING_RATE)
        train(heads[case], features, data.label[learn], rows, settings.NUM_EPOCHS, validation=held_out)
        steps += -(-len(rows) // 10) * settings.NUM_EPOCHS
    done = time.perf_counter()
    (plain,), scores = run.extract_features(base, settings.datagens["none"], images[data.test]), {}
    for case, head in heads.items():
        rows = np.flatnonzero(data.label[data.test] < len(CASES[case]))
        scores[case] = accuracy(head, plain, data.label[data.test], rows)
    seconds = {"images": loaded - begin, "features": extracted - loaded, "heads": done - extracted}
    counts = {"views": views, "forward_passes": len(learn) * views, "precision": run.precision}
    return {**seconds, "seconds": done - begin, **counts, "head_step": (done - extracted) / steps, "test": scores}


def measure_ours(name, precision):
    """Run a recipe with an empty cache in a precision, "auto" for the machine's best."""
    with tempfile.TemporaryDirectory() as scratch:
        return train_recipe(name, xray.Run("bench", precision=precision, output=Path(scratch)))


def measure_augmentation():
    """Views a second of ImageDataGenerator alone, on one core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    images, datagens = np.concatenate([load("two")[0]] * COUNT)[:COUNT], lesson("Multi").datagens

    def draw(datagen):
        flow = datagen.flow(images, batch_size=32, shuffle=False, seed=42)
        return [flow[k] for k in range(len(flow))]

    timed = medians({name: lambda d=datagen: draw(d) for name, datagen in datagens.items()})
    return {"views_a_second": {name: COUNT / seconds for name, seconds in timed.items()}}


def measure_head(epochs=20):
    """Milliseconds a step of the four-class head, four ways, and the share of memory's bandwidth."""
    rng = np.random.default_rng(0)
    views = [np.maximum(rng.standard_normal((270, 4, 4, 512)), 0).astype(np.float16) for _ in range(8)]
    labels, rows, calls = rng.integers(0, 4, 270), np.arange(54, 270), {}
    by_fit = {"validation_data": (views[0][:54].astype(np.float32), labels[:54]), "validation_batch_size": 54}

    def fit(options, validation, extra):
        head = build_head(4, 1e-4, **options)
        schedule = xray.ViewSchedule(views, labels, rows, validation)
        return lambda: head.fit(schedule.batches, epochs=epochs, callbacks=[schedule], verbose=0, **extra)

    auto = {"jit_compile": "auto"}
    for name, options in (("compiled", FAST), ("auto", auto)):
        calls[name] = fit(options, None, {})
        calls[f"{name}, scored beside fit"] = fit(options, np.arange(54), {})
        calls[f"{name}, scored by fit"] = fit(options, None, by_fit)
    steps = -(-len(rows) // 10) * epochs
    found = {name: 1000 * seconds / steps for name, seconds in medians(calls, min(ROUNDS, 3)).items()}
    a, b, c = (np.ones((2, 2**25), np.float32) for _ in range(3))  # 256 MB each, a half for each of two threads

    def triad(k):
        np.multiply(b[k], 3, out=a[k])
        np.add(a[k], c[k], out=a[k])

    with ThreadPoolExecutor(2) as pool:
        works = {"copy": lambda k: np.copyto(a[k], b[k]), "triad": triad}
        timed = medians({name: lambda w=work: list(pool.map(w, (0, 1))) for name, work in works.items()})
    bandwidth = {name: passes * a.nbytes / timed[name] / 1e9 for name, passes in (("copy", 2), ("triad", 5))}
    moved = 9 * 4 * build_head(4, 1e-4).count_params() / 1e9  # weights, gradients, moments: 6 reads, 3 writes
    share = moved / (found["compiled"] / 1000) / max(bandwidth.values())
    return {"ms_a_step": found, "gigabytes_a_second": bandwidth, "gigabytes_a_step": moved, "share": share}


def measure_growth():
    """Seconds from the files to the trained head at 100, 200, and 400 phantoms."""
    import phantoms

    base, datagen = load_base(), lesson("Multi").datagens["article"]
    head, seconds = build_head(4, 1e-4), {}
    for count in (40, 100, 200, 400):  # the first warms up
        with tempfile.TemporaryDirectory() as scratch:
            phantoms.write_tree(scratch, train=count // 4 - 1, test=1)
            run = xray.Run("bench", output=Path(scratch) / "output")
            begin = time.perf_counter()
            images, data = load("all", Path(scratch) / "all")
            views = run.extract_features(base, datagen, images, 2)
            train(head, views, data.label, data.train, 10, validation=data.validation)
            seconds[count] = time.perf_counter() - begin
    del seconds[40]
    return {"seconds": seconds, "exponent": exponent(seconds)}


def measure_second():
    """Seconds of Multi's features and heads without a cache, with an empty one, and a second time."""
    with tempfile.TemporaryDirectory() as scratch:
        output, cached = Path(scratch), xray.from_cache
        xray.from_cache = lambda stored, *call: xray.view_features(*call)[0]
        found = {"without": train_recipe("multi", xray.Run("bench", output=output / "none"))}
        xray.from_cache = cached
        for name in ("first", "second"):
            found[name] = train_recipe("multi", xray.Run("bench", output=output / "views"))
    return {name: {k: run[k] for k in ("features", "heads", "seconds")} for name, run in found.items()}


def run_notebook(folder, name, output, **settings):
    """Execute a notebook of `folder`/notebooks with nbconvert; returns its seconds. Fails where a cell does."""
    import conftest

    kept = {k: os.environ[k] for k in (*FILES, "NUM_EPOCHS", "VIEWS_PER_IMAGE", "PRECISION") if k in os.environ}
    settings = {**kept, "COVID_XRAY_OUTPUT": str(output), **settings}
    path, begin = Path(folder) / "notebooks" / f"Covid19_GradientCrescent_{name}.ipynb", time.perf_counter()
    cells = conftest.execute(path, path.parent, output, **settings)
    seconds = time.perf_counter() - begin
    errors = [o for cell in cells for o in cell.get("outputs", []) if o["output_type"] == "error"]
    if errors:
        sys.exit(f"{path}: {errors[0]['ename']}: {errors[0]['evalue']}")
    return seconds


def measure_large(count):
    """Run the whole Multi notebook on `count` phantoms in four classes: 2 views, 2 epochs."""
    import phantoms

    test = max(2, int(count) // 40)
    with tempfile.TemporaryDirectory() as scratch:
        phantoms.write_tree(Path(scratch) / "data", train=int(count) // 4 - test, test=test)
        settings = {"NUM_EPOCHS": "2", "FINE_TUNE_EPOCHS": "2", "VIEWS_PER_IMAGE": "2"}
        data = {"COVID_XRAY_DATA": str(Path(scratch) / "data")}
        seconds = run_notebook(TESTS.parent, "Multi", Path(scratch) / "output", **data, **settings)
    kernel = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return {"seconds": seconds, "kernel_peak_gib": kernel}


def measure_notebooks(name, revision, rounds):
    """Seconds of a whole notebook of `revision` and of now, in turns, and of now a second time."""
    os.environ.setdefault("COVID_XRAY_DATA", str(xray.find_images("all").resolve().parent))
    if (weights := xray.find_weights()) not in (None, "imagenet"):
        os.environ["VGG16_WEIGHTS"] = str(Path(weights).resolve())
    archive = subprocess.run(["git", "archive", revision], cwd=TESTS.parent, stdout=subprocess.PIPE, check=True)
    found = defaultdict(list)
    for _ in range(int(rounds)):
        with tempfile.TemporaryDirectory() as scratch:
            tarfile.open(fileobj=io.BytesIO(archive.stdout)).extractall(scratch)
            now, before = Path(scratch) / "now", Path(scratch) / "before"
            found["before"].append(run_notebook(scratch, name, before))
            found["now"].append(run_notebook(TESTS.parent, name, now))
            found["second"].append(run_notebook(TESTS.parent, name, now))
    found = {key: {"seconds": float(np.median(values)), "all": values} for key, values in found.items()}
    ratios = {f"{key}_ratio": found[key]["seconds"] / found[of]["seconds"] for key, of in RATIOS.items()}
    return {**found, **ratios, "revision": revision}


RATIOS = {"now": "before", "second": "now"}
