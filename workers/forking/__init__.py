"""Processes that are forked from one that holds a base, in place of fresh ones. No torch here."""
