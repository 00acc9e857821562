"""The report in a real browser: from a file, on wide and narrow windows, by keyboard, in light and dark, and deaf to hostile text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import report_run
from chromium import Page, executable

from r1mega.observe import report

pytestmark = pytest.mark.skipif(executable() is None, reason="no Chromium here (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return report.write(report_run.make(tmp_path_factory.mktemp("run"))).as_uri()


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with Page() as page:
        yield page


def errors(page: Page) -> list[str]:
    """What the browser complained of: exceptions, refused sources, error messages."""
    return [str(event["params"]) for event in page.events
            if event["method"] == "Runtime.exceptionThrown" or (event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error")]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_the_window_and_loads_nothing_else(page: Page, url: str, width: int, dark: bool, tmp_path: Path) -> None:
    page.events.clear()
    page.open(url, width, dark=dark)
    assert page.run("document.documentElement.scrollWidth <= innerWidth"), f"the page scrolls sideways at {width} pixels"
    inside = page.run("[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
                      ".filter(e => !e.closest('.scroll, .text, svg')).map(e => e.outerHTML.slice(0, 80))")
    assert inside == [], "these stick out of the window"
    requests = [event["params"]["request"]["url"] for event in page.events if event["method"] == "Network.requestWillBeSent"]
    assert [one for one in requests if one != url and not one.startswith("data:")] == []
    assert errors(page) == []
    light = page.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).every(c => c > 127)")
    assert light is not dark
    page.screenshot(tmp_path / "page.png", full=False)
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_hostile_text_stays_text(page: Page, url: str) -> None:
    page.open(url, 1280)
    assert page.run("document.title") == "r1_tiny, seed 7: run report"
    assert page.run("document.querySelectorAll('script').length") == 1
    assert page.run("document.querySelectorAll('img, b b, .text *').length") == 0
    assert page.run("[...document.querySelectorAll('.text')].some(e => e.textContent.includes('<script>document.title=\"owned\"</script>'))")
    page.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=1\">')")  # even if escaping had failed
    assert page.run("new Promise(done => setTimeout(() => done(document.title), 200))") == "r1_tiny, seed 7: run report"


def test_rollouts_are_filtered_and_paged(page: Page, url: str) -> None:
    page.open(url, 1280)
    shown = "[...document.querySelectorAll('.prompt:not([hidden]) .sample:not([hidden])')]"
    assert page.run("document.querySelectorAll('.prompt:not([hidden])').length") == 20
    page.run("document.getElementById('more').click()")
    assert page.run("document.querySelectorAll('.prompt:not([hidden])').length") == 40

    def fill(**fields: object) -> None:
        for name, value in fields.items():
            page.run(f"(f => {{ f.elements.{name}.{'checked' if isinstance(value, bool) else 'value'} = {value!r}".replace("True", "true")
                     + "; f.dispatchEvent(new Event('input')); })(document.getElementById('filters'))")
    fill(stage="zero", reward_from="2", step_from="41", step_to="101")
    assert page.run(f"{shown}.length") > 0
    assert page.run(f"{shown}.every(s => s.dataset.stage === 'zero' && +s.dataset.reward === 2 && +s.dataset.step >= 41 && +s.dataset.step <= 101)")
    page.run("document.getElementById('filters').reset()")
    page.run("new Promise(done => setTimeout(done, 50))")
    fill(shared=True)
    assert page.run("[...document.querySelectorAll('.prompt:not([hidden])')].every(p => p.querySelectorAll('.column').length > 1)")
    fill(text="no such words anywhere")
    assert page.run("document.getElementById('found').textContent") == "0 samples of 0 prompts"


def test_everything_is_within_reach_of_the_keyboard(page: Page, url: str) -> None:
    page.open(url, 1280)
    page.press("Tab")
    assert page.run("document.activeElement.className") == "skip"
    assert page.run("document.activeElement.getBoundingClientRect().left >= 0"), "the skip link must show when it has the focus"
    reached = set()
    for _ in range(60):
        page.press("Tab")
        reached.add(page.run("document.activeElement.closest('a.node, .chart svg, summary, nav, #theme, .scroll')?.tagName"))
        assert page.run("document.activeElement === document.body || getComputedStyle(document.activeElement).outlineStyle !== 'none'"), "focus without a ring"
    assert {"a", "SUMMARY", "NAV", "BUTTON", "DIV", "svg"} <= reached, "graph boxes, folds, sections, colours, tables and charts"


def test_a_chart_tells_its_values(page: Page, url: str) -> None:
    page.open(url, 1280)
    page.run("document.querySelector('#stage-base .chart svg').focus()")
    page.press("ArrowRight")
    page.press("ArrowRight")
    assert page.run("document.getElementById('tip').hidden") is False
    assert page.run("document.getElementById('tip').textContent").startswith("step 2\n")
    page.press("Escape")
    assert page.run("document.getElementById('tip').hidden") is True


def test_colours_can_be_chosen(page: Page, url: str) -> None:
    page.open(url, 1280, dark=True)
    background = "getComputedStyle(document.body).backgroundColor"
    before = page.run(background)
    page.run("document.getElementById('theme').click()")  # automatic -> light
    assert page.run(background) != before
    page.run("document.getElementById('theme').click()")
    assert page.run(background) == before
    page.run("document.getElementById('theme').click()")  # automatic again, for the tests after this one
    assert page.run("document.documentElement.dataset.theme") is None
