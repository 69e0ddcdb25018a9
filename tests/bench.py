"""Measure speed and chance: the article's code, this project, and what the machine could do.

    python tests/bench.py [--parts ours head] [--seeds 5] [--heads 60] [--large 1000 3000 6000]

Reads the images that the lessons would read. Each measurement has a process of its own, with its
peak memory, and is saved as it comes to output/bench.json, where parts of earlier runs stay.
  precision     VGG16's forward pass and extraction with augmentation, by precision, in turns
  literal       the article's code, float32: the faster of two epochs, times its epochs
  ours          the same cases from the files to the trained heads, as the lessons do, no view kept
  augmentation  views a second of ImageDataGenerator on one core, no base beside it
  head          milliseconds a step, compiled and not, validated or not; the share of memory's speed
  growth        100, 200, and 400 phantoms: seconds and exponent
  second        Multi's features and heads without the cache, with an empty one, and a second time
  large         with --large N ...: the whole Multi notebook on N phantoms, 2 views, 2 epochs
  notebooks     whole notebooks in turns with those of --revision, and a second time
  phantoms      `make run` where no X-ray can be reached, in turns with that of --revision
  exercises     the numbers in the folded answers of both lessons
  seeds         with --seeds N: test and cross-validated accuracy over N seeds, in two precisions
  claims        with --seeds N: the article's heads on views or not, and four classes on the controls
  heads         with --heads N: what N binary heads predict for the controls
NUM_EPOCHS, VIEWS_PER_IMAGE, BENCH_ROUNDS, and BENCH_IMAGES in the environment make a quick try.
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

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
sys.path[:0] = [str(NOTEBOOKS), str(ROOT / "data")]
if "--part" in sys.argv:  # the process that only starts the others needs no TensorFlow
    import dataset
    import phantoms
    import xray
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from xray import ImageDataGenerator, keras, tf

FOUR = ["covid", "normal", "pneumonia_bac", "pneumonia_vir"]
LESSONS = {"Binary": {"binary": FOUR[:2]}, "Multi": {"three": FOUR[:3], "four": FOUR}}
RECIPES = {
    "binary": ("Binary", "article"),
    "multi": ("Multi", "article"),
    "multi_gentle": ("Multi", "gentle"),
}
FAST = {"jit_compile": True, "steps_per_execution": 1000}
ROUNDS = int(os.environ.get("BENCH_ROUNDS", 5))
COUNT = int(os.environ.get("BENCH_IMAGES", 192))


def lesson(name):
    """Return the constants of a lesson's settings cell, and its generators, as a namespace."""
    path = NOTEBOOKS / f"Covid19_GradientCrescent_{name}.ipynb"
    constants = {"dataset": dataset, "xray": xray, "GENTLE": {}}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if "parameters" in cell["metadata"].get("tags", []) or source.startswith("GENTLE = "):
            exec(source, constants)
    for count in ("NUM_EPOCHS", "VIEWS_PER_IMAGE"):
        constants[count] = xray.whole_number(count, constants[count])
    recipes = {"article": xray.ARTICLE_AUGMENTATION, "gentle": constants["GENTLE"], "none": {}}
    datagens = {k: ImageDataGenerator(rescale=1 / 255, **recipe) for k, recipe in recipes.items()}
    tree = "two" if name == "Binary" else "all"
    return SimpleNamespace(**constants, datagens=datagens, tree=tree)


def load(tree, folder=None):
    """Return the images of a tree; and its folder, columns of its table, and rows by split."""
    folder = folder or dataset.find_images(tree)
    images, table = dataset.load_images(folder, class_names=FOUR[: 2 if tree == "two" else 4])
    facts = {name: table[name].to_numpy() for name in ("label", "split", "patient")}
    for split in ("train", "validation", "test"):
        facts[split] = np.flatnonzero(table["split"] == split)
    return images, SimpleNamespace(folder=folder, **facts)


def load_base():
    """Return VGG16, frozen, for 150 x 150 pixels."""
    options = {"include_top": False, "input_shape": (150, 150, 3)}
    base = keras.applications.VGG16(weights=xray.find_weights(), **options)
    base.trainable = False
    return base


def build_model(n_classes, rate, first=None, **options):
    """Return `first` (by default, features) and the lessons' head, compiled with `options`."""
    two = n_classes == 2
    last = keras.layers.Dense(n_classes - two, activation="sigmoid" if two else "softmax")
    hidden = keras.layers.Flatten(), keras.layers.Dense(256, activation="relu")
    model = keras.Sequential([first or keras.Input((4, 4, 512)), *hidden, last])
    loss = "binary_crossentropy" if two else "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["acc"], **options)
    return model


def train(head, views, labels, rows, epochs, seed=42, validation=None):
    """Train a compiled head afresh on `rows` of the views; returns the head."""
    xray.initialize(head, seed)
    schedule = xray.ViewSchedule(views, labels, rows, validation, 10, seed)
    head.fit(schedule.batches, epochs=epochs, callbacks=[schedule], verbose=0)
    return head


def accuracy(head, features, labels):
    """Return the share of rows of features that the head predicts right."""
    return float((xray.predict_probabilities(head, features).argmax(axis=1) == labels).mean())


def medians(calls, rounds=ROUNDS):
    """Time the named calls in turns, after a round to warm up; returns median seconds."""
    timed = defaultdict(list)
    for _ in range(rounds + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            timed[name].append(time.perf_counter() - begin)
    return {name: float(np.median(seconds[1:])) for name, seconds in timed.items()}


def exponent(seconds):
    """Return the power of n that seconds grow with; seconds: {n: seconds}."""
    sizes, values = np.log([float(n) for n in seconds]), np.log(list(seconds.values()))
    return float(np.polyfit(sizes, values, 1)[0])


def measure_precision():
    """Seconds an image, of the forward pass by batch size and of extraction; features' error."""
    images, base = np.resize(load("two")[0], (COUNT, 150, 150, 3)), load_base()
    inputs, datagen = (images / 255).astype(np.float32), lesson("Binary").datagens["article"]
    names, sizes, calls = {"bfloat16", "float32", xray.choose_precision()}, (16, 32, 64), {}
    bases = {name: xray.reduced(base, name) for name in sorted(names)}

    def forward(network, size):
        step = tf.function(lambda batch: network(batch, training=False))
        starts = range(0, COUNT, size)
        return lambda: [step(tf.constant(inputs[k : k + size])).numpy() for k in starts]

    for name, network in bases.items():
        calls |= {f"{name} {size}": forward(network, size) for size in sizes}
        view = network, datagen, images, 42, name, None
        calls[f"{name} extraction"] = lambda view=view: xray.view_features(*view)
    seconds = {name: value / COUNT for name, value in medians(calls).items()}
    best = {name: min(seconds[f"{name} {size}"] for size in sizes) for name in bases}
    outputs = {k: np.float32(network.predict(inputs, verbose=0)) for k, network in bases.items()}
    exact = outputs["float32"]
    errors = {k: np.linalg.norm(v - exact) / np.linalg.norm(exact) for k, v in outputs.items()}
    return {"seconds_an_image": seconds, "best": best, "relative_error": errors}


def measure_literal(case):
    """The article's code: the faster of two epochs after one to warm up, times its epochs."""
    name, ticks = "Binary" if case == "binary" else "Multi", []
    settings, names = lesson(name), LESSONS[name][case]
    flags = ("featurewise_center", "featurewise_std_normalization", "zca_whitening")
    recipe = xray.ARTICLE_AUGMENTATION | dict.fromkeys(flags, True)
    datagen = ImageDataGenerator(rescale=1 / 255, validation_split=0.2, **recipe)
    options = {"target_size": (150, 150), "batch_size": 10, "seed": 42, "classes": names}
    options["class_mode"] = "binary" if case == "binary" else "sparse"
    folder, subsets = dataset.find_images(settings.tree) / "train", ("training", "validation")
    flow, held_out = (datagen.flow_from_directory(folder, subset=k, **options) for k in subsets)
    model, clock = build_model(len(names), settings.LEARNING_RATE, load_base()), time.perf_counter
    note = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: ticks.append(clock()))
    # One epoch to warm up, two that are timed, and one whose beginning is the end of the last.
    model.fit(flow, validation_data=held_out, epochs=4, verbose=0, callbacks=[note])
    timed = np.diff(ticks)[1:].tolist()
    return {"timed_epochs": timed, "seconds": min(timed) * settings.NUM_EPOCHS}


def train_recipe(name, run):
    """Run a recipe from the files to its trained heads; seconds by part, and test accuracies."""
    lesson_name, recipe = RECIPES[name]
    settings, base, ticks, steps = lesson(lesson_name), load_base(), [time.perf_counter()], 0
    images, data = load(settings.tree)
    ticks.append(time.perf_counter())
    views = min(settings.VIEWS_PER_IMAGE, settings.NUM_EPOCHS, 8 if recipe == "gentle" else 999)
    learn = np.flatnonzero(data.split != "test")  # the article's code reads no more in training
    features = run.extract_features(base, settings.datagens[recipe], images[learn], views)
    ticks.append(time.perf_counter())
    labels, split, heads, test = data.label[learn], data.split[learn], {}, {}
    for case, names in LESSONS[lesson_name].items():
        rows = np.flatnonzero((labels < len(names)) & (split == "train"))
        held_out = np.flatnonzero((labels < len(names)) & (split == "validation"))
        heads[case] = build_model(len(names), settings.LEARNING_RATE, **FAST)
        train(heads[case], features, labels, rows, settings.NUM_EPOCHS, validation=held_out)
        steps += -(-len(rows) // 10) * settings.NUM_EPOCHS
    ticks.append(time.perf_counter())
    (plain,) = run.extract_features(base, settings.datagens["none"], images[data.test])
    for case, names in LESSONS[lesson_name].items():
        rows = data.label[data.test] < len(names)
        test[case] = accuracy(heads[case], plain[rows], data.label[data.test][rows])
    found = dict(zip(("images", "features", "heads"), np.diff(ticks)))
    found |= {"seconds": ticks[-1] - ticks[0], "head_step": found["heads"] / steps, "views": views}
    return found | {"forward_passes": len(learn) * views, "precision": run.precision, "test": test}


def measure_ours(name, precision):
    """Run a recipe with an empty cache in a precision, "auto" for the machine's best."""
    with tempfile.TemporaryDirectory() as scratch:
        return train_recipe(name, xray.Run("bench", precision=precision, output=Path(scratch)))


def measure_augmentation():
    """Views a second of ImageDataGenerator alone, on one core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    images, datagens = np.resize(load("two")[0], (COUNT, 150, 150, 3)), lesson("Multi").datagens
    flows = {k: datagen.flow(images, batch_size=32, seed=42) for k, datagen in datagens.items()}
    calls = {k: lambda f=flow: [f[k] for k in range(len(f))] for k, flow in flows.items()}
    return {"views_a_second": {k: COUNT / seconds for k, seconds in medians(calls).items()}}


def measure_head(epochs=20):
    """Milliseconds a step of the four-class head, six ways, and the share of memory's bandwidth."""
    rng, rows, calls = np.random.default_rng(0), np.arange(54, 270), {}
    views = [np.float16(np.maximum(rng.standard_normal((270, 4, 4, 512)), 0)) for _ in range(8)]
    labels, steps = rng.integers(0, 4, 270), -(-len(rows) // 10) * epochs
    held_out = np.float32(views[0][:54]), labels[:54]
    by_fit = {"validation_data": held_out, "validation_batch_size": 54}

    def fit(options, validation, extra):
        head = build_model(4, 1e-4, **options)
        plan = xray.ViewSchedule(views, labels, rows, validation)
        options = {"epochs": epochs, "callbacks": [plan], "verbose": 0, **extra}
        return lambda: head.fit(plan.batches, **options)

    for name, options in (("compiled", FAST), ("auto", {"jit_compile": "auto"})):
        calls[name] = fit(options, None, {})
        calls[f"{name}, validated by the schedule"] = fit(options, np.arange(54), {})
        calls[f"{name}, validated by fit"] = fit(options, None, by_fit)
    found = {name: 1000 * value / steps for name, value in medians(calls, min(ROUNDS, 3)).items()}
    a, b, c = (np.ones((2, 2**25), np.float32) for _ in range(3))  # 268 MB each, a half a thread

    def triad(k):
        np.multiply(b[k], 3, out=a[k])
        np.add(a[k], c[k], out=a[k])

    with ThreadPoolExecutor(2) as pool:
        works = {"copy": lambda k: np.copyto(a[k], b[k]), "triad": triad}
        timed = medians({k: lambda w=work: list(pool.map(w, (0, 1))) for k, work in works.items()})
    speed = {k: passes * a.nbytes / timed[k] / 1e9 for k, passes in (("copy", 2), ("triad", 5))}
    moved = 9 * 4 * build_model(4, 1e-4).count_params() / 1e9  # weights, gradient, two moments
    share = moved / (found["compiled"] / 1000) / max(speed.values())
    memory = {"gigabytes_a_second": speed, "gigabytes_a_step": moved, "share": share}
    return {"ms_a_step": found, **memory}


def measure_growth():
    """Seconds from the files to the trained head at 100, 200, and 400 phantoms."""
    base, datagen = load_base(), lesson("Multi").datagens["article"]
    head, seconds = build_model(4, 1e-4, **FAST), {}
    for count in (40, 100, 200, 400):  # the first warms up
        with tempfile.TemporaryDirectory() as scratch:
            phantoms.write_tree(Path(scratch), train=count // 4 - 1, test=1)
            run, begin = xray.Run("bench", output=Path(scratch) / "output"), time.perf_counter()
            images, data = load("all", Path(scratch) / "all")
            views = run.extract_features(base, datagen, images, 2)
            train(head, views, data.label, data.train, 10, validation=data.validation)
            seconds[count] = time.perf_counter() - begin
    del seconds[40]
    return {"seconds": seconds, "exponent": exponent(seconds)}


def measure_second():
    """Multi's features and heads without the cache, with an empty one, and a second time."""
    with tempfile.TemporaryDirectory() as scratch:
        cached, found = xray.from_cache, {}
        xray.from_cache = lambda _, *call: (xray.view_features(*call)[0], "")
        for name in ("without", "first", "second"):
            figures = train_recipe("multi", xray.Run("bench", output=Path(scratch)))
            found[name] = {part: figures[part] for part in ("views", "features", "heads", "seconds")}
            xray.from_cache = cached
    return found


def run_notebook(folder, name, output, **settings):
    """Execute a notebook of `folder`/notebooks; returns its seconds, fails where a cell does."""
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "notebook", "--execute"]
    command += ["--ExecutePreprocessor.timeout=-1", "--log-level=ERROR", f"--output-dir={output}"]
    path = Path(folder) / "notebooks" / f"Covid19_GradientCrescent_{name}.ipynb"
    environment = os.environ | {"COVID_XRAY_OUTPUT": str(output), **settings}
    begin = time.perf_counter()
    subprocess.run([*command, str(path)], env=environment, stdout=sys.stderr, check=True)
    return time.perf_counter() - begin


def measure_large(count):
    """Run the whole Multi notebook on `count` phantoms in four classes, 2 views, 2 epochs."""
    test = max(2, int(count) // 40)
    with tempfile.TemporaryDirectory() as scratch:
        data, output = Path(scratch) / "data", Path(scratch) / "output"
        phantoms.write_tree(data, train=int(count) // 4 - test, test=test)
        settings = dict.fromkeys(("NUM_EPOCHS", "VIEWS_PER_IMAGE"), "2")
        seconds = run_notebook(ROOT, "Multi", output, COVID_XRAY_DATA=str(data), **settings)
    kernel = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return {"seconds": seconds, "kernel_peak_gib": kernel}


def unpack(revision, folder):
    """Write the project's files at a revision into a folder."""
    command = ["git", "archive", revision]
    archive = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    tarfile.open(fileobj=io.BytesIO(archive)).extractall(folder)


def measure_notebooks(name, revision, rounds):
    """Seconds of a whole notebook: that of `revision`, now, and now a second time, in turns."""
    os.environ["COVID_XRAY_DATA"] = str(dataset.find_images("all").resolve().parent)
    if (weights := xray.find_weights()) not in (None, "imagenet"):
        os.environ["VGG16_WEIGHTS"] = str(Path(weights).resolve())
    timed = defaultdict(list)
    for _ in range(int(rounds)):
        with tempfile.TemporaryDirectory() as scratch:
            unpack(revision, scratch)
            for key, folder in (("before", scratch), ("now", ROOT), ("second", ROOT)):
                output = Path(scratch) / ("old" if key == "before" else "new")
                timed[key].append(run_notebook(folder, name, output))
    before, now, second = (float(np.median(values)) for values in timed.values())
    return {"now_to_before": now / before, "second_to_now": second / now, "seconds": timed}


def measure_phantoms(revision, rounds):
    """Seconds of `make run` in a fresh copy of the project without data: `revision`, and the last commit, in turns."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVID_")}
    environment |= {"COVID_XRAY_URL": "http://127.0.0.1:9/a.zip", "COVID_CHESTXRAY_URL": "http://127.0.0.1:9"}
    timed = defaultdict(list)
    for _ in range(int(rounds)):
        for key, commit in (("before", revision), ("now", "HEAD")):
            with tempfile.TemporaryDirectory() as scratch:
                unpack(commit, scratch)
                (Path(scratch) / ".venv").symlink_to(ROOT / ".venv")
                os.utime(Path(scratch) / "requirements.txt", (0, 0))  # older than what is installed
                begin = time.perf_counter()
                subprocess.run(["make", "-C", scratch, "run"], env=environment, stdout=sys.stderr, check=True)
                timed[key].append(time.perf_counter() - begin)
    before, now = (float(np.median(values)) for values in timed.values())
    return {"now_to_before": now / before, "seconds": timed}


def fit_logistic(features, labels, folds, strength=0.01):
    """Return how many rows of pooled features a cross-validated logistic regression gets right."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    pooled = features.mean(axis=(1, 2), dtype=float)
    return int((cross_val_predict(model, pooled, labels, cv=folds) == labels).sum())


def fit_folds(head, views, plain, labels, folds, epochs, seed=42):
    """Return the cross-validated probabilities of heads trained on views and tested on plain features."""
    probabilities = np.zeros((len(labels), max(2, head.output_shape[1])))
    for rows, out in folds:
        train(head, views, labels, rows, epochs, seed)
        probabilities[out] = xray.predict_probabilities(head, plain[out])
    return probabilities


def measure_exercises():
    """The numbers in the folded answers of the exercises: X-rays that are right, unless the key says otherwise."""
    settings, base, (images, data), found = lesson("Binary"), load_base(), load("two"), {}
    run, labels, test = xray.Run("pools", output=Path(os.environ["COVID_XRAY_OUTPUT"])), data.label, data.test

    def extract(some, recipe="none", views=1):
        return run.extract_features(base, settings.datagens[recipe], some, views)

    def right(features, truth):
        return int((xray.predict_probabilities(head, features).argmax(axis=1) == truth).sum())

    views, (plain,) = extract(images, "article", settings.VIEWS_PER_IMAGE), extract(images)
    controls = dataset.find_controls(data.folder.parent)
    (adults,) = extract(dataset.read_images(controls["file"], 150))
    head = build_model(2, settings.LEARNING_RATE, **FAST)
    for epochs in (2, 5, settings.NUM_EPOCHS):
        train(head, views, labels, data.train, epochs)
        found[f"{epochs} epochs, test"] = right(plain[test], labels[test])
        found[f"{epochs} epochs, controls predicted COVID-19"] = right(adults, 0)
    for share in (0.95, 0.98, 1):
        hidden, margin = images.copy(), int(150 * (1 - share) / 2)
        hidden[:, margin : 150 - margin, margin : 150 - margin] = 0
        (features,) = extract(hidden)
        train(head, [features], labels, data.train, settings.NUM_EPOCHS)
        found[f"frame of {margin} pixels, test"] = right(features[test], labels[test])
    rows = data.train[~np.isin(data.patient[data.train], data.patient[test])]
    train(head, views, labels, rows, settings.NUM_EPOCHS)
    found["shared patients, training images"] = len(data.train) - len(rows)
    found["without shared patients, test"] = right(plain[test], labels[test])
    everyone, truth = np.concatenate([plain, adults]), np.append(labels, np.ones(len(adults), int))
    folds = xray.grouped_folds(truth, np.append(data.patient, controls["patient"]))
    guesses = fit_folds(head, [everyone], everyone, truth, folds, settings.NUM_EPOCHS).argmax(axis=1) == truth
    kinds = np.append(np.where(labels == 0, "COVID-19", "children"), np.repeat("controls", len(controls)))
    found |= {f"remedy, {kind}": int(guesses[kinds == kind].sum()) for kind in ("COVID-19", "children", "controls")}
    no_finding = (controls["group"] == "no finding").to_numpy()
    found["remedy, controls with no finding"] = int(guesses[kinds == "controls"][no_finding].sum())
    (images, data), head = load("all"), build_model(4, 5e-4, **FAST)
    (plain,), labels, folds = extract(images), data.label, xray.grouped_folds(data.label, data.patient)
    guesses = fit_folds(head, [plain], plain, labels, folds, 20).argmax(axis=1)
    found["none, 20 epochs at 5e-4, cross-validated"] = int((guesses == labels).sum())
    careless = StratifiedKFold(5, shuffle=True, random_state=42)
    found["logistic, folds that ignore patients"] = fit_logistic(plain, labels, careless)
    for strength in (0.0001, 0.001, 0.01, 0.1, 1):
        found[f"logistic, C = {strength}"] = fit_logistic(plain, labels, folds, strength)
    return found


def draw_from(pool, views, seed):
    """Return `views` of the pool, drawn with `seed`."""
    return [pool[k] for k in np.random.default_rng(seed).permutation(len(pool))[:views]]


def load_pools(precision, pool):
    """Return data, pools of views by recipe, controls, and the features of controls and of frames.

    The views are kept beside bench.json, so that a run that broke off goes on.
    """
    settings, base, (images, data) = lesson("Multi"), load_base(), load("all")
    run = xray.Run("pools", precision=precision, output=Path(os.environ["COVID_XRAY_OUTPUT"]))

    def extract(recipe, some, views=1):
        return run.extract_features(base, settings.datagens[recipe], some, views)

    counts = {"none": 1, "gentle": int(pool) // 4, "article": int(pool)}
    pools = {recipe: extract(recipe, images, views) for recipe, views in counts.items()}
    controls, frames = dataset.find_controls(data.folder.parent), images[data.label < 2].copy()
    frames[:, 7:143, 7:143] = 0  # the central 90% of height and width
    pictures = dataset.read_images(controls["file"], 150)
    return data, pools, controls, extract("none", pictures)[0], extract("none", frames)[0]


def score_binary(head, data, plain, controls, control_features):
    """Return a binary head's test accuracy, and for how many controls it predicts COVID-19."""
    test, found = data.test[data.label[data.test] < 2], {}
    found["test"] = accuracy(head, plain[test], data.label[test])
    predicted = xray.predict_probabilities(head, control_features).argmax(axis=1)
    scored = xray.score_controls(controls, np.array(FOUR)[predicted], FOUR[:2])
    found["controls"], clear = scored["called_covid"], scored["no_finding"]["called_covid"]
    return found | {"controls with no finding": clear}


def summarize(found):
    """Return mean, standard deviation, and values of each list of values."""
    facts = {}
    for name, values in found.items():
        spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
        facts[name] = {"mean": np.mean(values), "sd": spread, "values": values}
    return facts


def measure_seeds(count, precision, pool):
    """Accuracies over seeds: on the test set by views, in folds by patient, and like for like."""
    data, pools, controls, control_features, frames = load_pools(precision, pool)
    (plain,), labels, patients, found = pools["none"], data.label, data.patient, defaultdict(list)
    settings = {n: lesson("Binary" if n == 2 else "Multi") for n in (2, 3, 4)}
    heads = {n: build_model(n, settings[n].LEARNING_RATE, **FAST) for n in settings}
    covid, two = labels == 0, labels < 2
    adults = np.concatenate([plain[covid], control_features])
    people = np.append(patients[covid], controls["patient"])
    is_control = np.arange(len(adults)) >= covid.sum()
    tasks = {
        "children": (plain[two], labels[two], patients[two]),
        "children_blackout": (frames, labels[two], patients[two]),
        "adults": (adults, is_control.astype(int), people),
    }
    for seed in range(1000, 1000 + int(count)):
        for n in (2, 3, 4):
            epochs, ours = settings[n].NUM_EPOCHS, settings[n].VIEWS_PER_IMAGE
            rows, test = (part[labels[part] < n] for part in (data.train, data.test))
            recipes = {"article": ("article", ours), "gentle": ("gentle", 8), "none": ("none", 1)}
            if n > 2:
                recipes["article, 8 views"] = ("article", 8)
            if len(pools["article"]) >= epochs:
                recipes["article, new views"] = ("article", epochs)
            for name, (recipe, views) in recipes.items():
                chosen = draw_from(pools[recipe], views, seed)
                head = train(heads[n], chosen, labels, rows, epochs, seed)
                scored = {"test": accuracy(head, plain[test], labels[test])}
                if n == 2:
                    scored = score_binary(head, data, plain, controls, control_features)
                for key, value in scored.items():
                    found[f"{key}, {n} classes, {name}"].append(value)
        folds = xray.grouped_folds(labels, patients, seed)
        for recipe, views in (("article", settings[4].VIEWS_PER_IMAGE), ("gentle", 8), ("none", 1)):
            chosen, epochs = draw_from(pools[recipe], views, seed), settings[4].NUM_EPOCHS
            guesses = fit_folds(heads[4], chosen, plain, labels, folds, epochs, seed).argmax(axis=1)
            found[f"cross-validated, 4 classes, {recipe}"].append((guesses == labels).mean())
        logistic = fit_logistic(plain, labels, folds) / len(labels)
        found["cross-validated, 4 classes, logistic"].append(logistic)
        for name, (features, truth, people) in tasks.items():
            folds = xray.grouped_folds(truth, people, seed)
            epochs = settings[2].NUM_EPOCHS
            probabilities = fit_folds(heads[2], [features], features, truth, folds, epochs, seed)
            found[f"like for like, {name}"].append((probabilities.argmax(axis=1) == truth).mean())
            auc = xray.roc_auc_score(truth == 0, probabilities[:, 0])
            found[f"like for like, {name}, area under the ROC curve"].append(auc)
    return summarize(found)


def measure_claims(count, pool):
    """Over seeds: the article's heads on held-out images and on views of them; four classes on the controls."""
    data, pools, controls, control_features, _ = load_pools("auto", pool)
    settings, labels, found = lesson("Multi"), data.label, defaultdict(list)
    (plain,), head, epochs = pools["none"], build_model(4, settings.LEARNING_RATE, **FAST), settings.NUM_EPOCHS
    for seed in range(1000, 1000 + int(count)):
        on_plain = on_views = 0
        views = draw_from(pools["article"], settings.VIEWS_PER_IMAGE, seed)
        for rows, out in xray.grouped_folds(labels, data.patient, seed):
            train(head, views, labels, rows, epochs, seed)
            on_plain += len(out) * accuracy(head, plain[out], labels[out]) / len(labels)
            guesses = [accuracy(head, view[out], labels[out]) for view in views[:8]]
            on_views += len(out) * np.mean(guesses) / len(labels)
        found["article, unaugmented"].append(on_plain)
        found["article, on views"].append(on_views)
        for recipe, views in (("article", settings.VIEWS_PER_IMAGE), ("gentle", 8), ("none", 1)):
            train(head, draw_from(pools[recipe], views, seed), labels, data.train, epochs, seed)
            predicted = xray.predict_probabilities(head, control_features).argmax(axis=1)
            scored = xray.score_controls(controls, np.array(FOUR)[predicted], FOUR)
            found[f"controls right, of 67, {recipe}"].append(scored["with_right_answer"]["correct"])
            found[f"controls predicted COVID-19, of 97, {recipe}"].append(scored["called_covid"])
    return summarize(found)


def measure_heads(count, pool):
    """What `count` binary heads predict: each has its own views, order of images, and weights."""
    data, pools, controls, control_features, _ = load_pools("auto", pool)
    settings, found = lesson("Binary"), defaultdict(list)
    head = build_model(2, settings.LEARNING_RATE, **FAST)
    rows = data.train[data.label[data.train] < 2]
    for seed in range(int(count)):
        views = draw_from(pools["article"], settings.VIEWS_PER_IMAGE, seed)
        train(head, views, data.label, rows, settings.NUM_EPOCHS, seed)
        scored = score_binary(head, data, pools["none"][0], controls, control_features)
        for key, value in scored.items():
            found[key].append(value)
    return summarize(found)


def add_ratios(bench):
    """Add how much longer the article's code takes than ours, and ours than VGG16 alone would."""
    limits = bench.get("precision", {}).get("", {}).get("best", {})
    for ours in bench.get("ours", {}).values():
        literal = [bench.get("literal", {}).get(case) for case in ours["test"]]
        if all(literal):
            ours["literal_over_ours"] = sum(run["seconds"] for run in literal) / ours["seconds"]
        if ours["precision"] in limits:
            forward = ours["forward_passes"] * limits[ours["precision"]]
            ours["ours_over_limit"] = ours["seconds"] / forward
    if len(large := bench.get("large", {})) > 1:
        seconds = {n: run["seconds"] for n, run in large.items() if n.isdigit()}
        large["exponent"] = {"exponent": exponent(seconds)}


def table(figures, path=""):
    """Yield a line for each number, by its path; lists, of single runs, stay in the file."""
    for name, value in figures.items():
        place = f"{path} {name}".strip()
        if isinstance(value, dict):
            yield from table(value, place)
        elif isinstance(value, (int, float)):
            yield f"{place:90} {value:.4g}"


def main():
    """Read the command line, start a process for each measurement, save each, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", help="only these")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "bench.json")
    parser.add_argument("--large", type=int, nargs="+", default=[], help="numbers of phantoms")
    for name, default in (("seeds", 0), ("heads", 0), ("pool", 100), ("rounds", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precisions", nargs="+", default=["auto", "float32"], help="of ours and seeds")
    parser.add_argument("--revision", default="ee045e0", help="the notebooks to compare with")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        os.chdir(NOTEBOOKS)
        name, *words = options.part
        figures = globals()[f"measure_{name}"](*words)
        figures["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print("\n" + json.dumps(figures, default=xray.as_plain))
        return
    once, seeds, precisions = [()], options.seeds, options.precisions
    plan = dict.fromkeys(("precision", "augmentation", "head", "growth", "second", "exercises"), once)
    plan["literal"] = [(case,) for cases in LESSONS.values() for case in cases]
    plan["ours"] = [(name, precision) for name in RECIPES for precision in precisions]
    plan["large"] = [(count,) for count in options.large]
    plan["notebooks"] = [(name, options.revision, options.rounds) for name in LESSONS]
    plan["phantoms"] = [(options.revision, options.rounds)]
    plan["seeds"] = [(seeds, precision, options.pool) for precision in precisions if seeds]
    plan["claims"] = [(seeds, options.pool)] if seeds else []
    plan["heads"] = [(options.heads, options.pool)] if options.heads else []
    output = options.output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    bench = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    environment = os.environ | {"COVID_XRAY_OUTPUT": str(output.parent)}
    for name in ("COVID_XRAY_DATA", "VGG16_WEIGHTS"):  # the measurements run in notebooks/
        if Path(os.environ.get(name) or "/nowhere").exists():
            environment[name] = str(Path(os.environ[name]).resolve())
    for part in options.parts or plan:
        for arguments in plan[part]:
            words = list(map(str, arguments))
            command = [sys.executable, __file__, "--part", part, *words]
            options = {"stdout": subprocess.PIPE, "text": True, "check": True}
            printed = subprocess.run(command, env=environment, **options).stdout
            bench.setdefault(part, {})[" ".join(words)] = json.loads(printed.splitlines()[-1])
            add_ratios(bench)
            output.write_text(json.dumps(bench, indent=1) + "\n", encoding="utf-8")
            print(part, *words, printed.splitlines()[-1], flush=True)
    print("", "All measurements:", *table(bench), sep="\n")


if __name__ == "__main__":
    main()
