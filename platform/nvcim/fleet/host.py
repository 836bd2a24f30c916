"""A node host: one Ray actor that holds many nodes and one frozen LM, and answers many nodes in one batch."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nvcim.crossbar import CrossbarConfig
from nvcim.data.lamp import UserStream
from nvcim.errors import RunError
from nvcim.fleet.metrics import process_metrics
from nvcim.fleet.node import Answer, EdgeNode, answer
from nvcim.fleet.node_folders import NODE_FILE, node_folder
from nvcim.fleet.streams import answer_queries, take_in
from nvcim.prompts.methods import NVCIM_PT
from nvcim.prompts.personaliser import Personaliser
from nvcim.prompts.personaliser_files import load_personaliser
from nvcim.prompts.prefix_cache import cache_for

Row = dict[str, Any]


class NodeHost:
    """Nodes and what they share. A plain class: `Fleet` makes Ray actors of it, tests use it as it is.

    Args:
        run: folder that holds the personaliser's files; nodes are saved below `nodes/` in it.
        device: `auto`, `cpu` or `cuda`.
        threads: torch threads of this process (None leaves them).
    """

    def __init__(self, run: Path, device: str = "auto", threads: int | None = 1) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._run = run
        self._personaliser: Personaliser = load_personaliser(run, device)
        self._prefixes = cache_for(self._personaliser.lm)
        self._nodes: dict[str, EdgeNode] = {}
        self._metrics = process_metrics()

    def add_nodes(self, nodes: Sequence[tuple[str, CrossbarConfig]], seed: int) -> int:
        """Make new nodes, or restore those that this run saved before; returns how many the host holds.

        Raises:
            DeviceError: a device that the catalogue does not hold.
            RunError: a node's folder that is damaged, or another node's.
            DataError: an id that no folder can be named for.
        """
        for node_id, config in nodes:
            folder = node_folder(self._run, node_id)
            saved = (folder / NODE_FILE).exists()
            node = EdgeNode.load(folder) if saved else EdgeNode.new(node_id, config, seed, self._personaliser)
            if node.node_id != node_id:  # a file system that takes 'Ann' and 'ann' for one name
                raise RunError(f"{folder}: holds node '{node.node_id}', not '{node_id}'")
            self._nodes[node_id] = node
        for name in {node.config.device for node in self._nodes.values()}:
            self._metrics.nodes(sum(node.config.device == name for node in self._nodes.values()), name)
        return len(self._nodes)

    def take_in(self, streams: Sequence[UserStream]) -> list[Row]:
        """Feed the users' histories to their nodes and save every node; returns a row per token set written."""
        own = {stream.user_id: self._node(stream.user_id) for stream in streams}
        rows = take_in(own, streams, self._personaliser)
        for stream in streams:
            node = own[stream.user_id]
            node.save(node_folder(self._run, node.node_id))
            written = sum(row["node_id"] == node.node_id for row in rows)
            self._metrics.samples_observed(len(stream.history), node.config.device)
            self._metrics.ovts_stored(written, node.config.device)
            self._metrics.crossbar_writes(written, node.config.device)
        return rows

    def answer_queries(self, streams: Sequence[UserStream]) -> list[Row]:
        """Score the users' queries by every method; returns a row per answer."""
        own = {stream.user_id: self._node(stream.user_id) for stream in streams}
        rows = answer_queries(own, streams, self._personaliser)
        for row in rows:
            if row["slot"] is not None:
                self._metrics.retrievals(1, row["device"])
        return rows

    def answer(
        self, node_ids: Sequence[str], questions: Sequence[str], method: str = NVCIM_PT.name
    ) -> list[Answer]:
        """node_ids[i] answers questions[i], all in one batch."""
        nodes = [self._node(node_id) for node_id in node_ids]
        return answer(nodes, questions, self._personaliser, method, cache=self._prefixes)

    def forget(self, node_id: str) -> None:
        """Drop a node and its files."""
        self._node(node_id)
        del self._nodes[node_id]
        shutil.rmtree(node_folder(self._run, node_id), ignore_errors=True)

    def _node(self, node_id: str) -> EdgeNode:
        if node_id not in self._nodes:
            held = ", ".join(sorted(self._nodes)[:8])
            raise RunError(f"node '{node_id}' is not on this host; it holds: {held or 'none'}")
        return self._nodes[node_id]
