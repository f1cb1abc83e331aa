"""The OpenAPI schema is true: schemathesis sends what it allows and what it forbids."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
from protocol_api import Api
from serving_helpers import Serve

from puna.inference import Engine, EngineConfig
from puna.serving import Hub, ServeConfig, create_app
from puna.serving.auth import KeyFile

pytest_plugins = ["protocol_fixtures"]
SETTINGS = """
[parameters]
"body.model" = "smollm2"
"path.model" = "smollm2"

[checks.negative_data_rejection]  # its own list lacks 413: a list too long can be a body too large
expected-statuses = [400, 401, 403, 404, 405, 413, 415, 422]
"""


def test_schemathesis_finds_no_fault(api: Api, serve: Serve, tmp_path: Path) -> None:
    """All checks but one: that every request the schema allows is accepted. Whether a prompt fits,
    a regular expression compiles or a call has a result is more than a schema can say."""
    file, key = KeyFile().add("test")
    keys = tmp_path / "keys.json"
    file.write(keys)
    (tmp_path / "settings.toml").write_text(SETTINGS)
    size = EngineConfig.parse({"weights": "fp32", "cache_tokens": 65_536}, where="test")
    hub = Hub({"smollm2": Engine(api.model, api.tokenizer, size)})
    config = ServeConfig(log_requests=False, keys=keys, max_body_bytes=100_000)
    hub.start()
    with serve(create_app(hub, config)) as running:
        found = subprocess.run(
            [
                str(Path(sys.executable).with_name("schemathesis")),
                "--config-file=settings.toml",
                "run",
                f"{running.url}/openapi.json",
                f"--header=Authorization: Bearer {key}",
                "--phases=examples,coverage,fuzzing",
                "--exclude-checks=positive_data_acceptance",
                "--max-examples=10",
                "--seed=1",
                "--request-timeout=60",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=150,
        )
    hub.close()
    assert found.returncode == 0, found.stdout[-5000:]
    assert "No issues found" in found.stdout


def schema_of(api: Api) -> dict[str, Any]:
    return httpx.get(f"{api.url}/openapi.json").json()


def test_every_answer_of_an_endpoint_is_declared(api: Api) -> None:
    schema = schema_of(api)
    posts = [path["post"] for path in schema["paths"].values() if "post" in path]
    assert len(posts) == 6
    for operation in posts:
        assert {"200", "400", "401", "404", "413", "429", "500", "503"} <= set(
            operation["responses"]
        )
        assert "422" not in operation["responses"]  # FastAPI's own, which never comes
        answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
        assert "$ref" in answer
    for name in ("chat/completions", "completions", "responses"):
        content = schema["paths"][f"/v1/{name}"]["post"]["responses"]["200"]["content"]
        assert "text/event-stream" in content


def test_every_list_and_text_of_a_request_is_bounded(api: Api) -> None:
    """What has no bound in the schema could be anything: only the body's own limit stops it."""
    components = schema_of(api)["components"]["schemas"]
    roots = [
        components[name]
        for name in (
            "ChatRequest",
            "CompletionRequest",
            "ResponseRequest",
            "EmbeddingRequest",
            "TextToTokens",
            "ChatToTokens",
            "DetokenizeRequest",
        )
    ]
    unbounded = []

    def visit(part: Any, where: str, seen: frozenset[str]) -> None:
        if isinstance(part, list):
            for item in part:
                visit(item, where, seen)
        if not isinstance(part, dict):
            return
        if "$ref" in part:
            name = part["$ref"].rpartition("/")[2]
            if name not in seen:
                visit(components[name], f"{where} {name}", seen | {name})
        kind = part.get("type")
        bounds = {"string": ("maxLength", "enum", "const", "pattern"), "array": ("maxItems",)}
        if kind in bounds and not any(bound in part for bound in bounds[kind]):
            unbounded.append(where)
        if kind in ("integer", "number") and not (
            {"maximum", "exclusiveMaximum"} & set(part)
            and {"minimum", "exclusiveMinimum"} & set(part)
        ):
            unbounded.append(where)
        for key, value in part.items():
            if key == "properties":
                for name, inner in value.items():
                    visit(inner, f"{where}.{name}", seen)
            elif key in ("items", "anyOf", "oneOf", "additionalProperties", "patternProperties"):
                visit(list(value.values()) if key == "patternProperties" else value, where, seen)

    for root in roots:
        visit(root, root["title"], frozenset())
    assert unbounded == []
