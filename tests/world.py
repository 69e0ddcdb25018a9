"""A small world in which mistakes of the lessons show, and what a student sees of a lesson that runs in it.

The world: an image has a center and a frame, each in the colors of a class, with noise that makes it unlike all others.
In training, the center always tells the class and the frame mostly does. A few test images look like another class, so
that a model is wrong where it should be, and not as often in one class as in the other. A small network stands in for
VGG16: averages of the colors, and edges.
"""

import contextlib
import io
import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import cv2
import IPython.display
import keras
import lessons
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xray
import xray_data
from keras import layers
from scipy.special import softmax

FOUR = list(xray_data.LABELS)
SIZE = 40
SETTINGS = {"IMAGE_SIZE": SIZE, "LEARNING_RATE": 4e-3, "NUM_EPOCHS": 4, "BATCH_SIZE": 4}
EPOCHS = 12  # of the model of Part 1
SECONDS = {"fit": 321, "features": 45, "head-fit": 6}  # that a cell takes by the lesson's clock
SETTINGS_MULTI = {"VIEWS_PER_IMAGE": 2, "FINE_TUNE_EPOCHS": 2, "FINE_TUNE_LEARNING_RATE": 2e-3}
COLORS = dict(zip(FOUR, [(80, 100, 180), (110, 120, 140), (170, 170, 30), (20, 180, 190)])) | {"adult": (100, 90, 120)}
LOOKS = {  # of the test images, center and frame, by class
    "covid": [("covid", "covid"), ("normal", "normal"), *2 * [("covid", "covid")], *2 * [("covid", "normal")]],
    "normal": [*4 * [("normal", "normal")], *3 * [("covid", "covid")], *2 * [("normal", "covid")]],
    "pneumonia_bac": [*4 * [("pneumonia_bac", "pneumonia_bac")], *2 * [("normal", "pneumonia_vir")]],
    "pneumonia_vir": [*3 * [("pneumonia_vir", "pneumonia_vir")], *2 * [("pneumonia_bac", "covid")]],
}
CONTROLS = {  # the look of each, and the group of its finding
    "nih": [*3 * [("adult", "no finding")], *2 * [("normal", "no finding")]],
    "collection": [
        *3 * [("covid", "bacterial pneumonia")], *2 * [("pneumonia_bac", "bacterial pneumonia")],
        *3 * [("pneumonia_vir", "viral pneumonia")], *4 * [("adult", "other or unspecified")],
        ("normal", "other or unspecified"),
    ],
}  # fmt: skip
MARKED = {1: "nejmoa2001191_f3-PA.jpeg", 3: "radiol.2020200490.fig3.jpeg"}  # COVID-19 test images; 3 has red marks


AUGMENTATION = {  # the article's, from its published notebooks
    "rescale": 1 / 255, "rotation_range": 50, "width_shift_range": 0.2, "height_shift_range": 0.2,
    "shear_range": 0.25, "zoom_range": 0.1, "channel_shift_range": 20, "horizontal_flip": True,
    "vertical_flip": True, "validation_split": 0.2, "fill_mode": "constant",
}  # fmt: skip


# --------------------------------------------------------------------------------------- its images


def draw(center, frame, rng):
    """An image, 40 pixels high and 48 wide."""
    image = np.full((SIZE, SIZE + 8, 3), 0.6 * np.array(COLORS[frame]))
    image[10:30, 12:36] = COLORS[center]
    if center == "normal":  # sharp
        image[10:30, 12:36:2] += rng.uniform(20, 70)
    image *= rng.uniform(0.75, 1.15)
    return (image + rng.integers(-15, 16, image.shape)).clip(0, 255).astype(np.uint8)


def write(path, image, kind=".png"):
    """Write an image in a format, whatever the file's name says: a child's is a JPEG where its number is odd."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = ".jpg" if re.search(r"normal.*[13579]\.png", str(path)) else kind
    path.write_bytes(cv2.imencode(kind, image[..., ::-1])[1].tobytes())


def images_of(kind):
    """Split, file, patient, center, and frame of each image of a class. Ten train, two a patient."""
    others = [other for other in FOUR if other != kind]
    for index in range(10):
        frame = others[index % 3] if index in (4, 7) else kind
        yield "train", f"train/{kind}/train-{index:02d}.png", f"{kind}-{index // 2}", kind, frame
    for index, (center, frame) in enumerate(LOOKS[kind]):
        name = MARKED.get(index, "") if kind == "covid" else ""
        patient = [2, 5, 5, 0, *range(6, 15)][index]  # the first is in training, too, and the fourth in validation
        yield "test", f"test/{kind}/{name or f'test-{index:02d}.png'}", f"{kind}-{patient}", center, frame


def write_world(folder):
    """Write images, controls, and lists into `folder`; return what the records of the COVID-19 images say."""
    rng, record, listed = np.random.default_rng(0), [], {"two": ["file,patient"], "all": ["file,patient"]}
    for kind in FOUR:
        for split, file, patient, center, frame in images_of(kind):
            image = draw(center, frame, rng)
            if file.endswith(MARKED[3]):
                image[15:17, 14:30] = 230, 20, 20
            for tree in ("two", "all") if kind in FOUR[:2] else ("all",):
                listed[tree].append(f"{file},{patient}")
                write(folder / tree / file, image)
            if kind == "covid":
                row = {"split": split, "class": kind, "filename": Path(file).name, "patient": patient}
                record.append(row | facts(len(record), 0))
    for tree, rows in listed.items():
        (folder / tree / "patients.csv").write_text("\n".join(rows), encoding="utf-8")
    (folder / "PHANTOMS.txt").write_text("drawn", encoding="utf-8")
    for source, found in CONTROLS.items():
        place, rows = folder / xray_data.FOLDERS[source], []
        for index, (look, group) in enumerate(found):
            write(place / f"{index}.png", draw(look, look, rng), ".jpg" if source == "nih" else ".png")
            patient = f"{source}-{max(index, 1)}"  # the first two show one patient
            rows.append({"filename": f"{index}.png", "group": group, "patient": patient} | facts(index, 8))
        pd.DataFrame(rows).to_csv(place / f"{place.name}.csv", index=False)
    return pd.DataFrame(record).astype(str).reindex(columns=[*xray_data.ARTICLE.columns]).fillna("")


def facts(index, more):
    """What a record says of a patient."""
    age, view = "" if index == 3 else 30 + (7 * index) % 23 + more, "AP" if index % 4 else "PA"
    return {"age": age, "sex": "FMM"[index % 3], "view": view, "site": f"{index % 5 + more // 3}.org"}


def small_vgg16(**_):
    """A network of 8 numbers for each 8 x 8 pixels: their colors, how dark they are, and how sharp."""
    filters = np.zeros((3, 3, 3, 8), np.float32)
    for color in range(3):
        filters[:, :, color, color] = 1 / 9
    filters[..., 3] = -1 / 27
    for number, edge in enumerate([[[1, -2, 1]] * 3, [[1] * 3, [-2] * 3, [1] * 3]]):
        filters[..., 4 + 2 * number] = np.array(edge)[..., np.newaxis] / 9
        filters[..., 5 + 2 * number] = -filters[..., 4 + 2 * number]
    inputs = keras.Input((SIZE, SIZE, 3))
    convolution = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")
    base = keras.Model(inputs, layers.AveragePooling2D(4)(convolution(inputs)))
    base.set_weights([filters, np.array([0, 0, 0, 1, 0, 0, 0, 0])])
    return base


def train_head(
    build_head, views, labels, rows, validation=None, *, learning_rate, epochs, batch_size, seed, first=0
):  # fmt: skip
    """What xray.train_head does, without TensorFlow, in milliseconds: Adam and cross-entropy, a view an epoch."""
    keras.utils.set_random_seed(seed)
    head = build_head()
    weights, labels = [array.astype(float) for array in head.get_weights()], np.asarray(labels)
    means, squares, steps, history = [0] * 4, [0] * 4, 0, []

    def forward(x):
        hidden = np.maximum(x @ weights[0] + weights[1], 0)
        z = hidden @ weights[2] + weights[3]
        return hidden, softmax(np.hstack([0 * z, z]) if z.shape[1] == 1 else z, axis=1)  # a sigmoid is of 0 and z

    def scores(p, y):
        return np.array([-np.log(p[np.arange(len(y)), y]).sum(), (p.argmax(axis=1) == y).sum()])

    for epoch in range(first, first + epochs):
        view = np.asarray(views[epoch % len(views)], float).reshape(len(labels), -1)
        order, seen = np.random.default_rng([seed, epoch]).permutation(rows), 0
        for start in range(0, len(order), batch_size):
            x, y = (array[order[start : start + batch_size]] for array in (view, labels))
            hidden, p = forward(x)
            seen = seen + scores(p, y)
            error = (p - np.eye(p.shape[1])[y])[:, -weights[3].size :] / len(y)
            back = error @ weights[2].T * (hidden > 0)
            gradients = [x.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0)]
            steps += 1
            for number, gradient in enumerate(gradients):
                means[number] = 0.9 * means[number] + 0.1 * gradient
                squares[number] = 0.999 * squares[number] + 0.001 * gradient**2
                rate = learning_rate * np.sqrt(1 - 0.999**steps) / (1 - 0.9**steps)
                weights[number] -= rate * means[number] / (np.sqrt(squares[number]) + 1e-7)
        row = dict(zip(["loss", "acc"], seen / len(order)))
        if validation is not None:
            held_out = scores(forward(view[validation])[1], labels[validation])
            row |= dict(zip(["val_loss", "val_acc"], held_out / len(validation)))
        history.append(pd.DataFrame(row, index=[epoch + 1]))
    head.set_weights(weights)
    return head, pd.concat(history)


# ----------------------------------------------------------------------------------- what is seen


class Shown:
    """What a cell showed: the text that it printed, what it displayed, and its figures; and what it left behind."""

    def __init__(self):
        self.printed, self.values, self.figures = io.StringIO(), [], []

    @property
    def text(self):
        """What it printed, and what it displayed as Markdown."""
        said = [value.data for value in self.values if isinstance(value, IPython.display.Markdown)]
        return "\n".join([self.printed.getvalue(), *said])

    @property
    def axes(self):
        """The axes of all figures, in order, without bars of color."""
        return [axis for figure in self.figures for axis in figure.axes if axis.get_label() != "<colorbar>"]

    @property
    def pictures(self):
        """The pictures of all figures, as arrays, and their titles."""
        return [(np.asarray(axis.images[0].get_array()), axis.get_title()) for axis in self.axes if axis.images]

    @property
    def table(self):
        """The one table."""
        (table,) = (value for value in self.values if isinstance(value, pd.DataFrame))
        return table


class Lesson:
    """A lesson that has run to its end in the world: `shown` has what each cell showed, and the results are read."""

    def __init__(self, notebook, images, output, settings):
        self.name = "binary" if notebook == lessons.BINARY else "multi"
        self.images, self.output = images, output
        self.shown, self.before = {}, {}
        self.cells = lessons.sources(notebook, "code")
        settings = settings | {"VGG16": small_vgg16}
        self.variables = lessons.run_lesson(notebook, settings, None, self.keep, self.run)
        self.end = copied(self.variables)

    def keep(self, name, variables):
        """Keep the variables that a cell meets. The model of Part 1 needs more epochs than heads do."""
        if "NUM_EPOCHS" in variables:
            variables["NUM_EPOCHS"] = EPOCHS if name == "fit" else SETTINGS["NUM_EPOCHS"]
        self.before[name] = copied(variables)

    def display(self, *values):
        self.drawing.values.extend(values)

    def show(self):
        self.drawing.figures += [plt.figure(number) for number in plt.get_fignums()]
        plt.close("all")

    def run(self, _, name, variables):
        """Run a cell, and keep what it shows and the files that it writes."""
        self.drawing = shown = self.shown[name] = Shown()
        if "time" in variables:
            variables["time"] = SimpleNamespace(perf_counter=itertools.count(0, SECONDS.get(name, 0)).__next__)
        plt.switch_backend("Agg")
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(shown.printed):
            for place in (IPython.display, xray):
                patch.setattr(place, "display", self.display)
            patch.setattr(plt, "show", self.show)
            self.display(lessons.run_code(self.cells[name], variables, name))
            self.show()
        if name == "head-fit":
            models = [value for value in variables.values() if isinstance(value, keras.Sequential)]
            shown.weights = [model.get_weights() for model in models]
        if name == "save":
            shown.model = keras.models.load_model(self.output / f"{self.name}.keras", compile=False)
        if name == "results":
            shown.results = json.loads((self.output / f"{self.name}.json").read_text(encoding="utf-8"))

    def again(self, names, place=None, old="", new=""):
        """Run cells once more, with `new` for `old` in the cell `place`; return `shown`. All is then as it was.

        A cell runs on the variables that it met, and on what the cells before it have changed now.
        """
        kept, changed = (self.shown, self.cells), {}
        self.shown, self.cells = dict(self.shown), dict(self.cells)
        if place in self.cells:
            self.cells[place] = replaced(self.cells[place], old, new)
        try:
            for name in (name for name in self.cells if name in names):
                met = copied(self.before.get(name, self.end))
                for key, value in copied(changed).items():
                    both = isinstance(value, dict) and isinstance(met.get(key), dict)
                    met[key] = met[key] | value if both else value
                self.variables.clear()  # the functions of a lesson read this very dictionary
                self.variables.update(met)
                self.run(place, name, self.variables)
                for key, value in self.variables.items():
                    is_mentioned = isinstance(value, (dict, list)) and re.search(rf"\b{key}\b", self.cells[name])
                    if met.get(key) is not value or is_mentioned:
                        changed[key] = value
            return self.shown
        finally:
            self.shown, self.cells = kept
            self.variables.clear()
            self.variables.update(self.end)


def replaced(source, old, new):
    """A source in which a regular expression, which must be there, is replaced."""
    source, count = re.subn(old, new, source)
    assert count, f"{old} is not in: {source}"
    return source


def copied(value):
    """A copy of dictionaries and lists, and of those in them."""
    if isinstance(value, dict):
        return {key: inner if key == "__builtins__" else copied(inner) for key, inner in value.items()}
    return [copied(inner) for inner in value] if type(value) is list else value
