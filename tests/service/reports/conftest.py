"""The browser of the other browser tests, under the name that these use."""

from __future__ import annotations

from tests.browser.conftest import chromium as browser

__all__ = ["browser"]
