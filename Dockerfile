FROM python:3.13-slim-bookworm

# git does all work on the branches, ssh reaches a remote that needs it, bubblewrap is the sandbox
# of CI commands; safe.directory is for git by hand in the container.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bubblewrap git openssh-client \
    && rm -rf /var/lib/apt/lists/* \
    && git config --system --add safe.directory /repo

WORKDIR /app
COPY requirements.txt ./
RUN pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements.txt

COPY LICENSE pyproject.toml ./
COPY alembic ./alembic
COPY src ./src
# The files that `autopack init` copies.
COPY .github ./.github
COPY scripts ./scripts

# The container's user (compose: AUTOPACK_UID) owns the files in the mounted repository, so its own
# data folder is open to any user.
RUN useradd --uid 1000 --create-home autopack \
    && install --directory --mode=1777 /var/lib/autopack
USER autopack

ENV PYTHONPATH=/app/src \
    PYTHONUNBUFFERED=1 \
    AUTOPACK_HOST=0.0.0.0 \
    AUTOPACK_HOME=/var/lib/autopack \
    AUTOPACK_REPO_PATH=/repo
VOLUME /var/lib/autopack
WORKDIR /repo
EXPOSE 8000

# By Python, because the image has no curl, and without the container's HTTP proxy. /health needs a
# key where callers do. The service answers under the names of AUTOPACK_ALLOWED_HOSTS alone.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/health' + '/live' * (os.environ.get('AUTOPACK_AUTH') == 'required'), headers={'Host': os.environ.get('AUTOPACK_ALLOWED_HOSTS', 'localhost').split(',')[0].strip()}); raise SystemExit(c.getresponse().status != 200)"]

CMD ["python", "-P", "-m", "autopack", "serve", "--port", "8000"]
