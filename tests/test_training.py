"""What speed rests on: a head on features of a frozen base trains as the whole model does."""

import subprocess
import sys
import textwrap
import zipfile

import dataset
import keras
import numpy as np
import pytest
import xray
from conftest import ROOT, SHARED, clean_environment, real_images
from tensorflow.keras.preprocessing.image import ImageDataGenerator

SIZE = 64  # pixels a side: VGG16 returns 2 x 2 x 512
FAST = {"jit_compile": True, "steps_per_execution": 1000}  # as in the lessons
FOUR = ["covid", "normal", "pneumonia_bac", "pneumonia_vir"]
AUGMENTED = ImageDataGenerator(rescale=1 / 255, **xray.ARTICLE_AUGMENTATION)


@pytest.fixture(scope="module")
def base(weights):
    """Return the frozen base with VGG16's ImageNet weights, for small images."""
    shape = (SIZE, SIZE, 3)
    base = keras.applications.VGG16(weights=str(weights), include_top=False, input_shape=shape)
    base.trainable = False
    return base


@pytest.fixture(scope="module")
def loaded(tree):
    """Return images, labels, and the row numbers of training and validation."""
    images, table = dataset.load_images(tree / "two", SIZE, 0.4)
    rows = [np.flatnonzero(table["split"] == split) for split in ("train", "validation")]
    return images, table["label"].to_numpy(), *rows


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return the record of a run in float32 whose results go to tmp_path."""
    monkeypatch.delenv("PRECISION", raising=False)
    return xray.Run("test", precision="float32", output=tmp_path)


def build_head(shape, units):
    """Return the article's head: one sigmoid for units = 1, else a softmax."""
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Flatten(),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dense(units, activation="sigmoid" if units == 1 else "softmax"),
        ]
    )


def compile_model(model, rate, **options):
    """Compile as the lessons do, with the loss that fits the number of outputs."""
    single = model.output_shape[-1] == 1
    loss = "binary_crossentropy" if single else "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["acc"], **options)


def random_views(count=3, n=12, shape=(2, 2, 4), seed=0):
    """Return features of views that differ widely: each is ten times the size of the one before."""
    rng = np.random.default_rng(seed)
    return [(10.0**view * rng.random((n, *shape))).astype(np.float16) for view in range(count)]


def fit_head(head, views, labels, train, validation=None, epochs=4, seed=42, batch_size=2):
    """Train a compiled head on views; returns Keras's history."""
    schedule = xray.ViewSchedule(views, labels, train, validation, batch_size, seed)
    return head.fit(schedule.batches, epochs=epochs, callbacks=[schedule], verbose=0).history


@pytest.mark.parametrize("units", [1, 2])
def test_head_on_features_is_the_whole_model(run, base, loaded, units):
    """Seven epochs of three views, and two at a lower rate: the history is that of plain Keras.

    The other side is base and head as one model, `fit` an epoch at a time on augmented images, with
    the same view's images as its validation_data. Features pass through float16, which has 11 bits:
    losses may differ by 5e-3 of their size, an accuracy by one image.
    """
    images, labels, train, validation = loaded
    views = run.extract_features(base, AUGMENTED, images, 3)
    plain = {"batch_size": 32, "shuffle": False}
    seen = [AUGMENTED.flow(images, seed=42 + 1000 * view, **plain)[0] for view in range(3)]
    assert views[0].dtype == np.float16 and len(images) <= 32
    head, other = (build_head(base.output_shape[1:], units) for _ in range(2))
    for each in (head, other):
        xray.initialize(each, 42)
    model, frozen, starts = keras.Sequential([base, other]), base.get_weights(), other.get_weights()
    order = xray.ViewSchedule(seen, labels, train, None, 2, 42)
    history, literal = {}, {}
    for rate, epochs in ((5e-4, 7), (5e-5, 2)):  # the second is the article's fine-tuning
        compile_model(head, rate, **FAST)
        compile_model(model, rate)
        for metric, values in fit_head(head, views, labels, train, validation, epochs).items():
            history.setdefault(metric, []).extend(values)
        for epoch in range(epochs):
            order.on_epoch_begin(epoch)
            x, y = (np.concatenate(part) for part in zip(*order.batches.as_numpy_iterator()))
            scored = seen[epoch % 3][validation], labels[validation]
            options = {"batch_size": 2, "shuffle": False, "validation_data": scored, "verbose": 0}
            for metric, values in model.fit(x, y, **options).history.items():
                literal.setdefault(metric, []).extend(values)
    assert set(history) == set(literal) == {"loss", "acc", "val_loss", "val_acc"}
    for metric, values in history.items():
        assert len(values) == 9
        if metric.endswith("loss"):
            np.testing.assert_allclose(values, literal[metric], rtol=5e-3, err_msg=metric)
        else:
            n = len(validation) if metric == "val_acc" else len(train)
            np.testing.assert_allclose(values, literal[metric], atol=1.01 / n, err_msg=metric)
    for ours, theirs, start in zip(head.get_weights(), other.get_weights(), starts):
        moved = np.linalg.norm(theirs - start)
        assert moved > 0 and np.linalg.norm(ours - theirs) < 0.05 * moved
    for before, after in zip(frozen, base.get_weights()):
        np.testing.assert_array_equal(before, after)


def test_validation_is_scored_on_the_view_of_its_epoch():
    """At rate 0, views that differ widely give three values in turn, those of `evaluate`."""
    views, labels, rows = random_views(), np.arange(12) % 2, np.arange(12)
    head = build_head((2, 2, 4), 2)
    compile_model(head, 0.0, **FAST)
    xray.initialize(head, 1)
    history = fit_head(head, views, labels, rows[:8], rows[8:], epochs=7)
    direct = [head.evaluate(view[8:].astype("float32"), labels[8:], verbose=0) for view in views]
    for metric, expected in zip(("val_loss", "val_acc"), zip(*direct)):
        np.testing.assert_allclose(history[metric], [expected[k % 3] for k in range(7)], rtol=1e-5)
    first, second, third = history["val_loss"][:3]
    assert min(abs(first - second), abs(second - third), abs(first - third)) > 0.01
    assert history["val_loss"][:4] == history["val_loss"][3:]
    assert "val_loss" not in fit_head(head, views, labels, rows[:8], epochs=1)


def test_an_epoch_goes_through_its_view_once():
    """Each row once, in batches of 3, 3, and 1, in an order fixed by seed and epoch."""
    views = [np.arange(9, dtype=np.float16)[:, None] + 100 * view for view in range(2)]
    labels, train = np.arange(9), np.array([0, 2, 3, 5, 6, 7, 8])

    def rows_of(seed, epoch):
        schedule = xray.ViewSchedule(views, labels, train, None, 3, seed)
        schedule.on_epoch_begin(epoch)
        batches = list(schedule.batches.as_numpy_iterator())
        assert [len(y) for _, y in batches] == [3, 3, 1]
        x, y = (np.concatenate(part) for part in zip(*batches))
        assert x.dtype == np.float16
        np.testing.assert_array_equal(x[:, 0], y + 100 * (epoch % 2))
        return list(y)

    orders = [rows_of(42, epoch) for epoch in range(5)]
    assert all(sorted(order) == list(train) for order in orders)
    assert len(set(map(tuple, orders))) == 5 and rows_of(42, 3) == orders[3]
    assert rows_of(43, 0) != orders[0]


def test_initialize_starts_afresh_and_keeps_the_compiled_step():
    """The same weights twice, the optimizer as new, no second trace, the numbers of a new head."""
    views, labels, rows = random_views(), np.arange(12) % 2, np.arange(12)
    head, traces = build_head((2, 2, 4), 2), []
    compile_model(head, 1e-3, **FAST)
    compute = head.compute_loss
    head.compute_loss = lambda *args, **named: traces.append(1) or compute(*args, **named)
    results = []
    for _ in range(2):
        xray.initialize(head, 7)
        start = head.get_weights()
        assert all((variable.numpy() == 0).all() for variable in head.optimizer.variables[2:])
        assert int(head.optimizer.iterations) == 0
        assert float(head.optimizer.learning_rate) == pytest.approx(1e-3)
        history = fit_head(head, views, labels, rows[:10])
        results.append((start, history, head.get_weights(), head.train_function, len(traces)))
    assert int(head.optimizer.iterations) == 4 * 5
    new = build_head((2, 2, 4), 2)
    compile_model(new, 1e-3, **FAST)
    xray.initialize(new, 7)
    results.append((new.get_weights(), fit_head(new, views, labels, rows[:10]), new.get_weights()))
    for start, history, weights, *_ in results[1:]:
        assert history == results[0][1]
        for ours, theirs in zip([*start, *weights], [*results[0][0], *results[0][2]]):
            np.testing.assert_array_equal(ours, theirs)  # to the bit
    assert results[0][3] is results[1][3] and results[0][4] == results[1][4] > 0
    xray.initialize(new, 8)
    assert np.abs(new.get_weights()[0] - results[0][0][0]).max() > 0.01
    first, last = (layer.kernel.numpy().ravel()[:500] for layer in new.layers if layer.weights)
    assert abs(np.corrcoef(first, last)[0, 1]) < 0.2  # each layer has a stream of its own
    bound = np.sqrt(6 / (16 + 256))  # Glorot uniform
    assert 0.9 * bound < np.abs(new.get_weights()[0]).max() <= bound


def test_features_repeat_and_views_differ(run, base, loaded, tmp_path):
    """Two runs give the same features to the bit; plain ones are those of the images."""
    images = loaded[0][:4]
    first = run.extract_features(base, AUGMENTED, images, 2)
    again = xray.Run("again", precision="float32", output=tmp_path / "again")
    np.testing.assert_array_equal(first, again.extract_features(base, AUGMENTED, images, 2))
    assert again.results["views_from_cache"] == 0 and np.abs(first[0] - first[1]).max() > 0.1
    (plain,) = run.extract_features(base, ImageDataGenerator(rescale=1 / 255), images)
    direct = base.predict(images.astype("float32") / 255, verbose=0)
    np.testing.assert_allclose(plain, direct, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_keeps_the_features(base, loaded, precision):
    """Half the bits stay within 1e-2 of the features; weights and Keras's policy stay float32."""
    inputs = loaded[0][:4].astype("float32") / 255
    exact = base.predict(inputs, verbose=0)
    reduced = xray.reduced(base, precision)
    half = reduced.predict(inputs, verbose=0).astype("float32")
    error = np.linalg.norm(half - exact) / np.linalg.norm(exact)
    assert 1e-5 < error < 1e-2, error
    assert {weight.dtype for weight in reduced.get_weights()} == {np.dtype("float32")}
    assert keras.config.dtype_policy().name == base.layers[1].dtype_policy.name == "float32"


def test_every_piece_of_a_large_set_is_its_own(run, base):
    """530 images, more than predict is given at once: each has the features that its batch of 32 alone would have."""
    images = np.random.default_rng(0).integers(0, 256, (530, SIZE, SIZE, 3), np.uint8)
    (features,) = run.extract_features(base, AUGMENTED, images)
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
        import dataset
        import xray
        from xray import keras, tf
        cpu = tf.config.list_physical_devices("CPU")[0]
        halves = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, halves)
        devices = ["CPU:0", "CPU:1"]
        tf.distribute.MirroredStrategy = functools.partial(tf.distribute.MirroredStrategy, devices)
        weights, tree, output = sys.argv[1:]
        images = dataset.load_images(Path(tree) / "two", 64)[0][:5]
        base = keras.applications.VGG16(weights=weights, include_top=False, input_shape=(64, 64, 3))
        datagen = xray.ImageDataGenerator(rescale=1 / 255, horizontal_flip=True)
        run = xray.Run("test", precision="float32", output=Path(output))
        one = np.array(run.extract_features(base, datagen, images, 2), float)
        two_devices = xray.Run("test", precision="float32", output=Path(output))
        two_devices.gpus = devices
        two = np.array(two_devices.extract_features(base, datagen, images, 2), float)
        (copy,) = two_devices.bases.values()
        replicas = copy.distribute_strategy.num_replicas_in_sync
        assert not two_devices.results["views_from_cache"]
        print("RESULT", replicas, np.abs(one - two).max() / one.max())
    """
    command = [sys.executable, "-c", textwrap.dedent(code), weights, tree, tmp_path]
    environment = clean_environment(PYTHONPATH=str(ROOT / "notebooks"))
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    replicas, difference = done.stdout.partition("RESULT")[2].split()
    assert int(replicas) == 2 and float(difference) <= 2e-3


def test_three_flags_never_took_effect(tree):
    """Unfitted centering, standardizing, and whitening leave the batches as they are."""
    flags = ("featurewise_center", "featurewise_std_normalization", "zca_whitening")
    recipe = xray.ARTICLE_AUGMENTATION | dict.fromkeys(flags, True)
    options = dict(target_size=(SIZE, SIZE), batch_size=4, seed=42, class_mode="binary")
    with pytest.warns(UserWarning, match="feature-?wise|fit"):
        named = ImageDataGenerator(rescale=1 / 255, **recipe)
        theirs, _ = named.flow_from_directory(tree / "two" / "train", **options)[0]
    ours, _ = AUGMENTED.flow_from_directory(tree / "two" / "train", **options)[0]
    np.testing.assert_array_equal(theirs, ours)


def test_split_and_pixels_are_those_of_flow_from_directory(tree):
    """Keras's validation images and its pixels at 150 x 150, within JPEG's rounding."""
    images, table = dataset.load_images(tree / "two")
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


def test_saved_model_is_float32_and_predicts_the_same(base, loaded, tmp_path, monkeypatch):
    """The file holds float32 layers and predicts as memory does; another file is a Problem."""
    images = loaded[0][:5]
    monkeypatch.delenv("PRECISION", raising=False)
    run = xray.Run("test", precision="bfloat16", output=tmp_path)
    (features,) = run.extract_features(base, ImageDataGenerator(rescale=1 / 255), images)
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
    with pytest.raises(dataset.Problem, match="does not predict"):
        xray.save_and_check(model, path, images, probabilities)


@real_images
def test_the_articles_own_images(tmp_path):
    """The three and four test images that the article draws, out of its own zip."""
    with zipfile.ZipFile(SHARED / "data" / dataset.ZIP_NAME) as zipped:
        zipped.extractall(tmp_path, [name for name in zipped.namelist() if name.startswith("all/")])
    _, table = dataset.load_images(tmp_path / "all", 8)
    three = xray.article_draw(table, FOUR[:3])
    four = xray.article_draw(table, FOUR)
    assert list(table["file"].iloc[three]) == [
        "test/covid/ryct.2020200034.fig5-day7.jpeg",
        "test/normal/NORMAL2-IM-1406-0001.jpeg",
        "test/normal/NORMAL2-IM-1385-0001.jpeg",
    ]
    assert list(table["file"].iloc[four]) == [
        "test/pneumonia_vir/person966_virus_1639.jpeg",
        "test/normal/NORMAL2-IM-1406-0001.jpeg",
        "test/pneumonia_bac/person1945_bacteria_4872.jpeg",
        "test/pneumonia_vir/person961_virus_1634.jpeg",
    ]


def test_phantoms_can_be_learned_but_not_trivially(weights, tmp_path):
    """Four classes well above chance from ImageNet features, and some mistakes left to make."""
    import phantoms

    phantoms.write_tree(tmp_path / "phantoms", train=16, test=6)
    images, table = dataset.load_images(tmp_path / "phantoms" / "all")
    shape = (150, 150, 3)
    base = keras.applications.VGG16(weights=str(weights), include_top=False, input_shape=shape)
    run = xray.Run("test", output=tmp_path)
    features = run.extract_features(base, ImageDataGenerator(rescale=1 / 255), images)
    head, labels = build_head(base.output_shape[1:], 4), table["label"].to_numpy()
    xray.initialize(head, 42)
    compile_model(head, 1e-4, **FAST)
    test = (table["split"] == "test").to_numpy()
    fit_head(head, features, labels, np.flatnonzero(~test), epochs=60, batch_size=10)
    predicted = xray.predict_probabilities(head, features[0][test]).argmax(axis=1)
    assert 0.5 <= (predicted == labels[test]).mean() < 1
