"""Columns of a prompt memory read as the crossbars they were."""

import pytest
import torch

from nvcim.crossbar import Crossbar, CrossbarConfig
from nvcim.prompts.memory_columns import Columns


@pytest.mark.parametrize("accumulate", ["analog", "digital"])
def test_one_sided_columns_in_bfloat16_are_read_with_what_all_cells_conduct(accumulate: str) -> None:
    config = CrossbarConfig.model_validate(
        {"device": "Ideal4", "sigma": 0.0, "scheme": "offset", "storage": "bfloat16", "accumulate": accumulate,
         "g_min_us": 90.0, "g_max_us": 100.0, "dac_bits": None, "adc_bits": None}
    )  # fmt: skip
    weight = torch.randn(5, 32, 1, generator=torch.Generator().manual_seed(1))
    columns = Columns(config, 32)
    columns.put(range(5), Crossbar.program(weight, config, torch.Generator().manual_seed(0)))
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
    expected = x @ weight[..., 0].T
    # 8-bit weights and bfloat16 each leave less than half a percent
    assert float((columns.read(x) - expected).norm() / expected.norm()) < 0.01
