"""The chat page's files keep their budget and their rules; and each rule, broken once, is found."""

from __future__ import annotations

import hashlib
import re

import pytest

from app.routes.pages import STATIC
from tests.project.page_rules import (
    BOOT,
    MOST_BYTES,
    MOST_LINES,
    links_elsewhere,
    module_faults,
    packed_bytes,
    page_faults,
    read,
    style_faults,
    tree_faults,
)

NETWORK = {"stream.js"}
NOISE = hashlib.shake_256(b"noise").hexdigest(MOST_BYTES)
"""Two characters a byte, which no packer makes smaller than that byte."""
DOM = {
    "announce.js",
    "app.js",
    "composer.js",
    "follow.js",
    "frame.js",
    "list.js",
    "markdown.js",
    "nodes.js",
    "server.js",
    "view.js",
}
"""The modules that may touch the one or the other; all the others touch neither."""

FILES = {path.name: path.read_text(encoding="utf-8") for path in sorted((STATIC / "assets").iterdir())}
MODULES = {name: text for name, text in FILES.items() if name.endswith(".js")}
OTHERS = {name: text for name, text in FILES.items() if name not in MODULES}
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted(STATIC.glob("*.html"))}


@pytest.mark.parametrize("name", MODULES)
def test_module_keeps_the_rules(name: str) -> None:
    assert list(module_faults(name, MODULES[name], network=name in NETWORK, dom=name in DOM)) == []


def test_script_of_every_version_keeps_the_rules_and_is_the_pages_first() -> None:
    text = (STATIC / "boot.js").read_text(encoding="utf-8")
    assert list(module_faults("boot.js", text, dom=True, worker=True)) == []
    assert list(module_faults("boot.js", text, dom=True)) == [
        "boot.js: touches the network (serviceWorker) and the DOM (HTMLLinkElement)",
        "boot.js: touches the network (serviceWorker)",
    ]
    assert "import" not in text
    assert (
        re.findall(r"<script [^>]*>|<link [^>]*{{assets}}/(?!icon)", PAGES["index.html"])[0] == f'<script src="{BOOT}">'
    )


def test_worker_keeps_the_rules() -> None:
    text = (STATIC / "sw.js").read_text(encoding="utf-8")
    assert list(module_faults("sw.js", text, network=True)) == []
    assert "import" not in text


def test_scripts_at_fixed_addresses_are_in_the_budget_too() -> None:
    scripts = [path.read_text(encoding="utf-8") for path in STATIC.glob("*.js")]
    assert len(scripts) == 2
    assert packed_bytes([*scripts, *MODULES.values()]) <= MOST_BYTES


def test_files_keep_their_budget_and_refer_to_one_another_and_to_nothing_else() -> None:
    assert PAGES.keys() == {"index.html", "docs.html"}
    assert list(tree_faults(MODULES, OTHERS, PAGES)) == []


def test_page_asks_for_all_modules_at_once_instead_of_one_after_the_other() -> None:
    preloaded = re.findall(r'<link rel="modulepreload" href="{{assets}}/([^"]+)">', PAGES["index.html"])
    later = {name for text in MODULES.values() for name in re.findall(r'import\("\./([\w-]+\.js)"\)', text)}
    at_once = {name for text in MODULES.values() for name in re.findall(r'from "\./([\w-]+\.js)"', text)}
    assert preloaded == sorted(at_once)
    assert {*MODULES} == {"app.js"} | at_once | later
    assert not at_once & later  # what is loaded when the page is idle keeps nobody waiting


@pytest.mark.parametrize("name", [name for name in OTHERS if name.endswith((".css", ".svg"))])
def test_styles_and_pictures_load_nothing_from_elsewhere(name: str) -> None:
    assert list(style_faults(name, OTHERS[name], {*FILES})) == []
    if name.endswith(".svg"):
        assert "<script" not in OTHERS[name] and "href" not in OTHERS[name]


def test_pages_have_nothing_inline_and_load_nothing_from_elsewhere() -> None:
    assert list(page_faults("index.html", PAGES["index.html"])) == []
    assert list(links_elsewhere("docs.html", PAGES["docs.html"])) == []


# The rules


def faults_of(code: str) -> list[str]:
    return [fault.removeprefix("a.js: ") for fault in module_faults("a.js", f"// A.\n{code}", network=True, dom=True)]


HARMLESS = [
    "// fetch(document.body.innerHTML = 1) https://example.org",
    "/* fetch, document,\n eval */",
    'say("fetch the document in this window: //");',
    "const half = (a + b) / 2 / document.title.length; // fetch",
    'const pattern = /["`fetch\\/\\/x]/g; document.title = "/";',
    'if (/[/"]/.test(text) && x === /\'/) { document.title = "a"; }',
    "say(`the document ${count(`fetch ${{a: {}}.a} window`)} eval`);",
    'const scheme = "https://"; const other = "//";',
    'document.createElementNS("http://www.w3.org/2000/svg", "svg");',
    "const prefetch = 1, evaluate = 2, fetched = {}, functions = [];",
    'element.setAttribute("aria-label", "style"); element.setAttribute("data-on", "");',
    "setTimeout(() => 1, 5); element.style.height = 0;",
    "const twice = `a` / 2; const more = [1] / 2; // '",
    "const slash = { a: `}` }; const then = `${'}'}`;",
    '"a \\" fetch";',
]


@pytest.mark.parametrize("code", HARMLESS)
def test_what_is_only_said_or_commented_breaks_no_rule(code: str) -> None:
    assert faults_of(code) == []


FAULTY = {
    "fetch('/'); document.title = 1;": "touches the network (fetch) and the DOM (document)",
    "const a = `${fetch('/')} ${window.b}`;": "touches the network (fetch) and the DOM (window)",
    "const a = `${`${fetch}`}`; requestAnimationFrame(a);": "touches the network (fetch) and the DOM (requestAnim",
    "globalThis['fetch'](1); a.textContent = 2;": "touches the network (fetch) and the DOM (textContent)",
    "x / 2; new WebSocket(y); b instanceof HTMLLinkElement / 1;": "touches the network (WebSocket) and the DOM",
    "const a = `one\n  // two`;": "a line of a template that would be taken for a comment",
    "const a = `one ${b}\n/** two */`;": "a line of a template that would be taken for a comment",
    "a.innerHTML = b;": "innerHTML",
    "a['outerHTML'] = b;": "outerHTML",
    "a[`innerHTML`] = b;": "innerHTML",
    "a.insertAdjacentHTML('x', b);": "insertAdjacentHTML",
    "document . writeln(b);": "document.write",
    "eval(b);": "eval",
    "new Function(b);": "Function",
    "a.setAttribute('style', b);": "a style or a handler as an attribute",
    "a.setAttribute(\n  `onclick`, b);": "a style or a handler as an attribute",
    'a.setAttributeNS(null, "ONLOAD", b);': "a style or a handler as an attribute",
    "setTimeout('b()', 1);": "a timer that runs a text",
    "import(`./${b}.js`);": "an import of an address that is made",
    "import(b);": "an import of an address that is made",
    "const a = 'https://example.org/x';": "https://example.org/x, an address elsewhere",
    "const a = `//cdn.example/${b}`;": "//cdn.example/*, an address elsewhere",
    "const a = 'wss://[::1]/';": "wss://[::1]/, an address elsewhere",
    "const a = 'b;": "cannot be read, line 2: a string without an end",
    "const a = `b;": "cannot be read, line 2: a template without an end",
    "const a = `b ${c;": "cannot be read, a template without an end",
    "const a = (/b;": "cannot be read, line 2: neither a division nor an expression",
}


@pytest.mark.parametrize("code", FAULTY)
def test_what_a_module_must_not_do_is_found(code: str) -> None:
    found = faults_of(code)

    assert len(found) == 1
    assert found[0].startswith(FAULTY[code])


@pytest.mark.parametrize("word", ["fetch", "XMLHttpRequest", "EventSource", "sendBeacon", "SharedWorker"])
def test_network_is_for_its_modules_only(word: str) -> None:
    assert list(module_faults("a.js", f"// A.\n{word};", dom=True)) == [f"a.js: touches the network ({word})"]
    assert list(module_faults("a.js", f"// A.\n{word};", network=True)) == []


@pytest.mark.parametrize("word", ["document", "window", "HTMLElement", "SVGElement", "querySelectorAll", "dataset"])
def test_dom_is_for_its_modules_only(word: str) -> None:
    assert list(module_faults("a.js", f"// A.\n{word};", network=True)) == [f"a.js: touches the DOM ({word})"]
    assert list(module_faults("a.js", f"// A.\n{word};", dom=True)) == []


def test_module_without_a_comment_and_module_that_is_too_long_are_found() -> None:
    assert list(module_faults("a.js", "const a = 1;\n")) == ["a.js: does not begin with a comment"]
    assert list(module_faults("a.js", "// A.\n" * MOST_LINES)) == []
    assert list(module_faults("a.js", "// A.\n" * MOST_LINES + "a;")) == [f"a.js: {MOST_LINES + 1} lines"]


def test_imports_of_every_form_are_read() -> None:
    source = read(
        """
        import a from "./a.js"; import { b,
          c as d } from './b.js'
        import * as e from "./e.js"; import "./f.js"; export { g } from "./g.js"; export * from "./h.js";
        const i = await import("./i.js"); // import "./no.js"
        export const from = Array.from("./no.js"); const text = 'import "./no.js"', there = import.meta.url;
        """
    )

    assert source.imports == [f"./{name}.js" for name in ("a", "b", "e", "f", "g", "h", "i")]


WHOLE = {"app.js": '// A.\nimport "./b.js";', "b.js": "// B.\nnew URL(`icon-${a}.svg`, c);"}
FILES_BESIDE = {"page.css": "/* url(x.svg) */ a { b: url(more.svg) }", "more.svg": "", "icon-done.svg": ""}
PAGE = {"index.html": '<link href="{{assets}}/page.css"><script src="{{assets}}/app.js"></script>'}


def test_tree_whose_files_all_refer_to_one_another_is_right() -> None:
    assert list(tree_faults(WHOLE, FILES_BESIDE, PAGE)) == []


@pytest.mark.parametrize(
    ("modules", "others", "page", "found"),
    [
        ({"b.js": f"// B.\nf('{NOISE}');\n`icon-${{a}}.svg`"}, {}, {}, ["all modules: 7"]),
        ({"c.js": "// C."}, {}, {}, ["c.js: nothing refers to it"]),
        ({}, {"x.svg": ""}, {}, ["x.svg: nothing refers to it"]),
        ({}, {"page.css": ""}, {}, ["more.svg: nothing refers to it"]),
        ({}, {}, {"index.html": ""}, [f"{name}: nothing" for name in sorted([*WHOLE, *FILES_BESIDE])]),
        ({}, {}, {"docs.html": "{{assets}}/docs.css"}, ["docs.html: refers to 'docs.css', which is not there"]),
        (
            {"c.js": '// C.\nimport "./b.js";', "d.js": '// D.\nimport "./c.js";'},
            {},
            {},
            ["c.js: nothing", "d.js: not"],
        ),
        ({"b.js": '// B.\nimport "./c.js"; `icon-${a}.svg`'}, {}, {}, ["b.js: imports './c.js', which is not there"]),
        ({"b.js": '// B.\nimport "c.js"; `icon-${a}.svg`'}, {}, {}, ["b.js: imports 'c.js', which is not relative"]),
        ({"b.js": '// B.\nimport "../c.js"; `icon-${a}.svg`'}, {}, {}, ["b.js: imports '../c.js', which is not"]),
        ({"b.js": '// B.\nimport "/c.js"; `icon-${a}.svg`'}, {}, {}, ["b.js: imports '/c.js', which is not"]),
        ({"b.js": '// B.\nimport "./app.js"; `icon-${a}.svg`'}, {}, {}, ["imports go round: app.js → b.js → app.js"]),
        ({"b.js": '// B.\nimport "./b.js"; `icon-${a}.svg`'}, {}, {}, ["imports go round: b.js → b.js"]),
    ],
)
def test_files_that_do_not_go_together_are_found(
    modules: dict[str, str], others: dict[str, str], page: dict[str, str], found: list[str]
) -> None:
    faults = list(tree_faults(WHOLE | modules, FILES_BESIDE | others, PAGE | page))

    assert len(faults) == len(found)
    assert all(fault.startswith(start) for fault, start in zip(faults, found, strict=True)), faults


@pytest.mark.parametrize(
    ("style", "found"),
    [
        ('a { b: url("more.svg") url(data:image/png;base64,x//y) }', []),
        ("/* @import url(https://example.org) */", []),
        ('@import "more.css";', ["p.css: @import"]),
        ("a { b: url(none.svg) }", ["p.css: url(none.svg), which is not there"]),
        ("a { b: url( '../more.svg' ) }", ["p.css: url(../more.svg), which is not there"]),
        ("a { b: image-set('https://cdn.example/x' 1x) }", ["p.css: https://cdn.example/x, an address elsewhere"]),
    ],
)
def test_style_that_loads_something_else_is_found(style: str, found: list[str]) -> None:
    assert list(style_faults("p.css", style, {"more.svg"})) == found


SCRIPT = '<script type="module" src="{{assets}}/app.js"></script>'


@pytest.mark.parametrize(
    ("html", "found"),
    [
        (SCRIPT + '<link rel="icon" href="data:,"><a href="/docs">API</a><p>On: style</p>', []),
        ("<script>a()</script>", ["a script that is no module of its own file", "an inline script"]),
        (SCRIPT.replace("></", ">a()</"), ["an inline script"]),
        (SCRIPT.replace("{{assets}}", ""), ["a script that is no module of its own file"]),
        (SCRIPT.replace('type="module" ', ""), ["a script that is no module of its own file"]),
        ("<style>a {}</style>", ["<style>"]),
        ('<base href="/x">', ["<base>"]),
        ('<iframe src="/docs"></iframe>', ["<iframe>"]),
        ('<p style="color: red">', ["style as an attribute"]),
        ("<p ONCLICK=a()>", ["onclick as an attribute"]),
        ('<a href=" JavaScript:a()">', ["code as href"]),
        ('<link rel="stylesheet" href="/page.css">', ["<link> of '/page.css'"]),
        ("<p>{{other}}</p>", ["a placeholder that is not filled in"]),
        ('<a href="https://example.org">', ["https://example.org, an address elsewhere"]),
    ],
)
def test_page_with_something_inline_or_from_elsewhere_is_found(html: str, found: list[str]) -> None:
    assert list(page_faults("p.html", html)) == [f"p.html: {fault}" for fault in found]


def test_docs_may_link_elsewhere_and_load_nothing_from_there() -> None:
    links = '<p>https://example.org <a class="x" href="https://example.org">there</a></p>'
    assert list(links_elsewhere("d.html", links)) == []
    loads = f'{links}<img src="//cdn.example/x">'
    assert list(links_elsewhere("d.html", loads)) == ["d.html: //cdn.example/x, an address elsewhere"]
