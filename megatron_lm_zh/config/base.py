"""How every config class is validated: strict types, finite numbers, no unknown keys, field docs from the source."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, Field

from megatron_lm_zh.families.registry import FAMILIES, family

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

PositiveInt = Field(gt=0)


@dataclass(frozen=True)
class FamilyDefault:
    """A default of the `model` section that depends on `model.family`."""

    name: str
    """The key it is the default of."""
    otherwise: Any
    """The default in the families that do not say."""

    def __call__(self, model: Mapping[str, Any]) -> Any:
        """The default beside the values of the keys before it."""
        return family(model.get("family", "llama")).architecture_of(self.name, self.otherwise)

    def exceptions(self) -> dict[str, Any]:
        """The families in which it is another one."""
        values = {kind.name: kind.architecture_of(self.name, self.otherwise) for kind in FAMILIES}
        return {name: value for name, value in values.items() if value != self.otherwise}


def of_family(name: str, otherwise: Any, **bounds: Any) -> Any:
    """A field of the model whose default its family says, and `otherwise` where the family does not.

    Args:
        bounds: what pydantic's Field calls them, e.g. `gt`.
    """
    return Field(default_factory=FamilyDefault(name, otherwise), **bounds)
