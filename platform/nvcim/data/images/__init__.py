"""Images and instance masks: reading, writing, and the folder layouts that are understood.

Layouts of labelled sets stand in `layouts`. An instance mask holds 0 for background and one integer per object.
"""

from nvcim.data.images.decoding import decode_image, encode_png, read_image, write_image
from nvcim.data.images.instances import (
    encode_instances,
    encode_instances_tiff,
    read_instances,
    write_instances,
)
from nvcim.data.images.intensities import Pixels, displayed
from nvcim.data.images.labelled import (
    LabelledImage,
    Layout,
    PlainImage,
    label_image,
    read_image_set,
    read_images,
    write_image_set,
)
from nvcim.data.images.layouts import find_images, find_masks, image_name, pair_names
from nvcim.data.images.tiff import MAX_PIXELS

__all__ = [
    "MAX_PIXELS",
    "LabelledImage",
    "Layout",
    "Pixels",
    "PlainImage",
    "decode_image",
    "displayed",
    "encode_instances",
    "encode_instances_tiff",
    "encode_png",
    "find_images",
    "find_masks",
    "image_name",
    "label_image",
    "pair_names",
    "read_image",
    "read_image_set",
    "read_images",
    "read_instances",
    "write_image",
    "write_image_set",
    "write_instances",
]
