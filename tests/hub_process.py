"""Python processes that use a hub of the tests: huggingface_hub reads its address at import, so each has one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

WORKER = """
import json, sys, warnings
answers, sys.stdout = sys.stdout, sys.stderr
space = {}
for line in sys.stdin:
    space["result"], answer = None, {}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        try:
            exec(json.loads(line), space)
        except Exception as error:
            answer = {"error": str(error), "type": type(error).__name__}
    said = [str(each.message) for each in told]
    print(json.dumps({"result": space["result"], "warnings": said, **answer}), file=answers, flush=True)
"""


class HubProcess:
    """A Python process that runs code one piece after another, so that its imports are paid for once."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def try_run(self, code: str, **values: Any) -> dict[str, Any]:
        """Run code with values as its variables.

        Returns:
            Its `result`, the `warnings`, and where it failed `error` and `type`.
        """
        assert self.process.stdin
        assert self.process.stdout
        given = "".join(f"{name} = {value!r}\n" for name, value in values.items())
        self.process.stdin.write(json.dumps(given + code) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def run(self, code: str, **values: Any) -> Any:
        """The same for code that must not fail: what it set `result` to."""
        answer = self.try_run(code, **values)
        assert "error" not in answer, f"{answer['type']}: {answer['error']}"
        return answer["result"]

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=30)
