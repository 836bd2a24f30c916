"""Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers", SC 2011).

A number is a function of (key, purpose, index, position) and of nothing else: not of what was drawn before,
how draws are batched or packed, or the thread count. A device's key names it; `purpose` is a stream of its
own (writes, reads, ...); `index` counts within the stream (a write, a read vector). Compiled and plain torch
agree to the bit, on any machine, because both use only operations that IEEE 754 rounds one way.
"""

import torch
from torch import Tensor

from nvcim.crossbar.kernel import kernel_for

BLOCK = 64
"""Numbers come in blocks of 16 counters, laid out word by word."""

_LANES = 16
_LOW = 0xFFFFFFFF
# Coefficients of Cephes' single-precision logf, sinf and cosf (S. L. Moshier, netlib.org/cephes).
_LOG = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip


def normals(keys: Tensor, purpose: int, index: Tensor, count: int, indices: int = 1) -> Tensor:
    """Standard normals, by Box and Muller: [devices, indices, count], float32, where the keys live.

    Args:
        keys: [devices], int64: what names each device.
        purpose: the stream, 0..2**32-1.
        index: [devices], int64: each device's first index in the stream.
        count: numbers per index.
        indices: consecutive indices per device.
    """
    library = kernel_for(keys)
    if library is None:
        return _plain_normals(keys, purpose, index, count, indices)
    out = torch.empty(len(keys), indices, count, dtype=torch.float32)
    keys, index = keys.contiguous(), index.contiguous()
    library.nvcim_normals(
        keys.data_ptr(), len(keys), purpose, index.data_ptr(), indices, count, out.data_ptr(), torch.get_num_threads()
    )  # fmt: skip
    return out


def uniforms(keys: Tensor, purpose: int, index: Tensor, count: int) -> Tensor:
    """Uniform numbers in [0, 1), multiples of 2**-24: [devices, count], float32; arguments as `normals`."""
    library = kernel_for(keys)
    if library is None:
        words = torch.stack(_words(keys, purpose, index, count, 1), dim=-2).reshape(len(keys), -1)
        return (words[:, :count] >> 8).float() * 2.0**-24
    out = torch.empty(len(keys), count, dtype=torch.float32)
    keys, index = keys.contiguous(), index.contiguous()
    library.nvcim_uniforms(
        keys.data_ptr(), len(keys), purpose, index.data_ptr(), count, out.data_ptr(), torch.get_num_threads()
    )
    return out


def philox(counter: tuple[Tensor, ...], key: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four 32-bit words, as int64, for four 32-bit counter words and a 64-bit key; all broadcastable int64."""
    a, b, c, d = counter
    k0, k1 = key & _LOW, (key >> 32) & _LOW
    for _ in range(10):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57  # wraps modulo 2**64, which is what is wanted
        a, b = ((q >> 32) & _LOW) ^ b ^ k0, q & _LOW
        c, d = ((p >> 32) & _LOW) ^ d ^ k1, p & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return a, b, c, d


def _plain_normals(keys: Tensor, purpose: int, index: Tensor, count: int, indices: int) -> Tensor:
    words = _words(keys, purpose, index, count, indices)
    drawn = torch.stack([*_box_muller(words[0], words[1]), *_box_muller(words[2], words[3])], dim=-2)
    return drawn.reshape(len(keys), indices, -1)[..., :count].contiguous()


def _words(keys: Tensor, purpose: int, index: Tensor, count: int, indices: int) -> tuple[Tensor, ...]:
    """The four words of every counter: each [devices, indices, blocks, 16]."""
    blocks = -(-count // BLOCK)
    position = torch.arange(blocks * _LANES, device=keys.device).reshape(1, 1, blocks, _LANES)
    at = (index[:, None] + torch.arange(indices, device=keys.device)).reshape(len(keys), indices, 1, 1)
    stream = torch.full_like(at, purpose)
    return philox((position, stream, at & _LOW, (at >> 32) & _LOW), keys.reshape(-1, 1, 1, 1))


def _box_muller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two normals from two 32-bit words: radius sqrt(-2 ln u), an angle from the second word."""
    radius = square_root(_log(first.float() * 2.0**-32 + 2.0**-33) * -2.0)
    angle = ((second & 0x3FFFFFFF).float() * 2.0**-30 + -0.5) * 1.57079632679489662
    z = angle * angle
    sine = z * -1.9515295891e-4 + 8.3321608736e-3
    sine = sine * z + -1.6666654611e-1
    sine = sine * z * angle + angle
    cosine = z * 2.443315711809948e-5 + -1.388731625493765e-3
    cosine = cosine * z + 4.166664568298827e-2
    cosine = cosine * z * z + z * -0.5 + 1.0
    odd, negative = (second & 0x40000000) != 0, (second & 0x80000000) != 0
    p, q = torch.where(odd, -sine, cosine), torch.where(odd, cosine, sine)
    return radius * torch.where(negative, -p, p), radius * torch.where(negative, -q, q)


def square_root(x: Tensor) -> Tensor:
    """Correctly rounded float32 root; torch's own is off by one unit in a sixth of all cases."""
    return x.double().sqrt().float()


def _log(u: Tensor) -> Tensor:
    bits = u.view(torch.int32)
    exponent = (bits >> 23) - 126
    mantissa = ((bits & 0x007FFFFF) | 0x3F000000).view(torch.float32)  # [0.5, 1)
    small = mantissa < 0.707106781186547524
    exponent = exponent - small.to(torch.int32)
    x = torch.where(small, mantissa + mantissa, mantissa) - 1.0
    square = x * x
    y = x * _LOG[0] + _LOG[1]
    for coefficient in _LOG[2:]:
        y = y * x + coefficient
    y = y * x * square
    e = exponent.float()
    y = y + e * -2.12194440e-4
    y = y + square * -0.5
    return x + y + e * 0.693359375
