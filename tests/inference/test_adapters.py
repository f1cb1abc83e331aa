"""Adapters: PEFT's texts, whatever runs beside them, and coming and going while others run."""

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_folders import Peer
from tiny_engine import Build, greedy, run, tiny_llama

from puna.core.errors import UsageError
from puna.inference import AsyncEngine, Engine, EngineConfig, Request, Sampling, generate
from puna.model import Llama
from puna.tokenizer import Tokenizer

N = 16
PROMPTS = [[1, 2, 3], [*range(40, 70), 5], [7, 8, 9] * 6]
# twice what rounding the weights moves this model's log-probabilities by, in nats
ROUNDING = {"bf16": 0.05, "int8": 0.1, "int4": 0.6, "w8a8": 0.08}
SETTINGS: dict[str, dict[str, object]] = {
    "plain": {},
    "joined products": {"packed_copy": True},
    "chunks and little room": {"chunk_tokens": 8, "cache_tokens": 192, "page_size": 4},
    "speculation": {"speculation": 3},
    "no prefix cache": {"prefix_cache": False},
}


@dataclass(frozen=True)
class Expected:
    """What PEFT computes for a prompt with one of its adapters."""

    adapter: str | None
    prompt: list[int]
    ids: list[int]
    logprobs: torch.Tensor

    @property
    def request(self) -> Request:
        return Request(self.prompt, asked(N), adapter=self.adapter)


def asked(n: int) -> Sampling:
    return Sampling(max_new_tokens=n, logprobs=0, ignore_stop_tokens=True)


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory, model: Llama, tokenizer: Tokenizer) -> Peer:
    return Peer(tmp_path_factory.mktemp("peer"), model, tokenizer)


@pytest.fixture(scope="module")
def folders(peer: Peer) -> dict[str, Path]:
    """Three adapters: one on all projections, one on few with rsLoRA, one with patterns."""
    patterns = {"rank_pattern": {"up_proj": 2}, "alpha_pattern": {r"layers\.1\..*_proj": 3}}
    few = {"target_modules": ["k_proj", "up_proj"], "use_rslora": True, "r": 3}
    return {
        "poet": peer.write("poet", 1),
        "clerk": peer.write("clerk", 2, **few),
        "cook": peer.write("cook", 3, layers_to_transform=[1], **patterns),
    }


@pytest.fixture(scope="module")
def expected(peer: Peer, folders: dict[str, Path]) -> list[Expected]:
    """Of each prompt with the model alone and with each adapter: all texts differ."""
    found = []
    for prompt in PROMPTS:
        for name in (None, *folders):
            folder = None if name is None else folders[name]
            found.append(Expected(name, prompt, *peer.greedy(folder, prompt, N)))
    assert len({tuple(each.ids) for each in found}) == len(found)
    return found


def load_all(engine: Engine, folders: dict[str, Path]) -> Engine:
    for name, folder in folders.items():
        engine.load_adapter(name, folder)
    return engine


def assert_equal(engine: Engine, expected: list[Expected], batches: list[list[Expected]]) -> None:
    """Sums of fp32 in another order: log-probabilities within 1e-4."""
    assert sum(map(len, batches)) == len(expected)
    for batch in batches:
        texts = generate(engine, [each.request for each in batch])
        for each, text in zip(batch, texts, strict=True):
            assert text.ids == each.ids, each.adapter
            ours = torch.tensor([entry.logprob for entry in text.logprobs])
            torch.testing.assert_close(ours, each.logprobs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SETTINGS)
def test_texts_are_those_of_peft_alone_and_in_one_batch(
    build: Build, folders: dict[str, Path], expected: list[Expected], name: str
) -> None:
    engine = load_all(build(**SETTINGS[name]), folders)
    assert_equal(engine, expected, [[each] for each in expected])
    assert_equal(engine, expected, [expected])
    assert_equal(engine, expected, [expected[::-1]])


def test_compiled_steps_give_way_to_adapters(
    build: Build, folders: dict[str, Path], expected: list[Expected]
) -> None:
    engine = load_all(build(compile=True, packed_copy=True), folders)
    assert_equal(engine, expected, [[each] for each in expected])
    assert_equal(engine, expected, [expected])


def logprobs(engine: Engine, prompt: list[int], new: list[int], adapter: str | None) -> Any:
    """Log-probabilities (n,) that ``engine`` gives the tokens ``new`` after a prompt."""
    sampling = Sampling(max_new_tokens=0, prompt_logprobs=True)
    (text,) = generate(engine, [Request([*prompt, *new], sampling, adapter=adapter)])
    assert text.prompt_logprobs is not None
    entries = text.prompt_logprobs[-len(new) :]
    return torch.tensor([entry.logprob for entry in entries if entry is not None])


@pytest.mark.parametrize("packed_copy", [False, True])
@pytest.mark.parametrize("weights", ROUNDING)
def test_adapters_on_rounded_weights_change_them_as_much(
    build: Build, folders: dict[str, Path], peer: Peer, weights: str, packed_copy: bool
) -> None:
    """Of PEFT's tokens: how an adapter moves their log-probabilities, which is by nats."""
    engine = load_all(build(weights=weights, packed_copy=packed_copy), folders)
    for prompt in PROMPTS:
        ids, with_adapter = peer.greedy(folders["poet"], prompt, N)
        assert (logprobs(engine, prompt, ids, None) - with_adapter).abs().mean() > 1
        ours = logprobs(engine, prompt, ids, "poet")
        assert (ours - with_adapter).abs().mean() < ROUNDING[weights]


def test_compiled_steps_on_rounded_rows_give_way_to_adapters(
    build: Build, folders: dict[str, Path], peer: Peer
) -> None:
    """Between compiled steps of w8a8 rows are rounded already: there no adapter could read them."""
    engine = load_all(build(weights="w8a8", compile=True), folders)
    for prompt in PROMPTS:
        ids, with_adapter = peer.greedy(folders["poet"], prompt, N)
        ours = logprobs(engine, prompt, ids, "poet")
        assert (ours - with_adapter).abs().mean() < ROUNDING["w8a8"]


@pytest.mark.parametrize("weights", ["fp32", "w8a8"])
def test_other_weights_are_changed_by_the_adapters_too(
    build: Build,
    folders: dict[str, Path],
    tokenizer: Tokenizer,
    tmp_path: Path,
    weights: str,
) -> None:
    """Norms are folded into what w8a8's products read, an adapter's too: these have others."""
    other = tiny_llama(tokenizer.vocab_size, seed=4)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if name.endswith("norm.weight"):
                parameter.mul_(torch.linspace(0.5, 2, len(parameter)))
    peer = Peer(tmp_path, other, tokenizer)
    engine = load_all(build(weights=weights), folders)
    engine.load_weights(other)
    for prompt in PROMPTS:
        ids, with_adapter = peer.greedy(folders["poet"], prompt, N)
        ours = logprobs(engine, prompt, ids, "poet")
        assert (ours - with_adapter).abs().mean() < ROUNDING["w8a8"]


def test_what_the_cache_holds_of_one_adapter_is_not_another_s(
    build: Build, folders: dict[str, Path], expected: list[Expected]
) -> None:
    engine = load_all(build(page_size=4), folders)
    long = [each for each in expected if len(each.prompt) > 20]
    assert_equal(engine, long, [[each] for each in long])
    assert engine.stats().cached_tokens == 0
    assert_equal(engine, long, [[each] for each in long])
    assert engine.stats().cached_tokens > 0


def test_adapters_come_and_go_while_others_run(
    build: Build, folders: dict[str, Path], expected: list[Expected]
) -> None:
    engine = build()
    engine.load_adapter("poet", folders["poet"])
    by_name = {each.adapter: each for each in expected if each.prompt == PROMPTS[1]}
    handles = {engine.submit(by_name[name].request): name for name in (None, "poet")}
    found: dict[str | None, list[int]] = {name: [] for name in by_name}
    for turn in range(N + 20):
        if turn == 3:
            engine.load_adapter("clerk", folders["clerk"])
            handles[engine.submit(by_name["clerk"].request)] = "clerk"
            with pytest.raises(UsageError, match="1 request still uses the adapter 'poet'"):
                engine.unload_adapter("poet")
        for handle, delta in engine.step():
            found[handles[handle]].extend(delta.ids)
    assert engine.idle
    assert engine.adapters == ("poet", "clerk")
    for name in (None, "poet", "clerk"):
        assert found[name] == by_name[name].ids
    engine.unload_adapter("poet")
    assert engine.adapters == ("clerk",)
    with pytest.raises(UsageError, match="no adapter 'poet' is loaded: there is clerk"):
        engine.submit(by_name["poet"].request)
    assert_equal(engine, [by_name["clerk"], by_name[None]], [[by_name["clerk"], by_name[None]]])


def test_another_adapter_by_the_same_name_sees_nothing_of_the_first(
    build: Build, folders: dict[str, Path], expected: list[Expected]
) -> None:
    engine = build(page_size=4)
    for name in ("poet", "cook"):
        engine.load_adapter("mine", folders[name])
        for each in expected:
            if each.adapter == name:
                (ids,) = run(engine, [Request(each.prompt, asked(N), adapter="mine")])
                assert ids == each.ids
        engine.unload_adapter("mine")
    assert engine.adapters == ()


@pytest.mark.parametrize("packed_copy", [False, True])
def test_new_weights_keep_the_adapters(
    build: Build,
    folders: dict[str, Path],
    tokenizer: Tokenizer,
    tmp_path: Path,
    packed_copy: bool,
) -> None:
    other = tiny_llama(tokenizer.vocab_size, seed=4)
    peer = Peer(tmp_path, other, tokenizer)
    engine = load_all(build(packed_copy=packed_copy), folders)
    engine.load_weights(other)
    request = Request(PROMPTS[1], asked(N), adapter="poet")
    assert run(engine, [request]) == [peer.greedy(folders["poet"], PROMPTS[1], N)[0]]
    engine.unload_adapter("poet")
    assert run(engine, [greedy(PROMPTS[1], N)]) == [peer.greedy(None, PROMPTS[1], N)[0]]


def test_weights_that_adapters_leave_alone_are_read_as_before(
    build: Build, folders: dict[str, Path]
) -> None:
    engine = build()
    before = engine.weight_bytes
    names = list(engine.model.state_dict())
    load_all(engine, folders)
    assert (engine.weight_bytes, list(engine.model.state_dict())) == (before, names)


def test_a_draft_model_without_the_adapter_does_not_change_its_texts(
    build: Build, folders: dict[str, Path], expected: list[Expected], model: Llama
) -> None:
    engine = load_all(build(draft=model, speculation=3), folders)
    assert_equal(engine, expected, [expected])


def test_names_and_shapes_that_do_not_fit_are_explained(
    build: Build, folders: dict[str, Path], tmp_path: Path
) -> None:
    engine = build()
    engine.load_adapter("poet", folders["poet"])
    with pytest.raises(UsageError, match="an adapter 'poet' is loaded already: unload it first"):
        engine.load_adapter("poet", folders["clerk"])
    with pytest.raises(UsageError, match="no adapter 'clerk' is loaded: there is poet"):
        engine.unload_adapter("clerk")
    with pytest.raises(UsageError, match="no adapter 'clerk' is loaded"):
        engine.submit(Request([1], adapter="clerk"))
    with pytest.raises(UsageError, match=r"holds no adapter_config\.json"):
        engine.load_adapter("none", tmp_path)
    assert engine.adapters == ("poet",)
    assert engine.idle


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ffn_dim": 48}, r"mlp\.\w+_proj is changed from .* the model has"),
        ({"n_layers": 1}, r"the model has no model\.layers\.1\.\w+\.\w+_proj"),
    ],
)
def test_an_adapter_of_another_model_leaves_nothing_behind(
    folders: dict[str, Path],
    model: Llama,
    tokenizer: Tokenizer,
    changes: dict[str, Any],
    said: str,
) -> None:
    other = Llama(model.config.model_copy(update=changes))
    other.init_weights(seed=1)
    engine = Engine(other, tokenizer, EngineConfig(weights="fp32", cache_tokens=512))
    before = run(engine, [greedy([1, 2], 8)])
    with pytest.raises(UsageError, match=said):
        engine.load_adapter("poet", folders["poet"])
    assert engine.adapters == ()
    assert run(engine, [greedy([1, 2], 8)]) == before


def test_the_worker_loads_and_unloads_between_steps(
    build: Build, folders: dict[str, Path], expected: list[Expected], tmp_path: Path
) -> None:
    shutil.copytree(folders["poet"], tmp_path / "poet")

    async def use(worker: AsyncEngine) -> None:
        await worker.load_adapter("poet", tmp_path / "poet")
        shutil.rmtree(tmp_path / "poet")  # what is loaded needs its files no more
        for each in expected:
            if each.adapter in (None, "poet"):
                answer = await worker.submit(each.request)
                assert [i async for delta in answer for i in delta.ids] == each.ids
        await worker.unload_adapter("poet")
        with pytest.raises(UsageError, match="no adapter 'poet'"):
            await worker.unload_adapter("poet")

    worker = AsyncEngine(build())
    worker.start()
    try:
        asyncio.run(use(worker))
    finally:
        worker.close()
