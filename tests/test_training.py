"""The claims on which the speed rests: features of a frozen base, trained on view by view, are the article's training."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from conftest import ROOT, clean_environment
from tensorflow.keras.preprocessing.image import ImageDataGenerator


@pytest.fixture
def ready(nb, tree, weights):
    """The binary notebook's functions with their images loaded and the base in place."""
    nb["conv_base"] = nb["load_conv_base"](str(weights))
    images, labels, splits, files = nb["load_images"](tree / "two", nb["CLASS_NAMES"])
    return nb, images[::2], labels[::2]


def test_feature_training_equals_end_to_end(ready):
    """Head on features of views = the full model, base and all, in model.fit on the same batches of the same views."""
    nb, images, labels = ready
    keras, views = nb["keras"], 2
    generator = ImageDataGenerator(rescale=1 / 255, **nb["ARTICLE_AUGMENTATION"])
    seen = np.stack(
        [generator.flow(images, batch_size=32, shuffle=False, seed=42 + 1000 * view)[0] for view in range(views)]
    )
    nb["BATCH_SIZE"] = 3
    features = np.stack([nb["conv_base"].predict(view, verbose=0) for view in seen])

    model, head = nb["build_model"](2)
    history = nb["train_head"](head, features, labels, 5e-4, epochs=3)
    fast = [array.copy() for array in head.get_weights()]

    end_to_end, _ = nb["build_model"](2)
    end_to_end.compile(keras.optimizers.Adam(5e-4), "binary_crossentropy", metrics=["acc"])
    batches = nb["batches_of_views"](seen, labels, 3)
    literal = end_to_end.fit(batches, epochs=3, steps_per_epoch=-(-len(images) // 3), verbose=0).history
    np.testing.assert_allclose(history["loss"], literal["loss"], rtol=1e-4)
    for ours, theirs in zip(fast, end_to_end.get_weights()[-4:]):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    np.testing.assert_array_equal(model.get_weights()[-4], fast[0])  # the head's layers are the model's


def test_features_repeat_and_views_differ(ready):
    nb, images, _ = ready
    first = nb["extract_features"](images, nb["ARTICLE_AUGMENTATION"], 2)
    again = nb["extract_features"](images, nb["ARTICLE_AUGMENTATION"], 2)
    assert first.dtype == np.float16 and first.shape == (2, len(images), 4, 4, 512)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first[0] - first[1]).max() > 0.1


def test_plain_features_are_those_of_the_images(ready):
    nb, images, _ = ready
    plain = nb["extract_features"](images, {}, 1)[0]
    direct = nb["conv_base"].predict(images.astype("float32") / 255, verbose=0)
    np.testing.assert_allclose(plain, direct, rtol=1e-3, atol=1e-3)


def test_batches_go_through_each_view_once_an_epoch(nb):
    features = np.arange(2 * 7).reshape(2, 7, 1).astype("float16")
    batches = list(nb["batches_of_views"](features, np.arange(7), 3))
    assert [len(labels) for _, labels in batches] == [7] * 3  # 7 images make one batch of at most 10
    for epoch, (values, labels) in enumerate(batches):
        assert sorted(labels.numpy()) == list(range(7))
        np.testing.assert_array_equal(values[:, 0].numpy(), features[epoch % 2, labels.numpy(), 0])
    assert list(batches[0][1].numpy()) != list(batches[2][1].numpy())  # each epoch has an order of its own


def test_three_flags_never_took_effect(nb, tree):
    """Unfitted featurewise centring, standardising and whitening leave the batches as they are."""
    without = ImageDataGenerator(rescale=1 / 255, **nb["ARTICLE_AUGMENTATION"])
    with pytest.warns(UserWarning, match="feature-?wise|fit"):
        literal = ImageDataGenerator(
            rescale=1 / 255, featurewise_center=True, featurewise_std_normalization=True, zca_whitening=True, **nb["ARTICLE_AUGMENTATION"]
        )
        options = dict(target_size=(150, 150), batch_size=4, seed=42, class_mode="binary")
        theirs, _ = literal.flow_from_directory(tree / "two" / "train", **options)[0]
    ours, _ = without.flow_from_directory(tree / "two" / "train", **options)[0]
    np.testing.assert_array_equal(theirs, ours)


def test_split_and_pixels_are_those_of_flow_from_directory(nb, tree):
    """The validation images are Keras's, and each decoded image is what flow_from_directory gives, within JPEG's rounding."""
    images, labels, splits, files = nb["load_images"](tree / "two", nb["CLASS_NAMES"])
    for split, subset in (("validation", "validation"), ("train", "training")):
        batches = ImageDataGenerator(validation_split=0.2).flow_from_directory(
            tree / "two" / "train",
            target_size=(150, 150),
            batch_size=99,
            shuffle=False,
            class_mode="binary",
            subset=subset,
        )
        assert batches.filenames == ["/".join(path.parts[-2:]) for path, where in zip(files, splits) if where == split]
        pixels, classes = batches[0]
        np.testing.assert_array_equal(classes, labels[splits == split])
        assert np.abs(pixels - images[splits == split]).max() <= 2


def run_apart(code, *arguments):
    """Run `code` in a process of its own, in tests/; returns what it printed."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT / "tests", env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_two_devices_give_the_features_of_one(weights, tree, tmp_path):
    """Extraction under MirroredStrategy on two logical CPU devices."""
    printed = run_apart(
        """
        import sys
        import numpy as np
        import tensorflow as tf
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
        import conftest
        nb = conftest.load(conftest.BINARY, sys.argv[3])
        images = nb["load_images"](conftest.Path(sys.argv[2]) / "two", nb["CLASS_NAMES"])[0][:5]
        nb["conv_base"] = nb["load_conv_base"](sys.argv[1])
        one = nb["extract_features"](images, {"horizontal_flip": True}, 2)
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        with strategy.scope():
            nb["conv_base"] = nb["load_conv_base"](sys.argv[1])
        two = nb["extract_features"](images, {"horizontal_flip": True}, 2)
        print(strategy.num_replicas_in_sync, np.abs(one.astype(float) - two.astype(float)).max(), one.max())
    """,
        weights,
        tree,
        tmp_path,
    )
    replicas, difference, largest = printed.split("\n")[-2].split()
    assert int(replicas) == 2 and float(difference) <= 2e-3 * float(largest)


def test_mixed_precision_keeps_the_features(ready, weights):
    """What a GPU computes in half precision stays within 1e-2 of the features' size."""
    nb, images, _ = ready
    exact = nb["conv_base"].predict(images[:3] / 255.0, verbose=0)
    half = nb["load_conv_base"](str(weights), "mixed_float16").predict(images[:3] / 255.0, verbose=0).astype("float32")
    assert np.linalg.norm(half - exact) / np.linalg.norm(exact) < 1e-2
    assert nb["keras"].config.dtype_policy().name == "float32"


def test_saved_model_predicts_the_same_and_fine_tuning_moves_block5_only(ready, tmp_path, capsys):
    nb, images, labels = ready
    nb.update(OUTPUT=tmp_path, FINE_TUNE_EPOCHS=1)
    model, _ = nb["build_model"](2)
    nb["save_and_check"](model, "kept", images[:2])
    assert "gives the same probabilities" in capsys.readouterr().out
    splits = np.where(np.arange(len(images)) % 3 == 0, "validation", "train")
    tuned = nb["fine_tune"](model, images, labels, splits)
    moved = {
        layer.name
        for layer, was in zip(tuned.layers, model.layers)
        if any(not np.array_equal(a, b) for a, b in zip(layer.get_weights(), was.get_weights()))
    }
    assert moved == {"block5_conv1", "block5_conv2", "block5_conv3"} | {layer.name for layer in model.layers[-2:]}
    assert model.layers[15].name == "block5_conv1" and not model.layers[15].trainable


def test_phantoms_can_be_learnt_but_not_trivially(weights, tmp_path):
    """Four classes well above chance from unaugmented ImageNet features, and some mistakes left to make."""
    import phantoms
    from conftest import MULTI, load

    phantoms.write_tree(tmp_path / "phantoms", train=16, test=6)
    nb = load(MULTI, tmp_path)
    nb["conv_base"] = nb["load_conv_base"](str(weights))
    folder = tmp_path / "phantoms" / "all"
    images, labels, splits, _ = nb["load_images"](folder, nb["list_classes"](folder))
    features = nb["extract_features"](images, {}, 1)
    train = splits != "test"
    _, head = nb["build_model"](4)
    nb["train_head"](head, features[:, train], labels[train], 1e-4, 60)
    accuracy = (nb["predict_probabilities"](head, features[0, ~train]).argmax(axis=1) == labels[~train]).mean()
    assert 0.5 <= accuracy < 1, accuracy
