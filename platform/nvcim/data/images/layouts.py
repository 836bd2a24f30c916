"""Which files of a folder are images and which are their masks, paired by name.

Layouts that are understood, each with or without masks:
- `images/` and `labels/` (or `masks/`) with the same names;
- GlaS's `train_1.bmp` beside `train_1_anno.bmp`;
- Cellpose's `a.png` beside `a_cp_masks.png` or `a_masks.png`, and `a_img.png` beside `a_masks.png`;
- the 2018 Data Science Bowl's folder per image: `<id>/images/<id>.png` and `<id>/masks/` with a file per object.

Hidden files (`._a.png` of a Mac's archives among them) are no images. Names are compared in Unicode's composed
form (NFC), since a Mac writes them decomposed.
"""

import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from nvcim.errors import DataError

SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
LABEL_FOLDERS = ("labels", "masks")
LAYOUTS = (
    "images/ and labels/ (or masks/) with the same names, GlaS's name.bmp beside name_anno.bmp, Cellpose's name.png "
    "beside name_cp_masks.png or name_masks.png, or a folder per image with images/ and masks/ as of DSB 2018"
)
_MASK_ENDINGS = ("_anno", "_cp_masks", "_masks", "_mask")  # a longer one before its own end
_BY_PRODUCTS = ("_flows", "_cp_flows", "_cp_output", "_cp_outlines")  # of Cellpose


def image_name(path: Path) -> str:
    """Return the name that an image file and its mask share: without ending (`.ome.tif` is one), composed."""
    stem = unicodedata.normalize("NFC", path.stem)
    if path.suffix.lower() in (".tif", ".tiff") and stem.lower().endswith(".ome"):
        return stem[:-4]
    return stem


def find_images(folder: Path) -> dict[str, Path]:
    """Return image files by name, of `images/` where there is one, else of the folder; masks are left out.

    Raises:
        DataError: no such folder, no image in it, or two images of one name.
    """
    if by_folder := _folder_per_image(folder):
        return {name: _only_image(place / "images") for name, place in by_folder.items()}
    root = folder / "images" if (folder / "images").is_dir() else folder
    files = [path for path in _listed(root, SUFFIXES) if not image_name(path).endswith("_anno")]
    if root is folder:  # masks may lie beside their images
        stems = {image_name(path) for path in files}
        files = [p for p in files if not _image_of(image_name(p), stems, (*_MASK_ENDINGS, *_BY_PRODUCTS))]
    images = _by_name(files)
    if not images:
        raise DataError(f"{root}: no images found (looked for {', '.join(SUFFIXES)})")
    return images


def find_masks(folder: Path, images: Iterable[Path] = ()) -> dict[str, Path]:
    """Return masks by image name: of `labels/` or `masks/`, else those named as masks, else every mask file here.

    Each is a file, or a folder of one mask per object (DSB 2018). Overlays (`*_overlay` beside the mask) are
    left out. `images` are files known to be none.

    Raises:
        DataError: no such folder, no mask in it, two masks of one name, or one of the images among the masks.
    """
    if by_folder := _folder_per_image(folder):
        masks = {name: place / "masks" for name, place in by_folder.items() if (place / "masks").is_dir()}
    else:
        masks = _masks_in(next((folder / f for f in LABEL_FOLDERS if (folder / f).is_dir()), folder))
    known = {path.resolve() for path in images}
    for path in masks.values():
        if path.resolve() in known:
            raise DataError(
                f"{path}: is an image, not a mask; masks lie in labels/, end in _anno or have a folder"
            )
    if not masks:
        raise DataError(f"{folder}: no instance masks found (looked for {', '.join(MASK_SUFFIXES)})")
    return masks


def mask_files(folder: Path) -> list[Path]:
    """Mask files of a folder, in name order.

    Raises:
        DataError: no such folder.
    """
    return _listed(folder, MASK_SUFFIXES)


def is_labelled(folder: Path) -> bool:
    """Whether a folder holds images and masks in one of the layouts.

    Raises:
        DataError: no such folder.
    """
    if (folder / "images").is_dir() and any((folder / name).is_dir() for name in LABEL_FOLDERS):
        return True
    if any((place / "masks").is_dir() for place in _folder_per_image(folder).values()):
        return True
    return bool(_marked(folder, SUFFIXES))


def pair_names(folder: Path, left: Iterable[str], right: Iterable[str], what: tuple[str, str]) -> list[str]:
    """Return the names that both sides hold, in order; `what` names the sides in the error.

    Raises:
        DataError: a name is on one side only.
    """
    left, right = set(left), set(right)
    for lonely, other in ((left - right, what[1]), (right - left, what[0])):
        if lonely:
            shown = ", ".join(sorted(lonely)[:3]) + (", ..." if len(lonely) > 3 else "")
            raise DataError(f"{folder}: {len(lonely)} file(s) without {other}: {shown}")
    return sorted(left)


def _listed(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Files of a folder with one of the endings, in name order, hidden ones left out."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    return [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    ]


def _by_name(paths: Iterable[Path], name_of: Callable[[Path], str] = image_name) -> dict[str, Path]:
    """Files by the name they share with their image or mask; two of one name raise DataError."""
    found: dict[str, Path] = {}
    for path in paths:
        name = name_of(path)
        if name in found:
            raise DataError(f"{path}: same name as {found[name].name}; keep one of them")
        found[name] = path
    return found


def _image_of(name: str, stems: Collection[str], endings: Sequence[str] = _MASK_ENDINGS) -> str:
    """The image among `stems` that a file's name says it was made of (`a` or `a_img` for `a_masks`), else empty."""
    bases = (name.removesuffix(end) for end in endings if name.endswith(end))
    return next((image for base in bases for image in (base, f"{base}_img") if base and image in stems), "")


def _without_ending(path: Path) -> str:
    """A mask's name without what marks it as one; the whole name of a file without such an ending."""
    name = image_name(path)
    return name.removesuffix(next((end for end in _MASK_ENDINGS if name.endswith(end)), ""))


def _marked(folder: Path, suffixes: Sequence[str]) -> dict[Path, str]:
    """Files that are masks by their names, and the names of their images: GlaS's, and those beside their image."""
    stems = {image_name(path) for path in _listed(folder, SUFFIXES)}
    files = {path: _image_of(image_name(path), stems) for path in _listed(folder, suffixes)}
    return {
        path: image or _without_ending(path)
        for path, image in files.items()
        if image or image_name(path).endswith("_anno")
    }


def _masks_in(folder: Path) -> dict[str, Path]:
    """Masks of one folder by image name."""
    if marked := _marked(folder, MASK_SUFFIXES):
        return _by_name(marked, lambda path: marked[path])
    files = _listed(folder, MASK_SUFFIXES)
    if all(image_name(path) != _without_ending(path) for path in files):
        return _by_name(files, _without_ending)
    masks = _by_name(files)
    return {name: path for name, path in masks.items() if not _image_of(name, masks, ("_overlay",))}


def _folder_per_image(folder: Path) -> dict[str, Path]:
    """Folders `<id>` that hold `images/`, by id, where the folder itself has none; empty for other layouts."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if (folder / "images").is_dir():
        return {}
    return {
        unicodedata.normalize("NFC", place.name): place
        for place in sorted(folder.iterdir())
        if not place.name.startswith(".") and (place / "images").is_dir()
    }


def _only_image(folder: Path) -> Path:
    files = _listed(folder, SUFFIXES)
    if len(files) != 1:
        raise DataError(f"{folder}: holds {len(files)} images; a folder per image (DSB 2018) holds one")
    return files[0]
