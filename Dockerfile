# One image for workers, the dashboard and all commands: docker build -t textgen-tuner .
#
# It is built for CPUs; --build-arg VARIANT=gpu takes PyTorch for NVIDIA GPUs instead, which is four times as large.
# What is installed is in locks/cpu.txt and locks/gpu.txt, with the hashes of all files. A mirror of the package index
# stays out of the image: --secret id=pip,src=pip.conf --secret id=uv,src=uv.toml. To build from one image for ever:
# --build-arg PYTHON=python:3.13-slim-trixie@sha256:..., as `docker images --digests` names it.
ARG PYTHON=python:3.13-slim-trixie

FROM ${PYTHON} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never
WORKDIR /source
COPY locks locks
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv /opt/build && /opt/build/bin/pip install --require-hashes -r locks/build.txt
# Where uv looks for torch: `cpu` are PyTorch's own CPU builds. Empty: where it looks for everything else.
ARG VARIANT=cpu
ARG TORCH_BACKEND=${VARIANT}
# First what seldom changes, so that a change of the source is not a download of everything.
RUN --mount=type=secret,id=uv,target=/etc/uv/uv.toml \
    python3 -m venv --without-pip /opt/tuner \
    && if [ "$TORCH_BACKEND" = cpu ]; then export UV_TORCH_BACKEND=cpu; fi \
    && /opt/build/bin/uv pip install --python /opt/tuner --require-hashes --no-deps --compile-bytecode \
        -r "locks/$VARIANT.txt" \
    && cd /opt/tuner/lib/python3.*/site-packages \
    && find . -type d \( -name test -o -name tests \) -prune -exec rm -r {} + \
    && find torch/bin -type f ! -name torch_shm_manager -delete && rm -r torch/include
COPY pyproject.toml README.md LICENSE ./
COPY models models
COPY tuner tuner
COPY studies studies
RUN /opt/build/bin/hatchling build -t wheel -d /wheels \
    && /opt/build/bin/uv pip install --offline --python /opt/tuner --no-deps --compile-bytecode /wheels/*.whl

FROM ${PYTHON}
LABEL org.opencontainers.image.title="textgen-tuner" \
      org.opencontainers.image.description="Tunes PyTorch text generators: studies, parallel workers, pruning, export." \
      org.opencontainers.image.licenses="Apache-2.0"
# A volume that is mounted here for the first time belongs to whom the folder belongs to.
RUN useradd --system --uid 10001 --home-dir /var/lib/tuner --shell /usr/sbin/nologin tuner \
    && install -d -o tuner -g tuner /var/lib/tuner /var/lib/tuner/artifacts /var/lib/tuner/artifacts/.attachments /results
COPY --from=build /opt/tuner /opt/tuner
ENV PATH=/opt/tuner/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    TUNER_ARTIFACTS=/var/lib/tuner/artifacts \
    XDG_CACHE_HOME=/var/lib/tuner/cache \
    MPLCONFIGDIR=/tmp/matplotlib
USER tuner
WORKDIR /results
STOPSIGNAL SIGTERM
ENTRYPOINT ["tuner"]
CMD ["--help"]
