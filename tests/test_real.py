"""The article's own images, where they are: what the manifest says of them, and what the notebooks make of them."""

import collections
import zipfile

import numpy as np
import prepare
import pytest
from conftest import MULTI, SHARED, ZIP_NAME, load, real_images

pytestmark = real_images


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    with zipfile.ZipFile(SHARED / "data" / ZIP_NAME) as zipped:
        zipped.extractall(folder)
    return folder


def test_manifest_lists_the_zip():
    rows = prepare.read_manifest()
    with zipfile.ZipFile(SHARED / "data" / ZIP_NAME) as zipped:
        names = {name for name in zipped.namelist() if not name.endswith(("/", ".ini"))}
    expected = {
        f"{tree}/{row['split']}/{row['class']}/{row['filename']}"
        for row in rows
        for tree in (("all", "two") if row["in_two"] == "1" else ("all",))
    }
    assert names == expected and len(names) == 454


def test_the_articles_split(nb, nb_multi, unpacked):
    for functions, tree, validation, total in ((nb, "two", 26, 130), (nb_multi, "all", 54, 270)):
        folder = unpacked / tree
        images, labels, splits, files = functions["load_images"](folder, functions["list_classes"](folder))
        counts = collections.Counter(splits)
        assert counts["validation"] == validation and counts["train"] + validation == total
        assert counts["test"] == 9 * len(set(labels)) and images.shape[1:] == (150, 150, 3)
        assert functions["identify"](folder, files) == "Covid_Data_GradientCrescent"


def test_every_image_has_contrast(nb, unpacked):
    """No image is shown as all black or all white, the 16-bit PNG among the COVID-19 images included."""
    folder = unpacked / "all" / "train" / "covid"
    for path in nb["list_images"](folder):
        assert np.std(nb["read_image"](path)) > 10, path.name


def test_weights_file_is_accepted(tmp_path):
    nb = load(MULTI, tmp_path)
    file = SHARED / "weights" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    assert nb["weights_sha256"](nb["load_conv_base"](str(file))) == nb["VGG16_SHA256"]
