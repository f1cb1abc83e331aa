"""What is asked of a prompt, and its answer as a record: the same for one prompt and for a file."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import Field, model_validator

from puna.core.config import Config
from puna.inference.engine import Engine
from puna.inference.generate import Generation
from puna.inference.request import Constraint, Request
from puna.inference.sampling import Sampling
from puna.tokenizer import Message, Tokenizer


class Task(Config):
    """How every prompt is taken and what its answers look like."""

    sampling: Sampling = Field(default_factory=Sampling)
    """How tokens are chosen."""
    as_chat: bool = False
    """Take a prompt as a user's message."""
    system: str = ""
    """System message of chats that bring none; empty is none."""
    n: int = Field(default=1, ge=1, le=256)
    """Answers to each prompt; the k-th has the seed plus k."""
    json_schema: Mapping[str, Any] | None = None
    """Schema that each answer follows as JSON."""
    regex: str | None = None
    """Regular expression that each answer matches as a whole."""

    @model_validator(mode="after")
    def _one_form(self) -> "Task":
        if self.json_schema is not None and self.regex is not None:
            raise ValueError("an answer follows a schema or an expression, not both")
        return self

    def prompt_ids(self, tokenizer: Tokenizer, prompt: str | Sequence[Message]) -> list[int]:
        """Tokens of a text, or of a conversation with the next answer opened.

        Raises `UsageError` for a chat on a tokenizer without chat format.
        """
        if isinstance(prompt, str) and not self.as_chat:
            return tokenizer.encode(prompt, bos=True)
        messages = [Message("user", prompt)] if isinstance(prompt, str) else list(prompt)
        if self.system and messages[:1] and messages[0].role != "system":
            messages.insert(0, Message("system", self.system))
        return tokenizer.chat.encode(tokenizer, messages, add_generation_prompt=True).ids

    def requests(self, engine: Engine, ids: Sequence[int], sampling: Sampling) -> list[Request]:
        """The ``n`` requests of one prompt; raises `UsageError` for a form that cannot be used."""
        stops = frozenset(engine.tokenizer.stop_ids)
        return [
            Request(
                ids,
                sampling.model_copy(update={"seed": sampling.seed + k}),
                stops,
                self._constraint(engine),
            )
            for k in range(self.n)
        ]

    def _constraint(self, engine: Engine) -> Constraint | None:
        if self.json_schema is not None:
            return engine.grammars.json_schema(self.json_schema)
        return None if self.regex is None else engine.grammars.regex(self.regex)


def answer_record(n_prompt: int, answers: Sequence[Generation]) -> dict[str, Any]:
    """A prompt's answers as a JSON object.

    One answer: ``text``, ``stopped`` (it ended by itself, not at a limit), ``prompt_tokens``,
    ``new_tokens``. Several: a list of their texts under ``answers``, and the sums.
    """
    counts = {"prompt_tokens": n_prompt, "new_tokens": sum(len(a.ids) for a in answers)}
    if len(answers) == 1:
        return _answer(answers[0]) | counts
    each = [_answer(answer) | {"new_tokens": len(answer.ids)} for answer in answers]
    return {"answers": each} | counts


def _answer(answer: Generation) -> dict[str, Any]:
    fields: dict[str, Any] = {"text": answer.text, "stopped": answer.stopped}
    if answer.logprobs:
        fields["logprobs"] = [asdict(entry) for entry in answer.logprobs]
    if answer.prompt_logprobs is not None:
        fields["prompt_logprobs"] = [e and asdict(e) for e in answer.prompt_logprobs]
    return fields
