import tracemalloc

import numpy as np

from nvcim.segmentation.targets import contour_classes, numbered_anew, pixel_classes

# Two objects side by side and one alone; the border of the image is no edge.
TOUCHING = np.array(
    [
        [1, 1, 1, 2, 2, 2],
        [1, 1, 1, 2, 2, 2],
        [0, 0, 0, 0, 0, 0],
        [0, 3, 3, 3, 0, 0],
    ],
    dtype=np.int32,
)


def test_two_classes_part_touching_objects_by_background() -> None:
    expected = [
        [1, 1, 0, 0, 1, 1],
        [1, 1, 0, 0, 1, 1],
        [0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
    ]
    assert pixel_classes(TOUCHING, 2, contour_width=3).tolist() == expected


def test_three_classes_have_a_contour_towards_everything_but_the_image_border() -> None:
    square = np.zeros((8, 7), dtype=np.int32)
    square[:6, 1:6] = 4  # touches the upper border
    classes = pixel_classes(square, 3, contour_width=1)
    assert np.array_equal(classes, contour_classes(square, 1))
    assert classes[:5, 2:5].tolist() == [[1, 1, 1]] * 5
    assert classes[:6, 1].tolist() == [2] * 6
    assert classes[5, 1:6].tolist() == [2] * 5
    assert (classes[square == 0] == 0).all()


def test_small_objects_keep_a_core() -> None:
    small = np.zeros((7, 7), dtype=np.int32)
    small[2:5, 2:5] = 1  # its middle is two pixels deep, so its contour is at most one deep
    classes = pixel_classes(small, 3, contour_width=5)
    assert (classes == 1).sum() == 1
    assert classes[3, 3] == 1
    assert (classes == 2).sum() == 8


def test_labels_are_numbered_anew_in_their_order() -> None:
    assert numbered_anew(np.array([[0, 9], [4, 9]], dtype=np.int32)).tolist() == [[0, 2], [1, 2]]
    assert numbered_anew(np.array([[7, 7, 5]], dtype=np.int32)).tolist() == [[2, 2, 1]]
    assert numbered_anew(np.zeros((2, 2), dtype=np.int32)).tolist() == [[0, 0], [0, 0]]


def test_a_large_label_takes_no_more_memory_than_a_small_one() -> None:
    large = np.where(TOUCHING == 3, 40_000_000, TOUCHING).astype(np.int32)
    expected = contour_classes(TOUCHING, 1)
    tracemalloc.start()
    found = contour_classes(large, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(found, expected)
    assert peak < 1_000_000
