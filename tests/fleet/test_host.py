"""A node host, as a plain class: packing never shows in results, and nodes outlive their host."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nvcim.crossbar import CrossbarConfig
from nvcim.data.lamp import UserStream
from nvcim.errors import ModelError, RunError
from nvcim.fleet.host import NodeHost
from nvcim.fleet.node_folders import node_folder, node_folders
from nvcim.fleet.streams import score_nodes
from nvcim.prompts.autoencoder import TokenAutoencoder
from nvcim.prompts.personaliser import Personaliser
from nvcim.prompts.personaliser_files import load_personaliser, save_personaliser

DEVICES = ("RRAM1", "FeFET2", "FeFET3", "RRAM4", "FeFET6")
Row = dict[str, Any]


@pytest.fixture
def run(tiny: Personaliser, tmp_path: Path) -> Path:
    save_personaliser(tiny, tmp_path)
    return tmp_path


def placed(streams: Sequence[UserStream]) -> list[tuple[str, CrossbarConfig]]:
    return [(s.user_id, CrossbarConfig(device=DEVICES[i % 5])) for i, s in enumerate(streams)]


def live(
    run: Path, tiny: Personaliser, streams: Sequence[UserStream], hosts: int
) -> tuple[list[Row], list[Row]]:
    """Rows of all token sets and answers, in order of node, with the nodes dealt to `hosts` hosts in turn."""
    save_personaliser(tiny, run)
    sets: list[Row] = []
    answers: list[Row] = []
    for turn in range(hosts):
        host, own = NodeHost(run, "cpu"), streams[turn::hosts]
        host.add_nodes(placed(streams)[turn::hosts], seed=3)
        sets += host.take_in(own)
        answers += host.answer_queries(own)
    return sorted(sets, key=lambda r: str(r["node_id"])), sorted(answers, key=lambda r: str(r["node_id"]))


def test_results_do_not_depend_on_packing(
    tiny: Personaliser, streams: list[UserStream], tmp_path: Path
) -> None:
    """Seven nodes on one, two and three hosts: equal answers and scores; losses up to rounding."""
    sets, answers = live(tmp_path / "1", tiny, streams, 1)
    for hosts in (2, 3):
        other_sets, other_answers = live(tmp_path / str(hosts), tiny, streams, hosts)
        assert score_nodes(other_answers) == score_nodes(answers)
        assert [(r["output"], r["slot"]) for r in other_answers] == [
            (r["output"], r["slot"]) for r in answers
        ]
        for one, other in zip(sets, other_sets, strict=True):
            assert (one["sample"], one["slot"], one["method"]) == (
                other["sample"],
                other["slot"],
                other["method"],
            )
            assert one["last_loss"] == pytest.approx(other["last_loss"], rel=1e-3)


def test_a_new_host_restores_the_nodes_that_were_saved(run: Path, streams: list[UserStream]) -> None:
    first = NodeHost(run, "cpu")
    assert first.add_nodes(placed(streams)[:3], seed=3) == 3
    first.take_in(streams[:3])
    second = NodeHost(run, "cpu")
    second.add_nodes(placed(streams)[:3], seed=99)
    asked = [stream.queries[0].input for stream in streams[:3]]
    names = [stream.user_id for stream in streams[:3]]
    got = second.answer(names, asked)
    assert got == first.answer(names, asked)
    assert all(one.slot is not None for one in got)


def test_a_forgotten_node_starts_anew(run: Path, streams: list[UserStream]) -> None:
    host = NodeHost(run, "cpu")
    host.add_nodes(placed(streams)[:2], seed=3)
    host.take_in(streams[:2])
    name = streams[0].user_id
    host.forget(name)
    with pytest.raises(RunError, match=f"node '{name}' is not on this host; it holds: {streams[1].user_id}"):
        host.answer([name], ["hello"])
    host.add_nodes(placed(streams)[:1], seed=3)
    assert host.answer([name], ["hello"])[0].slot is None


def test_a_host_without_work_does_nothing(run: Path) -> None:
    host = NodeHost(run, "cpu")
    assert host.add_nodes([], seed=0) == 0
    assert host.take_in([]) == []
    assert host.answer_queries([]) == []
    assert host.answer([], []) == []


def test_a_host_sets_its_threads(run: Path) -> None:
    before = torch.get_num_threads()
    try:
        NodeHost(run, "cpu", threads=2)
        assert torch.get_num_threads() == 2
        NodeHost(run, "cpu", threads=None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_what_nodes_share_comes_back_exactly(run: Path, tiny: Personaliser) -> None:
    loaded = load_personaliser(run, "cpu")
    assert loaded.settings == tiny.settings
    for name, value in tiny.autoencoder.state_dict().items():
        assert torch.equal(value, loaded.autoencoder.state_dict()[name])


@pytest.mark.parametrize(
    ("harm", "error", "complaint"),
    [
        ("gone", RunError, "cannot be read"),
        ("text", RunError, "expected an object"),
        ("autoencoder", ModelError, "not a token autoencoder"),
        ("width", ModelError, "is 32 wide, but the run's prompts are 9 wide"),
    ],
)
def test_a_broken_run_folder_is_refused(run: Path, harm: str, error: type[Exception], complaint: str) -> None:
    if harm == "gone":
        (run / "model.json").unlink()
    elif harm == "text":
        (run / "model.json").write_text("[]", encoding="utf-8")
    elif harm == "autoencoder":
        (run / "autoencoder.safetensors").write_bytes(b"x" * 30)
    else:
        TokenAutoencoder(9, 4).save(run / "autoencoder.safetensors")
    with pytest.raises(error, match=complaint):
        NodeHost(run, "cpu")


@pytest.mark.parametrize("user", ["u/a", "x/../../../escaped", "..", "a:b", "žluťoučký kůň 😀"])
def test_a_user_of_any_id_is_saved_inside_the_run_and_found_again(
    tiny: Personaliser, streams: list[UserStream], tmp_path: Path, user: str
) -> None:
    run = tmp_path / "deep" / "run"
    save_personaliser(tiny, run)
    around = sorted(tmp_path.rglob("*"))
    one = replace(streams[0], user_id=user)
    host = NodeHost(run, "cpu")
    host.add_nodes([(user, CrossbarConfig()), ("plain", CrossbarConfig())], seed=3)
    host.take_in([one, replace(streams[1], user_id="plain")])
    assert {path.parent for path in set(tmp_path.rglob("node.json")) - set(around)} == set(node_folders(run))
    assert len(node_folders(run)) == 2
    assert {path.parent for path in node_folders(run)} == {run / "nodes"}

    again = NodeHost(run, "cpu")
    again.add_nodes([(user, CrossbarConfig())], seed=99)
    asked = [one.queries[0].input]
    assert again.answer([user], asked) == host.answer([user], asked)
    again.forget(user)
    assert [folder.name for folder in node_folders(run)] == ["plain"]
    assert sorted(set(tmp_path.rglob("*")) - set(run.rglob("*"))) == [
        path for path in around if not path.is_relative_to(run) or path == run
    ]


def test_a_folder_of_another_node_is_not_taken_for_the_node(run: Path, streams: list[UserStream]) -> None:
    """As on a file system that does not tell capitals from small letters."""
    host = NodeHost(run, "cpu")
    host.add_nodes([("ann", CrossbarConfig())], seed=3)
    host.take_in([replace(streams[0], user_id="ann")])
    node_folder(run, "ann").rename(node_folder(run, "Ann"))
    with pytest.raises(RunError, match="holds node 'ann', not 'Ann'"):
        NodeHost(run, "cpu").add_nodes([("Ann", CrossbarConfig())], seed=3)
