"""The stages of a job: shards tokenized by workers and taken in their order, then, where asked for, shuffled."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from megatron_lm_zh.data.text.plan import Part, Shard
from megatron_lm_zh.data.text.progress import Meter
from megatron_lm_zh.data.text.reading import count_lines
from megatron_lm_zh.data.text.shuffle import SHUFFLE, Gather, Scatter, bucket_bits, digest_of
from megatron_lm_zh.data.text.sources import Source
from megatron_lm_zh.data.text.tokenizing import Checksum, Recipe, Task, Tokenize, Told
from megatron_lm_zh.data.text.work import WorkDirectory
from megatron_lm_zh.data.text.workers import Executor
from megatron_lm_zh.errors import UserError
from megatron_lm_zh.files import write_bytes

SKIP = "mend the line, or leave such lines out with --on-error skip"


@dataclass
class SourceSums:
    """What of a source is in the datasets."""

    texts: list[list[int]]
    """For every key: tokens, bytes, characters, Han characters."""
    documents: int = 0
    records: int = 0
    skipped: int = 0
    digests: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Stages:
    """A job under way."""

    sources: Sequence[Source]
    shards: Sequence[Shard]
    work: WorkDirectory
    recipe: Recipe
    executor: Executor
    meter: Meter
    on_skip: Callable[[str], None]

    def checksums(self, shards: Sequence[Shard]) -> dict[str, list[Checksum]]:
        """The checksum tasks of the sources that begin in these shards, by the name of the shard."""
        tasks: dict[str, list[Checksum]] = {}
        for shard in shards:
            for part in shard.parts:
                source = part.source
                if not part.is_whole and part.begin == 0 and source.format != "hf":
                    name = hashlib.sha256(repr(source.identity).encode()).hexdigest()[:20]
                    task = Checksum(part.number, source, f"checksum_{name}_{part.number}")
                    tasks.setdefault(shard.name, []).append(task)
        return tasks

    def missing(self, shards: Sequence[Shard]) -> list[Task]:
        """The tasks of these shards that are not done."""
        checksums, itemsize = self.checksums(shards), np.dtype(self.recipe.dtype).itemsize
        tasks: list[Task] = []
        for shard in shards:
            tasks += [task for task in checksums.get(shard.name, ()) if self.work.said(task.name) is None]
            if self.work.shard(shard.name, itemsize) is None:
                tasks.append(Tokenize(shard))
        return tasks

    def tokenize(self, shards: Sequence[Shard], on_shard: Callable[[Shard, dict[str, Any]], None]) -> None:
        """Has workers do what is not done of these shards; ``on_shard`` gets each in their order.

        Raises:
            UserError: the first error in the order of the shards, whatever the order in which workers met errors.
        """
        tasks = self.missing(shards)
        unfinished = {task.name for task in tasks}
        self.meter.begin("tokenize", sum(shard.size for shard in shards))
        for shard in shards:
            if shard.name not in unfinished:
                self.meter.had(_told(shard, self.work.said(shard.name) or {}))
        self.meter.report()
        answers: dict[str, dict[str, Any] | UserError] = {}
        failed = False

        def waiting() -> Iterator[Task]:
            for task in tasks:
                if failed:  # those before it are in hand already, and may hold an error that comes first
                    return
                yield task

        with closing(self.executor.run(waiting(), self.recipe, self.meter.told)) as done:
            for shard in shards:
                while shard.name in unfinished:
                    task, answer = next(done)
                    unfinished.remove(task.name)
                    failed = failed or isinstance(answer, UserError) or "broken" in answer
                    if isinstance(task, Tokenize):
                        answers[task.name] = answer
                        if isinstance(answer, dict):
                            self.meter.finished(task.name, _told(task.shard, answer))
                    elif isinstance(answer, UserError):
                        raise answer
                answer = answers.pop(shard.name, {}) or self.work.said(shard.name) or {}
                if isinstance(answer, UserError):
                    raise answer
                on_shard(shard, answer)
            for _, answer in done:  # checksums of large files
                if isinstance(answer, UserError):
                    raise answer

    def check(self, shard: Shard, said: dict[str, Any]) -> None:
        """Refuses a shard with a broken record, if the job stops at those; the shards before it may be unknown.

        Raises:
            UserError: its first broken record.
        """
        error = self._first_error(shard, said)
        if error is not None:
            part, number, reason = error
            raise UserError(reason, where=_where(part, number + self._lines_before(part)), mend=SKIP)

    def count(self, shard: Shard, said: dict[str, Any], sums: Sequence[SourceSums]) -> None:
        """Adds a shard to the sums of its sources, and reports its skipped records; shards come in their order.

        Raises:
            UserError: its first broken record, if the job stops at those.
        """
        error = self._first_error(shard, said)
        if error is not None:
            part, number, reason = error
            raise UserError(reason, where=_where(part, number + sums[part.number].records), mend=SKIP)
        for part, held in zip(shard.parts, said["parts"], strict=True):
            source = sums[part.number]
            for number, reason in held["errors"]:
                self.on_skip(f"{_where(part, number + source.records)}: {reason}")
            source.documents += held["documents"]
            source.records += held["records"]
            source.skipped += held["skipped"]
            source.digests += [held["sha256"]] if held["sha256"] else []
            for total, new in zip(source.texts, held["texts"], strict=True):
                total[:] = [old + more for old, more in zip(total, new, strict=True)]

    def shuffle(self, seed: int, sums: Sequence[SourceSums]) -> list[str]:
        """Brings the documents of all shards into a random order; returns the names of the buckets' files, in order.

        Raises:
            UserError: the disk is full.
        """
        itemsize = np.dtype(self.recipe.dtype).itemsize
        largest = max(sum(source.texts[key][0] for source in sums) for key in range(len(self.recipe.keys)))
        bits = bucket_bits(largest * itemsize)
        starts = np.concatenate([[0], np.cumsum([source.documents for source in sums])]).tolist()
        names = [shard.name for shard in self.shards]
        record = {"digest": digest_of(names, seed), "shards": names, "starts": starts[:-1]}
        write_bytes(self.work.path / SHUFFLE, orjson.dumps(record))
        scatters: list[Task] = []
        first = 0
        for shard in self.shards:
            said = self.work.said(shard.name) or {}
            documents = sum(part["documents"] for part in said["parts"])
            scatters.append(Scatter(shard.name, first, documents, bits, seed))
            first += documents
        gathers: list[Task] = [Gather(bucket, bits, seed) for bucket in range(1 << bits)]
        self.meter.begin("shuffle", len(scatters) + len(gathers))
        todo = [task for task in gathers if self.work.said(task.name) is None]
        if todo:  # scattered documents are needed until the last bucket is there
            self._all([task for task in scatters if self.work.said(task.name) is None])
            self._all(todo)
        for task in scatters:
            for key in range(len(self.recipe.keys)):
                self.work.file(task.name, f"-{key}.bin").unlink(missing_ok=True)
        return [task.name for task in gathers]

    def _all(self, tasks: Sequence[Task]) -> None:
        with closing(self.executor.run(iter(tasks), self.recipe, lambda name, told: None)) as answers:
            for task, answer in answers:
                if isinstance(answer, UserError):
                    raise answer
                self.meter.finished(task.name, Told(1, answer.get("documents", 0), 0))

    def _first_error(self, shard: Shard, said: dict[str, Any]) -> tuple[Part, int, str] | None:
        if not self.recipe.stop:
            return None
        if "broken" in said:
            broken = said["broken"]
            part = next(part for part in shard.parts if [part.number, part.begin] == broken["part"])
            return part, broken["record"], broken["reason"]
        for part, held in zip(shard.parts, said["parts"], strict=True):  # done by a job that skipped it
            if held["errors"]:
                return part, *held["errors"][0]
        return None

    def _lines_before(self, part: Part) -> int:
        if part.source.format in ("parquet", "hf") or part.begin == 0:
            return part.first
        return count_lines(part.source, part.begin)


def _told(shard: Shard, said: dict[str, Any]) -> Told:
    parts = said.get("parts", [])
    documents = sum(part["documents"] for part in parts)
    return Told(shard.size, documents, sum(part["texts"][0][0] for part in parts))


def _where(part: Part, number: int) -> str:
    return f"{part.source.url}:{number + 1}"


def forget_shuffle(directory: Path, digest: str | None) -> None:
    """Lets a shuffle that was under way be forgotten, unless it is the one that is wanted."""
    file = directory / SHUFFLE
    if file.is_file() and (digest is None or orjson.loads(file.read_bytes()).get("digest") != digest):
        file.unlink()
