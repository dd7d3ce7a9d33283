"""Where sentences and lines end, in every script."""

from __future__ import annotations

from itertools import pairwise

import regex

# A sentence: a mark that closes one in any script, or a full stop that a capital, or a letter without case, follows.
# Short words with a capital before it are initials and abbreviations.
SENTENCE = regex.compile(
    r"(?:[?!\u037e\u055e\u061f\u0964\u0965\u1362\u1367\u17d4\u203d\u3002\uff01\uff0e\uff1f\uff61]+[\p{Pe}\p{Pf}\p{Po}]?"
    r"|(?<!(?<!\w)\p{Lu}\w{0,2})\.(?=\s+[\p{Lu}\p{Lo}]))|(?<=\S\s*)\n"
)


def sentences(text: str) -> list[str]:
    """A text's sentences and lines, in every script."""
    ends = [0, *(match.end() for match in SENTENCE.finditer(text)), len(text)]
    return [part for start, end in pairwise(ends) if (part := text[start:end].strip())]
