"""What is installed from a wheel has all that a checkout has."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's files, built from a copy: building leaves files behind."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("puna", "recipes"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    subprocess.run([sys.executable, "-c", BUILD, out], cwd=copy, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(out / "site")
    return out / "site"


def test_every_file_of_the_package_and_every_recipe_is_in_it(installed: Path) -> None:
    files = {path.relative_to(ROOT) for path in (ROOT / "puna").rglob("*") if path.is_file()}
    files = {path for path in files if "__pycache__" not in path.parts}
    files |= {Path("puna", "recipes", path.name) for path in (ROOT / "recipes").iterdir()}
    assert files == {
        path.relative_to(installed) for path in (installed / "puna").rglob("*") if path.is_file()
    }


def test_it_finds_its_recipes(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "puna", "cat", "quickstart"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)}, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == (ROOT / "recipes" / "quickstart.yaml").read_text()
