"""Each statistic against a case worked out by hand; the article's set by its manifest."""

import cv2
import keras
import lessons
import numpy as np
import pandas as pd
import pytest
import xray
import xray_data
from conftest import BINARY, MULTI
from scipy.stats import beta, binomtest, bootstrap, hypergeom, mannwhitneyu, rankdata
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

FOUR = list(xray_data.LABELS)
NEJM = "nejmoa2001191"
ARTICLE = xray_data.ARTICLE
CONTROLS = xray_data.CONTROLS["controls"].rename(columns={"class": "group"}).reset_index(drop=True)
NO_FINDING = xray_data.CONTROLS["nih_no_finding"].rename(columns={"class": "group"}).reset_index(drop=True)


def run_cells(notebook, *names, **given):
    """Run cells of a lesson with seed 42 and all that its imports give; return all variables."""
    given = {"xray": xray, "xray_data": xray_data, "SEED": 42, **given}
    return lessons.run_cells(notebook, "imports-libraries", *names, **given)


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """Return a folder with a gray square under each of the article's 306 names."""
    rows = ARTICLE[["split", "class", "filename"]].values
    return write_images(tmp_path_factory.mktemp("named"), *map("/".join, rows))


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


@pytest.mark.parametrize("n", [1, 2, 18, 97])
def test_exact_interval_is_that_of_scipy(n):
    """Every number of hits of n, against scipy.stats.binomtest."""
    for hits in range(n + 1):
        theirs = binomtest(hits, n).proportion_ci(0.95, "exact")
        assert xray.exact_interval(hits, n) == pytest.approx([theirs.low, theirs.high], abs=1e-9)


def test_exact_interval_between_whole_numbers():
    """It moves steadily between its values at whole numbers, contains the share, and narrows as n grows."""
    hits = np.linspace(0, 18, 181)
    low, high = np.transpose([xray.exact_interval(k, 18) for k in hits])
    assert (np.diff(low) > 0).sum() >= 179 and (np.diff(low) >= 0).all()
    assert (np.diff(high) > 0).sum() >= 179 and (np.diff(high) >= 0).all()
    assert (low <= hits / 18).all() and (high >= hits / 18).all() and (high > low).all()
    assert np.diff(xray.exact_interval(9.5, 19)) > np.diff(xray.exact_interval(95, 190))


def test_effective_number():
    """Kish's number: of patients for equally many X-rays each, less otherwise, between 1 and n."""
    assert xray.effective_number(list("abcd")) == xray.effective_number(list("aabbccdd")) == 4
    assert xray.effective_number(list("aaaaaa")) == 1 and xray.effective_number([]) == 0
    assert xray.effective_number(list("aaab")) == pytest.approx(16 / 10)


def test_share_interval():
    """Exact where each X-ray is a patient; for the effective number where patients have several."""
    for hits in range(19):
        right = np.arange(18) < hits
        assert xray.share_interval(right, np.arange(18)) == xray.exact_interval(hits, 18)
        tripled = xray.share_interval(np.repeat(right, 3), np.repeat(np.arange(18), 3))
        assert tripled == pytest.approx(xray.exact_interval(hits, 18), abs=1e-9)
    patients = np.random.default_rng(0).integers(0, 20, 60)
    ends = [xray.share_interval(np.arange(60) < hits, patients) for hits in range(61)]
    low, high = np.transpose(ends)
    assert (np.diff(low) >= 0).all() and (np.diff(high) >= 0).all()  # more hits never lower it
    assert (np.diff(low)[1:] > 0).all() and (np.diff(high)[:-1] > 0).all()
    people = xray.effective_number(patients)
    assert 1 < people < len(set(patients)) < 60
    assert ends[0] == pytest.approx([0, 1 - 0.025 ** (1 / people)])  # a bootstrap would have no width here
    assert ends[60] == pytest.approx([0.025 ** (1 / people), 1])
    assert all(a <= hits / 60 <= b for hits, (a, b) in enumerate(ends))
    assert all(np.diff(end) > np.diff(xray.exact_interval(hits, 60)) for hits, end in enumerate(ends))
    assert xray.share_interval(np.ones(0, bool), []) == [0, 1]
    assert xray.share_interval(np.ones(5, bool), ["p"] * 5) == pytest.approx([0.025, 1])  # one patient says little


def test_share_interval_covers_the_truth():
    """Forty patients, each with one to five X-rays that agree: the interval covers the share as promised; one
    that takes X-rays for independent does not.
    """
    rng, truth = np.random.default_rng(5), 0.8
    covered = np.zeros(2)
    for _ in range(400):
        sizes = rng.integers(1, 6, 40)
        right = np.repeat(rng.random(40) < truth, sizes)
        ours = xray.share_interval(right, np.repeat(np.arange(40), sizes))
        naive = xray.exact_interval(right.sum(), len(right))
        covered += [low <= truth <= high for low, high in (ours, naive)]
    ours, naive = covered / 400
    assert ours >= 0.93 and naive < 0.85, (ours, naive)


def test_auc_interval():
    """It contains the area, has a width at both ends, narrows with more patients, and mirrors."""
    for positives, negatives in ((5, 5), (48, 47), (50, 60), (9, 200)):
        for area in (0, 1e-13, 1e-8, 0.03, 0.3, 0.5, 0.7, 0.95, 0.999, 1 - 1e-8, 1 - 1e-13, 1):
            low, high = xray.auc_interval(area, positives, negatives)
            assert 0 <= low <= area <= high <= 1 and high - low > 0.005
            mirrored = xray.auc_interval(1 - area, negatives, positives)
            assert mirrored == pytest.approx([1 - high, 1 - low], abs=1e-9)
            assert np.diff(xray.auc_interval(area, 4 * positives, 4 * negatives)) < high - low
        low, high = np.transpose([xray.auc_interval(area, positives, negatives) for area in np.linspace(0, 1, 101)])
        assert (np.diff(low) >= 0).all() and (np.diff(high) >= 0).all()
    assert xray.auc_interval(1, 20, 20)[0] < 0.95 and xray.auc_interval(1, 20, 20)[1] == 1
    assert xray.auc_interval(0, 20, 20)[1] > 0.05 and xray.auc_interval(0, 20, 20)[0] == 0


def test_auc_interval_ends_where_the_area_is_196_errors_away():
    """Newcombe's method 5 by its definition, with the standard error of Hanley and McNeil."""
    auc, m, n = 0.73, 48, 47
    for end in xray.auc_interval(auc, m, n):
        pairs = (m + n) / 2 - 1
        spread = 1 + pairs * (1 - end) / (2 - end) + pairs * end / (1 + end)
        error = np.sqrt(end * (1 - end) * spread / (m * n))
        assert abs(auc - end) / error == pytest.approx(1.959964, abs=1e-5)


@pytest.mark.parametrize("truth, shift", [(0.7, 0.741614), (0.95, 2.326174)])
def test_auc_interval_covers_the_truth(truth, shift):
    """Normal scores of 50 and 60 patients, 600 times: the interval holds the true area in 93% or more."""
    rng, covered = np.random.default_rng(1), []
    for _ in range(600):
        first, second = rng.normal(shift, 1, 50), rng.normal(0, 1, 60)
        auc = mannwhitneyu(first, second).statistic / 3000
        low, high = xray.auc_interval(auc, 50, 60)
        covered.append(low <= truth <= high)
    assert 0.93 <= np.mean(covered) <= 0.99


def test_score_by_hand():
    """Four images of three patients: one COVID-19 image is missed; the AUC is 3 of 4 pairs."""
    labels = np.array([0, 0, 1, 1])
    covid = np.array([0.9, 0.2, 0.1, 0.4])
    scored = xray.score(labels, np.stack([covid, 1 - covid], axis=1), ["a", "b", "c", "c"])
    assert (scored["n"], scored["patients"], scored["correct"]) == (4, 3, 3)
    assert (scored["accuracy"], scored["majority"]) == (0.75, 0.5)
    assert scored["confusion"] == [[1, 1], [0, 2]]
    assert scored["ci95"] == xray.exact_interval(3, 4)
    assert scored["auc"] == 0.75 and scored["auc_ci95"] == xray.auc_interval(0.75, 2, 1)  # of patients
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
    by_patient = xray.score(np.zeros(100, int), np.eye(2)[wrong], patients, by_patient=True)
    assert exact["ci95"] == xray.exact_interval(90, 100)
    assert by_patient["ci95"] == pytest.approx(xray.exact_interval(9, 10))
    assert "auc" not in by_patient and "auc_ci95" not in by_patient  # one class alone has no ROC curve


def test_score_of_folds():
    """The accuracy of each fold, and their mean, which is not that of all images where folds differ in size."""
    labels = np.array([0, 0, 1, 1, 2, 2])
    guesses = np.eye(3)[[0, 1, 1, 1, 2, 0]]
    folds = [(np.arange(2, 6), np.array([0, 1])), (np.array([0, 1, 5]), np.array([2, 3, 4])), (np.arange(5), [5])]
    scored = xray.score(labels, guesses, list("aabbcc"), by_patient=True, folds=folds)
    assert scored["folds"] == [0.5, 1, 0] and scored["mean"] == 0.5 and scored["accuracy"] == 4 / 6
    assert "folds" not in xray.score(labels, guesses, list("aabbcc"))


def test_area_under_the_curve_is_that_of_class_0():
    """High where class 0 has the high first column; ties count half; equal to the rank-sum statistic."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 60)
    covid = np.round(np.clip(0.5 - 0.2 * labels + 0.3 * rng.random(60), 0, 1), 1)
    scored = xray.score(labels, np.stack([covid, 1 - covid], axis=1), np.arange(60))
    n = [(labels == label).sum() for label in (0, 1)]
    area = (rankdata(covid)[labels == 0].sum() - n[0] * (n[0] + 1) / 2) / (n[0] * n[1])
    assert scored["auc"] == pytest.approx(area) and area > 0.6


def test_score_of_nothing():
    """Without images, counts are 0 and the interval says nothing."""
    scored = xray.score(np.zeros(0, int), np.zeros((0, 2)), [])
    assert (scored["n"], scored["correct"], scored["accuracy"], scored["ci95"]) == (0, 0, 0, [0, 1])


def difference_of(first, second, patients, seed=42):
    """Return what Multi's own cell computes, where `first` and `second` say which images are right."""
    labels = np.zeros(len(patients), int)
    given = {"labels": labels, "patients": np.asarray(patients), "SEED": seed}
    function = run_cells(MULTI, "paired-difference", **given)["paired_difference"]
    return function(*(np.eye(2)[1 - np.asarray(right, int)] for right in (first, second)))


def test_difference_is_paired():
    """Equal predictions differ by exactly 0; one image of four gained is 25 points; lost, -25."""
    same = difference_of([1, 0, 1, 1], [1, 0, 1, 1], list("abcd"))
    assert same == {"difference": 0.0, "ci95": [0.0, 0.0]}
    gained = difference_of([1, 1, 0, 0], [1, 0, 0, 0], list("abcd"))
    assert gained["difference"] == 0.25 and gained["ci95"] == [0.0, 0.75]
    lost = difference_of([1, 0, 0, 0], [1, 1, 0, 0], list("abcd"))
    assert lost["difference"] == -0.25 and lost["ci95"] == [-0.75, 0.0]
    one_patient = difference_of([1, 1, 0, 0], [1, 0, 0, 0], ["a"] * 4)
    assert one_patient["ci95"] == [0.25, 0.25]
    again = difference_of([1, 1, 0, 0], [1, 0, 0, 0], list("abcd"))
    assert again == gained


def test_difference_is_a_bootstrap_by_patient():
    """Its interval is scipy's percentile bootstrap of patients, each drawn with all images, in any order."""
    rng = np.random.default_rng(2)
    patients = np.array([f"p{number}" for number in np.repeat(np.arange(80), rng.integers(1, 5, 80))])
    first, second = rng.random(len(patients)) < 0.8, rng.random(len(patients)) < 0.65
    ours = difference_of(first, second, patients)
    gain = first.astype(int) - second
    by_patient = pd.DataFrame({"gain": gain, "size": 1}).groupby(patients).sum()
    theirs = bootstrap(
        (by_patient["gain"].to_numpy(), by_patient["size"].to_numpy()),
        lambda gains, sizes, axis=-1: gains.sum(axis=axis) / sizes.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert ours["difference"] == pytest.approx(gain.mean())
    width = theirs.high - theirs.low
    assert ours["ci95"] == pytest.approx([theirs.low, theirs.high], abs=0.08 * width)
    order = rng.permutation(len(patients))
    mixed = difference_of(first[order], second[order], patients[order])
    assert mixed["difference"] == pytest.approx(ours["difference"]) and mixed["ci95"] == pytest.approx(ours["ci95"])
    seeds = [difference_of(first, second, patients, seed)["ci95"] for seed in range(3)]
    assert len(set(map(tuple, seeds))) == 3  # the lesson's seed draws the patients


def test_patients_who_agree_with_themselves_widen_the_difference():
    """Five images a patient that are all gained or all lost weigh as one: sqrt(5) times as wide."""
    gained = np.repeat(np.arange(40) % 2, 5).astype(bool)
    widths = [
        np.diff(difference_of(gained, ~gained, people)["ci95"])[0] for people in (np.arange(40).repeat(5), range(200))
    ]
    assert widths[0] / widths[1] == pytest.approx(5**0.5, rel=0.15)


def test_difference_table():
    """Points with their sign, and the interval."""
    table = xray.difference_table({"a minus b": {"difference": -0.114, "ci95": [-0.181, 0.0449]}})
    assert list(table.index) == ["a minus b"] and list(table.iloc[0]) == ["-11.4", "-18.1 to +4.5"]


def test_sensitivity_and_specificity():
    """Of 9 COVID-19 images 8 are found; 3 of 18 others are taken for it."""
    table = xray.sensitivity_table([[8, 1, 0], [2, 7, 0], [1, 0, 8]], ["covid", "normal", "x"])
    assert table.loc["COVID-19", "sensitivity"] == "8 of 9 = 89% (52% to 100%)"
    assert table.loc["COVID-19", "specificity"].startswith("15 of 18 = 83%")
    assert table.loc["x", "specificity"].startswith("18 of 18 = 100%")


# --- Folds


def against(controls):
    """Return labels and patients of the article's COVID-19 images (0) and of a group of controls (1)."""
    covid = ARTICLE[ARTICLE["class"] == "covid"]
    return np.repeat([0, 1], [len(covid), len(controls)]), np.append(covid["patient"], controls["patient"])


TASKS = {
    "four": (ARTICLE["class"].map(FOUR.index).to_numpy(), ARTICLE["patient"].to_numpy()),
    "controls": against(CONTROLS),
    "no finding": against(NO_FINDING),
}


def folds_of(labels, patients, seed=42, splitter=StratifiedGroupKFold):
    """Return the folds of the lessons' own cell; `splitter` may take the place of StratifiedGroupKFold."""
    cells = run_cells(BINARY, "patient-folds", SEED=seed)
    cells["StratifiedGroupKFold"] = splitter
    return cells["patient_folds"](labels, patients)


def spread(labels, folds):
    """Return by how many images of a class two folds differ at most."""
    counts = [np.bincount(labels[out], minlength=labels.max() + 1) for _, out in folds]
    return int(np.ptp(counts, axis=0).max())


@pytest.mark.parametrize("name", ["patient-folds", "black-out"])
def test_both_lessons_have_one_cell(name):
    """What both lessons define in the open is the same to the letter, so what is tested here holds in both."""
    assert lessons.cell(BINARY, name) == lessons.cell(MULTI, name)


@pytest.mark.parametrize("task", TASKS)
def test_folds_hold_patients_together(task):
    """Five folds: each image once, no patient on both sides, each class as often as in any other fold, 20 seeds."""
    labels, patients = TASKS[task]
    assert len(labels) == {"four": 306, "controls": 69 + 83, "no finding": 69 + 100}[task]
    for seed in range(20):
        folds = folds_of(labels, patients, seed)
        assert len(folds) == 5
        assert sorted(np.concatenate([out for _, out in folds])) == list(range(len(labels)))
        for train, out in folds:
            assert not set(patients[train]) & set(patients[out])
            assert sorted([*train, *out]) == list(range(len(labels)))
            assert set(labels[train]) == set(labels[out]) == set(labels)
        assert spread(labels, folds) <= 1


@pytest.mark.parametrize("task", TASKS)
def test_folds_that_only_group_fail_this_check(task):
    """Without stratification, classes differ between folds by more than one image, at any of 20 seeds.

    So do the folds of scikit-learn's own shuffle, which counts classes for other patients than it draws.
    """
    labels, patients = TASKS[task]
    for seed in range(20):
        assert spread(labels, folds_of(labels, patients, seed, GroupKFold)) > 1
    shuffled = [
        StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(labels, labels, patients) for seed in range(20)
    ]
    assert max(spread(labels, folds) for folds in shuffled) > 1


def test_folds_repeat_and_differ_by_seed():
    """The same seed gives the same folds, another seed others, and the patients' names do not matter."""
    labels, patients = TASKS["four"]
    folds, twice, other = (folds_of(labels, patients, seed) for seed in (42, 42, 1))
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(folds, twice))
    assert not all(np.array_equal(a[1], b[1]) for a, b in zip(folds, other))
    held_out = {tuple(out) for seed in range(20) for _, out in folds_of(labels, patients, seed)}
    assert len(held_out) >= 80  # of 100: the seed draws patients, not only the folds' order


def test_a_class_of_two_patients_is_in_every_fold(capsys):
    """Two patients of two images each, among others, 200 seeds: two folds, and no fold trains without the class."""
    labels = np.repeat([0, 1], [4, 30])
    patients = np.array(["a", "a", "b", "b", *(f"c{number // 2}" for number in range(30))])
    for seed in range(200):
        folds = folds_of(labels, patients, seed)
        assert len(folds) == 2
        for train, out in folds:
            assert set(labels[train]) == set(labels[out]) == {0, 1}
    assert capsys.readouterr().out.count("2 folds instead of 5: the smallest class has 2 patients.") == 200
    alone = 0
    for seed in range(200):
        alone += any(set(labels[train]) == {1} for train, _ in folds_of(labels, patients, seed, GroupKFold))
    assert alone > 20  # the check bites: folds that only group do leave the class out


@pytest.mark.parametrize("people", [1, 2, 3, 4, 5, 6])
def test_few_patients_make_few_folds(people, capsys):
    """Two to four patients in a class are a message; one is a SetupError."""
    labels = np.repeat([0, 1], [2 * people, 12])
    patients = [f"a{k // 2}" for k in range(2 * people)] + [f"b{k}" for k in range(12)]
    if people == 1:
        with pytest.raises(xray_data.SetupError, match=r"patients\.csv"):
            xray.count_folds(labels, patients)
        return
    assert xray.count_folds(labels, patients) == min(people, 5)
    assert capsys.readouterr().out.startswith(f"{people} folds instead of 5") == (people < 5)
    for seed in range(20):
        folds = folds_of(labels, np.array(patients), seed)
        assert len(folds) == min(people, 5)
        assert all(set(labels[train]) == set(labels[out]) == {0, 1} for train, out in folds)


# --- Black out


@pytest.mark.parametrize("share, margin", [(0, 75), (0.5, 37), (0.7, 22), (0.9, 7)])
def test_black_out_hides_the_center(share, margin):
    """At 150 pixels, the central share of height and width is black; the margins and the original stay."""
    black_out = run_cells(BINARY, "black-out")["black_out"]
    images = np.random.default_rng(0).integers(1, 256, (3, 150, 150, 3), np.uint8)
    before = images.copy()
    hidden = black_out(images, share)
    np.testing.assert_array_equal(images, before)
    expected = np.zeros((150, 150), bool)
    expected[margin : 150 - margin, margin : 150 - margin] = True
    assert hidden.dtype == np.uint8 and not np.shares_memory(hidden, images)
    for image, original in zip(hidden, images):
        np.testing.assert_array_equal((image == 0).all(axis=2), expected)
        np.testing.assert_array_equal(image[~expected], original[~expected])
    side = expected.any(axis=0).sum()
    assert side == 150 - 2 * margin and abs(side - 150 * share) <= 1.01


# --- The article's images


def test_patients_of_the_article_come_from_the_manifest(named):
    """Every patient of the manifest, no more and no fewer; without any patients.csv."""
    files = list(map("/".join, ARTICLE[["split", "class", "filename"]].values))
    assert xray_data.patients_of(named, files) == list(ARTICLE["patient"])


def test_patients_of_other_images(tmp_path):
    """By file: neither names that look alike nor equal numbers in two folders make one patient."""
    alike = [f"train/a/XR_PATIENT_{number:03d}.png" for number in range(1, 6)]
    assert xray_data.patients_of(tmp_path, alike) == alike
    numbered = ["train/a/001.jpg", "test/a/001.jpg", "train/b/001.jpg"]
    assert len(set(xray_data.patients_of(tmp_path, numbered))) == 3
    listing = tmp_path / "patients.csv"
    anna = "file,patient\ntrain/a/001.jpg,anna\ntest/a/001.jpg,anna\n"
    listing.write_text(anna, encoding="utf-8")
    assert xray_data.patients_of(tmp_path, numbered) == ["anna", "anna", "train/b/001.jpg"]
    listing.write_text(anna.replace("anna", ""), encoding="utf-8")
    assert len(set(xray_data.patients_of(tmp_path, numbered))) == 3  # a blank names nobody
    listing.write_text("name,person\nx,y\n", encoding="utf-8")
    with pytest.raises(xray_data.SetupError, match="columns file and patient"):
        xray_data.patients_of(tmp_path, numbered)


def test_load_images_says_what_is_missing(tmp_path):
    """One class, a class in one split alone, and too few to validate: a SetupError each."""
    five = [f"train/a/{number}.png" for number in range(5)]
    one = write_images(tmp_path / "one", *five, "test/a/1.png")
    with pytest.raises(xray_data.SetupError, match="two or more class"):
        xray_data.load_images(one, 8)
    late = write_images(tmp_path / "late", *five, "test/a/1.png", "test/b/1.png")
    with pytest.raises(xray_data.SetupError, match=r"train.b holds no image"):
        xray_data.load_images(late, 8)
    early = write_images(tmp_path / "early", *five, "train/b/1.png", "test/a/1.png")
    with pytest.raises(xray_data.SetupError, match=r"test.b holds no image"):
        xray_data.load_images(early, 8)
    few = ["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png"]
    with pytest.raises(xray_data.SetupError, match="no image to validate on"):
        xray_data.load_images(write_images(tmp_path / "few", *few), 8)
    enough = write_images(tmp_path / "enough", *five, *few)
    images, table = xray_data.load_images(enough, 8)
    assert images.shape == (len(table), 8, 8, 3) and list(table["label"].unique()) == [0, 1]
    assert list(table["split"]).count("validation") == 1


def test_leakage_of_the_article(named):
    """Three COVID-19 test images and one validation image show a patient of the training images."""
    _, table = xray_data.load_images(named, 8)
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
    _, two = xray_data.load_images(named, 8, class_names=FOUR[:2])
    assert list(two["split"]).count("validation") == 26 and len(two) == 148


def test_chance_of_the_articles_figures():
    """21 of 27 right: three of three in 45%. 28 of 36: two of four in 18%, four in 35%."""
    assert hypergeom(27, 21, 3).pmf(3) == pytest.approx(0.45, abs=0.005)
    assert hypergeom(36, 28, 4).pmf(2) == pytest.approx(0.18, abs=0.005)
    assert hypergeom(36, 28, 4).pmf(4) == pytest.approx(0.35, abs=0.005)


# --- Controls


def test_score_controls_by_hand():
    """The 83 controls of 47 patients: 32 and 21 of them have a right answer among the four classes."""
    groups = {"bacterial pneumonia": 32, "viral pneumonia": 21, "other or unspecified": 17, "fungal pneumonia": 13}
    people = {"bacterial pneumonia": 16, "viral pneumonia": 10, "other or unspecified": 10, "fungal pneumonia": 11}
    answers = xray_data.RIGHT_ANSWERS
    always = xray.score_controls(CONTROLS, ["covid"] * 83, answers)
    assert (always["n"], always["patients"], always["predicted_covid"]) == (83, 47, 83)
    assert {name: row["n"] for name, row in always["by_finding"].items()} == groups
    assert {name: row["patients"] for name, row in always["by_finding"].items()} == people
    assert {name: row["predicted_covid"] for name, row in always["by_finding"].items()} == groups
    everyone = xray.effective_number(CONTROLS["patient"])
    assert always["ci95"] == pytest.approx(xray.exact_interval(everyone, everyone))  # a bootstrap has no width
    known = CONTROLS[CONTROLS["group"].isin(list(answers))]
    patients = known["patient"].nunique()
    interval = xray.exact_interval(0, xray.effective_number(known["patient"]))
    expected = {"n": 53, "patients": patients, "correct": 0, "ci95": interval}
    assert always["with_right_answer"] == expected

    normal = xray.score_controls(CONTROLS, ["normal"] * 83, answers)
    assert normal["predicted_covid"] == normal["with_right_answer"]["correct"] == 0
    assert {row["predicted_covid"] for row in normal["by_finding"].values()} == {0}
    bacterial = xray.score_controls(CONTROLS, ["pneumonia_bac"] * 83, answers)["with_right_answer"]
    assert bacterial["correct"] == 32 and bacterial["ci95"][0] < 32 / 53 < bacterial["ci95"][1]
    assert bacterial["ci95"] == xray.share_interval(known["group"] == "bacterial pneumonia", known["patient"])
    viral = xray.score_controls(CONTROLS, ["pneumonia_vir"] * 83, answers)
    assert viral["with_right_answer"]["correct"] == 21

    right = CONTROLS["group"].map(answers).fillna("covid")
    perfect = xray.score_controls(CONTROLS, right, answers)
    assert perfect["with_right_answer"]["correct"] == 53 and perfect["predicted_covid"] == 30
    counts = {name: row["predicted_covid"] for name, row in perfect["by_finding"].items()}
    assert counts == {name: n if n in (17, 13) else 0 for name, n in groups.items()}
    order = np.random.default_rng(0).permutation(83)
    mixed = xray.score_controls(CONTROLS.iloc[order], np.asarray(right)[order], answers)  # whatever the index
    assert mixed == perfect


def test_score_controls_without_a_finding():
    """100 X-rays of 100 patients, all in one group, whose right answer is "normal"."""
    predicted = ["normal"] * 30 + ["covid"] * 60 + ["pneumonia_bac"] * 10
    scored = xray.score_controls(NO_FINDING, predicted, xray_data.RIGHT_ANSWERS)
    assert (scored["n"], scored["patients"], scored["predicted_covid"]) == (100, 100, 60)
    assert scored["by_finding"] == {"no finding": {"n": 100, "patients": 100, "predicted_covid": 60}}
    assert scored["ci95"] == xray.exact_interval(60, 100)
    right = {"n": 100, "patients": 100, "correct": 30, "ci95": xray.exact_interval(30, 100)}
    assert scored["with_right_answer"] == right
    nothing = xray.score_controls(NO_FINDING, predicted, {})["with_right_answer"]
    assert nothing == {"n": 0, "patients": 0, "correct": 0, "ci95": [0, 1]}


def test_score_controls_of_none():
    """Without controls the counts are 0 and the intervals say nothing."""
    scored = xray.score_controls(CONTROLS[:0], [], xray_data.RIGHT_ANSWERS)
    assert scored["n"] == scored["patients"] == scored["predicted_covid"] == 0 and scored["ci95"] == [0, 1]
    assert scored["by_finding"] == {}
    assert scored["with_right_answer"] == {"n": 0, "patients": 0, "correct": 0, "ci95": [0, 1]}


def test_committed_lists_are_consistent():
    """306 images of the article, 83 controls of 47 patients and 100 of 100, none of whom has COVID-19."""
    manifest = xray_data.MANIFEST
    assert manifest["split"].value_counts().to_dict() == {"train": 270, "no_finding": 100, "control": 83, "test": 36}
    assert manifest["filename"].is_unique
    assert (CONTROLS["patient"].nunique(), NO_FINDING["patient"].nunique()) == (47, 100)
    groups = [set(ARTICLE["patient"]), set(CONTROLS["patient"]), set(NO_FINDING["patient"])]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert len(ARTICLE) + len(CONTROLS) + len(NO_FINDING) == len(manifest)
    assert set(xray_data.RIGHT_ANSWERS) <= set(CONTROLS["group"]) | set(NO_FINDING["group"])
    assert set(xray_data.RIGHT_ANSWERS.values()) == set(FOUR[1:])


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
