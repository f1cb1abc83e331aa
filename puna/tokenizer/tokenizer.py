"""One class over byte-level BPE: trained here, or read from a folder or from Llama 3's file."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

from puna.core.errors import UsageError
from puna.core.files import write_json, write_text
from puna.tokenizer import llama3
from puna.tokenizer.bytelevel import to_bytes, well_formed
from puna.tokenizer.chat import ChatFormat
from puna.tokenizer.folder import read_folder
from puna.tokenizer.formats import chat_format_of
from puna.tokenizer.llama31 import Llama31Format
from puna.tokenizer.special import N_SPECIAL, special_tokens


class Tokenizer:
    """Text to ids and back. Text is plain: a special token typed in it is split like any word.

    Args:
        backend: a byte-level BPE pipeline of the `tokenizers` library; the instance owns it.
        config: the keys of ``tokenizer_config.json``: names of special tokens, chat template.

    Attributes:
        vocab_size: highest id + 1, special tokens included.
        bos_id: opens every text, or None when the tokenizer has no such token.
        eos_id: ends a document.
        eot_id: ends a turn of a conversation.
        pad_id: fills rows; `eos_id` where there is no token of its own.
        stop_ids: any of these ends a generation.
    """

    def __init__(self, backend: Backend, config: Mapping[str, Any]) -> None:
        backend.encode_special_tokens = True  # the switch that keeps typed special tokens plain
        self._backend = backend
        self._config = dict(config)
        added = backend.get_added_tokens_decoder()
        self._special = {token.content: i for i, token in added.items() if token.special}
        self._bytes = _token_bytes(backend)
        self.vocab_size = len(self._bytes)
        self._chat = chat_format_of(self._special, self._config.get("chat_template"))
        self._name_special_ids()
        self._check_special_stay_plain()

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        digit_group: int = 3,
        n_special: int = N_SPECIAL,
    ) -> Self:
        """Learn a vocabulary; a pure function of the multiset of texts' pieces.

        Args:
            texts: what to learn from, read once.
            vocab_size: ids in all; the special tokens take the last ``n_special`` of them.
            digit_group: how many digits the split pattern keeps together, 1 to 3.
            n_special: how many of Llama 3's special tokens to keep; small vocabularies keep few.

        Raises `UsageError` when there is no text, or too little for the size asked, or the size has
        no room for the 256 bytes and the special tokens.
        """
        smallest = 256 + len(special_tokens(n_special))
        if vocab_size < smallest:
            raise UsageError(f"vocab_size is {vocab_size}: at least {smallest} (bytes + special)")
        plain = filter(None, map(well_formed, texts))
        first = next(plain, None)
        if first is None:
            raise UsageError("the training text is empty: a tokenizer needs text to learn from")
        backend = llama3.new_backend(models.BPE(), digit_group)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - n_special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(chain([first], plain), trainer)
        reached = backend.get_vocab_size() + n_special
        if reached < vocab_size:
            raise UsageError(
                f"vocab_size is {vocab_size}: the text holds only {reached} tokens: "
                "give more text or ask for fewer"
            )
        llama3.add_special_tokens(backend, n_special)
        return cls(backend, llama3.hf_config())

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read a folder that transformers or Puna wrote; see `read_folder` for its errors."""
        return cls(*read_folder(folder))

    @classmethod
    def from_tiktoken(cls, path: Path) -> Self:
        """Read Llama 3's ``tokenizer.model``; see `llama3.read_ranks` for its errors."""
        return cls(llama3.backend_from_tiktoken(path), llama3.hf_config())

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json`` for transformers and others.

        There ``add_special_tokens=True`` opens a text with BOS if the tokenizer has one, and
        ``apply_chat_template`` gives the ids of `ChatFormat.encode`.
        """
        config = self._config | {
            # Other class names make transformers rebuild the split from its own idea of the model.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
        }
        own = isinstance(self._chat, Llama31Format) and "chat_template" in config
        if self._chat is not None and not own:  # Meta's own templates stay as they are
            config["chat_template"] = self._chat.jinja()
        write_text(folder / "tokenizer.json", self._backend.to_str(pretty=True))
        write_json(folder / "tokenizer_config.json", config)

    @property
    def chat(self) -> ChatFormat:
        """How this tokenizer writes conversations; raises `UsageError` when it has no format."""
        if self._chat is None:
            raise UsageError(
                "this tokenizer has no chat tokens (Llama 3's or ChatML's): use a chat model"
            )
        return self._chat

    def with_chat(self, format: ChatFormat) -> Self:
        """The same tokenizer with another chat format, which its folder then states too.

        Raises `UsageError` when the vocabulary lacks the format's special tokens.
        """
        changed = type(self)(self._backend, self._config | {"chat_template": format.jinja()})
        if changed._chat != format:
            wanted = (*format.begin, *format.header, format.end_of_turn)
            named = [token for token in wanted if token.startswith("<|")]
            raise UsageError(f"this tokenizer cannot write that chat format: it needs {named}")
        return changed

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """Ids of ``text``, opened by BOS (where there is one) and closed by end of text if asked.

        Lone surrogates become U+FFFD. Bytes that a foreign vocabulary lacks are left out.
        """
        ids: list[int] = self._backend.encode(well_formed(text), add_special_tokens=False).ids
        opening = [self.bos_id] if bos and self.bos_id is not None else []
        return [*opening, *ids, *([self.eos_id] if eos else [])]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, on all cores."""
        plain = [well_formed(text) for text in texts]
        return [e.ids for e in self._backend.encode_batch_fast(plain, add_special_tokens=False)]

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of ``ids``; bytes that are not UTF-8 become U+FFFD."""
        kept = (i for i in ids if not (skip_special and i in self.special_ids))
        return b"".join(map(self.token_bytes, kept)).decode(errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes ``id`` stands for; a special token's are its name. Raises `UsageError`."""
        if not 0 <= id < self.vocab_size:
            raise UsageError(f"token id {id} is outside this vocabulary of {self.vocab_size}")
        return self._bytes[id]

    def special_id(self, token: str) -> int:
        """Id of a special token by name; raises `UsageError` for an unknown one."""
        if token not in self._special:
            raise UsageError(f"this tokenizer has no special token {token}")
        return self._special[token]

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of all special tokens."""
        return frozenset(self._special.values())

    def canonical(self, text: str) -> str:
        """What ``decode(encode(text))`` should give: ``text`` after the folder's own normaliser."""
        normalizer = self._backend.normalizer
        plain = well_formed(text)
        return plain if normalizer is None else normalizer.normalize_str(plain)

    def _name_special_ids(self) -> None:
        def first(*names: str | None) -> int | None:
            return next((self._special[name] for name in names if name in self._special), None)

        chat = self._chat
        named = {key: _content(self._config.get(f"{key}_token")) for key in ("bos", "eos", "pad")}
        self.bos_id = first(*chat.begin) if chat else first(named["bos"])
        eos_id = first(chat.end_of_text, named["eos"]) if chat else first(named["eos"])
        if eos_id is None:
            raise UsageError("the tokenizer names no end of text: set eos_token in its config")
        self.eos_id = eos_id
        self.eot_id = self._special[chat.end_of_turn] if chat else eos_id
        pad_id = first(chat.pad if chat else None, named["pad"])
        self.pad_id = eos_id if pad_id is None else pad_id
        extra = (
            [self._special[name] for name in chat.stops if name in self._special] if chat else []
        )
        self.stop_ids = frozenset([self.eos_id, self.eot_id, *extra])

    def _check_special_stay_plain(self) -> None:
        names = list(self._special)
        for name, ids in zip(names, self.encode_batch(names), strict=True):
            if not self.special_ids.isdisjoint(ids):
                raise UsageError(f"a typed {name} would act as one: use another tokenizer.json")

    def __reduce__(self) -> tuple[type[Self], tuple[Backend, dict[str, Any]]]:
        # The backend forgets its switch when pickled; building anew sets it again.
        return type(self), (self._backend, self._config)


def _content(token: str | Mapping[str, Any] | None) -> str | None:
    """Name of a special token in a config: a string, or an object in older folders."""
    return token["content"] if isinstance(token, Mapping) else token


def _token_bytes(backend: Backend) -> list[bytes]:
    """Bytes of every id; an id that no token has stands for nothing."""
    added = backend.get_added_tokens_decoder()
    vocabulary = backend.get_vocab()
    table = [b""] * (max(vocabulary.values()) + 1)
    for token, i in vocabulary.items():
        try:
            table[i] = added[i].content.encode() if i in added else to_bytes(token)
        except KeyError as error:
            raise UsageError(
                f"token {i} is '{token}': not spelled as byte-level BPE does"
            ) from error
    return table
