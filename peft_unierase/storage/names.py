"""Files that belong to an erasure, one line each with what becomes of it, and where this user's own records are.

Whoever adds a file to a saved erasure adds a line here, and writes it in `hub/folder.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
TOKENIZER_NAME = "tokenizer_config.json"
RECORD_NAME = "erasure.json"
CARD_NAME = "README.md"
REPORT_NAME = "report.json"
SIGNATURE_NAME = "model.sig"
LORA_NAME = "lora"
MODEL_NAME = "config.json"  # which a model has and an adapter has not


@dataclass(frozen=True)
class SavedFile:
    """A file of a saved erasure.

    Attributes:
        name: Its path in the folder, or a pattern of such.
        needed: Whether an erasure cannot be pushed without it.
        recorded: Whether its digest stands in the record. What may change later has none there.
        signed: Whether a signature is over it.
        ours: Whether a push takes it out of the repository if the folder no longer has it. Other files are the owner's.
    """

    name: str
    needed: bool = False
    recorded: bool = True
    signed: bool = True
    ours: bool = True


FILES = (
    SavedFile(CONFIG_NAME, needed=True),
    SavedFile(WEIGHTS_NAME, needed=True),
    SavedFile(TOKENIZER_NAME, needed=True),
    SavedFile(RECORD_NAME, needed=True, recorded=False),
    SavedFile(CARD_NAME, needed=True, recorded=False, signed=False),
    SavedFile(REPORT_NAME, recorded=False),
    SavedFile(SIGNATURE_NAME, recorded=False, signed=False),
    SavedFile(f"{LORA_NAME}/{CONFIG_NAME}"),
    SavedFile(f"{LORA_NAME}/{WEIGHTS_NAME}"),
    SavedFile("tokenizer.json"),
    SavedFile("tokenizer.model"),
    SavedFile("special_tokens_map.json"),
    SavedFile("added_tokens.json"),
    SavedFile("vocab.json"),
    SavedFile("vocab.txt"),
    SavedFile("merges.txt"),
    SavedFile("spiece.model"),
    SavedFile("sentencepiece.bpe.model"),
    SavedFile("chat_template.jinja"),
    SavedFile("additional_chat_templates/*.jinja"),
    SavedFile("LICENSE*", recorded=False, ours=False),
    SavedFile("NOTICE*", recorded=False, ours=False),
)
HIDDEN = (".*", "*/.*")  # of git and of downloads
# Data and texts that nothing runs. A kind of file that is not named here may be code, or a pickle, which is code too.
SUFFIXES = frozenset(
    (".json", ".jsonl", ".safetensors", ".md", ".txt", ".jinja", ".model", ".tiktoken", ".sig", ".png", ".jpg", ".jpeg")
)
NAMES = frozenset(("LICENSE", "NOTICE", ".gitattributes", ".gitignore"))
MAX_BYTES = 2 << 30


def is_allowed(name: str) -> bool:
    """Whether a file of that name may be part of an erasure."""
    last = PurePosixPath(name)
    return last.name in NAMES or last.suffix.lower() in SUFFIXES


def is_recorded(name: str) -> bool:
    """Whether the digest of a file stands in the record; that of one which no line names does."""
    without = (*(file.name for file in FILES if not file.recorded), *HIDDEN)
    return not any(fnmatchcase(name, pattern) for pattern in without)


def is_pushed(name: str) -> bool:
    """Whether a push takes a file along."""
    return is_allowed(name) and _matches(name, (file.name for file in FILES))


def is_ours(name: str) -> bool:
    """Whether a push writes a file, and deletes it if the folder no longer has it."""
    return _matches(name, (file.name for file in FILES if file.ours))


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)


def home() -> Path:
    """Where this user's ledger, salt and retain samples are: `UNIERASE_HOME`, or `.unierase` in the user's home."""
    return Path(os.environ.get("UNIERASE_HOME") or Path.home() / ".unierase")
