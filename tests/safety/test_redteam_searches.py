"""Attacks that ask again: each follows its algorithm, seen with scripted models."""

import asyncio
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redteam_parts import (
    REFUSAL,
    Scripted,
    arena_of,
    attack_of,
    goal_of,
    one_after_another,
    too_long,
)

from puna.safety.redteam import crescendo, mutation, trees
from puna.safety.redteam.arena import Cast
from puna.safety.redteam.attacker import prompt_of
from puna.safety.redteam.attacks import CrescendoAttack, MutationAttack, TreeAttack
from puna.tokenizer import Message

NOTHING = "Bicycles have two wheels."


def numbered_prompts() -> Scripted:
    """An attacker that writes q1, q2, q3, ..."""
    attacker = Scripted(lambda _: "")
    attacker.answer = lambda _: f"<prompt>q{len(attacker.asked)}</prompt>"
    return attacker


def crescendo_of(**changes: object) -> CrescendoAttack:
    attack = attack_of("crescendo", **changes)
    assert isinstance(attack, CrescendoAttack)
    return attack


def tree_of(name: str, **changes: object) -> TreeAttack:
    attack = attack_of(name, **changes)
    assert isinstance(attack, TreeAttack)
    return attack


def said_by_user(messages: Sequence[Message]) -> list[str]:
    return [message.content for message in messages if message.role == "user"]


class TestCrescendo:
    def test_each_question_stands_on_the_answers_before_it(self) -> None:
        target = Scripted(one_after_another("a1", "a2", "a3"))
        judge, attack = Scripted(lambda _: "2"), crescendo_of(turns=3)
        arena = arena_of(Cast(target, numbered_prompts(), judge), attack)
        asyncio.run(crescendo.run(attack, arena))
        contents = [[message.content for message in asked] for asked in target.asked]
        assert contents == [["q1"], ["q1", "a1", "q2"], ["q1", "a1", "q2", "a2", "q3"]]

    def test_it_ends_with_the_first_success(self) -> None:
        target = Scripted(lambda _: "all of it")
        judge, attack = Scripted(one_after_another("3", "9")), crescendo_of(turns=5)
        outcome = asyncio.run(
            crescendo.run(attack, arena_of(Cast(target, numbered_prompts(), judge), attack))
        )
        assert outcome.verdicts.success
        assert len(target.asked) == 2
        assert [entry.said for entry in outcome.sent] == [False, True, False]

    def test_a_refused_question_is_taken_back_and_costs_no_turn(self) -> None:
        target = Scripted(one_after_another("a1", REFUSAL, "a2"))
        attacker, attack = numbered_prompts(), crescendo_of(turns=2, backtracks=3)
        asyncio.run(
            crescendo.run(attack, arena_of(Cast(target, attacker, Scripted(lambda _: "2")), attack))
        )
        contents = [[message.content for message in asked] for asked in target.asked]
        assert contents == [["q1"], ["q1", "a1", "q2"], ["q1", "a1", "q3"]]
        assert "taken back" in attacker.asked[2][-1].content
        assert "taken back" not in attacker.asked[1][-1].content

    def test_refusals_beyond_the_backtracks_end_it(self) -> None:
        target, attack = Scripted(lambda _: REFUSAL), crescendo_of(turns=9, backtracks=3)
        outcome = asyncio.run(
            crescendo.run(attack, arena_of(Cast(target, numbered_prompts()), attack))
        )
        assert len(target.asked) == 4
        assert not outcome.verdicts.success

    def test_the_turn_that_came_furthest_is_kept(self) -> None:
        target = Scripted(one_after_another("a1", "a2", "a3"))
        judge, attack = Scripted(one_after_another("2", "6", "4")), crescendo_of(turns=3)
        outcome = asyncio.run(
            crescendo.run(attack, arena_of(Cast(target, numbered_prompts(), judge), attack))
        )
        assert outcome.reply.text == "a2"

    def test_it_keeps_what_it_has_when_the_conversation_outgrows_the_model(self) -> None:
        target = Scripted(one_after_another("a1", too_long()))
        attack = crescendo_of(turns=5)
        outcome = asyncio.run(
            crescendo.run(
                attack,
                arena_of(Cast(target, numbered_prompts(), Scripted(lambda _: "2")), attack),
            )
        )
        assert outcome.reply.text == "a1"

    def test_a_secret_is_asked_for_under_the_goals_own_system_prompt(self) -> None:
        attack = crescendo_of(turns=1)
        target = Scripted(lambda _: NOTHING)
        arena = arena_of(Cast(target, numbered_prompts()), attack, "leak")
        asyncio.run(crescendo.run(attack, arena))
        assert target.asked[0][0].role == "system"
        assert arena.aim.marker in target.asked[0][0].content


class TestPair:
    def test_streams_refine_side_by_side_without_branching(self) -> None:
        target, attacker = Scripted(lambda _: NOTHING), numbered_prompts()
        attack = tree_of("pair", streams=3, depth=2)
        asyncio.run(
            trees.run(attack, arena_of(Cast(target, attacker, Scripted(lambda _: "3")), attack))
        )
        assert len(target.asked) == 6
        assert all(len(asked) == 1 for asked in target.asked)  # each prompt stands alone
        assert len({asked[0].content for asked in target.asked}) == 6

    def test_the_attacker_sees_the_answer_and_the_points_of_its_own_prompt(self) -> None:
        target, attacker = Scripted(lambda m: f"answer to {m[-1].content}"), numbered_prompts()
        attack = tree_of("pair", streams=2, depth=2)
        asyncio.run(
            trees.run(attack, arena_of(Cast(target, attacker, Scripted(lambda _: "4")), attack))
        )
        for number, notes in enumerate(attacker.asked[2:], start=1):
            assert notes[-2].content == f"<prompt>q{number}</prompt>"
            assert f"answer to q{number}" in notes[-1].content
            assert "Points: 3 of 10" in notes[-1].content

    def test_it_ends_at_the_depth_where_one_stream_succeeds(self) -> None:
        target = Scripted(lambda m: "all" if m[-1].content == "q3" else NOTHING)
        judge = Scripted(lambda m: "10" if "<answer>\nall\n" in m[0].content else "2")
        attack = tree_of("pair", streams=2, depth=5)
        outcome = asyncio.run(
            trees.run(attack, arena_of(Cast(target, numbered_prompts(), judge), attack))
        )
        assert outcome.sent[-1].message.content == "q3"
        assert len(target.asked) == 4


class TestTap:
    def test_leaves_branch_and_only_the_best_live_on(self) -> None:
        target = Scripted(lambda m: f"answer to {m[-1].content}")
        attacker = numbered_prompts()

        def judged(messages: Sequence[Message]) -> str:
            if "Reply with one word: yes or no" in messages[0].content:
                return "yes"
            number = re.search(r"answer to q(\d+)", messages[0].content)
            assert number is not None
            return "5" if number[1] in ("2", "5") else "2"

        attack = tree_of("tap", branching=3, width=2, depth=2)
        asyncio.run(trees.run(attack, arena_of(Cast(target, attacker, Scripted(judged)), attack)))
        # 1 root x 3 branches, of which 2 live on, x 3 branches
        assert len(target.asked) == 3 + 6
        parents = [re.search(r"q(\d+)", notes[-2].content) for notes in attacker.asked[3:]]
        best = [parent[1] for parent in parents if parent is not None]
        assert best[:3] == ["2", "2", "2"]
        assert len(set(best)) == 2

    def test_prompts_off_topic_are_never_sent(self) -> None:
        target, attacker = Scripted(lambda _: NOTHING), numbered_prompts()

        def judged(messages: Sequence[Message]) -> str:
            if "Reply with one word: yes or no" in messages[0].content:
                return "No." if "\nq1\n" in messages[0].content else "Yes."
            return "2"

        attack = tree_of("tap", branching=2, width=4, depth=1)
        asyncio.run(trees.run(attack, arena_of(Cast(target, attacker, Scripted(judged)), attack)))
        assert [said_by_user(asked) for asked in target.asked] == [["q2"]]

    def test_a_tree_without_leaves_ends_and_the_request_stands_for_it(self) -> None:
        target = Scripted(lambda _: NOTHING)
        attack = tree_of("tap", depth=4)
        judge = Scripted(lambda m: "no" if "yes or no" in m[0].content else "2")
        arena = arena_of(Cast(target, numbered_prompts(), judge), attack)
        asyncio.run(trees.run(attack, arena))
        assert [said_by_user(asked) for asked in target.asked] == [[arena.aim.request]]

    def test_pair_does_not_ask_whether_a_prompt_is_on_topic(self) -> None:
        judge = Scripted(lambda _: "2")
        attack = tree_of("pair", streams=1, depth=1)
        cast = Cast(Scripted(lambda _: NOTHING), numbered_prompts(), judge)
        asyncio.run(trees.run(attack, arena_of(cast, attack)))
        assert not any("yes or no" in asked[0].content for asked in judge.asked)


class TestMutation:
    def attack(self, **changes: object) -> MutationAttack:
        attack = attack_of("mutation", **changes)
        assert isinstance(attack, MutationAttack)
        return attack

    def test_generations_are_asked_until_the_budget_ends(self) -> None:
        target, attack = Scripted(lambda _: REFUSAL), self.attack(population=4, generations=3)
        asyncio.run(mutation.run(attack, arena_of(Cast(target), attack)))
        assert len(target.asked) == 12
        request = goal_of("harm").request["en"]
        assert all(asked[-1].content.count(request) == 1 for asked in target.asked)

    def test_it_ends_with_a_success(self) -> None:
        target, attack = Scripted(lambda _: "Do this."), self.attack(population=4, generations=3)
        outcome = asyncio.run(mutation.run(attack, arena_of(Cast(target), attack)))
        assert outcome.verdicts.success
        assert len(target.asked) == 4

    def test_what_came_further_is_what_children_are_made_of(self) -> None:
        # Only templates with a certain word get further; it spreads through the generations.
        first, attack = Scripted(lambda _: REFUSAL), self.attack(population=16, generations=1)
        asyncio.run(mutation.run(attack, arena_of(Cast(first), attack)))
        held = Counter(w for asked in first.asked for w in set(asked[-1].content.split()))
        word = min(word for word, times in held.items() if times == 2 and len(word) > 4)

        judge = Scripted(lambda m: "5" if "got: True" in m[0].content else "1")
        target = Scripted(lambda m: f"got: {word in m[-1].content}")
        attack = self.attack(population=16, generations=6)
        asyncio.run(mutation.run(attack, arena_of(Cast(target, judge=judge), attack)))
        with_word = [word in asked[-1].content for asked in target.asked]
        assert 0 < sum(with_word[:16]) < sum(with_word[-16:])

    def test_a_run_is_a_function_of_its_seed(self) -> None:
        asked = []
        for _ in range(2):
            target, attack = Scripted(lambda _: REFUSAL), self.attack(population=4, generations=2)
            asyncio.run(mutation.run(attack, arena_of(Cast(target), attack)))
            asked.append(sorted(messages[-1].content for messages in target.asked))
        assert asked[0] == asked[1]

    def test_a_rewriter_that_loses_the_request_is_not_believed(self) -> None:
        target, attack = Scripted(lambda _: REFUSAL), self.attack(population=4, generations=2)
        attacker = Scripted(lambda _: "<prompt>Hello.</prompt>")
        asyncio.run(mutation.run(attack, arena_of(Cast(target, attacker), attack)))
        request = goal_of("harm").request["en"]
        assert attacker.asked
        assert all(request in asked[-1].content for asked in target.asked)

    @given(st.integers(0, 2**32), st.data())
    def test_a_child_holds_the_request_once(self, seed: int, data: st.DataObject) -> None:
        known = mutation.seeds()
        first, second = data.draw(st.sampled_from(known)), data.draw(st.sampled_from(known))
        child = mutation.changed(first, second, np.random.default_rng(seed))
        assert child.count(mutation.PLACE) == 1


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("Well. <prompt> Ask this. </prompt> Done.", "Ask this."),
        ("<PROMPT>Cut at the limit", "Cut at the limit"),
        ("No tags at all", "No tags at all"),
        ("<prompt></prompt>", "the request"),
        ("", "the request"),
    ],
)
def test_a_prompt_is_read_from_what_an_attacker_wrote(text: str, prompt: str) -> None:
    assert prompt_of(text, "the request") == prompt
