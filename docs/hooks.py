"""Build hooks: the table of architectures, a page of API reference for each public module, the colours of code.

The source is read, not run. A public name is described once, on the page of the module that defines it; if that module
is private, on the page of the first public module that exports it. Where a package exports a name that is described
elsewhere, its page links there.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pygments.formatters import HtmlFormatter

PACKAGE = "stateform"
FAMILIES = "<!-- families -->"
"""Where a page wants the table of pretrained models."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are generated, their entries in the navigation, and the style sheet for code."""
    source = Path(config.config_file_path).parent / "src"
    package = griffe.load(PACKAGE, search_paths=[source], allow_inspection=False, resolve_aliases=True)
    described: set[str] = set()
    reference = []
    for module in public_modules(package):
        uri = f"api/{module.path}.md"
        files.append(File.generated(config, uri, content=page(module, described)))
        reference.append({module.path: uri})
    table = architectures((source.parent / "README.md").read_text(encoding="utf-8"))
    files.append(File.generated(config, "architectures.md", content=table))
    config.nav = [*(config.nav or []), {"Architectures": "architectures.md"}, {"API": reference}]
    files.append(File.generated(config, "highlight.css", content=highlight_css()))
    return files


def architectures(readme: str) -> str:
    """The page of architectures: the README's table, which is made by `stateform zoo` and tested to be up to date."""
    table = readme.partition("<!-- zoo -->")[2].partition("<!-- /zoo -->")[0]
    return f"# Architectures\n\n`stateform show NAME` has the equations and options of each.\n{table}"


def on_page_markdown(markdown: str, config: MkDocsConfig, **_: object) -> str:
    """Put the table of pretrained models where a page wants it."""
    if FAMILIES not in markdown:
        return markdown
    folder = Path(config.config_file_path).parent / "src" / PACKAGE / "hub" / "families"
    return markdown.replace(FAMILIES, families(folder))


def families(folder: Path) -> str:
    """Make the table of the types in `FAMILIES`, as the files of the foreign families say by `adapts`."""
    found: dict[str, list[str]] = {}
    for file in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "adapts":
                for given in node.keywords:
                    found.setdefault(str(given.arg), []).append(ast.literal_eval(given.value))
    rows = [f"| `{kind}` | {', '.join(f'`{name}`' for name in names)} |" for kind, names in sorted(found.items())]
    return "\n".join(["| type | its mixers |", "| --- | --- |", *rows])


def public_modules(module: griffe.Module) -> Iterator[griffe.Module]:
    """The module and those below it, without the private ones."""
    yield module
    for name, child in sorted(module.modules.items()):
        if not name.startswith("_") and not child.is_alias:
            yield from public_modules(child)


def page(module: griffe.Module, described: set[str]) -> str:
    """The Markdown of one page; the paths that it describes are added to `described`."""
    here, elsewhere = [], []
    for name in public_names(module):
        thing = target(module.members[name])
        if thing is None:
            continue
        defined_in_private = any(part.startswith("_") for part in thing.module.path.split("."))
        if thing.path not in described and (thing.module.path == module.path or defined_in_private):
            described.add(thing.path)
            here.append(name)
        else:
            summary = thing.docstring.value.partition("\n\n")[0].replace("\n", " ") if thing.docstring else ""
            elsewhere.append(f"- [`{name}`][{thing.path}] {summary}")
    members = "".join(f"\n        - {name}" for name in here) or " false"
    links = ["", "", "Described on their own pages:", "", *elsewhere] if elsewhere else []
    return f"::: {module.path}\n    options:\n      members:{members}\n" + "\n".join(links) + "\n"


def public_names(module: griffe.Module) -> list[str]:
    """The names in `__all__`, or without one the public names that the module defines itself."""
    if module.exports is not None:
        return [str(name) for name in module.exports if str(name) in module.members]
    return [name for name, thing in module.members.items() if not name.startswith("_") and not thing.is_alias]


def target(thing: griffe.Object | griffe.Alias) -> griffe.Object | None:
    """The function, class or described value behind a name; None for modules and for what other packages define."""
    try:
        found = thing.final_target if isinstance(thing, griffe.Alias) else thing
    except griffe.AliasResolutionError:
        return None
    if found.is_module:  # a function of a module of its own name is what the package means by that name
        inside = found.members.get(found.name, found)
        found = found if inside.is_alias else inside
    return None if found.is_module or (found.is_attribute and not found.has_docstring) else found


def highlight_css() -> str:
    """The colours of code, for both colour modes of the theme."""
    light = HtmlFormatter(style="default").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs("[data-bs-theme=dark] .highlight")
    return f"{light}\n{dark}\n"
