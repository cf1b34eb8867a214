"""Prints the Markdown table of all picture sources for docs/demo.md, from `credits.toml`.

python -m scripts.demo.credits_table
"""

from __future__ import annotations

import tomllib
from itertools import groupby

from scripts.demo.sources import CREDITS, Photo, photos

HEAD = "| Debian package | Author | Licence | Pictures |\n| --- | --- | --- | --- |"
MOST_NAMES = 12


def table() -> str:
    """One row per package, author and licence; pictures with a page of their own are linked."""
    clip_art = tomllib.loads(CREDITS.read_text(encoding="utf-8"))["clip_art"]
    rows = [f"| {clip_art['package']} | {clip_art['author']} | {clip_art['licence']} | [clip art]({clip_art['url']}) |"]

    def key(photo: Photo) -> tuple[str, str, str]:
        return photo.package, photo.author, photo.licence

    for (package, author, licence), group in groupby(sorted(photos(), key=key), key):
        rows.append(f"| {package} | {author} | {licence} | {_names(list(group))} |")
    return "\n".join([HEAD, *rows])


def _names(group: list[Photo]) -> str:
    if len(group) > MOST_NAMES:
        return f"{len(group)} photographs, named in `scripts/demo/credits.toml`"
    return ", ".join(f"[{photo.name}]({photo.url})" if photo.url else photo.name for photo in group)


if __name__ == "__main__":
    print(table())
