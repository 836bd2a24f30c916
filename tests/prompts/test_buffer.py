"""The data buffer."""

import pytest

from nvcim.data.lamp import Sample
from nvcim.errors import ConfigError
from nvcim.prompts.buffer import DataBuffer


def sample(seq: int) -> Sample:
    return Sample("u", seq, "LaMP_3", "how was it ?", "5")


def test_a_full_buffer_forgets_its_oldest_sample() -> None:
    buffer = DataBuffer(3)
    for seq in range(3):
        assert not buffer.is_full
        buffer.add(sample(seq))
    assert buffer.is_full
    buffer.add(sample(3))
    assert [held.seq for held in buffer] == [1, 2, 3]
    assert len(buffer) == 3


def test_draining_gives_everything_oldest_first_and_empties_the_buffer() -> None:
    buffer = DataBuffer(5, [sample(0), sample(1)])
    assert [held.seq for held in buffer.drain()] == [0, 1]
    assert len(buffer) == 0
    assert buffer.drain() == ()


def test_a_drained_buffer_fills_again() -> None:
    buffer = DataBuffer(2, [sample(0), sample(1), sample(2)])
    assert [held.seq for held in buffer.drain()] == [1, 2]
    assert not buffer.is_full
    buffer.add(sample(3))
    buffer.add(sample(4))
    assert buffer.is_full
    assert [held.seq for held in buffer.drain()] == [3, 4]


def test_a_buffer_without_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="field 'buffer' is 0; allowed: room for 1"):
        DataBuffer(0)
