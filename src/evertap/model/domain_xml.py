"""A domain's XML as a tree that knows where in the text each element stands, and changes of those places.

What is not changed stays as it is to the byte: prefixes, comments, elements that nobody here knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final
from xml.parsers import expat

from evertap.model.errors import DefinitionError

URI: Final = "urn:evertap:1"
"""evertap's namespace in a domain's <metadata>."""

_DEPTH_MAX: Final = 256  # libxml2's own limit (parserInternals.h): libvirt never gives more
_TAG: Final = re.compile(rb"<([^\s/>]+)((?:\s+[^\s=]+\s*=\s*(?:\"[^\"]*\"|'[^']*'))*)\s*(/?)>")
_ATTRIBUTE: Final = re.compile(rb"\s+([^\s=]+)\s*=\s*(?:\"[^\"]*\"|'[^']*')")
_SPACE: Final = b" \t\r\n"


class Element:
    """An element; offsets are in the document's UTF-8 bytes."""

    __slots__ = ("attributes", "children", "closing", "empty", "end", "opened", "start", "tag", "text")

    def __init__(self, tag: str, attributes: dict[str, str], start: int, opened: int, empty: bool) -> None:
        self.tag = tag  # LOCAL, or {URI}LOCAL in a namespace
        self.attributes = attributes
        self.children: list[Element] = []
        self.text = ""  # all character data directly in it
        self.empty = empty  # written as <tag/>
        self.start = start
        self.opened = opened  # where its start tag ends
        self.closing = opened  # where its end tag begins
        self.end = opened

    def all(self, tag: str) -> list[Element]:
        """Its children of that name."""
        return [child for child in self.children if child.tag == tag]

    def first(self, tag: str) -> Element | None:
        """Its first child of that name."""
        return next((child for child in self.children if child.tag == tag), None)

    def get(self, tag: str, attribute: str) -> str:
        """An attribute of its first child of that name; empty if there is none."""
        child = self.first(tag)
        return child.attributes.get(attribute, "") if child else ""


class Document:
    """A parsed text; `root` is its outermost element. What is no XML, or has a DTD, is a DefinitionError."""

    def __init__(self, text: str, file: str) -> None:
        self.data = text.encode("utf-8", "surrogatepass")
        self.root = _parse(self.data, file)

    def source(self, element: Element) -> str:
        """An element as it is written."""
        return self.data[element.start : element.end].decode()


def _parse(data: bytes, file: str) -> Element:
    parser = expat.ParserCreate("utf-8", "}")
    parser.buffer_text = True
    above: list[Element] = []
    found: list[Element] = []

    def refuse_dtd(*_: object) -> None:
        raise DefinitionError(
            file, "", "has a document type declaration (DTD), which no domain has. Remove it"
        )

    def start(name: str, attributes: dict[str, str]) -> None:
        if len(above) >= _DEPTH_MAX:
            raise DefinitionError(file, "", f"is nested more than {_DEPTH_MAX} deep. Simplify it")
        place = parser.CurrentByteIndex
        tag = _TAG.match(data, place)
        assert tag is not None, "expat has accepted it"
        own = {_bracketed(key): value for key, value in attributes.items()}
        element = Element(_bracketed(name), own, place, tag.end(), bool(tag.group(3)))
        (above[-1].children if above else found).append(element)
        above.append(element)

    def end(_: str) -> None:
        element = above.pop()
        if not element.empty:
            element.closing = parser.CurrentByteIndex
            element.end = data.index(b">", element.closing) + 1

    def characters(text: str) -> None:
        above[-1].text += text

    parser.StartDoctypeDeclHandler = refuse_dtd
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = characters
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise DefinitionError(file, "", f"is not XML: {error}. Correct it there") from None
    return found[0]


def _bracketed(name: str) -> str:
    return "{" + name if "}" in name else name


class Changes:
    """Changes of a document, made together."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._edits: list[tuple[int, int, bytes]] = []

    def replace(self, element: Element, text: str) -> None:
        """Put a text in the place of an element."""
        self._edit(element.start, element.end, text)

    def remove(self, element: Element) -> None:
        """Take out an element and the white space before it."""
        self._edit(self._behind_text(element.start), element.end, "")

    def append(self, element: Element, text: str) -> None:
        """Add a line to the end of an element that is not written as <tag/>."""
        place = self._behind_text(element.closing)
        self._edit(place, place, "\n" + text)

    def after(self, element: Element, text: str) -> None:
        """Add a line after an element."""
        self._edit(element.end, element.end, "\n" + text)

    def set_attributes(self, element: Element, values: Mapping[str, str | None]) -> None:
        """Change attributes that it has and that are in no namespace; None: take out."""
        tag = _TAG.match(self._document.data, element.start)
        assert tag is not None
        for found in _ATTRIBUTE.finditer(self._document.data, *tag.span(2)):
            name = found.group(1).decode()
            if name in values:
                value = values[name]
                self._edit(*found.span(), "" if value is None else f" {attribute(name, value)}")

    def result(self) -> str:
        """The document with all changes."""
        parts: list[bytes] = []
        done = 0
        for start, end, text in sorted(self._edits, key=lambda edit: edit[:2]):
            parts += [self._document.data[done:start], text]
            done = end
        return b"".join([*parts, self._document.data[done:]]).decode()

    def _edit(self, start: int, end: int, text: str) -> None:
        self._edits.append((start, end, text.encode()))

    def _behind_text(self, place: int) -> int:
        while place and self._document.data[place - 1] in _SPACE:
            place -= 1
        return place


_ESCAPES: Final = str.maketrans(
    {"&": "&amp;", "<": "&lt;", "'": "&apos;", '"': "&quot;", "\n": "&#10;", "\t": "&#9;", "\r": "&#13;"}
)


def attribute(name: str, value: str) -> str:
    """An attribute as libvirt writes its own."""
    return f"{name}='{value.translate(_ESCAPES)}'"


def attributes(values: Mapping[str, str]) -> str:
    """Attributes as they stand in a <metadata>."""
    return " ".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in values.items())


def domain(text: str, file: str) -> Document:
    """Parse a domain's description (DefinitionError)."""
    document = Document(text, file)
    if document.root.tag != "domain":
        raise DefinitionError(
            file, "", f"found <{document.root.tag}>; allowed: <domain>, as virsh dumpxml gives it"
        )
    return document


def interfaces(root: Element) -> Iterator[Element]:
    """The domain's network interfaces, in their order."""
    for devices in root.all("devices"):
        yield from devices.all("interface")


def mac_of(interface: Element) -> str:
    """An interface's MAC address in lower case; empty if it has none."""
    return interface.get("mac", "address").lower()
