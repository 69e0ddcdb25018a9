"""The toolbox of the two lessons: everything that both use and that you need not read first.

The sections stand in the order of a lesson: settings, data, the record of a run, views and
features, the head, statistics, heat maps, figures. Functions take what they need as arguments.
"""

from __future__ import annotations

import base64
import contextlib
import glob
import hashlib
import html
import importlib
import inspect
import io
import itertools
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

import cv2
import gdown
import joblib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import requests
from IPython.display import HTML, Markdown, display
from scipy.stats import binomtest, bootstrap
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix, roc_auc_score, roc_curve
from sklearn.model_selection import StratifiedGroupKFold
from tqdm import tqdm

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send what libraries write to file descriptor 2 to nowhere: TensorFlow's start-up lines, say."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


with quiet():
    import keras
    import tensorflow as tf
    from tensorflow.keras.preprocessing.image import ImageDataGenerator


class Problem(RuntimeError):
    """Something that you can fix. Jupyter shows the sentence alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows in place of a traceback."""
        return [f"Problem: {self}"]


# ---------------------------------------------------------------------------------------- settings


def whole_number(name: str, value: object, least: int = 1) -> int:
    """Check a setting that counts something; the environment variable `name` overrides `value`.

    Returns an int from `least` to 999999. Raises Problem for anything else.
    """
    text = str(os.environ.get(name, value)).strip()
    if not re.fullmatch(r"[0-9]{1,6}", text, re.ASCII) or int(text) < least:
        raise Problem(f"{name} is {text!r}. Set it to a whole number from {least} to 999999.")
    return int(text)


# --------------------------------------------------------------------------------------------- data

# <list of images>
LIST_OF_IMAGES = """\
test | covid | *:
nejmoa2001191_f3-PA.jpeg=13 nejmoa2001191_f4.jpeg=13 nejmoa2001191_f5-PA.jpeg=13 radiol.2020200490.fig3.jpeg=18
ryct.2020200028.fig1a.jpeg=16 ryct.2020200034.fig2.jpeg=14 ryct.2020200034.fig5-day0.jpeg=15
ryct.2020200034.fig5-day4.jpeg=15 ryct.2020200034.fig5-day7.jpeg=15
test | normal | NORMAL2-(IM-*)-*.jpeg:
1385_0001 1396_0001 1400_0001 1401_0001 1406_0001 1412_0001 1419_0001 1422_0001 1423_0001
test | pneumonia_bac | (person*)_bacteria_*.jpeg:
1753_4594 1940_4859 1940_4861 1940_4862 1941_4863 1942_4865 1943_4868 1944_4869 1945_4872
test | pneumonia_vir | (person*)_virus_*.jpeg:
957_1629 958_1630 960_1633 961_1634 962_1635 963_1636 964_1637 965_1638 966_1639
train | covid | *:
01E392EE-69F9-4E33-BFCE-E5C968654078.jpeg=46 1-s2.0-S0140673620303706-fx1_lrg.jpg=11
1-s2.0-S0929664620300449-gr2_lrg-a.jpg=19 1-s2.0-S0929664620300449-gr2_lrg-b.jpg=19
1-s2.0-S0929664620300449-gr2_lrg-c.jpg=19 1-s2.0-S0929664620300449-gr2_lrg-d.jpg=19
1-s2.0-S1684118220300608-main.pdf-001.jpg=59 1-s2.0-S1684118220300608-main.pdf-002.jpg=59
1-s2.0-S1684118220300682-main.pdf-002-a1.png=67 1-s2.0-S1684118220300682-main.pdf-002-a2.png=67
1-s2.0-S1684118220300682-main.pdf-003-b1.png=68 1-s2.0-S1684118220300682-main.pdf-003-b2.png=68
1312A392-67A3-4EBF-9319-810CF6DA5EF6.jpeg=39 1B734A89-A1BF-49A8-A1D3-66FAFA4FAC5D.jpeg=42
23E99E2E-447C-46E5-8EB2-D35D12473C39.png=40 2C26F453-AF3B-4517-BB9E-802CF2179543.jpeg=48
31BA3780-2323-493F-8AED-62081B9C383B.jpeg=37 41591_2020_819_Fig1_HTML.webp-day10.png=73
41591_2020_819_Fig1_HTML.webp-day5.png=73 6CB4EFC6-68FA-4CD5-940C-BEFA8DAFE9A7.jpeg=45
7AF6C1AF-D249-4BD2-8C26-449304105D03.jpeg=41 7C69C012-7479-493F-8722-ABC29C60A2DD.jpeg=33
80446565-E090-4187-A031-9D3CEAA586C8.jpeg=54 85E52EB3-56E9-4D67-82DA-DEA247C82886.jpeg=44
8FDE8DBA-CFBD-4B4C-B1A4-6F36A93B7E87.jpeg=36 93FE0BB1-022D-4F24-9727-987A07975FFB.jpeg=49
9C34AF49-E589-44D5-92D3-168B3B04E4A6.jpeg=36 CD50BA96-6982-4C80-AE7B-5F67ACDBFA56.jpeg=43
E63574A7-4188-4C8D-8D17-9D67A18A1AFA.jpeg=51 F2DE909F-E19C-4900-92F5-8F435B031AC6.jpeg=37
F4341CE7-73C9-45C6-99C8-8567A5484B63.jpeg=51 F63AB6CE-1968-4154-A70F-913AF154F53D.jpeg=47
FE9F9A5D-2830-46F9-851B-1FF4534959BE.jpeg=70 all14238-fig-0001-m-b.jpg=57 all14238-fig-0001-m-c.jpg=57
auntminnie-a-2020_01_28_23_51_6665_2020_01_28_Vietnam_coronavirus.jpeg=2
auntminnie-b-2020_01_28_23_51_6665_2020_01_28_Vietnam_coronavirus.jpeg=2
auntminnie-c-2020_01_28_23_51_6665_2020_01_28_Vietnam_coronavirus.jpeg=2
auntminnie-d-2020_01_28_23_51_6665_2020_01_28_Vietnam_coronavirus.jpeg=2 ciaa199.pdf-001-a.png=60
ciaa199.pdf-001-b.png=61 ciaa199.pdf-001-c.png=62 covid-19-pneumonia-12.jpg=24 covid-19-pneumonia-14-PA.png=23
covid-19-pneumonia-15-PA.jpg=20 covid-19-pneumonia-19.jpg=75 covid-19-pneumonia-2.jpg=21
covid-19-pneumonia-7-PA.jpg=22 gr1_lrg-a.jpg=69 gr1_lrg-b.jpg=69 kjr-21-e24-g001-l-a.jpg=63 kjr-21-e24-g002-l-a.jpg=64
kjr-21-e24-g003-l-a.jpg=65 kjr-21-e25-g001-l-a.jpg=76 lancet-case2a.jpg=6 lancet-case2b.jpg=6
nCoV-radiol.2020200269.fig1-day7.jpeg=12 nejmc2001573_f1a.jpeg=4 nejmc2001573_f1b.jpeg=4 nejmoa2001191_f1-PA.jpeg=13
train | normal | NORMAL2-(IM-*)-*.jpeg:
1281_0001 1282_0001 1285_0001 1286_0001 1287_0001 1288_0001 1289_0001 1290_0001 1291_0001 1292_0001 1293_0001
1294_0001 1295_0001 1296_0001 1300_0001 1301_0001 1302_0001 1303_0001 1304_0001 1305_0001 1306_0001 1307_0001
1308_0001 1310_0001 1311_0001 1314_0001 1315_0001 1316_0001 1317_0001 1318_0001 1319_0001 1320_0001 1321_0001
1322_0001 1323_0001 1326_0001 1327_0001 1328_0001 1329_0001 1330_0001 1332_0001 1333_0001 1334_0001 1335_0001
1336_0001 1337_0001 1338_0001 1341_0001 1342_0001 1343_0001 1344_0001 1345_0001 1346_0001 1347_0001 1348_0001
1349_0001 1350_0001 1351_0001 1356_0001 1357_0001 1360_0001 1362_0001 1365_0001 1371_0001 1376_0001 1379_0001
train | normal | NORMAL2-(IM-*)-*-*.jpeg:
1294_0001_0001 1294_0001_0002 1345_0001_0001 1345_0001_0002
train | pneumonia_bac | (person*)_bacteria_*.jpeg:
1843_4710 1847_4716 1848_4719 1850_4721 1851_4722 1852_4724 1855_4727 1857_4729 1858_4730 1859_4731 1860_4732
1863_4735 1864_4736 1865_4737 1865_4739 1866_4740 1867_4741 1868_4743 1869_4745 1872_4750 1872_4751 1875_4756
1876_4760 1877_4761 1879_4764 1880_4765 1881_4767 1883_4769 1884_4771 1885_4772 1886_4773 1888_4775 1893_4781
1896_4788 1897_4789 1901_4795 1903_4797 1904_4798 1905_4801 1906_4803 1907_4806 1908_4811 1910_4814 1911_4815
1912_4816 1912_4817 1916_4821 1917_4823 1918_4825 1921_4828 1922_4830 1923_4831 1924_4832 1924_4833 1926_4835
1927_4836 1927_4837 1929_4839 1930_4841 1931_4842 1932_4843 1933_4844 1934_4846 1935_4847 1935_4848 1935_4849
1935_4850 1936_4852 1937_4853 1938_4854
train | pneumonia_vir | (person*)_virus_*.jpeg:
88_164 88_165 88_166 88_167 890_1540 891_1541 894_1546 895_1547 896_1548 898_1552 899_1553 89_168 900_1554 901_1555
905_1561 906_1562 907_1563 908_1564 909_1565 90_169 90_170 911_1567 913_1570 914_1571 915_1572 918_1575 919_1576
920_1577 921_1578 924_1581 925_1582 926_1583 927_1584 928_1586 929_1588 929_1589 92_174 931_1592 932_1593 933_1594
934_1595 935_1597 936_1598 937_1599 938_1600 93_175 940_1602 940_1604 940_1605 940_1607 940_1609 941_1610 942_1611
945_1616 947_1618 949_1620 94_176 950_1621 951_1622 952_1623 954_1626 955_1627 956_1628 95_177 96_178 96_179 97_180
97_181 98_182 99_183
control | other or unspecified | *:
000001-12.jpg=281 000001-17.jpg=283 000001-24.jpg=339 000001-3.png=279 000002-19-a.jpg=283 000002-4.png=279
000003-4.png=279 000004-3.png=279 000005-5-a.jpg=276 000006-17.jpg=339 000007-15.jpg=339 16583_1_1.jpg=272
16583_3_1.jpg=272 ARDSSevere.png=5 acute-respiratory-distress-syndrome-ards-1.jpg=25
acute-respiratory-distress-syndrome-ards.jpg=26 ards-secondary-to-tiger-snake-bite.png=27
control | bacterial pneumonia | *:
000001-19.jpg=284 000001-27.jpg=340 000001-9-a.jpg=278 000001.jpg=282 000002-11-a.jpg=278 000006-12.jpg=284
000008-8.jpg=282 000010-5.jpg=284 000011-6.jpg=284 000012-3.jpg=284 000016.jpg=282 000024-1.jpg=282 16646_1_1.jpg=271
aspiration-pneumonia-5-day0.jpg=91 aspiration-pneumonia-5-day10.jpg=91 aspiration-pneumonia-5-day27.jpg=91
aspiration-pneumonia-5-day3.jpg=91 cavitating-pneumonia-4-day0-PA.jpg=92 chlamydia-pneumonia-PA.png=90
klebsiella-pneumonia-1.jpg=100 legionella-pneumonia-1.png=110 legionella-pneumonia-2.jpg=111
parapneumonic-effusion-1-PA.png=88 pneumococcal-pneumonia-day0.jpg=87 pneumococcal-pneumonia-day35.jpg=87
pneumococcal-pneumonia-day7.jpg=87 pneumonia-7.jpg=30 right-upper-lobe-pneumonia-9-PA.jpg=89
streptococcus-pneumoniae-pneumonia-1.jpg=29 streptococcus-pneumoniae-pneumonia-temporal-evolution-1-day0.jpg=31
streptococcus-pneumoniae-pneumonia-temporal-evolution-1-day1.jpg=31
streptococcus-pneumoniae-pneumonia-temporal-evolution-1-day2.jpg=31
streptococcus-pneumoniae-pneumonia-temporal-evolution-1-day3.jpg=31
control | fungal pneumonia | *:
000001-2.jpg=273 X-ray_of_cyst_in_pneumocystis_pneumonia_1.jpg=103 pneumocystis-carinii-pneumonia-1-PA.jpg=105
pneumocystis-jiroveci-pneumonia-2.png=107 pneumocystis-jiroveci-pneumonia-4-PA.png=109
pneumocystis-jirovecii-pneumonia-2.jpg=108 pneumocystis-jirovecii-pneumonia-3-1.jpg=101
pneumocystis-jirovecii-pneumonia-3-2.jpg=101 pneumocystis-jirovecii-pneumonia-3-3.jpg=101
pneumocystis-pneumonia-1.jpg=102 pneumocystis-pneumonia-12.png=106 pneumocystis-pneumonia-2-PA.png=28
pneumocystis-pneumonia-8.jpg=104
control | viral pneumonia | *:
000001-6.png=286 000005-3.png=277 000006-2.png=277 000007-2.png=277 000010-2.png=277
SARS-10.1148rg.242035193-g04mr34g0-Fig8a-day0.jpeg=3 SARS-10.1148rg.242035193-g04mr34g0-Fig8b-day5.jpeg=3
SARS-10.1148rg.242035193-g04mr34g0-Fig8c-day10.jpeg=3 SARS-10.1148rg.242035193-g04mr34g04a-Fig4a-day7.jpeg=7
SARS-10.1148rg.242035193-g04mr34g04b-Fig4b-day12.jpeg=7 SARS-10.1148rg.242035193-g04mr34g05x-Fig5-day9.jpeg=8
SARS-10.1148rg.242035193-g04mr34g07a-Fig7a-day5.jpeg=9 SARS-10.1148rg.242035193-g04mr34g07b-Fig7b-day12.jpeg=9
SARS-10.1148rg.242035193-g04mr34g09a-Fig9a-day17.jpeg=10 SARS-10.1148rg.242035193-g04mr34g09b-Fig9b-day19.jpeg=10
SARS-10.1148rg.242035193-g04mr34g09c-Fig9c-day27.jpeg=10 wong-0000.jpg=170 wong-0002.jpg=171 wong-0003.jpg=171
wong-0004.jpg=171 wong-0005.jpg=172
control | no finding | *:
1-s2.0-S1059131120301151-gr2-e.png=325 1-s2.0-S1341321X20301124-gr3_lrg-a.png=318
1-s2.0-S1341321X20301124-gr3_lrg-b.png=318 1-s2.0-S2213716520301168-gr1_lrg-c.png=316
1-s2.0-S2214250920300834-gr1_lrg-d.png=315 10.1016-slash-j.hrcr.2020.04.015-fig3-a.png=313b 16745_2_1.PNG=210
16745_3_1.png=211 16745_6_1.png=214 2c35005f.jpg=251 F051E018-DAD1-4506-AD43-BE4CA29E960B.jpeg=38 ada8c494.jpg=253
covid-19-pneumonia-58-prior.jpg=173
"""
# </list of images>

ZIP_NAME = "Covid_Data_GradientCrescent.zip"
DRIVE_URL = "https://drive.google.com/uc?id=1coM7x3378f-Ou2l6Pg2wldaOI7Dntu1a"
COLLECTION_URL = "https://raw.githubusercontent.com/ieee8023/covid-chestxray-dataset/master"
KAGGLE = "paultimothymooney/chest-xray-pneumonia"
VGG16_SHA256 = "d9a27cc1fc7f975ef8cff49180e794ccd7c4bc868ebb49740803b3bbaa8dbefd"
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
TIMEOUT = 60  # seconds that a server may be silent
LARGEST = {".zip": 1_000_000_000, "image": 50_000_000}  # bytes of a download
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
socket.setdefaulttimeout(TIMEOUT)  # for Keras, which downloads the weights


def parse_list(text: str) -> pd.DataFrame:
    """Read LIST_OF_IMAGES: a table of split, class (of controls, the group of findings), filename, patient.

    A line that ends in a colon heads a group: split | class | template. An item is either name=number, a
    file and patient of the COVID-19 collection, or the numbers that replace the template's stars; its
    parentheses hold the patient.
    """
    rows, group = [], []
    for line in text.splitlines():
        if line.endswith(":"):
            *group, template = line.removesuffix(":").split(" | ")
            continue
        for item in line.split():
            name, _, patient = item.partition("=")
            if not patient:
                numbers = iter(item.split("_"))
                name = re.sub(r"[*]", lambda _, numbers=numbers: next(numbers), template)
            patient = f"cohen-{patient}" if patient else f"kermany-{re.search(r'[(](.+)[)]', name)[1]}"
            rows.append((*group, re.sub("[()]", "", name), patient))
    return pd.DataFrame(rows, columns=["split", "class", "filename", "patient"])


ALL_IMAGES = parse_list(LIST_OF_IMAGES)
ARTICLE = ALL_IMAGES[ALL_IMAGES["split"] != "control"]
CONTROLS = ALL_IMAGES[ALL_IMAGES["split"] == "control"]


def data_home() -> Path:
    """Return where data lie: ../data in a clone, whose notebooks run in their own folder, else data."""
    return Path("../data") if Path("../data/manifest.csv").exists() else Path("data")


def read_image(path: Path) -> np.ndarray:
    """Read an image file with OpenCV as RGB, uint8 (height, width, 3), 0 to 255.

    Gray, palette, RGBA, and CMYK files become RGB; of 16-bit ones the highest eight bits in use are
    kept. Raises Problem where the file holds no image.
    """
    data = np.fromfile(path, np.uint8)
    with contextlib.suppress(cv2.error):
        image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH) if data.size else None
        if image is not None and image.dtype in (np.uint8, np.uint16):
            if image.dtype == np.uint16:
                image = (image >> max(0, int(image.max()).bit_length() - 8)).astype(np.uint8)
            return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    raise Problem(f"{path} cannot be read as an image. Replace or delete it, then run again.")


def list_images(folder: Path) -> list[Path]:
    """Return the image files in `folder`, sorted by name; desktop.ini and hidden files are passed over."""
    names = folder.iterdir() if folder.is_dir() else []
    return sorted(p for p in names if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != ".")


def list_classes(folder: Path, split: str) -> list[str]:
    """Return the class names, which are the folders in `folder`/`split`; hidden ones are passed over."""
    return sorted(p.name for p in (folder / split).iterdir() if p.is_dir() and p.name[0] != ".")


def holds_images(folder: Path) -> bool:
    """Tell whether `folder` has the two splits, train/ and test/."""
    return (folder / "train").is_dir() and (folder / "test").is_dir()


def identify(folder: Path, files: Sequence[str]) -> str:
    """Name a data set: the article's if the names match, phantoms by the note beside them, or its folder."""
    trees = [ARTICLE, ARTICLE[ARTICLE["class"].isin(["covid", "normal"])]]
    names = ["/".join(row) for row in ALL_IMAGES[["split", "class", "filename"]].values]
    if any(set(files) == {names[row] for row in tree.index} for tree in trees):
        return "Covid_Data_GradientCrescent"
    return "phantoms" if (folder.parent / "PHANTOMS.txt").exists() else folder.resolve().name


def is_safe(name: str) -> bool:
    """Tell whether a name from outside may become a file's name on any system."""
    plain = 0 < len(name) <= 200 and name.isprintable() and not re.search(r'[\\/:*?"<>|]', name)
    return plain and name[-1] not in ". " and name != ".." and not RESERVED.fullmatch(name)


def in_place(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `target` and move it there in one step: whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{os.getpid()}-{threading.get_ident()}-{target.name}")
    try:
        write(scratch)
        os.replace(scratch, target)
    finally:
        for leftover in target.parent.glob(f"{glob.escape(scratch.name)}*"):
            leftover.unlink(missing_ok=True)


def download(url: str, target: Path, largest: int) -> None:
    """Download `url` to `target` as it comes. Raises OSError for errors and more than `largest` bytes."""
    with requests.get(url, timeout=TIMEOUT, stream=True) as answer, open(target, "wb") as file:
        answer.raise_for_status()
        for part in answer.iter_content(1 << 20):
            if file.write(part) and file.tell() > largest:
                raise OSError(f"more than {largest / 1e6:.0f} MB")


def fetch_zip(url: str, folder: Path) -> None:
    """Fetch the article's zip into `folder`: from Google Drive with gdown, any web address, or a path.

    Only a zip is kept, never a web page in its place. Raises Problem with the reason and what to do.
    """
    request = requests.Session.request

    def impatient(*arguments: object, **options: object) -> requests.Response:  # gdown 5 would wait forever
        return request(*arguments, **{**options, "timeout": TIMEOUT})

    def write(scratch: Path) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            shutil.copyfile(url2pathname(parts.path) if parts.scheme == "file" else url, scratch)
        elif "drive.google.com" in url:
            with mock.patch.object(requests.Session, "request", impatient):
                gdown.download(url, str(scratch), use_cookies=False)
        else:
            download(url, scratch, LARGEST[".zip"])
        if not scratch.exists() or not zipfile.is_zipfile(scratch):
            raise OSError("what came is not a zip; perhaps a page that says the link is gone or over its quota")

    try:
        in_place(folder / ZIP_NAME, write)
    except Exception as error:  # gdown 5 and 6 raise different ones
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Problem(
            f"{url} cannot be downloaded ({reason}). Open it in a browser and put the file into "
            f"{folder.resolve()} as {ZIP_NAME}, or set COVID_XRAY_URL to a copy of it."
        ) from None


def unzip_images(archive: Path, folder: Path, trees: Sequence[str] = ("all", "two")) -> None:
    """Unpack the folders `trees` of `archive` into `folder`, each whole or not at all; those there stay."""
    try:
        with zipfile.ZipFile(archive) as zipped, tempfile.TemporaryDirectory(dir=folder, prefix=".unzip-") as scratch:
            for name in zipped.namelist():
                if not all(map(is_safe, name.removesuffix("/").split("/"))):
                    raise Problem(f"{archive} holds {name!r}, which would be written outside {folder}. Do not use it.")
            if sum(member.file_size for member in zipped.infolist()) > 4 * LARGEST[".zip"]:
                raise Problem(f"{archive} unpacks to more than 4 GB: it is not the article's data set.")
            zipped.extractall(scratch)
            for tree in trees:
                if not (Path(scratch) / tree).is_dir():
                    raise Problem(f"{archive} has no folder {tree}/: it is not the article's data set.")
                if not (folder / tree).is_dir():
                    with contextlib.suppress(FileExistsError):  # another run was quicker
                        os.replace(Path(scratch) / tree, folder / tree)
    except Problem:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise Problem(f"{archive} cannot be unpacked into {folder.resolve()}: {reason}. Fix that, run again.") from None
    except Exception as error:  # zipfile has many ways to say that a file is damaged
        raise Problem(f"{archive} is damaged ({error}). Delete it and run again.") from None


def fetch_collection(name: str, target: Path) -> None:
    """Fetch one image of the COVID-19 collection; only what decodes is kept. Raises OSError, Problem."""
    source = os.environ.get("COVID_CHESTXRAY_URL", COLLECTION_URL)

    def write(scratch: Path) -> None:
        download(f"{source}/images/{quote(name)}", scratch, LARGEST["image"])
        read_image(scratch)

    in_place(target, write)


def fetch_kermany(name: str, target: Path) -> None:
    """Fetch one image of the children from Kaggle: its train, test, and val folders are tried in turn."""
    try:
        kagglehub = importlib.import_module("kagglehub")
    except ImportError:
        raise Problem("The children's X-rays come from Kaggle: `pip install kagglehub` and run again.") from None
    kind, errors = "PNEUMONIA" if name.startswith("person") else "NORMAL", []
    for split in ("train", "test", "val"):
        try:
            path = kagglehub.dataset_download(KAGGLE, path=f"chest_xray/{split}/{kind}/{name}")
            read_image(Path(path))
            return in_place(target, lambda scratch, path=path: shutil.copyfile(path, scratch))
        except Exception as error:  # kagglehub has its own for each of its sources
            errors.append(error)
    raise next((e for e in errors if getattr(getattr(e, "response", None), "status_code", 0) != 404), errors[0])


def fetch_images(table: pd.DataFrame, folder: Path, what: str) -> list[str]:
    """Fetch the images of `table` (filename, patient) that `folder` lacks, four at a time.

    Each is decoded before it is kept, so a second run goes on where the first one stopped. Returns the
    names that their source does not have. Raises Problem where it cannot be reached, or nothing can be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for row in table[["filename", "patient"]].values if not (folder / row[0]).exists()]

    def fetch(row: Sequence[str]) -> str | None:
        try:
            (fetch_collection if row[1].startswith("cohen") else fetch_kermany)(row[0], folder / row[0])
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", 0)
            if status == 404 or "cannot be read as an image" in str(error):
                return row[0]
            raise
        return None

    with ThreadPoolExecutor(4) as pool:
        bar = tqdm(pool.map(fetch, rows), what, len(rows), file=sys.stdout, ncols=80, mininterval=1, disable=not rows)
        try:
            return [name for name in bar if name]
        except Problem:
            raise
        except Exception as error:
            pool.shutdown(cancel_futures=True)
            reason = " ".join(str(error).split())[:200]
            if isinstance(error, requests.ConnectionError) and error.request:
                reason = f"{urlsplit(error.request.url).netloc} cannot be reached"
            raise Problem(f"{what}: {reason}. What came is kept in {folder}; run again to go on.") from None


def rebuild(home: Path) -> None:
    """Build `home`/all and `home`/two from their public sources, as the list of images says.

    Trees that are there are moved aside first. Images that a source no longer has are named and left
    out; Problem if they are more than one in ten.
    """
    print("The images come from their public sources: COVID-19 from GitHub, the children from Kaggle.")
    pool = home / "public"
    gone = fetch_images(ARTICLE, pool, "public sources")
    if len(gone) > len(ARTICLE) / 10:
        raise Problem(
            f"{len(gone)} of {len(ARTICLE)} images are not where they were, such as {gone[0]}. Put the zip into {home}."
        )
    if gone:
        print(f"{len(gone)} images are no longer available and are left out: {', '.join(gone)}")
    with tempfile.TemporaryDirectory(dir=home, prefix=".rebuild-") as scratch:
        for split, name, file, _ in ARTICLE[~ARTICLE["filename"].isin(gone)].values:
            for tree in ("all", "two") if name in ("covid", "normal") else ("all",):
                target = Path(scratch) / tree / split / name / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(pool / file, target)
        for tree in ("all", "two"):
            if (home / tree).exists():
                aside = next(p for k in itertools.count(1) if not (p := home / f"{tree}.before-{k}").exists())
                os.replace(home / tree, aside)
                print(f"{home / tree} was there; it is now {aside}.")
            os.replace(Path(scratch) / tree, home / tree)
    shutil.rmtree(pool, ignore_errors=True)


def find_images(tree: str, url: str = DRIVE_URL, home: Path | None = None) -> Path:
    """Return the folder whose train/ and test/ a notebook reads; fetch the images if need be.

    Looks at COVID_XRAY_DATA (which holds `tree`/train or train/), at `home`/`tree`, its zip, and its
    phantoms, then downloads `url` (COVID_XRAY_URL overrides it), then goes to the public sources.
    """
    home, url = home or data_home(), os.environ.get("COVID_XRAY_URL", url)
    if setting := os.environ.get("COVID_XRAY_DATA"):
        for folder in (Path(setting) / tree, Path(setting)):
            if holds_images(folder):
                return folder
        raise Problem(
            f"COVID_XRAY_DATA is {setting!r}, which holds neither {tree}/train nor train/, with test/ beside."
        )
    if not holds_images(home / tree):
        if not (home / ZIP_NAME).exists():
            if holds_images(home / "phantoms" / tree):
                return home / "phantoms" / tree
            try:
                fetch_zip(url, home)
            except Problem as first:
                print(first)
                try:
                    rebuild(home)
                except Problem as second:
                    raise Problem(f"{first} The public sources fail, too: {second}") from None
                return home / tree
        unzip_images(home / ZIP_NAME, home)
    return home / tree


def find_controls(folder: Path, class_names: Sequence[str] = ("covid",)) -> pd.DataFrame:
    """Return the controls below `folder`/controls: a table of file, finding, group, patient.

    Missing ones are fetched. The table is empty, with a printed message, where none can be had or
    `class_names` do not have COVID-19. A controls.csv beside the images replaces the project's own list.
    """
    pictures, table = folder / "controls", CONTROLS.rename(columns={"class": "group"})
    try:
        if (pictures / "controls.csv").exists():
            table = pd.read_csv(pictures / "controls.csv", dtype=str, keep_default_na=False)
        elif "covid" in class_names and "pneumonia" not in class_names:
            if not pictures.exists() and (folder / "controls.zip").exists():
                unzip_images(folder / "controls.zip", folder, ["controls"])
            gone = fetch_images(table, pictures, "controls")
            print(*([f"{len(gone)} of {len(table)} controls are not available."] if gone else []))
    except (Problem, OSError) as error:
        print(f"Not all controls are available. {error}")
    there = np.array([is_safe(name) and (pictures / name).is_file() for name in table["filename"]], bool)
    table = table[there].reset_index(drop=True)
    return table.assign(file=[pictures / name for name in table["filename"]])


def weights_sha256(model: keras.Model) -> str:
    """SHA-256 over all kernels and biases, layer by layer, as little-endian float32."""
    arrays = [np.ascontiguousarray(array, "<f4").tobytes() for array in model.get_weights()]
    return hashlib.sha256(b"".join(arrays)).hexdigest()


def load_vgg16(weights: str | None) -> keras.Model:
    """Return VGG16 without its classifier; raises Problem unless it has VGG16's ImageNet weights.

    `weights`: "imagenet" (Keras downloads them), a file's path, or None for random ones, not checked.
    """
    advice = "Set VGG16_WEIGHTS to a good file, or run `python data/prepare.py` in a clone of the project."
    try:
        base = keras.applications.VGG16(weights=weights, include_top=False, input_shape=(32, 32, 3))
    except Exception as error:  # Keras and h5py raise different ones for each kind of damage
        reason = " ".join(str(error).split())[:200]
        raise Problem(f"VGG16's weights cannot be read from {weights!r} ({reason}). {advice}") from None
    if weights and weights_sha256(base) != VGG16_SHA256:
        raise Problem(f"The weights from {weights!r} are not VGG16's ImageNet weights. {advice}")
    return base


def find_weights(home: Path | None = None) -> str | None:
    """Return what VGG16's `weights` may be: a file, "imagenet", or None for VGG16_WEIGHTS=random.

    Looks at VGG16_WEIGHTS, then at `home`/weights, then lets Keras download them. Checks them first.
    """
    prepared = (home or data_home()) / "weights" / "vgg16.weights.h5"
    weights = os.environ.get("VGG16_WEIGHTS", str(prepared) if prepared.exists() else "imagenet")
    load_vgg16(None if weights == "random" else weights)
    return None if weights == "random" else weights


# ------------------------------------------------------------------------------- images and tables

LABELS = dict(covid="COVID-19", normal="normal", pneumonia_bac="bacterial pneumonia", pneumonia_vir="viral pneumonia")
FINDINGS = ("no finding", "bacterial pneumonia", "viral pneumonia", "fungal pneumonia", "other or unspecified")
RIGHT_ANSWERS = {"no finding": "normal", "bacterial pneumonia": "pneumonia_bac", "viral pneumonia": "pneumonia_vir"}


def label_of(class_name: str) -> str:
    """Return what figures and tables call a class; a class of your own keeps its folder's name."""
    return LABELS.get(class_name, class_name)


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Resize to (size, size, 3) as the article does: each pixel becomes its nearest neighbor."""
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)


def read_images(paths: Sequence[Path], size: int) -> np.ndarray:
    """Decode image files once: uint8 (n, size, size, 3), RGB, 0 to 255."""
    images = [resize(read_image(path), size) for path in paths]
    return np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8)


def patients_of(folder: Path, files: Sequence[str]) -> list[str]:
    """Return the patient of each file, named relative to `folder`.

    The article's images are known by name. For others, patients.csv (file, patient) in `folder` says;
    a file that neither names counts as a patient of its own.
    """
    known, listing = dict(zip(ARTICLE["filename"], ARTICLE["patient"])), folder / "patients.csv"
    if listing.exists():
        try:
            table = pd.read_csv(listing, dtype=str, encoding="utf-8", keep_default_na=False)
            known |= {file: patient for file, patient in zip(table["file"], table["patient"]) if patient}
        except (KeyError, ValueError) as error:
            raise Problem(f"{listing} needs the columns file and patient ({error}).") from None
    return [str(known.get(file, known.get(file.split("/")[-1], file))) for file in files]


def load_images(
    folder: Path, size: int = 150, validation_split: float = 0.2, class_names: Sequence[str] | None = None
) -> tuple[np.ndarray, pd.DataFrame]:
    """Decode every image of `folder`/train and `folder`/test once.

    Returns the images, uint8 (n, size, size, 3), RGB, 0 to 255, and a table with a row for each:
    file (relative to `folder`), class, label (0, 1, ... in the order of `class_names`, by default the
    sorted folders), split ("train", "validation", "test"), patient. As in Keras, the first
    `validation_split` of each class by file name validate. Raises Problem where a class has no image.
    """
    names = list(class_names or sorted({*list_classes(folder, "train"), *list_classes(folder, "test")}))
    if len(names) < 2:
        raise Problem(f"{folder / 'train'} has {len(names)} class. Make a folder for each of two or more classes.")
    rows = []
    for split, (label, name) in itertools.product(("train", "test"), enumerate(names)):
        paths = list_images(folder / split / name)
        if not paths:
            raise Problem(f"{folder / split / name} holds no image. Every class needs some in train/ and in test/.")
        held_out = int(validation_split * len(paths)) if split == "train" else 0
        for index, path in enumerate(paths):
            part = "validation" if index < held_out else split
            rows.append((f"{split}/{name}/{path.name}", name, label, part))
    table = pd.DataFrame(rows, columns=["file", "class", "label", "split"])
    if "validation" not in set(table["split"]):
        raise Problem(f"{folder} has no image to validate on. Put five or more images of a class into train/.")
    table["patient"] = patients_of(folder, table["file"])
    return read_images([folder / file for file in table["file"]], size), table


def count_images(table: pd.DataFrame) -> pd.DataFrame:
    """Count the images, and the patients they show, of each class and split."""
    table = table.assign(**{"class": [label_of(name) for name in table["class"]]})
    counts = table.groupby(["class", "split"], sort=False)["patient"].agg(images="size", patients="nunique")
    return counts.unstack().swaplevel(axis=1)[list(dict.fromkeys(table["split"]))]


# ------------------------------------------------------------------------------ the record of a run


def choose_precision(setting: str = "auto") -> str:
    """Return the precision in which VGG16 runs: "float16", "bfloat16", or "float32".

    "auto", or the environment variable PRECISION: float16 on a GPU, bfloat16 on a processor that
    computes with it, and float32 elsewhere. Raises Problem for anything else.
    """
    setting = os.environ.get("PRECISION", setting)
    if setting not in ("auto", "float16", "bfloat16", "float32"):
        raise Problem(f"PRECISION is {setting!r}. Set it to auto, float16, bfloat16, or float32.")
    if setting != "auto" or tf.config.list_physical_devices("GPU"):
        return setting.replace("auto", "float16")
    cpu = Path("/proc/cpuinfo")
    fast = cpu.exists() and re.search(r"\b(avx512_bf16|amx_bf16)\b", cpu.read_text())
    return "bfloat16" if fast else "float32"


class Run:
    """The record of one run of a notebook: results as JSON, figures as PNG, all saved as they come.

    `results` is what `output`/`name`.json holds. `output` is COVID_XRAY_OUTPUT, or output/ beside the
    data. `seed` seeds Python, NumPy, and TensorFlow.
    """

    def __init__(self, name: str, seed: int = 42, precision: str = "auto", output: Path | None = None):
        default = "output" if data_home() == Path("data") else "../output"
        self.output = Path(output or os.environ.get("COVID_XRAY_OUTPUT", default))
        self.name, self.seed, self.precision = name, seed, choose_precision(precision)
        self.started = self.lapped = time.perf_counter()
        self.bases: dict = {}
        try:
            self.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Problem(f"{self.output} cannot be created: {error.strerror}. Set COVID_XRAY_OUTPUT.") from None
        keras.utils.set_random_seed(seed)
        with quiet():  # the first compiled function prints a few lines
            tf.function(lambda: tf.constant(1.0) + 1, jit_compile=True)()
        tf.get_logger().setLevel("ERROR")
        warnings.filterwarnings("ignore", module="scipy|keras")  # SciPy warns at every augmented image
        plt.rcParams.update(STYLE)
        self.gpus = tf.config.list_logical_devices("GPU")
        versions = {"python": sys.version.split()[0], "tensorflow": tf.__version__, "keras": keras.__version__}
        self.results = dict(dataset=None, weights=None, seed=seed, precision=self.precision, views_from_cache=0)
        self.results |= dict(versions=versions, seconds={}, cases={}, trust={})
        device = f"{len(self.gpus)} GPU(s)" if self.gpus else f"{os.cpu_count()} CPU cores"
        print(f"TensorFlow {tf.__version__}, Keras {keras.__version__}, {device}, VGG16 in {self.precision}")

    def describe(self, folder: Path, table: pd.DataFrame) -> None:
        """Record which data set this is; a notice says so where the images are phantoms."""
        self.results["dataset"] = identify(folder, table["file"])
        self.results["weights"] = "random" if os.environ.get("VGG16_WEIGHTS") == "random" else "imagenet"
        if self.phantoms:
            notice = (
                "### These images are SYNTHETIC\nNo X-ray is available, so everything below is computed on drawn "
                "phantoms. It shows that the code works. It says nothing about lungs, COVID-19, or the article."
            )
            display(Markdown(notice))
        self.lap("images")

    @property
    def phantoms(self) -> bool:
        """Tell whether this run reads phantoms instead of X-rays."""
        return self.results["dataset"] == "phantoms"

    def record(self, path: str, value: object) -> None:
        """Put `value` under a dotted `path` of the results, such as "trust.controls"; ends a lap and saves."""
        *parents, last = path.split(".")
        place = self.results
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
        self.lap("training" if parents[:1] == ["cases"] else path.split(".")[0])

    def lap(self, part: str) -> None:
        """Add the seconds since the last lap to results["seconds"][part], and save."""
        now, seconds = time.perf_counter(), self.results["seconds"]
        seconds[part] = round(seconds.get(part, 0) + now - self.lapped, 1)
        self.lapped = now
        self.save()

    def save(self) -> None:
        """Write the results in one step, so that a later failure loses none of them."""
        self.results["seconds"]["total"] = round(time.perf_counter() - self.started, 1)
        scratch = self.output / f".{self.name}-{os.getpid()}.json"
        scratch.write_text(json.dumps(self.results, indent=1, default=as_plain), encoding="utf-8")
        os.replace(scratch, self.output / f"{self.name}.json")

    def show(self, figure: plt.Figure, name: str, alt: str) -> None:
        """Save a figure as PNG and show it, with `alt` as its alternative text; phantoms are named."""
        if self.phantoms:
            figure.text(0.5, -0.01, "Synthetic phantoms, not X-rays", ha="center", va="top", color=ORANGE)
        path = self.output / f"{self.name}_{name}.png"
        figure.savefig(path, bbox_inches="tight")
        plt.close(figure)
        show_png(path, alt)

    # --- views and features

    def extract_features(
        self, conv_base: keras.Model, datagen: ImageDataGenerator, images: np.ndarray, views: int = 1
    ) -> list[np.ndarray]:
        """Run the frozen base once over each of `views` augmented copies of all images.

        images: uint8 (n, size, size, 3), 0 to 255. Returns one array a view, float16 (n, 4, 4, 512) for
        VGG16 at 150 pixels, read from disk as it is used. View v is drawn with seed + 1000 v, so the same
        call gives the same features. Each view is kept under `output`/views and is never computed twice:
        its key has the pixels, the augmentation, the seed, the view, the weights, and the precision.
        """
        if not len(images):
            return [np.zeros((0, *conv_base.output_shape[1:]), np.float16)] * views
        memory = joblib.Memory(self.output / "views", mmap_mode="r", verbose=0)
        stored = memory.cache(view_features, ignore=["base", "datagen", "images", "progress"])
        weights = joblib.hash(conv_base.get_weights())
        base = self.bases.setdefault(weights, None) or reduced(conv_base, self.precision, len(self.gpus))
        self.bases[weights] = base
        parts = (tf.__version__, keras.__version__, np.__version__, len(self.gpus), self.precision, weights)
        key = joblib.hash([*parts, conv_base.output_shape, images, augmentation_of(datagen)])
        seeds = [self.seed + 1000 * view for view in range(views)]
        missing = [seed for seed in seeds if not is_kept(stored, base, datagen, images, seed, key, None)]
        self.results["views_from_cache"] += views - len(missing)
        total = len(missing) * len(images)
        look = dict(file=sys.stdout, ncols=80, mininterval=2, disable=total < 500)
        with tqdm(total=total, desc=f"VGG16, {len(missing)} new view(s)", **look) as bar:
            features = [from_cache(stored, base, datagen, images, seed, key, bar.update) for seed in seeds]
        self.lap("features")
        return features

    def conclude(self, *sentences: str) -> None:
        """Show sentences as one paragraph; a run on phantoms says first that they mean nothing."""
        first = ["These are drawn phantoms: what follows says nothing about X-rays."] if self.phantoms else []
        display(Markdown("> " + " ".join([*first, *sentences])))

    def show_committed(self, name: str) -> None:
        """Show a figure of the project's own run in place of one that needs images you do not have."""
        figures = data_home().parent / "notebooks" / "figures"
        print(f"Without the controls, a part is missing. The project's own run has it: {self.name}_{name}.png, and")
        if (figures / f"{self.name}.json").exists():
            trust = json.loads((figures / f"{self.name}.json").read_text(encoding="utf-8"))["trust"]
            print(*(f"{task}: {describe(scored)}" for task, scored in trust[name].items()), sep="\n")
            show_png(figures / f"{self.name}_{name}.png", "The figure of the project's own run")

    def cache_size(self) -> str:
        """Say how much the kept views take up on disk."""
        size = sum(path.stat().st_size for path in (self.output / "views").rglob("*") if path.is_file())
        kept = self.results["views_from_cache"]
        return f"{self.output / 'views'} holds {size / 1e6:.0f} MB of features; {kept} views of this run came from it."


def show_png(path: Path, alt: str) -> None:
    """Show a PNG at 100 pixels an inch with its alternative text, which nbconvert drops from a plain image."""
    data = path.read_bytes()
    width = round(int.from_bytes(data[16:20], "big") * 100 / STYLE["savefig.dpi"])  # from the header
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    display(HTML(f'<img width="{width}" alt="{html.escape(alt)}" src="{source}">'))


def as_plain(value: object) -> object:
    """Return NumPy's numbers and arrays as Python's, for JSON."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else str(value)


# ------------------------------------------------------------------------------- views and features

ARTICLE_AUGMENTATION = dict(
    rotation_range=50, width_shift_range=0.2, height_shift_range=0.2, shear_range=0.25, zoom_range=0.1,
    channel_shift_range=20, horizontal_flip=True, vertical_flip=True, fill_mode="constant",
)  # fmt: skip


def augmentation_of(datagen: ImageDataGenerator) -> str:
    """Return a hash of a generator's settings; a preprocessing function is known by its source."""
    settings = {k: v for k, v in vars(datagen).items() if k != "preprocessing_function"}
    function = datagen.preprocessing_function
    return joblib.hash([settings, inspect.getsource(function) if function else None])


def reduced(conv_base: keras.Model, precision: str, gpus: int = 0) -> keras.Model:
    """Return a copy of the base that computes in `precision` and holds float32 weights; on all GPUs."""
    policy = precision if precision == "float32" else f"mixed_{precision}"
    strategy = tf.distribute.MirroredStrategy() if gpus > 1 else tf.distribute.get_strategy()

    def convert(layer: keras.Layer) -> keras.Layer:
        return layer.__class__.from_config({**layer.get_config(), "dtype": policy})

    with strategy.scope():
        base = keras.models.clone_model(conv_base, clone_function=convert)
        base.set_weights(conv_base.get_weights())
    return base


def without_autotuning(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Switch tf.data's autotuning off: with it, freeing a data set can take up to a minute."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def view_features(
    base: keras.Model, datagen: ImageDataGenerator, images: np.ndarray, seed: int, key: str,
    progress: Callable[[int], object] | None,
) -> tuple[np.ndarray, int]:  # fmt: skip
    """Compute the features of one view, float16 (n, ...), and their CRC-32.

    One thread draws the next batch while the base runs: ImageDataGenerator seeds NumPy's global
    generator, so more threads would not repeat. `key` stands for base, datagen, and images in the cache.
    """

    def batches() -> Iterator[np.ndarray]:
        for number, start in enumerate(range(0, len(images), 32)):  # flow holds float32 copies: 32 at a time
            part = images[start : start + 32]
            yield datagen.flow(part, batch_size=32, shuffle=False, seed=seed + number)[0]
            if progress:
                progress(len(part))

    signature = tf.TensorSpec((None, *images.shape[1:]), tf.float32)
    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(2)
    features = base.predict(without_autotuning(dataset), verbose=0).astype(np.float16)
    fresh[key, seed] = features
    return features, zlib.crc32(features)


fresh: dict = {}  # the view computed last, for a disk that cannot keep it


def is_kept(stored: Callable, *call: object) -> bool:
    """Tell whether the cache has a view; where nothing can be written, it has none."""
    try:
        return stored.check_call_in_cache(*call)
    except OSError:
        return False


def from_cache(stored: Callable, *call: object) -> np.ndarray:
    """Return one view from the cache; compute it where it is missing or damaged.

    A full disk is a printed message, and the view stays in memory.
    """
    fresh.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            features, checksum = stored(*call)
            if zlib.crc32(features) != checksum:
                stored.call_and_shelve(*call).clear()
                features, checksum = stored(*call)
            return features
        except Exception:
            if not fresh:  # the failure came before the features did; one of the base comes again
                view_features(*call)
    reason = str(caught[-1].message).split("Exception: ")[-1] if caught else "it cannot be written"
    print(f"This view is not kept on disk: {reason} It is in memory; free some space to keep it.")
    return next(iter(fresh.values()))


# ----------------------------------------------------------------------------------------- the head


class ViewSchedule(keras.callbacks.Callback):
    """The article's training schedule, on features: epoch e trains and validates on view e % len(views).

    Pass `batches` to fit as its data, and the schedule itself as a callback. After each epoch it scores
    the same view of the validation images and adds val_loss and val_acc to the history. (fit's own
    validation_data restarts in every epoch, so it would score view 0 each time.)

    views: arrays (n, 4, 4, 512), one a view; labels: int (n,); train, validation: row numbers. The order
    of the images depends on the seed and the epoch. Features go to the head as float32.
    """

    def __init__(
        self, views: Sequence[np.ndarray], labels: np.ndarray, train: np.ndarray,
        validation: np.ndarray | None = None, batch_size: int = 10, seed: int = 42,
    ):  # fmt: skip
        super().__init__()
        self.views, self.labels, self.train, self.validation = views, labels, train, validation
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0
        signature = (
            tf.TensorSpec((None, *views[0].shape[1:]), tf.float32),
            tf.TensorSpec((None,), tf.int32),
        )
        steps = -(-len(train) // batch_size)
        dataset = tf.data.Dataset.from_generator(self.one_epoch, output_signature=signature)
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(8)
        self.batches = without_autotuning(dataset)

    def one_epoch(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the batches of the current epoch."""
        view, seed = self.views[self.epoch % len(self.views)], [self.seed, self.epoch]
        order = tf.random.experimental.stateless_shuffle(tf.range(len(self.train)), seed=seed).numpy()
        for start in range(0, len(order), self.batch_size):
            rows = self.train[order[start : start + self.batch_size]]
            yield view[rows].astype(np.float32), self.labels[rows].astype(np.int32)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Turn to the view of this epoch."""
        self.epoch = epoch

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Score the validation images on the view that this epoch trained on."""
        if self.validation is not None:
            view, truth = self.views[epoch % len(self.views)], tf.constant(self.labels[self.validation])
            outputs = self.model(tf.constant(view[self.validation].astype(np.float32)))
            logs["val_loss"] = float(self.model.compute_loss(y=truth, y_pred=outputs))
            logs["val_acc"] = float((two_columns(outputs.numpy()).argmax(axis=1) == truth.numpy()).mean())


def initialize(head: keras.Model, seed: int) -> None:
    """Give the head fresh weights, drawn from `seed`, and its optimizer a fresh state.

    Its compiled training step stays, so that ten heads of one shape are compiled once. Kernels are Glorot
    uniform, which is Keras's default, and biases zero.
    """
    for layer in head.layers:
        if hasattr(layer, "kernel"):
            layer.kernel.assign(keras.initializers.GlorotUniform(seed)(layer.kernel.shape))
            layer.bias.assign(np.zeros(layer.bias.shape))
    if optimizer := getattr(head, "optimizer", None):
        rate = float(optimizer.learning_rate)
        for variable in optimizer.variables:
            variable.assign(np.zeros(variable.shape))
        optimizer.learning_rate = rate


def outputs_of(head: keras.Model, features: np.ndarray) -> list[np.ndarray]:
    """Run a head over features in parts of 512 rows; a list of arrays, one a part."""
    parts = range(0, max(len(features), 1), 512)
    return [head(tf.cast(features[start : start + 512], tf.float32)).numpy() for start in parts]


def two_columns(outputs: np.ndarray) -> np.ndarray:
    """Turn a sigmoid's single output p into (1 - p, p); leave a softmax as it is."""
    return np.hstack([1 - outputs, outputs]) if outputs.shape[1] == 1 else outputs


def predict_probabilities(head: keras.Model, features: np.ndarray) -> np.ndarray:
    """Return the probability of each class, float (n, classes), from features (n, 4, 4, 512)."""
    return two_columns(np.concatenate(outputs_of(head, features)))


def save_and_check(model: keras.Model, path: Path, images: np.ndarray, probabilities: np.ndarray) -> float:
    """Save a model, load it again, and check that it predicts the same.

    images: uint8 (n, size, size, 3); probabilities: (n, classes), those of the run. Returns the largest
    difference between them and the saved model's, which computes in float32. Raises Problem where the
    loaded model predicts something else than the saved one.
    """
    model.save(path)
    inputs = images.astype(np.float32) / 255
    before, after = (
        two_columns(network.predict(inputs, verbose=0)) for network in (model, keras.models.load_model(path))
    )
    if not np.allclose(before, after, atol=1e-6):
        raise Problem(f"{path} does not predict what the model in memory predicts. Save it again.")
    return float(np.abs(after - probabilities).max())


# --------------------------------------------------------------------------------------- statistics


def exact_interval(correct: int, n: int) -> list[float]:
    """Exact (Clopper-Pearson) 95% confidence interval of a proportion, [low, high]."""
    if n == 0:
        return [0.0, 1.0]
    return list(map(float, binomtest(int(correct), int(n)).proportion_ci(0.95, "exact")))


def patient_interval(
    statistic: Callable[[np.ndarray], float], patients: Sequence[str], seed: int = 42, repeats: int = 2000
) -> list[float]:
    """95% confidence interval of statistic(row numbers), with patients drawn with replacement, [low, high].

    Two X-rays of one patient are not independent, so whole patients are drawn (a cluster bootstrap,
    percentile method). Draws for which the statistic is not defined do not count.
    """
    rows_of = list(pd.Series(range(len(patients))).groupby(np.asarray(patients)).apply(np.array))
    if len(rows_of) < 2:
        value = float(statistic(np.arange(len(patients))))
        return [value, value]

    def of_drawn(drawn: np.ndarray) -> float:
        return statistic(np.concatenate([rows_of[index] for index in drawn]))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = bootstrap(
            (np.arange(len(rows_of)),), of_drawn, vectorized=False, n_resamples=repeats, method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution  # fmt: skip
        return [float(value) for value in np.nanpercentile(values, [2.5, 97.5])]


def score(
    labels: np.ndarray,
    probabilities: np.ndarray,
    patients: Sequence[str],
    by_patient: bool = False,
    folds: Sequence = (),
) -> dict:
    """Score predictions: labels int (n,), probabilities (n, classes), the patient of each row.

    Returns n, patients, correct, accuracy, ci95, majority (the larger class's share), confusion (true
    class down, predicted class across). ci95 is exact and binomial; `by_patient` draws patients instead.
    With two classes also auc, the area under the ROC curve of class 0, and auc_ci95, by patient. With
    `folds` (pairs of training and held-out rows) also the accuracy of each, and their mean.
    """
    labels, right = np.asarray(labels), probabilities.argmax(axis=1) == labels
    classes = range(probabilities.shape[1])
    scored = {"n": len(labels), "patients": len(set(patients)), "correct": int(right.sum())}
    scored["accuracy"] = float(right.mean()) if len(labels) else 0.0
    scored["ci95"] = exact_interval(right.sum(), len(labels))
    if by_patient:
        scored["ci95"] = patient_interval(lambda rows: right[rows].mean(), patients)
    scored["majority"] = float(np.bincount(labels).max() / len(labels)) if len(labels) else 0.0
    scored["confusion"] = confusion_matrix(labels, probabilities.argmax(axis=1), labels=classes).tolist()
    if folds:
        scored["folds"] = [float(right[held_out].mean()) for _, held_out in folds]
        scored["mean"] = float(np.mean(scored["folds"]))
    if len(classes) == 2:

        def auc(rows: np.ndarray) -> float:
            positive = labels[rows] == 0
            return roc_auc_score(positive, probabilities[rows, 0]) if 0 < positive.mean() < 1 else np.nan

        scored["auc"] = float(auc(np.arange(len(labels))))
        scored["auc_ci95"] = patient_interval(auc, patients)
    return scored


def difference(first: np.ndarray, second: np.ndarray, patients: Sequence[str]) -> dict:
    """Compare two sets of predictions of the same images: accuracy of `first` less that of `second`.

    first, second: bool (n,), right or wrong. Returns difference and ci95, by patient.
    """
    gain = np.asarray(first, float) - np.asarray(second, float)
    return {"difference": float(gain.mean()), "ci95": patient_interval(lambda rows: gain[rows].mean(), patients)}


def describe(scored: dict) -> str:
    """Return one line for a score: correct of n, the percentage, the interval."""
    low, high = scored["ci95"]
    return (
        f"{scored['correct']} of {scored['n']} = {scored['accuracy']:.0%} "
        f"(95% confidence interval {low:.0%} to {high:.0%})"
    )


def grouped_folds(labels: np.ndarray, patients: Sequence[str], seed: int = 42) -> list[tuple]:
    """Split rows into five folds, all X-rays of a patient in the same one: (train, held out) row numbers.

    Fewer folds, with a printed message, where a class has fewer than five patients; Problem below two.
    """
    groups = pd.Series(np.asarray(patients)).groupby(np.asarray(labels)).nunique()
    folds = min(5, int(groups.min()))
    if folds < 2:
        raise Problem(
            "One class shows a single patient, so no fold can hold it out. Check patients.csv, or add images."
        )
    if folds < 5:
        print(f"{folds} folds instead of 5: the smallest class has {folds} patients.")
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return list(splitter.split(labels, labels, patients))


def sensitivity_table(confusion: Sequence[Sequence[int]], class_names: Sequence[str]) -> pd.DataFrame:
    """Sensitivity and specificity of each class against the rest, with exact 95% intervals."""
    counts, rows = np.array(confusion), {}
    for label, class_name in enumerate(class_names):
        is_class = np.arange(len(class_names)) == label
        row = rows[label_of(class_name)] = {}
        for term, truth in (("sensitivity", is_class), ("specificity", ~is_class)):
            right, n = counts[truth][:, truth].sum(), counts[truth].sum()
            low, high = exact_interval(right, n)
            row[term] = f"{right} of {n} = {right / n:.0%} ({low:.0%} to {high:.0%})"
    return pd.DataFrame(rows).T


def article_draw(
    folder: Path, table: pd.DataFrame, class_names: Sequence[str], batch_size: int = 10, seed: int = 42
) -> np.ndarray:
    """Return the rows of `table` that the article's evaluation in Multi draws from the test images.

    Its generator shuffles with seed 42 and takes ceil(n / batch_size) batches of one image. This asks
    Keras's own generator, so the draw is that of the Keras that you run.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        flow = ImageDataGenerator().flow_from_directory(
            folder / "test", classes=list(class_names), batch_size=1, shuffle=True, seed=seed, target_size=(8, 8)
        )
    flow[0]  # the first batch makes the generator shuffle
    drawn = flow.index_array[: -(-flow.n // batch_size)]
    files = [f"test/{Path(flow.filenames[index]).as_posix()}" for index in drawn]
    return pd.Index(table["file"]).get_indexer(files)


def score_controls(controls: pd.DataFrame, predicted: Sequence[str]) -> dict:
    """Score predictions for the controls, none of whom has COVID-19.

    controls: a row each, with finding, group, patient; predicted: class names. Returns n, patients,
    called_covid and its interval by patient, by_finding and no_finding (n, called_covid), and
    with_right_answer: of those with no finding, a bacterial, or a viral pneumonia, how many are right.
    """
    predicted = np.asarray(predicted)
    covid, patients = predicted == "covid", controls["patient"].to_numpy()
    scored = {"n": len(controls), "patients": len(set(patients)), "called_covid": int(covid.sum())}
    scored["ci95"] = patient_interval(lambda rows: covid[rows].mean(), patients) if len(controls) else [0.0, 1.0]
    scored["by_finding"] = {}
    for group in FINDINGS:
        rows = (controls["group"] == group).to_numpy()
        scored["by_finding"][group] = {"n": int(rows.sum()), "called_covid": int(covid[rows].sum())}
    scored["no_finding"] = scored["by_finding"]["no finding"]
    answers = controls["group"].map(RIGHT_ANSWERS)
    rows = answers.notna().to_numpy()
    right = predicted[rows] == answers[rows].to_numpy()
    interval = patient_interval(lambda drawn: right[drawn].mean(), patients[rows]) if len(right) else [0.0, 1.0]
    scored["with_right_answer"] = {"n": len(right), "correct": int(right.sum()), "ci95": interval}
    return scored


def cases(table: pd.DataFrame, dataset: str) -> dict[str, list[str]]:
    """Return the classes of each case: the article's three and four, or all folders of other data."""
    names = list(dict.fromkeys(table["class"]))
    return {"three": names[:3], "four": names} if names == list(LABELS) else {dataset: names}


def case_key(case: str, name: str) -> str:
    """Return the name that results use for a case and an augmentation: "four", "four_gentle"."""
    return case if name == "article" else f"{case}_{name}"


# ---------------------------------------------------------------------------------------- heat maps


def hires_cam(
    conv_base: keras.Model, head: keras.Model, images: np.ndarray, classes: np.ndarray,
    layer_name: str = "block5_conv3",
) -> np.ndarray:  # fmt: skip
    """HiResCAM (Draelos and Carin, arXiv:2011.08891): what each place adds to the score of a class.

    images: uint8 (n, size, size, 3); classes: int (n,). Returns float (n, h, w), h and w of the layer:
    gradient times activation, summed over channels. Grad-CAM averages the gradient over positions first,
    which fits a head of global pooling; this head is Flatten + Dense and weighs each position apart. The
    score is the class's input to the softmax, or to the sigmoid (its negative for class 0). For a linear
    head on flattened features a map's sum is the score less the bias.
    """
    index = conv_base.layers.index(conv_base.get_layer(layer_name))
    inputs = tf.constant(images.astype(np.float32) / 255)
    maps = keras.Model(conv_base.input, conv_base.layers[index].output)(inputs)
    *hidden, last = head.layers
    with tf.GradientTape() as tape:
        tape.watch(maps)
        x = maps
        for layer in [*conv_base.layers[index + 1 :], *hidden]:
            x = layer(x)
        logits = x @ last.kernel + last.bias
        if last.units == 1:
            logits = tf.concat([-logits, logits], axis=1)
        total = tf.reduce_sum(tf.gather(logits, classes, axis=1, batch_dims=1))
    return tf.reduce_sum(tape.gradient(total, maps) * maps, axis=-1).numpy()


# ------------------------------------------------------------------------------------------ figures

BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#767676"  # apart for color-blind readers
STYLE = {
    "figure.constrained_layout.use": True, "image.cmap": "gray", "savefig.dpi": 150, "figure.dpi": 100,
    "font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9, "figure.titlesize": 10,
    "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip
WIDTH = 9.5  # inches, the width of a page


def thumbnail(path: Path, longest: int = 260) -> np.ndarray:
    """Read an image and shrink it, its proportions kept, to at most `longest` pixels a side."""
    image = read_image(path)
    scale = min(1, longest / max(image.shape[:2]))
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def plot_images(
    images: Sequence[np.ndarray], titles: Sequence[str], columns: int, colors: Sequence[str] | None = None,
    height: float = 1.0,
) -> plt.Figure:  # fmt: skip
    """Draw images in a grid across the page, each under its title; `height` is that of a row, in widths."""
    rows, width = -(-len(images) // columns), WIDTH / columns
    lines = max(title.count("\n") + 1 for title in titles) * 0.17
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, rows * (width * height + lines)), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title, color in zip(axes.flat, images, titles, colors or ["black"] * len(images)):
        axis.imshow(image)
        axis.set_title(title, fontsize=9, color=color)
    return figure


def plot_examples(folder: Path, table: pd.DataFrame, each: int = 4) -> plt.Figure:
    """Show the first `each` training images of every class (six classes at most), a row a class."""
    chosen = table[table["split"] != "test"].groupby("class", sort=False).head(each)
    chosen = chosen[chosen["class"].isin(chosen["class"].unique()[:6])]
    titles = [label_of(name) for name in chosen["class"]]
    return plot_images([thumbnail(folder / file) for file in chosen["file"]], titles, each, height=0.8)


def plot_acc_loss(history: dict, title: str, n_validation: int) -> plt.Figure:
    """Draw accuracy and loss against epoch, training and validation, side by side as the article does."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.2))
    for axis, metric, label in zip(axes, ("acc", "loss"), ("accuracy", "loss (cross-entropy)")):
        curves = {"training": (history[metric], BLUE, "-"), "validation": (history[f"val_{metric}"], ORANGE, "--")}
        for values, color, style in curves.values():
            axis.plot(range(1, len(values) + 1), values, style, color=color)
        low, high = (0, 1.03) if metric == "acc" else axis.get_ylim()
        lower, upper = sorted(curves, key=lambda name: curves[name][0][-1])  # the labels stand apart
        gap = 0.08 * (high - low) - (curves[upper][0][-1] - curves[lower][0][-1])
        for name, shift in ((lower, -max(gap, 0) / 2), (upper, max(gap, 0) / 2)):
            values, color, _ = curves[name]
            axis.text(1.02 * len(values), values[-1] + shift, name, color=color, va="center")
        axis.set(xlabel="Epoch", title=f"{title}: {label}", ylim=(low, high))
        axis.grid(alpha=0.3)
    axes[0].errorbar([1], [0.15], yerr=0.5 / n_validation, color=ORANGE, capsize=4)
    axes[0].text(1.5, 0.15, f"  one of {n_validation} validation images", va="center", color=ORANGE)
    return figure


def plot_confusions(scores: dict[str, dict], class_names: Sequence[str]) -> plt.Figure:
    """Draw the confusion matrices of scores side by side: true class down, predicted class across.

    A score with fewer classes has the first of `class_names`.
    """
    names = [label_of(name).replace(" ", "\n") for name in class_names]
    side = min(WIDTH / len(scores), 0.9 * len(names) + 1)
    figure, axes = plt.subplots(1, len(scores), figsize=(side * len(scores), side), squeeze=False)
    for axis, (title, scored) in zip(axes.flat, scores.items()):
        counts = np.array(scored["confusion"])
        matrix = ConfusionMatrixDisplay(counts, display_labels=names[: len(counts)])
        matrix.plot(ax=axis, cmap="Blues", colorbar=False)
        title = f"{title}: {scored['correct']} of {scored['n']}"
        axis.set(title=title, xlabel="Predicted class", ylabel="True class")
        axis.spines[:].set_visible(True)
    return figure


def plot_predictions(
    paths: Sequence[Path], labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str],
    most: int = 36,
) -> plt.Figure:  # fmt: skip
    """Show test images under the article's kind of title, wrong predictions first and in orange.

    probabilities: (n, classes). At most `most` images are shown.
    """
    predicted = probabilities.argmax(axis=1)
    order = np.argsort(predicted == labels, kind="stable")[:most]
    titles, colors = [], []
    for row in order:
        name = class_names[predicted[row]]
        title = f"{probabilities[row].max():.2%}\n{'COVID19 Pneumonia' if name == 'covid' else label_of(name).title()}"
        if predicted[row] != labels[row]:
            title += f"\ntrue: {label_of(class_names[labels[row]]).removesuffix(' pneumonia')}"
        titles.append(title)
        colors.append("black" if predicted[row] == labels[row] else ORANGE)
    return plot_images([thumbnail(paths[row], 200) for row in order], titles, 6, colors, height=0.85)


def plot_heat_maps(images: np.ndarray, maps: np.ndarray, titles: Sequence[str]) -> plt.Figure:
    """Draw each image above its heat map, with a color bar: orange speaks for the class, blue against it."""
    figure, axes = plt.subplots(2, len(images), figsize=(WIDTH, 4.4), squeeze=False)
    for image, heat, title, (top, bottom) in zip(images, maps, titles, axes.T):
        size, heat = image.shape[0], heat / max(np.abs(heat).max(), 1e-12)
        top.imshow(image)
        top.set_title(title)
        bottom.imshow(image)
        smooth = cv2.resize(heat, (size, size), interpolation=cv2.INTER_LINEAR)
        shown = bottom.imshow(smooth, cmap="PuOr_r", vmin=-1, vmax=1, alpha=0.6)
        top.axis("off")
        bottom.axis("off")
    bar = figure.colorbar(shown, ax=axes, shrink=0.6, ticks=[-1, 0, 1])
    bar.ax.set_yticklabels(["against", "neither", "for"])
    bar.set_label("What a place adds to the score")
    return figure


def plot_counts(counts: dict[str, dict], title: str, label: str) -> plt.Figure:
    """Draw called_covid of n as bars, one a group: in orange on gray, the count at the bar's end."""
    figure, axis = plt.subplots(figsize=(WIDTH, 0.9 + 0.36 * len(counts)))
    for name, row in reversed(counts.items()):
        k, n = row["called_covid"], row["n"]
        axis.barh(name, n, color="#DDDDDD")
        axis.barh(name, k, color=ORANGE)
        axis.annotate(f"{k} of {n}", (n, name), xytext=(5, 0), textcoords="offset points", va="center")
    axis.set(title=title, xlabel=label)
    return figure


def plot_scores(scores: dict[str, dict], title: str, auc: bool = True) -> plt.Figure:
    """Draw accuracies with their intervals, one row a name, beside the share of the larger class."""
    figure, axis = plt.subplots(figsize=(WIDTH, 1.1 + 0.62 * len(scores)))
    for place, scored in enumerate(reversed(scores.values())):
        low, high = scored["ci95"]
        axis.plot([low, high], [place, place], color=BLUE, linewidth=3, alpha=0.45, solid_capstyle="butt")
        axis.plot(scored["accuracy"], place, "o", color=BLUE)
        axis.plot([scored["majority"]] * 2, [place - 0.3, place + 0.3], ":", color="black")
        text = f"{scored['correct']} of {scored['n']} X-rays of {scored['patients']} patients"
        if auc:
            text += f"\narea under the ROC curve {scored['auc']:.2f}"
        axis.annotate(text, (1.03, place), va="center", annotation_clip=False)
    axis.annotate("always the\nlarger class ", (scored["majority"], place + 0.3), ha="right", va="top", fontsize=8)
    axis.set(xlim=(0, 1.02), ylim=(-0.6, len(scores) - 0.4), title=title)
    axis.set(xlabel="Accuracy, with its 95% confidence interval")
    axis.set_yticks(range(len(scores)), list(scores)[::-1])
    axis.grid(axis="x", alpha=0.3)
    return figure


def plot_roc(curves: dict[str, tuple[np.ndarray, np.ndarray]], title: str) -> plt.Figure:
    """Draw ROC curves in one square; each name has (is COVID-19, bool (n,), its probability, float (n,))."""
    figure, axis = plt.subplots(figsize=(4.6, 4.6))
    axis.plot([0, 1], [0, 1], ":", color="black")
    for (name, (truth, probability)), color in zip(curves.items(), (BLUE, ORANGE)):
        false_positive, true_positive, _ = roc_curve(truth, probability)
        axis.plot(false_positive, true_positive, color=color)
        middle = int(np.argmin(np.abs(false_positive + true_positive - 1)))
        place = false_positive[middle] + 0.04, true_positive[middle] - 0.04
        text = f"{name}\n{roc_auc_score(truth, probability):.2f}"
        axis.annotate(text, place, color=color, va="top")
    axis.set(xlabel="1 − specificity", ylabel="Sensitivity", title=title, aspect="equal")
    return figure


# ------------------------------------------------------------------------------ tables and sentences


def control_table(answers: dict[str, dict]) -> pd.DataFrame:
    """Compare models on the controls, a row a model, from score_controls."""
    rows = {}
    for name, scored in answers.items():
        right = scored["with_right_answer"]
        rows[name] = {
            "right, of those with a right answer": f"{right['correct']} of {right['n']}",
            "predicted COVID-19, of all": f"{scored['called_covid']} of {scored['n']}",
            "of those with no finding": f"{scored['no_finding']['called_covid']} of {scored['no_finding']['n']}",
        }
    return pd.DataFrame(rows).T


def difference_table(differences: dict[str, dict]) -> pd.DataFrame:
    """Return paired differences in points with their 95% confidence intervals, a row a pair."""
    rows = {
        name: [f"{100 * row['difference']:+.0f}", "{:+.0f} to {:+.0f}".format(*(100 * end for end in row["ci95"]))]
        for name, row in differences.items()
    }
    columns = ["difference in points", "95% confidence interval, by patient"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)
