"""The built site in a real browser."""

import functools
import os
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import pytest
from filelock import FileLock

from bertbook.chapters import read_toc

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"
PAGES = [path.removesuffix(".md") + ".html" for path in read_toc(ROOT)]
CHROMIUM = next(
    filter(
        None,
        map(
            shutil.which, ["chromium", "chromium-browser", "google-chrome"]
        ),
    ),
    None,
)
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update "
    "--disable-sync"
).split()
# No host but this one has an address.
QUIET.append("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")

needs_browser = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ,
    reason="needs Chromium: apt-get install chromium",
)


@pytest.fixture(scope="session")
def site():
    """The address of the site, built as `make` builds it, and served."""
    build = [sys.executable, "-m", "bertbook.weave"]
    (ROOT / "_build").mkdir(exist_ok=True)
    with FileLock(ROOT / "_build" / "tests.lock"):  # each worker builds it
        done = subprocess.run(
            build, cwd=ROOT, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    serve = functools.partial(Quiet, directory=HTML)
    server = ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="session")
def chromium():
    if CHROMIUM is None:
        pytest.fail("CI needs Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=QUIET
        )
        yield browser
        browser.close()


def new_window(chromium, site):
    return chromium.new_context(
        viewport={"width": 1280, "height": 900},
        base_url=site,
        accept_downloads=True,
        permissions=["clipboard-read", "clipboard-write"],
    )


def watched(page, site):
    """`page`, which notes every error and every request of another host."""
    page.faults = []

    def foreign(request):
        if not request.url.startswith((site, "data:", "blob:")):
            page.faults.append(f"foreign request: {request.url}")

    page.on("request", foreign)
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on(
        "console",
        lambda said: said.type == "error" and page.faults.append(said.text),
    )
    page.on(
        "response",
        lambda got: got.status >= 400 and page.faults.append(got.url),
    )
    return page


@pytest.fixture
def page(chromium, site):
    """A page in a window of its own, where nobody has been before."""
    window = new_window(chromium, site)
    yield watched(window.new_page(), site)
    window.close()


@pytest.fixture(scope="session")
def shared_window(chromium, site):
    window = new_window(chromium, site)
    yield window
    window.close()


@pytest.fixture
def next_page(shared_window, site):
    """A page of a window that has the scripts of the site in its cache."""
    page = watched(shared_window.new_page(), site)
    yield page
    page.close()


def open_page(page, path, theme="light"):
    page.add_init_script(
        f"localStorage.setItem('mode', '{theme}');"
        f"localStorage.setItem('theme', '{theme}');"
    )
    page.goto(f"/{path}", wait_until="networkidle")


class Parsed(HTMLParser):
    """The images, ids and links of a page."""

    def __init__(self, path):
        super().__init__()
        self.images, self.ids, self.links, self.loaded = [], set(), [], []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, pairs):
        attributes = dict(pairs)
        self.ids.add(attributes.get("id"))
        if tag == "img":
            self.images.append(attributes)
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        if tag in ("script", "img", "iframe") and "src" in attributes:
            self.loaded.append(attributes["src"])
        if tag == "link" and "stylesheet" in attributes.get("rel", ""):
            self.loaded.append(attributes["href"])


# What needs no browser


def test_nothing_is_loaded_from_elsewhere(site):
    for path in HTML.rglob("*.html"):
        for address in Parsed(path).loaded:
            foreign = re.match(r"(https?:)?//", address)
            assert not foreign, f"{path.relative_to(HTML)}: {address}"


def test_every_image_has_words(site):
    for path in (HTML / "book").glob("*.html"):
        for image in Parsed(path).images:
            assert image.get("alt") is not None, f"{path.name}: {image}"
            if "_images" in image["src"]:
                assert len(image["alt"].split()) >= 5, (
                    f"{path.name}: {image}"
                )


def test_links_within_the_site_arrive(site):
    parsed = {
        path.resolve(): Parsed(path)
        for path in HTML.rglob("*.html")
        if "_static" not in path.parts
    }
    for path, found in parsed.items():
        for link in found.links:
            target, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:|//", target) or (
                not target and not anchor
            ):
                continue
            goal = (path.parent / target).resolve() if target else path
            assert goal.exists(), f"{path.name} -> {link}"
            if anchor and goal in parsed:
                from urllib.parse import unquote

                ids = parsed[goal].ids
                assert unquote(anchor) in ids, f"{path.name} -> {link}"


def test_notebooks_are_valid_and_ran(site):
    notebooks = sorted((HTML / "notebooks").glob("*.ipynb"))
    chapters = {Path(page).stem for page in PAGES}
    assert {path.stem for path in notebooks} == chapters - {
        "api",
        "references",
    }
    for path in notebooks:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert any(cell.outputs or cell.execution_count for cell in code)
        assert "%pip install" in code[0].source
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                prose = re.sub(r"```.*?```", "", cell.source, flags=re.S)
                assert not re.search(
                    r"\{(glue|cite|eq|numref)[\w:]*\}`", prose
                )


def test_exported_cells_name_their_module(site):
    for page in PAGES:
        source = (ROOT / page.replace(".html", ".md")).read_text("utf-8")
        outside = re.sub(r"(?s)^````.*?^````$", "", source, flags=re.M)
        cells = len(re.findall(r"^:tangle: ", outside, re.M))
        text = (HTML / page).read_text("utf-8")
        assert text.count('class="cell-caption') == cells, page
        for option in (":tangle:", ":implements:", ":exercise:"):
            shown = re.sub(r"(?s)<(pre|code).*?</\1>", "", text)
            assert option not in shown, page


# What a reader does


@pytest.fixture(scope="session")
def looks():
    """The looks of texts whose colours were examined, on any page."""
    return []


@needs_browser
@pytest.mark.parametrize("path", PAGES + ["search.html", "genindex.html"])
def test_page_is_whole_and_accessible(next_page, looks, path):
    open_page(next_page, path)
    assert next_page.faults == []
    assert next_page.title()
    assert next_page.locator("main h1").count() >= 1
    if path in PAGES:
        assert grave_faults(next_page, looks) == []


PLANTED = """
<style>
  .planted-faint { color: #bbb }
  html[data-theme=dark] .planted-dark { color: #222 }
  a.planted { color: #333 !important; text-decoration: none !important }
</style>
<p class="planted-faint">too faint in light</p>
<p class="planted-dark">too dark in dark</p>
<p><a class="planted" href="#">a link that is alone</a></p>
<p>Many words stand before <a class="planted" href="#">planted link</a> and
more of them follow, so that it has to look different.</p>
<div style="position: relative">
  <div style="position: absolute; inset: 0; background: #222"></div>
  <p style="position: relative; color: #333">planted on a box</p>
</div>
<img src="data:,"><button></button>
"""


@needs_browser
def test_faults_are_found_where_all_looks_are_known(next_page, looks):
    """What is taken out of a page before axe reads it hides none."""
    open_page(next_page, PAGES[0])
    assert grave_faults(next_page, looks) == []
    open_page(next_page, PAGES[0])
    next_page.evaluate(
        "html => document.querySelector('article').innerHTML += html",
        PLANTED,
    )
    found = " ".join(grave_faults(next_page, looks))
    for part in (
        'class="planted-faint"',
        'class="planted-dark"',
        ">planted link<",
        ">planted on a box<",
        "image-alt: <img",
        "button-name: <button",
    ):
        assert part in found


# Axe takes a millisecond for each of ten thousand elements. Of the coloured
# spans of code that look alike one is enough; of formulas and of the buttons
# that copy a cell, three; of the entries of the menu, which are the same on
# every page, five; of the definitions of the API, made alike, a hundred.
THIN = """() => {
  const seen = new Set(), more = [];
  for (const span of document.querySelectorAll(
      'article :is(pre, code, .sig) span')) {
    if (span.firstElementChild || span.id) continue;
    const box = span.closest('.highlight, .sig, code').parentElement;
    const looks = [span, span.parentElement, box].map(
      each => `${each.className} ${each.getAttribute('style')}`);
    if (seen.has(`${looks}`) || !span.checkVisibility()) more.push(span);
    else seen.add(`${looks}`);
  }
  for (const span of more) span.replaceWith(...span.childNodes);
  const enough = {'mjx-container': 3, 'button.copybtn': 3, 'dl.py': 100,
                  'nav.bd-links li:not(.current)': 5};
  for (const [same, count] of Object.entries(enough))
    for (const each of [...document.querySelectorAll(same)].slice(count))
      each.tagName === 'LI' ? each.remove() : each.replaceWith('x');
}"""


# Texts have the same colours if their elements, and all around these, are of
# the same kind: of such texts one in all pages is enough. For a link it counts
# too whether it stands in other text, which stays with it. Of a single
# character axe says nothing, so that it stands for no other. What is empty
# then, and no coloured ground for others, goes too. Returns the new looks.
NEW_LOOKS = """known => {
  const seen = new Set(known), kept = new Set(), fresh = [], texts = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) texts.push(walk.currentNode);
  const length = each => each.textContent.trim().length;
  for (const text of texts) {
    if (length(text) < 2 || !text.parentElement.checkVisibility()) continue;
    const style = getComputedStyle(text.parentElement);
    let look = style.color + style.backgroundColor;
    for (let each = text.parentElement; each; each = each.parentElement) {
      const row = each.matches('tr') ? each.rowIndex % 2 : '';
      look += ['class', 'style', 'role', 'aria-current'].map(
        name => each.getAttribute(name)) + each.tagName + row;
    }
    let block = text.parentElement.closest('a');
    if (block) {
      while (getComputedStyle(block).display.startsWith('inline'))
        block = block.parentElement;
      let linked = 0;
      for (const link of block.querySelectorAll('a')) linked += length(link);
      look += length(block) > 2 * linked;
    }
    if (seen.has(look)) continue;
    seen.add(look);
    fresh.push(look);
    kept.add(block || text);
  }
  for (const text of texts) {
    if (text.parentElement.closest('style, .only-dark')) continue;
    let each = text;
    while (each && !kept.has(each)) each = each.parentElement;
    if (!each) text.remove();
  }
  const empty = [...document.body.querySelectorAll('*')].filter(each => {
    const {position, backgroundColor} = getComputedStyle(each);
    return !length(each) && !each.matches('tr, style, .only-dark')
      && (position === 'static' || backgroundColor === 'rgba(0, 0, 0, 0)');
  });
  for (const each of empty.reverse())
    if (!each.firstElementChild) each.remove();
  return fresh;
}"""


OF_COLOURS = ["color-contrast", "link-in-text-block"]
COLOURS = {"runOnly": OF_COLOURS}
ALL_BUT_COLOURS = {
    "rules": {name: {"enabled": False} for name in OF_COLOURS}
}


def grave_faults(page, looks):
    """What is wrong on a page: its colours where they are not in `looks`.

    The page is no longer whole after it.
    """
    page.evaluate(THIN)
    faults = grave_violations(page, ALL_BUT_COLOURS)
    looks += page.evaluate(NEW_LOOKS, looks)
    page.add_style_tag(content="* { transition: none !important }")
    for theme in ("light", "dark"):
        page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
        faults += grave_violations(page, COLOURS)
    return faults


def grave_violations(page, options):
    """What axe finds serious, with these options."""
    from axe_playwright_python.sync_playwright import Axe

    # Of what is well no paths are asked for.
    options = options | {"resultTypes": ["violations"]}
    found = Axe().run(page, options=options).response["violations"]
    return [
        f"{each['id']}: {node['html'][:200]} {node['failureSummary'][:300]}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


@needs_browser
def test_mathematics_is_typeset(page):
    open_page(page, "book/wordpiece.html")
    page.wait_for_selector("mjx-container svg, mjx-container mjx-math")
    assert page.locator("mjx-merror").count() == 0
    shown = page.locator("article").inner_text()
    assert "\\begin{" not in shown and "$$" not in shown


@needs_browser
def test_search_finds_a_term(page):
    open_page(page, "search.html?q=truncation")
    page.wait_for_selector("#search-results li a")
    links = page.locator("#search-results li a")
    addresses = [link.get_attribute("href") for link in links.all()]
    assert any("tokenizer" in address for address in addresses)
    page.goto("/search.html?q=xyzzyqwerty", wait_until="networkidle")
    page.wait_for_selector("#search-results p")
    assert page.locator("#search-results li").count() == 0


@needs_browser
def test_one_search_bar_and_the_right_year(page):
    open_page(page, PAGES[1])
    buttons = page.locator("button.search-button__button, .search-button")
    assert sum(button.is_visible() for button in buttons.all()) == 1
    said = page.locator("footer p.copyright").all_inner_texts()
    assert re.findall(r"20\d\d", " ".join(said)) == ["2026"]


@needs_browser
def test_theme_toggles_and_stays(page):
    page.goto(f"/{PAGES[1]}", wait_until="networkidle")
    look = "getComputedStyle(document.body).backgroundColor"
    seen = set()
    for _ in range(3):
        page.locator("button.theme-switch-button").first.click()
        mode = page.evaluate("document.documentElement.dataset.mode")
        seen.add((mode, page.evaluate(look)))
    assert {mode for mode, _ in seen} == {"auto", "light", "dark"}
    assert len({colour for _, colour in seen}) == 2
    page.goto(f"/{PAGES[2]}", wait_until="networkidle")
    assert page.evaluate("document.documentElement.dataset.mode") == mode


@needs_browser
def test_identifier_leads_to_its_definition_and_back(page):
    open_page(page, "book/tokenizer.html")
    name = "bertbook.wordpiece.BasicTokenizer"
    page.locator(f'article pre a[href$="#{name}"]').first.click()
    page.wait_for_url(f"**/book/api.html#{name}")
    definition = page.locator(f'[id="{name}"]')
    assert "BasicTokenizer" in definition.inner_text()
    uses = definition.locator("xpath=..").locator(
        'a[href*="wordpiece.html"]'
    )
    assert uses.count() >= 1


@needs_browser
def test_caption_leads_to_the_source(page):
    open_page(page, "book/wordpiece.html")
    page.locator("p.cell-caption a").first.click()
    page.wait_for_url("**/_modules/bertbook/wordpiece.html**")
    assert "class BasicTokenizer" in page.locator("pre").first.inner_text()


@needs_browser
def test_notebook_downloads(page, tmp_path):
    open_page(page, "book/tokenizer.html")
    page.locator(".dropdown-download-buttons > button").click()
    with page.expect_download() as waiting:
        page.locator(
            '.dropdown-download-buttons a[href$="tokenizer.ipynb"]'
        ).click()
    path = tmp_path / "page.ipynb"
    waiting.value.save_as(path)
    nbformat.validate(nbformat.read(path, as_version=4))


@needs_browser
def test_launch_buttons_name_the_published_notebook(page):
    open_page(page, "book/tokenizer.html")
    links = page.locator(".dropdown-launch-buttons a").all()
    addresses = " ".join(link.get_attribute("href") for link in links)
    assert "colab.research.google.com" in addresses
    assert "mybinder.org" in addresses
    assert addresses.count("tokenizer.ipynb") == 2


@needs_browser
@pytest.mark.parametrize("width", [400, 800, 1000, 1280])
@pytest.mark.parametrize("name", ["question_answering", "sentiment"])
def test_nothing_is_beside_the_screen(page, name, width):
    """No note of a margin that is not there, no line that scrolls away."""
    page.set_viewport_size({"width": width, "height": 900})
    open_page(page, f"book/{name}.html")
    reach = page.evaluate("document.documentElement.scrollWidth")
    assert reach <= width
    for note in page.locator("aside.margin").all():
        box = note.bounding_box()
        assert box["width"] > 150 and box["x"] >= 0
        assert box["x"] + box["width"] <= width
    if name == "question_answering":
        assert page.locator("aside.margin").count() > 0
    if width > 768:
        cut = page.evaluate(
            "[...document.querySelectorAll('div.cell_output pre')]"
            ".filter(e => e.scrollWidth > e.clientWidth + 1)"
            ".map(e => e.innerText.slice(0, 200))"
        )
        assert cut == []


@needs_browser
def test_code_fits_beside_both_sidebars(page):
    open_page(page, "book/tokenizer.html")
    wide = page.evaluate(
        "[...document.querySelectorAll('div.cell_input pre')]"
        ".filter(e => e.scrollWidth > e.clientWidth + 1)"
        ".map(e => e.innerText.slice(0, 200))"
    )
    assert wide == []


@needs_browser
def test_code_is_highlighted_in_both_themes(page):
    for theme in ("light", "dark"):
        open_page(page, "book/tokenizer.html", theme)
        colours = page.evaluate(
            "[...document.querySelectorAll('div.cell_input pre span')]"
            ".slice(0, 300).map(e => getComputedStyle(e).color)"
        )
        assert len(set(colours)) >= 4


@needs_browser
def test_the_map_leads_to_the_chapters(page):
    open_page(page, "book/index.html")
    boxes = page.locator("article svg a")
    names = [box.get_attribute("href") for box in boxes.all()]
    assert "corpora.html" in names and "tokenizer.html" in names
    assert all((HTML / "book" / name).exists() for name in names)
    boxes.first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/{names[0]}")
