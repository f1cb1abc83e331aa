import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from safetensors.torch import save_file
from serving_helpers import router, slow_down
from torch import Tensor

from puna.core.errors import PunaError, UsageError
from puna.inference import Engine, Request, Sampling
from puna.serving import ApiError, Hub, ServeConfig, create_app
from puna.serving.auth import KeyFile
from puna.serving.hub import warm_up

ASK = {"prompt": [1, 2, 3]}
LOCAL = "http://127.0.0.1"


def write_adapter(folder: Path) -> None:
    """An adapter of the tiny model, on the values of its first layer."""
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(1)
    prefix = "base_model.model.model.layers.0.self_attn.v_proj"
    shapes = {"lora_A": (2, 32), "lora_B": (16, 2)}
    tensors = {
        f"{prefix}.{side}.weight": torch.randn(shape, generator=generator)
        for side, shape in shapes.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")


def loaded(hub: Hub) -> set[str]:
    return {name for model in hub.models() for name in model.engine.engine.adapters}


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
        write_adapter(tmp_path / name)
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


def test_warming_up_runs_prompts_one_row_and_two_and_leaves_nothing_behind(
    new_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine(max_queue=1)
    passes: list[list[int]] = []
    hidden = engine._runner.hidden

    def watch(tokens: Sequence[Sequence[int]], *rest: Any) -> Tensor:
        passes.append([len(row) for row in tokens])
        return hidden(tokens, *rest)

    monkeypatch.setattr(engine._runner, "hidden", watch)
    warm_up(engine)
    assert engine.idle
    assert engine.stats().generated_tokens == 9
    assert [2] in passes
    assert [1] in passes
    assert [1, 1] in passes


def test_a_model_that_does_not_run_is_said_before_it_is_served(
    new_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine()

    def fail(*args: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(engine._runner, "hidden", fail)
    with pytest.raises(PunaError, match="does not run: RuntimeError: out of luck"):
        warm_up(engine)


def test_an_adapter_is_served_by_its_name_on_the_model_it_names(two: Hub, folder: Path) -> None:
    asyncio.run(two.load_adapter("poet", folder / "poet", "other"))
    served = two.get("poet")
    assert (served.adapter, served.engine) == ("poet", two.get("other").engine)
    assert two.names() == ["tiny", "other", "poet"]
    assert [model.name for model in two.models()] == ["tiny", "other"]
    with pytest.raises(UsageError, match="served already"):
        asyncio.run(two.load_adapter("tiny", folder / "poet"))
    asyncio.run(two.unload_adapter("poet"))
    assert two.names() == ["tiny", "other"]
    assert loaded(two) == set()
    for name in ("poet", "tiny"):
        with pytest.raises(UsageError, match=f"no adapter '{name}'"):
            asyncio.run(two.unload_adapter(name))


def test_an_admin_loads_and_unloads_adapters_while_the_server_runs(
    admin: tuple[TestClient, dict[str, dict[str, str]]], two: Hub, folder: Path
) -> None:
    client, headers = admin
    wanted = {"lora_name": "poet", "lora_path": "poet"}
    answer = client.post("/v1/load_lora_adapter", json=wanted, headers=headers["admin"])
    assert answer.status_code == 200
    assert loaded(two) == {"poet"}
    names = client.get("/v1/models", headers=headers["user"]).json()["data"]
    assert [model["id"] for model in names] == ["tiny", "other", "poet"]
    whole = {"lora_name": "poet2", "lora_path": str(folder / "poet")}
    answer = client.post("/v1/load_lora_adapter", json=whole, headers=headers["admin"])
    assert answer.status_code == 200
    answer = client.post("/v1/unload_lora_adapter", json=wanted, headers=headers["admin"])
    assert answer.status_code == 200
    assert loaded(two) == {"poet2"}


def test_a_text_by_an_adapter_s_name_is_the_adapter_s(two: Hub, folder: Path) -> None:
    asyncio.run(two.load_adapter("poet", folder / "poet"))
    client = TestClient(create_app(two, ServeConfig(log_requests=False)), base_url=LOCAL)
    ask = {"prompt": [1, 2, 3], "max_tokens": 12, "temperature": 0}

    def text(name: str) -> str:
        answer = client.post("/v1/completions", json=ask | {"model": name})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])

    assert text("poet") == text("poet") != text("tiny") == text("other")
    asyncio.run(two.unload_adapter("poet"))
    assert client.post("/v1/completions", json=ask | {"model": "poet"}).status_code == 404


def test_an_adapter_in_use_stays_served(two: Hub, folder: Path) -> None:
    async def use() -> None:
        await two.load_adapter("poet", folder / "poet")
        engine = two.get("poet").engine
        slow_down(engine.engine, 0.01)
        sampling = Sampling(max_new_tokens=200, ignore_stop_tokens=True)
        answer = await engine.submit(Request([1, 2, 3], sampling, adapter="poet"))
        with pytest.raises(UsageError, match="1 request still uses the adapter 'poet'"):
            await two.unload_adapter("poet")
        assert two.get("poet").engine is engine
        answer.close()
        await two.unload_adapter("poet")

    asyncio.run(use())
    assert two.names() == ["tiny", "other"]


def test_other_keys_may_not_touch_adapters(
    admin: tuple[TestClient, dict[str, dict[str, str]]], two: Hub
) -> None:
    client, headers = admin
    wanted = {"lora_name": "poet", "lora_path": "poet"}
    for path in ("load", "unload"):
        answer = client.post(f"/v1/{path}_lora_adapter", json=wanted, headers=headers["user"])
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "admin_key_needed")
        assert client.post(f"/v1/{path}_lora_adapter", json=wanted).status_code == 401
    assert loaded(two) == set()


@pytest.mark.parametrize(
    "path", ["../outside", "{outside}", "/", ".", "missing", "empty", "poet/x"]
)
def test_only_adapters_below_the_folder_can_be_loaded(
    admin: tuple[TestClient, dict[str, dict[str, str]]],
    two: Hub,
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
    assert loaded(two) == set()


def test_without_the_folder_there_is_no_such_endpoint(app: FastAPI) -> None:
    client = TestClient(app, base_url="http://127.0.0.1")
    wanted = {"lora_name": "poet", "lora_path": "poet"}
    assert client.post("/v1/load_lora_adapter", json=wanted).status_code == 404


def test_adapters_at_run_time_need_keys(folder: Path) -> None:
    with pytest.raises(UsageError, match="give --keys FILE"):
        ServeConfig.parse({"adapter_folder": folder}, where="serve")
