"""`python -m autoclave`"""

from autoclave.cli import app

app(prog_name="autoclave")
