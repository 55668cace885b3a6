"""Bases as an operator adds them: from a folder or a hub, checked, measured, registered."""
