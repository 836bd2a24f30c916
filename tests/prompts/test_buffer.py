"""The data buffer."""

from nvcim.data.lamp import Sample
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
