"""Loads the scripts that run atomically inside the Redis server, from the files in `lua/`. Each does one operation.

Every key of a queue begins with `{stream}`, so that a Redis cluster keeps all keys of a queue on one server:

    :queue           the number of partitions
    :p<i>            a stream with the records of a partition; consumer group `e<epoch>`, or `c` for single records
    :p<i>:epoch      the number of times that the partition was leased or released; fences earlier holders
    :p<i>:lease      the lease on the partition; the key exists while its holder lives
    :p<i>:delivered  the last record that was delivered when a holder released the partition
    :holder:<i>:…    exists while a consumer of single records of that partition lives
    :writer:<id>     the number of a producer's last record, so that a put that is repeated is stored only once
    :totals          the numbers of records, bytes and redeliveries; every script keeps them exact
    :dead            a stream with the rejected records

If the server is out of memory, it refuses a script whose first write may take memory. Consuming frees memory, so the
scripts for consumers begin with a write that takes no memory (PERSIST). The server then allows the later writes.
"""

from importlib.resources import files

_LUA_DIR = files("transports.redis_streams") / "lua"


def _load(*names: str) -> str:
    """Return the script that consists of these files in `lua/`, in this order."""
    return "".join((_LUA_DIR / f"{name}.lua").read_text("utf-8") for name in names)


CREATE_QUEUE = _load("check_key", "create_queue")
ASK_QUEUE = _load("check_key", "ask_queue")
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
