import torch

from nvcim.segmentation import UNet, UNetSettings
from tests.closeness import close


def test_a_small_networks_parameters_are_those_counted_by_hand() -> None:
    model = UNet(UNetSettings(width=4, depth=1, classes=2))

    def double(channels_in: int, channels_out: int) -> int:
        return 9 * channels_in * channels_out + 9 * channels_out**2 + 4 * channels_out

    lift = 8 * 4 + 4
    head = 4 * 2 + 2
    expected = double(3, 4) + double(4, 8) + lift + double(8, 4) + head
    assert sum(p.numel() for p in model.parameters()) == expected


def test_settings_decide_stride_and_descriptor() -> None:
    model = UNet(UNetSettings(width=6, depth=3)).eval()
    assert model.stride == 8
    assert model.descriptor_dim == 48
    assert model(torch.zeros(2, 3, 5, 5))[1].shape == (2, 48)


def test_the_paper_sized_network_has_about_its_31_million_weights() -> None:
    # 31.0 M with 2x2 transposed convolutions; 1x1 ones have a quarter of their weights, 2.1 M fewer.
    model = UNet(UNetSettings(width=64, depth=4, classes=2))
    transposed = sum(4 * above * 2 * above + above for above in (64, 128, 256, 512))
    pointwise = sum(above * 2 * above + above for above in (64, 128, 256, 512))
    count = sum(p.numel() for p in model.parameters())
    assert abs((count - pointwise + transposed) / 31.0e6 - 1) < 0.005


def test_the_descriptor_is_the_average_of_the_lowest_level() -> None:
    model = UNet(UNetSettings(width=4, depth=2), seed=1).eval()
    seen: list[torch.Tensor] = []
    model.down[-1].register_forward_hook(lambda _, __, output: seen.append(output))
    _, descriptor = model(torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0)))
    assert seen[0].shape == (2, 16, 2, 3)
    assert close(descriptor, seen[0].sum(dim=(2, 3)) / 6)


def test_skip_connections_carry_detail_past_the_lowest_level() -> None:
    model = UNet(UNetSettings(width=4, depth=2), seed=1).eval()
    image = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for lift in model.lift:
            lift.weight.zero_()  # type: ignore[operator]
        # Nothing comes up from below any more: what the top level sees is all that decides.
        logits, _ = model(image)
        moved, _ = model(image + 1.0)
    assert float(logits.std()) > 0
    assert not torch.equal(logits, moved)
