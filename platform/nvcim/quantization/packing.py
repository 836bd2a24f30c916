"""Weights on few levels as bytes: codes of b bits one after the other, trits five to a byte, or Huffman codes.

A weight [out, ...] becomes a code per entry, the place of its value in its row's ascending levels. Three forms:

- `bits`: every code takes ceil(log2(levels)) bits, most significant first, without gaps.
- `trits`: three levels, five codes in a byte (3^5 = 243 <= 256): 1.6 bits instead of 2.
- `huffman`: a byte per code through deflate's Huffman coding alone (no matches), for levels of uneven use.
"""

import math
import zlib
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from nvcim.errors import ModelError

_CHUNK = 1 << 20  # codes unpacked to single bits at a time, a multiple of 8
_POWERS_OF_THREE = np.array([1, 3, 9, 27, 81], dtype=np.uint8)
FORMS = ("bits", "trits", "huffman")


def code_bits(levels: int) -> int:
    """Bits of a code that tells `levels` (1..256) apart; one level still takes a bit."""
    return max(math.ceil(math.log2(levels)), 1)


def pack_bits(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Write codes of `bits` (1..8) bits each without gaps; the last byte is filled up with zeros.

    codes: [n], each below 2^bits; returns [ceil(n * bits / 8)].
    """
    pieces = []
    for start in range(0, codes.size, _CHUNK):
        single = np.unpackbits(codes[start : start + _CHUNK, None], axis=1)
        pieces.append(np.packbits(single[:, 8 - bits :]))
    return np.concatenate(pieces) if pieces else np.zeros(0, np.uint8)


def unpack_bits(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """Return the `count` codes that `pack_bits` wrote, [count]."""
    codes = np.empty(count, np.uint8)
    for start in range(0, count, _CHUNK):
        many = min(_CHUNK, count - start)
        first = start // 8 * bits
        single = np.unpackbits(packed[first : first + math.ceil(many * bits / 8)], count=many * bits)
        aligned = np.zeros((many, 8), np.uint8)
        aligned[:, 8 - bits :] = single.reshape(many, bits)
        codes[start : start + many] = np.packbits(aligned, axis=1)[:, 0]
    return codes


def pack_trits(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Write codes 0..2 five to a byte, least significant first; codes: [n], returns [ceil(n / 5)]."""
    padded = np.zeros((math.ceil(codes.size / 5), 5), np.uint8)
    padded.reshape(-1)[: codes.size] = codes
    return np.asarray((padded * _POWERS_OF_THREE).sum(axis=1), dtype=np.uint8)


def unpack_trits(packed: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Return the `count` codes that `pack_trits` wrote, [count]."""
    return np.asarray(packed[:, None] // _POWERS_OF_THREE % 3, dtype=np.uint8).reshape(-1)[:count]


def _huffman(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Deflate without matches: nothing is left but a Huffman code of the bytes, made anew every few thousand."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return np.frombuffer(coder.compress(codes.tobytes()) + coder.flush(), np.uint8)


def _unhuffman(packed: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """The inverse of `_huffman`; never makes more than `count` codes, whatever a damaged payload says."""
    decoder = zlib.decompressobj(-15)
    try:
        codes = decoder.decompress(packed.tobytes(), count + 1)
    except zlib.error as error:
        raise ModelError(f"Huffman-coded weights are damaged ({error})") from error
    if len(codes) != count or not decoder.eof or decoder.unused_data:
        raise ModelError(f"Huffman-coded weights do not hold {count} codes")
    return np.frombuffer(codes, np.uint8)


def entropy(codes: NDArray[np.uint8]) -> float:
    """Bits per code that no code of single symbols goes below: the codes' empirical entropy."""
    counts = np.bincount(codes.reshape(-1))
    shares = counts[counts > 0] / codes.size
    return float(-(shares * np.log2(shares)).sum())


@dataclass(frozen=True)
class PackedTensor:
    """A weight in packed memory.

    Attributes:
        shape: of the weight, [out, ...].
        form: one of `FORMS`.
        payload: the codes' bytes.
        side: what the levels are made from.
    """

    shape: tuple[int, ...]
    form: str
    payload: NDArray[np.uint8]
    side: dict[str, NDArray[np.generic]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many weights."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays held, side information included."""
        return self.payload.nbytes + sum(array.nbytes for array in self.side.values())

    def codes(self, levels: int) -> NDArray[np.uint8]:
        """Return the codes, shaped as the weight.

        Raises:
            ModelError: the payload is not that of `count` codes below `levels`.
        """
        codes = self._decoded(levels)
        if codes.size and int(codes.max()) >= levels:
            raise ModelError(f"packed weights hold the code {int(codes.max())}; allowed: 0..{levels - 1}")
        return codes.reshape(self.shape)

    def _decoded(self, levels: int) -> NDArray[np.uint8]:
        if self.form == "huffman":
            return _unhuffman(self.payload, self.count)
        if self.form not in FORMS:
            raise ModelError(f"packed form '{self.form}' is not known; allowed: {', '.join(FORMS)}")
        trits = self.form == "trits"
        bits = code_bits(levels)
        wanted = math.ceil(self.count / 5) if trits else math.ceil(self.count * bits / 8)
        if self.payload.size != wanted:
            raise ModelError(f"packed weights take {self.payload.size} bytes where {wanted} are due")
        return (
            unpack_trits(self.payload, self.count) if trits else unpack_bits(self.payload, bits, self.count)
        )

    def values(self, levels: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the weight, bit for bit as it was packed.

        levels: [out or 1, levels], ascending in each row.

        Raises:
            ModelError: the payload does not fit the shape or the levels.
        """
        rows, count = levels.shape
        codes = self.codes(count).reshape(self.shape[0], -1)
        if rows not in (1, self.shape[0]):
            raise ModelError(f"packed weights have {rows} rows of levels for {self.shape[0]} outputs")
        if rows == 1:
            return np.asarray(levels[0][codes]).reshape(self.shape)
        return np.take_along_axis(levels, codes.astype(np.intp), axis=1).reshape(self.shape)


def pack_weight(
    weight: NDArray[np.floating],
    levels: NDArray[np.floating],
    side: dict[str, NDArray[np.generic]],
) -> PackedTensor:
    """Pack a weight that is on its levels: `trits` for three levels, `bits` for any other number.

    weight: [out, ...]; levels: [out or 1, levels <= 256], ascending in each row.

    Raises:
        ModelError: a weight is not exactly on a level.
    """
    codes = _codes(weight.reshape(weight.shape[0], -1), levels).reshape(-1)
    if levels.shape[1] == 3:
        return PackedTensor(weight.shape, "trits", pack_trits(codes), side)
    return PackedTensor(weight.shape, "bits", pack_bits(codes, code_bits(levels.shape[1])), side)


def huffman_coded(weight: PackedTensor, levels: int) -> PackedTensor:
    """Return the same weight in Huffman codes, or as it is where those take more; levels: how many there are."""
    payload = _huffman(weight.codes(levels))
    return replace(weight, form="huffman", payload=payload) if payload.size < weight.payload.size else weight


def _codes(rows: NDArray[np.floating], levels: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Each value's place among its row's levels, [out, n] uint8."""
    codes = np.empty(rows.shape, np.uint8)
    for index, own in enumerate(levels):
        part = slice(None) if len(levels) == 1 else slice(index, index + 1)
        found = np.minimum(np.searchsorted(own, rows[part]), own.size - 1)
        if not np.array_equal(own[found], rows[part]):
            raise ModelError("a weight is not on any of its levels; packing takes finished weights only")
        codes[part] = found
    return codes
