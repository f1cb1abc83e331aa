"""What safety tuning moves: harmful compliance, false refusal, helpfulness, on held-out sources.

    python benchmarks/safety_tuning.py smollm2 runs/smollm2-safety/refusal/model \\
        --xstest ../shared/data/xstest --answers answers.jsonl

Sources that nothing was learned from: XSTest's 200 unsafe and 250 safe prompts (Röttger et al.
2023), the project's held-out requests, and the capitals of countries as a task with known answers.
Refusals are told by their wording (`puna.safety.refusals`), so compliance is an upper bound:
``--answers`` keeps every answer, to be read; a stopped run goes on from there. ``words`` is the
mean length of answers to benign requests that were not declined, of at most 32 tokens.
"""

import argparse
import asyncio
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from puna.data.geography import read_countries
from puna.evaluation.intervals import wilson_interval
from puna.inference import Sampling
from puna.safety.models import ChatModel, open_model
from puna.safety.refusals import is_refusal
from puna.safety.requests import borderline, everyday, harmful, harmless
from puna.tokenizer import Message

_SAMPLING = Sampling(max_new_tokens=32)  # a refusal shows at the beginning
T = TypeVar("T")
_AT_ONCE = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--xstest", type=Path, help="folder with xstest_prompts.csv")
    parser.add_argument("--limit", type=int, default=1000, help="of each source, spread evenly")
    parser.add_argument("--answers", type=Path, help="JSON lines, each asked once")
    arguments = parser.parse_args()
    for model in arguments.models:
        print(json.dumps({"model": model, **asyncio.run(judge(model, arguments))}), flush=True)
        print(model, "done", file=sys.stderr)


async def judge(name: str, arguments: argparse.Namespace) -> dict[str, object]:
    """All shares of one model."""
    bad = {"held-out requests": [request.text for request in harmful("held out")]}
    benign = (*borderline("held out"), *harmless("held out"), *everyday("held out"))
    fine = {"held-out requests": [request.text for request in benign]}
    if arguments.xstest:
        with (arguments.xstest / "xstest_prompts.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        bad["XSTest"] = [row["prompt"] for row in rows if row["label"] == "unsafe"]
        fine["XSTest"] = [row["prompt"] for row in rows if row["label"] == "safe"]
    countries = spread(
        [country for country in read_countries() if country.capital], arguments.limit
    )
    asked = {("harmful", source): texts for source, texts in bad.items()}
    asked |= {("benign", source): texts for source, texts in fine.items()}
    asked["capitals", ""] = [f"What is the capital of {country.name}?" for country in countries]
    asked = {key: spread(texts, arguments.limit) for key, texts in asked.items()}
    model = await open_model(name)
    kept = known(arguments.answers, model.digest)
    try:
        for key, texts in asked.items():
            for start in range(0, len(texts), _AT_ONCE):
                new = [text for text in texts[start : start + _AT_ONCE] if text not in kept]
                kept |= dict(zip(new, await answers(model, new), strict=True))
                keep(arguments.answers, model.digest, key, {text: kept[text] for text in new})
    finally:
        await model.close()
    said = {key: [kept[text] for text in texts] for key, texts in asked.items()}
    helped = [text for source in fine for text in said["benign", source] if not is_refusal(text)]
    told = [
        country.capital.lower() in text.lower()
        for country, text in zip(countries, said["capitals", ""], strict=True)
    ]
    return {
        "harmful_compliance": {
            source: shown([not is_refusal(text) for text in said["harmful", source]])
            for source in bad
        },
        "false_refusal": {
            source: shown([is_refusal(text) for text in said["benign", source]]) for source in fine
        },
        "helpfulness": {
            "capitals": shown(told),
            "words": sum(len(text.split()) for text in helped) / max(1, len(helped)),
        },
    }


def spread(entries: Sequence[T], limit: int) -> list[T]:
    """At most ``limit`` of them, from the whole list."""
    n = min(limit, len(entries))
    return [entries[place * len(entries) // n] for place in range(n)]


def known(place: Path | None, model: str) -> dict[str, str]:
    """Questions and answers of the model that a file has."""
    if place is None or not place.exists():
        return {}
    rows = map(json.loads, place.read_text(encoding="utf-8").splitlines())
    return {row["question"]: row["answer"] for row in rows if row["model"] == model}


def keep(place: Path | None, model: str, key: tuple[str, str], said: dict[str, str]) -> None:
    """Add what was asked and said to a file."""
    if place is not None:
        with place.open("a", encoding="utf-8") as file:
            for question, answer in said.items():
                row = {"model": model, "kind": key[0], "source": key[1]}
                row |= {"question": question, "answer": answer}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


async def answers(model: ChatModel, asked: Sequence[str]) -> list[str]:
    """Answers to questions, all at once."""

    async def answer(question: str) -> str:
        return (await model.reply([Message("user", question)], _SAMPLING)).text

    return list(await asyncio.gather(*map(answer, asked)))


def shown(happened: Sequence[bool]) -> dict[str, float]:
    """A share with its 95% interval."""
    low, high = wilson_interval(sum(happened), len(happened))
    return {"share": sum(happened) / len(happened), "low": low, "high": high, "n": len(happened)}


if __name__ == "__main__":
    main()
