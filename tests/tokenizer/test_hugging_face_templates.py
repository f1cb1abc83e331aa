"""Chat tokens held to the templates of Llama 3, 3.1 and 3.2, which TRL carries."""

import datetime
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from puna.core.errors import UsageError
from puna.tokenizer import (
    CHATML,
    LLAMA3,
    LLAMA31,
    LLAMA32,
    ChatFormat,
    Message,
    Tokenizer,
    ToolCall,
)

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather in a city; °C, 'quoted' \"twice\"",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
CALL = ToolCall("weather", '{"city": "Zürich", "days": 2, "exact": true}')
SEARCH = ToolCall("brave_search", '{"query": "llama wool price"}')

PLAIN = [  # "s" system, "u" user, "a" assistant, "t" tool; an answer may be a call
    [("u", "Hi")],
    [("u", "Hi"), ("a", "Hello!")],
    [("s", "Be brief."), ("u", "What is 2 + 2?"), ("a", "4"), ("u", "And 3 + 3?"), ("a", "6")],
    [("s", ""), ("u", "An empty system prompt"), ("a", "")],
    [("s", "  padded \n"), ("u", "  spaces around \n"), ("a", "\n\n line breaks around \t\r\n")],
    [("u", "Grüße, 你好, नमस्ते, 👩‍👩‍👧"), ("a", "e\u0301 \u200b \u00a0x\u00a0 \u3000")],
    [("u", "quotes ' \" {{ braces }} {% raw %} \\n"), ("a", "def f():\n    return 1\n")],
    [("u", "one"), ("u", "two in a row"), ("s", "a late system"), ("a", "fine")],
    [("a", "The assistant speaks first"), ("u", "then the user")],
]
WITH_TOOLS = [
    [("u", "Weather in Zürich?")],
    [("s", "You may use tools."), ("u", "  Weather? "), ("a", CALL), ("t", '{"c": 21}')],
    [("u", "Weather?"), ("a", CALL), ("t", " 21 °C\n"), ("a", "21 degrees."), ("u", "Thanks")],
    [("u", "Weather?"), ("a", CALL), ("t", "21"), ("a", CALL), ("t", "19"), ("a", "Cooler.")],
    [("s", "No call is needed."), ("u", "Hi"), ("a", "Hello!")],
]
WITH_BUILTIN = [
    [("u", "What does wool cost?"), ("a", SEARCH), ("t", "9 dollars"), ("a", "9 dollars.")],
    [("s", "Be exact."), ("u", "Wool?"), ("a", SEARCH), ("t", "x"), ("a", CALL), ("t", "y")],
    [("u", "Hi"), ("a", "Hello!")],
]
ROLES = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
Turns = list[tuple[str, Any]]


def messages_of(turns: Turns) -> list[Message]:
    return [
        Message(ROLES[role], "", (said,))
        if isinstance(said, ToolCall)
        else Message(ROLES[role], said)
        for role, said in turns
    ]


def plain_of(turns: Turns) -> list[dict[str, Any]]:
    """The same for transformers."""
    return [
        {
            "role": ROLES[role],
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": said.name, "arguments": arguments(said)}}
            ],
        }
        if isinstance(said, ToolCall)
        else {"role": ROLES[role], "content": said}
        for role, said in turns
    ]


def arguments(call: ToolCall) -> Any:
    return json.loads(call.arguments)


def published(name: str) -> str:
    """A template as its model's folder has it, read from TRL without importing that."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "chat_templates"
    return (folder / name).read_text(encoding="utf-8")


FILES = {"llama3.jinja": LLAMA3, "llama3_1.jinja": LLAMA31, "llama3_2.jinja": LLAMA32}


@pytest.fixture(scope="session")
def theirs(llama3_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(llama3_folder)


def assert_same(
    ours: Tokenizer, theirs: Any, format: ChatFormat, template: str, turns: Turns, **options: Any
) -> None:
    tools, builtin = options.pop("tools", None), options.pop("builtin_tools", ())
    named = {"builtin_tools": list(builtin)} if builtin else {}
    for prompt in (False, True):
        chat = format.encode(
            ours,
            messages_of(turns),
            tools=tools or (),
            builtin_tools=builtin,
            add_generation_prompt=prompt,
        )
        expected = theirs.apply_chat_template(
            plain_of(turns),
            chat_template=template,
            tools=tools,
            add_generation_prompt=prompt,
            return_dict=False,
            **named,
            **options,
        )
        assert ours.decode(chat.ids) == theirs.decode(expected)
        assert chat.ids == expected


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("own", [False, True], ids=["published", "ours"])
@pytest.mark.parametrize("turns", PLAIN)
def test_conversations_equal_the_published_templates(
    llama3: Tokenizer, theirs: Any, file: str, own: bool, turns: Turns
) -> None:
    format = FILES[file]
    template = format.jinja() if own else published(file)
    assert_same(llama3, theirs, format, template, turns)


def test_the_role_that_llama_3_calls_ipython_may_be_named_so(
    llama3: Tokenizer, theirs: Any
) -> None:
    template = published("llama3.jinja")
    messages = [Message("user", "Weather?"), Message("ipython", '{"c": 21}')]
    plain = [{"role": m.role, "content": m.content} for m in messages]
    expected = theirs.apply_chat_template(plain, chat_template=template, return_dict=False)
    assert LLAMA3.encode(llama3, messages).ids == expected
    tool = [messages[0], Message("tool", messages[1].content)]
    assert LLAMA3.encode(llama3, tool).ids == expected


@pytest.mark.parametrize("file", ["llama3_1.jinja", "llama3_2.jinja"])
@pytest.mark.parametrize("own", [False, True], ids=["published", "ours"])
@pytest.mark.parametrize("turns", WITH_TOOLS)
@pytest.mark.parametrize("tools", [[WEATHER], [WEATHER, NOW]], ids=["one", "two"])
@pytest.mark.parametrize("in_user", [True, False])
def test_tools_equal_the_published_templates(
    llama3: Tokenizer,
    theirs: Any,
    file: str,
    own: bool,
    turns: Turns,
    tools: list[Any],
    in_user: bool,
) -> None:
    format = replace(FILES[file], tools_in_user=in_user)
    template = format.jinja() if own else published(file)
    options = {} if own else {"tools_in_user_message": in_user}
    assert_same(llama3, theirs, format, template, turns, tools=tools, **options)


@pytest.mark.parametrize("own", [False, True], ids=["published", "ours"])
@pytest.mark.parametrize("turns", WITH_BUILTIN)
@pytest.mark.parametrize("tools", [None, [WEATHER]])
@pytest.mark.parametrize(
    "builtin", [("brave_search", "wolfram_alpha"), ("code_interpreter", "brave_search")]
)
def test_built_in_tools_equal_the_published_template(
    llama3: Tokenizer,
    theirs: Any,
    own: bool,
    turns: Turns,
    tools: list[Any] | None,
    builtin: tuple[str, ...],
) -> None:
    template = LLAMA31.jinja() if own else published("llama3_1.jinja")
    assert_same(llama3, theirs, LLAMA31, template, turns, tools=tools, builtin_tools=builtin)


def test_a_call_of_the_code_interpreter_equals_metas_own_chat_format(
    llama3: Tokenizer, meta: Any
) -> None:
    from llama_models.datatypes import BuiltinTool, RawMessage, StopReason
    from llama_models.datatypes import ToolCall as MetaCall
    from llama_models.llama3.chat_format import ChatFormat as MetaChat

    code = 'print("a" * 3)\nprint(2 ** 10)'
    call = MetaCall(call_id="1", tool_name=BuiltinTool.code_interpreter, arguments={"code": code})
    raw = RawMessage(
        role="assistant", content="", tool_calls=[call], stop_reason=StopReason.end_of_message
    )
    ours = LLAMA31.encode(
        llama3,
        [
            Message("user", "2 ** 10?"),
            Message("assistant", "", (ToolCall("code_interpreter", json.dumps({"code": code})),)),
        ],
        builtin_tools=["code_interpreter"],
    )
    expected, _ = MetaChat(meta).encode_message(raw, None)
    assert ours.ids[-len(expected) :] == expected
    answer = [i for i, on in zip(ours.ids, ours.trained, strict=True) if on]
    assert llama3.decode(answer) == f"<|python_tag|>{code}<|eom_id|>"
    content = [i for i, on in zip(ours.ids, ours.content, strict=True) if on]
    assert llama3.decode(content) == f"<|python_tag|>{code}"


@pytest.mark.parametrize("file", FILES)
def test_a_folder_speaks_the_format_of_its_template_and_keeps_it(
    llama3: Tokenizer, llama3_folder: Path, tmp_path: Path, file: str
) -> None:
    for item in llama3_folder.iterdir():
        (tmp_path / item.name).write_bytes(item.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["chat_template"] = published(file)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.chat == FILES[file]
    tokenizer.save(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    assert again.chat == FILES[file]
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"]
    assert file == "llama3.jinja" or saved == published(file)


@pytest.mark.parametrize(
    "format",
    [
        LLAMA3,
        LLAMA31,
        LLAMA32,
        replace(LLAMA31, date="01 Feb 2025", knowledge="May 2024"),
        replace(LLAMA32, date="01 Feb 2025", tools_in_user=False),
    ],
)
def test_a_format_is_chosen_for_a_tokenizer_and_read_back_from_its_folder(
    small: Tokenizer, tmp_path: Path, format: ChatFormat
) -> None:
    chosen = small.with_chat(format)
    assert chosen.chat == format
    chosen.save(tmp_path)
    assert Tokenizer.from_folder(tmp_path).chat == format
    assert small.chat == LLAMA3


def test_a_format_whose_tokens_a_vocabulary_lacks_is_refused(small: Tokenizer) -> None:
    with pytest.raises(UsageError, match=r"needs \['<|im_start|>', '<|im_end|>'\]"):
        small.with_chat(CHATML)


def test_llama_32_names_the_day_and_a_chosen_date_instead(small: Tokenizer) -> None:
    hi = [Message("user", "Hi")]
    today = datetime.date.today().strftime("%d %b %Y")
    assert f"Today Date: {today}\n" in small.decode(LLAMA32.encode(small, hi).ids)
    dated = replace(LLAMA32, date="26 Jul 2024")
    assert "Today Date: 26 Jul 2024\n" in small.decode(dated.encode(small, hi).ids)


@pytest.mark.parametrize(
    ("format", "messages", "options", "complaint"),
    [
        (LLAMA3, [Message("user", "x")], {"builtin_tools": ["brave_search"]}, "only Llama 3.1's"),
        (LLAMA32, [Message("user", "x")], {"builtin_tools": ["brave_search"]}, "3.2's chat format"),
        (LLAMA31, [Message("assistant", "x")], {"tools": [NOW]}, "first message of the user"),
        (LLAMA31, [Message("system", "x")], {"tools": [NOW]}, "first message of the user"),
        (
            LLAMA31,
            [Message("user", "x"), Message("assistant", "", (SEARCH, SEARCH))],
            {"builtin_tools": ["brave_search"]},
            "one built-in tool at a time",
        ),
        (
            LLAMA31,
            [Message("user", "x"), Message("assistant", "", (ToolCall("brave_search", "[1]"),))],
            {"builtin_tools": ["brave_search"]},
            "no JSON object",
        ),
    ],
)
def test_what_a_format_cannot_write_is_refused(
    small: Tokenizer,
    format: ChatFormat,
    messages: list[Message],
    options: dict[str, Any],
    complaint: str,
) -> None:
    with pytest.raises(UsageError, match=complaint):
        format.encode(small, messages, **options)


def test_a_turn_is_trained_where_its_switch_says(small: Tokenizer) -> None:
    messages = [
        Message("user", "A question", train=True),
        Message("assistant", "first", train=False),
        Message("user", "more"),
        Message("assistant", "second"),
    ]
    chat = LLAMA3.encode(small, messages)
    trained = small.decode([i for i, on in zip(chat.ids, chat.trained, strict=True) if on])
    assert trained == "A question<|eot_id|>second<|eot_id|>"
    content = small.decode([i for i, on in zip(chat.ids, chat.content, strict=True) if on])
    assert content == "A questionsecond"
