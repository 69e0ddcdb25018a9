"""Measure speed: the article's code as it stands, this project, and VGG16's own arithmetic, in one run on one machine.

    python tests/bench.py [--seeds 5]

Reads the images that the notebooks would read (COVID_XRAY_DATA, data/, or phantoms) and writes output/bench.json. Every
part runs in a process of its own, so that its peak memory is its own:
  literal  flow_from_directory from the files, batch 10, model.fit end to end (the article's `steps` arguments are left out:
           they halve its training); the faster of two epochs after one to warm up, times the article's epochs
  ours     the same cases complete, from the files to the trained head, by the notebooks' own functions
  limit    VGG16's forward pass over as many images, already in memory, at its best batch size
  growth   ours at 100, 200 and 400 phantoms
  seeds    with --seeds: test accuracy over that many seeds, ours against a new view in every epoch (the article's schedule)
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS), str(TESTS.parent / "data")]
FOUR = ["covid", "normal", "pneumonia_bac", "pneumonia_vir"]
CASES = {"binary": ("two", FOUR[:2]), "three": ("all", FOUR[:3]), "four": ("all", FOUR)}
OURS = {
    "binary": ("binary", "ARTICLE_AUGMENTATION", 8),
    "multi": ("three four", "ARTICLE_AUGMENTATION", 32),
    "multi_gentle": ("three four", "GENTLE_AUGMENTATION", 8),
}


def notebook(case):
    """The functions of the notebook that `case` belongs to, with its base loaded."""
    import conftest

    settings = {name: os.environ[name] for name in ("COVID_XRAY_DATA", "VGG16_WEIGHTS") if name in os.environ}
    path = conftest.BINARY if case == "binary" else conftest.MULTI
    nb = conftest.load(path, path.parent, **settings)
    os.chdir(path.parent)
    nb["keras"].utils.set_random_seed(nb["SEED"])
    nb["warnings"].filterwarnings("ignore")
    nb["conv_base"] = nb["load_conv_base"](nb["VGG16_WEIGHTS"])
    return nb


def measure_literal(case):
    """Seconds of one epoch of the article's code: the faster of two, after one to warm up."""
    nb = notebook(case)
    tree, names = CASES[case]
    folder, keras, ticks = nb["find_images"](tree), nb["keras"], []
    generator = nb["ImageDataGenerator"](
        rescale=1 / 255,
        validation_split=0.2,
        featurewise_center=True,
        featurewise_std_normalization=True,
        zca_whitening=True,
        **nb["ARTICLE_AUGMENTATION"],
    )
    mode = "binary" if case == "binary" else "categorical"
    options = dict(target_size=(150, 150), batch_size=10, seed=42, class_mode=mode, classes=names, shuffle=True)
    train, validation = (
        generator.flow_from_directory(folder / "train", subset=part, **options) for part in ("training", "validation")
    )
    model = keras.Sequential(
        [
            nb["conv_base"],
            keras.layers.Flatten(),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dense(
                1 if mode == "binary" else len(names), activation="sigmoid" if mode == "binary" else "softmax"
            ),
        ]
    )
    model.compile(keras.optimizers.Adam(nb["LEARNING_RATE"]), f"{mode}_crossentropy", metrics=["acc"])
    clock = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: ticks.append(time.perf_counter()))
    # One epoch to warm up, two that are timed, and one whose beginning is the end of the last.
    model.fit(train, validation_data=validation, epochs=4, verbose=0, callbacks=[clock])
    timed = np.diff(ticks)[1:].tolist()
    seconds = min(timed)  # TensorFlow at times pauses for seconds between epochs: no credit is taken for that
    return {"timed_epochs": timed, "epoch": seconds, "seconds": seconds * nb["NUM_EPOCHS"], "epochs": nb["NUM_EPOCHS"]}


def measure_ours(name):
    """Seconds of images, features and heads of one recipe, and the test accuracy of each case."""
    cases, augmentation, views = OURS[name]
    nb = notebook(cases)
    folder = nb["find_images"](CASES[cases.split()[0]][0])
    begin = time.perf_counter()
    images, labels, splits, _ = nb["load_images"](folder, CASES[cases.split()[-1]][1])
    loaded = time.perf_counter()
    learning = splits != "test"
    features = nb["extract_features"](images[learning], nb[augmentation], views)
    extracted = time.perf_counter()
    labels_learning, parts, heads, steps = labels[learning], splits[learning], {}, 0
    for case in cases.split():
        count = len(CASES[case][1])
        train, held_out = (parts == part for part in ("train", "validation"))
        train, held_out = train & (labels_learning < count), held_out & (labels_learning < count)
        model, head = nb["build_model"](count)
        validation = features[:, held_out], labels_learning[held_out]
        nb["train_head"](
            head, features[:, train], labels_learning[train], nb["LEARNING_RATE"], nb["NUM_EPOCHS"], validation
        )
        heads[case], steps = model, steps + -(-train.sum() // nb["BATCH_SIZE"]) * nb["NUM_EPOCHS"]
    done = time.perf_counter()
    accuracy = {}
    for case, model in heads.items():
        test = (splits == "test") & (labels < len(CASES[case][1]))
        accuracy[case] = nb["evaluate"](model, images[test], labels[test], CASES[case][1])[0]["accuracy"]
    return {
        "images": loaded - begin,
        "features": extracted - loaded,
        "heads": done - extracted,
        "seconds": done - begin,
        "views": views,
        "forward_passes": int(learning.sum()) * views,
        "head_step": (done - extracted) / float(steps),
        "test_accuracy": accuracy,
    }


def measure_limit(_):
    """Seconds an image of VGG16's forward pass on images in memory, by batch size, and of extraction with augmentation.

    All are timed in turn, five times over, and the medians taken: the machine's own speed changes from minute to minute.
    """
    nb = notebook("binary")
    tf, base, count = nb["tf"], nb["conv_base"], 192
    images = np.random.default_rng(0).integers(0, 256, (count, 150, 150, 3), np.uint8)
    inputs, timed = (images / 255).astype(np.float32), {}

    def forward(size):
        step = tf.function(
            lambda batch: base(batch, training=False), input_signature=[tf.TensorSpec((size, 150, 150, 3))]
        )
        return lambda: [step(tf.constant(inputs[start : start + size])).numpy() for start in range(0, count, size)]

    runs = {size: forward(size) for size in (8, 16, 32, 64)}
    runs["extraction"] = lambda: nb["extract_features"](images, nb["ARTICLE_AUGMENTATION"], 1)
    for _ in range(6):  # the first round warms up
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            timed.setdefault(name, []).append((time.perf_counter() - begin) / count)
    medians = {name: float(np.median(seconds[1:])) for name, seconds in timed.items()}
    extraction = medians.pop("extraction")
    return {"by_batch_size": medians, "best": min(medians.values()), "extraction": extraction}


def measure_growth(_):
    """Seconds from the files to the trained head at 100, 200 and 400 phantoms, and the exponent of the growth."""
    import phantoms

    nb, seconds = notebook("four"), {}
    for count in (100, 200, 400):
        with tempfile.TemporaryDirectory() as scratch:
            phantoms.write_tree(scratch, train=count // 4 - 1, test=1)
            folder = Path(scratch) / "all"
            begin = time.perf_counter()
            images, labels, splits, _ = nb["load_images"](folder, FOUR)
            features, train = nb["extract_features"](images, nb["ARTICLE_AUGMENTATION"], 2), splits == "train"
            nb["train_head"](nb["build_model"](4)[1], features[:, train], labels[train], 1e-4, 10)
            seconds[count] = time.perf_counter() - begin
    exponent = np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)[0]
    return {"seconds": seconds, "exponent": float(exponent)}


def measure_seeds(count):
    """Test accuracy over seeds: ours against a new view in every epoch.

    A pool of 100 views of every training image (16 gentle ones) is extracted once. Each seed draws its views from the
    pool, and initialises and shuffles in its own way.
    """
    nb = notebook("four")
    folder = nb["find_images"]("all")
    images, labels, splits, _ = nb["load_images"](folder, FOUR)
    train, test = splits == "train", splits == "test"
    pool = nb["extract_features"](images[train], nb["ARTICLE_AUGMENTATION"], 100)
    gentle = nb["extract_features"](images[train], nb["GENTLE_AUGMENTATION"], 16)
    plain, accuracy = nb["extract_features"](images[test], {}, 1)[0], {}
    for case, (epochs, rate, recipes) in {
        "binary": (20, 5e-4, {"fresh": 20, "ours": 8}),
        "three": (100, 1e-4, {"fresh": 100, "ours": 32, "gentle": 8}),
        "four": (100, 1e-4, {"fresh": 100, "ours": 32, "gentle": 8}),
    }.items():
        nb["BINARY"] = case == "binary"
        classes = len(CASES[case][1])
        rows, held_out = labels[train] < classes, labels[test] < classes
        for recipe, views in recipes.items():
            source, scores = gentle if recipe == "gentle" else pool, []
            for seed in range(int(count)):
                nb["SEED"] = 1000 + seed
                drawn = np.random.default_rng(seed).permutation(len(source))[:views]
                _, head = nb["build_model"](classes, nb["SEED"])
                nb["train_head"](head, source[drawn][:, rows], labels[train][rows], rate, epochs)
                predicted = nb["predict_probabilities"](head, plain[held_out]).argmax(axis=1)
                scores.append(float((predicted == labels[test][held_out]).mean()))
            accuracy.setdefault(case, {})[recipe] = {
                "views": views,
                "mean": np.mean(scores),
                "sd": np.std(scores, ddof=1),
                "scores": scores,
            }
            print(case, recipe, accuracy[case][recipe], file=sys.stderr, flush=True)
    return accuracy


def part(name, argument):
    """Run one measurement in a process of its own; returns its figures with its peak memory in GiB."""
    done = subprocess.run(
        [sys.executable, __file__, "--part", name, str(argument)], stdout=subprocess.PIPE, text=True, check=True
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    print(f"{name} {argument}: {json.dumps(figures)}", flush=True)
    return figures


def table(bench):
    """The lines of the one table, from all figures; adds the ratios to bench["ours"]."""
    limit = bench["limit"]
    yield (
        f"{'':14}{'literal s':>10}{'ours s':>8}{'literal/ours':>14}{'ours/limit':>12}{'head step ms':>14}{'peak GiB':>10}"
        "  test accuracy of this run, and over seeds (new views every epoch)"
    )
    for name, ours in bench["ours"].items():
        cases = OURS[name][0].split()
        literal = sum(bench["literal"][case]["seconds"] for case in cases)
        ours["literal_over_ours"] = literal / ours["seconds"]
        ours["ours_over_limit"] = ours["seconds"] / (ours["forward_passes"] * limit["best"])
        accuracy = []
        for case in cases:
            accuracy.append(f"{case} {ours['test_accuracy'][case]:.3f}")
            if "seeds" in bench:
                seeds = bench["seeds"][case]
                kinds = seeds["gentle" if "gentle" in name else "ours"], seeds["fresh"]
                accuracy.append("{:.3f} ± {:.3f} ({:.3f} ± {:.3f})".format(*(x[k] for x in kinds for k in ("mean", "sd"))))
        yield (
            f"{name:14}{literal:10.0f}{ours['seconds']:8.0f}{ours['literal_over_ours']:14.1f}{ours['ours_over_limit']:12.2f}"
            f"{1000 * ours['head_step']:14.1f}{ours['peak_gib']:10.2f}  {', '.join(accuracy)}"
        )
    yield (
        f"VGG16 {1000 * limit['best']:.1f} ms an image at best; extraction with augmentation {1000 * limit['extraction']:.1f} ms, "
        f"{limit['best'] / limit['extraction']:.0%} of the limit; growth exponent {bench['growth']['exponent']:.2f}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=0)
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        name, argument = options.part
        figures = globals()[f"measure_{name}"](argument)
        figures["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print("\n" + json.dumps(figures))
        return
    output = Path(os.environ.get("COVID_XRAY_OUTPUT", TESTS.parent / "output"))
    output.mkdir(parents=True, exist_ok=True)
    bench = {"cores": os.cpu_count(), "literal": {}, "ours": {}}

    def measure(into, key, name, argument):
        into[key] = part(name, argument)
        (output / "bench.json").write_text(json.dumps(bench, indent=1) + "\n")

    measure(bench, "limit", "limit", "")
    for case in CASES:
        measure(bench["literal"], case, "literal", case)
    for name in OURS:
        measure(bench["ours"], name, "ours", name)
    measure(bench, "growth", "growth", "")
    if options.seeds:
        measure(bench, "seeds", "seeds", options.seeds)
    print("", *table(bench), sep="\n")
    (output / "bench.json").write_text(json.dumps(bench, indent=1) + "\n")


if __name__ == "__main__":
    main()
