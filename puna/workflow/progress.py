"""Live progress in the terminal: a reader of events."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from puna.core.events import Event

_SHOWN = 160
_ROLLOUT_COLUMNS = (
    # figure, title, width, format; those that a method does not have are left out
    ("rollout", "rollout", 10, "{}"),
    ("reward", "reward", 9, "{:.3f}"),
    ("kl", "KL", 9, "{:.3f}"),
    ("entropy", "entropy", 9, "{:.3f}"),
    ("clip_fraction", "clipped", 9, "{:.1%}"),
    ("explained_variance", "explained", 11, "{:.2f}"),
    ("undecided", "undecided", 11, "{:.0%}"),
    ("length", "length", 8, "{:.1f}"),
    ("ended", "ended", 8, "{:.0%}"),
)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _short(text: str) -> str:
    """A line of printable characters that fits most terminals."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return plain if len(plain) <= _SHOWN else f"{plain[:_SHOWN]}…"


def _figures(event: Event) -> str:
    parts = [f"loss {event['loss']:.3f}"]
    if "reward_accuracy" in event:
        parts.append(f"accuracy {event['reward_accuracy']:.2f}")
    if "policy_kl" in event:  # every so many steps one samples: only their mean says how long
        left = (event["steps"] - event["step"]) * event["seconds"] / event["step"]
        parts.append(f"{event['tokens'] / event['seconds']:,.0f} tokens/s")
    else:
        left = event["left_s"]
        parts.append(f"{event['tokens_per_s']:,.0f} tokens/s")
        parts.append(f"MFU {event['mfu']:.0%}")
    return " · ".join((*parts, f"{_clock(left)} left"))


def _all_left(event: Event, work: Mapping[str, Sequence[int]]) -> str:
    """The time left of this stage and of those after it at this speed; nothing for the last one.

    Args:
        work: steps and tokens of stages, in order.
    """
    if event["stage"] not in work:
        return ""
    later = list(work)[list(work).index(event["stage"]) + 1 :]
    tokens = sum(work[stage][1] for stage in later)
    steps, own = work[event["stage"]]
    seconds = 0.0
    if event["steps"] < steps:  # the event's are of one phase of several
        tokens += own - event["tokens"]
    else:
        seconds = event["left_s"]
    seconds += tokens / event["tokens_per_s"]
    return f", all training {_clock(seconds)}" if tokens else ""


class TerminalProgress:
    """Shows each stage as a line, and a bar while it trains or samples.

    On something that is not a terminal (a log file) it prints a line a tenth of the way instead.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._printed = 0
        self._table_of = ""  # the stage whose rollouts have a head already
        self._work: Mapping[str, Sequence[int]] = {}

    def __call__(self, event: Event) -> None:
        handler = getattr(self, f"_on_{event['kind']}", None)
        if handler is not None:
            handler(event)

    def close(self) -> None:
        """Leave the terminal as it was; the last state of a bar stays."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None

    def _on_run_start(self, event: Event) -> None:
        self._work = event["work"]

    def _on_stage_start(self, event: Event) -> None:
        self._printed, self._table_of = 0, ""
        self.console.print(f"[bold]{event['stage']}[/]")

    def _on_stage_skip(self, event: Event) -> None:
        self.console.print(f"[bold]{event['stage']}[/] [dim]already done[/]")

    def _on_stage_end(self, event: Event) -> None:
        self.close()
        self.console.print(f"  [green]done[/] in {_clock(event['seconds'])}")

    def _on_note(self, event: Event) -> None:
        self.console.print(f"  {event['text']}", markup=False, highlight=False)

    def _on_warning(self, event: Event) -> None:
        self.console.print(f"  warning: {event['text']}", style="yellow", markup=False)

    def _on_validation(self, event: Event) -> None:
        text = f"  step {event['step']}/{event['steps']} · held-out loss "
        self.console.print(f"{text}{event['held_out_loss']:.3f}", highlight=False)

    def _on_held_out_pairs(self, event: Event) -> None:
        parts = [f"accuracy {event['accuracy']:.1%}", f"margin {event['margin']:.2f}"]
        if "calibration_error" in event:
            parts.append(f"calibration error {event['calibration_error']:.3f}")
        text = f"  {event['when']} · {event['n']:,} held-out pairs · {' · '.join(parts)}"
        self.console.print(text, highlight=False)

    def _on_sample(self, event: Event) -> None:
        said, answer = (" ".join(event[key].split()) for key in ("question", "answer"))
        self.console.print(f"  step {event['step']} · {_short(said)}", style="dim", markup=False)
        self.console.print(f"    -> {_short(answer)}", markup=False, highlight=False)

    def _on_rollout(self, event: Event) -> None:
        """A row of the table; its head before the first one of a stage."""
        columns = [column for column in _ROLLOUT_COLUMNS if column[0] in event]
        if self._table_of != event["stage"]:
            self._table_of = event["stage"]
            heads = (f"{title:>{width}}" for _, title, width, _ in columns)
            self._print_row("".join(heads), style="bold")
        cells = (f"{form.format(event[name]):>{width}}" for name, _, width, form in columns)
        self._print_row("".join(cells))

    def _print_row(self, text: str, style: str = "") -> None:
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def _on_train_resume(self, event: Event) -> None:
        self._printed = event["step"] * 10 // event["steps"]  # a phase counts on from the last one
        self.console.print(f"  going on from step {event['step']} of {event['steps']}")

    def _on_rejection_resume(self, event: Event) -> None:
        self.console.print(f"  going on from prompt {event['done']} of {event['prompts']}")

    def _on_train_step(self, event: Event) -> None:
        figures = _figures(event) + _all_left(event, self._work)
        self._advance("step", event["step"], event["steps"], figures)

    def _on_rejection_step(self, event: Event) -> None:
        figures = f"best {event['best']:.3g} · mean {event['mean']:.3g}"
        left = f"{_clock(event['left_s'])} left"
        self._advance("prompt", event["done"], event["prompts"], f"{figures} · {left}")

    def _advance(self, unit: str, done: int, total: int, figures: str) -> None:
        """Move the bar, or print a line at a tenth of the way."""
        if not self.console.is_terminal:
            tenth = done * 10 // total
            if tenth > self._printed:
                self._printed = tenth
                text = f"  {unit} {done}/{total} · {figures}"
                self.console.print(text, highlight=False, soft_wrap=True)
            return
        if self._bar is None:
            self._bar = Progress(
                TextColumn(f"  {unit} {{task.completed}}/{{task.total}}"),
                BarColumn(),
                TextColumn("{task.fields[figures]}"),
                console=self.console,
            )
            self._bar.start()
            self._task = self._bar.add_task(unit, total=total, figures="")
        assert self._task is not None
        self._bar.update(self._task, completed=done, total=total, figures=figures)
