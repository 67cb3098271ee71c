# csflow-serve: KServe's model server for detector directories, and nothing that trains. Built by `make images`.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
ARG INDEX_URL=
ARG CA_BUNDLE=
COPY infra/images/ca/ /ca/
COPY infra/images/install.sh /
COPY requirements/serve.txt /src/requirements.txt
RUN /install.sh requirements /src/requirements.txt
COPY pyproject.toml README.md /src/
COPY csflow/ /src/csflow/
RUN /install.sh code /src

FROM ${BASE_IMAGE}
COPY infra/images/finish.sh /tmp/
RUN sh /tmp/finish.sh && rm /tmp/finish.sh
COPY --from=build /opt/csflow /opt/csflow
COPY --from=build /app /app
# Only /tmp is written to, so the root file system may be read-only.
ENV PATH=/app/site/bin:/opt/csflow/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp USER=csflow LOGNAME=csflow LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
USER 10001:10001
EXPOSE 8080 8081
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "csflow.adapters.serving", "--host=0.0.0.0", "--port=8080", "--grpc-port=8081"]
CMD ["--model-dir=/mnt/models"]
ARG REVISION=unknown
ARG VERSION=unknown
ARG SOURCE=
ARG CREATED=
LABEL org.opencontainers.image.title="csflow-serve" \
      org.opencontainers.image.description="KServe predictor of csflow's detectors" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.created="${CREATED}"
