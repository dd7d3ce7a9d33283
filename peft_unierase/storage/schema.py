"""What files that this package reads back must hold: one pydantic model for each kind of file.

Types, bounds and texts alone. What a value means, and whether a stranger may ask for it, others say (`guard`,
`records.compare`). Like `values`, this module is imported inside functions if a command must answer at once.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field

from .values import (
    MAX_TOKEN,
    MAX_TOKEN_ID,
    Count,
    Foreign,
    Labelled,
    Layer,
    Line,
    Mark,
    Name,
    Names,
    Pair,
    Rank,
    Sha256,
    Text,
    TokenId,
    Whole,
)


class OwnFields(Foreign):
    """What each erasure of several in one adapter has values of its own for, and an erasure by itself.

    The descriptions are what an error says that a field must be.
    """

    r: Rank = Field(1, description="a positive integer")
    rank_pattern: dict[Name, Rank] = Field({}, description="a mapping of module names to positive integers")
    target_modules: Name | Names | None = Field(None, description="None, a name, an expression or a list of names")
    token_id: TokenId | None = Field(None, description=f"None or a whole number from 0 to {MAX_TOKEN_ID:,}")
    token: Mark = Field("[UNL]", description=f"a mark such as [UNL] or <|unused_1|>, of at most {MAX_TOKEN} characters")
    spare_tokens: list[Pair] = Field([], description="a list of [id, mark] pairs")
    base_fingerprint: Line | None = Field(None, description="None or a text")
    base_dtype: Line | None = Field(None, description="None or a text")


class ErasureConfig(OwnFields):
    """`adapter_config.json`."""

    exclude_modules: Name | Names | None = Field(None, description="None, a name, an expression or a list of names")
    layers_to_transform: Layer | list[Layer] | set[Layer] | tuple[Layer, ...] | None = Field(
        None, description="None, a whole number or a list of them"
    )
    layers_pattern: Line | Names | None = Field(None, description="None, a name or a list of names")
    fused: list[Part] = Field([], description="a list of mappings with a name each")
    token_modules: Names | None = Field(None, description="None or a list of names")
    modules_to_save: Names | None = Field(None, description="None or a list of names")
    init_weights: bool = Field(True, description="True or False")


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
    counts: dict[str, Count] = Field({})
    figures: list[Measured] = Field([])
    attacks: list[Attacked] = Field([])


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


ErasureConfig.model_rebuild()
