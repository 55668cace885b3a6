"""Bases over HTTP, for admin keys with the role `catalog`: what is registered, and having more registered."""
