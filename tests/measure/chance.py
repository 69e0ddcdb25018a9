"""Measure how far chance moves the lessons' numbers, and the numbers in the answers to their exercises.

    python tests/measure/chance.py [PART ...]

Runs each lesson for one epoch, on the article's images, and then its functions, cells, and exercises again:
  heads          the article's own training end to end, with the initial weights of 60 seeds, asked everything
  shape          children with pneumonia against healthy ones, by the size and shape of their files
  marks          the X-ray with red arrows, with as many pixels filled in elsewhere, 100 times
  like_for_like  areas under the ROC curve of Binary's section 9, five seeds: other folds, initial weights, orders
  shuffled       areas of COVID-19 against its own collection, with labels shuffled over patients, 100 times
  exercises      the numbers in the answers to the exercises
  seeds          Multi's test sets, controls, and cross-validation, five seeds: other views, weights, orders, folds
All take 70 minutes on two cores. A part is put into output/chance.json when it is done. Name parts to measure no other.
"""

import contextlib
import functools
import gc
import io
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "notebooks")]
os.environ["MPLBACKEND"] = "agg"

import cv2  # noqa: E402
import joblib  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import xray  # noqa: E402
import xray_data  # noqa: E402
from lessons import BINARY, MULTI, exercise_code, run_cell, run_lesson  # noqa: E402
from PIL import Image  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402
from sklearn.model_selection import cross_val_predict  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from xray import keras  # noqa: E402

OUTPUT = Path(os.environ.get("COVID_XRAY_OUTPUT") or ROOT / "output").resolve()
SEEDS = [1, 2, 3, 4, 5]  # the lessons have seed 42
HEADS = 60
POOL = 16  # views, of which each seed draws half
DRAWS = 100

# ------------------------------------------------------------------------------------------ the lessons


@functools.cache
def lesson_of(notebook: Path) -> dict:
    """Run a lesson for one epoch; return its variables, with its own number of epochs."""
    lesson = run_lesson(notebook, {"NUM_EPOCHS": 1, "FINE_TUNE_EPOCHS": 1, "VIEWS_PER_IMAGE": 1})
    plt.close("all")
    found = {source: len(controls) for source, controls in lesson["controls"].items()}
    wanted = {source: len(listed) for source, listed in xray_data.CONTROLS.items()}
    if lesson["files"]["dataset"] != xray_data.ARTICLE_NAME or found != wanted:
        sys.exit("Only the article's images, with all controls, are measured. `make data` gets them.")
    lesson["NUM_EPOCHS"] = again(notebook, {}, "settings")["NUM_EPOCHS"]  # for the lesson's functions, too
    return lesson


def again(notebook: Path, lesson: dict, *names: str) -> dict:
    """Run cells again on a copy of a lesson's variables; return the copy."""
    lesson = dict(lesson)
    for name in names:
        run_cell(notebook, name, lesson)
    return lesson


def correct(guesses: np.ndarray, labels: np.ndarray) -> int:
    return int((guesses.argmax(axis=1) == labels).sum())


def right(head: keras.Model, features: np.ndarray, labels: np.ndarray) -> int:
    return correct(xray.predict_probabilities(head, features), labels)


def gathered(found: list[dict]) -> dict:
    """Return the values of each number over several measurements."""
    return {name: [each[name] for each in found] for name in found[0]}


# ------------------------------------------------------------------------------------------ other seeds


def seeds() -> dict:
    return gathered([measure_seed(seed) for seed in SEEDS])


def measure_seed(seed: int) -> dict:
    """Draw one seed's views, train Multi's heads on them, and score these."""
    lesson, found = again(MULTI, lesson_of(MULTI) | {"SEED": seed}, "train-head"), {}
    labels, plain = lesson["labels"], lesson["plain_features"]
    drawn = np.random.default_rng(seed).permutation(POOL)[: POOL // 2]
    recipes = {}
    for name, datagen in (("article", "train_datagen"), ("gentle", "gentle_datagen")):
        batches = lesson["batches_of"](lesson[datagen])
        views = xray.extract_features(lesson["conv_base"], batches, lesson["OUTPUT"], POOL)
        recipes[name] = [views[view] for view in drawn]
    recipes["none"] = [plain]

    for name, views in recipes.items():
        for case in ("three", "four"):
            head, _ = lesson["train_head"](case, views, lesson["select"]("train", case))
            test = lesson["select"]("test", case)
            found[f"test, {case}, {name}"] = right(head, plain[test], labels[test])
        for group, controls in lesson["controls"].items():  # by the head for four classes
            scored = xray.score_controls(head, lesson["control_features"][group], controls, lesson["CLASS_NAMES"])
            found[f"{group}, predicted COVID-19, {name}"] = scored["predicted_covid"]
            found[f"{group}, right, {name}"] = scored["with_right_answer"]["correct"]

    lesson = again(MULTI, lesson | {"recipe_views": recipes}, "cross-validation", "logistic")
    for name, guesses in lesson["held_out"].items():
        found[f"cross-validated, {name}"] = correct(guesses, labels)
    return found


def like_for_like() -> dict:
    found = []
    for seed in SEEDS:
        cells = ("heads", "cross-validate", "like-for-like", "no-image", "same-site")
        lesson = again(BINARY, lesson_of(BINARY) | {"SEED": seed}, *cells)
        areas = {name: scored["auc"] for name, scored in lesson["like_for_like"].items()}
        found.append(areas | {"same_site": lesson["same_site"].get("share")})
    return gathered(found)


def shuffled() -> dict:
    """A logistic regression on features averaged over their positions stands in for a head."""
    found = {}
    for name in ("collection", "collection_black"):
        features, labels, people = map(np.asarray, lesson_of(BINARY)["tasks"][name])
        names, rows = np.unique(people, return_inverse=True)
        of_patient = np.array([labels[people == name][0] for name in names])
        found[name] = []
        for draw in range(DRAWS):
            drawn = np.random.default_rng(draw).permutation(of_patient)[rows]
            model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
            folds = xray.patient_folds(drawn, people, draw)
            pooled = features.mean(axis=(1, 2))
            guesses = cross_val_predict(model, pooled, drawn, cv=folds, method="predict_proba")
            found[name].append(float(roc_auc_score(drawn == 0, guesses[:, 0])))
    return found


# ----------------------------------------------------------------------- the article's model, sixty times


@functools.cache
def fit_batches() -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the features and labels of all batches that Part 1's `fit` draws.

    The lesson itself draws them: in place of the model it fits one whose training step only keeps features. `fit`
    takes the batches of an epoch in an order from Python's `random`, so it is that of seed 42, as in the lesson.
    """
    conv_base, kept = lesson_of(BINARY)["conv_base"], []

    class Keeper(keras.Model):
        def train_step(self, data: tuple) -> dict:
            images, labels = data[:2]
            kept.append((conv_base(images, training=False).numpy(), labels.numpy().reshape(-1, 1)))
            return {"loss": 0.0}

        def test_step(self, data: tuple) -> dict:
            return {"loss": 0.0}

    def replace_model(name: str, lesson: dict) -> None:
        if name == "fit":
            lesson["model"] = Keeper()
            lesson["model"].compile(run_eagerly=True)

    run_lesson(BINARY, {}, last="fit", before=replace_model)
    return kept


def train_article_head(seed: int, epochs: int) -> keras.Model:
    """Train the head of Part 1's model for some epochs, from the weights that the model has with this seed.

    The base is frozen, so VGG16 runs once over all batches, for all heads. With seed 42, that is Part 1's model, but
    for float32's last digits.
    """
    batches = fit_batches()
    keras.utils.set_random_seed(seed)
    lesson = again(BINARY, lesson_of(BINARY), "conv-base", "model")  # VGG16 draws, too, as in the lesson
    head = keras.Sequential([keras.Input(batches[0][0].shape[1:]), *lesson["model"].layers[1:]])
    again(BINARY, lesson | {"model": head}, "compile")
    for features, labels in batches[: epochs * len(lesson["train_batches"])]:
        head.train_on_batch(features, labels)
    return head


FEATURES = {}  # of images, by a hash of them


def model_of(head: keras.Model) -> SimpleNamespace:
    """Return a head as a model that takes images, 0 to 1. VGG16 sees equal images only once, for all heads."""

    def predict(images: np.ndarray, **_: object) -> np.ndarray:
        images = np.asarray(images, np.float32)
        key = joblib.hash(images)
        if key not in FEATURES:
            FEATURES[key] = lesson_of(BINARY)["conv_base"].predict(images, lesson_of(BINARY)["BATCH_SIZE"], verbose=0)
        return np.asarray(head(FEATURES[key]))

    return SimpleNamespace(predict=predict)


def children() -> pd.DataFrame:
    """Return the children's X-rays of Multi, a row each: is_sick, patient, path."""
    listed = xray_data.ARTICLE[xray_data.ARTICLE["class"] != "covid"]
    folder = again(MULTI, {}, "imports", "settings", "places", "download", "unzip")["DATASET"]
    names = listed["split"] + "/" + listed["class"] + "/" + listed["filename"]
    paths = [folder / name for name in names]
    return pd.DataFrame({"is_sick": listed["class"] != "normal", "patient": listed["patient"], "path": paths})


@functools.cache
def sick_features() -> np.ndarray:
    paths = children().query("is_sick")["path"]
    return xray.plain_features(lesson_of(BINARY)["conv_base"], paths, lesson_of(BINARY)["OUTPUT"])


def shape() -> dict:
    """Sick children against healthy ones by the width, height, and bytes of the file alone."""
    table = children()
    facts = [[*Image.open(path).size, path.stat().st_size] for path in table["path"]]
    labels = table["is_sick"].to_numpy().astype(int)
    folds = xray.patient_folds(labels, table["patient"], 42)
    model = make_pipeline(StandardScaler(), LogisticRegression())
    guesses = cross_val_predict(model, np.array(facts, float), labels, cv=folds, method="predict_proba")
    return {"auc": float(roc_auc_score(labels, guesses[:, 1])), "sick": int(labels.sum())}


def ask_head(head: keras.Model) -> dict:
    """Ask a head what Binary asks its model, by the lesson's own cells."""
    lesson = lesson_of(BINARY) | {"model": model_of(head), "article_head": head}
    cells = ("my-xray", "silly", "ladder", "score-controls", "swap-groups", "swap-all", "swap-run")
    lesson = again(BINARY, lesson, *cells)
    test = lesson["test"]
    found = {"test": right(head, lesson["features"][test], lesson["labels"][test])}
    found |= {source: scored["predicted_covid"] for source, scored in lesson["control_scores"].items()}
    found |= {f"silly, {name}": float(lesson["ask"](picture)) for name, picture in lesson["silly"].items()}
    for blur, black, normal, covid in lesson["ladder"].itertuples(index=False, name=None):
        found[f"ladder, {blur}, {black}, normal"] = normal
        found[f"ladder, {blur}, {black}, COVID-19"] = covid
    found["sick children"] = int((xray.predict_probabilities(head, sick_features()).argmax(axis=1) == 0).sum())
    for row in lesson["swap"].itertuples():
        found[f"swap, {row.share}, {row.blur}, {row.pair}"] = row.predicted_covid
    for name, picture in zip(("normal", "arrows", "no_arrows"), lesson["marked_pictures"]):
        found[f"marks, {name}"] = float(lesson["ask"](picture))
    return found


def heads() -> dict:
    found = []
    for seed in range(HEADS):
        found.append(ask_head(train_article_head(seed, lesson_of(BINARY)["NUM_EPOCHS"])))
        gc.collect()
    return gathered(found)


def marks() -> dict:
    """The control of the red arrows: the same shape, filled in elsewhere."""
    head = train_article_head(42, lesson_of(BINARY)["NUM_EPOCHS"])
    lesson = again(BINARY, lesson_of(BINARY) | {"model": model_of(head)}, "my-xray")
    picture = lesson["marked_pictures"][1]
    red, green, blue = picture.astype(int).transpose(2, 0, 1)
    is_red = (red - np.maximum(green, blue) > 40).astype("uint8")
    wide = cv2.dilate(is_red, np.ones((7, 7), "uint8"))
    rng, elsewhere = np.random.default_rng(42), []
    for _ in range(DRAWS):
        moved = np.roll(wide[:, :: rng.choice([-1, 1])], rng.integers(wide.shape), axis=(0, 1))
        filled = cv2.inpaint(picture, np.ascontiguousarray(moved), 5, cv2.INPAINT_TELEA)
        elsewhere.append(float(lesson["ask"](filled)))
    return {"elsewhere": elsewhere}


# -------------------------------------------------------------------------------------------- exercises


def exercises() -> dict:
    return {"binary": binary_exercises(), "multi": multi_exercises()}


def binary_exercises() -> dict:
    lesson, found = lesson_of(BINARY), {"2": {}, "3": {}}
    labels, test = lesson["labels"], lesson["test"]

    def run(number: int) -> dict:
        """Run the code of an exercise at the lesson's end; return all variables."""
        variables = dict(lesson)
        exec(exercise_code(BINARY, number), variables)
        return variables

    for epochs in (2, 5, 20):
        asked = ask_head(train_article_head(42, epochs))
        found["2"][f"{epochs} epochs"] = {name: asked[name] for name in ("test", "nih")}
    for share in (0.95, 0.98, 1):
        features = xray.plain_features(lesson["conv_base"], lesson["paths"], lesson["OUTPUT"], black=share)
        head = lesson["train_head"](features, labels, lesson["train"])
        found["3"][str(share)] = {"test": right(head, features[test], labels[test])}

    ran = run(4)
    left_out = len(lesson["train"]) - len(ran["others_train"])
    found["4"] = {"test": right(ran["other_head"], lesson["features"][test], labels[test]), "left_out": left_out}
    ran = run(5)
    by_group = ran["right_now"].groupby(ran["sources"])
    found["5"] = {name: {"right": int(hits.sum()), "n": len(hits)} for name, hits in by_group}
    found["6"] = {"right": int((run(6)["guesses"] == labels).sum())}
    ran = run(7)
    model, batches = ran["new_model"], ran["new_test"].batch(lesson["BATCH_SIZE"])
    accuracy = model.evaluate(batches, verbose=0)[1]
    found["7"] = {"test": round(accuracy * len(test)), "validation_accuracy": model.history.history["val_acc"][-1]}
    return found


def multi_exercises() -> dict:
    """A fifth of the epochs; other C."""
    lesson = lesson_of(MULTI) | {"LEARNING_RATE": 5e-4, "NUM_EPOCHS": 20}
    lesson["recipe_views"] = {"none": [lesson["plain_features"]]}
    lesson = again(MULTI, lesson, "train-head", "cross-validation", "logistic")

    labels, folds, found = lesson["labels"], lesson["folds"], {}
    for strength in (0.0001, 0.001, 0.01, 0.1, 1):
        model = lesson["logistic"].set_params(logisticregression__C=strength)
        guesses = cross_val_predict(model, lesson["pooled"], labels, cv=folds, method="predict_proba")
        found[str(strength)] = correct(guesses, labels)
    return {"1": {"right": correct(lesson["held_out"]["none"], labels)}, "2": found}


PARTS = {part.__name__: part for part in (heads, shape, marks, like_for_like, shuffled, exercises, seeds)}


def main(parts: list[str]) -> None:
    """Measure part by part, and save each."""
    if set(parts) - set(PARTS):
        sys.exit(__doc__)
    os.environ["COVID_XRAY_OUTPUT"] = str(OUTPUT / "chance")  # where the lessons write
    os.chdir(ROOT / "notebooks")  # where they run
    path = OUTPUT / "chance.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for part in parts or PARTS:
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            results[part] = PARTS[part]()
        results["about"] = {"dataset": lesson_of(BINARY)["files"]["dataset"], "keras": keras.__version__}
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"{part}: {time.perf_counter() - started:.0f} s, saved in {path}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
