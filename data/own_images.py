"""Copy images of your own so that the lessons can read them: 16-bit images become 8-bit ones, by one rule.

    python data/own_images.py FOLDER COPY

FOLDER has train/ and test/, each with one folder per class, and perhaps patients.csv (file, patient). COPY gets the
same files. Those of 8 bits are copied as they are. In the 16-bit ones, gray level LOW becomes 0, and HIGH becomes 255:
the darkest and the brightest that any of them shows in more than 1% of its pixels. It does not matter how many bits
are in use, or from where they count. What cannot be read is said. Then set COVID_XRAY_DATA to COPY.
"""

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "notebooks"))

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import xray_data  # noqa: E402
from PIL import Image  # noqa: E402
from xray_data import SetupError  # noqa: E402

SAVE_AS = "Save it as a gray PNG of 8 or 16 bits"
WHITE_IS_ZERO = (262, 0)  # a tag of TIFF files, PhotometricInterpretation, and its value


def read_deep(path: Path) -> np.ndarray | None:
    """Return a gray image of 16 bits, uint16 (height, width), or None for one of 8 bits or fewer.

    Raises SetupError for what is damaged, and for pixels of 32 bits.
    """
    image = xray_data.read_image(path)
    if image.mode[0] not in "IF":
        return None
    if not image.mode.startswith("I;16"):
        raise SetupError(f"{path} has pixels of 32 bits, or with a sign. {SAVE_AS}, and run again.")
    pixels = np.asarray(image).astype(np.uint16)  # in this machine's byte order
    return ~pixels if WHITE_IS_ZERO in getattr(image, "tag_v2", {}).items() else pixels


def range_of(pixels: np.ndarray) -> tuple[float, float]:
    """Return the gray levels that leave the darkest and the brightest 1% of an image out.

    The file format's ends, 0 and 65535, do not count where there is anything else: they are borders and markers.
    """
    step = max(1, min(pixels.shape) // 500)
    sample = pixels[::step, ::step]
    inside = sample[(sample > 0) & (sample < 65535)]
    low, high = np.quantile(inside if inside.size else sample, [0.01, 0.99])
    return float(low), float(high)


def prepare(folder: Path, copy: Path) -> None:
    """Write the copy, with patients.csv, whole or not at all, and check it as the lessons do.

    Raises SetupError for the first image that is bad.
    """
    if copy.exists():
        raise SetupError(f"{copy} exists. Name a folder that does not.")
    files = xray_data.list_files(folder)
    patients = xray_data.patients_of(folder, files)
    ranges = {}
    for file in xray_data.progress(files, "read"):
        pixels = read_deep(folder / file)
        if pixels is not None:
            ranges[file] = range_of(pixels)
    low = min((low for low, _ in ranges.values()), default=0)
    high = max((high for _, high in ranges.values()), default=255)
    if ranges:
        print(
            f"{len(ranges)} images have 16 bits a pixel. {low:.0f} becomes black and {high:.0f} white, in all of them."
        )
    try:
        for file in xray_data.progress(files, "copy"):
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            if file in ranges:
                shares = (read_deep(folder / file) - low) / max(high - low, 1)
                gray = Image.fromarray((255 * np.clip(shares, 0, 1)).round().astype(np.uint8))
                gray.save(copy / file, "TIFF" if file.lower().endswith(("tif", "tiff")) else "PNG")
            else:
                shutil.copyfile(folder / file, copy / file)
        known = pd.DataFrame({"file": files, "patient": patients})
        known = known[known["patient"] != known["file"]]
        if len(known):
            known.to_csv(copy / "patients.csv", index=False)
        xray_data.check_images(copy)
    except BaseException as error:
        shutil.rmtree(copy, ignore_errors=True)
        if isinstance(error, OSError):
            raise SetupError(f"{copy} cannot be written: {error.strerror}.") from None
        if isinstance(error, SetupError):  # the copy is gone, so the original is named
            problem = str(error).replace(str(copy), str(folder))
            raise SetupError(problem.replace("Convert all images with data/own_images.py", SAVE_AS)) from None
        raise
    print(f"{len(files)} images are in {copy}. Set COVID_XRAY_DATA to {copy.resolve()}.")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("Usage: python data/own_images.py FOLDER COPY")
    try:
        prepare(Path(sys.argv[1]), Path(sys.argv[2]))
    except SetupError as error:
        sys.exit(f"Problem: {error}")
