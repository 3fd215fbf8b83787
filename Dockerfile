# One image for every agent, in layers from what changes seldom to what changes daily: system packages, Python packages,
# llama.cpp's converter, code. Compilers stay in a stage of their own. `docker compose build` passes the arguments.
#
#   TORCH_INDEX       a further package index, for example one with a smaller build of torch for processors
#   --target worker   the image of machines elsewhere (docs/worker.md)
#   docker/wheels/    wheels that lie there are preferred to the index's (docker/wheels/README.md)

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS system
RUN apt-get update \
 && apt-get install -y --no-install-recommends libgomp1 \
 && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/venv/bin:$PATH


# llama.cpp: built for any x86-64 processor since 2013 (AVX2), not for the one that happens to build the image.
# A stage that depends on nothing but the version, because it takes minutes.
FROM system AS llama
ARG LLAMA_CPP_PYTHON=0.3.36
ARG CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON"
COPY docker/wheels/ /wheels/
RUN mkdir /built /sdist \
 && { cp /wheels/llama_cpp_python-${LLAMA_CPP_PYTHON}-*.whl /built/ 2>/dev/null || { \
      apt-get update && apt-get install -y --no-install-recommends build-essential cmake \
      && rm -rf /var/lib/apt/lists/* \
      && python3 -m pip wheel --no-cache-dir --no-deps --no-binary llama-cpp-python --wheel-dir /built \
           llama-cpp-python==${LLAMA_CPP_PYTHON}; }; }
# The source package once more, for the converter in it: the wheel lacks it.
RUN python3 -m pip download --no-cache-dir --no-deps --no-binary llama-cpp-python --find-links /wheels --dest /sdist \
      llama-cpp-python==${LLAMA_CPP_PYTHON}


# pyproject.toml without the developers' tools and their settings, whose changes shall not install everything anew.
FROM system AS project
COPY pyproject.toml constraints.txt /all/
RUN mkdir /project && touch /project/README.md && cp /all/constraints.txt /project/ \
 && awk '/^\[/ { kept = /^\[(build-system|project|project\.scripts|tool\.setuptools.*)\]$/ } kept' /all/pyproject.toml >/project/pyproject.toml


# The project without its code is its dependencies, its metadata and the command `meetara`. This layer outlives every
# change of code. What is deleted are test programs and C++ headers, a tenth of it.
FROM system AS packages
ARG TORCH_INDEX=
COPY docker/wheels/ /wheels/
COPY --from=llama /built/ /wheels/
COPY --from=project /project/ /project/
RUN python3 -m venv /opt/venv \
 && python -m pip install --no-cache-dir --find-links /wheels -c /project/constraints.txt \
      ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} /project pyarrow s3fs \
 && cd /opt/venv/lib/python3.*/site-packages \
 && rm -rf torch/test torch/include pyarrow/tests pyarrow/include \
 && python -m pip uninstall --yes pip


FROM packages AS converter
COPY --from=llama /sdist/ /sdist/
COPY protocol/ /code/protocol/
COPY agents/__init__.py /code/agents/
COPY agents/gguf_factory/__init__.py agents/gguf_factory/toolchain.py /code/agents/gguf_factory/
RUN cd /code \
 && python -m agents.gguf_factory.toolchain install /sdist/llama_cpp_python-*.tar.gz \
 && python -m compileall -q /opt/venv/share/meetara


FROM packages AS code
WORKDIR /opt/meetara
COPY . .
RUN rm -r docker models data && python -m compileall -q .


FROM system AS lab
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="meetara lab" \
      org.opencontainers.image.description="One training request on an MQTT bus becomes a small quantised language model that is proven good." \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Fixed ids, so that volumes and files on the host keep their owner from one image to the next.
RUN groupadd --gid 10001 meetara \
 && useradd --uid 10001 --gid 10001 --home-dir /var/lib/meetara --no-create-home --shell /usr/sbin/nologin meetara \
 && install -d -o meetara -g meetara -m 700 /var/lib/meetara
COPY --from=packages /opt/venv /opt/venv
COPY --from=converter /opt/venv/share/meetara /opt/venv/share/meetara
ENV MEETARA_HOME=/var/lib/meetara \
    PYTHONPATH=/opt/meetara \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /opt/meetara
COPY models/ models/
COPY data/ data/
COPY --from=code /opt/meetara ./
USER meetara
CMD ["meetara", "--help"]


# What a rented machine runs: the same program, which dials out. MEETARA_BROKER and MEETARA_TOKEN come from whoever starts it. For
# GPUs leave TORCH_INDEX empty: pip's own torch for Linux is then the CUDA build, and the vendor's runtime brings the driver.
FROM lab AS worker
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
STOPSIGNAL SIGTERM
CMD ["meetara", "worker"]


# The last stage is what is built where none is named.
FROM lab
