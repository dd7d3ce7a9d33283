"""The tests' model hub in a process of its own: it prints its address and ends when its stdin closes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2] / "tests"


@contextmanager
def hub_process() -> Iterator[str]:
    """The address of a hub that runs while the block does; `HF_ENDPOINT` and the owner's token are set to it."""
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdin
    url, token = process.stdout.readline().split()
    os.environ.update(HF_ENDPOINT=url, HF_TOKEN=token, HF_HUB_DISABLE_XET="1", HF_HUB_OFFLINE="0")
    try:
        yield url
    finally:
        process.stdin.close()
        process.wait(timeout=30)


def main() -> None:
    sys.path.insert(0, str(TESTS))
    from hub_server import TOKEN, hub_server

    with hub_server() as hub:
        print(hub.url, TOKEN, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
