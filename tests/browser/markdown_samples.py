"""Markdown for the tests of markdown.js: what is usual, what is hostile, and what chance makes of both.

Must never know what the page makes of it.
"""

from __future__ import annotations

import random

LINK = ' rel="noopener noreferrer nofollow" target="_blank"'


def code(text: str, language: str = "") -> str:
    """Give the HTML of a code block."""
    label = f' data-language="{language}"' if language else ""
    return (
        f'<div class="code"><div class="code-head"{label}><button type="button" class="copy-code" '
        f'aria-label="Copy code"></button></div><pre tabindex="0"><code>{text}</code></pre></div>'
    )


# name: (Markdown, the nodes as HTML, without the attributes that every link has)
DOCUMENTS = {
    "paragraphs keep their white space": ("a  b\nc\n\n\nd\n", "<p>a  b\nc</p>\n\n\n<p>d</p>\n"),
    "marks": (
        "**b** *i* ***bi*** ~~s~~ __b__ _i_ `c *d*` ``e ` f``",
        "<p><strong>b</strong> <em>i</em> <em><strong>bi</strong></em> <del>s</del> <strong>b</strong> <em>i</em> "
        "<code>c *d*</code> <code>e ` f</code></p>",
    ),
    "marks in marks": (
        "**a *b* `c`** ***d** e* ***f* g**",
        "<p><strong>a <em>b</em> <code>c</code></strong> <em><strong>d</strong> e</em> "
        "<strong><em>f</em> g</strong></p>",
    ),
    "marks beside letters": ("请**注意：**看 **“x”**y", "<p>请<strong>注意：</strong>看 <strong>“x”</strong>y</p>"),
    "no marks": (
        "2 * 3 * 4, 5*3 and 2*4, snake_case_name, ~5 ~7, **open, *and `ticks, [1] and [x]",
        "<p>2 * 3 * 4, 5*3 and 2*4, snake_case_name, ~5 ~7, **open, *and `ticks, [1] and [x]</p>",
    ),
    "escapes": (r"\*a\* \\ \[b\] \d C:\x", r"<p>*a* \ [b] \d C:\x</p>"),
    "links": (
        "[a **b**](http://x.y/z?q=1) [w](https://e.f/a_(b) 'title') ![alt](https://i.j/k.png) [m](mailto:a@b.c)",
        '<p><a href="http://x.y/z?q=1">a <strong>b</strong></a> <a href="https://e.f/a_(b)">w</a> '
        '<a href="https://i.j/k.png">alt</a> <a href="mailto:a@b.c">m</a></p>',
    ),
    "links in links": (
        "[![i](https://i.j/k)](https://a.b/c) [**https://q.r** _[n](https://o.p)_](https://s.t)",
        '<p><a href="https://a.b/c">i</a> <a href="https://s.t/"><strong>https://q.r</strong> <em>n</em></a></p>',
    ),
    "bare addresses": (
        "See https://a.b/c_d. (http://e.f/(g)) <https://h.i> xhttp://no **https://j.k**",
        '<p>See <a href="https://a.b/c_d">https://a.b/c_d</a>. (<a href="http://e.f/(g)">http://e.f/(g)</a>) '
        '<a href="https://h.i/">https://h.i</a> xhttp://no <strong><a href="https://j.k/">https://j.k</a></strong></p>',
    ),
    "an address before many marks": (
        "https://a.b~~~~~~~~~~~~~~c http://d.e..............",
        '<p><a href="https://a.b~~~~~~~~~~~~~~c/">https://a.b~~~~~~~~~~~~~~c</a> <a href="http://d.e/">http://d.e</a>'
        "..............</p>",
    ),
    "HTML is text": (
        "<b>x</b> &lt; <br>\n<!-- y -->",
        "<p>&lt;b&gt;x&lt;/b&gt; &amp;lt; &lt;br&gt;\n&lt;!-- y --&gt;</p>",
    ),
    "headings": (
        "# A *b* #\n## C#\ntext\n###### D\n#no\n# ",
        "<h3>A <em>b</em></h3>\n<h4>C#</h4>\n<p>text</p>\n<h5>D</h5>\n<p>#no</p>\n<h3></h3>",
    ),
    "rules": ("a\n---\n***\n_ _ _\n--", "<p>a</p>\n<hr>\n<hr>\n<hr>\n<p>--</p>"),
    "lists": (
        "- a\n- b\n  - c\n\n  d\n* e\n\n3. f\n4. g",
        "<ul><li><p>a</p></li>\n<li><p>b</p>\n<ul><li><p>c</p></li></ul>\n\n<p>d</p></li>\n<li><p>e</p></li></ul>\n\n"
        '<ol start="3"><li><p>f</p></li>\n<li><p>g</p></li></ol>',
    ),
    "lists as models write them": (
        "Steps:\n1. **a**\n  - b\n\t\t- c\n2. d\nmore\n1986. e",
        "<p>Steps:</p>\n<ol><li><p><strong>a</strong></p>\n<ul><li><p>b</p>\n<ul><li><p>c</p></li></ul></li></ul></li>\n"
        "<li><p>d\nmore</p></li>\n<li><p>e</p></li></ol>",
    ),
    "a year begins no list": ("In\n1986. Yes", "<p>In\n1986. Yes</p>"),
    "quotes": (
        "> a **b\n> c\nd\n\n> - e\n> > f",
        "<blockquote><p>a **b\nc\nd</p></blockquote>\n\n<blockquote><ul><li><p>e</p></li></ul>\n"
        "<blockquote><p>f</p></blockquote></blockquote>",
    ),
    "code": ("```py\na\n\n  *b*\n```\nc", code("a\n\n  *b*", "py") + "\n\n<p>c</p>"),
    "code of any fence": (
        "~~~~ c++ x\n```\n~~~\n~~~~\n- a\n  ```\n  b\n    c\n```\nd",
        code("```\n~~~", "c++") + "\n\n<ul><li><p>a</p>\n" + code("b\n  c") + "</li></ul>\n\n<p>d</p>",
    ),
    "code that never ends": ("```\n<b>\n\n", code("&lt;b&gt;\n") + "\n"),
    "tables": (
        "Here:\n| a | b |\n|:-:|--:|\n| `x\\|y` | **c** |\n| d\n| e | f | g |\nh",
        '<p>Here:</p>\n<div class="table" tabindex="0"><table><thead><tr><th scope="col" class="center">a</th>\t'
        '<th scope="col" class="right">b</th></tr></thead><tbody>\n'
        '<tr><td class="center"><code>x|y</code></td>\t<td class="right"><strong>c</strong></td></tr>\n'
        '<tr><td class="center">d</td>\t<td class="right"></td></tr>\n'
        '<tr><td class="center">e</td>\t<td class="right">f | g</td></tr></tbody></table></div>\n<p>h</p>',
    ),
    "no tables": (
        "| a | b |\n|---|\n| c\n\n|x| is |x|",
        "<p>| a | b |</p>\n<p>|---|</p>\n<p>| c</p>\n\n<p>|x| is |x|</p>",
    ),
}

UNSEEN = (
    *"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",  # what turns the direction of a text
    *"\u00ad\u180e\u200b\u200c\u200d\u2060\u2064\ufff9\U000e0041",  # nothing is seen of these at all
    *"\u034f\u115f\u3164\uffa0\u17b4\ufe0f\U000e0100",  # nor of these, which are no format characters
)
"""With one of them in it, an address reads as another one."""

# Must be shown as they stand, without any link
NO_LINKS = [
    "[a](javascript:alert(1))",
    "[a](JaVaScRiPt:alert(1))",
    "[a]( javascript:alert(1))",
    "[a](java\nscript:alert(1))",
    "[a](java\tscript:alert(1))",
    "[a](\x01javascript:alert(1))",
    "[a](java\x00script:alert(1))",
    "[a](javascript&colon;alert(1))",
    "[a](&#106;avascript:alert(1))",
    "[a](&#x6A;avascript:alert(1))",
    "[a](javascript%3Aalert(1))",
    "[a](<javascript:alert(1)>)",
    "<javascript:alert(1)>",
    "![a](javascript:alert(1))",
    "![a](data:image/svg+xml;base64,PHN2Zy8+)",
    "[a](data:text/html,<script>hit=1</script>)",
    "[a](vbscript:msgbox(1))",
    "[a](file:///etc/passwd)",
    "[a](blob:x)",
    "[a](//evil.example)",
    "[a](/relative)",
    "[a](#fragment)",
    "[a](http:javascript:alert(1))",
    "[a](https:evil.example)",
    "[a](http:///evil.example)",
    "[a](h\u200bttp://b.c)",
    "[a](http://b.c\u202egnp.exe)",
    "[a](http://[)",
    "[a][b]\n[b]: javascript:alert(1)",
    "<script>window.hit = 1</script>",
    "<img src=x onerror=hit=1>",
    "<svg/onload=hit=1>",
    "<a href=javascript:hit=1>a</a>",
    "<iframe srcdoc='<script>parent.hit=1</script>'></iframe>",
    "<style>p{display:none}</style>",
    "&lt;script&gt;hit=1&lt;/script&gt;",
]

PIECES = [
    *(
        "a",
        "b c",
        "word ",
        "foo",
        "1",
        "42",
        "é",
        "🙂",
        "\ud83d",
        "请",
        "：",
        '"t"',
        "'",
        ".",
        ",",
        "!",
        ":",
        "&lt;",
        "<b>",
    ),
    *(" ", "  ", "    ", "\t", "\n", "\n", "\n\n", "\r\n", "\u2028", "\0", "\u00a0", "\\", "\\*", "\\|", "\\\n"),
    *("*", "**", "***", "_", "__", "~~", "~", "`", "``", "```", "~~~", "```py\n", "\n```\n", "#", "## "),
    *("- ", "* ", "+ ", "1. ", "3. ", "1.", "2)", "\n- ", "\n  - ", "> ", ">", "\n> ", "-", "---", "***\n"),
    *("|", "| a ", "|---|", "\n|-", "\n| x | y |\n|---|---|\n| 1 | 2 |\n", "|:-", "\n|"),
    *(
        "[",
        "]",
        "](",
        "](http://x.y/z)",
        "![",
        ")",
        "(",
        "http://",
        "https://a.b/c",
        "HTTPS://Q.r",
        "<https://e.f>",
        "<",
    ),
    *("mailto:a@b", "<mailto:x@y>", "](javascript:", " 't'", "](http://x.y/(z) ", "javascript:alert(1)"),
    "<img src=x onerror=hit=1>",
]


def chance(seed: int, count: int = 40) -> list[str]:
    """Give `count` documents that chance makes of PIECES; with every fourth seed a few that are long."""
    maker = random.Random(seed)
    if seed % 4:
        return [
            "".join(maker.choices(_some(maker, len(PIECES)), k=maker.randint(1, 40)))
            if maker.random() < 0.4
            else "".join(maker.choices(_some(maker, 14), k=maker.randint(1, 40)))
            for _ in range(count)
        ]
    documents = []
    for _ in range(count // 10):
        pieces = _some(maker, 6)
        size = maker.choice([900, 3000, 6000])
        text = ""
        while len(text) < size:
            filler = maker.choice(
                ["plain text ", "x" * maker.randint(1, 300), " ", "lorem ipsum " * maker.randint(1, 60)]
            )
            text += maker.choice(pieces) + filler
        documents.append(text)
    return documents


def _some(maker: random.Random, most: int) -> list[str]:
    return PIECES if most == len(PIECES) else maker.sample(PIECES, maker.randint(3, most))


# What makes careless parsers slow; each is repeated
HOSTILE = {
    name: (start, piece)
    for name, start, piece in [
        ("brackets", "", "["),
        ("stars", "", "*"),
        ("open bold", "", "**a "),
        ("open italic", "", "_a "),
        ("half-open strike", "", "~~a"),
        ("ticks of all lengths", "", "` `` ``` ```` ````` "),
        ("open links", "", "[](a"),
        ("links in links", "", "[[](a)"),
        ("nested parentheses", "[a](", "("),
        ("half titles", "", '[a](b "c'),
        ("angles", "", "<https://"),
        ("addresses", "", "http://"),
        ("quotes", "", ">"),
        ("quotes, line by line", "", "> > > > > > > > > > > > > > > > > > > > > > > > > > > >\n"),
        ("lists", "", "- "),
        ("lists, line by line", "", "- - - - - - - - - - - - x\n"),
        ("pipes", "", "|"),
        ("rows", "| a |\n|--|\n", "||||||||\n"),
        ("fences", "", "```\n"),
        ("blank lines", "", "\n"),
        ("spaces", "a", " "),
        ("heading signs", "", "# "),
        ("backslashes", "", "\\"),
        ("numbers", "", "1. "),
        ("bold never closed", "**", "word "),
        ("tick never closed", "`", "word "),
        ("one item", "- ", "word "),
    ]
}
