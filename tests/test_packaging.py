"""The wheel: built, installed in an environment that has nothing else of the project, and used there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).parent.parent
COMPARE = ["compare", "linear", "mamba2", "--max-length", "256", "--html", "out.html", "--json", "out.json"]


def call(*command: str | Path, cwd: Path) -> str:
    """Run a command without the paths of the environment in which the tests run, and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**environment, "PYTHONUTF8": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=300,
    )
    assert result.returncode == 0, f"{' '.join(map(str, command))} exited {result.returncode}:\n{result.stdout}"
    return result.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the built wheel; the dependencies are those of the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("packaging")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    call(*pip, "wheel", ROOT, "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, cwd=folder)
    (wheel,) = folder.glob("stateform-*.whl")
    fresh = folder / "fresh"
    call(sys.executable, "-m", "venv", "--without-pip", fresh, cwd=folder)
    call(*pip, "--python", python_of(fresh), "install", "--no-deps", "--no-index", wheel, cwd=folder)
    # A line of a .pth file comes after the folder that holds the file, and .pth files in the folder that it names,
    # such as the one of an editable installation, are not read.
    dependencies = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    site_packages(fresh).joinpath("dependencies.pth").write_text("\n".join(sorted(dependencies)) + "\n")
    return fresh


def scripts_of(environment: Path) -> Path:
    """The folder of an environment's commands."""
    return environment / ("Scripts" if os.name == "nt" else "bin")


def python_of(environment: Path) -> Path:
    """An environment's interpreter."""
    return scripts_of(environment) / ("python.exe" if os.name == "nt" else "python")


def site_packages(environment: Path) -> Path:
    """The folder of an environment's packages."""
    where = call(
        python_of(environment), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=environment
    )
    return Path(where.strip())


def test_the_wheel_holds_what_is_not_python(environment: Path, tmp_path: Path) -> None:
    where = call(python_of(environment), "-c", "import stateform; print(stateform.__file__)", cwd=tmp_path)
    package = Path(where.strip().splitlines()[-1]).parent
    assert package == site_packages(environment) / "stateform"
    assert (package / "py.typed").is_file()
    sources = ROOT / "src" / "stateform" / "report" / "templates"
    templates = sorted(path.relative_to(sources) for path in sources.rglob("*") if path.is_file())
    assert templates
    for template in templates:
        assert (package / "report" / "templates" / template).read_bytes() == (sources / template).read_bytes()


def test_its_metadata(environment: Path, tmp_path: Path) -> None:
    program = (
        "import json, stateform; from importlib.metadata import metadata; m = metadata('stateform');"
        "print(json.dumps([m['Version'], stateform.__version__, m['License-Expression'], m['Requires-Python']]))"
    )
    version, runtime_version, licence, python = json.loads(
        call(python_of(environment), "-c", program, cwd=tmp_path).splitlines()[-1]
    )
    assert version == runtime_version
    assert (licence, python) == ("Apache-2.0", ">=3.11")


def test_it_compares_layers(environment: Path, tmp_path: Path) -> None:
    call(scripts_of(environment) / "stateform", *COMPARE, cwd=tmp_path)
    assert (tmp_path / "out.html").read_text(encoding="utf-8").lstrip().lower().startswith(("<!doctype html", "<html"))
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
