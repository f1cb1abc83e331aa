"""``puna serve`` and ``puna keys``: the server, and who may use it."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from puna.cli.options import (
    CacheWeights,
    Compile,
    Draft,
    GuardNames,
    Json,
    PolicyFile,
    PrefixCache,
    ShieldMode,
    Speculation,
    TensorParallel,
    Weights,
    guard_of,
    open_engine,
    shield_of,
)
from puna.core.errors import PunaError, UsageError

if TYPE_CHECKING:  # imported inside the functions: help and errors come at once
    from puna.inference import Engine
    from puna.safety import Safeguard
    from puna.serving import ServeConfig

Closing = Callable[[], Awaitable[None]]
keys_app = typer.Typer(
    help="API keys of a server: a file that holds their hashes.", no_args_is_help=True
)

_LIMITS = "Limits"
_ACCESS = "Access"
File = Annotated[Path, typer.Option("--file", help="The file of keys; made when missing.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(serve)
    app.add_typer(keys_app, name="keys")
    keys_app.command("add")(add_key)
    keys_app.command("list")(list_keys)
    keys_app.command("remove")(remove_key)


def serve(
    model: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]MODEL...",
            help="Folders, GGUF files, cached repo ids, or smollm2; served by NAME, or by the last "
            "part of their own.",
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER[@MODEL]",
            help="A LoRA adapter, on the first model or the one named; repeatable.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Any but a loopback address needs --keys.", rich_help_panel=_ACCESS)
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="0 takes a free one.", rich_help_panel=_ACCESS)
    ] = 8000,
    keys: Annotated[
        Path | None,
        typer.Option(help="File of API keys, see 'puna keys'.", rich_help_panel=_ACCESS),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Let web pages of this origin call; repeatable.",
            rich_help_panel=_ACCESS,
        ),
    ] = None,
    adapter_folder: Annotated[
        Path | None,
        typer.Option(
            help="Let admin keys load adapters from below this folder while the server runs.",
            rich_help_panel=_ACCESS,
        ),
    ] = None,
    weights: Weights = "auto",
    compiled: Compile = True,
    speculation: Speculation = None,
    draft: Draft = None,
    cache_weights: CacheWeights = "auto",
    prefix_cache: PrefixCache = True,
    tensor_parallel: TensorParallel = 1,
    rows: Annotated[
        int, typer.Option(min=1, help="Most requests decoded together.", rich_help_panel=_LIMITS)
    ] = 64,
    cache_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens the cache holds; default: a quarter of the free memory.",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    queue: Annotated[
        int, typer.Option(min=1, help="Most requests waiting.", rich_help_panel=_LIMITS)
    ] = 1024,
    queue_tokens: Annotated[
        int, typer.Option(min=1, help="Most prompt tokens waiting.", rich_help_panel=_LIMITS)
    ] = 1_048_576,
    max_body_mb: Annotated[
        float, typer.Option(min=0.01, help="Largest request.", rich_help_panel=_LIMITS)
    ] = 4,
    request_seconds: Annotated[
        float, typer.Option(min=1, help="Longest time for an answer.", rich_help_panel=_LIMITS)
    ] = 600,
    drain_seconds: Annotated[
        float,
        typer.Option(
            min=0,
            help="Time for accepted requests to finish when the server is stopped.",
            rich_help_panel=_LIMITS,
        ),
    ] = 30,
    connections: Annotated[
        int, typer.Option(min=1, help="Most open connections.", rich_help_panel=_LIMITS)
    ] = 1024,
    shield: ShieldMode = "warn",
    guard: GuardNames = None,
    policy: PolicyFile = None,
    upstream: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Stand in front of another server, http://HOST/v1, instead of serving models. Its "
            "key is read from the environment variable PUNA_UPSTREAM_KEY.",
            rich_help_panel=_ACCESS,
        ),
    ] = None,
    accept_risk: Annotated[
        str | None,
        typer.Option(
            metavar="REASON",
            help="Serve a model that its gate refuses; the reason is written to its card.",
            rich_help_panel=_ACCESS,
        ),
    ] = None,
    logs: Annotated[
        bool, typer.Option("--logs/--no-logs", help="A JSON line a request on standard error.")
    ] = True,
    log_text: Annotated[
        bool, typer.Option("--log-text", help="Put prompts and answers into these lines.")
    ] = False,
) -> None:
    """Serve models over OpenAI's protocol, with a web chat at / and figures at /stats."""
    from puna.serving import ServeConfig

    config = ServeConfig.parse(
        {
            "host": host,
            "port": port,
            "keys": keys,
            "cors": tuple(cors or ()),
            "adapter_folder": adapter_folder,
            "max_body_bytes": int(max_body_mb * 1024 * 1024),
            "request_seconds": request_seconds,
            "drain_seconds": drain_seconds,
            "max_connections": connections,
            "log_requests": logs,
            "log_text": log_text,
        },
        where="serve",
    )
    if bool(model) == bool(upstream):
        raise UsageError("name models to serve, or another server with --upstream URL")
    models = _named(model or [])
    for source in models.values():
        _pass_gate(source, accept_risk)
    adapters = [_adapter(spec, models) for spec in adapter or []]

    def open_one(source: str) -> "Engine":
        return open_engine(
            source,
            weights,
            speculation,
            draft,
            compiled=compiled,
            cache_weights=cache_weights,
            prefix_cache=prefix_cache,
            tensor_parallel=tensor_parallel,
            max_rows=rows,
            cache_tokens=cache_tokens,
            max_queue=queue,
            max_queue_tokens=queue_tokens,
        )

    _serve(config, models, adapters, open_one, lambda: _safeguards(guard, policy, shield), upstream)


def _safeguards(
    guard: list[str] | None, policy: Path | None, shield: Literal["off", "warn", "block"]
) -> "tuple[Safeguard | None, list[Closing]]":
    """All that watches prompts and answers as one, and what closes it."""
    from puna.safety.chain import chained
    from puna.safety.guard import close_guard

    found = asyncio.run(guard_of(guard, policy))
    if found is None:
        return chained(shield_of(shield)), []
    return chained([*shield_of(shield), found]), [lambda: close_guard(found)]


def _serve(
    config: "ServeConfig",
    models: dict[str, str],
    adapters: list[tuple[str, Path, str]],
    open_one: Callable[[str], "Engine"],
    safeguards: "Callable[[], tuple[Safeguard | None, list[Closing]]]",
    upstream: str | None,
) -> None:
    """Load, serve, and end; raises `PunaError` when accepted requests were broken off."""
    from puna.core.devices import in_own_thread
    from puna.serving import Hub, create_app
    from puna.serving.auth import KeyFile
    from puna.serving.hub import warm_up
    from puna.serving.lifecycle import listen, run
    from puna.serving.upstream import NoModels, Upstream, UpstreamConfig

    if config.keys is not None:
        KeyFile.read(config.keys)  # a broken one shows before a model is loaded
    with listen(config) as listener:

        def ready_engines() -> dict[str, "Engine"]:
            engines = {name: open_one(source) for name, source in models.items()}
            for engine in engines.values():
                warm_up(engine)
            return engines

        other = None
        if upstream is not None:
            other = Upstream(UpstreamConfig.parse({"url": upstream}, where="--upstream"))
        hub = Hub(in_own_thread(ready_engines)) if other is None else NoModels()
        hub.start()
        try:
            for name, folder, model in adapters:
                asyncio.run(hub.load_adapter(name, folder, model))
            host = f"[{config.host}]" if ":" in config.host else config.host
            address = f"http://{host}:{listener.getsockname()[1]}"
            names = ", ".join(hub.names()) or f"in front of {upstream}"
            safeguard, closing = safeguards()
            line = f"{names}: {address}/v1 · chat: {address}/ · Ctrl-C stops"
            app = create_app(hub, config, safeguard=safeguard, upstream=other, closing=closing)
            complete = run(app, config, listener, lambda: print(line, flush=True))
        finally:
            hub.close()
    if not complete:
        raise PunaError("stopped before every accepted request was done")


def _pass_gate(source: str, accept_risk: str | None) -> None:
    """Raise `PunaError` for a model that its gate refuses; say so where the risk is accepted."""
    from puna.safety.gate import admit

    line = admit(source, accept_risk)
    if line is not None:
        print(f"puna: {line}", file=sys.stderr)


def _named(specs: list[str]) -> dict[str, str]:
    """Models by the names they are served by; raises `UsageError` for a name given twice."""
    models: dict[str, str] = {}
    for spec in specs:
        name, equals, source = spec.partition("=")
        if not equals or Path(spec).exists():
            source = spec
            name = Path(spec).expanduser().resolve().name.removesuffix(".gguf")
        if not name or name in models:
            raise UsageError(f"'{spec}': the name '{name}' is taken or empty: write NAME={source}")
        models[name] = source
    return models


def _adapter(spec: str, models: dict[str, str]) -> tuple[str, Path, str]:
    """Name, folder and model of an adapter; raises `UsageError`."""
    name, equals, rest = spec.partition("=")
    folder, _, model = rest.rpartition("@") if "@" in rest else (rest, "", next(iter(models)))
    if not name or not equals or not folder:
        raise UsageError(f"--adapter '{spec}': write it as NAME=FOLDER or NAME=FOLDER@MODEL")
    if model not in models:
        raise UsageError(f"--adapter '{spec}': no model is served as '{model}'")
    return name, Path(folder), model


def add_key(
    name: Annotated[str, typer.Argument(help="Whom the key is for; in logs.")],
    file: File = Path("keys.json"),
    requests_per_minute: Annotated[int | None, typer.Option(min=1)] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Read and written together.")
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="May load and unload adapters.")] = False,
) -> None:
    """Make a key and print it, once: only its hash is kept."""
    from puna.serving.auth import KeyFile

    known = KeyFile.read(file) if file.exists() else KeyFile()
    changed, key = known.add(
        name,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        admin=admin,
    )
    changed.write(file)
    print(key)


def list_keys(file: File = Path("keys.json"), as_json: Json = False) -> None:
    """Show whom keys were made for, and their limits."""
    from rich.console import Console
    from rich.table import Table

    from puna.serving.auth import KeyFile

    entries = [entry.model_dump(exclude={"sha256"}) for entry in KeyFile.read(file).keys]
    if as_json:
        print(json.dumps({"keys": entries}))
        return
    table = Table("name", "created", "requests/min", "tokens/min", "admin")
    for entry in entries:
        table.add_row(*("" if value in (None, False) else str(value) for value in entry.values()))
    Console().print(table)


def remove_key(
    name: Annotated[str, typer.Argument(help="Whose key it is.")], file: File = Path("keys.json")
) -> None:
    """Remove a key; servers that run notice at the next request."""
    from puna.serving.auth import KeyFile

    KeyFile.read(file).remove(name).write(file)
