"""The server: OpenAI's protocol over HTTP, the web chat, and everything that running it takes."""

from puna.serving.app import create_app
from puna.serving.config import ServeConfig
from puna.serving.errors import ApiError
from puna.serving.hub import Hub, Served

__all__ = ["ApiError", "Hub", "ServeConfig", "Served", "create_app"]
