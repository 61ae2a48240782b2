"""Writes the man pages and the shells' completion, from the commands' own help and from docs/.

python tools/pages.py [FOLDER]: into FOLDER, by default packaging/.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from evertap import __version__
from evertap.cli.main import _evertap as evertap

_REPOSITORY = Path(__file__).parents[1]
_SHELLS = {"bash": "bash/evertap", "zsh": "zsh/_evertap", "fish": "fish/evertap.fish"}


def main(folder: Path) -> None:
    """Write all of them."""
    texts = {f"man/{name}": text for name, text in _man_pages().items()}
    texts |= {f"completion/{path}": _completion(shell) for shell, path in _SHELLS.items()}
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _completion(shell: str) -> str:
    kind = get_completion_class(shell)
    assert kind
    return kind(evertap, {}, "evertap", "_EVERTAP_COMPLETE").source().strip() + "\n"


def _man_pages() -> dict[str, str]:
    documents = _REPOSITORY / "docs"
    return {
        "evertap.1": _joined(_commands()),
        "evertap.nic.5": _document(
            "EVERTAP.NIC", "5", "definition of a virtual machine's NIC", documents / "definitions.md"
        ),
        "evertap.8": _document(
            "EVERTAP",
            "8",
            "daemon that keeps VMs' NICs connected",
            documents / "man/evertap.8.md",
            ["SYNOPSIS", *_synopsis(_verb("daemon"))],
        ),
    }


# --- roff -----------------------------------------------------------------------------------------


def _escape(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    text = "".join(char if char.isascii() else f"\\[u{ord(char):04X}]" for char in text)
    return re.sub(r"^\.", r"\\&.", text)


def _inline(text: str) -> str:
    """Markdown within a line; code is bold."""
    text = re.sub(r"\[([^]]+)\]\(([^)]+)\)", r"\1", text)
    parts = re.split(r"`([^`]+)`|\*\*([^*]+)\*\*", text)
    out = ""
    for plain, code, strong in zip(parts[::3], [*parts[1::3], None], [*parts[2::3], None], strict=True):
        out += _escape(plain)
        if bold := code or strong:
            out += f"\\fB{_escape(bold)}\\fR"
    return re.sub(r"^\.", r"\\&.", out)


def _head(title: str, section: str, purpose: str) -> Iterator[str]:
    yield ".\\\" Made by tools/pages.py. Change what it is made of: the commands' help, and docs/."
    yield f'.TH {title} {section} "" "evertap {__version__}" "evertap"'
    yield ".SH NAME"
    yield f"{title.lower()} \\- {_escape(purpose)}"


def _joined(lines: Iterable[str]) -> str:
    text = "\n".join(lines) + "\n"
    return re.sub(r"^(\.S[HS] .*)\n\.PP$", r"\1", text, flags=re.MULTILINE)  # a heading starts one itself


def _item(term: str, text: str) -> Iterator[str]:
    yield ".TP"
    yield term
    yield text or "\\&"


# --- from Markdown --------------------------------------------------------------------------------


def _document(title: str, section: str, purpose: str, source: Path, before: Iterable[str] = ()) -> str:
    lines = list(_head(title, section, purpose))
    name, *rest = before or [""]
    if name:
        lines += [f".SH {name}", *rest]
    lines.append(".SH DESCRIPTION")
    for block in re.split(r"\n\s*\n", source.read_text()):
        lines += _block(block.strip("\n"))
    lines += [".SH SEE ALSO", "evertap(1), evertap.nic(5), evertap(8)"]
    return _joined(lines)


def _block(block: str) -> Iterator[str]:
    first = block.split("\n")[0]
    if first.startswith("# "):
        rest = block.partition("\n")[2]
        if rest:
            yield from _block(rest)
    elif first.startswith("## "):
        yield f".SH {_escape(first[3:].upper())}"
        rest = block.partition("\n")[2]
        if rest:
            yield from _block(rest)
    elif first.startswith("|"):
        yield from _table(block.split("\n")[2:])
    elif first.startswith("    "):
        yield from (".PP", ".nf", ".RS 4")
        yield from (_escape(line[4:]) for line in block.split("\n"))
        yield from (".RE", ".fi")
    else:
        yield ".PP"
        yield _inline(" ".join(block.split("\n")))


def _table(rows: list[str]) -> Iterator[str]:
    """First column the term, last the text; a column between them is the default."""
    for row in rows:
        term, *between, text = (cell.strip() for cell in row.strip("|").split(" | "))
        default = f" (default {_inline(between[0])})" if between else ""
        default = default.replace("(default required)", "(required)")
        yield from _item(_inline(term) + default, _inline(text))


# --- from the commands ----------------------------------------------------------------------------


def _verb(name: str) -> click.Command:
    command = evertap.get_command(click.Context(evertap), name)
    assert command
    return command


def _synopsis(command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=f"evertap {command.name}")
    yield ".PP"
    yield f"\\fBevertap {command.name}\\fR {_escape(' '.join(command.collect_usage_pieces(context)))}"


def _options(command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name="evertap")
    for parameter in command.params:
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context)):
            yield from _item(f"\\fB{_escape(record[0])}\\fR", _escape(record[1]))


def _commands() -> Iterator[str]:
    yield from _head("EVERTAP", "1", "keep virtual machines' NICs connected to host interfaces")
    yield from (".SH SYNOPSIS", "\\fBevertap\\fR [\\fIOPTIONS\\fR] \\fIVERB\\fR [\\fIARGUMENTS\\fR]")
    yield from (".SH DESCRIPTION", _escape(evertap.help or ""))
    yield "The verbs ask the daemon, evertap(8); definitions of NICs are told of in evertap.nic(5)."
    yield ".SH OPTIONS"
    yield from _options(evertap)
    yield ".SH VERBS"
    for name in evertap.list_commands(click.Context(evertap)):
        command = _verb(name)
        yield f".SS {_escape(name)}"
        yield from _synopsis(command)
        for paragraph in (command.help or "").split("\n\n"):
            yield from (".PP", _escape(" ".join(paragraph.split())))
        yield from _options(command)
    yield ".SH EXIT STATUS"
    for row in (
        (_REPOSITORY / "docs/cli.md").read_text().split("| --- | --- |\n")[1].split("\n\n")[0].split("\n")
    ):
        code, meaning = (cell.strip() for cell in row.strip("|").split("|"))
        yield from _item(code, _inline(meaning))
    yield from (".SH SEE ALSO", "evertap(8), evertap.nic(5)")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else _REPOSITORY / "packaging")
