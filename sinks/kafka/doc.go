// Package kafka is the sink for Apache Kafka and for other servers that speak its protocol. Records have the same key,
// headers and partition as those of Debezium's outbox router with Kafka's own producer, so that consumers need not
// change.
//
// The library franz-go does everything about connections: brokers and metadata, TLS, SASL, versions, throttling,
// compression, partitioner. Its producer is not used. The produce requests are built here, for these reasons:
//
//   - Order. If a message of an aggregate was not accepted, no later one may be. So it must be known which messages are
//     accepted together. The producer of franz-go cuts the records of a partition into batches in its background loop,
//     also before Flush (a loop that still waits for a slot takes the records that the next Flush has just begun to
//     add). If the first of two batches of a partition is refused, the second is sent under a new epoch and is
//     accepted. Here each request contains one batch for a partition, which the broker accepts or refuses as a whole,
//     and the next batch is built when the answer to this one is known.
//   - Time. Deliver must end when its context does, and must fail at once if it is known that a partition is away. The
//     producer waits as long as it takes, also for metadata. It counts its time-out from the timestamp of a record, so
//     the records of a backlog would be too old from the start.
//   - Cost. A Deliver knows all its records beforehand, so it needs no lock, no promise and no buffer for each of them.
//     It takes 0.6 of the CPU time, and 45 allocations instead of 3,500 for 500 records (BenchmarkDeliver).
//
// Requests are idempotent: if a batch is sent again after its answer was lost, the broker recognises it. That holds
// within one Deliver. If a Deliver ends with a time-out, the broker may have accepted the messages, and the next
// Deliver sends them again, with the same ids.
//
//	Deliver ── plan: which messages go into the next wave, one batch a partition
//	   ▲         │
//	   │         ▼
//	   │       send: encode; one request a leader; again, for a short while, after failures that may pass (an election)
//	   │         │
//	   └──── settle: accepted, failed (with later ones of the aggregate), or smaller batches
//
// If messages have different topics, a topic that is away must not hold up the others, and must not make the sink look away. So
// each Deliver finds out whether the cluster answers: a produce request to another broker, or a request for metadata. If it does,
// what concerns one topic or partition (it does not exist, it has no leader or too few replicas, its leader cannot be reached, there
// is no right to it) is ErrTopicUnavailable. The Sink remembers it, and puts its messages off for 1 s, 2 s, … 30 s without asking.
// Then the next Deliver asks again, in a wave of its own after all others, once, and not for long. If nothing answers, or if it is
// about the cluster (no right to it, login, TLS), everything is ErrUnavailable at once, and is never put off.
//
// Files: sink.go: what the lanes share. delivery.go: one call of Deliver. producer.go: a client, its producer id, and
// sending. metadata.go: topics and partitions. layout.go and placement.go: headers. record.go and batch.go: encoding.
// verdict.go: what an answer means. check.go: how to look at the cluster without a message. away.go: which places are known to be away.
package kafka
