"""What each field of a record may contain. A record with anything else is refused, and its rollout fails.

    started    sample          0 … group_size - 1
               group_size      1 … MAX_GROUP_SIZE
               pad_id          none, or a token id
               task            `id` a text, `index` and `seed` integers, `data` a map
               assets          a path without a NUL character, of at most MAX_PATH_CHARACTERS
               layout          empty, or a family, a fingerprint and modalities that are safe names
    step       turn, first     0 … MAX_COUNT
               parent          -1 … first - 1
               messages        one or more; a role, and a text or a list of parts; otherwise plain data, without arrays
               image parts     the first 8 to 64 bytes of a sha256
               ids             token ids, 0 … 2**31 - 1; as many as the `lengths` of the messages say
               logprobs        at most as many as the last message has tokens; above VLLM_MISSING_LOGPROB, at most
                               LOGPROB_TOLERANCE
               places          of each image of the message: an offset in the tokens that nobody sampled, rising, and a
                               length, 1 … MAX_IMAGE_TOKENS
               words           pairs of offsets in the tokens of the message, rising
               images          an asset's name that begins with the hash, or a data: URI; a payload of plain data
               length          0 … MAX_PATH_TOKENS
               digest, answer  PROMPT_DIGEST_BYTES, ANSWER_DIGEST_BYTES
               finish          `stop` or `length`
               stop            none, a text, or a token id
               versions        spans that cover the sampled tokens, without a gap
               policy          two texts
               cached          0 … MAX_COUNT
               tools           a list of maps of plain data
               experts         rows[token, layer, choice] of integers, for tokens of the prompt and the answer
               masks           token ids, and for each sampled token how many of them are its own
               banned          token ids
               timings         whole microseconds, 0 … MAX_COUNT * 1_000_000
    finished   status, reward  a reward if and only if the rollout trains; -MAX_REWARD … MAX_REWARD
               limit           none, or the name of a limit
               rewards         none, or values and weights, each -MAX_REWARD … MAX_REWARD, of a rollout that trains
               turn_rewards    none, or rising turns, 0 … MAX_COUNT, and their rewards, of a rollout that trains
               metrics         finite numbers
               error           none, or texts
               steps           0 … MAX_COUNT
               digest          STEPS_DIGEST_BYTES
               seconds         finite, 0 or more
    all        attempt, seq    0 … MAX_COUNT
               texts           Unicode, without lone surrogates
               other fields    plain data, or one array; none has the name of a processed payload

When the records of an attempt are joined (`rollout.trainer.trajectory.assemble`), they are also compared with each
other. Each path must have as many tokens as the engine's prompt. Each image must have a descriptor and stand on a pad
token. All branches together may have at most MAX_BRANCH_TOKENS tokens and messages.
"""

import re

MAX_COUNT = (1 << 31) - 1
"""The highest value of a count; also the highest token id, because ids have 32 bits."""

MAX_GROUP_SIZE = 1 << 16
"""The most rollouts of one task."""

MAX_REWARD = 1e30
"""The largest reward: sums, squares and 32-bit forms of rewards up to here are finite."""

MAX_IMAGE_TOKENS = 1 << 16
"""The most tokens of one image; the largest image that a model takes has about 16,000."""

MAX_PATH_TOKENS = 1 << 22
"""The most tokens of one prompt, with its images expanded; a sample of this length takes 100 MB."""

MAX_BRANCH_TOKENS = 1 << 25
"""The most tokens and messages of all branches of a rollout together; a shared one counts once for each branch."""

MAX_PATH_CHARACTERS = 4096
"""The most characters of a directory's path."""

LOGPROB_TOLERANCE = 1e-3
"""How far a log-prob may be above zero; rounding errors put that of a certain token there."""

ASSET_NAME = re.compile(r"[0-9a-f]{64}\.(?:png|jpg|webp|gif|bmp)")
"""The file name of an image: the sha256 of its bytes, and its format."""
