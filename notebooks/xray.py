"""The toolbox of both lessons. You can read it later.

Its sections follow the order of a lesson: weights, features, heads, statistics, figures, the record of a run.
Functions take what they need as arguments.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# The lessons set these, too. Programs need them before TensorFlow is imported.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import joblib
import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tensorflow as tf
from IPython.display import Markdown, display
from scipy.stats import beta
from sklearn.metrics import confusion_matrix, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from tensorflow.keras.preprocessing.image import ImageDataGenerator
from xray_data import SetupError, atomic_write, installed_cjk_fonts, progress

# ---------------------------------------------------------------------------------------- weights

VGG16_SHA256 = "d9a27cc1fc7f975ef8cff49180e794ccd7c4bc868ebb49740803b3bbaa8dbefd"


def weights_sha256(model: keras.Model) -> str:
    """SHA-256 over all kernels and biases, layer by layer, as little-endian float32."""
    arrays = [np.ascontiguousarray(array, "<f4").tobytes() for array in model.get_weights()]
    return hashlib.sha256(b"".join(arrays)).hexdigest()


# ---------------------------------------------------------------------------------------- features


def extract_features(conv_base: keras.Model, batches: keras.utils.PyDataset, output: Path, views: int = 1) -> list:
    """Run the frozen base once over each of `views` versions of all images, and keep what it returns on disk.

    batches: what flow_from_dataframe returned, with shuffle=False; it draws a new version of each image every time.
    Returns one array a view, float32 (n, 4, 4, 512) for VGG16 at 150 pixels.

    Each view is a file in `output`/features, named by a hash of all that made it: the images, the generator, the
    seed, the weights. So the same call gives the same features, and a second run does not run VGG16 again.
    """
    key = cache_key(conv_base, batches)
    features = []
    for view in range(views):
        path = output / "features" / f"{key}_{view}.npy"
        with contextlib.suppress(OSError, ValueError, EOFError):  # not there yet, or cut short
            features.append(np.load(path, mmap_mode="r"))
            continue
        batches.total_batches_seen = view * len(batches)  # batch i of view v has the seed SEED + v * batches + i
        steps = progress(range(len(batches)), f"VGG16, view {view + 1} of {views}")
        found = np.concatenate([conv_base.predict_on_batch(batches[index]) for index in steps])
        atomic_write(path, functools.partial(np.save, arr=found.astype(np.float32)))
        features.append(np.load(path, mmap_mode="r"))
    return features


def cache_key(conv_base: keras.Model, batches: keras.utils.PyDataset) -> str:
    """Return a hash of what features depend on: the first view's pixels, the generator's settings, the seed, the base.

    A preprocessing function is known by the pixels that it returns.
    """
    settings = vars(batches.image_data_generator) | {"preprocessing_function": None}
    batches.total_batches_seen = 0
    pixels = [joblib.hash(batches[index]) for index in range(len(batches))]
    layers = [(type(layer).__name__, layer.output.shape, layer.compute_dtype) for layer in conv_base.layers]
    versions = [tf.__version__, keras.__version__, np.__version__]
    return joblib.hash([settings, batches.seed, pixels, layers, conv_base.get_weights(), versions])


def plain_features(conv_base: keras.Model, paths: Sequence[Path], output: Path, black: float = 0.0) -> np.ndarray:
    """Return the features of images as they are, or with the central share `black` of their sides black.

    paths: of image files. Returns float32 (n, 4, 4, 512) for VGG16 at 150 pixels.
    """
    datagen = ImageDataGenerator(rescale=1 / 255)
    if black:
        datagen.preprocessing_function = functools.partial(black_out, share=black)
    table = pd.DataFrame({"file": [str(path) for path in paths]})
    with contextlib.redirect_stdout(io.StringIO()):  # "Found 148 validated image filenames."
        batches = datagen.flow_from_dataframe(
            table, None, "file", target_size=conv_base.input_shape[1:3], class_mode=None, batch_size=10, shuffle=False
        )
    return extract_features(conv_base, batches, output)[0]


def load_images(paths: Sequence[Path], size: tuple[int, int]) -> np.ndarray:
    """Return images as the network sees them, float (n, height, width, 3), 0 to 1."""
    images = [keras.utils.load_img(path, target_size=size) for path in paths]
    return np.stack([np.asarray(image) for image in images]) / 255


def black_out(image: np.ndarray, share: float) -> np.ndarray:
    """Return a copy of an image (height, width, 3), the central `share` of its height and width black."""
    hidden = image.copy()
    rows, columns = center_of(image, share)
    hidden[rows, columns] = 0
    return hidden


def center_of(image: np.ndarray, share: float) -> tuple[slice, slice]:
    """Return the rows and columns of an image's center, `share` (0 to 1) of its height and width."""
    hidden = [round(side * share) for side in image.shape[:2]]
    first = [(side - length) // 2 for side, length in zip(image.shape[:2], hidden)]
    return tuple(slice(begin, begin + length) for begin, length in zip(first, hidden))


# ------------------------------------------------------------------------------------------- heads


def train_head(
    build_head: Callable[[], keras.Sequential], views: Sequence[np.ndarray], labels: np.ndarray, train: np.ndarray,
    validation: np.ndarray | None = None, *, learning_rate: float, epochs: int, batch_size: int, seed: int,
) -> tuple[keras.Sequential, pd.DataFrame]:  # fmt: skip
    """Build a head and train it with Keras's `fit`, once an epoch, each time with another view.

    views: float32 (n, 4, 4, 512) each; labels: int (n,); train, validation: row numbers. Epoch e trains on view
    e % len(views) of the rows `train`, in an order that `seed` gives, with Adam and cross-entropy. The initial weights
    come from the same seed. Returns the head and a row an epoch: loss, acc, and with `validation` val_loss, val_acc.
    """
    keras.utils.set_random_seed(seed)
    head = build_head()
    compiled = compiled_head(architecture_of(head))
    for variable, value in zip(compiled.variables, head.variables):
        variable.assign(value)
    for variable in compiled.optimizer.variables:
        variable.assign(tf.zeros_like(variable))
    compiled.optimizer.learning_rate = learning_rate
    untuned = tf.data.Options()
    untuned.autotune.enabled = False  # `fit` would wait for tf.data to tune itself

    def batches(view: np.ndarray, rows: np.ndarray) -> tf.data.Dataset:
        arrays = tf.data.Dataset.from_tensor_slices((view[rows], np.asarray(labels)[rows]))
        return arrays.batch(batch_size).with_options(untuned)

    history = []
    for epoch in range(epochs):
        view = views[epoch % len(views)]
        rows = np.random.default_rng([seed, epoch]).permutation(train)
        held_out = None if validation is None else batches(view, validation)
        result = compiled.fit(batches(view, rows), validation_data=held_out, shuffle=False, verbose=0)
        history.append(pd.DataFrame(result.history, index=[epoch + 1]))
    head.set_weights(compiled.get_weights())
    return head, pd.concat(history)


def architecture_of(head: keras.Sequential) -> str:
    """Return the configuration of a head's layers as JSON, without names, which differ between two builds."""
    layers = head.get_config()["layers"]
    for number, layer in enumerate(layers):
        layer["config"]["name"] = f"layer_{number}"
    return json.dumps(layers)


@functools.cache
def compiled_head(architecture: str) -> keras.Sequential:
    """Return a head that all heads of one architecture train in, one after the other.

    To compile one takes seconds, and 30 MB that TensorFlow does not free.
    """
    head = keras.Sequential.from_config({"name": "head", "layers": json.loads(architecture)})
    loss = "binary_crossentropy" if head.output_shape[-1] == 1 else "sparse_categorical_crossentropy"
    head.compile(
        optimizer="adam", loss=loss, metrics=["acc"], jit_compile=True,
        steps_per_execution=10_000,  # a whole epoch, without a return to Python after each step
    )  # fmt: skip
    head.optimizer.build(head.trainable_variables)
    return head


def predict_probabilities(head: keras.Model, features: np.ndarray) -> np.ndarray:
    """Return the probability of each class, float (n, classes), from features (n, 4, 4, 512).

    A sigmoid's single output p becomes (1 - p, p).
    """
    outputs = np.asarray(head(np.asarray(features)))
    return np.hstack([1 - outputs, outputs]) if outputs.shape[1] == 1 else outputs


# --------------------------------------------------------------------------------------- statistics


def patient_interval(hits: np.ndarray, patients: Sequence[str]) -> list[float]:
    """95% confidence interval of the share of True in `hits`, bool (n,), by patient, [low, high].

    Two X-rays of one patient are not independent. So the interval is exact (Clopper-Pearson) for their effective
    number (Kish 1965), (sum of m)^2 / sum of m^2 for patients with m X-rays. It is as wide as it must be if a patient's
    X-rays always agree, and too wide otherwise.
    """
    sizes = pd.Series(np.asarray(patients)).value_counts().to_numpy(float)
    if not len(sizes):
        return [0.0, 1.0]
    n = sizes.sum() ** 2 / (sizes**2).sum()
    correct = float(np.mean(hits)) * n  # need not be whole
    ends = beta.ppf([0.025, 0.975], [correct, correct + 1], [n - correct + 1, n - correct])
    return np.where(np.isnan(ends), [0.0, 1.0], ends).tolist()  # 0 if none is right, 1 if all are


def bootstrap_interval(
    statistic: Callable, values: np.ndarray, patients: Sequence[str], seed: int = 0, draws: int = 1000
) -> list[float]:
    """95% confidence interval of `statistic`, a function of rows of `values`, by patient, [low, high].

    Draws as many patients as there are, with replacement, each with all of his or her rows, again and again.
    """
    rows = list(pd.Series(np.arange(len(patients))).groupby(np.asarray(patients)).indices.values())
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(draws):
        chosen = rng.integers(len(rows), size=len(rows))
        drawn.append(statistic(values[np.concatenate([rows[patient] for patient in chosen])]))
    return [float(end) for end in np.nanpercentile(drawn, [2.5, 97.5])]


def score(labels: np.ndarray, probabilities: np.ndarray, patients: Sequence[str]) -> dict:
    """Score predictions: labels int (n,), probabilities (n, classes), the patient of each row.

    Returns n, patients, correct, accuracy, ci95 by patient (patient_interval), majority (the larger class's share),
    confusion (true class down, predicted class across). With two classes also auc, the area under the ROC curve of
    class 0, and auc_ci95, by patient, unless all draws give one value.
    """
    labels, patients = np.asarray(labels), np.asarray(patients)
    predicted = probabilities.argmax(axis=1)
    right = predicted == labels
    scored = {"n": len(labels), "patients": len(set(patients)), "correct": int(right.sum())}
    scored["accuracy"] = float(right.mean()) if len(labels) else 0.0
    scored["ci95"] = patient_interval(right, patients)
    scored["majority"] = float(np.bincount(labels).max() / len(labels)) if len(labels) else 0.0
    classes = range(probabilities.shape[1])
    scored["confusion"] = confusion_matrix(labels, predicted, labels=classes).tolist()
    if len(classes) == 2 and len(set(labels)) == 2:

        def area(rows: np.ndarray) -> float:
            first = rows[:, 0] == 0
            return roc_auc_score(first, rows[:, 1]) if 0 < first.sum() < len(rows) else np.nan

        truth_and_guess = np.column_stack([labels, probabilities[:, 0]])
        scored["auc"] = float(area(truth_and_guess))
        low, high = bootstrap_interval(area, truth_and_guess, patients)
        if low < high:
            scored["auc_ci95"] = [low, high]
    return scored


def describe(scored: Mapping) -> str:
    """Return one line for a score: correct of n, the percentage, the interval by patient."""
    low, high = scored["ci95"]
    interval = f"95% confidence interval by patient {low:.0%} to {high:.0%}"
    return f"{scored['correct']} of {scored['n']} = {scored['accuracy']:.0%} ({interval})"


def patient_folds(labels: np.ndarray, patients: Sequence[str], seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Split rows into five folds: all X-rays of a patient in one, and of each class about a fifth.

    Returns pairs of training and held-out rows. Each class needs as many patients as there are folds: with fewer than
    5, there are fewer folds, and a line says so. Raises SetupError below 2, and if a fold would train without a class.
    """
    names, groups = np.unique(patients, return_inverse=True)  # a number for each patient
    most = int(pd.Series(groups).groupby(np.asarray(labels)).nunique().min())
    if most < 2:
        raise SetupError("One class has only one patient. Cross-validation needs two: check patients.csv.")
    if most < 5:
        print(f"{most} folds instead of 5: the smallest class has {most} patients.")
    shuffled = np.random.default_rng(seed).permutation(len(names))
    folds = list(StratifiedGroupKFold(min(5, most)).split(labels, labels, shuffled[groups]))
    if any(set(np.asarray(labels)[rows]) < set(labels) for rows, _ in folds):
        raise SetupError("One fold would train without a class, whose patients are in others, too: check patients.csv.")
    return folds


def score_controls(head: keras.Model, features: np.ndarray, controls: pd.DataFrame, class_names: Sequence[str]) -> dict:
    """Score what a head predicts for controls, none of whom has COVID-19.

    controls: a row for each row of features, with group (of findings), patient, and answer: the right class, "" where
    none of the classes is right. Returns n, patients, predicted_covid and its interval by patient, by_finding (n,
    patients, predicted_covid of each group), and with_right_answer (n, patients, correct, interval).
    """
    predicted = np.array(class_names)[predict_probabilities(head, features).argmax(axis=1)]
    table = controls.assign(covid=predicted == "covid", right=predicted == controls["answer"])

    def count(rows: pd.DataFrame) -> dict:
        return {"n": len(rows), "patients": rows["patient"].nunique(), "predicted_covid": int(rows["covid"].sum())}

    known = table[table["answer"].isin(class_names)]
    right = {"n": len(known), "patients": known["patient"].nunique(), "correct": int(known["right"].sum())}
    return {
        **count(table),
        "ci95": patient_interval(table["covid"], table["patient"]),
        "by_finding": {group: count(rows) for group, rows in table.groupby("group")},
        "with_right_answer": {**right, "ci95": patient_interval(known["right"], known["patient"])},
    }


# ------------------------------------------------------------------------------------------ figures

BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#767676"  # apart for color-blind readers
WIDTH = 7  # inches; at this width, text can be read on a phone, too


plt.rcParams["font.family"] = ["DejaVu Sans", *installed_cjk_fonts()]  # the first one that has a letter draws it
warnings.filterwarnings("ignore", "Glyph")  # check_images says it once


def set_style(dataset: str) -> None:
    """Set how figures look from here on; `dataset` as identify_dataset gives it: phantoms are named in each figure."""
    tf.get_logger().setLevel("ERROR")  # no advice about retracing
    plt.rcParams.update({
        "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN, GRAY]),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 11,
        "figure.constrained_layout.use": True,
        "figure.dpi": 110,
        "font.size": 11,
        "text.parse_math": False,  # a file's name may hold a $
        "figure.hooks": ["xray:name_phantoms"] if dataset == "phantoms" else [],
    })  # fmt: skip


def name_phantoms(figure: plt.Figure) -> None:
    """Write under a figure that it shows no X-rays; Matplotlib calls this for each new figure."""
    figure.supxlabel("Synthetic phantoms, not X-rays", color=ORANGE, fontsize=9)


def plot_images(images: Sequence[np.ndarray], titles: Sequence[str], columns: int = 4) -> None:
    """Show images in rows of `columns`, each under its title."""
    rows = -(-len(images) // columns)
    lines = max(title.count("\n") + 1 for title in titles)
    height = rows * (WIDTH / columns + 0.2 * lines)
    _, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False)
    for axis in axes.flat[len(images) :]:
        axis.remove()
    for axis, image, title in zip(axes.flat, images, titles):
        axis.imshow(image)
        axis.set(title=title, xticks=[], yticks=[])
        axis.spines[:].set(visible=True, color="#CCCCCC")
    plt.show()


def hires_cam(conv_base: keras.Model, head: keras.Model, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """HiResCAM (Draelos and Carin, arXiv:2011.08891): what each place adds to the score of a class.

    images: float (n, size, size, 3), 0 to 1; classes: int (n,). Returns float (n, h, w), h and w of VGG16's last
    convolution: gradient times activation, summed over channels. Grad-CAM averages the gradient over positions first,
    which fits a head with global pooling; this head is Flatten + Dense and weights each position separately.
    `head` must end in one sigmoid. The score is that sigmoid's input, or its negative for class 0.
    """
    *_, convolution, pool = conv_base.layers
    *hidden, last = head.layers
    maps = keras.Model(conv_base.input, convolution.output)(tf.constant(images, tf.float32))
    with tf.GradientTape() as tape:
        tape.watch(maps)
        x = maps
        for layer in [pool, *hidden]:
            x = layer(x)
        logits = (x @ last.kernel + last.bias)[:, 0]
        total = tf.reduce_sum(tf.where(np.equal(classes, 1), logits, -logits))
    return tf.reduce_sum(tape.gradient(total, maps) * maps, axis=-1).numpy()


def plot_heat_maps(images: np.ndarray, rows: Mapping[str, np.ndarray], titles: Sequence[str]) -> None:
    """Show images above their heat maps: orange counts for the class, purple against it.

    images: float (n, size, size, 3), 0 to 1; rows: a name for each row of maps, float (n, h, w).
    """
    count = 1 + len(rows)
    _, axes = plt.subplots(count, len(images), figsize=(WIDTH, 2 * count), squeeze=False)
    for axis, image, title in zip(axes[0], images, titles):
        axis.imshow(image)
        axis.set_title(title)
    for line, (name, maps) in zip(axes[1:], rows.items()):
        line[0].set_ylabel(name)
        for axis, image, heat in zip(line, images, maps):
            height, width = image.shape[:2]
            axis.imshow(image)
            shown = axis.imshow(
                heat / max(np.abs(heat).max(), 1e-12), cmap="PuOr_r", vmin=-1, vmax=1, alpha=0.6,
                interpolation="bilinear", extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            )  # fmt: skip
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    bar = plt.colorbar(shown, ax=axes, shrink=0.6, ticks=[-1, 0, 1], location="bottom", aspect=40)
    bar.ax.set_xticklabels(["against", "neither", "for"])
    plt.show()


def plot_scores(scores: Mapping[str, Mapping], measure: str, guess: float, colors: Mapping[str, str]) -> None:
    """Show one measure of several scores with its interval, a row each; the text stands above its point.

    scores: what `score` returned, by the row's name; measure: "accuracy" or "auc"; guess: what guessing gets, a dotted
    line; colors: of a row, by its name. A name with "black" in it gets a hollow point, one with "no image" a square.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 0.9 + 0.48 * len(scores)))
    left = guess - 0.1
    for place, (name, scored) in enumerate(scores.items()):
        low, high = scored.get("ci95" if measure == "accuracy" else "auc_ci95", [scored[measure]] * 2)
        left = min(left, low - 0.03)
        color = colors.get(name, BLUE)
        marker = "s" if "no image" in name else "o"
        axis.plot([low, high], [place, place], color=color, linewidth=3, alpha=0.4, solid_capstyle="butt")
        face = "white" if "black" in name else color
        axis.plot(scored[measure], place, marker, color=color, markerfacecolor=face, markersize=8)
        text = f"{name}: {scored[measure]:.2f}"
        where = {"xycoords": ("axes fraction", "data"), "va": "center", "backgroundcolor": "white"}
        axis.annotate(text, (0.01, place - 0.42), color=color, **where)
    axis.axvline(guess, linestyle=":", color="black", zorder=0)
    axis.annotate("guessing", (guess, -1), ha="center", va="center", backgroundcolor="white")
    axis.set(xlim=(left, 1.02), ylim=(len(scores) - 0.3, -1.2), yticks=[])
    axis.spines["left"].set_visible(False)
    figure.supxlabel(f"{MEASURES[measure]}, with its 95% confidence interval by patient", fontsize=11)
    plt.show()


MEASURES = {"accuracy": "Accuracy", "auc": "Area under the ROC curve"}

# ---------------------------------------------------------------------------------- the record of a run


def conclude(dataset: str, *sentences: str) -> None:
    """Show sentences as a list; a run on phantoms says first that they mean nothing."""
    first = ["These are drawn phantoms: what follows says nothing about X-rays."] if dataset == "phantoms" else []
    display(Markdown("\n".join(f"- {line}" for line in [*first, *sentences])))


def save_results(path: Path, seed: int, files: Mapping, conv_base: keras.Model, cases: Mapping, trust: Mapping) -> None:
    """Write what a lesson found as JSON, whole or not at all; files: what xray_data.identify_dataset returned."""
    results = {
        "dataset": files["dataset"],
        "files": {kind: files[kind] for kind in ("article", "same_pixels", "other")},
        "seed": seed,
        "weights": "imagenet" if weights_sha256(conv_base) == VGG16_SHA256 else "other",
        "versions": {"python": sys.version.split()[0], "tensorflow": tf.__version__, "keras": keras.__version__},
        "cases": cases,
        "trust": trust,
    }
    text = json.dumps(results, indent=1, default=lambda value: value.tolist())  # NumPy's numbers and arrays
    atomic_write(path, lambda scratch: scratch.write_text(text + "\n", encoding="utf-8"))
