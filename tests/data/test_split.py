from hypothesis import given
from hypothesis import strategies as st

from puna.data.document import Document
from puna.data.split import is_validation, split

SEEDS = st.integers(0, 2**63 - 1)
KEYS = st.lists(st.text(min_size=1), unique=True, max_size=30)


def documents(keys: list[str]) -> list[Document]:
    return [Document(f"text of {key}", "test", key) for key in keys]


@given(SEEDS, KEYS, KEYS)
def test_adding_documents_moves_none_to_the_other_side(
    seed: int, keys: list[str], more: list[str]
) -> None:
    before = split(seed, documents(keys), 0.3)
    after = split(seed, documents(list(dict.fromkeys([*more, *keys]))), 0.3)
    assert set(before[0]) <= set(after[0])
    assert set(before[1]) <= set(after[1])


@given(SEEDS, KEYS, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_fraction_holds_out_all_that_a_smaller_one_does(
    seed: int, keys: list[str], one: float, other: float
) -> None:
    low, high = sorted((one, other))
    assert set(split(seed, documents(keys), low)[1]) <= set(split(seed, documents(keys), high)[1])


@given(SEEDS, st.text(alphabet="abc.", min_size=1))
def test_parts_of_one_whole_stand_on_one_side(seed: int, key: str) -> None:
    sides = {is_validation(seed, d, 0.5) for d in documents([key, f"{key}#code", f"{key}#docs"])}
    assert len(sides) == 1


def test_the_fraction_is_met_and_the_seed_and_the_source_matter() -> None:
    many = documents([str(i) for i in range(20_000)])
    held_out = split(0, many, 0.1)[1]
    # Five standard deviations of a binomial of 20,000 at 0.1 are 212.
    assert abs(len(held_out) - 2_000) < 212
    assert set(held_out) != set(split(1, many, 0.1)[1])
    elsewhere = [Document(d.text, "other", d.key) for d in many]
    assert [d.key for d in split(0, elsewhere, 0.1)[1]] != [d.key for d in held_out]


def test_the_split_is_the_same_on_every_machine() -> None:
    held_out = split(2026, documents([str(i) for i in range(40)]), 0.1)[1]
    assert [d.key for d in held_out] == ["12", "13", "19"]
