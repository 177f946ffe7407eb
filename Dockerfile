# The portal's control plane: console, API, worker and scheduler in one image, one role per container.
# Instances of the local engine run on the host beside a worker that is no container: deploy/systemd/atonix-portal.service.

FROM python:3.12.12-slim-bookworm AS builder
ENV PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv --without-pip /opt/venv
COPY deploy/setup/tools.txt deploy/setup/
RUN python -m venv tools && tools/bin/python -m pip install --no-cache-dir --require-hashes -r deploy/setup/tools.txt
COPY requirements.txt ./
RUN tools/bin/uv pip install --no-cache --python /opt/venv/bin/python --require-hashes --no-build -r requirements.txt

FROM builder AS frontend
COPY static/package.json static/package-lock.json static/
COPY deploy/setup deploy/setup
# The same step as on one machine: `.venv/tools` is where it looks for npm.
RUN mkdir .venv && ln -s /build/tools .venv/tools && \
    bash -euo pipefail -c '. deploy/setup/common.sh && . deploy/setup/frontend.sh && ensure_frontend run && test -f static/vendor/htmx.min.js'

FROM python:3.12.12-slim-bookworm AS runtime
# The value of .version; tests/unit/test_standards.py holds the two together.
ARG VERSION=0.1.0
ARG CREATED=""
ARG REVISION=""
ARG SOURCE=""
LABEL org.opencontainers.image.title="atonix-portal" \
      org.opencontainers.image.description="Atonix Portal, a self-hosted cloud console" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
RUN groupadd --system --gid 65532 atonix && \
    useradd --system --uid 65532 --gid 65532 --home-dir /data --shell /usr/sbin/nologin atonix && \
    install -d -o 65532 -g 65532 -m 0750 /data
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PORTAL_HOST=0.0.0.0 \
    PORTAL_PORT=8080 \
    METRICS_PORT=9090 \
    DATA_DIR=/data \
    ENGINE_COMPUTE=none
WORKDIR /app
COPY --from=builder /opt/venv /opt/venv
COPY .version atonix.yaml ./
COPY config config
COPY migrations migrations
COPY templates templates
COPY static static
COPY --from=frontend /build/static/vendor static/vendor
COPY portal portal
RUN python -m compileall -q portal migrations && chmod -R 555 /app
USER 65532:65532
VOLUME /data
EXPOSE 8080 9000 9090
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 CMD ["python", "-m", "portal", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "portal"]
CMD ["serve"]
