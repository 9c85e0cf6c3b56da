"""What is published: sdist and wheel, installed into a clean environment and run outside the checkout."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import foveate

ROOT = Path(__file__).parents[2]
LARGEST = 25 * 10**6
SOURCE = ROOT / "src" / "foveate"
PARTS = [  # what is no code and no text for readers of the source
    path.relative_to(SOURCE).as_posix()
    for path in SOURCE.rglob("*")
    if path.is_file() and path.suffix not in (".py", ".pyc", ".md")
]

pytestmark = pytest.mark.slow


def called(*command: object, cwd: Path) -> str:
    """The output of a command that must succeed, without this process's paths to sources."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(c) for c in command],
        check=False,
        cwd=cwd,
        env=clean,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that was built from it."""
    if importlib.util.find_spec("build") is None:
        pytest.skip("build is not installed: pip install build")
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)], check=True)
    [sdist], [wheel] = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def test_both_hold_what_they_need_and_are_small(built: tuple[Path, Path]) -> None:
    sdist, wheel = built
    assert max(sdist.stat().st_size, wheel.stat().st_size) < LARGEST
    assert {"py.typed", "models/scenes/model.safetensors"} <= set(PARTS)
    names = zipfile.ZipFile(wheel).namelist()
    assert not [part for part in PARTS if f"foveate/{part}" not in names]
    assert not [name for name in names if name.startswith(("lab/", "tests/", "benchmarks/"))]
    with tarfile.open(sdist) as archive:
        stored = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "README.md",
        "LICENSE",
        "pyproject.toml",
        *(f"src/foveate/{p}" for p in PARTS),
    } <= stored


def test_the_wheel_runs_in_a_clean_environment(built: tuple[Path, Path], tmp_path: Path) -> None:
    """As a new user's: no source, no checkout, no package but its dependencies."""
    environment, python = tmp_path / "venv", tmp_path / "venv" / "bin" / "python"
    called(sys.executable, "-m", "venv", environment, cwd=tmp_path)
    install = (python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt")
    called(*install, "torch", cwd=tmp_path)  # as README says, else pip may take the CUDA build
    called(*install, built[1], cwd=tmp_path)
    foveate_command = environment / "bin" / "foveate"
    assert called(foveate_command, "--version", cwd=tmp_path) == f"foveate {foveate.__version__}\n"
    where = called(python, "-c", "import foveate; print(foveate.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(environment)
    said = called(foveate_command, "demo", "--pictures", "1", cwd=tmp_path)
    assert "unpruned" in said and "divprune" in said
