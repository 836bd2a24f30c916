"""A run's stored sets as adapters: what PEFT loads is what the crossbar gives back."""

from pathlib import Path

import pytest
import torch

from nvcim.crossbar import CrossbarConfig
from nvcim.errors import ConfigError, RunError
from nvcim.fleet.adapters import export_adapters
from nvcim.fleet.node import EdgeNode
from nvcim.fleet.node_folders import node_folder
from nvcim.prompts.adapter_files import load_adapter
from nvcim.prompts.personaliser import Personaliser
from nvcim.prompts.personaliser_files import save_personaliser
from nvcim.randomness import named_generator
from serving.run_contents import inspect_run


@pytest.fixture
def run(tiny: Personaliser, tmp_path: Path) -> Path:
    """Two nodes, two sets each."""
    save_personaliser(tiny, tmp_path)
    for name in ("a", "b"):
        node = EdgeNode.new(name, CrossbarConfig(), 1, tiny)
        for i in range(2):
            drawn = named_generator(2, name, i)
            node.write(
                "nvcim-pt", torch.randn(tiny.settings.tuning.tokens, tiny.code_width, generator=drawn), ""
            )
        node.save(tmp_path / "nodes" / name)
    return tmp_path


def test_every_stored_set_becomes_an_adapter(tiny: Personaliser, run: Path, tmp_path: Path) -> None:
    folders = export_adapters(run, tmp_path / "out", device="cpu")
    assert [folder.name for folder in folders] == ["a-0", "a-1", "b-0", "b-1"]
    node = EdgeNode.load(run / "nodes" / "b")
    read = tiny.decode(node.memories["nvcim-pt"].read(1))
    torch.testing.assert_close(load_adapter(folders[3], tiny.lm), read)


@pytest.mark.parametrize("folder", ["", "u/a"])
def test_a_user_whose_id_is_a_path_is_exported_with_the_others(
    tiny: Personaliser, run: Path, tmp_path: Path, folder: str
) -> None:
    """Runs of before ids were encoded hold such a node in a folder within a folder."""
    node = EdgeNode.new("u/a", CrossbarConfig(), 1, tiny)
    drawn = named_generator(2, "u/a")
    node.write("nvcim-pt", torch.randn(tiny.settings.tuning.tokens, tiny.code_width, generator=drawn), "")
    node.save(run / "nodes" / folder if folder else node_folder(run, "u/a"))
    folders = export_adapters(run, tmp_path / "out", device="cpu")
    assert {path.name for path in folders} == {"a-0", "a-1", "b-0", "b-1", "u%2Fa-0"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in folders}
    exported = load_adapter(tmp_path / "out" / "u%2Fa-0", tiny.lm)
    torch.testing.assert_close(exported, tiny.decode(node.memories["nvcim-pt"].read(0)))
    assert "u/a" in {EdgeNode.load(path).node_id for path in inspect_run(run).nodes}


def test_a_node_that_was_not_saved_whole_is_named(run: Path, tmp_path: Path) -> None:
    (run / "nodes" / "c").mkdir()
    with pytest.raises(RunError, match=r"nodes/c: not a complete node"):
        export_adapters(run, tmp_path / "out", device="cpu")


def test_what_cannot_be_exported_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="method 'lora' is not stored by nodes; allowed: nvcim-pt"):
        export_adapters(run, tmp_path / "out", "lora")
    with pytest.raises(RunError, match="hold no sets of method 'mips'"):
        export_adapters(run, tmp_path / "out", "mips", "cpu")
    with pytest.raises(RunError, match="no nodes in it"):
        export_adapters(tmp_path / "elsewhere", tmp_path / "out")
