"""Where the world that ships with the package lies; its card says what made it and what it scores."""

from __future__ import annotations

from pathlib import Path


def shipped_world() -> Path:
    """The folder of the shipped world: world.json, data/, base/, aligned/, card.json."""
    return Path(__file__).parent / "worlds" / "small"
