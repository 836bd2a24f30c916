"""The images of a folder to be suggested from: those with masks in memory, the others read when they are asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from nvcim.data.images import (
    LabelledImage,
    Pixels,
    PlainImage,
    find_images,
    find_masks,
    label_image,
    read_image,
)
from nvcim.errors import DataError

OnProgress = Callable[[str, int, int], None]
"""Called with (what is being done, how many are done, how many in all)."""


class UnreadImages(Sequence[PlainImage]):
    """Images that are read one by one when they are asked for, and not kept; a folder may hold thousands."""

    def __init__(self, names: Sequence[str], read: Callable[[str], Pixels]) -> None:
        self.names = tuple(names)
        self._read = read

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, place: int) -> PlainImage: ...
    @overload
    def __getitem__(self, place: slice) -> "UnreadImages": ...
    def __getitem__(self, place: int | slice) -> "PlainImage | UnreadImages":
        """Read the image at a place (raises DataError as `read_image`), or return those of a slice unread."""
        if isinstance(place, slice):
            return UnreadImages(self.names[place], self._read)
        return self.named(self.names[place])

    def named(self, name: str) -> PlainImage:
        """Read the image of a name (raises DataError as `read_image`)."""
        return PlainImage(name, self._read(name))


@dataclass(frozen=True)
class Pool:
    """A folder's images, in name order: those with masks, to be trained on, in memory, the rest unread."""

    annotated: tuple[LabelledImage, ...]
    rest: UnreadImages


def read_pool(images: Path, masks: Path | None, on_progress: OnProgress | None = None) -> Pool:
    """Find a folder's images and the masks of some of them, paired by name; None: no mask yet.

    Every file is read once, so that a damaged one is found before networks are trained, but only the annotated
    images are kept.

    Raises:
        DataError: no image, no mask in `masks`, images in place of masks, a mask without an image or of another
            size, or a file that cannot be read.
    """
    files = find_images(images)
    labels = find_masks(masks, files.values()) if masks is not None else {}
    unknown = sorted(set(labels) - set(files))
    if unknown:
        raise DataError(
            f"{labels[unknown[0]]}: no image of that name in {images} ({len(unknown)} mask(s) without an image)"
        )
    annotated: list[LabelledImage] = []
    for done, (name, file) in enumerate(files.items(), start=1):
        pixels = read_image(file)
        if name in labels:
            annotated.append(label_image(name, pixels, file, labels[name]))
        if on_progress is not None:
            on_progress("images read", done, len(files))
    rest = [name for name in files if name not in labels]
    return Pool(tuple(annotated), UnreadImages(rest, lambda name: read_image(files[name])))
