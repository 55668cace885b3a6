"""The safety report as a page: for people who decide whether an adapter may be used, and for their files.

`rendering.render_report` is the page, `rendering.report_fragments` its drawings alone. Nothing here loads a
script, a font or an image, and nothing in it is a prompt, an answer or a row of a dataset.
"""
