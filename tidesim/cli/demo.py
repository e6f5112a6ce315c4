"""``tidesim demo``: the main job on the bundled checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live
from rich.text import Text

from tidesim.cli.common import Json, err, print_json
from tidesim.cli.simulation import print_comparison
from tidesim.trace.passes import Kind

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from tidesim.runtime.decode import PassEvent
    from tidesim.runtime.prompts import Prompt


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("demo")(demo)


class _Screen:
    """Shows each text while its blocks are refined; masked positions are shaded."""

    def __init__(self, live: Live, tokenizer: "Tokenizer", prompts: list["Prompt"]) -> None:
        self.live, self.tokenizer, self.prompts = live, tokenizer, prompts
        self.mask_id = tokenizer.token_to_id("<|mask|>")
        self.request = -1
        self.done = ""

    def watch(self, request: int, event: "PassEvent") -> None:
        """Redraw after a pass."""
        if request != self.request:
            self.close()
            self.request = request
            prompt = self.prompts[request]
            err.print(f"[bold]prompt {request + 1}[/bold] ({prompt.kind}, {prompt.source})")
        if event.kind is Kind.PREFILL:
            self.done = self._text(event)
        elif event.kind is Kind.COMMIT:
            self.done += self._text(event)
            self.live.update(Text(self.done))
        else:
            self.live.update(Text(self.done) + Text(self._text(event), style="green"))

    def close(self) -> None:
        """Leave the finished text on the screen."""
        if self.done:
            self.live.update(Text(""))
            err.print(Text(self.done), soft_wrap=True)
            self.done = ""

    def _text(self, event: "PassEvent") -> str:
        parts, known = [], list[int]()
        for token in event.ids.tolist():
            if token == self.mask_id:
                parts += [self.tokenizer.decode(known), "░"]
                known = []
            else:
                known.append(token)
        return "".join((*parts, self.tokenizer.decode(known)))


def demo(
    *,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for trace, schedule and report.")
    ] = Path("demo-out"),
    json: Json = False,
) -> None:
    """Capture a trace, solve for an A100, simulate, compare with baselines, write a report.

    Example: tidesim demo --out demo-out

    JSON: trace, schedule, report, interval, tokens_per_s.
    """
    from tidesim import demo as job  # noqa: PLC0415 (imports torch and plotly)
    from tidesim.runtime.checkpoint import load_tokenizer  # noqa: PLC0415

    prompts = job.demo_prompts()
    with Live(console=err, transient=True, refresh_per_second=12) as live:
        screen = _Screen(live, load_tokenizer(job.CHECKPOINT), prompts)

        def stage(text: str) -> None:
            screen.close()
            err.print(f"[bold cyan]{text}[/bold cyan]")

        result = job.run_demo(out, stage=stage, watch=screen.watch, prompts=prompts)
    if json:
        print_json(result.to_json())
        return
    print_comparison("the captured trace", result.comparison)
    typer.echo(f"refresh {job.how_often(result.comparison.chosen)}; report: {result.report}")
