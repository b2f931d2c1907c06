"""The report's page, made of a made-up run: it stands alone, loads without errors, and its sample browser works."""

import itertools
import re
import shutil
from pathlib import Path

import pytest

from eval.analysis import intervals
from eval.analysis.intervals import Interval
from eval.pages import figures
from rlhf_trl.files import read_jsonl
from tests.browser import Browser, find
from tests.made_up_page import NAMES, NASTY, PROMPTS, SVG, made_up_run


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "RESAMPLES", 199)
        full = made_up_run(tmp_path_factory.mktemp("html") / "full", full=True)
        patch.setattr(figures, "save", lambda figure, stem: Path(f"{stem}.svg").write_text(SVG))  # drawing is slow
        return {"full": full, "bare": made_up_run(full.parents[2] / "bare", full=False)}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = find()
    if program is None:
        pytest.skip("left out: no Chromium on this machine")
    profile = tmp_path_factory.mktemp("profile")
    browser = Browser(program, profile)
    yield browser
    browser.close()
    shutil.rmtree(profile, ignore_errors=True)


def first_replies(root: Path) -> dict[str, list[dict]]:
    """Of each policy those that the page shows."""
    scores = {name: read_jsonl(root / f"scores/{name}.jsonl") for name in ("base", *NAMES)}
    return {name: [row for row in rows if row["reply"] == 0] for name, rows in scores.items()}


@pytest.fixture
def page(browser, pages):
    browser.resize(1200)
    browser.open(pages["full"])
    return browser


def shown(browser) -> list[int]:
    """The numbers of the prompts on the page, in order."""
    titles = browser.run("[...document.querySelectorAll('#list h3')].map(title => title.textContent)")
    return [int(title.removeprefix("Prompt ")) for title in titles]


def search(browser, text: str) -> None:
    """Type into the search field, as a user would."""
    browser.run("search.focus(); search.select()")
    browser.call("Input.insertText", text=text)


def test_it_stands_alone(pages):
    for path in pages.values():
        html = path.read_text()
        assert "default-src 'none'" in html
        without_data, blocks = re.subn(r'(?s)(id="prompts">).*?</script>', "", html)
        assert blocks == 1
        assert not re.search("https?://|@import|url\\(", without_data)
        targets = re.findall(r'(?:src|href)="(.{5})', without_data)
        assert len(targets) > 15
        assert all(target.startswith(("data:", "#")) for target in targets)


def test_it_says_what_is_missing(pages):
    words = ("No judge", "Neither checkpoints", "No failure-mode probes", "no card of this", "not analysed")
    bare, full = (pages[name].read_text() for name in ("bare", "full"))
    for word in words:
        assert bare.count(word) == 2  # on top and in its section
        assert word not in full
    assert "gold minus" not in bare and "gold minus" in full


@pytest.mark.parametrize("name", ["full", "bare"])
def test_it_loads_without_errors_or_network(browser, pages, name):
    browser.open(pages[name])
    browser.run("more.click()")
    requests = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in requests if not url.startswith("data:")] == [pages[name].as_uri()]
    troubles = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    assert [event for event in browser.events if event["method"] in troubles] == []
    images = browser.run("[...document.images].map(image => image.complete && image.naturalWidth > 0)")
    assert len(images) == (12 if name == "full" else 9)
    assert all(images)


def test_search_finds_prompts_by_dialogue_and_reply(page):
    assert page.run("count.textContent") == "30 of 30 prompts, the first 20 shown"
    search(page, "QUESTION 27")
    assert shown(page) == [28]
    assert page.run("count.textContent") == "1 of 30 prompts"
    search(page, "grpo says grüße")
    assert shown(page) == [3, 8, 13, 18, 23, 28]
    search(page, "nowhere to be found")
    assert shown(page) == []
    assert page.run("count.textContent") == "0 of 30 prompts"
    assert page.run("more.hidden")


def test_more_shows_more(page):
    assert shown(page) == list(range(1, 21))
    page.run("more.focus(); more.click()")
    assert shown(page) == list(range(1, 31))
    assert page.run("more.hidden")
    assert page.run("document.activeElement === list.children[20]")  # the keyboard goes on where the new ones begin


def test_sort_orders_by_the_scores(page, pages):
    scores = first_replies(pages["full"].parents[1])
    keys = {"prompt order": list(range(PROMPTS))}
    for name, rows in scores.items():
        keys[f"proxy of {name}"] = [row["proxy"] for row in rows]
        for measure in ("proxy", "gold") if name != "sft" else ():
            differences = [a[measure] - b[measure] for a, b in zip(rows, scores["sft"], strict=True)]
            keys[f"{measure}: {name} minus sft"] = differences
    assert set(page.run("[...sort.options].map(option => option.value)")) == set(keys)
    for (key, values), sign in itertools.product(keys.items(), (1, -1)):
        order = "ascending" if sign == 1 else "descending"
        page.run(f"sort.value = {key!r}; order.value = {order!r}; sort.dispatchEvent(new Event('input'))")
        ranks = [(sign * value, i) for i, value in enumerate(values, 1)]  # of equals the first prompt comes first
        assert shown(page) == [i for _, i in sorted(ranks)][:20], (key, order)


def test_texts_are_shown_as_they_are(page, pages):
    first = first_replies(pages["full"].parents[1])
    for i in range(len(NASTY)):
        shown = {name: of_one[i] for name, of_one in first.items()}
        article = f"list.children[{i}]"
        texts = page.run(f"[...{article}.querySelectorAll('.text')].map(text => text.textContent)")
        replies = [row["completion"].strip() or "(empty)" for row in shown.values()]
        assert texts == [shown["sft"]["dialogue"].strip(), *replies]
        scores = page.run(f"[...{article}.querySelectorAll('.reply .muted')].map(line => line.textContent)")
        assert scores == [
            f"proxy {row['proxy']:.2f} · gold {row['gold']:.0f}" + ("" if row["finished"] else " · cut off")
            for row in shown.values()
        ]
        chips = page.run(f"[...{article}.querySelectorAll('.chips li')].map(chip => chip.textContent)")
        won = ["1 : 0", "0.5 : 0.5", "0 : 1", "0.75 : 0.25"][i % 4]
        assert set(chips) == {f"{a} {won} {b}" for b, a in itertools.combinations(NAMES, 2)}
    assert page.run("document.querySelectorAll('b, i, #list img, #list script, img[src=x]').length") == 0
    assert page.run("window.attacked === undefined")


@pytest.mark.parametrize("name", ["full", "bare"])
def test_it_fits_a_phone(browser, pages, name):
    browser.resize(390)
    browser.open(pages[name])
    assert browser.run("innerWidth") == 390
    assert browser.run("document.documentElement.scrollWidth") <= 390
    wide = "[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth).length"
    assert browser.run(wide) > 0  # tables scroll in their own boxes


def test_it_fits_a_sheet_of_paper(page):
    page.call("Emulation.setEmulatedMedia", media="print")
    page.resize(680)  # A4 less its margins
    assert page.run("document.documentElement.scrollWidth") <= 680
    assert page.run("['nav', '.controls', '#more'].every(part => !document.querySelector(part).offsetHeight)")
    page.call("Emulation.setEmulatedMedia", media="")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_as_light_or_dark_as_the_reader_has_it(page, scheme):
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    background, text = (
        sum(page.run(f"getComputedStyle(document.body).{part}.match(/\\d+/g).map(Number)"))
        for part in ("backgroundColor", "color")
    )
    page.call("Emulation.setEmulatedMedia", features=[])
    assert abs(background - text) > 450 and (background > text) == (scheme == "light")


def test_it_says_which_of_several_replies_it_shows(pages):
    assert "the first of the 2 replies" in pages["full"].read_text()
    assert "the first of the" not in pages["bare"].read_text()


def test_a_curve_of_one_prompt_is_drawn_without_intervals(tmp_path):
    value = Interval(1.0)
    figures.optimisation({"ppo": [{"sqrt_kl": value, "proxy": value, "gold": None}]}, "gold", tmp_path / "curves")
    assert "<svg" in (tmp_path / "curves.svg").read_text()


def test_it_is_labelled(page):
    assert page.run("[...document.querySelectorAll('input, select')].every(control => control.labels.length === 1)")
    assert page.run("[...document.querySelectorAll('table')].every(table => table.caption.textContent)")
    boxes = page.run("[...document.querySelectorAll('[role=region]')].map(box => box.ariaLabel)")
    assert len(boxes) == page.run("document.querySelectorAll('table').length") == len(set(boxes)) > 10
    assert page.run("[...document.querySelectorAll('th')].every(cell => cell.scope && cell.textContent)")
    assert page.run("[...document.querySelectorAll('tbody tr')].every(row => row.cells[0].scope === 'row')")
    assert page.run("[...document.images].every(image => image.alt)")
    levels = page.run("[...document.querySelectorAll('h1, h2, h3, h4')].map(title => +title.tagName[1])")
    assert levels[0] == 1 and all(b <= a + 1 for a, b in itertools.pairwise(levels))
    links = page.run("[...document.links].map(link => document.getElementById(link.hash.slice(1)) !== null)")
    assert links and all(links)
    sections = page.run("[...document.querySelectorAll('h2')].map(title => title.id)")
    assert page.run("[...document.links].map(link => link.hash.slice(1))") == sections  # in the same order
    ids = page.run("[...document.querySelectorAll('[id]')].map(element => element.id)")
    assert len(ids) == len(set(ids))
