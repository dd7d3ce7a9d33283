"""Ways into Gradio that this page has no use for, closed: nobody has a file or an address to send."""

from __future__ import annotations

from typing import Any

CLOSED = ("upload", "component_server", "proxy=", "stream", "run", "api", "call", "deep_link", "run-history")
REFUSAL = b"This page takes no files and no calls but its own."


class Closed:
    """ASGI middleware that refuses what has one of these names after Gradio's prefix.

    Args:
        app: What comes after it.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer 403, or hand on."""
        if scope["type"] != "http" or not is_closed(scope["path"]):
            await self.app(scope, receive, send)
            return
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": REFUSAL})


def is_closed(path: str) -> bool:
    """Whether nobody may ask for a path."""
    _, found, rest = path.partition("/gradio_api/")
    name = rest.partition("/")[0]
    return bool(found) and (name in CLOSED or name.startswith(("upload", "proxy=")))
