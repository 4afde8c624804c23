# The images of rollout, from a checkout:
#
#   docker build --target worker --tag rollout-worker .       the default: workers, launches, engines without a network
#   docker build --target trainer --tag rollout-trainer .     the same, and torch, torchvision and transformers
#
# docs/operations.md says how to run them, and how to add an environment.

# Any Debian with Python 3.11 or newer.
ARG BASE=debian:trixie-slim
# A file beside this one, or a URL. Empty: the newest versions that the wheel allows.
ARG CONSTRAINTS=constraints.txt
# Your own package index, or one with another torch. pip reads variables with these names.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL


# All images share this: Python, the certificates for https:// and rediss:// servers, and a user that is not root.
FROM ${BASE} AS python
# hadolint ignore=DL3008 # Debian keeps no old versions
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates python3 \
 && apt-get clean \
 && rm -rf /var/lib/apt/lists/* /var/cache/ldconfig/* \
 && find /var/log -type f -delete \
 && useradd --uid 10001 --user-group --create-home rollout


FROM python AS wheel
# hadolint ignore=DL3008,DL3009 # as above; only the wheel and the installed packages of this stage go into an image
RUN apt-get update && apt-get install --yes --no-install-recommends python3-venv
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
RUN python3 -m venv /opt/rollout
WORKDIR /source
COPY .gitignore LICENSE README.md pyproject.toml ./
COPY rollout rollout
COPY transports transports
COPY renderers_adapter renderers_adapter
RUN /opt/rollout/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .


FROM wheel AS worker-packages
ARG CONSTRAINTS
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY constraints*.txt ./
RUN /opt/rollout/bin/pip install --no-cache-dir ${CONSTRAINTS:+--constraint "$CONSTRAINTS"} \
    "$(echo /wheels/*.whl)[redis,zmq]"


FROM worker-packages AS trainer-packages
ARG CONSTRAINTS
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
RUN /opt/rollout/bin/pip install --no-cache-dir ${CONSTRAINTS:+--constraint "$CONSTRAINTS"} \
    "$(echo /wheels/*.whl)[trainer,parquet]"


FROM python AS image
ENV PATH=/opt/rollout/bin:$PATH \
    PYTHONUNBUFFERED=1
LABEL org.opencontainers.image.title="rollout" \
      org.opencontainers.image.description="The rollout side of reinforcement learning for multimodal LLMs" \
      org.opencontainers.image.licenses="Apache-2.0"
# A number, because Kubernetes cannot tell from a name that the user is not root.
USER 10001:10001
WORKDIR /home/rollout
ENTRYPOINT ["rollout"]


FROM image AS trainer
COPY --from=trainer-packages /opt/rollout /opt/rollout


FROM image AS worker
COPY --from=worker-packages /opt/rollout /opt/rollout
