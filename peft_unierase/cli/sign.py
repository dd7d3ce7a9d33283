"""`unierase sign`: a signature over an erasure's folder."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from .note import note
from .output import Format, clear_endings, show, show_json


def run_sign(folder: Path, key: Path, style: Format) -> None:
    """Sign; ends the process with status 2 on bad input."""
    with clear_endings():
        from ..records.sign import sign
        from ..storage.output import holds_erasure

        if not holds_erasure(folder):
            raise InputError(f"{folder} holds no erasure; name the folder of one")
        signature = sign(folder, key)
    note("sign", folder, signature=str(signature))
    if style is Format.JSON:
        show_json({"signature": str(signature)})
    elif style is Format.HUMAN:
        show(f"Signed: {signature}. Who has your public key can run\n")
        show(f"    unierase verify {folder} --public-key key.pub")
