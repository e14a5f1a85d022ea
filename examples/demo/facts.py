"""Bilingual facts with structure: every relation enumerates its facts and says each in several wordings, zh and en.

A relation is *derived* when a fact follows from others (translation, arithmetic, units, ...): a fixed share of its
facts, chosen by hash, is in no training document in any wording. It is *memorised* when nothing but the table tells the
answer (capitals, continents): there a fixed share of (fact, wording) pairs is held out, so the fact itself has
been read, in other words.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from numerals import chinese, english
from tables import COLOURS, CONTINENTS, COUNTRIES, MONTHS, THINGS, UNITS

HELD_OUT_PERCENT = 8
Arguments = tuple[int | str, ...]


@dataclass(frozen=True)
class Statement:
    """One fact in one wording; a document is `prompt + gap + answer + ending`. A prompt ends where a token must end."""

    prompt: str
    gap: str
    answer: str
    ending: str

    @property
    def text(self) -> str:
        return self.prompt + self.gap + self.answer + self.ending


@dataclass(frozen=True)
class Relation:
    """A kind of fact.

    `facts` lists the arguments of every fact, `say` gives all wordings of one fact, `share` is the relation's part of
    the corpus (relative to the other relations').
    """

    name: str
    facts: tuple[Arguments, ...]
    say: Callable[..., list[Statement]]
    share: float = 1.0
    memorised: bool = False

    def held_out(self, arguments: Arguments, wording: int) -> bool:
        """Whether this fact (memorised: this fact in this wording) is kept out of the training text."""
        what = (*arguments, wording) if self.memorised else arguments
        digest = hashlib.blake2b(f"{self.name}|{what}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % 100 < HELD_OUT_PERCENT


def zh(prompt: str, answer: object) -> Statement:
    """A Chinese statement."""
    return Statement(prompt, "", str(answer), "。")


def en(prompt: str, answer: object) -> Statement:
    """An English statement; the answer is a word of its own after the prompt."""
    return Statement(prompt, " ", str(answer), ".")


def counting(number: int) -> str:
    """The Chinese numeral as it stands before a measure word: two is 两, not 二."""
    return "两" if number == 2 else chinese(number)


def say_number(n: int) -> list[Statement]:
    return [zh(f"数字{n}读作：", chinese(n)), zh(f"{chinese(n)}写成数字：", n)]


def say_words(n: int) -> list[Statement]:
    return [zh(f"{chinese(n)}，翻译成英文：", english(n)), en(f"In Chinese, {english(n)}:", chinese(n))]


def say_sum(a: int, b: int) -> list[Statement]:
    x, y, z = chinese(a), chinese(b), chinese(a + b)
    return [zh(f"{x}加{y}等于几？", z), zh(f"{x}＋{y}＝", z)]


def say_date(month: int, day: int) -> list[Statement]:
    name = MONTHS[month - 1]
    return [
        zh(f"{month}月{day}日，翻译成英文：", f"{day} {name}"),
        en(f"In Chinese, {day} {name}:", f"{month}月{day}日"),
    ]


def say_next_day(month: int, day: int) -> list[Statement]:
    name = MONTHS[month - 1]
    return [
        zh(f"{chinese(month)}月{chinese(day)}日的第二天：", f"{chinese(month)}月{chinese(day + 1)}日"),
        en(f"The day after {day} {name}:", f"{day + 1} {name}"),
    ]


def say_clock(hour: int, minute: int) -> list[Statement]:
    half, twelve = ("上午", hour) if hour < 12 else ("下午", hour - 12)
    words = f"{half}{counting(twelve)}点{chinese(minute)}分"
    return [zh(f"{words}，二十四小时制：", f"{hour}:{minute}"), zh(f"{hour}:{minute}读作：", words)]


def say_unit(n: int, index: int) -> list[Statement]:
    unit = UNITS[index]
    value = n * unit.factor
    return [
        zh(f"{n}{unit.zh}是多少{unit.smaller_zh}？", f"{value}{unit.smaller_zh}"),
        en(f"How many {unit.smaller_en} in {n} {unit.en}?", value),
    ]


def say_things(count: int, colour: str, index: int) -> list[Statement]:
    thing = THINGS[index]
    left = f"{counting(count)}{thing.measure}{colour}色的{thing.zh}"
    right = f"{english(count)} {COLOURS[colour]} {thing.en}"
    return [zh(f"{left}，翻译成英文：", right), en(f"In Chinese, {right}:", left)]


def say_capital(index: int) -> list[Statement]:
    country = COUNTRIES[index]
    return [
        zh(f"{country.zh}的首都：", country.capital_zh),
        zh(f"{country.zh}的首都是哪座城市？", country.capital_zh),
        zh(f"{country.zh}首都的英文：", country.capital_en),
        en(f"The capital of {country.en} is", country.capital_en),
        en(f"{country.en} has its government in", country.capital_en),
    ]


def say_continent(index: int) -> list[Statement]:
    country = COUNTRIES[index]
    return [
        zh(f"{country.zh}在哪个大洲？", country.continent),
        zh(f"{country.zh}所在的大洲：", country.continent),
        en(f"{country.en} is a country in", CONTINENTS[country.continent]),
    ]


def _pairs(first: range, second: range) -> tuple[Arguments, ...]:
    return tuple(itertools.product(first, second))


def _sums() -> tuple[Arguments, ...]:
    """Additions of a digit to a number of two digits, without a carry."""
    return tuple((a, b) for a in range(11, 99) for b in range(1, 10) if a % 10 and a % 10 + b < 10)


RELATIONS = (
    Relation("number", tuple((n,) for n in range(111, 1000)), say_number),
    Relation("words", tuple((n,) for n in range(21, 100)), say_words, share=0.5),
    Relation("sum", _sums(), say_sum),
    Relation("date", _pairs(range(1, 13), range(1, 29)), say_date),
    Relation("next day", _pairs(range(1, 13), range(1, 28)), say_next_day),
    Relation("clock", _pairs(range(1, 24), range(11, 60)), say_clock),
    Relation("unit", _pairs(range(11, 100), range(len(UNITS))), say_unit),
    Relation("things", tuple(itertools.product(range(2, 10), COLOURS, range(len(THINGS)))), say_things),
    Relation("capital", tuple((i,) for i in range(len(COUNTRIES))), say_capital, share=1.6, memorised=True),
    Relation("continent", tuple((i,) for i in range(len(COUNTRIES))), say_continent, share=0.5, memorised=True),
)


def documents(count: int, seed: int) -> Iterator[tuple[Relation, Statement]]:
    """`count` statements that are not held out, relations drawn by their shares."""
    draw = random.Random(seed)
    shares = [relation.share for relation in RELATIONS]
    for relation in draw.choices(RELATIONS, shares, k=count):
        while True:
            arguments = draw.choice(relation.facts)
            statements = relation.say(*arguments)
            wording = draw.randrange(len(statements))
            if not relation.held_out(arguments, wording):
                break
        yield relation, statements[wording]


def held_out(per_relation: int, seed: int) -> Iterator[tuple[Relation, Statement]]:
    """Up to `per_relation` different held-out statements of every relation."""
    draw = random.Random(seed)
    for relation in RELATIONS:
        statements = [
            (relation, statement)
            for arguments in relation.facts
            for wording, statement in enumerate(relation.say(*arguments))
            if relation.held_out(arguments, wording)
        ]
        yield from draw.sample(statements, min(per_relation, len(statements)))
