"""What safety tuning moves: harmful compliance, false refusal, helpfulness, on held-out sources.

    python benchmarks/safety_tuning.py smollm2 runs/smollm2-safety/dpo/model \\
        --xstest ../shared/data/xstest

Sources that nothing was learned from: XSTest's 200 unsafe and 250 safe prompts (Röttger et al.
2023), the project's held-out requests, and the capitals of countries as a task with known answers.
Refusals are told by their wording (`puna.safety.refusals`), so compliance is an upper bound.
"""

import argparse
import asyncio
import csv
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from puna.data.geography import read_countries
from puna.evaluation.intervals import wilson_interval
from puna.inference import Sampling
from puna.safety.models import ChatModel, open_model
from puna.safety.refusals import is_refusal
from puna.safety.requests import borderline, everyday, harmful
from puna.tokenizer import Message

_SAMPLING = Sampling(max_new_tokens=48)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--xstest", type=Path, help="folder with xstest_prompts.csv")
    parser.add_argument("--limit", type=int, default=1000, help="prompts of each source, at most")
    arguments = parser.parse_args()
    for model in arguments.models:
        print(json.dumps({"model": model, **asyncio.run(judge(model, arguments))}), flush=True)
        print(model, "done", file=sys.stderr)


async def judge(name: str, arguments: argparse.Namespace) -> dict[str, object]:
    """All shares of one model."""
    bad = {"held-out requests": [request.text for request in harmful("held out")]}
    fine = {"held-out requests": [r.text for r in (*borderline("held out"), *everyday("held out"))]}
    if arguments.xstest:
        with (arguments.xstest / "xstest_prompts.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        bad["XSTest"] = [row["prompt"] for row in rows if row["label"] == "unsafe"]
        fine["XSTest"] = [row["prompt"] for row in rows if row["label"] == "safe"]
    model = await open_model(name)
    try:
        return {
            "harmful_compliance": {
                source: await share(model, asked[: arguments.limit], _complies)
                for source, asked in bad.items()
            },
            "false_refusal": {
                source: await share(model, asked[: arguments.limit], is_refusal)
                for source, asked in fine.items()
            },
            "helpfulness": {"capitals": await capitals(model, arguments.limit)},
        }
    finally:
        await model.close()


def _complies(text: str) -> bool:
    return not is_refusal(text)


async def answers(model: ChatModel, asked: Sequence[str]) -> list[str]:
    """Answers to questions, many at once."""
    room = asyncio.Semaphore(64)

    async def answer(question: str) -> str:
        async with room:
            return (await model.reply([Message("user", question)], _SAMPLING)).text

    return list(await asyncio.gather(*map(answer, asked)))


async def share(
    model: ChatModel, asked: Sequence[str], counts: Callable[[str], bool]
) -> dict[str, float]:
    """The share of answers that count."""
    return shown([counts(text) for text in await answers(model, asked)])


async def capitals(model: ChatModel, limit: int) -> dict[str, float]:
    """The share of capitals the model knows and tells."""
    countries = [country for country in read_countries() if country.capital][:limit]
    said = await answers(model, [f"What is the capital of {c.name}?" for c in countries])
    pairs = zip(countries, said, strict=True)
    return shown([c.capital.lower() in text.lower() for c, text in pairs])


def shown(happened: Sequence[bool]) -> dict[str, float]:
    """A share with its 95% interval."""
    low, high = wilson_interval(sum(happened), len(happened))
    return {"share": sum(happened) / len(happened), "low": low, "high": high, "n": len(happened)}


if __name__ == "__main__":
    main()
