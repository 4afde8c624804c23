"""Loads random and mutated YAML files and `--set` arguments: the result is a configuration or a named error.

No error contains a password, from a URL or from a variable. An accepted configuration can be written and loaded again:
the file contains no value of a variable, and the configuration is the same.

python tests/fuzz/fuzz_config.py --count 20000 --seed 0
"""

import contextlib
import functools
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

from rollout.config.load import load_config
from rollout.config.references import dump_yaml
from rollout.config.source import ConfigFileError
from tests.fuzz.fuzzing import OperationLimit, fuzz

PLAIN, IN_VARIABLE = "pl4inpassword", "v4riablepassword"
VARIABLES = {
    "SECRET": IN_VARIABLE,
    "LINK": f"redis://me:{IN_VARIABLE}@h:1/0",
    "N": "7",
    "EMPTY": "",
    "ODD": "a: [b, #c",
}
MAX_VALUES = 2_000
"""A lower limit than in production, so that a case is quick."""
OPERATIONS = 500_000
"""How many function calls one case may make; without the limit on values, some make far more."""

ENVIRONMENT = "environment: {class: 'rollout.environments.color_codeword:ColorCodeword'}\n"
BASE = ENVIRONMENT + "model: {name: m, path: m, renderer: r}\n"
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
KEYS = (
    "environment", "environment.class", "environment.image_size", "environment.colors", "tasks", "tasks.count",
    "tasks.seed", "tasks.source", "tasks.turns", "model.name", "model.path", "model.renderer", "model.template",
    "model.template.a", "engine.urls", "engine.timeout", "engine.api_key_env", "engine.sampling",
    "engine.sampling.temperature", "engine.sampling.stop", "engine.sampling.seed", "engine.sampling.logit_bias",
    "engine.sampling.extra_args", "engine.embedded.policy", "images.allow", "images.mode", "images.max_bytes",
    "queue", "queue.url", "queue.tasks", "worker.concurrency", "worker.grace", "policy.version",
    "policy.max_staleness", "metrics.port", "metrics.host", "gateway.limits.turns", "gateway.advertise",
    "gateway.unix_socket", "run.name", "run.directory", "run.max_failed",
    "nonsense.key", "queue.nonsense",
)  # fmt: skip
VALID = (
    "tasks.count=${N}", "tasks.seed=${MISSING:-4}", "model.name='${SECRET}'", "model.path=models/${N}",
    "run.name=x${N}", "queue.url='redis://me:${SECRET}@h'", "engine.urls=['http://h:1${N}']",
    "images.allow=[/x, '${SECRET}']", "engine.sampling.stop=['${N}', '${ODD}']", "run.directory=${SECRET}",
    "engine.sampling.extra_args={a: {b: '${LINK}'}}", "policy.version='${N}'", "engine.timeout=${N}",
    "model.template={a: ${N}, b: null}", "queue={url: '${LINK}'}",
)  # fmt: skip
PASSWORDS = (
    "{}", "x/{}", "x?y={}", "x#{}", "x@{}", "x {}", "1/{}", "1?lease_time={}", "%zz{}", "[{}", "]{}", "{}\u2100",
)  # fmt: skip
URLS = (
    "redis://me:{}@h:1/0", "redis://me:{}@h:port", "redis://:{}@h", "redis://[me:{}@h", "redis://me:{}@[h",
    "redis:/me:{}@h", "redis://me:{}@", "me:{}@h", "//me:{}@h", "http://me:{}@h:1", "file://me:{}@h/x",
    "zmq://me:{}@h:1", "redis://h?password={}", "redis://h/0?token={}&x=1",
)  # fmt: skip
SCALARS = (
    "0", "1", "-1", "7", "0.5", "1e3", "1e999", "1.0e+999", ".inf", "-.inf", ".nan", "true", "null", "~",
    "2147483648", "9223372036854775807", "9223372036854775808", "-9223372036854775809", "18446744073709551616",
    "0x7fffffffffffffff", "0xffffffffffffffffff", "0b1", "0o17", "1:30:00", "2026-01-01", "2026-13-45",
    "0001-01-01T00:00:00+23:59", "word", "a.b:C", "memory://x", "file:///absent/x", "builtin:tiny", "builtin:x", "~/x",
    "~nobody/x", ".", "/", "''", "\"\\ud800\"", "\"\\0\"", "\"\\U0001F600\"", "é", "'a\\b'", "!!int abc",
    "!!int \"\"", "!!float \"\"", "!!bool maybe", "!!timestamp abc", "!!binary aGk=", "!!null x",
    "!!python/name:os.system x", "!x y", "*none", "<<",
)  # fmt: skip
REFERENCES = (
    "${SECRET}", "'${SECRET}'", "\"x${SECRET}y\"", "${LINK}", "'${LINK}'", "redis://me:${SECRET}@h",
    "'redis://[${SECRET}'", "${MISSING}", "${MISSING:-4}", "${N}", "'${N}'", "${N:-x}", "${EMPTY}", "${EMPTY:-4}",
    "${ODD}", "models/${N}", "${", "!!int ${SECRET}", "${SECRET:-x}${N}", "[${N}, '${SECRET}']", "{a: '${SECRET}'}",
    "/absent/${SECRET}/x",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """The input of one case.

    Attributes:
        content: the file.
        overrides: the texts after `--set`.
        is_bomb: whether the file may expand to much more than it contains; its function calls are counted.
        is_loaded_again: whether an accepted configuration is written and loaded again, which takes long.
    """

    content: bytes
    overrides: tuple[str, ...] = ()
    is_bomb: bool = False
    is_loaded_again: bool = False


@functools.cache
def seeds() -> list[str]:
    """Return the configurations that we ship, without comments, to keep them short."""
    texts = [path.read_text("utf-8").replace("configs/", "") for path in CONFIGS]
    return ["".join(f"{line.partition(' #')[0]}\n" for line in text.splitlines() if line.strip()) for text in texts]


def random_url(chance: random.Random) -> str:
    return chance.choice(URLS).format(chance.choice(PASSWORDS).format(PLAIN))


@functools.cache
def whole_urls() -> list[str]:
    """Return all URLs with the password, as they are in a file; the longest first."""
    urls = [url.format(password.format(PLAIN)) for url in URLS for password in PASSWORDS]
    return sorted((json.dumps(url, ensure_ascii=False)[1:-1] for url in urls), key=len, reverse=True)


def has_cut_url(content: bytes) -> bool:
    """Whether a file has the password outside of a whole URL, because a mutation cut the URL."""
    text = content.decode("utf-8", "replace")
    for url in whole_urls() if PLAIN in text else ():
        text = text.replace(url, "")
    return PLAIN in text


def random_value(chance: random.Random, depth: int = 0) -> str:
    choice = chance.randrange(12 if depth < 3 else 7)
    if choice < 3:
        return chance.choice(SCALARS)
    if choice == 3:
        return json.dumps(random_url(chance), ensure_ascii=False)
    if choice < 6:
        return chance.choice(REFERENCES)
    if choice == 6:
        return str(chance.choice((1, -1)) * 2 ** chance.randint(0, 80) + chance.randint(-1, 1))
    if choice == 7:
        return "&a " + random_value(chance, depth + 1)
    if choice == 8:
        return "*a"
    inner = [random_value(chance, depth + 1) for _ in range(chance.randint(0, 3))]
    if choice < 11:
        return f"[{', '.join(inner)}]"
    names = ("a", "b", "class", "'<<'", "? [x]", "api_key", "5", random_url(chance))
    return "{" + ", ".join(f"{chance.choice(names)}: {value}" for value in inner) + "}"


def random_override(chance: random.Random) -> str:
    choice = chance.randrange(10)
    if choice == 0:
        return chance.choice(
            [random_url(chance), "=", "a", ".=1", "a..b=1", "a." * 500 + "a=1", "\ud800=1", "x=\ud800"]
        )
    if choice == 1:
        return f"{chance.choice(KEYS)}.{random_url(chance)}={random_value(chance)}"
    if choice < 5:
        return chance.choice(VALID)
    return f"{chance.choice(KEYS)}={random_value(chance)}"


def mutated_file(chance: random.Random) -> bytes:
    text = bytearray(chance.choice(seeds()).encode())
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(text) + 1)
        choice = chance.randrange(5)
        if choice == 0:
            text[at : at + 1] = chance.choice(
                [b"\xff", b"\0", b"\t", b"\n", b"{", b"]", b"'", b"&", b"*", b"%", b"\xef\xbb\xbf"]
            )
        elif choice == 1:
            del text[at : at + chance.randint(1, 20)]
        elif choice == 2:
            lines = bytes(text).split(b"\n")
            lines.insert(chance.randrange(len(lines)), chance.choice(lines))
            text[:] = b"\n".join(lines)
        else:  # another value after a colon
            colons = [index for index, byte in enumerate(text) if byte == ord(":")]
            if colons:
                at = chance.choice(colons) + 1
                end = text.find(b"\n", at)
                text[at : end if end >= 0 else len(text)] = b" " + random_value(chance).encode("utf-8", "replace")
    return bytes(text)


def bomb(chance: random.Random) -> Case:
    """Return a small file that expands to much: aliases of aliases, depth, many keys, long scalars."""
    choice = chance.randrange(6)
    if choice == 0:
        width, levels = chance.randint(2, 9), chance.randint(2, 12)
        lines = [f"a0: &a0 [{'x, ' * width}]"]
        lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
        return Case("\n".join(lines).encode())
    if choice == 1:
        opening, closing = chance.choice([("[", "]"), ("{a: ", "}"), ("[{a: ", "}]"), ("[? ", "]")])
        depth = chance.choice([10, 63, 64, 65, 500, 5000])
        text = opening * depth + closing * depth
        return (
            Case(BASE.encode(), (f"engine.sampling.extra_args={text}",))
            if chance.random() < 0.5
            else Case(f"a: {text}".encode())
        )
    if choice == 2:
        return Case(
            f"environment: &a {chance.choice(['[*a]', '{b: *a}', '{class: [*a, *a]}', '{? *a : 1}'])}\n".encode()
        )
    if choice == 3:
        return Case(BASE.encode() + b"".join(b"k%d: 1\n" % n for n in range(chance.randint(1, 200))))
    if choice == 4:
        scalar = chance.choice(["9", "1:", "0x" + "f", "a", "${N}", "'"]) * chance.choice([90, 110, 3000])
        return Case(BASE.encode(), (f"{chance.choice(KEYS)}={scalar}",))
    return Case(chance.randbytes(chance.randint(0, 200)))


def make(chance: random.Random) -> Case:
    choice = chance.random()
    if choice < 0.80:
        overrides = tuple(random_override(chance) for _ in range(1 if chance.random() < 0.8 else 2))
        return Case(
            (BASE if chance.random() < 0.7 else ENVIRONMENT).encode(), overrides, is_loaded_again=chance.random() < 0.1
        )
    return Case(mutated_file(chance)) if choice < 0.985 else replace(bomb(chance), is_bomb=True)


def attempt(case: Case) -> str:
    path = Path("env.yaml")
    path.write_bytes(case.content)
    try:
        with OperationLimit(OPERATIONS) if case.is_bomb else contextlib.nullcontext():
            config = load_config(path, case.overrides)
    except ConfigFileError as error:
        text = f"{error} {error.__cause__}"
        if not has_cut_url(case.content):  # a part of a URL is no URL, and nothing tells that it has a password
            assert PLAIN not in text, f"an error contains the password of a URL: {text}"
        assert IN_VARIABLE not in text, f"an error contains the value of a variable: {text}"
        assert len(text) < 20_000, "the text of an error is too long"
        raise
    written = config.as_written()
    assert IN_VARIABLE not in json.dumps(written), "the written file contains the value of a variable"
    if case.is_loaded_again:
        path.write_text(dump_yaml(written), "utf-8")
        assert load_config(path).to_dict() == config.to_dict(), "the written file is another configuration"
    return "a configuration" + (" with variables" if config.references else "")


@contextlib.contextmanager
def directory_and_variables() -> Iterator[None]:
    with (
        tempfile.TemporaryDirectory() as directory,
        contextlib.chdir(directory),
        mock.patch.dict(os.environ, VARIABLES),
    ):
        os.environ.pop("MISSING", None)
        with mock.patch("rollout.config.source._MAX_VALUES", MAX_VALUES):
            yield


if __name__ == "__main__":
    sys.exit(
        fuzz(
            __doc__ or "",
            make,
            attempt,
            named_errors=(ConfigFileError,),
            operations=None,
            around=directory_and_variables,
        )
    )
