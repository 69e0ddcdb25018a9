"""What the lessons rest on: one history three ways, Keras's split and pixels, features on disk, statistics."""

import functools
import random
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import cv2
import keras
import lessons
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xray
import xray_data
from conftest import BINARY, MULTI
from keras import layers
from scipy.stats import binomtest
from tensorflow.keras.preprocessing.image import ImageDataGenerator
from world import AUGMENTATION

SIZE = 32  # pixels a side
FOUR = list(xray_data.LABELS)
ARTICLE = xray_data.ARTICLE
SPLITS = ("train", "validation")
FLAGS = dict.fromkeys(["featurewise_center", "featurewise_std_normalization", "zca_whitening"], True)


@pytest.fixture(scope="module")
def base():
    """A small frozen network in place of VGG16; its features differ widely."""
    keras.utils.set_random_seed(0)
    stack = keras.Sequential([
        keras.Input((SIZE, SIZE, 3)),
        layers.Conv2D(8, 5, strides=2, padding="same", activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(16, 3, padding="same", activation="relu"),
        layers.MaxPooling2D(),
    ])  # fmt: skip
    base = keras.Model(stack.inputs, stack.outputs[0])
    base.set_weights([2 * weights for weights in base.get_weights()])
    base.trainable = False
    return base


def run_lesson(notebook, images, output, last, base, **settings):
    """Run a lesson on `images` from its top to the cell `last`, with `base` for VGG16; returns all variables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COVID_XRAY_DATA", str(images))
        patch.setenv("COVID_XRAY_OUTPUT", str(output))
        patch.setattr(plt, "show", plt.close)
        settings = {"IMAGE_SIZE": SIZE, "VGG16": lambda **_: base} | settings
        return lessons.run_lesson(notebook, settings, last)


@pytest.fixture(scope="module")
def multi(tree, tmp_path_factory):
    """Multi up to its features, with a base that changes nothing: so its views are images."""
    nothing = keras.Sequential([keras.Input((SIZE, SIZE, 3)), layers.Rescaling(1.0)])
    output = tmp_path_factory.mktemp("multi")
    return run_lesson(MULTI, tree, output, "features", nothing, BATCH_SIZE=99, NUM_EPOCHS=5, VIEWS_PER_IMAGE=3)


def batches_of(datagen, multi, batch_size=10, seed=42, folder=None):
    """All of Multi's images in the order of the table, in new views each time."""
    return datagen.flow_from_dataframe(
        multi["table"], folder or multi["DATASET"], x_col="file", class_mode=None, batch_size=batch_size,
        target_size=(SIZE, SIZE), shuffle=False, seed=seed,
    )  # fmt: skip


def build_head(shape, units):
    """A head like the lessons': one sigmoid for units = 1, else a softmax."""
    return keras.Sequential([
        keras.Input(shape),
        layers.Flatten(),
        layers.Dense(256, activation="relu"),
        layers.Dense(units, activation="sigmoid" if units == 1 else "softmax"),
    ])  # fmt: skip


def assert_one_history(first, second, images, tolerance=2e-3):
    """Losses agree within `tolerance` of their size, accuracies within one of the fewest `images`."""
    assert set(first) == set(second) == {"loss", "acc", "val_loss", "val_acc"}
    for metric in first:
        allowed = {"rtol": tolerance} if "loss" in metric else {"atol": 1.01 / images}
        np.testing.assert_allclose(first[metric], second[metric], err_msg=metric, **allowed)
    assert np.ptp(first["val_loss"]) > 1e-3  # each epoch validates on views of its own


def test_part_1_has_the_history_of_the_articles_generators(base, tree, tmp_path):
    lesson = run_lesson(BINARY, tree, tmp_path, "compile", base, BATCH_SIZE=3, NUM_EPOCHS=4)
    state = random.getstate()  # fit shuffles the batches with Python's random numbers
    weights = [array.copy() for array in lesson["model"].get_weights()]
    lessons.run_cell(BINARY, "fit", lesson)
    with pytest.warns(UserWarning, match="hasn't"):  # been fit, so that the flags do nothing
        datagen = ImageDataGenerator(**AUGMENTATION, **FLAGS)
        options = {"target_size": (SIZE, SIZE), "class_mode": "binary", "batch_size": 3, "shuffle": True, "seed": 42}
        train = datagen.flow_from_directory(tree / "two" / "train", subset="training", **options)
        valid = datagen.flow_from_directory(tree / "two" / "train", subset="validation", **options)
        model = keras.Sequential([base, *build_head(base.output_shape[1:], 1).layers])
        model.set_weights(weights)
        model.compile(loss="binary_crossentropy", optimizer=keras.optimizers.Adam(5e-4), metrics=["acc"])
        random.setstate(state)
        theirs = model.fit(train, validation_data=valid, epochs=4, verbose=0).history
    assert (train.n, valid.n) == (8, 2)
    assert_one_history(lesson["result"].history, theirs, images=8, tolerance=1e-5)


def test_multi_has_the_history_of_train_head_on_the_articles_views(base, multi, tree, tmp_path):
    theirs = batches_of(ImageDataGenerator(**AUGMENTATION), multi, batch_size=99)
    for view in multi["views"]:
        np.testing.assert_allclose(view, theirs[0], atol=1e-6)
    settings = {"BATCH_SIZE": 3, "NUM_EPOCHS": 5, "VIEWS_PER_IMAGE": 3}
    lesson = run_lesson(MULTI, tree, tmp_path, "fit-heads", base, **settings)
    rows = [lesson["select"](split, "four") for split in SPLITS]
    numbers = {"learning_rate": 1e-4, "epochs": 5, "batch_size": 3, "seed": 42}
    build = functools.partial(lesson["build_head"], 4)
    _, ours = xray.train_head(build, lesson["views"], lesson["labels"], *rows, **numbers)
    assert_one_history(ours, lesson["histories"]["four", "article"], images=4)


@pytest.mark.parametrize("units", [1, 4])
def test_train_head_has_the_history_of_base_and_head_in_one_model(base, multi, tmp_path, units):
    table, images = multi["table"], multi["views"]
    views = xray.extract_features(base, batches_of(ImageDataGenerator(**AUGMENTATION), multi, 99), tmp_path, 3)
    train, validation = (np.flatnonzero(table["split"] == split) for split in SPLITS)
    assert len(train) % 3 == 1  # so the last batch is short
    labels = table["label"].to_numpy() % max(units, 2)
    build = functools.partial(build_head, base.output_shape[1:], units)
    numbers = {"learning_rate": 1e-3, "epochs": 5, "batch_size": 3, "seed": 7}
    _, ours = xray.train_head(build, views, labels, train, validation, **numbers)
    keras.utils.set_random_seed(7)
    model = keras.Sequential([base, build()])
    loss = "binary_crossentropy" if units == 1 else "sparse_categorical_crossentropy"
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss=loss, metrics=["acc"])
    theirs = []
    for epoch in range(5):
        view, rows = images[epoch % 3], np.random.default_rng([7, epoch]).permutation(train)
        options = {"validation_data": (view[validation], labels[validation]), "shuffle": False, "verbose": 0}
        fitted = model.fit(view[rows], labels[rows], batch_size=3, **options)
        theirs.append({metric: values[0] for metric, values in fitted.history.items()})
    assert_one_history(ours, pd.DataFrame(theirs), images=4)


def test_split_and_pixels_are_those_of_flow_from_directory(multi):
    table, folder = multi["table"], multi["DATASET"]
    options = {"target_size": (SIZE, SIZE), "batch_size": 99, "shuffle": False, "class_mode": "sparse"}
    for split, subset in (("train", "training"), ("validation", "validation"), ("test", None)):
        datagen = ImageDataGenerator(validation_split=0.2 if subset else 0)
        place = folder / ("train" if subset else "test")
        batches = datagen.flow_from_directory(place, subset=subset, **options)
        rows = table[table["split"] == split]
        assert [f"{place.name}/{name}" for name in batches.filenames] == list(rows["file"])
        pixels, labels = batches[0]
        np.testing.assert_array_equal(labels, rows["label"])
        ours = 255 * xray.load_images([folder / file for file in rows["file"]], (SIZE, SIZE))
        np.testing.assert_allclose(pixels, ours, atol=1e-4)


DRAWN = {
    "two": ["covid/nejmoa2001191_f3-PA.jpeg", "covid/nejmoa2001191_f4.jpeg"],
    "three": [
        "covid/ryct.2020200034.fig5-day7.jpeg", "normal/NORMAL2-IM-1406-0001.jpeg", "normal/NORMAL2-IM-1385-0001.jpeg"
    ],
    "four": [
        "pneumonia_vir/person966_virus_1639.jpeg", "normal/NORMAL2-IM-1406-0001.jpeg",
        "pneumonia_bac/person1945_bacteria_4872.jpeg", "pneumonia_vir/person961_virus_1634.jpeg",
    ],
}  # fmt: skip


def test_the_articles_draw(base, tmp_path, capsys):
    picture = cv2.imencode(".png", np.eye(8, dtype=np.uint8) * 255)[1].tobytes()
    rows = ARTICLE.groupby(["split", "class"]).head(9)  # all 36 test images, and some to train on
    for place in rows[["split", "class", "filename"]].agg("/".join, axis=1):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(picture)
    settings = {"NUM_EPOCHS": 1, "FINE_TUNE_EPOCHS": 1, "VIEWS_PER_IMAGE": 1}
    draws = run_lesson(MULTI, tmp_path, tmp_path, "draw", base, **settings)["draws"]
    capsys.readouterr()
    run_lesson(BINARY, tmp_path, tmp_path, "article-steps", base, **settings)
    first_two = re.findall(r"(?:covid|normal)/.*", capsys.readouterr().out)
    assert {"two": first_two} | {case: draw["files"] for case, draw in draws.items()} == DRAWN


def count_kept(output):
    """How many files of features there are."""
    return len(list((output / "features").iterdir()))


def test_a_second_run_computes_nothing(base, multi, tmp_path, monkeypatch):
    """The same call gives the same features from disk; an interrupted one goes on with the views that it lacks."""
    real, calls = keras.Model.predict_on_batch, []

    def counted(model, batch):
        calls.append(len(batch))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(model, batch)

    def extract(output=tmp_path):
        datagen = ImageDataGenerator(**AUGMENTATION)
        return np.array(xray.extract_features(base, batches_of(datagen, multi), output, views=2))

    monkeypatch.setattr(keras.Model, "predict_on_batch", counted)
    with pytest.raises(KeyboardInterrupt):  # in the second view: 32 images are four batches
        extract()
    assert (count_kept(tmp_path), len(calls)) == (1, 5)
    views = extract()
    assert (count_kept(tmp_path), len(calls)) == (2, 9)
    np.testing.assert_array_equal(views, extract())
    assert len(calls) == 9
    path = min((tmp_path / "features").iterdir())
    path.write_bytes(path.read_bytes()[:-9])  # cut short: it is computed anew
    np.testing.assert_allclose(views, extract(), atol=1e-5)
    assert len(calls) == 13
    np.testing.assert_allclose(views, extract(tmp_path / "fresh"), rtol=1e-4, atol=1e-5)


def test_what_makes_other_features_makes_other_files(base, multi, tmp_path):
    other, half = keras.models.clone_model(base), keras.models.clone_model(base)
    other.set_weights([weights + 1e-3 for weights in base.get_weights()])
    half.set_weights(base.get_weights())
    for layer in half.layers:
        layer.dtype_policy = "mixed_bfloat16"
    copy, changed = (shutil.copytree(multi["DATASET"], tmp_path / name) for name in ("copy", "changed"))
    path = str(changed / multi["table"]["file"][3])
    cv2.imwrite(path, cv2.flip(cv2.imread(path), 1))

    def files_after(network=base, rotation=0, **options):
        datagen = ImageDataGenerator(rotation_range=rotation)
        xray.extract_features(network, batches_of(datagen, multi, **options), tmp_path)
        return count_kept(tmp_path)

    assert files_after() == 1
    assert files_after(rotation=5) == 2
    assert files_after(rotation=5, seed=43) == 3
    assert files_after(other) == 4
    assert files_after(half) == 5
    assert files_after(folder=changed) == 6
    assert files_after(folder=copy) == files_after(rotation=5) == 6


def test_runs_into_one_folder_at_once_have_the_features_of_each_alone(base, multi, tmp_path):
    def run(scale, output):
        batches = batches_of(ImageDataGenerator(rescale=scale), multi)
        return xray.extract_features(base, batches, tmp_path / output)[0]

    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(run, (1, 1 / 255, 1), ("both", "both", "both")))
    assert count_kept(tmp_path / "both") == 2
    for features, scale in zip(together, (1, 1 / 255, 1)):
        np.testing.assert_allclose(features, run(scale, "alone"), rtol=1e-4, atol=1e-5)


def test_center_and_black_by_hand():
    image = np.ones((10, 20, 3))
    assert xray.center_of(image, 0.5) == (slice(2, 7), slice(5, 15))
    assert xray.center_of(image, 0.9) == (slice(0, 9), slice(1, 19))
    hidden = xray.black_out(image, 0.5)
    assert hidden.sum() == 3 * (200 - 50) and not hidden[2:7, 5:15].any() and image.all()
    assert xray.black_out(image, 0).all() and not xray.black_out(image, 1).any()
    square = xray.black_out(np.ones((150, 150, 3)), 0.1)
    assert square.sum() == 3 * (150**2 - 15**2) and not square[67:82, 67:82].any()


def test_patient_interval_by_hand():
    """Exact by patient: 18 of 18 X-rays of 14 patients leave 71% to 100%; by image it would be 81%."""
    test = ARTICLE[(ARTICLE["split"] == "test") & ARTICLE["class"].isin(FOUR[:2])]
    sizes = test["patient"].value_counts()
    assert (sizes.sum(), len(sizes)) == (18, 14)
    low, high = xray.patient_interval(np.ones(18, bool), test["patient"])
    assert low == pytest.approx(0.025 ** ((sizes**2).sum() / 18**2)) and round(low, 2) == 0.71 and high == 1
    for right in (0, 1, 17, 18):  # with three X-rays of each patient that agree: Clopper and Pearson's of patients
        exact = binomtest(right, 18).proportion_ci()
        ends = xray.patient_interval(np.repeat(np.arange(18) < right, 3), np.repeat(np.arange(18), 3))
        assert ends == pytest.approx([exact.low, exact.high])


def test_bootstrap_draws_patients():
    """Each draw has as many patients as there are, with all of their X-rays; 95% of what the draws give is within."""
    patients, drawn = np.array(list("aaabbc")), []

    def note(rows):
        drawn.append(rows)
        return len(drawn)

    assert xray.bootstrap_interval(note, np.arange(6), patients, draws=1001) == pytest.approx([26, 976])
    for rows in drawn:
        counts = [np.sum(patients[rows] == name) / np.sum(patients == name) for name in "abc"]
        assert sum(counts) == 3 and all(count == int(count) for count in counts)
    assert len({tuple(sorted(rows)) for rows in drawn}) == 10  # all that there are


def test_score_by_hand():
    """Four images of three patients, one missed, 3 of 4 pairs in order; three classes have no area."""
    covid = np.array([0.9, 0.2, 0.1, 0.4])
    labels, patients = np.array([0, 0, 1, 1]), list("abcc")
    scored = xray.score(labels, np.stack([covid, 1 - covid], axis=1), patients)
    assert (scored["n"], scored["patients"], scored["correct"], scored["accuracy"]) == (4, 3, 3, 0.75)
    assert scored["confusion"] == [[1, 1], [0, 2]] and scored["majority"] == 0.5 and scored["auc"] == 0.75
    assert scored["ci95"] == xray.patient_interval([True, False, True, True], patients)
    assert scored["auc_ci95"][0] < 0.75 <= scored["auc_ci95"][1]
    three = xray.score(np.array([0, 1, 1, 2]), np.eye(3)[[0, 1, 2, 2]], list("abcd"))
    assert three["confusion"] == [[1, 0, 0], [0, 1, 1], [0, 0, 1]] and "auc" not in three


def test_a_score_in_words():
    scored = {"correct": 3, "n": 8, "accuracy": 3 / 8, "ci95": [0.09, 0.76], "majority": 0.5}
    assert re.findall(r"\d+%?", xray.describe(scored)) == ["3", "8", "38%", "95%", "9%", "76%"]


def test_a_sigmoids_output_becomes_two_probabilities_and_a_softmax_stays():
    sigmoid, softmax = (build_head((1, 1, 2), units) for units in (1, 3))
    x = np.random.default_rng(0).random((4, 1, 1, 2), np.float32)
    p = sigmoid.predict(x, verbose=0)[:, 0]
    np.testing.assert_allclose(xray.predict_probabilities(sigmoid, x), np.stack([1 - p, p], axis=1), atol=1e-6)
    np.testing.assert_allclose(xray.predict_probabilities(softmax, x), softmax.predict(x, verbose=0), atol=1e-6)


def test_score_controls_by_hand():
    """Five X-rays of four patients; two have no right answer, and of the other three, one is right."""
    groups = 2 * ["viral pneumonia"] + 2 * ["bacterial pneumonia"] + ["other"]
    answers = ["pneumonia_vir", "pneumonia_vir", "pneumonia_bac", "", ""]
    table = pd.DataFrame({"group": groups, "answer": answers, "patient": list("aabcd")})
    guesses = np.eye(4)[[3, 0, 0, 1, 0]]
    scored = xray.score_controls(lambda x: x, guesses, table, FOUR)
    assert (scored["n"], scored["patients"], scored["predicted_covid"]) == (5, 4, 3)
    assert scored["ci95"] == xray.patient_interval(guesses[:, 0] == 1, table["patient"])
    found = {name: tuple(counts.values()) for name, counts in scored["by_finding"].items()}
    assert found == {"bacterial pneumonia": (2, 2, 1), "other": (1, 1, 1), "viral pneumonia": (2, 1, 1)}
    known = scored["with_right_answer"]
    assert (known["n"], known["patients"], known["correct"]) == (3, 2, 1)
    assert xray.score_controls(lambda x: x, guesses[:, :2], table, FOUR[:2])["with_right_answer"]["n"] == 0


@pytest.mark.parametrize("source", ["article", *xray_data.CONTROLS])
@pytest.mark.parametrize("seed", [42, 1])
def test_folds_hold_patients_together_and_classes_in_balance(source, seed):
    """Five folds, each image out once, and of each class about a fifth; or COVID-19 against controls."""
    rows, classes = ARTICLE, ARTICLE["class"]
    if source != "article":
        rows = pd.concat([ARTICLE[classes == "covid"], xray_data.CONTROLS[source]])
        classes = rows["class"] == "covid"
    labels, patients = pd.factorize(classes)[0], rows["patient"].to_numpy()
    folds = xray.patient_folds(labels, patients, seed)
    assert len(folds) == 5 and sorted(np.concatenate([out for _, out in folds])) == list(range(len(labels)))
    for train, out in folds:
        assert sorted([*train, *out]) == list(range(len(labels)))
        assert not set(patients[train]) & set(patients[out])
        assert (np.abs(np.bincount(labels[out]) - np.bincount(labels) / 5) <= 2.5).all()


def test_folds_of_few_patients(capsys):
    assert len(xray.patient_folds(np.array([0, 0, 1, 1]), list("abcd"), 1)) == 2
    assert "2 folds instead of 5" in capsys.readouterr().out
    for labels, patients, words in (
        ([0, 0, 1], "abc", "One class has only one patient"),
        ([0, 0, 1, 0, 1, 1], "ccbadc", "One fold would train without a class"),
    ):
        with pytest.raises(xray_data.SetupError, match=words):
            xray.patient_folds(np.array(labels), list(patients), 1)


def test_hires_cam_adds_up_to_the_score(base):
    """For a head of one layer: the score less its bias, through pooling."""
    dense = layers.Dense(1, activation="sigmoid", bias_initializer="random_normal")
    head = keras.Sequential([keras.Input(base.output_shape[1:]), layers.Flatten(), dense])
    images, classes = np.random.default_rng(0).random((4, SIZE, SIZE, 3)), np.array([0, 1, 1, 0])
    maps = xray.hires_cam(base, head, images, classes)
    assert maps.shape == (4, 8, 8)
    scores = base.predict(images, verbose=0).reshape(4, -1) @ head.get_weights()[0][:, 0]
    expected = np.where(classes == 1, scores, -scores)
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
