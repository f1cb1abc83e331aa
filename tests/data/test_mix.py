import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puna.core.errors import UsageError
from puna.core.random import stream
from puna.data import (
    Group,
    MixedRows,
    MixSource,
    PackedRows,
    TokenFile,
    pack,
    read_conversations,
    write_tokens,
)
from puna.training import LoopConfig, RowSource


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenFile:
    """Two sets: 60 items whose ids are below 50, then 300 whose ids are not."""
    rng = stream("mix test")
    lengths = rng.integers(5, 60, 360)
    items = [
        (rng.integers(0 if n < 60 else 50, 50 if n < 60 else 100, length).tolist(), None)
        for n, length in enumerate(lengths)
    ]
    return write_tokens(tmp_path_factory.mktemp("mix") / "tokens", items, 100)


FEW, MANY = np.arange(60), np.arange(60, 360)


def share_of_few(tokens: TokenFile, items: np.ndarray) -> float:
    lengths = tokens.lengths[items]
    return float(lengths[items < 60].sum() / lengths.sum())


def test_without_weights_every_step_is_that_of_packed_rows(tokens: TokenFile) -> None:
    loop = LoopConfig(steps=9, batch_rows=50, micro_rows=25, learning_rate=1.0)
    plain = RowSource(PackedRows(tokens, 128), 5, loop)
    mixed = MixSource(MixedRows(tokens, [Group(FEW), Group(MANY)], 128, 5), 50, 25)
    for step in range(9):  # steps of 50 rows straddle passes of about 90
        for ours, theirs in zip(mixed(step), plain(step), strict=True):
            assert torch.equal(ours.ids, theirs.ids)
            assert torch.equal(ours.labels, theirs.labels)
            assert torch.equal(ours.documents, theirs.documents)
            assert torch.equal(ours.positions, theirs.positions)


@pytest.mark.parametrize(("few", "many"), [(1.0, 1.0), (3.0, 1.0), (1.0, 9.0)])
def test_every_pass_has_the_shares_asked_for(tokens: TokenFile, few: float, many: float) -> None:
    rows = MixedRows(tokens, [Group(FEW, few), Group(MANY, many)], 128, 5)
    for number in range(4):
        items = rows.items(number)
        # An item is whole: a pass is off by an item of at most 60 tokens in about 11,000.
        assert share_of_few(tokens, items) == pytest.approx(few / (few + many), abs=0.012)
        assert tokens.lengths[items].sum() == pytest.approx(len(tokens.tokens), abs=121)


def test_over_passes_every_item_is_seen_equally_often(tokens: TokenFile) -> None:
    rows = MixedRows(tokens, [Group(FEW, 0.3), Group(MANY, 0.7)], 128, 5)
    seen = np.bincount(np.concatenate([rows.items(n) for n in range(12)]), minlength=360)
    for group in (FEW, MANY):
        assert seen[group].max() - seen[group].min() <= 1


def test_a_step_is_a_function_of_the_seed_whatever_was_asked_before(tokens: TokenFile) -> None:
    def source(seed: int) -> MixSource:
        return MixSource(MixedRows(tokens, [Group(FEW, 2.0), Group(MANY, 1.0)], 128, seed), 30, 0)

    walked = source(1)
    ids = [walked(step)[0].ids for step in range(12)]
    assert torch.equal(source(1)(11)[0].ids, ids[11])
    assert torch.equal(walked(2)[0].ids, ids[2])
    assert not torch.equal(source(2)(11)[0].ids, ids[11])


def test_what_has_no_weight_comes_whole_beside_the_mix(tokens: TokenFile) -> None:
    rest = np.arange(300, 360)
    groups = [Group(FEW, 1.0), Group(np.arange(60, 300), 1.0), Group(rest)]
    items = MixedRows(tokens, groups, 128, 5).items(3)
    assert np.bincount(items, minlength=360)[rest].tolist() == [1] * 60


def test_nothing_to_train_on_is_an_error(tokens: TokenFile) -> None:
    with pytest.raises(UsageError, match="no item to train on"):
        MixedRows(tokens, [Group(np.array([], dtype=np.int64))], 128, 5)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.differing_executors])
@given(seed=st.integers(0, 10**6), mean=st.floats(3.5, 5.0), spread=st.floats(0.4, 1.0))
def test_chats_of_usual_lengths_leave_at_most_two_percent_of_padding(
    seed: int, mean: float, spread: float
) -> None:
    lengths = np.random.default_rng(seed).lognormal(mean, spread, 2000)
    assert pack(np.clip(lengths, 8, 512).astype(int), 512).padding <= 0.02


def test_real_dialogues_leave_at_most_two_percent_of_padding() -> None:
    lengths = [sum(map(len, talk.turns)) // 3 for talk in read_conversations()]
    assert len(lengths) > 900
    assert pack(np.clip(lengths, 1, 256), 256).padding <= 0.02
