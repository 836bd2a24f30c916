"""The Serve config file, checked strictly: Ray's own schema drops a misspelt key without a word."""

import difflib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from ray.serve.schema import ServeDeploySchema

from nvcim.config import Settings, parse_settings, read_yaml
from nvcim.errors import ConfigError

CONFIG_FILE = Path(__file__).with_name("config.yaml")
IMPORT_PATH = "serving.app:build"
DEPLOYMENTS = ("Ingress", "Language", "Segmentation")


class AppSettings(Settings):
    """Arguments of the app, the `args` of the Serve config."""

    run: Path = Field(description="run folder: its nodes and FCNs are served")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    max_batch_size: int = Field(16, ge=1, le=1024, description="completions in one batch, of any users")
    batch_wait_ms: float = Field(10.0, ge=0, le=10_000, description="how long a batch waits to fill")


def load_serve_config(path: Path = CONFIG_FILE) -> ServeDeploySchema:
    """Read and check a Serve config file.

    Raises:
        ConfigError: unreadable, an unknown key anywhere (named, with the allowed ones), a value out of range.
    """
    return parse_serve_config(read_yaml(path), str(path))


def parse_serve_config(content: Any, source: str) -> ServeDeploySchema:
    """Check the content of a Serve config; `source` names it in errors.

    Raises:
        ConfigError: as `load_serve_config`.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(f"{source}: expected a mapping with 'applications'")
    _refuse_unknown_keys(content, ServeDeploySchema, source, ())
    try:
        config = ServeDeploySchema.model_validate(dict(content))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{source}: field '{field}': {first['msg']}") from error
    for index, app in enumerate(config.applications):
        if app.import_path == IMPORT_PATH:
            parse_settings(app.args, AppSettings, f"{source}: applications.{index}.args")
            for deployment in app.deployments:
                _check_choice(deployment.name, DEPLOYMENTS, f"{source}: unknown deployment")
    return config


def deployment_options(config: ServeDeploySchema) -> dict[str, dict[str, Any]]:
    """Return what a config sets for the app's deployments, by name, as `Deployment.options` takes it."""
    return {
        deployment.name: deployment.model_dump(exclude_unset=True, exclude={"name"})
        for app in config.applications
        if app.import_path == IMPORT_PATH
        for deployment in app.deployments
    }


def _refuse_unknown_keys(
    content: Any, kind: type[BaseModel], source: str, place: tuple[str | int, ...]
) -> None:
    """Walk a document beside its schema and refuse keys that the schema does not have."""
    if not isinstance(content, Mapping):
        return
    for key, value in content.items():
        where = (*place, str(key))
        _check_choice(str(key), tuple(kind.model_fields), f"{source}: unknown field", where)
        nested = _model_of(kind.model_fields[str(key)].annotation)
        if nested is None:
            continue
        if isinstance(value, list):
            for index, item in enumerate(value):
                _refuse_unknown_keys(item, nested, source, (*where, index))
        else:
            _refuse_unknown_keys(value, nested, source, where)


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """Return the pydantic model inside an annotation such as `list[Model] | None`, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in typing.get_args(annotation) if (model := _model_of(part))), None)


def _check_choice(
    name: str, allowed: tuple[str, ...], what: str, where: tuple[str | int, ...] | None = None
) -> None:
    """Raise a ConfigError that lists the allowed names and the nearest one."""
    if name in allowed:
        return
    near = difflib.get_close_matches(name, allowed, n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    full = ".".join(str(part) for part in where) if where else name
    raise ConfigError(f"{what} '{full}'{hint}; allowed: {', '.join(sorted(allowed))}")
