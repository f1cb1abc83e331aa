"""Tools: definitions and calls as the template writes them, answers read back as they stream."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from transformers import AutoTokenizer

from puna.tokenizer import CallParser, Message, Tokenizer, ToolCall
from puna.tokenizer.tools import (
    HERMES_TOOLS,
    LLAMA3_TOOLS,
    Arguments,
    CallStart,
    Piece,
    Text,
    ToolFormat,
)

FORMATS = pytest.mark.parametrize("format", [LLAMA3_TOOLS, HERMES_TOOLS], ids=["llama3", "hermes"])
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather in a city; °C",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
NAMES = ["weather", "now"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
CALLS = st.lists(
    st.builds(
        ToolCall,
        st.sampled_from(NAMES),
        st.dictionaries(st.text(max_size=6), JSON, max_size=3).map(
            lambda value: json.dumps(value, ensure_ascii=False)
        ),
    ),
    min_size=1,
    max_size=3,
)


def read(format: ToolFormat, pieces: list[str]) -> tuple[str, list[ToolCall]]:
    """Text and calls of an answer that arrives in ``pieces``."""
    parser = CallParser(format, NAMES)
    found: list[Piece] = [piece for text in pieces for piece in parser.push(text)]
    text, calls = "", list[list[str]]()
    for piece in [*found, *parser.flush()]:
        match piece:
            case Text():
                text += piece.text
            case CallStart():
                calls.append([piece.name, ""])
            case Arguments():
                calls[-1][1] += piece.text
    return text, [ToolCall(*call) for call in calls]


def cut(text: str, places: list[int]) -> list[str]:
    borders = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in itertools.pairwise(borders)]


@FORMATS
@given(calls=CALLS, places=st.lists(st.integers(0, 400), max_size=12))
def test_calls_read_back_are_the_calls_written_however_they_arrive(
    format: ToolFormat, calls: list[ToolCall], places: list[int]
) -> None:
    text = format.calls(calls)
    assert read(format, cut(text, places)) == ("", calls)
    assert read(format, list(text)) == ("", calls)


@FORMATS
@given(
    text=st.text(st.sampled_from('<tool_cal>/{}"name: ,\n'), max_size=40), every=st.integers(1, 5)
)
def test_text_without_a_call_passes_unchanged(format: ToolFormat, text: str, every: int) -> None:
    pieces = [text[at : at + every] for at in range(0, len(text), every)]
    assert read(format, pieces) == (text, [])


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "weather", "parameters": {"city": "Lhasa"}}',
        '\n{"type": "function", "name": "weather", "parameters": {"city": "Lhasa"}}\n',
        '{"name":"weather","arguments":{"city": "Lhasa"}}',
        '{"parameters": {"city": "Lhasa"}, "name": "weather"}',
        '{"type": "function", "function": {"name": "weather", "arguments": {"city": "Lhasa"}}}',
        '{"name": "weather", "parameters": "{\\"city\\": \\"Lhasa\\"}"}',
        '{"name": "weather", "parameters": {"city": "Lhasa"}, "id": {"x": "}"}}',
    ],
)
def test_spellings_of_a_call_are_understood(text: str) -> None:
    call = [ToolCall("weather", '{"city": "Lhasa"}')]
    assert read(LLAMA3_TOOLS, list(text)) == ("", call)
    tagged = f"<tool_call>{text}</tool_call>"
    assert read(HERMES_TOOLS, list(tagged)) == ("", call)


def test_a_call_without_arguments_has_an_empty_object() -> None:
    assert read(LLAMA3_TOOLS, ['{"name": "now"}']) == ("", [ToolCall("now", "{}")])


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "unknown", "parameters": {}}',
        '{"answer": {"name": "weather", "parameters": {}}}',
        '{"name": "weather", "parameters": [1]}',
        "{}",
        '{"name": "weath',
        'Call: {"name": "weather", "parameters": {}}',
        '{"name": "weather", "parameters": ' + '"' + "[" * 3000 + '"}',
    ],
)
def test_what_only_looks_like_a_call_is_text(text: str) -> None:
    assert read(LLAMA3_TOOLS, list(text)) == (text, [])


def test_arguments_stream_before_the_call_is_complete() -> None:
    parser = CallParser(LLAMA3_TOOLS, NAMES)
    opened = parser.push('{"name": "weather", "parameters": {"city": "Lh')
    assert opened == [CallStart("weather"), Arguments('{"city": "Lh')]
    assert parser.push('asa"') == [Arguments('asa"')]
    assert parser.push("}") == [Arguments("}")]
    assert parser.push("}") == []
    assert parser.flush() == []


def test_text_stands_before_between_and_after_tagged_calls() -> None:
    call = HERMES_TOOLS.calls([ToolCall("now", "{}")])
    text, calls = read(HERMES_TOOLS, list(f"Let me see.\n{call}\n{call}\nDone <tool"))
    assert text == "Let me see.\n\nDone <tool"
    assert calls == [ToolCall("now", "{}")] * 2


def test_a_forgotten_closing_tag_does_not_hide_what_follows() -> None:
    text, calls = read(HERMES_TOOLS, list('<tool_call>\n{"name": "now", "arguments": {}}\nSo.'))
    assert (text, calls) == ("\nSo.", [ToolCall("now", "{}")])


def accepts(grammar: str, text: str) -> bool:
    tokens = LLTokenizer("byte")
    matcher = LLMatcher(tokens, LLMatcher.grammar_from_lark(grammar))
    ids = tokens.tokenize_str(text)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@FORMATS
def test_the_grammar_takes_valid_calls_and_no_others(format: ToolFormat) -> None:
    good = ToolCall("weather", '{"city": "Lhasa", "days": 3}')
    now = ToolCall("now", "{}")
    one = format.grammar(TOOLS, parallel=False)
    several = format.grammar(TOOLS, parallel=True)
    assert accepts(one, format.calls([good]))
    assert accepts(several, format.calls([good, now, good]))
    assert not accepts(one, format.calls([good, now]))
    wrong = [ToolCall("weather", "{}"), ToolCall("now", '{"x": 1}'), ToolCall("other", "{}")]
    assert not any(accepts(several, format.calls([call])) for call in wrong)
    assert not accepts(several, "Hello")


@FORMATS
def test_a_schema_may_stand_beside_the_calls(format: ToolFormat) -> None:
    grammar = format.grammar(TOOLS, parallel=True, answer={"type": "array"})
    assert accepts(grammar, "[1, 2]")
    assert accepts(grammar, format.calls([ToolCall("now", "{}")]))
    assert not accepts(grammar, "{}")


def plain(message: Message) -> dict[str, Any]:
    """A message as transformers' templates want it, arguments as objects."""
    calls = [
        {"type": "function", "function": {"name": c.name, "arguments": json.loads(c.arguments)}}
        for c in message.tool_calls
    ]
    content = {"role": message.role, "content": message.content}
    return content | ({"tool_calls": calls} if calls else {})


@settings(deadline=None, max_examples=20)
@given(calls=CALLS, content=st.sampled_from(["", "Let me see."]), system=st.booleans())
@pytest.mark.parametrize("name", ["small", "smol", "no default"])
def test_conversations_with_tools_equal_the_folders_template(
    name: str,
    calls: list[ToolCall],
    content: str,
    system: bool,
    tool_folders: dict[str, tuple[Tokenizer, Any]],
) -> None:
    ours, theirs = tool_folders[name]
    spelled = [ToolCall(c.name, ours.decode(ours.encode(c.arguments))) for c in calls]
    messages = [
        *([Message("system", " Be brief. ")] if system else []),
        Message("user", "Weather?"),
        Message("assistant", content, tuple(spelled)),
        Message("tool", '{"c": 21}'),
    ]
    chat = ours.chat.encode(ours, messages, tools=TOOLS, add_generation_prompt=True)
    expected = theirs.apply_chat_template(
        [plain(message) for message in messages],
        tools=TOOLS,
        add_generation_prompt=True,
        tokenize=False,
    )
    assert ours.decode(chat.ids) == expected


@pytest.fixture(scope="session")
def tool_folders(
    small: Tokenizer, smol: Tokenizer, smol_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Tokenizer, Any]]:
    """Tokenizers with what transformers opens from the folders they saved."""
    bare = tmp_path_factory.mktemp("bare")
    smol.save(bare)
    config = json.loads((bare / "tokenizer_config.json").read_text())
    (bare / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "{{ x }}"}))
    tokenizers = {"small": small, "smol": smol, "no default": Tokenizer.from_folder(bare)}
    pairs = {}
    for name, tokenizer in tokenizers.items():
        folder = tmp_path_factory.mktemp("tools")
        tokenizer.save(folder)
        pairs[name] = (tokenizer, AutoTokenizer.from_pretrained(folder))
    return pairs
