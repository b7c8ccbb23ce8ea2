# Baton with vLLM on NVIDIA GPUs; the model is mounted or fetched from a hub. From the repository's root:
#   docker build -f deploy/docker/gpu.Dockerfile -t baton-serve:0.1.0-gpu .
# Every Python package, with CUDA's own libraries, has the version of requirements/gpu.lock; the driver comes from the
# host. For a base that cannot change under its tag pass --build-arg PYTHON=3.11.14-slim-bookworm@sha256:...
ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS build
RUN pip install --no-cache-dir uv==0.13.8 && python -m venv /opt/baton
WORKDIR /src
COPY pyproject.toml README.md ./
COPY requirements requirements
RUN uv pip install --no-cache --compile-bytecode --python /opt/baton/bin/python \
      --override requirements/overrides.txt --constraint requirements/gpu.lock --requirements pyproject.toml --extra gpu
COPY . .
RUN uv pip install --no-cache --compile-bytecode --python /opt/baton/bin/python --no-deps .

FROM python:${PYTHON}
# gcc: Triton compiles the launchers of its kernels. The others: RDMA for UCX. There is no nvcc: kernels that FlashInfer
# would compile at start are left to those that vLLM brings.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev libibverbs1 ibverbs-providers librdmacm1 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --create-home baton
COPY --from=build /opt/baton /opt/baton
ENV PATH=/opt/baton/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    VLLM_NO_USAGE_STATS=1 \
    VLLM_USE_FLASHINFER_SAMPLER=0 \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_SERVE_HAPROXY_BINARY_PATH=/opt/baton/bin/baton-haproxy
USER 1000:1000
WORKDIR /home/baton
EXPOSE 8000 9000
CMD ["baton", "--help"]
