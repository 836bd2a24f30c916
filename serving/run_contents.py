"""What a run folder holds to be served.

runs/<run id>/model.json          {"language_model": "embedded", a path or a hub name}
runs/<run id>/nodes/<node id>/    nodes with their prompt memories
runs/<run id>/fcn/<name>/         trained FCNs, for example float and inq-5
"""

import json
from dataclasses import dataclass
from pathlib import Path

from nvcim.errors import RunError


@dataclass(frozen=True)
class RunContents:
    """What a run folder holds to be served."""

    nodes: tuple[Path, ...]
    language_model: str | None
    fcns: dict[str, Path]
    created: int


def inspect_run(run: Path) -> RunContents:
    """Look what there is to serve, without loading any of it.

    Raises:
        RunError: no such folder, nothing to serve in it, or nodes without a readable `model.json`.
    """
    if not run.is_dir():
        raise RunError(f"{run}: no such run folder")
    nodes = tuple(sorted(path for path in run.glob("nodes/*") if path.is_dir()))
    fcns = {path.name: path for path in sorted(run.glob("fcn/*")) if path.is_dir()}
    if not nodes and not fcns:
        raise RunError(f"{run}: nothing to serve; expected nodes/<node id>/ with model.json, or fcn/<name>/")
    model = _language_model(run / "model.json") if nodes else None
    # The float weights, where there are any, are what a request without a model gets.
    ordered = dict(sorted(fcns.items(), key=lambda item: (item[0] != "float", item[0])))
    return RunContents(nodes, model, ordered, int(run.stat().st_mtime))


def _language_model(file: Path) -> str:
    """Name or path of the language model that the run's prompts were tuned for."""
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["language_model"])
    except OSError as error:
        raise RunError(
            f"{file}: cannot be read ({error.strerror}); the nodes need their language model"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file}: expected a JSON object with the key 'language_model'") from error
