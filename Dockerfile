# One image for every service: `run bot`, `run processor` and the commands of rtfm-cli.
# The two lock files name all packages with their hashes, so the same commit always installs the same packages.

FROM python:3.12-slim AS builder
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build

# The tools that build the wheel are installed only in this stage, so the image does not contain them.
COPY requirements.lock requirements-services.lock ./
RUN awk '/^[a-z]/ { keep = $1 ~ /^(hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers)==/ } keep' \
      requirements.lock > tools.lock && \
    python -m venv tools && tools/bin/pip install --require-hashes --no-deps -r tools.lock

RUN python -m venv /opt/rtfm && \
    /opt/rtfm/bin/pip install --require-hashes --no-deps -r requirements-services.lock && \
    /opt/rtfm/bin/pip check && \
    # These descriptions of every Google API have 110 MB; Gemini's client does not read them.
    rm -r /opt/rtfm/lib/python3*/site-packages/googleapiclient/discovery_cache/documents

COPY pyproject.toml README.md LICENSE ./
COPY schemas schemas
COPY cli cli
COPY rtfm rtfm
RUN tools/bin/pip wheel --no-deps --no-build-isolation --wheel-dir dist . && \
    /opt/rtfm/bin/pip install --no-deps dist/*.whl && \
    /opt/rtfm/bin/pip uninstall --yes pip

FROM python:3.12-slim
LABEL org.opencontainers.image.title="RTFM" \
      org.opencontainers.image.description="Answers questions in Discord communities from what was said there before" \
      org.opencontainers.image.licenses="Apache-2.0"

RUN useradd --system --uid 10001 --home-dir /var/lib/rtfm --create-home rtfm
COPY --from=builder /opt/rtfm /opt/rtfm
ENV PATH=/opt/rtfm/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    RTFM_HOME=/var/lib/rtfm \
    METRICS_HOST=0.0.0.0 \
    METRICS_PORT=9108

USER 10001
WORKDIR /var/lib/rtfm
VOLUME /var/lib/rtfm
EXPOSE 9108
# The base image has no curl, so Python asks the service's metrics port.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['METRICS_PORT'] + '/healthz', timeout=4)"]
ENTRYPOINT ["rtfm-cli"]
CMD ["--help"]
