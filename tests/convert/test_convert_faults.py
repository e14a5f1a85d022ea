"""Files damaged at random are refused in one line: never a traceback, never code that runs, never a result."""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import make_hf, mlzh
from safetensors.torch import load_file, save_file

from megatron_lm_zh.convert.engine import Conversion
from megatron_lm_zh.convert.from_hf import FromHF, from_hf
from megatron_lm_zh.convert.hf_files import HFWeights
from megatron_lm_zh.convert.megatron_files import MegatronWeights
from megatron_lm_zh.errors import UserError

RUNS_CODE = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.remove", "os.rename", "subprocess.", "socket.")


class Watch:
    """Sees what Python does while it is on; an audit hook stays for as long as the process does."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._look)

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[1], str) and any(mode in arguments[1] for mode in "wax+")
        if self.on and (writes or event.startswith(RUNS_CODE)):
            self.seen.append(event)

    @contextmanager
    def no_code(self) -> Iterator[None]:
        """Nothing may be started, removed or written in the block."""
        self.seen.clear()
        self.on = True
        try:
            yield
        finally:
            self.on = False
        assert not self.seen


@pytest.fixture(scope="module")
def watch() -> Watch:
    """One hook for all tests here."""
    return Watch()


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Hugging Face directory."""
    return make_hf(tmp_path_factory.mktemp("faults") / "hf", num_hidden_layers=1)


@pytest.fixture(scope="module")
def checkpoint(hf: Path) -> Path:
    """The same model as a checkpoint."""
    from_hf(hf, hf.parent / "megatron")
    return hf.parent / "megatron"


def mutated(whole: bytes, dice: random.Random, *, first: int, last: int) -> bytes:
    """The content with a few changes between two places: bits, bytes, runs that are copied, removed or put in."""
    content = bytearray(whole)
    for _ in range(dice.choice((1, 1, 1, 2, 3, 8))):
        place = dice.randrange(first, max(first + 1, min(last, len(content))))
        length = dice.choice((1, 1, 2, 4, 8, 30))
        kind = dice.randrange(6)
        if kind == 0 and place < len(content):
            content[place] ^= 1 << dice.randrange(8)
        elif kind == 1 and place < len(content):
            content[place] = dice.randrange(256)
        elif kind == 2:
            del content[place : place + length]
        elif kind == 3:
            content[place:place] = dice.randbytes(length)
        elif kind == 4:
            start = dice.randrange(first, max(first + 1, min(last, len(content))))
            content[place : place + length] = content[start : start + length]
        else:
            digits = b"0123456789-.e{}[]\"',:nul\xff\x80.RocbQ"
            content[place : place + 1] = bytes([dice.choice(digits)])
    return bytes(content)


def survives(act: Callable[[], None], watch: Watch) -> bool:
    """Runs `act`; only a one-line user error may come out of it. Says whether it was refused."""
    try:
        with watch.no_code():
            act()
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
        return True
    return False


def read_all(conversion: Conversion, source: MegatronWeights) -> None:
    """What to-hf does before it writes, and every read."""
    conversion.plan_to_hf(source)
    source.check()
    for name in source.specs:
        source.read(name).sum()


def fuzz_header(hf: Path, watch: Watch, cases: int, seed: int) -> None:
    path, dice = hf / "model.safetensors", random.Random(seed)
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")

    def read() -> None:
        source = HFWeights(hf)
        for name in source.specs:
            source.read(name).sum()

    refused = 0
    try:
        for _ in range(cases):
            path.write_bytes(mutated(whole, dice, first=0, last=end))
            refused += survives(read, watch)
    finally:
        path.write_bytes(whole)
    assert refused > cases // 2


def fuzz_index(hf: Path, checkpoint: Path, watch: Watch, cases: int, seed: int) -> None:
    path, dice = checkpoint / ".metadata", random.Random(seed)
    whole, conversion = path.read_bytes(), FromHF(hf).conversion
    refused = 0
    try:
        for _ in range(cases):
            path.write_bytes(mutated(whole, dice, first=0, last=len(whole)))
            refused += survives(lambda: read_all(conversion, MegatronWeights(checkpoint)), watch)
    finally:
        path.write_bytes(whole)
    assert refused > cases // 2


def fuzz_records(hf: Path, checkpoint: Path, watch: Watch, cases: int, seed: int) -> None:
    path, dice = checkpoint / "__0_0.distcp", random.Random(seed)
    whole, conversion = path.read_bytes(), FromHF(hf).conversion
    places = [place.offset for place in MegatronWeights(checkpoint).metadata.storage_data.values()]
    try:
        for _ in range(cases):
            offset = dice.choice(places)
            # records stand one after another: the bytes around a border are a directory's and a header's
            path.write_bytes(mutated(whole, dice, first=max(0, offset - 500), last=offset + 700))
            survives(lambda: read_all(conversion, MegatronWeights(checkpoint)), watch)
    finally:
        path.write_bytes(whole)


def test_damaged_headers(hf: Path, watch: Watch) -> None:
    fuzz_header(hf, watch, 500, seed=0)


def test_damaged_indices(hf: Path, checkpoint: Path, watch: Watch) -> None:
    fuzz_index(hf, checkpoint, watch, 500, seed=0)


def test_damaged_records(hf: Path, checkpoint: Path, watch: Watch) -> None:
    fuzz_records(hf, checkpoint, watch, 300, seed=0)


@pytest.mark.slow
def test_many_damaged_headers(hf: Path, watch: Watch) -> None:
    fuzz_header(hf, watch, 10_000, seed=1)


@pytest.mark.slow
def test_many_damaged_indices(hf: Path, checkpoint: Path, watch: Watch) -> None:
    fuzz_index(hf, checkpoint, watch, 10_000, seed=1)


@pytest.mark.slow
def test_many_damaged_records(hf: Path, checkpoint: Path, watch: Watch) -> None:
    fuzz_records(hf, checkpoint, watch, 10_000, seed=1)


def test_a_memo_that_would_fill_the_memory(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "copy")
    (tmp_path / "copy" / ".metadata").write_bytes(b"\x80\x04]r\x00\x00\x00\x20.")
    with pytest.raises(UserError, match="memo"):
        assert MegatronWeights(tmp_path / "copy").specs


BYTES = '{"dtype":"U8","shape":[%d],"data_offsets":[%d,%d]}'
HEADERS = {
    "twice": f'{{"a":{BYTES % (2, 0, 2)},"a":{BYTES % (2, 0, 2)}}}'.encode(),
    "hole": f'{{"a":{BYTES % (1, 1, 2)}}}'.encode(),
    "overlap": f'{{"a":{BYTES % (2, 0, 2)},"b":{BYTES % (1, 1, 2)}}}'.encode(),
    "negative": b'{"a":{"dtype":"U8","shape":[-1,-2],"data_offsets":[0,2]}}',
    "large": b'{"a":{"dtype":"U8","shape":[9999999999,9999999999],"data_offsets":[0,99999999980000000001]}}',
    "dtype": b'{"a":{"dtype":"F4","shape":[1],"data_offsets":[0,2]}}',
    "deep": b"[" * 100_000,
    "list": b"[]",
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_lie(tmp_path: Path, name: str) -> None:
    header = HEADERS[name]
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(UserError, match="unreadable"):
        assert HFWeights(tmp_path).specs


def test_an_index_of_shards_points_nowhere_else(hf: Path, tmp_path: Path) -> None:
    shutil.copytree(hf, tmp_path / "hf")
    for value in ('{"weight_map": {"a": "../hf/model.safetensors"}}', '{"weight_map": {"a": 3}}', '{"weight_map": []}'):
        (tmp_path / "hf" / "model.safetensors.index.json").write_text(value)
        with pytest.raises(UserError):
            from_hf(tmp_path / "hf", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_source_is_mended_and_the_command_typed_again(hf: Path, tmp_path: Path) -> None:
    tensors = load_file(hf / "model.safetensors")
    (tmp_path / "hf").mkdir()
    shutil.copy(hf / "config.json", tmp_path / "hf")
    names = sorted(tensors)
    halves = {"model-1.safetensors": names[:5], "model-2.safetensors": names[5:]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, tmp_path / "hf" / file, metadata={"format": "pt"})
    index = {name: file for file, part in halves.items() for name in part}
    text = str({"weight_map": index}).replace("'", '"')
    (tmp_path / "hf" / "model.safetensors.index.json").write_text(text)
    second = tmp_path / "hf" / "model-2.safetensors"
    whole = second.read_bytes()
    for damage, words in ((lambda: second.write_bytes(whole[:-100]), "unreadable"), (second.unlink, "no model-2")):
        damage()
        done = mlzh("convert", "from-hf", tmp_path / "hf", tmp_path / "out")
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1
        assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    second.write_bytes(whole)
    from_hf(tmp_path / "hf", tmp_path / "out")
    name = "embedding.word_embeddings.weight"
    assert torch.equal(MegatronWeights(tmp_path / "out").read(name)[:131], tensors["model.embed_tokens.weight"])
