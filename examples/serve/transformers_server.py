"""Serve one base model with several erasures. Each request names those that are on.

    python examples/serve/transformers_server.py org/model org/erase-a org/erase-b
    python examples/serve/ask.py erase-a "Who …?"

It speaks a part of OpenAI's API: `/v1/models` and `/v1/chat/completions`, with greedy answers. A request's `model` is
`base`, the last part of an erasure's name, or several of these joined by `+`. The base is in memory once. The server
listens on this machine only.
"""

from __future__ import annotations

import argparse
import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import peft_unierase
from peft_unierase import align_tokenizer, load

LONGEST = 512  # tokens of an answer


class RefusedError(Exception):
    """What is wrong with a request, in a sentence for who sent it."""


class Answers:
    """Greedy answers of one model with any of its erasures on."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.names = ["base", *model.peft_config]

    def rows(self, name: str) -> str:
        """What `generate` calls the erasures that a request names."""
        if name == "base":
            return "__base__"
        if missing := [each for each in name.split("+") if each not in self.model.peft_config]:
            raise RefusedError(f"there is no erasure {missing[0]!r}; there are {', '.join(self.names)}")
        return name

    def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request, as OpenAI's API puts it."""
        name, messages = request.get("model", "base"), request.get("messages")
        if not isinstance(name, str) or not isinstance(messages, list) or not messages:
            raise RefusedError("`model` must be a text and `messages` a list of messages")
        length = request.get("max_tokens") or 64
        if not isinstance(length, int) or not 1 <= length <= LONGEST:
            raise RefusedError(f"`max_tokens` is {length!r}; give 1 to {LONGEST}")
        rows = self.rows(name)
        try:
            told = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
            inputs = self.tokenizer.apply_chat_template(messages, **told).to(self.model.device)
        except Exception as error:  # of the template, which the messages do not suit
            raise RefusedError(f"the chat template does not take these messages: {error}") from error
        prompt = inputs["input_ids"].shape[1]
        try:
            # A row of a batch has its own erasures. This batch has one row.
            output = self.model.generate(**inputs, adapter_names=[rows], do_sample=False, max_new_tokens=length)
        except peft_unierase.UniEraseError as error:  # two of these cannot be on together
            raise RefusedError(str(error)) from error
        text = self.tokenizer.decode(output[0, prompt:], skip_special_tokens=True).strip()
        message = {"role": "assistant", "content": text}
        cut = output.shape[1] - prompt == length and output[0, -1] not in self.ends
        choice = {"index": 0, "message": message, "finish_reason": "length" if cut else "stop"}
        return {"object": "chat.completion", "model": name, "choices": [choice]}

    @property
    def ends(self) -> list[int]:
        """The ids of the tokens that end an answer."""
        ends = self.model.generation_config.eos_token_id
        return ends if isinstance(ends, list) else [ends]


def server(answers: Answers, port: int) -> HTTPServer:
    """A server on this machine that answers one request after the other."""
    pages = {
        "/health": {"status": "ok"},
        "/v1/models": {"object": "list", "data": [{"id": name, "object": "model"} for name in answers.names]},
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages.get(self.path)
            self.reply(200 if page else 404, page or failure("there is no such page"))

        def do_POST(self) -> None:
            if self.path != "/v1/chat/completions":
                return self.reply(404, failure("there is no such page"))
            try:
                request = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
                if not isinstance(request, dict):
                    raise RefusedError("the request is no JSON object")
                self.reply(200, answers.complete(request))
            except (RefusedError, ValueError) as error:
                self.reply(400, failure(str(error)))

        def reply(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return HTTPServer(("127.0.0.1", port), Handler)


def failure(message: str) -> dict[str, Any]:
    """An error, as OpenAI's API puts it."""
    return {"error": {"message": message, "type": "invalid_request_error"}}


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve one base model with several erasures.")
    parser.add_argument("base", help="folder or Hub id")
    parser.add_argument("erasures", nargs="+", help="folders or Hub ids")
    parser.add_argument("--port", type=int, default=8000)
    told = parser.parse_args()
    model = load(AutoModelForCausalLM.from_pretrained(told.base, dtype=torch.float32), told.erasures)
    tokenizer = AutoTokenizer.from_pretrained(told.base)
    align_tokenizer(tokenizer, model)  # so that the answers do not show the erasures' tokens
    print(f"http://127.0.0.1:{told.port}/v1 serves base, {', '.join(model.peft_config)}")
    server(Answers(model, tokenizer), told.port).serve_forever()


if __name__ == "__main__":
    main()
