"""The house rules that a parser can hold: import direction, light commands, file size, where torch.cuda may stand."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from megatron_lm_zh.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "megatron_lm_zh"
FILES = sorted(path for path in PACKAGE.rglob("*.py"))

# Floors, lowest first. Imports run downward only, and rooms of one floor do not import each other.
FLOORS = (
    ("__init__", "errors"),
    ("compat", "families", "files", "run_directory"),
    ("config",),
    ("runtime", "observe", "tokenizer"),
    ("data", "models", "optim"),
    ("checkpoint", "convert"),
    ("train",),
    ("parity",),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
LONGEST_FILE = 450

# Rooms that one floor's room may use beside what is below it, each for a reason.
NEIGHBOURS = {
    ("optim", "models"),  # the optimizer groups the parameters of the model that models/ builds
}

# Modules that a light command may not load; `preprocess` and `tokenizer` work without torch, too.
HEAVY = ("torch", "megatron.core", "transformers")


def _module(path: Path) -> str:
    """Dotted name inside the package, e.g. `config.load`; a package's __init__ has the package's name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(nodes: Iterator[ast.AST] | list[ast.stmt]) -> Iterator[str]:
    """Full names of the modules that the import statements among `nodes` load."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import on line {node.lineno}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            known = {f"megatron_lm_zh.{_module(path)}" for path in FILES}
            submodules = [name for name in names if name in known]
            yield from submodules
            if len(submodules) < len(names):
                yield str(node.module)


def _inner_imports(path: Path) -> set[str]:
    """Modules of this package that a file imports anywhere in it, as names inside the package."""
    found = _imports(ast.walk(_tree(path)))
    return {name.removeprefix("megatron_lm_zh").lstrip(".") or "__init__" for name in found if _is_ours(name)}


def _is_ours(name: str) -> bool:
    return name == "megatron_lm_zh" or name.startswith("megatron_lm_zh.")


def _room(module: str) -> str:
    return module.split(".")[0]


def _dotted(node: ast.AST) -> str:
    """`torch.cuda` of the expression torch.cuda; "" for anything but names and attributes."""
    if isinstance(node, ast.Attribute):
        base = _dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return node.id if isinstance(node, ast.Name) else ""


def test_every_room_has_a_floor() -> None:
    assert {_room(_module(path)) for path in FILES} <= set(FLOOR)


def test_imports_run_downward() -> None:
    faults = [
        f"{_module(path)} (floor {FLOOR[room]}) imports {imported} (floor {FLOOR[_room(imported)]})"
        for path in FILES
        for room in [_room(_module(path))]
        for imported in _inner_imports(path)
        if _room(imported) != room and (room, _room(imported)) not in NEIGHBOURS
        if FLOOR[_room(imported)] >= FLOOR[room]
    ]
    assert not faults


def test_no_import_circles() -> None:
    graph = {_module(path): _inner_imports(path) for path in FILES}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"circle: {' -> '.join((*trail[trail.index(module) :], module))}"
        if module not in done:
            for imported in graph.get(module, set()):
                visit(imported, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_imports_stand_at_the_top() -> None:
    """A function-local import can hide a circle; only commands may have them, to start quickly."""
    faults = [
        f"{_module(path)}: {function.name} imports {name}"
        for path in FILES
        if _room(_module(path)) not in ("cli", "__main__")
        for function in ast.walk(_tree(path))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for name in _imports(ast.walk(function))
    ]
    assert not faults


def test_environment_and_cuda_are_the_runtimes() -> None:
    faults = []
    for path in FILES:
        room = _room(_module(path))
        names = {_dotted(node) for node in ast.walk(_tree(path))} if room != "runtime" else set()
        # A command hands its environment to runtime/, which takes it as an argument.
        environment = set() if room == "cli" else names & {"os.environ", "os.getenv", "os.environb"}
        cuda = {name for name in names if name == "torch.cuda" or name.startswith("torch.cuda.")}
        faults += [f"{_module(path)}: {name}" for name in environment | cuda]
    assert not faults


def test_low_floors_import_no_engine() -> None:
    for path in FILES:
        if FLOOR[_room(_module(path))] <= FLOOR["config"]:
            engines = {name.split(".")[0] for name in _imports(ast.walk(_tree(path)))} & {
                "torch",
                "megatron",
                "transformers",
            }
            assert not engines, f"{_module(path)} imports {engines}"


def test_files_say_their_purpose_and_stay_short() -> None:
    texts = {_module(path): (path.read_text(encoding="utf-8"), _tree(path)) for path in FILES}
    assert not [name for name, (text, tree) in texts.items() if text.strip() and not ast.get_docstring(tree)]
    assert not [name for name, (text, _) in texts.items() if len(text.splitlines()) > LONGEST_FILE]


def _heavy_after(code: str) -> list[str]:
    """Heavy modules that are loaded after `code` ran in a process of its own."""
    report = f"import sys\n{code}\nprint('loaded:', *(m for m in {HEAVY!r} if m in sys.modules))"
    run = subprocess.run([sys.executable, "-c", report], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()[-1].split()[1:]


def _main(*arguments: str) -> str:
    return (
        f"sys.argv = {['mlzh', *arguments]!r}\n"
        "from megatron_lm_zh.cli.main import main\n"
        "try:\n    code = main()\nexcept SystemExit as error:\n    code = error.code\n"
        "assert code == 0, code"
    )


def test_help_is_light() -> None:
    assert _heavy_after(_main("--help")) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_is_light(command: str) -> None:
    assert _heavy_after(_main(command, "--help")) == []


def test_config_commands_are_light() -> None:
    fields = "model.megatron.qk_clip_alpha=0.3"  # read from megatron-core's source
    assert _heavy_after(_main("config", "show", "examples/configs/tiny.yaml", fields)) == []
    assert _heavy_after(_main("config", "explain", "model.megatron.qk_clip_alpha")) == []


@pytest.mark.parametrize("command", ["preprocess", "tokenizer"])
def test_text_commands_do_not_load_torch(command: str) -> None:
    """Nothing that these commands may import, at any depth, is torch or megatron."""
    graph = {_module(path): path for path in FILES}
    waiting, seen = [f"cli.{command}"], set[str]()
    while waiting:
        module = waiting.pop()
        if module in seen or module not in graph:
            continue
        seen.add(module)
        names = set(_imports(ast.walk(_tree(graph[module]))))
        assert not {name.split(".")[0] for name in names} & {"torch", "megatron"}, f"{command} loads torch by {module}"
        waiting += _inner_imports(graph[module])
        waiting += [module.rpartition(".")[0]] if "." in module else []
