"""The toolbox of the two lessons: everything that both use and that you need not read first.

The sections stand in the order of a lesson: settings, weights, the record of a run, views and features,
the head, statistics, figures. Functions take what they need as arguments.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import html
import json
import os
import re
import socket
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import joblib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown, display
from scipy.optimize import brentq
from scipy.stats import beta, norm
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix, roc_auc_score
from tqdm import tqdm
from xray_data import TIMEOUT, SetupError, atomic_write, data_home, identify, label_of, thumbnail

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

SETTINGS = {  # kind, least, most
    "SEED": (int, 0, 999_999),
    "IMAGE_SIZE": (int, 32, 1024),
    "BATCH_SIZE": (int, 1, 999_999),
    "NUM_EPOCHS": (int, 1, 999_999),
    "VIEWS_PER_IMAGE": (int, 1, 999_999),
    "FINE_TUNE_EPOCHS": (int, 1, 999_999),
    "VALIDATION_SPLIT": (float, 0.01, 0.9),
    "LEARNING_RATE": (float, 1e-9, 10),
    "FINE_TUNE_LEARNING_RATE": (float, 1e-9, 10),
}
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


def setting(name: str, value: object) -> int | float:
    """Check the value of a setting; an environment variable of its name, if not empty, overrides it.

    Returns a number within the range that SETTINGS gives. Raises SetupError for anything else.
    """
    kind, least, most = SETTINGS[name]
    text = str(os.environ.get(name) or value).strip()
    pattern = r"[0-9]{1,6}" if kind is int else r"[0-9.]{1,30}(e[-+]?[0-9]{1,2})?"
    with contextlib.suppress(ValueError):
        if re.fullmatch(pattern, text, re.ASCII | re.IGNORECASE) and least <= kind(text) <= most:
            return kind(text)
    what = "a whole number" if kind is int else "a number"
    raise SetupError(f"{name} is {text!r}. Set it to {what} from {least:g} to {most:.6g}.")


def choose_precision(value: str = "auto") -> str:
    """Return the precision in which VGG16 runs: "float16", "bfloat16", or "float32".

    "auto" means float16 on a GPU, bfloat16 on a processor that computes with it, and float32
    elsewhere. The environment variable PRECISION overrides `value`. Raises SetupError for anything
    else.
    """
    value = os.environ.get("PRECISION") or value
    if value not in PRECISIONS:
        raise SetupError(f"PRECISION is {value!r}. Set it to {', '.join(PRECISIONS[:-1])}, or float16.")
    if value != "auto":
        return value
    if tf.config.list_physical_devices("GPU"):
        return "float16"
    cpu = Path("/proc/cpuinfo")
    fast = cpu.exists() and re.search(r"\b(avx512_bf16|amx_bf16)\b", cpu.read_text())
    return "bfloat16" if fast else "float32"


# ---------------------------------------------------------------------------------------- weights

VGG16_SHA256 = "d9a27cc1fc7f975ef8cff49180e794ccd7c4bc868ebb49740803b3bbaa8dbefd"


def weights_sha256(model: keras.Model) -> str:
    """SHA-256 over all kernels and biases, layer by layer, as little-endian float32."""
    arrays = [np.ascontiguousarray(array, "<f4").tobytes() for array in model.get_weights()]
    return hashlib.sha256(b"".join(arrays)).hexdigest()


def load_vgg16(weights: str | None) -> keras.Model:
    """Return VGG16 without its classifier; raises SetupError unless it has VGG16's ImageNet weights.

    `weights`: "imagenet" (Keras downloads them), a file's path, or None for random ones, not checked.
    """
    advice = "Set VGG16_WEIGHTS to a good file, or run `python data/prepare.py` in a clone of the project."
    limit = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # Keras downloads without a limit of its own
    try:
        base = keras.applications.VGG16(weights=weights, include_top=False, input_shape=(32, 32, 3))
    except Exception as error:  # Keras and h5py raise different ones for each kind of damage
        reason = " ".join(str(error).split())[:200]
        raise SetupError(f"VGG16's weights cannot be read from {weights!r} ({reason}). {advice}") from None
    finally:
        socket.setdefaulttimeout(limit)
    if weights and weights_sha256(base) != VGG16_SHA256:
        raise SetupError(f"The weights from {weights!r} are not VGG16's ImageNet weights. {advice}")
    return base


def find_weights(home: Path | None = None) -> str | None:
    """Return what VGG16's `weights` may be: a file, "imagenet", or None for VGG16_WEIGHTS=random.

    Looks at VGG16_WEIGHTS, then at `home`/weights, then lets Keras download them. Checks them first.
    """
    prepared = (home or data_home()) / "weights" / "vgg16.weights.h5"
    weights = os.environ.get("VGG16_WEIGHTS") or (str(prepared) if prepared.exists() else "imagenet")
    if weights == "random":
        return None
    load_vgg16(weights)
    return weights


# ------------------------------------------------------------------------------ the record of a run

PAGE = """<style>
.jp-CodeMirrorEditor, .jp-RenderedHTMLCommon table {overflow-x: auto; display: block}
</style>"""  # a page on a phone can scroll code and tables


class Run:
    """What one run of a notebook leaves in `output`: results as JSON, figures as PNG, saved as they come.

    `results` is what `output`/`name`.json holds.
    """

    def __init__(self, name: str, seed: int, precision: str, output: Path) -> None:
        self.name = name
        self.seed = seed
        self.precision = precision
        self.output = output
        self.started = self.lapped = time.perf_counter()
        self.results = {
            "dataset": None,
            "weights": None,
            "seed": seed,
            "precision": precision,
            "views_from_cache": 0,
            "versions": {"python": sys.version.split()[0], "tensorflow": tf.__version__, "keras": keras.__version__},
            "seconds": {},
            "cases": {},
            "trust": {},
        }

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
        """Put `value` under a dotted `path` of the results, such as "trust.controls", and save them."""
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
        seconds["total"] = round(now - self.started, 1)
        self.lapped = now
        self.save()

    def save(self) -> None:
        """Write the results in one step, so that a later failure loses none of them."""
        text = json.dumps(self.results, indent=1, default=as_plain)
        path = self.output / f"{self.name}.json"
        atomic_write(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))

    def show(self, figure: plt.Figure, name: str, alt: str) -> None:
        """Save a figure as PNG and show it, with `alt` as its alternative text; phantoms are named.

        It has 100 pixels an inch. On a narrow screen it scrolls instead of shrinking, so that its text stays legible.
        nbconvert drops the alternative text of a plain image, so this is HTML.
        """
        if self.phantoms:
            note = "Synthetic phantoms, not X-rays"
            figure.text(0.5, -0.01, note, ha="center", va="top", color=ORANGE)
        path = self.output / f"{self.name}_{name}.png"
        figure.savefig(path, bbox_inches="tight")
        plt.close(figure)
        data = path.read_bytes()
        width = round(int.from_bytes(data[16:20], "big") * 100 / STYLE["savefig.dpi"])  # from the header
        source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        image = f'<img width="{width}" style="max-width: none" alt="{html.escape(alt)}" src="{source}">'
        display(HTML(f'<div style="overflow-x: auto">{image}</div>'))

    def conclude(self, *sentences: str) -> None:
        """Show sentences as a list; a run on phantoms says first that they mean nothing."""
        first = "These are drawn phantoms: what follows says nothing about X-rays."
        lines = [first, *sentences] if self.phantoms else sentences
        display(Markdown("\n".join(f"- {line}" for line in lines)))


def start(name: str, seed: int = 42, precision: str = "auto", output: Path | None = None) -> Run:
    """Start a run: seed Python, NumPy, and TensorFlow, set the style of figures, and say what runs.

    `output` is where its files go: by default COVID_XRAY_OUTPUT, or output/ beside the data. Raises
    SetupError where it cannot be made.
    """
    default = "output" if data_home() == Path("data") else "../output"
    output = Path(output or os.environ.get("COVID_XRAY_OUTPUT") or default)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"{output} cannot be created: {error.strerror}. Set COVID_XRAY_OUTPUT.") from None
    run = Run(name, seed, choose_precision(precision), output)
    keras.utils.set_random_seed(seed)
    with quiet():  # the first compiled function prints a few lines
        tf.function(lambda: tf.constant(1.0) + 1, jit_compile=True)()
    tf.get_logger().setLevel("ERROR")
    plt.rcParams.update(STYLE)
    display(HTML(PAGE))
    gpus = len(tf.config.list_logical_devices("GPU"))
    device = f"{gpus} GPU(s)" if gpus else f"{os.cpu_count()} CPU cores"
    print(f"TensorFlow {tf.__version__}, Keras {keras.__version__}, {device}, VGG16 in {run.precision}")
    return run


def as_plain(value: object) -> object:
    """Return NumPy's numbers and arrays as Python's, for JSON."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else str(value)


# ------------------------------------------------------------------------------- views and features


def extract_features(
    conv_base: keras.Model, datagen: ImageDataGenerator, images: np.ndarray, views: int, run: Run
) -> list[np.ndarray]:
    """Run the frozen base once over each of `views` augmented versions of all images.

    images: uint8 (n, size, size, 3), 0 to 255. Returns one array a view, float16 (n, 4, 4, 512) for
    VGG16 at 150 pixels. View v is drawn with seed run.seed + 1000 v, so the same call gives the same
    features. Each view is kept under run.output/views and is never computed twice: its name has a hash
    of the pixels, the augmentation, the seed, the view, the weights, and the precision.
    """
    if not len(images):
        return [np.zeros((0, *conv_base.output_shape[1:]), np.float16)] * views
    run.lap("other")  # what came before is not the time of features
    gpus = len(tf.config.list_logical_devices("GPU"))
    weights = weights_sha256(conv_base)
    kinds = [(type(layer).__name__, {**layer.get_config(), "name": ""}) for layer in conv_base.layers]
    versions = [tf.__version__, keras.__version__, np.__version__, gpus, run.precision]
    shapes = [kinds, conv_base.input_shape, conv_base.output_shape]
    call = joblib.hash([versions, shapes, weights, images, augmentation_hash(datagen, images)])
    seeds = [run.seed + 1000 * view for view in range(views)]
    features = [load_view(run.output / "views", call, seed) for seed in seeds]
    missing = sum(view is None for view in features)
    run.results["views_from_cache"] += views - missing
    total = missing * len(images)
    bar = tqdm(
        total=total, desc=f"VGG16, {missing} new view(s)", file=sys.stdout, ncols=80, mininterval=1,
        disable=total < 500 or bool(os.environ.get("CI")),
    )  # fmt: skip
    reason = None
    for number, seed in enumerate(seeds):
        if features[number] is None:
            base = to_mixed_precision(conv_base, run.precision, gpus, weights)
            view = compute_view(base, datagen, images, seed, bar.update)
            features[number], problem = save_view(run.output / "views", call, seed, view)
            reason = reason or problem
    bar.close()
    if reason:
        print(f"Views are not saved to disk ({reason}). They stay in memory; another run computes them again.")
    run.lap("features")
    return features


def augmentation_hash(datagen: ImageDataGenerator, images: np.ndarray) -> str:
    """Return a hash of a generator's settings; a preprocessing function is known by what it makes of all images."""
    settings = {key: value for key, value in vars(datagen).items() if key != "preprocessing_function"}
    function, crc = datagen.preprocessing_function, 0
    for image in images if function else ():
        crc = zlib.crc32(np.ascontiguousarray(function(image.astype(np.float32)), np.float32), crc)
    return joblib.hash([settings, bool(function), crc])


@functools.lru_cache(maxsize=2)
def to_mixed_precision(conv_base: keras.Model, precision: str, gpus: int, weights: str) -> keras.Model:
    """Return a copy of the base that computes in `precision` and holds float32 weights; on all GPUs.

    `weights` is the weights' hash: the copy is made again where they have changed.
    """
    policy = precision if precision == "float32" else f"mixed_{precision}"
    strategy = tf.distribute.MirroredStrategy() if gpus > 1 else tf.distribute.get_strategy()

    def convert(layer: keras.Layer) -> keras.Layer:
        return layer.__class__.from_config({**layer.get_config(), "dtype": policy})

    with strategy.scope():
        base = keras.models.clone_model(conv_base, clone_function=convert)
        base.set_weights(conv_base.get_weights())
    return base


def compute_view(
    base: keras.Model, datagen: ImageDataGenerator, images: np.ndarray, seed: int,
    advance: Callable[[int], object] = lambda count: None,
) -> np.ndarray:  # fmt: skip
    """Draw one view of all images and return its features, float16 (n, ...).

    One thread draws the next batch while the base runs: ImageDataGenerator seeds NumPy's global
    generator, so more threads would not repeat. `advance` is told how many images are drawn.
    """

    def batches(first: int) -> Iterator[np.ndarray]:
        for begin in range(first, min(first + 512, len(images)), 32):  # flow holds float32 copies
            part = images[begin : begin + 32]
            flow = datagen.flow(part, batch_size=32, shuffle=False, seed=seed + begin // 32)
            yield flow[0]
            flow.index_generator = None  # ends a cycle that would keep the copies until Python collects garbage
            advance(len(part))

    features = np.empty((len(images), *base.output_shape[1:]), np.float16)
    signature = tf.TensorSpec((None, *images.shape[1:]), tf.float32)
    options = tf.data.Options()
    options.autotune.enabled = False  # with it, freeing a data set can take up to a minute
    for first in range(0, len(images), 512):  # predict holds what it returns twice
        drawn = tf.data.Dataset.from_generator(batches, args=(first,), output_signature=signature)
        drawn = drawn.prefetch(2).rebatch(16).with_options(options)  # VGG16's activations are large
        count = -(-min(512, len(images) - first) // 16)  # or Keras warns that the input ran out
        drawn = drawn.apply(tf.data.experimental.assert_cardinality(count))
        features[first : first + 512] = base.predict(drawn, verbose=0)
    return features


def load_view(folder: Path, call: str, seed: int) -> np.ndarray | None:
    """Return the features of a view from disk, memory-mapped; None if they are missing or damaged.

    A file is named CALL_SEED_CHECKSUM.npy, with the CRC-32 of what it holds.
    """
    for path in folder.glob(f"{call}_{seed}_*.npy"):
        with contextlib.suppress(Exception):  # NumPy raises different ones for each kind of damage
            features = np.load(path, mmap_mode="r")
            if features.dtype == np.float16 and path.stem.endswith(f"_{zlib.crc32(features):08x}"):
                return features
            del features  # Windows deletes no file that is mapped
        with contextlib.suppress(OSError):
            path.unlink()
    return None


def save_view(folder: Path, call: str, seed: int, features: np.ndarray) -> tuple[np.ndarray, str | None]:
    """Write the features of a view in one step; return them as load_view does, and None.

    If the disk takes no more, return them as they are, and the reason.
    """
    path = folder / f"{call}_{seed}_{zlib.crc32(features):08x}.npy"
    try:
        atomic_write(path, lambda scratch: np.save(scratch, features))  # NumPy adds no second .npy
        return np.load(path, mmap_mode="r"), None
    except OSError as error:
        return features, error.strerror or str(error)


# ----------------------------------------------------------------------------------------- the head

COMPILED: dict = {}  # one compiled worker for each architecture of a head


def compile_worker(head: keras.Sequential) -> tuple:
    """Return a head of the same architecture with its optimizer, compiled training, and compiled scoring.

    Compiling takes a second, so heads of one architecture share a worker, whatever their layers' names.
    """
    config = head.get_config()
    config["name"] = "worker"
    for number, layer in enumerate(config["layers"]):
        layer["config"]["name"] = f"layer_{number}"
    key = json.dumps(config, sort_keys=True, default=str)
    if key in COMPILED:
        return COMPILED[key]
    worker, optimizer = keras.Sequential.from_config(config), keras.optimizers.Adam()
    optimizer.build(worker.trainable_variables)
    binary = worker.output_shape[-1] == 1

    def losses_and_hits(outputs: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if binary:
            losses = keras.losses.binary_crossentropy(y[:, None], outputs)
            predicted = tf.cast(outputs[:, 0] > 0.5, y.dtype)
        else:
            losses = keras.losses.sparse_categorical_crossentropy(y, outputs)
            predicted = tf.argmax(outputs, axis=1, output_type=y.dtype)
        return losses, tf.cast(predicted == y, tf.float32)

    @tf.function(jit_compile=True, reduce_retracing=True)
    def step(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            losses, hits = losses_and_hits(worker(tf.cast(x, tf.float32), training=True), y)
            penalty = sum(worker.losses)  # of regularizers: 0 if there are none
            loss = tf.reduce_mean(losses) + penalty
        optimizer.apply(tape.gradient(loss, worker.trainable_variables))
        count = tf.cast(tf.shape(y)[0], tf.float32)
        return tf.reduce_sum(losses) + penalty * count, tf.reduce_sum(hits)

    @tf.function(reduce_retracing=True)
    def train_epoch(x: tf.Tensor, y: tf.Tensor, batch_size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        loss = hits = tf.constant(0.0)
        for first in tf.range(0, tf.shape(x)[0], batch_size):
            sums = step(x[first : first + batch_size], y[first : first + batch_size])
            loss += sums[0]
            hits += sums[1]
        return loss, hits

    @tf.function(reduce_retracing=True)
    def score_view(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        losses, hits = losses_and_hits(worker(tf.cast(x, tf.float32), training=False), y)
        return tf.reduce_mean(losses) + sum(worker.losses), tf.reduce_mean(hits)

    COMPILED[key] = worker, optimizer, train_epoch, score_view
    return COMPILED[key]


def fit_head(
    head: keras.Sequential, views: Sequence[np.ndarray], labels: np.ndarray, train: np.ndarray,
    validation: np.ndarray | None = None, *, learning_rate: float, epochs: int, batch_size: int = 10,
    seed: int = 42, first_epoch: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Train a head from the weights that it has, as the open loop of the first lesson does, compiled.

    Epoch e trains on view e % len(views) of the rows `train`, in an order that `seed` gives, and scores
    the same view of the rows `validation`. The optimizer is a new Adam, the loss cross-entropy.

    head: features in, one sigmoid or a softmax out; views: float16 (n, 4, 4, 512) each; labels: int (n,);
    train, validation: row numbers. Training that goes on after `first_epoch` epochs takes up the orders
    and the views where they stopped. Returns a row an epoch: loss, acc, and val_loss, val_acc.
    """
    worker, optimizer, train_epoch, score_view = compile_worker(head)
    for variable, value in zip(worker.variables, head.variables):  # weights, and the state of Dropout
        variable.assign(value)
    for variable in optimizer.variables:
        variable.assign(tf.zeros_like(variable))
    optimizer.learning_rate = learning_rate
    labels, order = np.asarray(labels, np.int32), np.random.default_rng(seed)
    for _ in range(first_epoch):
        order.permutation(train)
    history = []
    for epoch in range(first_epoch, first_epoch + epochs):
        view, rows = views[epoch % len(views)], order.permutation(train)
        loss, hits = train_epoch(view[rows], labels[rows], batch_size)
        values = {"loss": float(loss) / len(rows), "acc": float(hits) / len(rows)}
        if validation is not None:
            loss, accuracy = score_view(view[validation], labels[validation])
            values |= {"val_loss": float(loss), "val_acc": float(accuracy)}
        history.append(values)
    for variable, value in zip(head.variables, worker.variables):
        variable.assign(value)
    return pd.DataFrame(history, index=range(first_epoch + 1, first_epoch + epochs + 1))


def predict_probabilities(head: keras.Model, features: np.ndarray) -> np.ndarray:
    """Return the probability of each class, float (n, classes), from features (n, 4, 4, 512).

    A sigmoid's single output p becomes (1 - p, p).
    """
    parts = range(0, max(len(features), 1), 512)
    outputs = [head(tf.cast(features[first : first + 512], tf.float32)) for first in parts]
    return two_columns(np.concatenate(outputs))


def two_columns(outputs: np.ndarray) -> np.ndarray:
    """Turn a sigmoid's single output p into (1 - p, p); leave a softmax as it is."""
    return np.hstack([1 - outputs, outputs]) if outputs.shape[1] == 1 else outputs


def save_and_check(model: keras.Model, path: Path, images: np.ndarray, probabilities: np.ndarray) -> float:
    """Save a model, load it again, and check that it predicts the same.

    images: uint8 (n, size, size, 3); probabilities: (n, classes), those of the run; the first 100 are
    checked. Returns the largest difference between them and the saved model's, which computes in float32.
    Raises SetupError where the loaded model predicts something else than the saved one.
    """
    atomic_write(path, model.save)
    inputs, probabilities = images[:100] / np.float32(255), probabilities[:100]
    loaded = keras.models.load_model(path)
    first, again = (network.predict(inputs[:8], verbose=0) for network in (model, loaded))
    if not np.allclose(first, again, atol=1e-6):
        raise SetupError(f"{path} does not predict what the model in memory predicts. Save it again.")
    after = two_columns(loaded.predict(inputs, batch_size=8, verbose=0))  # in float32, activations are large
    return float(np.abs(after - probabilities).max())


# --------------------------------------------------------------------------------------- statistics


def exact_interval(correct: float, n: float) -> list[float]:
    """Exact (Clopper-Pearson) 95% confidence interval of a proportion, [low, high].

    `correct` need not be whole: see share_interval.
    """
    low = beta.ppf(0.025, correct, n - correct + 1) if correct > 0 else 0.0
    high = beta.ppf(0.975, correct + 1, n - correct) if correct < n else 1.0
    return [float(low), float(high)]


def effective_number(patients: Sequence[str]) -> float:
    """Return how many independent X-rays a set is worth if those of one patient always agree.

    Kish's effective sample size, (sum of m)^2 / sum of m^2 for patients with m X-rays: the number of
    patients where all have equally many, and less otherwise.
    """
    sizes = pd.Series(np.asarray(patients)).value_counts().to_numpy(float)
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if len(sizes) else 0.0


def share_interval(hits: np.ndarray, patients: Sequence[str]) -> list[float]:
    """95% confidence interval of the share of True in `hits`, bool (n,), [low, high].

    Two X-rays of one patient are not independent. So the interval is exact for their effective number
    (effective_number): as wide as it must be if a patient's X-rays always agree, and too wide otherwise.
    """
    n = effective_number(patients)
    return exact_interval(float(np.mean(hits)) * n, n) if n else [0.0, 1.0]


def auc_interval(auc: float, positives: float, negatives: float) -> list[float]:
    """95% confidence interval of an area under the ROC curve, [low, high], from the numbers of both groups.

    Newcombe's method 5 (Statistics in Medicine 25, 2006, 559-573): the areas from which `auc` is 1.96
    standard errors away, with the error of Hanley and McNeil (1982). It has a width at 0 and 1.
    """
    z, extra = norm.ppf(0.975), (positives + negatives) / 2 - 1

    def excess(area: float) -> float:
        spread = 1 + extra * (1 - area) / (2 - area) + extra * area / (1 + area)
        return (auc - area) ** 2 - z**2 * area * (1 - area) * spread / (positives * negatives)

    low = brentq(excess, 0, min(auc, 1 - 1e-12)) if auc > 0 else 0.0
    high = brentq(excess, max(auc, 1e-12), 1) if auc < 1 else 1.0
    return [float(low), float(high)]


def score(
    labels: np.ndarray, probabilities: np.ndarray, patients: Sequence[str],
    by_patient: bool = False, folds: Sequence = (),
) -> dict:  # fmt: skip
    """Score predictions: labels int (n,), probabilities (n, classes), the patient of each row.

    Returns n, patients, correct, accuracy, ci95, majority (the larger class's share), confusion (true
    class down, predicted class across). ci95 is exact, for n trials, or `by_patient` (share_interval).
    With two classes also auc, the area under the ROC curve of class 0, and auc_ci95, by patient. With
    `folds` (pairs of training and held-out rows) also the accuracy of each, and their mean.
    """
    labels, patients = np.asarray(labels), np.asarray(patients)
    predicted = probabilities.argmax(axis=1)
    right = predicted == labels
    scored = {"n": len(labels), "patients": len(set(patients)), "correct": int(right.sum())}
    scored["accuracy"] = float(right.mean()) if len(labels) else 0.0
    if by_patient:
        scored["ci95"] = share_interval(right, patients)
    else:
        scored["ci95"] = exact_interval(int(right.sum()), len(labels))
    scored["majority"] = float(np.bincount(labels).max() / len(labels)) if len(labels) else 0.0
    classes = range(probabilities.shape[1])
    scored["confusion"] = confusion_matrix(labels, predicted, labels=classes).tolist()
    if folds:
        scored["folds"] = [float(right[held_out].mean()) for _, held_out in folds]
        scored["mean"] = float(np.mean(scored["folds"]))
    if len(classes) == 2 and len(set(labels)) == 2:
        first = labels == 0
        numbers = effective_number(patients[first]), effective_number(patients[~first])
        scored["auc"] = float(roc_auc_score(first, probabilities[:, 0]))
        scored["auc_ci95"] = auc_interval(scored["auc"], *numbers)
    return scored


def describe(scored: Mapping) -> str:
    """Return one line for a score: correct of n, the percentage, the interval."""
    low, high = scored["ci95"]
    interval = f"95% confidence interval {low:.0%} to {high:.0%}"
    return f"{scored['correct']} of {scored['n']} = {scored['accuracy']:.0%} ({interval})"


def count_folds(labels: np.ndarray, patients: Sequence[str]) -> int:
    """Return 5, the number of folds of a cross-validation by patient, or fewer for few patients.

    Each class needs as many patients as there are folds. Fewer than 5 are printed; SetupError below 2.
    """
    groups = pd.Series(np.asarray(patients)).groupby(np.asarray(labels)).nunique()
    folds = min(5, int(groups.min()))
    if folds < 2:
        raise SetupError(
            "One class has only one patient. Cross-validation needs two: check patients.csv, or add images."
        )
    if folds < 5:
        print(f"{folds} folds instead of 5: the smallest class has {folds} patients.")
    return folds


def sensitivity_table(confusion: Sequence[Sequence[int]], class_names: Sequence[str]) -> pd.DataFrame:
    """Sensitivity and specificity of each class against the rest, with exact 95% intervals."""
    counts, rows = np.array(confusion), {}
    for label, class_name in enumerate(class_names):
        is_class = np.arange(len(class_names)) == label
        row = rows[label_of(class_name)] = {}
        for term, truth in (("sensitivity", is_class), ("specificity", ~is_class)):
            right, n = int(counts[truth][:, truth].sum()), int(counts[truth].sum())
            low, high = exact_interval(right, n)
            row[term] = f"{right} of {n} = {right / n:.0%} ({low:.0%} to {high:.0%})"
    return pd.DataFrame(rows).T


def difference_table(differences: Mapping[str, Mapping]) -> pd.DataFrame:
    """Return paired differences in points with their 95% confidence intervals, a row a name."""
    rows = {}
    for name, row in differences.items():
        low, high = (100 * end for end in row["ci95"])
        rows[name] = [f"{100 * row['difference']:+.1f}", f"{low:+.1f} to {high:+.1f}"]
    columns = ["difference in points", "95% confidence interval, by patient"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def score_controls(controls: pd.DataFrame, predicted: Sequence[str], answers: Mapping[str, str]) -> dict:
    """Score predicted class names for controls, none of whom has COVID-19.

    controls: a row each, with group (of findings) and patient; answers: the right class of a group, for
    the groups that have one. Returns n, patients, predicted_covid and its interval by patient, by_finding
    (n, patients, predicted_covid of each group), and with_right_answer (n, patients, correct, interval).
    """
    predicted, patients = np.asarray(predicted, object), controls["patient"].to_numpy()
    covid = predicted == "covid"
    scored = {"n": len(controls), "patients": len(set(patients)), "predicted_covid": int(covid.sum())}
    scored["ci95"] = share_interval(covid, patients)
    scored["by_finding"] = {}
    for group, rows in sorted(controls.groupby("group").indices.items()):
        counts = {"n": len(rows), "patients": len(set(patients[rows]))}
        scored["by_finding"][group] = counts | {"predicted_covid": int(covid[rows].sum())}
    truth = controls["group"].map(answers)
    known = truth.notna().to_numpy()
    right = (predicted == truth.to_numpy())[known]
    scored["with_right_answer"] = {
        "n": len(right),
        "patients": len(set(patients[known])),
        "correct": int(right.sum()),
        "ci95": share_interval(right, patients[known]),
    }
    return scored


# ------------------------------------------------------------------------------------------ figures

BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#767676"  # apart for color-blind readers
STYLE = {
    "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN, GRAY]),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "figure.titlesize": 10,
    "font.size": 9,
    "image.cmap": "gray",
    "savefig.dpi": 150,
}
WIDTH = 9.5  # inches, the width of a page


def label_lines(axis: plt.Axes) -> None:
    """Write each line's label at its end, in its color, instead of a legend; labels do not overlap.

    The ticks of the x axis become whole numbers, as epochs are.
    """
    lines = sorted(axis.get_lines(), key=lambda line: line.get_ydata()[-1])
    low, place = axis.get_ylim()
    gap = 0.08 * (place - low)
    for line in reversed(lines):  # from the top down, so that no label leaves the figure
        place = min(line.get_ydata()[-1], place - gap)
        text = f" {line.get_label()}"
        axis.text(line.get_xdata()[-1], place, text, color=line.get_color(), va="center")
    axis.xaxis.get_major_locator().set_params(integer=True)


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
    chosen = table[table["split"] == "train"].groupby("class", sort=False).head(each)
    chosen = chosen[chosen["class"].isin(chosen["class"].unique()[:6])]
    titles = [label_of(name) for name in chosen["class"]]
    return plot_images([thumbnail(folder / file) for file in chosen["file"]], titles, each, height=0.8)


def plot_chain(steps: Sequence[tuple[str, str]], frozen: Sequence[str]) -> plt.Figure:
    """Draw a network as a chain of boxes, each a name and a shape; those named in `frozen` are gray."""
    figure, axis = plt.subplots(figsize=(WIDTH, 0.8))
    for place, (name, shape) in enumerate(steps):
        color = "#DDDDDD" if name in frozen else "#CFE3F1"
        axis.add_patch(plt.Rectangle((place, 0), 0.78, 1, facecolor=color, edgecolor=GRAY))
        axis.text(place + 0.39, 0.5, f"{name}\n{shape}", ha="center", va="center")
        if place:
            arrow = {"arrowstyle": "->", "color": GRAY, "shrinkA": 0, "shrinkB": 0}
            axis.annotate("", (place, 0.5), (place - 0.22, 0.5), arrowprops=arrow)
    axis.set(xlim=(-0.05, len(steps) - 0.15), ylim=(-0.1, 1.1))
    axis.axis("off")
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
    """Show test images under their predicted class and its probability, wrong ones first and in orange.

    probabilities: (n, classes). At most `most` images are shown.
    """
    predicted = probabilities.argmax(axis=1)
    order = np.argsort(predicted == labels, kind="stable")[:most]
    titles, colors = [], []
    for row in order:
        title = f"{probabilities[row].max():.0%}\n{label_of(class_names[predicted[row]])}"
        if predicted[row] == labels[row]:
            colors.append("black")
        else:
            title += f"\ntrue: {label_of(class_names[labels[row]]).removesuffix(' pneumonia')}"
            colors.append(ORANGE)
        titles.append(title)
    return plot_images([thumbnail(paths[row], 200) for row in order], titles, 6, colors, height=0.85)


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


def plot_counts(counts: Mapping[str, Mapping], title: str, label: str) -> plt.Figure:
    """Draw predicted_covid of n as bars, one a group: in orange on gray, the count at the bar's end."""
    figure, axis = plt.subplots(figsize=(WIDTH, 1.0 + 0.36 * len(counts)))
    for name, row in reversed(counts.items()):
        k, n = row["predicted_covid"], row["n"]
        axis.barh(name, n, color="#DDDDDD")
        axis.barh(name, k, color=ORANGE)
        text = f"{k} of {n} X-rays ({row['patients']} patients)"
        axis.annotate(text, (n, name), xytext=(5, 0), textcoords="offset points", va="center")
    axis.set(title=title, xlabel=label)
    axis.margins(x=0.25)
    axis.set_xlim(left=0)
    return figure


def plot_scores(scores: Mapping[str, Mapping], title: str) -> plt.Figure:
    """Draw accuracies with their intervals, one row a name, beside the share of the larger class.

    Scores with an area under the ROC curve have it written beside them.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 1.2 + 0.56 * len(scores)))
    for place, scored in enumerate(reversed(scores.values())):
        low, high = scored["ci95"]
        axis.plot([low, high], [place, place], color=BLUE, linewidth=3, alpha=0.45, solid_capstyle="butt")
        axis.plot(scored["accuracy"], place, "o", color=BLUE)
        axis.plot([scored["majority"]] * 2, [place - 0.3, place + 0.3], ":", color="black")
        text = f"{scored['correct']} of {scored['n']} X-rays of {scored['patients']} patients"
        if "auc" in scored:
            text += f"\narea under the ROC curve {scored['auc']:.2f}"
        axis.annotate(text, (1.03, place), va="center", annotation_clip=False)
    majority, top = list(scores.values())[0]["majority"], len(scores) - 0.6
    side = "right" if majority > 0.45 else "left"
    axis.annotate("dotted: always the larger class", (majority, top), ha=side, va="bottom", fontsize=8)
    axis.set(xlim=(0, 1.02), ylim=(-0.6, len(scores) - 0.2), title=title)
    axis.set(xlabel="Accuracy, with its 95% confidence interval")
    axis.set_yticks(range(len(scores)), list(scores)[::-1])
    axis.grid(axis="x", alpha=0.3)
    return figure
