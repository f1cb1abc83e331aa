"""What clients get when something is wrong: OpenAI's error object, with the right status."""

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request

from puna.core.errors import UsageError
from puna.inference import QueueFull


class ApiError(Exception):
    """An answer other than success.

    Args:
        status: HTTP status.
        message: one line for the client: what was wrong and how to mend it.
        type: OpenAI's class of the error.
        param: the field of the request it is about.
        code: a name that programs can test.
        retry_after_s: seconds after which trying again is worth it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        """Headers that belong to the status."""
        headers = {}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == HTTPStatus.UNAUTHORIZED:
            headers["www-authenticate"] = "Bearer"
        return headers

    def response(self) -> JSONResponse:
        """The error as a whole answer."""
        return JSONResponse(self.body(), self.status, self.headers())


class ErrorDetail(BaseModel):
    """What was wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every answer with a status of 400 or more."""

    error: ErrorDetail


_REASONS: dict[int | str, str] = {
    "4XX": "The request is wrong.",  # also keeps FastAPI from announcing its own 422
    400: "The request is wrong, too long for the model, or was refused by the safeguard.",
    401: "The API key is missing or unknown.",
    404: "There is no such model.",
    408: "The request did not arrive in time.",
    413: "The request is larger than the server accepts.",
    429: "The queue is full, or the key's limit is reached: see Retry-After.",
    500: "The model failed.",
    503: "The server is stopping.",
    504: "The answer took longer than the server allows.",
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": reason} for status, reason in _REASONS.items()
}
"""Error answers that every endpoint of the API may give, for its OpenAPI schema."""


def server_error() -> ApiError:
    """For failures that are not the client's; their cause is in the log."""
    return ApiError(
        500,
        "the server failed on this request; the next one may work",
        type="server_error",
        code="internal_error",
    )


def as_api_error(error: BaseException) -> ApiError | None:
    """The answer to a known kind of error; None for one nobody expected."""
    match error:
        case ApiError():
            return error
        case QueueFull():
            return ApiError(
                429,
                str(error),
                type="server_overloaded",
                code="queue_full",
                retry_after_s=error.retry_after_s,
            )
        case UsageError():
            return ApiError(400, str(error))
        case RequestValidationError():
            return _invalid(error)
        case HTTPException():
            return _http(error)
    return None


def install_handlers(app: FastAPI) -> None:
    """Make every known error of ``app`` an OpenAI error; the gate answers the unknown ones."""

    def answer(request: Request, error: Exception) -> JSONResponse:
        known = as_api_error(error)
        assert known is not None, "handlers are installed for known errors only"
        request.scope["state"]["error"] = known  # the gate counts it
        response = known.response()
        if isinstance(error, HTTPException):  # a 405 says what is allowed
            response.headers.update(error.headers or {})
        return response

    for kind in (ApiError, QueueFull, UsageError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer)


def _invalid(error: RequestValidationError) -> ApiError:
    """The most exact of the problems: of a value with several forms, that of the form meant."""
    problems: list[Mapping[str, Any]] = list(error.errors())
    if problems[0]["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {problems[0]['ctx']['error']}")
    places = [_place(problem, error.body) for problem in problems]

    def exactness(n: int) -> tuple[int, bool]:
        return len(places[n]), not problems[n]["type"].endswith("_type")

    best = max(range(len(problems)), key=exactness)
    where = _path(places[best])
    message = problems[best]["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{where}: {message}" if where else message, param=where or None)


def _place(problem: Mapping[str, Any], body: object) -> list[str | int]:
    """Where in ``body`` the problem is: its location without the names of forms tried."""
    source, *location = problem["loc"]
    if source != "body":
        return location
    place: list[str | int] = []
    for n, part in enumerate(location, start=1):
        named = isinstance(body, dict) and part in body
        numbered = isinstance(body, list) and isinstance(part, int) and part < len(body)
        if named or numbered:
            body = body[part]  # type: ignore[index]  # one of the two
        elif problem["type"] != "missing" or n < len(location):
            continue
        place.append(part)
    return place


def _path(location: list[str | int]) -> str:
    """``messages[0].role`` for a place in a JSON value."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    return "".join(parts).removeprefix(".")


def _http(error: HTTPException) -> ApiError:
    if error.status_code == HTTPStatus.NOT_FOUND:
        return ApiError(404, "there is nothing at this address", code="not_found")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return ApiError(405, "this address does not take this method", code="method_not_allowed")
    return ApiError(error.status_code, str(error.detail))
