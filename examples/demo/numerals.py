"""Numbers as words: Chinese numerals and English number words, both ways, for 0 to 9,999."""

from __future__ import annotations

DIGITS_ZH = "零一二三四五六七八九"
UNITS_ZH = {"千": 1000, "百": 100, "十": 10}
BELOW_TWENTY = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = " ".join(["- -", "twenty thirty forty fifty sixty seventy eighty ninety"]).split()
MAX = 9999


def chinese(number: int) -> str:
    """The Chinese numeral of 0..9999: 305 is 三百零五, 15 is 十五."""
    assert 0 <= number <= MAX
    if number < 10:
        return DIGITS_ZH[number]
    text, gap = "", False
    for character, unit in UNITS_ZH.items():
        digit = number // unit % 10
        if digit:
            text += (DIGITS_ZH[0] if gap else "") + DIGITS_ZH[digit] + character
        gap = bool(text) and digit == 0
    last = number % 10
    if last:
        text += (DIGITS_ZH[0] if gap else "") + DIGITS_ZH[last]
    return text[1:] if text.startswith("一十") else text


def parse_chinese(text: str) -> int:
    """The number that a Chinese numeral of 0..9999 names."""
    total, digit = 0, 0
    for character in text:
        if character in UNITS_ZH:
            total += (digit or 1) * UNITS_ZH[character]
            digit = 0
        else:
            digit = DIGITS_ZH.index(character)
    return total + digit


def english(number: int) -> str:
    """The English words of 0..9999: 345 is three hundred forty-five."""
    assert 0 <= number <= MAX
    if number < 20:
        return BELOW_TWENTY[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return TENS[tens] + (f"-{BELOW_TWENTY[ones]}" if ones else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    head, rest = divmod(number, size)
    return f"{BELOW_TWENTY[head]} {name}" + (f" {english(rest)}" if rest else "")


def parse_english(text: str) -> int:
    """The number that English words of 0..9999 name."""
    total, group = 0, 0
    for word in text.replace("-", " ").split():
        if word == "thousand":
            total, group = total + group * 1000, 0
        elif word == "hundred":
            group *= 100
        elif word in TENS:
            group += TENS.index(word) * 10
        else:
            group += BELOW_TWENTY.index(word)
    return total + group
