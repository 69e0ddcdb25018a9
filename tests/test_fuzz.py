"""Whatever bytes come, what reads files either understands them or says so in one sentence; nothing else is raised."""

import io
import os
import zipfile

import cv2
import numpy as np
import pandas as pd
from conftest import ZIP_NAME
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
def test_image_headers(nb, tmp_path, picture, cuts):
    """Good images with bytes replaced anywhere, and plain noise."""
    data = bytearray(picture)
    for place, new in cuts:
        data[place : place + len(new)] = new
    path = tmp_path / "image.png"
    path.write_bytes(data)
    try:
        image = nb["read_image"](path)
    except nb["Problem"] as problem:
        assert str(path) in str(problem)
    else:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


NAMES = st.text(st.sampled_from("ab./\\:~ é"), min_size=1, max_size=12) | st.sampled_from(
    ["two/x", "all/y", "../z", "/etc/w", "two/../../v"]
)


@relaxed
@given(names=st.lists(NAMES, max_size=5), garbage=st.binary(max_size=30), place=st.integers(0, 200))
def test_zip_members(nb, tmp_path_factory, names, garbage, place):
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
    (home / ZIP_NAME).write_bytes(data)
    try:
        nb["unzip_images"](home / ZIP_NAME, home)
    except nb["Problem"] as problem:
        assert ZIP_NAME in str(problem)
    assert {path.name for path in home.iterdir()} <= {ZIP_NAME, "two", "all"}
    assert [path.name for path in outside.iterdir()] == ["a"] and [
        path.name for path in (outside / "a" / "b").iterdir()
    ] == ["data"]


@relaxed
@given(
    text=st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=8)
    | st.integers().map(str)
)
def test_settings(nb, text):
    os.environ["NUM_EPOCHS"] = text
    try:
        value = nb["whole_number"]("NUM_EPOCHS", 20)
        assert value == int(text) and 1 <= value <= 999999
    except nb["Problem"] as problem:
        assert "NUM_EPOCHS" in str(problem)
    finally:
        del os.environ["NUM_EPOCHS"]


@relaxed
@given(name=st.text(max_size=40))
def test_patient_of_any_name(nb, name):
    """A patient has a name for every file name, and the same one for another image of the same publication."""
    assert isinstance(nb["patient_of"](name), str)


FIELD = st.text(st.sampled_from('aX-0. /,"\n'), max_size=10) | st.sampled_from(
    ["PA", "X-ray", "COVID-19", "Pneumonia/Viral/SARS", "todo"]
)


@relaxed
@given(rows=st.lists(st.lists(FIELD, min_size=5, max_size=5), max_size=6))
def test_metadata_lines(nb, rows):
    """Any fields in the collection's table: what is kept is not COVID-19, and its name leads nowhere else."""
    table = pd.DataFrame(rows, columns=["patientid", "finding", "view", "modality", "filename"])
    text = table.to_csv(index=False)
    read = pd.read_csv(io.StringIO(text), dtype=str)
    chosen = nb["select_controls"](read)
    assert len(chosen) <= len(rows) and list(chosen.columns) == ["filename", "finding", "patient"]
    assert not chosen["finding"].str.contains("COVID-19").any()
    assert not any("/" in name or name.startswith(".") for name in chosen["filename"])
