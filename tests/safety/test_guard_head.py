import asyncio
from pathlib import Path

import pytest
import torch
from guard_parts import tiny_model

from puna.core.errors import UsageError
from puna.formats import load_model
from puna.safety.guard import Policy, contrast, open_guard, training
from puna.safety.guard.features import CONTEXT, WINDOW, Encoder, windows_of
from puna.safety.guard.head import Head, fit_logistic
from puna.safety.guard.head_guard import HeadGuard, load_encoder
from puna.safety.guard.metrics import auc, recall_at, share_from, threshold_at
from puna.safety.guard.sources import Labelled, asked
from puna.safety.guard.training import Rows
from puna.safety.models import digest_of
from puna.tokenizer import Message


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model(tmp_path_factory.mktemp("guard") / "tiny"))


@pytest.fixture(scope="module")
def sources() -> dict[str, list[Labelled]]:
    """Three authors: what is harmful talks of bread, what is harmless of rain."""

    def made(name: str, frame: str) -> list[Labelled]:
        bad = [
            asked(frame.format(f"bread {n}"), True, name, "S1" if n % 2 else "S2")
            for n in range(24)
        ]
        return bad + [asked(frame.format(f"rain {n}"), False, name) for n in range(24)]

    frames = {"one": "How do I make {}?", "two": "Tell me about {} today", "three": "{}, please!"}
    return {name: made(name, frame) for name, frame in frames.items()}


@pytest.fixture(scope="module")
def trained(
    folder: str, sources: dict[str, list[Labelled]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Head, dict[str, training.SourceReport], Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PUNA_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(training, "_LEAST_HAZARD", 5)
        encoder = load_encoder(folder, None)
        assert encoder.layers == (1, 2)
        digest = digest_of(folder)
        rows = training.features_of(encoder, digest, sources, lambda *_: None)
        again = training.features_of(encoder, digest, sources, lambda *_: None)
        assert torch.equal(rows["one"].features_nd, again["one"].features_nd)
        about = {"task": "hazard", "model": folder, "digest": digest, "layers": encoder.layers}
        head, reports = training.train_head(rows, ["three"], about)
    path = tmp_path_factory.mktemp("heads") / "head"
    head.save(path)
    return head, reports, path


def test_a_head_finds_what_it_learned_on_a_source_it_did_not_learn_from(
    trained: tuple[Head, dict[str, training.SourceReport], Path],
) -> None:
    head, reports, _ = trained
    assert set(head.facts.sources) == {"one", "two"}
    assert set(reports) == {"one", "two", "three"}
    assert reports["three"].auc > 0.8
    assert (reports["three"].unsafe, reports["three"].safe) == (24, 24)
    assert head.facts.hazards == ("S1", "S2")
    assert 0 < head.facts.threshold < 1
    assert head.facts.slope > 0


def test_a_saved_head_judges_as_the_one_in_memory(
    folder: str, trained: tuple[Head, dict[str, training.SourceReport], Path]
) -> None:
    head, _, path = trained
    texts = [[Message("user", f"How do I make {what}?")] for what in ("bread 7", "rain 7")]
    before = HeadGuard("x", head, load_encoder(folder, head.facts.layers)).judge_all(texts)

    async def after() -> list[float]:
        guard = await open_guard([str(path)], Policy())
        assert guard.classifier is not None
        found = [await guard.classifier.judge(text) for text in texts]
        await guard.classifier.close()
        return [judgement.score for judgement in found]

    assert asyncio.run(after()) == pytest.approx([j.score for j in before], abs=1e-4)
    assert before[0].score > before[1].score
    assert Head.load(path).facts.measured["three"]["auc"] == head.facts.measured["three"]["auc"]


def test_another_model_under_the_heads_name_is_refused(
    trained: tuple[Head, dict[str, training.SourceReport], Path], tmp_path: Path
) -> None:
    text = (trained[2] / "head.json").read_text()
    (tmp_path / "head.json").write_text(text.replace('"digest": "', '"digest": "0'))
    (tmp_path / "head.safetensors").write_bytes((trained[2] / "head.safetensors").read_bytes())
    with pytest.raises(UsageError, match="train it again"):
        asyncio.run(open_guard([str(tmp_path)], Policy()))
    (tmp_path / "head.safetensors").write_bytes(b"broken")
    with pytest.raises(UsageError, match="cannot be read"):
        Head.load(tmp_path)


def test_what_a_guard_cannot_do_is_said_at_the_start(
    trained: tuple[Head, dict[str, training.SourceReport], Path],
) -> None:
    head = str(trained[2])
    own = {"custom": [{"code": "S15", "name": "a", "description": "b"}]}
    with pytest.raises(UsageError, match="knows no hazards of one's own"):
        asyncio.run(open_guard([head], Policy.parse(own, where="test")))
    with pytest.raises(UsageError, match="guard the same"):
        asyncio.run(open_guard([head, head], Policy()))
    with pytest.raises(UsageError, match="nothing to guard with"):
        asyncio.run(open_guard([], Policy()))
    with pytest.raises(UsageError, match="prompt: frame"):
        asyncio.run(open_guard(["http://127.0.0.1:9/v1"], Policy.parse(own, where="test")))


def test_features_hang_on_the_turn_and_what_was_said_before_alone(folder: str) -> None:
    model, tokenizer = load_model(folder)
    encoder = Encoder(model, tokenizer, [1, 3])
    one, two = [Message("user", "Mix flour")], [Message("user", "How do I bake bread? " * 9)]
    together, owners = encoder.encode([one, two])
    alone, _ = encoder.encode([one])
    assert owners == [0, 1]
    torch.testing.assert_close(together[:1], alone)  # padding is not seen
    with_system, _ = encoder.encode([[Message("system", "Be kind."), *one]])
    torch.testing.assert_close(with_system, alone)
    after, _ = encoder.encode([[*two, Message("assistant", "Mix flour")]])
    assert not torch.allclose(after, alone)
    with pytest.raises(UsageError, match="1 to 3"):
        Encoder(load_model(folder)[0], tokenizer, [4])


def test_a_long_turn_is_read_in_windows_and_all_of_its_tokens_are_seen(folder: str) -> None:
    _, tokenizer = load_model(folder)
    text = " ".join(f"bread{n}" for n in range(700))
    before = Message("assistant", "flour " * 900)
    windows = windows_of(tokenizer, [before, Message("user", text)], most=99)
    content = [i for window in windows for i in window.ids[window.start : -1]]
    assert content == tokenizer.encode(text)
    assert all(len(window.ids) <= CONTEXT + WINDOW + 1 for window in windows)
    small = windows_of(tokenizer, [before, Message("user", text)], most=999, room=40)
    assert max(len(window.ids) for window in small) == 40
    assert [i for window in small for i in window.ids[window.start : -1]] == content
    few = windows_of(tokenizer, [before, Message("user", text)], most=2)
    assert [few[0].ids, few[1].ids] == [windows[0].ids, windows[-1].ids]


def test_a_logistic_fit_is_where_its_gradient_is_zero() -> None:
    """Against the closed form of its optimum: the penalised weighted mean loss has no slope."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(200, 5, generator=generator)
    targets = (rows[:, 0] + 0.3 * torch.randn(200, generator=generator) > 0).float()
    weights = torch.rand(200, generator=generator)
    fitted = fit_logistic(rows, targets, weights, 0.05)
    x = (rows - fitted.mean_d) / fitted.scale_d
    error = (torch.sigmoid(fitted(rows)[:, 0]) - targets) * weights / weights.sum()
    slope = x.T @ error + 2 * 0.05 * fitted.weight_od[0]
    assert slope.abs().max() < 1e-4
    assert error.sum().abs() < 1e-4


def test_figures_of_scores_are_the_closed_forms() -> None:
    assert auc([0.9, 0.8], [0.1, 0.2]) == 1
    assert auc([0.5], [0.5]) == 0.5
    assert auc([0.1, 0.9, 0.5], [0.5, 0.2]) == pytest.approx(3.5 / 6)
    safe = [n / 200 for n in range(200)]
    for share in (0.0, 0.01, 0.05, 1.0):
        assert share_from(safe, threshold_at(safe, share)) == pytest.approx(share, abs=1e-9)
    assert recall_at([0.99, 0.999, 0.5], safe, 0.01) == pytest.approx(2 / 3)
    assert share_from([0.5] * 5, threshold_at([0.5] * 5, 0.1)) == 0  # ties are not let through


def test_own_pairs_say_the_same_words_on_both_sides() -> None:
    meanings = contrast.meaning_pairs()
    harms, injections = contrast.harmful_pairs(), contrast.injection_pairs()
    for pairs in (harms, meanings, injections):
        texts = [pair.text for pair in pairs]
        assert len(set(texts)) == len(texts)
        assert {pair.unsafe for pair in pairs} == {True, False}
        assert all((pair.code != "") == pair.unsafe and pair.topic for pair in pairs)
    unsafe = " ".join(pair.text for pair in injections if pair.unsafe).lower()
    safe = " ".join(pair.text for pair in injections if not pair.unsafe).lower()
    for word in ("ignore", "forget", "instructions", "pretend", "rules"):
        assert word in unsafe
        assert word in safe
    for verb in ("kill", "build", "get rid of"):
        kinds = {pair.unsafe for pair in meanings if pair.topic == verb and verb in pair.text}
        assert kinds == {True, False}
    documents = contrast.planted_documents(["One. Two. Three."] * 8)
    assert [pair.unsafe for pair in documents] == [True, False] * 4
    assert documents == contrast.planted_documents(["One. Two. Three."] * 8)


def made_rows(
    name: str, topics: int = 0, n: int = 120, kinds: tuple[int, ...] = (0, 1), shows: int = 0
) -> Rows:
    """Features of one author: harm shows in one number, the author in the others from 2 on."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    unsafe = [bool(kinds[i % len(kinds)]) for i in range(n)]
    features = torch.randn(n, 8, generator=generator)
    features[:, shows] += 5 * torch.tensor(unsafe)
    features[:, 2:] += torch.randn(6, generator=generator)
    items = [
        Labelled(
            (Message("user", f"{name} {i}"),), bad, name, (), f"t{i % topics}" if topics else ""
        )
        for i, bad in enumerate(unsafe)
    ]
    return Rows(features, items)


def test_every_turn_is_left_out_once_with_its_family_or_its_topic() -> None:
    rows = {"dan": made_rows("dan"), "in-the-wild": made_rows("in-the-wild"),
            "mine": made_rows("mine"), "own": made_rows("own", 7)}  # fmt: skip
    folds = training.folds_of(rows)
    for name, part in rows.items():
        assert (sum(fold[name].int() for fold in folds) == 1).all()
        assert sum(bool(fold[name].any()) for fold in folds) == 1 or name == "own"
        kept = [training.chosen(rows, fold).get(name) for fold in folds]
        assert sum(len(k.labelled) for k in kept if k is not None) == len(part.labelled)
    for fold in folds:
        assert torch.equal(fold["dan"], fold["in-the-wild"])  # they share texts
        own = zip(fold["own"].tolist(), rows["own"].labelled, strict=True)
        left = {keep: {item.topic for k, item in own if k == keep} for keep in (True, False)}
        assert not left[True] & left[False]
    assert sum(bool(fold["own"].any()) for fold in folds) > 1


def test_the_threshold_keeps_its_promise_on_an_author_it_has_not_seen() -> None:
    """Neither sources of one kind nor one that alone shows its kind of harm flatten it."""
    rows = {
        "asked": made_rows("asked", kinds=(1,)), "everyday": made_rows("everyday", kinds=(0,)),
        "both": made_rows("both"), "own": made_rows("own", 9, n=300, shows=1),
    }  # fmt: skip
    about = {"task": "injection", "model": "x", "digest": "x", "layers": (1,)}
    head, reports = training.train_head(rows, [], about)
    fresh = made_rows("fresh", n=4000)
    scores = head.probabilities(fresh.features_nd)
    unsafe = fresh.unsafe_n == 1
    # At two standard errors of 2,000 turns above 1%, and the authors' own offsets.
    assert (scores[~unsafe] >= head.facts.threshold).float().mean() < 0.04
    assert (scores[unsafe] >= head.facts.threshold).float().mean() > 0.7
    assert scores[unsafe].median() > 0.9 > 0.1 > scores[~unsafe].median()
    assert abs(float(scores.mean()) - 0.5) < 0.1  # half of them are harmful
    assert min(report.auc for report in reports.values()) > 0.9


def test_rows_of_ones_own_are_read_and_wrong_ones_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(
        '{"text": "a", "label": "unsafe", "hazards": ["S1"]}\n'
        '{"messages": [{"role": "user", "content": "b"}], "label": "safe"}\n'
    )
    rows = training.read_labelled(path)
    assert [(r.text, r.unsafe, r.hazards) for r in rows] == [("a", True, ("S1",)), ("b", False, ())]
    for wrong in ('{"text": "a"}', '{"text": "a", "label": "bad"}',
                  '{"text": "a", "label": "safe", "hazards": ["X"]}'):  # fmt: skip
        path.write_text(wrong + "\n")
        with pytest.raises(UsageError, match="line 1"):
            training.read_labelled(path)
