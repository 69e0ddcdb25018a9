"""Measure how far chance moves the lessons' numbers, and the numbers in the answers to their exercises.

    python tests/measure/chance.py [PART ...] [--trial]

Works on the article's images alone, found as the lessons find them. First runs each lesson in full, but for one epoch;
then its functions, some of its cells, and the code of its exercises are used again.
  seeds          test sets, cross-validation, and controls, five seeds: other views, initial weights, orders, folds
  like_for_like  Binary's section 9, five seeds: other folds, initial weights, orders; and with whole pages in a fold
  shuffled       COVID-19 against its own collection, with labels shuffled over patients
  heads          the article's own training end to end, with the initial weights of 60 seeds, asked everything
  marks          the X-ray with red arrows, with as many pixels filled in elsewhere; arrows on the normal X-rays
  exercises      the numbers in the answers to the exercises
What a part found goes to output/chance.json as it comes. A part that is there is skipped, unless you name it. One
that was interrupted goes on where it stopped. What the lessons leave, features above all, stays in output/chance.
--trial tries the program on phantoms: small images, two epochs, one seed, two heads. Its numbers mean nothing.
"""

import argparse
import contextlib
import functools
import gc
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

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
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402
from sklearn.model_selection import StratifiedKFold, cross_val_predict  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from xray import keras  # noqa: E402

OUTPUT = Path(os.environ.get("COVID_XRAY_OUTPUT") or ROOT / "output").resolve()
LEFT = OUTPUT / "chance"  # where the lessons write
SEEDS, HEADS, POOL, SHUFFLES = [1, 2, 3, 4, 5], 60, 16, 100  # the lessons have seed 42 and 8 views
TRIAL = {}  # a trial's settings, in place of the lessons'
ONCE = {"NUM_EPOCHS": 1, "FINE_TUNE_EPOCHS": 1, "VIEWS_PER_IMAGE": 1}  # enough to have all variables


# ------------------------------------------------------------------------------------------ the lessons


@functools.cache
def binary_lesson() -> dict:
    return whole_lesson(BINARY)


@functools.cache
def multi_lesson() -> dict:
    """Return Multi's variables, and Binary's case among its cases."""
    lesson = whole_lesson(MULTI)
    lesson["CASES"]["two"] = lesson["CLASS_NAMES"][:2]
    return lesson


def whole_lesson(notebook: Path) -> dict:
    """Run a lesson for one epoch; return its variables, with its own number of epochs.

    Ends the program unless all images are the article's, and all of the controls are there.
    """
    epochs = (again(notebook, {}, "settings") | TRIAL)["NUM_EPOCHS"]
    with contextlib.redirect_stdout(io.StringIO()):
        lesson = run_lesson(notebook, TRIAL | ONCE)
    plt.close("all")
    if not TRIAL and lesson["files"]["dataset"] != xray_data.ARTICLE_NAME:
        sys.exit(f"Only the article's images are measured. {lesson['files']['sentence']}")
    for source, listed in {} if TRIAL else xray_data.CONTROLS.items():
        found = len(lesson["controls"].get(source, []))
        if found != len(listed):
            sys.exit(f"{found} of {len(listed)} images of {source} are in data/. All are needed.")
    lesson["NUM_EPOCHS"] = epochs  # for the lesson's functions, too
    return lesson


def again(notebook: Path, lesson: dict, *names: str) -> dict:
    """Run cells again on a copy of a lesson's variables; return the copy."""
    lesson = dict(lesson)
    with contextlib.redirect_stdout(io.StringIO()):
        for name in names:
            run_cell(notebook, name, lesson)
    return lesson


def views_of(name: str, count: int) -> list[np.ndarray]:
    """Return the features of `count` views of Multi's images; the first 8 are the lesson's."""
    lesson = multi_lesson()
    datagen = lesson["train_datagen" if name == "article" else "gentle_datagen"]
    with contextlib.redirect_stdout(io.StringIO()):
        batches = lesson["batches_of"](datagen)
    return xray.extract_features(lesson["conv_base"], batches, LEFT, count)


def right(head: keras.Model, features: np.ndarray, labels: np.ndarray) -> int:
    return int((xray.predict_probabilities(head, features).argmax(axis=1) == labels).sum())


# -------------------------------------------------------------------------------------------- the parts


def measure_seeds(once: Callable) -> dict:
    """Every comparison of Multi, and its test sets, over seeds."""
    multi = multi_lesson()
    found = summarize([once(f"seed {seed}", measure_seed, seed) for seed in SEEDS])
    n = {"cross-validated": len(multi["labels"])}
    for case in multi["CASES"]:
        n[f"test, {case}"] = len(multi["select"]("test", case))
    for group, controls in multi["controls"].items():
        n[group] = len(controls)
        n[f"{group}, right"] = int((controls["answer"] != "").sum())
    return {"n": n, **found}


def measure_seed(seed: int) -> dict:
    """Draw one seed's views, train its heads, and score them."""
    multi, binary, found = again(MULTI, multi_lesson() | {"SEED": seed}, "train-head"), binary_lesson(), {}
    labels, plain = multi["labels"], multi["plain_features"]
    drawn = np.random.default_rng(seed).permutation(POOL)[: POOL // 2]
    recipes = {name: [views_of(name, POOL)[view] for view in drawn] for name in ("article", "gentle")}
    recipes |= {"none": [plain]}

    for name, views in recipes.items():
        for case in ("three", "four"):
            head, _ = multi["train_head"](case, views, multi["select"]("train", case))
            test = multi["select"]("test", case)
            found[f"test, {case}, {name}"] = right(head, plain[test], labels[test])
        for group, controls in multi["controls"].items():  # by the head for four classes
            scored = xray.score_controls(head, multi["control_features"][group], controls, multi["CLASS_NAMES"])
            found[f"{group}, predicted COVID-19, {name}"] = scored["predicted_covid"]
            found[f"{group}, right, {name}"] = scored["with_right_answer"]["correct"]
        head, _ = xray.train_head(
            binary["build_head"], views, labels, multi["select"]("train", "two"), seed=seed,
            learning_rate=binary["LEARNING_RATE"], epochs=binary["NUM_EPOCHS"], batch_size=binary["BATCH_SIZE"],
        )  # fmt: skip
        test = multi["select"]("test", "two")
        found[f"test, two, {name}"] = right(head, plain[test], labels[test])

    folds = xray.patient_folds(labels, multi["patients"], seed)
    lesson = again(MULTI, multi | {"recipe_views": recipes, "folds": folds}, "cross-validation", "logistic")
    for name, guesses in lesson["held_out"].items():
        found[f"cross-validated, {name}"] = int((guesses.argmax(axis=1) == labels).sum())
    for name in ("article", "gentle"):
        found[f"on augmented views, {name}"] = float(lesson["on_views"][name].mean())
    for name in ("gentle", "none", "logistic"):
        gain = found[f"cross-validated, {name}"] - found["cross-validated, article"]
        found[f"points, {name} - article"] = 100 * gain / len(labels)
    return found


def measure_like_for_like(once: Callable) -> dict:
    found = [once(f"seed {seed}", like_for_like, seed) for seed in SEEDS]
    facts = {}
    for name, scored in found[0].items():
        varied = [{key: seed[name][key] for key in ("accuracy", "auc")} for seed in found]
        facts[name] = {"majority": scored["majority"]} | summarize(varied)
    return facts


def like_for_like(seed: int) -> dict:
    """Run Binary's section 9 with one seed, and its rows of the collection again with whole pages in a fold."""
    cells = ("heads", "cross-validate", "like-for-like", "no-image", "same-site")
    lesson = again(BINARY, binary_lesson() | {"SEED": seed}, *cells)
    found = lesson["like_for_like"]
    if lesson["same_site"]:
        found["same_site"] = {"auc": lesson["same_site"]["share"], "accuracy": 0.0, "majority": 0.5}
    for name in ("collection", "collection_black"):
        features, truth, people = lesson["tasks"][name]
        pages = np.append(lesson["record"]["page"], lesson["controls"]["collection"]["page"])
        pages = np.where(pd.isna(pages) | (pages == ""), people, pages)
        guesses = lesson["cross_validate"](features, truth, pages, f"{name}, pages, seed {seed}")
        found[f"{name}_pages"] = xray.score(truth, guesses, pages)
    return found


def measure_shuffled(once: Callable) -> dict:
    """COVID-19 against its own collection, with the labels shuffled over patients: what chance alone does.

    A logistic regression on features averaged over their positions stands in for a head, 100 times.
    """
    found = {}
    for name in ("collection", "collection_black"):
        features, labels, people = map(np.asarray, binary_lesson()["tasks"][name])
        areas = once(name, shuffled_areas, features.mean(axis=(1, 2)), labels, people)
        found[name] = {"true": areas[0], **summarize([{"auc": area} for area in areas[1:]])}
    return found


def shuffled_areas(features: np.ndarray, labels: np.ndarray, people: np.ndarray) -> list[float]:
    """Return an area under the ROC curve, cross-validated by patient, on the true labels, and 100 on shuffled ones."""
    names, rows = np.unique(people, return_inverse=True)
    of_patient = np.array([labels[people == name][0] for name in names])
    areas = []
    for draw in range(-1, SHUFFLES):
        shuffled = labels if draw < 0 else np.random.default_rng(draw).permutation(of_patient)[rows]
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        folds = xray.patient_folds(shuffled, people, max(draw, 0))
        guesses = cross_val_predict(model, features, shuffled, cv=folds, method="predict_proba")
        areas.append(float(roc_auc_score(shuffled == 0, guesses[:, 0])))
    return areas


def measure_heads(once: Callable) -> dict:
    """The article's training end to end, by Keras's `fit`, with other initial weights.

    The base is frozen. So VGG16 runs once over the 20 epochs' batches that `fit` draws with seed 42, in its order,
    and each head trains on these very batches, from the weights that the lesson's model has with its own seed. With
    seed 42, that is Part 1's model, but for float32's last digits.
    """
    lesson, found = binary_lesson(), []
    for seed in range(HEADS):
        found.append(once(f"head {seed}", lambda seed=seed: ask_head(train_article_head(seed, lesson["NUM_EPOCHS"]))))
        gc.collect()
    n = {"test": len(lesson["test"]), **{source: len(table) for source, table in lesson["controls"].items()}}
    n |= {f"swap, {row.share}, {row.blur}, {row.pair}": row.n for row in lesson["swap"].itertuples()}
    return {"n": n, **summarize(found)}


class HeadModel:
    """A head that takes images: VGG16's features of them are computed once, for all heads."""

    def __init__(self, head: keras.Model) -> None:
        self.head = head

    def predict(self, images: np.ndarray, **_: object) -> np.ndarray:
        """Return the probability of normal, float (n, 1), of images, 0 to 1."""
        return np.asarray(self.head(features_of(np.asarray(images, np.float32))))


def ask_head(head: keras.Model) -> dict:
    """Ask a binary head all that Binary asks its model, by the lesson's own cells."""
    lesson = binary_lesson()
    cells = ["my-xray", "silly", "silly-figure", "ladder", "score-controls", "swap-groups", "swap-all", "swap-run"]
    asked = again(BINARY, lesson | {"model": HeadModel(head), "article_head": head}, *cells)
    test = lesson["test"]
    found = {"test": right(head, lesson["features"][test], lesson["labels"][test])}
    found |= {source: scored["predicted_covid"] for source, scored in asked["control_scores"].items()}
    found |= {f"silly, {name}": float(p) for name, p in asked["silly_answers"].items()}
    for blur, black, normal, covid in asked["ladder"].itertuples(index=False, name=None):
        found[f"ladder, {blur}, {black}, normal"] = normal
        found[f"ladder, {blur}, {black}, COVID-19"] = covid
    for row in asked["swap"].itertuples():
        found[f"swap, {row.share}, {row.blur}, {row.pair}"] = row.predicted_covid
    for name, picture in zip(("normal", "arrows", "no_arrows"), lesson["marked_pictures"]):
        found[f"marks, {name}"] = float(asked["ask"](picture))
    return found


def measure_marks(once: Callable) -> dict:
    """The controls of the red arrows: as many pixels filled in elsewhere, and the arrows on the normal X-rays."""
    return {"42": once("head 42", ask_about_marks)} if len(binary_lesson()["marked_pictures"]) == 3 else {}


def ask_about_marks() -> dict:
    lesson = binary_lesson()
    head = train_article_head(42, lesson["NUM_EPOCHS"])
    ask = again(BINARY, lesson | {"model": HeadModel(head)}, "my-xray")["ask"]
    picture = lesson["marked_pictures"][1]
    red, green, blue = picture.astype(int).transpose(2, 0, 1)
    is_red = (red - np.maximum(green, blue) > 40).astype("uint8")
    wide = cv2.dilate(is_red, np.ones((7, 7), "uint8"))
    rng, elsewhere = np.random.default_rng(42), []
    for _ in range(SHUFFLES):
        moved = np.roll(wide[:, :: rng.choice([-1, 1])], rng.integers(wide.shape), axis=(0, 1))
        elsewhere.append(float(ask(cv2.inpaint(picture, np.ascontiguousarray(moved), 5, cv2.INPAINT_TELEA))))
    before, after = [], []
    for path in np.array(lesson["test_batches"].filepaths)[lesson["truth"] == 1]:
        child = np.asarray(keras.utils.load_img(path))
        height, width = child.shape[:2]
        mask = cv2.resize(is_red, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        before.append(float(ask(child)))
        after.append(float(ask(np.where(mask[..., None], (200, 40, 40), child))))
    return {"elsewhere": elsewhere, "normal, before": before, "normal, with arrows": after}


def train_article_head(seed: int, epochs: int) -> keras.Model:
    """Train the head of Part 1's model for some epochs, its initial weights from `seed`."""
    features, labels, ends = fit_batches()
    keras.utils.set_random_seed(seed)
    lesson = again(BINARY, binary_lesson(), "conv-base", "model")  # VGG16 draws, too, as in the lesson
    head = keras.Sequential([keras.Input(features.shape[1:]), *lesson["model"].layers[1:]])
    again(BINARY, lesson | {"model": head}, "compile")
    steps = epochs * (len(ends) - 1) // lesson["NUM_EPOCHS"]
    for begin, end in zip(ends[:steps], ends[1:]):
        head.train_on_batch(features[begin:end], labels[begin:end, None])
    return head


@functools.cache
def fit_batches() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the features of all batches that Part 1's `fit` draws, their labels, and the rows where they end.

    The lesson itself draws them: in place of the model it fits one whose training step only keeps features. `fit`
    takes the batches of an epoch in an order from Python's `random`, so it is that of seed 42, as in the lesson.
    """
    conv_base, kept = binary_lesson()["conv_base"], []

    class Keeper(keras.Model):
        def train_step(self, data: tuple) -> dict:
            images, labels = data[:2]
            kept.append((conv_base(images, training=False).numpy(), labels.numpy().ravel()))
            return {"loss": 0.0}

        def test_step(self, data: tuple) -> dict:
            return {"loss": 0.0}

    def replace_model(name: str, lesson: dict) -> None:
        if name == "fit":
            lesson["model"] = Keeper()
            lesson["model"].compile(run_eagerly=True)

    epochs = binary_lesson()["NUM_EPOCHS"]
    known = [binary_lesson()[name] for name in ("test_images", "SEED", "BATCH_SIZE")]
    known += [vars(binary_lesson()["train_datagen"]), conv_base.get_weights(), epochs]
    path = LEFT / f"fit_{joblib.hash(known)}.npz"
    if not path.exists():
        print(f"VGG16, {epochs} epochs", flush=True)
        with contextlib.redirect_stdout(io.StringIO()):
            run_lesson(BINARY, TRIAL, last="fit", before=replace_model)
        features, labels = (np.concatenate(parts) for parts in zip(*kept))
        ends = np.cumsum([0, *(len(part) for _, part in kept)])
        np.savez(path, features=features, labels=labels, ends=ends)
    with np.load(path) as file:
        return file["features"], file["labels"], file["ends"]


def features_of(images: np.ndarray) -> np.ndarray:
    """Return the features of images, float (n, size, size, 3), 0 to 1; kept on disk."""
    conv_base = binary_lesson()["conv_base"]
    path = LEFT / f"{joblib.hash([images, weights_hash()])}.npy"
    if not path.exists():
        np.save(path, conv_base.predict(images, binary_lesson()["BATCH_SIZE"], verbose=0))
    return np.load(path)


@functools.cache
def weights_hash() -> str:
    return xray.weights_sha256(binary_lesson()["conv_base"])


def measure_exercises(once: Callable) -> dict:
    measures = {2: stopped, 3: frames, 4: without_patients, 5: remedy, 6: other_features, 7: new_pipeline}
    binary = {str(number): once(f"binary {number}", measure) for number, measure in measures.items()}
    return {"binary": binary, "multi": once("multi", multi_exercises)}


def run_exercise(number: int, old: str = "", new: str = "") -> tuple[dict, list[int]]:
    """Run the code of one of Binary's exercises at the lesson's end; return its variables, and "a of n" as printed.

    old, new: what the exercise asks to change in it.
    """
    code, lesson, printed = exercise_code(BINARY, number), dict(binary_lesson()), io.StringIO()
    assert old in code
    with contextlib.redirect_stdout(printed):
        exec(code.replace(old, new), lesson)
    return lesson, [int(word) for pair in re.findall(r"(\d+) of (\d+)", printed.getvalue()) for word in pair]


def stopped() -> dict:
    """Part 1's model, stopped early."""
    stops, found = [epochs for epochs in (2, 5, 20) if epochs <= binary_lesson()["NUM_EPOCHS"]], {}
    for epochs in stops:
        asked = ask_head(train_article_head(42, epochs))
        found[f"{epochs} epochs"] = {name: asked[name] for name in ("test", "nih", "collection") if name in asked}
    return found


def frames() -> dict:
    """Heads that see a thin frame alone: right of the test images."""
    lesson, found = binary_lesson(), {}
    labels, test = lesson["labels"], lesson["test"]
    for share in (0.95, 0.98, 1):
        features = xray.plain_features(lesson["conv_base"], lesson["paths"], LEFT, black=share)
        head = lesson["train_head"](features, labels, lesson["train"])
        found[str(share)] = {"test": right(head, features[test], labels[test])}
    return found


def without_patients() -> dict:
    """A head that has seen none of the test set's patients."""
    lesson, (correct, n) = run_exercise(4)
    return {"test": correct, "n": n, "left_out": len(lesson["train"]) - len(lesson["others_train"])}


def remedy() -> dict:
    """COVID-19 against everyone else, cross-validated: right and all, by group."""
    lesson, _ = run_exercise(5)
    by_group = lesson["right_now"].groupby(lesson["sources"])
    return {name: {"right": int(hits.sum()), "n": len(hits)} for name, hits in by_group}


def other_features() -> dict:
    """VGG16 that has never seen a photograph, and one that sees the pixels that it was trained on."""
    names = ("test", "n", "cross_validated", "cross_validated_n")
    code = exercise_code(BINARY, 6)
    (random,) = re.findall(r"VGG16\(weights=None.*\)\n", code)
    preprocessed = "ImageDataGenerator(preprocessing_function=keras.applications.vgg16.preprocess_input)"
    own = code.replace(random, "conv_base\n").replace("datagen = test_datagen", f"datagen = {preprocessed}")
    return {
        "random": dict(zip(names, run_exercise(6)[1])),
        "own pixels": dict(zip(names, run_exercise(6, code, own)[1])),
    }


def new_pipeline() -> dict:
    """What replaces ImageDataGenerator, trained end to end."""
    lesson, _ = run_exercise(7)
    model, n = lesson["new_model"], len(lesson["test"])
    accuracy = model.evaluate(lesson["new_test"].batch(lesson["BATCH_SIZE"]), verbose=0)[1]
    return {"test": round(accuracy * n), "n": n, "validation_accuracy": model.history.history["val_acc"][-1]}


def multi_exercises() -> dict:
    """Multi's three exercises: a fifth of the epochs; folds that ignore patients; other C."""
    multi = multi_lesson()
    labels, plain = multi["labels"], multi["plain_features"]
    folds = xray.patient_folds(labels, multi["patients"], 42)
    quick = multi | {"SEED": 42, "LEARNING_RATE": 5e-4, "NUM_EPOCHS": min(20, multi["NUM_EPOCHS"])}
    train_head = again(MULTI, quick, "train-head")["train_head"]
    correct = sum(right(train_head("four", [plain], train)[0], plain[out], labels[out]) for train, out in folds)
    found = {"1": {"right": correct, "n": len(labels)}}
    lesson = again(MULTI, multi | {"folds": folds}, "logistic")

    def logistic(strength: float, cv: object) -> int:
        model = lesson["logistic"].set_params(logisticregression__C=strength)
        return int((cross_val_predict(model, lesson["pooled"], labels, cv=cv) == labels).sum())

    found["2"] = {"ignoring patients": logistic(0.01, StratifiedKFold(5, shuffle=True, random_state=42))}
    found["3"] = {str(strength): logistic(strength, folds) for strength in (0.0001, 0.001, 0.01, 0.1, 1)}
    return found


# ------------------------------------------------------------------------------------------- the record


def summarize(found: list[dict]) -> dict:
    """Return mean, standard deviation, and values of each number over several measurements."""
    facts = {}
    for name in found[0]:
        values = [each[name] for each in found if name in each]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        facts[name] = {"mean": float(np.mean(values)), "sd": spread, "values": values}
    return facts


def main() -> None:
    """Measure part by part; save each piece as it comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)}; default: those missing")
    parser.add_argument("--trial", action="store_true", help="try the program on phantoms")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if options.trial:
        TRIAL.update(IMAGE_SIZE=64, NUM_EPOCHS=2)
        globals().update(SEEDS=[1], HEADS=2, POOL=4, SHUFFLES=3)
    os.environ["COVID_XRAY_OUTPUT"] = str(LEFT)
    os.chdir(ROOT / "notebooks")  # where the lessons run
    path = OUTPUT / ("chance_trial.json" if options.trial else "chance.json")
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def save() -> None:
        text = json.dumps(results, indent=1, default=lambda value: value.tolist()) + "\n"
        xray_data.atomic_write(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))

    for part in options.parts or [part for part in PARTS if part not in results]:
        pieces = results.setdefault("unfinished", {}).setdefault(part, {})

        def once(name: str, function: Callable, *arguments: object, part: str = part, pieces: dict = pieces) -> dict:
            if name not in pieces:
                started = time.perf_counter()
                pieces[name] = function(*arguments)
                save()
                print(f"{part}, {name}: {time.perf_counter() - started:.0f} s", flush=True)
            return pieces[name]

        results[part] = PARTS[part](once)
        results["about"] = {"dataset": binary_lesson()["files"]["dataset"], "keras": keras.__version__}
        del results["unfinished"][part]
        save()
        print(f"{part} is saved in {path}", flush=True)


PARTS = {
    name: globals()[f"measure_{name}"] for name in ("heads", "marks", "like_for_like", "shuffled", "exercises", "seeds")
}

if __name__ == "__main__":
    main()
