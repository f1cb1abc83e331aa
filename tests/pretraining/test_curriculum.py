"""A curriculum's segments: what they read, when they go on, and that a kill changes nothing."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from puna.core.errors import PunaError, UsageError
from puna.core.events import EventLog
from puna.data import TokenFile, write_tokens
from puna.formats import load_model
from puna.formats.average import average_models
from puna.model import Llama, LlamaConfig
from puna.pretraining import curriculum as under_test
from puna.pretraining.curriculum import CurriculumRun, Judged, Texts
from puna.pretraining.needle import needle_accuracy, needle_row, needles_found, needles_row
from puna.pretraining.recipe import Curriculum
from puna.tokenizer import Tokenizer
from puna.training import LoopConfig
from puna.training.optimizer import learning_rate

LOOP = LoopConfig(
    steps=20, batch_rows=1, learning_rate=1e-3, warmup_steps=2, final_lr_fraction=0.1,
    precision="fp32", checkpoint_every=10, log_every=1,
)  # fmt: skip
WAY = {
    "phases": [
        {"name": "start", "steps": 2, "row_length": 16, "batch_rows": 2, "mix": {"a": 1}},
        {"name": "grown", "steps": 2, "row_length": 32, "batch_rows": 4, "mix": {"a": 1, "b": 3}},
    ],
    "long_context": {
        "rope": {"factor": 4, "original_context": 32},
        "stages": [
            {"row_length": 64, "batch_rows": 2, "steps": 1},
            {"row_length": 96, "batch_rows": 2, "steps": 1},
        ],
        "gate": {"needles": 2, "rows": 4, "attempts": 3},
    },
    "anneal": {"steps": 4, "row_length": 96, "batch_rows": 2, "mix": {"b": 1}, "average": 2},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small lose time to threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    words = "the number of the llama river lake village condor market bridge puna is on"
    return Tokenizer.train([f"{words} {n} " * 5 for n in range(20)], 300, n_special=16)


@pytest.fixture
def texts(tmp_path: Path) -> Texts:
    draw = np.random.default_rng(0)
    items = [(draw.integers(0, 100, 50).tolist(), None) for _ in range(20)]
    items += [(draw.integers(100, 200, 50).tolist(), None) for _ in range(20)]
    tokens = write_tokens(tmp_path / "tokens", items, 300)
    held_out: TokenFile = write_tokens(tmp_path / "held", items[::7], 300)
    return Texts(tokens, ["a"] * 20 + ["b"] * 20, held_out)


class Follower:
    """A run whose gates are judged by ``verdicts``, and what its batches held."""

    def __init__(self, texts: Texts, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[dict[str, Any]] = []
        self.texts, self.folder, self.monkeypatch = texts, folder, monkeypatch
        self.seen: list[tuple[tuple[int, ...], float, int, float | None]] = []

    def start(self, verdicts: list[bool] | None = None, way: dict[str, Any] = WAY) -> CurriculumRun:
        run = CurriculumRun(
            Curriculum.parse(way, where="test"), LOOP, self.texts, 1, self.folder,
            EventLog(readers=(self.events.append,)), "pretrain",
        )  # fmt: skip
        if verdicts is not None:
            left, judge = iter(verdicts), run._judge

            def judged(model: Llama, tok: Tokenizer, segment: Any, progress: Any) -> Judged:
                found = judge(model, tok, replace(segment, gate=None), progress)
                return replace(found, passed=next(left)) if segment.gate else found

            self.monkeypatch.setattr(run, "_judge", judged)
        return run

    def model(self) -> Llama:
        shape = {"dim": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "ffn_dim": 64}
        model = Llama(LlamaConfig.parse(shape | {"vocab_size": 300}, where="test"))
        model.init_weights(0)
        return model

    def spy(self) -> None:
        learned = under_test.next_token

        def next_token(model: Llama, batch: Any) -> Any:
            scaling = model.config.rope_scaling
            share = float((batch.ids[batch.documents >= 0] >= 100).float().mean())
            at = (tuple(batch.ids.shape), share, model.config.context)
            self.seen.append((*at, scaling.factor if scaling else None))
            return learned(model, batch)

        self.monkeypatch.setattr(under_test, "next_token", next_token)


@pytest.fixture
def follower(texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Follower:
    return Follower(texts, tmp_path / "run", monkeypatch)


def test_batches_lengths_mixes_and_rope_change_as_the_curriculum_says(
    follower: Follower, tokenizer: Tokenizer
) -> None:
    follower.spy()
    run = follower.start(verdicts=[False, True, True])
    progress = run.run(follower.model(), tokenizer)
    assert progress.step == 2 + 2 + 2 + 1 + 4
    shapes = [shape for shape, *_ in follower.seen]
    assert shapes == [(2, 16)] * 2 + [(4, 32)] * 2 + [(2, 64)] * 2 + [(2, 96)] * 5
    shares = [share for _, share, *_ in follower.seen]
    assert shares[:2] == [0, 0]
    assert 0.4 < np.mean(shares[2:4]) < 1  # three quarters of the mix, in rows of whole documents
    assert shares[-4:] == [1, 1, 1, 1]
    assert [context for *_, context, _ in follower.seen] == [s[1] for s in shapes]
    assert [factor for *_, factor in follower.seen] == [None] * 4 + [4] * 7
    rates = [e["learning_rate"] for e in follower.events if e["kind"] == "train_step"]
    whole = [learning_rate(LOOP, step) for step in range(8)]  # one cosine over 20 steps
    assert rates[:7] == pytest.approx(whole[:7])
    assert rates[7:] == pytest.approx([whole[7] * f for f in (1, 3 / 4, 2 / 4, 1 / 4)])


def test_a_run_killed_anywhere_goes_on_to_the_same_weights(
    follower: Follower, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = follower.model()
    follower.start(verdicts=[True, False, True]).run(whole, tokenizer)
    follower.folder = follower.folder.with_name("killed")
    decide: Callable[..., Any] = under_test.write_json
    for kill in range(8):  # before each decision is written, then after the last one
        run = follower.start(verdicts=[True, False, True][max(0, kill - 3) :])

        def dies(path: Path, value: Any, run: Any = run, at: int = kill) -> None:
            if len(run.done) > at:
                raise KeyboardInterrupt
            decide(path, value)

        monkeypatch.setattr(under_test, "write_json", dies)
        model = follower.model()
        try:
            run.run(model, tokenizer)
        except KeyboardInterrupt:
            continue
        assert kill == 6
        break
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name
    again = follower.model()
    follower.start(verdicts=[]).run(again, tokenizer)  # whole already: weights are read
    assert torch.equal(again.model.norm.weight, whole.model.norm.weight)
    assert again.config == whole.config


def test_the_anneals_models_are_averaged(
    follower: Follower, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    run, model = follower.start(verdicts=[True, True]), follower.model()
    run.run(model, tokenizer)
    folders = run.averaged()
    assert [folder.name for folder in folders] == ["step-000000008", "step-000000010"]
    average_models(folders, tmp_path / "mean")
    mean, one, two = (load_model(f)[0] for f in (tmp_path / "mean", *folders))
    assert torch.equal(two.model.norm.weight, model.model.norm.weight)
    expected = (one.lm_head.weight.double() + two.lm_head.weight.double()) / 2
    assert torch.equal(mean.lm_head.weight, expected.float())
    assert mean.config.context == 96
    assert mean.config.rope_scaling.factor == 4


def test_a_stage_that_does_not_pass_ends_the_run_or_is_noted(
    follower: Follower, tokenizer: Tokenizer
) -> None:
    with pytest.raises(PunaError, match=r"context-64: short loss .* 0% of needles found after 3"):
        follower.start().run(follower.model(), tokenizer)
    follower.folder = follower.folder.with_name("noted")
    gate = {**WAY["long_context"]["gate"], "give_up": False}
    way = {**WAY, "long_context": {**WAY["long_context"], "gate": gate}}
    run = follower.start(way=way)
    run.run(follower.model(), tokenizer)
    stages = [judged for judged in run.done if judged.name.startswith("context")]
    assert [judged.passed for judged in stages] == [False] * 6
    assert [judged.note for judged in stages] == ["", "", "given up, the next stage begins"] * 2
    assert all(judged.short_loss and judged.needles == 0 for judged in stages)


def test_a_needle_lies_where_it_is_asked_for(tokenizer: Tokenizer) -> None:
    hay = tokenizer.encode("the llama is on the puna ") * 50
    for depth in (0.0, 0.5, 1.0):
        ids, tail = needle_row(tokenizer, hay, 200, depth, seed=3)
        assert len(ids) == 200
        text = tokenizer.decode(ids)
        answer = tokenizer.decode(ids[-tail:])
        assert text.endswith(answer)
        assert text.count(answer) == 2
        place = text.index(answer) / len(text)
        assert place == pytest.approx(0.15 + 0.6 * depth, abs=0.2)
    with pytest.raises(UsageError, match="too short for a needle: at least"):
        needle_row(tokenizer, hay, 20, 0.5, seed=0)


def test_needles_of_one_row_lie_at_their_depths_and_each_is_asked_for_once(
    tokenizer: Tokenizer,
) -> None:
    hay = tokenizer.encode("the llama is on the puna ") * 100
    row = needles_row(tokenizer, hay, 900, 5, seed=4)
    assert len(row.ids) == 900
    said = tokenizer.decode(row.ids[: min(a.start for a in row.answers)])
    for number, answer in enumerate(row.answers):
        name_and_number = tokenizer.decode(row.ids[answer.start - 12 : answer.stop])
        place = said.index(name_and_number) / len(said)  # said before it is asked for
        assert place == pytest.approx(number / 4, abs=0.2)
    assert needles_row(tokenizer, hay, 900, 5, seed=4) == row
    with pytest.raises(UsageError, match="9 needles in a row are more than there are names: 8"):
        needles_row(tokenizer, hay, 900, 9, seed=0)
    with pytest.raises(UsageError, match="too short for a needle: at least"):
        needles_row(tokenizer, hay, 60, 5, seed=0)


class Copier(Llama):
    """Its hidden state is the token that came after the last time of the ten it reads."""

    def hidden(self, ids_bt: torch.Tensor, **_: Any) -> torch.Tensor:
        ids = ids_bt[0].tolist()
        out = torch.zeros(1, len(ids), self.config.dim)
        for at in range(len(ids)):
            for back in range(at - 1, 8, -1):
                if ids[back - 9 : back + 1] == ids[at - 9 : at + 1]:
                    out[0, at] = self.head_weight()[ids[back + 1]]
                    break
        return out


def test_a_model_that_copies_finds_every_needle_and_one_that_guesses_none(
    tokenizer: Tokenizer,
) -> None:
    shape = {"dim": 300, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "ffn_dim": 8}
    config = LlamaConfig.parse(shape | {"vocab_size": 300, "context": 512}, where="test")
    hay = tokenizer.encode("the llama is on the puna ") * 20
    copier, guesser = Copier(config), Llama(config)
    assert copier.lm_head is not None
    copier.lm_head.weight.data = torch.eye(300)
    guesser.init_weights(0)
    row = needles_row(tokenizer, hay, 400, 4, seed=2)
    assert needle_accuracy(copier, tokenizer, hay, 150, 5) == 1.0
    assert needles_found(copier, row) == [True] * 4
    assert needle_accuracy(guesser, tokenizer, hay, 150, 5) == 0.0
    assert needles_found(guesser, row) == [False] * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phases": [WAY["phases"][0]] * 2}, "two phases have the same name"),
        ({"anneal": {**WAY["anneal"], "row_length": 128}}, "the longest context trained, 96"),
        ({"anneal": {**WAY["anneal"], "average": 9}}, "average 9 exceeds steps 4"),
    ],
)  # fmt: skip
def test_a_curriculum_that_contradicts_itself_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Curriculum.parse({**WAY, **changes}, where="test")


def test_a_mix_of_a_source_without_documents_is_refused_before_any_step(
    follower: Follower, tokenizer: Tokenizer
) -> None:
    phases = [WAY["phases"][0], {**WAY["phases"][1], "mix": {"c": 1}}]
    with pytest.raises(UsageError, match=r"phases\.1\.mix: no document is of the source 'c'"):
        follower.start(way={**WAY, "phases": phases}).run(follower.model(), tokenizer)
    assert not (follower.folder / "checkpoints").exists()
