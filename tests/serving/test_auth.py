import hmac
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from serving_helpers import router
from typer.testing import CliRunner, Result

from puna.cli.main import app as cli
from puna.core.errors import UsageError
from puna.serving import Hub, ServeConfig, create_app
from puna.serving.auth import KeyFile, KeyRing

ASK = {"prompt": [1, 2, 3]}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def new_key(key_file: Path) -> Callable[..., str]:
    """Adds a key to the file; the key itself."""

    def add(name: str, **limits: int | bool) -> str:
        known = KeyFile.read(key_file) if key_file.exists() else KeyFile()
        changed, key = known.add(name, **limits)  # type: ignore[arg-type]
        changed.write(key_file)
        return key

    return add


@pytest.fixture
def keyed(hub: Hub, key_file: Path, new_key: Callable[..., str]) -> FastAPI:
    new_key("somebody")
    app = create_app(hub, ServeConfig(keys=key_file, log_requests=False))
    app.include_router(router)
    return app


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_the_file_holds_hashes_and_only_its_owner_reads_it(
    key_file: Path, new_key: Callable[..., str]
) -> None:
    os.umask(previous := os.umask(0))  # whatever the user's umask is
    os.umask(0)
    try:
        key = new_key("ada")
        other = new_key("bob")
    finally:
        os.umask(previous)
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert key not in key_file.read_text()
    assert key != other
    assert len(key.removeprefix("pk-")) == 43  # 256 bits in URL-safe base64


def test_a_right_key_opens_and_a_wrong_one_does_not(
    keyed: FastAPI, new_key: Callable[..., str]
) -> None:
    key = new_key("ada")
    client = TestClient(keyed, base_url="http://example.org")
    assert client.post("/test/generate", json=ASK, headers=bearer(key)).status_code == 200
    for headers in (
        {},
        bearer(""),
        bearer(key + "x"),
        bearer(key[:-1]),
        {"authorization": key},
        {"authorization": f"Basic {key}"},
        {"authorization": "Bearer ü".encode("latin-1")},
    ):
        answer = client.post("/test/generate", json=ASK, headers=headers)  # type: ignore[arg-type]
        assert answer.status_code == 401, headers
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"


def test_everything_but_probes_and_the_page_needs_a_key(keyed: FastAPI) -> None:
    client = TestClient(keyed)
    free = {"/health", "/ready", "/", "/stats", "/ui/{name}"}
    checked = set()
    schema = keyed.openapi()["paths"]
    for path in {*schema, *free, "/openapi.json", "/nowhere", "/ui/markdown"}:
        for method in ("GET", "POST", "PUT", "DELETE"):
            answer = client.request(method, path.replace("{name}", "chat.css"))
            is_free = method == "GET" and (path in free or path.startswith("/ui/"))
            assert (answer.status_code == 401) != is_free, (method, path)
            checked.add(path)
    assert {"/metrics", "/stats/data", "/v1/chat/completions"} <= checked


def test_a_refused_client_is_refused_before_its_body_is_parsed(keyed: FastAPI) -> None:
    answer = TestClient(keyed).post("/test/generate", content=b"{")
    assert answer.status_code == 401


def test_keys_added_and_removed_count_at_once(
    keyed: FastAPI, key_file: Path, new_key: Callable[..., str]
) -> None:
    client = TestClient(keyed)
    key = new_key("ada")
    assert client.get("/stats/data", headers=bearer(key)).status_code == 200
    KeyFile.read(key_file).remove("ada").write(key_file)
    assert client.get("/stats/data", headers=bearer(key)).status_code == 401


def test_a_file_that_broke_leaves_the_last_good_keys_in_force(
    key_file: Path, new_key: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    key = new_key("ada")
    ring = KeyRing(key_file)
    key_file.write_text("{")
    assert ring.find(key) is not None
    assert ring.find(key) is not None
    said = capfd.readouterr().err
    assert said.count("not valid JSON") == 1, "once, not with every request"
    key_file.unlink()
    assert ring.find(key) is not None
    other = new_key("bob")
    assert ring.find(other) is not None
    assert ring.find(key) is None


def test_a_reload_keeps_what_a_key_has_used(key_file: Path, new_key: Callable[..., str]) -> None:
    key = new_key("ada", requests_per_minute=2)
    ring = KeyRing(key_file)
    holder = ring.find(key)
    assert holder is not None
    assert holder.requests.take(2) == 0
    new_key("bob")
    assert ring.find(key) is holder


def test_every_entry_is_compared_in_constant_time(
    key_file: Path, new_key: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [new_key(name) for name in ("ada", "bob", "eve")]
    ring = KeyRing(key_file)
    compared: list[tuple[str, str]] = []
    original = hmac.compare_digest

    def counting(left: str, right: str) -> bool:
        compared.append((left, right))
        return original(left, right)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    for key in (*keys, "wrong"):
        compared.clear()
        ring.find(key)
        assert len(compared) == 3, "the first match must not end the search"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "an object with 'keys'"),
        ('{"keys": [{"name": "ada"}]}', "sha256"),
        ('{"key": []}', "did you mean 'keys'"),
        ('{"keys": [{"name": "a b", "sha256": "' + "0" * 64 + '"}]}', "a b"),
    ],
)
def test_a_broken_file_says_what_is_wrong(key_file: Path, content: str, message: str) -> None:
    key_file.write_text(content)
    with pytest.raises(UsageError, match=message):
        KeyRing(key_file)


def test_a_missing_file_says_how_to_make_it(key_file: Path) -> None:
    with pytest.raises(UsageError, match="puna keys add"):
        KeyRing(key_file)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org", "128.0.0.1"])
def test_an_address_that_others_reach_needs_keys(host: str) -> None:
    with pytest.raises(UsageError, match="give --keys FILE"):
        ServeConfig.parse({"host": host}, where="serve")
    assert ServeConfig.parse({"host": host, "keys": "keys.json"}, where="serve").host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_a_loopback_address_needs_none(host: str) -> None:
    assert ServeConfig.parse({"host": host}, where="serve").keys is None


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "10.0.0.1", ""])
def test_without_keys_a_web_page_cannot_reach_the_server_by_a_rebound_name(
    app: FastAPI, host: str
) -> None:
    client = TestClient(app, base_url="http://127.0.0.1")
    answer = client.get("/health", headers={"host": host})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")
    for name in ("localhost:8000", "127.0.0.1:8000", "[::1]:8000", "[::1]", "LOCALHOST"):
        assert client.get("/health", headers={"host": name}).status_code == 200, name


def test_other_origins_may_not_call_unless_they_are_named(hub: Hub) -> None:
    asks = {"origin": "https://a.example", "access-control-request-method": "POST"}
    closed = TestClient(create_app(hub, ServeConfig()), base_url="http://127.0.0.1")
    answer = closed.options("/v1/chat/completions", headers=asks)
    assert "access-control-allow-origin" not in answer.headers
    open_to_one = TestClient(
        create_app(hub, ServeConfig(cors=("https://a.example",))), base_url="http://127.0.0.1"
    )
    answer = open_to_one.options("/v1/chat/completions", headers=asks)
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    answer = open_to_one.options(
        "/v1/chat/completions", headers=asks | {"origin": "https://b.example"}
    )
    assert "access-control-allow-origin" not in answer.headers


def test_the_schema_says_where_a_key_is_needed(keyed: FastAPI) -> None:
    schema = keyed.openapi()
    assert schema["paths"]["/metrics"]["get"]["security"] == [{"HTTPBearer": []}]
    assert "security" not in schema["paths"]["/health"]["get"]
    assert "401" in schema["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert "422" not in schema["paths"]["/v1/chat/completions"]["post"]["responses"]


def test_keys_are_made_listed_and_removed_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "k.json"

    def puna(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["keys", *arguments, "--file", str(file)])

    made = puna("add", "ada", "--requests-per-minute", "5", "--admin")
    key = made.stdout.strip()
    assert KeyRing(file).find(key) is not None
    assert "there is a key for 'ada'" in str(puna("add", "ada").exception)
    listed = json.loads(puna("list", "--json").stdout)["keys"]
    assert [entry["name"] for entry in listed] == ["ada"]
    assert (listed[0]["requests_per_minute"], listed[0]["admin"]) == (5, True)
    assert "sha256" not in listed[0]
    assert puna("remove", "ada").exit_code == 0
    assert KeyRing(file).find(key) is None
    assert isinstance(puna("remove", "ada").exception, UsageError)


def test_a_key_never_reaches_the_log(
    hub: Hub, key_file: Path, new_key: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    key = new_key("ada")
    app = create_app(hub, ServeConfig(keys=key_file))
    app.include_router(router)
    client = TestClient(app)
    client.post("/test/generate", json=ASK, headers=bearer(key))
    client.post("/test/generate", json=ASK, headers=bearer("pk-wrong"))
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["key"] for line in lines] == ["ada", None]
    assert not any(secret in json.dumps(lines) for secret in (key, "pk-wrong"))
