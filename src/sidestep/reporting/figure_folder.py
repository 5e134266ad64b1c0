"""Figures for papers: every figure of a report as SVG, PNG and PDF, and its table as CSV."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from io import BytesIO, StringIO
from pathlib import Path

import vl_convert

from sidestep.files import write_file
from sidestep.reporting.shown import Figure
from sidestep.reporting.sprite import Sprite

# Of PNG, over the 72 points per inch of the others.
_SCALE = 3


def write_figures(folder: Path, figures: Sequence[Figure], sprite: Sprite | None) -> list[Path]:
    """Write figures into a folder, and return the files; `readings.txt` has what is said beside them.

    Args:
        folder: is made where it is not there.
        figures: of a report.
        sprite: pictures of the images that are shown, or None.

    Raises:
        OutputError: when one cannot be written.
    """
    written = []
    for figure in figures:
        place = folder / re.sub(r"[^\w.\-]+", "_", figure.key)
        contents: dict[str, bytes | str] = {"csv": _csv(figure)}
        if figure.chart is not None:
            spec = json.dumps(figure.chart.to_dict())
            contents |= {
                "svg": vl_convert.vegalite_to_svg(spec),
                "png": vl_convert.vegalite_to_png(spec, scale=_SCALE),
                "pdf": vl_convert.vegalite_to_pdf(spec),
            }
        elif figure.galleries and sprite is not None:
            ids = [image for gallery in figure.galleries for image in gallery.ids]
            columns = max(len(gallery.ids) for gallery in figure.galleries)
            picture = BytesIO()
            sprite.sheet(ids, columns).save(picture, format="PNG")
            contents["png"] = picture.getvalue()
        for ending, content in contents.items():
            path = place.with_name(f"{place.name}.{ending}")
            write_file(path, content, what="figure")
            written.append(path)
    readings = "".join(map(_said, figures))
    write_file(folder / "readings.txt", readings, what="readings")
    return [*written, folder / "readings.txt"]


def _said(figure: Figure) -> str:
    paper = f" As {figure.paper} of the RDI-Net paper." if figure.paper else ""
    return f"{figure.key}: {figure.title}. {figure.reading}{paper}\n"


def _csv(figure: Figure) -> str:
    text = StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(figure.columns)
    writer.writerows(figure.rows)
    return text.getvalue()
