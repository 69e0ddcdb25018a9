"""Each statistic against a case worked out by hand; the article's set by its manifest."""

import cv2
import dataset
import keras
import numpy as np
import pandas as pd
import pytest
import xray
from conftest import ROOT
from scipy.stats import beta, hypergeom

FOUR = ["covid", "normal", "pneumonia_bac", "pneumonia_vir"]
NEJM = "nejmoa2001191"


@pytest.fixture(scope="module")
def manifest():
    """Return the rows of data/manifest.csv."""
    return pd.read_csv(ROOT / "data" / "manifest.csv", dtype=str, keep_default_na=False)


@pytest.fixture(scope="module")
def named(tmp_path_factory, manifest):
    """Return a folder with a gray square under each of the article's 306 names."""
    folder = tmp_path_factory.mktemp("named")
    rows = manifest[manifest["split"] != "control"]
    return write_images(folder, *map("/".join, rows[["split", "class", "filename"]].values))


def write_images(folder, *files):
    """Write a gray square under each of `files`, relative to `folder`, which is returned."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / file), np.full((8, 8, 3), 99, np.uint8))
    return folder


def test_exact_interval():
    """Clopper-Pearson: 18 of 18 gives (alpha/2)^(1/18) to 1; 9 of 18 the quantiles of two betas."""
    assert xray.exact_interval(18, 18) == pytest.approx([0.025 ** (1 / 18), 1])
    assert xray.exact_interval(0, 18) == pytest.approx([0, 1 - 0.025 ** (1 / 18)])
    expected = [beta.ppf(0.025, 9, 10), beta.ppf(0.975, 10, 9)]
    assert xray.exact_interval(9, 18) == pytest.approx(expected)
    assert xray.exact_interval(0, 0) == [0, 1]
    assert xray.exact_interval(2, 2)[0] == pytest.approx(0.16, abs=0.005)  # the article's 2 of 18


def test_patient_interval():
    """One image a patient gives nearly the normal interval; one patient gives no width."""
    values = np.array([0.0, 1.0] * 50)
    low, high = xray.patient_interval(lambda rows: values[rows].mean(), np.arange(100))
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.05, 0.5 + 1.96 * 0.05), abs=0.02)
    assert xray.patient_interval(lambda rows: values[rows].mean(), ["p"] * 100) == [0.5, 0.5]
    assert xray.patient_interval(lambda rows: 0.25, np.arange(9)) == [0.25, 0.25]
    again = xray.patient_interval(lambda rows: values[rows].mean(), np.arange(100))
    assert again == [low, high]


def test_patients_who_agree_with_themselves_widen_the_interval():
    """Five images a patient that are all right or all wrong weigh as one: sqrt(5) times as wide."""
    right = np.repeat(np.arange(40) % 2, 5).astype(float)

    def width(patients):
        low, high = xray.patient_interval(lambda rows: right[rows].mean(), patients)
        return high - low

    ratio = width(np.repeat(np.arange(40), 5)) / width(np.arange(200))
    assert ratio == pytest.approx(5**0.5, rel=0.15)


def test_a_patient_is_drawn_with_all_images():
    """Two patients, with one and three images, make three different draws."""
    seen = set()

    def note(rows):
        seen.add(tuple(sorted(rows)))
        return 0.0

    xray.patient_interval(note, ["a", "b", "b", "b"])
    assert seen == {(0, 0), (0, 1, 2, 3), (1, 1, 2, 2, 3, 3)}


def test_score_by_hand():
    """Four images of three patients: one COVID-19 image is missed; the AUC is 3 of 4 pairs."""
    labels = np.array([0, 0, 1, 1])
    covid = np.array([0.9, 0.2, 0.1, 0.4])
    scored = xray.score(labels, np.stack([covid, 1 - covid], axis=1), ["a", "b", "c", "c"])
    assert (scored["n"], scored["patients"], scored["correct"]) == (4, 3, 3)
    assert (scored["accuracy"], scored["majority"]) == (0.75, 0.5)
    assert scored["confusion"] == [[1, 1], [0, 2]]
    assert scored["ci95"] == xray.exact_interval(3, 4)
    assert scored["auc"] == 0.75 and scored["auc_ci95"][0] <= 0.75 <= scored["auc_ci95"][1]
    text = xray.describe({**scored, "ci95": [0.1, 0.9]})
    assert text == "3 of 4 = 75% (95% confidence interval 10% to 90%)"


def test_score_of_more_classes_and_by_patient():
    """Three classes have a majority and no AUC; by patient, one of ten patients weighs a tenth."""
    labels = np.array([0, 1, 1, 2])
    scored = xray.score(labels, np.eye(3)[[0, 1, 2, 2]], list("abcd"))
    assert scored["majority"] == 0.5 and "auc" not in scored
    assert scored["confusion"] == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]
    patients = np.repeat(np.arange(10), 10)
    wrong = np.where(patients == 0, 1, 0)
    exact = xray.score(np.zeros(100, int), np.eye(2)[wrong], patients)
    drawn = xray.score(np.zeros(100, int), np.eye(2)[wrong], patients, by_patient=True)
    assert exact["ci95"] == xray.exact_interval(90, 100)
    assert drawn["ci95"] == pytest.approx([0.7, 1.0], abs=0.011)
    assert np.isnan(drawn["auc"])  # one class alone has no ROC curve


def test_difference_is_paired():
    """Equal predictions differ by exactly 0; one image of four gained is 25 points."""
    right = np.array([1, 0, 1, 1], bool)
    same = xray.difference(right, right, list("abcd"))
    assert same == {"difference": 0.0, "ci95": [0.0, 0.0]}
    gained = xray.difference(np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0]), list("abcd"))
    assert gained["difference"] == 0.25 and gained["ci95"] == [0.0, 0.75]
    lost = xray.difference(np.array([1, 0, 0, 0]), np.array([1, 1, 0, 0]), list("abcd"))
    assert lost["difference"] == -0.25
    one_patient = xray.difference(np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0]), ["a"] * 4)
    assert one_patient["ci95"] == [0.25, 0.25]


def test_sensitivity_and_specificity():
    """Of 9 COVID-19 images 8 are found; 3 of 18 others are taken for it."""
    table = xray.sensitivity_table([[8, 1, 0], [2, 7, 0], [1, 0, 8]], ["covid", "normal", "x"])
    assert table.loc["COVID-19", "sensitivity"] == "8 of 9 = 89% (52% to 100%)"
    assert table.loc["COVID-19", "specificity"].startswith("15 of 18 = 83%")
    assert table.loc["x", "specificity"].startswith("18 of 18 = 100%")


def test_folds_hold_patients_together(manifest):
    """Five folds of the article's 306 images: each image once, no patient on both sides."""
    rows = manifest[manifest["split"] != "control"]
    labels = rows["class"].map(FOUR.index).to_numpy()
    patients = rows["patient"].to_numpy()
    folds = xray.grouped_folds(labels, patients)
    assert len(folds) == 5
    assert sorted(np.concatenate([out for _, out in folds])) == list(range(306))
    for train, out in folds:
        assert not set(patients[train]) & set(patients[out])
        assert len(train) + len(out) == 306 and set(labels[out]) == {0, 1, 2, 3}
    twice = xray.grouped_folds(labels, patients)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(folds, twice))
    other = xray.grouped_folds(labels, patients, seed=1)
    assert not all(np.array_equal(a[1], b[1]) for a, b in zip(folds, other))


@pytest.mark.parametrize("people", [1, 2, 3, 4, 5])
def test_few_patients_make_few_folds(people, capsys):
    """Two to four patients in a class are a message; one is a Problem."""
    labels = np.repeat([0, 1], [2 * people, 12])
    patients = [f"a{k // 2}" for k in range(2 * people)] + [f"b{k}" for k in range(12)]
    if people == 1:
        with pytest.raises(dataset.Problem, match=r"patients\.csv"):
            xray.grouped_folds(labels, patients)
        return
    folds = xray.grouped_folds(labels, patients)
    assert len(folds) == people
    assert all(set(labels[train]) == {0, 1} for train, _ in folds)
    assert capsys.readouterr().out.startswith(f"{people} folds instead of 5") == (people < 5)


def test_patients_of_the_article_come_from_the_manifest(named, manifest):
    """Every patient of the manifest, no more and no fewer; without any patients.csv."""
    rows = manifest[manifest["split"] != "control"]
    files = list(map("/".join, rows[["split", "class", "filename"]].values))
    assert dataset.patients_of(named, files) == list(rows["patient"])


def test_patients_of_other_images(tmp_path):
    """By file: neither names that look alike nor equal numbers in two folders make one patient."""
    alike = [f"train/a/XR_PATIENT_{number:03d}.png" for number in range(1, 6)]
    assert dataset.patients_of(tmp_path, alike) == alike
    numbered = ["train/a/001.jpg", "test/a/001.jpg", "train/b/001.jpg"]
    assert len(set(dataset.patients_of(tmp_path, numbered))) == 3
    listing = tmp_path / "patients.csv"
    anna = "file,patient\ntrain/a/001.jpg,anna\ntest/a/001.jpg,anna\n"
    listing.write_text(anna, encoding="utf-8")
    assert dataset.patients_of(tmp_path, numbered) == ["anna", "anna", "train/b/001.jpg"]
    listing.write_text(anna.replace("anna", ""), encoding="utf-8")
    assert len(set(dataset.patients_of(tmp_path, numbered))) == 3  # a blank names nobody
    listing.write_text("name,person\nx,y\n", encoding="utf-8")
    with pytest.raises(dataset.Problem, match="columns file and patient"):
        dataset.patients_of(tmp_path, numbered)


def test_load_images_says_what_is_missing(tmp_path):
    """One class, a class in one split alone, and too few to validate: a Problem each."""
    five = [f"train/a/{number}.png" for number in range(5)]
    one = write_images(tmp_path / "one", *five, "test/a/1.png")
    with pytest.raises(dataset.Problem, match="two or more classes"):
        dataset.load_images(one, 8)
    late = write_images(tmp_path / "late", *five, "test/a/1.png", "test/b/1.png")
    with pytest.raises(dataset.Problem, match=r"train.b holds no image"):
        dataset.load_images(late, 8)
    early = write_images(tmp_path / "early", *five, "train/b/1.png", "test/a/1.png")
    with pytest.raises(dataset.Problem, match=r"test.b holds no image"):
        dataset.load_images(early, 8)
    few = ["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png"]
    with pytest.raises(dataset.Problem, match="no image to validate on"):
        dataset.load_images(write_images(tmp_path / "few", *few), 8)
    enough = write_images(tmp_path / "enough", *five, *few)
    images, table = dataset.load_images(enough, 8)
    assert images.shape == (len(table), 8, 8, 3) and list(table["label"].unique()) == [0, 1]
    assert list(table["split"]).count("validation") == 1


def test_leakage_of_the_article(named):
    """Three COVID-19 test images and one validation image show a patient of the training images."""
    _, table = dataset.load_images(named, 8)
    assert list(table["class"].unique()) == FOUR
    assert table["split"].value_counts().to_dict() == {"train": 216, "validation": 54, "test": 36}
    seen = table["patient"].isin(table["patient"][table["split"] == "train"])
    leaked = {
        split: [file.split("/")[-1] for file in table["file"][seen & (table["split"] == split)]]
        for split in ("test", "validation")
    }
    figures = "f3-PA", "f4", "f5-PA"
    assert leaked["test"] == [f"{NEJM}_{figure}.jpeg" for figure in figures]
    assert leaked["validation"] == ["person1865_bacteria_4737.jpeg"]
    _, two = dataset.load_images(named, 8, class_names=FOUR[:2])
    assert list(two["split"]).count("validation") == 26 and len(two) == 148


def test_the_articles_own_images_by_their_names(named):
    """Keras's generator, seed 42: three with no pneumonia but COVID-19's, four with no COVID-19."""
    _, table = dataset.load_images(named, 8)
    for names in (FOUR[:3], FOUR):
        options = {"classes": names, "batch_size": 1, "shuffle": True, "seed": 42, "target_size": (8, 8)}
        flow = xray.ImageDataGenerator().flow_from_directory(named / "test", **options)
        flow[0]  # the first batch makes the generator shuffle
        drawn = [f"test/{flow.filenames[index]}" for index in flow.index_array[: -(-flow.n // 10)]]
        assert list(table["file"].iloc[xray.article_draw(table, names)]) == drawn
    drawn = {
        count: [
            file.removeprefix("test/").rpartition(".")[0]
            for file in table["file"].iloc[xray.article_draw(table, FOUR[:count])]
        ]
        for count in (3, 4)
    }
    assert drawn == {
        3: [
            "covid/ryct.2020200034.fig5-day7",
            "normal/NORMAL2-IM-1406-0001",
            "normal/NORMAL2-IM-1385-0001",
        ],
        4: [
            "pneumonia_vir/person966_virus_1639",
            "normal/NORMAL2-IM-1406-0001",
            "pneumonia_bac/person1945_bacteria_4872",
            "pneumonia_vir/person961_virus_1634",
        ],
    }


def test_chance_of_the_articles_figures():
    """21 of 27 right: three of three in 45%. 28 of 36: two of four in 18%, four in 35%."""
    assert hypergeom(27, 21, 3).pmf(3) == pytest.approx(0.45, abs=0.005)
    assert hypergeom(36, 28, 4).pmf(2) == pytest.approx(0.18, abs=0.005)
    assert hypergeom(36, 28, 4).pmf(4) == pytest.approx(0.35, abs=0.005)


def test_score_controls_by_hand():
    """The 97 controls: 33, 21, and 13 have a right answer among the four classes."""
    controls = dataset.CONTROLS.rename(columns={"class": "group"}).reset_index(drop=True)
    groups = {"bacterial pneumonia": 33, "viral pneumonia": 21, "no finding": 13}
    groups |= {"other or unspecified": 17, "fungal pneumonia": 13}
    always = xray.score_controls(controls, ["covid"] * 97, FOUR)
    assert (always["n"], always["patients"], always["called_covid"]) == (97, 60, 97)
    assert {name: row["n"] for name, row in always["by_finding"].items()} == groups
    assert {name: row["called_covid"] for name, row in always["by_finding"].items()} == groups
    assert always["no_finding"] == {"n": 13, "called_covid": 13}
    assert always["ci95"] == xray.exact_interval(60, 60)  # of patients: a bootstrap would have no width
    patients = controls.loc[controls["group"].isin(list(dataset.RIGHT_ANSWERS)), "patient"].nunique()
    assert always["with_right_answer"] == {"n": 67, "correct": 0, "ci95": xray.exact_interval(0, patients)}
    assert xray.score_controls(controls, ["covid"] * 97, FOUR[:2])["with_right_answer"]["n"] == 13

    normal = xray.score_controls(controls, ["normal"] * 97, FOUR)
    assert normal["called_covid"] == 0 and normal["with_right_answer"]["correct"] == 13
    bacterial = xray.score_controls(controls, ["pneumonia_bac"] * 97, FOUR)
    assert bacterial["with_right_answer"]["correct"] == 33
    viral = xray.score_controls(controls, ["pneumonia_vir"] * 97, FOUR)
    assert viral["with_right_answer"]["correct"] == 21

    words = {"bacterial pneumonia": "pneumonia_bac", "viral pneumonia": "pneumonia_vir"}
    words |= {"no finding": "normal"}
    perfect = xray.score_controls(controls, controls["group"].map(words).fillna("covid"), FOUR)
    assert perfect["with_right_answer"]["correct"] == 67 and perfect["called_covid"] == 30
    low, high = normal["with_right_answer"]["ci95"]
    assert low < 13 / 67 < high


def test_score_controls_of_none():
    """Without controls the counts are 0 and the intervals say nothing."""
    empty = dataset.CONTROLS.rename(columns={"class": "group"})[:0]
    scored = xray.score_controls(empty, [], FOUR)
    assert scored["n"] == scored["called_covid"] == 0 and scored["ci95"] == [0, 1]
    assert scored["with_right_answer"] == {"n": 0, "correct": 0, "ci95": [0, 1]}


def test_committed_lists_are_consistent(manifest):
    """306 images of the article and 97 controls of 60 patients, none of whom has COVID-19."""
    assert manifest["split"].value_counts().to_dict() == {"train": 270, "control": 97, "test": 36}
    assert manifest["filename"].is_unique
    control = manifest["split"] == "control"
    assert manifest["patient"][control].nunique() == 60
    covid = set(manifest["patient"][manifest["class"] == "covid"])
    assert not covid & set(manifest["patient"][control])
    both = pd.concat([dataset.ARTICLE, dataset.CONTROLS])
    columns = ["split", "class", "filename", "patient"]
    assert sorted(map(tuple, both[columns].values)) == sorted(map(tuple, manifest[columns].values))


# --- HiResCAM


def linear_head(shape, units, activation):
    """Return a head of one dense layer on flattened features, with random weights and biases."""
    head = keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Flatten(),
            keras.layers.Dense(units, activation=activation, bias_initializer="random_normal"),
        ]
    )
    return head


@pytest.mark.parametrize("layer", ["block5_conv3", "block5_pool"])
@pytest.mark.parametrize("units", [1, 3])
def test_hires_cam_adds_up_to_the_score(layer, units):
    """For a linear head the map's sum is the score less the bias, through pooling too."""
    keras.utils.set_random_seed(1)
    base = keras.applications.VGG16(weights=None, include_top=False, input_shape=(64, 64, 3))
    head = linear_head(base.output_shape[1:], units, "sigmoid" if units == 1 else "softmax")
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    classes = np.array([0, 1, 1, 0]) if units == 1 else np.array([0, 2, 1, 0])
    maps = xray.hires_cam(base, head, images, classes, layer)
    assert maps.shape == ((4, 4, 4) if layer == "block5_conv3" else (4, 2, 2))

    kernel, bias = head.get_weights()
    features = base.predict(images.astype(np.float32) / 255, verbose=0).reshape(4, -1)
    scores = features @ kernel  # less the bias
    scores = np.hstack([-scores, scores]) if units == 1 else scores
    expected = scores[np.arange(4), classes]
    assert np.abs(bias).max() > 0 and np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), expected, rtol=1e-3, atol=1e-6)


def test_hires_cam_differs_from_grad_cam():
    """A copied 2 x 2 image under weights of both signs: position by position, not by their mean."""
    inputs = keras.Input((2, 2, 3))
    layer = keras.layers.Conv2D(1, 1, use_bias=False, name="block5_conv3")
    base = keras.Model(inputs, layer(inputs))
    layer.set_weights([np.array([255.0, 0, 0]).reshape(1, 1, 3, 1)])
    head = linear_head((2, 2, 1), 2, "softmax")
    weights = np.array([[1.0, -1], [0, 2]])
    head.set_weights([np.stack([0 * weights.ravel(), weights.ravel()], axis=1), np.array([5.0, 7])])
    images = np.zeros((2, 2, 2, 3), np.uint8)
    images[..., 0] = [[1, 2], [3, 4]]
    maps = xray.hires_cam(base, head, images, np.array([1, 0]))
    np.testing.assert_allclose(maps[0], [[1, -2], [0, 8]], rtol=1e-5)
    grad_cam = weights.mean() * images[0, ..., 0]
    np.testing.assert_allclose(grad_cam, [[0.5, 1], [1.5, 2]])
    np.testing.assert_allclose(maps[1], 0, atol=1e-6)  # each image has the map of its own class


def test_hires_cam_of_a_dense_head_is_finite():
    """The lessons' own head, Flatten and two dense layers, and a map that depends on the class."""
    keras.utils.set_random_seed(2)
    base = keras.applications.VGG16(weights=None, include_top=False, input_shape=(32, 32, 3))
    head = keras.Sequential(
        [
            keras.Input(base.output_shape[1:]),
            keras.layers.Flatten(),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    first, second = (xray.hires_cam(base, head, images, np.array([k])) for k in (0, 1))
    assert np.isfinite(first).all() and np.abs(first - second).max() > 0
