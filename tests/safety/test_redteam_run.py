"""A run leaves a folder that survives kills, and findings that anybody can try again."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from redteam_parts import REFUSAL, Scripted, ScriptedGuard, one_after_another, too_long

from puna.core.errors import PunaError, UsageError
from puna.safety.defended import Defended
from puna.safety.models import Reply
from puna.safety.redteam import (
    Cast,
    Plan,
    RedTeamConfig,
    make_plan,
    read_findings,
    red_team,
    replay,
)
from puna.safety.redteam.run import RESULTS, SUMMARY
from puna.safety.safeguard import Subject, Verdict
from puna.tokenizer import Message

ONE_QUESTION = ("jailbreak", "encoding", "roleplay", "leak", "injection")


def planned(**fields: object) -> tuple[RedTeamConfig, Plan]:
    """Trials of one question each."""
    usual = {"kinds": ("leak", "document", "tool"), "limit": 12, "attacks": ONE_QUESTION}
    given = usual | fields
    config = RedTeamConfig.parse(given, where="test")
    return config, make_plan(config, has_attacker=False, has_weights=False)


def carried_out(folder: Path, cast: Cast, **fields: object) -> dict[str, object]:
    config, plan = planned(**fields)
    return asyncio.run(red_team(config, cast, plan, folder, concurrency=3))


def leaky(messages: Sequence[Message]) -> str:
    """Tells all it has read, backwards."""
    return " ".join(message.content for message in messages)[::-1]


class TestFolder:
    def test_it_holds_results_findings_summary_and_report(self, tmp_path: Path) -> None:
        summary = carried_out(tmp_path, Cast(Scripted(leaky)), kinds=("leak",))
        records = [json.loads(line) for line in (tmp_path / RESULTS).open()]
        assert len(records) == 12
        assert summary == json.loads((tmp_path / SUMMARY).read_bytes())
        assert summary["success"]["successes"] == len(read_findings(tmp_path)) == 12  # type: ignore
        page = (tmp_path / "report.html").read_text()
        assert "12 of 12 attacks succeeded" in page
        assert "<script" not in page

    def test_what_a_model_writes_cannot_become_part_of_the_page(self, tmp_path: Path) -> None:
        hostile = "<script>alert(1)</script>"
        carried_out(tmp_path, Cast(Scripted(lambda m: hostile + leaky(m))), kinds=("leak",))
        page = (tmp_path / "report.html").read_text()
        assert hostile not in page
        assert "&lt;script&gt;" in page

    def test_the_same_call_asks_nothing_anew_and_counts_the_same(self, tmp_path: Path) -> None:
        first = carried_out(tmp_path, Cast(Scripted(leaky)))
        target = Scripted(leaky)
        again = carried_out(tmp_path, Cast(target))
        assert target.asked == []
        assert {**again, "seconds": 0} == {**first, "seconds": 0}

    def test_other_settings_do_not_go_on_in_its_folder(self, tmp_path: Path) -> None:
        carried_out(tmp_path, Cast(Scripted(leaky)))
        with pytest.raises(UsageError, match="was begun with max_new_tokens 200, now it is 9"):
            carried_out(tmp_path, Cast(Scripted(leaky)), max_new_tokens=9)
        with pytest.raises(UsageError, match="was begun with model"):
            carried_out(tmp_path, Cast(Scripted(leaky, digest="other")))

    def test_a_larger_limit_adds_to_what_is_there(self, tmp_path: Path) -> None:
        first = carried_out(tmp_path, Cast(Scripted(leaky)), limit=5)
        target = Scripted(leaky)
        assert carried_out(tmp_path, Cast(target), limit=12)["success"]["n"] == 12  # type: ignore
        assert len(target.asked) == 7
        again = carried_out(tmp_path, Cast(Scripted(leaky)), limit=5)
        assert {**again, "seconds": 0} == {**first, "seconds": 0}

    def test_two_runs_give_the_same_results_whatever_runs_side_by_side(
        self, tmp_path: Path
    ) -> None:
        config, plan = planned()
        kept = []
        for number, concurrency in enumerate((1, 7)):
            folder = tmp_path / str(number)
            cast = Cast(Scripted(leaky))
            asyncio.run(red_team(config, cast, plan, folder, concurrency=concurrency))
            records = [json.loads(line) | {"seconds": 0} for line in (folder / RESULTS).open()]
            kept.append(sorted(records, key=lambda record: record["line"]))
        assert kept[0] == kept[1]


class TestFailures:
    def test_a_failed_trial_is_tried_again_by_the_next_run(self, tmp_path: Path) -> None:
        target = Scripted(one_after_another(REFUSAL, PunaError("gone"), REFUSAL))
        assert carried_out(tmp_path, Cast(target))["failed"] == 1
        mended = Scripted(lambda _: REFUSAL)
        again = carried_out(tmp_path, Cast(mended))
        assert (again["failed"], len(mended.asked)) == (0, 1)

    def test_a_conversation_that_does_not_fit_is_skipped_for_good(self, tmp_path: Path) -> None:
        summary = carried_out(tmp_path, Cast(Scripted(lambda _: too_long())))
        assert (summary["skipped"], summary["success"]["n"]) == (12, 0)  # type: ignore[index]
        target = Scripted(lambda _: REFUSAL)
        carried_out(tmp_path, Cast(target))
        assert target.asked == []

    def test_a_server_that_is_gone_ends_the_run_with_its_reason(self, tmp_path: Path) -> None:
        target = Scripted(lambda _: PunaError("nobody answers"))
        with pytest.raises(PunaError, match=r"8 trials failed in a row, the last: nobody answers"):
            carried_out(tmp_path, Cast(target))
        assert len(target.asked) <= 8 + 3


_KILLED = """
import asyncio, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_redteam_run import planned
from redteam_parts import REFUSAL, Scripted
from puna.safety.models import Reply
from puna.safety.redteam import Cast, red_team

class Slow(Scripted):
    async def reply(self, messages, sampling):
        await asyncio.sleep(0.05)
        return Reply(REFUSAL)

config, plan = planned()
asyncio.run(red_team(config, Cast(Slow(str)), plan, Path(sys.argv[1]), concurrency=2))
"""


def test_a_run_killed_in_the_middle_goes_on_where_it_was(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _KILLED, str(tmp_path), str(Path(__file__).parent)]
    process = subprocess.Popen(command)
    results, deadline = tmp_path / RESULTS, time.monotonic() + 60
    while not (results.exists() and results.read_bytes().count(b"\n") >= 4):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with results.open("ab") as file:
        file.write(b'{"line": 99, "inp')  # as if it had died inside a line
    n_done = results.read_bytes().count(b"\n")
    assert 4 <= n_done < 12
    target = Scripted(lambda _: REFUSAL)
    summary = carried_out(tmp_path, Cast(target))
    assert len(target.asked) == 12 - n_done
    assert summary["success"]["n"] == 12  # type: ignore[index]
    lines = [json.loads(line)["line"] for line in results.open()]
    assert sorted(lines) == list(range(1, 13))


class TestReplay:
    def replayed(self, folder: Path, cast: Cast) -> list[tuple[bool, bool]]:
        found = asyncio.run(replay(cast, read_findings(folder), concurrency=2))
        return [(one.succeeds, one.same) for one in found]

    def test_the_same_model_gives_in_again_with_the_same_words(self, tmp_path: Path) -> None:
        first = Scripted(leaky)
        carried_out(tmp_path, Cast(first), kinds=("leak",), temperature=0.7)
        again = Scripted(leaky)
        assert set(self.replayed(tmp_path, Cast(again))) == {(True, True)}
        seeds = {(sampling.seed, sampling.temperature) for sampling in again.samplings}
        assert seeds == {(sampling.seed, sampling.temperature) for sampling in first.samplings}

    def test_a_mended_model_does_not(self, tmp_path: Path) -> None:
        carried_out(tmp_path, Cast(Scripted(leaky)), kinds=("leak",))
        mended = self.replayed(tmp_path, Cast(Scripted(lambda _: REFUSAL)))
        assert set(mended) == {(False, False)}

    def test_turns_in_the_middle_are_answered_anew(self, tmp_path: Path) -> None:
        said = one_after_another("a1", "the whole of it")
        cast = Cast(
            Scripted(said), Scripted(lambda _: "<prompt>q</prompt>"), guard=ScriptedGuard("whole")
        )
        config = RedTeamConfig(attacks=("crescendo",), kinds=("harm",), limit=1)
        plan = make_plan(config, has_attacker=True, has_weights=False)
        asyncio.run(red_team(config, cast, plan, tmp_path))
        other = Scripted(one_after_another("b1", "nothing"))
        assert self.replayed(tmp_path, Cast(other, guard=ScriptedGuard("whole"))) == [
            (False, False)
        ]
        assert [message.content for message in other.asked[1]] == ["q", "b1", "q"]

    def test_tool_calls_come_back_as_they_were(self, tmp_path: Path) -> None:
        first = Scripted(leaky)
        carried_out(tmp_path, Cast(first), kinds=("tool",), limit=4)
        again = Scripted(leaky)
        self.replayed(tmp_path, Cast(again))
        found = {finding.answer for finding in read_findings(tmp_path)}
        succeeded = [asked for asked in first.asked if leaky(asked) in found]
        assert sorted(again.asked, key=str) == sorted(succeeded, key=str)
        assert all(asked[-1].role == "tool" and asked[-2].tool_calls for asked in again.asked)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "line 1: not valid JSON"),
            ("7", "a finding is an object"),
            ("{}", "'id' is missing"),
        ],
    )
    def test_what_is_wrong_in_a_file_is_said(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "findings.jsonl").write_text(text)
        with pytest.raises(UsageError, match=message):
            read_findings(tmp_path)

    def test_a_folder_without_findings_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no findings in"):
            read_findings(tmp_path / "nowhere")


class Censor:
    """A `Safeguard` that stops prompts and answers with a word in them."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.verdict = Verdict()

    async def admit(self, subject: Subject) -> Verdict:
        return self.judged(subject.messages[-1].content)

    def output_filter(self, subject: Subject) -> "Censor":
        return Censor(self.word)

    def push(self, text: str) -> str:
        self.verdict = self.judged(text)
        return "" if self.verdict.decision == "block" else text

    def flush(self) -> str:
        return ""

    def judged(self, text: str) -> Verdict:
        return Verdict("block", "a word") if self.word in text else Verdict()


class TestDefended:
    def reply(self, model: Scripted, word: str) -> Reply:
        defended = Defended(model, Censor(word), "censor")
        return asyncio.run(defended.reply([Message("user", "Say saw.")], None))  # type: ignore

    def test_a_stopped_prompt_never_reaches_the_model(self) -> None:
        model = Scripted(lambda _: "A ladder.")
        assert self.reply(model, "saw") == Reply("", "blocked", "a word")
        assert model.asked == []

    def test_a_stopped_answer_is_not_released(self) -> None:
        assert self.reply(Scripted(lambda _: "A ladder."), "ladder").text == ""

    def test_the_rest_passes_as_it_is(self) -> None:
        assert self.reply(Scripted(lambda _: "A ladder."), "bomb") == Reply("A ladder.")

    def test_attacks_on_a_defended_model_count_as_stopped(self, tmp_path: Path) -> None:
        cast = Cast(Defended(Scripted(leaky), Censor(""), "censor"))
        summary = carried_out(tmp_path, cast, kinds=("leak",))
        assert (summary["blocked"], summary["success"]["successes"]) == (12, 0)  # type: ignore
