# Baton with vLLM on CPU, and the demo model. From the repository's root:
#   docker build -f deploy/docker/cpu.Dockerfile -t baton-serve:0.1.0-cpu .
# Every Python package has the version of requirements/cpu.lock. For a base that cannot change under its tag pass
# --build-arg PYTHON=3.11.14-slim-bookworm@sha256:...
ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS build
RUN pip install --no-cache-dir uv==0.13.8 && python -m venv /opt/baton
WORKDIR /src
COPY pyproject.toml README.md ./
COPY requirements requirements
RUN uv pip install --no-cache --compile-bytecode --python /opt/baton/bin/python --torch-backend cpu \
      --override requirements/overrides.txt --constraint requirements/cpu.lock --requirements pyproject.toml --extra cpu
COPY . .
RUN uv pip install --no-cache --compile-bytecode --python /opt/baton/bin/python --no-deps . \
 && /opt/baton/bin/baton model demo /models/demo

FROM python:${PYTHON}
# vLLM on CPU asks for libnuma1, and compiles a model with g++ where engine.options has no enforce_eager.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ libnuma1 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --create-home baton
COPY --from=build /opt/baton /opt/baton
COPY --from=build /models /models
ENV PATH=/opt/baton/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    VLLM_NO_USAGE_STATS=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_SERVE_HAPROXY_BINARY_PATH=/opt/baton/bin/baton-haproxy
USER 1000:1000
WORKDIR /home/baton
EXPOSE 8000 9000
CMD ["baton", "--help"]
