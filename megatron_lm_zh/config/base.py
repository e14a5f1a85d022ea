"""How every config class is validated: strict types, finite numbers, no unknown keys, field docs from the source."""

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)
