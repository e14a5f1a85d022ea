"""The launcher's ranks know their place, fail together, hear signals, and die with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_lm_zh.runtime.launch import launch_local

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = """
import os, sys
from pathlib import Path
from megatron_lm_zh.runtime.launch import launch_local
world, log_dir, *command = sys.argv[1:]
sys.exit(launch_local(command, int(world), log_dir=Path(log_dir) if log_dir else None, environ=os.environ))
"""
# Says that it is ready, then sleeps; ends with 0 on USR1 after noting it.
SLEEPER = """
import os, signal, sys, time
from pathlib import Path
place = Path(sys.argv[1])
def note(number, frame):
    (place / f"signal_{os.environ['RANK']}").write_text(str(number))
    sys.exit(0)
for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
    signal.signal(number, note)
(place / f"pid_{os.environ['RANK']}.part").write_text(str(os.getpid()))
(place / f"pid_{os.environ['RANK']}.part").rename(place / f"pid_{os.environ['RANK']}")
time.sleep(60)
"""


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-S", "-c", code, *arguments]


def start_launcher(world: int, command: list[str], log_dir: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(world), log_dir, *command],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def pids_of(place: Path, world: int) -> list[int]:
    """The process ids of a launcher's sleepers, once all are ready."""
    deadline = time.monotonic() + 20
    files = [place / f"pid_{rank}" for rank in range(world)]
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline, "the ranks did not start"
        time.sleep(0.02)
    return [int(file.read_text()) for file in files]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:  # a zombie that nobody has waited for yet is dead
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_each_rank_is_told_its_place(tmp_path: Path) -> None:
    names = (
        "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK MASTER_ADDR MASTER_PORT MLZH_LAUNCHED OMP_NUM_THREADS"
    )
    code = (
        "import json, os, sys\n"
        "keep = {n: os.environ.get(n) for n in [*sys.argv[2].split(), 'TORCHELASTIC_RUN_ID']}\n"
        "open(f'{sys.argv[1]}/{keep[\"RANK\"]}', 'w').write(json.dumps(keep))"
    )
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = python(code, str(tmp_path), names)
    assert launch_local(command, 2, log_dir=None, environ=environ | {"TORCHELASTIC_RUN_ID": "outer"}) == 0
    first, second = (json.loads((tmp_path / str(rank)).read_text()) for rank in range(2))
    assert (first["RANK"], second["RANK"], first["LOCAL_RANK"], second["LOCAL_RANK"]) == ("0", "1", "0", "1")
    assert first["MASTER_PORT"] == second["MASTER_PORT"]
    assert first["TORCHELASTIC_RUN_ID"] is None
    same = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert same.items() <= second.items()
    assert (second["MLZH_LAUNCHED"], second["OMP_NUM_THREADS"]) == ("1", threads)


def test_the_users_number_of_threads_wins(tmp_path: Path) -> None:
    code = "import os, sys; sys.exit(os.environ['OMP_NUM_THREADS'] != '7')"
    assert launch_local(python(code), 2, log_dir=None, environ=dict(os.environ) | {"OMP_NUM_THREADS": "7"}) == 0


def test_rank_0_writes_to_us_and_the_others_append_to_their_logs(tmp_path: Path) -> None:
    (tmp_path / "rank_0001.log").write_text("from before\n")
    run = start_launcher(2, python("import os; print('I am', os.environ['RANK'])"), str(tmp_path))
    out, error = run.communicate(timeout=30)
    assert (run.returncode, out, error) == (0, "I am 0\n", "")
    assert (tmp_path / "rank_0001.log").read_text() == "from before\nI am 1\n"


@pytest.mark.parametrize("logged", [True, False])
def test_a_failing_rank_ends_the_others_and_is_shown(tmp_path: Path, logged: bool) -> None:
    code = (
        "import os, sys, time\n"
        "if os.environ['RANK'] == '1':\n    print('no such tokenizer')\n    sys.exit(3)\n"
        "time.sleep(60)"
    )
    began = time.monotonic()
    run = start_launcher(3, python(code), str(tmp_path) if logged else "")
    _, error = run.communicate(timeout=30)
    assert run.returncode == 3
    assert time.monotonic() - began < 10
    assert "rank 1 ended with exit code 3" in error
    assert "[rank 1] no such tokenizer" in error
    assert ("rank_0001.log" in error) == logged


def test_a_rank_that_was_killed_is_named_even_if_it_could_say_nothing() -> None:
    code = "import os, signal, time; os.environ['RANK'] == '0' and os.kill(os.getpid(), signal.SIGKILL); time.sleep(60)"
    run = start_launcher(2, python(code))
    _, error = run.communicate(timeout=30)
    assert run.returncode == 128 + signal.SIGKILL
    assert error == "rank 0 was killed by SIGKILL, as the kernel does when memory runs out\n"


def test_an_error_that_rank_0_has_told_is_not_told_twice(tmp_path: Path) -> None:
    code = "import os, sys, time; time.sleep(0.3 * (os.environ['RANK'] == '0')); sys.exit('error: bad key')"
    run = start_launcher(2, python(code), str(tmp_path))
    _, error = run.communicate(timeout=30)
    assert (run.returncode, error) == (1, "error: bad key\n")


def test_a_rank_that_ignores_sigterm_is_killed_with_what_it_started(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("megatron_lm_zh.runtime.launch._GRACE_S", 0.3)
    monkeypatch.setattr("megatron_lm_zh.runtime.launch._OWN_WORDS_S", 0.1)
    code = (
        "import os, signal, subprocess, sys, time\n"
        "if os.environ['RANK'] == '1':\n"
        "    while not os.path.exists(sys.argv[1]): time.sleep(0.02)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "open(sys.argv[1] + '.part', 'w').write(str(child.pid))\n"
        "os.rename(sys.argv[1] + '.part', sys.argv[1])\n"
        "time.sleep(60)"
    )
    began = time.monotonic()
    child = tmp_path / "child"
    assert launch_local(python(code, str(child)), 2, log_dir=tmp_path, environ=os.environ) == 128 + signal.SIGKILL
    assert time.monotonic() - began < 10
    time.sleep(0.1)
    assert not alive(int(child.read_text()))


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_signals_reach_every_rank(tmp_path: Path, number: signal.Signals) -> None:
    run = start_launcher(2, python(SLEEPER, str(tmp_path)))
    pids_of(tmp_path, 2)
    run.send_signal(number)
    run.communicate(timeout=30)
    assert run.returncode == 0
    assert [(tmp_path / f"signal_{rank}").read_text() for rank in range(2)] == [str(int(number))] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="a kernel that kills orphans is Linux's")
def test_ranks_die_with_their_launcher(tmp_path: Path) -> None:
    run = start_launcher(3, python(SLEEPER, str(tmp_path)))
    pids = pids_of(tmp_path, 3)
    run.kill()
    run.communicate(timeout=30)
    deadline = time.monotonic() + 2
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "ranks outlived their launcher"
        time.sleep(0.02)


def test_a_missing_program_leaves_nothing_running(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        launch_local([str(tmp_path / "nothing")], 2, log_dir=None, environ=os.environ)
