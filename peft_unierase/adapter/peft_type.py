"""The PEFT type `UNIERASE`, as a member of PEFT's own enum.

PEFT keeps its methods in an enum and has no entry points, so a method from another package has to add its member
first; after that PEFT's public `register_peft_method` does the rest. A plain string in PEFT's mappings would not do:
`get_model_status` and transformers' `load_adapter` look the member up.

This is the only file that knows how an enum is put together inside.
"""

from __future__ import annotations

from typing import cast

from peft.utils import PeftType

METHOD = "unierase"
MEMBER = METHOD.upper()


def unierase_peft_type() -> PeftType:
    """The enum member `PeftType.UNIERASE`, added to the enum on the first call.

    Returns:
        The same member on every call.
    """
    if MEMBER in PeftType.__members__:
        return PeftType[MEMBER]
    member = str.__new__(PeftType, MEMBER)
    member._name_ = MEMBER
    member._value_ = MEMBER
    member.__objclass__ = PeftType  # type: ignore[attr-defined]
    member._sort_order_ = len(PeftType)
    PeftType._member_names_.append(MEMBER)
    PeftType._member_map_[MEMBER] = member
    PeftType._value2member_map_[MEMBER] = member
    # The enum's own metaclass refuses new attributes, `type` does not.
    type.__setattr__(PeftType, MEMBER, member)
    return cast(PeftType, member)
