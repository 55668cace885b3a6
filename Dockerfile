# Two images from one tree: `api` (no torch, starts in a second) and `worker` (the whole stack); and `flower`, which
# holds none of our code.
#   docker build --target api -t autoclave-api .
#   docker build --target worker -t autoclave-worker .
FROM python:3.13-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --create-home --uid 10001 autoclave \
 && mkdir -p /var/lib/autoclave/storage /var/lib/autoclave/work /models \
 && chown -R autoclave /var/lib/autoclave /models
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./

FROM base AS api
COPY autoclave ./autoclave
COPY service ./service
COPY workers ./workers
COPY migrations ./migrations
RUN pip install -c constraints.txt '.[service,otel]'
USER autoclave
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
CMD ["autoclave", "api", "--host", "0.0.0.0", "--port", "8000"]

FROM base AS worker
# torch in its own layer: it is gigabytes and changes rarely.
RUN pip install -c constraints.txt torch
COPY autoclave ./autoclave
COPY service ./service
COPY workers ./workers
COPY migrations ./migrations
RUN pip install -c constraints.txt '.[ml,service,worker,otel]'
ENV HF_HUB_OFFLINE=1 WORK_DIR=/var/lib/autoclave/work
USER autoclave
CMD ["autoclave", "worker"]

# Before 2.2.0 a page of another site could make it act (CVE-2022-51020). Celery's defaults take JSON only.
FROM base AS flower
RUN pip install -c constraints.txt 'celery[redis]' 'flower>=2.2.0,<3'
USER autoclave
CMD ["celery", "flower"]
