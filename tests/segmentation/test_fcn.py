import torch

from nvcim.quantization.base import weighted_layers
from nvcim.segmentation import PAPER_FCN, FCNSettings, ResidualFCN
from tests.closeness import close


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_a_small_networks_parameters_are_those_counted_by_hand() -> None:
    model = ResidualFCN(FCNSettings(width=4, depth=1, descriptor_dim=8, fused_width=4, classes=2))
    stem = 3 * 4 * 25 + 2 * 4
    # 4 -> 8 channels, then 8 -> 8, both with 4 inside; the first has a 1x1 shortcut.
    first = 4 * 4 + 4 * 4 * 9 + 4 * 8 + 2 * (4 + 4 + 8) + 4 * 8
    second = 8 * 4 + 4 * 4 * 9 + 4 * 8 + 2 * (4 + 4 + 8)
    laterals = (4 * 4 + 4) + (8 * 4 + 4)
    fuse = 4 * 4 * 9 + 2 * 4
    head = 4 * 8 * 9 + 8
    assert parameters(model) == stem + first + second + laterals + fuse + head


def test_only_the_last_bottleneck_widens_to_the_descriptor() -> None:
    model = ResidualFCN(FCNSettings(width=16, depth=4, max_width=64, descriptor_dim=1024))
    outputs = [stage[1].expand.out_channels for stage in model.stages]  # type: ignore[index]
    assert outputs == [32, 64, 64, 1024]
    last = model.stages[-1][1]  # type: ignore[index]
    # 64 -> 1024 with twice the input's channels inside, not half the output's.
    assert (last.reduce.out_channels, last.expand.out_channels) == (128, 1024)


def test_width_depth_and_descriptor_are_settings() -> None:
    counts = [parameters(ResidualFCN(FCNSettings(width=w))) for w in (8, 16, 32)]
    assert counts == sorted(counts)
    assert len(set(counts)) == 3
    model = ResidualFCN(FCNSettings(descriptor_dim=96, depth=3)).eval()
    assert model.stride == 16
    assert model.descriptor_dim == 96
    assert model(torch.zeros(1, 3, 8, 8))[1].shape == (1, 96)


def test_a_descriptor_narrower_than_the_stages_narrows_them() -> None:
    model = ResidualFCN(FCNSettings(width=8, depth=3, descriptor_dim=12))
    assert [stage[1].expand.out_channels for stage in model.stages] == [12, 12, 12]  # type: ignore[index]


def test_the_papers_network_has_its_size_scales_and_stride() -> None:
    model = ResidualFCN(PAPER_FCN)
    assert abs(parameters(model) / 17.3e6 - 1) < 0.005
    assert len(model.lateral) == 6
    assert model.stride == 64
    assert model.descriptor_dim == 1024


def test_the_descriptor_is_the_average_of_the_last_stage() -> None:
    model = ResidualFCN(FCNSettings(width=4, depth=2, descriptor_dim=12, fused_width=8), seed=1).eval()
    seen: list[torch.Tensor] = []
    model.stages[-1].register_forward_hook(lambda _, __, output: seen.append(output))
    image = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    _, descriptor = model(image)
    assert seen[0].shape == (2, 12, 2, 3)
    expected = torch.stack([seen[0][b].flatten(1).sum(1) / 6 for b in range(2)])
    assert close(descriptor, expected)


def test_every_weighted_layer_is_a_convolution() -> None:
    layers = weighted_layers(ResidualFCN(FCNSettings(width=4, depth=2)))
    assert all(isinstance(layer, torch.nn.Conv2d) for _, layer in layers)
    assert layers[0][0] == "stem"
    assert layers[-1][0] == "head"
