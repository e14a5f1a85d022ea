"""A job that is killed, fails or is typed twice: it goes on where it was, or one clear line says why not."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from making import random_texts, write_jsonl
from small_job import finish, kill_when, start, written

TEXTS = 900


@pytest.fixture
def flags(tmp_path: Path, tokenizer_directory: Path) -> list[object]:
    """Two files of about 90 kB in all."""
    for name, seed in (("a", 1), ("b", 2)):
        write_jsonl(tmp_path / f"{name}.jsonl", random_texts(TEXTS // 2, seed))
    inputs = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    model = ["--tokenizer-type", "SentencePiece", "--tokenizer-model", tokenizer_directory, "--append-eod"]
    return ["--input", *inputs, *model, "--encoder", "sentencepiece"]


def kill_and_go_on(tmp_path: Path, flags: list[object], kills: int, seed: int) -> None:
    code, _, err = finish(*flags, "--output-prefix", tmp_path / "ref", "--workers", 1)
    assert code == 0, err
    rng = random.Random(seed)
    work, alive = tmp_path / "out.partial", 0
    for kill in range(kills):
        workers = rng.choice([1, 2, 3])
        process = start(*flags, "--output-prefix", tmp_path / "out", "--workers", workers, pause=0.03)
        alive += kill_when(process, work, rng.randint(2, 8 + 90 * (kill + 1) // kills), rng.random() * 0.05)
    code, _, err = finish(*flags, "--output-prefix", tmp_path / "out", "--workers", 2)
    assert code == 0, err
    assert alive > kills // 2, "most kills came after the end"
    assert written(tmp_path / "out") == written(tmp_path / "ref")
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("more", [[], ["--shuffle"]])
def test_killed_three_times_the_bytes_are_the_same(tmp_path: Path, flags: list[object], more: list[str]) -> None:
    kill_and_go_on(tmp_path, [*flags, *more], 3, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--shuffle"]])
def test_killed_twenty_times_the_bytes_are_the_same(tmp_path: Path, flags: list[object], more: list[str]) -> None:
    kill_and_go_on(tmp_path, [*flags, *more], 20, seed=2)


def test_finished_shards_are_not_done_again(tmp_path: Path, flags: list[object]) -> None:
    out = ["--output-prefix", tmp_path / "out", "--workers", 2]
    work = tmp_path / "out.partial"
    assert kill_when(start(*flags, *out, pause=0.05), work, 25)
    done = {path: path.stat().st_mtime_ns for path in work.glob("*-1.json")}
    assert len(done) > 3
    assert kill_when(start(*flags, *out, pause=0.05), work, len(list(work.iterdir())) + 6)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    code, _, err = finish(*flags, *out)
    assert code == 0
    assert "going on, " in err


def test_a_broken_line_keeps_what_is_done_and_mending_goes_on(tmp_path: Path, flags: list[object]) -> None:
    good = (tmp_path / "b.jsonl").read_text().splitlines()
    bad = [*good]
    at = len(bad) * 9 // 10
    bad[at] = "{"
    (tmp_path / "b.jsonl").write_text("\n".join(bad) + "\n")
    for workers in (1, 3):
        code, _, err = finish(*flags, "--output-prefix", tmp_path / f"out{workers}", "--workers", workers)
        line = err.splitlines()[-1]
        assert code == 2
        assert f"b.jsonl:{at + 1}: not JSON" in line
        assert "--on-error skip" in line
        assert f"kept in {tmp_path}/out{workers}.partial: the same command goes on from there" in line
        assert not list(tmp_path.glob(f"out{workers}_*"))
    code, _, err = finish(*flags, "--output-prefix", tmp_path / "out1", "--on-error", "skip")
    assert code == 0
    assert "going on, " in err
    assert f"skipped {tmp_path}/b.jsonl:{at + 1}: not JSON" in err

    (tmp_path / "b.jsonl").write_text("\n".join(good) + "\n")
    code, _, err = finish(*flags, "--output-prefix", tmp_path / "out3")
    assert code == 0
    assert "finished shards are of other or changed inputs" in err
    assert "going on, " in err, "the shards of the other file are still right"
    code, _, _ = finish(*flags, "--output-prefix", tmp_path / "ref")
    assert written(tmp_path / "out3") == written(tmp_path / "ref")


def test_a_mistyped_input_loses_nothing(tmp_path: Path, flags: list[object]) -> None:
    out = ["--output-prefix", tmp_path / "out", "--workers", 2]
    assert kill_when(start(*flags, *out, pause=0.05), tmp_path / "out.partial", 30)
    done = len(list((tmp_path / "out.partial").glob("*-1.json")))
    (tmp_path / "wrong.jsonl").write_text("no JSON\n")
    wrong = [tmp_path / "wrong.jsonl" if flag == tmp_path / "b.jsonl" else flag for flag in flags]
    assert finish(*wrong, *out)[0] == 2
    relative = [flag.relative_to(tmp_path) if flag == tmp_path / "a.jsonl" else flag for flag in flags]
    code, _, err = finish(*relative, *out, cwd=tmp_path)
    assert code == 0, err
    going_on = next(line for line in err.splitlines() if "going on, " in line)
    assert int(going_on.split("going on, ")[1].split()[0]) >= done
    assert not list(tmp_path.glob("*.partial"))


def test_shards_with_skipped_lines_stop_a_job_that_stops(tmp_path: Path, flags: list[object]) -> None:
    with (tmp_path / "a.jsonl").open("a") as stream:
        stream.write("{\n")
    out = ["--output-prefix", tmp_path / "out", "--workers", 2]
    process = start(*flags, *out, "--on-error", "skip", pause=0.05)
    assert kill_when(process, tmp_path / "out.partial", 75)
    code, _, err = finish(*flags, *out)
    assert code == 2
    assert f"a.jsonl:{TEXTS // 2 + 1}: not JSON" in err


def test_another_jobs_work_is_refused(tmp_path: Path, flags: list[object]) -> None:
    out = ["--output-prefix", tmp_path / "out"]
    assert kill_when(start(*flags, *out, pause=0.05), tmp_path / "out.partial", 20)
    code, _, err = finish(*[flag for flag in flags if flag != "--append-eod"], *out)
    assert code == 2
    assert "out.partial: unfinished work of another job lies here (other --append-eod); finish it" in err
    code, _, err = finish(*flags, *out)
    assert code == 0, err


def test_two_writers_of_one_prefix(tmp_path: Path, flags: list[object]) -> None:
    out = ["--output-prefix", tmp_path / "out", "--workers", 1]
    first = start(*flags, *out, pause=0.1)
    work = tmp_path / "out.partial"
    while len(list(work.glob("*"))) < 3:
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # so that it does not end before the others begin
    for more in ([], ["--shards", "0/2"]):
        code, _, err = finish(*flags, *out, *more)
        assert code == 2
        assert f"out.partial: process {first.pid} on " in err
        assert "writes to this --output-prefix" in err
    first.send_signal(signal.SIGCONT)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 0, err


def test_a_killed_job_leaves_no_workers(tmp_path: Path, flags: list[object]) -> None:
    process = start(*flags, "--output-prefix", tmp_path / "out", "--workers", 3, pause=0.2)
    work = tmp_path / "out.partial"
    while len(list(work.glob("*.json"))) < 4:
        assert process.poll() is None
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 3
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while any(_runs(int(child)) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK) or os.geteuid() != 0, reason="mounts a small tmpfs: needs root")
@pytest.mark.parametrize("more", [[], ["--shuffle"]])
def test_a_full_disk_keeps_what_is_done(tmp_path: Path, flags: list[object], more: list[str]) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = os.system(f"mount -t tmpfs -o size=100k tmpfs {place}")
    if mounted != 0:
        pytest.skip("no right to mount a tmpfs")
    try:
        out = [*flags, *more, "--output-prefix", place / "out", "--workers", 2]
        code, _, err = finish(*out)
        assert code == 2
        line = err.splitlines()[-1]
        assert "cannot write: No space left on device" in line
        assert "the same command goes on from there" in line
        assert not list(place.glob("out_*"))
        os.system(f"mount -o remount,size=20m {place}")
        code, _, err = finish(*out)
        assert code == 0, err
        assert "going on, " in err
        code, _, _ = finish(*flags, *more, "--output-prefix", tmp_path / "ref")
        assert written(place / "out") == written(tmp_path / "ref")
    finally:
        os.system(f"umount {place}")


def test_the_record_says_what_the_job_is(tmp_path: Path, flags: list[object]) -> None:
    assert kill_when(start(*flags, "--output-prefix", tmp_path / "out", pause=0.05), tmp_path / "out.partial", 10)
    record = json.loads((tmp_path / "out.partial" / "job.json").read_text())
    assert record["settings"]["--append-eod"] is True
    assert [Path(source["url"]).name for source in record["sources"]] == ["a.jsonl", "b.jsonl"]
    assert record["sources"][0]["size"] == (tmp_path / "a.jsonl").stat().st_size
