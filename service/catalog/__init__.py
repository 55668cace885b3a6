"""Models as clients see them: registered bases and released adapters."""

from service.catalog.registration import register_base, restore_base, retire_base

__all__ = ["register_base", "restore_base", "retire_base"]
