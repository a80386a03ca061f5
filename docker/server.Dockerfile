# syntax=docker/dockerfile:1
# The server of a federation; no GPU is used.   docker build -f docker/server.Dockerfile -t fedward-server .
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
WORKDIR /build
COPY pyproject.toml requirements.lock ./
# uv installs the extra that is named here and what it needs, each file checked against its hash in requirements.lock.
# The cache is one for both images: PyTorch is downloaded once.
RUN --mount=type=cache,id=fedward-uv,target=/root/.cache/uv \
    python -m venv /opt/fedward \
    && sed -n '/^uv==/,/# via/p' requirements.lock > uv.lock \
    && /opt/fedward/bin/python -m pip install --no-cache-dir --no-deps --require-hashes -r uv.lock \
    && /opt/fedward/bin/uv pip install --python /opt/fedward/bin/python --link-mode copy --compile-bytecode \
        --require-hashes --only-binary :all: --constraint requirements.lock -r pyproject.toml --extra server \
    && /opt/fedward/bin/python -m pip uninstall --yes --quiet pip
COPY README.md LICENSE ./
COPY common common
COPY server server
RUN /opt/fedward/bin/uv pip install --python /opt/fedward/bin/python --no-cache --offline --compile-bytecode \
        --no-deps --no-build-isolation .

FROM ${BASE}
# 10001 owns the federation's folder. An empty volume takes owner and mode of the folder that it is mounted on.
RUN groupadd --gid 10001 fedward \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin fedward \
    && install -d -m 0700 -o 10001 -g 10001 /federation /keys \
    && install -d -m 0755 -o 10001 -g 10001 /exchange
COPY --from=build /opt/fedward /opt/fedward
ENV PATH=/opt/fedward/bin:$PATH \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONDONTWRITEBYTECODE=1 \
    FLWR_TELEMETRY_ENABLED=0 \
    FLWR_DISABLE_UPDATE_CHECK=1 \
    NO_PROXY=127.0.0.1,localhost \
    FEDWARD_FEDERATION=/federation
USER 10001:10001
EXPOSE 9092
HEALTHCHECK --interval=30s --timeout=15s --start-period=180s --retries=3 \
    CMD ["python", "-P", "-m", "common.probe", "127.0.0.1:9094", "server.executor", "server.gate"]
ENTRYPOINT ["python", "-P", "-m", "server"]
CMD ["up"]
