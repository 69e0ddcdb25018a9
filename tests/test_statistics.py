"""Each statistic against a case worked out by hand."""

import csv
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from scipy.stats import beta

MANIFEST = list(csv.DictReader(open(ROOT / "data" / "manifest.csv")))


def test_exact_interval(nb):
    """Clopper-Pearson: 18 of 18 gives (alpha/2)^(1/18) to 1; 9 of 18 the quantiles of two beta distributions."""
    assert nb["exact_interval"](18, 18) == pytest.approx([0.025 ** (1 / 18), 1])
    assert nb["exact_interval"](0, 18) == pytest.approx([0, 1 - 0.025 ** (1 / 18)])
    assert nb["exact_interval"](9, 18) == pytest.approx([beta.ppf(0.025, 9, 10), beta.ppf(0.975, 10, 9)])


def test_score(nb):
    scored = nb["score"](np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0]))
    assert (scored["n"], scored["correct"], scored["accuracy"]) == (4, 3, 0.75)
    assert nb["describe"]({**scored, "ci95": [0.1, 0.9]}) == "3 of 4 = 75.0% (95 % interval 10% to 90%)"


def test_sensitivity_and_specificity(nb):
    """Of 9 covid 8 are found; of 18 others 3 are taken for it."""
    table = nb["sensitivity_table"]([[8, 1, 0], [2, 7, 0], [1, 0, 8]], ["covid", "normal", "x"])
    assert table.loc["COVID19 Pneumonia", "sensitivity"].startswith("8 of 9 = 89%")
    assert table.loc["COVID19 Pneumonia", "specificity"].startswith("15 of 18 = 83%")
    assert table.loc["x", "specificity"].startswith("18 of 18 = 100%")


def test_black_out_to_the_pixel(nb):
    images = np.full((2, 150, 150, 3), 7, np.uint8)
    half = nb["black_out"](images, 0.5)
    assert (half[:, 37:113, 37:113] == 0).all() and half.astype(bool).sum() == 2 * 3 * (150**2 - 76**2)
    ninety = nb["black_out"](images, 0.9)
    assert (ninety[:, 7:143, 7:143] == 0).all() and (ninety[:, :7] == 7).all() and (ninety[:, :, 143:] == 7).all()
    assert (nb["black_out"](images, 0) == 7).all() and (images == 7).all()


def test_grad_cam_on_a_toy_model(nb):
    """A convolution that copies the red channel, an average, one unit of weight w: the map is relu(w * red), scaled."""
    keras = nb["keras"]
    image = np.zeros((1, 4, 4, 3), np.float32)
    image[0, 1, 2, 0], image[0, 3, 0, 0] = 1.0, 0.5
    kernel = np.zeros((1, 1, 3, 1), np.float32)
    kernel[0, 0, 0, 0] = 1
    for weight, chosen, positive in ((2.0, 1, True), (2.0, 0, False), (-2.0, 0, True)):
        inputs = keras.Input((4, 4, 3))
        x = keras.layers.Conv2D(1, 1, name="block5_conv3")(inputs)
        x = keras.layers.GlobalAveragePooling2D()(x)
        model = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(x))
        model.set_weights([kernel, np.zeros(1), np.array([[weight]]), np.zeros(1)])
        heat = nb["grad_cam"](model, image, np.array([chosen]))
        expected = image[..., 0] if positive else np.zeros((1, 4, 4))
        np.testing.assert_allclose(heat, expected, atol=1e-6)


def test_grad_cam_explains_the_class_asked_for(nb):
    """Two softmax classes that look at different channels light up different places."""
    keras = nb["keras"]
    inputs = keras.Input((2, 2, 2))
    x = keras.layers.Conv2D(2, 1, name="block5_conv3")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(keras.layers.GlobalAveragePooling2D()(x)))
    model.set_weights([np.eye(2).reshape(1, 1, 2, 2), np.zeros(2), np.eye(2), np.zeros(2)])
    image = np.zeros((2, 2, 2, 2), np.float32)
    image[:, 0, 0, 0] = image[:, 1, 1, 1] = 1
    heat = nb["grad_cam"](model, image, np.array([0, 1]))
    np.testing.assert_allclose(heat, [[[1, 0], [0, 0]], [[0, 0], [0, 1]]], atol=1e-6)


def test_no_patient_falls_into_two_groups(nb):
    groups = defaultdict(set)
    for row in MANIFEST:
        groups[row["patient"]].add(nb["patient_of"](row["filename"]))
    assert {patient: names for patient, names in groups.items() if len(names) > 1} == {}


def test_groups_are_not_coarser_than_a_publication(nb):
    """Few patients are taken for one another: of 259, fewer than a dozen are lost in a shared group."""
    assert len({row["patient"] for row in MANIFEST}) - len({nb["patient_of"](row["filename"]) for row in MANIFEST}) < 12


def test_leakage_of_the_article(nb):
    """By the names as by the manifest: three COVID-19 test images and one validation image show a training patient."""
    rows = [row for row in MANIFEST]
    count, splits = defaultdict(int), []
    sizes = {
        name: sum(row["class"] == name and row["split"] == "train" for row in rows)
        for name in {row["class"] for row in rows}
    }
    for row in sorted(rows, key=lambda row: row["filename"]):
        held_out = row["split"] == "train" and count[row["class"]] < int(0.2 * sizes[row["class"]])
        count[row["class"]] += row["split"] == "train"
        splits.append("validation" if held_out else row["split"])
    rows = sorted(rows, key=lambda row: row["filename"])
    paths = [nb["Path"](row["filename"]) for row in rows]
    for patients in ([nb["patient_of"](row["filename"]) for row in rows], [row["patient"] for row in rows]):
        arguments = paths, np.array(patients), np.array(splits)
        assert nb["shared_patients"](*arguments, "test") == [
            f"nejmoa2001191_{figure}.jpeg" for figure in ("f3-PA", "f4", "f5-PA")
        ]
        assert nb["shared_patients"](*arguments, "validation") == ["person1865_bacteria_4737.jpeg"]
    assert splits.count("validation") == 54


def test_folds_share_no_patient_and_cover_everything(nb):
    labels = np.array([sorted({row["class"] for row in MANIFEST}).index(row["class"]) for row in MANIFEST])
    groups = np.array([row["patient"] for row in MANIFEST])
    folds = nb["grouped_folds"](labels, groups)
    assert sorted(np.concatenate([held_out for _, held_out in folds])) == list(range(306))
    for train, held_out in folds:
        assert not set(groups[train]) & set(groups[held_out])
        assert set(labels[held_out]) == {0, 1, 2, 3}


def test_held_out_views_are_never_trained_on(nb_multi, monkeypatch):
    """cross_validate gives train_head the views of the training rows alone; each row is scored by a head without it."""
    features = np.arange(20, dtype=np.float16).reshape(1, 20, 1, 1, 1)
    labels, groups = np.tile([0, 1], 10), np.arange(20) // 2
    seen = []
    monkeypatch.setitem(nb_multi, "build_model", lambda count: (None, seen))
    monkeypatch.setitem(
        nb_multi, "train_head", lambda head, views, *_, **__: seen.append(set(views.ravel().astype(int)))
    )
    monkeypatch.setitem(nb_multi, "predict_probabilities", None)
    heads, fold_of = nb_multi["cross_validate"](features, labels, groups, 2, 1e-4, 1)
    assert len(heads) == len(seen) == 5

    def predict(trained_on, plain):
        rows = set(plain.ravel().astype(int))
        assert not rows & trained_on and rows | trained_on == set(range(20))
        assert not {groups[row] for row in rows} & {groups[row] for row in trained_on}
        return np.stack([plain.ravel(), 20 - plain.ravel()], axis=1)

    monkeypatch.setitem(nb_multi, "predict_probabilities", predict)
    held_out = nb_multi["predict_held_out"](seen, fold_of, features[0])
    assert held_out[:, 0].tolist() == list(range(20))  # in the order of the rows
    summary = nb_multi["summarise_folds"](labels, held_out, fold_of)
    right = [label == (row < 10) for row, label in enumerate(labels)]  # 20 - row is the larger below 10
    assert summary["correct"] == sum(right) == 10 and summary["n"] == 20
    assert summary["folds"] == [np.mean(np.array(right)[fold_of == fold]) for fold in range(5)]


def test_patient_bootstrap(nb):
    """One image a patient: the interval of a mean is near the normal one; one patient: no width at all."""
    values = np.array([0.0, 1.0] * 50)
    low, high = nb["patient_bootstrap"](lambda rows: values[rows].mean(), np.arange(100))
    assert low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.02) and high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.02)
    assert nb["patient_bootstrap"](lambda rows: values[rows].mean(), np.zeros(100)) == [0.5, 0.5]


NEW = """patientid,finding,view,modality,filename,folder,
1,Pneumonia/Viral/COVID-19,PA,X-ray,a.jpg,images,
2,Pneumonia/Viral/SARS,AP,X-ray,b.jpg,images,
3,todo,PA,X-ray,c.jpg,images,
4,Unknown,PA,X-ray,d.jpg,images,
5,No Finding,AP Supine,X-ray,e.jpg,images,
6,Pneumonia/Bacterial,Axial,CT,f.jpg,volumes,
7,Pneumonia,L,X-ray,g.jpg,images,
8,,PA,X-ray,h.jpg,images,
"""
OLD = """Patientid,offset,sex,age,finding,survival,view,date,location,filename,doi, url,license,notes
3,4,M,74,SARS,N,PA,2004,,b.jpg,,,,"two
lines"
11,0,M,56,COVID-19,Y,PA,2020,Canada,a.jpg,,,,
12,0,M,56,"COVID-19, ARDS",Y,PA,2020,Canada,k.jpg,,,,
5,,,,ARDS,,AP,2017,,i.png,,,,
"""


def test_controls_are_selected_from_new_and_old_metadata(nb):
    def read(text):
        return nb["select_controls"](pd.read_csv(nb["io"].StringIO(text))).values.tolist()

    assert read(NEW) == [["b.jpg", "SARS", "cohen-2"], ["e.jpg", "No Finding", "cohen-5"]]
    assert read(OLD) == [["b.jpg", "SARS", "cohen-3"], ["i.png", "ARDS", "cohen-5"]]


def test_committed_lists_are_consistent():
    controls = list(csv.DictReader(open(ROOT / "data" / "controls.csv")))
    assert len(controls) == len({row["filename"] for row in controls}) == 97
    assert len({row["patient"] for row in controls}) == 60
    covid = {row["patient"] for row in MANIFEST if row["class"] == "covid"}
    assert not covid & {row["patient"] for row in controls}
    assert len(MANIFEST) == len({row["filename"] for row in MANIFEST}) == 306
