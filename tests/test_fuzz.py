"""Whatever bytes come, what reads files either understands them or says so in one sentence; nothing else is raised."""

import io
import os
import re
import zipfile
from unittest import mock

import cv2
import numpy as np
import pytest
import xray
import xray_data
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
        image = xray_data.read_image(path)
    except xray_data.SetupError as error:
        assert str(path) in str(error)
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
    (home / xray_data.ZIP_NAME).write_bytes(data)
    try:
        xray_data.unzip_images(home / xray_data.ZIP_NAME, home)
    except xray_data.SetupError as error:
        assert xray_data.ZIP_NAME in str(error)
    assert {path.name for path in home.iterdir()} <= {xray_data.ZIP_NAME, "two", "all"}
    assert [path.name for path in outside.iterdir()] == ["a"]
    assert [path.name for path in (outside / "a" / "b").iterdir()] == ["data"]


@relaxed
@given(name=st.text(max_size=12) | st.text(st.sampled_from("aCONul1.:/\\ \0\n"), max_size=8))
def test_names_from_outside(name):
    """What passes is one plain part of a path on Linux, macOS, and Windows alike."""
    if xray_data.is_safe(name):
        assert name and not set(name) & set('\\/:*?"<>|\0\n') and name not in (".", "..") and len(name) <= 200
        assert not re.fullmatch(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", name) and name[-1] not in " ."


def test_names_that_are_refused():
    for name in ("", ".", "..", "C:evil.jpg", "a/b", "a\\b", "NUL", "com1.txt", "x.", "x ", "a\0b", "a\nb", "n" * 201):
        assert not xray_data.is_safe(name), name
    for name in ("1-s2.0-S0140673620303706-fx1_lrg.jpg", "nejmoa2001191_f3-PA.jpeg", "Ärzte 1.png", "console.jpg"):
        assert xray_data.is_safe(name), name


TEXT = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=8)
NUMBER = st.text(st.sampled_from("0123456789.eE+-_ \n"), max_size=8)  # nearly a number
FALSY = st.sampled_from(["", "0", " ", "0.0", "-0", "00", "none", "nan", "inf", "1e400", "0x10", "1_0", "٣"])
SETTING = TEXT | NUMBER | FALSY | st.integers().map(str) | st.floats().map(str)


def check(name, text, value):
    """Read a setting; `text` is what it was given as. The answer is its number in range, or a sentence."""
    kind, least, most = xray.SETTINGS[name]
    try:
        number = xray.setting(name, value)
    except xray_data.SetupError as error:
        sentence = f"{name} is {text.strip()!r}. Set it to a"
        assert str(error).startswith(sentence) and re.search(r" number from \S+ to \S+\.$", str(error))
        assert "\n" not in str(error)
    else:
        assert type(number) is kind and least <= number <= most
        assert number == kind(text) and text.isascii() and "_" not in text


@pytest.mark.parametrize("name", xray.SETTINGS)
@relaxed
@given(text=SETTING)
def test_settings(name, text):
    """A setting is a number within its range, or a sentence that names it: as value, and from the environment."""
    check(name, text, text)
    with mock.patch.dict(os.environ, {name: text}):
        if text:
            check(name, text, xray.SETTINGS[name][2])  # a good value does not hide what the variable says
        else:
            assert xray.setting(name, xray.SETTINGS[name][2]) == xray.SETTINGS[name][2]  # empty: not set


@pytest.mark.parametrize("name", xray.SETTINGS)
@pytest.mark.parametrize("value", ["", 0, 0.0, None, False, True, [], (), {}, b"", float("nan"), float("inf"), -1])
def test_settings_of_other_types(name, value):
    """What Python takes for false is no way around the check; the one good value among these is the seed 0."""
    if name == "SEED" and value == 0 and type(value) is int:
        assert xray.setting(name, value) == 0
    else:
        with pytest.raises(xray_data.SetupError, match=f"^{name} is .*Set it to a"):
            xray.setting(name, value)


@pytest.mark.parametrize("name", xray.SETTINGS)
def test_ends_of_the_ranges(name):
    """The least and the most are allowed, and nothing beyond them."""
    kind, least, most = xray.SETTINGS[name]
    assert [xray.setting(name, value) for value in (least, most)] == [least, most]
    step = 1 if kind is int else least / 10
    for value in (least - step, most + step):
        with pytest.raises(xray_data.SetupError, match=f"^{name} is "):
            xray.setting(name, value)


@relaxed
@given(rows=st.lists(st.lists(st.text(st.sampled_from('ab/.,"\n\r é0')), min_size=1, max_size=4), max_size=5))
@pytest.mark.parametrize("head", ["filename,group,patient", "filename", "a,b", "", "filename,group,patient,file"])
def test_lists_of_controls(tmp_path, head, rows):
    """Any list of controls: the table has its columns, and names no file that is not there."""
    folder = tmp_path / "controls"
    folder.mkdir(exist_ok=True)
    (folder / "a.jpg").write_bytes(JPEG)
    text = "\n".join([head, "a.jpg,viral pneumonia,7", *(",".join(row) for row in rows)])
    (folder / "controls.csv").write_text(text, encoding="utf-8")
    table = xray_data.find_controls(tmp_path)
    assert {"file", "filename", "group", "patient"} <= set(table) and all(path.is_file() for path in table["file"])


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
        patients = xray_data.patients_of(tmp_path, files)
        assert len(patients) == 3 and all(patients)
    except xray_data.SetupError as error:
        assert "patients.csv" in str(error)
