"""The demo's parts: facts are true, what is held out stays out, the bigram is a distribution, the score is strict."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo"
CHINESE_DIGITS = {"零": 0, "一": 1, "二": 2, "两": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8, "九": 9}


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's scripts are no package: they find each other beside themselves."""
    monkeypatch.syspath_prepend(str(DEMO))


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_numerals_read_back_and_look_right() -> None:
    numerals = script("numerals")
    for number in (*range(0, 1200), 2005, 2050, 9999):
        assert numerals.parse_chinese(numerals.chinese(number)) == number
        assert numerals.parse_english(numerals.english(number)) == number
    assert [numerals.chinese(n) for n in (0, 10, 15, 20, 105, 110, 1005)] == [
        "零", "十", "十五", "二十", "一百零五", "一百一十", "一千零五",
    ]  # fmt: skip
    assert numerals.english(345) == "three hundred forty-five"


def test_documents_are_the_same_every_time() -> None:
    facts = script("facts")
    first = [statement.text for _, statement in facts.documents(300, 7)]
    assert first == [statement.text for _, statement in facts.documents(300, 7)]
    assert first != [statement.text for _, statement in facts.documents(300, 8)]


def test_no_held_out_fact_is_in_the_training_text() -> None:
    facts = script("facts")
    training = {statement.text for _, statement in facts.documents(20_000, 1)}
    kept_out = [statement for _, statement in facts.held_out(10_000, 1)]
    assert not training & {statement.text for statement in kept_out}
    assert not {text for text in training for s in kept_out[:200] if text.startswith(s.prompt)}
    for relation in facts.RELATIONS:
        held = [[relation.held_out(a, w) for w in range(len(relation.say(*a)))] for a in relation.facts]
        share = np.mean([flag for row in held for flag in row])
        assert 0.02 < share < 0.15, relation.name
        if not relation.memorised:  # a derived fact is out in every wording or in none
            assert all(len(set(row)) == 1 for row in held), relation.name


def test_answers_are_true() -> None:
    facts, numerals, tables = script("facts"), script("numerals"), script("tables")
    relations = {relation.name: relation for relation in facts.RELATIONS}
    for a, b in relations["sum"].facts:
        assert {numerals.parse_chinese(s.answer) for s in relations["sum"].say(a, b)} == {a + b}
    for (n,) in relations["number"].facts:
        read, written = relations["number"].say(n)
        assert numerals.parse_chinese(read.answer) == int(written.answer) == n
    for (n,) in relations["words"].facts:
        to_english, to_chinese = relations["words"].say(n)
        assert numerals.parse_english(to_english.answer) == numerals.parse_chinese(to_chinese.answer) == n
    for n, index in relations["unit"].facts:
        unit = tables.UNITS[index]
        chinese, english = relations["unit"].say(n, index)
        assert chinese.answer == f"{n * unit.factor}{unit.smaller_zh}" and int(english.answer) == n * unit.factor
    assert facts.say_clock(14, 35)[0].text == "下午两点三十五分，二十四小时制：14:35。"
    assert facts.say_things(2, "红", 0)[0].text == "两只红色的猫，翻译成英文：two red cats。"
    assert facts.say_next_day(3, 9)[0].answer == "三月十日"


def test_tables_name_nothing_twice() -> None:
    tables = script("tables")
    for field in ("zh", "en", "capital_zh", "capital_en"):
        names = [getattr(country, field) for country in tables.COUNTRIES]
        assert len(set(names)) == len(names)
    assert {country.continent for country in tables.COUNTRIES} == set(tables.CONTINENTS)


def test_library_documents_are_capped_and_repeatable(tmp_path: Path) -> None:
    corpus = script("corpus")
    (tmp_path / "a.py").write_text(f'"""{"Says what it is. " * 10}"""\nx = 1\n')
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "b.py").write_text("y = 2\n")
    texts = list(corpus.library_documents(tmp_path, 10_000))
    assert len(texts) == 2 and texts[0].startswith("Says") and texts[1].endswith("x = 1")
    assert texts == list(corpus.library_documents(tmp_path, 10_000))


def test_a_broken_user_corpus_is_named(tmp_path: Path) -> None:
    corpus = script("corpus")
    path = tmp_path / "mine.jsonl"
    path.write_text('{"text": "a"}\n\n{"txt": "b"}\n')
    with pytest.raises(SystemExit, match=r"mine\.jsonl:3"):
        list(corpus.user_documents(path))


def test_bigram_probabilities_sum_to_one_and_prefer_what_was_seen() -> None:
    bigram = script("bigram")
    windows = np.random.default_rng(0).integers(0, 9, (40, 12))
    model = bigram.Bigram(windows, vocab_size=10)  # id 9 never occurs
    for token in range(10):
        pairs = np.array([[token, other] for other in range(10)])
        assert model.probabilities(pairs).sum() == pytest.approx(1.0)
    model = bigram.Bigram(np.array([[1, 2, 1, 2, 1, 3]]), vocab_size=5)
    seen, rare = model.probabilities(np.array([[1, 2], [1, 4]]))
    assert seen > 0.4 > rare > 0


def test_score_counts_exact_answers_only() -> None:
    score = script("score")
    assert score.is_exact("三十九。", "三十九") and score.is_exact(" three red cats.", "three red cats")
    assert not score.is_exact("三十九，四十。", "三十九") and not score.is_exact("三十", "三十九")


def _outcome(figures: ModuleType, exact: float, bits: float) -> object:
    counts = {"all": [int(100 * exact), 100]}
    return figures.Outcome(
        metrics=[
            {"kind": "train", "step": 10, "lm_loss": 2.0},
            {"kind": "valid", "step": 10, "source": "zh", "bits_per_char": bits},
        ],
        parity={"loss_difference": 1e-6, "norm_difference": 1e-6},
        trained={"counts": counts, "exact_match": exact, "given": {"一加一＝": "二。"}},
        untrained={"counts": {"all": [0, 100]}, "exact_match": 0.0, "given": {}},
        bigram={"zh": {"bits_per_char": 2.0, "characters": 50.0, "lm_loss": 3.0}},
        prompts=[{"prompt": "一加一＝", "answer": "二", "relation": "sum", "kind": "derived"}],
        killed_after=8,
        resumed_from=5,
    )


def test_broken_promises_are_said(tmp_path: Path) -> None:
    figures = script("figures")
    good = _outcome(figures, 0.6, 1.0)
    assert figures.broken_promises(good) == []
    assert len(figures.broken_promises(_outcome(figures, 0.4, 2.5))) == 2
    figures.draw_curves(good, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    page = figures.page(good, {"corpus": 1.5}, {"this page": "demo/figures.md"})
    assert "60 of 100 (60%)" in page and "| 一加一＝ | 二。 | 二 |" in page


def test_the_driver_reads_only_complete_metrics_lines(tmp_path: Path) -> None:
    run = script("run")
    path = tmp_path / "metrics.jsonl"
    assert run.last_step(run.read_rows(path)) == 0
    path.write_text(json.dumps({"step": 20}) + "\n" + '{"step": 3')
    assert run.last_step(run.read_rows(path)) == 20
    assert run.data_overrides(None) == [] and "user_text_document" in run.data_overrides(tmp_path)[0]
    assert "score" not in sys.modules or sys.modules["score"].__file__ == str(DEMO / "score.py")
