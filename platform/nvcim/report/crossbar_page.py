"""Writes what `nvcim crossbar explain` found: a page, its picture as SVG and PNG, and everything as JSON."""

import json
from pathlib import Path

import jinja2
from markupsafe import Markup

from nvcim.crossbar.explain import Explanation, constants_used
from nvcim.report.crossbar_picture import crossbar_picture
from nvcim.report.crossbar_tables import crossbar_tables
from nvcim.report.drawing import to_png, to_svg
from nvcim.storage import atomic_write_text
from nvcim.storage.files import atomic_write_bytes


def write_explanation(explanation: Explanation, folder: Path) -> list[Path]:
    """Write explain.json, explain.svg, explain.png and explain.html into a folder; return their paths, page first.

    Raises:
        RunError: the folder cannot be made or written to.
    """
    picture = crossbar_picture(explanation)
    drawn = to_svg(picture)
    page = folder / "explain.html"
    atomic_write_text(folder / "explain.json", json.dumps(explanation.as_record(), indent=2) + "\n")
    atomic_write_text(folder / "explain.svg", drawn)
    atomic_write_bytes(folder / "explain.png", to_png(picture))
    atomic_write_text(page, _page(explanation, drawn))
    return [page, *(folder / f"explain.{kind}" for kind in ("png", "svg", "json"))]


def _page(explanation: Explanation, drawn: str) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nvcim.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("crossbar.html.j2").render(
        title=f"{explanation.shape[0]} x {explanation.shape[1]} weights on crossbars",
        picture=Markup(drawn),  # our own SVG, whose texts are escaped
        tables=crossbar_tables(explanation),
        causes=explanation.causes,
        products=[row for row in explanation.product if row.note],
        constants=constants_used(explanation.constants),
        node=explanation.constants.node_nm,
        settings=explanation.job.model_dump(mode="json"),
    )
