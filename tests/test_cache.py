"""Views are computed once: what is kept, what is computed again, what crashes do to it."""

import os
import re
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


def as_it_is(image):
    """Change nothing."""
    return image


def brighter_but_the_first(image):
    """Add a little brightness to all images but the first."""
    return image if np.array_equal(image, IMAGES[0]) else image + 10


def extract(output, views, base=None, datagen=None, images=IMAGES, seed=42, precision="float32"):
    """Extract features as a new run does; returns them, and how many views came from the cache."""
    run = xray.Run("test", seed, precision, Path(output))
    features = xray.extract_features(base or toy_base(), datagen or augmented(), images, views, run)
    return features, run.results["views_from_cache"]


def entries(output):
    """Return the files that hold a view, the oldest first."""
    return sorted((Path(output) / "views").glob("*.npy"), key=lambda path: path.stat().st_mtime_ns)


def checksums(views):
    """Return the CRC-32 of each view."""
    return [zlib.crc32(np.ascontiguousarray(view)) for view in views]


def run_apart(code, *arguments):
    """Start Python code with this file and xray imported; returns the running process."""
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
        patch.setattr(xray, "to_mixed_precision", lambda *_: None)  # what is None cannot compute
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
    head = keras.Sequential(list(stack))
    for rate in (1e-3, 1e-4):
        xray.fit_head(head, views, np.arange(5) % 2, np.arange(5), learning_rate=rate, epochs=2)
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


def test_functions_that_agree_on_the_first_image_are_apart(tmp_path):
    """A preprocessing function is known by what it makes of every image, not by its name or of one image."""
    functions = as_it_is, brighter_but_the_first
    np.testing.assert_array_equal(*(function(IMAGES[0].astype(np.float32)) for function in functions))
    plain = [augmented(rotation_range=0, preprocessing_function=function) for function in functions]
    first, _ = extract(tmp_path, 1, datagen=plain[0])
    second, cached = extract(tmp_path, 1, datagen=plain[1])
    assert cached == 0 and len(entries(tmp_path)) == 2
    np.testing.assert_array_equal(first[0][0], second[0][0])
    assert all(not np.array_equal(a, b) for a, b in zip(first[0][1:], second[0][1:]))
    _, cached = extract(tmp_path, 1, datagen=plain[0])
    assert cached == 1


def test_bases_of_the_same_weights_are_apart(tmp_path):
    """Average and maximum pooling, or two activations, have the same weights and shape, and their own features."""
    run, plain = xray.Run("test", 42, "float32", tmp_path), ImageDataGenerator(rescale=1 / 255)
    for pooling in (keras.layers.GlobalAveragePooling2D(), keras.layers.GlobalMaxPooling2D()):
        for activation in ("relu", "tanh"):
            activate = keras.layers.Activation(activation)
            base = keras.Sequential([keras.Input((32, 32, 3)), *toy_base().layers, activate, pooling])
            (features,) = xray.extract_features(base, plain, IMAGES, 1, run)
            np.testing.assert_allclose(features, base.predict(IMAGES / 255, verbose=0), rtol=2e-3, atol=1e-3)
    assert len(entries(tmp_path)) == 4 and not run.results["views_from_cache"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_base_whose_weights_changed_is_computed_anew(tmp_path, precision):
    """The same object with other weights, as after unfreezing, has other features; with the first ones, the first."""
    base, plain = toy_base(0), ImageDataGenerator(rescale=1 / 255)
    before, others = base.get_weights(), toy_base(1).get_weights()
    first, _ = extract(tmp_path, 1, base, plain, precision=precision)
    base.set_weights(others)
    second, cached = extract(tmp_path, 1, base, plain, precision=precision)
    assert cached == 0 and np.abs(first[0] - second[0]).max() > 0.1
    np.testing.assert_allclose(second[0], base.predict(IMAGES / 255, verbose=0), rtol=0.02, atol=0.02)
    base.set_weights(before)
    for output, expected in ((tmp_path, 1), (tmp_path / "new", 0)):
        again, cached = extract(output, 1, base, plain, precision=precision)
        assert cached == expected
        np.testing.assert_array_equal(first, again)


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


@pytest.mark.parametrize("shape", [(5, 16, 16, 8), (306, 4, 4, 512), (10, 2)])
def test_no_bit_of_a_header_can_pass_for_another(tmp_path, shape):
    """Whichever bit of an entry's header is flipped: the same features are read, or none, and never an error.

    NumPy's header is not part of the checksum, and one bit in it swaps the bytes of every number.
    """
    features = np.random.default_rng(0).random(shape).astype(np.float16)
    kept, problem = xray.save_view(tmp_path, "call", 42, features)
    assert problem is None and isinstance(kept, np.memmap)
    del kept
    (path,) = tmp_path.iterdir()
    whole, read = path.read_bytes(), 0
    for bit in range(8 * (len(whole) - features.nbytes)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        found = xray.load_view(tmp_path, "call", 42)
        if found is None:
            assert not path.exists()  # so that a later run does not look at it again
            continue
        assert found.dtype == features.dtype and found.dtype.isnative
        np.testing.assert_array_equal(found, features, strict=True)
        read += 1
        del found
    assert read <= 8  # "<", "=", and "|" all mean this machine's order of bytes
    path.write_bytes(whole)
    assert xray.load_view(tmp_path, "call", 42) is not None
    assert xray.load_view(tmp_path, "call", 43) is xray.load_view(tmp_path, "other", 42) is None


def test_a_full_disk_is_a_message(tmp_path):
    """No file may grow beyond 0 bytes, then 10,000: a message, and the same features."""
    pytest.importorskip("resource")
    code = """
import resource
for room in (0, 10_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    run = xray.Run("test", 42, "float32", xray.Path(sys.argv[1]) / str(room))
    run.lap = lambda part: None  # writes the results, which is another matter
    views = xray.extract_features(test_cache.toy_base(), test_cache.augmented(), test_cache.IMAGES, 3, run)
    print("RESULT", *test_cache.checksums(views), flush=True)
"""
    running = run_apart(code, tmp_path / "full")
    printed, errors = running.communicate()
    expected, _ = extract(tmp_path / "room", 3)
    sums = [str(value) for value in checksums(expected)]
    lines = [line.split()[1:] for line in printed.splitlines() if line.startswith("RESULT")]
    assert running.returncode == 0 and "Traceback" not in errors, errors[-2000:]
    assert lines == [sums, sums]
    messages = [part.count("Views are not saved to disk (") for part in printed.split("RESULT")]
    assert messages == [1, 1, 0] and "(File too large)" in printed, printed
    assert not [path for path in (tmp_path / "full").rglob("*") if path.is_file()]  # nor is a part of a file left


def test_an_unwritable_folder_is_a_message(tmp_path, capsys):
    """A file where the views' folder belongs: one message for three views, and the same features, in memory."""
    expected, _ = extract(tmp_path / "room", 3)
    (tmp_path / "views").write_text("in the way")
    capsys.readouterr()
    for _ in range(2):
        views, cached = extract(tmp_path, 3)
        assert cached == 0 and not any(isinstance(view, np.memmap) for view in views)
        np.testing.assert_array_equal(views, expected)
        printed = capsys.readouterr().out
        assert printed.count("Views are not saved to disk (") == printed.count("saved to disk (") == 1
    assert (tmp_path / "views").read_text() == "in the way"


def test_what_is_refused_is_saved_by_the_next_run(tmp_path, monkeypatch, capsys):
    """Of three views one is there; the system refuses the others, which stay in memory until a run can save them."""

    def refuse(target, write):
        raise PermissionError(13, "Permission denied")

    expected, _ = extract(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(xray, "atomic_write", refuse)
        patch.setattr(xray.Run, "save", lambda run: None)
        views, cached = extract(tmp_path, 3)
    assert cached == 1 and [isinstance(view, np.memmap) for view in views] == [True, False, False]
    assert capsys.readouterr().out.count("Views are not saved to disk (Permission denied)") == 1
    np.testing.assert_array_equal(views[0], expected[0])
    again, cached = extract(tmp_path, 3)
    assert cached == 1 and len(entries(tmp_path)) == 3
    np.testing.assert_array_equal(views, again)
    assert not capsys.readouterr().out


def test_an_error_of_the_base_is_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    """What fails in the computation itself is raised."""

    class Broken:
        output_shape = (None, 1, 1, 512)

        def predict(self, *_, **__):
            raise ArithmeticError("the base fails")

    monkeypatch.setattr(xray, "to_mixed_precision", lambda *_: Broken())
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
for attempt in range(3):
    views, _ = test_cache.extract(sys.argv[1], 4, seed=attempt)
    print("RESULT", *test_cache.checksums(views))
"""
    running = [run_apart(code, tmp_path) for _ in range(2)]
    printed = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0], printed
    sums = [[line for line in out.splitlines() if line.startswith("RESULT")] for out, _ in printed]
    assert sums[0] == sums[1] and len(set(sums[0])) == 3
    assert all("not saved" not in out and "Traceback" not in errors for out, errors in printed)
    assert len(entries(tmp_path)) == 12 == len(list((tmp_path / "views").iterdir()))


def test_features_are_read_from_disk(tmp_path):
    """First or second time, each view is a memory map that nobody can write to."""
    for _ in range(2):
        views, _ = extract(tmp_path, 6)
        assert all(isinstance(view, np.memmap) and view.dtype == np.float16 for view in views)
        assert not any(view.flags.writeable for view in views)


def test_entries_are_plain_files(tmp_path):
    """A view is one .npy file, named CALL_SEED_CHECKSUM, that NumPy alone reads; nothing else is written."""
    views, _ = extract(tmp_path, 3)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    names = [re.fullmatch(r"views/([0-9a-f]{32})_(\d+)_([0-9a-f]{8})\.npy", file) for file in files[1:]]
    assert files[0] == "test.json" and len(names) == 3 and len({name[1] for name in names}) == 1
    assert sorted(int(name[2]) for name in names) == [42, 1042, 2042]
    for name, view in zip(sorted(names, key=lambda name: int(name[2])), views):
        plain = np.load(tmp_path / name[0], allow_pickle=False)
        np.testing.assert_array_equal(plain, view, strict=True)
        assert int(name[3], 16) == zlib.crc32(plain)


def test_a_view_is_shared_by_its_seed(tmp_path):
    """View 1 of seed 42 is view 0 of seed 1042: the same file, and the same features."""
    first, _ = extract(tmp_path, 2, seed=42)
    second, cached = extract(tmp_path, 1, seed=1042)
    assert cached == 1 and len(entries(tmp_path)) == 2
    np.testing.assert_array_equal(first[1], second[0])
    afresh, _ = extract(tmp_path / "afresh", 1, seed=1042)
    np.testing.assert_array_equal(afresh, second)


def test_no_image_makes_no_view(tmp_path):
    """Without images, as where the controls are missing, features are empty and nothing is kept."""
    views, cached = extract(tmp_path, 2, images=IMAGES[:0])
    assert [view.shape for view in views] == [(0, 16, 16, 8)] * 2 and cached == 0
    assert not entries(tmp_path)
