"""`python -m client quality`: a page on what the site's data are like."""

import json
from pathlib import Path
from typing import Annotated

import typer

from client import attention, quality_page
from client import quality as qualities
from client.chain import write_privately
from client.site import open_site
from common.errors import DataError

NAME = "quality.html"


def command(
    site: Annotated[Path, typer.Argument(help="The site's folder, as `index` has made it.", metavar="SITE")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The page; default quality.html in the site's folder.", metavar="FILE")
    ] = None,
    without_images: Annotated[
        bool,
        typer.Option("--without-images", help="Don't look at images: seconds, no pictures, no near-duplicates."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON on standard output.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar, no text.")] = False,
) -> None:
    """Write an HTML page: is all my data used, what isn't and why, classes, scanners, sizes, brightness, duplicates.

    Every image is decoded once; a second run takes seconds. The page shows patients' images: it is for this site
    alone, and its file can be read by its owner only. Nothing is sent.
    """
    own = open_site(site)
    found = qualities.gather(own)
    seen = None if without_images or not found.cards else qualities.see(own, found, quiet=quiet)
    if seen is not None and seen.failed:
        found = qualities.gather(own, failed=seen.failed)
    points = attention.points(found, seen)
    path = out or site / NAME
    try:
        write_privately(path, quality_page.render(own, found, seen).encode())
    except OSError as error:
        raise DataError(f"{path}: can't be written ({error.strerror or error})") from None
    counts = found.counts
    if as_json:
        values = {
            "schema": 1,
            "page": str(path),
            "files": counts.files,
            "used": counts.used,
            "dropped": counts.dropped,
            "images": counts.images,
            "patients": counts.patients,
            "share_used": found.share,
            "classes": {group.name: group.images for group in found.classes},
            "scanners": {group.name: group.images for group in found.scanners},
            "pools": {group.name: group.patients for group in found.pools},
            "undecodable": None if seen is None else len(seen.failed),
            "near_duplicates": None if seen is None else {"within": len(seen.within), "across": len(seen.across)},
            "attention": points,
        }
        print(json.dumps(values))
    elif not quiet:
        print(attention.line(found)[1].partition(";")[0])
        for point in points:
            print(f"  look at: {point}")
        print(path)
