"""Which columns hold questions and answers: one line for each layout that data sets are published in.

Knows names alone; what the values are made into is in `rows`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .choices import ChoiceColumns, find_choices
from .columns import MISSING, Names, getter, plain_form
from .facts import FactError
from .table import LOOKED_AT, Table, quoted
from .values import is_blank


@dataclass(frozen=True)
class Layout:
    """Columns that belong together.

    Attributes:
        question: Column of the questions.
        answer: Column of the answers; the same one is a column of whole chats.
        wrong: Columns of answers that are wrong.
        accepted: Columns of further answers that are right.
        subject: Column of whom or what it is about, where it is called otherwise.
        needs: Columns without which the names mean something else.
        template: Whether `{}` in a question stands for the subject.
        choices: Whether an answer is one of choices, or there is none.
        otherwise: Column of the answer of a row that has none.
    """

    question: str
    answer: str
    wrong: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    subject: str | None = None
    needs: tuple[str, ...] = ()
    template: bool = False
    choices: bool = False
    otherwise: str | None = None

    @property
    def is_chat(self) -> bool:
        return self.question == self.answer


# The first layout whose columns are all there is taken, so what holds most comes first.
LAYOUTS = (
    # CounterFact and MQuAKE.
    *(
        Layout("requested_rewrite.prompt", f"requested_rewrite.{true}", (f"requested_rewrite.{wrong}",), template=True)
        for true, wrong in (("target_true.str", "target_new.str"), ("target_true", "target_new"))
    ),
    # Choices: ARC and OpenBookQA as published, then tables with the answer as a letter, an index or a text.
    Layout("question.stem", "answerKey", choices=True),
    *(
        Layout(question, answer, choices=True)
        for question in ("question", "question_stem", "question_text", "query", "prompt", "goal", "ctx", "problem", "q")
        for answer in (
            *("answer", "answerKey", "answer_idx", "answer_index", "answer_id", "answer_letter"),
            *("correct_answer", "correct_option", "correct_choice", "correct_index", "correct", "cop"),
            *("gold", "gold_index", "label", "target"),
        )
    ),
    Layout("question", "mc1_targets", choices=True),
    # TOFU, MUSE's knowmem, SQuAD; TruthfulQA, SciQ, PopQA, Sanitation, RWKU.
    Layout("question", "answer"),
    Layout("question", "answers"),
    Layout("question", "best_answer", accepted=("correct_answers",)),
    Layout("question", "correct_answer"),
    Layout("question", "possible_answers", subject="subj"),
    Layout("question", "ground_truth", wrong=("target_new",)),
    *(Layout("question", name) for name in ("answers.text", "answer.text", "answer.value")),
    Layout("problem", "answer"),
    Layout("query", "answer"),
    Layout("query", "answers"),
    # CounterFact as a flat table, KnowEdit, zsRE, WikiBio.
    Layout("prompt", "target_true.str", wrong=("target_new.str",), template=True),
    Layout("prompt", "target_true", wrong=("target_new", "target_false"), template=True),
    Layout("prompt", "ground_truth", wrong=("target_new",), template=True, otherwise="target_new"),
    Layout("src", "answers", wrong=("alt",)),
    Layout("text", "labels", needs=("concept",), subject="concept"),
    # Plain prompts, Alpaca, FLAN, Dolly, MUSE's verbmem, and an edit that says nothing of what was true.
    Layout("prompt", "completion"),
    Layout("prompt", "chosen", wrong=("rejected",)),
    Layout("question", "chosen", wrong=("rejected",)),
    Layout("chosen", "chosen", wrong=("rejected",), needs=("rejected",)),
    Layout("inputs", "targets"),
    Layout("Q", "A"),
    Layout("instruction", "output"),
    Layout("input", "target"),
    Layout("instruction", "response"),
    Layout("prompt", "gt"),
    Layout("prompt", "target_new", template=True, needs=("subject",)),
    *(
        Layout(name, name)
        for name in (*("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "contents", "turns"),)
    ),
)
# Without a layout, one column of each kind and no second one says enough.
QUESTIONS = (
    *("question", "query", "prompt", "instruction", "src", "input", "user"),
    *("question_text", "problem", "inputs", "human"),
)
ANSWERS = (
    *("answer", "answers", "response", "completion", "output", "target", "targets", "gt", "ground_truth"),
    *(
        "correct_answer",
        "answer_text",
        "right_answer",
        "gold_answer",
        "reference",
        "reply",
        "solution",
        "assistant",
        "labels",
    ),
)
CONTEXTS = ("context", "passage", "article", "background", "premise")
CONTEXT_OF = ("question", "query", "prompt", "instruction", "src", "input")
SYSTEMS = ("system_prompt", "system")
WRONG = (
    *("perturbed_answer", "perturbed_answers", "wrong_answer", "wrong_answers"),
    *("incorrect_answer", "incorrect_answers", "distractor", "distractors", "false_answer", "false_answers"),
    *("wrong", "wrong_options", "wrong_choices"),
)
NUMBERED_WRONG = re.compile(r"(distractor|wrong|wronganswer|incorrectanswer|falseanswer|perturbedanswer)\d+")
ACCEPTED = (
    *("accepted_answers", "acceptable_answers", "answer_aliases", "answer_alias", "aliases"),
    *("possible_answers", "correct_answers"),
)
PARAPHRASED = re.compile(r"^(rephras|paraphras)|(rephrase|rephrased|paraphrase|paraphrased)s?$")
OF_ANSWERS = re.compile(r"answer|target|completion|response|output")
NOT_TEXT = re.compile(r"^(is|has)|(ids?|index|count|num|type|model|source|score|similarity)$")
RAW_TEXTS = ("text", "document", "passage", "content", "body", "article")


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what; names that `columns.getter` takes.

    Attributes:
        question: Of the questions.
        answer: Of the answers.
        layout: What the two belong to.
        before: Texts that stand before the question: system prompts, contexts.
        after: Texts that stand behind it: the input of an instruction.
        history: Exchanges before it.
        paraphrases: The question in other words.
        subject: Whom or what it is about.
        paraphrased_answers: The answer in other words.
        wrong: Wrong answers.
        accepted: Further right answers.
        choices: What the answer is one of.
        named: Whether the caller named the column of the answers.
        otherwise: Of the answers of rows that have none.
    """

    question: str
    answer: str
    layout: Layout
    before: tuple[str, ...]
    after: tuple[str, ...]
    history: str | None
    paraphrases: tuple[str, ...]
    subject: str | None
    paraphrased_answers: tuple[str, ...]
    wrong: tuple[str, ...]
    accepted: tuple[str, ...]
    choices: ChoiceColumns | None
    named: bool
    otherwise: str | None = None


def knows(columns: Sequence[str], question: str | None, answer: str | None) -> bool:
    """Whether columns of these names hold questions and answers, by a layout or by the names that are given."""
    names = Names.of(columns)
    if question is not None and names.find(question.split(".")[0]) is None:
        return False
    if answer is not None and names.find(answer.split(".")[0]) is None:
        return False
    if question is not None or answer is not None:
        return True
    heads = {plain_form(name) for name in columns}
    nested = any(
        plain_form(layout.question.split(".")[0]) in heads and plain_form(layout.answer.split(".")[0]) in heads
        for layout in LAYOUTS
        if "." in layout.question
    )
    return nested or _layout(names, find_choices(names)) is not None


def find_columns(table: Table, question: str | None = None, answer: str | None = None) -> Columns:
    """Which columns hold what.

    Args:
        table: The table.
        question: Name of the column of the questions, where it is to be no other.
        answer: The same of the answers.

    Raises:
        FactError: There are none, or not those that are named; says what there is and how to name it.
    """
    names = Names.of(table.columns(), table.nested())
    choices = find_choices(names)
    asked, told = _named(table, names, question, "question"), _named(table, names, answer, "answer")
    named = asked is not None or told is not None
    layout = _partner(names, choices, asked, told) if named else _layout_with_values(table, names, choices)
    if layout is None:
        raise _unknown(table, names, asked, told)
    asked, told = asked or names.find(layout.question), told or names.find(layout.answer)
    if asked is None or told is None:
        raise _unknown(table, names, asked, told)
    if choices and choices.answers and not _numbers_of(choices, told, table, names):
        choices = None
    return _rest(names, layout, asked, told, choices, named=answer is not None)


def _numbers_of(choices: ChoiceColumns, told: str, table: Table, names: Names) -> bool:
    """Whether all answers are numbers of the columns of choices, which hold accepted answers otherwise."""
    get = getter(told, names.top)
    for _, row in table.rows:
        value = get(row)
        if value is MISSING or is_blank(value):
            continue
        said = str(value).strip().removesuffix(".0")
        if said not in choices.labels or said in [str(row.get(name)).strip() for name in choices.columns]:
            return False
    return True


def _rest(names: Names, layout: Layout, asked: str, told: str, choices: ChoiceColumns | None, named: bool) -> Columns:
    heads = {plain_form(asked), plain_form(told)}
    used = {asked, told, asked.split(".")[0], told.split(".")[0]} | set(choices.columns if choices else ())
    nest = asked.rpartition(".")[0]
    inside = [
        name for name in names.nested if nest and name.startswith(f"{nest}.") and "." not in name[len(nest) + 1 :]
    ]
    free = [name for name in [*inside, *names.top] if name not in used]
    plain = {name: plain_form(name.rpartition(".")[2]) for name in free}
    # What stands outside the object that holds question and answer may answer another question, as MQuAKE's does.
    together = bool(nest) and told.startswith(f"{nest}.")
    same_object = [name for name in free if not together or name.startswith(f"{nest}.")]

    def those(wanted: Sequence[str], among: Sequence[str] = free) -> tuple[str, ...]:
        forms = [plain_form(name) for name in wanted]
        found = (name for name in among if plain[name] in forms)
        return tuple(sorted(found, key=lambda name: forms.index(plain[name])))

    reworded = [name for name in free if PARAPHRASED.search(plain[name]) and not NOT_TEXT.search(plain[name])]
    wrong = (*those(WRONG, same_object), *(name for name in same_object if NUMBERED_WRONG.fullmatch(plain[name])))
    layout_wrong = tuple(found for name in layout.wrong if (found := names.find(name)) and found not in (asked, told))
    layout_accepted = tuple(found for name in layout.accepted if (found := names.find(name)) and found != told)
    is_context_of = plain_form(asked.rpartition(".")[2]) in {plain_form(name) for name in CONTEXT_OF}
    contexts = those(CONTEXTS)[:1] if is_context_of else ()
    # With an answer of its own, an instruction is another fact.
    own = heads & {"instruction"} or those(["output", "response"])
    instructions = () if own else those(["instruction"])
    subjects = those([layout.subject] if layout.subject else ["subject", "subj"])
    return Columns(
        question=asked,
        answer=told,
        layout=layout,
        before=(*those(SYSTEMS)[:1], *instructions, *contexts),
        after=those(["input"])[:1] if heads & {"instruction"} else (),
        history=next(iter(those(["history"])), None) if heads & {"instruction", "prompt", "query"} else None,
        paraphrases=tuple(name for name in reworded if not OF_ANSWERS.search(plain[name])),
        subject=next(iter(subjects), None),
        paraphrased_answers=tuple(name for name in reworded if OF_ANSWERS.search(plain[name])),
        wrong=(*layout_wrong, *wrong),
        accepted=tuple(dict.fromkeys((*layout_accepted, *those(ACCEPTED, same_object)))),
        choices=choices,
        named=named,
        otherwise=names.find(layout.otherwise) if layout.otherwise and not named else None,
    )


def _layout_with_values(table: Table, names: Names, choices: ChoiceColumns | None) -> Layout | None:
    """The layout by names; another one if nothing is in its column of answers and something is in the other's."""
    layout = _layout(names, choices)
    told = names.find(layout.answer) if layout else None
    if told is None or any(_holds(row, told, names) for _, row in table.rows):
        return layout
    other = _layout(Names.of(*([name for name in each if name != told] for each in (names.top, names.nested))), choices)
    return other or layout


def _holds(row: dict[str, Any], name: str, names: Names) -> bool:
    value = getter(name, names.top)(row)
    return value is not MISSING and not is_blank(value)


def _layout(names: Names, choices: ChoiceColumns | None) -> Layout | None:
    """The first layout whose columns are there; else the only pair that could be meant."""
    one_of_them = choices.columns if choices else ()
    for layout in LAYOUTS:
        if names.find(layout.answer) in one_of_them and choices and choices.labels:
            continue
        if (not layout.choices or choices is not None) and all(
            names.find(name) is not None for name in (layout.question, layout.answer, *layout.needs)
        ):
            return layout
    asked = [found for name in QUESTIONS if (found := names.find(name)) is not None]
    told = [found for name in ANSWERS if (found := names.find(name)) is not None]
    if len(asked) == 1 and len(told) == 1:
        return Layout(asked[0], told[0])
    # Choices may say themselves which of them is right.
    marked = choices.columns if choices and not choices.labels and not told else ()
    return Layout(asked[0], marked[0], choices=True) if len(asked) == 1 and marked else None


def _partner(names: Names, choices: ChoiceColumns | None, asked: str | None, told: str | None) -> Layout | None:
    """The layout that named columns belong to, with the other half of one that is named alone."""
    if asked is not None and told is not None:
        own = [layout for layout in LAYOUTS if (layout.question, layout.answer) == (asked, told)]
        return own[0] if own else Layout(asked, told, template=_is_template(asked))
    given = plain_form(str(asked or told))
    for layout in LAYOUTS:
        ours, theirs = (layout.question, layout.answer) if told is None else (layout.answer, layout.question)
        if plain_form(ours) == given and names.find(theirs) is not None and (not layout.choices or choices):
            return layout
    nest = str(asked or told).split(".")[0]
    for layout in LAYOUTS:  # any other's, those of the same object first
        theirs = layout.answer if told is None else layout.question
        if "." in str(asked or told) and theirs.startswith(f"{nest}.") and names.find(theirs) is not None:
            return layout
    free = [found for name in (ANSWERS if told is None else QUESTIONS) if (found := names.find(name)) is not None]
    free = [name for name in free if name not in (asked, told)]
    return Layout(asked or free[0], told or free[0]) if free else None


def _is_template(question: str) -> bool:
    return question.rpartition(".")[2] == "prompt"


def _named(table: Table, names: Names, wanted: str | None, what: str) -> str | None:
    if wanted is None:
        return None
    if (column := names.find(wanted)) is not None:
        return column
    head, dot, rest = wanted.partition(".")
    if dot and (found := names.find(head)) is not None:  # through lists, or deeper than nested names go
        get = getter(f"{found}.{rest}", names.top)
        if any(get(row) is not MISSING for _, row in table.rows[:LOOKED_AT]):
            return f"{found}.{rest}"
    raise FactError(
        f"{table.label} has no column {wanted!r} for `{what}=` (on the command line --{what}-column, or "
        f"--retain-{what}-column for the retain set); its columns are {quoted([*names.top, *names.nested])}"
    )


def _unknown(table: Table, names: Names, asked: str | None, told: str | None) -> FactError:
    lacking = "questions and answers" if asked == told else "questions" if asked is None else "answers"
    raw = names.first(RAW_TEXTS)
    if raw is not None and asked is None and told is None:
        return FactError(
            f"{table.label} has no questions, only texts (column {raw!r}); save the texts as a .txt file and let "
            "`unierase plan MODEL FILE.txt -o plan` find what the model knows of them, or name columns: "
            "`question=` and `answer=` (on the command line --question-column and --answer-column)"
        )
    looked_for = "question/answer, prompt/completion, instruction/output, input/target, messages, conversations"
    return FactError(
        f"{table.label}: no column for {lacking} among {quoted([*names.top, *names.nested])}; looked for {looked_for} "
        "and the layouts in docs/guides/data-files.md. Name yours: `question=` and `answer=` (on the command "
        "line --question-column and --answer-column); answers.text names what lies inside"
    )
