"""What a student sees in a small world (world.py) is what that world must give: every text, table, and figure.

Each lesson runs once. A check compares what some cells showed with numbers that are computed here anew, from the files,
the saved model, and heads that are trained here on features of one's own. A mistake is another source of a cell, or
another function of the toolbox: its cells run again, and some check, which is not told which, must notice.
"""

import functools
import inspect
import math
import re
from pathlib import Path
from types import SimpleNamespace

import cv2
import joblib
import keras
import lessons
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import world
import xray
import xray_data
from conftest import BINARY, MULTI
from keras import layers
from matplotlib.cbook import get_sample_data
from matplotlib.colors import to_rgba
from mistakes import MISTAKES
from PIL import Image
from scipy.stats import beta, binomtest
from sklearn.datasets import load_sample_image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tensorflow.keras.preprocessing.image import ImageDataGenerator
from world import FOUR, SIZE

LABELS = xray_data.LABELS
SEED, BATCH = 42, world.SETTINGS["BATCH_SIZE"]


# ----------------------------------------------------------------------------- what the world must give


def table_of(folder, classes):
    """The images of some classes as Keras splits them: of each class, the first fifth is for validation."""
    patients = pd.read_csv(folder / "patients.csv").set_index("file")["patient"]
    rows = []
    for split in ("train", "test"):
        for label, name in enumerate(classes):
            for index, path in enumerate(sorted((folder / split / name).iterdir())):
                file = f"{split}/{name}/{path.name}"
                part = "validation" if split == "train" and index < 2 else split
                rows.append([file, name, label, part, patients[file]])
    return pd.DataFrame(rows, columns=["file", "class", "label", "split", "patient"])


def seen(path):
    """An image file as the network sees it, 0 to 255."""
    return np.asarray(keras.utils.load_img(path, target_size=(SIZE, SIZE)))


def hide(image, share):
    """An image whose center is black."""
    side = round(SIZE * share)
    first = (SIZE - side) // 2
    hidden = np.array(image)
    hidden[first : first + side, first : first + side] = 0
    return hidden


def spoil(image, blur, black):
    return hide(cv2.GaussianBlur(image, (0, 0), blur) if blur else image, black)


def swapped(frame, center, share, blur):
    """The frame of one image around the center of another."""
    mask = 1 - hide(np.ones((SIZE, SIZE)), share)
    if blur:
        mask = cv2.GaussianBlur(mask, (0, 0), blur, borderType=cv2.BORDER_REPLICATE)
    return mask[..., None] * center + (1 - mask[..., None]) * frame


def features_of(images):
    return world.small_vgg16().predict(np.asarray(images, np.float32), verbose=0)


def head_of(units):
    """A new head, from the lessons' seed."""
    keras.utils.set_random_seed(SEED)
    hidden = layers.Dense(256, activation="relu")
    last = layers.Dense(units, activation="sigmoid" if units == 1 else "softmax")
    return keras.Sequential([keras.Input((5, 5, 8)), layers.Flatten(), hidden, last])


def train(units, views, labels, rows, validation=None):
    """A head trained on rows of views, and its history."""
    numbers = {"learning_rate": world.SETTINGS["LEARNING_RATE"], "epochs": world.SETTINGS["NUM_EPOCHS"]}
    numbers |= {"batch_size": BATCH, "seed": SEED}
    return world.train_head(functools.partial(head_of, units), views, labels, rows, validation, **numbers)


def cross_validate(units, views, labels, patients, plain=None):
    """Probabilities of each row from a head that has not seen its patient, and the share of views that are right."""
    guesses, on_views = np.zeros((len(labels), max(units, 2))), np.zeros(len(labels))
    for rows, out in xray.patient_folds(labels, patients, SEED):
        head, _ = train(units, views, labels, rows)
        guesses[out] = xray.predict_probabilities(head, (views[0] if plain is None else plain)[out])
        hits = [xray.predict_probabilities(head, view[out]).argmax(axis=1) == labels[out] for view in views]
        on_views[out] = np.mean(hits, axis=0)
    return guesses, on_views


def score(labels, guesses, patients):
    """What score must return; the interval by patient, and the area of class 0."""
    hits = guesses.argmax(axis=1) == labels
    sizes = pd.Series(list(patients)).value_counts().to_numpy()
    n = sizes.sum() ** 2 / (sizes**2).sum()
    k = hits.mean() * n
    low, high = np.nan_to_num([beta.ppf(0.025, k, n - k + 1), beta.ppf(0.975, k + 1, n - k)], nan=-1)
    scored = SimpleNamespace(n=len(hits), patients=len(sizes), correct=hits.sum(), accuracy=hits.mean(), hits=hits)
    scored.low, scored.high = max(low, 0), high if high >= 0 else 1
    scored.confusion = confusion_matrix(labels, guesses.argmax(axis=1), labels=range(guesses.shape[1]))
    if guesses.shape[1] == 2:
        rows = np.column_stack([np.asarray(labels) == 0, guesses[:, 0]])
        scored.auc = area_of(rows)
        scored.auc_ends = xray.bootstrap_interval(area_of, rows, patients)
    return scored


def area_of(rows):
    """The area under the ROC curve of rows of truth and guess."""
    return roc_auc_score(*rows.T) if 0 < rows[:, 0].sum() < len(rows) else np.nan


def both(p_normal):
    return np.column_stack([1 - p_normal, p_normal])


def base_truth(lesson, classes):
    """What both lessons rest on: the images, their table, features as they are and with black centers, and controls."""
    table = table_of(lesson.images, classes)
    truth = SimpleNamespace(lesson=lesson, table=table, classes=classes, names=[LABELS[name] for name in classes])
    truth.labels, truth.patients = table["label"].to_numpy(), table["patient"].to_numpy()
    truth.split = {name: np.flatnonzero(table["split"] == name) for name in ("train", "validation", "test")}
    truth.paths = [lesson.images / file for file in table["file"]]
    truth.pixels = [np.asarray(keras.utils.load_img(path)) for path in truth.paths]
    truth.images = np.stack([seen(path) for path in truth.paths]) / 255
    truth.features = features_of(truth.images)
    truth.black = {share: features_of([hide(image, share) for image in truth.images]) for share in (0.5, 0.7, 0.9)}
    truth.black[0] = truth.features
    truth.controls = {}
    for source, folder in xray_data.FOLDERS.items():
        found = pd.read_csv(lesson.images.parent / folder / f"{folder}.csv", dtype=str, keep_default_na=False)
        found["path"] = [lesson.images.parent / folder / name for name in found["filename"]]
        images = np.stack([seen(path) for path in found["path"]]) / 255
        black = features_of([hide(image, 0.9) for image in images])
        truth.controls[source] = SimpleNamespace(table=found, images=images, plain=features_of(images), black=black)
    leaked = set(truth.patients[truth.split["train"]])
    truth.leaked = [row for row in truth.split["test"] if truth.patients[row] in leaked]
    return truth


def binary_truth(lesson):
    truth = base_truth(lesson, FOUR[:2])
    model = lesson.shown["save"].model
    truth.model, test, answers = model, truth.split["test"], {}

    def p_covid(images):
        key = joblib.hash(images)
        if key not in answers:
            answers[key] = 1 - model.predict(np.asarray(images, np.float32), verbose=0)[:, 0]
        return answers[key]

    truth.p_covid = p_covid
    truth.p_test = truth.p_covid(truth.images[test])
    truth.test = score(truth.labels[test], both(1 - truth.p_test), truth.patients[test])
    head, rows = head_of(1), truth.split["train"]
    head.compile(keras.optimizers.Adam(world.SETTINGS["LEARNING_RATE"]), "binary_crossentropy")
    epochs = world.SETTINGS["NUM_EPOCHS"]
    head.fit(truth.features[rows], truth.labels[rows], batch_size=BATCH, epochs=epochs, verbose=0)
    guesses = xray.predict_probabilities(head, truth.features[test])
    truth.first_head = score(truth.labels[test], guesses, truth.patients[test])
    truth.first_head.weights = head.get_weights()
    truth.blackout, covid = {}, truth.labels == 0
    for share, features in truth.black.items():
        head, _ = train(1, [features], truth.labels, truth.split["train"])
        guesses = xray.predict_probabilities(head, features[test])
        truth.blackout[share] = score(truth.labels[test], guesses, truth.patients[test])
    children = SimpleNamespace(table=truth.table[~covid].assign(path=np.array(truth.paths)[~covid]))
    children.plain, children.black = truth.features[~covid], truth.black[0.9][~covid]
    truth.scores, truth.guesses = {}, {}
    for source, found in {"children": children, **truth.controls}.items():
        labels = np.repeat([0, 1], [covid.sum(), len(found.table)])
        people = np.append(truth.patients[covid], found.table["patient"])
        for key, ours, theirs in (("", truth.features, found.plain), ("_black", truth.black[0.9], found.black)):
            joined = np.concatenate([ours[covid], theirs])
            truth.guesses[source + key] = labels, cross_validate(1, [joined], labels, people)[0], people
        record = xray_data.ARTICLE.set_index("filename").loc[[path.name for path in np.array(truth.paths)[covid]]]
        known = pd.concat([record, found.table], ignore_index=True)
        paths = [*np.array(truth.paths)[covid], *found.table["path"]]
        known["format"] = [Image.open(path).format for path in paths]
        known["mode"] = [Image.open(path).mode for path in paths]
        columns = {"file": ["format", "mode"]}
        if source != "children":
            columns |= {"record": ["age", "sex", "view"], "site": ["site"]}
        for kind, wanted in columns.items():
            rows = np.flatnonzero((known[wanted] != "").all(axis=1))
            numbers = known.loc[rows, wanted]
            numbers = pd.get_dummies(numbers.astype({"age": float}) if kind == "record" else numbers)
            folds = xray.patient_folds(labels[rows], people[rows], SEED)
            logistic = make_pipeline(StandardScaler(), LogisticRegression())
            guesses = cross_val_predict(logistic, numbers, labels[rows], cv=folds, method="predict_proba")
            truth.guesses[f"{source}_{kind}"] = labels[rows], guesses, people[rows]
        if source == "collection":
            p, site = truth.guesses[source][1][:, 0], known["site"].to_numpy()
            pairs = [(a, b) for a in range(len(p)) for b in range(len(p)) if site[a] == site[b]]
            truth.pairs = [p[a] > p[b] for a, b in pairs if labels[a] == 0 and labels[b] == 1]
    truth.scores = {name: score(*found) for name, found in truth.guesses.items()}
    return truth


def fit(head, truth, views, rows, validation, rate, epochs):
    """A history of Keras's fit, an epoch a view."""
    head.compile("adam", "sparse_categorical_crossentropy", metrics=["acc"])
    head.optimizer.learning_rate = rate
    history = []
    for epoch in epochs:
        view, order = views[epoch % len(views)], np.random.default_rng([SEED, epoch]).permutation(rows)
        held_out = view[validation], truth.labels[validation]
        options = {"batch_size": BATCH, "shuffle": False, "verbose": 0, "validation_data": held_out}
        history.append(head.fit(view[order], truth.labels[order], **options).history)
    return {key: [found[key][0] for found in history] for key in history[0]}


def multi_truth(lesson):
    truth = base_truth(lesson, FOUR)
    table, labels, patients = truth.table, truth.labels, truth.patients

    def views_of(datagen):
        options = {"target_size": (SIZE, SIZE), "shuffle": False, "seed": SEED, "batch_size": BATCH}
        batches = datagen.flow_from_dataframe(table, lesson.images, "file", class_mode=None, **options)
        return xray.extract_features(world.small_vgg16(), batches, lesson.output, 2)

    truth.gentle = lesson.end["gentle_datagen"]
    truth.article = ImageDataGenerator(**world.AUGMENTATION)
    views = {"article": views_of(truth.article), "gentle": views_of(truth.gentle), "none": [truth.features]}
    truth.heads, truth.histories, truth.scores, truth.p = {}, {}, {}, {}
    for case, classes in (("three", 3), ("four", 4)):
        rows, valid, test = (truth.split[name][labels[truth.split[name]] < classes] for name in truth.split)
        epochs, settings = world.SETTINGS["NUM_EPOCHS"], world.SETTINGS | world.SETTINGS_MULTI
        for name in ("gentle", "none"):
            truth.heads[case, name], history = train(classes, views[name], labels, rows, valid)
            truth.histories[case, name] = history.to_dict("list")
        head, rest = head_of(classes), (truth, views["article"], rows, valid)
        truth.histories[case, "article"] = fit(head, *rest, settings["LEARNING_RATE"], range(epochs))
        truth.heads[case, "article"], tuned = head, keras.models.clone_model(head)
        tuned.set_weights(head.get_weights())
        more = range(epochs, epochs + settings["FINE_TUNE_EPOCHS"])
        truth.histories[case, "fine_tuned"] = fit(tuned, *rest, settings["FINE_TUNE_LEARNING_RATE"], more)
        truth.heads[case, "fine_tuned"] = tuned
        for name in ("article", "fine_tuned", "gentle", "none"):
            p = truth.heads[case, name].predict(truth.features[test], verbose=0)
            truth.p[case, name], truth.scores[case, name] = p, score(labels[test], p, patients[test])
            truth.scores[case, name].loss = -np.log(p[np.arange(len(test)), labels[test]]).mean()
            truth.scores[case, name].rows = test
    truth.cv, truth.on_views, truth.guesses = {}, {}, {}
    for name, found in views.items():
        truth.guesses[name], hits = cross_validate(4, found, labels, patients, truth.features)
        truth.on_views[name] = hits.mean()
    truth.folds = xray.patient_folds(labels, patients, SEED)
    logistic = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    pooled = truth.features.mean(axis=(1, 2), dtype=float)
    guesses = cross_val_predict(logistic, pooled, labels, cv=truth.folds, method="predict_proba")
    truth.guesses["logistic"] = guesses
    truth.cv = {name: score(labels, found, patients) for name, found in truth.guesses.items()}
    head, _ = train(4, [truth.black[0.9]], labels, truth.split["train"])
    test = truth.split["test"]
    guesses = xray.predict_probabilities(head, truth.black[0.9][test])
    truth.blackout = score(labels[test], guesses, patients[test])
    return truth


# --------------------------------------------------------------------------------------- how a check reads


def numbers(text):
    """The numbers of a text in order, each with the smallest step that its digits can show."""
    text = re.sub(r"COVID-19|\w+\.keras", "", text.replace("−", "-"))
    found = re.findall(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]\d+)?", text)
    return [(float(n.replace(",", "")), 10.0 ** -len(n.partition(".")[2])) for n in found]


def says(text, *sequences):
    """Each sequence of numbers stands in a text, in this order and next to one another, as exact as it is shown."""
    shown = numbers(text)
    for wanted in sequences:
        wanted = np.atleast_1d(np.asarray(wanted, float))
        places = [shown[start : start + len(wanted)] for start in range(len(shown) - len(wanted) + 1)]
        alike = [all(abs(a - b) <= 0.5001 * step + 1e-6 for (a, step), b in zip(place, wanted)) for place in places]
        assert any(alike), f"{wanted} is not in: {text}"


def line_of(text, *words, more=0):
    """The one line of a text in which all words stand, and `more` lines after it."""
    lines = text.splitlines()
    found = [index for index, line in enumerate(lines) if all(word in line for word in words)]
    assert len(found) == 1, f"{words} in: {text}"
    return "\n".join(lines[found[0] : found[0] + 1 + more])


def describes(text, scored):
    """A text has the correct, n, the percentage, and the interval of a score."""
    says(text, [scored.correct, scored.n, 100 * scored.accuracy], [100 * scored.low, 100 * scored.high])


def labels_in(text):
    """The names of classes in a text, in order."""
    return re.findall("|".join(LABELS.values()), text)


def one_file(truth, picture, split):
    """The row of the one image that a picture shows."""
    alike = [row for row in range(len(truth.paths)) if np.array_equal(truth.pixels[row], picture)]
    assert len(alike) == 1 and truth.table["file"][alike[0]].startswith(split)
    return alike[0]


def is_picture(picture, expected):
    """A picture, of 0 to 1 or 0 to 255, shows what is expected, 0 to 1."""
    picture = np.asarray(picture, float)
    picture = picture / 255 if picture.max() > 1 else picture
    assert picture.shape == np.shape(expected) and np.abs(picture - expected).max() < 0.01


def lines_of(axis):
    """What is drawn as lines on an axis, by the name in its legend: x and y."""
    legend = axis.get_legend()
    found = {}
    for text, handle in zip(legend.get_texts(), legend.legend_handles):
        (line,) = (line for line in axis.lines if to_rgba(line.get_color()) == to_rgba(handle.get_color()))
        found[text.get_text()] = line.get_xdata(), line.get_ydata()
    return found


def is_history(axes, history):
    """Figures of a history: each line has the name of what it shows, over the number of the epoch; accuracies apart."""
    shown = {}
    for axis in axes:
        assert "poch" in axis.get_xlabel() and len({"loss" in name for name in lines_of(axis)}) == 1
        shown |= lines_of(axis)
    assert set(shown) == {"acc", "val_acc", "loss", "val_loss"}
    for name, (x, y) in shown.items():
        assert list(x) == list(range(1, len(x) + 1))
        np.testing.assert_allclose(y, history[name], atol=1e-3)


def is_confusion(axis, scored, names):
    """A picture of a confusion matrix: true class down, predicted across, and how many are right above it."""
    assert "rue" in axis.get_ylabel() and "redicted" in axis.get_xlabel()
    np.testing.assert_array_equal(axis.images[0].get_array(), scored.confusion)
    for text in axis.texts:
        column, row = text.get_position()
        says(text.get_text(), scored.confusion[row][column])
    for ticks in (axis.get_xticklabels(), axis.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == names
    says(axis.get_title(), [scored.correct, scored.n])


def is_sensitivity(table, scored, names):
    """Sensitivity is of the class's own images, specificity of all others."""
    counts = np.array(scored.confusion)
    for label, name in enumerate(names):
        own, other = counts[label], np.delete(counts, label, axis=0)
        right = other.sum() - other[:, label].sum()
        says(table.loc[name, "sensitivity"], [own[label], own.sum(), 100 * own[label] / own.sum()])
        says(table.loc[name, "specificity"], [right, other.sum(), 100 * right / other.sum()])


def are_predictions(axes, truth, probabilities):
    """Each picture stands under its predicted class, the probability, ✓ or ✗, and its true class; returns rows."""
    rows = [one_file(truth, axis.images[0].get_array(), "test") for axis in axes]
    for row, axis in zip(rows, axes):
        p, title = probabilities[row], axis.get_title()
        true, is_right = truth.names[truth.labels[row]], p.argmax() == truth.labels[row]
        says(title, 100 * p.max())
        assert labels_in(title) == [truth.names[p.argmax()], true] and f"true: {true}" in title
        assert ("✓" in title, "✗" in title) == (is_right, not is_right), title
        assert (to_rgba(axis.title.get_color()) == to_rgba("black")) == is_right, title
    return rows


def are_counts(table, truth):
    """A table counts images and patients of each class and split."""
    for (name, split), rows in truth.table.groupby(["class", "split"]):
        assert table.loc[name, ("images", split)] == len(rows), name
        assert table.loc[name, ("patients", split)] == rows["patient"].nunique(), name


def are_points(axis, expected, guess):
    """Each row's text names a score and has its number; the point and the interval below it are that score's.

    expected: words that the text has, and the score, its interval, and whether images are seen, black, or not at all.
    """
    texts = [text for text in axis.texts if numbers(text.get_text())]
    points = [line for line in axis.lines if len(line.get_xdata()) == 1]
    intervals = [line for line in axis.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
    assert len(texts) == len(points) == len(intervals) == len(expected)
    for words, (value, low, high, kind) in expected.items():
        (text,) = (text for text in texts if all(word in text.get_text() for word in words))
        point = min(points, key=lambda line: abs(line.get_ydata()[0] - text.get_position()[1] - 0.42))
        (interval,) = (line for line in intervals if line.get_ydata()[0] == point.get_ydata()[0])
        says(text.get_text(), value)
        np.testing.assert_allclose([*point.get_xdata(), *interval.get_xdata()], [value, low, high], atol=1e-6)
        is_hollow = to_rgba(point.get_markerfacecolor()) == to_rgba("white")
        assert (is_hollow, point.get_marker()) == (kind == "black", "s" if kind == "none" else "o")
        assert point.get_color() == text.get_color() == interval.get_color()
    (line,) = (line for line in axis.lines if line.get_linestyle() == ":")
    assert list(line.get_xdata()) == pytest.approx([guess] * 2)


# ------------------------------------------------------------------------------------------ of Binary


def binary_examples(shown, truth):
    pictures = shown["examples"].pictures
    for (picture, title), name in zip(pictures, truth.names, strict=True):
        row = one_file(truth, picture, "train")
        assert labels_in(title) == [name] == [truth.names[truth.labels[row]]]
        says(title, [SIZE + 8, SIZE])


def binary_views(shown, truth):
    (original, first), *others = shown["views"].pictures
    row = truth.split["train"][0]
    is_picture(original, truth.images[row])
    assert not numbers(first) and len(others) == 5
    for picture, title in others:
        ((number, _),) = numbers(title)
        view = ImageDataGenerator(**world.AUGMENTATION).random_transform(255 * truth.images[row], seed=int(number))
        np.testing.assert_allclose(picture, view.astype("uint8"))


def binary_model(shown, truth):
    """Only the head trains, and the network below it is the one that was given."""
    says(line_of(shown["model"].text, "Trainable", "params"), 51_713)
    for given, saved in zip(world.small_vgg16().get_weights(), truth.model.layers[0].get_weights()):
        np.testing.assert_array_equal(given, saved)


def binary_curves(shown, truth):
    """The curves are what `fit` printed, and what the results keep."""
    printed = {}
    for name, value in re.findall(r"(\w+): ([\d.]+)", shown["fit"].text):
        printed.setdefault(name, []).append(float(value))
    is_history(shown["curves"].axes, printed)
    for name, values in shown["results"].results["cases"]["binary"]["history"].items():
        np.testing.assert_allclose(values, printed[name], atol=1e-4)


def binary_evaluation(shown, truth):
    test = truth.test
    low, high = binomtest(test.correct, test.n).proportion_ci()
    loss = -np.log(np.where(truth.labels[truth.split["test"]] == 0, truth.p_test, 1 - truth.p_test))
    says(shown["evaluate"].text, loss.mean(), 100 * test.accuracy, [test.correct, test.n], [100 * low, 100 * high])
    text, steps = shown["article-steps"].text, math.ceil(test.n / BATCH)
    files = truth.table["file"][truth.split["test"][:steps]]
    assert re.findall(r"(?:covid|normal)/\S+", text) == [file.removeprefix("test/") for file in files]
    says(text, [test.hits[:steps].mean(), steps])
    val_acc = shown["results"].results["cases"]["binary"]["history"]["val_acc"][-1]
    text = shown["comparison"].text
    says(text, [16_812_353, truth.model.count_params()], [80, 100 * val_acc], [100, 2, 100 * test.accuracy, test.n])
    assert re.search("article.*run", text)


def binary_predictions(shown, truth):
    p = dict(zip(truth.split["test"], both(1 - truth.p_test)))
    assert are_predictions(shown["predictions"].axes, truth, p) == list(truth.split["test"])
    ((difference, _),) = numbers(shown["save"].text)
    assert difference < 1e-5
    last = truth.table["file"].iloc[-1].rpartition("/")[2]
    assert last in shown["my-xray"].text
    says(shown["my-xray"].text.replace(last, ""), truth.p_test[-1])


def binary_counts(shown, truth):
    are_counts(shown["counts"].table, truth)


def binary_silly(shown, truth):
    pictures, kept = shown["silly-figure"].pictures, shown["results"].results["trust"]["silly"]
    assert len(pictures) == len(kept) == 8
    known = {"black": 0, "gray": 128, "white": 255, "portrait": plt.imread(get_sample_data("grace_hopper.jpg"))}
    known |= {"flower": load_sample_image("flower.jpg"), "temple": load_sample_image("china.jpg")}
    for picture, title in pictures:
        small = cv2.resize(picture.astype("float32") / 255, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST_EXACT)
        (p,) = truth.p_covid([small])
        says(title.splitlines()[-1], p)
        (name,) = (name for name in kept if name in title)
        assert kept[name] == pytest.approx(p, abs=1e-5)
        assert labels_in(title) == ["COVID-19"]
        if name in known:
            np.testing.assert_array_equal(picture, np.broadcast_to(known.pop(name), picture.shape))
        else:
            assert len(np.unique(picture)) == {"checkerboard": 2, "noise": 256}[name]
    assert not known and kept["black"] != pytest.approx(0.5, abs=0.02)


def binary_ladder(shown, truth):
    """How many of each class are called COVID-19, blurred and with a black square; and the first child so."""
    table, test = shown["ladder"].table, truth.split["test"]
    labels, expected = truth.labels[test], []
    of = [labels_in(column)[0] for column in table.columns[2:]]
    assert of == ["normal", "COVID-19"]
    for blur, black, *counts in table.itertuples(index=False):
        says_covid = truth.p_covid([spoil(image, blur, black) for image in truth.images[test]]) >= 0.5
        assert counts == [says_covid[labels == 1].sum(), says_covid[labels == 0].sum()]
        expected.append((blur, 100 * black, counts[0], (labels == 1).sum()))
    assert (0, 0) in {row[:2] for row in expected} and len({row[2] for row in expected}) > 3
    kept = pd.DataFrame(shown["results"].results["trust"]["ladder"])
    assert kept.to_numpy().tolist() == table.to_numpy().tolist() and list(kept) == list(table)
    child = truth.images[test][labels == 1][0]
    for (picture, title), (blur, black, *counts) in zip(shown["ladder-figure"].pictures, expected, strict=True):
        says(title, [blur, black, *counts])
        is_picture(picture, spoil(child, blur, black / 100))


def binary_features(shown, truth):
    says(shown["features"].text, [len(truth.table), 5, 5, 8])
    text = shown["head-fit"].text
    says(line_of(text, "right"), [truth.first_head.correct, truth.test.n])
    says(line_of(text, "every epoch"), world.SECONDS["fit"])
    says(line_of(text, "once"), world.SECONDS["features"], world.SECONDS["head-fit"])
    first, heads = truth.first_head.weights, shown["head-fit"].weights
    alike = [[a.shape == b.shape and np.allclose(a, b, atol=1e-4) for a, b in zip(first, head)] for head in heads]
    assert any(len(found) == len(first) and all(found) for found in alike)  # one of them was trained as it should be


def binary_patients(shown, truth):
    """The interval by image, by patient, and of the COVID-19 images by patient; and who is in training, too."""
    test = truth.split["test"]
    text = shown["patients"].text
    says(line_of(text, "by image"), 100 * np.array(binomtest(truth.test.correct, truth.test.n).proportion_ci()))
    says(line_of(text, "accuracy", "by patient"), [100 * truth.test.low, 100 * truth.test.high])
    rows = truth.labels[test] == 0
    found = score(truth.labels[test][rows], both(1 - truth.p_test)[rows], truth.patients[test][rows])
    says(line_of(text, "COVID-19"), [100 * found.low, 100 * found.high])
    expected = truth.table.loc[truth.leaked, ["class", "file", "patient"]]
    assert shown["patients"].table.to_numpy().tolist() == expected.to_numpy().tolist()
    results = shown["results"].results
    names = results["trust"]["test_images_of_training_patients"]
    assert names == [Path(file).name for file in expected["file"]]
    kept = results["cases"]["binary"]["test"]
    assert (kept["n"], kept["correct"], kept["patients"]) == (truth.test.n, truth.test.correct, truth.test.patients)
    assert kept["ci95"] == pytest.approx([truth.test.low, truth.test.high])
    assert kept["confusion"] == truth.test.confusion.tolist() and kept["auc"] == pytest.approx(truth.test.auc)
    is_sensitivity(shown["sensitivity"].table, truth.test, truth.names)


def binary_code(shown, truth):
    for cell, name in {
        "black-out-code": "black_out",
        "heat-maps-code": "hires_cam",
        "patient-folds": "patient_folds",
    }.items():
        assert f"def {name}(" in shown[cell].text


def binary_blackout(shown, truth):
    kept = shown["results"].results["trust"]["blackout"]
    lines = [line for line in shown["blackout"].text.splitlines() if numbers(line)]
    for line, (picture, title) in zip(lines, shown["blackout-figure"].pictures, strict=True):
        share = numbers(title)[0][0] / 100
        scored = truth.blackout[share]
        says(title, [scored.correct, scored.n])
        is_picture(picture, hide(truth.images[truth.split["test"][0]], share))
        says(line, 100 * share)
        describes(line, scored)
        assert kept[str(share) if share else "0"]["correct"] == scored.correct
    assert len(kept) == len(lines) == 4 and len({scored.correct for scored in truth.blackout.values()}) > 1


def binary_controls(shown, truth):
    """Orange is called COVID-19, gray is not; each group's row has its number of X-rays."""
    axis = shown["controls-figure"].axes[0]
    assert "orange" in axis.get_title() and "COVID-19" in axis.get_title()
    ticks = {round(place): label.get_text() for place, label in zip(axis.get_yticks(), axis.get_yticklabels())}
    bars, texts = {name: {} for name in ticks.values()}, iter(axis.texts)
    for patch in axis.patches:
        name = ticks[round(patch.get_y() + patch.get_height() / 2)]
        is_orange = to_rgba(patch.get_facecolor()) == to_rgba(xray.ORANGE)
        bars[name][is_orange] = patch.get_width()
        if is_orange:
            says(next(texts).get_text(), patch.get_width())
    for source, found in truth.controls.items():
        called, table = truth.p_covid(found.images) >= 0.5, found.table
        kept = shown["results"].results["trust"][source]
        scored = score(np.zeros(len(called)), both(1.0 - called), table["patient"])
        assert (kept["n"], kept["patients"]) == (len(called), scored.patients)
        assert kept["predicted_covid"] == called.sum() and kept["ci95"] == pytest.approx([scored.low, scored.high])
        for group, rows in table.groupby("group").indices.items():
            (name,) = (name for name in bars if source in name and group in name)
            assert bars.pop(name) == {True: called[rows].sum(), False: (~called[rows]).sum()}, name
            says(name, len(rows))
            by_group = {"n": len(rows), "patients": len(set(table["patient"][rows]))}
            assert kept["by_finding"][group] == by_group | {"predicted_covid": called[rows].sum()}
    assert not bars


def swap_groups(truth):
    """The images of each group and their patients: of the test set only those who are not in training."""
    rows = [row for row in truth.split["test"] if row not in truth.leaked]
    groups = {}
    for label, name in enumerate(["COVID-19", "child"]):
        chosen = [row for row in rows if truth.labels[row] == label]
        groups[name] = list(zip(truth.images[chosen], truth.patients[chosen]))
    nih = truth.controls["nih"]
    groups["adult"] = list(zip(nih.images[:6], nih.table["patient"]))
    return groups


def binary_swap_pictures(shown, truth):
    groups = swap_groups(truth)
    (covid, _), (child, _) = groups["COVID-19"][0], groups["child"][0]
    pictures = shown["swap-figure"].pictures
    is_picture(pictures[0][0], covid)
    is_picture(pictures[1][0], child)
    assert labels_in(pictures[0][1]) and "child" in pictures[1][1]
    kinds = set()
    for picture, title in pictures[2:]:
        blur, center = 0 if "hard" in title else 2, "child" if "child" in title else "COVID-19"
        is_picture(picture, swapped(*((covid, child) if center == "child" else (child, covid)), 0.7, blur))
        kinds.add((blur, center))
    assert len(kinds) == 4 and len(pictures) == 6


def binary_swap(shown, truth):
    """Of each pair and border, how many the model calls COVID-19: in the results and in both charts."""
    groups, kept = swap_groups(truth), shown["results"].results["trust"]["swap"]
    counts = {}
    for row in kept:
        center, frame = re.fullmatch(r"(\S+) center in (\S+) frame", row["pair"]).groups()
        pairs = [(f, c) for f, who in groups[frame] for c, other in groups[center] if who != other]
        called = truth.p_covid([swapped(f, c, row["share"], row["blur"]) for f, c in pairs]) >= 0.5
        assert (row["n"], row["predicted_covid"]) == (len(pairs), called.sum()), row
        counts[row["share"], row["blur"], row["pair"]] = called.sum(), len(pairs)
    assert len(counts) == len(kept) == 24
    assert [count for (_, blur, _), count in counts.items() if blur] != [
        count for (_, blur, _), count in counts.items() if not blur
    ]
    (legend,) = shown["swap-plot"].figures[0].legends
    hollow = {}
    for text, handle in zip(legend.get_texts(), legend.legend_handles):
        hollow[to_rgba(handle.get_markerfacecolor()) == to_rgba("white")] = "hard" in text.get_text()
    assert hollow == {True: True, False: False}
    for axis in shown["swap-plot"].axes:
        share = numbers(axis.get_title())[0][0] / 100
        for line in (line for line in axis.lines if len(line.get_xdata()) > 1):
            blur = 0 if to_rgba(line.get_markerfacecolor()) == to_rgba("white") else 2
            for x, pair in zip(line.get_xdata(), line.get_ydata(), strict=True):
                count, n = counts[share, blur, pair]
                assert x == pytest.approx(100 * count / n), pair
            assert len(line.get_xdata()) == 6
        for text in axis.texts:
            says(text.get_text(), [*counts[share, 2, text.xy[1]]])
        assert len(axis.texts) == 6
    assert "blended" in axis.get_xlabel() and "hard" not in axis.get_xlabel()


def binary_heat_maps(shown, truth):
    """Positive is for the predicted class, and orange; the maps above are the model's, those below another's."""
    groups = swap_groups(truth)
    images = np.stack([image for name in ("COVID-19", "child") for image, _ in groups[name][:2]])
    labels = (truth.p_covid(images) < 0.5).astype(int)
    assert len(set(labels)) == 2
    top, *rows = np.reshape(shown["heat-maps"].axes, (3, 4))
    for axis, image, label in zip(top, images, labels):
        is_picture(axis.images[0].get_array(), image)
        assert labels_in(axis.get_title()) == [truth.names[label]]
    head = keras.Sequential([keras.Input((5, 5, 8)), *truth.model.layers[1:]])
    expected = xray.hires_cam(truth.model.layers[0], head, images, labels)
    maps = []
    for row in rows:
        maps.append([np.asarray(axis.images[1].get_array()) for axis in row])
        for axis, image in zip(row, images):
            is_picture(axis.images[0].get_array(), image)
            low, *_, high = axis.images[1].cmap([0.0, 0.5, 1.0])
            assert high[0] > high[2] and low[2] > low[1] and (axis.images[1].norm(0)) == 0.5
    for shown_map, wanted in zip(maps[0], expected):
        np.testing.assert_allclose(shown_map, wanted / np.abs(wanted).max(), atol=1e-3)
    assert "model" in rows[0][0].get_ylabel() and "untrained" in rows[1][0].get_ylabel()
    found = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(*maps)]
    assert np.max(np.abs(found)) < 0.9
    says(shown["heat-maps"].text, found)
    assert shown["results"].results["trust"]["heat_map_correlations"] == pytest.approx(found, abs=1e-4)
    (bar,) = (axis for axis in shown["heat-maps"].figures[0].axes if axis.get_label() == "<colorbar>")
    ticks = [(tick.get_loc(), tick.label1.get_text()) for tick in bar.xaxis.get_major_ticks()]
    assert [text for _, text in sorted(ticks)] == ["against", "neither", "for"]


def binary_marks(shown, truth):
    pictures, kept = shown["marks"].pictures, shown["results"].results["trust"]["marks"]
    rows = [one_file(truth, picture, "test/covid") for picture, _ in pictures[:2]]
    assert [truth.paths[row].name for row in rows] == [world.MARKED[1], world.MARKED[3]]
    red = [np.sum(image[..., 0].astype(int) - image[..., 1:].max(axis=-1) > 40) for image, _ in pictures]
    assert red[1] > 20 and red[2] == 0 and np.mean(pictures[1][0] != pictures[2][0]) < 0.25
    assert "arrows" in pictures[1][1] and "arrows" not in pictures[0][1]
    for (picture, title), name in zip(pictures, ["normal", "arrows", "no_arrows"], strict=True):
        small = cv2.resize(picture.astype("float32") / 255, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST_EXACT)
        (p,) = truth.p_covid([small])
        says(title, p)
        says(shown["marks"].text, p)
        assert kept[name] == pytest.approx(p, abs=1e-5)


WORDS = {"children": "children", "nih": "NIH adults", "collection": "same collection", "": "whole X-rays"}
WORDS |= {"black": "center black", "file": "file only", "record": "view", "site": "web site"}


def binary_like_for_like(shown, truth):
    """Every task's counts, in print, in the results, and in the figure to remember."""
    kept, expected = shown["results"].results["trust"]["like_for_like"], {}
    text = shown["like-for-like"].text + "\n" + shown["no-image"].text
    for name, scored in truth.scores.items():
        describes(line_of(text, f"{name}:"), scored)
        for key in ("n", "patients", "correct"):
            assert kept[name][key] == getattr(scored, key), name
        assert kept[name]["auc"] == pytest.approx(scored.auc) and kept[name]["accuracy"] == scored.accuracy
        assert kept[name]["confusion"] == scored.confusion.tolist()
        low, high = scored.auc_ends
        assert kept[name].get("auc_ci95", [low, low]) == pytest.approx([low, high])  # none if all draws give one value
        source, _, kind = name.partition("_")
        seen_as = {"": "whole", "black": "black"}.get(kind, "none")
        expected[WORDS[source], WORDS[kind]] = scored.auc, low, high, seen_as
    assert set(kept) == set(truth.scores)
    (axis,) = shown["like-for-like-figure"].axes
    are_points(axis, expected, 0.5)
    assert "Area" in shown["like-for-like-figure"].figures[0].get_supxlabel()
    colors = {(text.get_text().partition(",")[0], text.get_color()) for text in axis.texts if numbers(text.get_text())}
    assert len(colors) == len(dict(colors)) == len({color for _, color in colors}) == 3
    share = 100 * np.mean(truth.pairs)
    says(shown["same-site"].text, [share, len(truth.pairs)])
    assert shown["results"].results["trust"]["same_site"] == {
        "pairs": len(truth.pairs), "share": pytest.approx(share / 100)
    }  # fmt: skip


def binary_roc(shown, truth):
    """Sensitivity over false alarms: the area below each curve is that of its group."""
    (axis,) = shown["roc"].axes
    assert "specificity" in axis.get_xlabel() and "sensitivity" in axis.get_ylabel()
    for source in ("children", "nih", "collection"):
        (line,) = (line for line in axis.lines if WORDS[source] in line.get_label())
        area = np.trapezoid(line.get_ydata(), line.get_xdata())
        assert area == pytest.approx(truth.scores[source].auc)
        says(line.get_label(), area)


def binary_conclusions(shown, truth):
    text, p_black = shown["conclusions"].text, truth.p_covid([np.zeros((SIZE, SIZE, 3))])[0]
    describes(line_of(text, "est images:"), truth.test)
    says(line_of(text, "training patient"), len(truth.leaked))
    says(line_of(text, "black square"), p_black)
    describes(line_of(text, "no center"), truth.blackout[0.9])
    for source, found in truth.controls.items():
        says(line_of(text, source), [(truth.p_covid(found.images) >= 0.5).sum(), len(found.images)])


def binary_results(shown, truth):
    results = shown["results"].results
    assert (results["seed"], results["dataset"], results["weights"]) == (SEED, "phantoms", "other")
    assert results["files"] == {"article": 0, "same_pixels": 0, "other": len(truth.table)}
    assert results["cases"]["binary"]["classes"] == truth.classes


# ------------------------------------------------------------------------------------------- of Multi


def multi_examples(shown, truth):
    for (picture, title), name in zip(shown["examples"].pictures, truth.names, strict=True):
        assert labels_in(title) == [name] == [truth.names[truth.labels[one_file(truth, picture, "train")]]]


def multi_model(shown, truth):
    says(line_of(shown["model"].text, "Trainable", "params"), 52_484)
    says(shown["features"].text, [2], [len(truth.table), 5, 5, 8])


def multi_curves(shown, truth):
    """The curves are those of heads that are trained here on the same rows; and what the results keep."""
    for figure in shown["curves"].figures:
        (case,) = (case for case in ("three", "four") if case in figure.get_suptitle())
        is_history(figure.axes, truth.histories[case, "article"])
    assert len(shown["curves"].figures) == 2
    for (case, name), history in truth.histories.items():
        kept = shown["results"].results["cases"][case if name == "article" else f"{case}_{name}"]
        assert kept["classes"] == FOUR[: 3 if case == "three" else 4]
        for key, values in history.items():
            np.testing.assert_allclose(kept["history"][key], values, atol=1e-3, err_msg=f"{case} {name} {key}")
    (axis,) = shown["curves-augmentations"].axes
    for name, (x, y) in lines_of(axis).items():
        np.testing.assert_allclose(y, truth.histories["four", name]["acc"], atol=1e-3)
        assert list(x) == list(range(1, len(y) + 1))
    assert len(axis.lines) == 3 and "poch" in axis.get_xlabel()
    assert "four" in axis.get_title() and "training" in axis.get_title()


def multi_evaluation(shown, truth):
    for (case, name), scored in truth.scores.items():
        kept = shown["results"].results["cases"][case if name == "article" else f"{case}_{name}"]["test"]
        assert (kept["n"], kept["correct"], kept["patients"]) == (scored.n, scored.correct, scored.patients)
        assert kept["confusion"] == scored.confusion.tolist()
        assert kept["ci95"] == pytest.approx([scored.low, scored.high])
        describes(line_of(shown["test-augmentations"].text, case, name), scored)
        if name in ("article", "fine_tuned"):
            text = line_of(shown["evaluate"].text, case, name, more=1)
            says(text, [scored.correct, scored.n, 100 * scored.accuracy], scored.loss)
            says(text, 100 * np.array(binomtest(scored.correct, scored.n).proportion_ci()))


def multi_confusions(shown, truth):
    for axis, case in zip(shown["confusions"].axes, ("three", "four"), strict=True):
        assert case in axis.get_title()
        scored = truth.scores[case, "article"]
        is_confusion(axis, scored, truth.names[: len(scored.confusion)])
    for axis in shown["confusions-cv"].axes:
        is_confusion(axis, truth.cv[axis.get_title().partition(":")[0]], truth.names)
    assert len(shown["confusions-cv"].axes) == 2


def probabilities_of(truth, case):
    rows, p = truth.scores[case, "article"].rows, truth.p[case, "article"]
    return dict(zip(rows, p))


def multi_predictions(shown, truth):
    rows = are_predictions(shown["predictions-largest"].axes, truth, probabilities_of(truth, "four"))
    assert sorted(rows) == list(truth.split["test"])
    hits = dict(zip(truth.split["test"], truth.scores["four", "article"].hits))
    assert [hits[row] for row in rows] == sorted(hits.values())  # the wrong ones first


def multi_draw(shown, truth):
    """The images that NumPy's generator with the article's seed draws first, and how many draws are as good."""
    axes, kept = shown["draw"].axes, shown["results"].results["trust"]["article_draw"]
    for case in ("three", "four"):
        scored = truth.scores[case, "article"]
        drawn = np.random.RandomState(SEED).permutation(scored.n)[: math.ceil(scored.n / 10)]
        now, axes = axes[: len(drawn)], axes[len(drawn) :]
        assert are_predictions(now, truth, probabilities_of(truth, case)) == list(scored.rows[drawn])
        files = [truth.table["file"][row].removeprefix("test/") for row in scored.rows[drawn]]
        right, k = scored.hits[drawn].sum(), len(drawn)
        ways = math.comb(scored.correct, right) * math.comb(scored.n - scored.correct, k - right)
        share = ways / math.comb(scored.n, k)
        says(line_of(shown["draw"].text, f"{case} classes", "right"), [right, k])
        says(line_of(shown["draw-chance"].text, f"{case} classes"), 100 * share, right)
        assert kept[case] == {"files": files, "correct": right, "share_of_draws": pytest.approx(share)}
    assert not axes


def multi_comparison(shown, truth):
    table, reported = shown["comparison"].table, {"three": [80, 100, 3], "four": [60, 50, 4]}
    for case, (validation, *test) in reported.items():
        row, scored = table.loc[f"{case} classes"], truth.scores[case, "article"]
        says(row["article: validation"], validation)
        says(row["article: test"], test)
        says(row["validation"], 100 * truth.histories[case, "article"]["val_acc"][-1])
        says(row["test"], [100 * scored.accuracy, scored.n])
    ((difference, _),) = numbers(shown["save"].text)
    assert difference < 1e-5
    p = shown["save"].model.predict(truth.images[truth.split["test"]], verbose=0)
    np.testing.assert_allclose(p, truth.p["four", "article"], atol=1e-3)


def multi_counts(shown, truth):
    are_counts(shown["images"].table, truth)
    table = shown["folds"].table
    assert [numbers(column)[0][0] for column in table] == [1, 2, 3, 4, 5]
    for label, name in enumerate(truth.names):
        assert table.loc[name].tolist() == [np.sum(truth.labels[out] == label) for _, out in truth.folds]


def multi_gentle_views(shown, truth):
    image = 255 * truth.images[0]
    generators = {"article": truth.article, "gentle": truth.gentle}
    for picture, title in shown["gentle-views"].pictures:
        found = [name for name in generators if name in title]
        view = image
        if found:
            view = generators[found[0]].random_transform(image, seed=int(numbers(title)[0][0]))
        np.testing.assert_allclose(picture, view.astype("uint8"), atol=1)
    assert len(shown["gentle-views"].pictures) == 8


def multi_cross_validation(shown, truth):
    kept, expected = shown["results"].results["trust"]["grouped_cv"], {}
    for name, scored in truth.cv.items():
        describes(line_of(shown["cross-validated"].text, name), scored)
        assert (kept[name]["n"], kept[name]["correct"]) == (scored.n, scored.correct), name
        assert kept[name]["confusion"] == scored.confusion.tolist()
        assert kept[name]["ci95"] == pytest.approx([scored.low, scored.high])
        expected[name,] = scored.accuracy, scored.low, scored.high, "whole"
    (axis,) = shown["cross-validated"].axes
    are_points(axis, expected, np.bincount(truth.labels).max() / len(truth.labels))
    assert "ccuracy" in shown["cross-validated"].figures[0].get_supxlabel()
    table = shown["on-views"].table
    for name in ("article", "gentle"):
        plain, views = truth.cv[name].accuracy, truth.on_views[name]
        assert kept[name]["mean_on_views"] == pytest.approx(views)
        assert table.loc[name].tolist() == pytest.approx([plain, views], abs=0.0051)
    assert "as they are" in table.columns[0] and "views" in table.columns[1]


def multi_differences(shown, truth):
    """How many points more the first gets right than the second, and its interval by patient."""
    table, kept = shown["differences"].table, shown["results"].results["trust"]["differences"]
    for name in kept:
        first, second = (truth.cv[recipe] for recipe in name.split(" minus "))
        gain = first.hits.astype(int) - second.hits
        low, high = xray.bootstrap_interval(np.mean, gain, truth.patients)
        row = {"interval" in column: text for column, text in table.loc[name].items()}
        says(row[False], 100 * (first.accuracy - second.accuracy))
        says(row[True], [100 * low, 100 * high])
        assert kept[name]["difference"] == pytest.approx(first.accuracy - second.accuracy)
        assert kept[name]["ci95"] == pytest.approx([low, high])
    assert len(kept) == len(table) == 6


def multi_blackout(shown, truth):
    text, results = shown["patients"].text, shown["results"].results["trust"]
    says(text, [len(truth.leaked), len(truth.split["test"])])
    assert results["test_images_of_training_patients"] == [truth.paths[row].name for row in truth.leaked]
    describes(shown["blackout"].text, truth.blackout)
    says(shown["blackout"].text, 90)
    assert results["blackout"]["confusion"] == truth.blackout.confusion.tolist()
    is_sensitivity(shown["blackout"].table, truth.blackout, truth.names)


def multi_controls(shown, truth):
    """The summary and the results: how many are right where a class is right, and how many are called COVID-19."""
    table, results = shown["score-controls"].table, shown["results"].results["trust"]
    answers = {"no finding": 1, "bacterial pneumonia": 2, "viral pneumonia": 3}
    for source, found in truth.controls.items():
        right = found.table["group"].map(answers)
        for recipe in ("article", "gentle", "none"):
            predicted = xray.predict_probabilities(truth.heads["four", recipe], found.plain).argmax(axis=1)
            known, hits, called = right.notna(), predicted == right, predicted == 0
            (column,) = (column for column in table if source in column and "right" in column)
            says(table.loc[recipe, column], [hits.sum(), known.sum()])
            (column,) = (column for column in table if source in column and "COVID-19" in column)
            says(table.loc[recipe, column], [called.sum(), len(called)])
            kept = results[source if recipe == "article" else f"{source}_{recipe}"]
            assert (kept["predicted_covid"], kept["n"]) == (called.sum(), len(called))
            scored = score(right[known], np.eye(4)[predicted[known]], found.table["patient"][known])
            for key in ("n", "patients", "correct"):
                assert kept["with_right_answer"][key] == getattr(scored, key)
            assert kept["with_right_answer"]["ci95"] == pytest.approx([scored.low, scored.high])
            if recipe == "article":
                line = line_of(shown["conclusions"].text, f"({source})")
                says(line, [called.sum(), len(called)])


def multi_conclusions(shown, truth):
    text = shown["conclusions"].text
    for name, scored in truth.cv.items():
        describes(line_of(text, f"Cross-validated, {name}"), scored)
    describes(line_of(text, "test images"), truth.scores["four", "article"])


# ------------------------------------------------------------------------------------ the exercises


def exercise(lesson, number, change=lambda name, source: source):
    """Run the code of an exercise after the lesson; return what it showed."""
    source = change(f"exercise {number}", lessons.exercise_code(BINARY, number))
    return lesson.again([f"exercise {number}"], lambda name, _: source)[f"exercise {number}"]


def played(function, **values):
    """In place of ipywidgets' interact: the function runs once as it is, and once with other numbers."""
    assert set(values) == {"number", "blur", "black"}
    function()
    function(number=values["number"][0], blur=2, black=0.5)


def exercise_1(run, truth):
    test = truth.images[truth.split["test"]]
    for (picture, title), (number, blur, black) in zip(run(1).pictures, [(9, 0, 0), (0, 2, 0.5)], strict=True):
        is_picture(picture, spoil(test[number], blur, black))
        says(title, truth.p_covid([spoil(test[number], blur, black)])[0])


def exercise_4(run, truth):
    test, rows = truth.split["test"], truth.split["train"]
    others = rows[~np.isin(truth.patients[rows], truth.patients[test])]
    assert len(others) < len(rows)
    guesses = xray.predict_probabilities(train(1, [truth.features], truth.labels, others)[0], truth.features[test])
    says(run(4).text, [(guesses.argmax(axis=1) == truth.labels[test]).sum(), len(test)])


def exercise_5(run, truth):
    found = [truth, *truth.controls.values()]
    features = np.concatenate([truth.features, *(part.plain for part in found[1:])])
    people = np.concatenate([part.table["patient"] for part in found])
    sources = [*truth.table["class"], *(source for source in truth.controls for _ in truth.controls[source].plain)]
    labels = (np.array(sources) != "covid").astype(int)
    guesses, _ = cross_validate(1, [features], labels, people)
    expected = pd.Series(guesses.argmax(axis=1) == labels).groupby(sources).agg(["sum", "size"])
    pd.testing.assert_frame_equal(run(5).table, expected)


def exercise_6(run, truth):
    """Here, too, the network without weights is another one."""
    features = world.small_vgg16(weights=None).predict(np.float32(truth.images), verbose=0)
    test = truth.split["test"]
    head, _ = train(1, [features], truth.labels, truth.split["train"])
    right = (xray.predict_probabilities(head, features[test]).argmax(axis=1) == truth.labels[test]).sum()
    guesses, _ = cross_validate(1, [features], truth.labels, truth.patients)
    right_of_all = (guesses.argmax(axis=1) == truth.labels).sum()
    assert (right, right_of_all) != (truth.blackout[0].correct, truth.scores["children"].correct)
    says(run(6).text, [right, len(test)], [right_of_all, len(truth.labels)])


def exercise_7(run, truth):
    text = run(7).text
    rows = len(truth.split["train"]) + len(truth.split["validation"])
    assert f"Found {rows} files" in text and f"Found {truth.test.n} files" in text
    assert text.count("val_acc") >= world.SETTINGS["NUM_EPOCHS"]
    (accuracy,) = re.findall(r" acc: ([\d.]+) - loss: [\d.]+\W*$", re.sub(r"\x08+|\x1b\[[\d;]*m", " ", text).strip())
    assert 0.4 < float(accuracy) < 1
    assert re.findall(r"(\d+)/\d+", text)[-1] == str(math.ceil(truth.test.n / BATCH))  # batches of test images


EXERCISES = {1: exercise_1, 4: exercise_4, 5: exercise_5, 6: exercise_6, 7: exercise_7}

CHECKS = {lesson: [value for name, value in list(globals().items()) if name.startswith(f"{lesson}_") and
                   not name.endswith("truth")] for lesson in ("binary", "multi")}  # fmt: skip


# ----------------------------------------------------------------------------------------- the lessons


@pytest.fixture(scope="module")
def lessons_of(tmp_path_factory):
    """Both lessons, run once, and what they must show."""
    folder = tmp_path_factory.mktemp("world")
    record = world.write_world(folder / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CI", "1")
        patch.setenv("COVID_XRAY_DATA", str(folder / "images"))
        patch.setenv("COVID_XRAY_OUTPUT", str(folder / "output"))
        patch.chdir(folder)
        patch.setattr(xray_data, "ARTICLE", record)
        patch.setattr(xray, "train_head", world.train_head)
        patch.setattr(xray, "bootstrap_interval", functools.partial(xray.bootstrap_interval, draws=30))
        binary = world.Lesson(BINARY, folder / "images" / "two", folder / "output", world.SETTINGS)
        settings = world.SETTINGS | world.SETTINGS_MULTI
        multi = world.Lesson(MULTI, folder / "images" / "all", folder / "output", settings)
        yield {"binary": (binary, binary_truth(binary)), "multi": (multi, multi_truth(multi))}


@pytest.mark.parametrize("check", [*CHECKS["binary"], *CHECKS["multi"]], ids=lambda check: check.__name__)
def test_what_is_shown(check, lessons_of):
    lesson, truth = lessons_of[check.__name__.partition("_")[0]]
    check(lesson.shown, truth)


def test_every_exercise_is_run():
    """What has code in Binary; in Multi, exercises change settings."""
    count = lessons.cell(BINARY, "exercises").count("```python")
    assert {number for number in range(1, 8) if lessons.exercise_code(BINARY, number)} == set(EXERCISES)
    assert count == len(EXERCISES) and "```python" not in lessons.cell(MULTI, "exercises")


@pytest.mark.parametrize("number", EXERCISES)
def test_exercises(number, lessons_of, monkeypatch):
    lesson, truth = lessons_of["binary"]
    monkeypatch.setattr("ipywidgets.interact", lambda **values: functools.partial(played, **values))
    EXERCISES[number](functools.partial(exercise, lesson), truth)


# --------------------------------------------------------------------------------------- the mistakes


def break_function(place, old, new, patch):
    """Put another function of the toolbox in place of the real one, its source changed."""
    module, name = {"xray": xray, "xray_data": xray_data}[place.partition(".")[0]], place.partition(".")[2]
    source, count = re.subn(old, new, inspect.getsource(getattr(module, name)))
    assert count, f"{old} is not in {place}"
    exec(source, vars(module), found := {})
    patch.setattr(module, name, found[name])


@pytest.mark.parametrize("of, place, old, new, cells", [
    pytest.param(of, place, old, new, "".join(cells).split(), id=f"{of}: {what}")
    for of, rows in MISTAKES.items() for what, place, old, new, *cells in rows
])  # fmt: skip
def test_mistakes_fail(of, place, old, new, cells, lessons_of):
    """All checks of the lesson look at what a mistake shows, and one or more of them fail."""
    lesson, truth = lessons_of[of]

    def change(name, source):
        if name == place:
            source, count = re.subn(old, new, source)
            assert count, f"{old} is not in {name}"
        return source

    if place.startswith("exercise"):
        run = functools.partial(exercise, lesson, change=change)
        checks = [functools.partial(EXERCISES[int(place[-1])], run, truth)]
    else:
        with pytest.MonkeyPatch.context() as patch:
            if "." in place:
                break_function(place, old, new, patch)
            rerun = {place, *cells, "conclusions", "results"}
            shown = lesson.again([cell for cell in lesson.cells if cell in rerun], change)
        checks = [functools.partial(check, shown, truth) for check in CHECKS[of]]
    noticed = []
    for check in checks:
        try:
            check()
        except Exception:  # as a test, it would fail
            noticed.append(check.func.__name__)
    assert noticed
