# Two images:
#
#   docker build --target producer -t inferfleet-producer .
#   docker build --target worker   -t inferfleet-worker   .
#
# The worker's base decides what engine it can run: by default none but the simulated one; for vLLM
#   docker build --target worker -t inferfleet-worker --build-arg BASE=vllm/vllm-openai:v0.32.0 .
#
# Layers are ordered by how often they change: base, dependencies (from pyproject.toml alone), weights, code.
# A change of code makes one new layer of less than 3 MB, and no installation.
#
# Weights usually come from a volume, and their layer is empty. To put them into the image, name an image that
# has them in /models: --build-arg WEIGHTS=IMAGE.
#
# Behind a proxy with a certificate authority of its own, put that into ca-bundle.crt before the build; the
# arguments PIP_INDEX_URL and PIP_EXTRA_INDEX_URL name other indexes. Neither ends up in an image.

ARG BASE=python:3.13-slim
ARG PRODUCER_BASE=python:3.13-slim
ARG WEIGHTS=no-weights


# --- producer: the command line, with what a client, the gateway and the exporter need installed. All code is there,
# as in a wheel, so that a command whose dependencies are not says what is missing.

FROM ${PRODUCER_BASE} AS producer-dependencies
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
WORKDIR /build
# The second is a pattern so that it may be missing.
COPY pyproject.toml ca-bundle.cr[t] ./
COPY deploy/docker/install-dependencies ./
RUN ./install-dependencies '.[gateway,otel,s3]'

FROM ${PRODUCER_BASE} AS producer-code
COPY schemas/inferfleet wire/inferfleet producer/inferfleet exporter/inferfleet worker/inferfleet gateway/inferfleet \
     agents/inferfleet cli/inferfleet local/inferfleet testing/inferfleet \
     /app/inferfleet/
# The user of the image cannot write bytecode there, so each start would compile everything again. What runs a
# fleet on one machine is there, and compiled when it is used.
RUN python3 -m compileall -q --invalidation-mode unchecked-hash -x "/inferfleet/(local|testing)/" /app

FROM ${PRODUCER_BASE} AS producer
LABEL org.opencontainers.image.title="inferfleet producer" \
      org.opencontainers.image.description="Submit inference jobs to an inferfleet, and read their answers." \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --create-home --uid 10001 inferfleet
ENV PATH=/opt/inferfleet/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1
COPY --from=producer-dependencies /opt/inferfleet /opt/inferfleet
COPY --from=producer-code /app /app
WORKDIR /home/inferfleet
USER 10001
# The gateway (INFERFLEET_HTTP_PORT).
EXPOSE 8000
ENTRYPOINT ["inferfleet"]
CMD ["--help"]


# --- worker: the same on any base that has Python 3.11 or later and pip

FROM ${BASE} AS worker-dependencies
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
USER root
WORKDIR /build
COPY pyproject.toml ca-bundle.cr[t] ./
COPY deploy/docker/install-dependencies ./
RUN ./install-dependencies '.[gpu,otel,worker]'

FROM ${BASE} AS no-weights
USER root
RUN mkdir -p /models

FROM ${WEIGHTS} AS weights

FROM ${BASE} AS worker-code
USER root
COPY schemas/inferfleet wire/inferfleet producer/inferfleet exporter/inferfleet worker/inferfleet gateway/inferfleet \
     agents/inferfleet cli/inferfleet local/inferfleet testing/inferfleet \
     /app/inferfleet/
RUN python3 -m compileall -q --invalidation-mode unchecked-hash -x "/inferfleet/(local|testing)/" /app

FROM ${BASE} AS worker
LABEL org.opencontainers.image.title="inferfleet worker" \
      org.opencontainers.image.description="Run inference jobs from a queue in one engine's continuous batch." \
      org.opencontainers.image.licenses="Apache-2.0"
USER root
RUN useradd --create-home --uid 10001 inferfleet
ENV PATH=/opt/inferfleet/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 HOME=/home/inferfleet
COPY --from=worker-dependencies /opt/inferfleet /opt/inferfleet
COPY --from=weights /models /models
COPY --from=worker-code /app /app
WORKDIR /home/inferfleet
USER 10001
# Health and metrics (INFERFLEET_HTTP_PORT).
EXPOSE 9100
# Without a shell or an init in between: SIGTERM reaches this process and no other. Were it sent to the
# whole group, vLLM's own processes would abort everything before it can be handed over.
ENTRYPOINT ["inferfleet", "worker"]
CMD []
