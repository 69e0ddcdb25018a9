"""Whatever bytes come, what reads files either understands them or says so in one sentence; nothing else is raised."""

import io
import re
import zipfile

import cv2
import dataset
import numpy as np
import xray
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

COUNT = 300
relaxed = settings(max_examples=COUNT, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PNG = cv2.imencode(".png", np.arange(48 * 40, dtype=np.uint16).reshape(48, 40))[1].tobytes()
JPEG = cv2.imencode(".jpg", np.arange(48 * 40).reshape(48, 40).astype(np.uint8))[1].tobytes()


@relaxed
@given(
    picture=st.sampled_from([PNG, JPEG, b""]),
    cuts=st.lists(st.tuples(st.integers(0, 2500), st.binary(max_size=12)), max_size=4),
)
def test_image_headers(tmp_path, picture, cuts):
    """Good images with bytes replaced anywhere, and plain noise."""
    data = bytearray(picture)
    for place, new in cuts:
        data[place : place + len(new)] = new
    path = tmp_path / "image.png"
    path.write_bytes(data)
    try:
        image = dataset.read_image(path)
    except dataset.Problem as problem:
        assert str(path) in str(problem)
    else:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


NAMES = st.text(st.sampled_from("ab./\\:~ é"), min_size=1, max_size=12) | st.sampled_from(
    ["two/x", "all/y", "../z", "/etc/w", "two/../../v", "two/NUL", "all/com1.txt", "all/x.", "two/" + "n" * 300]
)


@relaxed
@given(names=st.lists(NAMES, max_size=5), garbage=st.binary(max_size=30), place=st.integers(0, 200))
def test_zip_members(tmp_path_factory, names, garbage, place):
    """Zips with any member names, some of them damaged: nothing is ever written outside the folder."""
    outside = tmp_path_factory.mktemp("zip")
    home = outside / "a" / "b" / "data"
    home.mkdir(parents=True)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name in dict.fromkeys(names):
            zipped.writestr(name, b"content" * 5)
    data = bytearray(buffer.getvalue())
    data[place : place + len(garbage)] = garbage
    (home / dataset.ZIP_NAME).write_bytes(data)
    try:
        dataset.unzip_images(home / dataset.ZIP_NAME, home)
    except dataset.Problem as problem:
        assert dataset.ZIP_NAME in str(problem)
    assert {path.name for path in home.iterdir()} <= {dataset.ZIP_NAME, "two", "all"}
    assert [path.name for path in outside.iterdir()] == ["a"]
    assert [path.name for path in (outside / "a" / "b").iterdir()] == ["data"]


@relaxed
@given(name=st.text(max_size=12) | st.text(st.sampled_from("aCONul1.:/\\ \0\n"), max_size=8))
def test_names_from_outside(name):
    """What passes is one plain part of a path on Linux, macOS, and Windows alike."""
    if dataset.is_safe(name):
        assert name and not set(name) & set('\\/:*?"<>|\0\n') and name not in (".", "..") and len(name) <= 200
        assert not re.fullmatch(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", name) and name[-1] not in " ."


def test_names_that_are_refused():
    for name in ("", ".", "..", "C:evil.jpg", "a/b", "a\\b", "NUL", "com1.txt", "x.", "x ", "a\0b", "a\nb", "n" * 201):
        assert not dataset.is_safe(name), name
    for name in ("1-s2.0-S0140673620303706-fx1_lrg.jpg", "nejmoa2001191_f3-PA.jpeg", "Ärzte 1.png", "console.jpg"):
        assert dataset.is_safe(name), name


@relaxed
@given(
    text=st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=8)
    | st.integers().map(str)
)
def test_settings(text):
    """A setting is a whole number within its range, or a sentence that names it."""
    try:
        value = xray.whole_number("NUM_EPOCHS", text)
        assert value == int(text.strip()) and 1 <= value <= 999999
    except dataset.Problem as problem:
        assert "NUM_EPOCHS" in str(problem)


CELL = st.text(st.sampled_from('ab/.,"\n\r é0'), max_size=12)


@relaxed
@given(
    rows=st.lists(st.lists(CELL, min_size=1, max_size=3), max_size=5), head=st.sampled_from(["file,patient", "a,b", ""])
)
def test_lists_of_patients(tmp_path, rows, head):
    """Any patients.csv: each file has a patient, or the table's problem is said."""
    files = ["train/a/1.png", "test/a/1.png", "a"]
    text = "\n".join([head, *(",".join(row) for row in rows)])
    (tmp_path / "patients.csv").write_text(text, encoding="utf-8")
    try:
        patients = dataset.patients_of(tmp_path, files)
        assert len(patients) == 3 and all(patients)
    except dataset.Problem as problem:
        assert "patients.csv" in str(problem)
