"""An edge node: it observes, learns, answers, and comes back from its files as it was."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nvcim.data.lamp import Sample, UserStream
from nvcim.errors import DataError, RunError
from nvcim.fleet import node as node_module
from nvcim.fleet.node import CHOICE_COLUMNS, METHODS, UNTUNED, EdgeNode, answer, learn, learn_one_for_all
from nvcim.prompts.generation import generate
from nvcim.prompts.methods import NVCIM_PT, ONE_FOR_ALL, PLAIN_MIPS, Method
from nvcim.prompts.personaliser import Personaliser
from nvcim.prompts.representation import represent
from nvcim.prompts.selection import SelectionSettings, select_representatives
from nvcim.randomness import named_seed
from nvcim.storage import RunFolder
from nvcim.storage.files import atomic_write_bytes, atomic_write_text
from nvcim.storage.schemas import table_schema

Make = Callable[..., EdgeNode]
EVERY_METHOD = (UNTUNED, *METHODS, ONE_FOR_ALL.name)


def feed(node: EdgeNode, samples: Sequence[Sample]) -> EdgeNode:
    for sample in samples:
        node.observe(sample)
    return node


def taught(
    make_node: Make, tiny: Personaliser, stream: UserStream, name: str = "n", **config: object
) -> EdgeNode:
    node = feed(make_node(name, **config), stream.history[:5])
    learn([node], tiny)
    learn_one_for_all([node], [stream.history[:3]], tiny)
    return node


def test_learning_drains_the_buffer_and_writes_every_method(
    make_node: Make, tiny: Personaliser, streams: list[UserStream]
) -> None:
    node = feed(make_node("n", "RRAM4"), streams[0].history[:5])
    rows = learn([node], tiny)
    assert len(node.buffer) == 0
    assert (node.observed, node.learnt) == (5, 1)
    assert [row["method"] for row in rows] == ["nvcim-pt"] * 2 + ["mips"] * 2
    assert set(rows[0]) == set(table_schema("token_sets").names)
    assert {row["device"] for row in rows} == {"RRAM4"}
    domains = {sample.domain for sample in streams[0].history[:5]}
    for method in METHODS:
        assert {slot.label for slot in node.memories[method].slots} <= domains
        assert len(node.memories[method]) == 2
    assert len(node.memories[ONE_FOR_ALL.name]) == 0


def test_a_set_s_row_says_how_its_representative_was_chosen(
    make_node: Make, tiny: Personaliser, streams: list[UserStream], tmp_path: Path
) -> None:
    """Of the same embeddings and seed as the node's, selection alone gives what the table has to show."""
    samples, node = streams[0].history[:5], make_node("n")
    settings = tiny.settings.model_copy(update={"selection": SelectionSettings(rule="silhouette")})
    rows = learn([feed(node, samples)], replace(tiny, settings=settings))
    keys = represent(tiny.lm, [sample.input for sample in samples], settings.key_tokens, settings.layer)
    seed = named_seed(named_seed(node.seed, "n", "learn", 0), "k-means")
    chosen = select_representatives(keys.mean(1), settings.selection, seed)
    rows += learn_one_for_all([node], [samples], tiny)
    run = RunFolder.create(tmp_path, "sets", {}, seed=1)
    run.write_table("token_sets", rows)
    stored = run.read_table("token_sets").to_pylist()
    found = [[row[column] for column in CHOICE_COLUMNS] for row in stored]
    expected = [
        ["silhouette", 2, pytest.approx(chosen.scores[2]), pytest.approx(cosine), len(members), 5]
        for cosine, members in zip(chosen.similarity, chosen.neighbours, strict=True)
    ]
    assert found == [*expected, *expected, [None] * 6]
    assert sum(members for *_, members, _ in found[:2]) == 5


def test_a_set_s_row_says_how_its_tuning_went(
    make_node: Make, tiny: Personaliser, streams: list[UserStream]
) -> None:
    """A question longer than the context is cut; patience ends a loss that never falls by 99 nats after its first."""
    tuning = tiny.settings.tuning.model_copy(update={"steps": 9, "patience": 3, "min_improvement": 99.0})
    impatient = replace(tiny, settings=tiny.settings.model_copy(update={"tuning": tuning}))
    sample = streams[0].history[0]
    long = replace(sample, input="whale " * tiny.lm.context)
    for given, personaliser, expected in (
        (sample, tiny, (3, "steps", 0)),
        (long, tiny, (3, "steps", 1)),
        (sample, impatient, (4, "patience", 0)),
    ):
        rows = learn([feed(make_node("n"), [given])], personaliser)
        rows += learn_one_for_all([make_node("n")], [[given]], personaliser)
        assert [(row["steps"], row["stopped"], row["truncated"]) for row in rows] == [expected] * 3


def test_a_node_with_nothing_new_learns_nothing(
    make_node: Make, tiny: Personaliser, streams: list[UserStream]
) -> None:
    idle, busy = make_node("idle"), feed(make_node("busy"), streams[0].history[:2])
    rows = learn([idle, busy], tiny)
    assert {row["node_id"] for row in rows} == {"busy"}
    assert idle.learnt == 0
    assert learn([idle, busy], tiny) == []


@pytest.mark.parametrize("failing", METHODS)
def test_an_error_in_any_method_s_tuning_leaves_every_node_as_it_was(
    make_node: Make, tiny: Personaliser, streams: list[UserStream], failing: str
) -> None:
    """The nodes then learn as if it had never been tried."""
    tried, spared = (
        [feed(make_node(name), stream.history[:5]) for name, stream in zip("ab", streams, strict=False)]
        for _ in range(2)
    )
    tune = Personaliser.tune

    def refuse(self: Personaliser, jobs: Any, method: Method, on_step: Any) -> Any:
        if method.name == failing:
            raise DataError("no room")
        return tune(self, jobs, method, on_step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Personaliser, "tune", refuse)
        with pytest.raises(DataError, match="no room"):
            learn(tried, tiny)
    for node, stream in zip(tried, streams, strict=False):
        assert tuple(node.buffer) == stream.history[:5]
        assert (node.learnt, [len(memory) for memory in node.memories.values()]) == (0, [0, 0, 0])
    assert learn(tried, tiny) == learn(spared, tiny)


def test_a_node_that_is_named_twice_learns_once(
    make_node: Make, tiny: Personaliser, streams: list[UserStream]
) -> None:
    twice, once = (feed(make_node("n"), streams[0].history[:5]) for _ in range(2))
    assert learn([twice, twice], tiny) == learn([once], tiny)
    assert twice.learnt == 1


def test_nodes_learn_together_as_they_do_alone(
    make_node: Make, tiny: Personaliser, streams: list[UserStream]
) -> None:
    """The cells agree to a thousandth of the largest: rounding of the shared batch is all that differs."""
    devices = ("RRAM1", "FeFET3", "FeFET6")
    together = [feed(make_node(f"n{i}", d), streams[i].history[:5]) for i, d in enumerate(devices)]
    learn(together, tiny)
    for i, device in enumerate(devices):
        alone = feed(make_node(f"n{i}", device), streams[i].history[:5])
        learn([alone], tiny)
        for method in METHODS:
            cells = alone.memories[method].state_dict()
            for key, value in together[i].memories[method].state_dict().items():
                if key.endswith(("weight", "scale")):
                    torch.testing.assert_close(
                        value, cells[key], atol=float(2e-2 * value.abs().max()), rtol=0
                    )


def test_the_draw_of_a_write_is_named_by_seed_node_method_and_count(make_node: Make) -> None:
    codes = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))

    def cells(name: str, method: str = "mips", seed: int = 4, before: int = 0) -> torch.Tensor:
        node = make_node(name, seed=seed)
        for _ in range(before):
            node.write(method, codes * 0.5, "")
        place = node.write(method, codes, "")
        return node.memories[method].slots[place].column.read_weight()

    first = cells("a")
    assert torch.equal(first, cells("a"))
    for other in (cells("b"), cells("a", "nvcim-pt"), cells("a", seed=5), cells("a", before=1)):
        assert not torch.equal(first, other)


def test_an_answer_says_which_set_it_was_made_with(
    make_node: Make, tiny: Personaliser, streams: list[UserStream]
) -> None:
    node = taught(make_node, tiny, streams[0])
    question = streams[0].queries[0].input
    memory = node.memories["nvcim-pt"]
    scores = memory.search(tiny.encode_queries([question]), NVCIM_PT.scales)[0]
    (got,) = answer([node], [question], tiny)
    assert got.slot == int(scores.argmax())
    assert got.score == pytest.approx(float(scores.max()))
    assert got.label == memory.slots[got.slot].label
    (expected,) = generate(tiny.lm, [question], [tiny.decode(memory.read(got.slot))], 4)
    assert (got.text, got.prompt_tokens) == (expected.text, expected.prompt_tokens)
    (plain,) = answer([node], [question], tiny, UNTUNED)
    assert (plain.slot, plain.label, plain.score) == (None, None, None)
    assert plain.prompt_tokens == got.prompt_tokens - 4


def test_a_batch_that_mixes_nodes_answers_each_as_alone(
    make_node: Make, tiny: Personaliser, streams: list[UserStream]
) -> None:
    one = taught(make_node, tiny, streams[0], "one", device="RRAM1")
    two = taught(make_node, tiny, streams[1], "two", device="FeFET6")
    new = make_node("new")
    nodes = [one, two, new, one]
    asked = [streams[i].queries[0].input for i in (0, 1, 2, 1)]
    for method in EVERY_METHOD:
        together = answer(nodes, asked, tiny, method)
        alone = [answer([n], [q], tiny, method)[0] for n, q in zip(nodes, asked, strict=True)]
        assert [got.text for got in together] == [got.text for got in alone]
        assert [got.slot for got in together] == [got.slot for got in alone]
        assert together[2].slot is None
        assert together[2].text == answer([new], [asked[2]], tiny, UNTUNED)[0].text


def test_nothing_asked_is_nothing_answered(tiny: Personaliser) -> None:
    assert answer([], [], tiny) == []


def test_an_unknown_method_is_refused(make_node: Make, tiny: Personaliser) -> None:
    with pytest.raises(
        DataError, match="'magic' is not known; allowed: nvcim-pt, mips, one-for-all, untuned"
    ):
        answer([make_node("n")], ["hello"], tiny, "magic")


@pytest.mark.parametrize("read_noise", [0.0, 0.01])
def test_a_node_comes_back_as_it_was_and_lives_on_alike(
    make_node: Make, tiny: Personaliser, streams: list[UserStream], tmp_path: Path, read_noise: float
) -> None:
    node = taught(make_node, tiny, streams[0], device="FeFET3", read_noise=read_noise)
    feed(node, streams[0].history[5:7])
    node.save(tmp_path / "n")
    back = EdgeNode.load(tmp_path / "n")
    assert back.config == node.config
    assert (back.observed, back.learnt, back.seed) == (7, 1, 4)
    assert list(back.buffer) == list(node.buffer)
    asked = [query.input for query in streams[0].queries]
    for turn in range(2):
        for method in EVERY_METHOD:
            assert answer([back] * 2, asked, tiny, method) == answer([node] * 2, asked, tiny, method)
        if turn == 0:
            assert learn([back], tiny) == learn([node], tiny)
            assert [slot.writes for slot in back.memories["mips"].slots] == [2, 1, 1]


def test_a_full_memory_goes_by_its_replacement_rule_after_a_restart_too(
    make_node: Make, tiny: Personaliser, tmp_path: Path
) -> None:
    """The oldest of three sets lies at the most written place: the rule of wear spares it, the default would not."""
    node = make_node("n")
    levelled = replace(tiny, settings=tiny.settings.model_copy(update={"replacement": "least_worn"}))
    node.memories["mips"] = levelled.new_memory(node.config, 3)
    codes = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    memory = node.memories["mips"]
    assert [node.write("mips", codes, label) for label in "abc"] == [0, 1, 2]
    for _ in range(2):
        memory.drop(0)
        assert node.write("mips", codes, "a") == 0
    for place in (1, 2):
        memory.drop(place)
        assert node.write("mips", codes, "x") == place
    assert [slot.writes for slot in memory.slots] == [3, 2, 2]
    node.save(tmp_path)
    about = json.loads((tmp_path / "node.json").read_text(encoding="utf-8"))
    assert about["memories"]["nvcim-pt"].pop("replacement") == "oldest"
    del about["memories"]["one-for-all"]["replacement"]
    atomic_write_text(tmp_path / "node.json", json.dumps(about))
    back = EdgeNode.load(tmp_path)
    assert {name: kept.replacement for name, kept in back.memories.items()} == {
        "nvcim-pt": "oldest",
        "mips": "least_worn",
        "one-for-all": "oldest",
    }
    assert back.write("mips", codes, "y") == node.write("mips", codes, "y") == 1


def test_a_node_that_has_seen_nothing_is_saved_too(make_node: Make, tmp_path: Path) -> None:
    make_node("new").save(tmp_path)
    assert len(EdgeNode.load(tmp_path).memories["nvcim-pt"]) == 0


def test_a_save_that_is_cut_short_leaves_the_state_before(
    make_node: Make,
    tiny: Personaliser,
    streams: list[UserStream],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = taught(make_node, tiny, streams[0])
    node.save(tmp_path)
    before = answer([node], [streams[0].queries[0].input], tiny)
    feed(node, streams[0].history[5:])
    learn([node], tiny)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(node_module, "atomic_write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            node.save(tmp_path)
    assert answer([EdgeNode.load(tmp_path)], [streams[0].queries[0].input], tiny) == before
    node.save(tmp_path)
    assert EdgeNode.load(tmp_path).learnt == 2
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


@pytest.mark.parametrize(
    "harm", ["no folder", "no cells", "no json", "truncated cells", "truncated json", "a key", "a column"]
)
def test_an_incomplete_node_is_refused(
    make_node: Make, tiny: Personaliser, streams: list[UserStream], tmp_path: Path, harm: str
) -> None:
    folder = tmp_path / "n"
    if harm != "no folder":
        taught(make_node, tiny, streams[0]).save(folder)
        (cells,) = folder.glob("*.safetensors")
        about = folder / "node.json"
        content = json.loads(about.read_text(encoding="utf-8"))
        if harm == "no cells":
            cells.unlink()
        elif harm == "no json":
            about.unlink()
        elif harm == "truncated cells":
            atomic_write_bytes(cells, cells.read_bytes()[:-20])
        elif harm == "truncated json":
            about.write_text(about.read_text(encoding="utf-8")[:-20], encoding="utf-8")
        elif harm == "a key":
            del content["learnt"]
            about.write_text(json.dumps(content), encoding="utf-8")
        elif harm == "a column":
            content["memories"]["mips"]["labels"].append("x")
            content["memories"]["mips"]["writes"].append(1)
            about.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(RunError, match="not a complete node") as caught:
        EdgeNode.load(folder)
    assert str(folder) in str(caught.value)


def test_baselines_are_tuned_without_the_devices_noise(
    make_node: Make, tiny: Personaliser, streams: list[UserStream]
) -> None:
    """At another sigma the noise-aware sets change and the plain ones do not (their codes, before they are written)."""

    def codes(sigma: float) -> list[torch.Tensor]:
        node = make_node("n", sigma=sigma)
        jobs = tiny.jobs(streams[0].history[:5], node.config, seed=1)
        return [tiny.tune(jobs, method)[0].codes for method in (NVCIM_PT, PLAIN_MIPS)]

    weak, strong = codes(0.01), codes(0.2)
    assert not torch.equal(weak[0], strong[0])
    assert torch.equal(weak[1], strong[1])


def test_a_node_on_a_device_of_a_relative_catalogue_is_loaded_from_any_folder(
    make_node: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = "{name: Mine, technology: RRAM, bits: 1, level_sigma: [0.02, 0.03], source: test}"
    (tmp_path / "my.yaml").write_text(f"devices: [{cell}]\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    make_node("n", "Mine", catalogue="my.yaml").save(tmp_path / "n")
    monkeypatch.chdir("/")
    loaded = EdgeNode.load(tmp_path / "n")
    assert loaded.config.cell().level_sigma == (0.02, 0.03)
    assert loaded.config.catalogue == (tmp_path / "my.yaml").resolve()
