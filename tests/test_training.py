"""What the lessons rest on: one history three ways, Keras's split and pixels, features on disk, statistics."""

import functools
import random
import shutil
from types import SimpleNamespace

import cv2
import keras
import lessons
import numpy as np
import pandas as pd
import pytest
import xray
import xray_data
from conftest import BINARY, MULTI
from keras import layers
from scipy.stats import binomtest
from tensorflow.keras.preprocessing.image import ImageDataGenerator

SIZE = 32  # pixels a side
FOUR = list(xray_data.LABELS)
ARTICLE = xray_data.ARTICLE
FLAGS = dict.fromkeys(["featurewise_center", "featurewise_std_normalization", "zca_whitening"], True)
AUGMENTATION = {  # the article's, from its published notebooks
    "rescale": 1 / 255, "rotation_range": 50, "width_shift_range": 0.2, "height_shift_range": 0.2,
    "shear_range": 0.25, "zoom_range": 0.1, "channel_shift_range": 20, "horizontal_flip": True,
    "vertical_flip": True, "validation_split": 0.2, "fill_mode": "constant",
}  # fmt: skip


@pytest.fixture(scope="module")
def base():
    """A small frozen network in place of VGG16, with the names of two of its layers; features differ widely."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((SIZE, SIZE, 3))
    for layer in (
        layers.Conv2D(8, 5, strides=2, padding="same", activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(16, 3, padding="same", activation="relu", name="block5_conv3"),
        layers.MaxPooling2D(name="block5_pool"),
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


@pytest.fixture(scope="module")
def small(tree, tmp_path_factory):
    """The tree's four classes shrunk, as Multi has them: their folder, and the table with the column `small`."""
    folder = tmp_path_factory.mktemp("small")
    table = xray_data.list_table(tree / "all")
    paths = [tree / "all" / file for file in table["file"]]
    table["small"] = xray_data.shrink_images(paths, table["file"], folder, SIZE)
    return folder, table


def batches_of(datagen, small, batch_size=10, **options):
    """All images in the order of the table, in new views each time."""
    folder, table = small
    options = {"class_mode": None, "target_size": (SIZE, SIZE), "shuffle": False, "seed": 42} | options
    return datagen.flow_from_dataframe(table, folder, x_col="small", batch_size=batch_size, **options)


def build_head(shape, units, hidden=256):
    """A head like the lessons': one sigmoid for units = 1, else a softmax."""
    return keras.Sequential([
        keras.Input(shape),
        layers.Flatten(),
        layers.Dense(hidden, activation="relu"),
        layers.Dense(units, activation="sigmoid" if units == 1 else "softmax"),
    ])  # fmt: skip


def fit_by_epoch(model, views, labels, validation, orders, rate, batch_size):
    """Keras's fit, once an epoch: epoch e on view e of the rows orders[e]; returns a row an epoch.

    views: features for a head, augmented images for a whole model.
    """
    loss = "binary_crossentropy" if model.output_shape[-1] == 1 else "sparse_categorical_crossentropy"
    model.compile(optimizer=keras.optimizers.Adam(rate), loss=loss, metrics=["acc"])
    history = []
    for epoch, rows in enumerate(orders):
        view = views[epoch % len(views)]
        fitted = model.fit(
            view[rows], labels[rows], batch_size=batch_size, shuffle=False, verbose=0,
            validation_data=(view[validation], labels[validation]),
        )  # fmt: skip
        history.append({metric: values[0] for metric, values in fitted.history.items()})
    return pd.DataFrame(history)


def assert_one_history(first, second, images, tolerance=2e-3):
    """Losses agree within `tolerance` of their size, accuracies within one of the fewest `images`."""
    first, second = pd.DataFrame(first).reset_index(drop=True), pd.DataFrame(second).reset_index(drop=True)
    assert len(first) == len(second) and set(first) == set(second) == {"loss", "acc", "val_loss", "val_acc"}
    for metric in first:
        allowed = {"rtol": tolerance} if "loss" in metric else {"atol": 1.01 / images}
        np.testing.assert_allclose(first[metric], second[metric], err_msg=metric, **allowed)


# ------------------------------------------------------------------------------ one history, three ways


def test_part_1_is_the_articles_training(base, lossless, tmp_path, monkeypatch):
    """Binary's own cells, on images shrunk once, have the history of the article's literal generators on originals.

    The article's have its three flags, which so change nothing. A second run of the cells gives the first again.
    """
    monkeypatch.setenv("COVID_XRAY_DATA", str(lossless))
    monkeypatch.setenv("COVID_XRAY_OUTPUT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    starts = []

    def before(name, variables):
        if name == "fit":  # which shuffles the batches with Python's random numbers
            starts.append((random.getstate(), [weights.copy() for weights in variables["model"].get_weights()]))

    settings = {"IMAGE_SIZE": SIZE, "BATCH_SIZE": 3, "NUM_EPOCHS": 4, "VGG16": lambda **_: base}
    ours, again = (lessons.run_lesson(BINARY, settings, "fit", before)["result"].history for _ in range(2))
    with pytest.warns(UserWarning, match="hasn't"):  # been fit, so that the flags do nothing
        datagen = ImageDataGenerator(**AUGMENTATION, **FLAGS)
        options = {"target_size": (SIZE, SIZE), "class_mode": "binary", "batch_size": 3, "shuffle": True, "seed": 42}
        train = datagen.flow_from_directory(lossless / "train", subset="training", **options)
        valid = datagen.flow_from_directory(lossless / "train", subset="validation", **options)
        model = keras.Sequential([base, *build_head(base.output_shape[1:], 1).layers])
        model.set_weights(starts[0][1])
        model.compile(loss="binary_crossentropy", optimizer=keras.optimizers.Adam(5e-4), metrics=["acc"])
        random.setstate(starts[0][0])
        theirs = model.fit(train, validation_data=valid, epochs=4, verbose=0).history
    assert (train.n, valid.n) == (8, 2) and len(starts) == 2
    assert_one_history(ours, theirs, images=8, tolerance=1e-5)
    assert_one_history(ours, again, images=8, tolerance=1e-5)
    assert np.ptp(ours["val_loss"]) > 1e-3  # each epoch validates on views of its own


@pytest.fixture(scope="module")
def drawn(base, small, tmp_path_factory):
    """Three views of all images as arrays, and their features by extract_features; labels, and the rows of splits."""
    datagen = ImageDataGenerator(**AUGMENTATION)
    features = xray.extract_features(base, batches_of(datagen, small), tmp_path_factory.mktemp("drawn"), 3)
    batches = batches_of(datagen, small)
    images = [np.concatenate([batches[index] for index in range(len(batches))]) for _ in range(3)]
    _, table = small
    rows = {split: np.flatnonzero(table["split"] == split) for split in ("train", "validation")}
    return SimpleNamespace(images=images, features=features, labels=table["label"].to_numpy(), **rows)


def test_multis_fit_on_features_is_the_whole_models(base, drawn):
    """Multi's fit_views has the history of base and head in one model, fitted on the same views as images."""
    given = {"SEED": 42, "BATCH_SIZE": 3, "VIEWS_PER_IMAGE": 3, "CLASS_NAMES": FOUR, "CASES": {"four": FOUR}}
    given |= {"keras": keras, "np": np, "pd": pd, "xray_data": xray_data}
    given |= {"labels": drawn.labels, "views": drawn.features, "select": lambda split, case: getattr(drawn, split)}
    lesson = lessons.run_cells(MULTI, "fit-views", **given)
    keras.utils.set_random_seed(1)
    head, other = (build_head(base.output_shape[1:], 4) for _ in range(2))
    other.set_weights(head.get_weights())
    ours = lesson["fit_views"](head, "four", 1e-3, 0, 5)
    orders = [np.random.default_rng([42, epoch]).permutation(drawn.train) for epoch in range(5)]
    model = keras.Sequential([base, other])
    whole = fit_by_epoch(model, drawn.images, drawn.labels, drawn.validation, orders, 1e-3, 3)
    assert_one_history(ours, whole, images=4)
    assert list(ours.index) == [1, 2, 3, 4, 5] and ours["loss"].iloc[-1] < ours["loss"].iloc[0]


@pytest.mark.parametrize("units", [1, 4])
def test_train_head_is_the_whole_models(base, drawn, units):
    """So has xray.train_head; another order or another view would not."""
    labels = drawn.labels % max(units, 2)
    numbers = {"learning_rate": 1e-3, "epochs": 5, "batch_size": 3, "seed": 7}
    build = functools.partial(build_head, base.output_shape[1:], units)
    _, ours = xray.train_head(build, drawn.features, labels, drawn.train, drawn.validation, **numbers)

    def whole(seed=7, images=drawn.images):
        keras.utils.set_random_seed(7)
        model = keras.Sequential([base, build()])
        orders = [np.random.default_rng([seed, epoch]).permutation(drawn.train) for epoch in range(5)]
        return fit_by_epoch(model, images, labels, drawn.validation, orders, 1e-3, 3)

    assert_one_history(ours, whole(), images=4)
    for mistake in ({"seed": 8}, {"images": drawn.images[::-1]}):
        with pytest.raises(AssertionError):
            assert_one_history(ours, whole(**mistake), images=4)


# ----------------------------------------------------------------------------- Keras's split and pixels


@pytest.mark.parametrize("kind", ["two", "all", "lossless"])
def test_split_order_and_pixels_are_kerass(kind, tree, lossless, tmp_path):
    """list_table has the rows of flow_from_directory, shrunk images its pixels; JPEG within a decoder's rounding."""
    folder = lossless if kind == "lossless" else tree / kind
    table = xray_data.list_table(folder)
    paths = [folder / file for file in table["file"]]
    names = xray_data.shrink_images(paths, table["file"], tmp_path, 150)
    shrunk = np.stack([xray_data.read_image(tmp_path / name) for name in names])
    options = {"target_size": (150, 150), "batch_size": 99, "shuffle": False, "class_mode": "sparse"}
    for split, subset in (("train", "training"), ("validation", "validation"), ("test", None)):
        datagen = ImageDataGenerator(validation_split=0.2 if subset else 0)
        place = folder / ("train" if subset else "test")
        batches = datagen.flow_from_directory(place, subset=subset, **options)
        chosen = (table["split"] == split).to_numpy()
        assert [f"{place.name}/{name}" for name in batches.filenames] == list(table["file"][chosen])
        pixels, labels = batches[0]
        np.testing.assert_array_equal(labels, table["label"][chosen])
        assert np.abs(pixels - shrunk[chosen]).max() <= (0 if kind == "lossless" else 2)


DRAWN = {
    "three": ["covid/ryct.2020200034.fig5-day7", "normal/NORMAL2-IM-1406-0001", "normal/NORMAL2-IM-1385-0001"],
    "four": [
        "pneumonia_vir/person966_virus_1639", "normal/NORMAL2-IM-1406-0001",
        "pneumonia_bac/person1945_bacteria_4872", "pneumonia_vir/person961_virus_1634",
    ],
}  # fmt: skip


def test_the_articles_draw(tmp_path, capsys):
    """The test images that the lessons' cells draw, under the article's names: two, three, and four."""
    test = ARTICLE[ARTICLE["split"] == "test"]
    for name in test["class"] + "/" + test["filename"]:
        target = tmp_path / "test" / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target), np.full((8, 8, 3), 99, np.uint8))
    model = SimpleNamespace(evaluate=lambda *_, **__: (0.0, 1.0))
    given = {"SMALL": tmp_path, "IMAGE_SIZE": 8, "SEED": 42, "BATCH_SIZE": 10}
    given |= {"test_datagen": ImageDataGenerator(), "CLASS_NAMES": FOUR[:2], "IS_ARTICLE": True}
    given |= {"model": model, "models": {"three": model, "four": model}}
    given |= {"CASES": {"three": FOUR[:3], "four": FOUR}, "show_predictions": lambda case, order: None}
    binary = lessons.run_cells(BINARY, "imports")
    flow = given["test_datagen"].flow_from_directory(tmp_path / "test", classes=FOUR[:2], batch_size=1, shuffle=False)
    capsys.readouterr()
    lessons.run_cells(BINARY, "article-steps", **binary | given | {"test_batches": flow})
    printed = capsys.readouterr().out
    names = [word.split(".jp")[0] for word in printed.split() if word.startswith(tuple(FOUR))]
    assert names == 2 * ["covid/nejmoa2001191_f3-PA", "covid/nejmoa2001191_f4"] and "shuffle=True" in printed
    draws = lessons.run_cells(MULTI, "draw", **lessons.run_cells(MULTI, "imports") | given)["draws"]
    for case, expected in DRAWN.items():
        rows = test[test["class"].isin(given["CASES"][case])].sort_values(["class", "filename"])
        files = (rows["class"] + "/" + rows["filename"]).tolist()
        assert [files[index].rsplit(".", 1)[0] for index in draws[case]] == expected


# ------------------------------------------------------------------------------------------- features


def kept(output):
    """The names of the files of features."""
    return {path.name for path in (output / "features").iterdir()}


def test_features_are_in_the_order_of_the_table(base, small, tmp_path):
    """Whatever that is, and in batches of any size; views are like the generator's passes, no two alike."""
    folder, table = small
    table = table.sample(frac=1, random_state=1).reset_index(drop=True)
    images = np.stack([xray_data.read_image(folder / name) for name in table["small"]]) / 255
    expected = base.predict(images, verbose=0)
    batches = batches_of(ImageDataGenerator(rescale=1 / 255), (folder, table), batch_size=7)
    for features in (
        xray.plain_features(base, folder, table["small"], tmp_path),
        xray.extract_features(base, batches, tmp_path)[0],
    ):
        np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4)
    views = xray.extract_features(base, batches_of(ImageDataGenerator(**AUGMENTATION), small), tmp_path, 3)
    assert views[0].dtype == np.float32 and len(kept(tmp_path)) == 5
    assert all(np.abs(views[first] - views[second]).max() > 0.1 for first, second in ((0, 1), (0, 2), (1, 2)))


def test_a_second_run_computes_nothing(base, small, tmp_path, monkeypatch):
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
        xray.extract_features(base, batches_of(datagen, small), tmp_path, 2)
    assert len(kept(tmp_path)) == 1 and len(calls) == 5
    views = xray.extract_features(base, batches_of(datagen, small), tmp_path, 2)
    assert len(kept(tmp_path)) == 2 and len(calls) == 9
    again = xray.extract_features(base, batches_of(datagen, small), tmp_path, 2)
    assert len(calls) == 9
    np.testing.assert_array_equal(views, again)
    fresh = xray.extract_features(base, batches_of(datagen, small), tmp_path / "fresh", 2)
    np.testing.assert_allclose(views, fresh, rtol=1e-4, atol=1e-5)


def test_what_makes_other_features_makes_other_files(base, small, tmp_path):
    """Pixels, augmentation, seed, black share, weights, batch size, order; not a folder or the name of a function."""
    folder, table = small
    seen = set()

    def is_new(base, datagen, small=small, **options):
        xray.extract_features(base, batches_of(datagen, small, **options), tmp_path)
        new = kept(tmp_path) - seen
        seen.update(new)
        return bool(new)

    def by_another_name(image):
        return xray.black_out(image, 0.5)

    def black(share):
        return ImageDataGenerator(preprocessing_function=functools.partial(xray.black_out, share=share))

    plain, mild, more = ImageDataGenerator(), ImageDataGenerator(rotation_range=5), ImageDataGenerator(rotation_range=6)
    assert is_new(base, plain) and is_new(base, mild) and is_new(base, more) and is_new(base, mild, seed=43)
    assert is_new(base, black(0.5)) and is_new(base, black(0.9)) and is_new(base, plain, batch_size=9)
    assert is_new(base, plain, (folder, table[::-1]))
    other = keras.models.clone_model(base)
    other.set_weights([weights + 1e-3 for weights in base.get_weights()])
    assert is_new(other, plain)
    copy = shutil.copytree(folder, tmp_path / "copy")
    for datagen in (plain, mild, black(0.5), ImageDataGenerator(preprocessing_function=by_another_name)):
        assert not is_new(base, datagen) and not is_new(base, datagen, (copy, table))
    image = cv2.imread(str(copy / table["small"][3]))
    image[5, 5] += 1
    cv2.imwrite(str(copy / table["small"][3]), image)
    assert is_new(base, plain, (copy, table)) and not list((tmp_path / "features").glob(".*"))


def test_black_out_hides_the_center():
    """The central share of height and width, even or odd, and nothing else; the original stays."""
    rng = np.random.default_rng(0)
    for height, width in ((150, 150), (10, 7), (9, 8)):
        image = rng.integers(1, 256, (height, width, 3), np.uint8)
        for share in (0, 0.5, 0.7, 0.9, 1):
            before, hidden = image.copy(), xray.black_out(image, share)
            black = (hidden == 0).all(axis=2)
            rows, columns = np.flatnonzero(black.any(axis=1)), np.flatnonzero(black.any(axis=0))
            assert (len(rows), len(columns)) == (round(height * share), round(width * share))
            assert black.sum() == len(rows) * len(columns) and hidden.dtype == image.dtype
            for side, inner in ((height, rows), (width, columns)):
                assert not len(inner) or abs(inner[0] - (side - 1 - inner[-1])) <= 1
            np.testing.assert_array_equal(hidden[~black], image[~black])
            np.testing.assert_array_equal(image, before)


# ---------------------------------------------------------------------------------------------- heads


def random_views(count=3, n=14, shape=(2, 2, 4)):
    """Features of views that differ widely: each is twice the size of the one before."""
    rng = np.random.default_rng(0)
    return [(2.0**view * rng.random((n, *shape))).astype(np.float32) for view in range(count)]


@pytest.mark.parametrize("units", [1, 3])
def test_a_short_last_batch_counts_its_rows_alone(units):
    """Batches of five of 10, 11, and 3 rows: as Keras's fit."""
    views, labels, validation = random_views(), np.arange(14) % max(units, 2), np.array([11, 12, 13])
    build = functools.partial(build_head, (2, 2, 4), units, 16)
    for count in (10, 11, 3):
        numbers = {"learning_rate": 1e-2, "epochs": 4, "batch_size": 5, "seed": 3}
        ours, history = xray.train_head(build, views, labels, np.arange(count), validation, **numbers)
        keras.utils.set_random_seed(3)
        theirs = build()
        orders = [np.random.default_rng([3, epoch]).permutation(count) for epoch in range(4)]
        expected = fit_by_epoch(theirs, views, labels, validation, orders, 1e-2, 5)
        assert_one_history(history, expected, images=11)
        for first, second in zip(ours.get_weights(), theirs.get_weights()):
            np.testing.assert_allclose(first, second, atol=2e-3)


def test_a_head_depends_on_its_seed_alone():
    """Not on the heads trained before it, or on random numbers drawn elsewhere."""

    def train(seed, units=2):
        build = functools.partial(build_head, (2, 2, 4), units, 16)
        numbers = {"learning_rate": 1e-2, "epochs": 3, "batch_size": 4, "seed": seed}
        head, history = xray.train_head(build, random_views(), np.arange(14) % max(units, 2), np.arange(11), **numbers)
        assert set(history) == {"loss", "acc"}
        return np.concatenate([weights.ravel() for weights in head.get_weights()])

    first = train(1)
    others = [train(2), train(1, units=1)]
    keras.utils.set_random_seed(99)
    np.testing.assert_allclose(train(1), first, rtol=1e-5, atol=1e-7)
    assert len(others[1]) != len(first) and np.abs(others[0] - first).max() > 1e-2


# ----------------------------------------------------------------------------------------- statistics


def test_share_interval_by_hand():
    """Exact by patient: 18 of 18 X-rays of 14 patients leave 71% to 100%; by image it would be 81%."""
    test = ARTICLE[(ARTICLE["split"] == "test") & ARTICLE["class"].isin(FOUR[:2])]
    sizes = test["patient"].value_counts()
    assert (sizes.sum(), len(sizes)) == (18, 14)
    low, high = xray.share_interval(np.ones(18, bool), test["patient"])
    assert low == pytest.approx(0.025 ** ((sizes**2).sum() / 18**2)) and round(low, 2) == 0.71 and high == 1
    for right in (0, 1, 9, 17, 18):  # a patient each, or each with three X-rays that agree: Clopper and Pearson's
        hits, theirs = np.arange(18) < right, binomtest(right, 18).proportion_ci()
        for times in (1, 3):
            ends = xray.share_interval(np.repeat(hits, times), np.repeat(np.arange(18), times))
            assert ends == pytest.approx([theirs.low, theirs.high])
    assert xray.share_interval(np.ones(5, bool), ["p"] * 5) == pytest.approx([0.025, 1])  # one patient says little
    assert xray.share_interval(np.ones(0, bool), []) == [0, 1]


def test_intervals_cover_the_truth():
    """Of 100 samples of 40 patients, each with one to five X-rays that agree, most; by image, too few."""
    rng, truth, covered = np.random.default_rng(5), 0.8, np.zeros(3)
    for _ in range(100):
        sizes = rng.integers(1, 6, 40)
        hits, patients = np.repeat(rng.random(40) < truth, sizes), np.repeat(np.arange(40), sizes)
        ends = [xray.share_interval(hits, patients)]
        for units in (patients, np.arange(len(hits))):
            ends.append(xray.bootstrap_interval(np.mean, hits, units, draws=100))
        covered += [low <= truth <= high for low, high in ends]
    assert covered[0] >= 93 and covered[1] >= 87 and covered[2] < 83, covered


def test_bootstrap_draws_patients():
    """Each draw has as many patients as there are, with all of their X-rays; the same seed gives the same interval."""
    patients, drawn = np.array(list("aaabbc")), []

    def note(rows):
        drawn.append(rows)
        return len(rows)

    interval = xray.bootstrap_interval(note, np.arange(6), patients, seed=1, draws=50)
    assert interval == xray.bootstrap_interval(len, np.arange(6), patients, seed=1, draws=50)
    for rows in drawn:
        counts = [np.sum(patients[rows] == name) / np.sum(patients == name) for name in "abc"]
        assert sum(counts) == 3 and all(count == int(count) for count in counts)
    assert len({tuple(sorted(rows)) for rows in drawn}) > 5


def test_score_by_hand():
    """Four images of three patients, one missed, 3 of 4 pairs in order; three classes have no area."""
    covid = np.array([0.9, 0.2, 0.1, 0.4])
    labels, patients = np.array([0, 0, 1, 1]), list("abcc")
    folds = [(np.array([2, 3]), np.array([0, 1])), (np.array([0, 1]), np.array([2, 3]))]
    scored = xray.score(labels, np.stack([covid, 1 - covid], axis=1), patients, folds)
    assert (scored["n"], scored["patients"], scored["correct"], scored["accuracy"]) == (4, 3, 3, 0.75)
    assert scored["confusion"] == [[1, 1], [0, 2]] and scored["majority"] == 0.5 and scored["auc"] == 0.75
    assert scored["ci95"] == xray.share_interval([True, False, True, True], patients) and scored["folds"] == [0.5, 1]
    assert scored["auc_ci95"][0] < 0.75 <= scored["auc_ci95"][1]
    assert xray.describe(scored | {"ci95": [0.1, 0.9]}).startswith("3 of 4 = 75% (")
    three = xray.score(np.array([0, 1, 1, 2]), np.eye(3)[[0, 1, 2, 2]], list("abcd"))
    assert three["confusion"] == [[1, 0, 0], [0, 1, 1], [0, 0, 1]] and not {"auc", "folds"} & set(three)
    perfect = xray.score(labels, np.eye(2)[labels], patients)
    assert perfect["auc"] == 1 and "auc_ci95" not in perfect  # a bootstrap has no width here
    nothing = xray.score(np.zeros(0, int), np.zeros((0, 2)), [])
    assert (nothing["n"], nothing["correct"], nothing["accuracy"], nothing["ci95"]) == (0, 0, 0, [0, 1])
    table = xray.sensitivity_table([[8, 1], [3, 6]], FOUR[:2])
    assert table.loc["COVID-19"].to_list() == ["8 of 9 = 89%", "6 of 9 = 67%"]


def test_score_controls_by_hand(tmp_path, monkeypatch):
    """The 83 controls: 51 have a right answer; two, filed as pneumonia, are recorded as normal X-rays and have none."""
    monkeypatch.setattr(xray_data, "fetch_controls", lambda table, pictures: np.ones(len(table), bool))
    controls, nih = (
        xray_data.find_controls(kind, tmp_path, xray_data.ARTICLE_NAME, tmp_path)
        for kind in ("controls", "nih_no_finding")
    )
    assert (len(controls), controls["patient"].nunique(), len(nih), nih["patient"].nunique()) == (83, 47, 80, 80)
    assert (controls["answer"] != "").sum() == 51

    def scored(names, table=controls, class_names=FOUR):
        return xray.score_controls(lambda x: x, np.eye(4)[[FOUR.index(name) for name in names]], table, class_names)

    right = scored(np.where(controls["answer"] == "", "covid", controls["answer"]))
    assert right["predicted_covid"] == 32 and right["with_right_answer"]["correct"] == 51
    counts = {name: (row["n"], row["predicted_covid"]) for name, row in right["by_finding"].items()}
    assert counts["viral pneumonia"] == (21, 0) and counts["fungal pneumonia"] == (13, 13)
    assert counts["bacterial pneumonia"] == (32, 2) and counts["other or unspecified"] == (17, 17)
    always = scored(["covid"] * 83)
    assert always["predicted_covid"] == 83 and always["with_right_answer"]["correct"] == 0
    assert always["ci95"] == xray.share_interval(np.ones(83, bool), controls["patient"])
    healthy = scored(["normal"] * 50 + ["covid"] * 30, nih)
    assert healthy["predicted_covid"] == 30 and healthy["with_right_answer"]["correct"] == 50
    assert healthy["with_right_answer"]["ci95"] == pytest.approx(xray.exact_interval(50, 80))
    two = xray.score_controls(lambda x: x[:, :2], np.eye(4)[[0] * 83], controls, FOUR[:2])
    assert two["with_right_answer"]["n"] == 0 and two["predicted_covid"] == 83


FOLDED = {
    "all": (ARTICLE["class"].map(FOUR.index), ARTICLE["patient"]),
    "two": tuple(ARTICLE[ARTICLE["class"].isin(FOUR[:2])][["class", "patient"]].to_numpy().T),
}
COVID = ARTICLE[ARTICLE["class"] == "covid"]["patient"]
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
    others = [tuple(out) for _, out in xray.patient_folds(labels, patients, seed + 10)]
    assert len({tuple(out) for _, out in folds} & set(others)) <= 1  # the seed draws patients


def test_few_patients_make_few_folds(capsys):
    """Two to four patients in a class make as many folds, and a line says so; one is an error."""
    for people in (2, 3, 4, 5):
        labels = np.repeat([0, 1], [2 * people, 12])
        patients = [f"a{row // 2}" for row in range(2 * people)] + [f"b{row}" for row in range(12)]
        folds = xray.patient_folds(labels, patients, 0)
        assert len(folds) == people and all(set(labels[train]) == set(labels[out]) == {0, 1} for train, out in folds)
        assert capsys.readouterr().out.startswith(f"{people} folds instead of 5") == (people < 5)
    with pytest.raises(xray_data.SetupError, match=r"patients\.csv"):
        xray.patient_folds([0, 0, 1, 1], ["a", "a", "b", "c"], 0)


# ------------------------------------------------------------------------------------------- heat maps


@pytest.mark.parametrize("layer", ["block5_conv3", "block5_pool"])
@pytest.mark.parametrize("units", [1, 3])
def test_hires_cam_adds_up_to_the_score(base, layer, units):
    """For a head of one layer: the score less its bias, through pooling too."""
    activation = "sigmoid" if units == 1 else "softmax"
    dense = layers.Dense(units, activation=activation, bias_initializer="random_normal")
    head = keras.Sequential([keras.Input(base.output_shape[1:]), layers.Flatten(), dense])
    images = np.random.default_rng(0).random((4, SIZE, SIZE, 3))
    classes = np.array([0, 1, 1, 0]) if units == 1 else np.array([0, 2, 1, 0])
    maps = xray.hires_cam(base, head, images, classes, layer)
    assert maps.shape == ((4, 8, 8) if layer == "block5_conv3" else (4, 4, 4))
    scores = base.predict(images, verbose=0).reshape(4, -1) @ head.get_weights()[0]
    scores = np.hstack([-scores, scores]) if units == 1 else scores
    expected = scores[np.arange(4), classes]
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
