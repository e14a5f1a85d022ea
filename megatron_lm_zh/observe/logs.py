"""Log files: every rank appends to logs/rank_NNNN.log; rank 0 also shows warnings on the terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = "megatron_lm_zh"


class _Terminal(logging.Handler):
    """Prints to what sys.stderr is at that moment: a progress bar puts its own there while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


@contextmanager
def rank_log(directory: Path, rank: int) -> Iterator[logging.Logger]:
    """The package's logger, writing to ``directory/rank_0000.log`` for the length of the block.

    Each line has the time (local, with its offset to UTC), the rank, the level and the text. Files are appended to, so
    that every attempt of a run is there. An exception that leaves the block is written with its traceback to the file
    alone: who catches it decides what the terminal shows.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(directory / f"rank_{rank:04d}.log", encoding="utf-8")
    layout = f"%(asctime)s rank {rank} %(levelname)s %(message)s"
    file.setFormatter(logging.Formatter(layout, datefmt="%Y-%m-%dT%H:%M:%S%z"))
    handlers: list[logging.Handler] = [file]
    if rank == 0:
        terminal = _Terminal(logging.WARNING)
        terminal.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        handlers.append(terminal)

    logger = logging.getLogger(PACKAGE)
    before = (logger.level, logger.propagate)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a root handler that some library installs would print every line twice
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield logger
    except (Exception, KeyboardInterrupt) as error:
        trace = (type(error), error, error.__traceback__)
        file.handle(logger.makeRecord(PACKAGE, logging.ERROR, __file__, 0, "the run ends with an error", (), trace))
        raise
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(before[0])
        logger.propagate = before[1]
