"""The second tier of checkpoints: rarer copies on storage that outlives the machine.

Any place fsspec knows: ``s3://bucket/path``, ``gs://``, ``abfs://``, or a folder. Its driver for a
cloud is a package of its own (s3fs, gcsfs, adlfs).
"""

import json
import re
from pathlib import Path
from typing import Any

from puna.core.errors import ExtraMissing, UsageError
from puna.core.files import new_folder

_MARK = "checkpoint.json"  # written last: a copy that has it is whole
_DRIVERS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs"}
_STEP = re.compile(r"step-\d{8}")


def open_storage(url: str) -> tuple[Any, str]:
    """The file system behind ``url`` and the path in it.

    Raises `ExtraMissing` where its driver is not installed, `UsageError` where there is none.
    """
    import fsspec  # nobody else waits for it

    kind = url.partition("://")[0] if "://" in url else ""
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ExtraMissing(_DRIVERS.get(kind, "fsspec"), f"durable checkpoints at {url}") from error
    except ValueError as error:
        raise UsageError(
            f"durable {url!r} is no place that fsspec knows: give s3://, gs://, abfs:// or a folder"
        ) from error
    return system, path.rstrip("/")


def upload(folder: Path, url: str, keep: int) -> None:
    """Copy a checkpoint below ``url``, then remove all but the newest ``keep`` there."""
    system, root = open_storage(url)
    target = f"{root}/{folder.name}"
    system.makedirs(target, exist_ok=True)
    files = sorted(folder.iterdir(), key=lambda file: file.name == _MARK)
    for file in files:
        system.put_file(str(file), f"{target}/{file.name}")
    for old in _names(system, root)[:-keep]:
        system.rm(f"{root}/{old}/{_MARK}")  # first, so that what is half removed is not taken
        system.rm(f"{root}/{old}", recursive=True)


def fetch_newest(url: str, root: Path, newer_than: int) -> Path | None:
    """Copy the newest whole checkpoint below ``url`` to ``root``; None unless it is newer."""
    system, place = open_storage(url)
    names = [n for n in _names(system, place) if system.exists(f"{place}/{n}/{_MARK}")]
    if not names or int(names[-1].removeprefix("step-")) <= newer_than:
        return None
    source = f"{place}/{names[-1]}"
    listed = json.loads(system.cat_file(f"{source}/{_MARK}"))["files"]
    root.mkdir(parents=True, exist_ok=True)
    with new_folder(root / names[-1]) as folder:
        for name in [*listed, _MARK]:
            if Path(name).name != name:
                raise UsageError(f"{source}/{_MARK} names {name!r}, which is no plain file name")
            system.get_file(f"{source}/{name}", str(folder / name))
    return root / names[-1]


def _names(system: Any, root: str) -> list[str]:
    """Names of the checkpoints there, oldest first."""
    if not system.exists(root):
        return []
    found = [Path(str(path)).name for path in system.ls(root, detail=False)]
    return sorted(name for name in found if _STEP.fullmatch(name))
