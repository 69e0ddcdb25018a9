"""Your own images, by kind: what is read is read right, and what would go wrong without a word stops in one line."""

import io
import itertools
import os
import runpy
import sys
import unicodedata
import zlib

import keras
import numpy as np
import own_images
import pytest
import xray_data
from conftest import BINARY, ROOT
from lessons import run_cell
from PIL import Image
from tensorflow.keras.preprocessing.image import ImageDataGenerator
from xray_data import SetupError

GRAY = (np.add.outer(np.arange(40), np.arange(60)) * 2).astype(np.uint8)  # 0 to 196
LEVELS = GRAY / 196
COLOR = np.dstack([GRAY, 255 - GRAY, GRAY // 2])
ONE = "train/apples/traina1.png"


def save(pixels, kind="PNG", **options):
    """The content of an image file."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, **options)
    return content.getvalue()


def write(path, content=None):
    """Write a file, by default a small PNG of its own pixels, and the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(zlib.crc32(str(path).encode())).integers(0, 256, (6, 5, 3), np.uint8)
    path.write_bytes(save(pixels) if content is None else content)


@pytest.fixture
def mine(tmp_path):
    """Images of the reader's own: train/ and test/, apples and pears, five of each, named traina0.png to testp4.png."""
    for split, fruit, index in itertools.product(("train", "test"), ("apples", "pears"), range(5)):
        write(tmp_path / "mine" / split / fruit / f"{split}{fruit[0]}{index}.png")
    return tmp_path / "mine"


def batches_of(folder):
    """A lesson's three generators."""
    options = {"classes": ["apples", "pears"], "shuffle": False}
    read = ImageDataGenerator(validation_split=0.2).flow_from_directory
    train, valid = (read(folder / "train", subset=subset, **options) for subset in ("training", "validation"))
    return train, valid, ImageDataGenerator().flow_from_directory(folder / "test", **options)


def keras_finds(folder):
    """All files that Keras reads."""
    found = {split: ImageDataGenerator().flow_from_directory(folder / split) for split in ("train", "test")}
    return [f"{split}/{name}" for split, batches in found.items() for name in batches.filenames]


# --- who is on an image


def list_patients(folder, *rows):
    """Write patients.csv, and return who is on each image."""
    (folder / "patients.csv").write_text("\n".join(["file,patient", *rows]) + "\n", encoding="utf-8-sig")
    files = xray_data.list_files(folder)
    return dict(zip(files, xray_data.patients_of(folder, files)))


KEYS = ["./train//apples/traina1.png", "train\\apples\\traina1.png", "{}/train/apples/traina1.png", " traina1.png "]


@pytest.mark.parametrize("key", KEYS)
def test_keys_of_patients(key, mine, capsys):
    """Slashes, ./, whole paths, blanks, and a bare name that only one file has mean the same file."""
    found = list_patients(mine, f"{key.format(mine)}, P ", "test/pears/testp0.png,P", "test/pears/testp1.png,")
    assert found[ONE] == found["test/pears/testp0.png"] == "P"
    assert len(set(found.values())) == 19
    printed = capsys.readouterr().out
    assert "18 of 20 images have no patient in patients.csv, such as t" in printed
    assert "match no image" not in printed


@pytest.mark.parametrize("key", ["train/apples/TRAINA1.png", "train/pears/traina1.png", "same.png"])
def test_rows_that_match_nothing_are_counted(key, mine, capsys):
    """Nor do those that may mean two images."""
    for split in ("train", "test"):
        write(mine / split / "pears" / "same.png")
    found = list_patients(mine, f"{key},P", f"{ONE},Q")
    assert found[ONE] == "Q" and "P" not in found.values()
    assert f"1 of 2 rows of patients.csv match no image, or several, such as '{key}'." in capsys.readouterr().out


@pytest.mark.parametrize("text", ["name,who\na,b\n", "file;patient\na;b\n", "", f"file,patient\n{ONE},P\n{ONE},Q\n"])
def test_a_list_of_patients_that_cannot_be_read(text, mine):
    (mine / "patients.csv").write_text(text, encoding="utf-8")
    with pytest.raises(SetupError, match=r"patients\.csv(: .* has two patients| needs the columns file and patient)"):
        xray_data.patients_of(mine, [ONE])


# --- the table of a lesson


def test_the_table_has_kerass_order(mine):
    """Class by class, those to validate on first, as flow_from_dataframe and flow_from_directory see them."""
    table = xray_data.list_images(mine, *batches_of(mine))
    assert list(table["file"]) == keras_finds(mine)
    assert list(table["split"]) == 2 * (["validation"] + 4 * ["train"]) + 10 * ["test"]
    assert (table["file"].str.split("/").str[1] == table["class"]).all()
    assert (table["label"] == (table["class"] == "pears")).all()


@pytest.mark.parametrize(
    "place, left, split", [("train", 0, "validation"), ("train", 4, "validation"), ("test", 0, "test")]
)
def test_a_class_without_images_in_a_split(place, left, split, mine):
    for path in sorted((mine / place / "pears").iterdir())[left:]:
        path.unlink()
    with pytest.raises(SetupError, match=f"^The class pears has no image for the split {split}"):
        xray_data.list_images(mine, *batches_of(mine))


@pytest.mark.parametrize("place, is_said", [("test/apples", True), ("train/pears", True), ("train/apples", False)])
def test_equal_files(place, is_said, mine, capsys):
    """In two splits or two classes they are counted; twice in one place is odd, but nothing leaks."""
    write(mine / place / "zcopy.png", (mine / ONE).read_bytes())
    xray_data.list_images(mine, *batches_of(mine))
    assert ("2 files are equal, byte for byte, to one in another split" in capsys.readouterr().out) == is_said


# --- what check_images and own_images.py refuse, or say


def huge(side):
    """A PNG of so many pixels a side in a few bytes."""
    size = side.to_bytes(4, "big")
    chunks = [b"IHDR" + size + size + b"\1\0\0\0\0", b"IDAT" + zlib.compress(bytes(9))]
    framed = [(len(c) - 4).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big") for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def deep(bits, offset=0):
    """16-bit pixels that use so many bits, from an offset."""
    return (LEVELS * (2**bits - 1) + offset).round().astype(np.uint16)


JPEG = save(np.kron(GRAY, np.ones((8, 8), np.uint8)), "JPEG")
DAMAGED = "cannot be read as an image"
CONVERT = "has more than 8 bits. Convert all images with data/own_images.py"
BAD_IMAGES = {
    "text.jpg": (b"this is no picture", DAMAGED),
    "half.jpg": (JPEG[: len(JPEG) // 2], DAMAGED),
    "half.tif": (save(COLOR, "TIFF")[:900], DAMAGED),
    "._left.jpg": (b"what a Mac leaves behind", "is hidden, and Keras would read it"),
    "dicom.png": (bytes(128) + b"DICM" + bytes(99), "is a DICOM or HEIC file, which is not read here"),
    "phone.jpg": (b"\0\0\0\x18ftypheic" + bytes(99), "is a DICOM or HEIC file, which is not read here"),
    "huge.png": (huge(33_000), "has too many pixels"),
    "12bits.png": (save(deep(12)), CONVERT),
    "offset.png": (save(deep(12, 32768)), CONVERT),
    "white.tif": (save(65535 - deep(16), "TIFF", tiffinfo={262: 0}), CONVERT),
    "black.png": (save(GRAY // 16), "is nearly black, or has hardly any contrast"),
    "flat.bmp": (save(GRAY // 16 + 200, "BMP"), "is nearly black, or has hardly any contrast"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_images_that_would_be_read_wrongly(name, mine):
    content, words = BAD_IMAGES[name]
    write(mine / "train" / "pears" / name, content)
    with pytest.raises(SetupError, match=f"^{mine}/train/pears/{name} {words}.*$"):
        xray_data.check_images(mine)


MAKE = {
    "pipe": lambda path: os.mkfifo(path),
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "folder": lambda path: path.mkdir(),
}
CHECKS = [xray_data.check_images, lambda folder: own_images.prepare(folder, folder / "copy")]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "link to nothing"])
def test_part_1_of_binary_stops_before_it_reads(kind, mine):
    """Its own cell does, because it has no toolbox yet."""
    MAKE[kind](mine / "test" / "apples" / "scan.jpg")
    with pytest.raises(FileNotFoundError, match=r"scan\.jpg is a pipe or a dead link\. Remove it\.$"):
        run_cell(BINARY, "unzip", {"DATASET": mine})


@pytest.mark.timeout(20)
@pytest.mark.parametrize("check", CHECKS, ids=["check_images", "own_images"])
@pytest.mark.parametrize("kind", MAKE)
def test_what_is_no_file(kind, check, mine):
    """A pipe is never opened: who reads it waits forever."""
    with pytest.raises(SetupError, match=r"patients\.csv (is no file|cannot be read)"):
        MAKE[kind](mine / "patients.csv")
        xray_data.read_bytes(mine / "patients.csv")
    (mine / "patients.csv").rename(mine / "test" / "apples" / "scan.jpg")
    with pytest.raises(SetupError, match=r"scan\.jpg is no file, but a folder, a pipe, or a link to nothing\. Remove"):
        check(mine)


@pytest.mark.parametrize("check", CHECKS, ids=["check_images", "own_images"])
@pytest.mark.parametrize("place", ["train/apples/more", "test/pears/more", "train/apples/sub/more"])
def test_linked_subfolders(place, check, mine, tmp_path):
    """Keras passes over them without a word."""
    write(tmp_path / "elsewhere" / "x.png")
    (mine / place).parent.mkdir(exist_ok=True)
    (mine / place).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SetupError, match=f"^{mine}/{place} is a linked folder, which Keras passes over. Copy what"):
        check(mine)


@pytest.mark.parametrize("linked", ["train/apples", "test/pears", "train"])
def test_linked_class_folders(linked, mine, tmp_path):
    """Keras reads these, so they count, the same everywhere."""
    (mine / linked).rename(tmp_path / "elsewhere")
    (mine / linked).symlink_to(tmp_path / "elsewhere")
    assert xray_data.list_files(mine) == keras_finds(mine)
    assert xray_data.check_images(mine) == ["apples", "pears"]


BOTH = ("train", "test")
CLASSES = {  # folders with an image each, beside apples and pears; what is said
    "only in train": (["train/plums"], "The class plums has no image in .*mine/test/plums"),
    "only in test": (["test/figs"], "The class figs has no image in .*mine/train/figs"),
    "two kinds": (["test/figs", "train/figs/a.gif"], "The class figs has no image in .*mine/train/figs"),
    "COVID-19": ([f"{split}/{name}" for split in BOTH for name in ("COVID-19", "covid")], "have one label, COVID-19"),
    "bacterial": (
        [f"{split}/{name}" for split in BOTH for name in ("bacterial pneumonia", "pneumonia_bac")],
        "The classes bacterial pneumonia and pneumonia_bac have one label",
    ),
    "case": ([f"{split}/{name}" for split in BOTH for name in ("Figs", "figs")], "The classes Figs and figs have one"),
}


@pytest.mark.parametrize("case", CLASSES)
def test_classes_that_do_not_do(case, mine):
    places, words = CLASSES[case]
    for place in places:
        write(mine / place if place.endswith(".gif") else mine / place / "x.png")
    with pytest.raises(SetupError, match=words):
        xray_data.check_images(mine)


@pytest.mark.parametrize("gone", [["pears"], ["apples"], ["apples", "pears"]])
def test_fewer_than_two_classes(gone, mine):
    for split, name in itertools.product(BOTH, gone):
        (mine / split / name).rename(mine / f"{split}-{name}")
    with pytest.raises(SetupError, match=f"needs two or more class folders, and has {2 - len(gone)}"):
        xray_data.check_images(mine)


def test_endings(mine, capsys):
    """What Keras reads is read, in its order; the rest is counted by kind, but what systems leave behind."""
    for name, kind in {"a.JPG": "JPEG", "c.bmp": "BMP", "d.ppm": "PPM", "e.tif": "TIFF", "sub/f.PNG": "PNG"}.items():
        write(mine / "train" / "apples" / name, save(COLOR, kind))
    for name in ["a.dcm", "a.heic", "a.webp", "scan", "sub/d.DCM", "Thumbs.db", ".DS_Store", "../loose.png"]:
        write(mine / "train" / "apples" / name, b"x")
    assert xray_data.list_files(mine, quiet=True) == keras_finds(mine)
    assert xray_data.check_images(mine) == ["apples", "pears"]
    printed = capsys.readouterr().out
    for words in ("6 files are not read, such as ", "2 .dcm", "1 .heic", "1 .webp", "1 no ending", "1 .png"):
        assert words in printed


@pytest.mark.parametrize("font", ["", "Noto Sans CJK JP", "Malgun Gothic"])
@pytest.mark.parametrize("name, is_wide", [("肺炎", True), ("はいえん", True), ("폐렴", True), ("Å", False)])
def test_letters_that_no_font_has(name, is_wide, font, mine, monkeypatch, capsys):
    """One line says what a figure cannot show; where a font has the letters, it is used."""
    monkeypatch.setattr(xray_data.matplotlib.font_manager, "get_font_names", lambda: ["DejaVu Sans", font])
    for split in BOTH:
        (mine / split / "pears").rename(mine / split / name)
    assert xray_data.check_images(mine) == sorted(["apples", name])
    assert (f"squares in place of {name}" in capsys.readouterr().out) == (is_wide and not font)
    assert xray_data.installed_cjk_fonts() == ([font] if font else [])


@pytest.mark.parametrize("name", ["two", "phantoms", xray_data.ARTICLE_NAME])
def test_the_name_of_a_folder_means_nothing(name, mine):
    """Nor do the classes' names."""
    for split, (fruit, disease) in itertools.product(BOTH, (("apples", "covid"), ("pears", "normal"))):
        (mine / split / fruit).rename(mine / split / disease)
    mine = mine.rename(mine.with_name(name))
    found = xray_data.identify_dataset(mine, xray_data.list_files(mine))
    assert found["sentence"] == "These are 20 images of your own."
    assert (found["dataset"], found["article"], found["other"]) == (f"own_{name}", 0, 20)


# --- the copy that own_images.py writes

DEEP = {  # 16-bit pixels; what the file is called; and whether white is zero
    "all 16 bits": (deep(16), "png", False),
    "12 bits": (deep(12), "png", False),
    "32768 and 4080 levels": ((32768 + 4080 * LEVELS).astype(np.uint16), "png", False),
    "Hounsfield units": ((32768 - 1000 + 3000 * LEVELS).astype(np.uint16), "tif", False),
    "white is zero, 16 bits": (65535 - deep(16), "tif", True),
    "white is zero, 12 bits": (4095 - deep(12), "tif", True),
    "white is zero, 10 bits": (1023 - deep(10), "tiff", True),
}


@pytest.mark.filterwarnings("ignore:Using ..tiff")
@pytest.mark.parametrize("name", DEEP)
def test_16_bits_become_8(name, mine, tmp_path):
    """As Keras reads the copy, all gray levels are there, but for 1% at either end."""
    pixels, ending, white_is_zero = DEEP[name]
    options = {"kind": "TIFF", "tiffinfo": {262: 0}} if white_is_zero else {"kind": "PNG"}
    write(mine / "train" / "apples" / f"deep.{ending}", save(pixels, **options))
    own_images.prepare(mine, tmp_path / "copy")
    copy = tmp_path / "copy" / "train" / "apples" / f"deep.{ending}"
    found = np.asarray(keras.utils.load_img(copy)).astype(float)
    assert np.abs(found[..., 0] - 255 * LEVELS).max() < 20
    assert len(np.unique(found)) > 80  # of 99 gray levels in GRAY
    assert xray_data.list_files(tmp_path / "copy") == xray_data.list_files(mine)


def test_one_rule_for_a_whole_set(mine, tmp_path):
    """A dark image stays darker than a bright one; a marker and a black border change nothing."""
    images = {"bright": deep(12, 32768), "dark": deep(11, 32768), "marked": deep(11, 32768)}
    images["marked"][:3, :3], images["marked"][-3:] = 65535, 0
    for name, image in images.items():
        write(mine / "train" / "apples" / f"{name}.png", save(image))
    own_images.prepare(mine, tmp_path / "copy")
    folder = tmp_path / "copy" / "train" / "apples"
    bright, dark, marked = (np.asarray(Image.open(folder / f"{name}.png")) for name in images)
    np.testing.assert_array_equal(dark[3:-3], marked[3:-3])
    assert abs(int(bright.max()) - 2 * int(dark.max())) < 20


@pytest.mark.parametrize("name", ["half.jpg", "dicom.png", "huge.png", "black.png"])
def test_the_copy_is_whole_or_not_at_all(name, mine, tmp_path):
    """The original is named, since there is no copy."""
    content, words = BAD_IMAGES[name]
    write(mine / "train" / "pears" / name, content)
    with pytest.raises(SetupError, match=f"^{mine}/train/pears/{name} {words}"):
        own_images.prepare(mine, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_an_image_of_another_scale(mine, tmp_path):
    """12 bits beside 16 bits would be nearly black: that is said, not hidden by a scale of its own."""
    write(mine / "train" / "apples" / "16.png", save(deep(16)))
    for pixels, words in (
        (deep(12), "is nearly black, or has hardly any contrast. Save it as a gray PNG of 8 or 16 bits"),
        (GRAY.astype(np.float32), "has pixels of 32 bits, or with a sign. Save it as a gray PNG of 8 or 16 bits"),
    ):
        write(mine / "train" / "apples" / "other.tif", save(pixels, "TIFF"))
        with pytest.raises(SetupError, match=f"other.tif {words}"):
            own_images.prepare(mine, tmp_path / "copy")


@pytest.mark.parametrize("name", ["a $1 & b$", "50% (new) [x]", "肺炎 Å"])
def test_signs_in_names(name, mine, tmp_path):
    """Images of 8 bits keep their bytes, names, subfolders, and patients, however Unicode is written."""
    for split in BOTH:
        (mine / split / "pears").rename(mine / split / name)
    (mine / ONE).rename(mine / "train" / "apples" / f"{name}.png")
    write(mine / "train" / name / "sub" / "x.png")
    mine = mine.rename(tmp_path / name)
    list_patients(mine, f"{unicodedata.normalize('NFD', name)}.png,P", f"{mine}/train/{name}/sub/x.png,P")
    copy = tmp_path / f"copy {name}"
    own_images.prepare(mine, copy)
    files = xray_data.list_files(mine)
    assert all((copy / file).read_bytes() == (mine / file).read_bytes() for file in files)
    assert xray_data.patients_of(copy, files).count("P") == 2
    assert xray_data.check_images(copy) == sorted(["apples", name])


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["mine"], "^Usage: python data/own_images.py FOLDER COPY$"),
        (["mine", "mine"], r"^Problem: mine exists\. Name a folder that does not\.$"),
        (["typo", "copy"], r"^Problem: typo/train is no folder\. It must hold a folder for each class\.$"),
        (["mine", "file/copy"], r"^Problem: file/copy cannot be written: Not a directory\.$"),
    ],
)
def test_the_command_line(arguments, words, mine, tmp_path, monkeypatch):
    """What is wrong is one line, with exit status 1 as Python ends with a text."""
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["own_images.py", *arguments])
    with pytest.raises(SystemExit, match=words):
        runpy.run_path(str(ROOT / "data" / "own_images.py"), run_name="__main__")
