"""Layouts: what they divide, and which number their errors ask to change."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.errors import UsageError
from puna.model import LlamaConfig, llama_config
from puna.parallel import Layout


def layout(**sizes: Any) -> Layout:
    return Layout.parse(sizes, where="layout")


def small(**changes: Any) -> LlamaConfig:
    shape = {"dim": 64, "n_layers": 6, "n_heads": 8, "n_kv_heads": 4, "ffn_dim": 96}
    return LlamaConfig.parse(shape | {"vocab_size": 128} | changes, where="test")


def test_all_ones_is_one_process() -> None:
    ones = Layout().of(1)
    assert (ones.n_processes, ones.dp, ones.stages, ones.n_microbatches) == (1, 1, 1, 1)
    ones.check_model(small())
    ones.check_batches(17, 3, 0)


def test_replicas_follow_the_number_of_processes() -> None:
    assert layout(dp_shard=2, tp=2).of(12).dp_replicate == 3
    assert layout(dp_replicate=3, dp_shard=2, tp=2).of(12).dp == 6


@pytest.mark.parametrize(
    ("sizes", "processes", "said"),
    [
        ({"tp": 4}, 6, "6 processes are no multiple of dp_shard * tp * cp * pp = 4: start 8"),
        ({"tp": 4, "dp_replicate": 2}, 4, "= 8, but the run has 4 processes: start 8, or set"),
    ],
)
def test_a_wrong_number_of_processes_is_named(
    sizes: dict[str, Any], processes: int, said: str
) -> None:
    with pytest.raises(UsageError) as error:
        layout(**sizes).of(processes)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("sizes", "model", "said"),
    [
        ({"tp": 3}, {}, "layout.tp 3 does not divide the model's n_heads 8: set tp to 2"),
        ({"tp": 8}, {}, "layout.tp 8 does not divide the model's n_kv_heads 4: set tp to 4"),
        ({"tp": 4}, {"vocab_size": 66}, "the model's vocab_size 66: set tp to a divisor of it"),
        ({"pp": 8}, {}, "layout.pp 8 makes 8 stages under schedule 1f1b, the model has 6 layers"),
        ({"pp": 4, "schedule": "zbv"}, {}, "layout.pp 4 makes 8 stages under schedule zbv"),
    ],
)
def test_a_model_that_does_not_divide_is_named(
    sizes: dict[str, Any], model: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError) as error:
        layout(**sizes).check_model(small(**model))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("sizes", "rows", "said"),
    [
        ({"cp": 4}, (36, 8, 0), "cuts a row into 8 pieces, row_length 36 is no multiple: set row_"),
        ({"cp": 2, "tp": 4}, (36, 8, 0), "does not divide the 18 positions of a process: set row"),
        ({"dp_shard": 4}, (32, 6, 0), "dp_replicate * dp_shard = 4: set it to 8"),
        ({"dp_shard": 2}, (32, 8, 3), "micro_rows 3 does not divide a process's 4 rows"),
        (
            {"pp": 2},
            (32, 6, 0),
            "no multiple of the pipeline's 4 microbatches: set batch_rows to 8",
        ),
        ({"pp": 2}, (32, 6, 2), "microbatches: set micro_rows to 4, or change layout.microbatches"),
    ],
)
def test_batches_that_do_not_divide_are_named(
    sizes: dict[str, Any], rows: tuple[int, int, int], said: str
) -> None:
    with pytest.raises(UsageError) as error:
        layout(**sizes, dp_replicate=1).check_batches(*rows)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"schedule": "zbv"}, "microbatches and schedule are of a pipeline: set pp"),
        ({"pp": 4, "microbatches": 3}, "raise it to at least 4"),
        ({"pp": 4, "schedule": "interleaved", "microbatches": 9}, "set it to 8"),
        ({"pp": 2, "tensor": 2}, "unknown key 'tensor'"),
    ],
)
def test_settings_that_contradict_each_other_are_named(sizes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as error:
        layout(**sizes)
    assert said in str(error.value)


def test_llama_405b_has_one_layer_fewer_at_both_ends() -> None:
    big = layout(pp=16, tp=8, dp_shard=128)
    assert big.layers_of_stages(llama_config("llama3.1-405b").n_layers) == [7, *[8] * 14, 7]
    assert big.of(16_384).n_processes == 16_384


@given(st.integers(1, 16), st.integers(0, 100))
def test_stages_hold_all_layers_about_evenly(pp: int, more: int) -> None:
    split = layout(pp=pp)
    layers = split.layers_of_stages(pp + more)
    assert sum(layers) == pp + more
    assert min(layers) >= 1
    assert max(layers) - min(layers) <= 2
    if more % pp == 0:
        assert len(set(layers)) == 1


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zbv", "dualpipev"])
def test_every_stage_has_one_process(schedule: str) -> None:
    split = layout(pp=4, schedule=schedule)
    held = [stage for place in range(4) for stage in split.stages_of(place)]
    assert sorted(held) == list(range(split.stages))
    if schedule in ("zbv", "dualpipev"):
        assert split.stages_of(0) == [0, 7]  # embedding and head together
