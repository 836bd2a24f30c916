"""The prompt memory: columns that keep their draw, are searched together, and come back bit by bit."""

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from nvcim.crossbar import CrossbarConfig
from nvcim.errors import DataError
from nvcim.prompts.memory import PromptMemory
from nvcim.prompts.search import SCALED_SEARCH, prepared_query
from nvcim.randomness import named_generator

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


@pytest.mark.parametrize("read_noise", [0.0, 0.02])
def test_the_state_comes_back_bit_by_bit(read_noise: float) -> None:
    memory = filled(14, capacity=12, read_noise=read_noise)
    state = load(save(memory.state_dict()))
    labels, writes = zip(*((slot.label, slot.writes) for slot in memory.slots), strict=True)
    back = PromptMemory(memory.config, TOKENS, CODE, 12)
    back.load_state(state, labels, writes)
    assert back.slots[11].label == "set 11"
    assert all(torch.equal(back.state_dict()[key], value) for key, value in state.items())
    assert torch.equal(back.search(code(5)[None], SCALED_SEARCH), memory.search(code(5)[None], SCALED_SEARCH))
    assert torch.equal(back.read(11), memory.read(11))
    for one in (memory, back):
        assert one.write(code(20), "set 20", named_generator(20)) == 2


def test_a_code_that_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match=r"shape \(6, 15\), this memory holds \(6, 16\)"):
        filled(0).write(torch.zeros(6, 15), "", named_generator(0))


def test_an_empty_memory_cannot_be_searched() -> None:
    with pytest.raises(DataError, match="empty"):
        filled(0).search(code(0)[None], SCALED_SEARCH)
