"""`nvcim segment suggest`: what is suggested in a folder, what is written, and every mistake of a user's."""

import csv
import json
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nvcim.cli import run
from nvcim.data.images import PlainImage, read_image, write_image, write_instances
from nvcim.errors import ConfigError, DataError, ModelError
from nvcim.randomness import named_seed
from nvcim.segmentation import suggestion_files, suggestion_pool
from nvcim.segmentation.ensemble import MemberJob
from nvcim.segmentation.fcn import FCNSettings, ResidualFCN
from nvcim.segmentation.model_files import save_fcn
from nvcim.segmentation.pool_scoring import PoolScores, ScoringSettings, score_pool
from nvcim.segmentation.suggestion_files import (
    FolderSettings,
    load_ensemble,
    suggest_in_folder,
    suggestion_rows,
    write_suggestions,
)
from nvcim.segmentation.suggestion_pool import Pool, UnreadImages, read_pool
from nvcim.segmentation.training import TrainingLog, TrainingSettings

NETWORK = FCNSettings(width=4, depth=1, descriptor_dim=8, fused_width=4)
QUICK = FolderSettings(
    k=2, networks=2, network=NETWORK, training=TrainingSettings(steps=2, batch=2, crop=16, device="cpu")
)
NAMES = tuple(f"image-{index}" for index in range(7))
Shell = Callable[..., tuple[int, str, str]]


def make_images() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {name: generator.integers(0, 256, (20, 24, 3), dtype=np.uint8) for name in NAMES}


def make_mask() -> np.ndarray:
    mask = np.zeros((20, 24), np.int32)
    mask[3:12, 4:14] = 1
    return mask


def make_member(folder: Path, seed: int = 0) -> None:
    """A network as training leaves one; its log is what says that it is complete."""
    save_fcn(ResidualFCN(NETWORK, seed), folder)
    (folder / "training.json").write_text("{}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with 7 images in images/ and masks of the first two in masks/."""
    for name, pixels in make_images().items():
        write_image(pixels, tmp_path / "images" / f"{name}.png")
    for name in NAMES[:2]:
        write_instances(make_mask(), tmp_path / "masks" / f"{name}.png")
    return tmp_path


@pytest.fixture
def ensemble(tmp_path: Path) -> Path:
    for index in range(2):
        make_member(tmp_path / "ensemble" / f"member-{index}", index)
    return tmp_path / "ensemble"


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    def call(*arguments: object) -> tuple[int, str, str]:
        status = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def unread(images: list[PlainImage]) -> UnreadImages:
    by_name = {image.name: image.pixels for image in images}
    return UnreadImages(list(by_name), by_name.__getitem__)


class CountingReader:
    """Makes images when they are asked for, and counts how many of them are alive at once."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size, self.alive, self.most, self.reads = size, 0, 0, 0

    def __call__(self, name: str) -> np.ndarray:
        made = np.random.default_rng(int(name)).integers(0, 256, (*self.size, 3), dtype=np.uint8)
        self.alive, self.reads = self.alive + 1, self.reads + 1
        self.most = max(self.most, self.alive)
        weakref.finalize(made, self._gone)
        return made

    def _gone(self) -> None:
        self.alive -= 1


@pytest.mark.parametrize("warm", [False, True])
def test_images_are_read_one_by_one_and_let_go(ensemble: Path, warm: bool) -> None:
    reader = CountingReader((20, 24))
    pool = Pool((), UnreadImages([f"{index:03d}" for index in range(60)], reader))
    settings = QUICK.model_copy(update={"scoring": ScoringSettings(batch_pixels=3 * 20 * 24)})
    found = suggest_in_folder(pool, settings, models=ensemble if warm else None)
    assert reader.reads == 60 + 2  # all to be looked at, then the suggested ones for the sheet
    assert reader.most <= 2 * 3 + 1  # two batches of three, and the one being read
    assert reader.alive == 2
    assert [len(found.images), len(found.heat)] == [2, 2 * warm]


def test_a_folders_images_are_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[np.ndarray]] = []

    def read(path: Path) -> np.ndarray:
        pixels = read_image(path)
        alive.append(weakref.ref(pixels))
        return pixels

    monkeypatch.setattr(suggestion_pool, "read_image", read)
    pool = read_pool(folder / "images", folder / "masks")
    assert len(alive) == 7
    # The last one read is free too: nothing but the annotated images is held.
    assert sum(reference() is not None for reference in alive) == len(pool.annotated) == 2
    assert (pool.rest[1].pixels == make_images()[NAMES[3]]).all()
    assert pool.rest[1:3].names == NAMES[3:5]


def test_pool_pairs_masks_by_name(folder: Path) -> None:
    pool = read_pool(folder / "images", folder / "masks")
    assert tuple(image.name for image in pool.annotated) == NAMES[:2]
    assert tuple(image.name for image in pool.rest) == NAMES[2:]
    assert (pool.annotated[0].instances == make_mask()).all()
    assert len(read_pool(folder / "images", None).rest) == 7


def test_images_are_not_taken_for_masks_but_glas_naming_is_read(folder: Path) -> None:
    for given in (folder, folder / "images"):
        with pytest.raises(DataError, match=r"image-0\.png: is an image, not a mask"):
            read_pool(given, folder / "images")
    write_instances(make_mask(), folder / "images" / "image-4_anno.png")
    pool = read_pool(folder / "images", folder / "images")
    assert [image.name for image in pool.annotated] == ["image-4"]
    assert len(pool.rest) == 6


def test_cold_start_suggests_without_uncertainty_and_says_so(folder: Path) -> None:
    found = suggest_in_folder(read_pool(folder / "images", None), QUICK)
    assert "Nothing is annotated yet" in found.how
    assert (found.annotated, found.rest, len(found.suggestions)) == (0, 7, 2)
    assert all(s.uncertainty is None and s.gain is not None for s in found.suggestions)
    assert sum(s.represents or 0 for s in found.suggestions) == 7
    assert not found.heat
    assert set(found.images) == {suggestion.name for suggestion in found.suggestions}


def test_cold_start_finds_one_image_of_every_kind() -> None:
    generator = np.random.default_rng(2)
    rows, columns = np.mgrid[:32, :32]
    images = []
    for index in range(12):
        # Bright grey discs on dark, dark ones on a bright coloured ground, and fine stripes.
        x, y = generator.uniform(10, 22, 2)
        disc = (((rows - y) ** 2 + (columns - x) ** 2) < 30)[..., None]
        kinds = (
            np.where(disc, 200, 20) * np.ones(3),
            np.where(disc, np.array([90, 30, 120]), np.array([235, 190, 220])),
            (120 + 80 * ((columns + int(x)) % 2))[..., None] * np.ones(3),
        )
        pixels = np.clip(kinds[index % 3] + generator.normal(0, 4, (32, 32, 3)), 0, 255).astype(np.uint8)
        images.append(PlainImage(f"{index:02d}", pixels))
    found = suggest_in_folder(Pool((), unread(images)), FolderSettings(k=3))
    assert {int(suggestion.name) % 3 for suggestion in found.suggestions} == {0, 1, 2}
    assert [suggestion.represents for suggestion in found.suggestions] == [4, 4, 4]


def test_cold_start_leaves_images_that_are_like_no_other_aside() -> None:
    generator = np.random.default_rng(4)
    images = [
        PlainImage(f"{i:02d}", np.clip(generator.normal(120, 30, (32, 32, 3)), 0, 255).astype(np.uint8))
        for i in range(20)
    ]
    stripes = 255 * (np.arange(32) // 4 % 2)[:, None, None] * np.ones((1, 32, 3))
    images[7] = PlainImage("07", stripes.astype(np.uint8))
    settings = FolderSettings(k=2, network=NETWORK, networks=2)
    everything = settings.model_copy(update={"outliers": 0.0})
    chosen = {
        s.name: s.represents for s in suggest_in_folder(Pool((), unread(images)), everything).suggestions
    }
    assert chosen["07"] == 1
    found = suggest_in_folder(Pool((), unread(images)), settings)
    assert "07" not in {suggestion.name for suggestion in found.suggestions}
    assert sum(suggestion.represents or 0 for suggestion in found.suggestions) == 20
    assert "the 1 least like any others are not suggested" in found.how


def test_members_are_loaded_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for index in range(11):
        make_member(tmp_path / f"member-{index}", index)
    loaded = [next(model.parameters()) for model in load_ensemble(tmp_path)]
    expected = [next(ResidualFCN(NETWORK, index).parameters()) for index in range(11)]
    assert all(torch.equal(left, right) for left, right in zip(loaded, expected, strict=True))


def _without_log(folder: Path) -> None:
    (folder / "member-1" / "training.json").unlink()


def _with_checkpoint(folder: Path) -> None:
    (folder / "member-1" / "checkpoint.pt").write_bytes(b"")


def _with_a_folder_alone(folder: Path) -> None:
    (folder / "member-2").mkdir()


def _with_three_starts(folder: Path) -> None:
    for index in range(3):
        make_member(folder / f"start-{index}", index)


@pytest.mark.parametrize(
    ("spoil", "member"),
    [(_without_log, 1), (_with_checkpoint, 1), (_with_a_folder_alone, 2), (_with_three_starts, 2)],
)
def test_an_ensemble_cut_short_in_training_is_refused(
    ensemble: Path, spoil: Callable[[Path], None], member: int
) -> None:
    spoil(ensemble)
    with pytest.raises(ModelError, match=f"member-{member}: is not trained to its end"):
        load_ensemble(ensemble)


def test_networks_that_are_no_members_are_no_ensemble(tmp_path: Path) -> None:
    for name in ("float-0", "float-1"):
        make_member(tmp_path / name)
    with pytest.raises(ModelError, match="found 0"):
        load_ensemble(tmp_path)


def test_float_and_quantized_networks_have_as_many_steps(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = read_pool(folder / "images", folder / "masks")
    trained: list[tuple[str, int, bool]] = []
    honest = suggestion_files.train_member

    def recorded(job: MemberJob, *rest: Any) -> TrainingLog:
        trained.append((job.quantizer, job.training.steps, job.start is None))
        return honest(job, *rest)

    monkeypatch.setattr(suggestion_files, "train_member", recorded)
    for weights in ("float", "inq-7"):
        trained.clear()
        suggest_in_folder(pool, QUICK.model_copy(update={"weights": weights}))
        assert trained == [("float", 2, True)] * 2 + [(weights, 1, False)] * 2


def test_a_trained_ensemble_is_asked_for_its_uncertainty(folder: Path, ensemble: Path) -> None:
    pool = read_pool(folder / "images", folder / "masks")
    found = suggest_in_folder(pool, QUICK.model_copy(update={"rule": "uncertainty"}), models=ensemble)
    scores = score_pool(load_ensemble(ensemble), pool.rest)
    order = np.argsort(-scores.uncertainty.numpy())[:2]
    assert [s.name for s in found.suggestions] == [scores.names[index] for index in order]
    first = found.suggestions[0]
    assert found.heat[first.name].mean() == pytest.approx(first.uncertainty, rel=1e-5)
    known = score_pool(load_ensemble(ensemble), pool.annotated).descriptors
    similarity = torch.cosine_similarity(scores.descriptors[order[0]][None], known)
    nearest = found.nearest[0]
    assert nearest is not None
    assert nearest[0] == NAMES[int(similarity.argmax())]
    assert nearest[1] == pytest.approx(float(similarity.max()), abs=1e-6)
    assert str(ensemble) in found.how


def test_training_is_by_seed_and_its_networks_can_be_kept(folder: Path, tmp_path: Path) -> None:
    pool = read_pool(folder / "images", folder / "masks")
    heard: list[tuple[str, int, int]] = []
    kept = tmp_path / "kept"
    quantized = QUICK.model_copy(update={"weights": "inq-7"})
    found = suggest_in_folder(pool, quantized, 3, None, kept, lambda *said: heard.append(said))
    assert "2 networks (inq-7 weights) trained on 2 annotated images" in found.how
    assert ("training network 4 of 4", 1, 1) in heard  # float ones and their quantized twins
    assert heard[-1] == ("images looked at", 7, 7)
    assert [m.quantizer.name for m in load_ensemble(kept) if m.quantizer] == ["inq-7", "inq-7"]
    again = suggest_in_folder(pool, quantized, 3, models=kept)
    assert again.suggestions == found.suggestions
    assert suggest_in_folder(pool, quantized, 3).suggestions == found.suggestions
    members = [named_seed(3, "segmentation", "suggestive network", index) for index in range(2)]
    assert members[0] != members[1]
    with pytest.raises(ModelError, match="other settings, seed or images"):
        suggest_in_folder(pool, quantized, 4, save_models=kept)
    for other in ("start-2", "member-2"):
        (kept / other).mkdir()
        with pytest.raises(ModelError, match=f"holds {other}, which is none of the 2 networks"):
            suggest_in_folder(pool, quantized, 3, save_models=kept)
        (kept / other).rmdir()


def test_random_rule_asks_no_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suggestion_files, "train_member", None)
    pool = read_pool(folder / "images", folder / "masks")
    found = suggest_in_folder(pool, QUICK.model_copy(update={"rule": "random"}))
    assert found.how.startswith("Random")
    assert len(found.suggestions) == 2


def test_tables_hold_every_suggestion_in_order(folder: Path, ensemble: Path, tmp_path: Path) -> None:
    found = suggest_in_folder(read_pool(folder / "images", folder / "masks"), QUICK, models=ensemble)
    write_suggestions(found, tmp_path / "s.csv")
    write_suggestions(found, tmp_path / "s.json")
    with (tmp_path / "s.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["image"] for row in rows] == [s.name for s in found.suggestions]
    assert [int(row["rank"]) for row in rows] == [1, 2]
    assert [float(row["uncertainty"]) for row in rows] == [s.uncertainty for s in found.suggestions]
    content = json.loads((tmp_path / "s.json").read_text())
    assert content["suggestions"] == suggestion_rows(found)
    assert content["how"] == found.how
    with pytest.raises(ConfigError, match=r"s\.txt: suggestions are written as \.csv or \.json"):
        write_suggestions(found, tmp_path / "s.txt")


def test_command_line_writes_table_and_sheet(shell: Shell, folder: Path, ensemble: Path) -> None:
    table, sheet = folder / "out" / "next.json", folder / "out" / "sheet.png"
    status, out, err = shell(
        *("segment", "suggest", folder / "images", "--annotated", folder / "masks", "-k", 3),
        *("--models", ensemble, "--out", table, "--contact-sheet", sheet, "--device", "cpu"),
    )
    assert status == 0, err
    beside = (folder, "--annotated", folder / "masks", "-k", 3, "--models", ensemble, "--out", table)
    status, _, err = shell("segment", "suggest", *beside, "--contact-sheet", folder / "beside.png")
    assert status == 0, err
    assert (folder / "beside.png").read_bytes() == sheet.read_bytes()
    assert len(json.loads(table.read_text())["suggestions"]) == 3
    assert read_image(sheet).shape[1] > 800
    assert "3 of 5 images to annotate next" in out
    assert "Suggestive annotation" in out
    assert "nearest annotated" in out


def test_command_line_trains_with_the_settings_of_a_file(shell: Shell, folder: Path) -> None:
    config = folder / "suggest.yaml"
    config.write_text(
        "networks: 3\nnetwork: {width: 4, depth: 1, descriptor_dim: 8, fused_width: 4}\n"
        "training: {batch: 2, crop: 16, device: cpu}\n"
    )
    status, out, err = shell(
        *("segment", "suggest", folder / "images", "--annotated", folder / "masks", "-k", 2, "--steps", 2),
        *("--config", config, "--networks", 2, "--out", folder / "next.csv"),
    )
    assert status == 0, err
    assert "2 networks (float weights) trained on 2 annotated images" in " ".join(out.split())
    assert "training network 1 of 4" in err


def _no_images(folder: Path) -> tuple[object, ...]:
    (folder / "empty").mkdir()
    return (folder / "empty", "--annotated", "")


def _unreadable_image(folder: Path) -> tuple[object, ...]:
    (folder / "images" / "image-4.png").write_bytes(b"")
    return (folder / "images", "--annotated", folder / "masks", "-k", 2)


def _unknown_mask(folder: Path) -> tuple[object, ...]:
    write_instances(make_mask(), folder / "masks" / "stranger.png")
    return (folder / "images", "--annotated", folder / "masks", "-k", 2)


def _other_size(folder: Path) -> tuple[object, ...]:
    write_instances(make_mask()[:-1], folder / "masks" / "image-1.png")
    return (folder / "images", "--annotated", folder / "masks", "-k", 2)


def _all_annotated(folder: Path) -> tuple[object, ...]:
    for name in NAMES:
        write_instances(make_mask(), folder / "masks" / f"{name}.png")
    return (folder / "images", "--annotated", folder / "masks", "-k", 2)


def _one_network(folder: Path) -> tuple[object, ...]:
    make_member(folder / "one" / "member-0")
    return (folder / "images", "--annotated", "", "-k", 2, "--models", folder / "one")


def _empty_masks(folder: Path) -> tuple[object, ...]:
    for name in NAMES[:2]:
        write_instances(np.zeros((20, 24), np.int32), folder / "masks" / f"{name}.png")
    return (folder / "images", "--annotated", folder / "masks", "-k", 2)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (
            lambda f: (f / "images", "--annotated", ""),
            "k = 8 images cannot be suggested; 7 are not annotated",
        ),
        (
            lambda f: (f / "images", "--annotated", f / "masks", "-k", 6),
            "k = 6 images cannot be suggested; 5",
        ),
        (
            lambda f: (f / "images", "--annotated", f / "masks", "-k", 3, "--candidates", 2),
            "among candidates = 2",
        ),
        (lambda f: (f / "images", "--annotated", f / "nowhere", "-k", 2), "nowhere: no such folder"),
        (lambda f: (f / "nowhere", "--annotated", ""), "nowhere: no such folder"),
        (
            lambda f: (f / "images", "--annotated", f / "masks", "-k", 2, "--weights", "inq7"),
            "'inq7' is not known",
        ),
        (lambda f: (f / "images", "--annotated", "", "-k", 2, "--models", f / "masks"), "found 0"),
        (lambda f: (f / "images", "--annotated", "", "-k", 2, "--out", "x.txt"), "must end in .csv or .json"),
        (lambda f: (f / "images", "-k", 2), "Missing option '--annotated'"),
        (_no_images, "empty: no images found"),
        (_unreadable_image, "image-4.png: cannot be read as an image"),
        (_unknown_mask, "stranger.png: no image of that name"),
        (_other_size, "image-1.png: mask of 24x19 pixels, but its image"),
        (_all_annotated, "all 7 images are annotated already"),
        (_one_network, "at least 2 trained networks"),
        (_empty_masks, "labelled object"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    shell: Shell,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    prepare: Callable[[Path], tuple[object, ...]],
    message: str,
) -> None:
    monkeypatch.chdir(folder)
    status, _, err = shell("segment", "suggest", *prepare(folder), "--device", "cpu")
    complaint = err.strip().splitlines()[-1]
    assert status == 2
    assert complaint.startswith("nvcim: ")
    assert message in complaint
    assert not (folder / "suggestions.csv").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--annotated", "", "--weights", "inq-7"), "--weights inq-7: has no meaning with --annotated ''"),
        (("--annotated", "", "--steps", 9), "--steps 9: has no meaning with --annotated ''"),
        (
            ("--annotated", "", "--save-models", "kept"),
            "--save-models kept: has no meaning with --annotated ''",
        ),
        (("--annotated", "", "--candidates", 9), "--candidates 9: has no meaning with --annotated ''"),
        (
            ("--annotated", "masks", "--models", "m", "--networks", 3),
            "--networks 3: has no meaning with --models",
        ),
        (
            ("--annotated", "masks", "--models", "m", "--weights", "float"),
            "--weights float: has no meaning with --models",
        ),
        (("--annotated", "", "--models", "m", "--steps", 9), "--steps 9: has no meaning with --models"),
        (
            ("--annotated", "masks", "--models", "m", "--save-models", "n"),
            "--save-models n: has no meaning with --models",
        ),
        (
            ("--annotated", "masks", "--rule", "random", "--models", "m"),
            "--models m: has no meaning with the rule random",
        ),
        (
            ("--annotated", "masks", "--rule", "random", "--networks", 3),
            "--networks 3: has no meaning with the rule random",
        ),
        (
            ("--annotated", "masks", "--rule", "uncertainty", "--candidates", 3),
            "--candidates 3: has no meaning with the rule uncertainty",
        ),
        (("--annotated", "masks", "--rule", "best"), "'best' is not one of"),
        (("--annotated", "", "--rule", "uncertainty", "-k", 2), "train networks first"),
    ],
)
def test_options_without_meaning_are_refused_by_name(
    shell: Shell, folder: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[object, ...], message: str
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(suggestion_files, "score_pool", lambda *_: pytest.fail("images were looked at"))
    status, _, err = shell("segment", "suggest", "images", *given)
    assert status == 2
    assert message in err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--contact-sheet", "sheet.jpg"), "--contact-sheet sheet.jpg: must end in .png"),
        (("--contact-sheet", "images/image-1.png"), "images/image-1.png: lies among the images"),
        (("--contact-sheet", "masks/sheet.png"), "masks/sheet.png: lies among the images"),
        (("--contact-sheet", "file/a/sheet.png"), "file is not a folder"),
        (("--contact-sheet", "shut/new/sheet.png"), "shut cannot be written to"),
        (("--out", "folder.csv"), "--out folder.csv: is a folder"),
        (("--out", "file/next.csv"), "file is not a folder"),
        (("--out", "shut/next.csv"), "shut cannot be written to"),
    ],
)
def test_places_for_results_are_checked_before_images_are_read(
    shell: Shell, folder: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(folder)
    (folder / "file").write_text("")
    (folder / "folder.csv").mkdir()
    (folder / "shut").mkdir()
    honest = os.access  # a superuser may write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "shut" and honest(path, mode))
    monkeypatch.setattr(suggestion_pool, "read_pool", lambda *_: pytest.fail("images were read"))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    status, _, err = shell("segment", "suggest", "images", "--annotated", "masks", "-k", 2, *given)
    assert status == 2
    assert message in err.strip().splitlines()[-1]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("rule", ["random", "suggestive"])
def test_models_are_kept_only_where_some_are_trained(folder: Path, ensemble: Path, rule: str) -> None:
    settings = QUICK.model_copy(update={"rule": rule})
    pool = read_pool(folder / "images", folder / "masks")
    with pytest.raises(ConfigError, match="no network is trained that could be kept"):
        suggest_in_folder(pool, settings, models=ensemble, save_models=folder / "kept")
    with pytest.raises(ConfigError, match="no network is trained that could be kept"):
        suggest_in_folder(read_pool(folder / "images", None), settings, save_models=folder / "kept")


@pytest.mark.parametrize("rule", ["uncertainty", "random"])
def test_command_line_takes_a_rule(shell: Shell, folder: Path, ensemble: Path, rule: str) -> None:
    models = () if rule == "random" else ("--models", ensemble)
    status, _, err = shell(
        *("segment", "suggest", folder / "images", "--annotated", folder / "masks", "-k", 3, "--rule", rule),
        *("--out", folder / "next.json", *models, "--device", "cpu"),
    )
    assert status == 0, err
    assert json.loads((folder / "next.json").read_text())["how"].lower().startswith(rule)


def test_untrained_networks_look_on_the_device_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suggestion_files, "resolve_device", lambda name: torch.device("meta"))
    places = []

    def recorded(networks: list[torch.nn.Module], *rest: Any) -> PoolScores:
        places.extend(next(network.parameters()).device.type for network in networks)
        return score_pool([ResidualFCN(NETWORK, seed) for seed in range(2)], *rest)

    monkeypatch.setattr(suggestion_files, "score_pool", recorded)
    suggest_in_folder(read_pool(folder / "images", None), QUICK)
    assert places == ["meta", "meta"]


def test_help_says_what_happens_with_nothing_annotated(shell: Shell) -> None:
    _, out, _ = shell("segment", "suggest", "--help")
    assert "nothing is trained" in " ".join(out.split())


def test_the_uncertainty_rule_needs_something_annotated(folder: Path) -> None:
    with pytest.raises(DataError, match="train networks first"):
        suggest_in_folder(
            read_pool(folder / "images", None), QUICK.model_copy(update={"rule": "uncertainty"})
        )
