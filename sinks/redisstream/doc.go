// Package redisstream is the sink for Redis and for other servers that speak its protocol. Each message becomes an
// entry of the stream that has the name of its topic. The columns are the fields of the entry (entry.go). It works with
// Redis 6.2 or newer: a single server, one behind Sentinel, or a cluster.
//
// The library go-redis does everything about connections: dialing, TLS, authentication, Sentinel, the map of the
// cluster. What is sent, and what the answers mean, is decided here, for these reasons:
//
//   - Order. If a message of an aggregate was not accepted, no later one may be. So the entries of a stream are sent as
//     one MULTI: if the server refuses one of them while it queues them (no memory, read-only, no right), it executes
//     none. All messages of an aggregate in a wave go to one stream, and the others wait for the outcome.
//   - Every reply counts. go-redis gives up at the first error of a transaction. So it cannot tell a MULTI that was
//     aborted from one that was refused, after which the entries are added one by one, and again with every try. Here
//     all replies are read, and an empty MULTI shows first whether the user may use it.
//   - Time. Deliver must end when its context does, and must fail at once if the server has just timed out. To end a
//     wait for an answer, the connection is closed: its deadline alone does not end it when the context is cancelled.
//   - Cost. Commands are used again, and their arguments refer to the messages without copying them (BenchmarkDeliver).
//
// What is away. Three things may be: a stream (its key has another type, the user has no right to it, no node has its slot), a
// node of a cluster, or the destination as a whole. Where there are several streams, the first two are
// sinks.ErrTopicUnavailable, and are not asked again for a while (sinks.Away). A node that fails is the destination, unless
// another node answers: one that has answered in the same Deliver, or else one that says CLUSTER INFO works.
//
// If a connection breaks before the answer to EXEC, the outcome is unknown: the messages come again, with the same ids.
// With MAXLEN or MINID a stream is trimmed, approximately, whenever entries are added.
//
//	Deliver ── plan: which messages go into the next wave, one MULTI a stream
//	   ▲         │
//	   │         ▼
//	   │       send: one pipeline for each node, all nodes at the same time
//	   │         │
//	   └──── settle: accepted, failed (with later ones of the aggregate), put off, or sent to another node of the cluster
//
// Files: sink.go: what the lanes share. delivery.go: one call of Deliver. link.go: a client, and sending. entry.go:
// fields. verdict.go: what replies mean, and what an error concerns. check.go: whether streams may be written to, without writing.
package redisstream
