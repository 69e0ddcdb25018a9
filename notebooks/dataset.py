"""The data set of the two lessons: where its images come from, how they are read, and who is on them.

First the list of images and their sources, then what becomes of them in a lesson: one array and one table.
"""

from __future__ import annotations

import contextlib
import glob
import importlib
import itertools
import os
import re
import shutil
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

import cv2
import gdown
import numpy as np
import pandas as pd
import requests
from tqdm import tqdm


class Problem(RuntimeError):
    """Something that you can fix. Jupyter shows the sentence alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows in place of a traceback."""
        return [f"Problem: {self}"]


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
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
TIMEOUT = 60  # seconds that a server may be silent
LARGEST = {".zip": 1_000_000_000, "image": 50_000_000}  # bytes of a download
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


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
                name = template.replace("*", "{}").format(*item.split("_"))
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
    images = [p for p in names if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "."]
    return sorted(images, key=lambda path: path.name)  # Windows would ignore case, Keras does not


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


def limited(parts: Iterable[bytes], largest: int) -> Iterator[bytes]:
    """Pass on the parts of a download; raises OSError when they come to more than `largest` bytes."""
    total = 0
    for part in parts:
        if (total := total + len(part)) > largest:
            raise OSError(f"more than {largest / 1e6:.0f} MB")
        yield part


def download(url: str, target: Path, largest: int) -> None:
    """Download `url` to `target` as it comes. Raises OSError for errors and more than `largest` bytes."""
    with requests.get(url, timeout=TIMEOUT, stream=True) as answer, open(target, "wb") as file:
        answer.raise_for_status()
        for part in limited(answer.iter_content(1 << 20), largest):
            file.write(part)


def fetch_zip(url: str, folder: Path) -> None:
    """Fetch the article's zip into `folder`: from Google Drive with gdown, any web address, or a path.

    Only a zip is kept, never a web page in its place. Raises Problem with the reason and what to do.
    """
    request = requests.Session.request

    def impatient(*arguments: object, **options: object) -> requests.Response:  # gdown 5 would wait forever
        answer = request(*arguments, **{**options, "timeout": TIMEOUT})
        parts = answer.iter_content
        answer.iter_content = lambda *sizes, **named: limited(parts(*sizes, **named), LARGEST[".zip"])
        return answer

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
            raise OSError("the download is not a zip; it may be a page about a dead link or an exceeded quota")

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
                    raise Problem(f"{archive} holds {name!r}, which is not a safe file name. Do not use it.")
            if sum(member.file_size for member in zipped.infolist()) > 4 * LARGEST[".zip"]:
                raise Problem(f"{archive} unpacks to more than 4 GB: it is not the article's data set.")
            zipped.extractall(scratch)
            for tree in trees:
                if not (Path(scratch) / tree).is_dir():
                    raise Problem(f"{archive} has no folder {tree}/: it is not the article's data set.")
                try:
                    os.replace(Path(scratch) / tree, folder / tree)
                except OSError:
                    if not (folder / tree).is_dir():  # otherwise it was there, or another run was quicker
                        raise
    except Problem:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise Problem(f"{archive} cannot be unpacked into {folder.resolve()}: {reason}. Fix that, run again.") from None
    except Exception as error:  # zipfile has many ways to say that a file is damaged
        raise Problem(f"{archive} is damaged ({error}). Delete it and run again.") from None


def fetch_collection(name: str, target: Path) -> None:
    """Fetch one image of the COVID-19 collection; only what decodes is kept. Raises OSError, Problem."""
    source = os.environ.get("COVID_CHESTXRAY_URL") or COLLECTION_URL

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
            raise Problem(f"{what}: {reason}. Images so far are kept in {folder}; run again to continue.") from None


def rebuild(home: Path, keep: bool = False) -> None:
    """Build `home`/all and `home`/two from their public sources, as the list of images says.

    Trees that are there are moved aside first, or with `keep` they stay. Images that a source no longer
    has are named and left out; Problem if they are more than one in ten.
    """
    print("The images come from their public sources: COVID-19 from GitHub, the children from Kaggle.")
    pool = home / "public"
    gone = fetch_images(ARTICLE, pool, "public sources")
    if len(gone) > len(ARTICLE) / 10:
        raise Problem(f"{len(gone)} of {len(ARTICLE)} images are gone, such as {gone[0]}. Put the zip into {home}.")
    if gone:
        print(f"{len(gone)} images are no longer available and are left out: {', '.join(gone)}")
    with tempfile.TemporaryDirectory(dir=home, prefix=".rebuild-") as scratch:
        for split, name, file, _ in ARTICLE[~ARTICLE["filename"].isin(gone)].values:
            for tree in ("all", "two") if name in ("covid", "normal") else ("all",):
                target = Path(scratch) / tree / split / name / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(pool / file, target)
        for tree in ("all", "two"):
            if keep and holds_images(home / tree):
                continue
            if (home / tree).exists():
                aside = next(p for k in itertools.count(1) if not (p := home / f"{tree}.before-{k}").exists())
                os.replace(home / tree, aside)
                print(f"{home / tree} was there; it is now {aside}.")
            os.replace(Path(scratch) / tree, home / tree)
    shutil.rmtree(pool, ignore_errors=True)


def find_images(tree: str, url: str = DRIVE_URL, home: Path | None = None, drawn: bool = True) -> Path:
    """Return the folder whose train/ and test/ a notebook reads; fetch the images if need be.

    Looks at COVID_XRAY_DATA (which holds `tree`/train or train/), at `home`/`tree`, its zip, and its
    phantoms (unless `drawn` is False), then downloads `url` (COVID_XRAY_URL overrides it), then goes to
    the public sources.
    """
    home, url = home or data_home(), os.environ.get("COVID_XRAY_URL") or url
    if setting := os.environ.get("COVID_XRAY_DATA"):
        for folder in (Path(setting) / tree, Path(setting)):
            if holds_images(folder):
                return folder
        raise Problem(f"COVID_XRAY_DATA is {setting!r}, which holds neither {tree}/train nor train/, beside test/.")
    if not holds_images(home / tree):
        if not (home / ZIP_NAME).exists():
            if drawn and holds_images(home / "phantoms" / tree):
                return home / "phantoms" / tree
            try:
                fetch_zip(url, home)
            except Problem as first:
                print(first)
                try:
                    rebuild(home, keep=True)
                except (Problem, OSError) as second:
                    if not holds_images(home / tree):  # otherwise another run was quicker
                        raise Problem(f"{first} The public sources fail, too: {second}") from None
                return home / tree
        unzip_images(home / ZIP_NAME, home)
    return home / tree


def find_controls(folder: Path, class_names: Sequence[str] = ("covid",)) -> pd.DataFrame:
    """Return the controls below `folder`/controls: a table of file, filename, group, patient.

    Missing ones are fetched. The table is empty, with a printed message, where none can be had or
    `class_names` do not have COVID-19. A controls.csv beside the images replaces the project's own list.
    """
    pictures, table = folder / "controls", CONTROLS.rename(columns={"class": "group"})
    try:
        if (pictures / "controls.csv").exists():
            own = pd.read_csv(pictures / "controls.csv", dtype=str, keep_default_na=False)
            if not {"filename", "group", "patient"} <= set(own):
                raise Problem(f"{pictures / 'controls.csv'} needs the columns filename, group, and patient.")
            table = own
        elif "covid" in class_names and "pneumonia" not in class_names:
            if not pictures.exists() and (folder / "controls.zip").exists():
                unzip_images(folder / "controls.zip", folder, ["controls"])
            if gone := fetch_images(table, pictures, "controls"):
                print(f"{len(gone)} of {len(table)} controls are not available.")
    except (Problem, OSError, ValueError) as error:
        print(f"Not all controls are available. {error}")
    there = np.array([is_safe(name) and (pictures / name).is_file() for name in table["filename"]], bool)
    table = table[there].reset_index(drop=True)
    return table.assign(file=[pictures / name for name in table["filename"]])


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


def thumbnail(path: Path, longest: int = 260) -> np.ndarray:
    """Read an image and shrink it, its proportions kept, to at most `longest` pixels a side."""
    image = read_image(path)
    scale = min(1, longest / max(image.shape[:2]))
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def patients_of(folder: Path, files: Sequence[str]) -> list[str]:
    """Return the patient of each file, named relative to `folder`.

    The article's images are known by name. For others, patients.csv (file, patient) in `folder` says;
    a file that neither names counts as a patient of its own.
    """
    known, listing = dict(zip(ARTICLE["filename"], ARTICLE["patient"])), folder / "patients.csv"
    if listing.exists():
        try:
            table = pd.read_csv(listing, dtype=str, encoding="utf-8", keep_default_na=False)
            own = {file.replace("\\", "/"): who for file, who in zip(table["file"], table["patient"]) if who}
            known |= own
            if missing := [file for file in own if "/" in file and not (folder / file).exists()]:
                print(f"{len(missing)} files of {listing} are not here, such as {missing[0]}.")
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
    return counts.unstack(fill_value=0).swaplevel(axis=1)[["train", "validation", "test"]]


def cases(table: pd.DataFrame, dataset: str) -> dict[str, list[str]]:
    """Return the classes of each case: the article's three and four, or all folders of other data."""
    names = list(dict.fromkeys(table["class"]))
    return {"three": names[:3], "four": names} if names == list(LABELS) else {dataset.replace(".", "_"): names}
