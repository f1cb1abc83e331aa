"""The byte alphabet of byte-level BPE: ``tokenizer.json`` spells each byte as one character.

The table is GPT-2's ("Language Models are Unsupervised Multitask Learners", section 2.2): printable
Latin-1 bytes stand for themselves, the other 68 follow from U+0100 on.
"""


def _printable(byte: int) -> bool:
    return 0x21 <= byte <= 0x7E or (0xA1 <= byte <= 0xFF and byte != 0xAD)


_OTHERS = [byte for byte in range(256) if not _printable(byte)]
BYTE_TO_CHAR = [chr(b) if _printable(b) else chr(256 + _OTHERS.index(b)) for b in range(256)]
CHAR_TO_BYTE = {char: byte for byte, char in enumerate(BYTE_TO_CHAR)}
_OUTSIDE = "\u0100"  # no byte in Latin-1
_TO_LATIN1 = str.maketrans(
    {chr(byte): _OUTSIDE for byte in range(256)} | {c: chr(b) for c, b in CHAR_TO_BYTE.items()}
)


def to_chars(token: bytes) -> str:
    """How ``tokenizer.json`` spells these bytes."""
    return "".join(BYTE_TO_CHAR[byte] for byte in token)


def to_bytes(spelled: str) -> bytes:
    """The bytes behind a spelling; raises `KeyError` for a character outside the alphabet."""
    try:
        return spelled.translate(_TO_LATIN1).encode("latin-1")
    except UnicodeEncodeError as error:
        raise KeyError(spelled[error.start]) from error


def well_formed(text: str) -> str:
    """``text`` with lone surrogates, which no UTF-8 can carry, replaced by U+FFFD (as tiktoken)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
