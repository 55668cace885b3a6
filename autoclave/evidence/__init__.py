"""Sweeps and controls over the microcosm: tables, plots and a page that says what held and what did not."""
