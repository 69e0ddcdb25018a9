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
    x = inputs = keras.Input((SIZE, SIZE, 3))
    for layer in (
        layers.Conv2D(8, 5, strides=2, padding="same", activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(16, 3, padding="same", activation="relu"),
        layers.MaxPooling2D(),
    ):
        x = layer(x)
    base = keras.Model(inputs, x)
    base.set_weights([2 * weights for weights in base.get_weights()])
    base.trainable = False
    return base


@pytest.fixture(scope="module")
def lossless(tree, tmp_path_factory):
    """The tree of two classes as PNG, which every library decodes to the same pixels."""
    folder = tmp_path_factory.mktemp("lossless") / "two"
    for path in (tree / "two").rglob("*.jpeg"):
        target = (folder / path.relative_to(tree / "two")).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target), cv2.imread(str(path)))
    return folder


def run_lesson(notebook, images, output, last, before=lambda name, variables: None, **settings):
    """Run a lesson on `images` from its top to the cell `last`; return all variables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COVID_XRAY_DATA", str(images))
        patch.setenv("COVID_XRAY_OUTPUT", str(output))
        patch.chdir(output)
        patch.setattr(plt, "show", plt.close)
        return lessons.run_lesson(notebook, {"IMAGE_SIZE": SIZE} | settings, last, before)


@pytest.fixture(scope="module")
def binary(base, lossless, tmp_path_factory):
    """Binary up to its table, and what its `fit` started from: Python's random numbers, and the weights."""
    starts = []

    def before(name, variables):
        if name == "fit":  # which shuffles the batches with Python's random numbers
            starts.append((random.getstate(), [weights.copy() for weights in variables["model"].get_weights()]))

    settings = {"BATCH_SIZE": 3, "NUM_EPOCHS": 4, "VGG16": lambda **_: base}
    output = tmp_path_factory.mktemp("binary")
    return run_lesson(BINARY, lossless, output, "images", before, **settings), starts[0]


@pytest.fixture(scope="module")
def multi(tree, tmp_path_factory):
    """Multi up to its features, with a base that changes nothing: so its views are images."""
    nothing = keras.Sequential([keras.Input((SIZE, SIZE, 3)), layers.Rescaling(1.0)])
    settings = {"BATCH_SIZE": 99, "NUM_EPOCHS": 5, "VIEWS_PER_IMAGE": 3, "VGG16": lambda **_: nothing}
    return run_lesson(MULTI, tree, tmp_path_factory.mktemp("multi"), "features", **settings)


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
    first, second = pd.DataFrame(first).reset_index(drop=True), pd.DataFrame(second).reset_index(drop=True)
    assert len(first) == len(second) and set(first) == set(second) == {"loss", "acc", "val_loss", "val_acc"}
    for metric in first:
        allowed = {"rtol": tolerance} if "loss" in metric else {"atol": 1.01 / images}
        np.testing.assert_allclose(first[metric], second[metric], err_msg=metric, **allowed)


def test_part_1_is_the_articles_training(base, binary, lossless):
    """Binary's own cells have the history of the article's literal generators.

    The article's have its three flags, which so change nothing.
    """
    ours, (state, weights) = binary[0]["result"].history, binary[1]
    with pytest.warns(UserWarning, match="hasn't"):  # been fit, so that the flags do nothing
        datagen = ImageDataGenerator(**AUGMENTATION, **FLAGS)
        options = {"target_size": (SIZE, SIZE), "class_mode": "binary", "batch_size": 3, "shuffle": True, "seed": 42}
        train = datagen.flow_from_directory(lossless / "train", subset="training", **options)
        valid = datagen.flow_from_directory(lossless / "train", subset="validation", **options)
        model = keras.Sequential([base, *build_head(base.output_shape[1:], 1).layers])
        model.set_weights(weights)
        model.compile(loss="binary_crossentropy", optimizer=keras.optimizers.Adam(5e-4), metrics=["acc"])
        random.setstate(state)
        theirs = model.fit(train, validation_data=valid, epochs=4, verbose=0).history
    assert (train.n, valid.n) == (8, 2)
    assert_one_history(ours, theirs, images=8, tolerance=1e-5)
    assert np.ptp(ours["val_loss"]) > 1e-3  # each epoch validates on views of its own


def test_multis_fit_is_train_head(base, multi, tree, tmp_path):
    """Multi's own cells have the history of xray.train_head on the article's views."""
    theirs = batches_of(ImageDataGenerator(**AUGMENTATION), multi, batch_size=99)
    for view in multi["views"]:
        np.testing.assert_allclose(view, theirs[0], atol=1e-6)
    settings = {"BATCH_SIZE": 3, "NUM_EPOCHS": 5, "VIEWS_PER_IMAGE": 3, "VGG16": lambda **_: base}
    lesson = run_lesson(MULTI, tree, tmp_path, "fit-heads", **settings)
    ours, rows = lesson["histories"]["four", "article"], [lesson["select"](split, "four") for split in SPLITS]
    numbers = {"learning_rate": 1e-4, "epochs": 5, "batch_size": 3, "seed": 42}
    build = functools.partial(lesson["build_head"], 4)
    assert_one_history(ours, xray.train_head(build, lesson["views"], lesson["labels"], *rows, **numbers)[1], images=4)
    assert np.ptp(ours["val_loss"]) > 1e-3


@pytest.mark.parametrize("units", [1, 4])
def test_train_head_is_the_whole_models(base, multi, tmp_path, units):
    """And that is the history of base and head in one model, in batches of three, the last one short."""
    table, images = multi["table"], multi["views"]
    views = xray.extract_features(base, batches_of(ImageDataGenerator(**AUGMENTATION), multi, 99), tmp_path, 3)
    train, validation = (np.flatnonzero(table["split"] == split) for split in SPLITS)
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
        view, rows = images[epoch % len(images)], np.random.default_rng([7, epoch]).permutation(train)
        held_out = view[validation], labels[validation]
        options = {"validation_data": held_out, "batch_size": 3, "shuffle": False, "verbose": 0}
        fitted = model.fit(view[rows], labels[rows], **options)
        theirs.append({metric: values[0] for metric, values in fitted.history.items()})
    assert len(train) % 3 == 1
    assert_one_history(ours, theirs, images=4)


@pytest.mark.parametrize("lesson", ["binary", "multi"])
def test_split_and_pixels_are_kerass(lesson, request):
    """The rows of the lesson's table are those of flow_from_directory, and load_images gives its pixels."""
    found = request.getfixturevalue(lesson)
    lesson = found[0] if lesson == "binary" else found
    table, folder = lesson["table"], lesson["DATASET"]
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
    "three": ["covid/ryct.2020200034.fig5-day7", "normal/NORMAL2-IM-1406-0001", "normal/NORMAL2-IM-1385-0001"],
    "four": [
        "pneumonia_vir/person966_virus_1639", "normal/NORMAL2-IM-1406-0001",
        "pneumonia_bac/person1945_bacteria_4872", "pneumonia_vir/person961_virus_1634",
    ],
}  # fmt: skip


def test_the_articles_draw(base, tmp_path, capsys):
    """The test images that the lessons draw under the article's names: two, three, and four."""
    for _, row in ARTICLE.groupby(["split", "class"]).head(9).iterrows():  # all 36 test images, and some to train on
        for tree in ("two", "all") if row["class"] in FOUR[:2] else ("all",):
            target = tmp_path / tree / row["split"] / row["class"] / row["filename"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(cv2.imencode(".png", np.eye(8, dtype=np.uint8) * 255)[1].tobytes())
    settings = {"NUM_EPOCHS": 1, "FINE_TUNE_EPOCHS": 1, "VIEWS_PER_IMAGE": 1, "VGG16": lambda **_: base}
    draws = run_lesson(MULTI, tmp_path, tmp_path, "draw", **settings)["draws"]
    for case, expected in DRAWN.items():
        assert [re.sub(r"(\.jpe?g|\.png)+$", "", file) for file in draws[case]["files"]] == expected
    capsys.readouterr()
    run_lesson(BINARY, tmp_path, tmp_path, "article-steps", **settings)
    printed = capsys.readouterr().out
    assert re.findall(r"(covid/\S+|normal/\S+)\.jp", printed) == ["covid/nejmoa2001191_f3-PA", "covid/nejmoa2001191_f4"]


def kept(output):
    """The names of the files of features."""
    return {path.name for path in (output / "features").iterdir()}


def test_a_second_run_computes_nothing(base, multi, tmp_path, monkeypatch):
    """The same call gives the same features from disk; an interrupted one goes on with the views that it lacks."""
    datagen, calls = ImageDataGenerator(**AUGMENTATION), []
    real = keras.Model.predict_on_batch

    def counted(model, batch):
        calls.append(len(batch))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(model, batch)

    monkeypatch.setattr(keras.Model, "predict_on_batch", counted)
    with pytest.raises(KeyboardInterrupt):  # in the second view: 32 images are four batches
        xray.extract_features(base, batches_of(datagen, multi), tmp_path, 2)
    assert len(kept(tmp_path)) == 1 and len(calls) == 5
    views = xray.extract_features(base, batches_of(datagen, multi), tmp_path, 2)
    assert len(kept(tmp_path)) == 2 and len(calls) == 9
    np.testing.assert_array_equal(views, xray.extract_features(base, batches_of(datagen, multi), tmp_path, 2))
    assert len(calls) == 9
    views, path = np.array(views), min((tmp_path / "features").iterdir())
    path.write_bytes(path.read_bytes()[:-9])  # cut short: it is computed anew
    np.testing.assert_allclose(views, xray.extract_features(base, batches_of(datagen, multi), tmp_path, 2), atol=1e-5)
    assert len(calls) == 13
    fresh = xray.extract_features(base, batches_of(datagen, multi), tmp_path / "fresh", 2)
    np.testing.assert_allclose(views, fresh, rtol=1e-4, atol=1e-5)


def test_what_makes_other_features_makes_other_files(base, multi, tmp_path):
    """Pixels, augmentation, seed, weights, type of numbers; not a folder."""
    other, half = keras.models.clone_model(base), keras.models.clone_model(base)
    other.set_weights([weights + 1e-3 for weights in base.get_weights()])
    half.set_weights(base.get_weights())
    for layer in half.layers:
        layer.dtype_policy = "mixed_bfloat16"
    copy, changed = (shutil.copytree(multi["DATASET"], tmp_path / name) for name in ("copy", "changed"))
    path = str(changed / multi["table"]["file"][3])
    image = cv2.imread(path)
    image[:99, :99] = 255
    cv2.imwrite(path, image)
    plain, mild = ImageDataGenerator(), ImageDataGenerator(rotation_range=5)
    for name, new, network, datagen, options in (
        ("first", True, base, plain, {}),
        ("augmentation", True, base, mild, {}),
        ("seed", True, base, mild, {"seed": 43}),
        ("weights", True, other, plain, {}),
        ("type", True, half, plain, {}),
        ("pixels", True, base, plain, {"folder": changed}),
        ("again", False, base, mild, {}),
        ("folder", False, base, plain, {"folder": copy}),
    ):
        before = kept(tmp_path) if (tmp_path / "features").exists() else set()
        xray.extract_features(network, batches_of(datagen, multi, **options), tmp_path)
        assert len(kept(tmp_path) - before) == new, name


def test_two_runs_into_one_folder(base, multi, tmp_path):
    """At the same time, with different images of equal names: each has the features that it has alone."""
    mirrored = shutil.copytree(multi["DATASET"], tmp_path / "mirrored")
    for file in multi["table"]["file"]:
        cv2.imwrite(str(mirrored / file), cv2.imread(str(mirrored / file))[:, ::-1])

    def run(folder, output):
        return xray.extract_features(base, batches_of(ImageDataGenerator(), multi, folder=folder), tmp_path / output)[0]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, (None, mirrored), ("both", "both"))
    assert len(kept(tmp_path / "both")) == 2 and np.abs(first - second).max() > 0.1
    np.testing.assert_allclose(first, run(None, "alone"), atol=1e-5)
    np.testing.assert_allclose(second, run(mirrored, "alone"), atol=1e-5)


def test_center_and_black_by_hand():
    """Of 10 x 20 pixels, the center of half the height and width is 5 x 10; of 90%, one pixel is left around it."""
    image = np.ones((10, 20, 3))
    assert xray.center_of(image, 0.5) == (slice(2, 7), slice(5, 15))
    assert xray.center_of(image, 0.9) == (slice(0, 9), slice(1, 19))
    hidden = xray.black_out(image, 0.5)
    assert hidden.sum() == 3 * (200 - 50) and not hidden[2:7, 5:15].any() and image.all()
    assert xray.black_out(image, 0).all() and not xray.black_out(image, 1).any()
    square = xray.black_out(np.ones((150, 150, 3)), 0.1)
    assert square.sum() == 3 * (150**2 - 15**2) and not square[67:82, 67:82].any()


def test_plain_features_are_of_the_images(base, multi, tmp_path):
    """As they are, and with the center black, in the order of the paths."""
    paths = [multi["DATASET"] / file for file in multi["table"]["file"][[9, 0, 4]]]
    images = np.stack([keras.utils.load_img(path, target_size=(SIZE, SIZE)) for path in paths]) / 255
    np.testing.assert_allclose(xray.load_images(paths, (SIZE, SIZE)), images)
    np.testing.assert_allclose(xray.plain_features(base, paths, tmp_path), base.predict(images, verbose=0), atol=1e-5)
    images[:, 8:24, 8:24] = 0
    found = xray.plain_features(base, paths, tmp_path, black=0.5)
    np.testing.assert_allclose(found, base.predict(images, verbose=0), atol=1e-5)


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
    """Correct of n, the percentage, the interval; sensitivity is of a class's row, specificity of all others."""
    scored = {"correct": 3, "n": 8, "accuracy": 3 / 8, "ci95": [0.09, 0.76], "majority": 0.5}
    assert re.findall(r"\d+%?", xray.describe(scored)) == ["3", "8", "38%", "95%", "9%", "76%"]
    table = xray.sensitivity_table([[5, 1, 0], [2, 6, 1], [0, 3, 2]], FOUR[:3])
    assert list(table.index) == [xray_data.LABELS[name] for name in FOUR[:3]]
    assert list(table["sensitivity"]) == ["5 of 6 = 83%", "6 of 9 = 67%", "2 of 5 = 40%"]
    assert list(table["specificity"]) == ["12 of 14 = 86%", "7 of 11 = 64%", "14 of 15 = 93%"]


def test_probabilities_by_hand():
    """A sigmoid's output p is (1 - p, p); a softmax stays as it is."""
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


COVID = ARTICLE[ARTICLE["class"] == "covid"]["patient"]
FOLDED = {"all": (ARTICLE["class"].map(FOUR.index), ARTICLE["patient"])}
for kind, rows in xray_data.CONTROLS.items():
    FOLDED[kind] = ([0] * len(COVID) + [1] * len(rows), [*COVID, *rows["patient"]])


@pytest.mark.parametrize("task", FOLDED)
@pytest.mark.parametrize("seed", [42, 1])
def test_folds_hold_patients_together_and_classes_in_balance(task, seed):
    """On the article's images and controls: five folds, each image out once, and of each class about a fifth."""
    labels, patients = (np.array(list(values)) for values in FOLDED[task])
    folds = xray.patient_folds(labels, patients, seed)
    assert len(folds) == 5 and sorted(np.concatenate([out for _, out in folds])) == list(range(len(labels)))
    for train, out in folds:
        assert sorted([*train, *out]) == list(range(len(labels)))
        assert not set(patients[train]) & set(patients[out])
        for label in set(labels):
            count, fifth = np.sum(labels[out] == label), np.sum(labels == label) / 5
            assert abs(count - fifth) <= 2.5, f"{count} of class {label} in a fold; a fifth is {fifth}"


def test_a_fold_that_lacks_a_class_is_said():
    """Where patients are in several classes, one may have all that a class has left: no head trains without it."""
    with pytest.raises(xray_data.SetupError, match="class"):
        xray.patient_folds(np.array([0, 0, 1, 0, 1, 1]), list("ccbadc"), 1)


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


def test_pictures_stand_under_their_titles(monkeypatch):
    """In rows of so many columns, each picture under its own title."""
    images, titles = [np.full((2, 2, 3), number / 10) for number in range(5)], [f"picture {n}" for n in range(5)]
    monkeypatch.setattr(plt, "show", lambda: None)
    xray.plot_images(images, titles, columns=3)
    axes = plt.gcf().axes
    assert [axis.get_title() for axis in axes] == titles
    assert [axis.images[0].get_array()[0, 0, 0] for axis in axes] == [image[0, 0, 0] for image in images]
    assert len({axis.get_subplotspec().rowspan.start for axis in axes}) == 2
    plt.close("all")


@pytest.mark.parametrize("measure, ends", [("accuracy", [0.4, 0.8]), ("auc", [0.6, 0.95])])
def test_points_stand_under_their_names(measure, ends, monkeypatch):
    """Point, interval, and number are of the measure; a hollow point is of black centers, a square of no image."""
    scored = {"accuracy": 0.7, "ci95": [0.4, 0.8], "auc": 0.9, "auc_ci95": [0.6, 0.95]}
    names = ["seen", "center black", "no image"]
    monkeypatch.setattr(plt, "show", lambda: None)
    xray.plot_scores(dict.fromkeys(names, scored), measure, 0.5, {})
    (axis,), lines = plt.gcf().axes, plt.gcf().axes[0].lines
    points = [line for line in lines if len(line.get_xdata()) == 1]
    assert [point.get_xdata()[0] for point in points] == [scored[measure]] * 3
    assert [(point.get_markerfacecolor() == "white", point.get_marker()) for point in points] == [
        (False, "o"), (True, "o"), (False, "s")
    ]  # fmt: skip
    assert [line.get_xdata().tolist() for line in lines if line.get_linewidth() == 3] == [ends] * 3
    assert [text.get_text() for text in axis.texts[:3]] == [f"{name}: {scored[measure]:.2f}" for name in names]
    assert plt.gcf().get_supxlabel().startswith(xray.MEASURES[measure])
    plt.close("all")
