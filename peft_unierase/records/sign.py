"""Signatures over an erasure's folder by the library model-signing (extra `sign`), with a key of one's own."""

from __future__ import annotations

import base64
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import InputError, MissingPackageError
from ..storage.names import FILES, SIGNATURE_NAME
from ..storage.plain import check_plain_folder, read_json
from ..storage.whole import whole_file
from .compare import FAILS, HOLDS, Comparison

UNSIGNED = (*(file.name for file in FILES if not file.signed), ".gitattributes", ".git", ".cache")


def sign(folder: Path, private_key: Path) -> Path:
    """Sign all files of a folder but the card, which may change, with an elliptic-curve key (PEM).

    Raises:
        ImportError: model-signing is not installed.
        ValueError: There is no such key, or it is none.
    """
    signing = _library("signing")
    if not private_key.is_file():
        raise InputError(
            f"no such file: {private_key}; `private_key` (on the command line --key) is a private key in PEM, as "
            "`openssl ecparam -genkey` makes"
        )
    check_plain_folder(folder)
    signature = folder / SIGNATURE_NAME
    config = signing.Config().set_hashing_config(_hashing(folder))
    with TemporaryDirectory() as elsewhere:
        made = Path(elsewhere) / SIGNATURE_NAME
        try:
            config.use_elliptic_key_signer(private_key=private_key).sign(folder, made)
        except (TypeError, ValueError) as error:
            raise InputError(f"{private_key} cannot sign: {error}") from error
        with whole_file(signature) as partial:
            partial.write_bytes(made.read_bytes())
    return signature


def verify_signature(folder: Path, public_key: Path) -> Comparison:
    """Whether the folder is as it was when the owner of a key signed it.

    The links of huggingface_hub's cache are followed, and no others.

    Raises:
        ImportError: model-signing is not installed.
        ValueError: There is no such key.
    """
    from ..guard.files import foreign_links

    verifying = _library("verifying")
    check_plain_folder(folder)
    if not public_key.is_file():
        raise InputError(
            f"no such file: {public_key}; `public_key` (on the command line --public-key) is a public key in PEM"
        )
    signature = folder / SIGNATURE_NAME
    if not signature.is_file():
        return Comparison("signature", FAILS, f"there is no {SIGNATURE_NAME}")
    hashing = _hashing(folder).set_allow_symlinks(not foreign_links(folder))
    config = verifying.Config().set_hashing_config(hashing)
    try:
        config.use_elliptic_key_verifier(public_key=public_key).verify(folder, signature)
    except Exception as error:  # the library has no common class for what it raises
        return Comparison("signature", FAILS, str(error).splitlines()[0])
    return Comparison("signature", HOLDS, f"signed with the key of {public_key.name}")


def signed_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that a signature is over, by their names; whose it is, is not asked.

    Raises:
        ValueError: It is no signature.
    """
    from ..storage.schema import Signature, Signed
    from ..storage.values import checked, parsed

    file = folder / SIGNATURE_NAME
    try:
        outer = checked(Signature, read_json(file), "it is no signature")
        inner = parsed(Signed, base64.b64decode(outer.envelope.payload).decode("utf-8"), "it is no signature")
        return {each.name: each.digest for each in inner.predicate.resources}
    except (ValueError, OSError) as error:
        raise InputError(f"{file} is no signature that `unierase sign` made; sign again or take it out") from error


def _hashing(folder: Path) -> Any:
    left = folder.glob(f".{SIGNATURE_NAME}.partial-*")  # by a command that was killed
    paths = [*(file.name for file in left), *UNSIGNED]  # in the folder: the library joins them to its path
    return _library("hashing").Config().set_ignored_paths(paths=paths, ignore_git_paths=True)


def _library(part: str) -> Any:
    from importlib import import_module

    try:
        return import_module(f"model_signing.{part}")
    except ImportError as error:
        raise MissingPackageError(
            'signing needs model-signing; install it with: pip install "peft-unierase[sign]"'
        ) from error
