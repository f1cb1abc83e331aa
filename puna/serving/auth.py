"""API keys: a file that holds their hashes and limits, and the key ring a server checks against."""

import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field

from puna.core.config import Config
from puna.core.errors import UsageError
from puna.core.files import write_bytes
from puna.serving.limits import Bucket
from puna.serving.logs import log

PREFIX = "pk-"


class KeyEntry(Config):
    """What the file knows of a key. 256 random bits cannot be guessed, so their hash needs no salt
    and no slow function."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[\w.@-]+$")
    """Whom it belongs to; in logs."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Hex SHA-256 of the key."""
    created: str = Field(default="", max_length=40)
    """When, in ISO 8601."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """Most requests; None is no limit."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Most tokens, read and written; None is no limit."""
    admin: bool = False
    """May load and unload adapters."""


class KeyFile(Config):
    """The file as a whole."""

    keys: tuple[KeyEntry, ...] = ()
    """Every key that opens the server."""

    @classmethod
    def read(cls, path: Path) -> "KeyFile":
        """Read ``path``; raises `UsageError` when it is missing or broken."""
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}: make it with 'puna keys add'") from error
        except ValueError as error:
            raise UsageError(f"{path}: not valid JSON: {error}") from error
        if not isinstance(value, dict):
            raise UsageError(f"{path}: expected an object with 'keys'")
        return cls.parse(value, where=str(path))

    def write(self, path: Path) -> None:
        """Write ``path`` whole, readable by its owner alone."""
        content = json.dumps(self.model_dump(), indent=2) + "\n"
        write_bytes(path, content.encode(), mode=0o600)

    def add(
        self,
        name: str,
        *,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        admin: bool = False,
    ) -> tuple["KeyFile", str]:
        """With a new key, and the key itself, which is kept nowhere. Raises `UsageError`."""
        if any(entry.name == name for entry in self.keys):
            raise UsageError(f"there is a key for '{name}' already: remove it or take another name")
        key = PREFIX + secrets.token_urlsafe(32)
        fields = {
            "name": name,
            "sha256": _digest(key),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "admin": admin,
        }
        return KeyFile(keys=(*self.keys, KeyEntry.parse(fields, where="key"))), key

    def remove(self, name: str) -> "KeyFile":
        """Without the key for ``name``; raises `UsageError` when there is none."""
        left = tuple(entry for entry in self.keys if entry.name != name)
        if len(left) == len(self.keys):
            raise UsageError(f"there is no key for '{name}': 'puna keys list' shows all")
        return KeyFile(keys=left)


@dataclass
class Holder:
    """A key's owner while the server runs."""

    entry: KeyEntry
    requests: Bucket = field(init=False)
    tokens: Bucket = field(init=False)

    def __post_init__(self) -> None:
        self.requests = Bucket(self.entry.requests_per_minute)
        self.tokens = Bucket(self.entry.tokens_per_minute)


class KeyRing:
    """The keys of a file, read again whenever it changes.

    A file that can no longer be read leaves the last good keys in force; the log says so.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._holders: list[Holder] = []
        self._seen: tuple[int, ...] | None = None
        self._load(KeyFile.read(path))
        self._seen = self._state()

    def find(self, key: str) -> Holder | None:
        """Who holds ``key``; every entry is compared, in constant time."""
        self._refresh()
        digest = _digest(key)
        found = None
        for holder in self._holders:
            if hmac.compare_digest(holder.entry.sha256, digest):
                found = holder
        return found

    def _refresh(self) -> None:
        state = self._state()
        if state == self._seen:
            return
        self._seen = state
        try:
            self._load(KeyFile.read(self._path))
        except UsageError as error:
            log(level="error", error=f"the last good keys stay in force: {error}")

    def _load(self, file: KeyFile) -> None:
        """Take over the file's keys; one whose entry is the same keeps what it has used."""
        known = {holder.entry: holder for holder in self._holders}
        self._holders = [known.get(entry) or Holder(entry) for entry in file.keys]

    def _state(self) -> tuple[int, ...] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
