# syntax=docker/dockerfile:1
# Two images from one file: `--target server` (the API and the courier, no torch) and `--target worker` (the models).
#
#   docker build --target server -t polyreel-server .
#   docker build --target worker -t polyreel-worker .
#
# Every version comes from requirements/*.txt and every file is checked against its hash there. All stages start from
# BASE: any image with Python 3.11 or newer and its venv module, as long as all have the same one. An index or mirror of
# your own: --secret id=pip,src=pip.conf.
ARG BASE=python:3.12-slim-bookworm

# ---- packages of the API, and our own wheel --------------------------------------------------------------------------
FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# Two environments: /opt/build has pip and setuptools, /opt/polyreel is what the image gets and has neither.
RUN python3 -m venv /opt/build && python3 -m venv --without-pip /opt/polyreel
COPY requirements/build.txt requirements/server.txt requirements/
# --no-deps: the lock names every package, so whatever it does not name must not come.
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/build/bin/pip install --require-hashes --no-deps -r requirements/build.txt \
    && /opt/build/bin/pip --python /opt/polyreel/bin/python install --require-hashes --no-deps -r requirements/server.txt
COPY pyproject.toml README.md ./
COPY polyreel polyreel
COPY server server
COPY models models
COPY workers workers
COPY configs configs
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --no-index --wheel-dir /wheel . \
    && /opt/build/bin/pip --python /opt/polyreel/bin/python install --no-deps --no-index /wheel/*.whl

# ---- packages of the models, not after `build` but beside it: a change of our own code must not install torch again ----
FROM ${BASE} AS build-worker
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python3 -m venv /opt/build && python3 -m venv --without-pip /opt/polyreel
# The lock's torch is PyPI's, built for CUDA. TORCH takes another, unlocked: TORCH="torch==2.13.0 --index-url https://…"
ARG TORCH=
COPY requirements/torch.txt requirements/
# hadolint ignore=SC2086,DL3013
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/build/bin/pip --python /opt/polyreel/bin/python install --no-deps \
    ${TORCH:---require-hashes -r requirements/torch.txt}
COPY requirements/worker.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/build/bin/pip --python /opt/polyreel/bin/python install --require-hashes --no-deps -r requirements/worker.txt
COPY --from=build /wheel /wheel
RUN /opt/build/bin/pip --python /opt/polyreel/bin/python install --no-deps --no-index /wheel/*.whl

# ---- what both images are --------------------------------------------------------------------------------------------
FROM ${BASE} AS runtime
# PYTHONSAFEPATH: a folder called models/ in the working directory must not hide the package.
# HOME: of nobody's home directory anything could be written to; what insists on one may have a corner of /tmp.
ENV PATH=/opt/polyreel/bin:$PATH \
    PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp POLYREEL_STATE_DIR=/state
# The only folders that may be written to, each a volume. They exist here so that a new volume takes over their owner.
RUN install -d -o 10001 -g 10001 /state /weights
WORKDIR /state
USER 10001:10001
VOLUME /state
ENTRYPOINT ["polyreel"]

FROM runtime AS server
COPY --from=build /opt/polyreel /opt/polyreel
ENV POLYREEL_HOST=0.0.0.0
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["python3", "-m", "polyreel.health_check", "serve"]
CMD ["serve"]

FROM runtime AS worker
COPY --from=build-worker /opt/polyreel /opt/polyreel
# Weights are mounted at /weights (a Hugging Face cache); generating never touches the network.
# The driver comes from the NVIDIA Container Toolkit: torch's wheels bring CUDA, nvidia-smi lists the GPUs.
ENV HF_HOME=/weights HF_HUB_OFFLINE=1 NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s CMD ["python3", "-m", "polyreel.health_check", "worker"]
CMD ["worker"]
