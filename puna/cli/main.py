"""The ``puna`` command. Heavy imports wait inside the commands, so help and errors come at once."""

import atexit
import gc
import os
import sys
import traceback
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, TextIO

import typer

from puna import __version__
from puna.cli import (
    compress,
    cyberseceval,
    guard,
    models,
    online,
    plan,
    preferences,
    recipes,
    redteam,
    sample,
    scaling,
    serve,
    shield,
    tokenizers,
    tune,
)
from puna.core.errors import PunaError, PunaWarning

app = typer.Typer(
    help="Grow a Llama through its whole life, from raw text to a model you can talk to.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
recipes.register(app)
tune.register(app)
preferences.register(app)
online.register(app)
compress.register(app)
sample.register(app)
models.register(app)
serve.register(app)
plan.register(app)
shield.register(app)
redteam.register(app)
cyberseceval.register(app)
guard.register(app)
app.add_typer(tokenizers.app, name="tokenizer")
app.add_typer(scaling.app, name="scaling")


_TRAINS = {
    "run", "cpt", "sft", "reward", "dpo", "ppo", "grpo", "distill", "qat", "scaling run",
    "guard train",
}  # fmt: skip


def _print_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of every command."""


def _say(message: str) -> None:
    print(f"puna: {' '.join(message.split())}", file=sys.stderr)


_show_warning = warnings.showwarning


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Puna's own warnings in a line, others as Python shows them."""
    if issubclass(category, PunaWarning):
        _say(str(message))
    else:
        _show_warning(message, category, filename, lineno, file, line)


def _processes() -> AbstractContextManager[object]:
    """Meet the other processes where torchrun started this command several times."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return nullcontext()
    from puna.parallel import joined

    return joined()


def _wait_asleep() -> None:
    """Let threads that wait for others sleep sooner, where nobody chose.

    By default they spin for milliseconds. A training beside which another program uses a core then
    takes 2.5 times as long; one alone takes as long either way, decoding a tenth less. Read when
    torch is loaded. Figures: docs/log.md.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def main() -> None:
    """Run the command line; exit code 0 done, 1 the run failed, 2 wrong use."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    # Python looks for garbage among all that torch has made: rarer, a start takes 0.3 s less, and
    # at the end, where all of it goes anyway, not looking saves 0.4 s.
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)
    warnings.showwarning = _warn
    if _TRAINS & {" ".join(arguments[:1]), " ".join(arguments[:2])}:
        _wait_asleep()
    try:
        with _processes():
            code = app(arguments, prog_name="puna", standalone_mode=False)
        sys.exit(code or 0)
    except typer.TyperException as error:
        if message := error.format_message():  # help, given instead of a command, has none
            _say(f"{message} (add --help for what is possible)")
        sys.exit(2)
    except PunaError as error:
        if debug:
            traceback.print_exc()
        _say(str(error))
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _say("stopped; finished work is kept")
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:  # noqa: BLE001  the last line of defence for the user's terminal
        if debug:
            traceback.print_exc()
        _say(f"{type(error).__name__}: {error} (run again with --debug for the traceback)")
        sys.exit(1)
