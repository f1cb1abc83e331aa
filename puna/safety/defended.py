"""A model behind a safeguard, in this process: what a guarded server does, without the server."""

from collections.abc import Sequence

from puna.inference import Sampling
from puna.safety.models import ChatModel, Reply
from puna.safety.safeguard import Safeguard, SlowFilter, Subject
from puna.tokenizer import Message


class Defended:
    """A `ChatModel` whose prompts are admitted and whose answers are filtered.

    Args:
        model: who answers; closed by `close`.
        safeguard: what watches; whoever made it closes it.
        name: what the safeguard is called.
    """

    def __init__(self, model: ChatModel, safeguard: Safeguard, name: str) -> None:
        self.name = f"{model.name} behind {name}"
        self.digest = f"{model.digest} behind {name}"
        self._model = model
        self._safeguard = safeguard

    async def reply(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        """See `ChatModel.reply`; what was stopped has finish "blocked"."""
        text = "\n\n".join(message.content for message in messages)
        subject = Subject(text, messages, self._model.name, None)
        verdict = await self._safeguard.admit(subject)
        if verdict.decision == "block":
            return Reply("", "blocked", verdict.reason)
        reply = await self._model.reply(messages, sampling)
        watch = self._safeguard.output_filter(subject)
        released = watch.push(reply.text)
        if isinstance(watch, SlowFilter):
            await watch.settled()
        if watch.verdict.decision != "block":
            released += watch.flush()
        if watch.verdict.decision == "block":
            return Reply(released, "blocked", watch.verdict.reason)
        return Reply(released, reply.finish, reply.reason)

    async def close(self) -> None:
        """Close the model."""
        await self._model.close()
