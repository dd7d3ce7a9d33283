"""Entry point of the `unierase` command.

It lies beside the package, because importing the package loads PEFT and with it torch, and `unierase --help` shall not
wait for them. If this module was imported first, the package leaves registering its PEFT type to the command.
"""

from __future__ import annotations


def main() -> None:
    """Run the command that the process's arguments name."""
    from peft_unierase.cli import main

    main()
