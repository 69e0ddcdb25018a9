"""Views are computed once: what is kept, what is computed again, what crashes do to it."""

import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import keras
import numpy as np
import pytest
import xray
from conftest import ROOT, clean_environment
from tensorflow.keras.preprocessing.image import ImageDataGenerator

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


def toy_base(seed=0):
    """Return a small frozen base: images (n, 32, 32, 3) in, features (n, 16, 16, 8) out."""
    kernel = keras.initializers.GlorotUniform(seed)
    layer = keras.layers.Conv2D(8, 3, 2, "same", kernel_initializer=kernel)
    return keras.Sequential([keras.Input((32, 32, 3)), layer])


def augmented(**settings):
    """Return an ImageDataGenerator with a little of the article's augmentation."""
    return ImageDataGenerator(**{"rescale": 1 / 255, "rotation_range": 50, **settings})


def slowly(image):
    """Wait a moment, so that an extraction can be killed in its middle."""
    time.sleep(0.02)
    return image


def brighter(image):
    """Add a little brightness."""
    return image + 10


def extract(output, views, base=None, datagen=None, images=IMAGES, seed=42, precision="float32"):
    """Extract features as a new run does; returns them, and how many views came from the cache."""
    run = xray.Run("test", seed, precision, Path(output))
    features = run.extract_features(base or toy_base(), datagen or augmented(), images, views)
    return features, run.results["views_from_cache"]


def entries(output):
    """Return the files that hold a view, the oldest first."""
    return sorted(Path(output).rglob("output.pkl"), key=lambda path: path.stat().st_mtime_ns)


def run_apart(code, *arguments):
    """Start Python code that may import this file and xray; returns the running process."""
    places = os.pathsep.join(str(ROOT / name) for name in ("tests", "notebooks", "data"))
    command = [sys.executable, "-c", "import sys, test_cache, xray\n" + code, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=clean_environment(PYTHONPATH=places), **pipes)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """Keep a PRECISION of the caller's environment out of the tests."""
    monkeypatch.delenv("PRECISION", raising=False)


def test_a_second_run_computes_nothing(tmp_path, monkeypatch):
    """A second run needs no base; of 12 views instead of 8, a third computes 4."""
    first, before = extract(tmp_path, 8)
    assert before == 0 and len(entries(tmp_path)) == 8
    with monkeypatch.context() as patch:
        patch.setattr(xray, "reduced", lambda *_: None)  # what is None cannot compute
        second, cached = extract(tmp_path, 8)
    assert cached == 8
    np.testing.assert_array_equal(first, second)
    longer, cached = extract(tmp_path, 12)
    assert cached == 8 and len(entries(tmp_path)) == 12
    np.testing.assert_array_equal(first, longer[:8])
    afresh, cached = extract(tmp_path / "other", 12)
    assert cached == 0
    np.testing.assert_array_equal(longer, afresh)


def test_another_learning_rate_computes_nothing(tmp_path):
    """A head trained between two runs, at another rate, leaves the key of the views as it is."""
    views, _ = extract(tmp_path, 2)
    stack = keras.Input((16, 16, 8)), keras.layers.Flatten(), keras.layers.Dense(2, "softmax")
    head, loss = keras.Sequential(list(stack)), "sparse_categorical_crossentropy"
    for rate in (1e-3, 1e-4):
        head.compile(keras.optimizers.Adam(rate), loss, metrics=["acc"])
        schedule = xray.ViewSchedule(views, np.arange(5) % 2, np.arange(5))
        head.fit(schedule.batches, epochs=2, callbacks=[schedule], verbose=0)
        views, cached = extract(tmp_path, 2)
        assert cached == 2 and len(entries(tmp_path)) == 2


def changed_pixel():
    """Return the images with one value of one pixel changed."""
    images = IMAGES.copy()
    images[0, 16, 16, 0] ^= 128
    return images


@pytest.mark.parametrize(
    "change",
    [
        {"datagen": augmented(rotation_range=49)},
        {"datagen": augmented(rescale=1 / 254)},
        {"datagen": augmented(preprocessing_function=brighter)},
        {"seed": 43},
        {"images": changed_pixel()},
        {"images": IMAGES[::-1]},
        {"base": toy_base(1)},
        {"precision": "bfloat16"},
    ],
    ids=["rotation", "rescale", "function", "seed", "pixel", "order", "weights", "precision"],
)
def test_what_matters_computes_again(tmp_path, change):
    """Augmentation, seed, pixels and their order, weights, and precision are part of the key."""
    first, _ = extract(tmp_path, 2)
    other, cached = extract(tmp_path, 2, **change)
    assert cached == 0 and len(entries(tmp_path)) == 4
    assert any(not np.array_equal(a, b) for a, b in zip(first, other))
    again, cached = extract(tmp_path, 2)
    assert cached == 2
    np.testing.assert_array_equal(first, again)


def test_bases_of_the_same_weights_are_apart(tmp_path):
    """Average and maximum pooling have the same weights and shape: each has its own features, in a run and on disk."""
    run, plain = xray.Run("test", 42, "float32", tmp_path), ImageDataGenerator(rescale=1 / 255)
    for pooling in (keras.layers.GlobalAveragePooling2D(), keras.layers.GlobalMaxPooling2D()):
        base = keras.Sequential([keras.Input((32, 32, 3)), *toy_base().layers, pooling])
        (features,) = run.extract_features(base, plain, IMAGES)
        np.testing.assert_allclose(features, base.predict(IMAGES / 255, verbose=0), rtol=2e-3, atol=1e-3)


def flip(place):
    """Return a function that flips one bit of a file, at a share of its length."""

    def damage(path):
        data = bytearray(path.read_bytes())
        data[int(place * (len(data) - 1))] ^= 4
        path.write_bytes(data)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        flip(0.0),
        flip(0.5),
        flip(0.9),
    ],
    ids=["half", "empty", "absent", "first byte", "middle", "late byte"],
)
def test_damage_is_computed_again(tmp_path, damage):
    """An entry cut short, emptied, deleted, or with one bit flipped is computed again."""
    first = [np.array(view) for view in extract(tmp_path, 3)[0]]
    damage(entries(tmp_path)[1])
    second, cached = extract(tmp_path, 3)
    assert cached == 2
    np.testing.assert_array_equal(first, second)
    third, cached = extract(tmp_path, 3)  # and it is whole again
    assert cached == 3
    np.testing.assert_array_equal(first, third)


def test_a_full_disk_is_a_message(tmp_path):
    """No file may grow beyond 0 bytes, then 10,000: a message, and the same features."""
    pytest.importorskip("resource")
    code = """
import resource
import numpy as np
runs = [xray.Run("test", 42, "float32", xray.Path(sys.argv[1]) / name) for name in "ab"]
for run, room in zip(runs, (0, 10_000)):  # none first: joblib writes its own file once a process
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    run.lap = lambda part: None  # writes the results, which is another matter
    base, datagen = test_cache.toy_base(), test_cache.augmented()
    views = run.extract_features(base, datagen, test_cache.IMAGES, 3)
    print("RESULT", *(xray.zlib.crc32(np.ascontiguousarray(view)) for view in views), flush=True)
"""
    running = run_apart(code, tmp_path / "full")
    printed, errors = running.communicate()
    expected, _ = extract(tmp_path / "room", 3)
    sums = [str(zlib.crc32(np.ascontiguousarray(view))) for view in expected]
    lines = [line.split()[1:] for line in printed.splitlines() if line.startswith("RESULT")]
    assert running.returncode == 0 and "Traceback" not in errors, errors[-2000:]
    assert lines == [sums, sums]
    assert [part.count("not saved to disk: ") for part in printed.split("RESULT")] == [1, 1, 0], printed


def test_an_error_of_the_base_is_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    """What fails in the computation itself is raised."""

    class Broken:
        output_shape = (None, 1, 1, 512)

        def predict(self, *_, **__):
            raise ArithmeticError("the base fails")

    monkeypatch.setattr(xray, "reduced", lambda *_: Broken())
    with pytest.raises(ArithmeticError, match="the base fails"):
        extract(tmp_path, 1)


def test_kill_in_the_middle_of_extraction(tmp_path):
    """After kill -9 the next run computes the missing views alone, and gets the same features."""
    code = """
datagen = test_cache.augmented(preprocessing_function=test_cache.slowly)
test_cache.extract(sys.argv[1], 30, datagen=datagen)
"""
    running = run_apart(code, tmp_path)
    deadline = time.monotonic() + 120
    while len(entries(tmp_path)) < 2 and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
    running.communicate()
    kept = len(entries(tmp_path))
    assert 2 <= kept < 30
    datagen = augmented(preprocessing_function=slowly)
    resumed, cached = extract(tmp_path, kept + 1, datagen=datagen)
    assert cached == kept
    afresh, cached = extract(tmp_path / "afresh", kept + 1, datagen=datagen)
    assert cached == 0
    np.testing.assert_array_equal(resumed, afresh)


def test_two_runs_at_once(tmp_path):
    """Two processes on one cache: no error, and equal features."""
    code = """
import numpy as np
for attempt in range(3):
    views, _ = test_cache.extract(sys.argv[1], 4, seed=attempt)
    print("RESULT", *(xray.zlib.crc32(np.ascontiguousarray(view)) for view in views))
"""
    running = [run_apart(code, tmp_path) for _ in range(2)]
    printed = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0], printed
    sums = [[line for line in out.splitlines() if line.startswith("RESULT")] for out, _ in printed]
    assert sums[0] == sums[1] and len(set(sums[0])) == 3
    assert all("not kept" not in out and "Traceback" not in errors for out, errors in printed)


def test_features_are_read_from_disk(tmp_path):
    """First or second time, each view is a memory map, and at most one is held besides."""
    for _ in range(2):
        views, _ = extract(tmp_path, 6)
        assert all(isinstance(view, np.memmap) and view.dtype == np.float16 for view in views)
        assert not any(view.flags.writeable for view in views)
    assert len(xray.fresh) <= 1


def test_no_image_makes_no_view(tmp_path):
    """Without images, as where the controls are missing, features are empty and nothing is kept."""
    views, cached = extract(tmp_path, 2, images=IMAGES[:0])
    assert [view.shape for view in views] == [(0, 16, 16, 8)] * 2 and cached == 0
    assert not entries(tmp_path)
