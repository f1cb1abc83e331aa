from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from serving_helpers import router

from puna.core.errors import UsageError
from puna.inference import AsyncEngine, Engine
from puna.serving import ApiError, Hub, ServeConfig, create_app
from puna.serving.auth import KeyFile
from puna.serving.hub import warm_up

ASK = {"prompt": [1, 2, 3]}


class Loaded(dict[str, Path]):
    """Adapters that the engine was told to load: what `Hub` asks for, without weights."""


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Loaded:
    adapters = Loaded()

    async def load(engine: AsyncEngine, name: str, folder: Path) -> None:
        if not (folder / "adapter_config.json").exists():
            raise UsageError(f"{folder} holds no adapter")
        adapters[name] = folder

    async def unload(engine: AsyncEngine, name: str) -> None:
        del adapters[name]

    monkeypatch.setattr(AsyncEngine, "load_adapter", load, raising=False)
    monkeypatch.setattr(AsyncEngine, "unload_adapter", unload, raising=False)
    return adapters


@pytest.fixture
def two(new_engine: Callable[..., Engine]) -> Iterator[Hub]:
    hub = Hub({"tiny": new_engine(), "other": new_engine(max_rows=2)})
    hub.start()
    yield hub
    hub.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of adapters, with "poet" in it and another one outside of it."""
    for name in ("adapters/poet", "outside"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "adapter_config.json").write_text("{}")
    (tmp_path / "adapters" / "empty").mkdir()
    return tmp_path / "adapters"


@pytest.fixture
def admin(two: Hub, folder: Path, tmp_path: Path) -> tuple[TestClient, dict[str, dict[str, str]]]:
    """A client, and the headers of an admin and of a user."""
    file, admin_key = KeyFile().add("root", admin=True)
    file, user_key = file.add("user")
    file.write(tmp_path / "keys.json")
    config = ServeConfig(keys=tmp_path / "keys.json", adapter_folder=folder, log_requests=False)
    app = create_app(two, config)
    app.include_router(router)
    bearer = {"admin": admin_key, "user": user_key}
    return TestClient(app), {who: {"authorization": f"Bearer {key}"} for who, key in bearer.items()}


def test_an_unknown_model_is_not_found_and_the_nearest_is_named(two: Hub) -> None:
    with pytest.raises(ApiError, match="did you mean 'other'") as caught:
        two.get("othr")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    with pytest.raises(ApiError, match="there is tiny, other"):
        two.get("gpt")


def test_several_models_answer_by_name(two: Hub) -> None:
    app = create_app(two, ServeConfig(log_requests=False))
    app.include_router(router)
    client = TestClient(app, base_url="http://127.0.0.1")
    for name in ("tiny", "other"):
        assert client.post("/test/generate", json=ASK | {"model": name}).status_code == 200
        assert two.get(name).engine.stats().finished == 1
    error = client.post("/test/generate", json=ASK | {"model": "none"}).json()["error"]
    assert error["code"] == "model_not_found"


def test_warming_up_leaves_nothing_behind(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine()
    warm_up(engine)
    assert engine.idle
    assert engine.stats().generated_tokens == 9


def test_an_adapter_is_served_by_its_name_on_the_model_it_names(
    two: Hub, loaded: Loaded, folder: Path
) -> None:
    import asyncio

    asyncio.run(two.load_adapter("poet", folder / "poet", "other"))
    served = two.get("poet")
    assert (served.adapter, served.engine) == ("poet", two.get("other").engine)
    assert two.names() == ["tiny", "other", "poet"]
    assert [model.name for model in two.models()] == ["tiny", "other"]
    with pytest.raises(UsageError, match="served already"):
        asyncio.run(two.load_adapter("tiny", folder / "poet"))
    asyncio.run(two.unload_adapter("poet"))
    assert two.names() == ["tiny", "other"]
    assert loaded == {}
    for name in ("poet", "tiny"):
        with pytest.raises(UsageError, match=f"no adapter '{name}'"):
            asyncio.run(two.unload_adapter(name))


def test_an_admin_loads_and_unloads_adapters_while_the_server_runs(
    admin: tuple[TestClient, dict[str, dict[str, str]]], loaded: Loaded, folder: Path
) -> None:
    client, headers = admin
    wanted = {"lora_name": "poet", "lora_path": "poet"}
    answer = client.post("/v1/load_lora_adapter", json=wanted, headers=headers["admin"])
    assert answer.status_code == 200
    assert loaded == {"poet": folder / "poet"}
    names = client.get("/v1/models", headers=headers["user"]).json()["data"]
    assert [model["id"] for model in names] == ["tiny", "other", "poet"]
    whole = {"lora_name": "poet2", "lora_path": str(folder / "poet")}
    answer = client.post("/v1/load_lora_adapter", json=whole, headers=headers["admin"])
    assert answer.status_code == 200
    answer = client.post("/v1/unload_lora_adapter", json=wanted, headers=headers["admin"])
    assert answer.status_code == 200
    assert set(loaded) == {"poet2"}


def test_other_keys_may_not_touch_adapters(
    admin: tuple[TestClient, dict[str, dict[str, str]]], loaded: Loaded
) -> None:
    client, headers = admin
    wanted = {"lora_name": "poet", "lora_path": "poet"}
    for path in ("load", "unload"):
        answer = client.post(f"/v1/{path}_lora_adapter", json=wanted, headers=headers["user"])
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "admin_key_needed")
        assert client.post(f"/v1/{path}_lora_adapter", json=wanted).status_code == 401
    assert loaded == {}


@pytest.mark.parametrize(
    "path", ["../outside", "{outside}", "/", ".", "missing", "empty", "poet/x"]
)
def test_only_adapters_below_the_folder_can_be_loaded(
    admin: tuple[TestClient, dict[str, dict[str, str]]],
    loaded: Loaded,
    folder: Path,
    tmp_path: Path,
    path: str,
) -> None:
    client, headers = admin
    (folder / "link").symlink_to(tmp_path / "outside")
    for each in (path, "link"):
        wanted = {"lora_name": "x", "lora_path": each.replace("{outside}", str(tmp_path))}
        answer = client.post("/v1/load_lora_adapter", json=wanted, headers=headers["admin"])
        assert answer.status_code == 400, each
    assert loaded == {}


def test_without_the_folder_there_is_no_such_endpoint(app: FastAPI) -> None:
    client = TestClient(app, base_url="http://127.0.0.1")
    wanted = {"lora_name": "poet", "lora_path": "poet"}
    assert client.post("/v1/load_lora_adapter", json=wanted).status_code == 404


def test_adapters_at_run_time_need_keys(folder: Path) -> None:
    with pytest.raises(UsageError, match="give --keys FILE"):
        ServeConfig.parse({"adapter_folder": folder}, where="serve")
