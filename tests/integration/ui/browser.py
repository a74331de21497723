"""A real browser that looks at a page: how it is laid out, what its scripts do, and whether all can use it.

It needs Playwright, axe and a Chromium, none of which the tests install:
``pip install playwright axe-playwright-python`` and, on Debian, ``apt-get install chromium``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

SHARP = ("serious", "critical")
"""The findings of axe that no page may have."""

FOCUS = """() => {
    const all = [...document.querySelectorAll(
        "a[href], button, input:not([type=hidden]), select, summary, [tabindex='0']"
    )].filter(each => each.checkVisibility());
    return [all.indexOf(document.activeElement), all.map(each => each.outerHTML)];
}"""
"""Which control of a page has the focus, -1 for none, and the markup of all."""

MOST_TABS = 500

OTHER_WIDTHS = (360, 700, 960, 1180)
"""Windows in which each page has to fit, too: a small phone, tablets, half a screen."""


class Look:
    """A window of a size and a colour scheme, in which every page that was opened is examined."""

    def __init__(self, page: Any, pictures: Path, name: str) -> None:
        self.page = page
        self._pictures = pictures
        self._name = name
        self.complaints: list[str] = []
        """What the browser has complained of: scripts that failed, or what the policy forbids."""
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on(
            "console",
            lambda said: self.complaints.append(said.text) if said.type in {"error", "warning"} else None,
        )

    async def examine(self, what: str) -> None:
        """Take a picture, and assert that the page fits the window, and that people can use it."""
        from axe_playwright_python.async_playwright import Axe

        await self.page.screenshot(path=self._pictures / f"{what}-{self._name}.png", full_page=True)
        size = self.page.viewport_size
        for width in (*OTHER_WIDTHS, size["width"]):
            await self.page.set_viewport_size({**size, "width": width})
            await self._fits(what)
        found = (await Axe().run(self.page)).response["violations"]
        sharp = [each for each in found if each["impact"] in SHARP]
        assert not sharp, json.dumps(
            [(each["id"], [node["html"] for node in each["nodes"]]) for each in sharp], indent=1
        )
        assert self.complaints == []
        await self._walk()

    async def _fits(self, what: str) -> None:
        """Assert that nothing has to be scrolled sideways into sight."""
        width = await self.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width[0] <= width[1], f"{what} is {width[0]} wide in a window of {width[1]}"
        hidden = await self.page.evaluate(
            "[...document.querySelectorAll('.table')].filter(each => each.scrollWidth > each.clientWidth)"
            ".map(each => [each.ariaLabel, each.scrollWidth - each.clientWidth, innerWidth])"
        )
        assert not hidden, f"parts of these tables of {what} have to be scrolled into sight: {hidden}"

    async def _walk(self) -> None:
        """Assert that the Tab key reaches each control. The focus is then where it was."""
        before = await self.page.evaluate_handle("document.activeElement")
        reached: set[int] = set()
        missing = ["all"]
        for _ in range(MOST_TABS):
            await self.page.keyboard.press("Tab")
            at, controls = await self.page.evaluate(FOCUS)
            reached.add(at)
            missing = [markup for place, markup in enumerate(controls) if place not in reached]
            if not missing:
                break
        assert not missing, f"the keyboard does not reach {missing}"
        await self.page.evaluate("(before) => { document.activeElement.blur(); before.focus(); }", before)


LOOKS = {
    "wide-light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "narrow-dark": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
}


@asynccontextmanager
async def chromium() -> AsyncIterator[Any]:
    """Run a browser. The test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.async_api", reason="Playwright is not installed")
    pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("there is no chromium")
    async with playwright.async_playwright() as running:
        browser = await running.chromium.launch(executable_path=found, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()
