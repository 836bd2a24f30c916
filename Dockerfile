# One image for the fleet, the jobs and the serving app. Build it from the project's root:
#   docker build --tag nvcim:0.1.0 .
# with --build-arg CODE_VERSION="0.1.0+g$(git rev-parse --short=12 HEAD)" result rows name the commit, too.
FROM python:3.11-slim AS wheel
# The wheel brings compiled kernels for AVX2 and AVX-512 (or Arm), so only this stage needs a compiler.
RUN apt-get update && apt-get install --yes --no-install-recommends g++
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE ./
COPY platform platform
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
LABEL org.opencontainers.image.title="nvcim" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"

# KubeRay's health probes call wget inside the container.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends wget \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 nvcim

WORKDIR /app
COPY constraints.txt ./
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir --constraint constraints.txt /wheels/nvcim-*.whl
COPY jobs jobs
COPY serving serving
RUN install --directory --owner nvcim runs

# jobs/ and serving/ run from here in every Ray worker; Ray never reports usage and always asks for a token.
ARG CODE_VERSION=""
ENV NVCIM_CODE_VERSION=$CODE_VERSION \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0
USER 1000
EXPOSE 8000
CMD ["nvcim", "--help"]
