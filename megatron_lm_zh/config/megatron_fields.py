"""The fields of the installed megatron-core's configs, read from its source without importing it (or torch)."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_lm_zh.compat import megatron_core_directory, megatron_core_version
from megatron_lm_zh.errors import UserError

# Per pass-through table: the classes that hold its fields, base class first.
TABLES: dict[str, tuple[tuple[str, str], ...]] = {
    "model": (
        ("model_parallel_config.py", "ModelParallelConfig"),
        ("transformer/transformer_config.py", "TransformerConfig"),
    ),
    "optim": (("optimizer/optimizer_config.py", "OptimizerConfig"),),
    "ddp": (("distributed/distributed_data_parallel_config.py", "DistributedDataParallelConfig"),),
}

# How a config file names a torch dtype.
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class MegatronField:
    """One field of a megatron-core config class."""

    name: str
    annotation: ast.expr
    """Its type, as parsed source."""
    default: str
    """Source text of its default; "required" where it has none."""
    doc: str
    """The text under it."""
    owner: str
    """The class that declares it."""

    @property
    def type_name(self) -> str:
        """Source text of its type."""
        return ast.unparse(self.annotation)


def megatron_fields(table: str) -> dict[str, MegatronField]:
    """The fields that `<table>.megatron` can name ("model", "optim" or "ddp"), of the installed megatron-core.

    Raises:
        UserError: megatron-core is not installed, or its files are laid out in a way this package does not know.
    """
    root = megatron_core_directory()
    if root is None:
        raise UserError("megatron-core is not installed", mend="pip install 'megatron-core>=0.16.1,<0.20'")
    fields: dict[str, MegatronField] = {}
    for file, class_name in TABLES[table]:
        fields |= _fields_of(root / file, class_name)
    return fields


def enum_members(class_name: str) -> tuple[str, ...]:
    """Names of the members of one of megatron-core's enums (transformer/enums.py); () if it has no such enum."""
    root = megatron_core_directory()
    file = root / "transformer" / "enums.py" if root else None
    if file is None or not file.exists():
        return ()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    bodies = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name]
    targets = [node.targets[0] for body in bodies for node in body if isinstance(node, ast.Assign)]
    return tuple(target.id for target in targets if isinstance(target, ast.Name))


def version_text() -> str:
    """The installed megatron-core as messages name it, e.g. "megatron-core 0.16.1"."""
    return "megatron-core " + ".".join(map(str, megatron_core_version()))


def accepts(annotation: ast.expr, value: Any) -> bool | None:
    """Whether a YAML value fits a field's type; None where no YAML value can (a function, an object of megatron-core).

    `torch.dtype` takes fp32, bf16 or fp16 and an enum takes the name of a member; passthrough.arguments converts them.
    """
    match annotation:
        case ast.Constant(value=None):
            return value is None
        case ast.Constant(value=str() as source):
            return accepts(ast.parse(source, mode="eval").body, value)
        case ast.Name(id="bool"):
            return isinstance(value, bool)
        case ast.Name(id="int"):
            return isinstance(value, int) and not isinstance(value, bool)
        case ast.Name(id="float"):
            return isinstance(value, int | float) and not isinstance(value, bool)
        case ast.Name(id="str"):
            return isinstance(value, str)
        case ast.Name(id="list" | "List" | "tuple" | "Tuple"):
            return isinstance(value, list)
        case ast.Attribute(attr="dtype"):
            return value in DTYPES
        case ast.Name(id=name) if members := enum_members(name):
            return value in members
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            return _any_of([accepts(left, value), accepts(right, value)])
        case ast.Subscript(value=ast.Name(id=generic), slice=inner):
            return _generic(generic, inner.elts if isinstance(inner, ast.Tuple) else [inner], value)
    return None


def _generic(name: str, arguments: list[ast.expr], value: Any) -> bool | None:
    match name:
        case "Optional":
            return _any_of([value is None, *(accepts(argument, value) for argument in arguments)], nullable=True)
        case "Union":
            return _any_of([accepts(argument, value) for argument in arguments])
        case "Literal":
            return value in [ast.literal_eval(argument) for argument in arguments]
        case "list" | "List":
            return isinstance(value, list) and all(accepts(arguments[0], item) for item in value)
        case "tuple" | "Tuple":
            if not isinstance(value, list) or len(value) != len(arguments):
                return False
            return all(accepts(argument, item) for argument, item in zip(arguments, value, strict=True))
    return None


def _any_of(answers: list[bool | None], *, nullable: bool = False) -> bool | None:
    """True if one alternative fits; None if no alternative could ever hold a YAML value (other than null)."""
    if any(answers):
        return True
    return None if all(answer is None for answer in answers[1 if nullable else 0 :]) else False


def _fields_of(file: Path, class_name: str) -> dict[str, MegatronField]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    except (OSError, StopIteration) as error:
        what = f"this release does not know how {version_text()} lays out {class_name} ({file})"
        raise UserError(what, mend="pip install 'megatron-core>=0.16.1,<0.20'") from error
    fields = {}
    for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)) or node.target.id.startswith(
            "_"
        ):
            continue
        text = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            text = inspect.cleandoc(after.value.value)
        name = node.target.id
        fields[name] = MegatronField(name, node.annotation, _default(node.value), text, class_name)
    return fields


def _default(value: ast.expr | None) -> str:
    """Source text of a default, looking through dataclasses.field(default=...)."""
    if value is None:
        return "required"
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "field":
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in value.keywords}
        return given.get("default") or given.get("default_factory", "required") + "()"
    return ast.unparse(value)
