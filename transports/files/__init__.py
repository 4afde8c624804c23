"""`file://`: the files in the directory of a queue, and the module for each of them.

    queue.json                                 the format and the number of partitions, written once
    p<partition>/<writer>.<first seq>.seg      records; one writer appends, and no file has two writers      segments
    p<partition>/acks.<epoch>.<holder>.<n>     what was acked; one consumer appends                          acks
    p<partition>/lease.<epoch>                 who consumes the partition                                    leases
    p<partition>/claims/<writer>.<seq>.<epoch> who has a single record                                       leases
    p<partition>/dead/<writer>.<first seq>.seg rejected records, in the same format                       dead_letters
    holders/<holder>                           the heartbeat of a consumer; its leases are hard links to it  leases

No file needs a lock, or clocks that agree. A file is created exclusively, written by one process, and read by any.
"""
