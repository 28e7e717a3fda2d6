"""The pages and the report in a real browser: seen (build/screenshots), used by keyboard, without a script, by a screen reader."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from engine import _tiny as tiny
from serve import _pages
from serve._html import NASTY

from anabranch.report import html

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHOTS = Path(os.environ.get("ANABRANCH_SCREENSHOTS", Path(__file__).parents[2] / "build" / "screenshots"))
PLACES = {
    "try": "/",
    "tasks": "/tasks",
    "task": "/tasks/classify",
    "map": "/map",
    "atlas": "/atlas?q=papers+by+mail&family=world",
    "row": "/atlas/daily-papers",
}
LOOKS = {
    "desktop-light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "phone-dark": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "has_touch": True},
}
playwright = pytest.importorskip("playwright.sync_api", reason="needs: pip install playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs the program chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as made:
        shown = made.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        yield shown
        shown.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with _pages.served(_pages.app(tmp_path_factory.mktemp("feed") / "atlas.sqlite")) as address:
        yield address


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> str:
    """Its address."""
    return html.write(tiny.copied(tmp_path_factory.mktemp("report") / "run")).as_uri()


@contextmanager
def opened(browser, address: str, **look) -> Iterator:
    """A page in which nothing may go wrong and nothing may come from elsewhere."""
    context, wrong, origin = browser.new_context(**look), [], "/".join(address.split("/")[:3])
    page = context.new_page()
    page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.on("dialog", lambda d: (wrong.append(d.message), d.dismiss()))
    page.on("request", lambda r: wrong.append(r.url) if not r.url.startswith((origin, "data:")) else None)
    page.goto(address)
    yield page
    assert not wrong
    context.close()


def fill(page) -> None:
    page.fill("#text", "the red cat walks near bob w3")
    page.fill("#text_b", "red dog")
    page.fill("#choices", "blue\nred")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("article.answer")


def shoot(page, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=page.evaluate("document.documentElement.scrollHeight") < 6000)


def fits(page) -> bool:
    """Whether nothing is wider than the window; wide tables and charts scroll in their own frames."""
    return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def heard(page) -> list[str]:
    """What axe-core finds wrong."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs: pip install axe-playwright-python")
    found = axe.Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]})
    return [
        f"{v['id']}: {v['nodes'][0]['html'][:160]} {v['nodes'][0].get('failureSummary', '')[:200]}"
        for v in found.response["violations"]
    ]


@pytest.mark.parametrize("look", LOOKS)
def test_pages_look_right_and_can_be_heard(browser, url, look):
    wrong = {}
    for name, place in PLACES.items():
        with opened(browser, url + place, **LOOKS[look]) as page:
            if name == "try":
                fill(page)
            for summary in page.query_selector_all("summary"):
                summary.click()
            shoot(page, f"{name}-{look}")
            assert fits(page), name
            if found := heard(page):
                wrong[name] = found
    assert not wrong


@pytest.mark.parametrize("look", LOOKS)
def test_the_report_looks_right_and_can_be_heard(browser, report, look):
    with opened(browser, report, **LOOKS[look]) as page:
        page.click("#task-0 summary")
        shoot(page, f"report-{look}")
        assert fits(page)
        assert not heard(page)


def test_the_report_prints_on_light_paper_with_its_charts(browser, report):
    with opened(browser, report, viewport={"width": 794, "height": 1123}, color_scheme="dark") as page:
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.is_hidden("nav") and page.is_visible("#cost svg") and page.is_visible("#map image")
        assert fits(page) and len(page.pdf()) > 50_000
        shoot(page, "report-print")


def test_the_report_answers_the_mouse_and_the_keyboard(browser, report):
    with opened(browser, report, viewport={"width": 1280, "height": 900}) as page:
        page.hover("#cost g.one .mark >> nth=0")
        assert page.inner_text("#tip").startswith("classify, probe: ")
        assert (
            page.evaluate("[...document.querySelectorAll('tr.hot')].map(r => r.dataset.task)")
            == ["classify"] * page.locator("tr.hot").count()
            != []
        )
        page.keyboard.press("Escape")
        assert page.is_hidden("#tip")
        box = page.locator("image.heat").first.bounding_box()
        page.hover("image.heat >> nth=0", position={"x": box["width"] * 1.5 / 7, "y": box["height"] * 0.5 / 7})
        related = json.loads(page.text_content("#related"))["names"]
        words = page.inner_text("#tip")
        matrix = tiny.fitted("bert")[1]["related"]
        i, j = (matrix["tasks"].index(n) for n in related[:2])
        assert (
            words.startswith(f"{related[0]} and {related[1]}: ")
            and abs(float(words.split()[-1]) - matrix["matrix"][i][j]) < 0.011
        )
        names = "[...document.querySelectorAll('#tasks-table tbody tr:not([hidden])')].map(r => r.dataset.task)"
        page.focus("#tasks-table th >> nth=6 >> button")
        page.keyboard.press("Enter")
        delta = {n: t["delta"] for n, t in tiny.fitted("bert")[1]["tasks"].items()}
        assert page.evaluate(names) == sorted(delta, key=lambda n: -delta[n])
        assert page.get_attribute("#tasks-table th >> nth=6", "aria-sort") == "descending"
        page.fill("#filter", "tag")
        assert page.evaluate(names) == ["tag"]
        page.fill("#filter", "no such task")
        assert page.inner_text("#none-left") == "no task has these words"
        page.fill("#filter", "")
        page.click("#tasks-table a >> nth=0")
        page.wait_for_selector("details[id^=task-][open]")
        assert page.locator("details[id^=task-][open]").count() == 1


def test_everything_can_be_reached_by_keyboard(browser, url):
    with opened(browser, url + "/tasks", viewport={"width": 1280, "height": 900}) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        page.wait_for_url("**#main")
        reached = set()
        for _ in range(60):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.innerText || document.activeElement.id"))
        assert set(tiny.HEADED) <= reached and "filter" in reached
        page.goto(url + "/")
        assert page.evaluate("document.activeElement.id") == "text"
    with opened(browser, url + "/atlas/daily-papers") as page:
        page.focus("button[aria-pressed]")
        page.keyboard.press("Enter")
        page.wait_for_selector("button[aria-pressed=true]")


def test_without_a_script_everything_is_there(browser, url):
    with opened(browser, url + "/", java_script_enabled=False) as page:
        page.fill("#text", "the red cat walks near bob")
        page.click("button.act")
        page.wait_for_selector("article.answer")
        assert page.locator("mark").count() >= 2 and page.is_hidden("[data-needs-script]")
        page.goto(url + "/tasks/classify")
        assert page.locator("svg").count() >= 3
        page.goto(url + "/atlas")
        page.fill("#q", "votes and mail")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=found by")


def test_what_is_typed_never_runs(browser, url):
    with opened(browser, url + "/") as page:
        for id in ("#text", "#text_b", "#choices"):
            page.fill(id, f"{NASTY}\nb")
        page.click("button.act")
        page.wait_for_selector("article.answer")
        assert page.locator("main img").count() == 0 and page.input_value("#text") == f"{NASTY}\nb"
