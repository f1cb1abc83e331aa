"""Small views of a text that several rules share."""

import re
import unicodedata

# Arithmetic signs count as words: "3 + 4" and "3 - 4" are different texts.
_WORD = re.compile(r"\w+|[-+*/=<>^%×÷−]")
_HOLLOW = re.compile(r"\(\s*(?:[,;/]\s*)*\)")
_GAPS = re.compile(r"[^\S\n]{2,}")
_LOOSE_MARK = re.compile(r"[^\S\n]+(?=[,.](?:[\s\")»]|$))")
_MISPLACED_COMMA = re.compile(r"[^\S\n]+,(?=[^\W\d]|\()")
_COMMAS = re.compile(r",(?:[^\S\n]*,)+")
_LOOSE_OPENING = re.compile(r"\([^\S\n]*(?:[,;][^\S\n]*)*")
_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff\ufff9-\ufffb]"
)
_LINE_ENDS = re.compile(r"\r\n?|[\x0c\x85\u2028\u2029]")
_ODD_SPACES = re.compile(r"[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)


def unify(text: str) -> str:
    """Composed Unicode (NFC), ``\\n`` line ends, ordinary spaces, no invisible characters."""
    text = _LINE_ENDS.sub("\n", unicodedata.normalize("NFC", text))
    text = _CONTROL.sub("", _ODD_SPACES.sub(" ", text))
    return _TRAILING.sub("", text).strip("\n")


def words(text: str) -> list[str]:
    """The words of a text, case folded, and its arithmetic signs: how texts are compared."""
    return _WORD.findall(unicodedata.normalize("NFC", text).casefold())


def close_holes(text: str) -> str:
    """Mend the traces of what an extraction cut out of a sentence.

    Empty parentheses go, as do marks that follow an opening one, spaces before a comma or stop,
    and commas with nothing between them.
    """
    text = _LOOSE_OPENING.sub("(", _HOLLOW.sub("", text))
    text = _COMMAS.sub(",", _GAPS.sub(" ", text))
    return _MISPLACED_COMMA.sub(", ", _LOOSE_MARK.sub("", text)).strip()
