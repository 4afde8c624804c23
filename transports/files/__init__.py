"""`file://`: a queue in a directory. The table shows each file, its contents, and the module that explains it.

    queue.json                                 the format and the number of partitions, written once      directory
    p<partition>/<writer>.<first seq>.seg      records; only one writer appends to each file              segments
    p<partition>/acks.<epoch>.<holder>.<n>     the log of acks of one consumer                            acks
    p<partition>/lease.<epoch>                 the lease on the partition                                 leases
    p<partition>/claims/<writer>.<seq>.<epoch> the lease on a single record                               leases
    p<partition>/dead/<writer>.<first seq>.seg rejected records, in the format of segments                dead_letters
    holders/<holder>                           a consumer's heartbeat; its leases are hard links to it    leases

The files need no locks, and the machines' clocks need not agree. One process creates a file exclusively and writes it;
any process may read it.
"""
