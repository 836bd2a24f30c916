"""The data buffer of an edge node: the newest samples, at most `capacity` of them (25 in the paper)."""

from collections import deque
from collections.abc import Iterable, Iterator

from nvcim.data.lamp import Sample
from nvcim.errors import ConfigError


class DataBuffer:
    """Holds samples until the node learns from them.

    A user's domain may shift while the buffer fills: then it holds samples of both, and representative selection, not
    the buffer, tells them apart.

    Args:
        capacity: most samples held; when full, `is_full` tells that it is time to learn.

    Raises:
        ConfigError: room for no sample.
    """

    def __init__(self, capacity: int, samples: Iterable[Sample] = ()) -> None:
        if capacity < 1:
            raise ConfigError(f"field 'buffer' is {capacity}; allowed: room for 1 sample or more")
        self.capacity = capacity
        self._samples: deque[Sample] = deque(samples, maxlen=capacity)

    @property
    def is_full(self) -> bool:
        """Whether another sample would push out the oldest."""
        return len(self._samples) == self.capacity

    def add(self, sample: Sample) -> None:
        """Add a sample; a full buffer forgets its oldest."""
        self._samples.append(sample)

    def drain(self) -> tuple[Sample, ...]:
        """Return all samples, oldest first, and empty the buffer."""
        samples = tuple(self._samples)
        self._samples.clear()
        return samples

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(tuple(self._samples))
