"""The toolbox of both lessons. You can read it later.

Its sections follow the order of a lesson: weights, the record of a run, features, heads, statistics, figures.
Functions take what they need as arguments.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import html
import io
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# The lessons set these, too. Programs need them before TensorFlow is imported.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_USE_LEGACY_KERAS"] = "0"
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import cv2
import joblib
import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tensorflow as tf
from IPython.display import HTML, Markdown, display
from scipy.stats import beta
from sklearn.metrics import confusion_matrix, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from tensorflow.keras.preprocessing.image import ImageDataGenerator
from xray_data import SetupError, atomic_write, label_of, progress

# ---------------------------------------------------------------------------------------- weights

VGG16_SHA256 = "d9a27cc1fc7f975ef8cff49180e794ccd7c4bc868ebb49740803b3bbaa8dbefd"


def weights_sha256(model: keras.Model) -> str:
    """SHA-256 over all kernels and biases, layer by layer, as little-endian float32."""
    arrays = [np.ascontiguousarray(array, "<f4").tobytes() for array in model.get_weights()]
    return hashlib.sha256(b"".join(arrays)).hexdigest()


# ------------------------------------------------------------------------------ the record of a run


class Run:
    """What a run of a lesson leaves in `output`: results as JSON, figures as PNG, saved as they come."""

    def __init__(self, name: str, seed: int, output: Path, files: Mapping, conv_base: keras.Model) -> None:
        """Start the record of a lesson, say which images it reads, and set the style of figures.

        files: what xray_data.check_files returned.
        """
        plt.rcParams.update(STYLE)
        tf.get_logger().setLevel("ERROR")  # no advice about retracing
        display(Markdown(f"**{files['sentence']}**"))
        self.name = name
        self.output = output
        self.phantoms = files["dataset"] == "phantoms"
        self.results = {
            "dataset": files["dataset"],
            "files": {kind: files[kind] for kind in ("article", "same_pixels", "other")},
            "seed": seed,
            "weights": "imagenet" if weights_sha256(conv_base) == VGG16_SHA256 else "other",
            "versions": {"python": sys.version.split()[0], "tensorflow": tf.__version__, "keras": keras.__version__},
            "cases": {},
            "trust": {},
        }

    def record(self, path: str, value: object) -> None:
        """Put `value` under a dotted `path` of the results, such as "trust.swap", and save them in one step."""
        *parents, last = path.split(".")
        place = self.results
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
        text = json.dumps(self.results, indent=1, default=lambda value: value.tolist())  # NumPy's numbers and arrays
        atomic_write(self.output / f"{self.name}.json", lambda scratch: scratch.write_text(text, encoding="utf-8"))

    def show(self, figure: plt.Figure, name: str, alt: str) -> None:
        """Save a figure as PNG and show it, with `alt` as its alternative text; phantoms are named.

        On a narrow screen it scrolls instead of shrinking, so that its text stays legible. nbconvert drops the
        alternative text of a plain image, so this is HTML.
        """
        if self.phantoms:
            figure.text(0.5, -0.01, "Synthetic phantoms, not X-rays", ha="center", va="top", color=ORANGE)
        path = self.output / f"{self.name}_{name}.png"
        figure.savefig(path, bbox_inches="tight")
        plt.close(figure)
        data = path.read_bytes()
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape[1]
        width = round(pixels * 100 / STYLE["savefig.dpi"])
        source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        image = f'<img width="{width}" style="max-width: none" alt="{html.escape(alt)}" src="{source}">'
        display(HTML(f'<div style="overflow-x: auto">{image}</div>'))

    def conclude(self, *sentences: str) -> None:
        """Show sentences as a list; a run on phantoms says first that they mean nothing."""
        first = "These are drawn phantoms: what follows says nothing about X-rays."
        lines = [first, *sentences] if self.phantoms else sentences
        display(Markdown("\n".join(f"- {line}" for line in lines)))


# ---------------------------------------------------------------------------------------- features


def extract_features(conv_base: keras.Model, batches: keras.utils.PyDataset, output: Path, views: int = 1) -> list:
    """Run the frozen base once over each of `views` versions of all images, and keep what it returns on disk.

    batches: what flow_from_directory or flow_from_dataframe returned, with shuffle=False; it draws a new version of
    each image every time. Returns one array a view, float32 (n, 4, 4, 512) for VGG16 at 150 pixels.

    Each view is a file in `output`/features, named by a hash of all that made it: the images, the generator, the
    seed, the weights. So the same call gives the same features, and a second run does not run VGG16 again.
    """
    kept = output / "features"
    call = hash_of_call(conv_base, batches)
    paths = [kept / f"{call}_{view}.npy" for view in range(views)]
    for view, path in enumerate(paths):
        if not path.exists():
            batches.total_batches_seen = view * len(batches)  # batch i of view v has the seed SEED + v * batches + i
            steps = progress(range(len(batches)), f"VGG16, view {view + 1} of {views}")
            features = np.concatenate([conv_base.predict_on_batch(batches[index]) for index in steps])
            atomic_write(path, functools.partial(np.save, arr=features.astype(np.float32)))
    return [np.load(path, mmap_mode="r") for path in paths]


def hash_of_call(conv_base: keras.Model, batches: keras.utils.PyDataset) -> str:
    """Return a hash of what features depend on: the first view's pixels, the generator's settings, the seed, the base.

    A preprocessing function is known by the pixels that it returns.
    """
    settings = vars(batches.image_data_generator) | {"preprocessing_function": None}
    batches.total_batches_seen = 0
    pixels = [joblib.hash(batches[index]) for index in range(len(batches))]
    layers = [(type(layer).__name__, layer.output.shape, layer.compute_dtype) for layer in conv_base.layers]
    versions = [tf.__version__, keras.__version__, np.__version__]
    return joblib.hash([settings, batches.seed, pixels, layers, conv_base.get_weights(), versions])


def plain_features(
    conv_base: keras.Model, folder: Path, names: Sequence[str], output: Path, black: float = 0.0
) -> np.ndarray:
    """Return the features of images as they are, or with the central share `black` of their sides black.

    names: files in `folder`. Returns float32 (n, 4, 4, 512) for VGG16 at 150 pixels.
    """
    datagen = ImageDataGenerator(rescale=1 / 255)
    if black:
        datagen.preprocessing_function = functools.partial(black_out, share=black)
    table = pd.DataFrame({"file": list(names)})
    with contextlib.redirect_stdout(io.StringIO()):  # "Found 148 validated image filenames."
        batches = datagen.flow_from_dataframe(
            table, folder, "file", target_size=conv_base.input_shape[1:3], class_mode=None, batch_size=10, shuffle=False
        )
    return extract_features(conv_base, batches, output)[0]


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
    worker = compiled_head(architecture_of(head))
    for variable, value in zip(worker.variables, head.variables):
        variable.assign(value)
    for variable in worker.optimizer.variables:
        variable.assign(tf.zeros_like(variable))
    worker.optimizer.learning_rate = learning_rate
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
        result = worker.fit(batches(view, rows), validation_data=held_out, shuffle=False, verbose=0)
        history.append(pd.DataFrame(result.history, index=[epoch + 1]))
    head.set_weights(worker.get_weights())
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


def share_interval(hits: np.ndarray, patients: Sequence[str]) -> list[float]:
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

    Returns n, patients, correct, accuracy, ci95 by patient (share_interval), majority (the larger class's share),
    confusion (true class down, predicted class across). With two classes also auc, the area under the ROC curve of
    class 0, and auc_ci95, by patient, unless all draws give one value.
    """
    labels, patients = np.asarray(labels), np.asarray(patients)
    predicted = probabilities.argmax(axis=1)
    right = predicted == labels
    scored = {"n": len(labels), "patients": len(set(patients)), "correct": int(right.sum())}
    scored["accuracy"] = float(right.mean()) if len(labels) else 0.0
    scored["ci95"] = share_interval(right, patients)
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
    5, there are fewer folds, and a line says so. Raises SetupError below 2.
    """
    names, groups = np.unique(patients, return_inverse=True)  # a number for each patient
    most = int(pd.Series(groups).groupby(np.asarray(labels)).nunique().min())
    if most < 2:
        raise SetupError("One class has only one patient. Cross-validation needs two: check patients.csv.")
    if most < 5:
        print(f"{most} folds instead of 5: the smallest class has {most} patients.")
    shuffled = np.random.default_rng(seed).permutation(len(names))
    folds = StratifiedGroupKFold(min(5, most))
    return list(folds.split(labels, labels, shuffled[groups]))


def sensitivity_table(confusion: Sequence[Sequence[int]], class_names: Sequence[str]) -> pd.DataFrame:
    """Sensitivity and specificity of each class against the rest, as counts and percentages."""
    counts, rows = np.array(confusion), {}
    for label, class_name in enumerate(class_names):
        is_class = np.arange(len(class_names)) == label
        row = rows[label_of(class_name)] = {}
        for term, truth in (("sensitivity", is_class), ("specificity", ~is_class)):
            right, n = int(counts[truth][:, truth].sum()), int(counts[truth].sum())
            row[term] = f"{right} of {n} = {right / n:.0%}"
    return pd.DataFrame(rows).T


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
        "ci95": share_interval(table["covid"], table["patient"]),
        "by_finding": {group: count(rows) for group, rows in table.groupby("group")},
        "with_right_answer": {**right, "ci95": share_interval(known["right"], known["patient"])},
    }


# ------------------------------------------------------------------------------------------ figures

BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#767676"  # apart for color-blind readers
STYLE = {
    "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN, GRAY]),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "savefig.dpi": 150,
    "text.parse_math": False,  # a file's name may hold a $
}
WIDTH = 9.5  # inches, the width of a page


def plot_images(images: Sequence[np.ndarray], titles: Sequence[str]) -> plt.Figure:
    """Draw images in a row across the page, each under its title."""
    lines = max(title.count("\n") + 1 for title in titles) * 0.17
    figure, axes = plt.subplots(1, len(images), figsize=(WIDTH, WIDTH / len(images) + lines))
    for axis, image, title in zip(axes, images, titles):
        axis.imshow(image)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    return figure


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


def plot_heat_maps(images: np.ndarray, rows: Mapping[str, np.ndarray], titles: Sequence[str]) -> plt.Figure:
    """Draw images above their heat maps: orange counts for the class, purple against it.

    images: float (n, size, size, 3), 0 to 1; rows: a name for each row of maps, float (n, h, w).
    """
    count = 1 + len(rows)
    figure, axes = plt.subplots(count, len(images), figsize=(WIDTH, 2.2 * count), squeeze=False)
    for axis, image, title in zip(axes[0], images, titles):
        axis.imshow(image)
        axis.set_title(title)
    for line, (name, maps) in zip(axes[1:], rows.items()):
        line[0].set_ylabel(name)
        for axis, image, heat in zip(line, images, maps):
            smooth = cv2.resize(heat / max(np.abs(heat).max(), 1e-12), image.shape[1::-1])
            axis.imshow(image)
            shown = axis.imshow(smooth, cmap="PuOr_r", vmin=-1, vmax=1, alpha=0.6)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    bar = figure.colorbar(shown, ax=axes, shrink=0.6, ticks=[-1, 0, 1])
    bar.ax.set_yticklabels(["against", "neither", "for"])
    bar.set_label("What a region adds to the score")
    return figure


def plot_scores(scores: Mapping[str, Mapping], title: str) -> plt.Figure:
    """Draw accuracies with their intervals, one row a name, beside the share of the larger class.

    Where a score has an area under the ROC curve, it stands beside it.
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
    axis.set(xlabel="Accuracy, with its 95% confidence interval by patient")
    axis.set_yticks(range(len(scores)), list(scores)[::-1])
    axis.grid(axis="x", alpha=0.3)
    return figure
