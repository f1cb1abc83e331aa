import random
import time

import pytest

from puna.data.contamination import ItemIndex, drop_contaminated
from puna.data.document import Document

ITEM = "Which mountain range runs along the western edge of South America? The Andes."


def document(text: str, key: str = "d") -> Document:
    return Document(text, "test", key)


def test_a_planted_item_is_found_whatever_its_punctuation_and_case() -> None:
    index = ItemIndex([ITEM], overlap=0.5)
    planted = document(f"Quiz night. {ITEM.upper().replace('?', ' -')} Next question.")
    innocent = document("The Andes run along the western edge of a continent.")
    kept, findings = drop_contaminated([planted, innocent], index)
    assert kept == [innocent]
    assert [finding.document for finding in findings] == [planted]
    assert findings[0].overlap > 0.5


def test_a_short_item_counts_only_when_it_is_there_whole() -> None:
    index = ItemIndex(["What is 12 + 30?"], overlap=0.5)
    assert index.find(document("Question: what is 12 + 30"))
    assert not index.find(document("Question: what is 12 - 30"))
    assert not index.find(document("Question: what is 12"))


def test_items_too_short_to_look_for_are_counted_not_searched() -> None:
    index = ItemIndex(["Paris", "the Andes", ITEM], overlap=0.5)
    assert (index.n_items, index.n_too_short) == (3, 2)
    assert index.find(document("Paris is far from the Andes.")) is None


@pytest.mark.parametrize(("shared", "found"), [(7, False), (9, False), (10, True), (20, True)])
def test_an_item_is_present_when_shared_8grams_cover_half_of_it(shared: int, found: bool) -> None:
    item = [f"w{number}" for number in range(20)]
    text = " ".join(["before", *item[3 : 3 + shared], "after"])
    index = ItemIndex([" ".join(item)], overlap=0.5)
    assert (index.find(document(text)) is not None) == found


def test_the_item_covered_most_is_the_one_reported() -> None:
    items = [" ".join(f"{name}{i}" for i in range(12)) for name in "ab"]
    text = " ".join([*items[0].split()[:9], *items[1].split()])
    finding = ItemIndex(items, overlap=0.5).find(document(text))
    assert finding is not None
    assert (finding.item, finding.overlap) == (1, 1.0)


def test_texts_of_the_items_own_template_are_dropped_only_for_the_item_itself() -> None:
    item = "Tom has 3 apples and buys 4 more apples. How many apples does Tom have now?"
    same_template = document(item.replace("3", "5"))
    index = ItemIndex([item], overlap=0.5)
    assert index.find(same_template)
    assert index.find(same_template, whole=True) is None
    assert index.find(document(f"Question: {item} 7"), whole=True)


def test_ten_megabytes_are_searched_in_seconds() -> None:
    generator = random.Random(0)
    vocabulary = ["".join(generator.choices("abcdefghij", k=5)) for _ in range(5000)]
    texts = [" ".join(generator.choices(vocabulary, k=1000)) for _ in range(1700)]
    assert sum(map(len, texts)) > 10_000_000
    items = [
        " ".join(generator.choices(vocabulary, k=generator.randint(4, 40))) for _ in range(2000)
    ]
    start = time.process_time()
    drop_contaminated((document(text) for text in texts), ItemIndex(items, overlap=0.5))
    assert time.process_time() - start < 5
