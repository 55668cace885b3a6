# Four images from one tree: `api` and `maintenance` (no torch, start in a second), `worker` (the whole stack), and
# `flower`, which holds none of our code.
#   docker build --target api -t autoclave-api .
#   docker build --target maintenance -t autoclave-maintenance .
#   docker build --target worker -t autoclave-worker .
# All run as user 10001, by number: Kubernetes cannot tell from a name that it is not root.
FROM python:3.13-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN groupadd --gid 10001 autoclave \
 && useradd --create-home --uid 10001 --gid 10001 autoclave \
 && mkdir -p /var/lib/autoclave/storage /var/lib/autoclave/work /models \
 && chown -R 10001:10001 /var/lib/autoclave /models
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./

FROM base AS api
COPY autoclave ./autoclave
COPY service ./service
COPY workers ./workers
COPY migrations ./migrations
RUN pip install -c constraints.txt '.[service,otel]'
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
CMD ["autoclave", "api", "--host", "0.0.0.0", "--port", "8000"]

FROM base AS maintenance
COPY autoclave ./autoclave
COPY service ./service
COPY workers ./workers
COPY migrations ./migrations
RUN pip install -c constraints.txt '.[service,worker,otel]'
USER 10001:10001
CMD ["autoclave", "maintenance"]

FROM base AS worker
# torch in its own layer: it is gigabytes and changes rarely.
RUN pip install -c constraints.txt torch
COPY autoclave ./autoclave
COPY service ./service
COPY workers ./workers
COPY migrations ./migrations
RUN pip install -c constraints.txt '.[ml,service,worker,wandb,otel]'
ENV HF_HUB_OFFLINE=1 WORK_DIR=/var/lib/autoclave/work
USER 10001:10001
CMD ["autoclave", "worker"]

# Before 2.2.0 a page of another site could make it act (CVE-2022-51020). Celery's defaults take JSON only.
FROM base AS flower
RUN pip install -c constraints.txt 'celery[redis]' 'flower>=2.2.0,<3'
USER 10001:10001
CMD ["celery", "flower"]
