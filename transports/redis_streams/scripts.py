"""The scripts that run atomically inside the Redis server, from the files in `lua/`. Each is one operation of a queue.

Every key of a queue begins with `{stream}`, so that a cluster keeps them together:

    :queue         how many partitions there are
    :p<i>          the records of a partition, a stream; its consumer group is `e<epoch>`, or `c` for single records
    :p<i>:epoch    how often the partition was leased or given back; the consumer that leased it last is its holder
    :p<i>:lease    exists while that holder lives
    :p<i>:delivered  the last record that a holder had delivered when it gave the partition back
    :holder:<i>:…  exists while a consumer of single records of that partition lives
    :writer:<id>   the last record of a producer, so that a put repeated after a lost answer is stored once
    :totals        records, bytes and redeliveries, kept exact by every script that changes them
    :dead          rejected records, a stream

A server that is out of memory refuses a script if its first write may take memory. Consuming frees memory, so the
scripts for it begin with a write that takes none (PERSIST); the server then allows the writes after it.
"""

from importlib.resources import files

_LUA_DIR = files("transports.redis_streams") / "lua"


def _load(*names: str) -> str:
    """Return a script that consists of these files of `lua/`, in this order."""
    return "".join((_LUA_DIR / f"{name}.lua").read_text("utf-8") for name in names)


CREATE_QUEUE = _load("create_queue")
ACCOUNT_PUT = _load("account_put")
LEASE_PARTITION = _load("delivered", "lease_partition")
RELEASE_PARTITION = _load("release_partition")
TAKE_RECORD = _load("take_record")
ACK = _load("ack")
CHECK_UNACKED = _load("check_unacked")
REJECT_FOREIGN_ENTRY = _load("reject_foreign_entry")
REDELIVER = _load("redeliver")
COUNT_REDELIVERIES = _load("count_redeliveries")
NACK = _load("nack")
END_CONSUMER = _load("end_consumer")
EXPIRE_LEASES = _load("expire_leases")
RENEW_LEASES = _load("renew_leases")
DEAD_LETTERS = _load("dead_letters")
DISCARD_DEAD_LETTER = _load("discard_dead_letter")
PEEK = _load("delivered", "peek")
STATS = _load("stats")
