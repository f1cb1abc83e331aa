import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.errors import UsageError
from puna.data.order import Share, rows_of_step

SEEDS = st.integers(0, 2**63 - 1)
SIZES = st.integers(1, 50)


def walk(seed: int, steps: int, batch_rows: int, n_rows: int) -> np.ndarray:
    return np.concatenate([rows_of_step(seed, s, batch_rows, n_rows) for s in range(steps)])


@given(SEEDS, SIZES, SIZES)
def test_every_epoch_is_a_permutation_even_where_batches_straddle_epochs(
    seed: int, batch_rows: int, n_rows: int
) -> None:
    steps = -(-3 * n_rows // batch_rows)
    epochs = walk(seed, steps, batch_rows, n_rows)[: 3 * n_rows].reshape(3, n_rows)
    assert (np.sort(epochs, axis=1) == np.arange(n_rows)).all()


@given(SEEDS, st.integers(0, 10**6), SIZES, SIZES)
def test_a_step_is_the_same_whatever_was_asked_before(
    seed: int, step: int, batch_rows: int, n_rows: int
) -> None:
    first = rows_of_step(seed, step, batch_rows, n_rows)
    rows_of_step(seed + 1, step, batch_rows, n_rows)
    walk(seed, 3, batch_rows, n_rows)
    assert (rows_of_step(seed, step, batch_rows, n_rows) == first).all()


@given(SEEDS, st.integers(1, 4), SIZES)
def test_larger_batches_walk_the_same_rows(seed: int, rows_per_slot: int, n_rows: int) -> None:
    larger_batches = walk(seed, 4, 12 * rows_per_slot, n_rows)
    smaller_batches = walk(seed, 8, 6 * rows_per_slot, n_rows)
    assert (larger_batches == smaller_batches).all()


@given(SIZES, st.integers(0, 50), st.integers(1, 9))
def test_shares_are_the_batch_in_order_however_many_they_are(
    batch_rows: int, micro_rows: int, processes: int
) -> None:
    batch_rows += processes
    shares = [Share(n, processes).micro_batches(batch_rows, micro_rows) for n in range(processes)]
    places = [[place for part in parts for place in part] for parts in shares]
    assert [place for share in places for place in share] == list(range(batch_rows))
    assert max(map(len, places)) - min(map(len, places)) <= 1
    assert all(0 < len(part) <= (micro_rows or batch_rows) for parts in shares for part in parts)


def test_more_processes_than_rows_are_told_what_to_change() -> None:
    with pytest.raises(UsageError, match="batch_rows 3 is fewer than the 4 processes: raise it"):
        Share(0, 4).micro_batches(3, 0)


def test_epochs_and_seeds_differ() -> None:
    epochs = walk(0, 2, 100, 100).reshape(2, 100)
    assert (epochs[0] != epochs[1]).any()
    assert (rows_of_step(1, 0, 100, 100) != epochs[0]).any()


def test_the_order_is_the_same_on_every_machine() -> None:
    assert rows_of_step(2026, 1, 8, 20).tolist() == [3, 18, 9, 17, 0, 11, 15, 14]


def test_no_rows_is_a_clear_error() -> None:
    with pytest.raises(UsageError, match="at least one document"):
        rows_of_step(0, 0, 4, 0)
