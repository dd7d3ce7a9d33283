"""A card that replaces another: with what the owner edited in that one and, in a repository, under its name and with
evaluation results.

A saved or pushed card ends with a comment that holds a digest of each of its sections. A section that no longer has its
digest was edited since, one without a digest was added: saving or pushing again keeps both. What was measured is always
new. Of a card without the comment, which is not ours, only the metadata is kept.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from ..storage.plain import parse_json
from .results import DATASET

HEADING = re.compile(r"(#{1,6}) +\S.*")
MARK = re.compile(r"\n*<!-- unierase-card: (\{.*\}) -->\s*\Z")
# How the card's code loads the erasure.
LOADING = re.compile(
    r"(AutoTokenizer\.from_pretrained\(|(?:peft_unierase\.load|PeftModel\.from_pretrained)\(base, (?:\[\*?\w+, )?)"
    r'("(?:[^"\\]|\\.)*")'
)
MEASURED = ("## Check", "## How it was made")
BLANK = "[More Information Needed]"


def repo_card(
    text: str, repo_id: str | None = None, results: Sequence[EvalResult] = (), there: str | None = None
) -> str:
    """The card of an erasure, made ready for its folder or for a repository.

    Args:
        text: The card.
        repo_id: The repository, whose name the code in the card loads.
        results: Evaluation results.
        there: `README.md` that it replaces, if there is one.
    """
    card = ModelCard(text)
    data: Any = card.data
    body = MARK.sub("\n", card.text.replace("\r\n", "\n"))
    if repo_id is not None:
        body = _named(body, repo_id)
    kept: list[EvalResult] = []
    edits: dict[str, str] = {}
    if there is not None:
        old = ModelCard(there, ignore_metadata_errors=True)
        old_data: Any = old.data
        kept = [each for each in old_data.eval_results or [] if each.dataset_type != DATASET]
        for key, value in old_data.to_dict().items():
            if key != "model-index" and key not in data.to_dict():
                data[key] = value
        data.tags = list(dict.fromkeys([*(data.tags or []), *(old_data.tags or [])])) or None
        edits = _edits(old.text.replace("\r\n", "\n"))
    own = {heading: part for heading, part in _sections(body).items() if heading not in edits}
    data.eval_results = [*results, *kept] or None
    data.model_name = repo_id.rsplit("/", 1)[-1] if repo_id and data.eval_results else None
    mark = json.dumps({heading: _digest(part) for heading, part in own.items()}, ensure_ascii=False)
    mark = mark.replace("--", "-\\u002d")  # two of them may not stand in a comment
    body = "".join(_in_order({**own, **edits}, list(_sections(body)), list(edits))).rstrip()
    return f"---\n{data.to_yaml()}\n---\n{body}\n\n<!-- unierase-card: {mark} -->\n"


def empty_sections(text: str) -> list[str]:
    """Headings of a card that nothing stands under, or what blank templates say there."""
    found, parts = [], _parts(ModelCard(text).text)
    for (level, heading, body), following in zip(parts, [*parts[1:], (0, "", "")], strict=True):
        if level and following[0] <= level and body.replace(BLANK, "").strip() == "":
            found.append(heading)
        elif BLANK in body:
            found.append(heading or "the beginning")
    return found


def _edits(body: str) -> dict[str, str]:
    """Sections that the owner edited or added since the last push."""
    mark = MARK.search(body)
    if not mark:
        return {}
    from ..storage.schema import CardMark
    from ..storage.values import parsed

    noted = (
        parsed(
            CardMark, mark[1], "the comment unierase-card at the end of the card was changed, take it out"
        ).model_extra
        or {}
    )
    return {
        heading: part
        for heading, part in _sections(body[: mark.start()] + "\n").items()
        if heading not in MEASURED and _digest(part) != noted.get(heading)
    }


def _in_order(parts: Mapping[str, str], ours: list[str], added: Sequence[str]) -> list[str]:
    """Sections in the order of the new card, those that it does not have before its last one."""
    extra = [heading for heading in added if heading not in ours]
    order = [*ours[:-1], *extra, *ours[-1:]] if len(ours) > 1 else [*ours, *extra]
    return [parts[heading].rstrip() + "\n\n" for heading in order]


def _sections(body: str) -> dict[str, str]:
    """Text by the heading of the second level that it stands under, heading included; `""` is what comes before."""
    found = {"": ""}
    now = ""
    for level, heading, text in _parts(body):
        if level == 2:
            now = heading
        found[now] = found.get(now, "") + (f"{heading}\n" if level else "") + text
    return found


def _parts(body: str) -> list[tuple[int, str, str]]:
    """Level, heading and text of every part; what comes first has level 0. Code is no heading."""
    parts, fenced = [(0, "", "")], False
    for line in body.splitlines(keepends=True):
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        found = None if fenced else HEADING.fullmatch(line.strip())
        if found:
            parts.append((len(found[1]), line.strip(), ""))
        else:
            level, heading, text = parts[-1]
            parts[-1] = (level, heading, text + line)
    return parts


def _named(body: str, repo_id: str) -> str:
    """The card under a repository's name instead of its folder's."""
    loading = LOADING.search(body)
    if not loading:
        return body
    old = str(parse_json(loading[2])).rsplit("/", 1)[-1]
    body = LOADING.sub(lambda found: found[1] + json.dumps(repo_id), body)
    return re.sub(
        rf"^# {re.escape(old)}$", lambda _: f"# {repo_id.rsplit('/', 1)[-1]}", body, count=1, flags=re.MULTILINE
    )


def _digest(part: str) -> str:
    return hashlib.sha256("\n".join(line.rstrip() for line in part.strip().splitlines()).encode()).hexdigest()[:16]
