"""The commands in one. No file of a command imports anything heavy at its top, so that help answers at once."""

from __future__ import annotations

import logging
import os
import signal
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..lm.processes import told
from ..version import __version__
from . import (
    check,
    demo,
    erase,
    export,
    inspect,
    log,
    merge,
    plan,
    push,
    quickstart,
    ramp,
    restore,
    sign,
    stack,
    verify,
)
from .options import check_arguments
from .output import clear_endings, interrupt, terminate
from .parser import parsed
from .together import check_shared


class Commands(TyperGroup):
    """The commands. Bad options are one line, as all errors are, and a bug says that it is one."""

    def make_context(self, *told: Any, **further: Any) -> Any:
        with clear_endings():
            return super().make_context(*told, **further)

    def invoke(self, ctx: Any) -> Any:
        with clear_endings(nothing="what was written before stays"):
            return super().invoke(ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        check_arguments(args)
        check_shared(args)
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="unierase",
    cls=Commands,
    help="Make a language model decline on chosen knowledge, as a small PEFT adapter.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Make a language model decline on chosen knowledge, as a small PEFT adapter."""


for _command, _examples in (
    (erase.erase, erase.EXAMPLES),
    (plan.plan, plan.EXAMPLES),
    (check.check, check.EXAMPLES),
    (ramp.ramp, ramp.EXAMPLES),
    (quickstart.quickstart, quickstart.EXAMPLES),
    (demo.demo, demo.EXAMPLES),
    (merge.merge, merge.EXAMPLES),
    (export.export, export.EXAMPLES),
    (stack.stack, stack.EXAMPLES),
    (inspect.inspect, inspect.EXAMPLES),
    (push.push, push.EXAMPLES),
    (verify.verify, verify.EXAMPLES),
    (log.log, log.EXAMPLES),
    (restore.restore, restore.EXAMPLES),
    (sign.sign, sign.EXAMPLES),
):
    app.command(epilog=_examples)(parsed(_command))


def main() -> None:
    """Entry point of the `unierase` command."""
    # Threads that spin while they wait make a run five times slower as soon as anything else wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    # Quantisers, which peft imports where they are installed, tell at each start which of their kernels do not fit.
    for name in ("bitsandbytes", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored, as in the background
        signal.signal(signal.SIGINT, interrupt)
    if told()[1] > 1:
        signal.signal(signal.SIGTERM, terminate)
    app(prog_name="unierase")
