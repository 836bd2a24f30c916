import math
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcim.errors import ModelError
from nvcim.quantization import packing
from nvcim.quantization.packing import (
    PackedTensor,
    code_bits,
    entropy,
    huffman_coded,
    pack_bits,
    pack_trits,
    pack_weight,
    unpack_bits,
    unpack_trits,
)


def test_bits_by_hand() -> None:
    # 101 001 110 011 -> 10100111 0011(0000)
    packed = pack_bits(np.array([5, 1, 6, 3], np.uint8), 3)
    assert packed.tolist() == [0b10100111, 0b00110000]
    assert unpack_bits(packed, 3, 4).tolist() == [5, 1, 6, 3]


def test_trits_by_hand() -> None:
    # 1 + 2*3 + 0*9 + 2*27 + 1*81 = 142; then 2
    packed = pack_trits(np.array([1, 2, 0, 2, 1, 2], np.uint8))
    assert packed.tolist() == [142, 2]
    assert unpack_trits(packed, 6).tolist() == [1, 2, 0, 2, 1, 2]


@given(st.integers(1, 8), st.integers(0, 300), st.integers(0, 2**32 - 1))
def test_every_width_comes_back(bits: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, count).astype(np.uint8)
    packed = pack_bits(codes, bits)
    assert packed.size == math.ceil(count * bits / 8)
    assert np.array_equal(unpack_bits(packed, bits, count), codes)
    # The same by Python's integers.
    whole = 0
    for code in codes.tolist():
        whole = whole << bits | code
    assert packed.tobytes() == (whole << (-count * bits % 8)).to_bytes(packed.size, "big")
    assert np.array_equal(unpack_trits(pack_trits(codes % 3), count), codes % 3)


def test_long_weights_are_packed_in_pieces_without_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.random.default_rng(0).integers(0, 32, 1001).astype(np.uint8)
    whole = pack_bits(codes, 5)
    monkeypatch.setattr(packing, "_CHUNK", 64)
    assert np.array_equal(pack_bits(codes, 5), whole)
    assert np.array_equal(unpack_bits(whole, 5, 1001), codes)


@pytest.mark.parametrize(
    ("levels", "bits"), [(1, 1), (2, 1), (3, 2), (5, 3), (16, 4), (17, 5), (65, 7), (256, 8)]
)
def test_code_width(levels: int, bits: int) -> None:
    assert code_bits(levels) == bits


def test_weights_off_their_levels_are_refused() -> None:
    levels = np.array([[-1.0, 0.0, 1.0]], np.float32)
    for wrong in (0.5, -1.5, 1.5, math.nan):
        with pytest.raises(ModelError, match="not on any of its levels"):
            pack_weight(np.array([[wrong, 1.0]], np.float32), levels, {})


def test_rows_have_their_own_levels() -> None:
    levels = np.array([[-1, 0, 1, 2], [-3, 0, 3, 6]], np.float32)
    weight = np.array([[2, -1, 0], [-3, 6, 3]], np.float32)
    packed = pack_weight(weight, levels, {})
    assert packed.codes(4).tolist() == [[3, 0, 1], [0, 3, 2]]
    assert np.array_equal(packed.values(levels), weight)
    with pytest.raises(ModelError, match="3 rows of levels for 2 outputs"):
        packed.values(np.zeros((3, 4), np.float32))


def test_entropy_by_hand() -> None:
    assert entropy(np.array([0, 0, 1, 2], np.uint8)) == 1.5
    assert entropy(np.zeros(9, np.uint8)) == 0.0


def test_huffman_codes_come_close_to_the_entropy_and_come_back() -> None:
    levels = np.arange(16, dtype=np.float32)[None]
    draw = np.abs(np.random.default_rng(1).normal(0, 3, (100, 400))).astype(int).clip(0, 15)
    plain = pack_weight(draw.astype(np.float32), levels, {})
    coded = huffman_coded(plain, 16)
    assert coded.form == "huffman"
    rate, least = 8 * coded.payload.size / coded.count, entropy(plain.codes(16))
    assert least <= rate <= 1.05 * least < 4
    assert np.array_equal(coded.values(levels), draw)
    even = np.random.default_rng(2).integers(0, 16, (100, 400)).astype(np.float32)
    assert huffman_coded(pack_weight(even, levels, {}), 16).form == "bits"  # nothing to gain


def test_damaged_payloads_are_refused() -> None:
    def held(form: str, content: bytes, count: int) -> PackedTensor:
        return PackedTensor((count,), form, np.frombuffer(content, np.uint8))

    with pytest.raises(ModelError, match="take 2 bytes where 3 are due"):
        held("bits", b"ab", 4).codes(64)
    with pytest.raises(ModelError, match="take 1 bytes where 2 are due"):
        held("trits", b"a", 6).codes(3)
    with pytest.raises(ModelError, match=r"the code 7; allowed: 0\.\.4"):
        held("bits", b"\xff", 2).codes(5)
    with pytest.raises(ModelError, match="damaged"):
        held("huffman", b"\xff\xff\xff\xff", 4).codes(5)
    with pytest.raises(ModelError, match="form 'zip' is not known"):
        held("zip", b"", 0).codes(5)
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = coder.compress(bytes(10_000_000)) + coder.flush()
    with pytest.raises(ModelError, match="do not hold 4 codes"):
        held("huffman", bomb, 4).codes(5)
    with pytest.raises(ModelError, match="do not hold 20000000 codes"):
        held("huffman", bomb, 20_000_000).codes(5)
    with pytest.raises(ModelError, match="do not hold 10000000 codes"):
        held("huffman", bomb + b"more", 10_000_000).codes(5)
