"""The page pool: nothing handed out twice, nothing lost, nothing shared that differs."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from puna.inference.pages import SCRATCH, PagePool, Prefix

SIZE = 2
PAGES = 9


class Sequence:
    """A text that holds pages, and what it has written where."""

    def __init__(self, tokens: list[int], prefix: Prefix) -> None:
        self.tokens = tokens
        self.prefix = prefix


class Pool(RuleBasedStateMachine):
    """Random texts come, grow and go; memory is a dictionary from page to what stands in it."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(PAGES + 1, SIZE)
        self.sequences: list[Sequence] = []
        self.memory: dict[int, tuple[int, ...]] = {}

    def holders(self) -> Counter[int]:
        return Counter(page for each in self.sequences for page in each.prefix.pages)

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=7))
    def come(self, tokens: list[int]) -> None:
        prefix = self.pool.match(tokens, root=None)
        for place, page in enumerate(prefix.pages):
            history = tuple(tokens[: (place + 1) * SIZE])
            assert self.memory[page] == history  # a shared page holds exactly this beginning
        self.write(Sequence(tokens, prefix))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), token=st.integers(0, 1))
    def grow(self, data: st.DataObject, token: int) -> None:
        sequence = data.draw(st.sampled_from(self.sequences))
        self.sequences.remove(sequence)
        sequence.tokens = [*sequence.tokens, token]
        self.write(sequence)

    def write(self, sequence: Sequence) -> None:
        """Compute what is new, as the engine does; a text that finds no room goes."""
        prefix, tokens = sequence.prefix, sequence.tokens
        missing = -(-len(tokens) // SIZE) - len(prefix.pages)
        before = self.pool.n_available
        new = self.pool.allocate(missing)
        if new is None:
            assert missing > before == self.pool.n_available
            self.pool.release(prefix)
            return
        held = self.holders()
        assert SCRATCH not in new
        assert len(set(new)) == len(new) == missing
        assert not set(new) & (set(held) | set(prefix.pages))  # handed out to nobody else
        prefix.pages.extend(new)
        for place in range(prefix.published, len(prefix.pages)):
            page = prefix.pages[place]
            assert held[page] == 0  # nobody writes where another reads
            self.memory[page] = tuple(tokens[: (place + 1) * SIZE])
        self.pool.publish(prefix, tokens, len(tokens))
        self.sequences.append(sequence)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.sequences))
        self.sequences.remove(sequence)
        self.pool.release(sequence.prefix)

    @precondition(lambda self: not self.sequences)
    @rule()
    def forget(self) -> None:
        self.pool.forget()
        assert self.pool.n_cached == 0
        assert self.pool.match([0, 1] * 4, root=None).pages == []

    @invariant()
    def figures_are_exact(self) -> None:
        held = self.holders()
        assert self.pool.n_used == len(held)
        assert self.pool.n_available == PAGES - len(held)
        assert self.pool.n_cached <= self.pool.n_available

    @invariant()
    def what_a_text_holds_is_its_own_text(self) -> None:
        for sequence in self.sequences:
            for page in sequence.prefix.pages:
                known = self.memory[page]
                assert known == tuple(sequence.tokens[: len(known)])


Pool.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPagePool = Pool.TestCase


def test_the_prefix_unused_for_longest_makes_room_and_its_end_goes_first() -> None:
    pool = PagePool(5, SIZE)
    texts = [[1, 1, 2, 2], [3, 3, 4, 4]]
    for tokens in texts:
        pages = pool.allocate(2)
        assert pages is not None
        prefix = Prefix(pages)
        pool.publish(prefix, tokens, 4)
        pool.release(prefix)
    pool.release(pool.match(texts[0], root=None))  # used again: the second is older now
    assert pool.allocate(1) is not None
    assert len(pool.match(texts[0], root=None).pages) == 2
    assert len(pool.match(texts[1], root=None).pages) == 1


def test_texts_of_different_adapters_share_nothing() -> None:
    pool = PagePool(5, SIZE)
    pages = pool.allocate(1)
    assert pages is not None
    pool.publish(Prefix(pages, node="poet"), [1, 2], 2)
    assert pool.match([1, 2], root=None).pages == []
    assert pool.match([1, 2], root="poet").pages == pages
