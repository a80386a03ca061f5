# syntax=docker/dockerfile:1
# A hospital's side.   docker build -f docker/client.Dockerfile --target site -t fedward-client .
# The wheels of PyTorch that requirements.lock pins bring CUDA's libraries with them; of the host they need its driver.
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
        --require-hashes --only-binary :all: --constraint requirements.lock -r pyproject.toml --extra client \
    && /opt/fedward/bin/python -m pip uninstall --yes --quiet pip
COPY README.md LICENSE ./
COPY common common
COPY client client
RUN /opt/fedward/bin/uv pip install --python /opt/fedward/bin/python --no-cache --offline --compile-bytecode \
        --no-deps --no-build-isolation .

FROM ${BASE} AS site
# Two users: 10001 owns data, keys and ledger; 10002 runs the SuperNode, and reads of the first's what lies in /handed.
# An empty volume takes owner and mode of the folder that it is mounted on.
RUN groupadd --gid 10001 fedward \
    && groupadd --gid 10002 supernode \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin fedward \
    && useradd --uid 10002 --gid 10002 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin supernode \
    && install -d -m 0700 -o 10001 -g 10001 /site \
    && install -d -m 0755 -o 10001 -g 10001 /exchange \
    && install -d -m 0750 -o 10001 -g 10002 /handed \
    && install -d -m 0700 -o 10002 -g 10002 /node /node/logs /node/supernode
COPY --from=build /opt/fedward /opt/fedward
ENV PATH=/opt/fedward/bin:$PATH \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONDONTWRITEBYTECODE=1 \
    FLWR_TELEMETRY_ENABLED=0 \
    FLWR_DISABLE_UPDATE_CHECK=1 \
    NO_PROXY=127.0.0.1,localhost,runtime
USER 10001:10001
HEALTHCHECK --interval=30s --timeout=15s --start-period=180s --retries=3 \
    CMD ["python", "-P", "-m", "common.probe", "127.0.0.1:9095", "client.worker"]
ENTRYPOINT ["python", "-P", "-m", "client"]
CMD ["up", "/site"]

# The same, able to make up archives, for demo.compose.yaml:   docker build … --target demo -t fedward-demo .
FROM site AS demo
COPY simulations /opt/demo/simulations
ENV PYTHONPATH=/opt/demo
USER 0
RUN install -d -m 0700 -o 10001 -g 10001 /archive
USER 10001:10001
