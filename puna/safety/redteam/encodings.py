"""Ways to write a text so that a filter for words does not see it, and back again.

Every encoding has its inverse: attacks use the one, the search for leaked secrets the other.
"""

import base64
import binascii
import codecs
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from puna.core.errors import UsageError

_LEET = str.maketrans("aeiostAEIOST", "431057431057")
_UNLEET = str.maketrans("431057", "aeiost")
_CYRILLIC = dict(zip("aceopxyABCEHKMOPTX", "асеорхуАВСЕНКМОРТХ", strict=True))
_LOOKALIKE = str.maketrans(_CYRILLIC)
_UNLOOKALIKE = str.maketrans({there: here for here, there in _CYRILLIC.items()})
_ZERO_WIDTH = "\u200b\u200c\u200d\u2060\ufeff"
_TAGS = 0xE0000  # the block of invisible tag characters mirrors ASCII from here
_WORD_GAP = "   "
_MORSE_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?'!/()&:;=+-_\"@"
_MORSE_CODES = (
    ".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- "
    "-..- -.-- --.. ----- .---- ..--- ...-- ....- ..... -.... --... ---.. ----. .-.-.- --..-- "
    "..--.. .----. -.-.-- -..-. -.--. -.--.- .-... ---... -.-.-. -...- .-.-. -....- ..--.- .-..-. "
    ".--.-."
)
_MORSE = dict(zip(_MORSE_CHARACTERS, _MORSE_CODES.split(), strict=True))
_UNMORSE = {code: letter for letter, code in _MORSE.items()}


@dataclass(frozen=True)
class Encoding:
    """A way to write text and to read it again."""

    encode: Callable[[str], str]
    decode: Callable[[str], str]
    """The inverse; raises `ValueError` for what is no such text."""
    keeps: str = "everything"
    """What comes back unchanged: "everything", or what the text must be for that."""


def _morse(text: str) -> str:
    """International Morse code (ITU-R M.1677-1): letters by spaces, words by " / "."""
    plain = unicodedata.normalize("NFKD", text).lower()
    words = (" ".join(_MORSE[c] for c in word if c in _MORSE) for word in plain.split())
    return " / ".join(word for word in words if word)


def _unmorse(text: str) -> str:
    try:
        words = ("".join(_UNMORSE[code] for code in word.split()) for word in text.split(" / "))
        return " ".join(words)
    except KeyError as error:
        raise ValueError(f"{error} is no Morse code") from error


def _unbase64(text: str) -> str:
    return base64.b64decode(text, validate=True).decode("utf-8")


def _unbinary(text: str) -> str:
    return bytes(int(byte, 2) for byte in text.split()).decode("utf-8")


def _fullwidth(text: str) -> str:
    """ASCII in the fullwidth forms of U+FF00; a space becomes the ideographic one."""
    wide = (chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)
    return "".join(wide).replace(" ", "\u3000")


def _bold(text: str) -> str:
    """Letters and digits in mathematical bold (U+1D400 and on)."""

    def one(c: str) -> str:
        for first, last, start in (("A", "Z", 0x1D400), ("a", "z", 0x1D41A), ("0", "9", 0x1D7CE)):
            if first <= c <= last:
                return chr(start + ord(c) - ord(first))
        return c

    return "".join(map(one, text))


def _compatible(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _visible(text: str) -> str:
    return "".join(c for c in text if c not in _ZERO_WIDTH)


def _tags(text: str) -> str:
    return "".join(chr(_TAGS + ord(c)) if ord(c) < 0x80 else c for c in text)


def _untags(text: str) -> str:
    return "".join(chr(ord(c) - _TAGS) if _TAGS <= ord(c) < _TAGS + 0x80 else c for c in text)


def _atbash(text: str) -> str:
    """The alphabet backwards: a is z."""
    return "".join(
        chr(ord("a") + ord("z") - ord(c))
        if "a" <= c <= "z"
        else chr(ord("A") + ord("Z") - ord(c))
        if "A" <= c <= "Z"
        else c
        for c in text
    )


def _spaced(text: str) -> str:
    return _WORD_GAP.join(" ".join(word) for word in text.split(" "))


def _unspaced(text: str) -> str:
    return " ".join(word.replace(" ", "") for word in text.split(_WORD_GAP))


ENCODINGS: dict[str, Encoding] = {
    "base64": Encoding(lambda t: base64.b64encode(t.encode()).decode(), _unbase64),
    "hex": Encoding(lambda t: t.encode().hex(), lambda t: bytes.fromhex(t).decode("utf-8")),
    "binary": Encoding(lambda t: " ".join(f"{byte:08b}" for byte in t.encode()), _unbinary),
    "rot13": Encoding(lambda t: codecs.encode(t, "rot13"), lambda t: codecs.encode(t, "rot13")),
    "atbash": Encoding(_atbash, _atbash),
    "reversed": Encoding(lambda t: t[::-1], lambda t: t[::-1]),
    "leet": Encoding(
        lambda t: t.translate(_LEET), lambda t: t.translate(_UNLEET), "small letters, no digits"
    ),
    "morse": Encoding(_morse, _unmorse, "small letters, digits and single spaces"),
    "fullwidth": Encoding(_fullwidth, _compatible, "ASCII"),
    "bold": Encoding(_bold, _compatible, "ASCII"),
    "lookalike": Encoding(
        lambda t: t.translate(_LOOKALIKE), lambda t: t.translate(_UNLOOKALIKE), "no Cyrillic"
    ),
    "zero_width": Encoding("\u200b".join, _visible, "no invisible characters"),
    "tags": Encoding(_tags, _untags, "no tag characters"),
    "spaced": Encoding(_spaced, _unspaced, "words and single spaces"),
}


def encode(text: str, names: Sequence[str]) -> str:
    """``text`` in these encodings, one after another; raises `UsageError` for an unknown one."""
    for name in names:
        if name not in ENCODINGS:
            raise UsageError(f"no encoding '{name}': use {', '.join(ENCODINGS)}")
        text = ENCODINGS[name].encode(text)
    return text


def decode(text: str, names: Sequence[str]) -> str:
    """The inverse of `encode`; raises `ValueError` for what was not encoded so."""
    for name in reversed(names):
        try:
            text = ENCODINGS[name].decode(text)
        except binascii.Error as error:
            raise ValueError(str(error)) from error
    return text
