"""One place where YAML becomes validated settings.

Rooms declare their settings as frozen subclasses of `Settings`; files and mappings go through `load_settings`
and `parse_settings`, which turn every pydantic complaint into a one-line `ConfigError`.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from nvcim.errors import ConfigError


class Settings(BaseModel):
    """Frozen settings that refuse unknown fields (a misspelt field must never be ignored)."""

    model_config = ConfigDict(frozen=True, extra="forbid")


S = TypeVar("S", bound=Settings)


LocalPath = Annotated[Path, AfterValidator(Path.resolve)]
"""A file or folder in settings. A relative one is seen from the working folder of the process that reads the settings,
as paths on the command line are, and is absolute from then on: workers and later commands run elsewhere."""


class _RepeatedKeyError(yaml.YAMLError):
    """A key that a mapping has twice."""


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which also refuses a key given twice, as YAML does; PyYAML alone takes the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                raise _RepeatedKeyError(
                    f"key '{key.value}' is given twice, at lines {lines[name]} and {line}"
                )
            lines[name] = line
        return node


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file.

    Raises:
        ConfigError: the file is missing, unreadable or not YAML, or a mapping in it has a key twice.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text") from error
    except _RepeatedKeyError as error:
        raise ConfigError(f"{path}: {error}") from error
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where is not None else ""
        raise ConfigError(f"{path}: not valid YAML{line}") from error


def load_settings(path: Path, kind: type[S]) -> S:
    """Read a YAML mapping and validate it as `kind`.

    Raises:
        ConfigError: unreadable file, unknown field (named, with the allowed ones) or a value out of range.
    """
    content = read_yaml(path)
    if content is None:
        content = {}
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(content).__name__}")
    return parse_settings(content, kind, source=str(path))


def parse_settings(content: Mapping[str, Any], kind: type[S], source: str) -> S:
    """Validate a mapping as `kind`; `source` names it in errors.

    Raises:
        ConfigError: as `load_settings`.
    """
    try:
        return kind.model_validate(dict(content))
    except ValidationError as error:
        raise ConfigError(f"{source}: {_first_complaint(error, kind)}") from error


def _first_complaint(error: ValidationError, kind: type[Settings]) -> str:
    """One line for the first of pydantic's complaints; an unknown field also lists the allowed ones."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or "settings"
    if first["type"] == "extra_forbidden":
        allowed = _fields_at(kind, first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), allowed, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        return f"unknown field '{field}'{hint}; allowed: {', '.join(allowed)}"
    return f"field '{field}': {first['msg']} (given: {first['input']!r})"


def _fields_at(kind: type[Settings], path: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the settings nested at `path` below `kind`."""
    nested: list[Any] = [kind]
    for part in path:
        # A union's path names the member by its `kind`, a list's or a mapping's its place.
        tagged = [c for c in nested if "kind" in c.model_fields and c.model_fields["kind"].default == part]
        holders = [c for c in nested if part in c.model_fields]
        if tagged:
            nested = tagged
        elif holders:
            found = _settings_in(holders[0].model_fields[part].annotation)
            if not found:
                return []
            nested = found
    return sorted(nested[0].model_fields)


def _settings_in(annotation: Any) -> list[Any]:
    """The settings that an annotation names: itself, members of a union, items of a list or mapping."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [found for part in get_args(annotation) for found in _settings_in(part)]
