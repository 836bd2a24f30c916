"""A fleet on a real local Ray, small: it writes its tables, and a user's mistake comes back as one line."""

from pathlib import Path

import pytest

from nvcim.config import parse_settings
from nvcim.crossbar import CrossbarConfig
from nvcim.data.lamp import UserStream, held_back, write_lamp
from nvcim.data.users import UserSettings, generate_users
from nvcim.errors import ConfigError, DataError, DeviceError, ModelError
from nvcim.fleet.fleet import Fleet, FleetSettings, run_fleet, share, streams_of
from nvcim.fleet.node import EdgeNode
from nvcim.fleet.ray_session import RaySession
from nvcim.fleet.streams import COMPARED
from nvcim.prompts.personaliser import Personaliser, PromptSettings
from nvcim.prompts.personaliser_files import save_personaliser
from nvcim.storage import RunFolder


def settings_for(lm: Path, small: PromptSettings, **changes: object) -> FleetSettings:
    fields = {
        "nodes": 3,
        "hosts": 2,
        "model": str(lm),
        "compute": "cpu",
        "users": UserSettings(domains=2, period=4, queries_per_domain=1),
        "prompts": small,
    }
    return FleetSettings.model_validate(fields | changes)


def test_a_fleet_writes_its_tables_and_its_nodes(
    ray_local: RaySession, tiny_lm: Path, small: PromptSettings, tmp_path: Path
) -> None:
    settings = settings_for(tiny_lm, small)
    run = RunFolder.create(tmp_path, "fleet", settings, seed=5)
    told: list[tuple[int, int, str]] = []
    scores = run_fleet(settings, run, lambda *what: told.append(what))
    table = run.read_table("fleet_scores").to_pylist()
    assert [(row["node_id"], row["method"], row["score"]) for row in table] == [
        (row["node_id"], row["method"], row["score"]) for row in scores
    ]
    assert len(scores) == 3 * len(COMPARED)
    assert [row["device"] for row in scores[:: len(COMPARED)]] == ["RRAM1", "FeFET2", "FeFET3"]
    assert len(run.read_table("fleet_answers")) == 3 * len(COMPARED) * 2
    lost = run.read_table("reconstruction").to_pylist()
    assert [row["device"] for row in lost] == list(dict.fromkeys(row["device"] for row in lost))
    assert all(0 < row["code"] < row["written"] for row in lost)
    sets = run.read_table("token_sets").to_pylist()
    assert {row["node_id"] for row in sets} == {"user-000", "user-001", "user-002"}
    assert {row["seed"] for row in sets} == {5}
    for row in sets:
        assert EdgeNode.load(run.path / "nodes" / row["node_id"]).config.device == row["device"]
    assert told[0][0] == 0
    assert told[-1][0] == told[-1][1]

    one_host = RunFolder.create(tmp_path, "fleet", settings, seed=5)
    assert run_fleet(settings.model_copy(update={"hosts": 1}), one_host) == scores


def test_a_mistake_inside_a_host_is_raised_as_itself(
    ray_local: RaySession, tiny: Personaliser, small: PromptSettings, tiny_lm: Path, tmp_path: Path
) -> None:
    save_personaliser(tiny, tmp_path)
    with Fleet(tmp_path, settings_for(tiny_lm, small, nodes=1, hosts=1), seed=0) as fleet:
        with pytest.raises(DeviceError, match="'FeFET9'") as caught:
            fleet.add_nodes([("nobody", CrossbarConfig(device="FeFET9"))])
        assert "\n" not in str(caught.value)
        fleet.add_nodes([("nobody", CrossbarConfig())])
        with pytest.raises(DataError) as caught_too:
            list(fleet.take_in([UserStream("nobody", "LaMP_3", (), ())]))
        assert str(caught_too.value) == "user 'nobody' has no history to learn from"


@pytest.mark.parametrize(
    ("changes", "error", "complaint"),
    [
        ({"devices": ("RRAM1", "RRAM9")}, DeviceError, "'RRAM9'"),
        ({"model": "no/such/model"}, ModelError, "cannot be loaded"),
        ({"compute": "gpu"}, ConfigError, "allowed: auto, cpu, cuda"),
        ({"data": Path("no-such-folder")}, DataError, "no folder below it"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_before_anything_runs(
    tiny_lm: Path,
    small: PromptSettings,
    tmp_path: Path,
    changes: dict[str, object],
    error: type[Exception],
    complaint: str,
) -> None:
    settings = settings_for(tiny_lm, small, **changes)
    run = RunFolder.create(tmp_path, "fleet", settings, seed=5)
    with pytest.raises(error, match=complaint):
        run_fleet(settings, run)
    assert run.tables() == []


def test_an_lm_of_too_few_layers_is_refused(tiny_lm: Path, small: PromptSettings, tmp_path: Path) -> None:
    settings = settings_for(tiny_lm, small.model_copy(update={"layer": 9}))
    run = RunFolder.create(tmp_path, "fleet", settings, seed=5)
    with pytest.raises(ConfigError, match=r"field 'layer' is 9; model '.*' has layers 0 to 2"):
        run_fleet(settings, run)


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown field 'prompts\.tuning\.step' \(did you mean 'steps'\?\)"
    ):
        parse_settings({"prompts": {"tuning": {"step": 3}}}, FleetSettings, "fleet.yaml")
    with pytest.raises(ConfigError, match="key_tokens is 8, but a set has 8 tokens"):
        parse_settings({"prompts": {"key_tokens": 8}}, FleetSettings, "fleet.yaml")


def test_real_users_are_the_held_back_ones_tasks_in_turn(tmp_path: Path) -> None:
    for task in ("LaMP_3", "LaMP_5"):
        users = generate_users(
            24, UserSettings(tasks=(task,), domains=1, period=3, queries_per_domain=2), seed=1
        )  # type: ignore[arg-type]
        write_lamp(users, tmp_path / task)
    settings = FleetSettings(nodes=4, data=tmp_path, history=2, queries=1)
    streams = streams_of(settings, seed=0)
    assert [stream.task for stream in streams] == ["LaMP_3", "LaMP_5"] * 2
    assert all(held_back(stream.user_id) for stream in streams)
    assert all(len(stream.history) == 2 and len(stream.queries) == 1 for stream in streams)
    with pytest.raises(DataError, match=r"\d+ held-back users, the fleet has 40 nodes"):
        streams_of(settings.model_copy(update={"nodes": 40}), seed=0)


@pytest.mark.parametrize(
    ("available", "actors", "expected"),
    [(2, 2, 1.0), (8, 2, 1.0), (2, 3, 0.5), (2, 12, 0.16), (0, 3, 0.0), (1, 3, 0.33), (3, 7, 0.33)],
)
def test_all_actors_fit_what_there_is(available: float, actors: int, expected: float) -> None:
    """On each whole unit (a GPU) as many actors as have to share it."""
    assert share(available, actors) == expected
    if expected:
        assert int(1 / expected) * int(available) >= actors
