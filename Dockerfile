# One image for the fleet, the jobs and the serving app. Build it from the project's root:
#   docker build --tag nvcim:0.1.0 .
# with --build-arg CODE_VERSION="0.1.0+g$(git rev-parse --short=12 HEAD)" result rows name the commit, too.
FROM python:3.11-slim
LABEL org.opencontainers.image.title="nvcim" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"

# KubeRay's health probes call wget inside the container; crossbars compile their inner loops with g++ on first use.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ wget \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 nvcim

WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY platform platform
RUN pip install --no-cache-dir --constraint constraints.txt .
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
