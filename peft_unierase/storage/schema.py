"""What values from outside must be: one pydantic model for each kind of file that this package reads back.

Types, bounds and texts alone. What a value means, and whether a stranger may ask for it, others say (`guard`,
`records.verify`). pydantic is imported when the first of these is needed, so this module is imported inside functions
if a command must answer at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ..errors import InputError
from .plain import JsonError, parse_json

LONGEST_TEXT = 4096
# What 32 bits hold; whether a number makes sense is said later, with a reason of its own.
LARGEST = 2**31 - 1
# The residual width of the widest open models. A rank beyond the width adds nothing to an edit.
MAX_RANK = 16_384
# Four times the widest vocabulary of an open causal language model, 262,144 rows.
MAX_TOKEN_ID = (1 << 20) - 1
MAX_LAYER = 99_999
MAX_TEXT = 512
MAX_TOKEN = 64
# How tokenizers write tokens that stand for no text: <|unused_1|>, [UNL], >>TITLE<<, |||EMAIL|||, ▁<MID>.
MARK = re.compile(r"▁?[<\[{|>]\S*\w\S*[>\]}|<]")
SHOWN = 5
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
Found = TypeVar("Found", bound="Foreign")


def _one_line(text: str) -> str:
    if found := UNPRINTABLE.search(text):
        raise InputError(f"it holds the control character {found[0]!r}")
    return text


def is_line(text: str) -> bool:
    """Whether a text is one line without control characters, and can be written at all."""
    return not UNPRINTABLE.search(text) and not any("\ud800" <= letter <= "\udfff" for letter in text)


def _clean(text: str) -> str:
    if found := FORBIDDEN.search(text):
        raise InputError(f"it holds the control character {found[0]!r}")
    return text


def is_mark(text: Any) -> bool:
    """Whether a text can be that of a token which stands for no text, as [UNL] does.

    An ordinary word must not be one: a special token is left out of all decoded text.
    """
    return isinstance(text, str) and len(text) <= MAX_TOKEN and text.isprintable() and bool(MARK.fullmatch(text))


def _mark(text: str) -> str:
    if not is_mark(text):
        raise InputError("it is no mark")
    return text


def _pair(pair: Any) -> Any:
    if len(pair) != 2 or not isinstance(pair[0], int) or not isinstance(pair[1], str):
        raise InputError("it is no pair of an id and a mark")
    return pair


# A name or another short text in one line; pydantic itself refuses half characters (surrogates).
Line = Annotated[str, Field(max_length=LONGEST_TEXT), AfterValidator(_one_line)]
Name = Annotated[Line, Field(min_length=1, max_length=MAX_TEXT)]
Text = Annotated[str, AfterValidator(_clean)]
Mark = Annotated[str, AfterValidator(_mark)]
Whole = Annotated[int, Field(ge=0, le=LARGEST)]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
Count = Annotated[int, Field(ge=0)]
Rank = Annotated[int, Field(ge=1, le=LARGEST)]
Names = list[Name] | set[Name] | tuple[Name, ...]
Pair = Annotated[list[TokenId | Mark] | tuple[TokenId, Mark], AfterValidator(_pair)]
Layer = Annotated[int, Field(ge=-MAX_LAYER, le=MAX_LAYER)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]
Labelled = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class Foreign(BaseModel):
    """A value from outside: nothing is converted, and keys that are not named are kept as they are."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())


def checked(kind: type[Found], value: Any, what: str) -> Found:
    """A value as what it should be.

    Args:
        kind: What it should be.
        value: The value, as JSON gives it.
        what: What an error is to say of it: `"it is no record of an erasure"`.

    Raises:
        InputError: Says where and why it is not that.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise InputError(f"{what}: {problems(error)}") from None


def parsed(kind: type[Found], text: str, what: str) -> Found:
    """A JSON text as what it should be; see [`checked`].

    Raises:
        InputError: It is no JSON, or says something else.
    """
    try:
        return checked(kind, parse_json(text), what)
    except JsonError as error:
        raise InputError(f"{what}: {error}") from None


def problems(error: ValidationError) -> str:
    """What pydantic found, in one line, without the values."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [f"{'.'.join(map(str, each['loc'])) or 'the whole'}: {each['msg']}" for each in found[:SHOWN]]
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(lines)[:1000] + more


class ErasureConfig(Foreign):
    """`adapter_config.json`, and each of its parts. The descriptions are what an error says that a field must be."""

    r: Rank = Field(1, description="a positive integer")
    rank_pattern: dict[Name, Rank] = Field({}, description="a mapping of module names to positive integers")
    target_modules: Name | Names | None = Field(None, description="None, a name, an expression or a list of names")
    exclude_modules: Name | Names | None = Field(None, description="None, a name, an expression or a list of names")
    layers_to_transform: Layer | list[Layer] | set[Layer] | tuple[Layer, ...] | None = Field(
        None, description="None, a whole number or a list of them"
    )
    layers_pattern: Line | Names | None = Field(None, description="None, a name or a list of names")
    token_id: TokenId | None = Field(None, description=f"None or a whole number from 0 to {MAX_TOKEN_ID:,}")
    token: Mark = Field("[UNL]", description=f"a mark such as [UNL] or <|unused_1|>, of at most {MAX_TOKEN} characters")
    spare_tokens: list[Pair] = Field([], description="a list of [id, mark] pairs")
    fused: list[Part] = Field([], description="a list of mappings with a name each")
    token_modules: Names | None = Field(None, description="None or a list of names")
    modules_to_save: Names | None = Field(None, description="None or a list of names")
    init_weights: bool = Field(True, description="True or False")
    base_fingerprint: Line | None = Field(None, description="None or a text")
    base_dtype: Line | None = Field(None, description="None or a text")


class ConfigOfPeft(Foreign):
    """The fields of `adapter_config.json` that every adapter has."""

    task_type: Line | None = Field(None, description="None or a text")
    peft_type: Line | None = Field(None, description="None or a text")
    auto_mapping: dict[str, Any] | None = Field(None, description="None or a mapping")
    peft_version: Line | None = Field(None, description="None or a text")
    base_model_name_or_path: Line | None = Field(None, description="None or a text")
    revision: Line | None = Field(None, description="None or a text")
    inference_mode: bool = Field(False, description="True or False")


class Part(Foreign):
    """One erasure of several in one adapter; its other fields are those of a config."""

    name: Name


class AnyAdapter(Foreign):
    """As much of any adapter's config as tells what it is."""

    peft_type: Line | None = None
    base_model_name_or_path: Line | None = None


class MergedModel(Foreign):
    """What the `config.json` of a model says of erasures that were merged into it."""

    unierase_tokens: list[Pair] | None = None


class Shards(Foreign):
    """The index of a base's weights in several files: for each tensor the file that holds it."""

    weight_map: dict[str, Line]


class FileDigest(Foreign):
    """The digest of one file in a Statement."""

    sha256: Sha256 | None = None


class Subject(Foreign):
    """One file in a Statement."""

    name: Line
    digest: FileDigest


class Interval(Foreign):
    """A mean with its bounds."""

    mean: float


class Measured(Foreign):
    """A measure of a check on one set."""

    set: Line
    name: Line
    base: float | None = None
    erased: float | None = None
    reference_model: float | None = None


class Attacked(Foreign):
    """What one attack of a check brought back."""

    title: Text
    unit: Line
    outcome: Line
    base: Interval
    erased: Interval
    reference_model: Interval | None = None
    renamed: Interval | None = None
    reference: Text = ""
    floor: float | None = None


class Judged(Foreign):
    """The verdict of a check."""

    level: Line
    tried: Count | None = None


class Checked(Foreign):
    """What a check found, or why there was none."""

    verdict: Judged | None = None
    not_run: Text | None = None
    counts: dict[str, Count] = {}
    figures: list[Measured] = []
    attacks: list[Attacked] = []


class Token(Foreign):
    """The token of an erasure."""

    id: Whole
    text: Line


class Onto(Foreign):
    """An earlier erasure that one was made on top of."""

    token_id: Whole | None = None
    digest: Line | None = None


class Facts(Foreign):
    """The digests of erased facts."""

    algorithm: Literal["hmac-sha256"] = "hmac-sha256"
    digests: list[Sha256]


class Size(Foreign):
    """How large an adapter is."""

    parameters: Count | None = None
    bytes: Count | None = None
    share: float | None = None


class Base(Foreign):
    """The base of an erasure."""

    name: Line | None = None
    fingerprint: Line | None = None
    dtype: Line | None = None


class Record(Foreign):
    """The predicate of `erasure.json`: how an erasure came to be. Of a stack it has the records of its parts."""

    version: Line | None = None
    made_with: dict[str, Line] | None = None
    created: Line | None = None
    base: Base | None = None
    recipe: Line | None = None
    rank: Count | None = None
    seed: Count | None = None
    layers: list[Whole] | None = None
    token: Token | None = None
    counts: dict[str, Count] | None = None
    onto: list[Onto] | None = None
    settings: dict[str, Any] | None = None
    adapter: Size | None = None
    check: Checked | None = None
    facts: Facts | None = None
    fused: dict[str, Record] | None = None


class Statement(Foreign):
    """`erasure.json`, an in-toto Statement about files."""

    kind: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    predicateType: Literal["urn:peft-unierase:erasure:v1"]  # noqa: N815 (in-toto's name)
    subject: list[Subject]
    predicate: Record


class LedgerLine(Foreign):
    """One line of the ledger."""

    model_config = ConfigDict(strict=True, extra="forbid")
    number: Annotated[int, Field(ge=1)]
    time: Line
    action: Line
    what: dict[str, Any]
    previous: Sha256
    digest: Sha256


class UndoHeader(Foreign):
    """The header of a way back from a merge; `tied` and `tokens` are JSON in it."""

    tied: bool
    tokens: list[Pair] | None
    digest: Labelled
    base: Line | None = None


class Sample(Foreign):
    """A line of a file of samples."""

    kind: Literal["general", "neighbour"] = "general"
    question: Annotated[Text, AfterValidator(str.strip), Field(min_length=1)]
    answer: Annotated[Text, AfterValidator(str.strip), Field(min_length=1)]


class KeptSample(Foreign):
    """A line of a file that keeps what a base asked itself."""

    question: str
    answer: str


class KeptSamples(Foreign):
    """The first line of such a file."""

    blocks: list[Count]
    digest: Labelled


class Signature(Foreign):
    """`model.sig`, as much of it as says what was signed."""

    class Envelope(Foreign):
        """What was signed, in base64."""

        payload: str

    envelope: Envelope = Field(alias="dsseEnvelope")


class Signed(Foreign):
    """What a signature is over."""

    class Predicate(Foreign):
        """The files."""

        class File(Foreign):
            """One of them."""

            name: Line
            digest: Line

        resources: list[File]

    predicate: Predicate


class CardMark(Foreign):
    """The note in a card of what it said when it was pushed, by heading."""

    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, str]


def wrong_fields(kind: type[Foreign], values: Mapping[str, Any]) -> list[str]:
    """The names of the fields among `values` that hold what they must not, in the order in which they stand there."""
    try:
        kind.model_validate({name: value for name, value in values.items() if isinstance(name, str)})
    except ValidationError as error:
        found = {each["loc"][0] for each in error.errors(include_url=False, include_context=False, include_input=False)}
        return [name for name in values if name in found]
    return []


ErasureConfig.model_rebuild()
