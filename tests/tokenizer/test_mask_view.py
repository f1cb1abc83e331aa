from puna.tokenizer import Message, Tokenizer
from puna.tokenizer.mask_view import STYLES, MessageCount, show_mask


def trained_text(tokenizer: Tokenizer, *messages: Message) -> list[tuple[str, str]]:
    """The coloured runs of a conversation as (text, kind)."""
    view = show_mask(tokenizer, tokenizer.chat.encode(tokenizer, messages))
    kinds = {style: kind for kind, style in STYLES.items()}
    return [(view.text.plain[s.start : s.end], kinds[str(s.style)]) for s in view.text.spans]


def test_each_run_has_the_colour_of_its_kind(small: Tokenizer) -> None:
    runs = trained_text(small, Message("user", "Hi 👍"), Message("assistant", "Yes ☃"))
    plain, special = "text, not trained", "special token, not trained"
    assert runs == [
        ("<|begin_of_text|><|start_header_id|>", special),
        ("user", plain),
        ("<|end_header_id|>", special),
        ("\n\nHi 👍", plain),
        ("<|eot_id|><|start_header_id|>", special),
        ("assistant", plain),
        ("<|end_header_id|>", special),
        ("\n\n", plain),
        ("Yes ☃", "answer, trained"),
        ("<|eot_id|>", "end of turn, trained"),
    ]


def test_messages_are_counted_with_their_trained_tokens(small: Tokenizer, smol: Tokenizer) -> None:
    for tokenizer, roles in (
        (small, ["user", "assistant"]),
        (smol, ["system", "user", "assistant"]),
    ):
        messages = [Message("user", "Hi <|start_header_id|>\nx"), Message("assistant", "Yes, 12")]
        chat = tokenizer.chat.encode(tokenizer, messages)
        counts = show_mask(tokenizer, chat).counts
        assert [count.role for count in counts] == roles
        opening = len(tokenizer.chat.begin)
        assert sum(count.tokens for count in counts) == len(chat.ids) - opening
        assert [count.trained for count in counts[:-1]] == [0] * (len(roles) - 1)
        answer = len(tokenizer.encode("Yes, 12"))
        assert counts[-1] == MessageCount("assistant", counts[-1].tokens, answer + 1)


def test_control_characters_never_reach_the_terminal(small: Tokenizer) -> None:
    runs = trained_text(small, Message("user", "a\x1b[31mb\u202ec\td"))
    assert ("\n\na\\x1b[31mb\\u202ec\\td", "text, not trained") in runs


def test_the_legend_names_every_colour(small: Tokenizer) -> None:
    view = show_mask(small, small.chat.encode(small, [Message("user", "Hi")]))
    assert all(kind in view.legend.plain for kind in STYLES)
