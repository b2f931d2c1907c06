# syntax=docker/dockerfile:1
# Everything, installed, for a user without root. A GPU needs a CUDA base and the NVIDIA runtime:
#   docker build -t rlhf-trl .
#   docker run --rm -v "$PWD/runs:/app/runs" rlhf-trl make demo
#   docker build --build-arg BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04 -t rlhf-trl:gpu .
#   docker run --rm --gpus all -e OPENAI_API_KEY -v "$PWD/runs:/app/runs" rlhf-trl:gpu make all PROFILE=gpt2
ARG BASE=python:3.11-slim
FROM ${BASE}

RUN apt-get update \
    && apt-get install -y --no-install-recommends make python3 python3-dev python3-venv gcc \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1001 trainer && mkdir /app && chown trainer /app
USER trainer
WORKDIR /app

# The dependencies change less often than the code: their layer is made from what names them alone
COPY --chown=trainer Makefile pyproject.toml constraints.txt ./
RUN --mount=type=cache,target=/home/trainer/.cache/pip,uid=1001 \
    mkdir rlhf_trl eval && touch README.md && make .venv/.installed
COPY --chown=trainer . .

ENV HF_HOME=/app/runs/.huggingface
CMD ["make", "help"]
