"""The table of a model's layers."""

import torch
from torch import nn

from nvcim.analog import analogize, analogize_for_training, as_table, describe, with_analog_attention
from nvcim.crossbar import CrossbarConfig

CONFIG = CrossbarConfig(rows=32, cols=16)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def model() -> nn.Module:
    parts = {
        "stem": nn.Conv2d(4, 8, 3, groups=2),
        "norm": nn.BatchNorm2d(8),
        "up": nn.ConvTranspose2d(8, 4, 2),
        "words": nn.Embedding(10, 8),
        "attention": nn.MultiheadAttention(8, 2),
        "head": nn.Linear(40, 20),
        "kept": nn.Linear(3, 2),
    }
    return nn.ModuleDict(parts)


def test_arrays_count_tiles_groups_sides_and_slices() -> None:
    rows = {row.name: row for row in describe(analogize(model(), CONFIG, generator(), skip=["kept"]))}
    cells = CONFIG.mapping().cells
    assert rows["head"].shape == (40, 20)
    assert rows["head"].arrays == 2 * 2 * cells
    assert rows["head"].cells == 800 * cells
    assert rows["stem"].shape == (2, 18, 4)
    assert rows["stem"].arrays == 2 * cells


def test_what_stays_digital_is_listed_with_the_reason() -> None:
    rows = {row.name: row for row in describe(analogize(model(), CONFIG, generator(), skip=["kept"]))}
    assert rows["kept"].why == "skipped"
    assert rows["kept"].parameters == 8
    assert "look-up" in rows["words"].why
    assert "no crossbar form" in rows["up"].why
    assert "not a matrix product" in rows["norm"].why
    assert "both operands change" in rows["attention.products"].why
    assert rows["attention.q_proj"].kind == "AnalogLinear"


def test_attention_that_was_skipped_is_one_row() -> None:
    rows = describe(analogize(model(), CONFIG, generator(), skip=["attention"]))
    assert [row.name for row in rows if row.name.startswith("attention")] == ["attention"]
    assert next(row for row in rows if row.name == "attention").parameters == 4 * 8 * 8 + 4 * 8


def test_analog_products_keep_no_arrays() -> None:
    rows = {row.name: row for row in describe(with_analog_attention(model(), CONFIG, generator()))}
    assert "every call" in rows["attention.products"].why


def test_masters_of_layers_in_training_are_no_rows() -> None:
    rows = describe(analogize_for_training(nn.Linear(40, 20), CONFIG, generator()))
    assert [(row.name, row.kind) for row in rows] == [("", "TrainableAnalogLinear")]


def test_the_table_lines_up_and_adds_up() -> None:
    rows = describe(analogize(model(), CONFIG, generator(), skip=["kept"]))
    lines = as_table(rows).splitlines()
    assert len(lines) == len(rows) + 2
    assert lines[0].index("arrays") == lines[-1].index(f"{sum(row.arrays for row in rows):,}")
