"""Measure how far chance moves the lessons' numbers, and the numbers of their exercises.

    python tests/chance.py [--parts seeds epochs heads exercises precision] [--seeds 5] [--heads 60]

Reads the images that the lessons would read, and runs the lessons' own cells. Each part is saved as it
comes to output/chance.json, where parts of earlier runs stay; views are kept in output/views.
  seeds      every comparison of the lessons, with other weights, orders, views, and folds, and the
             article's augmentation with 32 and 100 views
  epochs     cross-validated after 100 to 500 epochs, one run that goes on
  heads      what many binary heads, each on its own views, predict for the controls
  exercises  the numbers in the folded answers of both lessons
  precision  bfloat16 against float32, at a fifth of Multi's epochs
A seed draws its views from one pool of 100, so that different numbers of views are of one kind.
"""

import argparse
import json
import os
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "notebooks"), str(ROOT / "tests")]

import xray  # noqa: E402
import xray_data  # noqa: E402
from lessons import BINARY, MULTI, run_cells  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402
from sklearn.model_selection import StratifiedKFold, cross_val_predict  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from xray import keras  # noqa: E402

POOL = int(os.environ.get("CHANCE_POOL", 100))
FIRST_SEED = 1000


class Pool:
    """Everything that the parts share: images, features, and the lessons' functions as `binary`, `multi`."""

    def __init__(self, precision="auto", views=POOL):
        self.run = xray.start("pool", 42, precision, Path(os.environ["COVID_XRAY_OUTPUT"]))
        shared = ("imports", "imports-libraries", "settings", "augmentation")
        self.binary = run_cells(BINARY, *shared)
        self.multi = run_cells(MULTI, *shared, "gentle")
        kinds = {"article": "train", "gentle": "gentle", "none": "test"}
        self.datagens = {recipe: self.multi[f"{kind}_datagen"] for recipe, kind in kinds.items()}
        self.folder = xray_data.find_images("all")
        self.images, self.table = xray_data.load_images(self.folder)
        self.labels, self.patients = (self.table[name].to_numpy() for name in ("label", "patient"))
        options = {"include_top": False, "input_shape": (150, 150, 3)}
        self.conv_base = keras.applications.VGG16(weights=xray.find_weights(), **options)
        counts = {"article": views, "gentle": max(8, views // 4), "none": 1}
        self.views = {name: self.extract(self.images, name, count) for name, count in counts.items()}
        (self.plain,) = self.views["none"]
        given = {
            "table": self.table, "images": self.images, "labels": self.labels, "patients": self.patients,
            "conv_base": self.conv_base, "plain_features": self.plain, "run": self.run,
        }  # fmt: skip
        names = list(xray_data.LABELS)
        given["CASES"] = {"two": names[:2], "three": names[:3], "four": names}
        given["LARGEST"] = "four"
        cells = ("select", "head", "train-head", "patient-folds", "black-out")
        self.multi = run_cells(MULTI, *cells, **self.multi | given)
        cells = ("head", "train-head", "patient-folds", "black-out", "cross-validate", "score-controls")
        given["CLASS_NAMES"], given["head"] = names[:2], None
        controls, features = {}, {}
        for name, kind in (("no_finding", "nih_no_finding"), ("controls", "controls")):
            controls[name] = xray_data.find_controls(self.folder.parent, kind)
            (features[name],) = self.extract(self.read(controls[name]))
        given["controls"], given["control_features"] = {}, features  # with none, the cell scores nothing
        self.binary = run_cells(BINARY, *cells, **self.binary | given)
        self.binary["controls"] = controls
        self.controls, self.control_features = controls, features

    def read(self, table):
        """Decode the images of a table."""
        return xray_data.read_images(table["file"], 150)

    def extract(self, images, recipe="none", views=1):
        """Return the features of some views."""
        return xray.extract_features(self.conv_base, self.datagens[recipe], images, views, self.run)

    def draw(self, recipe, count, seed):
        """Return `count` views of the pool, drawn with `seed`."""
        pool = self.views[recipe]
        return [pool[number] for number in np.random.default_rng(seed).permutation(len(pool))[:count]]

    def seed(self, seed):
        """Let the lessons' functions use this seed."""
        self.binary["SEED"] = self.multi["SEED"] = seed

    def rows(self, split, case):
        """Return the row numbers of a split's images in a case: two, three, four."""
        return self.multi["select"](split, case)

    def train(self, case, views, train):
        """Return a new head, trained as the case's lesson does."""
        if case == "two":
            return self.binary["train_head"](views, self.labels, train, self.binary["SEED"])
        return self.multi["train_head"](case, views, train)[0]

    def cross_validate(self, views, plain=None):
        """Return the four-class probabilities of held-out images, and their accuracy on eight views of them."""
        plain = self.plain if plain is None else plain
        guesses, on_views = np.zeros((len(self.labels), 4)), np.zeros(len(self.labels))
        for train, out in self.multi["patient_folds"](self.labels, self.patients):
            head = self.train("four", views, train)
            guesses[out] = xray.predict_probabilities(head, plain[out])
            for view in views[:8]:
                right = xray.predict_probabilities(head, view[out]).argmax(axis=1) == self.labels[out]
                on_views[out] += right / len(views[:8])
        return guesses, float(on_views.mean())

    def accuracy(self, guesses, labels=None):
        """Return the share of guesses that are right."""
        return float((guesses.argmax(axis=1) == (self.labels if labels is None else labels)).mean())

    def test(self, head, case):
        """Return the accuracy of a head on the test images of a case."""
        rows = self.rows("test", case)
        return self.accuracy(xray.predict_probabilities(head, self.plain[rows]), self.labels[rows])

    def logistic(self, folds, strength=0.01):
        """Return how many images a cross-validated logistic regression gets right."""
        model = make_pipeline(
            self.multi["StandardScaler"](), self.multi["LogisticRegression"](C=strength, max_iter=1000)
        )
        pooled = self.plain.mean(axis=(1, 2), dtype=float)
        return int((cross_val_predict(model, pooled, self.labels, cv=folds) == self.labels).sum())

    def tasks(self):
        """Return the tasks of like for like, as the lesson's cells make them."""
        two = np.flatnonzero(self.labels < 2)
        (frames,) = self.extract(self.binary["black_out"](self.images[two], 0.9))
        given = {
            "labels": self.labels[two], "patients": self.patients[two], "plain_features": self.plain[two],
            "hidden_features": {0.9: frames}, "IMAGE_SIZE": 150, "test_datagen": self.multi["test_datagen"],
        }  # fmt: skip
        return run_cells(BINARY, "tasks", "tasks-controls", **self.binary | given)["tasks"]


def measure_seeds(pool, options):
    """Every comparison of the lessons over seeds."""
    found, tasks, names = defaultdict(list), pool.tasks(), np.array(list(xray_data.LABELS))
    for seed in seeds(options):
        pool.seed(seed)
        drawn = {name: pool.draw(name, 1 if name == "none" else 8, seed) for name in pool.views}
        for name, views in drawn.items():
            for case in ("two", "three", "four"):
                head = pool.train(case, views, pool.rows("train", case))
                found[f"test, {case}, {name}"].append(pool.test(head, case))
            for group, table in pool.controls.items():  # by the four-class head
                guesses = xray.predict_probabilities(head, pool.control_features[group]).argmax(axis=1)
                scored = xray.score_controls(table, names[guesses], xray_data.RIGHT_ANSWERS)
                found[f"{group}, predicted COVID-19, {name}"].append(scored["predicted_covid"])
                found[f"{group}, right, {name}"].append(scored["with_right_answer"]["correct"])
            guesses, on_views = pool.cross_validate(views)
            found[f"cross-validated, {name}"].append(pool.accuracy(guesses))
            found[f"cross-validated, {name}, on views"].append(on_views)
        for count in (32, POOL):  # 8 views are "article"
            views = pool.draw("article", count, seed)
            for case in ("three", "four"):
                head = pool.train(case, views, pool.rows("train", case))
                found[f"test, {case}, {count} views"].append(pool.test(head, case))
            guesses, _ = pool.cross_validate(views)
            found[f"cross-validated, {count} views"].append(pool.accuracy(guesses))
        folds = pool.multi["patient_folds"](pool.labels, pool.patients)
        found["cross-validated, logistic"].append(pool.logistic(folds) / len(pool.labels))
        for name, (features, truth, people) in tasks.items():
            pool.binary["train_head"].__defaults__ = (seed,)
            guesses = pool.binary["cross_validate"](features, truth, people)
            found[f"{name}, accuracy"].append(pool.accuracy(guesses, truth))
            found[f"{name}, area"].append(roc_auc_score(truth == 0, guesses[:, 0]))
    found["same_collection, larger class"] = [float(np.bincount(tasks["same_collection"][1]).max() / len(truth))]
    return summarize(found)


def measure_epochs(pool, options):
    """Cross-validated images right, of all, after more epochs than the article's 100, with the lessons' seed."""
    found, multi = {}, pool.multi
    pool.seed(42)
    plan = [("article", 8, (100, 300, 500)), ("article", 32, (100, 500)), ("gentle", 8, (100, 300))]
    for name, views, counts in plan:
        for epochs in counts:
            right, fitted = 0, []
            multi["NUM_EPOCHS"] = epochs
            for train, out in multi["patient_folds"](pool.labels, pool.patients):
                head, history = multi["train_head"]("four", pool.views[name][:views], train)
                guesses = xray.predict_probabilities(head, pool.plain[out]).argmax(axis=1)
                right += int((guesses == pool.labels[out]).sum())
                fitted.append(history["acc"].iloc[-1])
            found[f"{name}, {views} views, {epochs} epochs"] = {
                "right": right,
                "training_accuracy": float(np.mean(fitted)),
            }
    multi["NUM_EPOCHS"] = 100
    return found


def measure_heads(pool, options):
    """What many binary heads predict: each has its own views, order of images, and weights."""
    found = defaultdict(list)
    for seed in range(options.heads):
        pool.seed(seed)
        head = pool.train("two", pool.draw("article", 8, seed), pool.rows("train", "two"))
        found["test"].append(pool.test(head, "two"))
        for name in pool.controls:
            found[name].append(pool.binary["score_controls"](head, name)["predicted_covid"])
    return summarize(found)


def measure_exercises(pool, options):
    """The numbers in the folded answers of the exercises."""
    found, binary = {}, pool.binary
    pool.seed(42)
    binary["train_head"].__defaults__ = (42,)
    images, table = xray_data.load_images(xray_data.find_images("two"), class_names=list(xray_data.LABELS)[:2])
    labels, patients = (table[name].to_numpy() for name in ("label", "patient"))
    train, test = (np.flatnonzero(table["split"] == split) for split in ("train", "test"))
    views, (plain,) = pool.extract(images, "article", binary["VIEWS_PER_IMAGE"]), pool.extract(images)

    def right(head, features, truth):
        return int((xray.predict_probabilities(head, features).argmax(axis=1) == truth).sum())

    for epochs in (2, 5, 20):
        binary["NUM_EPOCHS"] = epochs
        head = binary["train_head"](views, labels, train)
        found[f"{epochs} epochs, test"] = right(head, plain[test], labels[test])
        for name in pool.controls:
            found[f"{epochs} epochs, {name}"] = binary["score_controls"](head, name)["predicted_covid"]
    for share in (0.95, 0.98, 1):
        (features,) = pool.extract(binary["black_out"](images, share))
        head = binary["train_head"]([features], labels, train)
        found[f"{share} black, test"] = right(head, features[test], labels[test])
    kept = train[~np.isin(patients[train], patients[test])]
    found["shared patients, training images"] = len(train) - len(kept)
    found["without shared patients, test"] = right(binary["train_head"](views, labels, kept), plain[test], labels[test])
    groups = {"COVID-19": plain[labels == 0], "children": plain[labels == 1], **pool.control_features}
    people = [patients[labels == 0], patients[labels == 1], *(table["patient"] for table in pool.controls.values())]
    everyone, kinds = np.concatenate(list(groups.values())), np.repeat(list(groups), [len(g) for g in groups.values()])
    truth = (kinds != "COVID-19").astype(int)
    guesses = binary["cross_validate"](everyone, truth, np.concatenate(people)).argmax(axis=1) == truth
    found |= {f"remedy, {kind}": [int(guesses[kinds == kind].sum()), int((kinds == kind).sum())] for kind in groups}

    weights = pool.conv_base.get_weights()
    keras.utils.set_random_seed(42)
    blank = keras.applications.VGG16(weights=None, include_top=False, input_shape=(150, 150, 3))
    prepared = xray.ImageDataGenerator(preprocessing_function=keras.applications.vgg16.preprocess_input)
    for name, base, datagen in (
        ("random weights", blank, pool.multi["test_datagen"]),
        ("preprocess_input", pool.conv_base, prepared),
    ):
        (features,) = xray.extract_features(base, datagen, images, 1, pool.run)
        head = binary["train_head"]([features], labels, train)
        found[f"{name}, test"] = right(head, features[test], labels[test])
        guesses = binary["cross_validate"](features, labels, patients)
        found[f"{name}, children"] = int((guesses.argmax(axis=1) == labels).sum())
        (features,) = xray.extract_features(base, datagen, pool.images, 1, pool.run)
        guesses, _ = pool.cross_validate([features], features)
        found[f"{name}, four"] = int((guesses.argmax(axis=1) == pool.labels).sum())
    assert all(np.array_equal(one, other) for one, other in zip(weights, pool.conv_base.get_weights()))

    rate, epochs = pool.multi["LEARNING_RATE"], pool.multi["NUM_EPOCHS"]
    pool.multi["LEARNING_RATE"], pool.multi["NUM_EPOCHS"] = 5e-4, 20
    guesses, _ = pool.cross_validate([pool.plain])
    found["none, 20 epochs at 5e-4"] = int((guesses.argmax(axis=1) == pool.labels).sum())
    pool.multi["LEARNING_RATE"], pool.multi["NUM_EPOCHS"] = rate, epochs
    folds = pool.multi["patient_folds"](pool.labels, pool.patients)
    found["logistic, folds that ignore patients"] = pool.logistic(StratifiedKFold(5, shuffle=True, random_state=42))
    for strength in (0.0001, 0.001, 0.01, 0.1, 1):
        found[f"logistic, C = {strength}"] = pool.logistic(folds, strength)
    return found


def measure_precision(_, options):
    """Test and cross-validated accuracy in bfloat16 and float32, at 20 epochs."""
    results = {}
    for precision in ("bfloat16", "float32"):
        pool, found = Pool(precision, 8), defaultdict(list)
        pool.multi["NUM_EPOCHS"] = 20
        for seed in seeds(options):
            pool.seed(seed)
            for name, views in pool.views.items():
                for case in ("two", "three", "four"):
                    head = pool.train(case, views[:8], pool.rows("train", case))
                    found[f"test, {case}, {name}"].append(pool.test(head, case))
                guesses, _ = pool.cross_validate(views[:8])
                found[f"cross-validated, {name}"].append(pool.accuracy(guesses))
        results[precision] = summarize(found)
    return results


def seeds(options):
    """Return the seeds of a part: five that are not the lessons' 42."""
    return range(FIRST_SEED, FIRST_SEED + options.seeds)


def summarize(found):
    """Return mean, standard deviation, and values of each list of values."""
    facts = {}
    for name, values in found.items():
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        facts[name] = {"mean": float(np.mean(values)), "sd": spread, "values": values}
    return facts


def main():
    """Measure part by part, and save each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("seeds", "epochs", "heads", "exercises", "precision")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--heads", type=int, default=60)
    options = parser.parse_args()
    output = Path(os.environ.get("COVID_XRAY_OUTPUT") or ROOT / "output").resolve()
    os.environ["COVID_XRAY_OUTPUT"] = str(output)
    os.chdir(ROOT / "notebooks")
    path, pool = output / "chance.json", None if options.parts == ["precision"] else Pool()
    for part in options.parts:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        found[part] = globals()[f"measure_{part}"](pool, options)
        path.write_text(json.dumps(found, indent=1, default=xray.as_plain) + "\n", encoding="utf-8")
        print(part, "is saved in", path, flush=True)


if __name__ == "__main__":
    main()
