"""Measure how far chance moves the lessons' numbers, and the numbers in the answers to their exercises.

    python tests/measure/chance.py [PART ...] [--trial]

Works on the article's images alone, found as the lessons find them, and runs the lessons' own cells by their ids.
  seeds          test sets, cross-validation, and controls, five seeds: other views, initial weights, orders, folds
  like_for_like  Binary's section 8, five seeds: other folds, initial weights, orders
  shuffled       section 8's last rows with labels shuffled over patients
  heads          the article's own training end to end, with the initial weights of 60 seeds
  exercises      the numbers in the answers to the exercises
What a part found goes to output/chance.json as it comes. A part that is there is skipped, unless you name it. One
that was interrupted goes on where it stopped. VGG16's features stay in output/features, where the lessons keep theirs.
--trial tries the program on phantoms: small images, two epochs, one seed, two heads. Its numbers mean nothing.
"""

import argparse
import contextlib
import functools
import gc
import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "notebooks"))
os.environ["MPLBACKEND"] = "agg"

import cv2  # noqa: E402
import joblib  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import xray  # noqa: E402
import xray_data  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402
from sklearn.model_selection import StratifiedKFold, cross_val_predict  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from xray import keras  # noqa: E402

OUTPUT = Path(os.environ.get("COVID_XRAY_OUTPUT") or ROOT / "output").resolve()
SEEDS, HEADS, POOL, SHUFFLES = [1, 2, 3, 4, 5], 60, 16, 100  # the lessons have seed 42 and 8 views
CELLS = {}  # the lessons' cells as they are when the program starts
for lesson_name in ("Binary", "Multi"):
    notebook = ROOT / "notebooks" / f"Covid19_GradientCrescent_{lesson_name}.ipynb"
    for notebook_cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        CELLS[lesson_name, notebook_cell["id"]] = "".join(notebook_cell["source"])
SETTINGS = {}  # a trial's own, in place of the lessons'
SILENT = SimpleNamespace(**{name: lambda *_: None for name in ("record", "show", "conclude")})  # in place of a Run
COMPARED = [("gentle", "article"), ("none", "article"), ("none", "gentle"), ("logistic", "article")]
COMPARED += [("logistic", "none")]
# Binary's exercise 7, line for line
EXERCISE_7 = """
keras.utils.set_random_seed(SEED)
read = keras.utils.image_dataset_from_directory
options = {"class_names": CLASS_NAMES, "label_mode": "binary", "batch_size": None}
options |= {"image_size": (IMAGE_SIZE, IMAGE_SIZE), "seed": SEED}
split = {"validation_split": VALIDATION_SPLIT, "subset": "both"}
new_train, new_valid = read(SMALL / "train", **options, **split)
new_test = read(SMALL / "test", **options)
augment = keras.Sequential([
    layers.RandomFlip(),
    layers.RandomRotation(50 / 360, fill_mode="constant"),  # of a full turn
    layers.RandomTranslation(0.2, 0.2, fill_mode="constant"),
    layers.RandomZoom(0.1, fill_mode="constant"),
])  # fmt: skip
new_train = new_train.cache().shuffle(len(new_train)).batch(BATCH_SIZE)
new_train = new_train.map(lambda x, y: (augment(x, training=True), y))
new_model = keras.Sequential([layers.Rescaling(1 / 255), conv_base, build_head()])
adam = keras.optimizers.Adam(learning_rate=LEARNING_RATE)
new_model.compile(adam, loss="binary_crossentropy", metrics=["acc"])
new_model.fit(new_train, validation_data=new_valid.batch(10), epochs=NUM_EPOCHS)
new_model.evaluate(new_test.batch(BATCH_SIZE))
"""


# ------------------------------------------------------------------------------------------ the lessons


def run_cells(lesson: dict, *names: str) -> dict:
    """Run cells of a lesson, by their ids, on its variables; lesson["LESSON"] is "Binary" or "Multi"."""
    for name in names:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(CELLS[lesson["LESSON"], name], f"{lesson['LESSON']}, cell {name}", "exec"), lesson)
        lesson.update(SETTINGS if name == "settings" else {})
    return lesson


def refuse_others(lesson: dict) -> None:
    """End the program unless these are the article's images and, once they are looked for, all of the controls."""
    if SETTINGS:
        return
    if lesson["files"]["dataset"] != xray_data.ARTICLE_NAME:
        sys.exit(f"Only the article's images are measured. {lesson['files']['sentence']}")
    for name, kind in lesson.get("KINDS", {}).items():
        found, listed = len(lesson["controls"].get(name, [])), len(xray_data.CONTROLS[kind])
        if found != listed:
            sys.exit(f"{found} of {listed} images are in data/{kind}. All are needed.")


@functools.cache
def binary_lesson() -> dict:
    """Return Binary's variables, as far as its sections need them; its `article_head` is not trained."""
    lesson = {"LESSON": "Binary", "xray": xray, "xray_data": xray_data, "run": SILENT}
    lesson["CLASS_NAMES"] = list(xray_data.LABELS)[:2]
    run_cells(lesson, "environment", "imports", "settings", "places", "shrink", "augmentation")
    run_cells(lesson, "conv-base", "model", "head")
    table = xray_data.list_table(lesson["DATASET"], lesson["VALIDATION_SPLIT"], lesson["CLASS_NAMES"])
    lesson |= {"table": table, "files": xray_data.check_files(lesson["DATASET"], table["file"])}
    refuse_others(lesson)
    lesson |= {"labels": table["label"].to_numpy(), "patients": table["patient"].to_numpy()}
    lesson |= {split: np.flatnonzero(table["split"] == split) for split in ("train", "test")}
    lesson["small_table"] = pd.DataFrame({"file": table["file"] + ".png"})
    lesson["features"] = plain_features(lesson, lesson["conv_base"])
    images = [cv2.imread(str(lesson["SMALL"] / name)) for name in lesson["small_table"]["file"]]
    lesson["small_images"] = [cv2.cvtColor(image, cv2.COLOR_BGR2RGB) / 255 for image in images]
    run_cells(lesson, "heads", "swap-center", "swap-pairs", "remove-red", "controls", "cross-validate")
    refuse_others(lesson)
    return lesson


def plain_features(lesson: dict, conv_base: keras.Model, black: float = 0.0) -> np.ndarray:
    """Return the features of Binary's images as they are, or with their centers black."""
    return xray.plain_features(conv_base, lesson["SMALL"], lesson["small_table"]["file"], OUTPUT, black)


@functools.cache
def multi_lesson() -> dict:
    """Return Multi's variables, as far as its cross-validation and its controls need them."""
    lesson = run_cells({"LESSON": "Multi"}, "environment", "imports", "settings", "places", "data")
    lesson["run"] = SILENT  # the lesson's own would write over the lesson's results
    refuse_others(lesson)
    run_cells(lesson, "examples", "cases", "augmentation", "conv-base", "head", "gentle", "train-head", "controls")
    refuse_others(lesson)
    lesson["CASES"]["two"] = lesson["CLASS_NAMES"][:2]
    names = lesson["table"]["small"]
    lesson["plain_features"] = xray.plain_features(lesson["conv_base"], lesson["SMALL"], names, OUTPUT)
    return lesson


def views_of(name: str, count: int) -> list[np.ndarray]:
    """Return the features of `count` views of Multi's images; the first 8 are the lesson's."""
    lesson = multi_lesson()
    datagen = lesson["train_datagen" if name == "article" else "gentle_datagen"]
    with contextlib.redirect_stdout(io.StringIO()):
        batches = lesson["batches_of"](datagen)
    return xray.extract_features(lesson["conv_base"], batches, OUTPUT, count)


def right(head: keras.Model, features: np.ndarray, labels: np.ndarray) -> int:
    """Return how many predictions of a head are right."""
    return int((xray.predict_probabilities(head, features).argmax(axis=1) == labels).sum())


# -------------------------------------------------------------------------------------------- the parts


def measure_seeds(once: Callable) -> dict:
    """Every comparison of Multi, and its test sets, over seeds."""
    multi = multi_lesson()
    found = summarize([once(f"seed {seed}", measure_seed, seed) for seed in SEEDS])
    cases = {f"test, {case}": len(multi["select"]("test", case)) for case in multi["CASES"]}
    answers = {f"{name}, right": int((table["answer"] != "").sum()) for name, table in multi["controls"].items()}
    groups = {name: len(table) for name, table in multi["controls"].items()}
    return {"n": {"cross-validated": len(multi["labels"]), **cases, **groups, **answers}, **found}


def measure_seed(seed: int) -> dict:
    """Draw one seed's views, train its heads, and score them."""
    multi, binary, found = run_cells(multi_lesson() | {"SEED": seed}, "train-head"), binary_lesson(), {}
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
    test = multi["select"]("test", "two")
    for name in ("article", "gentle", "none"):
        head, _ = xray.train_head(
            binary["build_head"], recipes[name], labels, multi["select"]("train", "two"), seed=seed,
            learning_rate=binary["LEARNING_RATE"], epochs=binary["NUM_EPOCHS"], batch_size=binary["BATCH_SIZE"],
        )  # fmt: skip
        found[f"test, two, {name}"] = right(head, plain[test], labels[test])

    folds = xray.patient_folds(labels, multi["patients"], seed)
    lesson = run_cells(multi | {"recipe_views": recipes, "folds": folds}, "cross-validation", "logistic")
    for name, guesses in lesson["held_out"].items():
        found[f"cross-validated, {name}"] = int((guesses.argmax(axis=1) == labels).sum())
    for name in ("article", "gentle"):
        found[f"on augmented views, {name}"] = float(lesson["on_views"][name].mean())
    for first, second in COMPARED:
        gain = found[f"cross-validated, {first}"] - found[f"cross-validated, {second}"]
        found[f"points, {first} - {second}"] = 100 * gain / len(labels)
    return found


def measure_like_for_like(once: Callable) -> dict:
    """COVID-19 against each group, over seeds."""
    found = [once(f"seed {seed}", like_for_like, seed) for seed in SEEDS]
    facts = {}
    for name, scored in found[0].items():
        counts = {key: scored[key] for key in ("n", "patients", "majority")}
        varied = [{key: seed[name][key] for key in ("correct", "accuracy", "auc")} for seed in found]
        facts[name] = counts | summarize(varied)
    return facts


def like_for_like(seed: int) -> dict:
    """Cross-validate the tasks of Binary's section 8 with one seed."""
    lesson = run_cells(binary_lesson() | {"SEED": seed}, "heads", "cross-validate")
    found = {}
    for name, (features, truth, people) in like_for_like_tasks(seed).items():
        guesses = lesson["cross_validate"](features, truth, people, f"{name}, seed {seed}")
        found[name] = xray.score(truth, guesses, people)
    return found


def like_for_like_tasks(seed: int) -> dict:
    """Return the tasks of Binary's section 8: features, labels, patients of each."""
    lesson = binary_lesson()
    lesson["black_features"] = {0.9: plain_features(lesson, lesson["conv_base"], 0.9)}
    return run_cells(lesson | {"SEED": seed}, "heads", "cross-validate", "tasks")["tasks"]


def measure_shuffled(once: Callable) -> dict:
    """COVID-19 against its own collection, with the labels shuffled over patients: what chance alone does.

    A logistic regression on features averaged over their positions stands in for a head, 100 times.
    """
    tasks = like_for_like_tasks(SEEDS[0])
    found = {}
    for name in ("same_collection", "same_collection_blackout"):
        features, labels, people = tasks[name]
        arguments = np.asarray(features).mean(axis=(1, 2)), np.asarray(labels), np.asarray(people)
        found[name] = once(name, shuffled_areas, *arguments)
    return {name: summarize([{"auc": area} for area in areas]) for name, areas in found.items()}


def shuffled_areas(features: np.ndarray, labels: np.ndarray, people: np.ndarray) -> list[float]:
    """Return 100 areas under the ROC curve, each cross-validated by patient on labels that were shuffled."""
    names, rows = np.unique(people, return_inverse=True)
    of_patient = np.array([labels[people == name][0] for name in names])
    areas = []
    for draw in range(SHUFFLES):
        shuffled = np.random.default_rng(draw).permutation(of_patient)[rows]
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        folds = xray.patient_folds(shuffled, people, draw)
        guesses = cross_val_predict(model, features, shuffled, cv=folds, method="predict_proba")
        areas.append(float(roc_auc_score(shuffled == 0, guesses[:, 0])))
    return areas


def measure_heads(once: Callable) -> dict:
    """The article's training end to end, by Keras's `fit`, with other initial weights.

    The base is frozen. So VGG16 runs once over the 20 epochs' batches that `fit` draws with seed 42, in its order,
    and each head trains on these very batches, from the weights that the lesson's model has with its own seed. With
    seed 42, that is Part 1's model, but for float32's last digits.
    """
    lesson, (pairs, _) = binary_lesson(), swapped_features()
    found = []
    for seed in range(HEADS):
        found.append(once(f"head {seed}", measure_head, seed))
        gc.collect()
    counts = {"test": len(lesson["test"]), **pairs[pairs["share"] == 0.5]["pair"].value_counts()}
    counts |= {lesson["SOURCES"][name]: len(table) for name, table in lesson["controls"].items()}
    return {"n": counts, **summarize(found)}


def measure_head(seed: int) -> dict:
    """Train one head of the article's model and ask it everything."""
    (trained,) = train_article_heads(seed, [binary_lesson()["NUM_EPOCHS"]])
    found = ask_head(trained)
    pairs, swapped = swapped_features()
    is_covid = xray.predict_probabilities(trained, swapped).argmax(axis=1) == 0
    for (share, name), rows in pairs.groupby(["share", "pair"]).indices.items():
        found[f"swap, {share}, {name}"] = int(is_covid[rows].sum())
    for name, features in marks_features().items():
        found[f"marks, {name}"] = float(xray.predict_probabilities(trained, features[None])[0, 0])
    if seed < 5:
        found["heat_maps_correlation"] = correlate_maps(trained)
    return found


def ask_head(head: keras.Model) -> dict:
    """Return the test images that a binary head gets right, and the controls that it predicts COVID-19."""
    lesson = binary_lesson()
    test = lesson["test"]
    found = {"test": right(head, lesson["features"][test], lesson["labels"][test])}
    for name, controls in lesson["controls"].items():
        scored = xray.score_controls(head, lesson["control_features"][name], controls, lesson["CLASS_NAMES"])
        found[lesson["SOURCES"][name]] = scored["predicted_covid"]
    return found


def train_article_heads(seed: int, stops: list[int]) -> list[keras.Model]:
    """Train the head of Part 1's model, its initial weights from `seed`; return it as it is after some epochs."""
    features, labels, first = fit_batches()
    lesson = dict(binary_lesson())
    keras.utils.set_random_seed(seed)
    run_cells(lesson, "conv-base", "model", "heads")  # VGG16 draws initial weights, too, as in the lesson
    lesson["model"] = lesson["article_head"]
    run_cells(lesson, "compile")
    head, heads = lesson["article_head"], []
    batches = [range(begin, end) for begin, end in zip(first, [*first[1:], len(labels)])]
    steps = len(batches) // lesson["NUM_EPOCHS"]
    for step, rows in enumerate(batches[: max(stops) * steps], start=1):
        head.train_on_batch(features[rows], labels[rows, None])
        if step % steps == 0 and step // steps in stops:
            heads.append(keras.models.clone_model(head))
            heads[-1].set_weights(head.get_weights())
    return heads


@functools.cache
def fit_batches() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the features of all batches that Part 1's `fit` draws, their labels, and the first row of each.

    The lesson's own cell draws them: in place of the model it fits one whose training step only keeps features. `fit`
    takes the batches of an epoch in an order from Python's `random`, which initial weights draw from, too. So the
    order is that of seed 42, as in the lesson; a lesson with another SEED would have other batches as well.
    """
    lesson = dict(binary_lesson())
    keras.utils.set_random_seed(lesson["SEED"])
    run_cells(lesson, "batches", "conv-base", "model", "compile")
    conv_base, kept = lesson["conv_base"], []

    class Keeper(keras.Model):
        def train_step(self, data: tuple) -> dict:
            images, labels = data[:2]
            kept.append((conv_base(images, training=False).numpy(), labels.numpy().ravel()))
            return {"loss": 0.0}

        def test_step(self, data: tuple) -> dict:
            return {"loss": 0.0}

    call = xray.hash_of_call(conv_base, lesson["train_batches"])
    path = OUTPUT / "features" / f"{call}_fit_{lesson['NUM_EPOCHS']}.npz"
    if not path.exists():
        print(f"VGG16, {lesson['NUM_EPOCHS']} epochs of {lesson['train_batches'].n} images", flush=True)
        lesson["model"] = Keeper()
        lesson["model"].compile(run_eagerly=True)
        run_cells(lesson, "fit")
        features, labels = (np.concatenate(parts) for parts in zip(*kept))
        first = np.cumsum([0, *(len(part) for _, part in kept)])[:-1]
        np.savez(path, features=features, labels=labels, first=first)
    with np.load(path) as file:
        return file["features"], file["labels"], file["first"]


@functools.cache
def swapped_features() -> tuple[pd.DataFrame, np.ndarray]:
    """Return Binary's swapped pairs (share, pair, frame, center), and their features."""
    lesson = binary_lesson()
    images, pairs = lesson["small_images"], []
    for share in (0.5, 0.7, 0.9):
        for name, (frames, centers) in lesson["PAIRS"].items():
            pairs += [(share, name, f, c) for f in frames for c in centers if f != c]
    swapped = [lesson["swap_center"](images[f], images[c], share) for share, _, f, c in pairs]
    table = pd.DataFrame(pairs, columns=["share", "pair", "frame", "center"])
    return table, features_of(np.stack(swapped), "swap")


@functools.cache
def marks_features() -> dict[str, np.ndarray]:
    """Return the features of Binary's three pictures of section 6; none of them where they are not there."""
    lesson, names = binary_lesson(), ["normal", "arrows", "without arrows"]
    small = [cv2.resize(image, lesson["size"], interpolation=cv2.INTER_NEAREST_EXACT) for image in lesson["pictures"]]
    return dict(zip(names, features_of(np.stack(small) / 255, "marks"))) if len(small) == 3 else {}


def features_of(images: np.ndarray, name: str) -> np.ndarray:
    """Return the features of images, float (n, size, size, 3), 0 to 1; kept on disk."""
    lesson = binary_lesson()
    path = OUTPUT / "features" / f"{joblib.hash([images, lesson['conv_base'].get_weights()])}_{name}.npy"
    if not path.exists():
        print(f"VGG16, {len(images)} images: {name}", flush=True)
        np.save(path, lesson["conv_base"].predict(images, lesson["BATCH_SIZE"], verbose=0))
    return np.load(path)


def correlate_maps(trained: keras.Model) -> float:
    """Return how a head's heat maps of four X-rays correlate with those of an untrained head: the mean of the four."""
    lesson = binary_lesson()
    shown = [*lesson["covid_rows"][:2], *lesson["normal_rows"][:2]]
    images = np.stack([lesson["small_images"][row] for row in shown])
    classes = xray.predict_probabilities(trained, lesson["features"][shown]).argmax(axis=1)
    keras.utils.set_random_seed(lesson["SEED"])
    heads = [trained, lesson["build_head"]()]
    maps = zip(*(xray.hires_cam(lesson["conv_base"], head, images, classes) for head in heads))
    return float(np.mean([np.corrcoef(first.ravel(), second.ravel())[0, 1] for first, second in maps]))


def cross_validate_four(views: list[np.ndarray], **settings: float) -> dict:
    """Cross-validate Multi's four classes with the lesson's seed and other settings; X-rays as they are."""
    multi = run_cells(multi_lesson() | {"SEED": 42} | settings, "train-head")
    labels, found, fitted = multi["labels"], 0, []
    for train, out in xray.patient_folds(labels, multi["patients"], 42):
        head, history = multi["train_head"]("four", views, train)
        found += right(head, multi["plain_features"][out], labels[out])
        fitted.append(history["acc"].iloc[-1])
    return {"right": found, "n": len(labels), "training_accuracy": float(np.mean(fitted))}


def measure_exercises(once: Callable) -> dict:
    """The numbers in the answers to the exercises."""
    measures = [stopped, frames, without_patients, remedy, random_weights, other_pixels, new_pipeline]
    found = {"binary": {}, "multi": once("multi", multi_exercises)}
    for number, measure in enumerate(measures, start=1):
        found["binary"][str(number)] = once(f"binary {number}", measure)
    return found


def stopped() -> dict:
    """Part 1's model, stopped early."""
    stops = [epochs for epochs in (2, 5, 20) if epochs <= binary_lesson()["NUM_EPOCHS"]]
    return {f"{epochs} epochs": ask_head(head) for epochs, head in zip(stops, train_article_heads(42, stops))}


def frames() -> dict:
    """Heads that see a thin frame alone."""
    lesson, found = binary_lesson(), {}
    for share in (0.95, 0.98, 1):
        found[str(share)] = test_and_cross_validated(plain_features(lesson, lesson["conv_base"], share))
    return found


def test_and_cross_validated(features: np.ndarray) -> dict:
    """Return what a head trained as in Binary's Part 2 gets right: of the test images, and cross-validated."""
    lesson = binary_lesson()
    labels, test = lesson["labels"], lesson["test"]
    head = lesson["train_head"](features, labels, lesson["train"])
    guesses = lesson["cross_validate"](features, labels, lesson["patients"])
    found = {"test": right(head, features[test], labels[test]), "n": len(test)}
    return found | {"cross_validated": int((guesses.argmax(axis=1) == labels).sum()), "cross_validated_n": len(labels)}


def without_patients() -> dict:
    """A head that has seen none of the test set's patients."""
    lesson = binary_lesson()
    train, test = lesson["train"], lesson["test"]
    others = train[~np.isin(lesson["patients"][train], lesson["patients"][test])]
    head = lesson["train_head"](lesson["features"], lesson["labels"], others)
    found = {"test": right(head, lesson["features"][test], lesson["labels"][test]), "n": len(test)}
    return found | {"left_out": len(train) - len(others)}


def remedy() -> dict:
    """COVID-19 against everyone else, cross-validated: right and all, by group."""
    lesson = binary_lesson()
    everyone = np.concatenate([lesson["features"], *lesson["control_features"].values()])
    people = np.concatenate([lesson["patients"], *(found["patient"] for found in lesson["controls"].values())])
    groups = list(lesson["table"]["class"])
    for name, found in lesson["controls"].items():
        groups += [lesson["SOURCES"][name]] * len(found)
    truth = (np.array(groups) != "covid").astype(int)
    hits = lesson["cross_validate"](everyone, truth, people).argmax(axis=1) == truth
    return {name: {"right": int(found.sum()), "n": len(found)} for name, found in pd.Series(hits).groupby(groups)}


def random_weights() -> dict:
    """VGG16 that has never seen a photograph."""
    lesson = binary_lesson()
    keras.utils.set_random_seed(42)
    base = keras.applications.VGG16(weights=None, include_top=False, input_shape=lesson["conv_base"].input_shape[1:])
    return test_and_cross_validated(plain_features(lesson, base))


def other_pixels() -> dict:
    """The pixels that VGG16 was trained on."""
    lesson = binary_lesson()
    datagen = lesson["ImageDataGenerator"](preprocessing_function=keras.applications.vgg16.preprocess_input)
    batches = datagen.flow_from_dataframe(
        lesson["small_table"], lesson["SMALL"], x_col="file", class_mode=None, batch_size=lesson["BATCH_SIZE"],
        target_size=lesson["size"], shuffle=False,
    )  # fmt: skip
    return test_and_cross_validated(xray.extract_features(lesson["conv_base"], batches, OUTPUT)[0])


def new_pipeline() -> dict:
    """What replaces ImageDataGenerator, trained end to end."""
    lesson = dict(binary_lesson())
    exec(EXERCISE_7, lesson)
    model, n = lesson["new_model"], len(lesson["test"])
    accuracy = model.evaluate(lesson["new_test"].batch(lesson["BATCH_SIZE"]), verbose=0)[1]
    return {"test": round(accuracy * n), "n": n, "validation_accuracy": model.history.history["val_acc"][-1]}


def multi_exercises() -> dict:
    """Multi's three exercises: a fifth of the epochs; folds that ignore patients; other C."""
    multi = multi_lesson()
    labels = multi["labels"]
    epochs = min(20, multi["NUM_EPOCHS"])
    found = {"1": cross_validate_four([multi["plain_features"]], LEARNING_RATE=5e-4, NUM_EPOCHS=epochs)}
    folds = xray.patient_folds(labels, multi["patients"], 42)
    lesson = run_cells(multi | {"folds": folds, "held_out": {}}, "logistic")

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
        SETTINGS.update(IMAGE_SIZE=64, NUM_EPOCHS=2)
        globals().update(SEEDS=[1], HEADS=2, POOL=4, SHUFFLES=3)
    os.environ["COVID_XRAY_OUTPUT"] = str(OUTPUT)
    for name in ("COVID_XRAY_DATA", "VGG16_WEIGHTS"):
        if os.path.exists(os.environ.get(name, "")):
            os.environ[name] = os.path.abspath(os.environ[name])
    os.chdir(ROOT / "notebooks")  # where the lessons run
    path = OUTPUT / ("chance_trial.json" if options.trial else "chance.json")
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def save() -> None:
        text = json.dumps(results, indent=1, default=xray.as_plain) + "\n"
        xray_data.atomic_write(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))

    for part, measure in PARTS.items():
        if part in results and part not in options.parts or options.parts and part not in options.parts:
            continue
        pieces = results.setdefault("unfinished", {}).setdefault(part, {})

        def once(name: str, function: Callable, *arguments: object, part: str = part, pieces: dict = pieces) -> dict:
            if name not in pieces:
                started = time.perf_counter()
                pieces[name] = function(*arguments)
                save()
                print(f"{part}, {name}: {time.perf_counter() - started:.0f} s", flush=True)
            return pieces[name]

        results[part] = measure(once)
        lesson = binary_lesson()
        counts = {kind: lesson["files"][kind] for kind in ("article", "same_pixels", "other")}
        results["about"] = {"dataset": lesson["files"]["dataset"], "files": counts, "seeds": SEEDS, "heads": HEADS}
        results["about"] |= {"weights": xray.name_weights(lesson["conv_base"]), "keras": keras.__version__}
        del results["unfinished"][part]
        save()
        print(f"{part} is saved in {path}", flush=True)


PARTS = {name: globals()[f"measure_{name}"] for name in ("seeds", "like_for_like", "shuffled", "heads", "exercises")}

if __name__ == "__main__":
    main()
