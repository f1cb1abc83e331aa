import random

from hypothesis import given
from hypothesis import strategies as st

from puna.data.dedup import drop_exact, drop_near, jaccard, shingles
from puna.data.document import Document

VOCABULARY = [f"w{number}" for number in range(2000)]


def text(generator: random.Random, length: int = 200) -> list[str]:
    return generator.choices(VOCABULARY, k=length)


def document(tokens: list[str], key: str) -> Document:
    return Document(" ".join(tokens), "test", key)


def test_exactly_the_planted_duplicates_are_removed_and_the_first_is_kept() -> None:
    generator = random.Random(1)
    originals = [text(generator) for _ in range(300)]
    documents = [document(tokens, f"original {i}") for i, tokens in enumerate(originals)]
    for i in range(0, 300, 10):
        changed = list(originals[i])
        changed[generator.randrange(200)] = "planted"  # 5 of 196 shingles: similarity 0.95
        documents.append(document(changed, f"near {i}"))
        shifted = [
            *originals[i][60:],
            *text(generator, 60),
        ]  # similarity about 0.5: not a duplicate
        documents.append(document(shifted, f"shifted {i}"))
    kept, dropped = drop_near(documents, similarity=0.8, seed=0)
    assert {d.key for d in dropped} == {f"near {i}" for i in range(0, 300, 10)}
    assert kept == [d for d in documents if not d.key.startswith("near")]


def test_the_threshold_is_the_exact_jaccard_similarity() -> None:
    generator = random.Random(2)
    base = text(generator)
    for changes in range(1, 12):
        changed = list(base)
        for place in range(changes):
            changed[10 + place * 15] = f"new{place}"
        similarity = jaccard(shingles(" ".join(base)), shingles(" ".join(changed)))
        pair = [document(base, "a"), document(changed, "b")]
        assert len(drop_near(pair, similarity, seed=3)[1]) == 1
        assert len(drop_near(pair, similarity + 1e-6, seed=3)[1]) == 0


def test_near_duplicates_do_not_depend_on_the_seed() -> None:
    generator = random.Random(4)
    documents = [document(text(generator), str(i)) for i in range(50)]
    documents += [document([*d.text.split()[:-2], "x", "y"], f"copy {d.key}") for d in documents]
    results = [drop_near(documents, 0.8, seed)[0] for seed in (0, 1, 2**63 - 1)]
    assert results[0] == results[1] == results[2] == documents[:50]


def test_case_and_spacing_hide_no_exact_duplicate_but_signs_matter() -> None:
    texts = ["3 + 4 = 7", "3 - 4 = 7", "Hello  World", "hello\nworld", "Hello, World"]
    documents = [Document(text, "test", str(i)) for i, text in enumerate(texts)]
    kept, dropped = drop_exact(documents)
    assert [d.key for d in dropped] == ["3"]
    assert [d.key for d in kept] == ["0", "1", "2", "4"]


@given(st.lists(st.text(max_size=30), max_size=12))
def test_what_is_kept_holds_no_duplicate_and_loses_none(texts: list[str]) -> None:
    documents = [Document(text, "test", str(i)) for i, text in enumerate(texts)]
    kept, _ = drop_near(drop_exact(documents)[0], 1.0, seed=0)
    assert len({frozenset(shingles(d.text)) for d in kept}) == len(kept)
    assert {frozenset(shingles(d.text)) for d in kept} == {
        frozenset(shingles(text)) for text in texts
    }
