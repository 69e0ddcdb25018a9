"""Measure speed and chance: the article's code, this project, and what the machine could do, in one run.

    python tests/bench.py [--parts ours head ...] [--seeds 5] [--heads 60] [--large 1000 3000 6000]

Reads the images that the lessons would read. Each measurement has a process of its own, with its peak
memory, and is saved as it comes to output/bench.json, where the other parts of earlier runs stay.
  precision     VGG16's forward pass and extraction with augmentation, float32 and bfloat16 in turns
  literal       the article's code from the files, float32: the faster of two epochs, times its epochs
  ours          the same cases from the files to the trained heads, as the lessons do, no view kept
  augmentation  views a second of ImageDataGenerator on one core, no base beside it
  head          milliseconds a step, compiled and not, validated or not; the share of memory's speed
  growth        100, 200, and 400 phantoms: seconds and exponent
  second        Multi's features and heads without the cache, with an empty one, and a second time
  large         with --large N ...: the whole Multi notebook on N phantoms, 2 views, 2 epochs
  notebooks     whole notebooks in turns with those of --revision, and a second time
  seeds         with --seeds N: test and cross-validated accuracy over N seeds, in two precisions
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
sys.path[:0] = [str(ROOT / "tests"), str(NOTEBOOKS), str(ROOT / "data")]
if "--part" in sys.argv:  # the process that only starts the others needs no TensorFlow
    import conftest
    import phantoms
    import xray
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from xray import ImageDataGenerator, keras, tf

FOUR = ["covid", "normal", "pneumonia_bac", "pneumonia_vir"]
LESSONS = {"Binary": {"binary": FOUR[:2]}, "Multi": {"three": FOUR[:3], "four": FOUR}}
RECIPES = {"binary": ("Binary", "article"), "multi": ("Multi", "article"), "multi_gentle": ("Multi", "gentle")}
FAST = {"jit_compile": True, "steps_per_execution": 1000}
ROUNDS, COUNT = (int(os.environ.get(f"BENCH_{name}", n)) for name, n in (("ROUNDS", 5), ("IMAGES", 192)))


def lesson(name):
    """Return the constants of a lesson's settings cell, and its generators, as a namespace."""
    text = (NOTEBOOKS / f"Covid19_GradientCrescent_{name}.ipynb").read_text(encoding="utf-8")
    constants = {"xray": xray, "GENTLE": {}}
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if "parameters" in cell["metadata"].get("tags", []) or source.startswith("GENTLE = "):
            exec(source, constants)
    for count in ("NUM_EPOCHS", "VIEWS_PER_IMAGE"):
        constants[count] = xray.whole_number(count, constants[count])
    recipes = {"article": xray.ARTICLE_AUGMENTATION, "gentle": constants["GENTLE"], "none": {}}
    datagens = {name: ImageDataGenerator(rescale=1 / 255, **recipe) for name, recipe in recipes.items()}
    return SimpleNamespace(**constants, datagens=datagens, tree="two" if name == "Binary" else "all")


def load(tree, folder=None):
    """Return the images of a tree, and a namespace: folder, label, split, patient, and rows by split."""
    folder = folder or xray.find_images(tree)
    images, table = xray.load_images(folder, class_names=FOUR[: 2 if tree == "two" else 4])
    columns = {name: table[name].to_numpy() for name in ("label", "split", "patient")}
    parts = {name: np.flatnonzero(table["split"] == name) for name in ("train", "validation", "test")}
    return images, SimpleNamespace(folder=folder, **columns, **parts)


def load_base():
    """Return VGG16, frozen, for 150 x 150 pixels."""
    shape = (150, 150, 3)
    base = keras.applications.VGG16(weights=xray.find_weights(), include_top=False, input_shape=shape)
    base.trainable = False
    return base


def build_model(n_classes, rate, first, **options):
    """Return `first` (an input or the base) and the lessons' head, compiled; one sigmoid for two classes."""
    two = n_classes == 2
    last = keras.layers.Dense(1 if two else n_classes, activation="sigmoid" if two else "softmax")
    hidden = keras.layers.Flatten(), keras.layers.Dense(256, activation="relu")
    model = keras.Sequential([first, *hidden, last])
    loss = "binary_crossentropy" if two else "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["acc"], **options)
    return model


def build_head(n_classes, rate):
    """Return a head for features, compiled as in the lessons."""
    return build_model(n_classes, rate, keras.Input((4, 4, 512)), **FAST)


def train(head, views, labels, rows, epochs, seed=42, validation=None):
    """Train a compiled head afresh on `rows` of the views; returns the head."""
    xray.initialize(head, seed)
    schedule = xray.ViewSchedule(views, labels, rows, validation, 10, seed)
    head.fit(schedule.batches, epochs=epochs, callbacks=[schedule], verbose=0)
    return head


def predict(head, features):
    """Return the predicted label of each row of features."""
    return xray.predict_probabilities(head, features).argmax(axis=1)


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
    """Seconds an image of the forward pass by batch size, and of extraction; error of the features."""
    images, base = np.resize(load("two")[0], (COUNT, 150, 150, 3)), load_base()
    inputs, datagen = (images / 255).astype(np.float32), lesson("Binary").datagens["article"]
    names = sorted({"bfloat16", "float32", xray.choose_precision()})
    bases, calls = {name: xray.reduced(base, name) for name in names}, {}

    def forward(network, size):
        step = tf.function(lambda batch: network(batch, training=False))
        starts = range(0, COUNT, size)
        return lambda: [step(tf.constant(inputs[k : k + size])).numpy() for k in starts]

    for name, network in bases.items():
        calls |= {f"{name} {size}": forward(network, size) for size in (16, 32, 64)}
        arguments = network, datagen, images, 42, name, None
        calls[f"{name} extraction"] = lambda a=arguments: xray.view_features(*a)
    seconds = {name: value / COUNT for name, value in medians(calls).items()}
    best = {name: min(seconds[f"{name} {size}"] for size in (16, 32, 64)) for name in names}
    exact, errors = bases["float32"].predict(inputs, verbose=0), {}
    for name, network in bases.items():
        off = network.predict(inputs, verbose=0).astype(np.float32) - exact
        errors[name] = float(np.linalg.norm(off) / np.linalg.norm(exact))
    return {"seconds_an_image": seconds, "best": best, "relative_error": errors}


def measure_literal(case):
    """Seconds of the article's code: the faster of two epochs after one to warm up, times its epochs."""
    name = "Binary" if case == "binary" else "Multi"
    settings, names, ticks = lesson(name), LESSONS[name][case], []
    flags = ("featurewise_center", "featurewise_std_normalization", "zca_whitening")
    recipe = xray.ARTICLE_AUGMENTATION | dict.fromkeys(flags, True)
    datagen = ImageDataGenerator(rescale=1 / 255, validation_split=0.2, **recipe)
    mode = {"class_mode": "binary" if case == "binary" else "sparse", "classes": names}
    options = {"target_size": (150, 150), "batch_size": 10, "seed": 42, **mode}
    folder = xray.find_images(settings.tree) / "train"
    flow, held_out = (
        datagen.flow_from_directory(folder, subset=part, **options) for part in ("training", "validation")
    )
    model = build_model(len(names), settings.LEARNING_RATE, load_base())
    tick = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: ticks.append(time.perf_counter()))
    # One epoch to warm up, two that are timed, and one whose beginning is the end of the last.
    model.fit(flow, validation_data=held_out, epochs=4, verbose=0, callbacks=[tick])
    timed = np.diff(ticks)[1:].tolist()
    return {"timed_epochs": timed, "seconds": min(timed) * settings.NUM_EPOCHS}


def train_recipe(name, run):
    """Run a recipe from the files to its trained heads; returns seconds by part, and test accuracies."""
    settings, base, begin = lesson(RECIPES[name][0]), load_base(), time.perf_counter()
    images, data = load(settings.tree)
    loaded, (lesson_name, recipe) = time.perf_counter(), RECIPES[name]
    views = min(settings.VIEWS_PER_IMAGE, settings.NUM_EPOCHS, 8 if recipe == "gentle" else 999)
    learn = np.flatnonzero(data.split != "test")  # training reads no more, here as in the article's code
    features = run.extract_features(base, settings.datagens[recipe], images[learn], views)
    extracted, heads, steps, labels, test = time.perf_counter(), {}, 0, data.label[learn], {}
    for case, names in LESSONS[lesson_name].items():
        in_case, split = labels < len(names), data.split[learn]
        rows, held_out = (np.flatnonzero(in_case & (split == part)) for part in ("train", "validation"))
        heads[case] = build_head(len(names), settings.LEARNING_RATE)
        train(heads[case], features, labels, rows, settings.NUM_EPOCHS, validation=held_out)
        steps += -(-len(rows) // 10) * settings.NUM_EPOCHS
    done, tested = time.perf_counter(), data.label[data.test]
    (plain,) = run.extract_features(base, settings.datagens["none"], images[data.test])
    for case, names in LESSONS[lesson_name].items():
        rows = tested < len(names)
        test[case] = float((predict(heads[case], plain[rows]) == tested[rows]).mean())
    parts = {"images": loaded - begin, "features": extracted - loaded, "heads": done - extracted}
    facts = {"views": views, "forward_passes": len(learn) * views, "precision": run.precision, "test": test}
    return {**parts, "seconds": done - begin, "head_step": (done - extracted) / steps, **facts}


def measure_ours(name, precision):
    """Run a recipe with an empty cache in a precision, "auto" for the machine's best."""
    with tempfile.TemporaryDirectory() as scratch:
        return train_recipe(name, xray.Run("bench", precision=precision, output=Path(scratch)))


def measure_augmentation():
    """Views a second of ImageDataGenerator alone, on one core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    images, datagens = np.resize(load("two")[0], (COUNT, 150, 150, 3)), lesson("Multi").datagens
    flows = {name: datagen.flow(images, batch_size=32, seed=42) for name, datagen in datagens.items()}
    calls = {name: lambda flow=flow: [flow[k] for k in range(len(flow))] for name, flow in flows.items()}
    return {"views_a_second": {name: COUNT / seconds for name, seconds in medians(calls).items()}}


def measure_head(epochs=20):
    """Milliseconds a step of the four-class head, six ways, and the share of memory's bandwidth."""
    rng, rows, calls = np.random.default_rng(0), np.arange(54, 270), {}
    views = [np.maximum(rng.standard_normal((270, 4, 4, 512)), 0).astype(np.float16) for _ in range(8)]
    labels, steps = rng.integers(0, 4, 270), -(-len(rows) // 10) * epochs
    held_out = views[0][:54].astype(np.float32), labels[:54]
    by_fit = {"validation_data": held_out, "validation_batch_size": 54}

    def fit(options, validation, extra):
        head = build_model(4, 1e-4, keras.Input((4, 4, 512)), **options)
        plan = xray.ViewSchedule(views, labels, rows, validation)
        return lambda: head.fit(plan.batches, epochs=epochs, callbacks=[plan], verbose=0, **extra)

    for name, options in (("compiled", FAST), ("auto", {"jit_compile": "auto"})):
        calls[name] = fit(options, None, {})
        calls[f"{name}, validated by the schedule"] = fit(options, np.arange(54), {})
        calls[f"{name}, validated by fit"] = fit(options, None, by_fit)
    found = {name: 1000 * seconds / steps for name, seconds in medians(calls, min(ROUNDS, 3)).items()}
    a, b, c = (np.ones((2, 2**25), np.float32) for _ in range(3))  # 268 MB each, a half a thread

    def triad(k):
        np.multiply(b[k], 3, out=a[k])
        np.add(a[k], c[k], out=a[k])

    with ThreadPoolExecutor(2) as pool:
        works = {"copy": lambda k: np.copyto(a[k], b[k]), "triad": triad}
        timed = medians({name: lambda work=work: list(pool.map(work, (0, 1))) for name, work in works.items()})
    speed = {name: passes * a.nbytes / timed[name] / 1e9 for name, passes in (("copy", 2), ("triad", 5))}
    moved = 9 * 4 * build_head(4, 1e-4).count_params() / 1e9  # weights, gradient, moments: 5 reads, 4 writes
    share = moved / (found["compiled"] / 1000) / max(speed.values())
    return {"ms_a_step": found, "gigabytes_a_second": speed, "gigabytes_a_step": moved, "share": share}


def measure_growth():
    """Seconds from the files to the trained head at 100, 200, and 400 phantoms."""
    base, datagen, head, seconds = load_base(), lesson("Multi").datagens["article"], build_head(4, 1e-4), {}
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
        cached, runs = xray.from_cache, [xray.Run("bench", output=Path(scratch)) for _ in range(3)]
        xray.from_cache = lambda stored, *call: xray.view_features(*call)[0]
        found = {"without": train_recipe("multi", runs[0])}
        xray.from_cache = cached
        found |= {"first": train_recipe("multi", runs[1]), "second": train_recipe("multi", runs[2])}
    return {name: {part: run[part] for part in ("features", "heads", "seconds")} for name, run in found.items()}


def run_notebook(folder, name, output, **settings):
    """Execute a notebook of `folder`/notebooks; returns its seconds, and exits where a cell fails."""
    names = "COVID_XRAY_DATA", "VGG16_WEIGHTS", "NUM_EPOCHS", "VIEWS_PER_IMAGE", "PRECISION"
    kept = {name: os.environ[name] for name in names if name in os.environ}
    path = Path(folder) / "notebooks" / f"Covid19_GradientCrescent_{name}.ipynb"
    settings, begin = {**kept, "COVID_XRAY_OUTPUT": str(output), **settings}, time.perf_counter()
    cells = conftest.execute(path, path.parent, output, **settings)
    seconds = time.perf_counter() - begin
    if errors := conftest.outputs_of(cells, "error"):
        sys.exit(f"{path}: {errors[0]}")
    return seconds


def measure_large(count):
    """Run the whole Multi notebook on `count` phantoms in four classes, 2 views, 2 epochs."""
    test = max(2, int(count) // 40)
    with tempfile.TemporaryDirectory() as scratch:
        data, output = Path(scratch) / "data", Path(scratch) / "output"
        phantoms.write_tree(data, train=int(count) // 4 - test, test=test)
        settings = dict.fromkeys(("NUM_EPOCHS", "FINE_TUNE_EPOCHS", "VIEWS_PER_IMAGE"), "2")
        seconds = run_notebook(ROOT, "Multi", output, COVID_XRAY_DATA=str(data), **settings)
    kernel = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return {"seconds": seconds, "kernel_peak_gib": kernel}


def measure_notebooks(name, revision, rounds):
    """Seconds of a whole notebook: that of `revision`, now, and now a second time, in turns."""
    os.environ.setdefault("COVID_XRAY_DATA", str(xray.find_images("all").resolve().parent))
    if (weights := xray.find_weights()) not in (None, "imagenet"):
        os.environ["VGG16_WEIGHTS"] = str(Path(weights).resolve())
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    timed = defaultdict(list)
    for _ in range(int(rounds)):
        with tempfile.TemporaryDirectory() as scratch:
            tarfile.open(fileobj=io.BytesIO(archive.stdout)).extractall(scratch, filter="data")
            for key, folder, output in (("before", scratch, "a"), ("now", ROOT, "b"), ("second", ROOT, "b")):
                timed[key].append(run_notebook(folder, name, Path(scratch) / output))
    seconds = {key: float(np.median(values)) for key, values in timed.items()}
    ratios = {"now_to_before": seconds["now"] / seconds["before"], "second_to_now": seconds["second"] / seconds["now"]}
    return {"seconds": seconds, **ratios, "all": timed, "revision": revision}


def pools_of_views(precision, pool):
    """Return all that seeds and heads draw from: data, pools of views by recipe, the controls' features.

    The views are kept beside bench.json, so that a run that broke off goes on.
    """
    settings, base, (images, data) = lesson("Multi"), load_base(), load("all")
    run = xray.Run("bench", precision=precision, output=Path(os.environ["COVID_XRAY_OUTPUT"]))
    counts = {"none": 1, "gentle": 16, "article": int(pool)}
    pools = {k: run.extract_features(base, settings.datagens[k], images, n) for k, n in counts.items()}
    controls, hidden = xray.find_controls(data.folder.parent), images[data.label < 2].copy()
    hidden[:, 7:143, 7:143] = 0  # the central 90% of height and width
    pictures = xray.read_images(controls["file"], 150)
    rest = [run.extract_features(base, settings.datagens["none"], some)[0] for some in (pictures, hidden)]
    return data, pools, controls, *rest


def drawn(pool, views, seed):
    """Return `views` of the pool, drawn with `seed`."""
    return [pool[k] for k in np.random.default_rng(seed).permutation(len(pool))[:views]]


def summary(values):
    """Return mean, standard deviation, and all values."""
    return {"mean": np.mean(values), "sd": np.std(values, ddof=1) if len(values) > 1 else 0.0, "values": values}


def score_binary(head, pools, data, controls, control_features, found):
    """Add a binary head's test accuracy, and its controls called COVID-19, to the lists in `found`."""
    test = data.test[data.label[data.test] < 2]
    found["test"].append((predict(head, pools["none"][0][test]) == data.label[test]).mean())
    scored = xray.score_controls(controls, np.array(FOUR)[predict(head, control_features)])
    found["controls_called_covid"].append(scored["called_covid"])
    found["no_finding_called_covid"].append(scored["no_finding"]["called_covid"])


def measure_seeds(count, precision, pool):
    """Accuracies over seeds: the test set by views, folds by patient, and the like-for-like tasks."""
    data, pools, controls, control_features, hidden = pools_of_views(precision, pool)
    binary, multi, found = lesson("Binary"), lesson("Multi"), defaultdict(list)
    (plain,), labels, patients = pools["none"], data.label, data.patient
    heads = {2: build_head(2, binary.LEARNING_RATE)}
    heads |= {n: build_head(n, multi.LEARNING_RATE) for n in (3, 4)}
    covid, two = labels == 0, labels < 2
    people = np.append(patients[covid], controls["patient"])
    adults = np.concatenate([plain[covid], control_features]), np.arange(len(people)) >= covid.sum(), people
    tasks = {"children": (plain[two], labels[two], patients[two]), "adults": adults}
    tasks["children_blackout"] = hidden, labels[two], patients[two]
    logistic = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    for seed in range(1000, 1000 + int(count)):
        for n, settings in ((2, binary), (3, multi), (4, multi)):
            ours = {"fresh": ("article", settings.NUM_EPOCHS), "ours": ("article", settings.VIEWS_PER_IMAGE)}
            rows, test = data.train[labels[data.train] < n], data.test[labels[data.test] < n]
            for name, (source, views) in (ours | {"gentle": ("gentle", 8), "none": ("none", 1)}).items():
                chosen, scores = drawn(pools[source], views, seed), defaultdict(list)
                head = train(heads[n], chosen, labels, rows, settings.NUM_EPOCHS, seed)
                if n == 2:
                    score_binary(head, pools, data, controls, control_features, scores)
                else:
                    scores["test"].append((predict(head, plain[test]) == labels[test]).mean())
                for key, values in scores.items():
                    found[f"{key}/{n}/{name}"] += values
        folds, pooled = xray.grouped_folds(labels, patients, seed), np.asarray(plain, float).mean(axis=(1, 2))
        for name, views in (("article", multi.VIEWS_PER_IMAGE), ("gentle", 8), ("none", 1)):
            chosen, guesses = drawn(pools[name], views, seed), np.zeros(len(labels), int)
            for rows, out in folds:
                head = train(heads[4], chosen, labels, rows, multi.NUM_EPOCHS, seed)
                guesses[out] = predict(head, plain[out])
            found[f"grouped_cv/4/{name}"].append((guesses == labels).mean())
        found["grouped_cv/4/logistic"].append((cross_val_predict(logistic, pooled, labels, cv=folds) == labels).mean())
        for name, (features, truth, people) in tasks.items():
            probabilities = np.zeros((len(truth), 2))
            for rows, out in xray.grouped_folds(truth, people, seed):
                head = train(heads[2], [features], truth, rows, binary.NUM_EPOCHS, seed)
                probabilities[out] = xray.predict_probabilities(head, features[out])
            found[f"like_for_like/{name}"].append((probabilities.argmax(axis=1) == truth).mean())
            found[f"like_for_like_auc/{name}"].append(xray.roc_auc_score(truth == 0, probabilities[:, 0]))
    return {name: summary(values) for name, values in found.items()}


def measure_heads(count, pool):
    """What `count` binary heads, each with its own views, order, and weights, predict for the controls."""
    data, pools, controls, control_features, _ = pools_of_views("auto", pool)
    settings, found = lesson("Binary"), defaultdict(list)
    head, rows = build_head(2, settings.LEARNING_RATE), data.train[data.label[data.train] < 2]
    for seed in range(int(count)):
        views = drawn(pools["article"], settings.VIEWS_PER_IMAGE, seed)
        train(head, views, data.label, rows, settings.NUM_EPOCHS, seed)
        score_binary(head, pools, data, controls, control_features, found)
    return {name: summary(values) for name, values in found.items()}


def table(bench):
    """Yield the lines of the one table: recipes with their ratios, which are added, then the rest."""
    if "literal" in bench and "ours" in bench:
        yield f"{'':23}{'literal s':>10}{'ours s':>8}{'ratio':>7}{'to limit':>9}{'step ms':>8}{'peak GiB':>9}  test"
    for name, ours in bench.get("ours", {}).items():
        cases = LESSONS[RECIPES[name.split()[0]][0]]
        if not set(cases) <= set(bench.get("literal", {})):
            continue
        literal = sum(bench["literal"][case]["seconds"] for case in cases)
        ours["literal_over_ours"] = literal / ours["seconds"]
        limit = bench.get("precision", {}).get("", {}).get("best", {}).get(ours["precision"], np.nan)
        ours["ours_over_limit"] = ours["seconds"] / (ours["forward_passes"] * limit)
        yield (
            f"{name:23}{literal:10.0f}{ours['seconds']:8.0f}{ours['literal_over_ours']:7.1f}"
            f"{ours['ours_over_limit']:9.2f}{1000 * ours['head_step']:8.1f}{ours['peak_gib']:9.2f}  {ours['test']}"
        )
    for part in sorted(bench.keys() - {"literal", "ours", "cores"}):
        for argument, figures in bench[part].items():
            for key, value in figures.items():
                shown = value if not isinstance(value, dict) else {k: v for k, v in value.items() if k != "values"}
                text = json.dumps(shown, default=float)
                yield f"{part} {argument} {key}: {text}"
    if len(large := bench.get("large", {})) > 1:
        yield f"large: exponent {exponent({n: run['seconds'] for n, run in large.items()}):.2f}"


def main():
    """Read the command line, start one process a measurement, save each, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", help="only these")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "bench.json")
    parser.add_argument("--large", type=int, nargs="+", default=[])
    parser.add_argument("--seeds", type=int, default=0)
    parser.add_argument("--heads", type=int, default=0)
    parser.add_argument("--pool", type=int, default=100, help="views that seeds and heads draw from")
    parser.add_argument("--revision", default="ee045e0", help="the notebooks to compare with")
    parser.add_argument("--rounds", type=int, default=1, help="of whole notebooks")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        os.chdir(NOTEBOOKS)
        name, *arguments = options.part
        figures = globals()[f"measure_{name}"](*arguments)
        figures["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print("\n" + json.dumps(figures, default=xray.as_plain))
        return
    plan = {
        "precision": [()],
        "literal": [(case,) for cases in LESSONS.values() for case in cases],
        "ours": [(name, precision) for name in RECIPES for precision in ("auto", "float32")],
        "augmentation": [()],
        "head": [()],
        "growth": [()],
        "second": [()],
        "large": [(count,) for count in options.large],
        "notebooks": [(name, options.revision, options.rounds) for name in LESSONS],
        "seeds": [(options.seeds, name, options.pool) for name in ("auto", "float32") if options.seeds],
        "heads": [(options.heads, options.pool)] if options.heads else [],
    }
    output = options.output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    bench = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    bench["cores"], environment = os.cpu_count(), os.environ | {"COVID_XRAY_OUTPUT": str(output.parent)}
    for name in ("COVID_XRAY_DATA", "VGG16_WEIGHTS"):  # the measurements run in notebooks/
        if Path(os.environ.get(name, "")).exists() and name in os.environ:
            environment[name] = str(Path(os.environ[name]).resolve())
    for part in options.parts or plan:
        for arguments in plan[part]:
            words = list(map(str, arguments))
            command = [sys.executable, __file__, "--part", part, *words]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
            bench.setdefault(part, {})[" ".join(words)] = json.loads(done.stdout.splitlines()[-1])
            print(part, *words, done.stdout.splitlines()[-1], flush=True)
            output.write_text(json.dumps(bench, indent=1) + "\n", encoding="utf-8")
    print("", *table(bench), sep="\n")
    output.write_text(json.dumps(bench, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
