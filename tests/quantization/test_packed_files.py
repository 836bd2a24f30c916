import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nvcim.errors import ModelError
from nvcim.quantization import (
    INQ,
    INQSettings,
    disk_ratio,
    load_packed,
    packed_sizes,
    read_packed,
    save_packed,
)
from nvcim.quantization.inq import INQWeight
from nvcim.segmentation.fcn import PAPER_FCN, ResidualFCN

SETTINGS = INQSettings(bits=5, float_layers=("last",))
# How a file describes the two layers of `network`: 5 bits a weight, and two exponents.
FIRST = ["bits", 8 * 2 * 9 * 5 // 8, [8, 2, 3, 3], [2]]
SECOND = ["bits", 30 * 8 * 9 * 5 // 8, [30, 8, 3, 3], [2]]


def network(seed: int = 0, settings: INQSettings = SETTINGS) -> tuple[nn.Sequential, INQ]:
    """A net with normalisation and a float layer, INQ on the other two."""
    layers = (
        nn.Conv2d(2, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 30, 3),
        nn.Flatten(),
        nn.Linear(30, 3),
    )
    net = nn.Sequential(*layers)
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    quantizer = INQ(settings)
    quantizer.attach(net)
    net(torch.randn(4, 2, 5, 5, generator=generator))  # moves the running statistics
    return net, quantizer


def saved(path: Path, fraction: float = 1.0, *, entropy_coded: bool = False) -> nn.Sequential:
    net, quantizer = network()
    quantizer.advance(net, fraction)
    save_packed(net, quantizer, path, entropy_coded=entropy_coded)
    return net


@pytest.mark.parametrize("fraction", [0.0, 0.6, 1.0])
def test_everything_comes_back_also_in_the_middle_of_the_schedule(fraction: float, tmp_path: Path) -> None:
    net = saved(tmp_path / "net", fraction)
    restored, quantizer = network(seed=1)
    load_packed(restored, quantizer, tmp_path / "net")
    x = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(2))
    assert torch.equal(restored.eval()(x), net.eval()(x))
    assert restored[1].num_batches_tracked == net[1].num_batches_tracked == 1
    assert torch.equal(restored[1].running_var, net[1].running_var)
    assert torch.equal(restored[5].weight, net[5].weight)
    assert quantizer.frozen_fraction(restored) == pytest.approx(fraction, abs=0.01)


def test_half_frozen_weights_are_stored_whole_and_train_on(tmp_path: Path) -> None:
    net = saved(tmp_path / "net", 0.6)
    assert packed_sizes(tmp_path / "net")[0].layer == "(other tensors)"
    restored, quantizer = network(seed=1)
    load_packed(restored, quantizer, tmp_path / "net")
    quantizer.advance(restored, 1.0)
    INQ(SETTINGS).advance(net, 1.0)
    assert torch.equal(restored[3].weight, net[3].weight)


def test_one_layer_may_be_finished_before_another(tmp_path: Path) -> None:
    net, quantizer = network()
    state = net[0].parametrizations["weight"]
    assert isinstance(state[0], INQWeight)
    state[0].freeze(state.original, 1.0)
    save_packed(net, quantizer, tmp_path / "net")
    assert [size.layer for size in packed_sizes(tmp_path / "net")] == ["0", "(other tensors)", "(header)"]
    restored, quantizer = network(seed=1)
    load_packed(restored, quantizer, tmp_path / "net")
    assert torch.equal(restored[0].weight, net[0].weight)
    assert torch.equal(restored[3].weight, net[3].weight)


def test_loaded_weights_are_fixed(tmp_path: Path) -> None:
    saved(tmp_path / "net")
    restored, quantizer = network(seed=1)
    load_packed(restored, quantizer, tmp_path / "net")
    restored(torch.ones(2, 2, 5, 5)).sum().backward()
    assert restored[0].parametrizations["weight"].original.grad is None
    assert restored[5].weight.grad is not None


def test_sizes_by_hand_add_up_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "net"
    saved(path)
    first, second, others, header = packed_sizes(path)
    # 5 bits each, and two exponents of 16 bits a layer.
    assert (first.layer, first.form, first.weights) == ("0", "bits", 8 * 2 * 9)
    assert first.disk_bytes == first.memory_bytes == 144 * 5 // 8 + 4
    assert second.disk_bytes == 2160 * 5 // 8 + 4
    assert second.float32_bytes == 4 * 2160
    assert second.bits_per_weight == pytest.approx(5 + 32 / 2160)
    # Biases 8 + 30 + 3, normalisation 4 * 8 and a count of 8 bytes, the float layer's 90.
    assert others.disk_bytes == others.memory_bytes == 4 * (41 + 32 + 90) + 8
    assert header.memory_bytes == header.weights == header.bits_per_weight == 0
    assert sum(size.disk_bytes for size in (first, second, others, header)) == path.stat().st_size


def test_entropy_coding_shrinks_a_layer_towards_its_entropy(tmp_path: Path) -> None:
    saved(tmp_path / "plain")
    saved(tmp_path / "coded", entropy_coded=True)
    plain, coded = packed_sizes(tmp_path / "plain")[1], packed_sizes(tmp_path / "coded")[1]
    assert plain.entropy_bits == coded.entropy_bits
    assert plain.entropy_bits is not None
    assert coded.form == "huffman"
    assert plain.entropy_bits < coded.bits_per_weight < plain.bits_per_weight


def ratio_on_disk(net: nn.Module, bits: int, path: Path) -> float:
    """A float32 file of the same network over the packed file."""
    save_file(net.state_dict(), path.with_suffix(".float"))
    quantizer = INQ(INQSettings(bits=bits))
    quantizer.attach(net)
    quantizer.advance(net, 1.0)
    save_packed(net, quantizer, path)
    ratio = path.with_suffix(".float").stat().st_size / path.stat().st_size
    assert disk_ratio(packed_sizes(path)) == pytest.approx(
        ratio, rel=0.002
    )  # but for the float file's header
    return ratio


@pytest.mark.parametrize(("bits", "claimed"), [(7, 4.6), (5, 6.4)])
def test_quarter_of_a_million_weights_reach_the_papers_reduction(
    bits: int, claimed: float, tmp_path: Path
) -> None:
    net = nn.Sequential(nn.Conv2d(128, 192, 3, bias=False), nn.BatchNorm2d(192), nn.Conv2d(192, 128, 1))
    assert ratio_on_disk(net, bits, tmp_path / "net") >= 0.97 * claimed


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "claimed"), [(7, 4.6), (5, 6.4)])
def test_the_paper_sized_network_reaches_the_papers_reduction(
    bits: int, claimed: float, tmp_path: Path
) -> None:
    assert ratio_on_disk(ResidualFCN(PAPER_FCN), bits, tmp_path / "net") >= 0.97 * claimed


def rewritten(path: Path, description: Any) -> None:
    """Replace the description in a packed file's header."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"]["nvcim-packed"] = (
        description if isinstance(description, str) else json.dumps(description)
    )
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


def described(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    found: dict[str, Any] = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["nvcim-packed"])
    return found


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format": 1}, "format 1 is not supported; this version reads 2"),
        ({"crc32": 1}, "do not match their checksum"),
        ({"quantizer": {"kind": "magic"}}, "quantizer 'magic' is not known"),
        ({"quantizer": {"kind": "inq", "bits": 9}}, "less than or equal to 8"),
        ({"quantizer": []}, "description of its packed weights is damaged"),
        ({"side": None}, "description of its packed weights is damaged"),
        ({"side": [1]}, "description of its packed weights is damaged"),
        ({"side": []}, "description of its packed weights is damaged"),
        ({"side": ["scale"]}, "'side.scale' does not hold the 4 values of its layers"),
        ({"rest": 5}, "description of its packed weights is damaged"),
        ({"rest": "5"}, "what is beside its packed weights is of another network"),
        ({"layers": {"0": ["zip", 90, [8, 2, 3, 3], [2]]}}, "damaged"),
        ({"layers": {"0": ["bits", 90, [8, -2], [2]]}}, "damaged"),
        ({"layers": {"0": ["huffman", 90, [1 << 30, 1 << 30], [2]]}}, "damaged"),
        ({"layers": {"0": ["bits", -90, [8, 2, 3, 3], [2]]}}, "damaged"),
        ({"layers": {"0": ["bits", 90, [8, 2, 3, 3], [2, 2]]}}, "damaged"),
        ({"layers": {"0": ["bits", 90, [8, 2, 3, 3], [2]]}}, "'packed' does not hold the 90 values"),
        ({"layers": {"0": FIRST, "3": ["bits", 1350, [30, 8, 3, 3], [3]]}}, "'side.exponents' does not hold"),
        ({"layers": {"zero": FIRST, "3": SECOND}}, "layer 'zero' is not in the model"),
        (
            {"layers": {"0": ["bits", 90, [8, 2, 3, 4], [2]], "3": SECOND}},
            "layer '0': packed weights take 90 bytes where",
        ),
        (
            {"layers": {"0": ["bits", 90, [16, 1, 3, 3], [2]], "3": SECOND}},
            r"layer '0' has shape \(16, 1, 3, 3\)",
        ),
        ({"quantizer": {"kind": "twn"}}, "its weights are of twn; the model's quantizer is inq-5"),
        (
            {"quantizer": {"kind": "inq", "bits": 4}},
            "its weights are of inq-4; the model's quantizer is inq-5",
        ),
        ({"quantizer": {"kind": "inq", "bits": 5}}, "of inq-5 with other settings; the model's"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(
    change: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "net"
    saved(path)
    rewritten(path, described(path) | change)
    restored, quantizer = network(seed=1)
    before = {name: tensor.clone() for name, tensor in restored.state_dict().items()}
    with pytest.raises(ModelError, match=complaint) as caught:
        load_packed(restored, quantizer, path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in restored.state_dict().items())


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read as packed weights"):
        read_packed(tmp_path / "nowhere")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(ModelError, match="cannot be read as packed weights"):
        packed_sizes(tmp_path / "empty")
    save_file({"a": torch.zeros(2)}, tmp_path / "plain")
    with pytest.raises(ModelError, match="not a file of packed weights"):
        read_packed(tmp_path / "plain")
    saved(tmp_path / "net")
    for wrong in ("{", "[]", "{}"):
        rewritten(tmp_path / "net", wrong)
        with pytest.raises(ModelError, match="damaged"):
            read_packed(tmp_path / "net")


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "net")
    inq = INQ(SETTINGS)
    shorter = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Linear(2, 2))
    inq.attach(shorter)
    with pytest.raises(ModelError, match="layer '3' is not in the model"):
        load_packed(shorter, inq, tmp_path / "net")
    plain = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8))
    with pytest.raises(ModelError, match="layer '0': inq-5 is not attached"):
        load_packed(plain, inq, tmp_path / "net")
    for foreign in (
        nn.Linear(30, 4),  # other shapes
        nn.Linear(45, 2),  # as many values
        nn.Linear(30, 3, bias=False),  # nothing under a name
        nn.Sequential(nn.Linear(30, 3)),  # another name
        nn.Linear(30, 3).double(),  # another type
    ):
        other, _ = network()
        other[5] = foreign
        before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
        with pytest.raises(ModelError, match="beside its packed weights is of another network"):
            load_packed(other, inq, tmp_path / "net")
        assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_the_same_layers_in_another_order_are_another_network(tmp_path: Path) -> None:
    layers = {"stem": nn.Conv2d(2, 3, 3), "one": nn.BatchNorm2d(3), "two": nn.BatchNorm2d(3)}
    net, inq = nn.ModuleDict(layers), INQ()
    inq.attach(net)
    inq.advance(net, 1.0)
    save_packed(net, inq, tmp_path / "net")
    turned = nn.ModuleDict({name: layers[name] for name in ("stem", "two", "one")})
    with pytest.raises(ModelError, match="of another network"):
        load_packed(turned, inq, tmp_path / "net")


def test_the_header_names_no_tensor_by_itself(tmp_path: Path) -> None:
    saved(tmp_path / "net")
    content = (tmp_path / "net").read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    names = set(json.loads(content[8 : 8 + size])) - {"__metadata__"}
    assert names == {"packed", "side.exponents", "rest.float32", "rest.int64"}
    assert described(tmp_path / "net")["layers"] == {"0": FIRST, "3": SECOND}


@pytest.mark.parametrize("entropy_coded", [False, True])
def test_no_flipped_byte_passes_for_a_model(entropy_coded: bool, tmp_path: Path) -> None:
    path = tmp_path / "net"
    saved(path, entropy_coded=entropy_coded)
    whole = path.read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    places = (
        torch.randperm(len(whole) - 8 - size, generator=torch.Generator().manual_seed(0))[:100] + 8 + size
    )
    for place in [*places.tolist(), *range(8)]:
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(ModelError):
            read_packed(path)


def test_no_cut_file_passes_for_a_model(tmp_path: Path) -> None:
    path = tmp_path / "net"
    saved(path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            read_packed(path)


def test_any_damage_to_the_header_is_a_model_error_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "net"
    net = saved(path)
    whole = path.read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    for place in range(8, 8 + size, 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        restored, quantizer = network(seed=1)
        try:
            load_packed(restored, quantizer, path)
        except ModelError:
            continue
        assert torch.equal(
            restored[3].weight, net[3].weight
        )  # only a setting that loading does not use changed
