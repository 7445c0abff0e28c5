"""The report in a real browser, with hostile text everywhere that text can come from. Skipped where no Chromium is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tuneport.advisor.advise import advise
from tuneport.advisor.report.model import Report
from tuneport.advisor.report.render import render_html
from tuneport.tests.advice_cases import TODAY, arm, clear_gain, intake, measurement, plan, share

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")

EXECUTED = (
    "<script>document.title='executed'</script><img src=x onerror=\"document.title='executed'\"><svg onload=\"document.title='executed'\">"
)
LINK = "<a href=\"javascript:document.title='executed'\">x</a>"
HOSTILE = f"</style></svg></title></textarea>{EXECUTED}{LINK}<base href=//evil><meta http-equiv=refresh content=0>"


def browse(page: Path, *arguments: str, width: int = 1280, height: int = 2000) -> str:
    """What headless Chromium prints for the page."""
    assert BROWSER is not None
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
            f"--user-data-dir={page.parent / 'profile'}", "--hide-scrollbars", f"--window-size={width},{height}", *arguments, page.as_uri(),
        ],
        capture_output=True, text=True, timeout=90, check=True,
    )  # fmt: skip
    return done.stdout


@pytest.fixture(scope="module")
def hostile() -> Report:
    hostile_arms = measurement(
        arm(f"few {HOSTILE}", share(200, 40), model=HOSTILE), arm(f"tuned {HOSTILE}", share(200, 180), kind="tuned"), warnings=(HOSTILE,)
    )
    asked = intake(
        title=f"T {EXECUTED}"[:120], problem=HOSTILE, wanted=HOSTILE, decision_makers=[HOSTILE], incumbent={"arm": f"few {HOSTILE}"},
        privacy={"regulations": [HOSTILE[:80]], "regions": [HOSTILE[:40]]}, gap="knowledge",
    )  # fmt: skip
    return advise(asked, hostile_arms, [plan(refused={"x": HOSTILE}), plan()], today=TODAY)


def test_hostile_text_executes_nothing_even_without_the_content_policy(hostile: Report, tmp_path: Path) -> None:
    html = render_html(hostile)
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    assert bare != html
    bare = bare.replace(
        "</body>", "<p id=probe></p><script>document.getElementById('probe').textContent='scripts run here'</script></body>"
    )
    (tmp_path / "hostile.html").write_text(bare, encoding="utf-8")
    dom = browse(tmp_path / "hostile.html", "--dump-dom")
    assert "scripts run here" in dom  # so that silence below means something
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title is not None
    assert title.group(1) != "executed"
    assert dom.count("<script") == 1
    assert not re.search(r"<(img|base|iframe|a href=\"(?!#))", dom)
    assert "document.title='executed'" in dom  # shown as text, as it was given


def test_the_content_policy_stops_what_an_escaping_fault_would_let_through(tmp_path: Path) -> None:
    html = render_html(advise(intake(), clear_gain(), [plan()], today=TODAY))
    (tmp_path / "page.html").write_text(html.replace("</main>", EXECUTED + "</main>"), encoding="utf-8")
    title = re.search(r"<title>(.*?)</title>", browse(tmp_path / "page.html", "--dump-dom"), re.DOTALL)
    assert title is not None
    assert title.group(1) == "Fine-tune: Tickets"


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_page(hostile: Report, tmp_path: Path, width: int) -> None:
    """In a frame, since headless Chromium makes no window narrower than 500."""
    probe = "<script>parent.postMessage([document.documentElement.scrollWidth, window.innerWidth].join(' '), '*')</script></body>"
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", render_html(hostile)).replace("</body>", probe)
    (tmp_path / "wide.html").write_text(html, encoding="utf-8")
    frame = tmp_path / "frame.html"
    listener = "<title>none</title><script>onmessage = e => document.title = e.data</script>"
    frame.write_text(f"{listener}<iframe src=wide.html width={width} height=900></iframe>", encoding="utf-8")
    title = re.search(r"<title>(\d+) (\d+)</title>", browse(frame, "--dump-dom", "--virtual-time-budget=4000", width=1400))
    assert title is not None
    assert int(title.group(2)) == width
    assert int(title.group(1)) <= width
