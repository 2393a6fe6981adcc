# The server of one province in one container; the speaker-node simulator is in it too (`--entrypoint firmware-sim`).
# Build: docker build --tag loa .
# HTTPS, MQTT on TLS and the push listener use a certificate of the server's own authority: set LOA_HTTP__PUBLIC_URL to what
# others call this machine, and hand out `broadcast-server certificates authority`.
# Run:   docker run --volume loa:/var/lib/loa --publish 8080:8080 --publish 8010:8010 --publish 8883:8883 loa

FROM debian:bookworm-slim AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /srv/loa
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt UV_CACHE_DIR=/tmp/uv UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
COPY scripts/_bring_uv.py scripts/_bring_uv.py
RUN python3 scripts/_bring_uv.py /usr/local/bin
COPY pyproject.toml uv.lock README.md ./
RUN uv sync --frozen --no-default-groups --no-install-project
COPY speaker_protocol speaker_protocol
COPY broadcast_server broadcast_server
COPY firmware_sim firmware_sim
COPY simulation simulation
RUN uv sync --frozen --no-default-groups --no-editable

FROM debian:bookworm-slim AS run
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        bubblewrap ca-certificates espeak-ng ffmpeg mosquitto python3 tzdata \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /var/lib/loa --create-home --shell /usr/sbin/nologin loa
COPY --from=build /srv/loa/.venv /srv/loa/.venv
ENV PATH=/srv/loa/.venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin \
    PYTHONUNBUFFERED=1 \
    LOA_DATA_DIR=/var/lib/loa \
    LOA_LOG_FORMAT=json \
    LOA_HTTP__HOST=0.0.0.0 \
    LOA_BROKER__HOST=0.0.0.0 \
    LOA_INGEST__HOST=0.0.0.0
WORKDIR /var/lib/loa
USER loa
VOLUME /var/lib/loa
EXPOSE 8080 8010 8883
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python3", "-c", "import ssl, urllib.request as u; u.urlopen('https://127.0.0.1:8080/healthz', timeout=4, context=ssl._create_unverified_context())"]
ENTRYPOINT ["broadcast-server"]
CMD ["serve"]
