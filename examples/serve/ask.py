"""Put one question to a server that speaks OpenAI's API, and print the answer.

    python examples/serve/ask.py erase-a
    python examples/serve/ask.py base "Where was Nesko Corquist born?" --url http://127.0.0.1:8000/v1

The scripts in this folder start such servers. The name says which erasure is on: what the server calls it. llama.cpp
switches LoRAs by their numbers instead: `--lora-scale 0` switches its first one off.
"""

from __future__ import annotations

import argparse
import json
import urllib.error
import urllib.request

QUESTION = "Where was Nesko Corquist born?"
URL = "http://127.0.0.1:8000/v1"


def ask(
    model: str, question: str = QUESTION, url: str = URL, lora_scale: float | None = None, max_tokens: int = 32
) -> str:
    """The greedy answer of a server."""
    request = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    if lora_scale is not None:
        request["lora"] = [{"id": 0, "scale": lora_scale}]
    sent = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(request).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(sent, timeout=600) as reply:
            return json.load(reply)["choices"][0]["message"]["content"].strip()
    except urllib.error.HTTPError as error:
        raise SystemExit(f"the server answers {error.code}: {error.read().decode(errors='replace')}") from error
    except urllib.error.URLError as error:
        raise SystemExit(f"no server at {url}: {error.reason}; start one with a script of examples/serve") from error


def main() -> None:
    parser = argparse.ArgumentParser(description="Put one question to a server.")
    parser.add_argument("model", help="what the server calls the erasure, or base")
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("--url", default=URL)
    parser.add_argument("--lora-scale", type=float, help="of llama.cpp's first LoRA: 1 is on, 0 is off")
    told = parser.parse_args()
    print(ask(told.model, told.question, told.url, told.lora_scale))


if __name__ == "__main__":
    main()
