"""The Makefile in a folder whose path holds a space: with a stand-in for .venv's Python, and with the real one."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import explain
import pytest
from conftest import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
COPIED = ("Makefile", "requirements.txt", "tests/requirements.txt", "tests/tools/explain.py")
STAND_IN = """#!/bin/sh
case "$*" in
*version_info*) echo 3.12; exit;;
*prepare.py*) mkdir -p .venv; echo "$DRAWN" > .venv/images;;
*"--to notebook"*)
    mkdir -p "$COVID_XRAY_OUTPUT"
    for name in Binary Multi; do echo "$RESULT" > "$COVID_XRAY_OUTPUT/Covid19_GradientCrescent_$name.ipynb"; done;;
esac
echo "$COVID_XRAY_OUTPUT|$COVID_XRAY_DATA|$VGG16_WEIGHTS|$KERAS_BACKEND|$*" >> calls
"""
MODULES = ("tensorflow", "keras", "cv2", "gdown", "nbconvert")


def write_script(path, text):
    """Write an executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def clone(tmp_path):
    """A copy of what make reads in "a clone", without a .venv."""
    folder = tmp_path / "a clone"
    for name in COPIED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def ready(clone):
    """The clone with a .venv whose interpreter writes down settings and arguments, and runs nothing."""
    write_script(clone / ".venv" / "bin" / "python", STAND_IN)
    (clone / ".venv" / "installed").touch()
    return clone


def make(folder, *arguments, **settings):
    """Run make in `folder`; returns the process, its output as one text, and what the stand-in was called with."""
    ours = ("COVID_", "VGG16_", "PIP_", "PYTHON", "MAKE", "MFLAGS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | settings
    command = ["make", "-C", str(folder), *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    calls = folder / "calls"
    return done, [line.split("|") for line in calls.read_text().splitlines()] if calls.exists() else []


def test_settings_with_spaces(ready):
    """Paths relative to the project become absolute, spaces and all; the notebook runs after prepare.py."""
    settings = {"COVID_XRAY_OUTPUT": "my pages", "COVID_XRAY_DATA": "my images", "VGG16_WEIGHTS": "my weights.h5"}
    done, calls = make(ready, "binary", **settings, KERAS_BACKEND="torch")
    assert done.returncode == 0, done.stdout
    assert f"Open {ready}/my pages/Covid19_GradientCrescent_Binary.html" in done.stdout
    what = [re.search(r"\w+\.py\b|--to \w+", call[-1])[0] for call in calls]
    assert what == ["prepare.py", "--to notebook", "--to html"]
    assert [call[:4] for call in calls[1:]] == 2 * [[*(f"{ready}/{name}" for name in settings.values()), "tensorflow"]]


@pytest.mark.parametrize("weights", ["imagenet", "/some/where else.h5"])
def test_settings_that_stay_as_they_are(ready, weights):
    """Words and absolute paths; a setting that is not made stays unset, but for the output."""
    done, calls = make(ready, "multi", f"VGG16_WEIGHTS={weights}")
    assert done.returncode == 0, done.stdout
    assert calls[-1][:3] == [f"{ready}/output", "", weights]


def test_the_home_folder(ready, monkeypatch):
    """Not every shell puts it in the place of ~ after `make COVID_XRAY_DATA=`."""
    monkeypatch.setenv("HOME", "/some where")
    done, calls = make(ready, "multi", "COVID_XRAY_DATA=~/my fruit")
    assert done.returncode == 0, done.stdout
    assert calls[-1][1] == "/some where/my fruit"


@pytest.mark.parametrize("target", ["run", "lab"])
def test_drawn_phantoms_are_passed_on(ready, target):
    """Images come first; where prepare.py has drawn phantoms, every notebook gets them; no tool rewrites a file."""
    done, calls = make(ready, target, DRAWN="data/phantoms")
    assert done.returncode == 0, done.stdout
    assert calls[0][-1].startswith("data/prepare.py") and calls[0][1] == ""
    assert {call[1] for call in calls[1:]} == {f"{ready}/data/phantoms"}
    assert not any("tests/tools" in call[-1] for call in calls)


def test_a_failing_cell(ready):
    """What was computed is kept as notebook and page; then make fails, and names the error."""
    error = '"ename": "ValueError",\n"evalue": "broken on purpose"'
    done, calls = make(ready, "run", RESULT=error)
    assert done.returncode != 0 and "broken on purpose" in done.stdout and "Open" not in done.stdout
    assert "--to html" in calls[-1][-1] and (ready / "output" / "Covid19_GradientCrescent_Binary.ipynb").exists()


def test_what_clean_removes(ready):
    """Results, environments, and what interrupted downloads left go; images and weights stay."""
    kept = ["Covid.zip", "all/x.jpeg", "controls/x.jpg", "phantoms/x.jpeg", "weights/vgg16.weights.h5", "manifest.csv"]
    gone = ["unpacked_two/x", "Covid.part", ".12-34-Covid.zip", "controls/.12-x.jpg", "weights/.12.weights.h5"]
    paths = {name: ready / "data" / name for name in kept + gone}
    paths |= {name: ready / name for name in ("output/features/x", ".venv-colab/x", ".venv/installed")}
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    done, _ = make(ready, "clean")
    assert done.returncode == 0 and [name for name, path in paths.items() if path.exists()] == kept


# --- make setup: the real Python and pip, and a package that stands in for all of requirements.txt


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """A folder with two packages: `whole` has every module that setup imports, `half` lacks nbconvert."""
    folder = tmp_path_factory.mktemp("wheels")
    for name, modules in (("whole", MODULES), ("half", MODULES[:-1])):
        about = f"{name}-1.0.dist-info"
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            for module in modules:
                wheel.writestr(f"{module}.py", "import os\nassert os.environ['KERAS_BACKEND'] == 'tensorflow'\n")
            wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", "")
    return folder


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A Python that copies a folder where it would make an environment, in a tenth of the time."""
    folder = tmp_path_factory.mktemp("python")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "new")], check=True)
    script = f'#!/bin/sh\ncase "$*" in "-m venv --clear .venv") rm -rf .venv; exec cp -R "{folder}/new" .venv;; esac\n'
    return write_script(folder / "python", script + f'exec "{sys.executable}" "$@"\n')


def setup(clone, wheels, python, package="whole", **settings):
    """Run `make setup` on a package of `wheels`, without a network; returns its exit status and its output."""
    if (clone / "requirements.txt").read_text(encoding="utf-8") != package:
        (clone / "requirements.txt").write_text(package, encoding="utf-8")
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": "/dev/null"}
    chosen = [f"PYTHON={python}"] if python else []
    done, _ = make(clone, "setup", *chosen, **offline | settings)
    return done.returncode, done.stdout


def installed(clone):
    """Tell whether .venv says that it is ready, and its Python has the package where it is to be."""
    found = "from importlib.util import find_spec; print(find_spec('nbconvert').origin)"
    python = [str(clone / ".venv" / "bin" / "python"), "-I", "-c", found]
    done = subprocess.run(python, capture_output=True, text=True)
    return (clone / ".venv" / "installed").exists() and done.stdout.startswith(f"{clone}/.venv/lib")


def problem(output):
    """The one line that says what is wrong, without a traceback around it."""
    (line,) = re.findall(r"^Problem: (.*)$", output, re.MULTILINE)
    assert "Traceback" not in output
    return line


SHELLS = {
    "elsewhere": {"PIP_TARGET": "elsewhere", "PIP_PREFIX": "elsewhere", "PIP_ROOT": "elsewhere", "PIP_PYTHON": "/none"},
    "nowhere": {"PIP_USER": "1", "PIP_DRY_RUN": "1", "PIP_REQUIRE_HASHES": "1", "KERAS_BACKEND": "torch"},
    "python": {"PYTHONPATH": "poison", "PYTHONHOME": "/none", "PYTHONWARNINGS": "error", "PYTHONOPTIMIZE": "2"},
    "pip.conf, target": {"PIP_CONFIG_FILE": "target = elsewhere"},
    "pip.conf, prefix": {"PIP_CONFIG_FILE": "prefix = elsewhere"},
    "pip.conf, root": {"PIP_CONFIG_FILE": "root = elsewhere"},
    "pip.conf, user": {"PIP_CONFIG_FILE": "user = yes"},
}


@pytest.mark.parametrize("settings", SHELLS.values(), ids=list(SHELLS))
def test_setup_whatever_the_shell_sets(clone, wheels, python, settings):
    """Packages arrive in .venv and nowhere else, whatever the shell or a pip.conf says."""
    for module in (*MODULES, "site", "pip"):
        write_script(clone / "poison" / f"{module}.py", "raise SystemExit('poisoned')")
    if "PIP_CONFIG_FILE" in settings:
        write_script(clone / "pip.conf", f"[install]\n{settings['PIP_CONFIG_FILE']}\n")
        settings = {"PIP_CONFIG_FILE": str(clone / "pip.conf")}
    status, output = setup(clone, wheels, python, **settings)
    assert status == 0 and installed(clone), output
    assert not (clone / "elsewhere").exists()


@pytest.mark.parametrize("damage", ["killed", "no pip", "no python"])
def test_setup_after_an_accident(clone, wheels, python, damage):
    """A half-made or broken .venv is made anew, even if it says that it is ready."""
    link = clone / ".venv" / "bin" / "python"
    link.parent.mkdir(parents=True)
    link.symlink_to("/none/python3" if damage == "no python" else sys.executable)
    if damage == "no python":
        (clone / ".venv" / "installed").touch()
    if damage == "no pip":
        (clone / ".venv" / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).parent}\n", encoding="utf-8")
    status, output = setup(clone, wheels, sys.executable if damage == "killed" else python)
    assert status == 0 and installed(clone), output
    assert ("Making .venv anew: it is not finished." if damage == "killed" else "Making .venv anew") in output


def test_setup_with_another_python(clone, wheels, python):
    """Another PYTHON makes .venv anew, and says so; the same one keeps it, and so does none, whatever python3 is."""
    assert setup(clone, wheels, python, package="whole ")[0] == 0
    kept = clone / ".venv" / "kept"
    kept.touch()
    write_script(clone / "bin" / "python3", "#!/bin/sh\nexit 1\n")
    path = f"{clone / 'bin'}{os.pathsep}{os.environ['PATH']}"
    for chosen in (python, None):
        assert setup(clone, wheels, chosen, PATH=path)[0] == 0 and kept.exists()
    other = clone / ".venv" / "bin" / "python"
    other.unlink()
    write_script(other, "#!/bin/sh\necho 3.5\n")
    status, output = setup(clone, wheels, python)
    assert status == 0 and "it has Python 3.5, and" in output, output
    assert installed(clone) and not kept.exists()


WRONG_PYTHON = """#!/bin/sh
if [ "$1" = --version ]; then echo "Python {0}"; exit; fi
for code; do :; done
exec "{1}" -c "import sys; sys.version_info = tuple(map(int, '{0}'.split('.'))); exec(sys.argv[1])" "$code"
"""


@pytest.mark.parametrize("version", ["3.14.0", "3.9.1", "not found"])
def test_setup_with_a_wrong_python(clone, wheels, version):
    """A Python that is too new, too old, or not there is named, and no .venv is touched."""
    python = clone / "python"
    if version != "not found":
        write_script(python, WRONG_PYTHON.format(version, sys.executable))
    status, output = setup(clone, wheels, python)
    assert status and version in problem(output) and "make setup PYTHON=" in problem(output), output
    assert not (clone / ".venv").exists()


def test_setup_that_lacks_a_module(clone, wheels, python):
    """pip's word is not enough: what the notebooks need is imported before .venv counts as ready."""
    status, output = setup(clone, wheels, python, package="half")
    assert status and "No module named 'nbconvert'" in problem(output)
    assert not (clone / ".venv" / "installed").exists()


def test_setup_without_packages(clone, wheels, python):
    """A registry that does not answer, one without the package, and an unknown certificate are told apart."""
    nobody = {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": "http://127.0.0.1:1/simple"}
    for settings, words in ((nobody, "cannot be reached"), ({}, "has absent for this Python")):
        status, output = setup(clone, wheels, python, package="absent", **settings)
        assert status and words in problem(output), output
    assert "set PIP_CERT" in explain.explain("SSLError: [SSL: CERTIFICATE_VERIFY_FAILED]")
