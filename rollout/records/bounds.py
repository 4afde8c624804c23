"""The values that each field of a record may have. A record with another value is refused, and its rollout fails.

    started    sample          0 … group_size - 1
               group_size      1 … MAX_GROUP_SIZE
               pad_id          none, or a token id
               task            `id` a string, `index` and `seed` integers, `data` a map
               assets          a path without a NUL character, of at most MAX_PATH_CHARACTERS
               layout          empty, or a family, a fingerprint and modalities that are safe names
    step       turn, first     0 … MAX_COUNT
               parent          -1 … first - 1
               messages        one or more; a role, and a string or a list of parts; other keys have plain data
               image parts     8 to 64 bytes, the beginning of the image's hash
               ids             token ids, 0 … 2**31 - 1; their number is the sum of `lengths`
               logprobs        at most one for each token of the last message; above VLLM_MISSING_LOGPROB, and at
                               most LOGPROB_TOLERANCE
               places          for each image of a message: its offset in the tokens that were not sampled, rising,
                               and its length, 1 … MAX_IMAGE_TOKENS
               words           rising pairs of offsets in the tokens of a message
               images          an asset's name that begins with the hash, or a data: URI; a payload of plain data
               length          0 … MAX_PATH_TOKENS
               digest, answer  PROMPT_DIGEST_BYTES, ANSWER_DIGEST_BYTES
               finish          `stop` or `length`
               stop            none, a string, or a token id
               versions        ranges that cover all sampled tokens, without gaps
               policy          two strings
               cached          0 … MAX_COUNT
               tools           a list of maps of plain data
               experts         rows[token, layer, choice] of integers, for tokens of the prompt and the answer
               masks           token ids, and the number of ids for each sampled token
               banned          token ids
               echo            none, or the name of an echo
               constrained     none, or a truth value
               timings         whole microseconds, 0 … MAX_COUNT * 1_000_000
    finished   status, reward  a reward, -MAX_REWARD … MAX_REWARD, if the status is `ok`; otherwise none
               limit           none, or the name of a limit
               rewards         values and weights, each -MAX_REWARD … MAX_REWARD, only if the status is `ok`
               turn_rewards    rising turns, 0 … MAX_COUNT, and their rewards, only if the status is `ok`
               unreceived_turns
                               rising turns, 0 … MAX_COUNT, each with a step
               root_kinds      rising indices of roots for each kind of a root but `main`; each root has one kind
               metrics         finite numbers
               error           none, or strings
               steps           0 … MAX_COUNT
               digest          STEPS_DIGEST_BYTES
               seconds         finite, 0 or more
    status     launch          1 … MAX_COUNT
    of a       phase           the name of a phase
    launch     partitions      1 … MAX_PARTITIONS
               partition       0 … partitions - 1
               directory, host strings of a limited length
               pid             0 … MAX_COUNT
    all        attempt, seq    0 … MAX_COUNT
               strings         Unicode, without lone surrogates
               other fields    plain data, or one array; no key is one that processors use for pixels

`rollout.trainer.trajectory.assemble` joins the records of an attempt and makes further checks. A prompt's messages
together must have as many tokens as the engine's prompt. Each image must have a descriptor and a pad token. All
branches together may have at most MAX_BRANCH_TOKENS tokens and messages.
"""

import re

MAX_COUNT = (1 << 31) - 1
"""The highest value of a count; also the highest token id, because ids have 32 bits."""

MAX_GROUP_SIZE = 1 << 16
"""The maximum number of rollouts of one task."""

MAX_REWARD = 1e30
"""The largest absolute value of a reward. Sums, squares and 32-bit forms of such rewards stay finite."""

MAX_IMAGE_TOKENS = 1 << 16
"""The maximum number of tokens of one image. The largest image that a model accepts has about 16,000."""

MAX_PATH_TOKENS = 1 << 22
"""The maximum number of tokens in a prompt with expanded images. A sample of this length takes 100 MB."""

MAX_BRANCH_TOKENS = 1 << 25
"""The maximum number of tokens and messages in all branches of a rollout. A shared one counts once for each branch."""

MAX_PATH_CHARACTERS = 4096
"""The maximum number of characters in the path of a directory."""

LOGPROB_TOLERANCE = 1e-3
"""The largest accepted log-prob. Rounding errors can make the log-prob of a token with probability 1 positive."""

ASSET_NAME = re.compile(r"[0-9a-f]{64}\.(?:png|jpg|webp|gif|bmp)")
"""The pattern of an asset's file name: the sha256 of the image's bytes, and the extension of its format."""
