"""A fleet: nodes spread over host actors on a Ray cluster, and one run of it from streams to scores."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from math import ceil, floor
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from nvcim.config import LocalPath, Settings
from nvcim.crossbar import CrossbarConfig
from nvcim.data.lamp import Sample, UserStream, held_back, read_lamp_folders
from nvcim.data.users import UserSettings, generate_users
from nvcim.errors import DataError, NvcimError
from nvcim.fleet.cluster_resources import machines_up, whole
from nvcim.fleet.host import NodeHost
from nvcim.fleet.streams import fitted, score_nodes
from nvcim.prompts.autoencoder import reconstruction_by_device
from nvcim.prompts.language_model import EMBEDDED, LanguageModel
from nvcim.prompts.personaliser import Personaliser, PromptSettings, starting_sets
from nvcim.prompts.personaliser_files import ModelName, save_personaliser
from nvcim.randomness import named_seed
from nvcim.storage import RunFolder

Row = dict[str, Any]
RECONSTRUCTED = 32
"""Most samples whose token sets tell what storing loses."""
PAPER_DEVICES = ("RRAM1", "FeFET2", "FeFET3", "RRAM4", "FeFET6")


class FleetSettings(Settings):
    """A fleet and what it lives on."""

    nodes: int = Field(12, ge=1)
    hosts: int = Field(2, ge=1)
    devices: tuple[str, ...] = Field(PAPER_DEVICES, min_length=1, description="given to the nodes in turn")
    model: ModelName = Field(EMBEDDED, description="'embedded', or a causal LM's path or hub name")
    compute: str = Field("auto", description="where the LM runs: auto, cpu, cuda")
    data: LocalPath | None = Field(None, description="folder of LaMP folders; without it users are generated")
    split: Literal["train", "dev"] = "dev"
    history: int = Field(50, ge=1, description="newest samples taken of a real user's history")
    queries: int = Field(12, ge=1, description="most queries asked of a real user")
    users: UserSettings = UserSettings()
    prompts: PromptSettings = PromptSettings()
    crossbar: CrossbarConfig = CrossbarConfig()


class Fleet:
    """Host actors and which node is where. Use as a context manager: leaving it ends the actors.

    Args:
        run: the run folder, on storage that every host sees.
        settings: of the fleet.
        seed: the run's seed.
    """

    def __init__(self, run: Path, settings: FleetSettings, seed: int) -> None:
        import ray  # late: a session sets the environment that Ray reads when it is imported

        self._ray: Any = ray  # its types do not know actors made at run time
        self._seed = seed
        actor = self._ray.remote(NodeHost)
        count = min(settings.hosts, settings.nodes)
        machines = machines_up()
        gpus = 0 if settings.compute == "cpu" else whole(machines, "GPU")
        options = {"num_cpus": share(whole(machines, "CPU"), count), "num_gpus": share(gpus, count)}
        self._hosts = [actor.options(**options).remote(run.resolve(), settings.compute) for _ in range(count)]
        self._place: dict[str, int] = {}

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, *_: object) -> None:
        for host in self._hosts:
            self._ray.kill(host)

    def add_nodes(self, nodes: Sequence[tuple[str, CrossbarConfig]]) -> None:
        """Place nodes on hosts in turn."""
        offset = len(self._place)
        self._place |= {node_id: (offset + i) % len(self._hosts) for i, (node_id, _) in enumerate(nodes)}
        for _ in self._each_done(
            host.add_nodes.remote([node for node in nodes if self._place[node[0]] == i], self._seed)
            for i, host in enumerate(self._hosts)
        ):
            pass

    def take_in(self, streams: Sequence[UserStream]) -> Iterator[list[Row]]:
        """Let every host feed its nodes; yields each host's rows as it is done (raises as `streams.take_in`)."""
        return self._gather("take_in", streams)

    def answer_queries(self, streams: Sequence[UserStream]) -> Iterator[list[Row]]:
        """Let every host score its nodes' queries; yields each host's rows as it is done."""
        return self._gather("answer_queries", streams)

    def _gather(self, method: str, streams: Sequence[UserStream]) -> Iterator[list[Row]]:
        return self._each_done(
            getattr(host, method).remote([stream for stream in streams if self._place[stream.user_id] == i])
            for i, host in enumerate(self._hosts)
        )

    def _each_done(self, calls: Iterable[Any]) -> Iterator[Any]:
        """Results of remote calls as they come in; a user's mistake is raised as itself, without Ray's traceback."""
        waiting = list(calls)
        while waiting:
            done, waiting = self._ray.wait(waiting, num_returns=1)
            try:
                results = self._ray.get(done)
            except self._ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, NvcimError):
                    raise error.cause from None
                raise
            yield from results


def share(available: float, actors: int) -> float:
    """What each of some actors may take of a resource so that all fit; a part of a GPU has to lie on one GPU."""
    if available < 1:
        return 0.0
    return floor(100 / ceil(actors / floor(available))) / 100


def streams_of(settings: FleetSettings, seed: int) -> list[UserStream]:
    """The users: read from `settings.data` or generated.

    Of real users, only those are taken that `jobs.pretrain --corpus` holds back, tasks in turn, longest histories
    first, so that a base trained on the same folder is never scored on its own training text.

    Raises:
        DataError: a folder without LaMP files, or without enough users.
    """
    if settings.data is None:
        return generate_users(settings.nodes, settings.users, named_seed(seed, "users"))
    by_task: dict[str, list[UserStream]] = {}
    for stream in read_lamp_folders(settings.data, settings.split):
        if stream.history and stream.queries and held_back(stream.user_id):
            by_task.setdefault(stream.task, []).append(stream)
    for streams in by_task.values():
        streams.sort(key=lambda stream: (-len(stream.history), stream.user_id))
    for task, streams in by_task.items():
        by_task[task] = [_shortened(stream, settings) for stream in streams]
    ranks = range(max(map(len, by_task.values()), default=0))
    turn = [streams[rank] for rank in ranks for streams in by_task.values() if rank < len(streams)]
    if len(turn) < settings.nodes:
        raise DataError(f"{settings.data}: {len(turn)} held-back users, the fleet has {settings.nodes} nodes")
    return turn[: settings.nodes]


def _shortened(stream: UserStream, settings: FleetSettings) -> UserStream:
    """A real user's newest samples and first queries, as many as the fleet takes."""
    return replace(
        stream, history=stream.history[-settings.history :], queries=stream.queries[: settings.queries]
    )


def reconstruction_rows(
    personaliser: Personaliser, samples: Sequence[Sample], configs: Sequence[CrossbarConfig], seed: int
) -> list[Row]:
    """What each array leaves of token sets: a row per device, over at most `RECONSTRUCTED` samples' starting sets."""
    some = samples[:: max(1, -(-len(samples) // RECONSTRUCTED))]
    sets = starting_sets(personaliser.lm, some, personaliser.settings)
    by_device = {config.device: config for config in configs}
    found = reconstruction_by_device(personaliser.autoencoder, sets, by_device, seed)
    return [
        {
            "device": device,
            "sigma": by_device[device].sigma,
            "weight_bits": by_device[device].weight_bits,
            **asdict(error),
            "basis": "measured",
        }
        for device, error in found.items()
    ]


def run_fleet(
    settings: FleetSettings, run: RunFolder, on_progress: Callable[[int, int, str], None] = lambda *_: None
) -> list[Row]:
    """Run a fleet from its users' streams to scores; needs a Ray session.

    Writes the tables `token_sets`, `fleet_answers` and `fleet_scores`, the nodes and what they share.

    Returns:
        The rows of `fleet_scores`.

    Raises:
        DataError, DeviceError, ModelError, ConfigError: settings that cannot be used.
    """
    seed = run.record.seed
    configs = [settings.crossbar.model_copy(update={"device": device}) for device in settings.devices]
    for config in configs:
        config.cell()  # an unknown device is refused before anything is trained
    streams = streams_of(settings, seed)
    on_progress(0, 4, "autoencoder")
    lm = LanguageModel.load(settings.model, settings.compute)
    streams, cut = fitted(streams, lm, settings.prompts)
    if cut:
        on_progress(0, 4, f"{cut} samples were longer than the model's context and lost their ends")
    samples = [sample for stream in streams for sample in stream.history]
    personaliser = Personaliser.fit(lm, samples, settings.prompts, seed)
    save_personaliser(personaliser, run.path)
    run.write_table("reconstruction", reconstruction_rows(personaliser, samples, configs, seed))
    with Fleet(run.path, settings, seed) as fleet:
        fleet.add_nodes([(s.user_id, configs[i % len(configs)]) for i, s in enumerate(streams)])
        on_progress(1, 4, f"tuning on {len(streams)} nodes")
        sets = [row for rows in fleet.take_in(streams) for row in rows]
        on_progress(2, 4, "answering")
        answers = [row for rows in fleet.answer_queries(streams) for row in rows]
    order = {stream.user_id: i for i, stream in enumerate(streams)}
    sets.sort(key=lambda row: order[row["node_id"]])
    answers.sort(key=lambda row: order[row["node_id"]])
    scores = score_nodes(answers)
    run.write_table("token_sets", sets)
    run.write_table("fleet_answers", answers)
    run.write_table("fleet_scores", scores)
    on_progress(4, 4, "done")
    return scores
