"""What speed rests on: a head on features of a frozen base trains as the whole model does."""

import hashlib
import json
import os
import subprocess
import sys
import textwrap
import zipfile

import cv2
import keras
import lessons
import numpy as np
import pandas as pd
import phantoms
import pytest
import xray
import xray_data
from conftest import BINARY, MULTI, ROOT, SHARED, clean_environment, real_images
from tensorflow.keras.preprocessing.image import ImageDataGenerator

SIZE = 64  # pixels a side: VGG16 returns 2 x 2 x 512
FOUR = list(xray_data.LABELS)
SETTINGS = {"SEED": 42, "BATCH_SIZE": 2, "NUM_EPOCHS": 7, "VIEWS_PER_IMAGE": 3, "LEARNING_RATE": 5e-4}
SETTINGS |= {"FINE_TUNE_EPOCHS": 2, "FINE_TUNE_LEARNING_RATE": 5e-5}
METRICS = {"loss", "acc", "val_loss", "val_acc"}


def run_cells(notebook, *names, **given):
    """Run cells of a lesson with the settings above and all that its imports give; return all variables."""
    given = {"xray": xray, "xray_data": xray_data, **SETTINGS, **given}
    return lessons.run_cells(notebook, "imports-libraries", *names, **given)


AUGMENTED = run_cells(BINARY, "augmentation")["train_datagen"]


@pytest.fixture(scope="module")
def base(weights):
    """Return the frozen base with VGG16's ImageNet weights, for small images."""
    shape = (SIZE, SIZE, 3)
    base = keras.applications.VGG16(weights=str(weights), include_top=False, input_shape=shape)
    base.trainable = False
    return base


@pytest.fixture(scope="module")
def loaded(tree):
    """Return the images of two classes and their table."""
    return xray_data.load_images(tree / "two", SIZE, 0.4)


@pytest.fixture
def run(tmp_path):
    """Return the record of a run in float32 whose results go to tmp_path."""
    return xray.Run("test", 42, "float32", tmp_path)


def build_head(shape, units, hidden=256, activation="relu", names=None):
    """Return a head like the lessons': one sigmoid for units = 1, else a softmax."""
    names = names or [None] * 3
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Flatten(name=names[0]),
            keras.layers.Dense(hidden, activation=activation, name=names[1]),
            keras.layers.Dense(units, activation="sigmoid" if units == 1 else "softmax", name=names[2]),
        ]
    )


def open_loop(model, inputs, labels, train, validation, rate, epochs, first_epoch=0, batch_size=2, seed=42):
    """Train a model as the first lesson does in the open, and from a later epoch too; returns a row an epoch.

    inputs: an array a view, of features for a head, of augmented images for a whole model.
    """
    single = model.output_shape[-1] == 1
    loss = "binary_crossentropy" if single else "sparse_categorical_crossentropy"
    model.compile(optimizer=keras.optimizers.Adam(rate), loss=loss, metrics=["acc"])
    order = np.random.default_rng(seed)
    orders = [order.permutation(train) for _ in range(first_epoch + epochs)]
    history = []
    for epoch in range(first_epoch, first_epoch + epochs):
        view, rows = inputs[epoch % len(inputs)], orders[epoch]
        scored = None if validation is None else (view[validation], labels[validation])
        options = {"batch_size": batch_size, "shuffle": False, "validation_data": scored, "verbose": 0}
        fitted = model.fit(view[rows], labels[rows], **options)
        history.append({metric: values[0] for metric, values in fitted.history.items()})
    return pd.DataFrame(history)


def assert_one_history(first, second, train, validation, tolerance):
    """Losses are within `tolerance` of their size, accuracies within one image."""
    assert len(first) == len(second)
    assert set(first) == set(second) == (METRICS if validation is not None else {"loss", "acc"})
    for metric in first:
        if metric.endswith("loss"):
            np.testing.assert_allclose(first[metric], second[metric], rtol=tolerance, err_msg=metric)
        else:
            n = len(validation) if metric == "val_acc" else len(train)
            np.testing.assert_allclose(first[metric], second[metric], atol=1.01 / n, err_msg=metric)


def assert_one_training(first, second, starts, share):
    """From the same weights, two heads went to the same place, within a `share` of the way."""
    for ours, theirs, start in zip(first.get_weights(), second.get_weights(), starts):
        moved = np.linalg.norm(theirs - start)
        assert moved > 0 and np.linalg.norm(ours - theirs) < share * moved


def random_views(count=3, n=12, shape=(2, 2, 4), seed=0):
    """Return features of views that differ widely: each is ten times the size of the one before."""
    rng = np.random.default_rng(seed)
    return [(10.0**view * rng.random((n, *shape))).astype(np.float16) for view in range(count)]


def fresh_head(seed, units=2, **options):
    """Return a new head for random_views, as a lesson makes one."""
    keras.utils.set_random_seed(seed)
    return build_head((2, 2, 4), units, **options)


def train_one(seed, units=2, rows=10, epochs=4, batch_size=2, **options):
    """Train a new head on random views; returns its history and a hash of its weights."""
    head, labels = fresh_head(seed, units, **options), np.arange(12) % max(units, 2)
    numbers = {"learning_rate": 1e-3, "epochs": epochs, "batch_size": batch_size, "seed": seed}
    history = xray.fit_head(head, random_views(), labels, np.arange(rows), np.arange(rows, 12), **numbers)
    weights = b"".join(array.tobytes() for array in head.get_weights())
    return history.to_dict("list"), hashlib.sha256(weights).hexdigest()


# --- One history


def three_views(run, base, images):
    """Return features of three views, and the augmented images that they are of."""
    views = xray.extract_features(base, AUGMENTED, images, 3, run)
    assert views[0].dtype == np.float16 and len(images) <= 32  # so that flow draws a view in one batch
    plain = {"batch_size": 32, "shuffle": False}
    return views, [AUGMENTED.flow(images, seed=42 + 1000 * view, **plain)[0] for view in range(3)]


@pytest.mark.parametrize("units", [1, 2])
def test_three_ways_to_train_have_one_history(run, base, loaded, units):
    """Seven epochs of three views, and two at a lower rate: the lesson's loop, fit_head, and plain Keras end to end.

    The first is Binary's own cell; for a softmax it is the same loop in this file, and fit_head is what
    Multi's own cells make of it. The third is base and head as one model, `fit` an epoch at a time on
    augmented images, with the same view's images as its validation_data. The two at a lower rate are the
    article's fine-tuning: they go on with epoch 7's view and order, and a new optimizer.

    Features pass through float16, which has 11 bits: losses may differ by 5e-3 of their size, an accuracy
    by one image. The loop and fit_head read the same features, so only the order of sums differs. In
    float32, the loop on features is the whole model's training but for that, too.
    """
    images, table = loaded
    labels = table["label"].to_numpy()
    train, validation = (np.flatnonzero(table["split"] == split) for split in ("train", "validation"))
    assert len(train) and len(validation)
    views, seen = three_views(run, base, images)
    given = {"table": table, "labels": labels, "conv_base": base}
    if units == 1:
        lesson = run_cells(BINARY, "head", "splits", "training", "train-head", views=views, **given)
        loop_head, loop = lesson["head"], [lesson["history"]]
        assert set(lesson["train"]) == set(train) and set(lesson["validation"]) == set(validation)
        keras.utils.set_random_seed(42)
        head, other = lesson["build_head"](), lesson["build_head"]()
        other.set_weights(head.get_weights())
        starts = head.get_weights()
        numbers = {"batch_size": 2, "seed": 42}
        ours = [xray.fit_head(head, views, labels, train, validation, learning_rate=5e-4, epochs=7, **numbers)]
        again = lesson["train_head"](views, labels, train)
        for first, second in zip(head.get_weights(), again.get_weights()):
            np.testing.assert_array_equal(first, second)  # every other head of the lesson is such a one
        numbers["first_epoch"] = 7
        ours.append(xray.fit_head(head, views, labels, train, validation, learning_rate=5e-5, epochs=2, **numbers))
    else:
        given |= {"CASES": {"two": FOUR[:2]}, "LARGEST": "two"}
        cells = "select", "head", "train-head", "training", "fine-tuning"
        lesson = run_cells(MULTI, *cells, views=views, **given)
        head = lesson["heads"]["two", "fine_tuned"]
        ours = [lesson["histories"]["two", name] for name in ("article", "fine_tuned")]
        keras.utils.set_random_seed(42)
        loop_head, other = (lesson["build_head"](2) for _ in range(2))
        other.set_weights(loop_head.get_weights())
        starts = loop_head.get_weights()
        loop = [open_loop(loop_head, views, labels, train, validation, 5e-4, 7)]
    loop.append(open_loop(loop_head, views, labels, train, validation, 5e-5, 2, first_epoch=7))
    model, frozen = keras.Sequential([base, other]), base.get_weights()
    whole = [
        open_loop(model, seen, labels, train, validation, rate, epochs, first_epoch=first)
        for rate, epochs, first in ((5e-4, 7, 0), (5e-5, 2, 7))
    ]
    exact_head = keras.models.clone_model(head)
    exact_head.set_weights(starts)
    exact = [base.predict(view, verbose=0) for view in seen]
    exactly = open_loop(exact_head, exact, labels, train, validation, 5e-4, 7)
    assert_one_history(exactly, whole[0], train, validation, 1e-4)
    for part in range(2):
        assert len(ours[part]) == (7, 2)[part]
        assert_one_history(ours[part], loop[part], train, validation, 1e-4)
        assert_one_history(ours[part], whole[part], train, validation, 5e-3)
        assert_one_history(loop[part], whole[part], train, validation, 5e-3)
    assert_one_training(head, loop_head, starts, 0.01)
    assert_one_training(head, other, starts, 0.05)
    for before, after in zip(frozen, base.get_weights()):
        np.testing.assert_array_equal(before, after)


def test_another_order_or_view_is_another_history():
    """The comparison above bites: one epoch's order or view exchanged moves losses by more than it allows."""
    views, labels, rows = random_views(), np.arange(12) % 2, np.arange(12)
    views = [view / 10.0**number for number, view in enumerate(views)]  # of one size, as real views are
    arguments = labels, rows[:8], rows[8:], 1e-2, 4
    right = open_loop(fresh_head(7), views, *arguments)
    wrong = {
        "order": open_loop(fresh_head(7), views, *arguments, seed=43),
        "views": open_loop(fresh_head(7), views[::-1], *arguments),
        "epoch": open_loop(fresh_head(7), views, *arguments, first_epoch=1),
        "validation": open_loop(fresh_head(7), views, labels, rows[:8], rows[7:11], 1e-2, 4),
    }
    for name, history in wrong.items():
        apart = np.abs(history / right - 1)[["loss", "val_loss"]].max().max()
        assert apart > 0.02, (name, apart)


# --- fit_head


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
@pytest.mark.parametrize("units", [1, 3])
def test_batches_and_folds_of_any_size(units, batch_size):
    """Twelve rows, then 11, 7, and 1, as other folds have: each trains as `fit` does, with or without a last
    batch that is smaller, and with one that is larger than the set.
    """
    views, labels = random_views(n=14), np.arange(14) % max(units, 2)
    for count in (12, 11, 7, 1):
        train, validation = np.arange(14)[:count], np.arange(14)[12:] if count > 7 else None
        heads = [fresh_head(count, units) for _ in range(2)]
        starts = heads[0].get_weights()
        numbers = {"batch_size": batch_size, "seed": count}
        ours = xray.fit_head(heads[0], views, labels, train, validation, learning_rate=1e-3, epochs=4, **numbers)
        loop = open_loop(heads[1], views, labels, train, validation, 1e-3, 4, **numbers)
        assert_one_history(ours, loop, train, validation, 1e-4)
        assert_one_training(*heads, starts, 0.01)


HEADS = {
    "tanh": [keras.layers.Flatten(), keras.layers.Dense(16, "tanh"), keras.layers.Dense(2, "softmax")],
    "linear": [keras.layers.Flatten(), keras.layers.Dense(5, "softmax")],
    "linear, one sigmoid": [keras.layers.Flatten(), keras.layers.Dense(1, "sigmoid")],
    "pooled": [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(8, "gelu"), keras.layers.Dense(1, "sigmoid")],
    "deep": [
        keras.layers.Flatten(),
        *(keras.layers.Dense(9, "elu") for _ in range(3)),
        keras.layers.Dense(4, "softmax"),
    ],
    "normalized": [keras.layers.BatchNormalization(), keras.layers.Flatten(), keras.layers.Dense(2, "softmax")],
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_any_architecture(name):
    """Other units, activations, losses, depths, and weights that no gradient moves: as `fit` trains them."""
    keras.utils.set_random_seed(3)
    heads = [keras.Sequential([keras.Input((2, 2, 4)), *HEADS[name]])]
    heads.append(keras.models.clone_model(heads[0]))
    heads[1].set_weights(heads[0].get_weights())
    starts, labels, rows = heads[0].get_weights(), np.arange(12) % max(heads[0].output_shape[-1], 2), np.arange(12)
    ours = xray.fit_head(
        heads[0], random_views(), labels, rows[:9], rows[9:], learning_rate=1e-3, epochs=5, batch_size=4
    )
    loop = open_loop(heads[1], random_views(), labels, rows[:9], rows[9:], 1e-3, 5, batch_size=4)
    assert_one_history(ours, loop, rows[:9], rows[9:], 1e-4)
    assert_one_training(*heads, starts, 0.01)


def test_validation_is_scored_on_the_view_of_its_epoch():
    """At rate 0, views that differ widely give three values in turn, those of `evaluate`."""
    views, labels, rows = random_views(), np.arange(12) % 2, np.arange(12)
    head = fresh_head(1)
    numbers = {"learning_rate": 0.0, "batch_size": 2}
    history = xray.fit_head(head, views, labels, rows[:8], rows[8:], epochs=7, **numbers)
    head.compile(loss="sparse_categorical_crossentropy", metrics=["acc"])
    direct = [head.evaluate(view[8:].astype("float32"), labels[8:], verbose=0) for view in views]
    for metric, expected in zip(("val_loss", "val_acc"), zip(*direct)):
        np.testing.assert_allclose(history[metric], [expected[k % 3] for k in range(7)], rtol=1e-5)
    losses = list(history["val_loss"])
    first, second, third = losses[:3]
    assert min(abs(first - second), abs(second - third), abs(first - third)) > 0.01
    assert losses[:4] == losses[3:]
    later = xray.fit_head(head, views, labels, rows[:8], rows[8:], epochs=2, first_epoch=7, **numbers)
    assert list(later["val_loss"]) == [second, third]
    assert set(xray.fit_head(head, views, labels, rows[:8], epochs=1, **numbers)) == {"loss", "acc"}


@keras.saving.register_keras_serializable("tests")
class Note(keras.layers.Layer):
    """A layer that notes every batch that it is given, and whether it is one of training."""

    batches = []

    def call(self, inputs, training=False):
        if hasattr(inputs, "numpy"):  # the model is built from symbols
            self.batches.append((training, inputs.numpy()[:, 0].tolist()))
        return inputs


def test_an_epoch_goes_through_its_view_once(monkeypatch):
    """Each row once, in batches of 3, 3, and 1, in an order fixed by seed and epoch; then validation, at once."""
    views = [np.arange(9, dtype=np.float16)[:, None] + 100 * view for view in range(2)]
    labels, train, validation = np.arange(9), np.array([0, 2, 3, 5, 6, 7, 8]), np.array([4, 1])
    seen, compile_worker = [], xray.compile_worker

    def spy(head):
        worker, optimizer, train_epoch, score_view = compile_worker(head)

        def noted(x, y, batch_size):
            seen.append((x, y))
            return train_epoch(x, y, batch_size)

        return worker, optimizer, noted, score_view

    def rows_of(seed, first_epoch, epochs=1):
        keras.utils.set_random_seed(0)
        head = keras.Sequential([keras.Input((1,)), Note(), keras.layers.Dense(9, "softmax")])
        Note.batches.clear()
        seen.clear()
        numbers = {"learning_rate": 1e-3, "batch_size": 3, "seed": seed, "first_epoch": first_epoch}
        xray.fit_head(head, views, labels, train, validation, epochs=epochs, **numbers)
        orders = []
        for number, (x, y) in enumerate(seen):
            offset = 100 * ((first_epoch + number) % 2)
            assert x.dtype == np.float16  # half the memory of float32
            np.testing.assert_array_equal(x[:, 0], y + offset)
            batches = Note.batches[4 * number : 4 * number + 4]
            assert [(training, len(rows)) for training, rows in batches] == [
                (True, 3),
                (True, 3),
                (True, 1),
                (False, 2),
            ]
            assert batches[3][1] == [4 + offset, 1 + offset]
            orders.append([int(row - offset) for _, rows in batches[:3] for row in rows])
            assert orders[-1] == list(y)
        assert len(orders) == epochs and len(Note.batches) == 4 * epochs
        return orders

    monkeypatch.setattr(xray, "COMPILED", {})
    monkeypatch.setattr(xray, "compile_worker", spy)
    xray.tf.config.run_functions_eagerly(True)
    try:
        orders = rows_of(42, 0, epochs=5)
        assert all(sorted(order) == list(train) for order in orders)
        assert len(set(map(tuple, orders))) == 5 and [rows_of(42, epoch)[0] for epoch in range(5)] == orders
        assert rows_of(43, 0)[0] != orders[0]
        order = np.random.default_rng(42)
        assert orders == [list(order.permutation(train)) for _ in range(5)]  # as in the lesson's loop
    finally:
        xray.tf.config.run_functions_eagerly(False)


def test_training_starts_from_the_weights_passed_in():
    """At rate 0 a head keeps its weights; from other weights it trains elsewhere; its optimizer is as new each time."""
    views, labels, rows = random_views(), np.arange(12) % 2, np.arange(12)
    for seed in (7, 8):
        head = fresh_head(seed)
        before = head.get_weights()
        xray.fit_head(head, views, labels, rows, learning_rate=0.0, epochs=2)
        for first, second in zip(before, head.get_weights()):
            np.testing.assert_array_equal(first, second)
    assert train_one(7) != train_one(8)
    head, history = fresh_head(7), []
    start = head.get_weights()
    for _ in range(2):  # Adam's moments of the first training do not reach the second
        head.set_weights(start)
        history.append(xray.fit_head(head, views, labels, rows, learning_rate=1e-3, epochs=3, batch_size=2))
    pd.testing.assert_frame_equal(*history, check_exact=True)
    moved = [np.abs(after - before).max() for after, before in zip(head.get_weights(), start)]
    assert min(moved) > 1e-4
    first = xray.fit_head(head, views, labels, rows, learning_rate=1e-3, epochs=1, batch_size=2)
    assert first["loss"].iloc[0] < history[0]["loss"].iloc[0]  # it goes on from where it came to


def test_frozen_layers_stay():
    """A layer that is not trainable keeps its weights, and does not share a worker with one that is."""
    head = fresh_head(5)
    xray.fit_head(head, random_views(), np.arange(12) % 2, np.arange(12), learning_rate=1e-2, epochs=1)
    head.layers[1].trainable = False
    before = head.get_weights()
    xray.fit_head(head, random_views(), np.arange(12) % 2, np.arange(12), learning_rate=1e-2, epochs=1)
    changed = [not np.array_equal(first, second) for first, second in zip(before, head.get_weights())]
    assert changed == [False, False, True, True]


def test_heads_of_one_architecture_share_a_compiled_worker(monkeypatch):
    """Whatever their layers' names, seeds, rates, or rows; other units or another activation compile another."""
    monkeypatch.setattr(xray, "COMPILED", {})
    results = [train_one(7), train_one(7, names=["a", "b", "c"])]
    assert results[0] == results[1]
    assert len(xray.COMPILED) == 1
    ((worker, optimizer, train_epoch, score_view),) = xray.COMPILED.values()
    traces = train_epoch.experimental_get_tracing_count(), score_view.experimental_get_tracing_count()
    assert traces == (1, 1)
    train_one(8, epochs=9)
    train_one(7, names=["d", "e", "f"])
    assert (train_epoch.experimental_get_tracing_count(), score_view.experimental_get_tracing_count()) == traces
    for rows in (9, 8, 7):  # as folds of other sizes have: the first time the shape becomes an unknown one
        train_one(7, rows=rows)
    assert train_epoch.experimental_get_tracing_count() <= 2 and score_view.experimental_get_tracing_count() <= 2
    assert len(xray.COMPILED) == 1 and next(iter(xray.COMPILED.values()))[0] is worker
    assert int(optimizer.iterations) == 4 * 4  # of the last training alone
    for count, options in enumerate(({"units": 3}, {"units": 1}, {"hidden": 8}, {"activation": "tanh"}), 2):
        assert train_one(7, **options) != results[0]
        assert len(xray.COMPILED) == count
    assert train_one(7) == results[0] and len(xray.COMPILED) == 5


def test_a_head_trained_after_others_gives_the_numbers_of_a_new_process():
    """To the bit: nothing of a training reaches the next one, of the same or of another architecture."""
    for options in ({}, {"units": 1}, {"batch_size": 5}, {"rows": 9}, {"epochs": 1}):
        train_one(1, **options)
    expected = [train_one(7), train_one(7, units=1)]
    places = os.pathsep.join(str(ROOT / name) for name in ("tests", "notebooks", "data"))
    for units, (history, weights) in zip((2, 1), expected):
        code = f"import json, test_training; print('RESULT', json.dumps(test_training.train_one(7, {units})))"
        command, environment = [sys.executable, "-c", code], clean_environment(PYTHONPATH=places)
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout.partition("RESULT")[2]) == [history, weights]


def test_a_new_head_is_fixed_by_its_seed_and_its_layers_differ(base):
    """The lessons' heads: the same twice, another for another seed, each layer with random weights of its own."""
    binary = run_cells(BINARY, "head", conv_base=base)["build_head"]
    multi = run_cells(MULTI, "head", conv_base=base)["build_head"]
    for build in (binary, lambda: multi(4)):
        drawn = []
        for seed in (7, 7, 8):
            keras.utils.set_random_seed(seed)
            drawn.append(build())
        first, again, other = (head.get_weights() for head in drawn)
        for one, two in zip(first, again):
            np.testing.assert_array_equal(one, two)
        assert np.abs(first[0] - other[0]).max() > 0.01
        ends = [layer.kernel.numpy().ravel()[:256] for layer in drawn[0].layers if layer.weights]
        assert abs(np.corrcoef(*ends)[0, 1]) < 0.2  # each layer has a stream of its own
        bound = np.sqrt(6 / (2 * 2 * 512 + 256))  # Glorot uniform
        assert 0.9 * bound < np.abs(first[0]).max() <= bound
        assert not any(bias.any() for bias in first[1::2])


# --- Features


def test_features_repeat_and_views_differ(run, base, loaded, tmp_path):
    """Two runs give the same features to the bit; plain ones are those of the images."""
    images = loaded[0][:4]
    first = xray.extract_features(base, AUGMENTED, images, 2, run)
    again = xray.Run("again", 42, "float32", tmp_path / "again")
    np.testing.assert_array_equal(first, xray.extract_features(base, AUGMENTED, images, 2, again))
    assert again.results["views_from_cache"] == 0 and np.abs(first[0] - first[1]).max() > 0.1
    (plain,) = xray.extract_features(base, ImageDataGenerator(rescale=1 / 255), images, 1, run)
    direct = base.predict(images.astype("float32") / 255, verbose=0)
    np.testing.assert_allclose(plain, direct, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_keeps_the_features(base, loaded, precision):
    """Half the bits stay within 1e-2 of the features; weights and Keras's policy stay float32."""
    inputs = loaded[0][:4].astype("float32") / 255
    exact = base.predict(inputs, verbose=0)
    reduced = xray.to_mixed_precision(base, precision, 0, xray.weights_sha256(base))
    half = reduced.predict(inputs, verbose=0).astype("float32")
    error = np.linalg.norm(half - exact) / np.linalg.norm(exact)
    assert 1e-5 < error < 1e-2, error
    assert {weight.dtype for weight in reduced.get_weights()} == {np.dtype("float32")}
    assert keras.config.dtype_policy().name == base.layers[1].dtype_policy.name == "float32"


def test_every_piece_of_a_large_set_is_its_own(run, base):
    """530 images, more than predict is given at once: each has the features that its batch of 32 alone would have."""
    images = np.random.default_rng(0).integers(0, 256, (530, SIZE, SIZE, 3), np.uint8)
    (features,) = xray.extract_features(base, AUGMENTED, images, 1, run)
    for number in (0, 15, 16):  # the first, and those on both sides of the piece's end
        part = images[32 * number : 32 * number + 32]
        drawn = AUGMENTED.flow(part, batch_size=32, shuffle=False, seed=run.seed + number)[0]
        expected = base.predict(drawn, verbose=0).astype(np.float16)
        np.testing.assert_array_equal(features[32 * number : 32 * number + 32], expected)


def test_two_devices_give_the_features_of_one(weights, tree, tmp_path):
    """Extraction under MirroredStrategy on two logical CPU devices."""
    code = """
        import functools, sys
        from pathlib import Path
        import numpy as np
        import xray, xray_data
        from xray import keras, tf
        cpu = tf.config.list_physical_devices("CPU")[0]
        halves = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, halves)
        devices = ["CPU:0", "CPU:1"]
        tf.distribute.MirroredStrategy = functools.partial(tf.distribute.MirroredStrategy, devices)
        weights, tree, output = sys.argv[1:]
        images = xray_data.load_images(Path(tree) / "two", 64)[0][:5]
        base = keras.applications.VGG16(weights=weights, include_top=False, input_shape=(64, 64, 3))
        datagen = xray.ImageDataGenerator(rescale=1 / 255, horizontal_flip=True)
        results = []
        for gpus in ([], devices):
            tf.config.list_logical_devices = lambda kind: gpus
            run = xray.Run("test", 42, "float32", Path(output))
            results.append(np.array(xray.extract_features(base, datagen, images, 2, run), float))
            assert not run.results["views_from_cache"]
        one, two = results
        made = xray.to_mixed_precision.cache_info().misses
        copy = xray.to_mixed_precision(base, "float32", 2, xray.weights_sha256(base))
        assert xray.to_mixed_precision.cache_info().misses == made == 2
        print("RESULT", copy.distribute_strategy.num_replicas_in_sync, np.abs(one - two).max() / one.max())
    """
    command = [sys.executable, "-c", textwrap.dedent(code), weights, tree, tmp_path]
    environment = clean_environment(PYTHONPATH=str(ROOT / "notebooks"))
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    replicas, difference = done.stdout.partition("RESULT")[2].split()
    assert int(replicas) == 2 and float(difference) <= 2e-3


# --- The article's own ways


def test_three_flags_never_took_effect(tree):
    """Unfitted centering, standardizing, and whitening leave the batches as they are."""
    flags = ("featurewise_center", "featurewise_std_normalization", "zca_whitening")
    recipe = run_cells(MULTI, "augmentation")["ARTICLE_AUGMENTATION"]
    assert recipe == run_cells(BINARY, "augmentation")["ARTICLE_AUGMENTATION"]
    options = dict(target_size=(SIZE, SIZE), batch_size=4, seed=42, class_mode="binary")
    with pytest.warns(UserWarning, match="feature-?wise|fit"):
        named = ImageDataGenerator(rescale=1 / 255, **recipe, **dict.fromkeys(flags, True))
        theirs, _ = named.flow_from_directory(tree / "two" / "train", **options)[0]
    ours, _ = AUGMENTED.flow_from_directory(tree / "two" / "train", **options)[0]
    np.testing.assert_array_equal(theirs, ours)


def test_split_and_pixels_are_those_of_flow_from_directory(tree):
    """Keras's validation images and its pixels at 150 x 150, within JPEG's rounding."""
    images, table = xray_data.load_images(tree / "two")
    for split, subset in (("validation", "validation"), ("train", "training")):
        batches = ImageDataGenerator(validation_split=0.2).flow_from_directory(
            tree / "two" / "train",
            target_size=(150, 150),
            batch_size=99,
            shuffle=False,
            class_mode="binary",
            subset=subset,
        )
        chosen = (table["split"] == split).to_numpy()
        assert [f"train/{name}" for name in batches.filenames] == list(table["file"][chosen])
        pixels, classes = batches[0]
        np.testing.assert_array_equal(classes, table["label"][chosen])
        assert np.abs(pixels - images[chosen]).max() <= 2


DRAWN = {
    "three": [
        "test/covid/ryct.2020200034.fig5-day7.jpeg",
        "test/normal/NORMAL2-IM-1406-0001.jpeg",
        "test/normal/NORMAL2-IM-1385-0001.jpeg",
    ],
    "four": [
        "test/pneumonia_vir/person966_virus_1639.jpeg",
        "test/normal/NORMAL2-IM-1406-0001.jpeg",
        "test/pneumonia_bac/person1945_bacteria_4872.jpeg",
        "test/pneumonia_vir/person961_virus_1634.jpeg",
    ],
}


def files_drawn(table):
    """Return the files that Multi's own cells draw from a table, for each case."""
    cases = {"three": FOUR[:3], "four": FOUR}
    lesson = run_cells(MULTI, "select", "draw", table=table, CASES=cases, LARGEST="four")
    return {case: list(table["file"].iloc[lesson["article_draw"](case)]) for case in cases}


def test_the_articles_draw_is_that_of_keras(tmp_path):
    """Keras's shuffled generator, seed 42, on files of the article's names: its first three, and its first four."""
    rows = xray_data.ARTICLE[xray_data.ARTICLE["split"] == "test"].sort_values(["class", "filename"])
    table = rows.assign(file=rows["split"] + "/" + rows["class"] + "/" + rows["filename"]).reset_index(drop=True)
    for file in table["file"]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(tmp_path / file), np.full((8, 8, 3), 99, np.uint8))
    keras_draws = {}
    for case, names in (("three", FOUR[:3]), ("four", FOUR)):
        options = {"classes": names, "batch_size": 1, "shuffle": True, "seed": 42, "target_size": (8, 8)}
        flow = ImageDataGenerator().flow_from_directory(tmp_path / "test", **options)
        flow[0]  # the first batch makes the generator shuffle
        drawn = flow.index_array[: -(-flow.n // 10)]
        keras_draws[case] = [f"test/{flow.filenames[index]}" for index in drawn]
    assert files_drawn(table) == keras_draws == DRAWN


@real_images
def test_the_articles_own_images(tmp_path):
    """The three and four test images that the article draws, out of its own zip."""
    with zipfile.ZipFile(SHARED / "data" / xray_data.ZIP_NAME) as zipped:
        zipped.extractall(tmp_path, [name for name in zipped.namelist() if name.startswith("all/")])
    _, table = xray_data.load_images(tmp_path / "all", 8)
    assert files_drawn(table) == DRAWN


# --- What is kept, and what can be learned


def test_saved_model_is_float32_and_predicts_the_same(base, loaded, tmp_path, monkeypatch):
    """The file holds float32 layers and predicts as memory does; another file is a SetupError."""
    images = loaded[0][:5]
    run = xray.Run("test", 42, "bfloat16", tmp_path)
    (features,) = xray.extract_features(base, ImageDataGenerator(rescale=1 / 255), images, 1, run)
    head = build_head(base.output_shape[1:], 1)
    model, path = keras.Sequential([base, head]), tmp_path / "kept.keras"
    probabilities = xray.predict_probabilities(head, features)
    gap = xray.save_and_check(model, path, images, probabilities)
    loaded_again = keras.models.load_model(path)
    inputs = images.astype("float32") / 255
    saved = xray.two_columns(loaded_again.predict(inputs, verbose=0))
    np.testing.assert_array_equal(saved, xray.two_columns(model.predict(inputs, verbose=0)))
    assert gap == pytest.approx(np.abs(saved - probabilities).max(), abs=1e-6) and 0 < gap < 0.02
    flat = [layer for part in loaded_again.layers for layer in part.layers]
    assert {layer.dtype_policy.name for layer in flat} == {"float32"}
    other = keras.Sequential([base, build_head(base.output_shape[1:], 1)])
    monkeypatch.setattr(xray.keras.models, "load_model", lambda _: other)
    with pytest.raises(xray_data.SetupError, match="does not predict"):
        xray.save_and_check(model, path, images, probabilities)


def test_phantoms_can_be_learned_but_not_trivially(weights, tmp_path):
    """Four classes well above chance from ImageNet features, and some mistakes left to make."""
    phantoms.write_tree(tmp_path / "phantoms", train=16, test=6)
    images, table = xray_data.load_images(tmp_path / "phantoms" / "all")
    shape = (150, 150, 3)
    base = keras.applications.VGG16(weights=str(weights), include_top=False, input_shape=shape)
    run = xray.Run("test", 42, xray.choose_precision(), tmp_path)
    features = xray.extract_features(base, ImageDataGenerator(rescale=1 / 255), images, 1, run)
    keras.utils.set_random_seed(42)
    head, labels = build_head(base.output_shape[1:], 4), table["label"].to_numpy()
    test = (table["split"] == "test").to_numpy()
    xray.fit_head(head, features, labels, np.flatnonzero(~test), learning_rate=1e-4, epochs=60, batch_size=10)
    predicted = xray.predict_probabilities(head, features[0][test]).argmax(axis=1)
    assert 0.5 <= (predicted == labels[test]).mean() < 1
