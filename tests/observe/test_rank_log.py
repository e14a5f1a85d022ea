"""Rank logs: a file for every rank, warnings of rank 0 on the terminal, and logging as it was afterwards."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from megatron_lm_zh.observe.logs import PACKAGE, rank_log


def test_lines_of_the_package_go_to_the_rank_s_file_over_attempts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for attempt in (1, 2):
        with rank_log(tmp_path / "logs", 12) as logger:
            logger.info("attempt %d", attempt)
            logging.getLogger("megatron_lm_zh.train").warning("慢")
    lines = (tmp_path / "logs" / "rank_0012.log").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 4
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} rank 12 INFO attempt 1", lines[0])
    assert lines[3].endswith("rank 12 WARNING 慢")
    assert capsys.readouterr() == ("", "")


def test_rank_0_shows_warnings_and_only_those(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with rank_log(tmp_path, 0) as logger:
        logger.info("quiet")
        logger.warning("loud")
    assert capsys.readouterr().err == "WARNING: loud\n"


def test_an_exception_is_in_the_file_with_its_traceback_and_not_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(ZeroDivisionError), rank_log(tmp_path, 0):
        1 / 0  # noqa: B018
    text = (tmp_path / "rank_0000.log").read_text()
    assert "rank 0 ERROR the run ends with an error" in text
    assert "ZeroDivisionError" in text
    assert "1 / 0" in text
    assert capsys.readouterr() == ("", "")


def test_logging_is_as_before_afterwards(tmp_path: Path):
    logger = logging.getLogger(PACKAGE)
    before = (logger.level, logger.propagate, list(logger.handlers))
    with rank_log(tmp_path, 0):
        assert logger.level == logging.INFO
    assert (logger.level, logger.propagate, logger.handlers) == before
