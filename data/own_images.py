"""Prepare images of your own for the lessons: check them, and write a copy that the lessons read.

    python data/own_images.py FOLDER COPY

FOLDER has train/ and test/, each with one folder per class, and perhaps patients.csv (file, patient). COPY gets the
same folders. JPEG and PNG files of 8 bits are copied as they are. Other kinds become 8-bit PNG files, and all 16-bit
images keep the same eight bits, the highest that any of them uses. What is not read, what is equal, and what
patients.csv leaves open is said. Then set COVID_XRAY_DATA to COPY.
"""

from __future__ import annotations

import contextlib
import io
import os
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
    """Return the images below `folder`, in Keras's order, and the files that are not read; hidden ones are neither.

    Names are relative to `folder`, with slashes. Raises SetupError for a folder that cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise SetupError(f"{error.filename} cannot be listed: {error.strerror}.")

    images, others = [], []
    if not folder.is_dir():
        return images, others
    for root, _, files in sorted(os.walk(folder, onerror=refuse)):
        for name in sorted(files):  # Windows would ignore case, Keras does not
            path = Path(root, name).relative_to(folder)
            if any(part[0] == "." for part in path.parts) or name.lower() in NO_IMAGES:
                continue
            (images if path.suffix.lower() in SUFFIXES else others).append(path.as_posix())
    return images, others


def report_unread(folder: Path, unread: Sequence[str]) -> None:
    """Print, by kind, how many files of the class folders are not read, and images elsewhere in `folder`."""
    kinds = Counter(Path(name).suffix.lower() or "no ending" for name in unread)
    if kinds:
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        print(f"{len(unread)} files are not read, such as {unread[0]} ({listed}). {SAVE_AS}")
    for place in sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."):
        with contextlib.suppress(OSError, SetupError):  # another folder that cannot be listed does not matter
            images = walk(place)[0]
            loose = [name for name in images if "/" not in name]
            if place.name in ("train", "test") and loose:
                print(f"{len(loose)} images in {place.name}/ are in no class folder, such as {loose[0]}. Not read.")
            elif place.name not in ("train", "test") and images:
                print(
                    f"{len(images)} images in {place.name}/ are not read. Put images into train/CLASS and test/CLASS."
                )


def prepare(folder: Path, copy: Path) -> None:
    """Check the images of `folder` and write the copy, with a patients.csv; raises SetupError for the first bad one."""
    if copy.exists():
        raise SetupError(f"{copy} exists. Name a folder that does not.")
    files, unread = [], []
    for split in ("train", "test"):
        for name in list_classes(folder / split):
            images, others = walk(folder / split / name)
            if not images:
                raise SetupError(f"{folder / split / name} holds no image. Put some there, or delete the folder.")
            files += [f"{split}/{name}/{image}" for image in images]
            unread += [f"{split}/{name}/{other}" for other in others]
    report_unread(folder, unread)
    patients = xray_data.patients_of(folder, files)
    depths = {}
    for file in xray_data.progress(files, "check"):
        image = decode(folder / file)
        if image.dtype == np.uint16:
            depths[file] = bits_in_use(image)
    bits = max(depths.values(), default=8)
    if depths:
        print(f"{len(depths)} images have 16 bits a pixel, of which {bits} are in use. The highest eight are kept.")
    names = [write_copy(folder, file, copy, bits) for file in xray_data.progress(files, "copy")]
    known = pd.DataFrame({"file": names, "patient": patients}).loc[np.array(files) != np.array(patients)]
    if len(known):
        known.to_csv(copy / "patients.csv", index=False)
    print(f"{len(names)} images are in {copy}. Set COVID_XRAY_DATA to {copy.resolve()}.")


def list_classes(folder: Path) -> list[str]:
    """Return the class names, which are the folders in `folder`; hidden ones are passed over."""
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    except OSError as error:
        raise SetupError(f"{error.filename} cannot be listed: {error.strerror}.") from None


def write_copy(folder: Path, file: str, copy: Path, bits: int) -> str:
    """Write the copy of one image, in one step; returns its name relative to `copy`.

    bits: how many the 16-bit images of the set use.
    """
    data, image = read_bytes(folder / file), decode(folder / file)
    is_plain = Path(file).suffix.lower() in xray_data.IMAGE_SUFFIXES and data[:2] in (b"\xff\xd8", b"\x89P")
    if is_plain and image.dtype == np.uint8:
        name = file
    else:
        name = f"{file}.png"
        if image.dtype == np.uint16:
            image = to_8_bits(image, bits)
        data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
    try:
        xray_data.atomic_write(copy / name, lambda scratch: scratch.write_bytes(data))
    except OSError as error:
        raise SetupError(f"{copy / name} cannot be written: {error.strerror}.") from None
    return name


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("Usage: python data/own_images.py FOLDER COPY")
    try:
        prepare(Path(sys.argv[1]), Path(sys.argv[2]))
    except SetupError as error:
        sys.exit(f"Problem: {error}")
