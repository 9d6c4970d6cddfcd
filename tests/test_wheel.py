"""The source distribution, and the wheel built of it, hold the whole package and work outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
FOLDERS = ("configs", "data_pipelines", "eval", "kernels", "models", "trainer")


def clean_run(*command: object, cwd: Path) -> str:
    """Output of a command that sees neither this checkout nor the settings of this process."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={key: value for key, value in os.environ.items() if key not in hidden},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tree, so that nothing is left in it, with the tools that are here: first the source
    distribution, then the wheel from what that holds."""
    folder = tmp_path_factory.mktemp("distributions")
    left_out = shutil.ignore_patterns(".*", "runs", "build", "dist", "site", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder / "tree", symlinks=True, ignore=left_out)
    clean_run(
        sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "tree", cwd=folder
    )  # fmt: skip
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (built,) = distributions.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def binaries(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of a new environment that holds the wheel, and sees the packages of this one but not its segclip."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    # First the wheel: with the packages of this environment in sight, pip would find a segclip there.
    clean_run(
        sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel,
        cwd=folder,
    )  # fmt: skip
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    # A folder named in a .pth file is searched, but the .pth files in it (of editable installs) are not read.
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder / "bin"


def package_files() -> set[str]:
    """What an installation has to hold: all but notes of the folders, and py.typed, which says that types are given."""
    expected = {f"segclip/{path.name}" for path in (ROOT / "src" / "segclip").glob("*.py")} | {
        "segclip/py.typed"
    }
    for folder in FOLDERS:
        expected |= {
            f"segclip/{path.relative_to(ROOT).as_posix()}"
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and path.suffix not in (".md", ".pyc")
        }
    return expected


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == package_files()


def test_the_source_distribution_holds_the_package_and_what_builds_and_describes_it(
    distributions: Path,
) -> None:
    (built,) = distributions.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        members = [member for member in archive.getmembers() if not member.isdir()]
    # The checkout's links are files here: not every system has links.
    assert all(member.isfile() for member in members)
    names = {member.name.partition("/")[2] for member in members}
    made = {name for name in names if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg", "MANIFEST.in"}
    told = {
        "setup.py",
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "CITATION.cff",
        "SECURITY.md",
    }
    assert names - made == {f"src/{name}" for name in package_files()} | told


def test_the_package_imports_from_the_new_environment(binaries: Path, tmp_path: Path) -> None:
    program = """
import segclip
print(segclip.__file__)
from segclip.eval.protocol import load_protocol
print(load_protocol("scenes").name, segclip.load.__module__, segclip.__version__)
"""
    where, values = clean_run(binaries / "python", "-c", program, cwd=tmp_path).splitlines()
    assert Path(where).is_relative_to(binaries.parent)
    assert values == f"scenes segclip.models.checkpoint {version('segclip')}"


@pytest.mark.parametrize(
    "name",
    [
        "segclip-eval",
        "segclip-segment",
        "segclip-convert",
        "segclip-demo",
        "segclip-shards",
        "segclip-export",
        "segclip-checkpoints",
    ],
)
def test_the_command_lines_start(binaries: Path, tmp_path: Path, name: str) -> None:
    assert clean_run(binaries / name, "--help", cwd=tmp_path).startswith(f"usage: {name}")
