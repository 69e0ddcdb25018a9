"""Your own images, by kind: what is read is read right, and what is not read is said."""

import errno
import itertools
import os
import struct
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
import xray_data
from PIL import Image
from tensorflow.keras.preprocessing.image import ImageDataGenerator
from xray_data import SetupError

GRAY = (np.add.outer(np.arange(40), np.arange(60)) * 2).astype(np.uint8)  # 0 to 196
COLOR = np.dstack([GRAY, 255 - GRAY, GRAY // 2])


def write_picture(path, number=0):
    """A small PNG, whatever the name; each number has pixels of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (6, 5, 3), np.uint8)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


@pytest.fixture
def mine(tmp_path):
    """Images of the reader's own: train/ and test/, apples and pears, five of each, named 0.png to 4.png."""
    numbers = itertools.count()
    for split, fruit, index in itertools.product(("train", "test"), ("apples", "pears"), range(5)):
        write_picture(tmp_path / "mine" / split / fruit / f"{split}{fruit[0]}{index}.png", next(numbers))
    return tmp_path / "mine"


def patients(folder, *rows, head="file,patient"):
    """Write patients.csv, and return who is on each image."""
    (folder / "patients.csv").write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    table = xray_data.list_table(folder)
    return dict(zip(table["file"], table["patient"]))


# --- who is on an image

ONE = "train/apples/traina1.png"


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
    key = key.format(folder=mine, link=tmp_path / "link")
    folder = tmp_path / "link" if str(tmp_path / "link") in key else mine
    found = patients(folder, f"{key}, P ", "test/pears/testp0.png,P")
    assert found[ONE] == found["test/pears/testp0.png"] == "P" and len(set(found.values())) == 19
    assert (
        "18 of 20 images have no patient in patients.csv, such as train/apples/traina0.png" in capsys.readouterr().out
    )


@pytest.mark.parametrize("name", ["Åsa.png", "père $1 & 2.png", "が.png"])
@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_unicode_in_keys(name, forms, mine):
    on_disk, in_table = (unicodedata.normalize(form, name) for form in forms)
    write_picture(mine / "train" / "apples" / on_disk, 99)
    assert patients(mine, f"train/apples/{in_table},P")[f"train/apples/{on_disk}"] == "P"


@pytest.mark.parametrize("key", ["train/apples/TRAINA1.png", "train/pears/traina1.png", "elsewhere/a.png"])
def test_rows_that_match_nothing_are_counted(key, mine, capsys):
    found = patients(mine, f"{key},P", f"{ONE},Q")
    assert found[ONE] == "Q" and "P" not in found.values()
    assert f"1 of 2 rows of patients.csv match no image, such as '{key}'." in capsys.readouterr().out


def test_classes_that_are_not_asked_for_are_no_strangers(mine, capsys):
    write_picture(mine / "train" / "plums" / "x.png", 77)
    (mine / "patients.csv").write_text("file,patient\ntrain/plums/x.png,P\n", encoding="utf-8-sig")
    xray_data.list_table(mine, class_names=["apples", "pears"])
    assert "match no image" not in capsys.readouterr().out


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
        patients(mine, *rows)
    assert patients(mine, f"{ONE},P", f" {ONE}, P")[ONE] == "P"  # said twice is no contradiction


@pytest.mark.parametrize("text", ["name,who\na,b\n", "file;patient\na;b\n", "", "file\na\n", 'file,patient\n"a,b\n'])
def test_a_list_of_patients_that_cannot_be_read(text, mine):
    (mine / "patients.csv").write_text(text, encoding="utf-8")
    with pytest.raises(SetupError, match=r"patients\.csv needs the columns file and patient"):
        xray_data.list_table(mine)


# --- equal files


@pytest.mark.parametrize(
    "copies, count",
    [
        (["test/apples/copy.png"], 2),  # in two splits
        (["train/pears/copy.png"], 2),  # in two classes
        (["test/apples/copy.png", "test/pears/sub/other.png"], 3),
        (["train/apples/zcopy.png"], 0),  # twice in one place: odd, but nothing leaks
    ],
)
def test_equal_files(copies, count, mine, capsys):
    source = mine / "train" / "apples" / "traina4.png"
    for copy in copies:
        (mine / copy).parent.mkdir(exist_ok=True)
        (mine / copy).write_bytes(source.read_bytes())
    xray_data.list_table(mine)
    printed = capsys.readouterr().out
    if count:
        assert f"{count} files are equal, byte for byte, to one in another split or class, such as train/" in printed
        assert "traina4.png and " in printed
    else:
        assert printed == ""


# --- what is read and what is not


@pytest.mark.parametrize("ending", [*sorted(xray_data.IMAGE_SUFFIXES), ".PNG", ".JPG", ".Tiff"])
def test_endings_that_are_read(ending, mine, capsys):
    path = mine / "train" / "apples" / f"zz{ending}"
    form = {".jfif": "JPEG", ".jpg": "JPEG", ".tif": "TIFF", ".ppm": "PPM"}.get(ending.lower())
    Image.fromarray(COLOR).save(path, format=form)
    assert f"train/apples/zz{ending}" in set(xray_data.list_table(mine)["file"]) and capsys.readouterr().out == ""
    assert np.abs(xray_data.read_image(path).astype(int) - COLOR).mean() < 3


def test_files_that_are_not_read_are_counted_by_kind(mine, capsys):
    names = ["a.dcm", "b.dcm", "c.DCM", "a.gif", "a.heic", "notes.txt", "scan", "sub/d.dcm"]
    for name in names:
        (mine / "train" / "apples" / name).parent.mkdir(exist_ok=True)
        (mine / "train" / "apples" / name).write_bytes(b"x")
    for place in ("val/apples/1.png", "val/pears/2.png", "validation/3.jpg", "train/loose.png"):
        write_picture(mine / place, len(place))
    assert len(xray_data.list_table(mine)) == 20
    printed = capsys.readouterr().out
    assert "8 files are not read, such as train/apples/a.dcm (4 .dcm, 1 .gif, 1 .heic, 1 .txt, 1 no ending)" in printed
    assert "2 images in val/ are not read" in printed and "1 images in validation/ are not read" in printed
    assert "1 images in train/ are in no class folder, such as loose.png. Not read." in printed


def test_rubbish_is_passed_over_silently(mine, capsys):
    apples = mine / "train" / "apples"
    for name in ("desktop.ini", "Thumbs.db", ".DS_Store", "._traina1.png", ".hidden.jpg", ".cache/x.png"):
        (apples / name).parent.mkdir(exist_ok=True)
        (apples / name).write_bytes(b"x")
    for name in (".ipynb_checkpoints", ".git"):
        (mine / "train" / name).mkdir()
    assert len(xray_data.list_table(mine)) == 20 and capsys.readouterr().out == ""


def test_order_and_split_are_kerass(mine):
    """Sub-folders, capitals, a folder called like an image: as flow_from_directory walks and splits them."""
    for number, name in enumerate(["Z.png", "a.PNG", "sub/b.png", "sub-2/c.png", "sub/deep/d.jpg", "scan.jpg/e.png"]):
        write_picture(mine / "train" / "apples" / name, 200 + number)
    table = xray_data.list_table(mine, validation_split=0.3)
    batches = ImageDataGenerator(validation_split=0.3)
    for split, subset in (("validation", "validation"), ("train", "training")):
        flow = batches.flow_from_directory(mine / "train", subset=subset, shuffle=False)
        rows = table[table["split"] == split]
        assert [f"train/{Path(name).as_posix()}" for name in flow.filenames] == list(rows["file"])
        assert list(flow.classes) == list(rows["label"])


def test_folders_and_counts_that_do_not_do(mine):
    with pytest.raises(SetupError, match="test.plums holds no image. Every class needs some"):
        write_picture(mine / "train" / "plums" / "x.png", 7)
        xray_data.list_table(mine)
    with pytest.raises(SetupError, match="needs two or more class folders, and has 1"):
        xray_data.list_table(mine, class_names=["apples"])
    with pytest.raises(SetupError, match="no image to validate on"):
        xray_data.list_table(mine, 0.1, class_names=["apples", "pears"])
    table = xray_data.list_table(mine, 0, class_names=["pears", "apples"])
    assert list(table["label"].unique()) == [0, 1] and table["class"][0] == "pears"
    assert xray_data.count_table(table).shape == (2, 3)


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


DEEP = GRAY.astype(np.uint16) * 257
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
            xray_data.read_image(tmp_path / "x.tif")
    else:
        expected = expected if expected.ndim == 3 else np.dstack([expected] * 3)
        np.testing.assert_array_equal(xray_data.read_image(tmp_path / "x.tif"), expected)


def test_kinds_of_png_and_jpeg(tmp_path):
    """Gray, RGBA, palette, 1 bit, CMYK, and a wrong ending show the same picture."""
    color = Image.fromarray(COLOR)
    Image.fromarray(GRAY).save(tmp_path / "gray.png")
    Image.fromarray(GRAY).convert("P").save(tmp_path / "palette.png")
    color.save(tmp_path / "rgb.jpg", format="PNG")  # as some web pages name them
    Image.fromarray(np.dstack([COLOR, GRAY])).save(tmp_path / "rgba.png")
    color.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100, subsampling=0)
    Image.fromarray(GRAY > 100).save(tmp_path / "bit.png")
    for name in ("gray", "palette"):
        np.testing.assert_array_equal(xray_data.read_image(tmp_path / f"{name}.png"), np.dstack([GRAY] * 3))
    for name in ("rgb.jpg", "rgba.png"):
        np.testing.assert_array_equal(xray_data.read_image(tmp_path / name), COLOR)
    assert np.abs(xray_data.read_image(tmp_path / "cmyk.jpg").astype(int) - COLOR).max() <= 6
    assert set(np.unique(xray_data.read_image(tmp_path / "bit.png"))) == {0, 255}


JPEG = cv2.imencode(".jpg", np.kron(GRAY, np.ones((8, 8), np.uint8)))[1].tobytes()
NOT_READ = {
    "empty.png": (b"", "cannot be read as an image. Replace or delete it"),
    "text.jpg": (b"this is no picture", "cannot be read as an image"),
    "head.png": (b"\x89PNG\r\n\x1a\n", "cannot be read as an image"),
    "half.jpg": (JPEG[: len(JPEG) // 2], "cannot be read as an image"),
    "half.tif": (tiff(DEEP)[:900], "cannot be read as an image"),
    "head.tif": (b"II*\0" + bytes(40), "cannot be read as an image"),
    "dicom.png": (bytes(128) + b"DICM" + bytes(99), "is a DICOM file, which is not read here. Save it as"),
    "phone.jpg": (b"\0\0\0\x18ftypheic" + bytes(99), "is a HEIC or AVIF file, which is not read here. Save it as"),
}


@pytest.mark.parametrize("name", NOT_READ)
def test_damage_and_other_kinds_of_files(name, tmp_path):
    content, words = NOT_READ[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SetupError, match=f"{name} {words}"):
        xray_data.read_image(tmp_path / name)


@pytest.mark.parametrize("shape", [(2000, 3), (3, 2000), (1, 1), (1, 5000, 3)])
def test_extreme_shapes(shape, tmp_path):
    cv2.imwrite(str(tmp_path / "x.png"), np.full(shape, 7, np.uint8))
    (name,) = xray_data.shrink_images([tmp_path / "x.png"], ["a/x"], tmp_path / "small", 150)
    assert name == "a/x.png" and (xray_data.read_image(tmp_path / "small" / name) == np.full((150, 150, 3), 7)).all()


# --- 16 bits


def shrink(folder, **images):
    """Write 16-bit PNG files, shrink them as one set, and return the brightest pixel but for the marker of each."""
    for name, image in images.items():
        cv2.imwrite(str(folder / f"{name}.png"), image)
    files = [folder / f"{name}.png" for name in images]
    names = xray_data.shrink_images(files, list(images), folder / "small", 60)
    return [xray_data.read_image(folder / "small" / name)[10:].max() for name in names]


def marked(image, share=0.005):
    """The image with a white marker in its corner, as burned-in letters are: `share` of its pixels."""
    side = int(np.sqrt(share * image.size))
    image = image.copy()
    image[:side, :side] = 65535
    return image


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_a_marker_changes_nothing(bits, tmp_path):
    """The scale is that of all but the brightest pixels, whatever the number of bits in use."""
    image = np.kron(GRAY, np.ones((8, 8), np.uint8)).astype(np.uint16) << (bits - 8)
    cv2.imwrite(str(tmp_path / "plain.png"), image)
    cv2.imwrite(str(tmp_path / "marked.png"), marked(image))
    plain, with_marker = (xray_data.read_image(tmp_path / f"{name}.png") for name in ("plain", "marked"))
    np.testing.assert_array_equal(plain[60:], with_marker[60:])
    np.testing.assert_array_equal(plain[..., 0], np.kron(GRAY, np.ones((8, 8), np.uint8)))
    assert len(np.unique(plain)) == 99 and with_marker[0, 0].max() == 255


def test_one_scale_for_a_whole_set(tmp_path):
    """A dark image of 12 bits stays darker than a bright one: brightness is not each image's own."""
    bright, dark = (GRAY.astype(np.uint16) << 4), (GRAY.astype(np.uint16) << 2)
    ordinary = GRAY.copy()
    found = shrink(tmp_path, bright=bright, dark=dark, marked=marked(dark))
    assert found == [196, 49, 49]
    assert shrink(tmp_path, dark=dark) == [196]  # alone, its own range
    assert shrink(tmp_path, bright=bright, ordinary=ordinary) == [196, 196]  # 8-bit images stay as they are


# --- the machine


def test_errors_of_the_file_system_are_one_line_with_the_file(mine, tmp_path, monkeypatch):
    (tmp_path / "scan.jpg").mkdir()
    for path, reason in ((tmp_path / "scan.jpg", "Is a directory"), (tmp_path / "typo.png", "No such file")):
        with pytest.raises(SetupError, match=rf"{path} cannot be read: {reason}"):
            xray_data.read_image(path)
    (mine / "train" / "apples" / "zz.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(SetupError, match=r"zz\.png cannot be read: No such file"):
        xray_data.list_table(mine)
    (mine / "train" / "apples" / "zz.png").unlink()
    (tmp_path / "file").write_bytes(b"x")
    for folder, reason in ((tmp_path / "file" / "small", "Not a directory"), (tmp_path / "new", "No space left")):
        if folder.name == "new":
            monkeypatch.setattr(Path, "write_bytes", lambda *_: raise_full())
        with pytest.raises(SetupError, match=rf"{folder}.* cannot be written: {reason}"):
            xray_data.shrink_images([mine / ONE], ["a"], folder, 8)
    refused = PermissionError(errno.EACCES, "Permission denied", "apples")
    monkeypatch.setattr(xray_data.os, "walk", lambda top, onerror: onerror(refused))
    with pytest.raises(SetupError, match="apples cannot be listed: Permission denied"):
        xray_data.list_table(mine)
    with pytest.raises(SetupError, match="typo.train cannot be listed: No such file"):
        xray_data.list_table(mine / "typo")


def raise_full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
