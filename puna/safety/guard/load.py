"""From what a user names as a guard to the safeguard that a server or a chat uses."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from puna.core.errors import UsageError
from puna.safety.guard.head import Head, is_head
from puna.safety.guard.head_guard import HeadGuard, load_encoder
from puna.safety.guard.judgement import Classifier
from puna.safety.guard.llama_guard import LocalLlamaGuard, RemoteLlamaGuard
from puna.safety.guard.policy import Policy, RemovalFields
from puna.safety.guard.safeguard import Guard
from puna.safety.guard.sensitive import Finder
from puna.safety.models import LocalModel, digest_of, is_address, open_model


async def open_guard(names: Sequence[str], policy: Policy) -> Guard:
    """The safeguard made of the guards named, and of what the policy asks for besides.

    Args:
        names: each a head's folder, a Llama Guard model (what `load_model` takes), or the address
            of an OpenAI-compatible server with one, ``http://HOST/v1[#NAME]``.
        policy: what is done about what they find.

    Raises `UsageError` for a name that is no guard, two guards of one task, and a policy that the
    guards cannot carry out; `ExtraMissing` where the policy looks for secrets or personal data
    without the extra ``guard``.
    """
    found: dict[str, Classifier] = {}
    try:
        for name in names:
            task, classifier = await _open(name, policy)
            found_before = found.setdefault(task, classifier)
            if found_before is not classifier:
                await classifier.close()
                raise UsageError(f"'{name}' and '{found_before.name}' guard the same: name one")
        _check(policy, found)
        finder = Finder() if _looks(policy) else None
        if finder is not None:
            _check_kinds(policy, finder)
    except BaseException:
        for opened in found.values():
            await opened.close()
        raise
    return Guard(policy, found.get("hazard"), found.get("injection"), finder)


async def close_guard(guard: Guard) -> None:
    """Let go of what a guard holds."""
    for part in (guard.classifier, guard.detector):
        if part is not None:
            await part.close()


async def _open(name: str, policy: Policy) -> tuple[str, Classifier]:
    """What a guard judges, and the guard."""
    if is_address(name):
        framed = policy.prompt == "frame"
        if policy.custom and not framed:
            raise UsageError(
                "hazards of one's own must stand in the prompt: set 'prompt: frame' in the policy"
            )
        return "hazard", RemoteLlamaGuard(
            await open_model(name), policy.all_hazards(), framed=framed
        )
    folder = Path(name).expanduser()
    if is_head(folder):
        head = Head.load(folder)
        return head.facts.task, await asyncio.to_thread(open_head, name, head)
    model = await open_model(name)
    assert isinstance(model, LocalModel), "a name that is no address is a model of this machine"
    return "hazard", LocalLlamaGuard(model, policy.all_hazards())


def open_head(name: str, head: Head) -> HeadGuard:
    """A head with its model; raises `UsageError` when that is not the one it learned on."""
    facts = head.facts
    if digest_of(facts.model) != facts.digest:
        raise UsageError(
            f"{name}: the head was trained on another model than {facts.model} is now: "
            "train it again with 'puna guard train'"
        )
    return HeadGuard(name, head, load_encoder(facts.model, facts.layers))


def _looks(policy: Policy) -> bool:
    """Whether anything is done about secrets or personal data."""
    rules = [policy.secrets, policy.personal, *policy.kinds.values()]
    return any(rule != RemovalFields() for rule in rules)


def _check(policy: Policy, found: dict[str, Classifier]) -> None:
    """Whether the guards can carry out the policy; raises `UsageError`."""
    if not found and not _looks(policy):
        raise UsageError("nothing to guard with: name a guard, or look for secrets in the policy")
    if policy.custom and isinstance(found.get("hazard"), HeadGuard):
        raise UsageError(
            "a trained head knows no hazards of one's own: name a Llama Guard model, or train the "
            "head on rows of them"
        )


def _check_kinds(policy: Policy, finder: Finder) -> None:
    for kind in policy.kinds:
        if kind not in finder.kinds:
            raise UsageError(f"policy: unknown kind '{kind}': known are {', '.join(finder.kinds)}")
