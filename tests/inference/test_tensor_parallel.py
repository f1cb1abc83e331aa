"""One model in several processes: the same texts as in one, and what happens when one ends."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import torch

from puna.core.errors import PunaError, UsageError
from puna.formats import load_model, save_model
from puna.inference import Engine, EngineConfig, Request, Sampling, load_engine
from puna.inference.part import check_cut, load_part
from puna.model import Llama, LlamaConfig
from puna.tokenizer import Tokenizer

PROMPTS = ([3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26], [2, 71, 82], [5] * 30, [9, 8, 7])


def _llama(*, tied: bool) -> Llama:
    # 323 rows of the head are not shared out evenly
    config = LlamaConfig(
        vocab_size=323, dim=48, n_layers=3, n_heads=4, n_kv_heads=2, ffn_dim=96, context=128,
        head_dim=16, tie_embeddings=tied,
    )  # fmt: skip
    model = Llama(config)
    model.init_weights(3)
    with torch.no_grad():  # larger than fresh ones: or all texts would be alike
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.mul_(6 if "proj" in name else 20)
    return model


Folders = dict[bool, Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Folders:
    """A model whose head is its embedding, and one that has its own."""
    place = tmp_path_factory.mktemp("shared")
    for tied in (True, False):
        save_model(place / str(tied), _llama(tied=tied), tokenizer)
    return {tied: place / str(tied) for tied in (True, False)}


@pytest.fixture
def folder(folders: Folders) -> Path:
    return folders[True]


@pytest.fixture
def shared(folder: Path) -> Iterator[Engine]:
    engine = _engine(folder, tensor_parallel=2)
    yield engine
    engine.close()


def _members() -> list[psutil.Process]:
    """Those of this process; it may have other children, a compiler's for instance."""
    found = []
    for one in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "puna.inference.part" in one.cmdline():
                found.append(one)
    return found


def _engine(folder: Path, **settings: object) -> Engine:
    fields = {"weights": "fp32", "cache_tokens": 4096, "page_size": 8, "chunk_tokens": 16}
    return load_engine(str(folder), EngineConfig.parse(fields | settings, where="test"))


def _texts(engine: Engine, n: int = 24) -> list[list[tuple[int, float]]]:
    sampling = Sampling(max_new_tokens=n, logprobs=1, ignore_stop_tokens=True, prompt_logprobs=True)
    written: dict[int, list[tuple[int, float]]] = {
        engine.submit(Request(list(prompt), sampling)): [] for prompt in PROMPTS
    }
    while not engine.idle:
        for handle, delta in engine.step():
            assert delta.error is None, delta.error
            told = [*(delta.prompt_logprobs or ()), *delta.logprobs]
            written[handle] += [(one.id, one.logprob) for one in told if one]
    return list(written.values())


@pytest.mark.parametrize(("tied", "speculation"), [(True, 0), (False, 3)])
def test_two_processes_write_what_one_writes(
    folders: Folders, tied: bool, speculation: int
) -> None:
    alone = _engine(folders[tied])
    shared = _engine(folders[tied], tensor_parallel=2, speculation=speculation)
    assert shared.weight_bytes < 0.75 * alone.weight_bytes
    assert shared.n_params == alone.n_params
    for _ in range(2):  # the second time from the prefix cache
        for one, two in zip(_texts(alone), _texts(shared), strict=True):
            assert [token for token, _ in one] == [token for token, _ in two]
            assert [p for _, p in two] == pytest.approx([p for _, p in one], abs=1e-4)
    texts = [list(prompt) for prompt in PROMPTS]
    torch.testing.assert_close(alone.embed(texts), shared.embed(texts), atol=1e-5, rtol=0)
    shared.close()


def test_a_member_that_ends_ends_the_engine_in_words(shared: Engine) -> None:
    shared.submit(Request(list(PROMPTS[0]), Sampling(max_new_tokens=100)))
    shared.step()
    (member,) = _members()
    member.kill()
    errors = []
    while not shared.idle:
        errors += [delta.error for _, delta in shared.step() if delta.error]
    assert len(errors) == 1
    assert shared.lost
    with pytest.raises(PunaError, match=r"start again"):
        shared.embed([[1, 2]])


def test_a_member_that_answers_no_more_ends_the_engine_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("puna.parallel.team._ANSWER", timedelta(seconds=3))
    engine = _engine(folder, tensor_parallel=2)
    (member,) = _members()
    member.suspend()
    try:
        engine.submit(Request(list(PROMPTS[0]), Sampling(max_new_tokens=2)))
        (failed,) = [delta for _, delta in engine.step()]
        assert failed.error is not None
        assert "start again" in engine.lost
    finally:
        member.kill()
        engine.close()


def test_members_end_with_their_leader(folder: Path) -> None:
    code = (
        "from puna.inference import EngineConfig, load_engine\nimport sys, time\n"
        "load_engine(sys.argv[1], EngineConfig(cache_tokens=64, tensor_parallel=2))\n"
        "print('ready', flush=True)\ntime.sleep(100)\n"
    )
    leader = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE)
    assert leader.stdout is not None
    assert leader.stdout.readline() == b"ready\n"
    members = psutil.Process(leader.pid).children()
    assert len(members) == 1
    os.kill(leader.pid, signal.SIGKILL)
    leader.wait()
    gone, alive = psutil.wait_procs(members, timeout=20)
    assert gone
    assert not alive


def test_what_a_shared_model_cannot_do_is_said(
    folder: Path, shared: Engine, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="one process when an adapter is loaded"):
        shared.load_adapter("one", tmp_path)
    with pytest.raises(UsageError, match="one process when its weights are changed"):
        shared.load_weights(_llama(tied=True))
    with pytest.raises(UsageError, match="shares a model with others already"):
        _engine(folder, tensor_parallel=2)
    with pytest.raises(UsageError, match=r"2 key and value heads: give --tensor-parallel 1 or 2"):
        check_cut(_llama(tied=True).config, 3)


def test_w8a8_runs_in_one_process(folder: Path) -> None:
    with pytest.raises(UsageError, match="w8a8 weights run in one process"):
        _engine(folder, weights="w8a8", tensor_parallel=2)


@pytest.mark.parametrize("tied", [True, False])
def test_parts_are_all_of_a_model(folders: Folders, tied: bool) -> None:
    folder, cpu = folders[tied], torch.device("cpu")
    parts = [load_part(str(folder), n, 2, dtype=torch.float32, device=cpu) for n in range(2)]
    whole = load_model(str(folder))[0]
    own = [model.state_dict() for model, *_ in parts]
    for name, tensor in whole.state_dict().items():
        if name == "lm_head.weight":
            continue
        held = [state[name] for state in own]
        cut = [n for n, size in enumerate(tensor.shape) if held[0].shape[n] != size]
        assert bool(cut) == ("_proj" in name)
        joined = torch.cat(held, cut[0]) if cut else held[0]
        assert torch.equal(joined, tensor)
        assert cut or torch.equal(held[1], tensor)
    rows = torch.cat([head for _, head, *_ in parts])
    assert len(rows) == 324
    assert torch.equal(rows[:323], whole.head_weight())
    assert not rows[323:].any()


def test_processes_listen_on_loopback_only_and_not_any_more_at_the_end(folder: Path) -> None:
    def listening() -> set[str]:
        every = [psutil.Process(), *_members()]
        found = [one for each in every for one in each.net_connections() if one.status == "LISTEN"]
        return {one.laddr.ip for one in found}

    before = listening()
    engine = _engine(folder, tensor_parallel=2)
    assert listening() - before <= {"127.0.0.1"}
    assert listening()
    engine.close()
    assert not _members()
    assert not torch.distributed.is_initialized()


def test_what_fails_after_the_start_leaves_nothing_behind(folder: Path) -> None:
    config = EngineConfig(cache_tokens=64, tensor_parallel=2)
    with pytest.raises(UsageError, match="no model"):
        load_engine(str(folder), config, draft=str(folder / "none"))
    assert not _members()
    with pytest.raises(UsageError, match="int4 weights need widths"):
        _engine(folder, weights="int4", tensor_parallel=2)
    assert not _members()


def test_members_import_nothing_from_the_current_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    engine = _engine(folder, tensor_parallel=2)
    engine.close()


def test_a_model_that_is_missing_is_told_before_anything_starts(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(UsageError, match="no model"):
        _engine(tmp_path / "none", tensor_parallel=2)
    assert time.monotonic() - began < 2
    assert not _members()
