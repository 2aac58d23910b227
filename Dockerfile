# CPU image with the default base inside, so that a container starts without a network.
#
#   docker build -t finlora --build-arg TORCH_INDEX=... .
#   docker run -p 8000:8000 -e FINLORA_API_KEY=... -v finlora-adapters:/app/adapters_registry finlora
#
# TORCH_INDEX is the package index with CPU builds of torch that PyTorch's installation page names.
# Beyond loopback the server wants a key; `finlora adapters add` in the container writes the volume.
FROM python:3.12-slim AS wheel

# The C compiler stays behind: the wheel carries what it made.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
WORKDIR /src
COPY pyproject.toml hatch_build.py README.md LICENSE NOTICE ./
COPY adapters_registry adapters_registry
COPY server server
RUN pip wheel --no-deps --wheel-dir /wheels .


FROM python:3.12-slim

ARG TORCH_INDEX
RUN test -n "$TORCH_INDEX" || { echo "give --build-arg TORCH_INDEX=, see the Dockerfile" >&2; exit 1; }

# The allocator settings of `make serve`: freed activations stay in the process.
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    MALLOC_MMAP_THRESHOLD_=4294967296 \
    MALLOC_TRIM_THRESHOLD_=17179869184 \
    FINLORA_CACHE=/app/cache

RUN useradd --create-home --uid 1000 finlora
WORKDIR /app

# In a layer of its own: it is the largest and changes least. What it needs itself comes with the wheel.
COPY constraints.txt ./
RUN pip install -c constraints.txt --no-deps --index-url "$TORCH_INDEX" torch

COPY adapters_registry adapters_registry
COPY --from=wheel /wheels /wheels
RUN pip install -c constraints.txt /wheels/*.whl \
    && install -d -o finlora -g finlora cache \
    && chown -R finlora:finlora adapters_registry

USER finlora
RUN finlora models fetch smollm2-135m-instruct

EXPOSE 8000
VOLUME ["/app/adapters_registry"]
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]

# Exec form: the server is process 1 and gets SIGTERM itself, so `docker stop` drains it.
ENTRYPOINT ["finlora", "serve", "--host", "0.0.0.0"]
