# The server as an image: Python packages from the lock, the code, the model that ships. docs/deploy.md tells how to run it.

# An exact release of Python on a named release of Debian. To build on another base: --build-arg PYTHON_IMAGE=…
ARG PYTHON_IMAGE=python:3.11.16-slim-bookworm

FROM ${PYTHON_IMAGE} AS packages
# One more package index for pip, such as PyTorch's index of CPU builds. Without it pip takes, on x86-64, the build
# with CUDA: it runs on a CPU as well, and is several gigabytes larger.
ARG EXTRA_INDEX=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_NO_INPUT=1
WORKDIR /build
COPY requirements.txt ./
RUN python3 -m venv /opt/turnwise \
    && /opt/turnwise/bin/python -m pip install ${EXTRA_INDEX:+--extra-index-url "$EXTRA_INDEX"} -r requirements.txt

FROM ${PYTHON_IMAGE}
COPY --from=packages /opt/turnwise /opt/turnwise
WORKDIR /app
COPY pyproject.toml ./
COPY chatbot chatbot
COPY server server
COPY training training
COPY migrations migrations
COPY models models
COPY deploy deploy
# What a new volume at /models begins with; it takes its owner from here too, and so does one at /data.
COPY --chown=10001:10001 models /models
# Bytecode is written now, for the root file system is read-only later. /data is for an SQLite file and retrainings.
RUN /opt/turnwise/bin/python -m compileall -q chatbot server training migrations \
    && install -d -o 10001 -g 10001 /data /models /transcripts

ENV HOME=/tmp \
    PATH=/opt/turnwise/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TURNWISE_HOST=0.0.0.0 \
    TURNWISE_DATABASE_URL=sqlite:////data/turnwise.db
# A number, for an orchestrator can tell from a number alone that it is not root.
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=10s --start-period=90s --retries=3 \
    CMD ["python", "/app/deploy/ready.py"]
ENTRYPOINT ["/bin/sh", "/app/deploy/entrypoint.sh"]
CMD ["serve"]
