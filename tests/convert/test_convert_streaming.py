"""Conversions write several tensors at a time in bounded memory, go on after a kill, and plan before they write."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import make_hf, run_python, same_bits, weights
from safetensors.torch import load_file, save_file

from megatron_lm_zh.cli.main import main_for_arguments
from megatron_lm_zh.convert import from_hf as from_hf_module
from megatron_lm_zh.convert import streaming
from megatron_lm_zh.convert import to_hf as to_hf_module
from megatron_lm_zh.convert.engine import TensorSpec
from megatron_lm_zh.convert.from_hf import FromHF, from_hf
from megatron_lm_zh.convert.megatron_files import MegatronWeights
from megatron_lm_zh.convert.output import JOURNAL
from megatron_lm_zh.convert.records import find_record, raw, record, record_length
from megatron_lm_zh.convert.streaming import Progress
from megatron_lm_zh.convert.to_hf import ToHF, to_hf
from megatron_lm_zh.errors import UserError

CONVERT = {"from_hf": from_hf, "to_hf": to_hf}

# Forks a child a case, so that everything is imported once; a child whose writes are slow is killed at some moment.
KILL = """
import os, random, signal, sys, time
from pathlib import Path
from megatron_lm_zh.convert import from_hf as f, streaming, to_hf as t
f.MAX_FILE_BYTES = t.MAX_SHARD_BYTES = 30_000
convert = {"from_hf": f.from_hf, "to_hf": t.to_hf}
root, cases = Path(sys.argv[1]), int(sys.argv[2])
pwrite = os.pwrite

def slow(*arguments):
    time.sleep(0.002)
    return pwrite(*arguments)

streaming.os.pwrite = slow

def start(direction, source, output):
    child = os.fork()
    if not child:
        convert[direction](source, output, workers=2)
        os._exit(0)
    return child

def content(path):
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}

random.seed(int(sys.argv[3]))
resumed = 0
for direction, source in (("from_hf", root / "hf"), ("to_hf", root / "megatron")):
    began = time.monotonic()
    os.waitpid(start(direction, source, root / f"whole_{direction}"), 0)
    length = time.monotonic() - began
    expected = content(root / f"whole_{direction}")
    for case in range(cases):
        output = root / f"{direction}_{case}"
        for kill in range(2):
            child = start(direction, source, output)
            time.sleep(random.uniform(0, length))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        journal = root / f"{direction}_{case}.partial" / ".journal"
        resumed += journal.is_file() and journal.read_text().count("file") > 0
        if not output.is_dir():
            assert os.waitpid(start(direction, source, output), 0)[1] == 0
        assert content(output) == expected, output
        assert not (root / f"{direction}_{case}.partial").exists()
assert resumed, "no attempt had a file to go on from"
print("same")
"""

# Looks every few milliseconds, and before each write: there a tensor is held.
MEMORY = """
import json, os, sys, threading, time
from pathlib import Path
from megatron_lm_zh.convert import streaming
from megatron_lm_zh.convert.from_hf import from_hf
from megatron_lm_zh.convert.to_hf import to_hf

def anonymous():
    for line in open("/proc/self/smaps_rollup"):
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024

peaks, running, pwrite = {}, True, os.pwrite

def look():
    peaks[direction] = max(peaks.get(direction, 0), anonymous())

def watch():
    while running:
        look()
        time.sleep(0.002)

def write(*arguments):
    look()
    return pwrite(*arguments)

streaming.os.pwrite = write
root, workers = Path(sys.argv[1]), int(sys.argv[2])
direction = "from_hf"
thread = threading.Thread(target=watch)
thread.start()
from_hf(root / "hf", root / "megatron", workers=workers)
direction = "to_hf"
to_hf(root / "megatron", root / "back", workers=workers)
running = False
thread.join()
print(json.dumps(peaks))
"""


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a few tensors."""
    monkeypatch.setattr(from_hf_module, "MAX_FILE_BYTES", 30_000)
    monkeypatch.setattr(to_hf_module, "MAX_SHARD_BYTES", 30_000)


def content(path: Path) -> dict[Path, bytes]:
    """Every file of a directory."""
    return {found.relative_to(path): found.read_bytes() for found in path.rglob("*") if found.is_file()}


def fail_after(monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """The disk is full after so many writes."""
    left = iter(range(writes))
    pwrite = os.pwrite

    def write(*arguments: Any) -> int:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(*arguments)

    monkeypatch.setattr(streaming.os, "pwrite", write)


@pytest.mark.usefixtures("small_files")
def test_any_number_of_workers_writes_the_same(tmp_path: Path) -> None:
    hf = make_hf(tmp_path / "hf")
    for workers in (1, 5):
        from_hf(hf, tmp_path / f"megatron{workers}", workers=workers)
        to_hf(tmp_path / f"megatron{workers}", tmp_path / f"back{workers}", workers=workers)
    assert content(tmp_path / "megatron1") == content(tmp_path / "megatron5")
    assert content(tmp_path / "back1") == content(tmp_path / "back5")
    assert len(list((tmp_path / "megatron1").glob("*.distcp"))) > 5
    assert same_bits(weights(hf), weights(tmp_path / "back1"))


def killed(tmp_path: Path, cases: int, seed: int) -> None:
    from_hf(make_hf(tmp_path / "hf"), tmp_path / "megatron")
    assert run_python(KILL, tmp_path, cases, seed).endswith("same\n")


def test_a_killed_conversion_goes_on(tmp_path: Path) -> None:
    killed(tmp_path, cases=3, seed=0)


@pytest.mark.slow
def test_a_conversion_killed_at_many_moments_goes_on(tmp_path: Path) -> None:
    killed(tmp_path, cases=20, seed=1)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("direction", CONVERT)
def test_a_full_disk_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direction: str) -> None:
    hf = make_hf(tmp_path / "hf")
    from_hf(hf, tmp_path / "megatron")
    source = hf if direction == "from_hf" else tmp_path / "megatron"
    CONVERT[direction](source, tmp_path / "whole")
    with monkeypatch.context() as patch:
        fail_after(patch, 15)
        with pytest.raises(UserError, match="No space left.*files are done and kept.*the same command goes on"):
            CONVERT[direction](source, tmp_path / "out", workers=2)
    assert not (tmp_path / "out").exists()
    done = (tmp_path / "out.partial" / JOURNAL).read_text().count('"file"')
    assert done > 0
    seen: list[Progress] = []
    CONVERT[direction](source, tmp_path / "out", on_progress=seen.append)
    assert seen[0].before > 0 and seen[-1].done == seen[-1].total
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.usefixtures("small_files")
def test_another_source_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf = make_hf(tmp_path / "hf")
    with monkeypatch.context() as patch:
        fail_after(patch, 15)
        with pytest.raises(UserError, match="files are done"):
            from_hf(hf, tmp_path / "out")
    tensors = load_file(hf / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, hf / "model.safetensors")
    seen: list[Progress] = []
    from_hf(hf, tmp_path / "out", on_progress=seen.append)
    assert seen[0].before == 0
    from_hf(hf, tmp_path / "whole")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.usefixtures("small_files")
def test_a_damaged_journal_starts_anew_or_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf = make_hf(tmp_path / "hf")
    from_hf(hf, tmp_path / "whole")
    for damage in (lambda text: text[:-5], lambda text: text[:10], lambda text: "", lambda text: "[]\n" + text):
        with monkeypatch.context() as patch:
            fail_after(patch, 15)
            with pytest.raises(UserError, match="files are done"):
                from_hf(hf, tmp_path / "out")
        journal = tmp_path / "out.partial" / JOURNAL
        journal.write_text(damage(journal.read_text()))
        from_hf(hf, tmp_path / "out")
        assert content(tmp_path / "out") == content(tmp_path / "whole")
        shutil.rmtree(tmp_path / "out")


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    hf = make_hf(tmp_path / "hf")
    (tmp_path / "out.partial").mkdir()
    hold = (
        "import fcntl, sys, subprocess\n"
        "lock = open(sys.argv[1], 'a+'); fcntl.lockf(lock, fcntl.LOCK_EX)\n"
        "command = [sys.executable, '-m', 'megatron_lm_zh', 'convert', 'from-hf', *sys.argv[2:]]\n"
        "print(subprocess.run(command, capture_output=True, text=True).stderr)\n"
    )
    said = run_python(hold, tmp_path / "out.partial" / ".lock", hf, tmp_path / "out")
    assert "another process is writing it" in said and not (tmp_path / "out").exists()


def test_a_source_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    hf = make_hf(tmp_path / "hf")
    with pytest.raises(UserError, match="changed while they were converted"):
        from_hf(hf, tmp_path / "out", on_progress=lambda progress: (hf / "new").touch())
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("small_files")
def test_the_plan_is_what_is_written(tmp_path: Path) -> None:
    hf = make_hf(tmp_path / "hf")
    planned = FromHF(hf).plan
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]
    from_hf(hf, tmp_path / "megatron")
    files = {path.name: path.stat().st_size for path in (tmp_path / "megatron").glob("*.distcp")}
    assert {file.name: file.num_bytes for file in planned.files} == files
    specs = MegatronWeights(tmp_path / "megatron").specs
    assert {piece.key: piece.spec for piece in planned.pieces} == specs
    exported = ToHF(tmp_path / "megatron").plan
    to_hf(tmp_path / "megatron", tmp_path / "back")
    files = {path.name: path.stat().st_size for path in (tmp_path / "back").glob("*.safetensors")}
    assert {file.name: file.num_bytes for file in exported.files} == files
    layers = [piece.key.split(".")[2] for piece in exported.pieces if ".layers." in piece.key]
    assert layers == sorted(layers)  # a layer's tensors stand together


def test_dry_run_and_workers_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["convert", "from-hf", str(make_hf(tmp_path / "hf")), str(tmp_path / "out")]
    capsys.readouterr()
    assert main_for_arguments([*command, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "decoder.layers.2.mlp.linear_fc1.weight  [160, 48]  float32  30,720 bytes" in told
    assert told.splitlines()[-1].startswith("21 tensors, 1 files, ")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    assert main_for_arguments([*command, "--workers", "3"]) == 0
    said = capsys.readouterr()
    assert said.out == f"wrote {tmp_path / 'out'}\n"
    (line,) = said.err.splitlines()  # no terminal: one line, at the end
    assert " GB in " in line and line.endswith(" GB/s")


DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 4), (1, 2, 5), (7,), (0, 3), ()], ids=str)
def test_records_are_those_of_torch_save(tmp_path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = torch.randn(shape).to(dtype)
    ours = b"".join(
        record(TensorSpec(shape, dtype), [raw(rows) for rows in tensor.split(2)] if shape else [raw(tensor)])
    )
    assert len(ours) == record_length(TensorSpec(shape, dtype))
    assert zipfile.ZipFile(io.BytesIO(ours)).testzip() is None
    loaded = torch.load(io.BytesIO(ours), weights_only=True)
    assert loaded.dtype == dtype and torch.equal(loaded, tensor)
    theirs = io.BytesIO()
    torch.save(tensor, theirs)
    for content_ in (ours, theirs.getvalue()):
        (tmp_path / "file").write_bytes(b"before" + content_ + b"after")
        found = find_record(tmp_path / "file", 6, len(content_))
        assert (found.shape, found.stride, found.dtype) == (tensor.shape, tensor.stride(), dtype)
        numbers = (tmp_path / "file").read_bytes()[found.offset :][: found.length]
        assert numbers == tensor.flatten().view(torch.uint8).numpy().tobytes()


@pytest.mark.slow
def test_a_record_beyond_four_gigabytes(tmp_path: Path) -> None:
    tensor = torch.zeros(2**31 + 64, dtype=torch.bfloat16)
    tensor[-3:] = 1
    with (tmp_path / "file").open("wb") as file:
        for buffer in record(TensorSpec(tuple(tensor.shape), tensor.dtype), [raw(tensor)]):
            file.write(buffer)
    assert (tmp_path / "file").stat().st_size == record_length(TensorSpec(tuple(tensor.shape), tensor.dtype))
    loaded = torch.load(tmp_path / "file", weights_only=True, mmap=True)
    assert loaded.shape == tensor.shape and loaded[-4:].tolist() == [0, 1, 1, 1]
    found = find_record(tmp_path / "file", 0, (tmp_path / "file").stat().st_size)
    assert found.length == tensor.nbytes


WIDE: dict[str, Any] = {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64}


def peaks(directory: Path, workers: int, **config: int) -> dict[str, int]:
    """Largest anonymous memory of each direction, and the bytes of the model; nothing stays in `directory`."""
    hf = make_hf(directory / "hf", **WIDE, **config)
    found: dict[str, int] = json.loads(run_python(MEMORY, directory, workers))
    found["model"] = (hf / "model.safetensors").stat().st_size
    shutil.rmtree(directory)
    print({what: f"{size / 1e6:.1f} MB" for what, size in found.items()})
    return found


def test_memory_is_bounded_by_the_largest_tensor(tmp_path: Path) -> None:
    vocabulary = 40_000
    found = peaks(tmp_path / "model", 8, vocab_size=vocabulary, intermediate_size=4096, num_hidden_layers=4)
    largest = vocabulary * WIDE["hidden_size"] * 4
    assert found["model"] > 3 * largest
    assert max(found["from_hf"], found["to_hf"]) <= 2.5 * largest + 300e6


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_memory_does_not_grow_with_the_layers(tmp_path: Path, workers: int) -> None:
    few, many = (
        peaks(tmp_path / str(layers), workers, vocab_size=4000, intermediate_size=2048, num_hidden_layers=layers)
        for layers in (4, 8)
    )
    layer, largest = (many["model"] - few["model"]) / 4, 2 * 2048 * WIDE["hidden_size"] * 4  # gate and up in one tensor
    assert layer > 30e6
    for direction in CONVERT:
        assert many[direction] - few[direction] < 6e6, direction
        assert many[direction] <= 2.5 * largest + 300e6


def test_json_of_a_plan(tmp_path: Path) -> None:
    plan = FromHF(make_hf(tmp_path / "hf")).plan
    told = json.loads(json.dumps(plan.to_json()))
    assert told["bytes"] == plan.num_bytes == sum(file["bytes"] for file in told["files"])
    assert len(told["tensors"]) == 21
