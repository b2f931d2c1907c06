# syntax=docker/dockerfile:1
# Everything, installed, for a user without root. A GPU needs a CUDA base and the NVIDIA runtime:
#   docker build -t rlhf-trl .
#   mkdir -p runs && docker run --rm --user "$(id -u)" -v "$PWD/runs:/app/runs" rlhf-trl make demo
#   docker build --build-arg BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04 -t rlhf-trl:gpu .
#   docker run --rm --gpus all --user "$(id -u)" -e OPENAI_API_KEY -v "$PWD/runs:/app/runs" rlhf-trl:gpu make all PROFILE=gpt2
ARG BASE=python:3.11-slim
FROM ${BASE}

# A CUDA base has no Python; the Python base has no need of Debian's
RUN apt-get update \
    && apt-get install -y --no-install-recommends make gcc $(command -v python3 > /dev/null || echo python3 python3-dev python3-venv) \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1001 trainer && mkdir /app && chown trainer /app
USER trainer
WORKDIR /app

# The dependencies change less often than the code: their layer is made from what names them alone
COPY --chown=trainer Makefile pyproject.toml constraints.txt ./
RUN --mount=type=cache,target=/home/trainer/.cache/pip,uid=1001 \
    mkdir -p rlhf_trl eval configs && touch README.md && make .venv/.installed
COPY --chown=trainer . .
# Nothing is to be installed because a copied file is newer, and TRL's options are looked up now: with --user nothing but
# runs can be written to
RUN touch .venv/.installed \
    && .venv/bin/python -c "from rlhf_trl.config import RECIPES; from rlhf_trl.outline import outline; [outline(part) for recipe in RECIPES.values() for part in recipe if isinstance(part, str)]"

ENV HF_HOME=/app/runs/.huggingface MPLCONFIGDIR=/tmp/matplotlib PYTHONDONTWRITEBYTECODE=1
CMD ["make", "help"]
