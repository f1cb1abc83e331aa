"""``puna generate``: one prompt, and a file of them."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_calls import Puna, assert_one_line

from puna.inference import EngineConfig, Sampling, load_engine
from puna.inference.batch import Batch, Line
from puna.inference.task import Task


def write_lines(path: Path, *entries: object) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def read_lines(path: Path) -> dict[int, dict[str, Any]]:
    """Records by line; no line twice."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({r["line"] for r in records}) == len(records)
    return {r["line"]: r for r in records}


def prompts(n: int) -> list[dict[str, str]]:
    return [{"prompt": f"What is {k} and {k + 3}?"} for k in range(n)]


def test_json_is_one_object_and_nothing_else(puna: Puna, model_folder: Path) -> None:
    done = puna("generate", model_folder, "--prompt", "What", "--max-new-tokens", 5, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"text", "stopped", "prompt_tokens", "new_tokens"}
    assert found["new_tokens"] <= 5


def test_a_stream_a_file_and_standard_input_give_the_same_text(
    puna: Puna, model_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("It is\n")
    arguments = ("generate", model_folder, "--max-new-tokens", 8)
    whole = json.loads(puna(*arguments, "--prompt", "It is", "--json").stdout)["text"]
    assert puna(*arguments, "--prompt", "-", stdin="It is\n").stdout == whole + "\n"
    assert puna(*arguments, "--file", file).stdout == whole + "\n"


def test_several_answers_differ_and_the_first_is_that_of_one(
    puna: Puna, model_folder: Path
) -> None:
    arguments = ("generate", model_folder, "--prompt", "It", "--max-new-tokens", 8, "--json")
    sampled = (*arguments, "--temperature", 1, "--seed", 3)
    answers = json.loads(puna(*sampled, "--n", 3).stdout)["answers"]
    assert len({answer["text"] for answer in answers}) == 3
    assert answers[0]["text"] == json.loads(puna(*sampled).stdout)["text"]


def test_a_stop_text_ends_the_answer(puna: Puna, model_folder: Path) -> None:
    arguments = ("generate", model_folder, "--prompt", "It is", "--max-new-tokens", 8, "--json")
    whole = json.loads(puna(*arguments).stdout)["text"]
    cut = json.loads(puna(*arguments, "--stop", whole[3]).stdout)
    assert cut["text"] == whole[: whole.index(whole[3])]
    assert cut["stopped"]


def test_an_answer_follows_an_expression(puna: Puna, model_folder: Path) -> None:
    done = puna("generate", model_folder, "--prompt", "It", "--regex", "(yes|no)[0-9]{2}")
    assert re.fullmatch(r"(yes|no)[0-9]{2}\n", done.stdout)


def test_an_answer_follows_a_schema(puna: Puna, model_folder: Path, tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"done": {"type": "boolean"}},
        "required": ["done"],
        "additionalProperties": False,
    }
    file = write_lines(tmp_path / "schema.json", schema)
    done = puna("generate", model_folder, "--prompt", "It", "--schema", file)
    assert set(json.loads(done.stdout)) == {"done"}


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((), ("--prompt TEXT", "--file FILE")),
        (("--prompt", "x", "--file", "y"), ("give one of",)),
        (("--prompt", "x", "--out", "y"), ("--batch", "--out", "go together")),
        (("--file", "none.txt"), ("no such file: none.txt",)),
        (("--prompt", "x", "--schema", "none.json"), ("no such file: none.json",)),
        (("--prompt", "x", "--regex", "("), ("regular expression",)),
        (("--prompt", "x", "--top-p", "3"), ("--top-p",)),
        (("--prompt", "x", "--top-p", "0"), ("'top_p' is 0",)),
        (("--prompt", "4 " * 200), ("this model's context is 96",)),
        (("--batch", "none.jsonl", "--out", "o"), ("no such file: none.jsonl",)),
        (("--prompt", "x", "--system", "Be kind."), ("--chat",)),
    ],
)
def test_wrong_use_is_one_line(
    puna: Puna, model_folder: Path, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    assert_one_line(puna("generate", model_folder, *arguments), 2, *parts)


def test_a_batch_gives_each_line_what_a_call_of_its_own_gives(
    puna: Puna, model_folder: Path, tmp_path: Path
) -> None:
    chat = {"messages": [{"role": "user", "content": "4?"}], "id": "c", "max_new_tokens": 3}
    source = write_lines(tmp_path / "in.jsonl", *prompts(5), chat)
    out = tmp_path / "out.jsonl"
    options = ("--weights", "fp32", "--max-new-tokens", 6)
    done = puna("generate", model_folder, "--batch", source, "--out", out, *options, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["answered"] == 6
    records = read_lines(out)
    for number, entry in enumerate(prompts(5), start=1):
        alone = puna("generate", model_folder, "--prompt", entry["prompt"], *options, "--json")
        expected = json.loads(alone.stdout)
        assert {key: records[number][key] for key in expected} == expected
    assert (records[6]["id"], records[6]["new_tokens"]) == ("c", 3)


def test_equal_prompts_of_a_batch_get_seeds_of_their_own(
    puna: Puna, model_folder: Path, tmp_path: Path
) -> None:
    source = write_lines(
        tmp_path / "in.jsonl", *[{"prompt": "It"}] * 4, {"prompt": "It", "seed": 0}
    )
    out = tmp_path / "out.jsonl"
    puna("generate", model_folder, "--batch", source, "--out", out, "--temperature", 1)
    texts = [record["text"] for _, record in sorted(read_lines(out).items())]
    assert len(set(texts[:4])) == 4
    assert texts[4] == texts[0]


WRONG = {
    "{": "not valid JSON",
    "[1]": "expected an object",
    '{"text": "x"}': 'give "prompt" or "messages"',
    '{"prompt": 3}': '"prompt" must be a string',
    '{"messages": []}': 'a list in "messages"',
    '{"messages": [{"role": "king", "content": "x"}]}': "role",
    '{"prompt": "x", "temprature": 1}': "did you mean 'temperature'?",
    '{"prompt": "x", "temperature": -1}': "'temperature' is -1",
    json.dumps({"prompt": "4 " * 200}): "context is 96",
    '{"prompt": "\\ud800", "temperature": "hot"}': "hot",
    "[" * 100_000: "nested too deeply",
}


def test_wrong_lines_are_reported_and_the_rest_is_answered(
    puna: Puna, model_folder: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(
        b"\n".join([*(line.encode() for line in WRONG), b'"\xff"', b"", b'{"prompt": "x"}'])
    )
    done = puna("generate", model_folder, "--batch", source, "--out", out, "--max-new-tokens", 3)
    assert_one_line(done, 1, f"{len(WRONG) + 1} failed", "line 1: not valid JSON")
    records = read_lines(out)
    for number, part in enumerate(WRONG.values(), start=1):
        assert part in records[number]["error"]
    assert "UTF-8" in records[len(WRONG) + 1]["error"]
    assert records[len(WRONG) + 3]["text"]
    assert len(records) == len(WRONG) + 2


def test_a_mended_line_is_answered_by_the_next_call(
    puna: Puna, model_folder: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    call = ("generate", model_folder, "--batch", source, "--out", out, "--max-new-tokens", 3)
    write_lines(source, *prompts(2), {"prompt": 3, "id": "wrong"})
    assert puna(*call).returncode == 1
    before = out.read_text().splitlines()
    write_lines(source, *prompts(2), {"prompt": "3?", "id": "mended"})
    done = puna(*call, "--json")
    assert json.loads(done.stdout)["skipped"] == 2
    assert read_lines(out)[3]["id"] == "mended"
    assert out.read_text().splitlines()[:2] == [line for line in before if "error" not in line]


def test_a_torn_last_line_is_cut_off_and_answered_again(
    puna: Puna, model_folder: Path, tmp_path: Path
) -> None:
    source, out = write_lines(tmp_path / "in.jsonl", *prompts(5)), tmp_path / "out.jsonl"
    call = ("generate", model_folder, "--batch", source, "--out", out, "--max-new-tokens", 3)
    puna(*call)
    whole = read_lines(out)
    out.write_bytes(out.read_bytes()[:-20])
    done = puna(*call, "--json")
    assert json.loads(done.stdout)["skipped"] == 4
    assert read_lines(out) == whole


def test_what_cannot_be_gone_on_with_is_refused_and_left_as_it_is(
    puna: Puna, model_folder: Path, tmp_path: Path
) -> None:
    source, out = write_lines(tmp_path / "in.jsonl", *prompts(3)), tmp_path / "out.jsonl"
    call = ("generate", model_folder, "--batch", source, "--max-new-tokens", 3)
    puna(*call, "--out", out)
    before = out.read_bytes()
    other_settings = puna(*call, "--out", out, "--temperature", 0.5)
    assert_one_line(other_settings, 2, "begun with temperature 0.0, now it is 0.5", "--out")
    write_lines(source, *prompts(4)[1:])
    assert_one_line(puna(*call, "--out", out), 2, "line 1 of the input is not the one answered")
    assert out.read_bytes() == before
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    assert_one_line(puna(*call, "--out", mine), 2, "exists and holds no batch")
    assert_one_line(puna(*call, "--out", source), 2, "is the input itself")
    assert mine.read_text() == "mine"


def test_a_killed_batch_goes_on_and_ends_as_if_nothing_had_happened(
    puna: Puna, model_folder: Path, tmp_path: Path
) -> None:
    n = 200
    source = write_lines(tmp_path / "in.jsonl", *prompts(n))
    options = ("--weights", "fp32", "--max-new-tokens", "12", "--temperature", "1")

    def call(out: Path) -> list[str]:
        return ["generate", str(model_folder), "--batch", str(source), "--out", str(out), *options]

    killed, whole = tmp_path / "killed.jsonl", tmp_path / "whole.jsonl"
    process = subprocess.Popen([sys.executable, "-m", "puna", *call(killed)])
    deadline = time.monotonic() + 60
    while not (killed.exists() and killed.read_bytes().count(b"\n") > 20):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    n_before = killed.read_bytes().count(b"\n")
    assert n_before < n
    done = puna(*call(killed), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["skipped"] == n_before
    puna(*call(whole))
    assert read_lines(killed) == read_lines(whole)


def test_two_writers_of_one_file_are_refused(
    puna: Puna, model_folder: Path, tmp_path: Path
) -> None:
    from puna.inference.results import Results

    source, out = write_lines(tmp_path / "in.jsonl", *prompts(2)), tmp_path / "out.jsonl"
    call = ("generate", model_folder, "--batch", source, "--out", out, "--max-new-tokens", 2)
    puna(*call)
    settings = json.loads(out.with_name("out.jsonl.settings.json").read_text())
    with Results(out, settings):
        assert_one_line(puna(*call), 2, "being written by another process")


def test_the_input_is_read_no_further_than_there_is_room(model_folder: Path) -> None:
    engine = load_engine(str(model_folder), EngineConfig(max_rows=4))
    n_read = 0

    def lines() -> Iterator[Line]:
        nonlocal n_read
        for n_read, entry in enumerate(prompts(200), start=1):
            yield Line(n_read, json.dumps(entry).encode())

    batch = Batch(engine, Task(sampling=Sampling(max_new_tokens=3)))
    ahead = [n_read - n_done for n_done, _ in enumerate(batch.run(lines()))]
    assert len(ahead) == 200
    assert max(ahead) <= 4 + 8  # the rows, and those that wait for one
    assert engine.stats().pages_used == 0


@pytest.mark.filterwarnings("default::puna.core.errors.PunaWarning")
def test_without_a_compiler_one_line_says_so_and_the_text_is_written(
    puna: Puna, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = ("generate", model_folder, "--prompt", "What", "--max-new-tokens", 5)
    plain = puna(*ask)
    monkeypatch.setenv("CXX", "/nowhere/g++")
    done = puna(*ask, "--compile")
    assert_one_line(done, 0, "no C++ compiler is there", "--no-compile")
    assert done.stdout == plain.stdout
