"""Where a run's nodes lie: `nodes/<file name of the node's id>/`. Whoever saves, loads or lists nodes asks here."""

from pathlib import Path

from nvcim.storage.names import file_name

NODES = "nodes"
NODE_FILE = "node.json"


def node_folder(run: Path, node_id: str) -> Path:
    """Return the folder of a node of a run (raises DataError as `file_name`)."""
    return run / NODES / file_name(node_id)


def node_folders(run: Path) -> list[Path]:
    """Return the folders of all nodes of a run, in order.

    Where ids were once used as paths, a node lies some levels deeper; it is found as well. A folder that holds no node
    at all is listed too, so that whoever loads it hears of it.
    """
    nodes = run / NODES
    holding = {file.parent for file in nodes.rglob(NODE_FILE)}
    seen = {folder.relative_to(nodes).parts[:1] for folder in holding}
    lacking = {path for path in nodes.glob("*") if path.is_dir() and (path.name,) not in seen}
    return sorted(holding | lacking)
