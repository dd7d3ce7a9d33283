"""The names at the top of the package: all are there, are shown to editors, and are what type checkers are told."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import peft_unierase


@pytest.mark.parametrize("name", peft_unierase.__all__)
def test_every_public_name_is_found_and_listed(name: str) -> None:
    assert getattr(peft_unierase, name) is not None
    assert name in dir(peft_unierase)


def test_type_checkers_are_told_of_every_public_name() -> None:
    tree = ast.parse(Path(peft_unierase.__file__).read_text(encoding="utf-8"))
    (told,) = [
        node for node in tree.body if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
    ]
    imports = [alias for node in told.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert {alias.asname or alias.name for alias in imports} == {*peft_unierase.__all__} - {"__version__"}


@pytest.mark.parametrize("name", [name for name in peft_unierase.__all__ if name.endswith("Error")])
def test_every_public_error_can_be_caught_as_one_of_the_package(name: str) -> None:
    error = getattr(peft_unierase, name)
    assert issubclass(error, peft_unierase.UniEraseError | OSError)


def test_every_error_of_the_package_is_public() -> None:
    root = Path(peft_unierase.__file__).parent
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in root.rglob("*.py")]
    kinds = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    errors = {kind.name for kind in kinds if kind.name.endswith(("Error", "Warning")) and kind.name[0] != "_"}
    assert errors <= {*peft_unierase.__all__}
