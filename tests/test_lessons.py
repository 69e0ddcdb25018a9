"""What a student sees in a small world (world.py) is what that world must give: every text, table, and figure.

Each lesson runs once. A check compares what some cells showed with numbers that are computed here anew, from the files,
the saved model, and heads that are trained here on features of one's own. A mistake is another source of a cell, or
another function of the toolbox: its cells run again, and some check, which is not told which, must notice.
"""

import copy
import functools
import inspect
import itertools
import math
import re
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
RATE, EPOCHS = world.SETTINGS["LEARNING_RATE"], world.SETTINGS["NUM_EPOCHS"]


# ----------------------------------------------------------------------------- what the world must give


def table_of(folder, classes):
    """The images of some classes as Keras splits them: of each class, the first fifth is for validation."""
    table = pd.read_csv(folder / "patients.csv")
    table[["split", "class", "name"]] = table["file"].str.split("/", expand=True)
    table["label"] = table["class"].map(classes.index)
    table = table.sort_values(["split", "label", "name"], ascending=[False, True, True], ignore_index=True)
    is_first = table.groupby(["split", "class"]).cumcount() < 2
    table.loc[is_first & (table["split"] == "train"), "split"] = "validation"
    return table


def load(paths):
    """Image files as the network sees them, 0 to 1."""
    return np.stack([np.asarray(keras.utils.load_img(path, target_size=(SIZE, SIZE))) for path in paths]) / 255


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


def features_of(images, black=0):
    return world.small_vgg16().predict(np.float32([hide(image, black) for image in images]), verbose=0)


def head_of(units):
    """A new head, from the lessons' seed."""
    keras.utils.set_random_seed(SEED)
    hidden = layers.Dense(256, activation="relu")
    last = layers.Dense(units, activation="sigmoid" if units == 1 else "softmax")
    return keras.Sequential([keras.Input((5, 5, 8)), layers.Flatten(), hidden, last])


def train(units, views, labels, rows, validation=None, build=None, **others):
    """A head trained on rows of views, and its history."""
    settings = {"learning_rate": RATE, "epochs": EPOCHS, "batch_size": BATCH, "seed": SEED} | others
    return world.train_head(build or functools.partial(head_of, units), views, labels, rows, validation, **settings)


def cross_validate(units, views, labels, patients, plain=None):
    """Probabilities of each row from a head that has not seen its patient."""
    guesses = np.zeros((len(labels), max(units, 2)))
    for rows, out in xray.patient_folds(labels, patients, SEED):
        head, _ = train(units, views, labels, rows)
        guesses[out] = xray.predict_probabilities(head, (views[0] if plain is None else plain)[out])
    return guesses


def two(p_covid):
    """Probabilities of both classes."""
    return np.column_stack([p_covid, 1 - p_covid])


def area_of(rows):
    """The area under the ROC curve, of rows of truth and guess."""
    return roc_auc_score(*rows.T) if 0 < rows[:, 0].sum() < len(rows) else np.nan


def score(labels, guesses, patients):
    """What xray.score must return, and which rows are right."""
    labels, predicted = np.asarray(labels), guesses.argmax(axis=1)
    hits, sizes = predicted == labels, pd.Series(list(patients)).value_counts()
    n = sizes.sum() ** 2 / (sizes**2).sum()
    k = hits.mean() * n
    low = beta.ppf(0.025, k, n - k + 1) if k > 0 else 0
    high = beta.ppf(0.975, k + 1, n - k) if k < n else 1
    scored = SimpleNamespace(n=len(hits), patients=len(sizes), correct=hits.sum(), accuracy=hits.mean(), hits=hits)
    scored.ci95, scored.percent = [low, high], [100 * low, 100 * high]
    scored.confusion = confusion_matrix(labels, predicted, labels=range(guesses.shape[1]))
    if guesses.shape[1] == 2 and len(set(labels)) == 2:
        rows = np.column_stack([labels == 0, guesses[:, 0]])
        scored.auc, scored.auc_ci95 = area_of(rows), xray.bootstrap_interval(area_of, rows, patients)
    return scored


def score_head(truth, head, features, rows):
    return score(truth.labels[rows], xray.predict_probabilities(head, features[rows]), truth.patients[rows])


def base_truth(lesson, classes):
    """What both lessons rest on: the images, their table, features as they are and with black centers, and controls."""
    table = table_of(lesson.images, classes)
    truth = SimpleNamespace(table=table, classes=classes, names=[LABELS[name] for name in classes])
    truth.labels, truth.patients = table["label"].to_numpy(), table["patient"].to_numpy()
    truth.rows = {name: np.flatnonzero(table["split"] == name) for name in ("train", "validation", "test")}
    truth.train, truth.test = truth.rows["train"], truth.rows["test"]
    truth.paths = np.array([lesson.images / file for file in table["file"]])
    truth.pixels = [np.asarray(keras.utils.load_img(path)) for path in truth.paths]
    truth.images = load(truth.paths)
    truth.black = {share: features_of(truth.images, share) for share in (0, 0.5, 0.7, 0.9)}
    truth.features = truth.black[0]
    truth.controls = {}
    for source, folder in xray_data.FOLDERS.items():
        found = pd.read_csv(lesson.images.parent / folder / f"{folder}.csv", dtype=str, keep_default_na=False)
        found["path"] = [lesson.images.parent / folder / name for name in found["filename"]]
        images = load(found["path"])
        black = features_of(images, 0.9)
        truth.controls[source] = SimpleNamespace(table=found, images=images, plain=features_of(images), black=black)
    truth.leaked = truth.test[np.isin(truth.patients[truth.test], truth.patients[truth.train])]
    return truth


def truth_of_binary(lesson):
    truth = base_truth(lesson, FOUR[:2])
    test, labels, answers = truth.test, truth.labels, {}
    truth.model, covid = lesson.shown["save"].model, labels == 0

    def p_covid(images):
        key = joblib.hash(images)
        if key not in answers:
            answers[key] = 1 - truth.model.predict(np.float32(images), verbose=0)[:, 0]
        return answers[key]

    truth.p_covid, truth.p_test = p_covid, p_covid(truth.images[test])
    truth.tested = score(labels[test], two(truth.p_test), truth.patients[test])
    head = head_of(1)
    head.compile(keras.optimizers.Adam(RATE), "binary_crossentropy")
    head.fit(truth.features[truth.train], labels[truth.train], batch_size=BATCH, epochs=EPOCHS, verbose=0)
    truth.first_head, truth.first_weights = score_head(truth, head, truth.features, test), head.get_weights()
    truth.blackout = {}
    for share, features in truth.black.items():
        head, _ = train(1, [features], labels, truth.train)
        truth.blackout[share] = score_head(truth, head, features, test)
    is_new = np.isin(test, truth.leaked, invert=True)  # not in training
    truth.groups = {}  # images and patients
    for label, name in enumerate(["COVID-19", "child"]):
        chosen = test[is_new & (labels[test] == label)]
        truth.groups[name] = list(zip(truth.images[chosen], truth.patients[chosen]))
    nih = truth.controls["nih"]
    truth.groups["adult"] = list(zip(nih.images[:6], nih.table["patient"]))

    children = truth.table[~covid].assign(path=truth.paths[~covid])
    children = SimpleNamespace(table=children, plain=truth.features[~covid], black=truth.black[0.9][~covid])
    truth.scores, ranks = {}, {}
    for source, found in {"children": children, **truth.controls}.items():
        against = np.repeat([0, 1], [covid.sum(), len(found.table)])
        people = np.append(truth.patients[covid], found.table["patient"])
        for key, ours, theirs in (("", truth.features, found.plain), ("_black", truth.black[0.9], found.black)):
            guesses = cross_validate(1, [np.concatenate([ours[covid], theirs])], against, people)
            ranks[source + key] = guesses[:, 0]
            truth.scores[source + key] = score(against, guesses, people)
        paths = [*truth.paths[covid], *found.table["path"]]
        record = xray_data.ARTICLE.set_index("filename").loc[[path.name for path in truth.paths[covid]]]
        known = pd.concat([record, found.table], ignore_index=True)
        known["format"] = [Image.open(path).format for path in paths]
        known["mode"] = [Image.open(path).mode for path in paths]
        columns = {"file": ["format", "mode"], "record": ["age", "sex", "view"], "site": ["site"]}
        for kind, wanted in list(columns.items())[: 1 if source == "children" else 3]:
            rows = np.flatnonzero((known[wanted] != "").all(axis=1))
            facts = known.loc[rows, wanted]
            facts = pd.get_dummies(facts.astype({"age": float}) if kind == "record" else facts)
            folds = xray.patient_folds(against[rows], people[rows], SEED)
            logistic = make_pipeline(StandardScaler(), LogisticRegression())
            guesses = cross_val_predict(logistic, facts, against[rows], cv=folds, method="predict_proba")
            truth.scores[f"{source}_{kind}"] = score(against[rows], guesses, people[rows])

    def share_won(rows):
        p, site = ranks["collection"], known["site"]
        pairs = itertools.product(rows[against[rows] == 0], rows[against[rows] == 1])
        wins = [p[covid] > p[other] for covid, other in pairs if site[covid] == site[other]]
        return np.mean(wins) if wins else np.nan

    rows = np.arange(len(against))
    truth.same_site = share_won(rows), xray.bootstrap_interval(share_won, rows, people)
    return truth


def truth_of_multi(lesson):
    truth = base_truth(lesson, FOUR)
    table, labels, patients = truth.table, truth.labels, truth.patients

    def views_of(datagen):
        options = {"target_size": (SIZE, SIZE), "shuffle": False, "seed": SEED, "batch_size": BATCH}
        batches = datagen.flow_from_dataframe(table, lesson.images, "file", class_mode=None, **options)
        return xray.extract_features(world.small_vgg16(), batches, lesson.output, 2)

    truth.datagens = {"article": ImageDataGenerator(**world.AUGMENTATION), "gentle": lesson.end["gentle_datagen"]}
    views = {name: views_of(datagen) for name, datagen in truth.datagens.items()} | {"none": [truth.features]}
    truth.heads, truth.histories, truth.scores = {}, {}, {}
    for case, classes in (("three", 3), ("four", 4)):
        rows, valid, test = (found[labels[found] < classes] for found in truth.rows.values())
        for name, found in views.items():
            truth.heads[case, name], truth.histories[case, name] = train(classes, found, labels, rows, valid)
        more = world.SETTINGS_MULTI["FINE_TUNE_EPOCHS"], world.SETTINGS_MULTI["FINE_TUNE_LEARNING_RATE"]
        tuning = {"first": EPOCHS, "epochs": more[0], "learning_rate": more[1]}
        tuning["build"] = functools.partial(copy.deepcopy, truth.heads[case, "article"])
        tuned = train(classes, views["article"], labels, rows, valid, **tuning)
        truth.heads[case, "fine_tuned"], truth.histories[case, "fine_tuned"] = tuned
        for name in ("article", "fine_tuned", "gentle", "none"):
            p = xray.predict_probabilities(truth.heads[case, name], truth.features[test])
            scored = truth.scores[case, name] = score(labels[test], p, patients[test])
            scored.loss = -np.log(p[np.arange(len(test)), labels[test]]).mean()
            scored.rows, scored.p = test, dict(zip(test, p))
    truth.cv = {}
    for name, found in views.items():
        guesses = cross_validate(4, found, labels, patients, truth.features)
        truth.cv[name] = score(labels, guesses, patients)
    pooled = truth.features.mean(axis=(1, 2), dtype=float)
    logistic = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    folds = xray.patient_folds(labels, patients, SEED)
    guesses = cross_val_predict(logistic, pooled, labels, cv=folds, method="predict_proba")
    truth.cv["logistic"] = score(labels, guesses, patients)
    truth.blackout = score(labels, cross_validate(4, [truth.black[0.9]], labels, patients), patients)
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
    says(text, [scored.correct, scored.n, 100 * scored.accuracy], scored.percent)


def keeps(kept, scored, names=("correct", "accuracy", "confusion")):
    """Results keep a score: all that both have, and not less than these names."""
    assert kept.keys() >= {"n", "patients", "ci95", *names}
    for name in kept.keys() & vars(scored).keys():
        np.testing.assert_allclose(kept[name], getattr(scored, name), err_msg=name)


def exact_interval(scored):
    """The interval by image, in percent."""
    return 100 * np.array(binomtest(scored.correct, scored.n).proportion_ci())


def labels_in(text):
    """The names of classes in a text, in order."""
    return re.findall("|".join(LABELS.values()), text)


def is_color(color, other):
    return to_rgba(color) == to_rgba(other)


def one_file(truth, picture, split):
    """The row of the one image that a picture shows."""
    (row,) = (row for row, pixels in enumerate(truth.pixels) if np.array_equal(pixels, picture))
    assert truth.table["file"][row].startswith(split)
    return row


def is_picture(picture, expected):
    """A picture, of 0 to 1 or 0 to 255, shows what is expected, 0 to 1."""
    picture = np.asarray(picture, float)
    picture = picture / 255 if picture.max() > 1 else picture
    assert picture.shape == np.shape(expected) and np.abs(picture - expected).max() < 0.01


def asked(truth, picture):
    """The probability of COVID-19 for a picture of any size."""
    small = cv2.resize(picture.astype("float32") / 255, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST_EXACT)
    return truth.p_covid([small])[0]


def lines_of(axis):
    """What is drawn over epochs, by the name in the legend."""
    assert "poch" in axis.get_xlabel()
    legend, found = axis.get_legend(), {}
    for text, handle in zip(legend.get_texts(), legend.legend_handles):
        (line,) = (line for line in axis.lines if is_color(line.get_color(), handle.get_color()))
        assert list(line.get_xdata()) == list(range(1, len(line.get_xdata()) + 1))
        found[text.get_text()] = line.get_ydata()
    return found


def is_history(axes, history):
    """Figures of a history: each line has the name of what it shows, accuracies and losses apart."""
    shown = {}
    for axis in axes:
        assert len({"loss" in name for name in lines_of(axis)}) == 1
        shown |= lines_of(axis)
    assert set(shown) == {"acc", "val_acc", "loss", "val_loss"}
    for name, values in shown.items():
        np.testing.assert_allclose(values, history[name], atol=1e-3)


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


def are_examples(pictures, truth):
    """One training image of each class, under its name."""
    for (picture, title), name in zip(pictures, truth.names, strict=True):
        assert labels_in(title) == [name] == [truth.names[truth.labels[one_file(truth, picture, "train")]]]


def are_predictions(axes, truth, probabilities):
    """Each picture stands under its predicted class, the probability, ✓ or ✗, and its true class; returns rows."""
    rows = [one_file(truth, axis.images[0].get_array(), "test") for axis in axes]
    for row, axis in zip(rows, axes):
        p, title = probabilities[row], axis.get_title()
        true, is_right = truth.names[truth.labels[row]], p.argmax() == truth.labels[row]
        says(title, 100 * p.max())
        assert labels_in(title) == [truth.names[p.argmax()], true] and f"true: {true}" in title
        assert ("✓" in title, "✗" in title) == (is_right, not is_right), title
        assert is_color(axis.title.get_color(), "black") == is_right, title
    return rows


def are_counts(table, truth):
    """A table counts images and patients of each class and split."""
    for (name, split), rows in truth.table.groupby(["class", "split"]):
        assert table.loc[name, ("images", split)] == len(rows), name
        assert table.loc[name, ("patients", split)] == rows["patient"].nunique(), name


def are_points(axis, expected, guess):
    """Each row's text names a score and has its number; the point and the interval below it are that score's.

    expected: words that the text has, and the score, its interval, and whether images are whole, black, or not seen.
    """
    texts = [text for text in axis.texts if numbers(text.get_text())]
    points = [line for line in axis.lines if len(line.get_xdata()) == 1]
    intervals = [line for line in axis.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
    assert len(texts) == len(points) == len(intervals) == len(expected)
    for words, (value, ends, kind) in expected.items():
        (text,) = (text for text in texts if all(word in text.get_text() for word in words))
        point = min(points, key=lambda line: abs(line.get_ydata()[0] - text.get_position()[1] - 0.42))
        (interval,) = (line for line in intervals if line.get_ydata()[0] == point.get_ydata()[0])
        says(text.get_text(), value)
        np.testing.assert_allclose([*point.get_xdata(), *interval.get_xdata()], [value, *ends], atol=1e-6)
        assert is_color(point.get_markerfacecolor(), "white") == (kind == "black")
        assert point.get_marker() == ("o" if kind in ("whole", "black") else "s")
        assert point.get_color() == text.get_color() == interval.get_color()
    (line,) = (line for line in axis.lines if line.get_linestyle() == ":")
    assert list(line.get_xdata()) == pytest.approx([guess] * 2)


# ------------------------------------------------------------------------------------------ of Binary


def binary_images(shown, truth):
    pictures = shown["examples"].pictures
    are_examples(pictures, truth)
    for _, title in pictures:
        says(title, [SIZE + 8, SIZE])
    (original, first), *others = shown["views"].pictures
    image = truth.images[truth.train[0]]
    is_picture(original, image)
    assert not numbers(first) and len(others) == 5
    for picture, title in others:
        ((number, _),) = numbers(title)
        view = ImageDataGenerator(**world.AUGMENTATION).random_transform(255 * image, seed=int(number))
        np.testing.assert_allclose(picture, view.astype("uint8"))
    are_counts(shown["counts"].table, truth)


def binary_training(shown, truth):
    """Only the head trains, on the network that was given; the curves are what `fit` printed and the results keep."""
    says(line_of(shown["model"].text, "Trainable", "params"), 51_713)
    for given, saved in zip(world.small_vgg16().get_weights(), truth.model.layers[0].get_weights()):
        np.testing.assert_array_equal(given, saved)
    found = re.findall(r"(\w+): ([\d.]+)", shown["fit"].text)
    printed = {name: [float(value) for key, value in found if key == name] for name, _ in found}
    is_history(shown["curves"].axes, printed)
    results = shown["results"].results
    for name, values in results["cases"]["binary"]["history"].items():
        np.testing.assert_allclose(values, printed[name], atol=1e-4)
    assert (results["seed"], results["weights"]) == (SEED, "other")
    assert results["files"] == {"article": 0, "same_pixels": 0, "other": len(truth.table)}
    assert results["cases"]["binary"]["classes"] == truth.classes


def binary_evaluation(shown, truth):
    tested, text = truth.tested, shown["evaluate"].text
    loss = -np.log(two(truth.p_test)[np.arange(tested.n), truth.labels[truth.test]]).mean()
    says(text, loss, 100 * tested.accuracy, [tested.correct, tested.n], exact_interval(tested))
    text, steps = shown["article-steps"].text, math.ceil(tested.n / BATCH)
    files = truth.table["file"][truth.test[:steps]]
    assert re.findall(r"(?:covid|normal)/\S+", text) == [file.removeprefix("test/") for file in files]
    says(text, [tested.hits[:steps].mean(), steps])
    text = shown["comparison"].text
    assert re.search("article.*run", text)
    val_acc = shown["results"].results["cases"]["binary"]["history"]["val_acc"][-1]
    says(text, [16_812_353, truth.model.count_params()], [80, 100 * val_acc])
    says(text, [100, 2, 100 * tested.accuracy, tested.n])
    probabilities = dict(zip(truth.test, two(truth.p_test)))
    assert are_predictions(shown["predictions"].axes, truth, probabilities) == list(truth.test)
    ((difference, _),) = numbers(shown["save"].text)
    assert difference < 1e-5
    last = truth.paths[-1].name
    assert last in shown["my-xray"].text
    says(shown["my-xray"].text.replace(last, ""), truth.p_test[-1])


def binary_spoiled(shown, truth):
    """Silly pictures; and how many of each class are called COVID-19, blurred and with a black square."""
    pictures, kept = shown["silly-figure"].pictures, shown["results"].results["trust"]["silly"]
    assert len(pictures) == len(kept) == 8
    known = {"black": 0, "gray": 128, "white": 255, "portrait": plt.imread(get_sample_data("grace_hopper.jpg"))}
    known |= {"flower": load_sample_image("flower.jpg"), "temple": load_sample_image("china.jpg")}
    for picture, title in pictures:
        (name,) = (name for name in kept if name in title)
        p = asked(truth, picture)
        says(title.splitlines()[-1], p)
        assert kept[name] == pytest.approx(p, abs=1e-5) and labels_in(title) == ["COVID-19"]
        if name in known:
            np.testing.assert_array_equal(picture, np.broadcast_to(known.pop(name), picture.shape))
        else:
            assert len(np.unique(picture)) == {"checkerboard": 2, "noise": 256}[name]
    assert not known and kept["black"] != pytest.approx(0.5, abs=0.02)
    table, labels, expected = shown["ladder"].table, truth.labels[truth.test], []
    assert [labels_in(column)[0] for column in table.columns[2:]] == ["normal", "COVID-19"]
    for blur, black, *counts in table.itertuples(index=False):
        called = truth.p_covid([spoil(image, blur, black) for image in truth.images[truth.test]]) >= 0.5
        assert counts == [called[labels == 1].sum(), called[labels == 0].sum()]
        expected.append((blur, 100 * black, counts[0], (labels == 1).sum()))
    assert (0, 0) in {row[:2] for row in expected} and len({row[2] for row in expected}) > 3
    assert shown["results"].results["trust"]["ladder"] == table.to_dict("records")
    child = truth.images[truth.test][labels == 1][0]
    for (picture, title), row in zip(shown["ladder-figure"].pictures, expected, strict=True):
        says(title, row)
        is_picture(picture, spoil(child, row[0], row[1] / 100))


def binary_heads(shown, truth):
    """The first head on features, how long it takes, and heads that see no center; and the code that is shown."""
    says(shown["features"].text, [len(truth.table), 5, 5, 8])
    text, first = shown["head-fit"].text, truth.first_weights
    says(line_of(text, "right"), [truth.first_head.correct, truth.first_head.n])
    says(line_of(text, "every epoch"), world.SECONDS["fit"])
    says(line_of(text, "once"), world.SECONDS["features"], world.SECONDS["head-fit"])
    heads = [head for head in shown["head-fit"].weights if [w.shape for w in head] == [w.shape for w in first]]
    assert any(all(np.allclose(a, b, atol=1e-4) for a, b in zip(first, head)) for head in heads)
    kept = shown["results"].results["trust"]["blackout"]
    lines = [line for line in shown["blackout"].text.splitlines() if numbers(line)]
    for line, (picture, title) in zip(lines, shown["blackout-figure"].pictures, strict=True):
        share = numbers(title)[0][0] / 100
        scored = truth.blackout[share]
        says(title, [scored.correct, scored.n])
        is_picture(picture, hide(truth.images[truth.test[0]], share))
        says(line, 100 * share)
        describes(line, scored)
        keeps(kept[str(share or 0)], scored)
    assert len(kept) == len(lines) == 4 and len({scored.correct for scored in truth.blackout.values()}) > 1


def binary_patients(shown, truth):
    """The interval by image, by patient, and of the COVID-19 images by patient; and who is in training, too."""
    text, rows = shown["patients"].text, truth.labels[truth.test] == 0
    says(line_of(text, "by image"), exact_interval(truth.tested))
    says(line_of(text, "accuracy", "by patient"), truth.tested.percent)
    covid = score(truth.labels[truth.test][rows], two(truth.p_test)[rows], truth.patients[truth.test][rows])
    says(line_of(text, "COVID-19"), covid.percent)
    expected = truth.table.loc[truth.leaked, ["class", "file", "patient"]]
    assert shown["patients"].table.to_numpy().tolist() == expected.to_numpy().tolist()
    results = shown["results"].results
    names = [path.name for path in truth.paths[truth.leaked]]
    assert results["trust"]["test_images_of_training_patients"] == names
    keeps(results["cases"]["binary"]["test"], truth.tested, ["correct", "accuracy", "confusion", "auc"])


def binary_controls(shown, truth):
    """Orange is called COVID-19, gray is not; each group's row has its number of X-rays."""
    axis = shown["controls-figure"].axes[0]
    assert "orange" in axis.get_title() and "COVID-19" in axis.get_title()
    ticks = {round(place): label.get_text() for place, label in zip(axis.get_yticks(), axis.get_yticklabels())}
    bars, texts = {name: {} for name in ticks.values()}, iter(axis.texts)
    for patch in axis.patches:
        name = ticks[round(patch.get_y() + patch.get_height() / 2)]
        is_orange = is_color(patch.get_facecolor(), xray.ORANGE)
        bars[name][is_orange] = patch.get_width()
        if is_orange:
            says(next(texts).get_text(), patch.get_width())
    for source, found in truth.controls.items():
        called, people = truth.p_covid(found.images) >= 0.5, found.table["patient"]
        kept = shown["results"].results["trust"][source]
        keeps(kept, score(np.zeros(len(called)), two(1.0 * called), people), [])
        assert kept["predicted_covid"] == called.sum()
        for group, rows in found.table.groupby("group").indices.items():
            (name,) = (name for name in bars if source in name and group in name)
            assert bars.pop(name) == {True: called[rows].sum(), False: (~called[rows]).sum()}, name
            says(name, len(rows))
            by_group = {"n": len(rows), "patients": len(set(people[rows]))}
            assert kept["by_finding"][group] == by_group | {"predicted_covid": called[rows].sum()}
    assert not bars


def binary_swap(shown, truth):
    """Of each pair and border, how many the model calls COVID-19: in the results and in both charts."""
    originals = {"COVID-19": truth.groups["COVID-19"][1][0], "child": truth.groups["child"][0][0]}
    for row, (center, frame) in enumerate([("child", "COVID-19"), ("COVID-19", "child")]):
        for column, border in enumerate(["", "hard", "blended"]):
            picture, title = shown["swap-figure"].pictures[3 * row + column]
            expected = originals[frame]
            if border:
                assert border in title and title.index(center) < title.index(f"in {frame}")
                expected = swapped(expected, originals[center], 0.7, 0 if border == "hard" else 2)
            assert frame in title
            is_picture(picture, expected)
            says(title.splitlines()[-1], truth.p_covid([expected]))

    counts, kept = {}, shown["results"].results["trust"]["swap"]
    for row in kept:
        center, frame = re.fullmatch(r"(\S+) center in (\S+) frame", row["pair"]).groups()
        pairs = [(f, c) for f, who in truth.groups[frame] for c, other in truth.groups[center] if who != other]
        called = truth.p_covid([swapped(f, c, row["share"], row["blur"]) for f, c in pairs]) >= 0.5
        assert (row["n"], row["predicted_covid"]) == (len(pairs), called.sum()), row
        counts[row["share"], row["blur"], row["pair"]] = called.sum(), len(pairs)
    assert len(counts) == len(kept) == 24
    assert any(counts[share, 0, pair] != found for (share, blur, pair), found in counts.items())
    (legend,) = shown["swap-plot"].figures[0].legends
    hollow = [is_color(handle.get_markerfacecolor(), "white") for handle in legend.legend_handles]
    assert hollow == ["hard" in text.get_text() for text in legend.get_texts()] and set(hollow) == {True, False}
    for axis in shown["swap-plot"].axes:
        share = numbers(axis.get_title())[0][0] / 100
        for line in (line for line in axis.lines if len(line.get_xdata()) > 1):
            blur = 0 if is_color(line.get_markerfacecolor(), "white") else 2
            found = {pair: n and 100 * count / n for (*key, pair), (count, n) in counts.items() if key == [share, blur]}
            assert dict(zip(line.get_ydata(), line.get_xdata())) == pytest.approx(found)
        for text in axis.texts:
            says(text.get_text(), counts[share, 2, text.xy[1]])
        assert len(axis.texts) == 6
    assert "blended" in axis.get_xlabel() and "hard" not in axis.get_xlabel()


def binary_heat_maps(shown, truth):
    """Positive is for the predicted class, and orange; the maps above are the model's, those below another's."""
    images = np.stack([image for name in ("COVID-19", "child") for image, _ in truth.groups[name][:2]])
    labels = (truth.p_covid(images) < 0.5).astype(int)
    assert len(set(labels)) == 2
    top, *rows = np.reshape(shown["heat-maps"].axes, (3, 4))
    for axis, image, label in zip(top, images, labels):
        is_picture(axis.images[0].get_array(), image)
        assert labels_in(axis.get_title()) == [truth.names[label]]
    maps = []
    for row in rows:
        maps.append([np.asarray(axis.images[1].get_array()) for axis in row])
        for axis, image in zip(row, images):
            is_picture(axis.images[0].get_array(), image)
            low, *_, high = axis.images[1].cmap([0.0, 0.5, 1.0])
            assert high[0] > high[2] and low[2] > low[1] and axis.images[1].norm(0) == 0.5
    head = keras.Sequential([keras.Input((5, 5, 8)), *truth.model.layers[1:]])
    for found, wanted in zip(maps[0], xray.hires_cam(truth.model.layers[0], head, images, labels)):
        np.testing.assert_allclose(found, wanted / np.abs(wanted).max(), atol=1e-3)
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
    names = [truth.paths[one_file(truth, picture, "test/covid")].name for picture, _ in pictures[:2]]
    assert names == [world.MARKED[1], world.MARKED[3]]
    red = [np.sum(image[..., 0].astype(int) - image[..., 1:].max(axis=-1) > 40) for image, _ in pictures]
    assert red[1] > 20 and red[2] == 0 and np.mean(pictures[1][0] != pictures[2][0]) < 0.25
    assert "arrows" in pictures[1][1] and "arrows" not in pictures[0][1]
    for (picture, title), name in zip(pictures, ["normal", "arrows", "no_arrows"], strict=True):
        p = asked(truth, picture)
        says(title, p)
        says(shown["marks"].text, p)
        assert kept[name] == pytest.approx(p, abs=1e-5)


WORDS = {"children": "children", "nih": "NIH adults", "collection": "same collection", "": "whole X-rays"}
WORDS |= {"black": "center black", "file": "file only", "record": "view", "site": "web site"}


def binary_like_for_like(shown, truth):
    """Every task's counts, in print, in the results, and in the figure to remember; and the areas under the curves."""
    results = shown["results"].results["trust"]
    kept, expected = results["like_for_like"], {}
    text = shown["like-for-like"].text + "\n" + shown["no-image"].text
    for name, scored in truth.scores.items():
        describes(line_of(text, f"{name}:"), scored)
        keeps(kept[name], scored)
        assert "auc" in kept[name]
        source, _, kind = name.partition("_")
        expected[WORDS[source], WORDS[kind]] = scored.auc, scored.auc_ci95, kind or "whole"
    assert set(kept) == set(truth.scores)
    (axis,) = shown["like-for-like-figure"].axes
    are_points(axis, expected, 0.5)
    assert "Area" in shown["like-for-like-figure"].figures[0].get_supxlabel()
    colors = {(text.get_text().partition(",")[0], text.get_color()) for text in axis.texts if numbers(text.get_text())}
    assert len(colors) == len(dict(colors)) == len({color for _, color in colors}) == 3
    share, ends = truth.same_site
    says(line_of(shown["same-site"].text, "ranked first"), 100 * share)
    says(line_of(shown["same-site"].text, "interval"), 100 * np.array(ends))
    assert results["same_site"] == {"share": pytest.approx(share), "ci95": pytest.approx(ends)}


def binary_conclusions(shown, truth):
    text = shown["conclusions"].text
    describes(line_of(text, "est images:"), truth.tested)
    says(line_of(text, "training patient"), len(truth.leaked))
    says(line_of(text, "black square"), truth.p_covid([np.zeros((SIZE, SIZE, 3))]))
    describes(line_of(text, "no center"), truth.blackout[0.9])
    for source, found in truth.controls.items():
        says(line_of(text, source), [(truth.p_covid(found.images) >= 0.5).sum(), len(found.images)])


# ------------------------------------------------------------------------------------------- of Multi


def multi_images(shown, truth):
    are_examples(shown["examples"].pictures, truth)
    are_counts(shown["images"].table, truth)
    for picture, title in shown["gentle-views"].pictures:
        view = 255 * truth.images[0]
        for name in truth.datagens:
            if name in title:
                view = truth.datagens[name].random_transform(view, seed=int(numbers(title)[0][0]))
        np.testing.assert_allclose(picture, view.astype("uint8"), atol=1)
    assert len(shown["gentle-views"].pictures) == 8


def multi_training(shown, truth):
    """The curves are those of heads that are trained here on the same rows; and what the results keep."""
    says(line_of(shown["model"].text, "Trainable", "params"), 52_484)
    says(shown["features"].text, [2], [len(truth.table), 5, 5, 8])
    for figure in shown["curves"].figures:
        (case,) = (case for case in ("three", "four") if case in figure.get_suptitle())
        is_history(figure.axes, truth.histories[case, "article"])
    assert len(shown["curves"].figures) == 2
    (axis,) = shown["curves-augmentations"].axes
    assert "four" in axis.get_title() and "training" in axis.get_title() and len(axis.lines) == 3
    for name, values in lines_of(axis).items():
        np.testing.assert_allclose(values, truth.histories["four", name]["acc"], atol=1e-3)


def multi_evaluation(shown, truth):
    for (case, name), scored in truth.scores.items():
        kept = shown["results"].results["cases"][case if name == "article" else f"{case}_{name}"]
        keeps(kept["test"], scored)
        assert kept["classes"] == FOUR[: 3 if case == "three" else 4]
        for key, values in truth.histories[case, name].items():
            np.testing.assert_allclose(kept["history"][key], values, atol=1e-3, err_msg=f"{case} {name} {key}")
        describes(line_of(shown["test-augmentations"].text, case, name), scored)
        if name in ("article", "fine_tuned"):
            text = line_of(shown["evaluate"].text, case, name, more=1)
            says(text, [scored.correct, scored.n, 100 * scored.accuracy], scored.loss, exact_interval(scored))
    for case, (validation, *test) in {"three": [80, 100, 3], "four": [60, 50, 4]}.items():
        row, scored = shown["comparison"].table.loc[f"{case} classes"], truth.scores[case, "article"]
        says(row["article: validation"], validation)
        says(row["article: test"], test)
        says(row["validation"], 100 * truth.histories[case, "article"]["val_acc"].iloc[-1])
        says(row["test"], [100 * scored.accuracy, scored.n])


def multi_predictions(shown, truth):
    """The wrong ones come first. The file has the model."""
    scored = truth.scores["four", "article"]
    rows = are_predictions(shown["predictions-largest"].axes, truth, scored.p)
    assert sorted(rows) == list(truth.test)
    hits = dict(zip(truth.test, scored.hits))
    assert [hits[row] for row in rows] == sorted(hits.values())
    ((difference, _),) = numbers(shown["save"].text)
    assert difference < 1e-5
    p = shown["save"].model.predict(truth.images[truth.test], verbose=0)
    np.testing.assert_allclose(p, list(scored.p.values()), atol=1e-3)
    for axis, case in zip(shown["confusions"].axes, ("three", "four"), strict=True):
        assert case in axis.get_title()
        scored = truth.scores[case, "article"]
        is_confusion(axis, scored, truth.names[: len(scored.confusion)])


def multi_draw(shown, truth):
    """The images that NumPy's generator with the article's seed draws first, and how many draws are as good."""
    axes, kept = shown["draw"].axes, shown["results"].results["trust"]["article_draw"]
    for case in ("three", "four"):
        scored = truth.scores[case, "article"]
        drawn = np.random.RandomState(SEED).permutation(scored.n)[: math.ceil(scored.n / 10)]
        now, axes = axes[: len(drawn)], axes[len(drawn) :]
        assert are_predictions(now, truth, scored.p) == list(scored.rows[drawn])
        files = [truth.table["file"][row].removeprefix("test/") for row in scored.rows[drawn]]
        right, k = scored.hits[drawn].sum(), len(drawn)
        ways = math.comb(scored.correct, right) * math.comb(scored.n - scored.correct, k - right)
        share = ways / math.comb(scored.n, k)
        says(line_of(shown["draw"].text, f"{case} classes", "right"), [right, k])
        says(line_of(shown["draw-chance"].text, f"{case} classes"), 100 * share, right)
        assert kept[case] == {"files": files, "correct": right, "share_of_draws": pytest.approx(share)}
    assert not axes


def multi_cross_validation(shown, truth):
    """Scores; and how many points more one gets right than another, with an interval by patient."""
    kept, expected = shown["results"].results["trust"]["grouped_cv"], {}
    for name, scored in truth.cv.items():
        describes(line_of(shown["cross-validated"].text, name), scored)
        describes(line_of(shown["conclusions"].text, f"Cross-validated, {name}"), scored)
        keeps(kept[name], scored)
        expected[name,] = scored.accuracy, scored.ci95, "whole"
    (axis,) = shown["cross-validated"].axes
    are_points(axis, expected, np.bincount(truth.labels).max() / len(truth.labels))
    assert "ccuracy" in shown["cross-validated"].figures[0].get_supxlabel()
    for axis, name in zip(shown["confusions-cv"].axes, ("article", "none"), strict=True):
        assert name in axis.get_title()
        is_confusion(axis, truth.cv[name], truth.names)
    table, kept = shown["differences"].table, shown["results"].results["trust"]["differences"]
    for name in kept:
        first, second = (truth.cv[recipe] for recipe in name.split(" minus "))
        gain = first.hits.astype(int) - second.hits
        ends = xray.bootstrap_interval(np.mean, gain, truth.patients)
        shown_as = {"interval" in column: text for column, text in table.loc[name].items()}
        says(shown_as[False], 100 * gain.mean())
        says(shown_as[True], 100 * np.array(ends))
        assert kept[name] == {"difference": pytest.approx(gain.mean()), "ci95": pytest.approx(ends)}
    assert len(kept) == len(table) == 6


def multi_blackout(shown, truth):
    text, results = shown["patients"].text, shown["results"].results["trust"]
    says(text, [len(truth.leaked), len(truth.test)])
    names = [path.name for path in truth.paths[truth.leaked]]
    assert results["test_images_of_training_patients"] == names
    describes(shown["blackout"].text, truth.blackout)
    says(shown["blackout"].text, 90)
    keeps(results["blackout"], truth.blackout)
    is_confusion(shown["blackout"].axes[0], truth.blackout, truth.names)
    describes(line_of(shown["conclusions"].text, "test images"), truth.scores["four", "article"])


def multi_controls(shown, truth):
    """The summary and the results: how many are right where a class is right, and how many are called COVID-19."""
    table, results = shown["score-controls"].table, shown["results"].results["trust"]
    answers = {"no finding": 1, "bacterial pneumonia": 2, "viral pneumonia": 3}
    for source, found in truth.controls.items():
        answer, people = found.table["group"].map(answers), found.table["patient"]
        (right,) = (column for column in table if source in column and "right" in column)
        (covid,) = (column for column in table if source in column and "COVID-19" in column)
        for recipe in ("article", "gentle", "none"):
            guesses = xray.predict_probabilities(truth.heads["four", recipe], found.plain)
            known, called = answer.notna(), guesses.argmax(axis=1) == 0
            scored = score(answer[known], guesses[known], people[known])
            says(table.loc[recipe, right], [scored.correct, scored.n])
            says(table.loc[recipe, covid], [called.sum(), len(called)])
            kept = results[source if recipe == "article" else f"{source}_{recipe}"]
            keeps(kept, score(np.zeros(len(called)), two(1.0 * called), people), [])
            assert kept["predicted_covid"] == called.sum()
            keeps(kept["with_right_answer"], scored, ["correct"])
            if recipe == "article":
                says(line_of(shown["conclusions"].text, f"({source})"), [called.sum(), len(called)])


# ------------------------------------------------------------------------------------ the exercises


def played(**values):
    """In place of ipywidgets' interact: the function runs once as it is, and once with other numbers."""
    assert set(values) == {"number", "blur", "black"}

    def run(function):
        function()
        function(number=values["number"][0], blur=2, black=0.5)

    return run


def exercise_1(shown, truth):
    test = truth.images[truth.test]
    for (picture, title), (number, blur, black) in zip(shown.pictures, [(9, 0, 0), (0, 2, 0.5)], strict=True):
        is_picture(picture, spoil(test[number], blur, black))
        says(title, truth.p_covid([spoil(test[number], blur, black)]))


def exercise_4(shown, truth):
    others = truth.train[np.isin(truth.patients[truth.train], truth.patients[truth.test], invert=True)]
    assert len(others) < len(truth.train)
    head, _ = train(1, [truth.features], truth.labels, others)
    says(shown.text, [score_head(truth, head, truth.features, truth.test).correct, len(truth.test)])


def exercise_5(shown, truth):
    found = [truth, *truth.controls.values()]
    features = np.concatenate([truth.features, *(part.plain for part in found[1:])])
    people = np.concatenate([part.table["patient"] for part in found])
    sources = [*truth.table["class"], *(source for source in truth.controls for _ in truth.controls[source].plain)]
    labels = (np.array(sources) != "covid").astype(int)
    guesses = cross_validate(1, [features], labels, people)
    expected = pd.Series(guesses.argmax(axis=1) == labels).groupby(sources).agg(["sum", "size"])
    pd.testing.assert_frame_equal(shown.table, expected)


def exercise_6(shown, truth):
    small = [np.asarray(keras.utils.load_img(path, target_size=(15, 15))).mean(axis=2).ravel() for path in truth.paths]
    folds = xray.patient_folds(truth.labels, truth.patients, SEED)
    logistic = make_pipeline(StandardScaler(), LogisticRegression())
    right = cross_val_predict(logistic, small, truth.labels, cv=folds) == truth.labels
    says(shown.text, [right.sum(), len(right)])


def exercise_7(shown, truth):
    text, n = shown.text, len(truth.test)
    assert f"Found {len(truth.table) - n} files" in text and f"Found {n} files" in text
    assert text.count("val_acc") >= EPOCHS
    (accuracy,) = re.findall(r" acc: ([\d.]+) - loss: [\d.]+\W*$", re.sub(r"\x08+|\x1b\[[\d;]*m", " ", text).strip())
    assert 0.4 < float(accuracy) < 1
    assert re.findall(r"(\d+)/\d+", text)[-1] == str(math.ceil(n / BATCH))  # batches of test images


EXERCISES = {int(name[-1]): value for name, value in list(globals().items()) if name.startswith("exercise_")}
CHECKS = {
    lesson: [value for name, value in list(globals().items()) if name.startswith(f"{lesson}_")]
    for lesson in ("binary", "multi")
}


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
        patch.setattr("ipywidgets.interact", played)
        patch.setattr(xray_data, "ARTICLE", record)
        patch.setattr(xray, "train_head", world.train_head)
        patch.setattr(xray, "bootstrap_interval", functools.partial(xray.bootstrap_interval, draws=30))
        binary = world.Lesson(BINARY, folder / "images" / "two", folder / "output", world.SETTINGS)
        binary.cells |= {f"exercise {number}": lessons.exercise_code(BINARY, number) for number in EXERCISES}
        settings = world.SETTINGS | world.SETTINGS_MULTI
        multi = world.Lesson(MULTI, folder / "images" / "all", folder / "output", settings)
        yield {"binary": (binary, truth_of_binary(binary)), "multi": (multi, truth_of_multi(multi))}


@pytest.mark.parametrize("check", [*CHECKS["binary"], *CHECKS["multi"]], ids=lambda check: check.__name__)
def test_what_is_shown(check, lessons_of):
    lesson, truth = lessons_of[check.__name__.partition("_")[0]]
    check(lesson.shown, truth)


def test_every_exercise_is_run():
    """What has code in Binary; in Multi, exercises change settings."""
    assert {number for number in range(1, 8) if lessons.exercise_code(BINARY, number)} == set(EXERCISES)
    assert lessons.cell(BINARY, "exercises").count("```python") == len(EXERCISES)
    assert "```python" not in lessons.cell(MULTI, "exercises")


@pytest.mark.parametrize("number", EXERCISES)
def test_exercises(number, lessons_of):
    lesson, truth = lessons_of["binary"]
    name = f"exercise {number}"
    EXERCISES[number](lesson.again([name])[name], truth)


# --------------------------------------------------------------------------------------- the mistakes


def break_function(place, old, new, patch):
    """Put another function of the toolbox in place of the real one, its source changed."""
    module, name = {"xray": xray, "xray_data": xray_data}[place.partition(".")[0]], place.partition(".")[2]
    exec(world.replaced(inspect.getsource(getattr(module, name)), old, new), vars(module), found := {})
    patch.setattr(module, name, found[name])


def fails(check, *what):
    try:
        check(*what)
    except Exception:
        return True
    return False


@pytest.mark.parametrize("of, place, old, new, cells", [
    pytest.param(of, place, old, new, "".join(cells).split(), id=f"{of}: {what}")
    for of, rows in MISTAKES.items() for what, place, old, new, *cells in rows
])  # fmt: skip
def test_mistakes_fail(of, place, old, new, cells, lessons_of, monkeypatch):
    """All checks of the lesson look at what a mistake shows, and one or more of them fail."""
    lesson, truth = lessons_of[of]
    if place.startswith("exercise"):
        assert fails(EXERCISES[int(place[-1])], lesson.again([place], place, old, new)[place], truth)
        return
    if "." in place:
        break_function(place, old, new, monkeypatch)
    shown = lesson.again([place, *cells, "conclusions", "results"], place, old, new)
    monkeypatch.undo()
    assert any(fails(check, shown, truth) for check in CHECKS[of])
