# syntax=docker/dockerfile:1
# Two images from one file: `--target server` (the API, no torch) and `--target worker` (GPU).
# Every stage starts from an argument, so that the file can be built on any base with Python 3.11 or newer.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
WORKDIR /src
COPY pyproject.toml README.md ./
COPY polyreel polyreel
COPY server server
COPY models models
COPY workers workers
COPY configs configs
RUN python3 -m venv /opt/polyreel
ENV PATH=/opt/polyreel/bin:$PATH
RUN --mount=type=cache,target=/root/.cache/pip pip install .

FROM build AS build-worker
ARG TORCH=torch==2.13.0
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/root/.cache/pip pip install ${TORCH} && pip install '.[worker]'

FROM ${BASE} AS base
# PYTHONSAFEPATH: a folder called models/ in the working directory must not hide the package.
ENV PATH=/opt/polyreel/bin:$PATH \
    PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    POLYREEL_STATE_DIR=/state
RUN useradd --uid 10001 --no-create-home --home-dir /state polyreel \
    && install -d -o 10001 -g 10001 /state
WORKDIR /state
USER 10001
VOLUME /state

FROM base AS server
COPY --from=build --chown=0:0 /opt/polyreel /opt/polyreel
ENV POLYREEL_HOST=0.0.0.0
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
ENTRYPOINT ["polyreel"]
CMD ["serve"]

FROM base AS worker
COPY --from=build-worker --chown=0:0 /opt/polyreel /opt/polyreel
# Weights are mounted at /weights (a Hugging Face cache); generating never touches the network.
ENV HF_HOME=/weights HF_HUB_OFFLINE=1 NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
ENTRYPOINT ["polyreel"]
CMD ["worker"]
