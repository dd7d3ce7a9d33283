"""`python -m peft_unierase`: the command as launchers take it."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    main()
