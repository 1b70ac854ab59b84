# Everything that a job on Slurm's containers or KubeRay needs: `docker build -t interlace .` in the repository's root.
# A cluster without GPUs runs the same image; torch is the build of the constraints, with CUDA 13: about 6 GB of it.
FROM python:3.11-slim

# triton and torch compile with what they find: attention with masks is compiled on its first use
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/interlace

# What we depend on comes first, so that a change of code leaves this layer as it is
COPY pyproject.toml constraints.txt ./
RUN python -c \
        'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        > /tmp/wanted.txt \
    && pip install --no-cache-dir --disable-pip-version-check -c constraints.txt -r /tmp/wanted.txt \
    && rm /tmp/wanted.txt

# The code is not installed: a job that brings its own snapshot finds no second copy
COPY clusters clusters
COPY dataflow dataflow
COPY models models
COPY pipelines pipelines

RUN useradd --uid 1000 --create-home interlace
ENV PYTHONUNBUFFERED=1
USER 1000:1000

CMD ["python", "-m", "pipelines", "--help"]
