"""A run's stored token sets as adapters that PEFT loads: what its users' crossbars give back, one folder a set."""

from pathlib import Path

from nvcim.errors import ConfigError, RunError
from nvcim.fleet.node import METHODS, EdgeNode
from nvcim.fleet.node_folders import node_folders
from nvcim.prompts.adapter_files import save_adapters
from nvcim.prompts.methods import NVCIM_PT, ONE_FOR_ALL
from nvcim.prompts.personaliser_files import load_personaliser
from nvcim.storage.names import file_name


def export_adapters(run: Path, out: Path, method: str = NVCIM_PT.name, device: str = "auto") -> list[Path]:
    """Write every stored set of a run's nodes to `out/<node id>-<place>` in PEFT's layout; returns the folders.

    What of an id cannot stand in a folder's name is %-encoded there, as `nvcim.storage.names` does. The tokens
    are those that the node's array gives back, noise included.

    Raises:
        ConfigError: a method that nodes do not store sets of.
        RunError: the run has no nodes, or a damaged one, or nothing is stored.
        ModelError: the run's language model or autoencoder cannot be loaded.
    """
    allowed = (*METHODS, ONE_FOR_ALL.name)
    if method not in allowed:
        raise ConfigError(f"method '{method}' is not stored by nodes; allowed: {', '.join(allowed)}")
    folders = node_folders(run)
    if not folders:
        raise RunError(f"{run}: no nodes in it; a fleet's run has them")
    personaliser = load_personaliser(run, device)
    sets = {}
    for node in map(EdgeNode.load, folders):
        memory = node.memories[method]
        for place, slot in enumerate(memory.slots):
            if slot.label is not None:
                sets[file_name(f"{node.node_id}-{place}")] = personaliser.decode(memory.read(place))
    if not sets:
        raise RunError(f"{run}: its nodes hold no sets of method '{method}'")
    save_adapters(sets, personaliser.lm, out)
    return [out / name for name in sets]
