# One image for the web process and the workers: `docker run -p 8000:8000 -v studio:/data audioldm-studio`.
FROM python:3.11-slim

# tini adopts and buries what a killed worker leaves behind.
# Debian removes old versions, so a pin would break the build.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 studio \
    && install --directory --owner=studio --group=studio /data

WORKDIR /app
ARG TORCH=torch==2.13.0
# Its version stands in the argument.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir "$TORCH"
COPY requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
RUN python -m compileall -q .

ENV DATA_DIR=/data \
    HOST=0.0.0.0 \
    PORT=8000 \
    PYTHONUNBUFFERED=1
EXPOSE 8000
VOLUME ["/data"]
HEALTHCHECK --interval=30s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/health/ready', timeout=4)"]

# Begins as root only to make the volume writable, then becomes `studio`.
ENTRYPOINT ["tini", "--", "/app/docker-entrypoint"]
CMD ["python", "manage.py", "serve"]
