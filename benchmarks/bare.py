"""The least that a server could do, to compare with: reads one row, or takes bytes in and counts them.

    python benchmarks/bare.py PORT

`GET /jobs/{id}` is a FastAPI endpoint that reads the row with SQLAlchemy Core from DATABASE_URL: no key, no
project, no model of the answer. `GET /page` renders a table with Jinja and reads nothing. `POST /dropped` is
a Starlette endpoint that streams the body and drops it; `POST /written` writes every piece to a file as it
comes. All run under uvicorn as our API does.
"""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException
from jinja2 import Environment
from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route

from service.db import engine_from_url
from service.models import Job

app = FastAPI()
# The tables and the connection settings are ours on both sides; what is compared is what stands around them.
engine = engine_from_url(os.environ["DATABASE_URL"])
jobs = Job.__table__


@app.get("/jobs/{job_id}")
def read_row(job_id: str) -> dict[str, Any]:
    with engine.connect() as connection:
        row = connection.execute(select(jobs).where(jobs.c.id == job_id)).mappings().first()
    if row is None:
        raise HTTPException(404)
    return dict(row)


# About as many rows and bytes as the operator's first page.
_PAGE = Environment(autoescape=True).from_string(
    "<!doctype html><title>Bare</title><table>{% for row in rows %}<tr><th>{{ row }}</th>"
    "{% for cell in range(9) %}<td class='number'>{{ row * cell }} of {{ row }}</td>{% endfor %}</tr>"
    "{% endfor %}</table>"
)


@app.get("/page")
def page() -> HTMLResponse:
    return HTMLResponse(_PAGE.render(rows=range(60)))


async def drop(request: Request) -> JSONResponse:
    num_bytes = 0
    async for chunk in request.stream():
        num_bytes += len(chunk)
    return JSONResponse({"bytes": num_bytes})


async def write(request: Request) -> JSONResponse:
    num_bytes = 0
    with tempfile.TemporaryFile(dir=os.environ["FOLDER"]) as file:
        async for chunk in request.stream():
            num_bytes += file.write(chunk)
    return JSONResponse({"bytes": num_bytes})


app.router.routes.append(Route("/dropped", drop, methods=["POST"]))
app.router.routes.append(Route("/written", write, methods=["POST"]))

if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_config=None, access_log=False, server_header=False)
