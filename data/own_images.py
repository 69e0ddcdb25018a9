"""Prepare images of your own for the lessons: check them, and write a copy that the lessons read.

    python data/own_images.py FOLDER COPY

FOLDER has train/ and test/, each with one folder per class, and perhaps patients.csv (file, patient). COPY gets the
same folders. JPEG and PNG files of 8 bits are copied as they are. Other kinds become 8-bit PNG files, and all 16-bit
images keep the same eight bits, the highest that any of them uses for more than its brightest 1%. What is not read,
and what patients.csv leaves open, is said. Then set COVID_XRAY_DATA to COPY.
"""

import contextlib
import io
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "notebooks"))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import PIL.Image  # noqa: E402
import xray_data  # noqa: E402
from xray_data import SetupError, read_bytes  # noqa: E402

SUFFIXES = {*xray_data.IMAGE_SUFFIXES, ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".ppm"}
NO_IMAGES = {"desktop.ini", "thumbs.db"}  # as operating systems leave them behind
SAVE_AS = "Save it as an 8-bit or 16-bit PNG, gray or RGB."


def decode(path: Path) -> np.ndarray:
    """Decode an image file as RGB, uint8 or uint16 (height, width, 3).

    Raises SetupError for what is no image, is damaged, or is of a kind that would be read wrongly.
    """
    data = read_bytes(path)
    for kind, found in (("DICOM", data[128:132] == b"DICM"), ("HEIC or AVIF", data[4:8] == b"ftyp")):
        if found:
            raise SetupError(f"{path} is a {kind} file, which is not read here. {SAVE_AS}")
    image = None
    try:
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            image = decode_tiff(data, path)
        else:
            image = decode_any(data)
        if image.dtype in (np.uint8, np.uint16):
            return image
    except SetupError:
        raise
    except Exception:  # OpenCV and Pillow have many ways to say that they cannot
        with contextlib.suppress(cv2.error):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is not None:
        raise SetupError(f"{path} holds pixels of a kind that is not read here ({image.dtype}). {SAVE_AS}")
    raise SetupError(f"{path} cannot be read as an image. Replace or delete it, then run again.")


def decode_tiff(data: bytes, path: Path) -> np.ndarray:
    """Decode a TIFF's content as decode does; of its many kinds OpenCV misreads some without a word."""
    with PIL.Image.open(io.BytesIO(data)) as picture:
        tags = picture.tag_v2
        bits, unsigned = max(tags.get(258, (1,))), set(tags.get(339, (1,))) == {1}
        white_is_zero, planes_apart = tags.get(262) == 0, tags.get(284) == 2
        if bits <= 8 and unsigned:
            return np.asarray(picture.convert("RGB"))
    if bits != 16 or not unsigned or planes_apart:
        raise SetupError(f"{path} holds pixels of a kind that is not read here ({bits} bits). {SAVE_AS}")
    return ~decode_any(data) if white_is_zero else decode_any(data)


def decode_any(data: bytes) -> np.ndarray:
    """Decode a file's content with OpenCV as RGB, in its own depth; IMREAD_COLOR_RGB would garble 16-bit TIFF."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def bits_in_use(image: np.ndarray) -> int:
    """Return how many bits, 8 to 16, hold all but the brightest 1% of a 16-bit image: a marker changes nothing."""
    step = max(1, min(image.shape[:2]) // 500)
    return max(8, int(np.quantile(image[::step, ::step], 0.99)).bit_length())


def to_8_bits(image: np.ndarray, bits: int) -> np.ndarray:
    """Return the highest eight of `bits` bits of a 16-bit image; what is brighter becomes white."""
    return np.minimum(image >> (bits - 8), 255).astype(np.uint8)


def walk(folder: Path) -> tuple[list[str], list[str]]:
    """Return the images below `folder`, in order, and the files that are not read; hidden ones are neither.

    Names are relative to `folder`, with slashes. Raises SetupError for a folder that cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise SetupError(f"{error.filename} cannot be listed: {error.strerror}.")

    images, others = [], []
    for root, _, files in sorted(os.walk(folder, onerror=refuse)):
        for name in sorted(files):
            path = Path(root, name).relative_to(folder)
            if any(part[0] == "." for part in path.parts) or name.lower() in NO_IMAGES:
                continue
            (images if path.suffix.lower() in SUFFIXES else others).append(path.as_posix())
    return images, others


def list_folders(folder: Path) -> list[str]:
    """Return the names of the folders in `folder`, sorted; hidden ones are passed over."""
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    except OSError as error:
        raise SetupError(f"{error.filename} cannot be listed: {error.strerror}.") from None


def find_files(folder: Path) -> list[str]:
    """Return the images of `folder`, named from there, and print what is not read.

    Raises SetupError where there is but one class, or one that train/ or test/ has no image of.
    """
    class_names = sorted({*list_folders(folder / "train"), *list_folders(folder / "test")})
    if len(class_names) < 2:
        raise SetupError(f"{folder / 'train'} needs two or more class folders, and has {len(class_names)}.")
    files, unread = [], []
    for place in [Path(split, name) for split in ("train", "test") for name in class_names]:
        images, others = walk(folder / place) if (folder / place).is_dir() else ([], [])
        if not images:
            raise SetupError(f"{folder / place} holds no image. Every class needs some in train/ and in test/.")
        files += [(place / image).as_posix() for image in images]
        unread += [(place / other).as_posix() for other in others]
    report_unread(folder, unread)
    return files


def report_unread(folder: Path, unread: Sequence[str]) -> None:
    """Print, by kind, how many files of the class folders are not read, and images elsewhere in `folder`."""
    kinds = Counter(Path(name).suffix.lower() or "no ending" for name in unread)
    if kinds:
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        print(f"{len(unread)} files are not read, such as {unread[0]} ({listed}). {SAVE_AS}")
    for place in list_folders(folder):
        with contextlib.suppress(SetupError):  # another folder that cannot be listed does not matter
            images = walk(folder / place)[0]
            loose = [name for name in images if "/" not in name]
            if place in ("train", "test") and loose:
                print(f"{len(loose)} images in {place}/ are in no class folder, such as {loose[0]}. Not read.")
            elif place not in ("train", "test") and images:
                print(f"{len(images)} images in {place}/ are not read. Put images into train/CLASS and test/CLASS.")


def write_file(path: Path, data: bytes) -> None:
    """Write a new file; raises SetupError with the file and the reason, such as another image of that name."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "xb") as file:
            file.write(data)
    except OSError as error:
        raise SetupError(f"{path} cannot be written: {error.strerror}.") from None


def write_copy(source: Path, target: Path, bits: int) -> Path:
    """Write the copy of an image: as it is where the lessons read it as it is, or else as 8-bit PNG; returns its path.

    bits: how many the 16-bit images of the set use.
    """
    data, image = read_bytes(source), decode(source)
    is_read = source.suffix.lower() in xray_data.IMAGE_SUFFIXES and data[:2] in (b"\xff\xd8", b"\x89P")
    if image.dtype == np.uint16:
        image, is_read = to_8_bits(image, bits), False
    if xray_data.is_nearly_black(image):
        raise SetupError(f"{source} is nearly black. Replace or delete it, then run again.")
    if not is_read:
        target = target.with_name(f"{target.name}.png")
        data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
    write_file(target, data)
    return target


def prepare(folder: Path, copy: Path) -> None:
    """Write the copy, with patients.csv, whole or not at all; raises SetupError for the first image that is bad."""
    if copy.exists():
        raise SetupError(f"{copy} exists. Name a folder that does not.")
    files = find_files(folder)
    patients = xray_data.patients_of(folder, files)
    deep = []
    for file in xray_data.progress(files, "check"):
        image = decode(folder / file)
        if image.dtype == np.uint16:
            deep.append(bits_in_use(image))
    bits = max(deep, default=8)
    if deep:
        print(f"{len(deep)} images have 16 bits a pixel, of which {bits} are in use. The highest eight are kept.")
    try:
        paths = [write_copy(folder / file, copy / file, bits) for file in xray_data.progress(files, "copy")]
        table = pd.DataFrame({"file": [path.relative_to(copy).as_posix() for path in paths], "patient": patients})
        known = table[table["patient"] != files]
        if len(known):
            write_file(copy / "patients.csv", known.to_csv(index=False).encode())
    except BaseException:
        shutil.rmtree(copy, ignore_errors=True)
        raise
    print(f"{len(files)} images are in {copy}. Set COVID_XRAY_DATA to {copy.resolve()}.")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("Usage: python data/own_images.py FOLDER COPY")
    try:
        prepare(Path(sys.argv[1]), Path(sys.argv[2]))
    except SetupError as error:
        sys.exit(f"Problem: {error}")
