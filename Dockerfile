# One file for every image; SERVICE names the service, and with it the locked packages and the code that go in.
# Keep the builder free of registry look-ups: no "syntax" line, nothing but the Python image.
ARG SERVICE=api

FROM python:3.13-slim AS dependencies
ARG SERVICE
RUN python3 -m venv /venv
COPY requirements/${SERVICE}.txt /requirements.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    /venv/bin/pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r /requirements.txt

FROM python:3.13-slim AS base
# /secrets exists with this owner so that a new volume mounted there gets it too.
RUN groupadd --system --gid 10001 mailings \
 && useradd --system --uid 10001 --gid mailings --home-dir /app --shell /usr/sbin/nologin mailings \
 && install -d -o mailings -g mailings -m 755 /secrets
# Inside a container every interface is listened on; what is published is decided by Compose.
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 LISTEN_ADDRESS=0.0.0.0
WORKDIR /app
COPY --from=dependencies /venv /venv
USER 10001:10001

FROM base AS grounded
COPY common common
COPY db db

FROM grounded AS migrate-code
COPY tools/__init__.py tools/credentials.py tools/
CMD ["python", "-m", "db", "upgrade"]

FROM grounded AS api-code
COPY api api
EXPOSE 8000
CMD ["python", "-m", "api"]

FROM grounded AS admin-code
COPY admin admin
EXPOSE 8001
CMD ["python", "-m", "admin"]

FROM grounded AS sender-code
COPY sender sender
CMD ["python", "-m", "sender", "worker"]

FROM grounded AS reporter-code
COPY reporter reporter
CMD ["python", "-m", "reporter"]

FROM base AS simulator-code
COPY simulator simulator
EXPOSE 8100
CMD ["python", "-m", "simulator", "--host", "0.0.0.0", "--port", "8100"]

FROM ${SERVICE}-code
