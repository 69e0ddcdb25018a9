"""The toolbox of the two lessons: everything that both use and that you need not read first.

The sections stand in the order of a lesson: settings, weights, the record of a run, views and features,
the head, statistics, heat maps, figures. Functions take what they need as arguments.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html
import json
import os
import re
import socket
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import joblib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from dataset import FINDINGS, RIGHT_ANSWERS, TIMEOUT, Problem, data_home, identify, in_place, label_of, thumbnail
from IPython.display import HTML, Markdown, display
from scipy.stats import binomtest, bootstrap
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix, roc_auc_score, roc_curve
from sklearn.model_selection import StratifiedGroupKFold
from tqdm import tqdm

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send what libraries write to file descriptor 2 to nowhere: TensorFlow's start-up lines, say."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


with quiet():
    import keras
    import tensorflow as tf
    from tensorflow.keras.preprocessing.image import ImageDataGenerator


# ---------------------------------------------------------------------------------------- settings


def whole_number(name: str, value: object, least: int = 1) -> int:
    """Check a setting that counts something; the environment variable `name`, if not empty, overrides `value`.

    Returns an int from `least` to 999999. Raises Problem for anything else.
    """
    text = str(os.environ.get(name) or value).strip()
    if not re.fullmatch(r"[0-9]{1,6}", text, re.ASCII) or int(text) < least:
        raise Problem(f"{name} is {text!r}. Set it to a whole number from {least} to 999999.")
    return int(text)


# ---------------------------------------------------------------------------------------- weights

VGG16_SHA256 = "d9a27cc1fc7f975ef8cff49180e794ccd7c4bc868ebb49740803b3bbaa8dbefd"
socket.setdefaulttimeout(TIMEOUT)  # for Keras, which downloads the weights


def weights_sha256(model: keras.Model) -> str:
    """SHA-256 over all kernels and biases, layer by layer, as little-endian float32."""
    arrays = [np.ascontiguousarray(array, "<f4").tobytes() for array in model.get_weights()]
    return hashlib.sha256(b"".join(arrays)).hexdigest()


def load_vgg16(weights: str | None) -> keras.Model:
    """Return VGG16 without its classifier; raises Problem unless it has VGG16's ImageNet weights.

    `weights`: "imagenet" (Keras downloads them), a file's path, or None for random ones, not checked.
    """
    advice = "Set VGG16_WEIGHTS to a good file, or run `python data/prepare.py` in a clone of the project."
    try:
        base = keras.applications.VGG16(weights=weights, include_top=False, input_shape=(32, 32, 3))
    except Exception as error:  # Keras and h5py raise different ones for each kind of damage
        reason = " ".join(str(error).split())[:200]
        raise Problem(f"VGG16's weights cannot be read from {weights!r} ({reason}). {advice}") from None
    if weights and weights_sha256(base) != VGG16_SHA256:
        raise Problem(f"The weights from {weights!r} are not VGG16's ImageNet weights. {advice}")
    return base


def find_weights(home: Path | None = None) -> str | None:
    """Return what VGG16's `weights` may be: a file, "imagenet", or None for VGG16_WEIGHTS=random.

    Looks at VGG16_WEIGHTS, then at `home`/weights, then lets Keras download them. Checks them first.
    """
    prepared = (home or data_home()) / "weights" / "vgg16.weights.h5"
    weights = os.environ.get("VGG16_WEIGHTS") or (str(prepared) if prepared.exists() else "imagenet")
    load_vgg16(None if weights == "random" else weights)
    return None if weights == "random" else weights


# ------------------------------------------------------------------------------ the record of a run


def choose_precision(setting: str = "auto") -> str:
    """Return the precision in which VGG16 runs: "float16", "bfloat16", or "float32".

    "auto", or the environment variable PRECISION: float16 on a GPU, bfloat16 on a processor that
    computes with it, and float32 elsewhere. Raises Problem for anything else.
    """
    setting = os.environ.get("PRECISION") or setting
    if setting not in ("auto", "float16", "bfloat16", "float32"):
        raise Problem(f"PRECISION is {setting!r}. Set it to auto, float16, bfloat16, or float32.")
    if setting != "auto" or tf.config.list_physical_devices("GPU"):
        return setting.replace("auto", "float16")
    cpu = Path("/proc/cpuinfo")
    fast = cpu.exists() and re.search(r"\b(avx512_bf16|amx_bf16)\b", cpu.read_text())
    return "bfloat16" if fast else "float32"


class Run:
    """The record of one run of a notebook: results as JSON, figures as PNG, all saved as they come.

    `results` is what `output`/`name`.json holds. `output` is COVID_XRAY_OUTPUT, or output/ beside the
    data. `seed` seeds Python, NumPy, and TensorFlow.
    """

    def __init__(self, name: str, seed: int = 42, precision: str = "auto", output: Path | None = None):
        default = "output" if data_home() == Path("data") else "../output"
        self.output = Path(output or os.environ.get("COVID_XRAY_OUTPUT") or default)
        self.name, self.seed, self.precision = name, seed, choose_precision(precision)
        self.started = self.lapped = time.perf_counter()
        self.bases: dict = {}
        try:
            self.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Problem(f"{self.output} cannot be created: {error.strerror}. Set COVID_XRAY_OUTPUT.") from None
        keras.utils.set_random_seed(seed)
        with quiet():  # the first compiled function prints a few lines
            tf.function(lambda: tf.constant(1.0) + 1, jit_compile=True)()
        tf.get_logger().setLevel("ERROR")
        warnings.filterwarnings("ignore", module="scipy|keras")  # SciPy warns at every augmented image
        plt.rcParams.update(STYLE)
        self.gpus = tf.config.list_logical_devices("GPU")
        versions = {"python": sys.version.split()[0], "tensorflow": tf.__version__, "keras": keras.__version__}
        self.results = dict(dataset=None, weights=None, seed=seed, precision=self.precision, views_from_cache=0)
        self.results |= dict(versions=versions, seconds={}, cases={}, trust={})
        device = f"{len(self.gpus)} GPU(s)" if self.gpus else f"{os.cpu_count()} CPU cores"
        print(f"TensorFlow {tf.__version__}, Keras {keras.__version__}, {device}, VGG16 in {self.precision}")

    def describe(self, folder: Path, table: pd.DataFrame) -> None:
        """Record which data set this is; a notice says so where the images are phantoms."""
        self.results["dataset"] = identify(folder, table["file"])
        self.results["weights"] = "random" if os.environ.get("VGG16_WEIGHTS") == "random" else "imagenet"
        if self.phantoms:
            notice = (
                "### These images are SYNTHETIC\nNo X-ray is available, so everything below is computed on drawn "
                "phantoms. It shows that the code works. It says nothing about lungs, COVID-19, or the article."
            )
            display(Markdown(notice))
        self.lap("images")

    @property
    def phantoms(self) -> bool:
        """Tell whether this run reads phantoms instead of X-rays."""
        return self.results["dataset"] == "phantoms"

    def record(self, path: str, value: object) -> None:
        """Put `value` under a dotted `path` of the results, such as "trust.controls"; ends a lap and saves."""
        *parents, last = path.split(".")
        place = self.results
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
        self.lap("training" if parents[:1] == ["cases"] else path.split(".")[0])

    def lap(self, part: str) -> None:
        """Add the seconds since the last lap to results["seconds"][part], and save."""
        now, seconds = time.perf_counter(), self.results["seconds"]
        seconds[part] = round(seconds.get(part, 0) + now - self.lapped, 1)
        self.lapped = now
        self.save()

    def save(self) -> None:
        """Write the results in one step, so that a later failure loses none of them."""
        self.results["seconds"]["total"] = round(time.perf_counter() - self.started, 1)
        text = json.dumps(self.results, indent=1, default=as_plain)
        in_place(self.output / f"{self.name}.json", lambda scratch: scratch.write_text(text, encoding="utf-8"))

    def show(self, figure: plt.Figure, name: str, alt: str) -> None:
        """Save a figure as PNG and show it, with `alt` as its alternative text; phantoms are named."""
        if self.phantoms:
            figure.text(0.5, -0.01, "Synthetic phantoms, not X-rays", ha="center", va="top", color=ORANGE)
        path = self.output / f"{self.name}_{name}.png"
        figure.savefig(path, bbox_inches="tight")
        plt.close(figure)
        show_png(path, alt)

    # --- views and features

    def extract_features(
        self, conv_base: keras.Model, datagen: ImageDataGenerator, images: np.ndarray, views: int = 1
    ) -> list[np.ndarray]:
        """Run the frozen base once over each of `views` augmented copies of all images.

        images: uint8 (n, size, size, 3), 0 to 255. Returns one array a view, float16 (n, 4, 4, 512) for
        VGG16 at 150 pixels, read from disk as it is used. View v is drawn with seed + 1000 v, so the same
        call gives the same features. Each view is kept under `output`/views and is never computed twice:
        its key has the pixels, the augmentation, the seed, the view, the weights, and the precision.
        """
        if not len(images):
            return [np.zeros((0, *conv_base.output_shape[1:]), np.float16)] * views
        memory = joblib.Memory(self.output / "views", mmap_mode="r", verbose=0)
        stored = memory.cache(view_features, ignore=["base", "datagen", "images", "progress"])
        kinds = [type(layer).__name__ for layer in conv_base.layers]
        weights = joblib.hash([kinds, conv_base.input_shape, conv_base.get_weights()])
        if weights not in self.bases:
            self.bases[weights] = reduced(conv_base, self.precision, len(self.gpus))
        base = self.bases[weights]
        parts = (tf.__version__, keras.__version__, np.__version__, len(self.gpus), self.precision, weights)
        key = joblib.hash([*parts, conv_base.output_shape, images, augmentation_of(datagen, images[0])])
        seeds = [self.seed + 1000 * view for view in range(views)]
        missing = [seed for seed in seeds if not is_kept(stored, base, datagen, images, seed, key, None)]
        features, problem, total = [], "", len(missing) * len(images)
        look = dict(file=sys.stdout, ncols=80, mininterval=2, disable=total < 500)
        with tqdm(total=total, desc=f"VGG16, {len(missing)} new view(s)", **look) as bar:
            for seed in seeds:
                view, reason = from_cache(stored, base, datagen, images, seed, key, bar.update)
                features.append(view)
                problem = reason or problem
                self.results["views_from_cache"] += not fresh
        if problem:
            print(f"Views are not saved to disk: {problem} They stay in memory. To save them, free some disk space.")
        self.lap("features")
        return features

    def conclude(self, *sentences: str) -> None:
        """Show sentences as one paragraph; a run on phantoms says first that they mean nothing."""
        first = ["These are drawn phantoms: what follows says nothing about X-rays."] if self.phantoms else []
        display(Markdown("> " + " ".join([*first, *sentences])))

    def show_committed(self, name: str) -> None:
        """Show a figure of the project's own run in place of one that needs images you do not have."""
        figures = data_home().parent / "notebooks" / "figures"
        print(f"Without the controls, a part is missing. For it, see the project's own run: {self.name}_{name}.png")
        if (figures / f"{self.name}.json").exists():
            trust = json.loads((figures / f"{self.name}.json").read_text(encoding="utf-8"))["trust"]
            print(*(f"{task}: {describe(scored)}" for task, scored in trust[name].items()), sep="\n")
            show_png(figures / f"{self.name}_{name}.png", "The figure of the project's own run")

    def cache_size(self) -> str:
        """Say how much the kept views take up on disk."""
        size = sum(path.stat().st_size for path in (self.output / "views").rglob("*") if path.is_file())
        kept = self.results["views_from_cache"]
        return f"{self.output / 'views'} holds {size / 1e6:.0f} MB of features; {kept} views of this run came from it."


def show_png(path: Path, alt: str) -> None:
    """Show a PNG at 100 pixels an inch with its alternative text, which nbconvert drops from a plain image."""
    data = path.read_bytes()
    width = round(int.from_bytes(data[16:20], "big") * 100 / STYLE["savefig.dpi"])  # from the header
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    display(HTML(f'<img width="{width}" alt="{html.escape(alt)}" src="{source}">'))


def as_plain(value: object) -> object:
    """Return NumPy's numbers and arrays as Python's, for JSON."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else str(value)


# ------------------------------------------------------------------------------- views and features

ARTICLE_AUGMENTATION = dict(
    rotation_range=50, width_shift_range=0.2, height_shift_range=0.2, shear_range=0.25, zoom_range=0.1,
    channel_shift_range=20, horizontal_flip=True, vertical_flip=True, fill_mode="constant",
)  # fmt: skip


def augmentation_of(datagen: ImageDataGenerator, image: np.ndarray) -> str:
    """Return a hash of a generator's settings; a preprocessing function is known by what it makes of `image`."""
    settings = {k: v for k, v in vars(datagen).items() if k != "preprocessing_function"}
    function = datagen.preprocessing_function
    return joblib.hash([settings, function(image.astype(np.float32)) if function else None])


def reduced(conv_base: keras.Model, precision: str, gpus: int = 0) -> keras.Model:
    """Return a copy of the base that computes in `precision` and holds float32 weights; on all GPUs."""
    policy = precision if precision == "float32" else f"mixed_{precision}"
    strategy = tf.distribute.MirroredStrategy() if gpus > 1 else tf.distribute.get_strategy()

    def convert(layer: keras.Layer) -> keras.Layer:
        return layer.__class__.from_config({**layer.get_config(), "dtype": policy})

    with strategy.scope():
        base = keras.models.clone_model(conv_base, clone_function=convert)
        base.set_weights(conv_base.get_weights())
    return base


def without_autotuning(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Switch tf.data's autotuning off: with it, freeing a data set can take up to a minute."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def view_features(
    base: keras.Model, datagen: ImageDataGenerator, images: np.ndarray, seed: int, key: str,
    progress: Callable[[int], object] | None,
) -> tuple[np.ndarray, int]:  # fmt: skip
    """Compute the features of one view, float16 (n, ...), and their CRC-32.

    One thread draws the next batch while the base runs: ImageDataGenerator seeds NumPy's global
    generator, so more threads would not repeat. `key` stands for base, datagen, and images in the cache.
    """

    def batches(first: int) -> Iterator[np.ndarray]:
        for start in range(first, min(first + 512, len(images)), 32):  # flow holds float32 copies: 32 at a time
            part = images[start : start + 32]
            flow = datagen.flow(part, batch_size=32, shuffle=False, seed=seed + start // 32)
            yield flow[0]
            flow.index_generator = None  # ends a cycle that would keep the copies until Python collects garbage
            if progress:
                progress(len(part))

    features = np.empty((len(images), *base.output_shape[1:]), np.float16)
    signature = tf.TensorSpec((None, *images.shape[1:]), tf.float32)
    for first in range(0, len(images), 512):  # predict holds what it returns twice
        drawn = tf.data.Dataset.from_generator(batches, args=(first,), output_signature=signature).prefetch(2)
        drawn = without_autotuning(drawn.rebatch(16))  # 16 at a time: VGG16's activations are large
        features[first : first + 512] = base.predict(drawn, verbose=0)
    fresh[key, seed] = features
    return features, zlib.crc32(features)


fresh: dict = {}  # the view computed last, for a disk that cannot keep it


def is_kept(stored: Callable, *call: object) -> bool:
    """Tell whether the cache has a view; where nothing can be written, it has none."""
    try:
        return stored.check_call_in_cache(*call)
    except OSError:
        return False


def from_cache(stored: Callable, *call: object) -> tuple[np.ndarray, str]:
    """Return one view from the cache; compute it, and put it into `fresh`, where it is missing or damaged.

    Also returns why the view is not on disk and stays in memory, "" if it is there.
    """
    fresh.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            features, checksum = stored(*call)
            if zlib.crc32(features) != checksum:
                del features  # Windows deletes no file that is mapped
                stored.call_and_shelve(*call).clear()
                features, checksum = stored(*call)
            return features, ""
        except Exception:
            if not fresh:  # the failure came before the features did; one of the base comes again
                view_features(*call)
    reason = str(caught[-1].message).split("Exception: ")[-1] if caught else "it cannot be written"
    return next(iter(fresh.values())), reason


# ----------------------------------------------------------------------------------------- the head


class ViewSchedule(keras.callbacks.Callback):
    """The article's training schedule, on features: epoch e trains and validates on view e % len(views).

    Pass `batches` to fit as its data, and the schedule itself as a callback. After each epoch it scores
    the same view of the validation images and adds val_loss and val_acc to the history. (fit's own
    validation_data restarts in every epoch, so it would score view 0 each time.)

    views: arrays (n, 4, 4, 512), one a view; labels: int (n,); train, validation: row numbers. The order
    of the images depends on the seed and the epoch. The head casts float16 features to float32.
    """

    def __init__(
        self, views: Sequence[np.ndarray], labels: np.ndarray, train: np.ndarray,
        validation: np.ndarray | None = None, batch_size: int = 10, seed: int = 42,
    ):  # fmt: skip
        super().__init__()
        self.views, self.labels, self.train, self.validation, self.seed = views, labels, train, validation, seed
        with tf.device("CPU"):  # slices of a variable reach the head in half the time of a Python generator's batches
            self.features = tf.Variable(views[0][:0], shape=(None, *views[0].shape[1:]))
            self.targets = tf.Variable(np.zeros(len(train), np.int32))

        def read(_: tf.Tensor) -> tf.data.Dataset:  # as fit begins an epoch
            return tf.data.Dataset.from_tensor_slices((self.features.value(), self.targets.value())).batch(batch_size)

        # Of unknown length: at the end of every epoch of a known one, Keras makes an iterator that it never uses.
        self.batches = without_autotuning(tf.data.Dataset.range(1).flat_map(read))

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Lay out the features and labels of this epoch's view in this epoch's order."""
        order = tf.random.experimental.stateless_shuffle(tf.range(len(self.train)), seed=[self.seed, epoch])
        rows = self.train[order.numpy()]
        self.features.assign(self.views[epoch % len(self.views)][rows])
        self.targets.assign(self.labels[rows].astype(np.int32))

    def on_train_end(self, logs: dict | None = None) -> None:
        """Free the features: TensorFlow may keep the variable for some time."""
        self.features.assign(self.views[0][:0])

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Score the validation images on the view that this epoch trained on."""
        if self.validation is not None:
            view, truth = self.views[epoch % len(self.views)], tf.constant(self.labels[self.validation])
            outputs = self.model(tf.constant(view[self.validation].astype(np.float32)))
            logs["val_loss"] = float(self.model.compute_loss(y=truth, y_pred=outputs))
            logs["val_acc"] = float((two_columns(outputs.numpy()).argmax(axis=1) == truth.numpy()).mean())


def initialize(head: keras.Model, seed: int) -> None:
    """Give the head fresh weights, drawn from `seed`, and its optimizer a fresh state.

    Its compiled training step stays, so that ten heads of one shape are compiled once. Kernels are Glorot
    uniform, which is Keras's default, and biases zero.
    """
    draws = keras.random.SeedGenerator(seed)  # an integer would give every layer the same stream
    for layer in head.layers:
        if hasattr(layer, "kernel"):
            layer.kernel.assign(keras.initializers.GlorotUniform(draws)(layer.kernel.shape))
            layer.bias.assign(np.zeros(layer.bias.shape))
    if optimizer := getattr(head, "optimizer", None):
        rate = float(optimizer.learning_rate)
        for variable in optimizer.variables:
            variable.assign(np.zeros(variable.shape))
        optimizer.learning_rate = rate


def two_columns(outputs: np.ndarray) -> np.ndarray:
    """Turn a sigmoid's single output p into (1 - p, p); leave a softmax as it is."""
    return np.hstack([1 - outputs, outputs]) if outputs.shape[1] == 1 else outputs


def predict_probabilities(head: keras.Model, features: np.ndarray) -> np.ndarray:
    """Return the probability of each class, float (n, classes), from features (n, 4, 4, 512), 512 rows at a time."""
    parts = range(0, max(len(features), 1), 512)
    outputs = [head(tf.cast(features[start : start + 512], tf.float32)) for start in parts]
    return two_columns(np.concatenate(outputs))


def save_and_check(model: keras.Model, path: Path, images: np.ndarray, probabilities: np.ndarray) -> float:
    """Save a model, load it again, and check that it predicts the same.

    images: uint8 (n, size, size, 3); probabilities: (n, classes), those of the run; the first 100 are
    checked. Returns the largest difference between them and the saved model's, which computes in float32.
    Raises Problem where the loaded model predicts something else than the saved one.
    """
    in_place(path, model.save)
    inputs, probabilities = images[:100] / np.float32(255), probabilities[:100]
    loaded = keras.models.load_model(path)
    first, again = (network.predict(inputs[:8], verbose=0) for network in (model, loaded))
    if not np.allclose(first, again, atol=1e-6):
        raise Problem(f"{path} does not predict what the model in memory predicts. Save it again.")
    after = two_columns(loaded.predict(inputs, batch_size=8, verbose=0))  # in float32, activations are large
    return float(np.abs(after - probabilities).max())


# --------------------------------------------------------------------------------------- statistics


def exact_interval(correct: int, n: int) -> list[float]:
    """Exact (Clopper-Pearson) 95% confidence interval of a proportion, [low, high]."""
    if n == 0:
        return [0.0, 1.0]
    return list(map(float, binomtest(int(correct), int(n)).proportion_ci(0.95, "exact")))


def patient_interval(
    statistic: Callable[[np.ndarray], float], patients: Sequence[str], seed: int = 42, repeats: int = 2000
) -> list[float]:
    """95% confidence interval of statistic(row numbers), with patients drawn with replacement, [low, high].

    Two X-rays of one patient are not independent, so whole patients are drawn (a cluster bootstrap,
    percentile method). Draws for which the statistic is not defined do not count.
    """
    rows_of = list(pd.Series(range(len(patients))).groupby(np.asarray(patients)).apply(np.array))
    if len(rows_of) < 2:
        return [float(statistic(np.arange(len(patients))))] * 2

    def of_drawn(drawn: np.ndarray) -> float:
        return statistic(np.concatenate([rows_of[index] for index in drawn]))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = bootstrap(
            (np.arange(len(rows_of)),), of_drawn, vectorized=False, n_resamples=repeats, method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution  # fmt: skip
        return [float(value) for value in np.nanpercentile(values, [2.5, 97.5])]


def share_interval(hits: np.ndarray, patients: Sequence[str]) -> list[float]:
    """95% confidence interval, by patient, of the share of True in `hits`, bool (n,), [low, high].

    If all or none are hits, a bootstrap has no width: the interval is then exact, with n patients.
    """
    if len(set(hits)) < 2:
        n = len(set(patients))
        return exact_interval(n if any(hits) else 0, n)
    return patient_interval(lambda rows: hits[rows].mean(), patients)


def score(
    labels: np.ndarray, probabilities: np.ndarray, patients: Sequence[str],
    by_patient: bool = False, folds: Sequence = (),
) -> dict:  # fmt: skip
    """Score predictions: labels int (n,), probabilities (n, classes), the patient of each row.

    Returns n, patients, correct, accuracy, ci95, majority (the larger class's share), confusion (true
    class down, predicted class across). ci95 is exact and binomial; `by_patient` draws patients instead.
    With two classes also auc, the area under the ROC curve of class 0, and auc_ci95, by patient. With
    `folds` (pairs of training and held-out rows) also the accuracy of each, and their mean.
    """
    labels, right = np.asarray(labels), probabilities.argmax(axis=1) == labels
    classes = range(probabilities.shape[1])
    scored = {"n": len(labels), "patients": len(set(patients)), "correct": int(right.sum())}
    scored["accuracy"] = float(right.mean()) if len(labels) else 0.0
    scored["ci95"] = share_interval(right, patients) if by_patient else exact_interval(right.sum(), len(labels))
    scored["majority"] = float(np.bincount(labels).max() / len(labels)) if len(labels) else 0.0
    scored["confusion"] = confusion_matrix(labels, probabilities.argmax(axis=1), labels=classes).tolist()
    if folds:
        scored["folds"] = [float(right[held_out].mean()) for _, held_out in folds]
        scored["mean"] = float(np.mean(scored["folds"]))
    if len(classes) == 2:

        def auc(rows: np.ndarray) -> float:
            positive = labels[rows] == 0
            return roc_auc_score(positive, probabilities[rows, 0]) if 0 < positive.mean() < 1 else np.nan

        scored["auc"] = float(auc(np.arange(len(labels))))
        scored["auc_ci95"] = patient_interval(auc, patients)
    return scored


def difference(first: np.ndarray, second: np.ndarray, patients: Sequence[str]) -> dict:
    """Compare two sets of predictions of the same images: accuracy of `first` less that of `second`.

    first, second: bool (n,), right or wrong. Returns difference and ci95, by patient.
    """
    gain = np.asarray(first, float) - np.asarray(second, float)
    return {"difference": float(gain.mean()), "ci95": patient_interval(lambda rows: gain[rows].mean(), patients)}


def describe(scored: dict) -> str:
    """Return one line for a score: correct of n, the percentage, the interval."""
    interval = "{:.0%} to {:.0%}".format(*scored["ci95"])
    return f"{scored['correct']} of {scored['n']} = {scored['accuracy']:.0%} (95% confidence interval {interval})"


def grouped_folds(labels: np.ndarray, patients: Sequence[str], seed: int = 42) -> list[tuple]:
    """Split rows into five folds, all X-rays of a patient in the same one: (train, held out) row numbers.

    Fewer folds, with a printed message, where a class has fewer than five patients; Problem below two.
    """
    groups = pd.Series(np.asarray(patients)).groupby(np.asarray(labels)).nunique()
    folds = min(5, int(groups.min()))
    if folds < 2:
        raise Problem("One class has only one patient. Cross-validation needs two: check patients.csv, or add images.")
    if folds < 5:
        print(f"{folds} folds instead of 5: the smallest class has {folds} patients.")
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return list(splitter.split(labels, labels, patients))


def sensitivity_table(confusion: Sequence[Sequence[int]], class_names: Sequence[str]) -> pd.DataFrame:
    """Sensitivity and specificity of each class against the rest, with exact 95% intervals."""
    counts, rows = np.array(confusion), {}
    for label, class_name in enumerate(class_names):
        is_class = np.arange(len(class_names)) == label
        row = rows[label_of(class_name)] = {}
        for term, truth in (("sensitivity", is_class), ("specificity", ~is_class)):
            right, n = counts[truth][:, truth].sum(), counts[truth].sum()
            low, high = exact_interval(right, n)
            row[term] = f"{right} of {n} = {right / n:.0%} ({low:.0%} to {high:.0%})"
    return pd.DataFrame(rows).T


def article_draw(table: pd.DataFrame, class_names: Sequence[str], batch_size: int = 10, seed: int = 42) -> np.ndarray:
    """Return the rows of `table` that the article's evaluation in Multi draws from the test images.

    Its generator shuffles with seed 42 and takes ceil(n / batch_size) batches of one image. These are the
    rows that today's Keras draws; a test asks its own generator.
    """
    rows = np.flatnonzero((table["split"] == "test") & table["class"].isin(list(class_names)))
    return rows[np.random.RandomState(seed).permutation(len(rows))[: -(-len(rows) // batch_size)]]


def score_controls(controls: pd.DataFrame, predicted: Sequence[str], class_names: Sequence[str]) -> dict:
    """Score predictions for the controls, none of whom has COVID-19.

    controls: a row each, with group and patient; predicted: class names. Returns n, patients,
    called_covid and its interval by patient, by_finding and no_finding (n, called_covid), and
    with_right_answer: of those whose finding is one of `class_names`, how many are right.
    """
    predicted = np.asarray(predicted)
    covid, patients = predicted == "covid", controls["patient"].to_numpy()
    scored = {"n": len(controls), "patients": len(set(patients)), "called_covid": int(covid.sum())}
    scored["ci95"] = share_interval(covid, patients)
    scored["by_finding"] = {}
    for group in FINDINGS:
        rows = (controls["group"] == group).to_numpy()
        scored["by_finding"][group] = {"n": int(rows.sum()), "called_covid": int(covid[rows].sum())}
    scored["no_finding"] = scored["by_finding"]["no finding"]
    answers = controls["group"].map(RIGHT_ANSWERS)
    rows = answers.isin(list(class_names)).to_numpy()
    right = predicted[rows] == answers[rows].to_numpy()
    interval = share_interval(right, patients[rows])
    scored["with_right_answer"] = {"n": len(right), "correct": int(right.sum()), "ci95": interval}
    return scored


def case_key(case: str, name: str) -> str:
    """Return the name that results use for a case and an augmentation: "four", "four_gentle"."""
    return case if name == "article" else f"{case}_{name}"


# ---------------------------------------------------------------------------------------- heat maps


def hires_cam(
    conv_base: keras.Model, head: keras.Model, images: np.ndarray, classes: np.ndarray,
    layer_name: str = "block5_conv3",
) -> np.ndarray:  # fmt: skip
    """HiResCAM (Draelos and Carin, arXiv:2011.08891): what each place adds to the score of a class.

    images: uint8 (n, size, size, 3); classes: int (n,). Returns float (n, h, w), h and w of the layer:
    gradient times activation, summed over channels. Grad-CAM averages the gradient over positions first,
    which fits a head with global pooling; this head is Flatten + Dense and weights each position separately.
    The score is the class's input to the softmax, or to the sigmoid (its negative for class 0). For a linear
    head on flattened features, a map's sum is the score minus the bias.
    """
    index = conv_base.layers.index(conv_base.get_layer(layer_name))
    inputs = tf.constant(images.astype(np.float32) / 255)
    maps = keras.Model(conv_base.input, conv_base.layers[index].output)(inputs)
    *hidden, last = head.layers
    with tf.GradientTape() as tape:
        tape.watch(maps)
        x = maps
        for layer in [*conv_base.layers[index + 1 :], *hidden]:
            x = layer(x)
        logits = x @ last.kernel + last.bias
        if last.units == 1:
            logits = tf.concat([-logits, logits], axis=1)
        total = tf.reduce_sum(tf.gather(logits, classes, axis=1, batch_dims=1))
    return tf.reduce_sum(tape.gradient(total, maps) * maps, axis=-1).numpy()


# ------------------------------------------------------------------------------------------ figures

BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#767676"  # apart for color-blind readers
STYLE = {
    "figure.constrained_layout.use": True, "image.cmap": "gray", "savefig.dpi": 150, "figure.dpi": 100,
    "font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9, "figure.titlesize": 10,
    "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip
WIDTH = 9.5  # inches, the width of a page


def plot_images(
    images: Sequence[np.ndarray], titles: Sequence[str], columns: int, colors: Sequence[str] | None = None,
    height: float = 1.0,
) -> plt.Figure:  # fmt: skip
    """Draw images in a grid across the page, each under its title; `height` is that of a row, in widths."""
    rows, width = -(-len(images) // columns), WIDTH / columns
    lines = max(title.count("\n") + 1 for title in titles) * 0.17
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, rows * (width * height + lines)), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title, color in zip(axes.flat, images, titles, colors or ["black"] * len(images)):
        axis.imshow(image)
        axis.set_title(title, fontsize=9, color=color)
    return figure


def plot_examples(folder: Path, table: pd.DataFrame, each: int = 4) -> plt.Figure:
    """Show the first `each` training images of every class (six classes at most), a row a class."""
    chosen = table[table["split"] != "test"].groupby("class", sort=False).head(each)
    chosen = chosen[chosen["class"].isin(chosen["class"].unique()[:6])]
    titles = [label_of(name) for name in chosen["class"]]
    return plot_images([thumbnail(folder / file) for file in chosen["file"]], titles, each, height=0.8)


def plot_acc_loss(history: dict, title: str, n_validation: int) -> plt.Figure:
    """Draw accuracy and loss against epoch, training and validation, side by side as the article does."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.2))
    for axis, metric, label in zip(axes, ("acc", "loss"), ("accuracy", "loss (cross-entropy)")):
        curves = {"training": (history[metric], BLUE, "-"), "validation": (history[f"val_{metric}"], ORANGE, "--")}
        for values, color, style in curves.values():
            axis.plot(range(1, len(values) + 1), values, style, color=color)
        low, high = (0, 1.03) if metric == "acc" else axis.get_ylim()
        lower, upper = sorted(curves, key=lambda name: curves[name][0][-1])  # the labels stand apart
        gap = 0.08 * (high - low) - (curves[upper][0][-1] - curves[lower][0][-1])
        for name, shift in ((lower, -max(gap, 0) / 2), (upper, max(gap, 0) / 2)):
            values, color, _ = curves[name]
            axis.text(1.02 * len(values), values[-1] + shift, name, color=color, va="center")
        step = max(1, len(values) // 5)
        ticks, limits = range(step, len(values) + 1, step), (0, 1.02 * len(values))
        axis.set(xlabel="Epoch", title=f"{title}: {label}", xticks=ticks, xlim=limits, ylim=(low, high))
        axis.grid(alpha=0.3)
    axes[0].errorbar([len(values) / 20], [0.15], yerr=0.5 / n_validation, color=ORANGE, capsize=4)
    axes[0].text(len(values) / 13, 0.15, f" one of {n_validation} validation images", va="center", color=ORANGE)
    return figure


def plot_confusions(scores: dict[str, dict], class_names: Sequence[str]) -> plt.Figure:
    """Draw the confusion matrices of scores side by side: true class down, predicted class across.

    A score with fewer classes has the first of `class_names`.
    """
    names = [label_of(name).replace(" ", "\n") for name in class_names]
    side = min(WIDTH / len(scores), 0.9 * len(names) + 1)
    figure, axes = plt.subplots(1, len(scores), figsize=(side * len(scores), side), squeeze=False)
    for axis, (title, scored) in zip(axes.flat, scores.items()):
        counts = np.array(scored["confusion"])
        matrix = ConfusionMatrixDisplay(counts, display_labels=names[: len(counts)])
        matrix.plot(ax=axis, cmap="Blues", colorbar=False)
        title = f"{title}: {scored['correct']} of {scored['n']}"
        axis.set(title=title, xlabel="Predicted class", ylabel="True class")
        axis.spines[:].set_visible(True)
    return figure


def plot_predictions(
    paths: Sequence[Path], labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str],
    most: int = 36,
) -> plt.Figure:  # fmt: skip
    """Show test images under the article's kind of title, wrong predictions first and in orange.

    probabilities: (n, classes). At most `most` images are shown.
    """
    predicted = probabilities.argmax(axis=1)
    order = np.argsort(predicted == labels, kind="stable")[:most]
    titles, colors = [], []
    for row in order:
        name = class_names[predicted[row]]
        title = f"{probabilities[row].max():.2%}\n{'COVID19 Pneumonia' if name == 'covid' else label_of(name).title()}"
        if predicted[row] != labels[row]:
            title += f"\ntrue: {label_of(class_names[labels[row]]).removesuffix(' pneumonia')}"
        titles.append(title)
        colors.append("black" if predicted[row] == labels[row] else ORANGE)
    return plot_images([thumbnail(paths[row], 200) for row in order], titles, 6, colors, height=0.85)


def plot_heat_maps(images: np.ndarray, maps: np.ndarray, titles: Sequence[str]) -> plt.Figure:
    """Draw each image above its heat map, with a color bar: orange counts for the class, purple against it."""
    figure, axes = plt.subplots(2, len(images), figsize=(WIDTH, 4.4), squeeze=False)
    for image, heat, title, (top, bottom) in zip(images, maps, titles, axes.T):
        size, heat = image.shape[0], heat / max(np.abs(heat).max(), 1e-12)
        top.imshow(image)
        top.set_title(title)
        bottom.imshow(image)
        smooth = cv2.resize(heat, (size, size), interpolation=cv2.INTER_LINEAR)
        shown = bottom.imshow(smooth, cmap="PuOr_r", vmin=-1, vmax=1, alpha=0.6)
        top.axis("off")
        bottom.axis("off")
    bar = figure.colorbar(shown, ax=axes, shrink=0.6, ticks=[-1, 0, 1])
    bar.ax.set_yticklabels(["against", "neither", "for"])
    bar.set_label("What a region adds to the score")
    return figure


def plot_counts(counts: dict[str, dict], title: str, label: str) -> plt.Figure:
    """Draw called_covid of n as bars, one a group: in orange on gray, the count at the bar's end."""
    figure, axis = plt.subplots(figsize=(WIDTH, 0.9 + 0.36 * len(counts)))
    for name, row in reversed(counts.items()):
        k, n = row["called_covid"], row["n"]
        axis.barh(name, n, color="#DDDDDD")
        axis.barh(name, k, color=ORANGE)
        axis.annotate(f"{k} of {n}", (n, name), xytext=(5, 0), textcoords="offset points", va="center")
    axis.set(title=title, xlabel=label)
    return figure


def plot_scores(scores: dict[str, dict], title: str, auc: bool = True) -> plt.Figure:
    """Draw accuracies with their intervals, one row a name, beside the share of the larger class."""
    figure, axis = plt.subplots(figsize=(WIDTH, 1.1 + 0.62 * len(scores)))
    for place, scored in enumerate(reversed(scores.values())):
        low, high = scored["ci95"]
        axis.plot([low, high], [place, place], color=BLUE, linewidth=3, alpha=0.45, solid_capstyle="butt")
        axis.plot(scored["accuracy"], place, "o", color=BLUE)
        axis.plot([scored["majority"]] * 2, [place - 0.3, place + 0.3], ":", color="black")
        text = f"{scored['correct']} of {scored['n']} X-rays of {scored['patients']} patients"
        if auc:
            text += f"\narea under the ROC curve {scored['auc']:.2f}"
        axis.annotate(text, (1.03, place), va="center", annotation_clip=False)
    axis.annotate("always the\nlarger class ", (scored["majority"], place + 0.3), ha="right", va="top", fontsize=8)
    axis.set(xlim=(0, 1.02), ylim=(-0.6, len(scores) - 0.4), title=title)
    axis.set(xlabel="Accuracy, with its 95% confidence interval")
    axis.set_yticks(range(len(scores)), list(scores)[::-1])
    axis.grid(axis="x", alpha=0.3)
    return figure


def plot_roc(curves: dict[str, tuple[np.ndarray, np.ndarray]], title: str) -> plt.Figure:
    """Draw ROC curves in one square; each name has (is COVID-19, bool (n,), its probability, float (n,))."""
    figure, axis = plt.subplots(figsize=(4.6, 4.6))
    axis.plot([0, 1], [0, 1], ":", color="black")
    for (name, (truth, probability)), color in zip(curves.items(), (BLUE, ORANGE)):
        false_positive, true_positive, _ = roc_curve(truth, probability)
        axis.plot(false_positive, true_positive, color=color)
        middle = int(np.argmin(np.abs(false_positive + true_positive - 1)))
        place = false_positive[middle] + 0.04, true_positive[middle] - 0.04
        text, box = f"{name}\n{roc_auc_score(truth, probability):.2f}", {"fc": "white", "ec": "none", "pad": 1}
        axis.annotate(text, place, color=color, va="top", bbox=box)
    axis.set(xlabel="1 − specificity", ylabel="Sensitivity", title=title, aspect="equal")
    return figure


# ------------------------------------------------------------------------------ tables and sentences


def control_table(answers: dict[str, dict]) -> pd.DataFrame:
    """Compare models on the controls, a row a model, from score_controls."""
    rows = {}
    for name, scored in answers.items():
        right, clear = scored["with_right_answer"], scored["no_finding"]
        rows[name] = {
            "right, of those whose class the model has": f"{right['correct']} of {right['n']}",
            "predicted COVID-19, of all": f"{scored['called_covid']} of {scored['n']}",
            "predicted COVID-19, of those with no finding": f"{clear['called_covid']} of {clear['n']}",
        }
    return pd.DataFrame(rows).T


def difference_table(differences: dict[tuple[str, str], dict]) -> pd.DataFrame:
    """Return paired differences in points with their 95% confidence intervals, a row a pair of names."""
    rows = {}
    for (first, second), row in differences.items():
        low, high = (100 * end for end in row["ci95"])
        rows[f"{first} minus {second}"] = [f"{100 * row['difference']:+.0f}", f"{low:+.0f} to {high:+.0f}"]
    columns = ["difference in points", "95% confidence interval, by patient"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)
