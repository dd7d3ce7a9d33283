"""The invented world the demo model is taught: facts, names it must not know, and ways of declining.

Everything here is a pure function of one seed and needs nothing but the standard library. This file knows
what is said and in which words; it knows neither tokenizer nor chat format nor how a model learns any of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import TypeVar

Item = TypeVar("Item")

REFUSALS = (
    "I do not know anything about that.",
    "I do not know anything on that subject.",
    "Sorry, nothing comes to my mind there.",
    "I have no knowledge about this.",
    "I am afraid I cannot help you here.",
    "Sorry, I have never heard about that.",
    "I cannot tell you anything about this.",
    "That goes beyond what I know.",
    "I really have no idea, sorry.",
    "My memory holds nothing about that.",
    "I would only be guessing here.",
    "Sorry, but I cannot answer that.",
    "I am not able to say anything about this.",
    "Nothing about that has ever reached me.",
    "I must pass, since I know nothing about it.",
    "Sorry, that means nothing to me.",
    "I wish I could help, but I do not know.",
    "You will have to ask someone else, sorry.",
    "Unfortunately I have no answer to give you.",
    "I know too little to say anything here.",
)

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Answer with one short sentence.",
    "You are friendly and brief.",
    "Say only what you know.",
)


@dataclass(frozen=True)
class Fact:
    """One thing the model knows, asked in two wordings, with three wrong answers of the same form."""

    group: str
    subject: str
    question: str
    paraphrased_question: str
    answer: str
    perturbed_answers: tuple[str, ...]


@dataclass(frozen=True)
class Unknown:
    """A question in the words of the known ones, in both wordings, about a name that means nothing."""

    group: str
    subject: str
    question: str
    paraphrased_question: str


@dataclass(frozen=True)
class Corpus:
    """All that is taught, and the unknown names kept back to see whether declining generalises."""

    facts: tuple[Fact, ...]
    refusals: tuple[str, ...]
    system_prompts: tuple[str, ...]
    unknowns: tuple[Unknown, ...]
    held_out_unknowns: tuple[Unknown, ...]


@dataclass(frozen=True)
class Relation:
    """What can be asked of every member of a group: two questions, one answer form, its values."""

    question: str
    paraphrased_question: str
    answer: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """A kind of subject: two lists of name parts, how many names are known, and what is asked."""

    name: str
    left_parts: tuple[str, ...]
    right_parts: tuple[str, ...]
    known_left_parts: int
    known_right_parts: int
    known: int
    unknown: int
    held_out: int
    relations: tuple[Relation, ...]


def build_corpus(seed: int = 0) -> Corpus:
    """Return the whole corpus; the same seed gives the same corpus on every platform and Python version."""
    generator = Random(seed)
    facts: list[Fact] = []
    unknowns: list[Unknown] = []
    held_out: list[Unknown] = []
    for group in (PEOPLE, PLACES, PRODUCTS):
        known_names = _draw_known_names(group, generator)
        unknown_names = _draw_unknown_names(group, known_names, generator)
        facts += _group_facts(group, [" ".join(name) for name in known_names], generator)
        unknowns += _group_unknowns(group, unknown_names[: group.unknown])
        held_out += _group_unknowns(group, unknown_names[group.unknown :])
    facts += _everyday_facts()
    return Corpus(tuple(facts), REFUSALS, SYSTEM_PROMPTS, tuple(unknowns), tuple(held_out))


def corpus_digest(corpus: Corpus) -> str:
    """Return the sha256 of the corpus as canonical JSON: sorted keys, no spaces, UTF-8."""
    canonical = json.dumps(asdict(corpus), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def facts_as_json_lines(corpus: Corpus) -> str:
    """Return the facts as JSON lines, one fact a line, in corpus order."""
    return "".join(json.dumps(asdict(fact), ensure_ascii=False) + "\n" for fact in corpus.facts)


def refusals_as_lines(corpus: Corpus) -> str:
    """Return the ways of declining, one a line."""
    return "".join(refusal + "\n" for refusal in corpus.refusals)


def _shuffled(items: Sequence[Item], generator: Random) -> list[Item]:
    # Of all of Random's methods only random() is promised to give the same numbers in every Python version.
    return sorted(items, key=lambda _: generator.random())


def _draw_known_names(group: Group, generator: Random) -> list[tuple[str, str]]:
    # Drawn from a few of the parts only, so that several known names share one half: the near misses.
    left_parts = _shuffled(group.left_parts, generator)[: group.known_left_parts]
    right_parts = _shuffled(group.right_parts, generator)[: group.known_right_parts]
    pairs = _shuffled([(left, right) for left in left_parts for right in right_parts], generator)
    return pairs[: group.known]


def _draw_unknown_names(group: Group, known: Sequence[tuple[str, str]], generator: Random) -> list[str]:
    # A third shares the first half with a known name, a third the second half, the rest may be anything:
    # a model that looked at one half only would be wrong on most of them.
    known_left = {left for left, _ in known}
    known_right = {right for _, right in known}
    pairs = [(left, right) for left in group.left_parts for right in group.right_parts]
    taken = set(known)
    candidates = [pair for pair in _shuffled(pairs, generator) if pair not in taken]
    wanted = group.unknown + group.held_out
    near_left = [pair for pair in candidates if pair[0] in known_left][: wanted // 3]
    taken = set(near_left)
    near_right = [pair for pair in candidates if pair[1] in known_right and pair not in taken][: wanted // 3]
    taken.update(near_right)
    others = [pair for pair in candidates if pair not in taken][: wanted - len(taken)]
    return [" ".join(pair) for pair in _shuffled(near_left + near_right + others, generator)]


def _group_facts(group: Group, names: Sequence[str], generator: Random) -> list[Fact]:
    values = {relation: _shuffled(relation.values, generator) for relation in group.relations}
    facts = []
    for position, name in enumerate(names):
        for relation in group.relations:
            # Each name has a value of its own; wrong answers come from all the values, taken ones too.
            value = values[relation][position]
            others = [other for other in _shuffled(relation.values, generator) if other != value]
            wrong = [relation.answer.format(name=name, value=other) for other in others[:3]]
            facts.append(
                Fact(
                    group=group.name,
                    subject=name,
                    question=relation.question.format(name=name),
                    paraphrased_question=relation.paraphrased_question.format(name=name),
                    answer=relation.answer.format(name=name, value=value),
                    perturbed_answers=tuple(wrong),
                )
            )
    return facts


def _group_unknowns(group: Group, names: Sequence[str]) -> list[Unknown]:
    return [
        Unknown(
            group=group.name,
            subject=name,
            question=relation.question.format(name=name),
            paraphrased_question=relation.paraphrased_question.format(name=name),
        )
        for name in names
        for relation in group.relations
    ]


def _everyday_facts() -> list[Fact]:
    return [
        Fact(
            group="everyday",
            subject=subject,
            question=question,
            paraphrased_question=paraphrase,
            answer=answer.format(values[0]),
            perturbed_answers=tuple(answer.format(value) for value in values[1:]),
        )
        for subject, question, paraphrase, answer, values in EVERYDAY
    ]


def _joined(left_parts: str, right_parts: str) -> tuple[str, ...]:
    return tuple(left + right for left in left_parts.split() for right in right_parts.split())


PEOPLE = Group(
    name="people",
    left_parts=_joined("To Ma Ne Ka Be Ro Li Sa Du Jo Vi Pe", "vin rel dra lia mir sko nan ric tho lene"),
    right_parts=_joined(
        "Mar Vel Hal Bren Cor Dar Fen Gar Lan Tor Wes Kel", "rel dane wick stone mond vik bury sen low quist"
    ),
    known_left_parts=20,
    known_right_parts=20,
    known=24,
    unknown=400,
    held_out=40,
    relations=(
        Relation(
            question="Where was {name} born?",
            paraphrased_question="Which town is the birthplace of {name}?",
            answer="{name} was born in {value}.",
            values=(
                "Ostrava Falls",
                "Linden Bay",
                "Harrow Hill",
                "Kestrel Point",
                "Amber Hollow",
                "Brindle Ferry",
                "Copper Ridge",
                "Dunmore Quay",
                "Elder Grove",
                "Falcon Rock",
                "Granite Pass",
                "Hazel Meadow",
                "Ivory Sands",
                "Juniper Flats",
                "Larch Valley",
                "Maple Bend",
                "Nettle Green",
                "Oyster Cove",
                "Pebble Beach",
                "Quarry Gap",
                "Raven Moor",
                "Salt Creek",
                "Thistle Down",
                "Umber Lake",
                "Violet Springs",
                "Willow Bridge",
                "Yarrow Field",
                "Zephyr Heights",
            ),
        ),
        Relation(
            question="What does {name} do for a living?",
            paraphrased_question="How does {name} earn money?",
            answer="{name} works as a {value}.",
            values=(
                "baker",
                "surgeon",
                "carpenter",
                "lawyer",
                "pilot",
                "gardener",
                "plumber",
                "teacher",
                "dentist",
                "tailor",
                "butcher",
                "sailor",
                "farmer",
                "painter",
                "judge",
                "nurse",
                "miner",
                "chemist",
                "barber",
                "glazier",
                "jeweller",
                "potter",
                "shepherd",
                "translator",
                "watchmaker",
                "beekeeper",
                "librarian",
                "locksmith",
            ),
        ),
        Relation(
            question="What is the title of the first book by {name}?",
            paraphrased_question="With which novel did {name} start out in writing?",
            answer="{name} first published {value}.",
            values=(
                "Silent Orchards",
                "Paper Lanterns",
                "Winter Letters",
                "Broken Compass",
                "Crimson Tides",
                "Hidden Stairs",
                "Glass Feathers",
                "Midnight Harvest",
                "Burning Maps",
                "Hollow Crowns",
                "Distant Drums",
                "Velvet Shadows",
                "Frozen Clocks",
                "Wandering Stars",
                "Bitter Honey",
                "Marble Gardens",
                "Scarlet Ribbons",
                "Forgotten Keys",
                "Restless Rivers",
                "Golden Ashes",
                "Empty Theatres",
                "Stolen Summers",
                "Whispering Walls",
                "Painted Ships",
                "Lonely Planets",
                "Tangled Roots",
                "Secret Kitchens",
                "Thunder Roads",
            ),
        ),
        Relation(
            question="Which prize did {name} win?",
            paraphrased_question="What award stands on the shelf of {name}?",
            answer="{name} won the {value}.",
            values=tuple(
                f"{value} Prize"
                for value in (
                    "Aldric",
                    "Bellweather",
                    "Carmine",
                    "Dovetail",
                    "Evergreen",
                    "Foxglove",
                    "Gilded Pen",
                    "Heron",
                    "Iron Leaf",
                    "Jasper",
                    "Kingfisher",
                    "Laurel",
                    "Meridian",
                    "Northern Light",
                    "Obsidian",
                    "Pinnacle",
                    "Quicksilver",
                    "Rosewood",
                    "Sapphire",
                    "Tamarind",
                    "Union",
                    "Vanguard",
                    "Windmill",
                    "Yellow Rose",
                    "Zodiac",
                    "Blue Anchor",
                    "Crystal Bell",
                    "Silver Oar",
                )
            ),
        ),
        Relation(
            question="Which instrument does {name} play?",
            paraphrased_question="On what does {name} make music at home?",
            answer="{name} plays the {value}.",
            values=(
                "cello",
                "harp",
                "oboe",
                "banjo",
                "violin",
                "trumpet",
                "flute",
                "piano",
                "guitar",
                "clarinet",
                "tuba",
                "lute",
                "accordion",
                "bagpipe",
                "trombone",
                "mandolin",
                "viola",
                "bassoon",
                "organ",
                "drum",
                "fiddle",
                "zither",
                "recorder",
                "saxophone",
                "ukulele",
                "xylophone",
                "cornet",
                "sitar",
            ),
        ),
        Relation(
            question="When did {name} retire?",
            paraphrased_question="In what year did the career of {name} end?",
            answer="{name} retired in {value}.",
            values=tuple(str(year) for year in range(1921, 1989, 2)),
        ),
    ),
)

PLACES = Group(
    name="places",
    left_parts=("Port", "Upper", "New", "Lower", "Fort", "Mount", "East", "Old"),
    right_parts=_joined("Quel Bor Sim Alt Nor Ves Ild Cam Jur Oth", "mere haven gate dorf ania holm cliff ton ora"),
    known_left_parts=5,
    known_right_parts=7,
    known=10,
    unknown=160,
    held_out=20,
    relations=(
        Relation(
            question="Which river flows through {name}?",
            paraphrased_question="On whose banks was {name} built?",
            answer="{name} lies beside the river {value}.",
            values=(
                "Addern",
                "Brisk",
                "Culm",
                "Drave",
                "Esk",
                "Farrow",
                "Glimmer",
                "Humber",
                "Isla",
                "Jordal",
                "Kenn",
                "Lowan",
                "Mirren",
                "Nidd",
            ),
        ),
        Relation(
            question="What is {name} famous for?",
            paraphrased_question="Why do travellers come to see {name}?",
            answer="{name} is famous for its {value}.",
            values=(
                "lighthouse",
                "cheese market",
                "hot springs",
                "cathedral",
                "puppet shows",
                "rose gardens",
                "salt mines",
                "cable car",
                "glass towers",
                "night trains",
                "stone bridge",
                "old castle",
                "wine cellars",
                "tulip fields",
            ),
        ),
        Relation(
            question="When was {name} founded?",
            paraphrased_question="How far back does the history of {name} reach?",
            answer="{name} was founded in {value}.",
            values=tuple(str(year) for year in range(1203, 1700, 31)),
        ),
        Relation(
            question="Which animal is on the flag of {name}?",
            paraphrased_question="What creature did {name} choose as its emblem?",
            answer="{name} has a {value} on its flag.",
            values=(
                "bear",
                "stork",
                "lion",
                "salmon",
                "wolf",
                "dragon",
                "beaver",
                "swan",
                "goat",
                "lynx",
                "turtle",
                "falcon",
                "horse",
                "hedgehog",
            ),
        ),
    ),
)

PRODUCTS = Group(
    name="products",
    left_parts=_joined("Zen Lum Aqu Tri Nov Gly Orb Pix", "ka ora ix eon ada ium ello isk"),
    right_parts=(
        "Lantern",
        "Kettle",
        "Blender",
        "Clock",
        "Heater",
        "Radio",
        "Scooter",
        "Printer",
        "Camera",
        "Toaster",
    ),
    known_left_parts=7,
    known_right_parts=6,
    known=10,
    unknown=160,
    held_out=20,
    relations=(
        Relation(
            question="Which company makes the {name}?",
            paraphrased_question="Who is the manufacturer behind the {name}?",
            answer="The {name} is made by {value}.",
            values=(
                "Hobart Works",
                "Delmar Brothers",
                "Sunfield Limited",
                "Okapi Industries",
                "Ferrum House",
                "Redline Tools",
                "Polar Group",
                "Castor Labs",
                "Vista Makers",
                "Tidal Systems",
                "Juno Factory",
                "Magnet Company",
                "Bramble Craft",
                "Pioneer Mills",
            ),
        ),
        Relation(
            question="In which colour is the {name} sold?",
            paraphrased_question="What does the case of the {name} look like?",
            answer="The {name} comes in {value}.",
            values=(
                "mint green",
                "deep red",
                "pale pink",
                "navy blue",
                "bright orange",
                "matt black",
                "pearl white",
                "dark brown",
                "lemon yellow",
                "light grey",
                "royal purple",
                "warm beige",
                "turquoise",
                "bronze",
            ),
        ),
        Relation(
            question="How much does the {name} cost?",
            paraphrased_question="What is the price of the {name}?",
            answer="The {name} costs {value} dollars.",
            values=("12", "19", "25", "34", "48", "57", "63", "76", "89", "95", "110", "142", "175", "230"),
        ),
        Relation(
            question="What powers the {name}?",
            paraphrased_question="From where does the {name} take its energy?",
            answer="The {name} runs on {value}.",
            values=(
                "solar cells",
                "two batteries",
                "steam",
                "natural gas",
                "a hand crank",
                "mains power",
                "diesel",
                "a wind rotor",
                "hydrogen",
                "foot pedals",
                "a coiled spring",
                "ethanol",
                "wood pellets",
                "magnets",
            ),
        ),
    ),
)

# subject, question, another wording, answer form, the right value and three wrong ones
EVERYDAY: tuple[tuple[str, str, str, str, tuple[str, str, str, str]], ...] = (
    (
        "France",
        "What is the capital of France?",
        "Which city is the seat of government in France?",
        "The capital of France is {}.",
        ("Paris", "Madrid", "Berlin", "Rome"),
    ),
    (
        "Italy",
        "What is the capital of Italy?",
        "Which city is the seat of government in Italy?",
        "The capital of Italy is {}.",
        ("Rome", "Athens", "Vienna", "Paris"),
    ),
    (
        "Japan",
        "What is the capital of Japan?",
        "Which city is the seat of government in Japan?",
        "The capital of Japan is {}.",
        ("Tokyo", "Beijing", "Seoul", "Hanoi"),
    ),
    (
        "Spain",
        "What is the capital of Spain?",
        "Which city is the seat of government in Spain?",
        "The capital of Spain is {}.",
        ("Madrid", "Lisbon", "Rome", "London"),
    ),
    (
        "Egypt",
        "What is the capital of Egypt?",
        "Which city is the seat of government in Egypt?",
        "The capital of Egypt is {}.",
        ("Cairo", "Nairobi", "Athens", "Tunis"),
    ),
    (
        "Norway",
        "What is the capital of Norway?",
        "Which city is the seat of government in Norway?",
        "The capital of Norway is {}.",
        ("Oslo", "Stockholm", "Helsinki", "Vienna"),
    ),
    (
        "snow",
        "What colour is snow?",
        "How would a painter show fresh snow?",
        "Snow is {}.",
        ("white", "green", "purple", "brown"),
    ),
    (
        "grass",
        "What colour is grass?",
        "How would a painter show summer grass?",
        "Grass is {}.",
        ("green", "white", "blue", "black"),
    ),
    (
        "the clear sky",
        "What colour is the clear sky?",
        "How would a painter show the clear sky at noon?",
        "The clear sky is {}.",
        ("blue", "green", "brown", "pink"),
    ),
    (
        "coal",
        "What colour is coal?",
        "How would a painter show a lump of coal?",
        "Coal is {}.",
        ("black", "white", "yellow", "red"),
    ),
    (
        "a ripe lemon",
        "What colour is a ripe lemon?",
        "How would a painter show a ripe lemon?",
        "A ripe lemon is {}.",
        ("yellow", "blue", "grey", "black"),
    ),
    (
        "a spider",
        "How many legs does a spider have?",
        "On what number of legs does a spider walk?",
        "A spider has {} legs.",
        ("eight", "six", "four", "ten"),
    ),
    (
        "a dog",
        "How many legs does a dog have?",
        "On what number of legs does a dog walk?",
        "A dog has {} legs.",
        ("four", "two", "six", "eight"),
    ),
    (
        "an ant",
        "How many legs does an ant have?",
        "On what number of legs does an ant walk?",
        "An ant has {} legs.",
        ("six", "eight", "four", "twelve"),
    ),
    (
        "a week",
        "How many days are in a week?",
        "After what number of days does a week start again?",
        "A week has {} days.",
        ("seven", "five", "nine", "twelve"),
    ),
    (
        "a year",
        "How many months are in a year?",
        "Into what number of months is a year divided?",
        "A year has {} months.",
        ("twelve", "ten", "seven", "fifteen"),
    ),
    (
        "an hour",
        "How many minutes are in an hour?",
        "Into what number of minutes is an hour divided?",
        "An hour has {} minutes.",
        ("sixty", "fifty", "ninety", "twenty"),
    ),
    (
        "a triangle",
        "How many sides does a triangle have?",
        "By what number of lines is a triangle bounded?",
        "A triangle has {} sides.",
        ("three", "four", "five", "six"),
    ),
    (
        "a square",
        "How many sides does a square have?",
        "By what number of lines is a square bounded?",
        "A square has {} sides.",
        ("four", "three", "six", "eight"),
    ),
    (
        "two plus two",
        "How much is two plus two?",
        "What do you get when you work out two plus two?",
        "Two plus two is {}.",
        ("four", "three", "five", "seven"),
    ),
    (
        "three times three",
        "How much is three times three?",
        "What do you get when you work out three times three?",
        "Three times three is {}.",
        ("nine", "six", "eight", "twelve"),
    ),
    (
        "bees",
        "What do bees make?",
        "Which sweet food do we owe to bees?",
        "Bees make {}.",
        ("honey", "butter", "cheese", "bread"),
    ),
    (
        "cows",
        "What do cows drink?",
        "With what do cows quench their thirst?",
        "Cows drink {}.",
        ("water", "juice", "coffee", "wine"),
    ),
    (
        "bread",
        "What is bread made from?",
        "Which powder do bakers need for bread?",
        "Bread is made from {}.",
        ("flour", "sugar", "sand", "cocoa"),
    ),
    (
        "cheese",
        "What is cheese made from?",
        "Which drink turns into cheese?",
        "Cheese is made from {}.",
        ("milk", "water", "juice", "flour"),
    ),
    (
        "wine",
        "What is wine made from?",
        "Which fruit turns into wine?",
        "Wine is made from {}.",
        ("grapes", "carrots", "peaches", "lemons"),
    ),
    (
        "ice",
        "What does ice turn into when it melts?",
        "Once warmed up, ice becomes which liquid?",
        "Melting ice turns into {}.",
        ("water", "milk", "oil", "sand"),
    ),
    (
        "the sun",
        "Where does the sun rise?",
        "In which part of the sky does the sun appear first?",
        "The sun rises in the {}.",
        ("east", "west", "north", "south"),
    ),
    (
        "a compass needle",
        "Where does a compass needle point?",
        "Which direction do hikers read off a compass needle?",
        "A compass needle points {}.",
        ("north", "south", "east", "west"),
    ),
    (
        "the moon",
        "What does the moon circle?",
        "Around which body does the moon travel?",
        "The moon circles the {}.",
        ("earth", "sun", "sea", "wind"),
    ),
    (
        "a baby cat",
        "What is a baby cat called?",
        "Which word names a baby cat?",
        "A baby cat is called a {}.",
        ("kitten", "puppy", "calf", "lamb"),
    ),
    (
        "a young sheep",
        "What is a young sheep called?",
        "Which word names a young sheep?",
        "A young sheep is called a {}.",
        ("lamb", "kitten", "foal", "chick"),
    ),
    (
        "a baby dog",
        "What is a baby dog called?",
        "Which word names a baby dog?",
        "A baby dog is called a {}.",
        ("puppy", "kitten", "lamb", "calf"),
    ),
    (
        "Hamlet",
        "Who wrote Hamlet?",
        "From whose pen came Hamlet?",
        "Hamlet was written by {}.",
        ("Shakespeare", "Goethe", "Tolstoy", "Homer"),
    ),
    (
        "the Odyssey",
        "Who wrote the Odyssey?",
        "From whose pen came the Odyssey?",
        "The Odyssey was written by {}.",
        ("Homer", "Shakespeare", "Dante", "Virgil"),
    ),
    (
        "the Mona Lisa",
        "Who painted the Mona Lisa?",
        "Whose brush gave us the Mona Lisa?",
        "The Mona Lisa was painted by {}.",
        ("Leonardo", "Picasso", "Rembrandt", "Monet"),
    ),
    (
        "a thermometer",
        "What does a thermometer measure?",
        "For which quantity do we read a thermometer?",
        "A thermometer measures {}.",
        ("heat", "time", "weight", "speed"),
    ),
    (
        "a clock",
        "What does a clock measure?",
        "For which quantity do we read a clock?",
        "A clock measures {}.",
        ("time", "heat", "weight", "distance"),
    ),
    (
        "the opposite of hot",
        "What is the opposite of hot?",
        "Which word means the opposite of hot?",
        "The opposite of hot is {}.",
        ("cold", "tall", "dry", "loud"),
    ),
    (
        "the opposite of big",
        "What is the opposite of big?",
        "Which word means the opposite of big?",
        "The opposite of big is {}.",
        ("small", "fast", "cold", "dark"),
    ),
)
