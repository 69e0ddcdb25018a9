"""Your own images, by kind: what is read is read right, and what is not read is said."""

import errno
import itertools
import os
import re
import runpy
import struct
import sys
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import own_images
import pandas as pd
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
TABLE_CELLS = ["imports", "settings", "places", "examples", "cases", "shrink", "shrink-all"]
TABLE_CELLS += ["augmentation", "batches", "table"]


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


# --- who is on an image


@pytest.mark.parametrize(
    "key",
    [
        *["./train/apples/traina1.png", "train\\apples\\traina1.png", "train//apples/./traina1.png"],
        *["{folder}/train/apples/traina1.png", "{folder}/../mine/train/apples/traina1.png", "{link}/" + ONE],
        *[" train/apples/traina1.png", "train/apples/traina1.png ", '"\ttrain/apples/traina1.png"'],
        *["traina1.png", " ./traina1.png", ".\\train\\apples\\traina1.png"],
    ],
)
def test_keys_of_patients(key, mine, tmp_path, capsys):
    """Slashes, ./, whole paths, blanks, and a bare name that only one file has mean the same file."""
    (tmp_path / "link").symlink_to(mine)
    folder = tmp_path / "link" if "{link}" in key else mine
    found = list_patients(folder, f"{key.format(folder=mine, link=folder)}, P ", "test/pears/testp0.png,P")
    assert found[ONE] == found["test/pears/testp0.png"] == "P"
    assert len(set(found.values())) == 19
    printed = capsys.readouterr().out
    assert "18 of 20 images have no patient in patients.csv, such as t" in printed
    assert "match no image" not in printed


@pytest.mark.parametrize("name", ["Åsa.png", "père $1 & 2.png", "が.png"])
@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_unicode_in_keys(name, forms, mine):
    on_disk, in_table = (unicodedata.normalize(form, name) for form in forms)
    write_picture(mine / "train" / "apples" / on_disk, 99)
    assert list_patients(mine, f"train/apples/{in_table},P")[f"train/apples/{on_disk}"] == "P"


@pytest.mark.parametrize("key", ["train/apples/TRAINA1.png", "train/pears/traina1.png", "elsewhere/a.png"])
def test_rows_that_match_nothing_are_counted(key, mine, capsys):
    found = list_patients(mine, f"{key},P", f"{ONE},Q")
    assert found[ONE] == "Q"
    assert "P" not in found.values()
    assert f"1 of 2 rows of patients.csv match no image, such as '{key}'." in capsys.readouterr().out


@pytest.mark.parametrize(
    "rows",
    [
        (f"{ONE},P", f"{ONE},Q"),
        (f"{ONE},P", f"./{ONE} ,p"),
        ("train\\apples\\traina1.png,P", "traina1.png,Q"),
        ("same.png,P",),  # two files have this name
    ],
)
def test_contradictions_are_refused(rows, mine):
    for number, split in enumerate(("train", "test")):
        write_picture(mine / split / "pears" / "same.png", 50 + number)
    with pytest.raises(SetupError, match=r"patients\.csv: .*(traina1|same)\.png (has two patients|is the name of 2)"):
        list_patients(mine, *rows)
    assert list_patients(mine, f"{ONE},P", f" {ONE}, P")[ONE] == "P"  # said twice is no contradiction


@pytest.mark.parametrize("text", ["name,who\na,b\n", "file;patient\na;b\n", "", "file\na\n", 'file,patient\n"a,b\n'])
def test_a_list_of_patients_that_cannot_be_read(text, mine):
    (mine / "patients.csv").write_text(text, encoding="utf-8")
    with pytest.raises(SetupError, match=r"patients\.csv needs the columns file and patient"):
        images_of(mine)


# --- equal files, and names


@pytest.mark.parametrize(
    "copies, count",
    [
        (["test/apples/copy.png"], 2),  # in two splits
        (["train/pears/copy.png"], 2),  # in two classes
        (["test/apples/copy.png", "test/pears/sub/other.png"], 3),
        (["train/apples/zcopy.png"], 0),  # twice in one place: odd, but nothing leaks
    ],
)
def test_equal_files(copies, count, mine, lesson, capsys):
    source = mine / "train" / "apples" / "traina4.png"
    for copy in copies:
        (mine / copy).parent.mkdir(exist_ok=True)
        (mine / copy).write_bytes(source.read_bytes())
    lesson(mine)
    printed = capsys.readouterr().out
    assert ("are equal" in printed) == (count > 0)
    if count:
        assert f"{count} files are equal, byte for byte, to one in another split or class, such as train/" in printed
        assert "traina4.png and " in printed


@pytest.mark.parametrize("name", ["two", "all", "phantoms", xray_data.ARTICLE_NAME, "a.b $x$"])
def test_the_name_of_a_folder_means_nothing(name, tmp_path, server, monkeypatch):
    """Nor do the classes' names: no control is asked for, and nothing is made beside it."""
    monkeypatch.setattr(xray_data, "RAW_URL", server.url)
    folder = tmp_path / "mine" / name
    for number, place in enumerate(itertools.product(("train", "test"), ("covid", "normal"), "01234")):
        write_picture(folder.joinpath(*place).with_suffix(".png"), number)
    found = xray_data.check_files(folder, xray_data.list_files(folder))
    assert found["sentence"] == "These are 20 images of your own."
    assert (found["article"], found["other"]) == (0, 20)
    assert re.fullmatch(r"own_[\w-]+", found["dataset"])
    for kind in xray_data.CONTROLS:
        assert len(xray_data.find_controls(kind, folder, found["dataset"], tmp_path / "home")) == 0
    assert server.asked == []
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]
    assert list((tmp_path / "mine").iterdir()) == [folder]


@pytest.mark.parametrize("name", ["a $1 & b$", "50% (new) [x]", "père が 'q' #1"])
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


# --- what is read and what is not


@pytest.mark.parametrize("ending", [*sorted(own_images.SUFFIXES), ".PNG", ".JPG", ".Tiff"])
def test_endings_that_are_read(ending, mine, tmp_path, capsys):
    path = mine / "train" / "apples" / f"zz{ending}"
    form = {".jfif": "JPEG", ".jpg": "JPEG", ".tif": "TIFF", ".ppm": "PPM"}.get(ending.lower())
    Image.fromarray(COLOR).save(path, format=form)
    own_images.prepare(mine, tmp_path / "copy")
    assert "not read" not in capsys.readouterr().out
    is_kept = ending.lower() in xray_data.IMAGE_SUFFIXES
    copy = tmp_path / "copy" / "train" / "apples" / f"zz{ending}{'' if is_kept else '.png'}"
    assert (copy.read_bytes() == path.read_bytes()) == is_kept
    assert np.abs(cv2.imread(str(copy))[..., ::-1].astype(int) - COLOR).mean() < 3


def test_files_that_are_not_read_are_counted_by_kind(mine, tmp_path, lesson, capsys):
    for name in ["a.dcm", "b.dcm", "c.DCM", "a.gif", "a.heic", "notes.txt", "scan", "sub/d.dcm"]:
        (mine / "train" / "apples" / name).parent.mkdir(exist_ok=True)
        (mine / "train" / "apples" / name).write_bytes(b"x")
    for place in ("val/apples/1.png", "val/pears/2.png", "validation/3.jpg", "train/loose.png"):
        write_picture(mine / place, len(place))
    own_images.prepare(mine, tmp_path / "copy")
    printed = capsys.readouterr().out
    assert "8 files are not read, such as train/apples/a.dcm (4 .dcm, 1 .gif, 1 .heic, 1 .txt, 1 no ending)" in printed
    assert "2 images in val/ are not read" in printed
    assert "1 images in validation/ are not read" in printed
    assert "1 images in train/ are in no class folder, such as loose.png. Not read." in printed
    assert len(images_of(tmp_path / "copy")) == 20
    assert len(lesson(mine)["table"]) == 20
    found = re.search(r"Not read: (\d) files, such as (.*)", capsys.readouterr().out)
    assert int(found[1]) >= 7  # of those with an ending
    assert Path(found[2]) == mine / "train" / "apples" / "a.dcm"


def test_rubbish_is_passed_over_silently(mine, tmp_path, lesson, capsys):
    for name in ("desktop.ini", "Thumbs.db", ".DS_Store", "._traina1.png", ".hidden.jpg", ".cache/x.png"):
        (mine / "train" / "apples" / name).parent.mkdir(exist_ok=True)
        (mine / "train" / "apples" / name).write_bytes(b"x")
    (mine / "train" / ".ipynb_checkpoints").mkdir()
    own_images.prepare(mine, tmp_path / "copy")
    assert "not read" not in capsys.readouterr().out
    assert set(images_of(tmp_path / "copy")) == {name for name in images_of(mine) if "/." not in name}
    (tmp_path / "copy" / "train" / "apples" / "Thumbs.db").write_bytes(b"x")
    assert len(lesson(tmp_path / "copy")["table"]) == 20
    assert "Not read" not in capsys.readouterr().out


def test_folders_and_counts_that_do_not_do(mine, tmp_path, lesson):
    """A class that train/ or test/ lacks, a single class, a class too small to validate on."""
    write_picture(mine / "test" / "plums" / "x.png", 7)
    with pytest.raises(SetupError, match="train.plums holds no image. Every class needs some in train/ and in test/"):
        own_images.prepare(mine, tmp_path / "copy")
    (mine / "test" / "plums").rename(mine / "train" / "plums")
    with pytest.raises(SetupError, match="test.plums holds no image"):
        own_images.prepare(mine, tmp_path / "copy")
    (mine / "test" / "plums").mkdir()
    with pytest.raises(SetupError, match="a class has no image for the split validation. Put five or more"):
        lesson(mine)
    for split, fruit in itertools.product(("train", "test"), ("apples", "plums")):
        (mine / split / fruit).rename(tmp_path / f"{split} {fruit}")
    with pytest.raises(SetupError, match="train needs two or more class folders, and has 1"):
        own_images.prepare(mine, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


# --- decoders


def tiff(pixels, white_is_zero=False, apart=False, kind=1):
    """Return a TIFF of pixels (height, width) or (height, width, 3); kind: 1 unsigned, 2 signed, 3 floating point."""
    height, width, *planes = pixels.shape
    samples = planes[0] if planes else 1
    strips = [pixels[..., index].tobytes() for index in range(samples)] if apart else [pixels.tobytes()]
    color = 2 if planes else 0 if white_is_zero else 1
    tags = [(256, [width]), (257, [height]), (258, [8 * pixels.itemsize] * samples), (259, [1]), (262, [color])]
    tags += [(273, None), (277, [samples]), (278, [height]), (279, list(map(len, strips)))]
    tags += [(284, [2 if apart else 1]), (339, [kind] * samples)]
    start, place, long_values = 8 + 2 + 12 * len(tags) + 4, 0, b""
    place = start + sum(4 * len(values or strips) for _, values in tags if len(values or strips) > 1)
    offsets = [place + sum(map(len, strips[:index])) for index in range(len(strips))]
    entries = b""
    for tag, values in tags:
        packed = struct.pack(f"<{len(values or offsets)}I", *(values or offsets))
        if len(packed) > 4:
            long_values, packed = long_values + packed, struct.pack("<I", start + len(long_values))
        entries += struct.pack("<HHI", tag, 4, len(values or offsets)) + packed
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return head + entries + bytes(4) + long_values + b"".join(strips)


TIFFS = {
    "gray, 8 bits": (tiff(GRAY), GRAY),
    "gray, 16 bits": (tiff(DEEP), GRAY),
    "white is zero, 8 bits": (tiff(255 - GRAY, white_is_zero=True), GRAY),
    "white is zero, 16 bits": (tiff(65535 - DEEP, white_is_zero=True), GRAY),
    "RGB, 8 bits": (tiff(COLOR), COLOR),
    "RGB, 16 bits": (tiff(COLOR.astype(np.uint16) * 257), COLOR),
    "RGB, planes apart, 8 bits": (tiff(COLOR, apart=True), COLOR),
    "RGB, planes apart, 16 bits": (tiff(COLOR.astype(np.uint16) * 257, apart=True), "16 bits"),
    "floating point": (tiff(GRAY.astype(np.float32), kind=3), "32 bits"),
    "double": (tiff(GRAY.astype(np.float64), kind=3), "float64"),
    "32 bits": (tiff(GRAY.astype(np.uint32)), "32 bits"),
    "signed": (tiff(GRAY.astype(np.int16) * 100, kind=2), "16 bits"),
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


KINDS = {
    "gray.png": (Image.fromarray(GRAY), np.dstack([GRAY] * 3)),
    "palette.png": (Image.fromarray(GRAY).convert("P"), np.dstack([GRAY] * 3)),
    "bit.png": (Image.fromarray(GRAY > 100), np.dstack([np.where(GRAY > 100, 255, 0)] * 3)),
    "rgba.png": (Image.fromarray(np.dstack([COLOR, GRAY])), COLOR),
    "png.jpg": (Image.fromarray(COLOR), COLOR),  # a PNG, as some web pages name it
    "cmyk.jpg": (Image.fromarray(COLOR).convert("CMYK"), COLOR),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_png_and_jpeg(name, tmp_path):
    """The script, the toolbox, and cv2.imread, which is the lessons', see the same picture."""
    image, expected = KINDS[name]
    image.save(tmp_path / name, format="JPEG" if name == "cmyk.jpg" else "PNG", quality=100, subsampling=0)
    for found in (
        own_images.decode(tmp_path / name),
        xray_data.read_image(tmp_path / name),
        cv2.imread(str(tmp_path / name))[..., ::-1],
    ):
        assert np.abs(found.astype(int) - expected).max() <= (6 if name == "cmyk.jpg" else 0)


JPEG = cv2.imencode(".jpg", np.kron(GRAY, np.ones((8, 8), np.uint8)))[1].tobytes()
DAMAGED = "cannot be read as an image. Replace or delete it"
NOT_READ = {
    "empty.png": (b"", DAMAGED),
    "text.jpg": (b"this is no picture", DAMAGED),
    "head.png": (b"\x89PNG\r\n\x1a\n", DAMAGED),
    "half.jpg": (JPEG[: len(JPEG) // 2], DAMAGED),
    "half.tif": (tiff(DEEP)[:900], DAMAGED),
    "head.tif": (b"II*\0" + bytes(40), DAMAGED),
    "dicom.png": (bytes(128) + b"DICM" + bytes(99), "is a DICOM file, which is not read here. Save it as"),
    "phone.jpg": (b"\0\0\0\x18ftypheic" + bytes(99), "is a HEIC or AVIF file, which is not read here. Save it as"),
}


@pytest.mark.parametrize("name", NOT_READ)
def test_damage_and_other_kinds_of_files(name, mine, tmp_path):
    content, words = NOT_READ[name]
    (mine / "train" / "pears" / name).write_bytes(content)
    with pytest.raises(SetupError, match=f"{name} {words}"):
        own_images.prepare(mine, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    with pytest.raises(SetupError, match=f"{name} is no image, or nearly black"):
        xray_data.read_image(mine / "train" / "pears" / name)


@pytest.fixture(scope="module", params=[BINARY, MULTI], ids=["Binary", "Multi"])
def shrink(request):
    """Shrink one image to 150 x 150 pixels as a lesson does."""
    variables = {"OUTPUT": Path("nowhere"), "IMAGE_SIZE": 150, "cv2": cv2, "np": np}
    run_cell(request.param, "shrink", variables)
    return variables["shrink"]


@pytest.mark.parametrize("name", ["empty.png", "text.jpg", "head.png", "dicom.png", "phone.jpg", "half.jpg"])
def test_what_the_lessons_refuse(name, shrink, tmp_path):
    (tmp_path / name).write_bytes(NOT_READ[name][0])
    with pytest.raises(ValueError, match=f"{name} (cannot be read|is nearly black). Replace or delete it."):
        shrink(tmp_path / name, tmp_path / "small.png")
    assert not (tmp_path / "small.png").exists()


@pytest.mark.parametrize("shape", [(2000, 3), (3, 2000), (1, 1), (1, 5000, 3)])
def test_extreme_shapes(shape, shrink, tmp_path):
    cv2.imwrite(str(tmp_path / "x.png"), np.full(shape, 77, np.uint8))
    shrink(tmp_path / "x.png", tmp_path / "small" / "x.png")
    assert (cv2.imread(str(tmp_path / "small" / "x.png")) == np.full((150, 150, 3), 77)).all()


# --- 16 bits


def marked(image, share=0.005):
    """The image with a white marker in its corner, as burned-in letters are: `share` of its pixels."""
    side = int(np.sqrt(share * image.size))
    image = image.copy()
    image[:side, :side] = 65535
    return image


def convert(mine, copy, **images):
    """Add 16-bit PNG files to the apples, and return what the copy has of each, gray."""
    for name, image in images.items():
        cv2.imwrite(str(mine / "train" / "apples" / f"{name}.png"), image)
    own_images.prepare(mine, copy)
    return [cv2.imread(str(copy / "train" / "apples" / f"{name}.png.png"))[..., 0] for name in images]


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_a_marker_changes_nothing(bits, mine, tmp_path):
    """The scale is that of all but the brightest pixels, whatever the number of bits in use."""
    gray = np.kron(GRAY, np.ones((8, 8), np.uint8))
    deep = gray.astype(np.uint16) << (bits - 8)
    plain, with_marker = convert(mine, tmp_path / "copy", plain=deep, marked=marked(deep))
    np.testing.assert_array_equal(plain, gray)
    np.testing.assert_array_equal(with_marker[60:], gray[60:])
    assert with_marker[0, 0] == 255


def test_one_scale_for_a_whole_set(mine, tmp_path):
    """A dark image of 12 bits stays darker than a bright one: brightness is not each image's own."""
    bright, dark = (GRAY.astype(np.uint16) << 4), (GRAY.astype(np.uint16) << 3)
    found = convert(mine, tmp_path / "copy", bright=bright, dark=dark, marked=marked(dark))
    assert [image[10:].max() for image in found] == [196, 98, 98]
    (mine / "train" / "apples" / "bright.png").unlink()
    (alone,) = convert(mine, tmp_path / "other", dark=dark)
    assert alone.max() == 196
    assert (tmp_path / "copy" / ONE).read_bytes() == (mine / ONE).read_bytes()  # 8-bit images stay as they are


@pytest.mark.parametrize("kind", ["8 bits", "12 bits in 16", "12 bits beside 16"])
def test_nearly_black(kind, mine, tmp_path, shrink):
    """The lessons refuse it; the script reads 12 bits in 16, but not where other images use all 16."""
    image = GRAY // 4 if kind == "8 bits" else GRAY.astype(np.uint16) << 4
    path = mine / "train" / "apples" / "dark.png"
    cv2.imwrite(str(path), image)
    if kind == "12 bits beside 16":
        cv2.imwrite(str(path.with_name("bright.png")), DEEP)
    with pytest.raises(ValueError, match="dark.png is nearly black"):
        shrink(path, tmp_path / "small.png")
    if kind == "12 bits in 16":
        own_images.prepare(mine, tmp_path / "copy")
        shrink(tmp_path / "copy" / "train" / "apples" / "dark.png.png", tmp_path / "small.png")
        assert cv2.imread(str(tmp_path / "small.png")).max() == 196
    else:
        with pytest.raises(SetupError, match=f"{path} is nearly black. Replace or delete it"):
            own_images.prepare(mine, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()


def test_nearly_black_but_for_a_marker(shrink, tmp_path):
    cv2.imwrite(str(tmp_path / "x.png"), marked(GRAY.astype(np.uint16) << 4))
    with pytest.raises(ValueError, match="nearly black"):
        shrink(tmp_path / "x.png", tmp_path / "small.png")


# --- the copy in the lessons


def test_the_copy_in_a_lesson(mine, tmp_path, lesson, capsys):
    """Its table, order, split, and patients are those of the originals, and its pixels the expected ones."""
    apples = mine / "train" / "apples"
    write_picture(apples / "sub" / "b.png", 101)
    write_picture(apples / "sub-2" / "Z.PNG", 102)
    originals = {"deep.png": GRAY, "tiff.png": GRAY, "gray.tif": GRAY, "sub/deep.tiff": GRAY, "color.bmp": COLOR}
    cv2.imwrite(str(apples / "deep.png"), DEEP)
    for name in ("gray.tif", "tiff.png"):  # one has a wrong ending
        (apples / name).write_bytes(tiff(255 - GRAY, white_is_zero=True))
    (apples / "sub" / "deep.tiff").write_bytes(tiff(DEEP))
    cv2.imwrite(str(apples / "color.bmp"), COLOR[..., ::-1])
    rows = ["deep.png,P", "gray.tif,P", "train/apples/sub/deep.tiff,Q", f"{ONE},Q", "testp1.png,P"]
    list_patients(mine, *rows)
    capsys.readouterr()
    own_images.prepare(mine, tmp_path / "copy")
    assert "22 of 27 images have no patient in patients.csv" in capsys.readouterr().out
    variables = lesson(tmp_path / "copy")
    assert "22 of 27 images have no patient in patients.csv" in capsys.readouterr().out
    table = variables["table"]

    named = {f"train/apples/{name}.png": f"train/apples/{name}" for name in originals}
    table["original"] = [named.get(file, file) for file in table["file"]]
    assert sorted(table["original"]) == sorted(own_images.find_files(mine))
    people = {"P": {"deep.png", "gray.tif", "testp1.png"}, "Q": {"deep.tiff", "traina1.png"}}
    for patient, names in people.items():
        assert {Path(name).name for name in table.loc[table["patient"] == patient, "original"]} == names
    assert table["patient"].nunique() == 24
    assert table.groupby(["class", "split"]).size().to_dict() == {
        ("apples", "validation"): 2,
        ("apples", "train"): 10,
        ("apples", "test"): 5,
        ("pears", "validation"): 1,
        ("pears", "train"): 4,
        ("pears", "test"): 5,
    }
    for split, batches in (("train", variables["train_batches"]), ("validation", variables["valid_batches"])):
        rows = table[table["split"] == split]
        assert [f"train/{name}" for name in batches.filenames] == list(rows["small"])
        assert list(batches.classes) == list(rows["label"])

    for file, original in zip(table["file"], table["original"]):
        expected = originals.get(original.removeprefix("train/apples/"))
        found = xray_data.read_image(tmp_path / "copy" / file)
        if expected is None:
            assert (tmp_path / "copy" / file).read_bytes() == (mine / original).read_bytes()
        else:
            np.testing.assert_array_equal(found, expected if expected.ndim == 3 else np.dstack([expected] * 3))
        small = cv2.imread(str(variables["SMALL"] / f"{file}.png"))[..., ::-1]
        np.testing.assert_array_equal(small, cv2.resize(found, (150, 150), interpolation=cv2.INTER_NEAREST_EXACT))


FAULTS = {
    "usage": (["mine"], "^Usage: python data/own_images.py FOLDER COPY$"),
    "there": (["mine", "mine"], r"^Problem: mine exists\. Name a folder that does not\.$"),
    "typo": (["typo", "copy"], r"^Problem: typo/train cannot be listed: No such file or directory\.$"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_command_line(fault, mine, tmp_path, monkeypatch, capsys):
    """It says where the copy is; what is wrong is one line, with exit status 1 as Python ends with a text."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["own_images.py", *arguments])
        runpy.run_path(str(ROOT / "data" / "own_images.py"), run_name="__main__")

    monkeypatch.chdir(tmp_path)
    arguments, words = FAULTS[fault]
    with pytest.raises(SystemExit, match=words):
        run(*arguments)
    run("mine", "made/copy")
    copy = tmp_path / "made" / "copy"
    assert f"20 images are in made/copy. Set COVID_XRAY_DATA to {copy}." in capsys.readouterr().out
    assert list(images_of(copy)) == list(images_of(mine))


# --- the machine


def test_errors_of_the_file_system_are_one_line_with_the_file(mine, tmp_path, monkeypatch):
    (tmp_path / "scan.jpg").mkdir()
    for path, reason in ((tmp_path / "scan.jpg", "Is a directory"), (tmp_path / "typo.png", "No such file")):
        for read in (own_images.decode, xray_data.read_image, xray_data.git_blob):
            with pytest.raises(SetupError, match=rf"^{path} cannot be read: {reason}"):
                read(path)
    table = pd.DataFrame({"file": [ONE, "gone.png"]})
    with pytest.raises(SetupError, match=r"gone\.png cannot be read: No such file"):
        xray_data.report_equal(mine, table)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(SetupError, match=rf"^{tmp_path}/file/copy/.*\.png cannot be written: Not a directory\.$"):
        own_images.prepare(mine, tmp_path / "file" / "copy")
    cv2.imwrite(str(mine / "train" / "apples" / "x.tif"), GRAY)
    write_picture(mine / "train" / "apples" / "x.tif.png", 9)
    with pytest.raises(SetupError, match=r"train/apples/x\.tif\.png cannot be written: File exists\.$"):
        own_images.prepare(mine, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    refused = PermissionError(errno.EACCES, "Permission denied", "apples")
    monkeypatch.setattr(own_images.os, "walk", lambda top, onerror: onerror(refused))
    with pytest.raises(SetupError, match="^apples cannot be listed: Permission denied"):
        own_images.prepare(mine, tmp_path / "copy")


@pytest.mark.parametrize("last", ["traina1.png", "testp4.png", "patients.csv"])
def test_a_full_disk(last, mine, tmp_path, monkeypatch, shrink):
    """Nothing half is left of the copy; a lesson says which of its files it could not write."""

    def fill(path, mode):
        if path.name == last:
            raise OSError(errno.ENOSPC, "No space left on device")
        return open(path, mode)

    (mine / "patients.csv").write_text(f"file,patient\n{ONE},P\n", encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(own_images, "open", fill, raising=False)
        with pytest.raises(SetupError, match=rf"{last} cannot be written: No space left on device\.$"):
            own_images.prepare(mine, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    monkeypatch.setattr(cv2, "imwrite", lambda *_: False)  # as OpenCV says it
    with pytest.raises(OSError, match="small.png cannot be written. Is the disk full"):
        shrink(mine / ONE, tmp_path / "small.png")
