"""How texts are compared, in every language and script: their words, what they share, what they tell or name.

The one place that does. It knows no model, and imports neither torch nor transformers.

It uses the `regex` library, which transformers needs anyway: `re` knows no scripts and no grapheme clusters, and its
`\\w+` splits Hindi words at their vowel signs. `rouge-score` keeps `[a-z0-9]` only, so that a Chinese answer has no
words at all; on ASCII the words here are exactly its words. No segmenter is used (ICU, jieba, Unicode's word
boundaries): in scripts that are written without spaces only a dictionary knows words, and the choice of one would
decide the figures. There a word is one grapheme cluster, what a reader sees as one character.
"""

from .compare import recall
from .holding import holds
from .naming import find_name, names
from .normal import PIECE, SENTENCE, comparable, halves, normal, opening, scripts, sentences, terms, words

__all__ = [
    "PIECE",
    "SENTENCE",
    "comparable",
    "find_name",
    "halves",
    "holds",
    "names",
    "normal",
    "opening",
    "recall",
    "scripts",
    "sentences",
    "terms",
    "words",
]
