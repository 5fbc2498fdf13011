"""HTML and SVG built so that text cannot become markup: all but `Markup` is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from html import escape
from importlib import resources
from typing import TypeAlias

_VOID = frozenset({"input", "meta"})  # elements of HTML without an end, of those in use here


class Markup(str):
    """HTML already: it goes into the page as it is."""


Content: TypeAlias = "str | int | float | Iterable[Content] | None"


def join(*content: Content) -> Markup:
    """Escapes everything that is not `Markup`; None is nothing, lists are joined.

    >>> join("a < b ", [tag("b", "&"), None], 3)
    'a &lt; b <b>&amp;</b>3'
    """
    parts: list[str] = []
    for part in content:
        if isinstance(part, Markup):
            parts.append(part)
        elif isinstance(part, str | int | float):
            # a name of a file may hold bytes that are no text (surrogates), which UTF-8 cannot write
            parts.append(escape(str(part).encode("utf-8", "replace").decode("utf-8")))
        elif part is not None:
            parts.append(join(*part))
    return Markup("".join(parts))


def tag(element: str, *content: Content, **attributes: Content) -> Markup:
    """One element; ``class_`` is class, ``aria_label`` aria-label; an attribute that is None is left out.

    >>> tag("p", "1 < 2", class_="note", title='"quoted"')
    '<p class="note" title="&quot;quoted&quot;">1 &lt; 2</p>'
    """
    pairs = [
        f' {name.rstrip("_").replace("_", "-")}="{join(value)}"'
        for name, value in attributes.items()
        if value is not None
    ]
    end = "" if element in _VOID else f"{join(*content)}</{element}>"
    return Markup(f"<{element}{''.join(pairs)}>{end}")


def table(
    head: Iterable[Content], rows: Iterable[Iterable[Content]], caption: Content = None, numbers: int = 1
) -> Markup:
    """A table; the columns from ``numbers`` on are aligned as numbers, the first is the row's heading."""
    headings = [tag("th", cell, scope="col", class_="number" if k >= numbers else None) for k, cell in enumerate(head)]
    body = [
        tag(
            "tr",
            [
                tag("th", cell, scope="row") if k == 0 else tag("td", cell, class_="number" if k >= numbers else None)
                for k, cell in enumerate(row)
            ],
        )
        for row in rows
    ]
    inner = [tag("caption", caption) if caption else None, tag("thead", tag("tr", headings)), tag("tbody", body)]
    return tag("div", tag("table", inner), class_="wide")


def definitions(pairs: Iterable[tuple[str, Content]]) -> Markup:
    return tag("dl", [[tag("dt", name), tag("dd", value)] for name, value in pairs])


def document(title: str, *body: Content, script: bool = False) -> str:
    """The whole page, with its style and, if asked for, its script inside."""
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        # the browser itself refuses whatever this page might still try to fetch
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", title),
        tag("style", Markup(_asset("page.css"))),
    ]
    end = tag("script", Markup(_asset("page.js"))) if script else None
    return "<!doctype html>\n" + tag("html", tag("head", head), "\n", tag("body", *body, end), lang="en-GB") + "\n"


_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@cache
def _asset(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
