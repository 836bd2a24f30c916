"""What a run folder holds to be served.

runs/<run id>/nodes/<node id>/    nodes with their prompt memories; ids are encoded, see `nvcim.storage.names`
runs/<run id>/model.json          what the nodes share: the language model's name and the prompt settings
runs/<run id>/autoencoder.safetensors    and their token autoencoder
runs/<run id>/fcn/<name>/         trained FCNs, for example float and inq-5
"""

from dataclasses import dataclass
from pathlib import Path

from nvcim.errors import RunError
from nvcim.fleet.node_folders import node_folders
from nvcim.prompts.personaliser_files import AUTOENCODER_FILE, MODEL_FILE


@dataclass(frozen=True)
class RunContents:
    """What a run folder holds to be served."""

    nodes: tuple[Path, ...]
    fcns: dict[str, Path]
    created: int


def inspect_run(run: Path) -> RunContents:
    """Look what there is to serve, without loading any of it.

    Raises:
        RunError: no such folder, nothing to serve in it, or nodes without what they share.
    """
    if not run.is_dir():
        raise RunError(f"{run}: no such run folder")
    nodes = tuple(node_folders(run))
    fcns = {path.name: path for path in sorted(run.glob("fcn/*")) if path.is_dir()}
    if not nodes and not fcns:
        raise RunError(f"{run}: nothing to serve; expected nodes/<node id>/ with model.json, or fcn/<name>/")
    for shared in (MODEL_FILE, AUTOENCODER_FILE) if nodes else ():
        if not (run / shared).is_file():
            raise RunError(f"{run}: holds nodes, but not the {shared} that they share")
    # The float weights, where there are any, are what a request without a model gets.
    ordered = dict(sorted(fcns.items(), key=lambda item: (item[0] != "float", item[0])))
    return RunContents(nodes, ordered, int(run.stat().st_mtime))
