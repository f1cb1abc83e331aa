"""How a server is set up."""

import ipaddress
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from puna.core.config import Config


def is_loopback(host: str) -> bool:
    """Whether ``host`` is a name or address of this machine that no other machine can reach."""
    name = host.strip("[]")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost"


class ServeConfig(Config):
    """Settings of a server."""

    host: str = "127.0.0.1"
    """Address to listen on; any other than a loopback one needs ``keys``."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    keys: Path | None = None
    """File of API keys, written by ``puna keys``; None lets every client in."""
    max_body_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    """Largest request."""
    header_seconds: float = Field(default=10, gt=0)
    """Time for a request's headers to arrive."""
    body_seconds: float = Field(default=30, gt=0)
    """Time for a request's body to arrive."""
    request_seconds: float = Field(default=600, gt=0)
    """Time for an answer, from the request's arrival to its last token."""
    send_seconds: float = Field(default=30, gt=0)
    """Time a client may leave a piece of its answer unread."""
    drain_seconds: float = Field(default=30, ge=0)
    """Time for accepted requests to finish after SIGTERM."""
    max_connections: int = Field(default=1024, ge=1)
    """Most open connections."""
    cors: tuple[str, ...] = ()
    """Origins whose web pages may call; none by default."""
    adapter_folder: Path | None = None
    """Clients with an admin key may load adapters from below this folder; None forbids it."""
    log_requests: bool = True
    """Write a JSON line for each request to standard error."""
    log_text: bool = False
    """Put prompts and answers into those lines."""

    @model_validator(mode="after")
    def _others_need_keys(self) -> Self:
        if self.keys is None and not is_loopback(self.host):
            raise ValueError(
                f"others can reach --host {self.host}: give --keys FILE "
                "(made by 'puna keys add NAME --file FILE')"
            )
        if self.keys is None and self.adapter_folder is not None:
            raise ValueError("--adapter-folder lets clients load adapters: give --keys FILE too")
        return self
