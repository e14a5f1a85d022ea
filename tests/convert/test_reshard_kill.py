"""A rewriting that is killed leaves no result, and the same command typed again ends with the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
from hf_models import run_python
from support.pool import RankPool
from test_reshard import BY_RANK, CASES, train

pytestmark = pytest.mark.dist

# Forks a child a case, so that everything is imported once. A child is killed from outside at some moment, its writes
# being slow; or by itself as it is about to make its n-th change on the disk.
KILL = """
import json, os, random, signal, sys, time
from pathlib import Path
from megatron_lm_zh.convert import reshard as r
r.MAX_FILE_BYTES = 30_000
checkpoint, root, options, moments, every, seed = sys.argv[1:]
options, root = json.loads(options), Path(root)
pwrite, fsync = os.pwrite, lambda descriptor: None  # what is written stays when its process is killed
random.seed(int(seed))

def slow(call):
    def called(*arguments):
        time.sleep(0.002)
        return call(*arguments)
    return called

def kill_before(last):
    changes = []
    def change(what):
        changes.append(what)
        if len(changes) == last:
            os.kill(os.getpid(), signal.SIGKILL)
    def look(event, arguments):
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if writes or event in ("os.rename", "os.remove", "os.mkdir", "os.truncate", "shutil.copyfile"):
            change(event)
    os.pwrite = lambda *arguments: (change("pwrite"), pwrite(*arguments))[1]
    os.fsync = lambda descriptor: change("fsync")
    sys.addaudithook(look)
    return changes

def start(output, last=None, told=None):
    child = os.fork()
    if not child:
        os.pwrite, os.fsync = slow(pwrite), slow(fsync)
        changes = kill_before(last) if last is not None else []
        r.reshard(Path(checkpoint), output, workers=2, **options)
        if told:
            told.write_text(json.dumps(list(changes)))
        os._exit(0)
    return child

def partial(output):
    return output.with_name(output.name + ".partial")

def has_files(output):
    journal = partial(output) / ".journal"
    return journal.is_file() and journal.read_text().count("file") > 0

def content(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}

def check(output):
    if not output.is_dir():
        assert os.waitpid(start(output, last=0), 0)[1] == 0, f"{output} cannot be gone on with"
    found = content(output)
    wrong = [name for name in {*found, *expected} if found.get(name) != expected.get(name)]
    assert not wrong, f"{output} has not the same {wrong}"
    assert not partial(output).exists()

began = time.monotonic()
assert os.waitpid(start(root / "whole"), 0)[1] == 0
length = time.monotonic() - began
expected = content(root / "whole")
resumed = 0
for case in range(int(moments)):
    output = root / f"moment_{case}"
    for kill in range(2):
        child = start(output)
        if case == kill == 0:  # one attempt at least has a file to go on from
            while not has_files(output) and not output.is_dir():
                time.sleep(0.001)
        else:
            time.sleep(random.uniform(0, length))
        os.kill(child, signal.SIGKILL)
        if os.waitpid(child, 0)[1] == 0 or output.is_dir():
            break
        resumed += has_files(output)
    check(output)
assert resumed or not int(moments), "no attempt at random had a file to go on from"

os.waitpid(start(root / "counted", last=0, told=root / "changes"), 0)
changes = json.loads((root / "changes").read_text())
written = max(number for number, what in enumerate(changes) if what == "pwrite")
chosen = [n for n, what in enumerate(changes) if n % int(every) == 0 or n > written and what != "fsync"]
for number in chosen:
    output = root / f"change_{number}"
    assert os.waitpid(start(output, last=number + 1), 0)[1] == signal.SIGKILL, number
    resumed += has_files(output)
    check(output)
assert resumed, "no attempt had a file to go on from"
print(f"same after {moments} moments and before {len(chosen)} of {len(changes)} changes; {len(expected)} files")
"""


@pytest.fixture(scope="module")
def checkpoint(ranks: RankPool, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What training saved rank by rank."""
    run = train(ranks, tiny_data, tmp_path_factory.mktemp("kill"), 2, *CASES["dp2"].model, *BY_RANK)
    return run / "checkpoints/iter_0000002"


def killed(checkpoint: Path, root: Path, options: str, moments: int, every: int) -> None:
    """Kills at so many random moments, before each `every`-th change on the disk, and before each of the last ones."""
    told = run_python(KILL, checkpoint, root, options, moments, every, moments)
    print(told)
    assert told.startswith("same after ")


def test_a_killed_rewriting_goes_on(checkpoint: Path, tmp_path: Path) -> None:
    killed(checkpoint, tmp_path, "{}", moments=2, every=1000)


@pytest.mark.slow
@pytest.mark.parametrize("options", ["{}", '{"weights_only": true}', '{"make_vocab_size_divisible_by": 192}'])
def test_a_rewriting_killed_at_many_moments_goes_on(checkpoint: Path, tmp_path: Path, options: str) -> None:
    killed(checkpoint, tmp_path, options, moments=20, every=10)
