"""The lessons' own cells on a small world in which every mistake shows; and mistakes that the checks must notice.

The world: images whose center has a color for each class, in a frame that all of them share. So a head knows
everything of an image as it is, and nothing of one whose center is black. A small network stands in for VGG16.
Each lesson runs once. A check runs some of its cells again on the variables of then, and looks at what they find. A
mistake changes one of these variables, or a function of the toolbox, before a cell: so a cell may be worded otherwise.
"""

import contextlib
import functools
import io
import types
from unittest.mock import Mock

import cv2
import keras
import lessons
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xray
import xray_data
from conftest import BINARY, MULTI
from keras import layers

FOUR = list(xray_data.LABELS)
COLORS = dict(zip(FOUR, [(200, 60, 60), (60, 200, 60), (60, 60, 200), (60, 200, 200)]))  # viral is normal to Binary
SIZE, FRAME = 40, 120
RATE, EPOCHS = 5e-3, 6
SETTINGS = {"IMAGE_SIZE": SIZE, "LEARNING_RATE": RATE, "NUM_EPOCHS": EPOCHS}
SETTINGS_MULTI = {"VIEWS_PER_IMAGE": 2, "FINE_TUNE_EPOCHS": 2, "FINE_TUNE_LEARNING_RATE": 1e-3}


# --------------------------------------------------------------------------------------- a small world


def write_world(folder):
    """Write the images: of each class, ten of five patients to train on, and six to test, one of a training patient.

    Controls: bacterial pneumonia looks like COVID-19, viral like itself, other diseases and no finding like normal.
    """
    rng, listed = np.random.default_rng(0), {"two": [], "all": []}

    def write(path, kind):
        image = np.full((SIZE, SIZE, 3), FRAME, np.uint8)
        image[10:30, 10:30] = COLORS[kind] + rng.integers(-9, 10, (20, 20, 3))
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image[..., ::-1])

    people = {"train": np.repeat(np.arange(5), 2), "test": [2, 5, 5, 6, 7, 8]}
    for kind in FOUR:
        for split, numbers in people.items():
            for index, number in enumerate(numbers):
                for tree in ("two", "all") if kind in FOUR[:2] else ("all",):
                    name = f"{split}/{kind}/{index:02d}.png"
                    listed[tree].append(f"{name},{kind}-{number}")
                    write(folder / tree / name, kind)
    for tree, rows in listed.items():
        (folder / tree / "patients.csv").write_text("\n".join(["file,patient", *rows]), encoding="utf-8")
    (folder / "PHANTOMS.txt").write_text("drawn", encoding="utf-8")
    groups = {"controls": 3 * ["bacterial pneumonia", "viral pneumonia"] + 2 * ["other or unspecified"]}
    groups["nih_no_finding"] = 6 * ["no finding"]
    looks = {"bacterial pneumonia": "covid", "viral pneumonia": "pneumonia_vir"}
    for kind, found in groups.items():
        rows = ["filename,group,patient"]
        for index, group in enumerate(found):
            write(folder / kind / f"{index}.png", looks.get(group, "normal"))
            rows.append(f"{index}.png,{group},{kind}-{index}")
        (folder / kind / f"{kind}.csv").write_text("\n".join(rows), encoding="utf-8")


def small_vgg16(**_):
    """A network that averages 4 x 4 pixels, with the names of two of VGG16's layers."""
    inputs = keras.Input((SIZE, SIZE, 3))
    convolution = layers.Conv2D(8, 2, strides=2, activation="relu", name="block5_conv3")
    base = keras.Model(inputs, layers.AveragePooling2D(2, name="block5_pool")(convolution(inputs)))
    base.set_weights([np.tile(np.eye(3, 8) / 4, (2, 2, 1, 1)), np.zeros(8)])
    return base


class Lesson:
    """A lesson that has run in the world, up to a cell; `again` runs some of its cells, and of those after it."""

    def __init__(self, notebook, settings, last):
        self.notebook, self.before, self.names = notebook, {}, list(lessons.sources(notebook, "code"))
        with contextlib.redirect_stdout(io.StringIO()):
            self.end = lessons.run_lesson(notebook, settings | {"VGG16": small_vgg16}, last, self.keep)
        self.keep(self.names[self.names.index(last) + 1], self.end)
        plt.close("all")
        self.mistake = None

    def keep(self, name, variables):
        self.before[name] = dict(variables)

    def again(self, first, last, **given):
        """Run the cells from `first` to `last` on the variables that `first` met, and `given`; return all."""
        variables = self.before[first] | {"run": Mock()} | given
        for name, value in variables.items():
            if getattr(value, "__globals__", None) is self.end:  # a cell's function: let it read these
                variables[name] = types.FunctionType(value.__code__, variables, name, value.__defaults__)
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
            for name in self.names[self.names.index(first) : self.names.index(last) + 1]:
                if self.mistake and self.mistake[0] == name:
                    self.mistake[1](variables, patch)
                    self.mistake = None
                lessons.run_cell(self.notebook, name, variables)
        plt.close("all")
        return variables

    def records(self, first, last, **given):
        """The same; return what is recorded, by its path."""
        return dict(call.args for call in self.again(first, last, **given)["run"].record.call_args_list)

    def telling(self, numbers):
        """Features that tell a number below 80 each, and nothing else."""
        features = np.zeros((len(numbers), *self.end["conv_base"].output_shape[1:]), np.float32)
        for row, number in enumerate(numbers):
            features[row, number // 8, :, number % 8] = 3
        return features


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Both lessons, run once."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder / "images")
    matplotlib.use("Agg")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CI", "1")
        patch.setenv("COVID_XRAY_DATA", str(folder / "images"))
        patch.setenv("COVID_XRAY_OUTPUT", str(folder / "output"))
        patch.chdir(folder)
        patch.setattr(xray, "Run", Mock())
        patch.setattr(xray, "bootstrap_interval", functools.partial(xray.bootstrap_interval, draws=50))
        yield {
            "binary": Lesson(BINARY, SETTINGS, "tasks"),
            "multi": Lesson(MULTI, SETTINGS | SETTINGS_MULTI, "controls"),
        }


def patients_alone(classes):
    """Labels that each patient of three images has by chance; patients, and numbers that tell the patient alone."""
    rng = np.random.default_rng(1)
    patient = rng.permutation(np.repeat(np.arange(40), 3))
    return rng.permutation(np.arange(40) % classes)[patient], np.array([f"p{number}" for number in patient]), patient


# ------------------------------------------------------------------------------------------ the checks


def binary_frozen_base(lesson):
    """Only the head trains, at the rate of the settings."""
    model = lesson.again("model", "compile")["model"]
    assert len(model.trainable_weights) == 4 and model.optimizer.learning_rate.numpy() == pytest.approx(RATE)


def binary_test_set(lesson):
    """All test images are scored, and no others; the second column is the probability of normal."""
    test = lesson.records("predict", "record")["cases.binary"]["test"]
    assert (test["n"], test["patients"], test["correct"]) == (12, 10, 12)
    assert test["confusion"] == [[6, 0], [0, 6]] and test["auc"] == 1


def binary_features(lesson):
    """Features are of the X-rays as they are, in the order of the table."""
    variables = lesson.again("features", "features")
    images = [cv2.imread(str(variables["DATASET"] / file))[..., ::-1] / 255 for file in variables["table"]["file"]]
    expected = variables["conv_base"].predict(np.stack(images), verbose=0)
    np.testing.assert_allclose(variables["features"], expected, atol=1e-5)


def binary_training_rows(lesson):
    """Features that tell the row alone: the first head knows those that it may train on, and no other."""
    labels, split = (lesson.end["table"][column].to_numpy() for column in ("label", "split"))
    features = lesson.telling(range(len(labels)))
    head = lesson.again("head", "head-fit", features=features, NUM_EPOCHS=30)["head"]
    assert_knows_training_rows(head, features, labels, split == "train", np.full(len(labels), True))
    assert head.optimizer.learning_rate.numpy() == pytest.approx(RATE)


def assert_knows_training_rows(head, features, labels, train, counted):
    """A head knows the labels of all training rows, and guesses those of the others."""
    right = xray.predict_probabilities(head, features).argmax(axis=1) == labels
    assert right[train].all() and right[counted & ~train].mean() <= 0.7


def binary_blackout(lesson):
    """Without the center, nothing is left to know."""
    scores = lesson.records("blackout", "blackout")["trust.blackout.binary"]["by_share"]
    assert {share: scored["correct"] for share, scored in scores.items()} == {0: 12, 0.5: 6, 0.7: 6, 0.9: 6}


def binary_swap(lesson):
    """In this world the answer follows the center; only patients who are not in training take part."""
    swap = lesson.records("swap-center", "swap-run")["trust.swap"]
    expected = {"COVID-19 frame, normal center": (25, 0), "normal frame, COVID-19 center": (25, 25)}
    expected |= {"normal in normal": (20, 0), "COVID-19 in COVID-19": (20, 20)}
    for share in (0.5, 0.7, 0.9):
        for key in ("article", "plain"):
            assert {name: (row["n"], row[key]) for name, row in swap[share].items()} == expected, share


def binary_held_out_patients(lesson):
    """Features that tell patients alone, labels by chance: of a patient that it has not seen, a head knows nothing."""
    labels, patients, numbers = patients_alone(2)
    tasks = {"children": (lesson.telling(numbers), labels, patients)}
    scored = lesson.records("like-for-like", "like-for-like", tasks=tasks)["trust.like_for_like"]["children"]
    assert 0.25 <= scored["accuracy"] <= 0.75


def binary_like_for_like(lesson):
    """COVID-19 against the NIH's, as it is and black: what the center says of it."""
    tasks = lesson.records("tasks", "like-for-like")["trust.like_for_like"]
    for name, low, high in (("nih", 1, 1), ("nih_blackout", 0, 0.8)):
        assert (tasks[name]["n"], tasks[name]["patients"]) == (22, 15), name
        assert low <= tasks[name]["accuracy"] <= high, f"{name}: {tasks[name]['accuracy']}"


def opposed(lesson, views, plain):
    """Variables of Multi in which views tell one class, and X-rays as they are another."""
    labels = lesson.end["labels"]
    views, plain = lesson.telling((labels + views) % 4), lesson.telling((labels + plain) % 4)
    recipes = {"article": [views] * 2, "gentle": [views] * 2, "none": [plain]}
    return {"views": [views] * 2, "plain_features": plain, "recipe_views": recipes}


def multi_training(lesson):
    """Views that tell the row alone: the head knows those that it may train on, and no other."""
    labels, split = (lesson.end["table"][column].to_numpy() for column in ("label", "split"))
    views = lesson.telling(range(len(labels)))
    given = {"views": [views] * 2, "plain_features": np.zeros_like(views), "CASES": {"three": FOUR[:3]}}
    head = lesson.again("fit", "fit", NUM_EPOCHS=15, **given)["heads"]["three", "article"]
    assert_knows_training_rows(head, views, labels, (split == "train") & (labels < 3), labels < 3)
    assert head.optimizer.learning_rate.numpy() == pytest.approx(RATE)


def multi_test_set(lesson):
    """The test images of each case are scored, and no others, as they are."""

    def told(features):  # in place of a head: the class that `telling` put into them
        return np.asarray(features)[:, 0, 0, :4] / 3

    names = {"article": "", "fine_tuned": "_fine_tuned", "gentle": "_gentle", "none": "_none"}
    heads = {(case, name): told for case in ("three", "four") for name in names}
    records = lesson.records("score-head", "test-augmentations", **opposed(lesson, 1, 0), heads=heads)
    for case, n in (("three", 18), ("four", 24)):
        for name in names.values():
            scored = records[f"cases.{case}{name}"]["test"]
            assert (scored["n"], scored["correct"]) == (n, n), name


def multi_fine_tuning(lesson):
    """Fine-tuning goes on from a copy of the article's head at its own rate, and leaves that head as it is."""
    head = lesson.before["fine-tuning"]["heads"]["three", "article"]
    before = [weights.copy() for weights in head.get_weights()]
    given = {"heads": {("three", "article"): head}, "CASES": {"three": FOUR[:3]}}
    tuned = lesson.again("fine-tuning", "fine-tuning", **given)["heads"]["three", "fine_tuned"]
    for old, kept, new in zip(before, head.get_weights(), tuned.get_weights()):
        np.testing.assert_array_equal(old, kept)
        assert 0 < np.abs(new - old).max() < 0.05
    assert tuned.optimizer.learning_rate.numpy() == pytest.approx(SETTINGS_MULTI["FINE_TUNE_LEARNING_RATE"])


def multi_cross_validation(lesson):
    """Heads of views are wrong on held-out X-rays as they are, and right on views."""
    records = lesson.records("folds", "cross-validated", **opposed(lesson, 0, 1))
    for key, accuracy in (("four", 0), ("four_gentle", 0), ("four_none", 1), ("four_logistic", 1)):
        scored = records[f"trust.grouped_cv.{key}"]
        assert (scored["n"], scored["accuracy"]) == (64, accuracy), key
        assert scored.get("mean_on_views", 1) == pytest.approx(1), key


def multi_held_out_patients(lesson):
    """Features that tell patients alone: neither a head nor the baseline knows a patient that it has not seen."""
    labels, patients, numbers = patients_alone(4)
    features = lesson.telling(numbers)
    given = {"labels": labels, "patients": patients, "plain_features": features}
    given["recipe_views"] = {"article": [features]}
    given["table"] = pd.DataFrame({"class": [FOUR[label] for label in labels], "split": "train"})
    records = lesson.records("folds", "cross-validated", **given)
    for name in ("four", "four_logistic"):
        assert 0.05 <= records[f"trust.grouped_cv.{name}"]["accuracy"] <= 0.5, name


def multi_controls(lesson):
    """Each group meets the heads of the largest case as it is; answers belong to their images."""
    records = lesson.records("controls", "score-controls")
    for recipe in ("", "_gentle", "_none"):
        nih, others = records[f"trust.no_finding{recipe}"], records[f"trust.controls{recipe}"]
        assert (nih["n"], nih["predicted_covid"], nih["with_right_answer"]["correct"]) == (6, 0, 6)
        assert (others["n"], others["predicted_covid"], others["with_right_answer"]["n"]) == (8, 3, 6)
    assert others["with_right_answer"]["correct"] == 3  # of the head that knows X-rays as they are


# --------------------------------------------------------------------------------------- the mistakes


def variables(**changes):
    """A mistake in the lesson's variables: each becomes what a function of all of them returns."""
    return lambda given, patch: given.update({name: change(given) for name, change in changes.items()})


def toolbox(name, make, module=xray):
    """A mistake in a function of the toolbox: `make` returns another one in place of the real one."""
    return lambda given, patch: patch.setattr(module, name, make(getattr(module, name)))


def all_rows(given):
    return np.arange(len(given["labels"]))


def shifted(real):
    return lambda *given: real(*given).assign(answer=lambda table: np.roll(table["answer"], 1))


SEEN = toolbox("black_out", lambda real: lambda image, share: image)
AUGMENTED = variables(plain_features=lambda given: given["views"][0])
MISTAKES = [  # what is wrong, the check that fails, the cell before which it happens, and how
    ("the base trains", binary_frozen_base, "compile",
     lambda given, patch: setattr(given["conv_base"], "trainable", True)),
    ("the other column", binary_test_set, "record", variables(p_normal=lambda given: 1 - given["p_normal"])),
    ("views for X-rays", binary_features, "features", variables(test_datagen=lambda given: given["train_datagen"])),
    ("the test set trains", binary_training_rows, "head-fit", variables(train=all_rows)),
    ("nothing is black", binary_blackout, "blackout", SEEN),
    ("training patients take part", binary_swap, "swap-center", variables(patients=all_rows)),
    ("folds by image", binary_held_out_patients, "like-for-like",
     toolbox("patient_folds", lambda real: lambda y, patients, seed: real(y, np.arange(len(y)), seed))),
    ("controls are not black", binary_like_for_like, "tasks", SEEN),
    ("the test set trains", multi_training, "fit",
     variables(table=lambda given: given["table"].assign(split=given["table"]["split"].replace("test", "train")))),
    ("views for X-rays", multi_test_set, "score-head", AUGMENTED),
    ("the article's rate", multi_fine_tuning, "fine-tuning",
     variables(FINE_TUNE_LEARNING_RATE=lambda given: given["LEARNING_RATE"])),
    ("views for X-rays", multi_cross_validation, "cross-validation", AUGMENTED),
    ("held-out rows train", multi_held_out_patients, "folds",
     toolbox("patient_folds", lambda real: lambda *given: [(np.append(a, b), b) for a, b in real(*given)])),
    ("answers shifted", multi_controls, "controls", toolbox("find_controls", shifted, xray_data)),
]  # fmt: skip


@pytest.mark.parametrize("check, cell, change", [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
def test_mistakes_fail(check, cell, change, world):
    """Each check passes on the lesson as it is, and fails on one with the mistake that it is there for."""
    lesson = world[check.__name__.split("_")[0]]
    check(lesson)
    lesson.mistake = cell, change
    try:
        with pytest.raises(AssertionError):
            check(lesson)
        assert lesson.mistake is None, f"cell {cell} has not run"
    finally:
        lesson.mistake = None
        lesson.end["conv_base"].trainable = False
