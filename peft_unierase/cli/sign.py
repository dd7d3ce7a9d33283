"""`unierase sign`: a signature over an erasure's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from .note import note
from .options import FormatOption
from .output import Format, clear_endings, show, show_json

EXAMPLES = (
    "Example:\n\nopenssl ecparam -name prime256v1 -genkey -noout -out key.pem\n\n"
    "openssl ec -in key.pem -pubout -out key.pub\n\nunierase sign erase-xyz --key key.pem\n\n"
    "unierase verify erase-xyz --public-key key.pub"
)


def sign(
    folder: Annotated[Path, typer.Argument(help="Folder of an erasure.")],
    key: Annotated[Path, typer.Option(help="Private key, elliptic-curve, in PEM.", show_default=False)],
    format: FormatOption = Format.AUTO,
) -> None:
    """Sign an erasure with a key of yours. Needs the extra `sign`."""
    style = format.resolved()
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
