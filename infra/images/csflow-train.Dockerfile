# csflow-train: every step of the pipelines, the commands, and CUDA-capable torch. Built by `make images`.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
ARG INDEX_URL=
ARG CA_BUNDLE=
COPY infra/images/ca/ /ca/
COPY infra/images/install.sh /
COPY requirements/train.txt /src/requirements.txt
RUN /install.sh requirements /src/requirements.txt
COPY pyproject.toml README.md /src/
COPY csflow/ /src/csflow/
RUN /install.sh code /src
COPY components/ /app/components/
COPY pipelines/ /app/pipelines/
RUN /opt/csflow/bin/python -m compileall -q /app/components /app/pipelines

FROM ${BASE_IMAGE}
# DVC reads revisions through git. A base image that contains it (base.sh --include git) needs no Debian mirror here.
COPY infra/images/finish.sh /tmp/
RUN { command -v git >/dev/null || { apt-get update -q && apt-get install -qy --no-install-recommends git; }; } \
    && sh /tmp/finish.sh && rm /tmp/finish.sh && install -d -o 10001 -g 10001 /workspace
COPY --from=build /opt/csflow /opt/csflow
COPY --from=build /app /app
# Only the workspace, which is a mounted volume, and /tmp are written to, so the root file system may be read-only.
ENV PATH=/app/site/bin:/opt/csflow/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp USER=csflow LOGNAME=csflow LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    MPLCONFIGDIR=/tmp/matplotlib DVC_NO_ANALYTICS=1 DVC_SITE_CACHE_DIR=/tmp/dvc \
    CSFLOW_HOME=/workspace NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /app
USER 10001:10001
CMD ["csflow", "--help"]
ARG REVISION=unknown
ARG VERSION=unknown
ARG SOURCE=
ARG CREATED=
LABEL org.opencontainers.image.title="csflow-train" \
      org.opencontainers.image.description="All steps of csflow's pipelines" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.created="${CREATED}"
