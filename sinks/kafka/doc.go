// Package kafka is the sink for Apache Kafka and what speaks its protocol. Record, key, headers and partition are those
// of Debezium's outbox router with Kafka's own producer, so that consumers notice no change of connector.
//
// franz-go makes the connections: brokers and metadata, TLS, SASL, versions, throttling, compression, partitioner. The
// produce requests are built here and not by its producer, for these reasons:
//
//   - Order. After a message of an aggregate that was not accepted, no later one may be. That needs to be known: what
//     is accepted together? The producer cuts partitions into batches when its background loop comes by, also before
//     Flush (a loop that still waits for a slot takes what the next Flush has just begun to fill). When the first of
//     two batches of a partition is refused, the second goes out under a new epoch and is accepted. Here a partition
//     gets one batch a request, which a broker accepts or refuses as a whole, and the next is built when the answer
//     to this one is known.
//   - Time. Deliver ends when its context does, and fails at once what is known to be away. The producer waits, for
//     metadata as well, as long as it takes, and counts its time-out from a record's timestamp: a backlog would be
//     too old when it starts.
//   - Cost. A Deliver knows all its records beforehand: no lock, no promise and no buffer for each of them. It takes
//     0.6 of the CPU time, and for 500 records 45 allocations instead of 3,500 (BenchmarkDeliver).
//
// Requests are idempotent: a batch that is sent again after a lost answer is recognised by the broker, within one
// Deliver. Between two, a time-out may have been an acceptance: the message comes again, with the same id.
//
//	Deliver ── plan: which messages go into the next wave, one batch a partition
//	   ▲         │
//	   │         ▼
//	   │       send: encode; one request a leader; again, for a short while, what may pass (an election)
//	   │         │
//	   └──── settle: accepted, failed (and what stands behind), or smaller batches
//
// Files: sink.go what lanes share; delivery.go one Deliver; producer.go a client, its producer id and sending;
// metadata.go topics; layout.go and placement.go headers; record.go and batch.go bytes; verdict.go answers; away.go what
// is known to be away.
package kafka
