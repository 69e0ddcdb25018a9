"""Your own images, by kind: what is read is read right, and what is not read is said."""

import errno
import io
import itertools
import os
import runpy
import sys
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import own_images
import pytest
import xray_data
from conftest import BINARY, MULTI, ROOT
from lessons import run_cell
from PIL import Image
from xray_data import SetupError

GRAY = (np.add.outer(np.arange(40), np.arange(60)) * 2).astype(np.uint8)  # 0 to 196
COLOR = np.dstack([GRAY, 255 - GRAY, GRAY // 2])
DEEP = GRAY.astype(np.uint16) * 257
ONE = "train/apples/traina1.png"
TABLE_CELLS = ["imports", "settings", "places", "read-image", "classes", "examples", "cases"]
TABLE_CELLS += ["shrink", "shrink-all", "augmentation", "batches", "table"]


def write_picture(path, number=0):
    """A small PNG, whatever the name; each number has pixels of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (6, 5, 3), np.uint8)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


@pytest.fixture
def mine(tmp_path):
    """Images of the reader's own: train/ and test/, apples and pears, five of each, named traina0.png to testp4.png."""
    numbers = itertools.count()
    for split, fruit, index in itertools.product(("train", "test"), ("apples", "pears"), range(5)):
        write_picture(tmp_path / "mine" / split / fruit / f"{split}{fruit[0]}{index}.png", next(numbers))
    return tmp_path / "mine"


@pytest.fixture
def lesson(tmp_path, monkeypatch):
    """Run Multi's cells up to its table on a folder, alone in a folder of its own; returns the variables."""

    def run(folder):
        place = tmp_path / "lesson"
        place.mkdir(exist_ok=True)
        monkeypatch.chdir(place)
        monkeypatch.setenv("COVID_XRAY_DATA", str(folder))
        variables = {"os": os}
        for name in TABLE_CELLS:
            run_cell(MULTI, name, variables)
        return variables

    return run


def images_of(folder):
    """The images of a folder that the lessons read, with patients as patients.csv says."""
    files = xray_data.list_files(folder)
    return dict(zip(files, xray_data.patients_of(folder, files)))


def list_patients(folder, *rows):
    """Write patients.csv, and return who is on each image."""
    (folder / "patients.csv").write_text("\n".join(["file,patient", *rows]) + "\n", encoding="utf-8-sig")
    return images_of(folder)


@pytest.mark.parametrize(
    "key",
    ["./train//apples/traina1.png", "train\\apples\\traina1.png", "{folder}/train/apples/traina1.png", " traina1.png "],
)
def test_keys_of_patients(key, mine, capsys):
    """Slashes, ./, whole paths, blanks, and a bare name that only one file has mean the same file."""
    found = list_patients(mine, f"{key.format(folder=mine)}, P ", "test/pears/testp0.png,P")
    assert found[ONE] == found["test/pears/testp0.png"] == "P"
    assert len(set(found.values())) == 19
    printed = capsys.readouterr().out
    assert "18 of 20 images have no patient in patients.csv, such as t" in printed
    assert "match no image" not in printed


@pytest.mark.parametrize("on_disk, in_table", [("NFC", "NFD"), ("NFD", "NFC")])
def test_unicode_in_keys(on_disk, in_table, mine):
    on_disk, in_table = (unicodedata.normalize(form, "Åsa.png") for form in (on_disk, in_table))
    write_picture(mine / "train" / "apples" / on_disk, 99)
    assert list_patients(mine, f"train/apples/{in_table},P")[f"train/apples/{on_disk}"] == "P"


@pytest.mark.parametrize("key", ["train/apples/TRAINA1.png", "train/pears/traina1.png", "elsewhere/a.png"])
def test_rows_that_match_nothing_are_counted(key, mine, capsys):
    found = list_patients(mine, f"{key},P", f"{ONE},Q")
    assert found[ONE] == "Q"
    assert "P" not in found.values()
    assert f"1 of 2 rows of patients.csv match no image, such as '{key}'." in capsys.readouterr().out


@pytest.mark.parametrize("one, other", [(ONE, ONE), ("train\\apples\\traina1.png", "traina1.png"), ("same.png", ONE)])
def test_contradictions_are_refused(one, other, mine):
    """An image with two patients, and a row that may mean two images."""
    for number, split in enumerate(("train", "test")):
        write_picture(mine / split / "pears" / "same.png", 50 + number)
    with pytest.raises(SetupError, match=r"patients\.csv: .*(traina1|same)\.png (has two patients|is the name of 2)"):
        list_patients(mine, f"{one},P", f"{other},Q")
    assert list_patients(mine, f"{ONE},P", f" {ONE}, P")[ONE] == "P"  # said twice is no contradiction


@pytest.mark.parametrize("text", ["name,who\na,b\n", "file;patient\na;b\n", ""])
def test_a_list_of_patients_that_cannot_be_read(text, mine):
    (mine / "patients.csv").write_text(text, encoding="utf-8")
    with pytest.raises(SetupError, match=r"patients\.csv needs the columns file and patient"):
        images_of(mine)


def test_other_classes_in_binary(mine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COVID_XRAY_DATA", str(mine))
    variables = {"os": os}
    with pytest.raises(FileNotFoundError, match=r"mine.train.covid has no image\. Use Multi instead"):
        for name in ("imports", "settings", "places", "examples"):
            run_cell(BINARY, name, variables)


@pytest.mark.parametrize("place, is_told", [("test/apples", True), ("train/pears", True), ("train/apples", False)])
def test_equal_files(place, is_told, mine, lesson, capsys):
    """In two splits or two classes they are counted; twice in one place is odd, but nothing leaks."""
    (mine / place / "zcopy.png").write_bytes((mine / ONE).read_bytes())
    lesson(mine)
    told = "2 files are equal, byte for byte, to one in another split or class, such as train/"
    assert (told in capsys.readouterr().out) == is_told


@pytest.mark.parametrize("name", ["two", "phantoms", xray_data.ARTICLE_NAME])
def test_the_name_of_a_folder_means_nothing(name, tmp_path):
    """Nor do the classes' names."""
    folder = tmp_path / name
    for number, place in enumerate(itertools.product(("train", "test"), ("covid", "normal"), "01234")):
        write_picture(folder.joinpath(*place).with_suffix(".png"), number)
    found = xray_data.check_files(folder, xray_data.list_files(folder))
    assert found["sentence"] == "These are 20 images of your own."
    assert (found["dataset"], found["article"], found["other"]) == (f"own_{name}", 0, 20)


@pytest.mark.parametrize("name", ["a $1 & b$", "50% (new) [x]"])
def test_signs_in_names(name, mine, tmp_path, lesson):
    """In the name of the folder, of a class, and of a file, in the script and in the lesson."""
    mine = mine.rename(tmp_path / name)
    (mine / "train" / "pears").rename(mine / "train" / name)
    (mine / "test" / "pears").rename(mine / "test" / name)
    (mine / ONE).rename(mine / "train" / "apples" / f"{name}.png")
    own_images.prepare(mine, tmp_path / f"copy {name}")
    for folder in (mine, tmp_path / f"copy {name}"):
        table = lesson(folder)["table"]
        assert len(table) == 20
        assert f"train/apples/{name}.png" in set(table["file"])
        assert set(table["class"]) == {"apples", name}


@pytest.mark.parametrize("ending", [".jpeg", ".JPG", ".jfif", ".bmp", ".webp"])
def test_endings_that_are_read(ending, mine, tmp_path, capsys):
    path = mine / "train" / "apples" / f"zz{ending}"
    Image.fromarray(COLOR).save(path, format="JPEG" if ending == ".jfif" else None)
    own_images.prepare(mine, tmp_path / "copy")
    assert "not read" not in capsys.readouterr().out
    is_kept = ending.lower() in xray_data.IMAGE_SUFFIXES
    copy = tmp_path / "copy" / "train" / "apples" / f"zz{ending}{'' if is_kept else '.png'}"
    assert (copy.read_bytes() == path.read_bytes()) == is_kept
    assert np.abs(cv2.imread(str(copy))[..., ::-1].astype(int) - COLOR).mean() < 3


def test_files_that_are_not_read_are_counted_by_kind(mine, tmp_path, capsys):
    """But for hidden ones, and what operating systems leave behind."""
    for name in ["a.dcm", "b.dcm", "a.heic", "scan", "sub/d.DCM", "Thumbs.db", "._traina1.png", ".hidden.jpg"]:
        (mine / "train" / "apples" / name).parent.mkdir(exist_ok=True)
        (mine / "train" / "apples" / name).write_bytes(b"x")
    for place in ("val/apples/1.png", "val/pears/2.png", "train/loose.png"):
        write_picture(mine / place, len(place))
    own_images.prepare(mine, tmp_path / "copy")
    printed = capsys.readouterr().out
    assert "5 files are not read, such as train/apples/a.dcm (3 .dcm, 1 .heic, 1 no ending)" in printed
    assert "2 images in val/ are not read" in printed
    assert "1 images in train/ are in no class folder, such as loose.png. Not read." in printed
    assert len(images_of(tmp_path / "copy")) == 20


def test_folders_and_counts_that_do_not_do(mine, tmp_path, lesson):
    """A class that test/ lacks, and a class too small to validate on."""
    write_picture(mine / "train" / "plums" / "x.png", 7)
    with pytest.raises(SetupError, match="test.plums holds no image. Every class needs some in train/ and in test/"):
        own_images.prepare(mine, tmp_path / "copy")
    (mine / "test" / "plums").mkdir()
    with pytest.raises(SetupError, match="a class has no image for the split validation. Put five or more"):
        lesson(mine)


def tiff(pixels, white_is_zero=False):
    """A TIFF of pixels; of 8 bits, Pillow inverts what is to be stored with white as zero, but not of 16."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "TIFF", tiffinfo={262: 0} if white_is_zero else {})
    return content.getvalue()


TIFFS = {
    "gray, 16 bits": (tiff(DEEP), GRAY),
    "white is zero, 8 bits": (tiff(GRAY, white_is_zero=True), GRAY),
    "white is zero, 16 bits": (tiff(65535 - DEEP, white_is_zero=True), GRAY),
    "RGB, 8 bits": (tiff(COLOR), COLOR),
    "RGB, 16 bits": (cv2.imencode(".tif", COLOR[..., ::-1].astype(np.uint16) * 257)[1].tobytes(), COLOR),
    "floating point": (tiff(GRAY.astype(np.float32)), "32 bits"),
}


@pytest.mark.parametrize("name", TIFFS)
def test_kinds_of_tiff(name, tmp_path):
    """Each is read right, or named with what to do: no good file is called damaged, none is read wrongly."""
    content, expected = TIFFS[name]
    (tmp_path / "x.tif").write_bytes(content)
    if isinstance(expected, str):
        with pytest.raises(SetupError, match=rf"x\.tif .*{expected}.*Save it as an 8-bit or 16-bit PNG"):
            own_images.decode(tmp_path / "x.tif")
    else:
        found = own_images.decode(tmp_path / "x.tif")
        expected = expected if expected.ndim == 3 else np.dstack([expected] * 3)
        np.testing.assert_array_equal(found if found.dtype == np.uint8 else found >> 8, expected)


JPEG = cv2.imencode(".jpg", np.kron(GRAY, np.ones((8, 8), np.uint8)))[1].tobytes()
DAMAGED = "cannot be read as an image. Replace or delete it"
NOT_READ = {
    "text.jpg": (b"this is no picture", DAMAGED),
    "half.jpg": (JPEG[: len(JPEG) // 2], DAMAGED),
    "half.tif": (tiff(DEEP)[:900], DAMAGED),
    "dicom.png": (bytes(128) + b"DICM" + bytes(99), "is a DICOM file, which is not read here. Save it as"),
    "phone.jpg": (b"\0\0\0\x18ftypheic" + bytes(99), "is a HEIC or AVIF file, which is not read here. Save it as"),
}


@pytest.fixture(scope="module")
def shrink():
    """Shrink one image to 150 x 150 pixels as a lesson does."""
    variables = {"OUTPUT": Path("nowhere"), "IMAGE_SIZE": 150, "cv2": cv2, "np": np}
    for name in ("read-image", "shrink"):
        run_cell(MULTI, name, variables)
    return variables["shrink"]


@pytest.mark.parametrize("name", NOT_READ)
def test_damage_and_other_kinds_of_files(name, mine, tmp_path, shrink):
    """The script, the toolbox, and the lessons refuse them, and the script tells one from the other."""
    content, words = NOT_READ[name]
    path = mine / "train" / "pears" / name
    path.write_bytes(content)
    with pytest.raises(SetupError, match=f"{name} {words}"):
        own_images.prepare(mine, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    with pytest.raises(SetupError, match=f"{name} is no image, or nearly black"):
        xray_data.read_image(path)
    with pytest.raises(ValueError, match=f"{name} (cannot be read|is nearly black). Replace or delete it."):
        shrink(path, tmp_path / "small.png")


def marked(image):
    """The image with a white marker in its corner, as burned-in letters are."""
    image = image.copy()
    image[:3, :3] = 65535
    return image


def test_one_scale_for_a_whole_set(mine, tmp_path):
    """A dark image of 12 bits stays darker than a bright one, and a marker changes nothing."""
    deep = GRAY.astype(np.uint16)
    images = {"bright": deep << 4, "dark": deep << 3, "marked": marked(deep << 3)}
    for name, image in images.items():
        cv2.imwrite(str(mine / "train" / "apples" / f"{name}.png"), image)
    own_images.prepare(mine, tmp_path / "copy")
    copies = [cv2.imread(str(tmp_path / "copy" / "train" / "apples" / f"{name}.png.png")) for name in images]
    assert [image[10:].max() for image in copies] == [196, 98, 98]


def test_nearly_black_but_for_a_marker(mine, tmp_path, shrink):
    """The lessons refuse 12 bits in 16; so does the script where other images use all 16."""
    path = mine / "train" / "apples" / "dark.png"
    cv2.imwrite(str(path), marked(GRAY.astype(np.uint16) << 4))
    with pytest.raises(ValueError, match="dark.png is nearly black"):
        shrink(path, tmp_path / "small.png")
    cv2.imwrite(str(path.with_name("bright.png")), DEEP)
    with pytest.raises(SetupError, match=f"{path} is nearly black. Replace or delete it"):
        own_images.prepare(mine, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_the_copy_in_a_lesson(mine, tmp_path, lesson, capsys):
    """Images keep their pixels, subfolders, and patients, and those of 8 bits their bytes."""
    kept, converted = {ONE, "train/apples/traina2.png"}, {"train/apples/deep.png", "train/apples/sub/gray.tif"}
    (mine / "train" / "apples" / "sub").mkdir()
    cv2.imwrite(str(mine / "train" / "apples" / "deep.png"), DEEP)
    (mine / "train" / "apples" / "sub" / "gray.tif").write_bytes(tiff(GRAY))
    list_patients(mine, "deep.png,P", "train/apples/sub/gray.tif,P", *(f"{name},P" for name in kept))
    copy = tmp_path / "made" / "copy"
    own_images.prepare(mine, copy)
    assert f"22 images are in {copy}. Set COVID_XRAY_DATA to {copy}." in capsys.readouterr().out
    table = lesson(copy)["table"]
    assert len(table) == 22
    assert set(table.loc[table["patient"] == "P", "file"]) == kept | {f"{name}.png" for name in converted}
    assert all((copy / name).read_bytes() == (mine / name).read_bytes() for name in kept)
    for name in converted:
        np.testing.assert_array_equal(xray_data.read_image(copy / f"{name}.png"), np.dstack([GRAY] * 3))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["mine"], "^Usage: python data/own_images.py FOLDER COPY$"),
        (["mine", "mine"], r"^Problem: mine exists\. Name a folder that does not\.$"),
        (["typo", "copy"], r"^Problem: typo/train cannot be listed: No such file or directory\.$"),
    ],
)
def test_the_command_line(arguments, words, mine, tmp_path, monkeypatch):
    """What is wrong is one line, with exit status 1 as Python ends with a text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["own_images.py", *arguments])
    with pytest.raises(SystemExit, match=words):
        runpy.run_path(str(ROOT / "data" / "own_images.py"), run_name="__main__")


def test_errors_of_the_file_system_are_one_line_with_the_file(mine, tmp_path, monkeypatch):
    with pytest.raises(SetupError, match=r"^typo\.png cannot be read: No such file or directory\.$"):
        xray_data.read_bytes(Path("typo.png"))
    refused = PermissionError(errno.EACCES, "Permission denied", "apples")
    monkeypatch.setattr(own_images.os, "walk", lambda top, onerror: onerror(refused))
    with pytest.raises(SetupError, match="^apples cannot be listed: Permission denied"):
        own_images.prepare(mine, tmp_path / "copy")


def test_a_full_disk(mine, tmp_path, monkeypatch):
    """Nothing half is left of the copy."""

    def fill(path, mode):
        if path.name == "testp4.png":
            raise OSError(errno.ENOSPC, "No space left on device")
        return open(path, mode)

    monkeypatch.setattr(own_images, "open", fill, raising=False)
    with pytest.raises(SetupError, match=r"testp4\.png cannot be written: No space left on device\.$"):
        own_images.prepare(mine, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
