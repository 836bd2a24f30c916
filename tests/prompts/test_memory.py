"""The prompt memory: columns that keep their draw, are searched together, and come back bit by bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.errors import ConfigError, DataError
from nvcim.mitigation import MITIGATIONS, get_mitigation
from nvcim.prompts.memory import PromptMemory, Replacement
from nvcim.prompts.memory_columns import BLOCK, Columns
from nvcim.prompts.search import MIPS, SCALED_SEARCH, SearchSettings, blend, prepared_query
from nvcim.randomness import named_generator
from tests.closeness import close

TOKENS, CODE = 6, 16


def code(seed: int) -> Tensor:
    return torch.randn(TOKENS, CODE, generator=named_generator(seed, "code"))


def filled(count: int, capacity: int = 4, **config: object) -> PromptMemory:
    memory = PromptMemory(CrossbarConfig.model_validate(config), TOKENS, CODE, capacity)
    for i in range(count):
        memory.write(code(i), f"set {i}", named_generator(i, "write"))
    return memory


def test_scores_of_an_ideal_crossbar_are_exact_within_quantisation() -> None:
    memory = PromptMemory(CrossbarConfig.ideal(weight_bits=8), TOKENS, CODE, 4)
    for i in range(3):
        memory.write(code(i), "", named_generator(i))
    queries = torch.stack([code(10), code(11)])
    scores = memory.search(queries, SCALED_SEARCH)
    assert scores.shape == (2, 3)
    prepared = prepared_query(queries, SCALED_SEARCH)
    for j in range(3):
        # An element is off by half a step at most: 1/254 of its column's largest.
        bound = prepared.abs().sum(1) * code(j).abs().max() / 254 + 1e-4
        assert ((scores[:, j] - prepared @ code(j).flatten()).abs() <= bound).all()
        assert (memory.read(j) - code(j)).abs().max() <= code(j).abs().max() / 254 + 1e-5


def test_a_stored_set_is_found_by_its_own_code() -> None:
    memory = filled(4, sigma=0.05)
    scores = memory.search(torch.stack([code(i) for i in range(4)]), SCALED_SEARCH)
    assert scores.argmax(1).tolist() == [0, 1, 2, 3]


def test_other_columns_keep_their_draw_when_one_is_written() -> None:
    memory = filled(3)
    before = [memory.read(i).clone() for i in range(3)]
    cells = memory.state_dict()
    scores = memory.search(code(0)[None], SCALED_SEARCH)
    memory.write(code(3), "set 3", named_generator(3, "write"))
    assert all(torch.equal(memory.read(i), before[i]) for i in range(3))
    assert all(torch.equal(memory.state_dict()[key][:3], value) for key, value in cells.items())
    assert torch.equal(memory.search(code(0)[None], SCALED_SEARCH)[:, :3], scores)


def test_the_same_code_written_twice_lands_differently() -> None:
    memory = PromptMemory(CrossbarConfig(), TOKENS, CODE, 2)
    generator = named_generator(0)
    for _ in range(2):
        memory.write(code(0), "", generator)
    assert not torch.equal(memory.read(0), memory.read(1))


def test_a_full_memory_overwrites_its_oldest_and_counts_writes() -> None:
    memory = filled(4, capacity=3)
    assert [slot.label for slot in memory.slots] == ["set 3", "set 1", "set 2"]
    assert [slot.writes for slot in memory.slots] == [2, 1, 1]
    assert len(memory) == 3
    stale = memory.read(1).clone()
    assert memory.write(code(7), "set 7", named_generator(7, "write")) == 1
    assert not torch.equal(memory.read(1), stale)
    assert memory.written == 5


@pytest.mark.parametrize("name", MITIGATIONS)
@pytest.mark.parametrize("read_noise", [0.0, 0.02])
def test_the_state_comes_back_bit_by_bit(read_noise: float, name: str) -> None:
    own = get_mitigation(name)
    memory = PromptMemory(CrossbarConfig(read_noise=read_noise), TOKENS, CODE, 12, own)
    back = PromptMemory(CrossbarConfig(read_noise=read_noise), TOKENS, CODE, 12, own)
    for i in range(14):
        memory.write(code(i), f"set {i}", named_generator(i, "write"), importance(i, name))
    memory.drop(5)
    state = load(save(memory.state_dict()))
    labels, writes = zip(*((slot.label, slot.writes) for slot in memory.slots), strict=True)
    back.load_state(state, labels, writes)
    assert back.slots[11].label == "set 11"
    assert len(back) == 11
    assert all(torch.equal(back.state_dict()[key], value) for key, value in state.items())
    for _ in range(2):  # with read noise, the next read differs, but not between the two
        found = [one.search(code(5)[None], SCALED_SEARCH) for one in (back, memory)]
        assert torch.equal(*found)
    assert torch.equal(back.read(11), memory.read(11))
    for place in (5, 2):  # the free one, then the oldest
        for one in (memory, back):
            assert one.write(code(20), "set 20", named_generator(20), importance(20, name)) == place
        assert torch.equal(memory.read(place), back.read(place))


def importance(seed: int, name: str) -> Tensor | None:
    return code(seed + 100).square() if get_mitigation(name).needs_importance else None


PERIPHERIES: list[dict[str, object]] = [
    {},
    {"adc_bits": None, "dac_bits": None},
    {"scheme": "offset", "accumulate": "digital", "rows": 20},
    {"input_coding": "bit_serial", "adc_scaling": "full"},
    {"stuck_on": 0.02, "programming": {"method": "write_verify"}},
    {"read_noise": 0.02},
    {"adc_errors": {"gain": 0.05, "offset_lsb": 1.0}},
]


@pytest.mark.parametrize("config", PERIPHERIES, ids=lambda config: ",".join(config) or "default")
def test_a_search_reads_what_each_column_reads_alone(config: dict[str, object]) -> None:
    memory = filled(6, capacity=6, **config)
    queries = torch.stack([code(i) for i in range(10, 13)])
    scores = memory.search(queries, SCALED_SEARCH)
    x = prepared_query(queries, SCALED_SEARCH)
    for i in range(6):
        settings = CrossbarConfig.model_validate(config)
        column = Crossbar.program(code(i).reshape(-1, 1), settings, named_generator(i, "write"))
        assert close(scores[:, i], column.matmul(x)[:, 0])
        if settings.noisy:
            continue
        rows = column.matmul(torch.eye(TOKENS * CODE)).reshape(TOKENS, CODE)
        assert close(memory.read(i), rows)


def test_reads_of_noisy_cells_go_on_where_the_last_one_stood() -> None:
    memory = filled(2, read_noise=0.1)
    column = Crossbar.program(code(1).reshape(-1, 1), memory.config, named_generator(1, "write"))
    rows = torch.eye(TOKENS * CODE)
    queries = code(9)[None]
    x = prepared_query(queries, MIPS)
    for _ in range(2):
        assert close(memory.search(queries, MIPS)[:, 1], column.matmul(x)[:, 0])
    assert close(memory.read(1).flatten(), column.matmul(rows)[:, 0])
    assert close(memory.search(queries, MIPS)[:, 1], column.matmul(x)[:, 0])
    assert torch.equal(memory.read(1), memory.read(1))  # read once and kept


@pytest.mark.parametrize("name", MITIGATIONS)
def test_sets_written_at_once_are_those_written_one_by_one(name: str) -> None:
    own = get_mitigation(name)
    one, all_at_once = (PromptMemory(CrossbarConfig(), TOKENS, CODE, 5, own) for _ in range(2))
    codes = torch.stack(
        [code(i) for i in range(13)]
    )  # more than fit: places are written twice and three times
    given = torch.stack([code(i + 100).square() for i in range(13)]) if own.needs_importance else None
    labels = [f"set {i}" for i in range(13)]
    places = all_at_once.write_all(codes, labels, [named_generator(i) for i in range(13)], given)
    alone = [one.write(codes[i], labels[i], named_generator(i), importance(i, name)) for i in range(13)]
    assert places == alone
    assert [slot.label for slot in one.slots] == [slot.label for slot in all_at_once.slots]
    for key, value in one.state_dict().items():
        assert torch.equal(all_at_once.state_dict()[key], value), key


def test_blocks_do_not_show_in_what_is_read() -> None:
    """More sets than a block holds; the first and last of each are what they are alone."""
    count = BLOCK + 3
    config = CrossbarConfig(sigma=0.1)
    memory = PromptMemory(config, 2, 3, count)
    codes = torch.randn(count, 2, 3, generator=named_generator(0))
    memory.write_all(codes, [""] * count, [named_generator(i) for i in range(count)])
    scores = memory.search(codes[:2], MIPS)
    assert scores.shape == (2, count)
    for place in (0, BLOCK - 1, BLOCK, count - 1):
        column = Crossbar.program(codes[place].reshape(-1, 1), config, named_generator(place))
        alone = column.matmul(codes[:2].flatten(1))[:, 0]
        assert close(scores[:, place], alone)
        assert torch.equal(memory.slots[place].column.read_weight()[0], column.read_weight())
    memory.replace(BLOCK, codes[0], "new", named_generator(1))
    assert [memory.slots[place].writes for place in (BLOCK - 1, BLOCK)] == [1, 2]
    assert not torch.equal(memory.search(codes[:2], MIPS)[:, BLOCK], scores[:, BLOCK])


def test_columns_of_several_blocks_come_in_the_order_they_are_asked_for() -> None:
    columns = Columns(CrossbarConfig(), 2)
    weight = torch.randn(BLOCK + 2, 2, 1, generator=named_generator(0))
    written = Crossbar.program(weight, CrossbarConfig(), named_generator(1))
    columns.put(range(BLOCK + 2), written)
    places = [BLOCK + 1, 3, BLOCK, 0]
    assert torch.equal(columns.take(places).read_weight(), written.read_weight()[places])


def test_a_rewritten_place_keeps_its_stuck_cells_and_adds_up_pulses() -> None:
    config = CrossbarConfig(stuck_on=0.2, sigma=0.05, programming={"method": "write_verify"})  # type: ignore[arg-type]
    memory = PromptMemory(config, TOKENS, CODE, 1)
    memory.write(code(0), "a", named_generator(0))
    first = memory.slots[0].column.cells().stuck
    pulses = memory.slots[0].column.wear()
    memory.write(code(1), "b", named_generator(1))
    again = memory.slots[0].column
    assert first is not None
    assert int(first.sum()) > 0
    assert torch.equal(again.cells().stuck, first)  # type: ignore[arg-type]
    assert bool((again.wear() > pulses).all())
    assert memory.slots[0].pulses == int(again.wear().max())


@pytest.mark.parametrize(("replacement", "place"), [("oldest", 1), ("least_worn", 2)])
def test_which_set_a_full_memory_gives_up(replacement: Replacement, place: int) -> None:
    """Places by age: 1 (3 writes), 2, 3 and 0 (2 writes each); the older half is 1 and 2."""
    memory = PromptMemory(CrossbarConfig(), TOKENS, CODE, 4, replacement=replacement)
    for i in range(4):
        memory.write(code(i), "", named_generator(i))
    for at in (1, 1, 2, 3, 0):
        memory.replace(at, code(9), "", named_generator(9))
    assert [slot.writes for slot in memory.slots] == [2, 3, 2, 2]
    assert memory.write(code(8), "", named_generator(8)) == place


def test_least_worn_spares_the_newer_half() -> None:
    memory = PromptMemory(CrossbarConfig(), TOKENS, CODE, 4, replacement="least_worn")
    for i in range(4):
        memory.write(code(i), "", named_generator(i))
    for place in (0, 1):
        memory.replace(place, code(9), "", named_generator(9))
    for place in (0, 1):
        memory.replace(place, code(9), "", named_generator(9))
    # Oldest first: 2, 3 (one write each), 0, 1 (three each).
    assert [memory.write(code(8), "", named_generator(8)) for _ in range(2)] == [2, 3]
    # Now 0, 1 (three), 2, 3 (two): the least written are in the newer half.
    assert memory.write(code(8), "", named_generator(8)) == 0


def test_a_dropped_place_is_not_found_and_is_written_next() -> None:
    memory = filled(4)
    memory.replace(3, code(3), "again", named_generator(3))
    memory.drop(3)
    memory.drop(1)
    scores = memory.search(code(1)[None], MIPS)
    assert len(memory) == 2
    assert scores[0, [1, 3]].tolist() == [-torch.inf, -torch.inf]
    assert bool(scores[0, [0, 2]].isfinite().all())
    assert memory.slots[1].label is None
    # Place 1 was written once, place 3 twice.
    assert [memory.write(code(7), "new", named_generator(7)) for _ in range(2)] == [1, 3]
    assert memory.search(code(7)[None], MIPS).argmax().item() in (1, 3)


def test_places_that_hold_nothing_are_refused() -> None:
    memory = filled(2)
    memory.drop(0)
    for act in (lambda: memory.read(0), lambda: memory.drop(0)):
        with pytest.raises(DataError, match="place 0 is free"):
            act()
    with pytest.raises(DataError, match="place 2 was never written; this memory has 0 to 1"):
        memory.replace(2, code(0), "", named_generator(0))
    memory.drop(1)
    with pytest.raises(DataError, match="empty"):
        memory.search(code(0)[None], MIPS)


def test_places_past_their_endurance_are_named(tmp_path: Path) -> None:
    assert filled(1).worn_out is None  # no source gives the endurance of FeFET2
    catalogue = tmp_path / "devices.yaml"
    catalogue.write_text(
        "devices:\n  - {name: Frail, technology: t, bits: 2, level_sigma: 0.01, endurance: 2, source: made up, "
        "sources: {endurance: made up}}\n"
    )
    memory = PromptMemory(CrossbarConfig(device="Frail", catalogue=catalogue), TOKENS, CODE, 2)
    for i in range(5):
        memory.write(code(i), "", named_generator(i))
    assert memory.endurance == 2
    assert [slot.pulses for slot in memory.slots] == [3, 2]
    assert memory.worn_out == (0,)


def test_a_blend_is_the_weighted_sum_of_what_is_read() -> None:
    memory = filled(4)
    memory.drop(2)
    scores = memory.search(torch.stack([code(0), code(3)]), SCALED_SEARCH)
    weights = blend(scores, k=2, temperature=0.5)
    found = memory.read_blended(weights)
    assert found.shape == (2, TOKENS, CODE)
    for row in range(2):
        expected = sum(float(weights[row, i]) * memory.read(i) for i in (0, 1, 3))
        assert close(found[row], expected)
    with pytest.raises(DataError, match=r"weights have shape \(2, 3\); this memory takes \(batch, 4\)"):
        memory.read_blended(weights[:, :3])
    with pytest.raises(DataError, match="place 2 is free"):
        memory.read_blended(torch.ones(1, 4))


def test_search_settings_reach_the_query() -> None:
    memory = filled(3, adc_bits=None)
    settings = SearchSettings(axis="features", divisor="elements")
    queries = code(1)[None]
    found = memory.search(queries, SCALED_SEARCH, settings)
    scaled = memory.search(prepared_query(queries, SCALED_SEARCH, settings).view_as(queries), MIPS)
    assert torch.equal(found, scaled)
    assert not torch.allclose(found, memory.search(queries, SCALED_SEARCH))


def test_corrections_reach_searches_and_reads() -> None:
    """Arrays that conduct more or less as a whole: CxDNN's factors bring scores and codes back."""
    config = CrossbarConfig(device="Ideal8", sigma=0.0, array_sigma=0.2, adc_bits=None, scheme="one_sided")
    plain, corrected = (
        PromptMemory(config, TOKENS, CODE, 8, get_mitigation(name)) for name in ("none", "cxdnn")
    )
    codes = torch.stack([code(i).abs() for i in range(8)])
    for memory in (plain, corrected):
        memory.write_all(codes, [""] * 8, [named_generator(i) for i in range(8)])
    query = 50 * code(20)[None]
    ideal = query.flatten(1) @ codes.flatten(1).T
    errors = [(memory.search(query, MIPS) - ideal).abs().mean() for memory in (corrected, plain)]
    assert errors[0] < errors[1] / 4
    reads = [(memory.read(3) - codes[3]).abs().mean() for memory in (corrected, plain)]
    assert reads[0] < reads[1] / 4


def test_a_compensator_is_applied_to_what_is_read_only() -> None:
    plain = filled(2)
    scaled = PromptMemory(plain.config, TOKENS, CODE, 4, compensator=nn.Identity())
    scaled.compensator = _Tripled()
    for i in range(2):
        scaled.write(code(i), "", named_generator(i, "write"))
    assert torch.equal(scaled.read(1), 3 * plain.read(1))
    assert torch.equal(scaled.search(code(0)[None], MIPS), plain.search(code(0)[None], MIPS))


class _Tripled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * x


def test_a_refused_write_leaves_the_memory_as_it_was() -> None:
    memory = filled(3)
    memory.drop(1)
    before, labels = memory.state_dict(), [slot.label for slot in memory.slots]
    bad = torch.stack([code(5), code(6)])
    bad[1, 0, 0] = torch.nan
    with pytest.raises(ConfigError, match="NaN"):
        memory.write_all(bad, ["x", "y"], [named_generator(0)] * 2)
    assert [slot.label for slot in memory.slots] == labels
    assert memory.written == 3
    assert all(torch.equal(memory.state_dict()[key], value) for key, value in before.items())
    assert memory.write(code(5), "new", named_generator(5)) == 3
    assert memory.write(code(5), "new", named_generator(5)) == 1


def test_a_code_that_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match=r"shape \(6, 15\), this memory holds \(6, 16\)"):
        filled(0).write(torch.zeros(6, 15), "", named_generator(0))
    with pytest.raises(DataError, match="2 codes were given with 1 labels and 2 generators"):
        filled(0).write_all(torch.zeros(2, 6, 16), ["a"], [named_generator(0)] * 2)


def test_importance_goes_with_mitigations_that_ask_for_it() -> None:
    with pytest.raises(DataError, match=r"'swv' verifies the elements .*: give importance"):
        PromptMemory(CrossbarConfig(), TOKENS, CODE, 2, get_mitigation("swv")).write(
            code(0), "", named_generator(0)
        )
    with pytest.raises(DataError, match="'none' takes no importance"):
        filled(0).write(code(0), "", named_generator(0), code(1).abs())
    with pytest.raises(DataError, match=r"importance has shape \(1, 6, 15\)"):
        PromptMemory(CrossbarConfig(), TOKENS, CODE, 2, get_mitigation("swv")).write(
            code(0), "", named_generator(0), torch.ones(6, 15)
        )


def test_memories_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="capacity is 0"):
        PromptMemory(CrossbarConfig(), TOKENS, CODE, 0)
    with pytest.raises(ConfigError, match="'newest' is not known; allowed: oldest, least_worn"):
        PromptMemory(CrossbarConfig(), TOKENS, CODE, 1, replacement="newest")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["key", "labels", "writes", "width", "ragged", "capacity", "missing"])
def test_states_of_other_memories_are_refused(wrong: str) -> None:
    memory = filled(3)
    state, labels, writes = memory.state_dict(), ["a", "b", "c"], [1, 1, 1]
    back = PromptMemory(memory.config, TOKENS, CODE, 2 if wrong == "capacity" else 4)
    if wrong == "key":
        state["0.weight"] = torch.zeros(1)
    elif wrong == "labels":
        labels.append("d")
    elif wrong == "writes":
        writes[1] = 2
    elif wrong == "width":
        back = PromptMemory(memory.config, TOKENS, CODE - 1, 4)
    elif wrong == "ragged":
        state["cells.scale"] = state["cells.scale"][:2]
    elif wrong == "missing":
        del state["places.order"]
    with pytest.raises(ConfigError) as caught:
        back.load_state(state, labels, writes)
    assert "\n" not in str(caught.value)


def test_an_empty_memory_cannot_be_searched_and_comes_back_empty() -> None:
    memory = filled(0)
    with pytest.raises(DataError, match="empty"):
        memory.search(code(0)[None], SCALED_SEARCH)
    memory.load_state(load(save(memory.state_dict())), [], [])
    assert len(memory) == 0
    assert memory.write(code(0), "", named_generator(0)) == 0
