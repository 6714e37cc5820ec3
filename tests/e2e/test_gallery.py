"""The gallery as files, and the gallery and the server in headless Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from pullback.cli import main
from pullback.core.errors import UsageError
from pullback.lab import registry
from pullback.lab.draw import files
from pullback.lab.gallery import Pages, Store, build
from pullback.lab.gallery.charts import bars, curves
from pullback.lab.gallery.meshes import preview
from pullback.lab.gallery.references import LARGEST, keep, references
from pullback.lab.result import SCALES, STATUSES, Artifact, Claim, Metric, RunResult, Series
from pullback.lab.store import read_results
from tests.e2e import ensure_chromium
from tests.lab import toy  # noqa: F401
from tests.lab.records import NASTY, record, served


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("gallery") / "runs"
    record(runs)
    record(runs, "20260102-120000", status="failed", error="ValueError: no", claims=[], artifacts=[], seed=3)
    record(runs, slug="system-of-old", title="A System of Old", artifacts=[])
    (runs.parent.parent / "secret.png").write_bytes(b"secret")
    return runs


@pytest.fixture(scope="module")
def site(store: Path) -> Path:
    return build(store, store.parent / "site").parent


def test_every_system_has_a_page_and_only_named_files_are_copied(site: Path, store: Path) -> None:
    assert {path.name for path in (site / "systems").iterdir()} == {*registry.slugs(), "system-of-old"}
    run = site / "systems" / "cosmo" / "20260101-120000"
    assert {path.name for path in run.iterdir()} == {
        "index.html",
        "figure-two.png",
        "figure-two.svg",
        "image-ramp.png",
        "animation-t.png",
        "audio-tone.wav",
        "mesh-corner.ply",
        "table-n.csv",
    }
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert NASTY not in text
        assert "http" not in text.replace("http-equiv", ""), "nothing points out of the site"


def test_what_was_not_run_shows_our_run(store: Path, site: Path) -> None:
    """Its picture and its verdicts, marked as ours; never beside a run of the user's own."""
    index, known = (site / "index.html").read_text(), references()
    assert {"modular-implicit-differentiation", "neural-ode", "pulsar"} <= known.keys() <= set(registry.slugs())
    for slug, kept in known.items():
        assert (site / kept.file).stat().st_size <= LARGEST
        assert sum(kept.verdicts.values()) > 0
        card = index.partition(f'data-slug="{slug}"')[2].partition("</a>")[0]
        page = (site / "systems" / slug / "index.html").read_text()
        ours = not list(read_results(store, slug))
        assert (f'src="{kept.file}"' in card) == ("our run" in card) == ours
        assert (f'src="../../{kept.file}"' in page) == ("from our run" in page) == ours
        assert not ours or f"{kept.verdicts['held']} held" in card


def test_a_run_is_kept_as_reference(tmp_path: Path) -> None:
    def kept(time: str, **changes: Any) -> RunResult:
        record(tmp_path / "runs", time, seed=7, **changes)
        entry = Store(tmp_path / "runs").entry("cosmo")
        assert entry is not None
        run = entry.find(time)
        assert run is not None
        return run

    first = keep(run := kept("20260101-000001"), folder=tmp_path)
    figures = [a.name for a in run.artifacts if a.kind in ("figure", "image", "animation")]
    assert (first.picture, first.seed, first.verdicts) == (figures[0], 7, run.verdicts)
    assert references(tmp_path) == {"cosmo": first}
    with Image.open(tmp_path / "cosmo.webp") as picture:
        assert picture.format == "WEBP"
        assert max(picture.size) <= 640
    other = keep(run, figures[1], folder=tmp_path)
    assert keep(run, folder=tmp_path).picture == other.picture == figures[1], "the choice is remembered"
    with pytest.raises(UsageError, match=r"picture must be one of .* of cosmo: 'no such'"):
        keep(run, "no such", folder=tmp_path)
    with pytest.raises(UsageError, match="a reference must be a complete run, got one that is failed"):
        keep(kept("20260101-000002", status="failed"), folder=tmp_path)


def test_the_run_that_speaks_for_a_system(tmp_path: Path) -> None:
    own = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(registry.load("cosmo").configure("smoke")).items()
    }
    larger = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(registry.load("cosmo").configure("default")).items()
    }

    def shown() -> str:
        entry = Store(tmp_path).entry("cosmo")
        assert entry is not None
        assert entry.shown is not None
        assert entry.shown.directory is not None
        return entry.shown.directory.name

    record(tmp_path, "20260101-000001", status="failed", config=own, artifacts=[])
    assert shown() == "20260101-000001"
    record(tmp_path, "20260101-000002", config={**larger, "nodes": 3}, scale="default", artifacts=[])
    assert shown() == "20260101-000002"
    record(tmp_path, "20260101-000003", config=own, artifacts=[])
    assert shown() == "20260101-000003"
    record(tmp_path, "20260101-000004", config=larger, scale="default", artifacts=[])
    record(tmp_path, "20260101-000005", config=own, artifacts=[])
    record(tmp_path, "20260101-000006", config=larger, scale="default", status="killed", artifacts=[])
    assert shown() == "20260101-000004"


def test_seeds_are_counted(tmp_path: Path) -> None:
    for seed, verdict in enumerate(("held", "failed", "held")):
        record(tmp_path, f"20260101-00000{seed}", seed=seed, claims=[Claim("it works", verdict, "smoke")], artifacts=[])
    entry = Store(tmp_path).entry("cosmo")
    assert entry is not None
    assert "held with 2 of 3 seeds" in Pages().system(entry)


def test_a_failed_build_leaves_the_old_site(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "site"
    build(store, out)
    before = (out / "index.html").read_text()

    def broken(*arguments: Any) -> str:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Pages, "system", broken)
        with pytest.raises(OSError, match="disk full"):
            build(store, out)
    assert (out / "index.html").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["site"]
    record(tmp_path / "runs", slug="another-system", artifacts=[])
    build(tmp_path / "runs", out)
    assert (out / "systems" / "another-system").is_dir()
    assert not (out / "systems" / "system-of-old").exists()


def test_other_folders_are_not_replaced(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main(["gallery", "--runs", str(store), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("pullback: out must be a new or empty folder")
    assert main(["gallery", "--runs", str(store), "--out", str(tmp_path / "deep" / "site")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "deep" / "site" / "index.html")
    with pytest.raises(UsageError, match="out must be a new or empty folder, or a site built before"):
        build(store, tmp_path)
    with pytest.raises(UsageError, match="out must not overlap with the results store"):
        build(store, store)
    with pytest.raises(UsageError, match="out must not overlap with the results store"):
        build(store, store / "site")
    with pytest.raises(UsageError, match="out must be a new or empty folder"):
        build(store, tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_damaged_records_are_shown_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = record(tmp_path, artifacts=[])
    assert good.directory is not None
    text = (good.directory / "result.json").read_text()
    damaged = {
        "1": text[:-30],
        "2": "[]",
        "3": text.replace('"complete"', '"no such status"'),
        "4": text.replace('"held"', '"perhaps"'),
        "5": text.replace('"seconds": 12.5', '"seconds": "long"'),
        "6": text.replace('"slug": "cosmo"', '"slug": "neural-ode"'),
        "7": text.replace('"scale": "smoke"', '"scale": "huge"'),
        "8": text.replace('"evaluations": {', f'"evaluations": 3, "{NASTY}": {{'),
        "9": text.replace(
            '"artifacts": []', '"artifacts": [{"kind": "table", "name": "t", "files": [], "content": 1}]'
        ),
    }
    for name, content in damaged.items():
        assert content != text
        (tmp_path / "cosmo" / name).mkdir()
        (tmp_path / "cosmo" / name / "result.json").write_text(content)
    (tmp_path / "gone-system" / "1").mkdir(parents=True)
    (tmp_path / "gone-system" / "1" / "result.json").mkdir()
    store = Store(tmp_path)
    entry, gone = store.entry("cosmo"), store.entry("gone-system")
    assert entry is not None
    assert gone is not None
    assert [run.directory for run in entry.runs] == [good.directory]
    assert sorted(one.directory.name for one in entry.damaged) == sorted(damaged)
    page = Pages().system(entry)
    assert "Damaged records" in page
    assert "seconds must be a number, got &#39;long&#39;" in page
    assert NASTY not in page
    assert "cannot be read: Is a directory" in Pages().system(gone) or "is no file" in Pages().system(gone)
    assert "9 damaged" in Pages().index(store.entries())
    assert main(["list", "--family", "causal", "--runs", str(tmp_path)]) == 0
    assert "9 damaged" in capsys.readouterr().out


_WORDS = st.text(max_size=6) | st.just(NASTY)
_NUMBERS = st.floats() | st.sampled_from([0.0, -0.0, 5e-324, 1.7e308, -1.7e308])
_STEPS = st.integers(-(2**63), 2**63 - 1)


@given(st.data())
def test_any_record_that_can_be_read_can_be_shown(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    runs = tmp_path_factory.mktemp("store")
    draw = data.draw
    points = draw(st.lists(st.tuples(_STEPS, _NUMBERS), max_size=4))
    artifacts_of = st.builds(
        Artifact,
        st.sampled_from(["figure", "image", "animation", "audio", "mesh", "table", "other"]),
        _WORDS,
        st.lists(_WORDS | st.just("result.json") | st.just("a.png"), max_size=2).map(tuple),
        _WORDS,
        st.none() | st.just({"columns": ["a"], "rows": [[1], [None], [{"b": [1.5]}]]}),
    )
    one = record(
        runs,
        title=draw(_WORDS),
        status=draw(st.sampled_from(STATUSES)),
        scale=draw(st.sampled_from(SCALES)),
        config=draw(st.dictionaries(_WORDS, st.lists(_NUMBERS, max_size=2) | st.none() | _WORDS, max_size=2)),
        metrics=draw(st.lists(st.builds(Metric, _WORDS, _NUMBERS, _WORDS, values=st.tuples(_NUMBERS, _NUMBERS)))),
        claims=[Claim(draw(_WORDS), "held", "full", draw(st.dictionaries(_WORDS, _NUMBERS | _WORDS, max_size=2)))],
        series=[
            Series("loss", arm, [s for s, _ in points], [v for _, v in points], replicate)
            for arm, replicate in (("a", 0), ("a", 1), ("", None))
        ],
        artifacts=draw(st.lists(artifacts_of, max_size=2)),
        notes=[draw(_WORDS)],
        seconds=draw(st.floats(0, 1e10)),
        versions={draw(_WORDS): draw(_WORDS)},
    )
    assert one.directory is not None
    (one.directory / "a.png").write_bytes(draw(st.binary(max_size=30)))
    entry = Store(runs).entry("cosmo")
    assert entry is not None
    assert not entry.damaged, "what the library writes it can read"
    for page in (Pages().system(entry), Pages().system(entry, entry.runs[0]), Pages().index([entry])):
        assert NASTY not in page
        page.encode()


def test_bars_are_proportional() -> None:
    found = bars([Metric("a", 2.0, "x", "higher"), Metric("a", 8.0, "y", "higher", baseline=True)])[0]
    assert [(bar.start, bar.length, bar.best) for bar in found.rows] == [(0, 25, False), (0, 100, True)]
    signed = bars([Metric("a", -1.0, "x", "lower"), Metric("a", 3.0, "y", "lower")])[0]
    assert [(bar.start, bar.length, bar.best) for bar in signed.rows] == [(0, 25, True), (25, 75, False)]
    decades = bars([Metric("a", v, str(v)) for v in (1e-3, 1.0)])[0]
    assert decades.logarithmic
    assert [bar.length for bar in decades.rows] == [25, 100]
    odd = bars([Metric("a", v, str(i)) for i, v in enumerate((float("nan"), float("inf"), 1.7e308, 0.0))])[0]
    assert [bar.text for bar in odd.rows][:2] == ["NaN", "∞"]
    assert all(0 <= bar.start <= 100 and 0 <= bar.length <= 100 for bar in odd.rows)


def test_meshes_for_the_page(tmp_path: Path) -> None:
    corners = np.array([[0, 0, 0], [2, 0, 0], [0, 4, 0]], float)
    path = tmp_path / files.mesh(tmp_path, "m", corners, [[0, 1, 2]], np.eye(3))[0]
    found = preview(path)
    assert found is not None
    assert found["faces"] == [[0, 1, 2]]
    assert found["colours"] == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert np.allclose(found["points"], (corners - [1, 2, 0]) / 5**0.5, atol=1e-4)
    many = np.stack([np.arange(50_000.0)] * 3, 1)
    sample = preview(tmp_path / files.mesh(tmp_path, "many", many)[0])
    assert sample is not None
    assert len(sample["points"]) == 4000
    path.write_bytes(path.read_bytes()[:-1])
    assert preview(path) is None
    path.write_bytes(b"ply\nformat ascii 1.0\nend_header\n")
    assert preview(path) is None


def test_curves_keep_spikes_and_gaps() -> None:
    values = [1.0] * 5000
    values[1234] = 50.0
    (chart,) = curves([Series("loss", "", list(range(5000)), values)])
    heights = [float(point.split()[1]) for point in chart.lines[0].noise.replace("M", "L").split("L")[1:]]
    assert len(heights) < 1000
    assert (min(heights), max(heights)) == (chart.top, chart.bottom)
    means = [float(point.split()[1]) for point in chart.lines[0].path.replace("M", "L").split("L")[1:]]
    assert means[0] == chart.bottom
    height = (chart.bottom - min(means)) / (chart.bottom - chart.top)
    assert height == pytest.approx(0.01, abs=2e-3), "one value of a hundred in a stretch"
    (gap,) = curves([Series("loss", "", [0, 1, 2, 3], [1.0, float("nan"), 2.0, 3.0])])
    assert gap.lines[0].path.count("M") == 2
    assert "h6" in gap.lines[0].path
    assert [tick.text for tick in gap.horizontal] == ["0", "1", "2", "3"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = ensure_chromium.find()
    if path is None:
        pytest.fail("no Chromium in PATH: make browser")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, origin: str, *, expected: str = "nothing", **options: Any) -> Iterator[Page]:
    """A page; at the end: nothing but the expected went wrong on it, and all that it asked for was its own."""
    context = browser.new_context(**options)
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    # A page that is left while it loads aborts its requests.
    page.on("requestfailed", lambda r: None if "ABORTED" in str(r.failure) else wrong.append(f"{r.url}: {r.failure}"))
    page.on("request", lambda request: None if request.url.startswith(origin) else wrong.append(request.url))
    yield page
    context.close()
    assert [text for text in wrong if expected not in text] == []


def _no_overflow(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("innerWidth")


@pytest.mark.browser
def test_search_and_theme(browser: Browser, site: Path) -> None:
    with opened(browser, site.as_uri(), color_scheme="light") as page:
        page.goto((site / "index.html").as_uri())
        cards = page.locator(".system:visible")
        expect(cards).to_have_count(len(registry.slugs()) + 1)
        expect(page.locator(".intro .count.failed")).to_have_text("✗ 2 failed")
        page.get_by_role("searchbox").fill("BEATS acyclicity")
        expect(cards).to_have_count(1)
        expect(cards).to_contain_text("cosmo")
        expect(page.get_by_role("status")).to_contain_text("1 of ")
        expect(page.locator(".family:visible")).to_have_count(1)
        page.get_by_role("searchbox").fill("xyzzy plugh")
        expect(cards).to_have_count(0)
        page.get_by_role("searchbox").fill("")
        expect(page.locator("[data-slug=toy-regression]")).to_contain_text("pullback run toy-regression")

        background = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(background)
        page.get_by_role("button", name="Switch between light and dark").click()
        dark = page.evaluate(background)
        assert sum(map(int, dark[4:-1].split(","))) < 150 < 600 < sum(map(int, light[4:-1].split(",")))
        page.get_by_text("A System of Old").click()
        expect(page.locator(".notice.failed")).to_contain_text("This version of the library has no system")
        assert page.evaluate(background) == dark, "the choice is remembered"
        page.get_by_role("searchbox").fill("BEATS acyclicity")  # other systems name cosmo too
        page.get_by_role("searchbox").press("Enter")
        expect(cards).to_have_count(1)
    with opened(browser, site.as_uri(), color_scheme="dark") as page:
        page.goto((site / "index.html").as_uri())
        assert page.evaluate(background) == dark


@pytest.mark.browser
def test_page_of_a_system(browser: Browser, site: Path) -> None:
    with opened(browser, site.as_uri()) as page:
        page.goto((site / "systems" / "cosmo" / "index.html").as_uri())
        verdicts = page.locator(".claims .verdict")
        assert [text.strip() for text in verdicts.all_inner_texts()] == ["✓ held", "✗ failed", "– not judged"]
        expect(page.locator(".claims")).to_contain_text(NASTY)
        expect(page.locator(".claims")).to_contain_text("0.93")
        widths = [page.locator(".metric rect.method").nth(i).bounding_box() for i in range(3)]
        track = page.locator(".metric rect.track").first.bounding_box()
        assert track is not None
        assert all(box is not None and 0 < box["width"] <= track["width"] for box in widths)
        baseline = page.locator(".metric rect.baseline").first.bounding_box()
        assert baseline is not None
        assert widths[0] is not None
        assert baseline["width"] / widths[0]["width"] == pytest.approx(0.81 / 0.93, abs=0.02)
        expect(page.locator("#curves path.line")).to_have_count(2)
        for image in page.locator("main img").all():
            image.scroll_into_view_if_needed()
            page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=image.element_handle())
        expect(page.locator("audio")).to_have_count(1)
        assert page.evaluate("document.querySelector('audio').duration") != 0
        canvas = page.locator("canvas.mesh")
        pixels = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.filter(Boolean).length"
        assert canvas.evaluate(pixels) > 10_000
        before = canvas.evaluate("canvas => canvas.toDataURL()")
        canvas.press("ArrowLeft")
        assert canvas.evaluate("canvas => canvas.toDataURL()") != before
        for origin in ("real", "simulated", "stand-in"):
            expect(page.locator(f"#data .origin.{origin}")).to_be_visible()
        for text in (
            "CSV",
            "corner",
            "pullback.causal.",
            "--nodes",
            "its file is gone",
            "a remark",
            "evaluations",
        ):
            expect(page.locator("main")).to_contain_text(text)
        expect(page.locator(".head .notice")).to_contain_text("a newer one (smoke scale, seed 3, failed)")
        page.get_by_role("link", name="20260102-120000").click()
        expect(page.locator(".notice.failed")).to_have_text("ValueError: no")
        page.get_by_role("link", name="cosmo", exact=True).click()
        expect(page.locator(".claims")).to_be_visible()


@pytest.mark.browser
def test_on_a_phone(browser: Browser, site: Path) -> None:
    with opened(browser, site.as_uri(), viewport={"width": 360, "height": 740}) as page:
        for path in ("index.html", *(f"systems/{slug}/index.html" for slug in ("cosmo", "toy-regression"))):
            page.goto((site / path).as_uri())
            _no_overflow(page)
            expect(page.locator("h1")).to_be_visible()


@pytest.mark.browser
def test_start_a_run_and_watch_it(browser: Browser, tmp_path: Path) -> None:
    with served(tmp_path / "runs") as server, opened(browser, server.address, expected="400") as page:
        page.goto(f"{server.address}/systems/toy-regression/index.html")
        expect(page.locator("main")).to_contain_text("Not run yet")
        page.get_by_role("link", name="Run it here").click()
        expect(page.locator("form#run")).to_contain_text("Steps of each loop. [smoke: 3; default: 12; full: 20; >= 1]")
        page.get_by_label("lr").fill("-1")
        page.get_by_role("button", name="Start").click()
        expect(page.get_by_role("alert")).to_have_text("lr must be > 0, got -1.0")
        page.get_by_label("lr").fill("0.1")
        page.get_by_label("steps").fill("400")
        page.get_by_role("button", name="Start").click()
        expect(page.locator("#found path.line").first).to_be_attached(timeout=30_000)
        expect(page.locator("#status")).to_have_text("complete", timeout=30_000)
        expect(page.locator("#log")).to_contain_text("a: train: 400/400")
        expect(page.locator("#found .verdict.held")).to_have_count(1)
        page.get_by_role("link", name="Show the result").click()
        expect(page.locator(".head .status")).to_have_text("complete")
        expect(page.locator("#figures img")).to_be_visible()
        page.wait_for_function("document.querySelector('#figures img').naturalWidth > 0")
        expect(page.locator("tr.changed").first).to_contain_text("--steps")
        (result,) = read_results(tmp_path / "runs")
        assert (result.config["steps"], result.config["lr"]) == (400, 0.1)


@pytest.mark.browser
def test_a_drawing_of_a_stranger_starts_nothing(browser: Browser, tmp_path: Path) -> None:
    script = """document.documentElement.setAttribute("data-ran", "yes");
        fetch("/start", {method: "POST", headers: {"Content-Type": "application/x-www-form-urlencoded"},
                         body: "system=toy-regression&scale=smoke"});"""
    drawing = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script><![CDATA[{script}]]></script></svg>'
    )
    stranger = record(tmp_path, artifacts=[Artifact("figure", "drawing", ("plot.svg",))])
    assert stranger.directory is not None
    (stranger.directory / "plot.svg").write_text(drawing)
    with served(tmp_path) as server, opened(browser, server.address, expected="Blocked script execution") as page:
        page.goto(f"{server.address}/systems/cosmo/20260101-120000/plot.svg")
        assert page.locator("svg").get_attribute("data-ran") is None
        page.goto(f"{server.address}/systems/cosmo/20260101-120000/index.html")
        expect(page.locator("#figures img")).to_have_count(1)
        assert page.request.get(f"{server.address}/started/1").status == 404, "no run was started"
