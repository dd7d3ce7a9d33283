"""Facts from files and Hub data sets, in the layouts that people have.

`files` finds rows, `shapes` makes rows of other arrangements of JSON, `columns` names them, `layouts` says which
columns hold questions and answers, `rows` makes facts of rows. Nothing here knows a model or imports anything heavy.
"""

from .files import READABLE_SUFFIXES
from .read import FactWarning, read_facts

__all__ = ["READABLE_SUFFIXES", "FactWarning", "read_facts"]
