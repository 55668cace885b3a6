"""The pages: `/app` for the holder of a project's key, `/dashboard` for operators.

Rendered here, enhanced by htmx and uPlot from this server; nothing is loaded from elsewhere, and reading
works without JavaScript. What a page does goes through the same functions as the API's routes
(docs/decisions/0018-pages.md).
"""
