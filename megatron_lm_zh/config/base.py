"""How every config class is validated: strict types, no unknown keys, field docs taken from the source."""

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)
