"""The lessons' own cells on a small world in which every mistake shows; and a mistake for every check, which must fail.

The world: images whose center has a color for each class, in a frame that all of them share. So a head knows
everything of an image as it is, and nothing of one whose center is black. A small network stands in for VGG16.
Each lesson runs once. A check runs some of its cells again on the variables of then, and a mistake changes one of
these variables, or a function of the toolbox, before a cell: so a cell may be worded in another way.
"""

import contextlib
import functools
import inspect
import io
import types
from types import SimpleNamespace

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
COLORS = dict(
    zip(FOUR, [(200, 60, 60), (60, 200, 60), (60, 60, 200), (60, 200, 200)])
)  # a viral one is normal to Binary
SIZE, FRAME = 40, 120
RATE, EPOCHS = 5e-3, 6
SETTINGS = {"IMAGE_SIZE": SIZE, "LEARNING_RATE": RATE, "NUM_EPOCHS": EPOCHS}
SETTINGS_MULTI = {"VIEWS_PER_IMAGE": 2, "FINE_TUNE_EPOCHS": 2, "FINE_TUNE_LEARNING_RATE": 1e-3}


# --------------------------------------------------------------------------------------- a small world


class Record:
    """In place of a Run: keeps what is recorded, and closes figures."""

    def __init__(self):
        self.records = {}

    def record(self, path, value):
        self.records[path] = value

    def show(self, figure, name, alt):
        assert name and alt
        plt.close(figure)

    def conclude(self, *sentences):
        assert all(sentences)


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
    """A frozen network that averages 4 x 4 pixels, with the names of two of VGG16's layers."""
    inputs = keras.Input((SIZE, SIZE, 3))
    convolution = layers.Conv2D(8, 2, strides=2, activation="relu", name="block5_conv3")
    base = keras.Model(inputs, layers.AveragePooling2D(2, name="block5_pool")(convolution(inputs)))
    base.set_weights([np.tile(np.eye(3, 8) / 4, (2, 2, 1, 1)), np.zeros(8)])
    base.trainable = False
    return base


class Lesson:
    """A lesson that has run once in the world; `again` runs some of its cells once more."""

    def __init__(self, notebook, settings):
        self.notebook, self.before, self.names = notebook, {}, list(lessons.code_cells(notebook))
        with contextlib.redirect_stdout(io.StringIO()):
            lessons.run_lesson(notebook, settings | {"VGG16": small_vgg16}, before=self.keep)
        plt.close("all")
        self.mistake, self.patch = None, None

    def keep(self, name, variables):
        self.before[name], self.variables = dict(variables), variables

    def again(self, first, last, **given):
        """Run the cells from `first` to `last` on the variables that `first` met, and `given`; return all."""
        variables = self.before[first] | {"run": Record()} | given
        for name, value in variables.items():
            if getattr(value, "__globals__", None) is self.variables:  # a cell's function: let it read these
                variables[name] = types.FunctionType(value.__code__, variables, name, value.__defaults__)
        with contextlib.redirect_stdout(io.StringIO()):
            for name in self.names[self.names.index(first) : self.names.index(last) + 1]:
                if self.mistake and self.mistake[0] == name:
                    self.mistake[1](variables, self.patch)
                    self.mistake = None
                lessons.run_cell(self.notebook, name, variables)
        plt.close("all")
        return variables


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
        patch.setenv("VGG16_WEIGHTS", "none")
        patch.chdir(folder)
        patch.setattr(xray, "start", lambda *_: Record())
        patch.setattr(xray, "bootstrap_interval", functools.partial(xray.bootstrap_interval, draws=50))
        yield {"binary": Lesson(BINARY, SETTINGS), "multi": Lesson(MULTI, SETTINGS | SETTINGS_MULTI)}


def spy(monkeypatch, owner, name):
    """Note the arguments of every call of a function, by name."""
    real, calls = getattr(owner, name), []

    def noted(*arguments, **named):
        bound = inspect.signature(real).bind(*arguments, **named)
        bound.apply_defaults()
        calls.append(SimpleNamespace(**bound.arguments))
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, noted)
    return calls


def telling(lesson, numbers):
    """Features that tell a number below 72 each, and, in their last place, the number of their row; nothing else."""
    features = np.zeros((len(numbers), *lesson.before["head"]["conv_base"].output_shape[1:]), np.float32)
    for row, number in enumerate(numbers):
        features[row, number // 8, :, number % 8] = 3
        features[row, -1, -1, -1] = row * 1e-6
    return features


def rows_of(features):
    """The row numbers that `telling` put into features."""
    return np.rint(np.asarray(features)[:, -1, -1, -1] * 1e6).astype(int).tolist()


def patients_alone(classes):
    """Labels that each patient of three images has by chance; patients, and numbers that tell the patient alone."""
    rng = np.random.default_rng(1)
    patient = rng.permutation(np.repeat(np.arange(40), 3))
    return rng.permutation(np.arange(40) % classes)[patient], np.array([f"p{number}" for number in patient]), patient


# ------------------------------------------------------------------------------------------ the checks


def binary_frozen_base(lesson, monkeypatch):
    """Only the head trains, at the rate of the settings."""
    model = lesson.again("model", "compile")["model"]
    assert len(model.trainable_weights) == 4 and model.optimizer.learning_rate.numpy() == np.float32(RATE)


def binary_test_set(lesson, monkeypatch):
    """All test images are scored, and no others; the second column is the probability of normal."""
    test = lesson.again("predict", "record")["run"].records["cases.binary"]["test"]
    assert (test["n"], test["patients"], test["correct"]) == (12, 10, 12)
    assert test["confusion"] == [[6, 0], [0, 6]] and test["auc"] == 1


def binary_features(lesson, monkeypatch):
    """Features are of the X-rays as they are, in the order of the table."""
    variables = lesson.again("features", "features")
    images = [cv2.imread(str(variables["DATASET"] / file))[..., ::-1] / 255 for file in variables["table"]["file"]]
    expected = variables["conv_base"].predict(np.stack(images), verbose=0)
    np.testing.assert_allclose(variables["features"], expected, atol=1e-5)


def binary_training_rows(lesson, monkeypatch):
    """Heads train on the training rows alone, with the lesson's settings."""
    fits, heads = spy(monkeypatch, keras.Sequential, "fit"), spy(monkeypatch, xray, "train_head")
    table = lesson.before["head"]["table"]
    rows, features = set(np.flatnonzero(table["split"] == "train")), telling(lesson, table["label"])
    variables = lesson.again("head", "head-fit", features=features)
    assert set(rows_of(fits[0].x)) == rows and len(fits) == 1
    assert variables["head"].optimizer.learning_rate.numpy() == np.float32(RATE)
    lesson.again("blackout", "blackout")
    assert len(heads) == 4
    for head in heads:
        assert set(head.train) == rows and (head.seed, head.learning_rate, head.epochs) == (42, RATE, EPOCHS)


def binary_leaked_patients(lesson, monkeypatch):
    """One test image of each class shows a training patient."""
    records = lesson.again("patients", "patients")["run"].records
    assert records["trust.test_images_of_training_patients"] == ["00.png", "00.png"]


def binary_blackout(lesson, monkeypatch):
    """Without the center, nothing is left to know."""
    scores = lesson.again("blackout", "blackout")["run"].records["trust.blackout.binary"]["by_share"]
    assert {share: scored["correct"] for share, scored in scores.items()} == {0: 12, 0.5: 6, 0.7: 6, 0.9: 6}


def binary_swap(lesson, monkeypatch):
    """In this world the answer follows the center; only patients who are not in training take part."""
    swap = lesson.again("swap-center", "swap-run")["run"].records["trust.swap"]
    expected = {"COVID-19 frame, normal center": (25, 0), "normal frame, COVID-19 center": (25, 25)}
    expected |= {"normal in normal": (20, 0), "COVID-19 in COVID-19": (20, 20)}
    for share in (0.5, 0.7, 0.9):
        for key in ("article", "plain"):
            assert {name: (row["n"], row[key]) for name, row in swap[share].items()} == expected, share


def binary_heat_maps(lesson, monkeypatch):
    """The maps of a trained head are not those of an untrained one."""
    correlations = lesson.again("heat-maps", "heat-maps")["run"].records["trust.heat_map_correlations"]
    assert len(correlations) == 4 and all(abs(value) < 0.95 for value in correlations)


def binary_controls(lesson, monkeypatch):
    """Each group meets the model of Part 1 as it is; "normal" is right for the NIH's."""
    records = lesson.again("controls", "controls-figure")["run"].records
    nih, others = records["trust.no_finding"], records["trust.controls"]
    assert (nih["n"], nih["predicted_covid"], nih["with_right_answer"]["correct"]) == (6, 0, 6)
    assert (others["n"], others["predicted_covid"], others["with_right_answer"]["n"]) == (8, 3, 0)
    assert {name: row["predicted_covid"] for name, row in others["by_finding"].items()} == {
        "bacterial pneumonia": 3, "other or unspecified": 0, "viral pneumonia": 0,
    }  # fmt: skip


def binary_held_out_patients(lesson, monkeypatch):
    """Features that tell patients alone, labels by chance: of a patient that it has not seen, a head knows nothing."""
    labels, patients, numbers = patients_alone(2)
    cross_validate = lesson.again("cross-validate", "cross-validate")["cross_validate"]
    guesses = cross_validate(telling(lesson, numbers), labels, patients)
    assert 0.25 <= (guesses.argmax(axis=1) == labels).mean() <= 0.75


def binary_like_for_like(lesson, monkeypatch):
    """COVID-19 against each group, as it is and black: what the center says of each."""
    tasks = lesson.again("tasks", "like-for-like")["run"].records["trust.like_for_like"]
    for name, n, patients, low, high in (
        ("children", 32, 18, 1, 1),
        ("children_blackout", 32, 18, 0, 0.7),
        ("nih", 22, 15, 1, 1),
        ("nih_blackout", 22, 15, 0, 0.8),
        ("same_collection", 24, 17, 0.7, 0.95),
        ("same_collection_blackout", 24, 17, 0, 0.69),
    ):
        scored = tasks[name]
        assert (scored["n"], scored["patients"]) == (n, patients), name
        assert low <= scored["accuracy"] <= high, f"{name}: {scored['accuracy']}"


def multi_views(lesson, views, plain):
    """Variables of Multi in which views tell one class, and X-rays as they are another."""
    labels = lesson.before["head"]["labels"]
    views, plain = telling(lesson, (labels + views) % 4), telling(lesson, (labels + plain) % 4)
    recipes = {"article": [views] * 2, "gentle": [views.copy()] * 2, "none": [plain]}
    return {"views": [views] * 2, "plain_features": plain, "recipe_views": recipes}


def multi_training(lesson, monkeypatch):
    """The head trains and validates on views of its own rows, with their labels, at the rate of the settings."""
    fits, given = spy(monkeypatch, keras.Sequential, "fit"), multi_views(lesson, 0, 1)
    variables = lesson.again("fit", "fit", CASES={"three": FOUR[:3]}, **given)
    table = lesson.before["head"]["table"]
    assert len(fits) == EPOCHS
    for call in fits:
        for (x, y), split in (((call.x, call.y), "train"), (call.validation_data, "validation")):
            expected = np.flatnonzero((table["split"] == split) & (table["class"] != FOUR[3]))
            assert sorted(rows_of(x)) == list(expected)
            np.testing.assert_array_equal(y.argmax(axis=1), table["label"].iloc[rows_of(x)])
            np.testing.assert_array_equal(x, given["views"][0][rows_of(x)])
    assert variables["histories"]["three", "article"]["val_acc"].iloc[-1] == 1
    assert variables["heads"]["three", "article"].optimizer.learning_rate.numpy() == np.float32(RATE)


def multi_test_set(lesson, monkeypatch):
    """The test images of each case are scored, and no others, as they are."""
    heads = {(case, name): told for case in ("three", "four") for name in ("article", "fine_tuned")}
    given = multi_views(lesson, 1, 0) | {"heads": heads}
    records = lesson.again("score-head", "first-result", **given)["run"].records
    for case, n in (("three", 18), ("four", 24)):
        for name in (case, f"{case}_fine_tuned"):
            assert (records[f"cases.{name}"]["test"]["n"], records[f"cases.{name}"]["test"]["correct"]) == (n, n)


def told(features):
    """In place of a head: the class that `telling` put into features."""
    return np.asarray(features)[:, 0, 0, :4] / 3


def multi_fine_tuning(lesson, monkeypatch):
    """Fine-tuning goes on from a copy of the article's head at its own rate, and leaves that head as it is."""
    heads = dict(lesson.before["fine-tuning"]["heads"])
    before = {case: [w.copy() for w in heads[case, "article"].get_weights()] for case in ("three", "four")}
    try:
        tuned = lesson.again("fine-tuning", "fine-tuning", heads=heads)["heads"]
        for case, weights in before.items():
            for old, kept, new in zip(
                weights, heads[case, "article"].get_weights(), tuned[case, "fine_tuned"].get_weights()
            ):
                np.testing.assert_array_equal(old, kept)
                assert 0 < np.abs(new - old).max() < 0.05
            assert tuned[case, "fine_tuned"].optimizer.learning_rate.numpy() == np.float32(1e-3)
    finally:
        for case, weights in before.items():
            lesson.before["fine-tuning"]["heads"][case, "article"].set_weights(weights)


def multi_augmentations(lesson, monkeypatch):
    """Each recipe's heads train on its views, and are tested on X-rays as they are."""
    trained, given = spy(monkeypatch, xray, "train_head"), multi_views(lesson, 0, 1)
    heads, histories = (dict(lesson.before["training-augmentations"][name]) for name in ("heads", "histories"))
    records = lesson.again(
        "training-augmentations", "test-augmentations", heads=heads, histories=histories, **given
    )["run"].records  # fmt: skip
    for call, name in zip(trained, ["gentle", "none"] * 2):
        assert call.views is given["recipe_views"][name]
    for case, n in (("three", 18), ("four", 24)):
        assert records[f"cases.{case}_gentle"]["test"]["correct"] == 0
        assert records[f"cases.{case}_none"]["test"]["correct"] == n


def multi_cross_validation(lesson, monkeypatch):
    """Heads of views are wrong on held-out X-rays as they are, and right on views; five folds, the same for each."""
    trained, given = spy(monkeypatch, xray, "train_head"), multi_views(lesson, 0, 1)
    records = lesson.again("folds", "cross-validated", **given)["run"].records
    for key, accuracy in (("four", 0), ("four_gentle", 0), ("four_none", 1), ("four_logistic", 1)):
        scored = records[f"trust.grouped_cv.{key}"]
        assert (scored["n"], scored["accuracy"], len(scored["folds"])) == (64, accuracy, 5), key
        assert scored.get("mean_on_views", 1) == pytest.approx(1), key
    assert len(trained) == 15
    for index, call in enumerate(trained):
        assert call.views is list(given["recipe_views"].values())[index // 5]
        assert set(call.train) == set(trained[index % 5].train)


def multi_held_out_patients(lesson, monkeypatch):
    """Features that tell patients alone: no recipe knows a patient that it has not seen."""
    labels, patients, numbers = patients_alone(4)
    features = telling(lesson, numbers)
    given = {"labels": labels, "patients": patients, "plain_features": features}
    given["recipe_views"] = {name: [features] for name in ("article", "gentle", "none")}
    given["table"] = pd.DataFrame({"class": [FOUR[label] for label in labels], "split": "train"})
    records = lesson.again("folds", "cross-validated", **given)["run"].records
    for name in ("four", "four_gentle", "four_none", "four_logistic"):
        assert 0.05 <= records[f"trust.grouped_cv.{name}"]["accuracy"] <= 0.5, name


def multi_differences(lesson, monkeypatch):
    """The first of a pair minus the second, with an interval by patient, which is wider than one by image."""
    labels, patients = lesson.before["head"]["labels"], lesson.before["head"]["patients"]
    known = np.isin(patients, list(set(patients))[::2])
    held_out = {name: np.eye(4)[labels] for name in ("gentle", "none", "logistic")}
    held_out["article"] = np.eye(4)[np.where(known, labels, (labels + 1) % 4)]
    records = lesson.again("pairs", "differences", held_out=held_out)["run"].records
    found = records["trust.differences.four_gentle - four"]
    assert found["difference"] == (~known).mean()
    assert found["ci95"] == xray.bootstrap_interval(np.mean, ~known, patients)
    assert records["trust.differences.four_none - four_gentle"]["difference"] == 0


def multi_blackout(lesson, monkeypatch):
    """With the center black, a head says one class for every image."""
    scored = lesson.again("blackout", "blackout")["run"].records["trust.blackout.four"]
    assert (scored["n"], scored["correct"], scored["hidden"]) == (24, 6, 0.9)


def multi_controls(lesson, monkeypatch):
    """Each group meets the heads of the largest case as it is; answers belong to their images."""
    records = lesson.again("controls", "score-controls")["run"].records
    for recipe in ("", "_gentle", "_none"):
        nih, others = records[f"trust.no_finding{recipe}"], records[f"trust.controls{recipe}"]
        assert (nih["n"], nih["predicted_covid"], nih["with_right_answer"]["correct"]) == (6, 0, 6)
        assert (others["n"], others["predicted_covid"], others["with_right_answer"]["n"]) == (8, 3, 6)
    assert others["with_right_answer"]["correct"] == 3  # of the head that knows X-rays as they are


CHECKS = {
    name: check
    for name, check in globals().items()
    if name.startswith(("binary_", "multi_")) and list(inspect.signature(check).parameters) == ["lesson", "monkeypatch"]
}


@pytest.mark.parametrize("name", CHECKS)
def test_cells(name, world, monkeypatch):
    """Each check passes on the lessons as they are."""
    CHECKS[name](world[name.split("_")[0]], monkeypatch)


# --------------------------------------------------------------------------------------- the mistakes


def variables(**changes):
    """A mistake in the lesson's variables: each becomes what a function of all of them returns."""
    return lambda given, patch: given.update({name: change(given) for name, change in changes.items()})


def toolbox(name, make, module=xray):
    """A mistake in a function of the toolbox: `make` returns another one in place of the real one."""
    return lambda given, patch: patch.setattr(module, name, make(getattr(module, name)))


def all_rows(given):
    return np.arange(len(given["labels"]))


def leaky_select(given):
    real = given["select"]
    return lambda split, case: (
        np.append(real(split, case), real("test", case)) if split == "train" else real(split, case)
    )


def other_kind(real):
    return lambda kind, *given: real("controls" if kind == "nih_no_finding" else "nih_no_finding", *given)


def shifted(real):
    return lambda *given: real(*given).assign(answer=lambda table: np.roll(table["answer"], 1))


BY_IMAGE = toolbox("patient_folds", lambda real: lambda y, patients, seed: real(y, np.arange(len(y)), seed))
LEAK = toolbox("patient_folds", lambda real: lambda *given: [(np.append(a, b), b) for a, b in real(*given)])
SEEN = toolbox("black_out", lambda real: lambda image, share: image)
FAST = variables(LEARNING_RATE=lambda given: 100 * given["LEARNING_RATE"])
AUGMENTED = variables(plain_features=lambda given: given["views"][0])
MISTAKES = [  # what is wrong, the check that fails, the cell before which it happens, and how
    ("the base trains", "binary_frozen_base", "compile",
     lambda given, patch: setattr(given["conv_base"], "trainable", True)),
    ("the rate x 100", "binary_frozen_base", "compile", FAST),
    ("the other column", "binary_test_set", "record", variables(p_normal=lambda given: 1 - given["p_normal"])),
    ("labels shuffled", "binary_test_set", "record",
     variables(table=lambda given: given["table"].assign(label=np.roll(given["table"]["label"], 3)))),
    ("views for X-rays", "binary_features", "features", variables(test_datagen=lambda given: given["train_datagen"])),
    ("the test set trains", "binary_training_rows", "head-fit", variables(train=all_rows)),
    ("the rate of heads x 100", "binary_training_rows", "blackout", FAST),
    ("rows for patients", "binary_leaked_patients", "patients",
     variables(table=lambda given: given["table"].assign(patient=given["table"].index))),
    ("nothing is black", "binary_blackout", "blackout", SEEN),
    ("nothing is swapped", "binary_swap", "swap-figure",
     variables(swap_center=lambda given: lambda frame, center, share: frame)),
    ("training patients take part", "binary_swap", "swap-center", variables(patients=all_rows)),
    ("the untrained head is trained", "binary_heat_maps", "heat-maps",
     variables(build_head=lambda given: lambda: given["article_head"])),
    ("one group for the other", "binary_controls", "controls", toolbox("find_controls", other_kind, xray_data)),
    ("folds by image", "binary_held_out_patients", "cross-validate", BY_IMAGE),
    ("controls are not black", "binary_like_for_like", "tasks", SEEN),
    ("the test set trains", "multi_training", "fit", variables(select=leaky_select)),
    ("the rate x 100", "multi_training", "fit", FAST),
    ("X-rays for views", "multi_training", "fit", variables(views=lambda given: [given["plain_features"]] * 2)),
    ("views for X-rays", "multi_test_set", "score-head", AUGMENTED),
    ("the article's rate", "multi_fine_tuning", "fine-tuning",
     variables(FINE_TUNE_LEARNING_RATE=lambda given: given["LEARNING_RATE"])),
    ("no copy", "multi_fine_tuning", "fine-tuning",
     lambda given, patch: patch.setattr(keras.models, "clone_model", lambda head: head)),
    ("one recipe for three", "multi_augmentations", "training-augmentations",
     variables(recipe_views=lambda given: dict.fromkeys(given["recipe_views"], given["views"]))),
    ("views for X-rays", "multi_cross_validation", "cross-validation", AUGMENTED),
    ("held-out rows train", "multi_held_out_patients", "folds", LEAK),
    ("an interval by image", "multi_differences", "differences", variables(patients=all_rows)),
    ("nothing is black", "multi_blackout", "blackout", SEEN),
    ("answers shifted", "multi_controls", "controls", toolbox("find_controls", shifted, xray_data)),
]  # fmt: skip


@pytest.mark.parametrize("name, cell, change", [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
def test_mistakes_fail(name, cell, change, world, monkeypatch):
    """Each check fails on a lesson with a mistake that it is there for."""
    lesson = world[name.split("_")[0]]
    lesson.mistake, lesson.patch = (cell, change), monkeypatch
    try:
        with pytest.raises(AssertionError):
            CHECKS[name](lesson, monkeypatch)
        assert lesson.mistake is None, f"cell {cell} has not run"
    finally:
        lesson.mistake = None
        lesson.before["head"]["conv_base"].trainable = False
