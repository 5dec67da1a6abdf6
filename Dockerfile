# One image for workers, the dashboard and all commands: docker build -t textgen-tuner .
#
# PyTorch as the package index gives it runs on CPUs and NVIDIA GPUs, and is large. --build-arg TORCH_INDEX=URL takes
# it from another index instead, such as that of PyTorch's CPU builds, which pytorch.org names under "Get started".
# Settings of pip, such as a mirror, come as a secret and stay out of the image: --secret id=pip,src=pip.conf
ARG PYTHON=python:3.13-slim-trixie

FROM ${PYTHON} AS build
ARG TORCH_VERSION=2.13.0
ARG TORCH_INDEX=
ENV PATH=/opt/tuner/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/tuner
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch==$TORCH_VERSION"
WORKDIR /source
COPY pyproject.toml ./
# First what seldom changes, so that a change of the source is not a download of everything.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*project['dependencies'], *project['optional-dependencies']['s3'], sep='\n')" > requirements.txt \
    && pip install -r requirements.txt
COPY README.md LICENSE ./
COPY models models
COPY tuner tuner
COPY studies studies
RUN --mount=type=secret,id=pip,target=/etc/pip.conf pip install --no-deps .

FROM ${PYTHON}
LABEL org.opencontainers.image.title="textgen-tuner" \
      org.opencontainers.image.description="Tunes PyTorch text generators: studies, parallel workers, pruning, export." \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/tuner --shell /usr/sbin/nologin tuner
COPY --from=build /opt/tuner /opt/tuner
ENV PATH=/opt/tuner/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    TUNER_ARTIFACTS=/var/lib/tuner/artifacts \
    XDG_CACHE_HOME=/var/lib/tuner/cache \
    MPLCONFIGDIR=/tmp/matplotlib
USER tuner
WORKDIR /var/lib/tuner
VOLUME /var/lib/tuner
STOPSIGNAL SIGTERM
# Healthy is who reaches the database; the dashboard has a better sign of its own in docker-compose.yml.
HEALTHCHECK --interval=5m --timeout=60s --start-period=60s CMD ["tuner", "status"]
ENTRYPOINT ["tuner"]
CMD ["--help"]
